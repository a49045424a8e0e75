//! Which endpoints of a service are used as backends, and one Maglev table for each set of them.
//!
//! The choice is kube-proxy's (`CategorizeEndpoints`): an endpoint that does not say is ready;
//! terminating ones are used while they still serve and no ready one is left, which is decided for all
//! backends and for the node's own separately. Hints narrow all of them to those for this node, or
//! else to those for its zone, where every ready endpoint has such a hint and any of them is for here;
//! to the node's own they say nothing.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{Backend, BackendSet};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::NodeView;
use super::maglev;
use super::warnings::Warning;
use crate::model::{self, Endpoint, EndpointSlice, Hints, ServicePort, WEIGHT_DEFAULT};
use crate::store::ClusterState;

/// The endpoints of one service port in one family, by what they are.
pub(super) struct Endpoints<'a> {
    pub(super) all: BTreeMap<(IpAddr, u16), (&'a Endpoint, bool)>,
    /// Whether they are of another family than the frontends.
    pub(super) changes_family: bool,
    /// The first that is listed more than once, and how many listings are too many.
    again: Option<(IpAddr, usize)>,
}

impl<'a> Endpoints<'a> {
    /// Those of the family, ready or not, or else those of the other one. The node itself cannot be
    /// among these: what is sent to it would come from its own address.
    pub(super) fn serving(
        service: &model::Service,
        slices: &[&'a EndpointSlice],
        port: &ServicePort,
        ipv4: bool,
        node: &NodeView,
        warnings: &mut BTreeSet<Warning>,
    ) -> Self {
        let own = Self::gather(slices, port, ipv4, node);
        if let Some((address, times)) = own.again {
            let more = if times > 1 { format!(" and {} more", times - 1) } else { String::new() };
            let message = format!(
                "endpoint {address}{more} is listed again by its EndpointSlices; each counts once"
            );
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        // SCTP is not translated between families.
        if !own.all.is_empty() || port.protocol == Protocol::SCTP {
            return own;
        }
        let mut other = Self::gather(slices, port, !ipv4, node);
        let found = other.all.len();
        other.all.retain(|(address, _), _| !node.addresses.contains(address));
        if other.all.len() < found {
            let (family, of) = if ipv4 { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            let message = format!(
                "has {of} endpoints alone, and one is this node itself, which {family} clients \
                 cannot be translated to; give it an {family} endpoint"
            );
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        other.changes_family = !other.all.is_empty();
        other
    }

    fn gather(
        slices: &[&'a EndpointSlice],
        port: &ServicePort,
        ipv4: bool,
        node: &NodeView,
    ) -> Self {
        let mut all: BTreeMap<(IpAddr, u16), (&Endpoint, bool)> = BTreeMap::new();
        let mut again: Option<(IpAddr, usize)> = None;
        for slice in slices {
            let target = slice
                .ports
                .iter()
                .find(|target| target.name == port.name && target.protocol == port.protocol)
                .and_then(|target| target.l4_port);
            let Some(l4_port) = target else { continue };
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == ipv4) {
                let local = is_local(endpoint, node);
                let known = match all.entry((endpoint.address, l4_port)) {
                    btree_map::Entry::Vacant(entry) => {
                        entry.insert((endpoint, local));
                        continue;
                    }
                    btree_map::Entry::Occupied(known) => known.into_mut(),
                };
                again = Some(again.map_or((endpoint.address, 1), |(first, n)| (first, n + 1)));
                // While an endpoint moves from one slice to another it may be in both.
                if endpoint.ready && !known.0.ready {
                    *known = (endpoint, local);
                }
            }
        }
        Self { all, changes_family: false, again }
    }

    /// The usable ones of the whole cluster, ordered by address and L4 port: the ready that hints
    /// leave, or else those that still serve.
    pub(super) fn of_cluster(&self, topology: Topology<'_>) -> Vec<Backend> {
        self.ready_or_ending(|endpoint, _| topology.takes(endpoint), |_| true)
    }

    /// L4 ports of those in the node's own network, whatever they say of themselves: connections to them
    /// stay, and what answers these is led here.
    pub(super) fn in_host_network(&self, node: &NodeView) -> BTreeSet<u16> {
        let all = self.all.keys();
        let own = all.filter(|(address, _)| node.addresses.contains(address));
        own.map(|(_, l4_port)| *l4_port).collect()
    }

    /// The usable ones of this node.
    pub(super) fn of_node(&self) -> Vec<Backend> {
        self.ready_or_ending(|_, local| local, |local| local)
    }

    fn ready_or_ending(
        &self,
        takes_ready: impl Fn(&Endpoint, bool) -> bool,
        takes_ending: impl Fn(bool) -> bool,
    ) -> Vec<Backend> {
        let pick = |takes: &dyn Fn(&Endpoint, bool) -> bool| -> Vec<Backend> {
            let all = self.all.iter().filter(|(_, (endpoint, local))| takes(endpoint, *local));
            let backend = |address, l4_port, local| Backend {
                address,
                l4_port,
                local,
                weight: WEIGHT_DEFAULT,
            };
            all.map(|(&(address, l4_port), &(_, local))| backend(address, l4_port, local)).collect()
        };
        let ready = pick(&|endpoint, local| endpoint.ready && takes_ready(endpoint, local));
        if !ready.is_empty() {
            return ready;
        }
        pick(&|endpoint, local| is_ending(endpoint) && takes_ending(local))
    }

    /// What hints narrow the ready ones to as seen from `here`, and why they narrow to nothing where
    /// all of them have hints.
    pub(super) fn topology<'b>(&self, here: Here<'b>) -> (Topology<'b>, Option<String>) {
        let none = Hints::default();
        let ready = || self.all.values().filter(|(endpoint, _)| endpoint.ready);
        let hints = || ready().map(|(endpoint, _)| endpoint.hints.as_deref().unwrap_or(&none));
        if ready().next().is_none() {
            return (Topology::Anywhere, None);
        }
        let mut why = None;
        if hints().all(|hints| !hints.nodes.is_empty()) {
            let node = Topology::Node(here.node);
            if hints().any(|hints| node.is_meant(hints)) {
                return (node, None);
            }
            why = Some(format!("hints name no endpoint for this node ({})", here.node));
        }
        if hints().all(|hints| !hints.zones.is_empty()) {
            let Some(name) = here.zone else {
                let text = "the Node of this name has no label topology.kubernetes.io/zone";
                return (Topology::Anywhere, Some(text.into()));
            };
            let zone = Topology::Zone(name);
            if hints().any(|hints| zone.is_meant(hints)) {
                return (zone, None);
            }
            why = Some(format!("hints name no endpoint for this zone ({name})"));
        }
        (Topology::Anywhere, why)
    }
}

/// Where this node is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Here<'a> {
    node: &'a str,
    zone: Option<&'a str>,
}

impl<'a> Here<'a> {
    pub(super) fn of(node: &'a NodeView, state: &'a ClusterState) -> Self {
        let object = state.nodes.get(&node.name);
        Self { node: &node.name, zone: object.and_then(|node| node.zone.as_deref()) }
    }
}

/// Which of the ready endpoints are used, whichever node they are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topology<'a> {
    /// All.
    Anywhere,
    /// Those that are hinted for this node.
    Node(&'a str),
    /// Those that are hinted for this zone.
    Zone(&'a str),
}

impl fmt::Display for Topology<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anywhere => f.write_str("every ready endpoint"),
            Self::Node(name) => write!(f, "ready endpoints hinted for this node ({name})"),
            Self::Zone(name) => write!(f, "ready endpoints hinted for this zone ({name})"),
        }
    }
}

