//! Services as they are to be, before they are numbered. Drafting looks and changes nothing, so that
//! several threads draft where a whole cluster's services come at once: the tables of their backends
//! are most of the work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use dataplane::address::Protocol;
use dataplane::lb::{Affinity, Choice, Frontend, FrontendKind, Service};
use dataplane::time::Seconds;

use super::NodeView;
use super::claims::Claims;
use super::endpoints::Endpoints;
use super::maglev;
use super::naming::fnv;
use super::services::{Key, Services};
use super::warnings::Warning;
use super::weights::Weights;
use crate::model::{self, EndpointSlice, LOAD_BALANCING, ObjectName, ServicePort};
use crate::store::ClusterState;

/// Services that a thread takes at once.
const TAKEN_AT_ONCE: usize = 64;

/// A service as it is to be; without ports where it is gone, or headless.
pub(super) struct Draft {
    pub(super) name: ObjectName,
    pub(super) ports: Vec<PortDraft>,
    pub(super) has_endpoint_without_node: bool,
    pub(super) told: BTreeSet<Warning>,
}

/// One port of it in one family.
pub(super) struct PortDraft {
    /// Which of the service's ports it is.
    pub(super) place: usize,
    pub(super) key: Key,
    pub(super) frontends: BTreeMap<Frontend, FrontendKind>,
    /// With sets of backends that may be others' as well.
    pub(super) service: Service,
}

/// Services that are to be drafted, by whoever has time.
pub(super) struct Drafting<'a> {
    names: Vec<&'a ObjectName>,
    next: AtomicUsize,
    services: &'a Services,
    state: &'a ClusterState,
    node: &'a NodeView,
    weights: &'a Weights,
    claims: &'a Claims,
}

/// What one thread has drafted, each piece with the place of its first.
pub(super) type Drafted = Vec<(usize, Vec<Draft>)>;

