//! One packet in packet memory, owned.

use std::ptr::NonNull;

use dataplane::DropReason;
use dataplane::buffer::Buffer;

/// Bytes in front of a received packet (`XDP_PACKET_HEADROOM`): room for encapsulation, 16 less in
/// front of a packet of several chunks.
pub const HEADROOM_BYTES: u32 = 256;
/// Chunks of one packet at most: 64 KiB in chunks of 2048 bytes less headroom.
pub const CHUNKS_MAX: u8 = 37;

/// Where a packet goes on, written at the start of a chunk, in its headroom.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    next: Option<NonNull<u8>>,
    /// Of the bytes of this chunk; not used of a packet's first.
    offset: u16,
    len: u16,
    /// [`Buffer::segment_size`]; only of the first chunk of a packet that is [`LONG`].
    segment_size: u16,
}
/// In [`Shape::chunk_bits`]: the first chunk begins with a link, which has a segment size.
const LONG: u8 = 0x80;
const LINK_BYTES: u16 = 16;
const _: () = assert!(size_of::<Link>() == LINK_BYTES as usize);

/// A packet's memory: a chunk of a [`Umem`](crate::Umem), or a chain of chunks. Whoever has it is
/// the only one who may touch the bytes; it can be moved, to other threads too, but not copied.
///
/// It ends by being transmitted or released ([`crate::pool::FramePool::release`]). One that is
/// dropped instead is not unsafe, but lost until the region ends: it counts as held.
///
/// Two words, which travel in registers. A larger one is put together in memory from small pieces
/// and copied in large ones at each hand it goes through, and each such copy waits for the
/// processor's store buffer.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to its pool: transmit or release it"]
pub struct Frame {
    chunk: NonNull<u8>,
    /// A packed [`Shape`].
    shape: u64,
}
const _: () = assert!(size_of::<Option<Frame>>() == 16);

/// The region that a frame is of, and how long its chunks are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Home {
    /// A packed [`Shape`] of one chunk.
    shape: u64,
}

impl Home {
    /// Chunks are 2048 or 4096 bytes long.
    pub(crate) fn new(chunk_bytes: u32, region: u8) -> Self {
        let chunk_bits = chunk_bytes.trailing_zeros().to_le_bytes()[0];
        let shape = Shape { offset: 0, len: 0, chunk_bits, region, chain: 1, live: 1 };
        Self { shape: shape.pack() }
    }

    pub(crate) fn region(self) -> u8 {
        Shape::unpack(self.shape).region
    }
}

/// What a frame is beside its first chunk.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Of the bytes in the first chunk.
    offset: u16,
    /// Of the bytes in the first chunk.
    len: u16,
    /// Chunks are two to the power of this long, without [`LONG`].
    chunk_bits: u8,
    /// The number of the region that the chunks are of.
    region: u8,
    /// Chunks that belong to the frame.
    chain: u8,
    /// Chunks that carry the packet; the others were cut off and go when the frame does.
    live: u8,
}

impl Shape {
    #[inline(always)]
    fn pack(self) -> u64 {
        u64::from(self.offset)
            | u64::from(self.len) << 16
            | u64::from(self.chunk_bits) << 32
            | u64::from(self.region) << 40
            | u64::from(self.chain) << 48
            | u64::from(self.live) << 56
    }

    #[inline(always)]
    fn unpack(word: u64) -> Self {
        let [a, b, c, d, chunk_bits, region, chain, live] = word.to_le_bytes();
        Self {
            offset: u16::from_le_bytes([a, b]),
            len: u16::from_le_bytes([c, d]),
            chunk_bits,
            region,
            chain,
            live,
        }
    }

    /// Bytes at the start of the first chunk that are not the packet's to grow into.
    fn reserved(self) -> u16 {
        if self.chain > 1 || self.is_long() { LINK_BYTES } else { 0 }
    }

    #[inline(always)]
    fn is_long(self) -> bool {
        self.chunk_bits & LONG != 0
    }

    fn chunk_bytes(self) -> u16 {
        1 << (self.chunk_bits & !LONG)
    }
}

// SAFETY: a frame is the only way to its chunks (`Umem` writes down one holder each), so moving it
// to another thread moves all access.
unsafe impl Send for Frame {}

/// One piece of a packet, for a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub chunk: NonNull<u8>,
    pub offset: u16,
    pub len: u16,
    /// False for pieces that were cut off.
    pub is_live: bool,
}

