//! Kernel settings of this network namespace, under `/proc/sys`.

use std::path::PathBuf;

use super::HostPortError;

/// Source validation: a packet's source must be reachable by the interface it came in by.
const STRICT: u8 = 1;
/// Source validation: a packet's source must be reachable by some interface.
const LOOSE: u8 = 2;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

fn failed(name: &str, source: std::io::Error) -> HostPortError {
    HostPortError::Sysctl { name: name.replace('/', "."), source }
}

/// Whether the kernel has the setting (IPv6 may be absent altogether).
#[must_use]
pub fn exists(name: &str) -> bool {
    path(name).exists()
}

/// Reads the setting, without its newline.
///
/// # Errors
/// [`HostPortError::Sysctl`].
pub fn read(name: &str) -> Result<String, HostPortError> {
    let text = std::fs::read_to_string(path(name)).map_err(|source| failed(name, source))?;
    Ok(text.trim_end().to_owned())
}

/// Writes the setting.
///
/// # Errors
/// [`HostPortError::Sysctl`], such as EROFS in a container whose `/proc/sys` is read-only.
pub fn write(name: &str, value: &str) -> Result<(), HostPortError> {
    std::fs::write(path(name), value).map_err(|source| failed(name, source))
}

/// Makes sure that `interface` does not drop packets whose source the kernel routes by another
/// interface: pods are reached through the host port, so strict validation at a pod's interface
/// drops the pod's ARP requests, and at the host port what comes from outside. The kernel takes
/// the stricter of `all` and the interface's own setting, except that loose (2) overrules strict
/// (1), so setting our own interface is enough and `all` stays as the administrator wants it.
///
/// Gives the value to put back, when it was changed.
///
/// # Errors
/// [`HostPortError::Sysctl`].
pub fn loosen_source_validation(interface: &str) -> Result<Option<String>, HostPortError> {
    let own = strict_source_validation(interface)?;
    if own.is_some() {
        write(&format!("net/ipv4/conf/{interface}/rp_filter"), &LOOSE.to_string())?;
    }
    Ok(own)
}

/// The value that [`loosen_source_validation`] would change; `None` when it would change nothing.
///
/// # Errors
/// [`HostPortError::Sysctl`].
pub fn strict_source_validation(interface: &str) -> Result<Option<String>, HostPortError> {
    let own = read(&format!("net/ipv4/conf/{interface}/rp_filter"))?;
    let all = read("net/ipv4/conf/all/rp_filter")?;
    let number = |text: &str| text.parse::<u8>().unwrap_or(STRICT);
    Ok((number(&own).max(number(&all)) == STRICT).then_some(own))
}
