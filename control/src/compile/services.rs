//! Services and EndpointSlices to frontends and backend sets.
//!
//! A service of two families is two entries, each with the endpoints of its own family, or those of
//! the other where its slices name none: then connections are translated ([`dataplane::nat64`]).
//! A change compiles the services that it concerns, and what several claim is given to the first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{Frontend, FrontendKind, Service, ServiceId, ServiceTable};
use hashbrown::HashMap;

use super::NodeView;
use super::endpoints::{BackendSets, Endpoints};
use super::interner::Interner;
use super::listeners::{Listener, Listeners};
use super::maglev;
use super::warnings::{Source, Warning, Warnings};
use crate::model::{self, EndpointSlice, ObjectName, ServicePort};
use crate::store::ClusterState;

/// What one [`ServiceId`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    service: ObjectName,
    port: String,
    protocol: Protocol,
    ipv4: bool,
}

/// One port of a service in one family.
#[derive(Debug, Clone)]
struct Entry {
    id: ServiceId,
    service: Arc<Service>,
    /// Ports of backends on this node's own network.
    host_backends: BTreeSet<(Protocol, u16)>,
}

/// A service as compiled.
#[derive(Debug, Clone, Default)]
struct Entries {
    entries: Vec<Entry>,
    listening: BTreeSet<(Frontend, Listener)>,
}

/// The services in force, and which number each has.
#[derive(Debug, Clone)]
pub(super) struct Services {
    pub(super) table: Arc<ServiceTable>,
    ids: Interner<Key>,
    compiled: HashMap<ObjectName, Entries>,
    slices: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Services with endpoints that do not say on which node they are.
    without_node: BTreeSet<ObjectName>,
    sets: BackendSets,
    listeners: Listeners,
    host_backends: HashMap<(Protocol, u16), usize>,
    changing_family: usize,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            ids: Interner::starting_at(0),
            compiled: HashMap::new(),
            slices: HashMap::new(),
            without_node: BTreeSet::new(),
            sets: BackendSets::default(),
            listeners: Listeners::default(),
            host_backends: HashMap::new(),
            changing_family: 0,
        }
    }
}

impl Services {
    /// Notes which service a slice is of, and was; gives these.
    pub(super) fn note_slice(
        &mut self,
        slice: &ObjectName,
        before: Option<&EndpointSlice>,
        after: Option<&EndpointSlice>,
    ) -> [Option<ObjectName>; 2] {
        let (before, after) = (before.and_then(service_of), after.and_then(service_of));
        if let Some(service) = &before
            && let Some(slices) = self.slices.get_mut(service)
        {
            slices.remove(slice);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        if let Some(service) = &after {
            self.slices.entry(service.clone()).or_default().insert(slice.clone());
        }
        [before, after]
    }

    /// Services whose backends depend on which endpoints the node has.
    pub(super) fn without_node(&self) -> &BTreeSet<ObjectName> {
        &self.without_node
    }

    /// Compiles the services of these names, as they are now.
    pub(super) fn follow(
        &mut self,
        changed: &BTreeSet<ObjectName>,
        state: &ClusterState,
        node: &NodeView,
        warnings: &mut Warnings,
    ) {
        let mut touched = BTreeSet::new();
        for name in changed {
            let mut told = BTreeSet::new();
            let entries = self.compile(name, state, node, &mut told);
            warnings.set(Source::Service(name.clone()), told);
            self.replace(name, entries, &mut touched);
        }
        for frontend in touched {
            self.listeners.settle(&frontend, &mut self.table, warnings);
        }
        let change_family = self.changing_family > 0;
        if self.table.change_family != change_family {
            Arc::make_mut(&mut self.table).change_family = change_family;
        }
    }

    fn compile(
        &mut self,
        name: &ObjectName,
        state: &ClusterState,
        node: &NodeView,
        warnings: &mut BTreeSet<Warning>,
    ) -> Entries {
        self.without_node.remove(name);
        let Some(service) = state.services.get(name).filter(|service| !service.headless) else {
            return Entries::default();
        };
        let slices: Vec<&EndpointSlice> = self
            .slices
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|slice| state.endpoint_slices.get(slice))
            .collect();
        if slices.iter().any(|slice| slice.endpoints.iter().any(|one| one.node.is_none())) {
            self.without_node.insert(name.clone());
        }
        warn(service, node, !slices.is_empty(), warnings);
        let mut drafts: BTreeMap<Key, Service> = BTreeMap::new();
        let mut frontends_of = Vec::new();
        for (place, port) in service.ports.iter().enumerate() {
            if !matches!(port.protocol, Protocol::TCP | Protocol::UDP) {
                continue;
            }
            for ipv4 in [true, false] {
                let frontends = frontends(service, port, node, ipv4);
                if frontends.is_empty() {
                    continue;
                }
                let key = Key {
                    service: name.clone(),
                    port: port.name.clone(),
                    protocol: port.protocol,
                    ipv4,
                };
                let endpoints = Endpoints::serving(service, &slices, port, ipv4, node, warnings);
                let draft = draft(service, port, &endpoints, &mut self.sets, warnings);
                if let Some(other) = drafts.insert(key.clone(), draft) {
                    self.release_sets(&other);
                }
                frontends_of.push((place, key, frontends));
            }
        }
        self.numbered(name, drafts, frontends_of, node)
    }

