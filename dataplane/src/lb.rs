//! Services: frontends, their backends, and Maglev's choice among them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::Protocol;
use crate::address_map::AddressSet;
use crate::flow_key::FlowKey;
use crate::lpm::Prefix;
use crate::shared_map::SharedMap;
use crate::time::Seconds;

/// Where a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// ClusterIP, external IP or load balancer ingress address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Service port.
    pub l4_port: u16,
}

/// Names a service in [`ServiceTable::services`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// One endpoint of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// Pod or host address.
    pub address: IpAddr,
    /// Target port.
    pub l4_port: u16,
    /// Whether the endpoint is on this node.
    pub local: bool,
    /// Its share of the flows, in proportion to those of others.
    pub weight: u16,
}

/// Whether a frontend may choose backends on other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficPolicy {
    /// Any ready backend.
    Cluster,
    /// Backends of this node only.
    Local,
}

/// How a service chooses the backend of a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Choice {
    /// By the hash of its tuple: every node chooses alike.
    #[default]
    Maglev,
    /// By chance.
    Random,
    /// Of two that chance draws, the one with fewer connections for its weight
    /// ([`crate::connections`]).
    LeastConnections,
}

/// `sessionAffinity: ClientIP`: a client's flows go to one backend ([`crate::affinity`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Affinity {
    /// What the service port's name hashes to, the same in every process.
    pub service: u64,
    /// How long a client's backend is remembered from its last new flow on: 1 s to a day.
    pub timeout: Seconds,
}

/// The choice among one set of backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackendSet {
    /// Ordered by address and port, so that every node builds the same table.
    pub backends: Box<[Backend]>,
    /// Maglev lookup table: index of a backend per slot; empty for at most one backend.
    pub maglev: Box<[u16]>,
}

impl BackendSet {
    /// The backend at this address and L4 port.
    #[must_use]
    pub fn find(&self, (address, l4_port): (IpAddr, u16)) -> Option<&Backend> {
        let at = |one: &Backend| (one.address, one.l4_port);
        let place = self.backends.binary_search_by_key(&(address, l4_port), at).ok()?;
        self.backends.get(place)
    }

    /// The backend for a flow with this hash.
    #[must_use]
    pub fn choose(&self, hash: u64) -> Option<&Backend> {
        self.backends.get(self.place(hash)?)
    }

    /// Its place among [`Self::backends`].
    #[inline(always)]
    #[must_use]
    pub fn place(&self, hash: u64) -> Option<usize> {
        match self.maglev.len() {
            0 => Some(0),
            _ => self.maglev.get(self.slot(hash)?).map(|place| usize::from(*place)),
        }
    }

    /// The slot of a flow with this hash; `None` where there is nothing to choose.
    #[must_use]
    pub fn slot(&self, hash: u64) -> Option<usize> {
        let slots = self.maglev.len();
        // Multiply-shift maps the upper 32 bits onto the slots without a division.
        let slot = ((hash >> 32) * slots as u64) >> 32;
        usize::try_from(slot).ok().filter(|_| slots > 0)
    }
}

/// One service port.
#[derive(Debug, Clone)]
pub struct Service {
    /// `namespace/name:port`, for people.
    pub name: Arc<str>,
    /// All usable backends.
    pub cluster: Arc<BackendSet>,
    /// The usable backends of this node.
    pub local: Arc<BackendSet>,
    /// Others that still serve, ordered by address and port: they get no new flows, and keep those
    /// that they have.
    pub lingering: Box<[Backend]>,
    /// For clients inside the cluster.
    pub internal_policy: TrafficPolicy,
    /// For clients outside, reaching an external frontend.
    pub external_policy: TrafficPolicy,
    /// `loadBalancerSourceRanges`; empty admits everybody. For load balancer frontends.
    pub source_ranges: Box<[Prefix]>,
    /// How the backend of a new flow is chosen.
    pub choice: Choice,
    /// Whether a client's flows go to one backend.
    pub affinity: Option<Affinity>,
    /// Whether its backends, which are all of one family, are of another than its frontends: then
    /// connections are translated ([`crate::nat64`]).
    pub changes_family: bool,
    /// Whether backends on other nodes answer clients from outside themselves ([`crate::direct`]).
    pub direct: bool,
    /// Whether packets that are dispatched to them leave no flow ([`crate::direct::stateless`]): only
    /// where `direct` is set and the choice goes by the hash of the tuple alone.
    pub stateless: bool,
}

