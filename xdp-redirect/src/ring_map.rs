//! Maps a bound socket's rings for our own ring code.
//!
//! xsk-rs maps the four rings before it binds and hides where, so they are mapped once more.
//! Kernels before 6.4 refuse that once the socket is bound (`xsk_mmap` wanted one that is ready);
//! there xsk-rs's own mappings are looked up in `/proc/self/maps`, by the socket's inode and the
//! offset that names the ring, which takes longer the more sockets there are: half a millisecond
//! with 500. They live as long as xsk-rs's ring objects.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

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

/// Address range of each of a socket's rings.
#[derive(Debug)]
pub(crate) struct SocketMaps {
    ranges: Vec<(u64, usize, usize)>,
    offsets: libc::xdp_mmap_offsets,
    mapped: Vec<Mapping>,
}

impl SocketMaps {
    /// Finds the rings of a socket, which have this many entries.
    pub(crate) fn find(fd: RawFd, rings: &[(RingKind, u32)]) -> io::Result<Self> {
        let mut maps = Self { ranges: Vec::new(), offsets: offsets(fd)?, mapped: Vec::new() };
        match rings.iter().try_for_each(|(kind, entries)| maps.map(fd, *kind, *entries)) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                maps.ranges = listed(inode_of(fd)?)?;
            }
            result => result?,
        }
        Ok(maps)
    }

    fn map(&mut self, fd: RawFd, kind: RingKind, entries: u32) -> io::Result<()> {
        let entries_at = usize::try_from(kind.offsets(&self.offsets).desc);
        let bytes = entries_at.map_err(io::Error::other)? + index(entries) * kind.entry_bytes();
        let mapping = Mapping::new(fd, kind as libc::off_t, bytes)?;
        let (start, end) = mapping.addresses();
        self.ranges.push((kind as u64, start, end));
        self.mapped.push(mapping);
        Ok(())
    }

    /// What has to live as long as the rings; empty where xsk-rs's mappings do.
    pub(crate) fn into_mapped(self) -> Vec<Mapping> {
        self.mapped
    }

    /// # Safety
    /// `T` is the ring's entry type; the value is dropped before the mapping goes; nobody else
    /// acts for the side that is made of it.
    pub(crate) unsafe fn ring<T: Copy>(
        &self,
        kind: RingKind,
        entries_count: u32,
    ) -> io::Result<RingMemory<T>> {
        let missing = || io::Error::other(format!("the socket's {kind:?} ring is not mapped"));
        let of_kind = |range: &&(u64, usize, usize)| range.0 == kind as u64;
        let (_, start, end) = self.ranges.iter().find(of_kind).ok_or_else(missing)?;
        let offsets = kind.offsets(&self.offsets);
        let at = |offset: u64, bytes: usize| {
            let offset = usize::try_from(offset).ok()?;
            let address = start.checked_add(offset)?;
            let fits = address.checked_add(bytes)? <= *end;
            let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address);
            NonNull::new(pointer).filter(|_| fits)
        };
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

/// The ranges that `/proc/self/maps` lists for a socket.
fn listed(inode: u64) -> io::Result<Vec<(u64, usize, usize)>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter_map(|line| parse(line, inode)).collect())
}

fn inode_of(fd: RawFd) -> io::Result<u64> {
    // SAFETY: an all-zero `stat` is a value, and lives through the call.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    if unsafe { libc::fstat(fd, &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.st_ino)
}

fn offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    crate::socket::get_option(fd, libc::XDP_MMAP_OFFSETS)
}

/// `start-end perms offset dev inode path`, of a socket with this inode.
fn parse(line: &str, inode: u64) -> Option<(u64, usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
    let found: u64 = fields.nth(1)?.parse().ok()?;
    if found != inode || !fields.next()?.starts_with("socket:") {
        return None;
    }
    Some((offset, usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    #[test]
    fn mappings_of_a_socket_are_listed_where_they_are() {
        if std::env::var_os("XSKIFF_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
            eprintln!("SKIPPED: XSKIFF_SKIP_ROOT_TESTS=1, no AF_XDP socket was made");
            return;
        }
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let error = io::Error::last_os_error();
        assert!(fd >= 0, "{error}: AF_XDP sockets need root, or XSKIFF_SKIP_ROOT_TESTS=1");
        // SAFETY: just opened, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        crate::bind::set_option(fd, libc::SOL_XDP, libc::XDP_TX_RING, 64).expect("a ring");
        let maps = SocketMaps::find(fd, &[(RingKind::Transmit, 64)]).expect("mapped");
        let listed = listed(inode_of(socket.as_raw_fd()).expect("inode")).expect("listed");
        let [(kind, start, end)] = maps.ranges[..] else { panic!("{maps:?}") };
        assert_eq!(listed, [(kind, start, end.next_multiple_of(4096))]);
    }

    #[test]
    fn only_lines_of_the_socket_are_taken() {
        let line = "7f10a0000000-7f10a0009000 rw-s 180000000 00:08 4242    socket:[4242]";
        let range = (RingKind::Completion as u64, 0x7f10_a000_0000, 0x7f10_a000_9000);
        assert_eq!(parse(line, 4242), Some(range));
        assert_eq!(parse(line, 4243), None);
        assert_eq!(parse("7f10a0000000-7f10a0009000 rw-s 0 00:08 4242 /a/file", 4242), None);
        assert_eq!(parse("7f10a0000000-7f10a0009000 rw-p 00000000 00:00 0", 0), None);
        assert_eq!(parse("", 0), None);
    }
}