impl Frame {
    /// # Safety
    /// `chunk` is the start of a chunk of `home`'s length that stays mapped while the frame lives and
    /// that nobody else accesses; `offset + len` does not exceed its length, and `offset >=
    /// HEADROOM_BYTES`.
    #[inline(always)]
    pub(crate) unsafe fn new(chunk: NonNull<u8>, offset: u32, len: u32, home: Home) -> Self {
        #[allow(clippy::cast_possible_truncation)] // both at most 4096, says the caller
        let (offset, len) = (offset as u16, len as u16);
        Self { chunk, shape: home.shape | u64::from(offset) | u64::from(len) << 16 }
    }

    /// The number of the region that its memory is of.
    #[inline(always)]
    pub(crate) fn region(&self) -> u8 {
        self.shape().region
    }

    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape::unpack(self.shape)
    }

    /// Chunks that carry the packet: the transmit descriptors it takes.
    #[must_use]
    #[inline]
    pub fn chunks(&self) -> u8 {
        self.shape().live
    }

    /// Whether it has a segment size ([`Buffer::segment_size`]).
    #[inline(always)]
    pub(crate) fn is_long(&self) -> bool {
        self.shape().is_long()
    }

    /// Bytes free in front of the packet.
    #[must_use]
    pub fn headroom(&self) -> usize {
        let shape = self.shape();
        usize::from(shape.offset - shape.reserved())
    }

    /// The last chunk, to append to.
    fn last(&self) -> NonNull<u8> {
        let mut last = self.chunk;
        for _ in 1..self.shape().chain {
            last = self.link(last).next.unwrap_or(last);
        }
        last
    }

    fn link(&self, chunk: NonNull<u8>) -> Link {
        // SAFETY: `chunk` is one of several of this frame: ours alone, aligned to its size of at
        // least 2048, with a link written when it was appended or appended to.
        unsafe { chunk.cast::<Link>().read() }
    }

    /// Appends the next chunk of a packet of several. Gives it back when the packet has too many.
    pub(crate) fn append(&mut self, tail: Self) -> Result<(), Self> {
        self.append_behind(self.last(), tail)
    }

    /// The same behind its last chunk.
    fn append_behind(&mut self, last: NonNull<u8>, tail: Self) -> Result<(), Self> {
        let (mut shape, end) = (self.shape(), tail.shape());
        if shape.chain >= CHUNKS_MAX || end.chain != 1 || shape.offset < LINK_BYTES {
            return Err(tail);
        }
        let before = match shape.chain {
            1 => Link { next: None, offset: shape.offset, len: shape.len, segment_size: 0 },
            _ => self.link(last),
        };
        let end = Link { next: None, offset: end.offset, len: end.len, segment_size: 0 };
        // SAFETY: the headroom of `tail`, whose ownership was just taken; a received chunk's data
        // begins after it (`Umem::received`).
        unsafe { tail.chunk.cast::<Link>().write(end) };
        // SAFETY: the start of a chunk of this frame, its last (both callers), in front of its bytes: of a
        // further one as above, of the first as just checked.
        unsafe { last.cast::<Link>().write(Link { next: Some(tail.chunk), ..before }) };
        shape.chain += 1;
        shape.live += 1;
        self.shape = shape.pack();
        Ok(())
    }

    /// Every chunk of the frame, in order. One that was handed out may be freed at once, and be
    /// another worker's by the next step: the way on is read before.
    #[inline]
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> {
        let shape = self.shape();
        let first =
            Piece { chunk: self.chunk, offset: shape.offset, len: shape.len, is_live: true };
        let mut number = 0;
        // It looks for the one behind a piece before it hands that out.
        std::iter::successors(Some(first), move |piece| {
            number += 1;
            if number >= shape.chain {
                return None;
            }
            let chunk = self.link(piece.chunk).next?;
            let link = self.link(chunk);
            let is_live = number < shape.live;
            Some(Piece { chunk, offset: link.offset, len: link.len, is_live })
        })
    }

    /// Where in its chunk each piece of the packet begins, and its bytes.
    pub(crate) fn live_pieces(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.pieces().filter(|piece| piece.is_live).map(|piece| {
            // SAFETY: a piece of this frame lies within its chunk, which is ours alone and mapped.
            let bytes = unsafe {
                let start = piece.chunk.add(usize::from(piece.offset));
                std::slice::from_raw_parts(start.as_ptr(), usize::from(piece.len))
            };
            (piece.offset, bytes)
        })
    }

    /// Makes a frame of one chunk hold `bytes`, which begin at `offset` of the chunk; false when they
    /// do not fit.
    pub(crate) fn put(&mut self, offset: u16, bytes: &[u8]) -> bool {
        let mut shape = self.shape();
        let room = shape.chunk_bytes().checked_sub(offset);
        let Some(len) = u16::try_from(bytes.len()).ok().filter(|len| Some(*len) <= room) else {
            return false;
        };
        if shape.chain > 1 {
            return false;
        }
        (shape.offset, shape.len) = (offset, len);
        self.shape = shape.pack();
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    /// The first chunk, when it is the only one.
    #[inline(always)]
    pub(crate) fn single(&self) -> Option<Piece> {
        let Shape { offset, len, chain, .. } = self.shape();
        (chain == 1).then_some(Piece { chunk: self.chunk, offset, len, is_live: true })
    }

    #[cold]
    fn chain_len(&self) -> usize {
        let live = self.pieces().filter(|piece| piece.is_live);
        live.map(|piece| usize::from(piece.len)).sum()
    }
}