impl<'a> Drafting<'a> {
    pub(super) fn new(
        names: impl IntoIterator<Item = &'a ObjectName>,
        services: &'a Services,
        (state, node): (&'a ClusterState, &'a NodeView),
        (weights, claims): (&'a Weights, &'a Claims),
    ) -> Self {
        let names = names.into_iter().collect();
        Self { names, next: AtomicUsize::new(0), services, state, node, weights, claims }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Drafts until nothing is left to be taken.
    pub(super) fn work(&self) -> Drafted {
        let mut drafted = Drafted::new();
        loop {
            let first = self.next.fetch_add(TAKEN_AT_ONCE, Ordering::Relaxed);
            let Some(rest) = self.names.get(first..).filter(|rest| !rest.is_empty()) else {
                return drafted;
            };
            let taken = &rest[..rest.len().min(TAKEN_AT_ONCE)];
            drafted.push((first, taken.iter().map(|name| self.draft(name)).collect()));
        }
    }

    fn draft(&self, name: &ObjectName) -> Draft {
        let mut draft = Draft {
            name: name.clone(),
            ports: Vec::new(),
            has_endpoint_without_node: false,
            told: BTreeSet::new(),
        };
        let service = self.state.services.get(name).filter(|service| !service.headless);
        let Some(service) = service else { return draft };
        let slices: Vec<&EndpointSlice> = self.services.slices_of(name, self.state).collect();
        let mut endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        draft.has_endpoint_without_node = endpoints.any(|endpoint| endpoint.node.is_none());
        warn(service, self.node, !slices.is_empty(), &mut draft.told);
        for (place, port) in service.ports.iter().enumerate() {
            if !matches!(port.protocol, Protocol::TCP | Protocol::UDP) {
                continue;
            }
            for ipv4 in [true, false] {
                let frontends = frontends(service, port, self.node, ipv4);
                if frontends.is_empty() {
                    continue;
                }
                let key = Key::new(name, port, ipv4);
                let told = &mut draft.told;
                let endpoints = Endpoints::serving(service, &slices, port, ipv4, self.node, told);
                let service = self.of_port(service, port, &endpoints, told);
                draft.ports.push(PortDraft { place, key, frontends, service });
            }
        }
        draft
    }

    fn of_port(
        &self,
        service: &model::Service,
        port: &ServicePort,
        endpoints: &Endpoints<'_>,
        warnings: &mut BTreeSet<Warning>,
    ) -> Service {
        let mut cluster = endpoints.usable(false);
        let mut local = endpoints.usable(true);
        let count = cluster.len();
        if count > maglev::BACKENDS_MAX {
            cluster.truncate(maglev::BACKENDS_MAX);
            local.truncate(maglev::BACKENDS_MAX);
            let max = maglev::BACKENDS_MAX;
            let message = format!("has {count} endpoints; only the first {max} are used");
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        for backend in cluster.iter_mut().chain(&mut local) {
            backend.weight = self.weights.of(backend.address, self.claims, self.state);
        }
        let label = if port.name.is_empty() { port.l4_port.to_string() } else { port.name.clone() };
        let sets = self.services.sets();
        let lingering = endpoints.lingering([&cluster, &local]);
        let name = format!("{}:{label}", service.name);
        let affinity = service.affinity_seconds.map(|seconds| Affinity {
            service: fnv(format!("{name} {}", port.protocol).as_bytes()),
            timeout: Seconds(seconds),
        });
        Service {
            name: name.into(),
            cluster: sets.known_or_new(cluster),
            local: sets.known_or_new(local),
            lingering,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            // All of them in both families: ranges of one family alone keep the other out.
            source_ranges: service.source_ranges.clone().into(),
            choice: service.choice.unwrap_or_default(),
            affinity,
            changes_family: endpoints.changes_family,
        }
    }
}

/// The drafts of several threads, in the order of the services.
pub(super) fn in_order(drafted: impl IntoIterator<Item = Drafted>) -> Vec<Draft> {
    let mut pieces: Drafted = drafted.into_iter().flatten().collect();
    pieces.sort_unstable_by_key(|(first, _)| *first);
    pieces.into_iter().flat_map(|(_, drafts)| drafts).collect()
}

fn warn(
    service: &model::Service,
    node: &NodeView,
    has_slices: bool,
    warnings: &mut BTreeSet<Warning>,
) {
    let mut warn = |message: String| {
        warnings.insert(Warning::new(format!("Service {}", service.name), message));
    };
    if service.cluster_ips.is_empty() {
        warn("has no cluster address yet; without an API server, set spec.clusterIP".into());
    }
    if !has_slices {
        warn("has no EndpointSlice labelled kubernetes.io/service-name with its name".into());
    }
    if service.choice.is_none() {
        warn(format!(
            "annotation {LOAD_BALANCING} is neither maglev nor random; it counts as maglev"
        ));
    }
    if service.affinity_seconds.is_some() && service.choice == Some(Choice::Random) {
        warn(format!(
            "annotation {LOAD_BALANCING} says random, and spec.sessionAffinity ClientIP; a client's \
             address decides"
        ));
    }
    for field in &service.not_obeyed {
        warn(format!("{field} is not obeyed"));
    }
    for port in &service.ports {
        if !matches!(port.protocol, Protocol::TCP | Protocol::UDP) {
            warn(format!("port {}/{} is left out: only TCP and UDP", port.l4_port, port.protocol));
        }
        if let Some(l4_port) = port.node_port.filter(|port| !node.node_port_range.contains(port)) {
            let range = &node.node_port_range;
            let (first, last) = (range.start(), range.end());
            warn(format!(
                "node port {l4_port} is outside cluster.node_port_range ({first}-{last}), so it \
                 is not served"
            ));
        }
    }
}

/// Where one port listens in one family. A frontend that is listed twice has the later kind: the
/// more particular, which is the one with source ranges.
fn frontends(
    service: &model::Service,
    port: &ServicePort,
    node: &NodeView,
    ipv4: bool,
) -> BTreeMap<Frontend, FrontendKind> {
    let mut frontends = BTreeMap::new();
    let mut listen = |addresses: &mut dyn Iterator<Item = &IpAddr>, l4_port, kind| {
        for address in addresses.filter(|address| address.is_ipv4() == ipv4) {
            let frontend = Frontend { address: *address, protocol: port.protocol, l4_port };
            frontends.insert(frontend, kind);
        }
    };
    listen(&mut service.cluster_ips.iter(), port.l4_port, FrontendKind::ClusterIp);
    listen(&mut service.external_ips.iter(), port.l4_port, FrontendKind::ExternalIp);
    listen(&mut service.load_balancer_ips.iter(), port.l4_port, FrontendKind::LoadBalancer);
    // Node ports belong to the families the service has addresses of.
    let family = service.cluster_ips.iter().any(|address| address.is_ipv4() == ipv4);
    let served = port.node_port.filter(|l4_port| node.node_port_range.contains(l4_port));
    if let Some(l4_port) = served.filter(|_| family || service.cluster_ips.is_empty()) {
        listen(&mut node.node_port_addresses.iter(), l4_port, FrontendKind::NodePort);
    }
    frontends
}
