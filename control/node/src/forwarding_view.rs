//! From the kernel's view to the pipeline's: where does a packet go, and by which next hop?
//!
//! Pure: the view, our ports and endpoints go in; a [`Forwarding`] comes out. A next hop keeps its
//! [`NextHopId`] while it exists, so that a link address that changes, or a neighbour that becomes
//! known, is published without a new generation and no flow is judged again for it. What else changes
//! is told by address, as far as it concerns few.
//!
//! Rules where the kernel's tables say more than ours:
//! - of several routes to one prefix, the lowest metric wins, as in the kernel;
//! - of several hops of a multipath route, the first that is alive and leaves by one of our ports
//!   is used for all packets: the kernel's own hash over flows is not reproduced, so traffic is
//!   not spread, but never leaves by a way the kernel would not use;
//! - a route whose hops all leave by interfaces that are not ours refuses
//!   ([`Route::Unreachable`]): there is no way back into the kernel after a redirect;
//! - a subnet's broadcast address is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control::compile::Affected;
use dataplane::address::MacAddr;
use dataplane::address_map::AddressMap;
use dataplane::forwarding::{Forwarding, NextHop, NextHopId, Route};
use dataplane::lpm::{Prefix, PrefixTable};
use dataplane::port::{PortId, PortKind};
use hashbrown::HashMap;

use crate::netlink::neighbours::NeighbourKey;
use crate::netlink::{KernelView, RouteEntry, RouteHop, RouteKind};

/// Next hops at once, at most; more are left out, and what needs them has no route.
pub const NEXT_HOPS_MAX: usize = 32_768;

/// Pods' next hops among them that are gone and keep their numbers; more have all of these given back,
/// which has every flow look whether it is concerned. Each is copied with every table that is published.
pub const NEXT_HOPS_OF_GONE_PODS_MAX: usize = 512;

/// A port as far as forwarding goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardingPort {
    /// Its index in the tables.
    pub port: PortId,
    /// What stands at the other end.
    pub kind: PortKind,
    /// The kernel's index of the interface.
    pub interface: u32,
    /// Our side's link address.
    pub mac: MacAddr,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// An address behind a pod port, or the node's own stack behind the host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointAddress {
    /// The address.
    pub address: IpAddr,
    /// The port it is behind.
    pub port: PortId,
    /// Its link address; from the kernel's neighbours when absent.
    pub mac: Option<MacAddr>,
}

/// The way to the node's own stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostWay {
    /// The host port.
    pub port: PortId,
    /// Link address of the stack's end.
    pub mac: MacAddr,
    /// The stack's address on that link, by which people recognise the next hop.
    pub address: IpAddr,
    /// The kernel's index of the stack's end, whose addresses are not the node's.
    pub stack_interface: u32,
}

/// What to build from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The kernel's state.
    pub view: &'a KernelView,
    /// Our ports.
    pub ports: &'a [ForwardingPort],
    /// Local pods' addresses.
    pub endpoints: &'a [EndpointAddress],
    /// The host port; `None` without.
    pub host: Option<HostWay>,
    /// On-link neighbours that workers asked for, known or not.
    pub asked: &'a BTreeSet<(PortId, IpAddr)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct NextHopKey {
    port: PortId,
    neighbour: IpAddr,
    /// A route's own MTU makes a next hop of its own.
    route_mtu: Option<u16>,
}

/// A next hop that has a number.
#[derive(Debug, Clone, Copy)]
struct Numbered {
    key: NextHopKey,
    /// Only flows that have its neighbour for an end ever learnt the number.
    of_pod: bool,
}

/// What came out.
#[derive(Debug)]
pub struct Built {
    /// For the tables.
    pub forwarding: Forwarding,
    /// Whose cached decisions may be wrong now.
    pub affected: Affected,
    /// Whether numbers were given back, to become other next hops'. Whoever is affected must know it by the
    /// generation then: a flow that a worker opens by older tables may have such a number.
    pub renumbered: bool,
    /// Whether anything differs from the last build at all.
    pub changed: bool,
    /// Gateways, and endpoints without a given link address, to be kept resolved.
    pub gateways: BTreeSet<NeighbourKey>,
    /// Next hops left out because [`NEXT_HOPS_MAX`] was reached.
    pub left_out: u64,
}

