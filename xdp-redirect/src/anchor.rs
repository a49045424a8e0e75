//! The registration of the large region, and the socket that holds it.
//!
//! The kernel makes every socket that shares a registration inherit the mode of its first, and lets no
//! more join once the first one's interface is gone. In copy mode the first is therefore bound to a
//! tap device of our own, which lives as long as the region and vanishes with the process; in
//! zero-copy mode it is the first NIC's.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Weak;

/// The first socket of the region.
pub(crate) enum Anchor {
    /// It is to be bound yet: what the region is registered with, or nothing after a failed try.
    Unbound(Option<OwnedFd>),
    /// It is bound to a tap device of our own.
    Tap { socket: OwnedFd, device: OwnedFd },
    /// It is the first NIC's, in zero-copy mode. Once it is closed there is none any more.
    FirstSocket(Weak<OwnedFd>),
}

/// Makes the tap device that anchors a region; see [`make_tap_named`].
pub(crate) fn make_tap() -> io::Result<(OwnedFd, String)> {
    make_tap_named(b"xskiff-umem%d")
}

/// Makes a tap device that lives as long as the returned descriptor; returns its name, too, with a
/// number for `%d`.
pub(crate) fn make_tap_named(template: &[u8]) -> io::Result<(OwnedFd, String)> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(template) {
        *to = from.cast_signed();
    }
    // IFF_TAP is 2 and IFF_NO_PI 0x1000: they fit.
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or(0);
    // SAFETY: the request lives through the call, which writes the name back.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name =
        request.ifr_name.iter().take_while(|c| **c != 0).map(|c| char::from(c.cast_unsigned()));
    let name = name.collect();
    Ok((device.into(), name))
}
