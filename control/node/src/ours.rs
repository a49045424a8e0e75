//! What is ours on an uplink, and what pods may claim on their links, as the XDP program must know
//! it: derived from the tables in force,
//! applied as differences.
//!
//! Additions come before removals and node addresses before prefixes, so that nothing that stays
//! ours is passed up for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::address::Protocol;
use dataplane::lpm::Prefix;
use dataplane::port::{PortId, PortKind};
use dataplane::tables::Tables;
use xdp_redirect::rules::{L4Bitmap, OnStall, OurPrefix};
use xdp_redirect::{Error, Redirect};

/// Everything that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ours {
    /// Destinations, with whether they are translated and what a stall does.
    prefixes: BTreeMap<Prefix, (bool, bool)>,
    node_addresses: BTreeSet<IpAddr>,
    /// What each pod may claim on its link.
    pod_addresses: BTreeSet<(PortId, IpAddr)>,
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
    icmp: BTreeSet<u16>,
}

impl Ours {
    /// What `tables` make ours. With `pass_on_stall`, pods that no policy isolates are left to the
    /// kernel while no worker lives; everything translated or policed is dropped then, always.
    #[must_use]
    pub fn of(tables: &Tables, pass_on_stall: bool) -> Self {
        let mut ours = Self::default();
        for address in tables.forwarding.endpoints.keys() {
            let identity = tables.identities.lookup(address);
            let is_policed = tables.policy.subjects.contains_key(&identity);
            ours.prefixes.insert(Prefix::host(address), (false, pass_on_stall && !is_policed));
        }
        for address in tables.services.addresses.keys() {
            ours.prefixes.insert(Prefix::host(address), (true, false));
        }
        ours.node_addresses = tables.forwarding.node_addresses.keys().collect();
        for (port, place) in tables.ports.iter().zip(0u16..) {
            let pod = port.iter().filter(|port| port.kind == PortKind::Pod);
            let addresses = pod.flat_map(|port| port.addresses.iter());
            ours.pod_addresses.extend(addresses.map(|address| (PortId(place), *address)));
        }
        let node_ports = tables.services.node_ports.keys();
        // Their answers come by the host port, also to those who address them directly.
        let host_backends = tables.services.host_backends.iter();
        let host_backends = host_backends.filter(|_| tables.forwarding.host.is_some());
        for (protocol, l4_port) in node_ports.chain(host_backends) {
            match *protocol {
                Protocol::TCP => ours.tcp.insert(*l4_port),
                Protocol::UDP => ours.udp.insert(*l4_port),
                _ => false,
            };
        }
        for set in [&mut ours.tcp, &mut ours.udp, &mut ours.icmp] {
            set.extend(tables.source_nat.l4_ports.clone());
        }
        ours
    }

    /// Tells the program what changed since `before`.
    ///
    /// # Errors
    /// The program's; what was told before the failure is in force.
    pub fn apply(&self, before: &Self, redirect: &mut Redirect) -> Result<(), Error> {
        let added: Vec<IpAddr> =
            self.node_addresses.difference(&before.node_addresses).copied().collect();
        redirect.change_node_addresses(&added, &[])?;
        let claims = |one: &Self, other: &Self| -> Vec<(PortId, IpAddr)> {
            one.pod_addresses.difference(&other.pod_addresses).copied().collect()
        };
        redirect.change_pod_addresses(&claims(self, before), &claims(before, self))?;
        let set: Vec<OurPrefix> = self
            .prefixes
            .iter()
            .filter(|(prefix, settings)| before.prefixes.get(prefix) != Some(settings))
            .map(|(prefix, (translated, pass))| OurPrefix {
                prefix: *prefix,
                translated: *translated,
                on_stall: if *pass { OnStall::Pass } else { OnStall::Drop },
            })
            .collect();
        let gone: Vec<Prefix> = before
            .prefixes
            .keys()
            .filter(|prefix| !self.prefixes.contains_key(prefix))
            .copied()
            .collect();
        redirect.change_prefixes(&set, &gone)?;
        let removed: Vec<IpAddr> =
            before.node_addresses.difference(&self.node_addresses).copied().collect();
        redirect.change_node_addresses(&[], &removed)?;
        for (bitmap, now, then) in [
            (L4Bitmap::Tcp, &self.tcp, &before.tcp),
            (L4Bitmap::Udp, &self.udp, &before.udp),
            (L4Bitmap::Icmp, &self.icmp, &before.icmp),
        ] {
            for range in ranges(now.difference(then)) {
                redirect.set_l4_ports(bitmap, range, true)?;
            }
            for range in ranges(then.difference(now)) {
                redirect.set_l4_ports(bitmap, range, false)?;
            }
        }
        Ok(())
    }
}

/// Consecutive ports, ascending, as ranges.
fn ranges<'a>(ports: impl Iterator<Item = &'a u16>) -> Vec<std::ops::RangeInclusive<u16>> {
    let mut ranges: Vec<std::ops::RangeInclusive<u16>> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(*port) => *last = *last.start()..=*port,
            _ => ranges.push(*port..=*port),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use dataplane::forwarding::{Forwarding, NextHopId};
    use dataplane::identity::{Identity, IdentityTable};
    use dataplane::lb::ServiceTable;
    use dataplane::policy::{Policy, SubjectPolicy};

    use super::*;

    #[test]
    fn consecutive_ports_become_one_range() {
        assert_eq!(
            ranges([1, 2, 3, 7, 65_534, 65_535].iter()),
            vec![1..=3, 7..=7, 65_534..=65_535]
        );
    }

    #[test]
    fn l4_ports_of_host_backends_are_ours_while_there_is_a_way_to_the_host() {
        let services = ServiceTable {
            host_backends: [(Protocol::TCP, 6443), (Protocol::UDP, 53)].into_iter().collect(),
            ..ServiceTable::default()
        };
        let with = |host| {
            let forwarding = Arc::new(Forwarding { host, ..Forwarding::default() });
            let services = Arc::new(services.clone());
            Ours::of(&Tables { forwarding, services, ..Tables::default() }, false)
        };
        let (ours, without) = (with(Some(NextHopId(0))), with(None));
        assert!(ours.tcp.contains(&6443) && !ours.tcp.contains(&53));
        assert!(ours.udp.contains(&53) && !ours.udp.contains(&6443));
        assert!(!without.tcp.contains(&6443) && !without.udp.contains(&53));
    }

    #[test]
    fn policed_pods_are_never_passed_on_stall() {
        let (free, policed) =
            (IpAddr::from(Ipv4Addr::new(10, 1, 0, 1)), IpAddr::from(Ipv4Addr::new(10, 1, 0, 2)));
        let subject = Identity(Identity::FIRST_COMPILED);
        let tables = Tables {
            forwarding: Arc::new(Forwarding {
                endpoints: [(free, NextHopId(0)), (policed, NextHopId(1))].into_iter().collect(),
                ..Forwarding::default()
            }),
            identities: Arc::new(IdentityTable {
                exact: [(policed, subject)].into_iter().collect(),
                ..IdentityTable::default()
            }),
            policy: Arc::new(Policy {
                subjects: [(subject, SubjectPolicy::default())].into_iter().collect(),
            }),
            ..Tables::default()
        };
        let ours = Ours::of(&tables, true);
        assert_eq!(ours.prefixes.get(&Prefix::host(free)), Some(&(false, true)));
        assert_eq!(ours.prefixes.get(&Prefix::host(policed)), Some(&(false, false)));
    }
}
