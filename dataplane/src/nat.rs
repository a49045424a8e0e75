//! Source translation: when it applies, and which address and L4 port it takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::DropReason;
use crate::lpm::PrefixTable;

/// L4 ports tried for one flow before it is refused. A port may serve many flows toward different
/// destinations, so a miss among so many means that the destination itself is exhausted.
pub const PORTS_TRIED_MAX: u16 = 256;

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

/// The part of `range` that belongs to `worker` of `workers`: disjoint, so that two workers never
/// bind the same port. `None` when the range is too small to give every worker one.
#[must_use]
pub fn share(
    range: &RangeInclusive<u16>,
    worker: usize,
    workers: usize,
) -> Option<RangeInclusive<u16>> {
    let first = usize::from(*range.start());
    let count = (usize::from(*range.end()) + 1).checked_sub(first)?;
    let each = count / workers;
    if each == 0 || worker >= workers {
        return None;
    }
    let start = first + worker * each;
    Some(u16::try_from(start).ok()?..=u16::try_from(start + each - 1).ok()?)
}

/// The first port of `share` that `is_free` accepts, beginning where `seed` points, so that flows
/// spread and a guess is worth little (RFC 6056).
///
/// # Errors
/// [`DropReason::NatPortsExhausted`] when [`PORTS_TRIED_MAX`] ports, or all, were refused.
pub fn bind(
    share: &RangeInclusive<u16>,
    seed: u64,
    mut is_free: impl FnMut(u16) -> bool,
) -> Result<u16, DropReason> {
    let count = u32::from(*share.end()) - u32::from(*share.start()) + 1;
    let [.., c, d, e, f] = seed.to_be_bytes();
    let offset = u32::from_be_bytes([c, d, e, f]) % count;
    (0..count.min(u32::from(PORTS_TRIED_MAX)))
        .filter_map(|step| u16::try_from(u32::from(*share.start()) + (offset + step) % count).ok())
        .find(|port| is_free(*port))
        .ok_or(DropReason::NatPortsExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_workers_are_disjoint_and_within_the_range() {
        for workers in 1..=7 {
            let shares: Vec<_> = (0..workers)
                .filter_map(|worker| share(&(61_000..=61_099), worker, workers))
                .collect();
            assert_eq!(shares.len(), workers);
            for pair in shares.windows(2) {
                assert!(pair[0].end() < pair[1].start());
            }
            assert!(*shares[workers - 1].end() <= 61_099);
        }
        assert_eq!(share(&(1..=2), 0, 3), None);
        assert_eq!(share(&(0..=65_535), 0, 1), Some(0..=65_535));
    }

    #[test]
    fn bind_takes_the_first_free_port_and_wraps_around() {
        assert_eq!(bind(&(10..=19), 9, |_| true), Ok(19));
        assert_eq!(bind(&(10..=19), 9, |port| port < 12), Ok(10));
        assert_eq!(bind(&(10..=19), 3, |_| false), Err(DropReason::NatPortsExhausted));
    }
}
