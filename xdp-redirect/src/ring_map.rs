//! Finds a bound socket's rings in our memory.
//!
//! xsk-rs maps the four rings before it binds and hides where. Kernels before 6.4 refuse to map
//! them again afterwards (`xsk_mmap` then wanted a socket that is ready, not bound), so its own
//! mappings are looked up in `/proc/self/maps`, by the socket's inode and the offset that names
//! the ring. They live as long as xsk-rs's ring objects.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use crate::cast::index;
use crate::ring::RingMemory;

/// One of a socket's rings: the offset that names it in `mmap(2)` (`linux/if_xdp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum RingKind {
    Receive = 0,
    Transmit = 0x8000_0000,
    Fill = 0x1_0000_0000,
    Completion = 0x1_8000_0000,
}

/// Address range of each mapping of a socket, by ring.
#[derive(Debug)]
pub(crate) struct SocketMaps {
    ranges: Vec<(u64, usize, usize)>,
    offsets: libc::xdp_mmap_offsets,
}

impl SocketMaps {
    pub(crate) fn find(fd: RawFd) -> io::Result<Self> {
        let inode = inode_of(fd)?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let ranges = maps.lines().filter_map(|line| parse(line, inode)).collect();
        Ok(Self { ranges, offsets: offsets(fd)? })
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
        let offsets = match kind {
            RingKind::Receive => &self.offsets.rx,
            RingKind::Transmit => &self.offsets.tx,
            RingKind::Fill => &self.offsets.fr,
            RingKind::Completion => &self.offsets.cr,
        };
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
    use super::*;

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
