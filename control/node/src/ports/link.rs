//! What the kernel says about an interface that is, or is to be, a port.

use std::fs;
use std::path::Path;

use dataplane::address::MacAddr;

use super::PortError;

/// What sysfs says about an interface (Documentation/ABI/testing/sysfs-class-net).
pub(super) struct Link {
    pub ifindex: u32,
    pub mac: MacAddr,
    pub mtu: u16,
    pub queues: u32,
}

impl Link {
    pub fn read(interface: &str) -> Result<Self, PortError> {
        let ifindex = xdp_redirect::loader::interface_index(interface)?;
        let root = Path::new("/sys/class/net").join(interface);
        let mac = read_as(&root.join("address"), "Ethernet address")?;
        let mtu = mtu(interface)?;
        let queues = receive_queues(interface)?;
        Ok(Self { ifindex, mac, mtu: u16::try_from(mtu).unwrap_or(u16::MAX), queues })
    }
}

/// The kernel's index of an interface; `None` when there is none of that name.
#[must_use]
pub fn index(interface: &str) -> Option<u32> {
    xdp_redirect::loader::interface_index(interface).ok()
}

/// Largest packet of an interface, in bytes, as it is now.
///
/// # Errors
/// [`PortError::Sysfs`].
pub fn mtu(interface: &str) -> Result<u32, PortError> {
    read_as(&Path::new("/sys/class/net").join(interface).join("mtu"), "MTU")
}

/// Receive queues of an interface; 1 where the kernel shows none.
///
/// # Errors
/// [`PortError::Sysfs`].
pub fn receive_queues(interface: &str) -> Result<u32, PortError> {
    let queues = Path::new("/sys/class/net").join(interface).join("queues");
    let entries = fs::read_dir(&queues)
        .map_err(|source| PortError::Sysfs { path: queues.display().to_string(), source })?;
    let receive = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"));
    Ok(u32::try_from(receive.count()).unwrap_or(u32::MAX).max(1))
}

fn read_as<T: std::str::FromStr>(path: &Path, what: &'static str) -> Result<T, PortError> {
    let name = || path.display().to_string();
    let text =
        fs::read_to_string(path).map_err(|source| PortError::Sysfs { path: name(), source })?;
    let text = text.trim();
    text.parse().map_err(|_| PortError::Unreadable { path: name(), text: text.into(), what })
}
