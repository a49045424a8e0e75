//! What the kernel says about links, addresses, routes and neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::address::MacAddr;
use dataplane::lpm::Prefix;

/// Neighbour entries kept, at most; the kernel's own default bound is 1024
/// (`net.ipv4.neigh.default.gc_thresh3`) per family, and managed entries may exceed it.
pub const NEIGHBOURS_MAX: usize = 16_384;
/// Routes kept, at most. A node's table holds tens; one that follows BGP may hold thousands.
pub const ROUTES_MAX: usize = 65_536;
/// Links kept, at most.
pub const LINKS_MAX: usize = 8_192;

/// The kernel's state, by interface index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Network interfaces.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of the node, with the interface that has them.
    pub addresses: BTreeSet<(u32, InterfaceAddress)>,
    /// The main table, both families, ordered by prefix and metric.
    pub routes: Vec<RouteEntry>,
    /// Neighbours with what is known of them.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Entries left out because a bound above was reached.
    pub left_out: u64,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its alias (`ip link set alias`), by which we know our own.
    pub alias: Option<String>,
    /// Its link address, when it has an Ethernet one.
    pub mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// Receive queues.
    pub receive_queues: u32,
    /// `veth`, `tun` and so on for virtual devices; none for a real one.
    pub virtual_kind: Option<String>,
}

/// An address of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the on-link prefix, in bits.
    pub prefix_length: u8,
    /// The subnet's broadcast address (IPv4).
    pub broadcast: Option<std::net::Ipv4Addr>,
    /// Usable: neither tentative nor found to be a duplicate.
    pub usable: bool,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteEntry {
    /// Destinations.
    pub prefix: Prefix,
    /// Lower wins.
    pub metric: u32,
    /// What happens to packets.
    pub kind: RouteKind,
    /// Largest packet by the route's own metric (RTAX_MTU), in bytes.
    pub mtu: Option<u32>,
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forwards by one of these, in the kernel's order.
    Unicast(Vec<RouteHop>),
    /// Delivers to this node.
    Local,
    /// Unreachable, prohibit, blackhole or anything else that does not forward.
    Refuse,
}

/// One way out of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteHop {
    /// The interface.
    pub interface: u32,
    /// The gateway; on-link without.
    pub gateway: Option<IpAddr>,
    /// Whether the kernel calls it dead or its link down.
    pub dead: bool,
}

/// A neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link address, when known and not found wrong.
    pub mac: Option<MacAddr>,
    /// The kernel tried and got no answer.
    pub failed: bool,
    /// The kernel keeps it fresh by itself (NTF_EXT_MANAGED, or permanent).
    pub kept_fresh: bool,
    /// It has not been confirmed of late (NUD_STALE).
    pub stale: bool,
}

/// A single change, decoded from a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The link is now so.
    Link(u32, Link),
    /// The link is gone.
    LinkGone(u32),
    /// The interface has the address.
    Address(u32, InterfaceAddress),
    /// The interface lost the address.
    AddressGone(u32, IpAddr),
    /// The neighbour is now so.
    Neighbour(u32, IpAddr, Neighbour),
    /// The neighbour is forgotten.
    NeighbourGone(u32, IpAddr),
    /// A route of the main table changed: read them again. Notifications of routes cannot be
    /// applied one by one: an IPv4 link that goes down takes its routes without a notification,
    /// and IPv6 multipath routes are announced hop by hop.
    Routes,
    /// Nothing we follow.
    Nothing,
}

/// What applying a change means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// The view differs from before.
    pub changed: bool,
    /// Routes must be read again.
    pub routes_stale: bool,
}

