//! Whether this process may do what a node process does, asked before anything is touched: the
//! kernel's own refusals come late and name no capability.

use super::NodeError;

/// A capability without which nothing works, and the one that includes it (capabilities(7)).
struct Needed {
    name: &'static str,
    bits: u64,
}

const NEEDED: [Needed; 3] = [
    // Links, routes, XDP.
    Needed { name: "CAP_NET_ADMIN", bits: 1 << 12 },
    // AF_XDP sockets.
    Needed { name: "CAP_NET_RAW", bits: 1 << 13 },
    // BPF programs and maps; CAP_SYS_ADMIN includes it.
    Needed { name: "CAP_BPF", bits: 1 << 39 | 1 << 21 },
];

/// Refuses when a capability is missing.
///
/// # Errors
/// [`NodeError::NotRoot`], [`NodeError::Capability`]; [`NodeError::System`] without `/proc`.
pub(super) fn check() -> Result<(), NodeError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NodeError::NotRoot);
    }
    let status = std::fs::read_to_string("/proc/self/status");
    let action = "read /proc/self/status";
    let status = status.map_err(|source| NodeError::System { action, source })?;
    match missing(&status) {
        Some(capability) => Err(NodeError::Capability { capability }),
        None => Ok(()),
    }
}

/// The first capability that a process with this `/proc/PID/status` lacks.
fn missing(status: &str) -> Option<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    // A kernel that says it otherwise refuses by itself what it does not allow.
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    NEEDED.iter().find(|needed| needed.bits & effective == 0).map(|needed| needed.name)
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn what_is_missing_is_named() {
        let of = |bits: u64| missing(&format!("Name:\tx\nCapEff:\t{bits:016x}\nCapBnd:\t0\n"));
        assert_eq!(of(u64::MAX), None);
        assert_eq!(of(!(1 << 12)), Some("CAP_NET_ADMIN"));
        assert_eq!(of(!(1 << 13)), Some("CAP_NET_RAW"));
        assert_eq!(of(!(1 << 39)), None, "CAP_SYS_ADMIN includes it");
        assert_eq!(of(!(1 << 39 | 1 << 21)), Some("CAP_BPF"));
        assert_eq!(missing("Name:\tx\n"), None);
    }
}
