//! Offload switches of an interface, by the SIOCETHTOOL ioctl (include/uapi/linux/ethtool.h).
//!
//! Frames that a local stack sends into a veth carry unfinished checksums and may be 64 KB long
//! unless its offloads are off; AF_XDP shows them as they are. Nothing here outlives the call.

mod features;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// An offload that can be switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Unfinished L4 checksums on transmit (`tx`).
    TransmitChecksum,
    /// Segments longer than the MTU on transmit (`tso`).
    TcpSegmentation,
    /// Software segmentation before the driver (`gso`).
    GenericSegmentation,
    /// Merging of received segments (`gro`).
    GenericReceive,
    /// Datagrams of one length, joined, on transmit (`tx-udp-segmentation`), and segments whose numbers of
    /// AccECN (RFC 9768) every piece bears: what only who made it can cut.
    UdpSegmentation,
}

impl Offload {
    /// All of them, each after those that it needs: without finished checksums no segmentation.
    pub const ALL: [Self; 5] = [
        Self::TransmitChecksum,
        Self::TcpSegmentation,
        Self::GenericSegmentation,
        Self::GenericReceive,
        Self::UdpSegmentation,
    ];

    /// The word `ethtool -K` uses.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TransmitChecksum => "tx",
            Self::TcpSegmentation => "tso",
            Self::GenericSegmentation => "gso",
            Self::GenericReceive => "gro",
            Self::UdpSegmentation => "tx-udp-segmentation",
        }
    }

    /// What the kernel switches for it.
    fn parts(self) -> &'static [Part] {
        match self {
            Self::TransmitChecksum => &[Part::Commands(0x16, 0x17)],
            // The command knows segments of AccECN (RFC 9768) not, and to turn checksums off turns
            // every other kind off with them.
            Self::TcpSegmentation => {
                &[Part::Commands(0x1e, 0x1f), Part::Feature("tx-tcp-accecn-segmentation")]
            }
            Self::GenericSegmentation => &[Part::Commands(0x23, 0x24)],
            Self::GenericReceive => &[Part::Commands(0x2b, 0x2c)],
            Self::UdpSegmentation => {
                &[Part::Feature("tx-udp-segmentation"), Part::Feature("tx-tcp-accecn-segmentation")]
            }
        }
    }
}

/// Something that the kernel switches by itself.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// By a command that reads it and one that writes it.
    Commands(u32, u32),
    /// By a name, since it has no commands.
    Feature(&'static str),
}

impl Part {
    /// Whether it is on; `None` when the kernel does not know it.
    fn read(self, interface: &str) -> io::Result<Option<bool>> {
        match self {
            Self::Commands(read, _) => Ok(Some(call(interface, read, 0)? != 0)),
            Self::Feature(name) => features::read(interface, name),
        }
    }

    fn write(self, interface: &str, on: bool) -> io::Result<()> {
        match self {
            Self::Commands(_, write) => call(interface, write, u32::from(on)).map(|_| ()),
            Self::Feature(name) => features::write(interface, name, on),
        }
    }

    /// Makes it so where it is otherwise; whether the kernel knows it, and did so.
    fn set(self, interface: &str, on: bool) -> io::Result<bool> {
        let Some(is_on) = self.read(interface)? else { return Ok(false) };
        if is_on != on {
            self.write(interface, on)?;
            if self.read(interface)? != Some(on) {
                let kind = io::ErrorKind::Unsupported;
                return Err(io::Error::new(kind, "the device keeps it as it is"));
            }
        }
        Ok(true)
    }
}

/// An offload that could not be read or switched.
#[derive(Debug, thiserror::Error)]
#[error("interface {interface}: offload {}: {source}; try `ethtool -K {interface} {} off`",
    .offload.label(), .offload.label())]
pub struct OffloadError {
    /// The interface.
    pub interface: String,
    /// The offload.
    pub offload: Offload,
    /// What the kernel said.
    pub source: io::Error,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether any part of `offload` is on at `interface` in this thread's network namespace.
///
/// # Errors
/// [`OffloadError`] with the kernel's reason, such as ENODEV.
pub fn offload(interface: &str, offload: Offload) -> Result<bool, OffloadError> {
    let refuse = |source| OffloadError { interface: interface.to_owned(), offload, source };
    for part in offload.parts() {
        if part.read(interface).map_err(refuse)? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Switches `offload` at `interface` in this thread's network namespace where it is otherwise, and reads back
/// whether the kernel did so. To switch what is so already may be refused: that of a veth's end whose other
/// end has an XDP program in native mode.
///
/// # Errors
/// [`OffloadError`] with the kernel's reason, such as EOPNOTSUPP where the device cannot, or
/// EPERM without CAP_NET_ADMIN.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> Result<(), OffloadError> {
    let refuse = |source| OffloadError { interface: interface.to_owned(), offload, source };
    let mut is_known = false;
    for part in offload.parts() {
        is_known |= part.set(interface, on).map_err(refuse)?;
    }
    // What the kernel does not know is off.
    if is_known || !on {
        return Ok(());
    }
    Err(refuse(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no such feature")))
}

fn call(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    // SAFETY: a `Value` outlives the call and is as large as every command of a `Part`
    // reads and writes (`struct ethtool_value`).
    unsafe { control(interface, (&raw mut value).cast()) }?;
    Ok(value.data)
}

/// Makes a SIOCETHTOOL call for `interface` in this thread's network namespace.
///
/// # Safety
/// `request` points at memory that outlives the call and is as large as its command, the first
/// word, makes the kernel read and write.
pub(crate) unsafe fn control(interface: &str, request: *mut libc::c_void) -> io::Result<()> {
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let socket = control_socket()?;
    // SAFETY: all-zero bytes are a valid `ifreq`: integers, and a union of integers and pointers.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    ifreq.ifr_name = name;
    ifreq.ifr_ifru.ifru_data = request.cast();
    // SAFETY: a whole `ifreq` whose name ends in a zero (the last byte is never written) and whose
    // data is as the caller promises.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn control_socket() -> io::Result<File> {
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and is owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_interface_is_named_with_the_kernels_reason() {
        let error = set_offload("no-such-if0", Offload::TransmitChecksum, false).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::ENODEV));
        assert!(error.to_string().contains("no-such-if0"), "{error}");
    }

    #[test]
    fn a_name_too_long_or_with_a_zero_never_reaches_the_kernel() {
        for name in ["", "sixteen-letters-", "a\0b"] {
            let error = offload(name, Offload::GenericReceive).unwrap_err();
            assert_eq!(error.source.raw_os_error(), Some(libc::ENODEV));
        }
    }

    #[test]
    fn the_loopbacks_offloads_can_be_read() {
        for one in Offload::ALL {
            assert!(offload("lo", one).is_ok(), "{}", one.label());
        }
        assert_eq!(offload("lo", Offload::GenericSegmentation).ok(), Some(true));
    }
}