impl KernelView {
    /// The index and state of the interface named `name`.
    #[must_use]
    pub fn link_by_name(&self, name: &str) -> Option<(u32, &Link)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, link)| (*index, link))
    }

    /// Applies one change.
    pub fn apply(&mut self, change: Change) -> Applied {
        match change {
            Change::Link(index, link) => self.apply_link(index, link),
            Change::LinkGone(index) => self.remove_link(index),
            Change::Address(index, address) => {
                self.addresses.retain(|(own, old)| {
                    *own != index || old.address != address.address || *old == address
                });
                let changed = self.addresses.insert((index, address));
                // An address brings its subnet's route and may change source selection.
                Applied { changed, routes_stale: changed }
            }
            Change::AddressGone(index, address) => {
                let before = self.addresses.len();
                self.addresses.retain(|(own, old)| *own != index || old.address != address);
                let changed = before != self.addresses.len();
                Applied { changed, routes_stale: changed }
            }
            Change::Neighbour(index, address, neighbour) => {
                let key = (index, address);
                if !self.neighbours.contains_key(&key) && self.neighbours.len() >= NEIGHBOURS_MAX {
                    self.left_out += 1;
                    return Applied::default();
                }
                let changed = self.neighbours.insert(key, neighbour) != Some(neighbour);
                Applied { changed, routes_stale: false }
            }
            Change::NeighbourGone(index, address) => {
                let changed = self.neighbours.remove(&(index, address)).is_some();
                Applied { changed, routes_stale: false }
            }
            Change::Routes => Applied { changed: false, routes_stale: true },
            Change::Nothing => Applied::default(),
        }
    }

    fn apply_link(&mut self, index: u32, link: Link) -> Applied {
        if !self.links.contains_key(&index) && self.links.len() >= LINKS_MAX {
            self.left_out += 1;
            return Applied::default();
        }
        let old = self.links.insert(index, link.clone());
        let routes_stale = old.as_ref().is_none_or(|old| old.up != link.up);
        Applied { changed: old.as_ref() != Some(&link), routes_stale }
    }

    fn remove_link(&mut self, index: u32) -> Applied {
        let changed = self.links.remove(&index).is_some();
        self.addresses.retain(|(own, _)| *own != index);
        self.neighbours.retain(|(own, _), _| *own != index);
        Applied { changed, routes_stale: changed }
    }

    /// Takes over what a reading of the main table gave, in canonical order.
    pub fn set_routes(&mut self, mut routes: Vec<RouteEntry>) -> bool {
        if routes.len() > ROUTES_MAX {
            self.left_out += (routes.len() - ROUTES_MAX) as u64;
            routes.truncate(ROUTES_MAX);
        }
        routes.sort();
        routes.dedup();
        let changed = self.routes != routes;
        self.routes = routes;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, up: bool) -> Link {
        Link {
            name: name.into(),
            alias: None,
            mac: None,
            mtu: 1500,
            up,
            receive_queues: 1,
            virtual_kind: None,
        }
    }

    fn address(text: &str) -> InterfaceAddress {
        InterfaceAddress {
            address: text.parse().unwrap(),
            prefix_length: 24,
            broadcast: None,
            usable: true,
        }
    }

    #[test]
    fn a_link_that_disappears_takes_its_addresses_and_neighbours() {
        let mut view = KernelView::default();
        let neighbour = Neighbour { mac: None, failed: false, kept_fresh: false, stale: false };
        view.apply(Change::Link(3, link("eth0", true)));
        view.apply(Change::Address(3, address("192.0.2.1")));
        view.apply(Change::Neighbour(3, "192.0.2.9".parse().unwrap(), neighbour));
        let applied = view.apply(Change::LinkGone(3));
        assert_eq!(applied, Applied { changed: true, routes_stale: true });
        assert_eq!(view, KernelView::default());
    }

    #[test]
    fn a_link_that_goes_down_makes_routes_stale_since_the_kernel_announces_no_lost_route() {
        let mut view = KernelView::default();
        view.apply(Change::Link(3, link("eth0", true)));
        assert!(view.apply(Change::Link(3, link("eth0", false))).routes_stale);
        assert!(!view.apply(Change::Link(3, link("eth0", false))).routes_stale);
    }

    #[test]
    fn an_address_that_stops_being_tentative_replaces_itself() {
        let mut view = KernelView::default();
        let tentative = InterfaceAddress { usable: false, ..address("2001:db8::1") };
        view.apply(Change::Address(3, tentative));
        view.apply(Change::Address(3, address("2001:db8::1")));
        assert_eq!(view.addresses.len(), 1);
        assert!(view.addresses.iter().all(|(_, address)| address.usable));
    }

    #[test]
    fn neighbours_beyond_the_bound_are_left_out_and_counted() {
        let mut view = KernelView::default();
        let neighbour = Neighbour { mac: None, failed: false, kept_fresh: false, stale: false };
        for number in 0..=NEIGHBOURS_MAX {
            let bits = u32::try_from(number).unwrap();
            view.apply(Change::Neighbour(1, IpAddr::V4(bits.into()), neighbour));
        }
        assert_eq!((view.neighbours.len(), view.left_out), (NEIGHBOURS_MAX, 1));
    }

    #[test]
    fn the_same_change_twice_changes_nothing() {
        let mut view = KernelView::default();
        assert!(view.apply(Change::Link(1, link("lo", true))).changed);
        assert_eq!(view.apply(Change::Link(1, link("lo", true))), Applied::default());
    }
}
