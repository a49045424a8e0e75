//! What is ours on an uplink, and what pods may claim on their links, as the XDP program must know
//! it: derived from the tables in force, applied as differences.
//!
//! Additions come before removals and node addresses before prefixes, so that nothing that stays
//! ours is passed up for a moment. What failed is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::address_map::AddressSet;
use dataplane::direct::Dispatch;
use dataplane::direct::tunnel::GENEVE_PORT;
use dataplane::lpm::Prefix;
use dataplane::port::{PortId, PortKind};
use dataplane::tables::Tables;
use xdp_redirect::rules::{HeldRules, L4Bitmap, OnStall, OurPrefix};
use xdp_redirect::{Error, Redirect};

/// Settings of what is translated: a stall passes none of it.
const TRANSLATED: (bool, bool) = (true, false);
/// IPv4 and IPv6 in another packet (IANA "Protocol Numbers").
const IP_IN_IP: [u16; 2] = [4, 41];
/// Words about tables that hold something else than they were told; more are counted.
pub const TOLD_MAX: usize = 16;

/// Everything that is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ours {
    /// Destinations that are always dropped while no worker lives, since they are translated: addresses of
    /// services, perhaps tens of thousands, which the tables share.
    translated: AddressSet,
    /// Other destinations, with whether they are translated and whether a stall passes them. What is
    /// among both is as above.
    prefixes: BTreeMap<Prefix, (bool, bool)>,
    node_addresses: BTreeSet<IpAddr>,
    /// What each pod may claim on its link.
    pod_addresses: BTreeSet<(PortId, IpAddr)>,
    tcp: BTreeSet<u16>,
    udp: BTreeSet<u16>,
    icmp: BTreeSet<u16>,
    sctp: BTreeSet<u16>,
    /// Protocols of IP, to the node itself.
    protocols: BTreeSet<u16>,
}

/// Entries of the program's tables, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OursCounts {
    /// Destinations.
    pub prefixes: usize,
    /// The node's addresses.
    pub node_addresses: usize,
    /// Addresses that pods may claim.
    pub pod_addresses: usize,
}

