//! Opening sockets: the region is registered, the rings are made and mapped, and then it is bound.
//!
//! A registration belongs to a socket, and others may share it while that one is bound. The large region
//! is registered once, and every socket of it shares with the first ([`crate::anchor`]). A port of pods
//! registers its region by itself: it depends on no other port's interface, which may be gone any
//! time, and needs no device to hold the region. Its further queues share what its first registered.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::bind::set_option;
use crate::ring_map::{RingKind, SocketMaps};
use crate::umem::Umem;

/// Opens a socket and registers the region with it, for itself and those that share with it.
pub(crate) fn open_registered(umem: &Umem) -> io::Result<OwnedFd> {
    let fd = open()?;
    register(fd.as_raw_fd(), umem)?;
    Ok(fd)
}

/// Opens a socket that has no registration.
pub(crate) fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes rings of so many entries and maps them: before the socket is bound, since kernels before 6.4
/// map those of a bound one no more. The kernel makes each once in a socket's life.
pub(crate) fn make_rings(fd: RawFd, rings: &[(RingKind, u32)]) -> io::Result<SocketMaps> {
    for (kind, entries) in rings {
        let option = match kind {
            RingKind::Receive => libc::XDP_RX_RING,
            RingKind::Transmit => libc::XDP_TX_RING,
            RingKind::Fill => libc::XDP_UMEM_FILL_RING,
            RingKind::Completion => libc::XDP_UMEM_COMPLETION_RING,
        };
        set_option(fd, libc::SOL_XDP, option, *entries)?;
    }
    SocketMaps::map(fd, rings)
}

/// Binds a socket to a queue: with its own registration, in copy or zero-copy mode. A refusal leaves it
/// as it was.
pub(crate) fn bind_registered(
    umem: &Umem,
    fd: RawFd,
    to: (u32, u32),
    zero_copy: bool,
) -> io::Result<()> {
    let mode = if zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    let buffers = if umem.config().multi_buffer { libc::XDP_USE_SG } else { 0 };
    bind(fd, to, mode | buffers | libc::XDP_USE_NEED_WAKEUP, 0)
}

/// Binds a socket to a queue with the registration of another that is bound, and in its mode: the
/// kernel refuses to be told others then. Without a fill and a completion ring it must be the other's
/// queue, whose rings it shares as well.
pub(crate) fn bind_shared(fd: RawFd, to: (u32, u32), with: RawFd) -> io::Result<()> {
    bind(fd, to, libc::XDP_SHARED_UMEM, with)
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
