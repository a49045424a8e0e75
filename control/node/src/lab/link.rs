//! Links between namespaces: veth pairs, and the way a routed pod network uses them.

use std::net::IpAddr;

use super::laboratory::check_name;
use super::{LabError, Namespace};

/// Longest interface name (`IFNAMSIZ` less its terminator), in bytes.
const INTERFACE_NAME_LENGTH_MAX: usize = 15;

/// The gateway every pod is given for IPv4; no interface carries it.
pub const POD_GATEWAY_V4: &str = "169.254.1.1";

/// The gateway every pod is given for IPv6; no interface carries it.
pub const POD_GATEWAY_V6: &str = "fe80::1";

/// One end of a pair.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it lives.
    pub namespace: &'a Namespace,
    /// What it is called there.
    pub interface: &'a str,
}

/// Makes a veth pair with `queues` receive and transmit queues at both ends, both up.
///
/// Both ends need the same number: more transmit queues than the peer has receive queues make a
/// native XDP attach fail with `ENOSPC`.
///
/// # Errors
/// A bad or taken interface name.
pub fn pair(one: End<'_>, other: End<'_>, queues: u16, mtu: u16) -> Result<(), LabError> {
    for end in [one, other] {
        check_name("interface", end.interface, INTERFACE_NAME_LENGTH_MAX)?;
    }
    let sizes = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
    one.namespace.ip(&format!(
        "link add name {} {sizes} type veth peer name {} {sizes} netns {}",
        one.interface,
        other.interface,
        other.namespace.system_name(),
    ))?;
    for end in [one, other] {
        end.namespace.ip(&format!("link set {} up", end.interface))?;
    }
    Ok(())
}

/// Gives an interface an address (`10.0.0.1/24`), usable at once.
///
/// # Errors
/// The address is malformed or taken.
pub fn address(end: End<'_>, prefix: &str) -> Result<(), LabError> {
    let flags = if prefix.contains(':') { " nodad" } else { "" };
    end.namespace.ip(&format!("address add {prefix} dev {}{flags}", end.interface)).map(drop)
}

/// The link address of an interface.
///
/// # Errors
/// There is no such interface.
pub fn mac(end: End<'_>) -> Result<String, LabError> {
    let words = end.namespace.ip(&format!("-o link show dev {}", end.interface))?;
    let mut words = words.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).map(str::to_owned).ok_or_else(|| LabError::Io {
        what: "read the link address of",
        object: end.interface.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

/// Sets up a pod as CNI plugins of routed networks do: its addresses as host prefixes, and all
/// else by a link-local gateway whose neighbour entry, the link address of the host's end, is
/// permanent.
///
/// # Errors
/// A malformed address, or a link that is not there.
pub fn routed_pod(pod: End<'_>, host: End<'_>, addresses: &[IpAddr]) -> Result<(), LabError> {
    let gateway_mac = mac(host)?;
    let interface = pod.interface;
    for own in addresses {
        let (gateway, length) = match own {
            IpAddr::V4(_) => (POD_GATEWAY_V4, 32),
            IpAddr::V6(_) => (POD_GATEWAY_V6, 128),
        };
        address(pod, &format!("{own}/{length}"))?;
        let neighbour = format!("neigh replace {gateway} lladdr {gateway_mac} dev {interface}");
        pod.namespace.ip(&format!("{neighbour} nud permanent"))?;
        pod.namespace.ip(&format!("route replace default via {gateway} dev {interface} onlink"))?;
    }
    Ok(())
}