    fn numbered(
        &mut self,
        name: &ObjectName,
        drafts: BTreeMap<Key, Service>,
        frontends_of: Vec<(usize, Key, BTreeMap<Frontend, FrontendKind>)>,
        node: &NodeView,
    ) -> Entries {
        let mut entries = Entries::default();
        for (key, service) in drafts {
            let protocol = key.protocol;
            // Local ones that are ending serve on while no other local one is left.
            let backends = service.cluster.backends.iter().chain(&service.local.backends);
            let on_host = backends.filter(|backend| node.addresses.contains(&backend.address));
            let host_backends = on_host.map(|backend| (protocol, backend.l4_port)).collect();
            let (id, _) = self.ids.acquire(key);
            let id = ServiceId(id);
            let known = self.table.services.get(&id).filter(|known| same_service(known, &service));
            let service = known.cloned().unwrap_or_else(|| Arc::new(service));
            entries.entries.push(Entry { id, service, host_backends });
        }
        for (place, key, frontends) in frontends_of {
            let Some(id) = self.ids.get(&key) else { continue };
            for (frontend, kind) in frontends {
                // A node's address that a service uses as an external one is still the node's.
                let is_services =
                    kind != FrontendKind::NodePort && !node.addresses.contains(&frontend.address);
                let listener =
                    Listener { service: name.clone(), place, id: ServiceId(id), kind, is_services };
                entries.listening.insert((frontend, listener));
            }
        }
        entries
    }

    /// Puts the service's new entries in the place of the old ones.
    fn replace(&mut self, name: &ObjectName, new: Entries, touched: &mut BTreeSet<Frontend>) {
        let old = self.compiled.remove(name).unwrap_or_default();
        for (frontend, listener) in new.listening.difference(&old.listening) {
            self.listeners.add(*frontend, listener.clone());
            touched.insert(*frontend);
        }
        for (frontend, listener) in old.listening.difference(&new.listening) {
            self.listeners.remove(frontend, listener);
            touched.insert(*frontend);
        }
        for entry in &new.entries {
            self.changing_family += usize::from(entry.service.changes_family);
            for at in &entry.host_backends {
                let users = self.host_backends.entry(*at).or_default();
                *users += 1;
                if *users == 1 {
                    Arc::make_mut(&mut self.table).host_backends.insert(*at);
                }
            }
            let known = self.table.services.get(&entry.id);
            if known.is_none_or(|known| !Arc::ptr_eq(known, &entry.service)) {
                let table = Arc::make_mut(&mut self.table);
                table.services.insert(entry.id, Arc::clone(&entry.service));
            }
        }
        for entry in &old.entries {
            self.let_go(entry);
        }
        if !new.entries.is_empty() {
            self.compiled.insert(name.clone(), new);
        }
    }

    fn let_go(&mut self, entry: &Entry) {
        self.changing_family -= usize::from(entry.service.changes_family);
        for at in &entry.host_backends {
            if let Some(users) = self.host_backends.get_mut(at) {
                *users -= 1;
                if *users == 0 {
                    self.host_backends.remove(at);
                    Arc::make_mut(&mut self.table).host_backends.remove(at);
                }
            }
        }
        self.release_sets(&entry.service);
        if self.ids.release(entry.id.0).is_some() {
            Arc::make_mut(&mut self.table).services.remove(&entry.id);
        }
    }

    fn release_sets(&mut self, service: &Service) {
        self.sets.release(&service.cluster);
        self.sets.release(&service.local);
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.service.as_deref()?;
    Some(ObjectName::new(Arc::clone(&slice.name.namespace), service))
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

fn draft(
    service: &model::Service,
    port: &ServicePort,
    endpoints: &Endpoints,
    sets: &mut BackendSets,
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
    let label = if port.name.is_empty() { port.l4_port.to_string() } else { port.name.clone() };
    Service {
        name: format!("{}:{label}", service.name).into(),
        cluster: sets.acquire(cluster),
        local: sets.acquire(local),
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        // All of them in both families: ranges of one family alone keep the other out.
        source_ranges: service.source_ranges.clone().into(),
        changes_family: endpoints.changes_family,
    }
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
