//! Where services' addresses are, as tables have it: which of the configured ranges are services' as a whole,
//! and which addresses are outside of them.
//!
//! A range that a node has an address in is none of these: host processes would no longer reach that node,
//! nor its neighbours. Services in it are led here one by one, as where no range is configured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use control::model;
use dataplane::address_map::AddressSet;
use dataplane::lb::ServiceRanges;
use dataplane::lpm::Prefix;

use super::Node;
use super::reconciles::Reconcile;
use super::settings::Uplink;
use crate::netlink::KernelView;

/// What ranges are made of.
#[derive(Debug, PartialEq)]
struct MadeOf {
    configured: Vec<Prefix>,
    /// Addresses of the node's on links with others.
    own: BTreeSet<IpAddr>,
    /// Changes of nodes.
    nodes: u64,
    /// Every address that a service has.
    services: AddressSet,
}

/// Kept from one look to the next: most changes of a cluster leave all of this alone.
#[derive(Debug, Default)]
pub(super) struct KnownRanges {
    made_of: Option<MadeOf>,
    ranges: Arc<ServiceRanges>,
    /// What is wrong with configured ranges, by setting.
    wrong: BTreeMap<String, String>,
}

impl KnownRanges {
    /// Follows what ranges are made of. They are others only where something of them is another.
    fn follow(&mut self, made_of: MadeOf, nodes: &BTreeMap<String, model::Node>) {
        if self.made_of.as_ref() == Some(&made_of) {
            return;
        }
        let mut whole = Vec::with_capacity(made_of.configured.len());
        self.wrong.clear();
        for (place, range) in made_of.configured.iter().enumerate() {
            let Some(holder) = holder_within(range, &made_of.own, nodes) else {
                whole.push(*range);
                continue;
            };
            let setting = format!("cluster.service_cidrs[{place}]");
            let what = format!("{range} is not led here as a whole: {holder}");
            self.wrong.insert(setting, what);
        }
        let ranges = ServiceRanges::new(whole.into(), &made_of.services);
        if ranges != *self.ranges {
            self.ranges = Arc::new(ranges);
        }
        self.made_of = Some(made_of);
    }
}

/// Which node has an address within `range`, in words.
fn holder_within(
    range: &Prefix,
    own: &BTreeSet<IpAddr>,
    nodes: &BTreeMap<String, model::Node>,
) -> Option<String> {
    let is_within = |address: &&IpAddr| range.contains(**address);
    if let Some(address) = own.iter().find(is_within) {
        return Some(format!("this node has {address}"));
    }
    nodes.iter().find_map(|(name, node)| {
        let address = node.addresses.iter().find(is_within)?;
        Some(format!("node {name} has {address}"))
    })
}

impl Node {
    pub(super) fn service_ranges(&mut self, view: &KernelView) -> Arc<ServiceRanges> {
        let compiled = self.publisher.compiled();
        let made_of = MadeOf {
            configured: self.settings.service_ranges.clone(),
            own: self.addresses_among_others(view),
            nodes: compiled.node_changes(),
            services: compiled.services.addresses.clone(),
        };
        let before = self.known_ranges.wrong.clone();
        self.known_ranges.follow(made_of, &compiled.state().nodes);
        let wrong = self.known_ranges.wrong.clone();
        self.failed_anew(Reconcile::HostRoutes, &before, &wrong);
        Arc::clone(&self.known_ranges.ranges)
    }

    /// The node's addresses on uplinks and other links that others are on. One that stands alone may be a
    /// service's, whom something on the node answers for, as a node's cache of DNS does.
    fn addresses_among_others(&self, view: &KernelView) -> BTreeSet<IpAddr> {
        let uplinks = self.settings.uplinks.iter();
        let index = |uplink: &Uplink| Some(view.link_by_name(&uplink.interface)?.0);
        let uplinks: BTreeSet<u32> = uplinks.filter_map(index).collect();
        let of_links = view.addresses.iter().filter(|(interface, own)| {
            own.prefix_length < Prefix::host(own.address).length() || uplinks.contains(interface)
        });
        of_links.map(|(_, own)| own.address).collect()
    }
}