/// Remembers which next hop has which number, from one build to the next.
#[derive(Debug, Default)]
pub struct ForwardingBuilder {
    numbers: HashMap<NextHopKey, NextHopId>,
    keys: Vec<Option<Numbered>>,
    last: Forwarding,
}

impl ForwardingBuilder {
    /// Next hops with a number now.
    #[must_use]
    pub fn next_hops_used(&self) -> usize {
        self.numbers.len()
    }

    /// Builds what the pipeline is told.
    pub fn build(&mut self, inputs: &Inputs<'_>) -> Built {
        let mut build = Build {
            inputs,
            by_interface: inputs.ports.iter().map(|port| (port.interface, port)).collect(),
            by_id: inputs.ports.iter().map(|port| (port.port, port)).collect(),
            given: inputs
                .endpoints
                .iter()
                .filter_map(|endpoint| Some(((endpoint.port, endpoint.address), endpoint.mac?)))
                .collect(),
            out: Forwarding::default(),
            wanted: BTreeMap::new(),
            gateways: BTreeSet::new(),
        };
        build.collect();
        let mut whose = self.make_room(&build.wanted);
        let renumbered = whose != Affected::Nothing;
        let left_out = self.number(&mut build);
        whose.merge(affected(&self.last, &build.out));
        let affected = whose;
        let changed = affected != Affected::Nothing
            || self.last.next_hops != build.out.next_hops
            || self.last.neighbours != build.out.neighbours;
        self.last = build.out.clone();
        Built {
            forwarding: build.out,
            affected,
            renumbered,
            changed,
            gateways: build.gateways,
            left_out,
        }
    }

    /// Gives numbers of next hops back that nothing uses any more, and tells whose flows have them: of
    /// pods when there are [`NEXT_HOPS_OF_GONE_PODS_MAX`], and of all, which are anybody's, when there
    /// is no room. Whoever asks for many neighbours must not have every flow judged again, again and again.
    fn make_room(&mut self, wanted: &BTreeMap<NextHopKey, Vec<User>>) -> Affected {
        let new = wanted.keys().filter(|key| !self.numbers.contains_key(*key)).count();
        let is_full = self.numbers.len() + new > NEXT_HOPS_MAX;
        let is_gone = |one: &Numbered| (one.of_pod || is_full) && !wanted.contains_key(&one.key);
        let gone = self.keys.iter().flatten().filter(|one| is_gone(one)).count();
        if gone <= NEXT_HOPS_OF_GONE_PODS_MAX && !is_full {
            return Affected::Nothing;
        }
        let mut whose = Affected::Nothing;
        for slot in &mut self.keys {
            if let Some(one) = slot.take_if(|one| is_gone(one)) {
                self.numbers.remove(&one.key);
                match one.of_pod {
                    true => whose.add(one.key.neighbour),
                    false => whose = Affected::Everything,
                }
            }
        }
        while self.keys.pop_if(|last| last.is_none()).is_some() {}
        whose
    }

    fn number(&mut self, build: &mut Build<'_>) -> u64 {
        // The least last: it is taken first, so that the greatest can go.
        let mut free: Vec<usize> =
            (0..self.keys.len()).rev().filter(|i| self.keys[*i].is_none()).collect();
        let mut left_out = 0;
        for (key, users) in std::mem::take(&mut build.wanted) {
            let of_pod = users.iter().all(|user| matches!(user, User::Endpoint(_)));
            let id = match self.numbers.get(&key) {
                Some(id) => {
                    if let Some(one) = &mut self.keys[usize::from(id.0)] {
                        one.of_pod &= of_pod;
                    }
                    *id
                }
                None => {
                    let index = free.pop().unwrap_or(self.keys.len());
                    let Some(id) =
                        u16::try_from(index).ok().filter(|_| index < NEXT_HOPS_MAX).map(NextHopId)
                    else {
                        left_out += 1;
                        continue;
                    };
                    if index == self.keys.len() {
                        self.keys.push(None);
                    }
                    self.keys[index] = Some(Numbered { key, of_pod });
                    self.numbers.insert(key, id);
                    id
                }
            };
            for user in users {
                build.point(user, id);
            }
        }
        build.out.next_hops =
            self.keys.iter().map(|one| build.next_hop(one.map(|one| one.key))).collect();
        left_out
    }
}

