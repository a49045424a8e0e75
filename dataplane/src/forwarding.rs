//! Where a packet goes: local endpoints, the kernel's own routes and neighbours, the host.

use std::net::IpAddr;

use crate::DropReason;
use crate::address::MacAddr;
use crate::address_map::{AddressMap, AddressSet};
use crate::lpm::PrefixTable;
use crate::port::PortId;
use crate::table_map::TableMap;

/// Index into [`Forwarding::next_hops`]. A flow caches it for as long as the tables' generation
/// stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHopId(pub u16);

/// The last step off this node, or into a local endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Where it leaves.
    pub port: PortId,
    /// Whether that is the node's own stack.
    pub to_host: bool,
    /// Source link address to write.
    pub source: MacAddr,
    /// Destination link address; `None` while the neighbour is unresolved.
    pub destination: Option<MacAddr>,
    /// Largest IP packet on this path, in bytes.
    pub mtu: u16,
    /// The address whose link address is `destination` (gateway or on-link destination).
    pub neighbour: IpAddr,
}

/// One route of the kernel's main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The destination itself is the neighbour.
    OnLink(PortId),
    /// Through a gateway.
    Via(NextHopId),
    /// The node's own stack.
    Host,
    /// The kernel says unreachable, prohibit or blackhole, or leaves by an interface that is not
    /// ours.
    Unreachable,
}

/// An answer of [`Forwarding::resolve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// Leave by this next hop.
    NextHop(NextHopId),
    /// On-link, and nobody has asked for the neighbour yet: ask, hold the packet, try again.
    Unresolved(PortId, IpAddr),
}

/// Everything needed to find a next hop.
#[derive(Debug, Clone, Default)]
pub struct Forwarding {
    /// By [`NextHopId`].
    pub next_hops: Vec<NextHop>,
    /// Local pods.
    pub endpoints: AddressMap<NextHopId>,
    /// The node's own addresses.
    pub node_addresses: AddressSet,
    /// Those of its own that mean nothing beyond their link: nobody is sent there by them, but by the
    /// host port it speaks from them.
    pub link_addresses: AddressSet,
    /// The way to the node's own stack; `None` without a host port.
    pub host: Option<NextHopId>,
    /// On-link neighbours that are known or were asked for.
    pub neighbours: TableMap<(PortId, IpAddr), NextHopId>,
    /// The kernel's routes.
    pub routes: PrefixTable<Route>,
}

impl Forwarding {
    /// The next hop by id.
    #[must_use]
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(usize::from(id.0))
    }

    /// Whether `source` is one of the node's own, within a link or beyond.
    #[must_use]
    pub fn is_own(&self, source: &IpAddr) -> bool {
        self.node_addresses.contains(source) || self.link_addresses.contains(source)
    }

    /// The way to `destination`: local endpoint, the node itself, else the kernel's route.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] when there is none.
    #[inline(always)]
    pub fn resolve(&self, destination: IpAddr) -> Result<Resolved, DropReason> {
        if let Some(id) = self.endpoints.get(&destination) {
            return Ok(Resolved::NextHop(*id));
        }
        if self.node_addresses.contains(&destination) {
            return self.host.map(Resolved::NextHop).ok_or(DropReason::NoRoute);
        }
        self.route(destination)
    }

    /// The way to a `destination` that is neither a local endpoint nor the node itself.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] when there is none.
    #[inline(always)]
    pub fn route(&self, destination: IpAddr) -> Result<Resolved, DropReason> {
        match self.routes.lookup(destination) {
            Some(Route::Via(id)) => Ok(Resolved::NextHop(*id)),
            Some(Route::Host) => self.host.map(Resolved::NextHop).ok_or(DropReason::NoRoute),
            Some(Route::OnLink(port)) => Ok(self
                .neighbours
                .get(&(*port, destination))
                .map_or(Resolved::Unresolved(*port, destination), |id| Resolved::NextHop(*id))),
            Some(Route::Unreachable) | None => Err(DropReason::NoRoute),
        }
    }
}