#[cfg(test)]
mod tests {
    use control::model::PolicyMode;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(address(text), length).unwrap()
    }

    fn made_of(own: &[&str], nodes: u64, services: &[&str]) -> MadeOf {
        MadeOf {
            configured: vec![prefix("10.96.0.0", 12), prefix("fd00:96::", 112)],
            own: own.iter().map(|text| address(text)).collect(),
            nodes,
            services: services.iter().map(|text| address(text)).collect(),
        }
    }

    fn node(name: &str, own: &str) -> (String, model::Node) {
        let node = model::Node {
            name: name.into(),
            addresses: vec![address(own)],
            pod_cidrs: Vec::new(),
            zone: None,
            is_leaving: false,
            mode: PolicyMode::Enforce,
        };
        (name.into(), node)
    }

    #[test]
    fn services_within_a_range_are_led_by_it_and_others_by_themselves() {
        let mut known = KnownRanges::default();
        let none = BTreeMap::new();
        known
            .follow(made_of(&["192.0.2.1"], 0, &["10.96.0.1", "203.0.113.1", "fd00:97::1"]), &none);
        assert_eq!(*known.ranges.whole, [prefix("10.96.0.0", 12), prefix("fd00:96::", 112)]);
        let apart = ["203.0.113.1", "fd00:97::1"].map(address);
        assert_eq!(known.ranges.apart, AddressSet::from(apart));

        let before = Arc::clone(&known.ranges);
        let more = ["10.96.0.1", "10.97.0.1", "fd00:96::1", "203.0.113.1", "fd00:97::1"];
        known.follow(made_of(&["192.0.2.1"], 0, &more), &none);
        assert!(Arc::ptr_eq(&before, &known.ranges), "what came within changes nothing");
        known.follow(made_of(&["192.0.2.1"], 0, &["10.96.0.1", "fd00:97::1"]), &none);
        assert_eq!(known.ranges.apart, AddressSet::from([address("fd00:97::1")]));
    }

    #[test]
    fn services_are_led_by_themselves_where_no_range_is_configured() {
        let mut known = KnownRanges::default();
        let services = ["10.96.0.1", "fd00:96::1"];
        let made_of = MadeOf { configured: Vec::new(), ..made_of(&[], 0, &services) };
        known.follow(made_of, &BTreeMap::new());
        assert!(known.ranges.whole.is_empty());
        assert_eq!(known.ranges.apart, AddressSet::from(services.map(address)));
    }

    #[test]
    fn a_range_that_a_node_has_an_address_in_is_no_services_and_named_until_it_has_not() {
        let mut known = KnownRanges::default();
        let other = BTreeMap::from([node("node-b", "10.100.0.7")]);
        for (own, nodes, words) in [
            (&["10.96.7.7"][..], BTreeMap::new(), "this node has 10.96.7.7"),
            (&[][..], other, "node node-b has 10.100.0.7"),
        ] {
            known.follow(made_of(own, nodes.len() as u64, &["10.96.0.1", "fd00:96::1"]), &nodes);
            assert_eq!(*known.ranges.whole, [prefix("fd00:96::", 112)]);
            assert_eq!(known.ranges.apart, AddressSet::from([address("10.96.0.1")]));
            assert_eq!(known.wrong.len(), 1);
            let what = &known.wrong["cluster.service_cidrs[0]"];
            assert!(what.contains("10.96.0.0/12") && what.contains(words), "{what}");
        }
        known.follow(made_of(&[], 2, &["10.96.0.1"]), &BTreeMap::new());
        assert_eq!((known.ranges.whole.len(), known.wrong.len()), (2, 0));
    }
}
