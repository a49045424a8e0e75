//! Services and EndpointSlices to frontends and backend sets.
//!
//! Readiness is kube-proxy's: an endpoint that does not say is ready; terminating ones are used
//! while they still serve and no ready one is left, which is decided for all backends and for the
//! node's own separately. A service of two families is two entries, each with the endpoints of its
//! own family, or those of the other where its slices name none: then connections are translated
//! ([`dataplane::nat64`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{
    Backend, BackendSet, Frontend, FrontendKind, Service, ServiceId, ServiceTable, TrafficPolicy,
};
use hashbrown::HashMap;

use super::{NodeView, Warning, maglev};
use crate::model::{self, Endpoint, EndpointSlice, ObjectName, ServicePort};
use crate::store::ClusterState;

/// What one [`ServiceId`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    service: ObjectName,
    port: String,
    protocol: Protocol,
    ipv4: bool,
}

/// Which number each service has.
#[derive(Debug, Clone, Default)]
pub struct Services {
    ids: BTreeMap<Key, ServiceId>,
}

/// Compiles the service table.
pub(super) fn compile(
    state: &ClusterState,
    node: &NodeView,
    (old, previous): (&Arc<ServiceTable>, &Services),
    warnings: &mut BTreeSet<Warning>,
) -> (Arc<ServiceTable>, Services) {
    let mut slices: BTreeMap<ObjectName, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in state.endpoint_slices.values() {
        let Some(service) = &slice.service else { continue };
        let name = ObjectName::new(slice.name.namespace.clone(), service.clone());
        slices.entry(name).or_default().push(slice);
    }
    let mut sets = Sets::of(old);
    let mut drafts = BTreeMap::new();
    let mut listeners = Listeners::default();
    for service in state.services.values().filter(|service| !service.headless) {
        warn(service, node, slices.contains_key(&service.name), warnings);
        let slices = slices.get(&service.name).map_or(&[][..], Vec::as_slice);
        for port in &service.ports {
            if !matches!(port.protocol, Protocol::TCP | Protocol::UDP) {
                continue;
            }
            for ipv4 in [true, false] {
                let frontends = frontends(service, port, node, ipv4);
                if frontends.is_empty() {
                    continue;
                }
                let key = Key {
                    service: service.name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    ipv4,
                };
                listeners.add(&key, frontends, node, warnings);
                let endpoints = Endpoints::serving(service, slices, port, ipv4, node, warnings);
                drafts.insert(key, draft(service, port, &endpoints, &mut sets, warnings));
            }
        }
    }
    let memory = Services { ids: number(drafts.keys(), previous) };
    let table = assemble(drafts, listeners, node, (old, &memory));
    if same(&table, old) { (Arc::clone(old), memory) } else { (Arc::new(table), memory) }
}

