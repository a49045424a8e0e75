//! Kernel settings of this network namespace, under `/proc/sys`.
//!
//! A container that is not privileged has `/proc/sys` read-only. What is below `net` shows the network
//! namespace of whoever looks, by whatever mount, so that a second mount of it, writable, at
//! `/host/proc/sys/net` serves as well.

use std::path::{Path, PathBuf};

use super::HostPortError;

/// Source validation: a packet's source must be reachable by the interface it came in by.
const STRICT: u8 = 1;
/// Source validation: a packet's source must be reachable by some interface.
const LOOSE: u8 = 2;

/// Where a container has what it may write.
const WRITABLE: &str = "/host/proc/sys";

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
/// [`HostPortError::Sysctl`], such as EROFS in a container whose `/proc/sys` is read-only and which
/// has no other.
pub fn write(name: &str, value: &str) -> Result<(), HostPortError> {
    let places = [path(name), Path::new(WRITABLE).join(name)];
    write_to(&places, value).map_err(|source| failed(name, source))
}

/// Writes to the first of both that is not on a file system that nobody may write to.
fn write_to([first, second]: &[PathBuf; 2], value: &str) -> std::io::Result<()> {
    match std::fs::write(first, value) {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem && second.exists() => {
            std::fs::write(second, value)
        }
        result => result,
    }
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

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_read_only_proc_is_passed_over_for_the_writable_one_and_another_error_is_not() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: not root, no file system was mounted");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().to_owned();
        // Mounts of this thread alone.
        let mounted = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let places = [own.join("proc"), own.join("host")];
            for place in &places {
                std::fs::create_dir(place).unwrap();
            }
            let files = [places[0].join("setting"), places[1].join("setting")];
            mount(none, &places[0], Some("tmpfs"), MsFlags::empty(), none).unwrap();
            std::fs::write(&files[0], "0").unwrap();
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, &places[0], Some("tmpfs"), read_only, none).unwrap();
            let refused = write_to(&files, "1").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(&files[1], "0").unwrap();
            write_to(&files, "1").unwrap();
            assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), "1");
            let absent = [own.join("absent/setting"), files[1].clone()];
            let refused = write_to(&absent, "2").unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::NotFound);
            assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), "1");
        });
        mounted.join().unwrap();
    }
}
