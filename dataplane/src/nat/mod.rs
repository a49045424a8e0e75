//! Source translation: when it applies, and which address and L4 port it takes.
//!
//! The flow table is the only truth about what is in use: a translated flow lies in it under its
//! reply tuple, and a mapping of an end point lies in it as an entry of its own. Reading order:
//! this file (what is configured), `rules` (who leaves with which address), `ports` (which port is
//! tried next), `binding` (trying it, and giving it back), `endpoint` (one port for all destinations,
//! and the way back in by it).
//! `requirements.md` lists what the RFCs ask for, with the test of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::address::Protocol;
use crate::address_map::AddressSet;
use crate::flow_key::FlowKey;
use crate::lpm::PrefixTable;

pub(crate) mod binding;
pub(crate) mod endpoint;
pub mod ports;
pub mod rules;

use rules::SnatRule;

/// What decides the L4 port that a pod's flow to the outside is translated to (RFC 4787, 4.1).
///
/// What comes back passes only as the reply to what was sent, in either case: filtering is
/// address- and port-dependent (RFC 4787, 5), and a stranger who learns of a port reaches nobody
/// by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mapping {
    /// The pod's end point and the destination. Flows to different destinations share a port, so
    /// that each destination can be reached by as many flows as there are ports.
    #[default]
    EndpointDependent,
    /// The pod's end point alone (RFC 4787, REQ-1): it has one port toward all destinations, and
    /// other pods of this node reach it there (REQ-9). No two end points share a port (REQ-3), so
    /// that there can be as many of each protocol as there are ports; each takes an entry of the
    /// flow table beside its flows. One pod's flows are all opened by one worker, and take that
    /// worker's ports.
    EndpointIndependent,
}

/// How this node translates sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceNat {
    /// Source of masqueraded IPv4 packets; `None`: they are dropped.
    pub v4: Option<Ipv4Addr>,
    /// Source of masqueraded IPv6 packets; `None`: they are dropped.
    pub v6: Option<Ipv6Addr>,
    /// As whom a host process is seen by a backend in the node's own network: who is behind the host port,
    /// and not the node, whose answers to itself would go over `lo`. `None`: such packets are dropped.
    pub host_v4: Option<Ipv4Addr>,
    /// The same of IPv6.
    pub host_v6: Option<Ipv6Addr>,
    /// L4 ports (and ICMP identifiers) to translate to, split evenly among workers. The node's
    /// kernel must not use them (`net.ipv4.ip_local_reserved_ports`).
    pub l4_ports: RangeInclusive<u16>,
    /// What the port depends on.
    pub mapping: Mapping,
    /// Destinations that see the pod's own address, unless a rule says otherwise.
    pub non_masquerade: PrefixTable<()>,
    /// Pods, services and nodes of the cluster, which see it whatever rules say.
    pub cluster: PrefixTable<()>,
    /// Who leaves with another address than the two above; the first that matches decides.
    pub rules: Box<[SnatRule]>,
    /// All addresses that rules translate to, and those that they did as long as flows may go by
    /// them.
    pub addresses: AddressSet,
}

/// What a pod's source address becomes outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The address; `None`: there is none of this family.
    pub address: Option<IpAddr>,
    /// The place of the rule that says so; `None`: it is masquerade.
    pub rule: Option<u16>,
}

impl Default for SourceNat {
    fn default() -> Self {
        Self {
            v4: None,
            v6: None,
            host_v4: None,
            host_v6: None,
            l4_ports: 61_000..=65_535,
            mapping: Mapping::default(),
            non_masquerade: PrefixTable::default(),
            cluster: PrefixTable::default(),
            rules: Box::default(),
            addresses: AddressSet::default(),
        }
    }
}

impl SourceNat {
    /// What `source`, a pod, becomes for `destination` outside; `None`: it is seen as itself.
    #[must_use]
    pub fn of_pod(&self, source: IpAddr, destination: IpAddr) -> Option<Translation> {
        let is_masqueraded = self.non_masquerade.lookup(destination).is_none();
        if !self.rules.is_empty() && self.cluster.lookup(destination).is_none() {
            let by_rule = self.by_rule(source, destination, is_masqueraded);
            if by_rule.is_some() {
                return by_rule;
            }
        }
        let masquerade = Translation { address: self.address_for(destination), rule: None };
        is_masqueraded.then_some(masquerade)
    }

    /// What `source` becomes for a pod of this node that it addresses by its mapping: the same as for
    /// anybody outside.
    #[must_use]
    pub fn of_hairpin(&self, source: IpAddr, mapped: IpAddr) -> Translation {
        let masquerade = Translation { address: self.address_for(mapped), rule: None };
        self.by_rule(source, mapped, true).unwrap_or(masquerade)
    }

    fn by_rule(
        &self,
        source: IpAddr,
        destination: IpAddr,
        is_masqueraded: bool,
    ) -> Option<Translation> {
        let of_rule = |(place, rule): (u16, &SnatRule)| {
            let address = rule.address_for(source, destination);
            Translation { address, rule: Some(place) }
        };
        let mut rules = (0..).zip(&self.rules);
        rules.find(|(_, rule)| rule.matches(source, destination, is_masqueraded)).map(of_rule)
    }

    /// The source address of what is masqueraded, for a packet to `destination`'s family.
    #[must_use]
    pub fn address_for(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// The same for a packet of the node's own that comes back to the node.
    #[must_use]
    pub fn address_for_own(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.host_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.host_v6.map(IpAddr::V6),
        }
    }

    /// Whether `key` is addressed to what TCP and UDP sources are translated to.
    #[must_use]
    pub fn is_translated_to(&self, key: &FlowKey) -> bool {
        matches!(key.protocol(), Protocol::TCP | Protocol::UDP)
            && self.l4_ports.contains(&key.destination_port())
            && self.has_address(key.destination())
    }

    /// Whether sources are translated to `address`, or were.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.address_for(address) == Some(address) || self.addresses.contains(&address)
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
}