fn warn(
    service: &model::Service,
    node: &NodeView,
    has_slices: bool,
    warnings: &mut BTreeSet<Warning>,
) {
    let mut warn = |message: String| {
        warnings.insert(Warning { object: format!("Service {}", service.name), message });
    };
    if service.cluster_ips.is_empty() {
        warn("has no cluster address yet; without an API server, set spec.clusterIP".into());
    }
    if !has_slices {
        warn("has no EndpointSlice labelled kubernetes.io/service-name with its name".into());
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

/// Who listens where.
#[derive(Default)]
struct Listeners {
    frontends: BTreeMap<Frontend, (Key, FrontendKind)>,
    node_ports: BTreeMap<(Protocol, u16), Key>,
    addresses: BTreeSet<IpAddr>,
}

impl Listeners {
    fn add(
        &mut self,
        key: &Key,
        frontends: BTreeMap<Frontend, FrontendKind>,
        node: &NodeView,
        warnings: &mut BTreeSet<Warning>,
    ) {
        for (frontend, kind) in frontends {
            let Frontend { address, protocol, l4_port } = frontend;
            // A node's address that a service uses as an external one is still the node's.
            if kind != FrontendKind::NodePort && !node.addresses.contains(&address) {
                self.addresses.insert(address);
            }
            if kind == FrontendKind::NodePort {
                self.node_ports.entry((protocol, l4_port)).or_insert_with(|| key.clone());
            }
            let holder = self.frontends.entry(frontend).or_insert_with(|| (key.clone(), kind));
            if holder.0 != *key {
                let message = format!(
                    "listens on {address} port {l4_port}/{protocol}, where {} listens already; \
                     {} keeps it",
                    holder.0.service, holder.0.service,
                );
                warnings.insert(Warning { object: format!("Service {}", key.service), message });
            }
        }
    }
}

/// The endpoints of one service port in one family, by what they are.
struct Endpoints {
    all: BTreeMap<(IpAddr, u16), (Endpoint, bool)>,
    /// Whether they are of another family than the frontends.
    changes_family: bool,
}

impl Endpoints {
    /// Those of the family, ready or not, or else those of the other one. The node itself cannot be
    /// among these: what is sent to it would come from its own address.
    fn serving(
        service: &model::Service,
        slices: &[&EndpointSlice],
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
            warnings.insert(Warning { object: format!("Service {}", service.name), message });
        }
        other.changes_family = !other.all.is_empty();
        other
    }

    fn gather(slices: &[&EndpointSlice], port: &ServicePort, ipv4: bool, node: &NodeView) -> Self {
        let mut all: BTreeMap<(IpAddr, u16), (Endpoint, bool)> = BTreeMap::new();
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
                let known = known.or_insert_with(|| (endpoint.clone(), local));
                // While an endpoint moves from one slice to another it may be in both.
                if endpoint.ready && !known.0.ready {
                    *known = (endpoint.clone(), local);
                }
            }
        }
        Self { all, changes_family: false }
    }

    /// The usable ones, ordered by address and L4 port: the ready, or else those that still serve.
    fn usable(&self, local_only: bool) -> Vec<Backend> {
        let pick = |wanted: fn(&Endpoint) -> bool| -> Vec<Backend> {
            self.all
                .iter()
                .filter(|(_, (endpoint, local))| (*local || !local_only) && wanted(endpoint))
                .map(|(&(address, l4_port), (_, local))| Backend {
                    address,
                    l4_port,
                    local: *local,
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

fn is_local(endpoint: &Endpoint, node: &NodeView) -> bool {
    match &endpoint.node {
        Some(name) => *name == node.name,
        None => {
            node.addresses.contains(&endpoint.address)
                || node.endpoints.values().any(|own| own.contains(&endpoint.address))
        }
    }
}

fn draft(
    service: &model::Service,
    port: &ServicePort,
    endpoints: &Endpoints,
    sets: &mut Sets,
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
        warnings.insert(Warning { object: format!("Service {}", service.name), message });
    }
    let label = if port.name.is_empty() { port.l4_port.to_string() } else { port.name.clone() };
    Service {
        name: format!("{}:{label}", service.name).into(),
        cluster: sets.share(cluster),
        local: sets.share(local),
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        // All of them in both families: ranges of one family alone keep the other out.
        source_ranges: service.source_ranges.clone().into(),
        changes_family: endpoints.changes_family,
    }
}

/// Backend sets by their backends, so that a Maglev table is built once for those that are equal,
/// in this compilation and the one before.
struct Sets {
    known: HashMap<Box<[Backend]>, Arc<BackendSet>>,
}

impl Sets {
    fn of(table: &ServiceTable) -> Self {
        let sets = table.services.iter().flat_map(|service| [&service.cluster, &service.local]);
        Self { known: sets.map(|set| (set.backends.clone(), Arc::clone(set))).collect() }
    }

    fn share(&mut self, backends: Vec<Backend>) -> Arc<BackendSet> {
        let backends = backends.into_boxed_slice();
        let set = self.known.entry(backends).or_insert_with_key(|backends| {
            Arc::new(BackendSet { backends: backends.clone(), maglev: maglev::build(backends) })
        });
        Arc::clone(set)
    }
}

/// Keeps the numbers of those that stay, and gives new ones the lowest that nobody had.
fn number<'a>(
    keys: impl Iterator<Item = &'a Key> + Clone,
    previous: &Services,
) -> BTreeMap<Key, ServiceId> {
    let taken: BTreeSet<u32> = previous.ids.values().map(|id| id.0).collect();
    let mut free = (0u32..).filter(|id| !taken.contains(id));
    keys.filter_map(|key| {
        let id = match previous.ids.get(key) {
            Some(id) => *id,
            None => ServiceId(free.next()?),
        };
        Some((key.clone(), id))
    })
    .collect()
}

fn assemble(
    drafts: BTreeMap<Key, Service>,
    listeners: Listeners,
    node: &NodeView,
    (old, memory): (&ServiceTable, &Services),
) -> ServiceTable {
    let mut by_id: BTreeMap<u32, Arc<Service>> = BTreeMap::new();
    let mut host_backends = hashbrown::HashSet::new();
    for (key, service) in drafts {
        // Local ones that are ending serve on while no other local one is left.
        let backends = service.cluster.backends.iter().chain(&service.local.backends);
        let on_host = backends.filter(|backend| node.addresses.contains(&backend.address));
        host_backends.extend(on_host.map(|backend| (key.protocol, backend.l4_port)));
        let Some(id) = memory.ids.get(&key) else { continue };
        let kept = old.get(*id).filter(|before| same_service(before, &service)).cloned();
        by_id.insert(id.0, kept.unwrap_or_else(|| Arc::new(service)));
    }
    let vacant = Arc::new(Service {
        name: "(removed)".into(),
        cluster: Arc::default(),
        local: Arc::default(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Box::default(),
        changes_family: false,
    });
    let end = by_id.last_key_value().map_or(0, |(id, _)| id + 1);
    let id_of = |key: &Key| memory.ids.get(key).copied();
    ServiceTable {
        frontends: listeners
            .frontends
            .iter()
            .filter_map(|(frontend, (key, kind))| Some((*frontend, (id_of(key)?, *kind))))
            .collect(),
        node_ports: listeners
            .node_ports
            .iter()
            .filter_map(|(port, key)| Some((*port, id_of(key)?)))
            .collect(),
        addresses: listeners.addresses.into_iter().collect(),
        host_backends,
        change_family: by_id.values().any(|service| service.changes_family),
        services: (0..end)
            .map(|id| by_id.get(&id).cloned().unwrap_or_else(|| Arc::clone(&vacant)))
            .collect(),
    }
}

fn same(one: &ServiceTable, other: &ServiceTable) -> bool {
    one.frontends == other.frontends
        && one.node_ports == other.node_ports
        && one.addresses == other.addresses
        && one.host_backends == other.host_backends
        && one.services.len() == other.services.len()
        && one
            .services
            .iter()
            .zip(&other.services)
            .all(|(one, other)| Arc::ptr_eq(one, other) || same_service(one, other))
}

fn same_service(one: &Service, other: &Service) -> bool {
    one.name == other.name
        && one.cluster == other.cluster
        && one.local == other.local
        && one.internal_policy == other.internal_policy
        && one.external_policy == other.external_policy
        && one.source_ranges == other.source_ranges
        && one.changes_family == other.changes_family
}