impl Endpoints<'_> {
    /// Those that serve and are in none of these sets, ordered by address and L4 port: what flows
    /// to them is left there.
    pub(super) fn lingering(&self, sets: [&[Backend]; 2]) -> Box<[Backend]> {
        let serving = self.all.iter().filter(|(_, (endpoint, _))| endpoint.serving);
        serving
            .filter(|((address, l4_port), _)| {
                let at = (*address, *l4_port);
                let has = |set: &[Backend]| {
                    set.binary_search_by_key(&at, |one| (one.address, one.l4_port)).is_ok()
                };
                !sets.into_iter().any(has)
            })
            .map(|(&(address, l4_port), &(_, local))| Backend {
                address,
                l4_port,
                local,
                weight: WEIGHT_DEFAULT,
            })
            .collect()
    }
}

impl Topology<'_> {
    pub(super) fn takes(self, endpoint: &Endpoint) -> bool {
        self == Self::Anywhere || endpoint.hints.as_ref().is_some_and(|hints| self.is_meant(hints))
    }

    fn is_meant(self, hints: &Hints) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Node(name) => hints.nodes.iter().any(|node| **node == *name),
            Self::Zone(name) => hints.zones.iter().any(|zone| **zone == *name),
        }
    }
}

/// Whether it serves on although it is about to go.
pub(super) fn is_ending(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Whether it is on this node. One that does not say where it is is nowhere, whosever its address is, as
/// kube-proxy has it: else a Local policy would admit clients that other nodes would not send here.
pub(super) fn is_local(endpoint: &Endpoint, node: &NodeView) -> bool {
    endpoint.node.as_deref() == Some(&*node.name)
}

/// A set by its backends.
#[derive(Debug, Clone)]
struct ByBackends(Arc<BackendSet>);

impl Borrow<[Backend]> for ByBackends {
    fn borrow(&self) -> &[Backend] {
        &self.0.backends
    }
}

impl PartialEq for ByBackends {
    fn eq(&self, other: &Self) -> bool {
        self.0.backends == other.0.backends
    }
}

impl Eq for ByBackends {}

impl Hash for ByBackends {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.backends.hash(state);
    }
}

/// The sets in force with the number of their users, so that a Maglev table is built once for those
/// that are equal, and not again while it is used.
#[derive(Debug, Clone, Default)]
pub(super) struct BackendSets {
    used: HashMap<ByBackends, usize>,
}

impl BackendSets {
    /// The set of these backends: the one in force, or a new one with its table.
    pub(super) fn known_or_new(&self, backends: Vec<Backend>) -> Arc<BackendSet> {
        if let Some((known, _)) = self.used.get_key_value(backends.as_slice()) {
            return Arc::clone(&known.0);
        }
        let backends = backends.into_boxed_slice();
        let maglev = maglev::build(&backends);
        Arc::new(BackendSet { backends, maglev })
    }

    /// One more user of `set`, or of the one in force that equals it.
    pub(super) fn acquire(&mut self, set: Arc<BackendSet>) -> Arc<BackendSet> {
        match self.used.entry(ByBackends(set)) {
            Entry::Occupied(mut known) => {
                *known.get_mut() += 1;
                Arc::clone(&known.key().0)
            }
            Entry::Vacant(entry) => {
                let set = Arc::clone(&entry.key().0);
                entry.insert(1);
                set
            }
        }
    }

    /// One user less.
    pub(super) fn release(&mut self, set: &Arc<BackendSet>) {
        let Some(users) = self.used.get_mut(&*set.backends) else { return };
        *users -= 1;
        if *users == 0 {
            self.used.remove(&*set.backends);
        }
    }
}