/// Who refers to a next hop.
#[derive(Debug, Clone, Copy)]
enum User {
    Endpoint(IpAddr),
    Host,
    Neighbour(PortId, IpAddr),
    Gateway(Prefix),
}

struct Build<'a> {
    inputs: &'a Inputs<'a>,
    by_interface: HashMap<u32, &'a ForwardingPort>,
    by_id: HashMap<PortId, &'a ForwardingPort>,
    given: HashMap<(PortId, IpAddr), MacAddr>,
    out: Forwarding,
    wanted: BTreeMap<NextHopKey, Vec<User>>,
    gateways: BTreeSet<NeighbourKey>,
}

impl Build<'_> {
    fn collect(&mut self) {
        let inputs = self.inputs;
        if let Some(host) = inputs.host {
            self.want(host.port, host.address, None, User::Host);
        }
        for endpoint in inputs.endpoints {
            self.want(endpoint.port, endpoint.address, None, User::Endpoint(endpoint.address));
            if let (None, Some(port)) = (endpoint.mac, self.by_id.get(&endpoint.port)) {
                self.gateways.insert((port.interface, endpoint.address));
            }
        }
        self.collect_addresses();
        self.collect_routes();
        self.collect_neighbours();
    }

    fn want(&mut self, port: PortId, neighbour: IpAddr, route_mtu: Option<u16>, user: User) {
        let key = NextHopKey { port, neighbour, route_mtu };
        self.wanted.entry(key).or_default().push(user);
    }

    fn collect_addresses(&mut self) {
        let view = self.inputs.view;
        let stack = self.inputs.host.map(|host| host.stack_interface);
        for (interface, own) in &view.addresses {
            let address = own.address;
            // Link-local addresses mean nothing beyond their link. Of IPv6's only those of the host port's
            // link are spoken from there.
            let local_only = address.is_loopback() || is_link_local(address);
            if own.usable && !local_only && Some(*interface) != stack {
                self.out.node_addresses.insert(address, ());
            } else if own.usable
                && !address.is_loopback()
                && (Some(*interface) == stack || address.is_ipv4())
            {
                self.out.link_addresses.insert(address, ());
            }
            if let Some(broadcast) = own.broadcast.filter(|_| own.prefix_length < 31) {
                let prefix = Prefix::host(IpAddr::V4(broadcast));
                self.out.routes.insert(prefix, Route::Unreachable);
            }
        }
    }

    fn collect_routes(&mut self) {
        // Ordered by prefix, then metric: the first of each prefix is the kernel's choice.
        let mut last: Option<Prefix> = None;
        for entry in &self.inputs.view.routes {
            if last != Some(entry.prefix) {
                last = Some(entry.prefix);
                self.collect_route(entry);
            }
        }
    }

    fn collect_route(&mut self, entry: &RouteEntry) {
        let route = match &entry.kind {
            RouteKind::Local => Route::Host,
            RouteKind::Refuse => Route::Unreachable,
            RouteKind::Unicast(hops) => match self.choose(hops) {
                None => Route::Unreachable,
                Some((port, None)) => Route::OnLink(port),
                Some((port, Some(gateway))) => {
                    let mtu = entry.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
                    self.want(port, gateway, mtu, User::Gateway(entry.prefix));
                    if let Some(port) = self.by_id.get(&port) {
                        self.gateways.insert((port.interface, gateway));
                    }
                    // Stands until the next hop has its number, or is left out.
                    Route::Unreachable
                }
            },
        };
        self.out.routes.insert(entry.prefix, route);
    }

    fn choose(&self, hops: &[RouteHop]) -> Option<(PortId, Option<IpAddr>)> {
        hops.iter().filter(|hop| !hop.dead).find_map(|hop| {
            let port = self.by_interface.get(&hop.interface)?;
            Some((port.port, hop.gateway))
        })
    }

    fn collect_neighbours(&mut self) {
        let mut neighbours: BTreeSet<(PortId, IpAddr)> = self.inputs.asked.clone();
        for ((interface, address), known) in &self.inputs.view.neighbours {
            let port = self.by_interface.get(interface).filter(|p| p.kind == PortKind::Uplink);
            if let (Some(port), true) = (port, known.mac.is_some()) {
                neighbours.insert((port.port, *address));
            }
        }
        for (port, address) in neighbours {
            self.want(port, address, None, User::Neighbour(port, address));
        }
    }

    fn point(&mut self, user: User, id: NextHopId) {
        match user {
            User::Endpoint(address) => {
                self.out.endpoints.insert(address, id);
            }
            User::Host => self.out.host = Some(id),
            User::Neighbour(port, address) => {
                self.out.neighbours.insert((port, address), id);
            }
            User::Gateway(prefix) => {
                self.out.routes.insert(prefix, Route::Via(id));
            }
        }
    }

    fn next_hop(&self, key: Option<NextHopKey>) -> NextHop {
        let nowhere = NextHop {
            port: PortId(u16::MAX),
            to_host: false,
            source: MacAddr::default(),
            destination: None,
            mtu: 0,
            neighbour: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        };
        let Some(key) = key else { return nowhere };
        let Some(port) = self.by_id.get(&key.port) else {
            return NextHop { port: key.port, neighbour: key.neighbour, ..nowhere };
        };
        NextHop {
            port: key.port,
            to_host: self.inputs.host.is_some_and(|host| host.port == key.port),
            source: port.mac,
            destination: self.link_address(port, key.neighbour),
            mtu: key.route_mtu.map_or(port.mtu, |mtu| mtu.min(port.mtu)),
            neighbour: key.neighbour,
        }
    }

    fn link_address(&self, port: &ForwardingPort, neighbour: IpAddr) -> Option<MacAddr> {
        if let Some(host) = self.inputs.host.filter(|host| host.port == port.port) {
            return Some(host.mac);
        }
        let given = self.given.get(&(port.port, neighbour)).copied();
        given.or_else(|| self.inputs.view.neighbours.get(&(port.interface, neighbour))?.mac)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whose flows decided under `old` might be decided otherwise under `new`. Link addresses and MTUs
/// are read through the next hop at every packet, so they do not count; a neighbour that merely
/// appears leaves numbers that flows hold untouched, but an endpoint shadows a route, so it counts.
fn affected(old: &Forwarding, new: &Forwarding) -> Affected {
    let routes_differ = |a: &PrefixTable<Route>, b: &PrefixTable<Route>| {
        let of = |table: &PrefixTable<Route>| -> HashMap<Prefix, Route> {
            table.iter().map(|(prefix, route)| (prefix, *route)).collect()
        };
        a.len() != b.len() || of(a) != of(b)
    };
    if old.host != new.host || routes_differ(&old.routes, &new.routes) {
        return Affected::Everything;
    }
    let mut affected = Affected::Nothing;
    let renumbered = old
        .neighbours
        .iter()
        .filter(|(key, id)| new.neighbours.get(*key).is_some_and(|now| now != *id))
        .map(|((_, address), _)| *address);
    let differing = unlike(&old.endpoints, &new.endpoints)
        .chain(unlike(&old.node_addresses, &new.node_addresses))
        .chain(unlike(&old.link_addresses, &new.link_addresses));
    renumbered.chain(differing).for_each(|address| affected.add(address));
    affected
}

/// Addresses that map to something else, or to nothing in one of both.
fn unlike<'a, T: PartialEq>(
    old: &'a AddressMap<T>,
    new: &'a AddressMap<T>,
) -> impl Iterator<Item = IpAddr> {
    let changed = old.iter().filter(|(address, value)| new.get(address) != Some(*value));
    let appeared = new.iter().filter(|(address, _)| !old.contains_key(address));
    changed.chain(appeared).map(|(address, _)| address)
}

#[cfg(test)]
mod tests;