impl Ours {
    /// How many entries are of the family that `is_of` tells.
    #[must_use]
    pub fn counts(&self, is_of: impl Fn(IpAddr) -> bool) -> OursCounts {
        let prefixes = self.all().filter(|prefix| is_of(prefix.address()));
        let claims = self.pod_addresses.iter().filter(|(_, address)| is_of(*address));
        OursCounts {
            prefixes: prefixes.count(),
            node_addresses: self.node_addresses.iter().filter(|own| is_of(**own)).count(),
            pod_addresses: claims.count(),
        }
    }

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
        ours.translated = tables.service_ranges.apart.clone();
        ours.prefixes.extend(tables.service_ranges.whole.iter().map(|range| (*range, TRANSLATED)));
        ours.node_addresses = tables.forwarding.node_addresses.keys().collect();
        // Only the ports that sources are translated to are ours of them, and what is about these.
        ours.node_addresses.extend(tables.source_nat.addresses.keys());
        for (port, place) in tables.ports.iter().zip(0u16..) {
            let pod = port.iter().filter(|port| port.kind == PortKind::Pod);
            let addresses = pod.flat_map(|port| port.addresses.iter());
            ours.pod_addresses.extend(addresses.map(|address| (PortId(place), *address)));
        }
        let node_ports = tables.services.node_ports.keys();
        // Their answers come by the host port, also to those who address them directly.
        let host_backends = tables.host_backends.iter();
        let host_backends = host_backends.filter(|_| tables.forwarding.host.is_some());
        for (protocol, l4_port) in node_ports.chain(host_backends) {
            match *protocol {
                Protocol::TCP => ours.tcp.insert(*l4_port),
                Protocol::UDP => ours.udp.insert(*l4_port),
                Protocol::SCTP => ours.sctp.insert(*l4_port),
                _ => false,
            };
        }
        for set in [&mut ours.tcp, &mut ours.udp, &mut ours.icmp] {
            set.extend(tables.source_nat.l4_ports.clone());
        }
        match tables.direct.as_ref().map(|direct| direct.dispatch) {
            Some(Dispatch::Ipip) => ours.protocols.extend(IP_IN_IP),
            Some(Dispatch::Geneve) => _ = ours.udp.insert(GENEVE_PORT),
            Some(Dispatch::Option) | None => {}
        }
        ours
    }

    /// Whether a destination is translated and whether a stall passes it; `None` where it is not ours.
    fn settings(&self, prefix: &Prefix) -> Option<(bool, bool)> {
        let is_translated = self.is_translated(prefix);
        is_translated.then_some(TRANSLATED).or_else(|| self.prefixes.get(prefix).copied())
    }

    fn is_translated(&self, prefix: &Prefix) -> bool {
        let address = prefix.address();
        Prefix::host(address) == *prefix && self.translated.contains(&address)
    }

    /// Every destination, each once.
    fn all(&self) -> impl Iterator<Item = Prefix> {
        let others = self.prefixes.keys().filter(|prefix| !self.is_translated(prefix));
        others.copied().chain(self.translated.keys().map(Prefix::host))
    }

    /// Destinations that `other` has not or otherwise, as far as it may be: what both share is left out.
    fn perhaps_unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Prefix> {
        // What was translated may have become another's.
        let (own, others) = (&self.translated, &other.translated);
        let translated = own.keys_apart(others).chain(others.keys_apart(own)).map(Prefix::host);
        let all: BTreeSet<Prefix> = self.prefixes.keys().copied().chain(translated).collect();
        all.into_iter()
    }

    /// Tells what of this `other` has not, or otherwise.
    fn tell_unlike(&self, other: &Self, word: &str, told: &mut Vec<String>) {
        let is_unlike = |prefix: &Prefix| {
            let own = self.settings(prefix);
            own.is_some() && own != other.settings(prefix)
        };
        let prefixes = self.perhaps_unlike(other).filter(is_unlike);
        told.extend(prefixes.map(|prefix| format!("prefix {prefix} {word}")));
        let nodes = self.node_addresses.difference(&other.node_addresses);
        told.extend(nodes.map(|address| format!("node address {address} {word}")));
        let pods = self.pod_addresses.difference(&other.pod_addresses);
        told.extend(pods.map(|(port, own)| format!("address {own} of port {} {word}", port.0)));
        for (name, of) in
            ["TCP", "UDP", "ICMP", "SCTP", "protocol"].iter().zip(BITMAPS.map(|(_, of)| of))
        {
            let ports = ranges(of(self).difference(of(other)));
            told.extend(
                ports
                    .into_iter()
                    .map(|range| format!("{name} port {}-{} {word}", range.start(), range.end())),
            );
        }
    }

    /// Whether both tables make the same ours, as far as that shows without making it: most changes
    /// of a cluster touch nothing of this.
    #[must_use]
    pub fn is_surely_same(one: &Tables, other: &Tables, pass_on_stall: bool) -> bool {
        let (own, others) = (&one.services, &other.services);
        let same_services = Arc::ptr_eq(own, others) || own.node_ports == others.node_ports;
        let same_backends = Arc::ptr_eq(&one.host_backends, &other.host_backends)
            || one.host_backends == other.host_backends;
        let [one_form, other_form] =
            [one, other].map(|tables| tables.direct.as_ref().map(|direct| direct.dispatch));
        let same_policy = !pass_on_stall
            || Arc::ptr_eq(&one.identities, &other.identities)
                && Arc::ptr_eq(&one.policy, &other.policy);
        same_services
            && same_backends
            && one.service_ranges == other.service_ranges
            && same_policy
            && one_form == other_form
            && Arc::ptr_eq(&one.forwarding, &other.forwarding)
            && Arc::ptr_eq(&one.ports, &other.ports)
            && Arc::ptr_eq(&one.source_nat, &other.source_nat)
    }

    /// What is in both, alike.
    fn shared(&self, other: &Self) -> Self {
        let same = |prefix: &Prefix| self.settings(prefix) == other.settings(prefix);
        let settings = |prefix: Prefix| Some((prefix, self.settings(&prefix)?));
        Self {
            translated: AddressSet::default(),
            prefixes: self.all().filter(same).filter_map(settings).collect(),
            node_addresses: &self.node_addresses & &other.node_addresses,
            pod_addresses: &self.pod_addresses & &other.pod_addresses,
            tcp: &self.tcp & &other.tcp,
            udp: &self.udp & &other.udp,
            icmp: &self.icmp & &other.icmp,
            sctp: &self.sctp & &other.sctp,
            protocols: &self.protocols & &other.protocols,
        }
    }

    /// What is in either. Of a prefix in both, which settings does not matter to those who ask.
    fn united(&self, other: &Self) -> Self {
        let settings = |of: &Self, prefix: Prefix| Some((prefix, of.settings(&prefix)?));
        let own = self.all().filter_map(|prefix| settings(self, prefix));
        Self {
            translated: AddressSet::default(),
            prefixes: own.chain(other.all().filter_map(|p| settings(other, p))).collect(),
            node_addresses: &self.node_addresses | &other.node_addresses,
            pod_addresses: &self.pod_addresses | &other.pod_addresses,
            tcp: &self.tcp | &other.tcp,
            udp: &self.udp | &other.udp,
            icmp: &self.icmp | &other.icmp,
            sctp: &self.sctp | &other.sctp,
            protocols: &self.protocols | &other.protocols,
        }
    }
}

