//! The machine: privileges, kernel, limits, and what must be mounted.

use std::fs::OpenOptions;
use std::path::Path;

use pinning::limits::{Resource, read};
use xdp_redirect::loader::{FRAGS_SINCE, kernel_release};

use super::finding::Finding;
use crate::node::{mappings_allowed, too_few_mappings};
use crate::privileges;

/// The check that decides whether others are tried.
pub const PRIVILEGES: &str = "privileges";
/// Oldest kernel that is supported.
const KERNEL: (u32, u32) = (6, 1);
/// Packet memory that is chosen without being told, in bytes.
const PACKET_MEMORY: u64 = 8 << 20;
/// Open files for as many ports as there may be, with two workers.
const OPEN_FILES: u64 = 4096;

/// Checks the machine.
#[must_use]
pub fn check() -> Vec<Finding> {
    vec![
        privileges_held(),
        kernel(kernel_release()),
        bpf_filesystem(),
        locked_memory(),
        open_files(),
        mappings(),
        tap(),
        settings(),
    ]
}

fn privileges_held() -> Finding {
    if !nix::unistd::geteuid().is_root() {
        return Finding::fail(PRIVILEGES, "not root", "run it as root, as a node would run");
    }
    let permitted = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
    let missing = |needed: &&privileges::Needed| !permitted.contains(&needed.capability);
    let lacking: Vec<_> = privileges::NEEDED.iter().filter(missing).collect();
    let names: Vec<String> = lacking.iter().map(|needed| needed.capability.to_string()).collect();
    match privileges::missing() {
        Ok(Some(needed)) => Finding::fail(
            PRIVILEGES,
            format!("{} is missing, for {}", needed.capability, needed.why),
            "give it (a container must list it under securityContext.capabilities.add)",
        ),
        Err(error) => Finding::fail(PRIVILEGES, error.to_string(), "mount /proc"),
        Ok(None) if lacking.is_empty() => Finding::pass(PRIVILEGES, "root, with all that is used"),
        Ok(None) => {
            let lost: Vec<&str> = lacking.iter().filter_map(|needed| needed.without).collect();
            Finding::warn(PRIVILEGES, format!("without {}", names.join(", ")), lost.join("; "))
        }
    }
}

fn kernel(release: (u32, u32)) -> Finding {
    let found = format!("{}.{}", release.0, release.1);
    if release < KERNEL {
        return Finding::fail("kernel", found, "use a kernel of 6.1 or newer");
    }
    if release < FRAGS_SINCE {
        let remedy = "packets larger than 3506 bytes need 6.6 or newer (multi-buffer AF_XDP)";
        return Finding::warn("kernel", found, remedy);
    }
    Finding::pass("kernel", format!("{found}, with frames of several buffers"))
}

fn bpf_filesystem() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_there = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    });
    if is_there {
        return Finding::pass("bpf-filesystem", "mounted at /sys/fs/bpf");
    }
    Finding::warn(
        "bpf-filesystem",
        "not mounted at /sys/fs/bpf",
        "programs are pinned there, so that a restart leaves none out: `mount -t bpf bpf /sys/fs/bpf`",
    )
}

fn locked_memory() -> Finding {
    let name = "locked-memory";
    let exempt = caps::has_cap(None, caps::CapSet::Permitted, caps::Capability::CAP_IPC_LOCK);
    let exempt = exempt.unwrap_or(false);
    match read(Resource::LockedMemory) {
        _ if exempt => Finding::pass(name, "unlimited, by CAP_IPC_LOCK"),
        Ok(limit) if limit.hard >= PACKET_MEMORY => {
            Finding::pass(name, format!("{} may be locked", bytes(limit.hard)))
        }
        Ok(limit) => Finding::fail(
            name,
            format!(
                "{} may be locked, packet memory takes {PACKET_MEMORY} and more",
                bytes(limit.hard)
            ),
            "LimitMEMLOCK=infinity in a systemd unit, or CAP_IPC_LOCK",
        ),
        Err(error) => Finding::warn(name, error.to_string(), ""),
    }
}

fn bytes(limit: u64) -> String {
    if limit == u64::MAX { "any memory".to_owned() } else { format!("{limit} bytes") }
}

fn open_files() -> Finding {
    let name = "open-files";
    match read(Resource::OpenFiles) {
        Ok(limit) if limit.hard >= OPEN_FILES => {
            Finding::pass(name, format!("{} may be open", limit.hard))
        }
        Ok(limit) => Finding::warn(
            name,
            format!("{} may be open; each pod takes two and more", limit.hard),
            format!("LimitNOFILE={OPEN_FILES} or more in a systemd unit"),
        ),
        Err(error) => Finding::warn(name, error.to_string(), ""),
    }
}

/// For a worker on each CPU.
fn mappings() -> Finding {
    let name = "mappings";
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let Some(allowed) = mappings_allowed() else {
        return Finding::warn(name, "vm.max_map_count cannot be read", "mount /proc");
    };
    match too_few_mappings(allowed, workers) {
        None => Finding::pass(name, format!("a process may have {allowed}")),
        Some(why) => Finding::warn(name, why, ""),
    }
}

/// Packet memory of copy mode is held by a tap device (`xdp_redirect::umem`).
fn tap() -> Finding {
    let name = "tap-device";
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::pass(name, "/dev/net/tun can be opened"),
        Err(error) => Finding::fail(
            name,
            format!("/dev/net/tun: {error}"),
            "load the module tun; a container must be given the device",
        ),
    }
}

/// Opened and closed, not written.
fn settings() -> Finding {
    let name = "network-settings";
    let setting = "sys/net/ipv4/ip_local_reserved_ports";
    let writable = |root: &str| OpenOptions::new().write(true).open(Path::new(root).join(setting));
    match writable("/proc") {
        Ok(_) => Finding::pass(name, "/proc/sys/net is writable"),
        Err(_) if writable("/host/proc").is_ok() => {
            Finding::pass(name, "/host/proc/sys/net is writable")
        }
        Err(error) => Finding::fail(
            name,
            format!("/proc/sys/net: {error}"),
            "mount the node's /proc/sys/net at /host/proc/sys/net of the container",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::kernel;

    #[test]
    fn old_kernels_fail_and_those_without_multi_buffer_frames_are_remarked() {
        assert_eq!(kernel((5, 15)).verdict, Verdict::Fail);
        assert_eq!(kernel((6, 1)).verdict, Verdict::Warn);
        assert_eq!(kernel((6, 6)).verdict, Verdict::Pass);
        assert_eq!(kernel((7, 0)).verdict, Verdict::Pass);
    }
}
