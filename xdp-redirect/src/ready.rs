//! Which sockets may have packets: a byte per (port, queue), set by the XDP program.
//!
//! A worker with hundreds of sockets would spend two microseconds on looking at every empty ring;
//! it reads eight cache lines of flags instead. The flags lie by queue, then by port, so that
//!
//! - a flag's place follows from port and queue alone: nothing has to be agreed between the
//!   program, the control side and the worker when a port comes or goes, and a flag left over
//!   from a port's predecessor is worth one look;
//! - workers have queues of their own and so do not share cache lines, except on ports of fewer
//!   queues than there are workers;
//! - the program sets a flag by a plain store, from whatever core a packet comes in on. (Bits
//!   would be eight times denser and need an atomic instruction.)
//!
//! The program sets a flag before its packet can be seen, which is at the end of the kernel's NAPI
//! poll. So a worker that clears it at its first vain look, and even one that clears it at its
//! tenth, can leave a packet without a flag: [`crate::ports`] says what is done about it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::MapData;
use dataplane::port::PortId;

use crate::cast::index;
use crate::error::Error;
use crate::limits;
use crate::mapping::Mapping;

/// Flags in one word.
pub(crate) const WORD_FLAGS: usize = 8;
const FLAGS: usize = index(limits::QUEUES_MAX) * index(limits::PORTS_MAX);
const _: () = assert!(FLAGS.is_multiple_of(WORD_FLAGS) && FLAGS / WORD_FLAGS <= 1 << 16);

/// The flags, shared by all workers and the program.
#[derive(Debug, Clone)]
pub struct ReadyFlags {
    memory: Arc<Mapping>,
}

/// Where a flag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlagPlace {
    /// Which word, of all there are.
    pub word: u16,
    /// Which of its bytes, in the order of addresses.
    pub byte: u8,
}

impl FlagPlace {
    /// `None` beyond the program's tables.
    pub(crate) fn of(port: PortId, queue: u32) -> Option<Self> {
        if u32::from(port.0) >= limits::PORTS_MAX || queue >= limits::QUEUES_MAX {
            return None;
        }
        let flag = index(queue) * index(limits::PORTS_MAX) + usize::from(port.0);
        let word = u16::try_from(flag / WORD_FLAGS).ok()?;
        Some(Self { word, byte: u8::try_from(flag % WORD_FLAGS).ok()? })
    }

    /// The flag, raised, in its word as [`ReadyFlags::load`] returns it.
    #[inline]
    pub(crate) fn bit(self) -> u64 {
        1 << (u32::from(self.byte) * 8)
    }
}

impl ReadyFlags {
    pub(crate) fn map(map: &MapData) -> Result<Self, Error> {
        Self::of_file(map.fd().as_fd().as_raw_fd())
            .map_err(|source| Error::Map { map: "ready", source })
    }

    pub(crate) fn of_file(fd: RawFd) -> io::Result<Self> {
        Ok(Self { memory: Arc::new(Mapping::new(fd, 0, FLAGS)?) })
    }

    /// The flags of a word: bit 0 of each byte, the byte of the lowest address lowest.
    #[inline]
    pub(crate) fn load(&self, word: u16) -> u64 {
        // Relaxed: a flag says where to look; the ring's own index says what is there.
        u64::from_le(self.memory.word(usize::from(word) * WORD_FLAGS).load(Ordering::Relaxed))
    }

    /// Sets a flag, as the program does.
    #[inline]
    pub(crate) fn raise(&self, place: FlagPlace) {
        if self.load(place.word) & place.bit() == 0 {
            let word = self.memory.word(usize::from(place.word) * WORD_FLAGS);
            word.fetch_or(place.bit().to_le(), Ordering::Relaxed);
        }
    }

    /// Clears a flag. The caller looks at the ring once more behind a full fence.
    pub(crate) fn clear(&self, place: FlagPlace) {
        let word = self.memory.word(usize::from(place.word) * WORD_FLAGS);
        word.fetch_and(!place.bit().to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_and_queue_has_a_flag_of_its_own_and_none_beyond() {
        let mut seen = vec![false; FLAGS];
        for queue in 0..limits::QUEUES_MAX {
            for port in 0..u16::try_from(limits::PORTS_MAX).expect("fits") {
                let place = FlagPlace::of(PortId(port), queue).expect("in range");
                let flag = usize::from(place.word) * WORD_FLAGS + usize::from(place.byte);
                assert!(!std::mem::replace(&mut seen[flag], true));
            }
        }
        assert!(FlagPlace::of(PortId(2048), 0).is_none());
        assert!(FlagPlace::of(PortId(0), 64).is_none());
    }
}