impl From<HeldRules> for Ours {
    fn from(held: HeldRules) -> Self {
        let mut ours = Self {
            node_addresses: held.node_addresses.into_iter().collect(),
            pod_addresses: held.pod_addresses.into_iter().collect(),
            ..Self::default()
        };
        for one in held.prefixes {
            let settings = (one.translated, one.on_stall == OnStall::Pass);
            let host = Prefix::host(one.prefix.address()) == one.prefix;
            match settings {
                TRANSLATED if host => _ = ours.translated.insert(one.prefix.address(), ()),
                _ => _ = ours.prefixes.insert(one.prefix, settings),
            }
        }
        for (bitmap, l4_port) in held.l4_ports {
            match bitmap {
                L4Bitmap::Tcp => ours.tcp.insert(l4_port),
                L4Bitmap::Udp => ours.udp.insert(l4_port),
                L4Bitmap::Icmp => ours.icmp.insert(l4_port),
                L4Bitmap::Sctp => ours.sctp.insert(l4_port),
                L4Bitmap::Protocol => ours.protocols.insert(l4_port),
            };
        }
        ours
    }
}

/// What the program has been told, as far as that is known: a change that failed may have happened
/// in part.
#[derive(Debug, Default)]
pub struct RulesInForce {
    /// In force without doubt.
    certain: Ours,
    /// In force perhaps; all of `certain` is.
    possible: Ours,
}

impl RulesInForce {
    /// What is in force without doubt.
    #[must_use]
    pub fn certain(&self) -> &Ours {
        &self.certain
    }

