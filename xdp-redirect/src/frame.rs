//! One packet in packet memory, owned.

use std::ptr::NonNull;

use dataplane::DropReason;
use dataplane::buffer::Buffer;

/// Bytes in front of a received packet (`XDP_PACKET_HEADROOM`): room for encapsulation.
pub const HEADROOM_BYTES: u32 = 256;
/// Chunks of one packet at most: 64 KiB in chunks of 2048 bytes less headroom.
pub const CHUNKS_MAX: u8 = 37;

/// Where a packet goes on, written at the start of a further chunk, in its headroom.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    next: Option<NonNull<u8>>,
    offset: u16,
    len: u16,
}
const _: () = assert!(size_of::<Link>() <= HEADROOM_BYTES as usize);

/// A packet's memory: a chunk of a [`Umem`](crate::Umem), or a chain of chunks. Whoever has it is
/// the only one who may touch the bytes; it can be moved, to other threads too, but not copied.
///
/// It ends by being transmitted or released ([`crate::pool::FramePool::release`]). One that is
/// dropped instead is not unsafe, but lost until the region ends: it counts as held.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to its pool: transmit or release it"]
pub struct Frame {
    chunk: NonNull<u8>,
    /// The second chunk of the packet.
    next: Option<NonNull<u8>>,
    offset: u16,
    len: u16,
    chunk_bytes: u16,
    /// Chunks that belong to the frame.
    chain: u8,
    /// Chunks that carry the packet; the others were cut off and go when the frame does.
    live: u8,
}
const _: () = assert!(size_of::<Frame>() == 24);

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
    /// `chunk` is the start of a chunk of `chunk_bytes` (at most 4096) bytes that stays mapped
    /// while the frame lives and that nobody else accesses; `offset + len <= chunk_bytes`, and
    /// `offset >= HEADROOM_BYTES`.
    #[inline(always)]
    pub(crate) unsafe fn new(chunk: NonNull<u8>, offset: u32, len: u32, chunk_bytes: u32) -> Self {
        #[allow(clippy::cast_possible_truncation)] // all at most 4096, says the caller
        let (offset, len, chunk_bytes) = (offset as u16, len as u16, chunk_bytes as u16);
        Self { chunk, next: None, offset, len, chunk_bytes, chain: 1, live: 1 }
    }

    /// Chunks that carry the packet: the transmit descriptors it takes.
    #[must_use]
    #[inline]
    pub fn chunks(&self) -> u8 {
        self.live
    }

    /// Bytes free in front of the packet.
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset)
    }

    /// The start of the last chunk, to append to; the frame itself is `None`.
    fn last(&self) -> Option<NonNull<u8>> {
        let mut last = self.next?;
        for _ in 2..self.chain {
            last = self.link(last).next?;
        }
        Some(last)
    }

    fn link(&self, chunk: NonNull<u8>) -> Link {
        // SAFETY: `chunk` is a further chunk of this frame: ours alone, aligned to its size of at
        // least 2048, with a link written when it was appended.
        unsafe { chunk.cast::<Link>().read() }
    }

    /// Appends the next chunk of a packet of several. Gives it back when the packet has too many.
    pub(crate) fn append(&mut self, tail: Self) -> Result<(), Self> {
        if self.chain >= CHUNKS_MAX || tail.chain != 1 {
            return Err(tail);
        }
        let end = Link { next: None, offset: tail.offset, len: tail.len };
        // SAFETY: the headroom of `tail`, whose ownership was just taken; a received chunk's data
        // begins after it (`Umem::received`).
        unsafe { tail.chunk.cast::<Link>().write(end) };
        match self.last() {
            None => self.next = Some(tail.chunk),
            Some(last) => {
                let link = Link { next: Some(tail.chunk), ..self.link(last) };
                // SAFETY: as in `link`.
                unsafe { last.cast::<Link>().write(link) };
            }
        }
        self.chain += 1;
        self.live += 1;
        Ok(())
    }

    /// Every chunk of the frame, in order.
    #[inline]
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Piece> {
        let first = Piece { chunk: self.chunk, offset: self.offset, len: self.len, is_live: true };
        let mut next = self.next;
        let further = (1..self.chain).map_while(move |number| {
            let chunk = next?;
            let link = self.link(chunk);
            next = link.next;
            let is_live = number < self.live;
            Some(Piece { chunk, offset: link.offset, len: link.len, is_live })
        });
        std::iter::once(first).chain(further)
    }

    /// The first chunk, when it is the only one.
    #[inline]
    pub(crate) fn single(&self) -> Option<Piece> {
        (self.chain == 1).then_some(Piece {
            chunk: self.chunk,
            offset: self.offset,
            len: self.len,
            is_live: true,
        })
    }
}

impl Buffer for Frame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        // SAFETY: offset and length lie within the chunk (`new`, and every change below), which is
        // ours alone and mapped.
        unsafe {
            let start = self.chunk.add(usize::from(self.offset));
            std::slice::from_raw_parts(start.as_ptr(), usize::from(self.len))
        }
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it unique.
        unsafe {
            let start = self.chunk.add(usize::from(self.offset));
            std::slice::from_raw_parts_mut(start.as_ptr(), usize::from(self.len))
        }
    }

    #[inline]
    fn len(&self) -> usize {
        if self.live == 1 {
            return usize::from(self.len);
        }
        let live = self.pieces().filter(|piece| piece.is_live);
        live.map(|piece| usize::from(piece.len)).sum()
    }

    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
        for piece in self.pieces().filter(|piece| piece.is_live) {
            // SAFETY: a piece of this frame lies within its chunk, which is ours alone and mapped.
            let bytes = unsafe {
                let start = piece.chunk.add(usize::from(piece.offset));
                std::slice::from_raw_parts(start.as_ptr(), usize::from(piece.len))
            };
            visit(bytes);
        }
    }

    fn grow_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::NoRoom)?;
        self.offset = self.offset.checked_sub(bytes).ok_or(DropReason::NoRoom)?;
        self.len += bytes;
        Ok(())
    }

    fn shrink_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::Truncated)?;
        self.len = self.len.checked_sub(bytes).ok_or(DropReason::Truncated)?;
        self.offset += bytes;
        Ok(())
    }

    fn set_len(&mut self, bytes: usize) -> Result<(), DropReason> {
        let bytes = u16::try_from(bytes).map_err(|_| DropReason::NoRoom)?;
        if bytes > self.chunk_bytes - self.offset {
            return Err(DropReason::NoRoom);
        }
        self.len = bytes;
        self.live = 1;
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
            let mut frame = unsafe { Frame::new(self.start.add(chunk * 2048), 256, 0, CHUNK) };
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
        let mut frame = memory.frame(0, b"one ");
        frame.append(memory.frame(1, b"two ")).expect("room");
        frame.append(memory.frame(2, b"three")).expect("room");
        assert_eq!((frame.len(), frame.chunks()), (13, 3));
        assert_eq!(all_bytes(&frame), b"one two three");
        frame.set_len(2).expect("shorter");
        assert_eq!((frame.len(), frame.chunks()), (2, 1));
        assert_eq!(all_bytes(&frame), b"on");
        let live: Vec<bool> = frame.pieces().map(|piece| piece.is_live).collect();
        assert_eq!(live, [true, false, false], "cut chunks go when the frame does");
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
