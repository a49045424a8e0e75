//! Packet memory on the heap: for traces, simulations and benchmarks, where no NIC is involved.

use crate::DropReason;
use crate::buffer::Buffer;

/// Room kept in front of a packet, as AF_XDP keeps it (`XDP_PACKET_HEADROOM`), in bytes.
pub const HEADROOM: usize = 256;
/// Bytes of one buffer, as an AF_XDP chunk has them.
pub const CHUNK: usize = 2048;

/// One packet in memory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeapBuffer {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
    segment_size: u16,
}

impl HeapBuffer {
    /// A buffer that holds `packet`, with [`HEADROOM`] in front and a chunk's room, or as much as
    /// the packet needs, behind.
    #[must_use]
    pub fn new(packet: &[u8]) -> Self {
        let end = HEADROOM + packet.len();
        let mut memory = vec![0; end.max(CHUNK)].into_boxed_slice();
        memory[HEADROOM..end].copy_from_slice(packet);
        Self { memory, start: HEADROOM, end, segment_size: 0 }
    }

    /// Puts `packet` back at its first place: a benchmark uses one buffer many times.
    pub fn refill(&mut self, packet: &[u8]) {
        let end = (HEADROOM + packet.len()).min(self.memory.len());
        self.memory[HEADROOM..end].copy_from_slice(&packet[..end - HEADROOM]);
        (self.start, self.end, self.segment_size) = (HEADROOM, end, 0);
    }
}

impl Buffer for HeapBuffer {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.bytes());
    }

    fn grow_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        self.start = self.start.checked_sub(bytes).ok_or(DropReason::NoRoom)?;
        Ok(())
    }

    fn shrink_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        if bytes > self.len() {
            return Err(DropReason::Truncated);
        }
        self.start += bytes;
        Ok(())
    }

    fn segment_size(&self) -> u16 {
        self.segment_size
    }

    fn set_segment_size(&mut self, bytes: u16) -> Result<(), DropReason> {
        self.segment_size = bytes;
        Ok(())
    }

    fn set_len(&mut self, bytes: usize) -> Result<(), DropReason> {
        let end = self.start + bytes;
        if end > self.memory.len() {
            return Err(DropReason::NoRoom);
        }
        self.end = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encapsulation_uses_the_headroom_and_no_more() {
        let mut buffer = HeapBuffer::new(b"payload");
        assert_eq!(buffer.grow_front(HEADROOM), Ok(()));
        assert_eq!(buffer.grow_front(1), Err(DropReason::NoRoom));
        assert_eq!(buffer.shrink_front(HEADROOM), Ok(()));
        assert_eq!(buffer.bytes(), b"payload");
        assert_eq!(buffer.shrink_front(8), Err(DropReason::Truncated));
        assert_eq!(buffer.set_len(CHUNK), Err(DropReason::NoRoom));
    }
}
