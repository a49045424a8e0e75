//! Maps a socket's rings for our own ring code.

use std::io;
use std::os::fd::RawFd;

use crate::cast::index;
use crate::mapping::Mapping;
use crate::ring::{Descriptor, RingMemory};

/// One of a socket's rings: the offset that names it in `mmap(2)` (`linux/if_xdp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum RingKind {
    Receive = 0,
    Transmit = 0x8000_0000,
    Fill = 0x1_0000_0000,
    Completion = 0x1_8000_0000,
}

impl RingKind {
    fn entry_bytes(self) -> usize {
        match self {
            Self::Receive | Self::Transmit => size_of::<Descriptor>(),
            Self::Fill | Self::Completion => size_of::<u64>(),
        }
    }

    fn offsets(self, of: &libc::xdp_mmap_offsets) -> &libc::xdp_ring_offset {
        match self {
            Self::Receive => &of.rx,
            Self::Transmit => &of.tx,
            Self::Fill => &of.fr,
            Self::Completion => &of.cr,
        }
    }
}

/// A socket's rings.
#[derive(Debug)]
pub(crate) struct SocketMaps {
    offsets: libc::xdp_mmap_offsets,
    mapped: Vec<(RingKind, Mapping)>,
}

impl SocketMaps {
    /// Maps the rings of a socket, which have this many entries.
    pub(crate) fn map(fd: RawFd, rings: &[(RingKind, u32)]) -> io::Result<Self> {
        let offsets = crate::socket::get_option(fd, libc::XDP_MMAP_OFFSETS)?;
        let mapped = rings.iter().map(|(kind, entries)| {
            let entries_at = usize::try_from(kind.offsets(&offsets).desc);
            let entries_at = entries_at.map_err(io::Error::other)?;
            let bytes = entries_at + index(*entries) * kind.entry_bytes();
            Ok((*kind, Mapping::new(fd, *kind as libc::off_t, bytes)?))
        });
        let mapped = mapped.collect::<io::Result<_>>()?;
        Ok(Self { offsets, mapped })
    }

    /// # Safety
    /// `T` is the ring's entry type; the value is dropped before `self`; nobody else acts for the side
    /// that is made of it.
    pub(crate) unsafe fn ring<T: Copy>(
        &self,
        kind: RingKind,
        entries_count: u32,
    ) -> io::Result<RingMemory<T>> {
        let missing = || io::Error::other(format!("the socket's {kind:?} ring is not mapped"));
        let of_kind = |(of, _): &&(RingKind, Mapping)| *of == kind;
        let (_, mapping) = self.mapped.iter().find(of_kind).ok_or_else(missing)?;
        let offsets = kind.offsets(&self.offsets);
        let at = |offset: u64, bytes: usize| mapping.get(usize::try_from(offset).ok()?, bytes);
        let bytes = index(entries_count) * size_of::<T>();
        let producer = at(offsets.producer, 4).ok_or_else(missing)?;
        let consumer = at(offsets.consumer, 4).ok_or_else(missing)?;
        let flags = at(offsets.flags, 4).ok_or_else(missing)?;
        let entries = at(offsets.desc, bytes).ok_or_else(missing)?;
        // SAFETY: all four lie within the mapping, which the caller keeps; the kernel aligns them.
        Ok(unsafe {
            RingMemory::new(
                producer.cast(),
                consumer.cast(),
                flags.cast(),
                entries.cast(),
                entries_count,
            )
        })
    }
}