impl Service {
    /// One of this name with the same backends for everybody: no source ranges, no affinity, chosen by
    /// Maglev.
    #[must_use]
    pub fn of_set(name: impl Into<Arc<str>>, set: Arc<BackendSet>) -> Self {
        Self {
            name: name.into(),
            cluster: Arc::clone(&set),
            local: set,
            lingering: Box::default(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            source_ranges: Box::default(),
            choice: Choice::default(),
            affinity: None,
            changes_family: false,
            direct: false,
            stateless: false,
        }
    }

    /// Whether any new flow may get a backend.
    #[must_use]
    pub fn has_backends(&self) -> bool {
        !self.cluster.backends.is_empty() || !self.local.backends.is_empty()
    }

    /// Whether this address and L4 port is one of its backends, be it one that gets no new flows.
    #[must_use]
    pub fn serves_by(&self, backend: (IpAddr, u16)) -> bool {
        let at = |one: &Backend| (one.address, one.l4_port);
        self.cluster.find(backend).or_else(|| self.local.find(backend)).is_some()
            || self.lingering.binary_search_by_key(&backend, at).is_ok()
    }

    /// The backend at this address that a flow with this hash goes to. Several there are told apart by the
    /// hash where nothing but that decides; else the first is meant.
    #[must_use]
    pub fn backend_at(&self, address: IpAddr, hash: u64) -> Option<(IpAddr, u16)> {
        let is_there = |one: &&Backend| one.address == address;
        let chosen = self.cluster.choose(hash).filter(is_there);
        let all = self.cluster.backends.iter().chain(&self.local.backends).chain(&self.lingering);
        let backend = chosen.or_else(|| all.into_iter().find(is_there));
        backend.map(|one| (one.address, one.l4_port))
    }
}

/// How a packet came to the service, which decides policy and source ranges. Of several services that have
/// one frontend the first in this order keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs`: whoever may make a Service can write any address there.
    ExternalIp,
    /// A node port on one of the node's addresses.
    NodePort,
    /// A pod's `hostPort` on one of the node's addresses.
    HostPort,
}

impl FrontendKind {
    /// Whether clients from outside have it from the Service.
    #[must_use]
    pub fn is_external(self) -> bool {
        matches!(self, Self::ExternalIp | Self::LoadBalancer | Self::NodePort)
    }
}

/// All services in force.
#[derive(Debug, Clone, Default)]
pub struct ServiceTable {
    /// Exact frontends.
    pub frontends: SharedMap<Frontend, (ServiceId, FrontendKind)>,
    /// L4 ports of frontends on the node's own addresses, for who has to be told of them. Each is in
    /// `frontends` too, once for each of the addresses that serve it: packets are matched there alone.
    pub node_ports: SharedMap<(Protocol, u16), ServiceId>,
    /// Addresses that some frontend uses and that are services' alone, no node's: all that is sent to
    /// them is led here, and what no frontend is for is dropped
    /// ([`crate::DropReason::NoServicePort`]), never routed.
    pub addresses: AddressSet,
    /// Those of them that no service has for a ClusterIP. Behind one may be a machine outside: what pods
    /// and host processes send it on other ports goes on as to anybody.
    pub external: AddressSet,
    /// L4 ports of endpoints in this node's own network, whether or not new flows go there. What is led
    /// here are these and some of before ([`crate::tables::Tables::host_backends`]).
    pub host_backends: hashbrown::HashSet<(Protocol, u16)>,
    /// By number.
    pub services: SharedMap<ServiceId, Arc<Service>>,
    /// Whether any of them changes the family of its connections.
    pub change_family: bool,
    /// Whether any of them has session affinity.
    pub have_affinity: bool,
    /// Whether any of them has direct return.
    pub have_direct: bool,
    /// Whether any of them keeps no flows.
    pub have_stateless: bool,
    /// Whether any of them chooses by the number of connections.
    pub have_least_connections: bool,
}

/// Ranges that services have addresses in, at most: each packet that opens a flow to no service's address
/// is held against all of them. A cluster has one of each family, and seldom more.
pub const SERVICE_RANGES_MAX: usize = 16;

/// Where services' addresses are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRanges {
    /// Ranges that nobody else has addresses in, at most [`SERVICE_RANGES_MAX`]: a packet to one that no
    /// service has is dropped ([`crate::DropReason::NoService`]), never routed.
    pub whole: Box<[Prefix]>,
    /// Services' addresses outside of them, for who has to be told of each.
    pub apart: AddressSet,
}

impl ServiceRanges {
    /// Of these ranges and services' `addresses`.
    #[must_use]
    pub fn new(whole: Box<[Prefix]>, addresses: &AddressSet) -> Self {
        if whole.is_empty() {
            return Self { whole, apart: addresses.clone() };
        }
        let is_apart = |address: &IpAddr| !whole.iter().any(|range| range.contains(*address));
        let apart = addresses.keys().filter(is_apart).collect();
        Self { whole, apart }
    }
}

impl ServiceTable {
    /// The service that `key` addresses, and how.
    #[must_use]
    pub fn frontend(&self, key: &FlowKey) -> Option<(ServiceId, FrontendKind)> {
        let at = Frontend {
            address: key.destination(),
            protocol: key.protocol(),
            l4_port: key.destination_port(),
        };
        self.frontends.get(&at).copied()
    }

    /// The service by id.
    #[must_use]
    pub fn get(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }
}
