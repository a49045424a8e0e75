//! Which endpoints of a service are used as backends, and one Maglev table for each set of them.
//!
//! Readiness is kube-proxy's: an endpoint that does not say is ready; terminating ones are used
//! while they still serve and no ready one is left, which is decided for all backends and for the
//! node's own separately.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::lb::{Backend, BackendSet};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::NodeView;
use super::maglev;
use super::warnings::Warning;
use crate::model::{self, Endpoint, EndpointSlice, ServicePort, WEIGHT_DEFAULT};

/// The endpoints of one service port in one family, by what they are.
pub(super) struct Endpoints<'a> {
    pub(super) all: BTreeMap<(IpAddr, u16), (&'a Endpoint, bool)>,
    /// Whether they are of another family than the frontends.
    pub(super) changes_family: bool,
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
        if !own.all.is_empty() {
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
        for slice in slices {
            let target = slice
                .ports
                .iter()
                .find(|target| target.name == port.name && target.protocol == port.protocol)
                .and_then(|target| target.l4_port);
            let Some(l4_port) = target else { continue };
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == ipv4) {
                let local = is_local(endpoint, node);
                let known = all.entry((endpoint.address, l4_port));
                let known = known.or_insert((endpoint, local));
                // While an endpoint moves from one slice to another it may be in both.
                if endpoint.ready && !known.0.ready {
                    *known = (endpoint, local);
                }
            }
        }
        Self { all, changes_family: false }
    }

    /// The usable ones, ordered by address and L4 port: the ready, or else those that still serve.
    pub(super) fn usable(&self, local_only: bool) -> Vec<Backend> {
        let pick = |wanted: fn(&Endpoint) -> bool| -> Vec<Backend> {
            self.all
                .iter()
                .filter(|(_, (endpoint, local))| (*local || !local_only) && wanted(endpoint))
                .map(|(&(address, l4_port), (_, local))| Backend {
                    address,
                    l4_port,
                    local: *local,
                    weight: WEIGHT_DEFAULT,
                })
                .collect()
        };
        let ready = pick(|endpoint| endpoint.ready);
        if ready.is_empty() {
            pick(|endpoint| endpoint.serving && endpoint.terminating)
        } else {
            ready
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

fn is_local(endpoint: &Endpoint, node: &NodeView) -> bool {
    match &endpoint.node {
        Some(name) => **name == *node.name,
        None => {
            node.addresses.contains(&endpoint.address)
                || node.endpoints.values().any(|own| own.contains(&endpoint.address))
        }
    }
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