    /// Reads back what the program's tables hold, and goes on from there: the next
    /// [`Self::update`] mends it. Tells how that differs from what they were told, in at most
    /// [`TOLD_MAX`] words and a number of the rest; nothing after a change that failed, which is
    /// known to be there in part.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn read_back(&mut self, redirect: &mut Redirect) -> Result<Vec<String>, Error> {
        let held = Ours::from(redirect.held()?);
        let mut told = Vec::new();
        if self.certain == self.possible {
            self.certain.tell_unlike(&held, "is missing", &mut told);
            held.tell_unlike(&self.certain, "is there and was never told", &mut told);
        }
        let more = told.len().saturating_sub(TOLD_MAX);
        told.truncate(TOLD_MAX);
        if more > 0 {
            told.push(format!("{more} more"));
        }
        (self.certain, self.possible) = (held.clone(), held);
        Ok(told)
    }

    /// Tells the program that `wanted` is ours, and nothing else. One step that fails holds up no
    /// other, so that asking again finds the room that removals made.
    ///
    /// # Errors
    /// The program's first; ask again then.
    pub fn update(&mut self, wanted: Ours, redirect: &mut Redirect) -> Result<(), Error> {
        let told = self.change(&wanted, redirect);
        match told {
            Ok(()) => {
                self.possible.clone_from(&wanted);
                self.certain = wanted;
            }
            Err(_) => {
                self.possible = self.possible.united(&wanted);
                self.certain = self.certain.shared(&wanted);
            }
        }
        told
    }

    fn change(&self, wanted: &Ours, redirect: &mut Redirect) -> Result<(), Error> {
        let (certain, possible) = (&self.certain, &self.possible);
        let added: Vec<IpAddr> =
            wanted.node_addresses.difference(&certain.node_addresses).copied().collect();
        let mut told = redirect.change_node_addresses(&added, &[]);
        let claims = |one: &Ours, other: &Ours| -> Vec<(PortId, IpAddr)> {
            one.pod_addresses.difference(&other.pod_addresses).copied().collect()
        };
        told = told.and(redirect.change_pod_addresses(&claims(wanted, certain), &[]));
        told = told.and(redirect.change_pod_addresses(&[], &claims(possible, wanted)));
        let changed = wanted.perhaps_unlike(certain).filter_map(|prefix| {
            let settings = wanted.settings(&prefix)?;
            let (translated, pass) = settings;
            let on_stall = if pass { OnStall::Pass } else { OnStall::Drop };
            let is_new = certain.settings(&prefix) != Some(settings);
            is_new.then_some(OurPrefix { prefix, translated, on_stall })
        });
        let set: Vec<OurPrefix> = changed.collect();
        let gone = possible.perhaps_unlike(wanted);
        let gone: Vec<Prefix> = gone
            .filter(|prefix| {
                possible.settings(prefix).is_some() && wanted.settings(prefix).is_none()
            })
            .collect();
        told = told.and(redirect.change_prefixes(&set, &[]));
        told = told.and(redirect.change_prefixes(&[], &gone));
        let removed: Vec<IpAddr> =
            possible.node_addresses.difference(&wanted.node_addresses).copied().collect();
        told = told.and(redirect.change_node_addresses(&[], &removed));
        for (bitmap, of) in BITMAPS {
            for range in ranges(of(wanted).difference(of(certain))) {
                told = told.and(redirect.set_l4_ports(bitmap, range, true));
            }
            for range in ranges(of(possible).difference(of(wanted))) {
                told = told.and(redirect.set_l4_ports(bitmap, range, false));
            }
        }
        told
    }
}

/// Where [`Ours`] has what a bitmap holds.
type PortsOf = fn(&Ours) -> &BTreeSet<u16>;