/// A packet that comes chunk by chunk. It knows its last one: to look for that from the first on would be to
/// go through a segment of 64 KB for each of its 37.
#[derive(Debug)]
pub(crate) struct Chain {
    whole: Frame,
    last: NonNull<u8>,
}

// SAFETY: the last chunk is one of the frame's, which may be moved.
unsafe impl Send for Chain {}

impl Chain {
    /// Of the first chunk.
    pub(crate) fn new(first: Frame) -> Self {
        Self { last: first.last(), whole: first }
    }

    /// As [`Frame::append`].
    pub(crate) fn append(&mut self, tail: Frame) -> Result<(), Frame> {
        let last = tail.chunk;
        self.whole.append_behind(self.last, tail)?;
        self.last = last;
        Ok(())
    }

    /// The packet as far as it has come.
    pub(crate) fn whole(&self) -> &Frame {
        &self.whole
    }

    /// The packet.
    pub(crate) fn into_whole(self) -> Frame {
        self.whole
    }
}

impl Buffer for Frame {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        let Shape { offset, len, .. } = self.shape();
        // SAFETY: offset and length lie within the chunk (`new`, and every change below), which is
        // ours alone and mapped.
        unsafe {
            let start = self.chunk.add(usize::from(offset));
            std::slice::from_raw_parts(start.as_ptr(), usize::from(len))
        }
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        let Shape { offset, len, .. } = self.shape();
        // SAFETY: as in `bytes`; `&mut self` makes it unique.
        unsafe {
            let start = self.chunk.add(usize::from(offset));
            std::slice::from_raw_parts_mut(start.as_ptr(), usize::from(len))
        }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        let Shape { len, live, .. } = self.shape();
        if live == 1 { usize::from(len) } else { self.chain_len() }
    }

    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
        self.live_pieces().for_each(|(_, bytes)| visit(bytes));
    }

    fn grow_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        let mut shape = self.shape();
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::NoRoom)?;
        let offset = shape.offset.checked_sub(bytes).filter(|left| *left >= shape.reserved());
        shape.offset = offset.ok_or(DropReason::NoRoom)?;
        shape.len += bytes;
        self.shape = shape.pack();
        Ok(())
    }

    fn shrink_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        let mut shape = self.shape();
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::Truncated)?;
        shape.len = shape.len.checked_sub(bytes).ok_or(DropReason::Truncated)?;
        shape.offset += bytes;
        self.shape = shape.pack();
        Ok(())
    }

    #[inline]
    fn segment_size(&self) -> u16 {
        if self.is_long() { self.link(self.chunk).segment_size } else { 0 }
    }

    fn set_segment_size(&mut self, bytes: u16) -> Result<(), DropReason> {
        let mut shape = self.shape();
        if bytes == 0 {
            shape.chunk_bits &= !LONG;
            self.shape = shape.pack();
            return Ok(());
        }
        if shape.offset < LINK_BYTES {
            return Err(DropReason::NoRoom);
        }
        let link = match shape.reserved() {
            0 => Link { next: None, offset: shape.offset, len: shape.len, segment_size: bytes },
            _ => Link { segment_size: bytes, ..self.link(self.chunk) },
        };
        // SAFETY: the start of the first chunk, which is ours alone, in front of its bytes as just checked.
        unsafe { self.chunk.cast::<Link>().write(link) };
        shape.chunk_bits |= LONG;
        self.shape = shape.pack();
        Ok(())
    }

    fn set_len(&mut self, bytes: usize) -> Result<(), DropReason> {
        let mut shape = self.shape();
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::NoRoom)?;
        if bytes > shape.chunk_bytes() - shape.offset {
            return Err(DropReason::NoRoom);
        }
        (shape.len, shape.live) = (bytes, 1);
        shape.chunk_bits &= !LONG;
        self.shape = shape.pack();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 2048;

    /// Chunks of this process, aligned to their size.
    struct Memory {
        start: NonNull<u8>,
        layout: std::alloc::Layout,
    }

    impl Memory {
        fn new(chunks: usize) -> Self {
            let layout = std::alloc::Layout::from_size_align(chunks * 2048, 2048).expect("small");
            // SAFETY: the layout is not empty.
            let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
            Self { start, layout }
        }

        fn frame(&self, chunk: usize, bytes: &[u8]) -> Frame {
            assert!((chunk + 1) * 2048 <= self.layout.size());
            // SAFETY: within the memory, which outlives the frames of a test; each test makes one
            // frame per chunk.
            let mut frame =
                unsafe { Frame::new(self.start.add(chunk * 2048), 256, 0, Home::new(CHUNK, 3)) };
            frame.set_len(bytes.len()).expect("it fits");
            frame.bytes_mut().copy_from_slice(bytes);
            frame
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
        }
    }

    fn all_bytes(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.for_each_chunk(&mut |chunk| bytes.extend_from_slice(chunk));
        bytes
    }

    #[test]
    fn packet_moves_into_its_headroom_and_no_further() {
        let memory = Memory::new(1);
        let mut frame = memory.frame(0, b"inner");
        frame.grow_front(256).expect("all of the headroom");
        assert_eq!((frame.len(), frame.headroom()), (261, 0));
        assert_eq!(&frame.bytes()[256..], b"inner");
        assert_eq!(frame.grow_front(1), Err(DropReason::NoRoom));
        frame.shrink_front(256).expect("back");
        assert_eq!(frame.bytes(), b"inner");
        assert_eq!(frame.shrink_front(6), Err(DropReason::Truncated));
        assert_eq!(frame.shrink_front(usize::MAX), Err(DropReason::Truncated));
        assert_eq!(frame.grow_front(usize::MAX), Err(DropReason::NoRoom));
        assert_eq!(frame.bytes(), b"inner", "a refused change changes nothing");
    }

    #[test]
    fn length_is_bounded_by_the_chunk() {
        let memory = Memory::new(1);
        let mut frame = memory.frame(0, b"");
        assert!(frame.is_empty());
        frame.set_len(1792).expect("the chunk less its headroom");
        assert_eq!(frame.set_len(1793), Err(DropReason::NoRoom));
        assert_eq!(frame.set_len(65_536 + 5), Err(DropReason::NoRoom));
        assert_eq!(frame.len(), 1792);
    }

    #[test]
    fn chain_shows_all_chunks_in_order_and_cutting_keeps_them_owned() {
        let memory = Memory::new(3);
        let mut chain = Chain::new(memory.frame(0, b"one "));
        chain.append(memory.frame(1, b"two ")).expect("room");
        chain.append(memory.frame(2, b"three")).expect("room");
        assert_eq!(chain.whole().chunks(), 3);
        let mut frame = chain.into_whole();
        assert_eq!((frame.len(), frame.chunks()), (13, 3));
        assert_eq!(all_bytes(&frame), b"one two three");
        frame.set_len(2).expect("shorter");
        assert_eq!((frame.len(), frame.chunks()), (2, 1));
        assert_eq!(all_bytes(&frame), b"on");
        assert_eq!(frame.headroom(), 240, "the way to the other chunks stays");
        assert_eq!(frame.grow_front(241), Err(DropReason::NoRoom));
        frame.grow_front(240).expect("all of the headroom");
        let live: Vec<bool> = frame.pieces().map(|piece| piece.is_live).collect();
        assert_eq!(live, [true, false, false], "cut chunks go when the frame does");
    }

    /// With several workers, who gave a chunk back read the way to the next one out of what another had
    /// written there meanwhile.
    #[test]
    fn chunk_may_be_given_away_before_the_next_one_is_asked_for() {
        let memory = Memory::new(3);
        let mut frame = memory.frame(0, b"one ");
        frame.append(memory.frame(1, b"two ")).expect("room");
        frame.append(memory.frame(2, b"three")).expect("room");
        let mut lengths = Vec::new();
        for piece in frame.pieces() {
            lengths.push(piece.len);
            let nowhere = Link { next: None, offset: 0, len: 0, segment_size: 0 };
            // SAFETY: a chunk of this test's memory, aligned to its size, which nobody else accesses.
            unsafe { piece.chunk.cast::<Link>().write(nowhere) };
        }
        assert_eq!(lengths, [4, 4, 5]);
    }

    #[test]
    fn chain_has_a_largest_length() {
        let memory = Memory::new(usize::from(CHUNKS_MAX) + 1);
        let mut frame = memory.frame(0, b"x");
        for chunk in 1..usize::from(CHUNKS_MAX) {
            frame.append(memory.frame(chunk, b"x")).expect("room");
        }
        assert!(frame.append(memory.frame(usize::from(CHUNKS_MAX), b"x")).is_err());
        assert_eq!(frame.len(), usize::from(CHUNKS_MAX));
    }
}
