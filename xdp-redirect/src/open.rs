//! Sockets that are made without xsk-rs: those that only transmit, on another one's queue, and those
//! of pods, whose memory is no region of xsk-rs's.
//!
//! A port of pods registers its region by itself: it depends on no other port's interface, which may
//! be gone any time, and needs no device to hold the region. Its further queues share what its first
//! registered.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::bind::set_option;
use crate::mapping::Mapping;
use crate::ring::{Descriptor, RingMemory};
use crate::ring_map::{RingKind, SocketMaps};
use crate::umem::Umem;

/// Opens a socket with these rings and binds it in copy mode to a queue, with a registration of the
/// region, or with that of `sibling`.
pub(crate) fn open(
    umem: &Umem,
    (ifindex, queue): (u32, u32),
    rings: &[(RingKind, u32)],
    sibling: Option<RawFd>,
) -> io::Result<(OwnedFd, SocketMaps)> {
    let fd = new_socket()?;
    if sibling.is_none() {
        register(fd.as_raw_fd(), umem)?;
    }
    for (kind, entries) in rings {
        let option = match kind {
            RingKind::Receive => libc::XDP_RX_RING,
            RingKind::Transmit => libc::XDP_TX_RING,
            RingKind::Fill => libc::XDP_UMEM_FILL_RING,
            RingKind::Completion => libc::XDP_UMEM_COMPLETION_RING,
        };
        set_option(fd.as_raw_fd(), libc::SOL_XDP, option, *entries)?;
    }
    // Kernels before 6.4 map the rings of a bound socket no more.
    let maps = SocketMaps::find(fd.as_raw_fd(), rings)?;
    let flags = match sibling {
        // The kernel refuses others then: they are the sibling's.
        Some(_) => libc::XDP_SHARED_UMEM,
        None if umem.config().multi_buffer => {
            libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG
        }
        None => libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP,
    };
    bind(fd.as_raw_fd(), (ifindex, queue), flags, sibling.unwrap_or(0))?;
    Ok((fd, maps))
}

/// Opens a socket that only transmits, on the queue that `primary` is bound to.
pub(crate) fn open_transmit_only(
    primary: RawFd,
    ifindex: u32,
    queue: u32,
    entries: u32,
) -> io::Result<(OwnedFd, Vec<Mapping>, RingMemory<Descriptor>)> {
    let fd = new_socket()?;
    set_option(fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_TX_RING, entries)?;
    let maps = SocketMaps::find(fd.as_raw_fd(), &[(RingKind::Transmit, entries)])?;
    // SAFETY: a transmit ring's entries are descriptors; the mapping lives in the socket's owner,
    // dropped last; nobody else has the ring.
    let ring = unsafe { maps.ring(RingKind::Transmit, entries)? };
    bind(fd.as_raw_fd(), (ifindex, queue), libc::XDP_SHARED_UMEM, primary)?;
    Ok((fd, maps.into_mapped(), ring))
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers a region with the kernel, for this socket and those that share with it.
fn register(fd: RawFd, umem: &Umem) -> io::Result<()> {
    let (addr, len) = umem.extent().ok_or_else(|| io::Error::other("the region has no memory"))?;
    // SAFETY: an all-zero registration is a value.
    let mut region: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
    (region.addr, region.len) = (addr, len);
    region.chunk_size = umem.config().chunk_bytes;
    let length = libc::socklen_t::try_from(size_of::<libc::xdp_umem_reg>()).unwrap_or(0);
    // SAFETY: the structure lives through the call and has the length that is passed. The region
    // stays mapped as long as the socket lives, whose lease keeps its place there.
    let result = unsafe {
        libc::setsockopt(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, (&raw const region).cast(), length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind(fd: RawFd, (ifindex, queue): (u32, u32), flags: u16, shared: RawFd) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).map_err(io::Error::other)?,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared.cast_unsigned(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_xdp>()).unwrap_or(0);
    // SAFETY: the address lives through the call and has the length that is passed.
    let result = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
