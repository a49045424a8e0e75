//! What the core asks of packet memory.

use crate::DropReason;

/// One received packet's memory, owned: whoever holds it is the only one who may touch the bytes,
/// and must transmit it, hand it on or release it exactly once.
///
/// A packet longer than one chunk (jumbo frames, multi-buffer AF_XDP) continues in further chunks
/// that travel with the first; [`bytes`](Self::bytes) shows the first chunk, which always holds
/// all headers, and [`len`](Self::len) counts them all.
pub trait Buffer {
    /// The bytes of the first chunk, from the Ethernet header on.
    fn bytes(&self) -> &[u8];
    /// The same, writable.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Length of the whole packet in bytes, all chunks.
    fn len(&self) -> usize;
    /// Whether the packet has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Calls `visit` with the bytes of every chunk in order (for checksums over the payload).
    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8]));
    /// Moves the packet's start `bytes` towards the front, for encapsulation.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when the headroom is smaller.
    fn grow_front(&mut self, bytes: usize) -> Result<(), DropReason>;
    /// Cuts `bytes` off the packet's start.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when the first chunk is shorter.
    fn shrink_front(&mut self, bytes: usize) -> Result<(), DropReason>;
    /// TCP payload of each packet, in bytes, that this one is to be cut into where it leaves
    /// ([`crate::segments`]); 0 for one that is not, as nearly all are.
    fn segment_size(&self) -> u16 {
        0
    }
    /// Says how the packet is to be cut; 0: not at all.
    ///
    /// # Errors
    /// [`DropReason::Uncuttable`] when this memory holds packets of links only.
    fn set_segment_size(&mut self, bytes: u16) -> Result<(), DropReason> {
        if bytes == 0 { Ok(()) } else { Err(DropReason::Uncuttable) }
    }
    /// Sets the packet's length to `bytes`, within the first chunk: shorter cuts (and releases
    /// further chunks), longer extends with unspecified bytes.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when the first chunk's memory is smaller.
    fn set_len(&mut self, bytes: usize) -> Result<(), DropReason>;
}

/// Cuts off what lies behind a packet that ends at `len`.
///
/// # Errors
/// [`DropReason::Malformed`] when it does not end in the first chunk: no link adds so much.
#[cold]
pub(crate) fn cut<B: Buffer>(buffer: &mut B, len: usize) -> Result<(), DropReason> {
    if len > buffer.bytes().len() {
        return Err(DropReason::Malformed);
    }
    buffer.set_len(len)
}
