//! Source translation: when it applies, and which address and L4 port it takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::lpm::PrefixTable;

/// How this node translates sources.
#[derive(Debug, Clone)]
pub struct SourceNat {
    /// Source of masqueraded IPv4 packets; `None`: they are dropped.
    pub v4: Option<Ipv4Addr>,
    /// Source of masqueraded IPv6 packets; `None`: they are dropped.
    pub v6: Option<Ipv6Addr>,
    /// L4 ports (and ICMP identifiers) to translate to, split evenly among workers. The node's
    /// kernel must not use them (`net.ipv4.ip_local_reserved_ports`).
    pub l4_ports: RangeInclusive<u16>,
    /// Destinations that see the pod's own address.
    pub non_masquerade: PrefixTable<()>,
}

impl Default for SourceNat {
    fn default() -> Self {
        Self {
            v4: None,
            v6: None,
            l4_ports: 61_000..=65_535,
            non_masquerade: PrefixTable::default(),
        }
    }
}

impl SourceNat {
    /// The source address for a packet to `destination`'s family.
    #[must_use]
    pub fn address_for(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}
