//! The L4 ports to translate to against those that the kernel gives to the node's own connections.
//!
//! They are reserved while the node process runs, so the kernel gives none of them to a new
//! connection. One that is open already would lose its replies to the pipeline.

use std::ops::RangeInclusive;

use super::NodeError;
use crate::host_port::reserved_ports::PortSet;
use crate::host_port::sysctl;

/// # Errors
/// [`NodeError::NatPorts`] when the kernel may have given some of `ports` to a connection;
/// [`NodeError::HostPort`] when its settings cannot be read.
pub(super) fn check(ports: &RangeInclusive<u16>) -> Result<(), NodeError> {
    let range = sysctl::read("net/ipv4/ip_local_port_range")?;
    let reserved = sysctl::read("net/ipv4/ip_local_reserved_ports")?;
    let taken = taken(ports, &range, &reserved);
    if taken.is_empty() {
        return Ok(());
    }
    Err(NodeError::NatPorts {
        ports: format!("{}-{}", ports.start(), ports.end()),
        taken: taken.to_string(),
        range: range.split_whitespace().collect::<Vec<_>>().join("-"),
    })
}

/// Those of `ports` in the kernel's range (`first last`) that nobody has reserved. What cannot be
/// understood takes nothing: it is not ours to refuse.
fn taken(ports: &RangeInclusive<u16>, range: &str, reserved: &str) -> PortSet {
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return PortSet::default();
    };
    let (first, last) = (first.max(*ports.start()), last.min(*ports.end()));
    let reserved = PortSet::parse(reserved).unwrap_or_default();
    PortSet::range(first..=last).without(&reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_the_kernel_gives_to_connections_are_named_unless_they_are_reserved() {
        let taken = |ports, range, reserved| taken(&ports, range, reserved).to_string();
        assert_eq!(taken(61_000..=65_535, "32768\t60999", ""), "");
        assert_eq!(taken(60_000..=65_535, "32768\t60999", ""), "60000-60999");
        assert_eq!(taken(61_000..=65_535, "1024 65535", ""), "61000-65535");
        assert_eq!(taken(61_000..=65_535, "1024 65535", "61000-65000"), "65001-65535");
        assert_eq!(taken(61_000..=65_535, "1024 65535", "61000-65535"), "");
        assert_eq!(taken(61_000..=65_535, "nonsense", ""), "");
    }
}