/// The bitmaps.
const BITMAPS: [(L4Bitmap, PortsOf); 5] = [
    (L4Bitmap::Tcp, |ours| &ours.tcp),
    (L4Bitmap::Udp, |ours| &ours.udp),
    (L4Bitmap::Icmp, |ours| &ours.icmp),
    (L4Bitmap::Sctp, |ours| &ours.sctp),
    (L4Bitmap::Protocol, |ours| &ours.protocols),
];

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

    use dataplane::direct::Direct;
    use dataplane::forwarding::{Forwarding, NextHopId};
    use dataplane::identity::{Identity, IdentityTable};
    use dataplane::lb::{ServiceRanges, ServiceTable};
    use dataplane::nat::SourceNat;
    use dataplane::policy::{Policy, SubjectPolicy};

    use super::*;

    #[test]
    fn consecutive_ports_become_one_range() {
        assert_eq!(
            ranges([1, 2, 3, 7, 65_534, 65_535].iter()),
            vec![1..=3, 7..=7, 65_534..=65_535]
        );
    }

    /// Both families together were held against twice the bound of one: a full table showed 50 %.
    #[test]
    fn each_family_is_counted_by_itself() {
        let endpoints = ["10.1.0.1", "10.1.0.2", "fd00::1"];
        let tables = Tables {
            forwarding: Arc::new(Forwarding {
                endpoints: endpoints
                    .map(|address| (address.parse().unwrap(), NextHopId(0)))
                    .into_iter()
                    .collect(),
                ..Forwarding::default()
            }),
            ..Tables::default()
        };
        let ours = Ours::of(&tables, false);
        let prefixes = [true, false].map(|v4| ours.counts(|a| a.is_ipv4() == v4).prefixes);
        assert_eq!(prefixes, [2, 1]);
    }

    #[test]
    fn a_range_of_services_is_one_prefix_and_what_comes_within_changes_nothing() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let rest = Tables::default();
        let of = |whole: &[Prefix], addresses: &[&str]| {
            let addresses: AddressSet = addresses.iter().map(|text| address(text)).collect();
            let service_ranges = Arc::new(ServiceRanges::new(whole.into(), &addresses));
            let services = Arc::new(ServiceTable { addresses, ..ServiceTable::default() });
            Tables { services, service_ranges, ..rest.clone() }
        };
        let range = Prefix::new(address("10.96.0.0"), 12).unwrap();
        let [before, more] = [&["10.96.0.1", "203.0.113.1"][..], &["10.97.0.1", "203.0.113.1"]]
            .map(|services| of(&[range], services));
        let ours = Ours::of(&before, true);
        let told: BTreeSet<Prefix> = ours.all().collect();
        assert_eq!(told, [range, Prefix::host(address("203.0.113.1"))].into());
        assert!(told.iter().all(|prefix| ours.settings(prefix) == Some(TRANSLATED)));
        assert_eq!(ours, Ours::of(&more, true));
        assert!(Ours::is_surely_same(&before, &more, false));
        let outside = of(&[range], &["10.96.0.1", "203.0.113.2"]);
        let alone = of(&[], &["10.96.0.1", "203.0.113.1"]);
        for other in [outside, alone] {
            assert!(!Ours::is_surely_same(&before, &other, false));
            assert_ne!(ours, Ours::of(&other, true));
        }
    }

    #[test]
    fn l4_ports_of_host_backends_are_ours_while_there_is_a_way_to_the_host() {
        let host_backends: Arc<hashbrown::HashSet<_>> =
            Arc::new([(Protocol::TCP, 6443), (Protocol::UDP, 53)].into());
        let with = |host| {
            let forwarding = Arc::new(Forwarding { host, ..Forwarding::default() });
            let host_backends = Arc::clone(&host_backends);
            Ours::of(&Tables { forwarding, host_backends, ..Tables::default() }, false)
        };
        let (ours, without) = (with(Some(NextHopId(0))), with(None));
        assert!(ours.tcp.contains(&6443) && !ours.tcp.contains(&53));
        assert!(ours.udp.contains(&53) && !ours.udp.contains(&6443));
        assert!(!without.tcp.contains(&6443) && !without.udp.contains(&53));
    }

    #[test]
    fn wrapped_packets_to_the_node_are_ours_while_something_returns_directly() {
        let of = |dispatch: Option<Dispatch>| {
            let direct =
                dispatch.map(|dispatch| Arc::new(Direct { dispatch, ..Direct::default() }));
            Ours::of(&Tables { direct, ..Tables::default() }, false)
        };
        for (dispatch, protocols, udp) in [
            (None, false, false),
            (Some(Dispatch::Option), false, false),
            (Some(Dispatch::Ipip), true, false),
            (Some(Dispatch::Geneve), false, true),
        ] {
            let ours = of(dispatch);
            assert_eq!(ours.protocols.contains(&4) && ours.protocols.contains(&41), protocols);
            assert_eq!(ours.udp.contains(&GENEVE_PORT), udp, "{dispatch:?}");
        }
    }

    /// A fragment or an ICMP error tells no port: these are led here by the address alone.
    #[test]
    fn addresses_that_rules_translate_to_are_looked_at_as_the_nodes_own() {
        let of = |addresses: [IpAddr; 1]| {
            let source_nat =
                Arc::new(SourceNat { addresses: addresses.into(), ..SourceNat::default() });
            Ours::of(&Tables { source_nat, ..Tables::default() }, false)
        };
        for text in ["192.0.2.40", "2001:db8::40"] {
            let address: IpAddr = text.parse().unwrap();
            let ours = of([address]);
            assert!(ours.node_addresses.contains(&address) && ours.prefixes.is_empty());
            assert!(ours.tcp.contains(&65_535) && !ours.tcp.contains(&22));
        }
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
                exact: [(policed, subject.into())].into_iter().collect(),
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
