//! Services and EndpointSlices, and pods' host ports, to frontends and backend sets.
//!
//! A service of two families is two entries, each with the endpoints of its own family, or those of
//! the other where its slices name none: then connections are translated ([`dataplane::nat64`]).
//! A change compiles the services that it concerns, and what several claim is given to one
//! ([`super::listeners`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{Choice, Frontend, Service, ServiceId, ServiceTable};
use hashbrown::HashMap;

use super::NodeView;
use super::affected::AFFECTED_MAX;
use super::claims::{Claims, NodeAddresses};
use super::drafts::{Draft, Drafting, PortDraft};
use super::endpoints::BackendSets;
use super::health_checks::HealthCheck;
use super::interner::Interner;
use super::listeners::{Listener, Listeners, Whose};
use super::warnings::{Source, Told};
use super::weights::Weights;
use crate::model::{EndpointSlice, ObjectName};
use crate::store::ClusterState;

/// What services are drafted of.
#[derive(Clone, Copy)]
pub(super) struct DraftedOf<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) node: &'a NodeView,
    /// Those of all Node objects.
    pub(super) node_addresses: &'a NodeAddresses,
    /// What pods say.
    pub(super) weights: Weights,
    pub(super) claims: &'a Claims,
}

impl DraftedOf<'_> {
    /// Who has an address that a service or host port listens on.
    fn whose(&self, address: IpAddr) -> Whose {
        if self.node.addresses.contains(&address) {
            // A node's address that a service uses as an external one is still the node's.
            Whose::Ours
        } else if self.node_addresses.holder(address).is_some() {
            Whose::Nodes
        } else {
            Whose::Services
        }
    }
}

/// Whose frontends they are. Of several who want one, of one kind, the first has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Owner {
    Service(ObjectName),
    /// By its host ports.
    Pod(ObjectName),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
        }
    }
}

/// What one [`ServiceId`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    owner: Owner,
    /// The service port's name, or the host port's place among the pod's.
    port: String,
    protocol: Protocol,
    ipv4: bool,
}

impl Key {
    pub(super) fn new(owner: &Owner, port: &str, protocol: Protocol, ipv4: bool) -> Self {
        Self { owner: owner.clone(), port: port.to_owned(), protocol, ipv4 }
    }
}

/// One port of a service in one family.
#[derive(Debug, Clone)]
struct Entry {
    id: ServiceId,
    protocol: Protocol,
    service: Arc<Service>,
    /// L4 ports of endpoints in this node's own network.
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
    compiled: HashMap<Owner, Entries>,
    slices: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Services with endpoints that have hints.
    with_hints: BTreeSet<ObjectName>,
    sets: BackendSets,
    listeners: Listeners,
    host_backends: HashMap<(Protocol, u16), usize>,
    changing_family: usize,
    health_checks: Arc<BTreeMap<ObjectName, HealthCheck>>,
    with_affinity: usize,
    with_direct: usize,
    with_stateless: usize,
    with_least_connections: usize,
    /// Backends that UDP flows are no longer left at, and frontends that they are not to pass by any more,
    /// until somebody asks; one more than are told one by one at most.
    let_go: BTreeSet<IpAddr>,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            ids: Interner::starting_at(0),
            compiled: HashMap::new(),
            slices: HashMap::new(),
            with_hints: BTreeSet::new(),
            sets: BackendSets::default(),
            listeners: Listeners::default(),
            host_backends: HashMap::new(),
            changing_family: 0,
            health_checks: Arc::default(),
            with_affinity: 0,
            with_direct: 0,
            with_stateless: 0,
            with_least_connections: 0,
            let_go: BTreeSet::new(),
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

    /// Services whose backends depend on which zone the node is in.
    pub(super) fn with_hints(&self) -> &BTreeSet<ObjectName> {
        &self.with_hints
    }

    /// What load balancers may ask of this node.
    pub(super) fn health_checks(&self) -> &Arc<BTreeMap<ObjectName, HealthCheck>> {
        &self.health_checks
    }

    fn note_health_check(&mut self, name: &ObjectName, check: Option<HealthCheck>) {
        if self.health_checks.get(name) == check.as_ref() {
            return;
        }
        let checks = Arc::make_mut(&mut self.health_checks);
        match check {
            Some(check) => checks.insert(name.clone(), check),
            None => checks.remove(name),
        };
    }

    /// Compiles the services and host ports of these as they are now; gives what is told of them.
    pub(super) fn follow(&mut self, owners: &[Owner], of: DraftedOf<'_>) -> Told {
        let drafts = self.draft(owners, of);
        self.put(drafts.into_iter(), of)
    }

    /// Drafts them.
    pub(super) fn draft(&self, owners: &[Owner], of: DraftedOf<'_>) -> Vec<Draft> {
        let drafting = Drafting { services: self, of };
        owners.iter().map(|owner| drafting.draft(owner)).collect()
    }

    /// Takes over the services as they were drafted; gives what is told of them.
    pub(super) fn put(&mut self, drafts: impl Iterator<Item = Draft>, of: DraftedOf<'_>) -> Told {
        let (mut all_told, mut touched) = (Told::new(), BTreeSet::new());
        for draft in drafts {
            let Draft { owner, ports, has_hints, health_check, told } = draft;
            if let Owner::Service(name) = &owner {
                note(&mut self.with_hints, name, has_hints);
                self.note_health_check(name, health_check);
            }
            let entries = self.numbered(&owner, ports, of);
            all_told.push((Source::Frontends(owner.clone()), told));
            self.replace(&owner, entries, &mut touched);
        }
        for frontend in touched {
            let before = self.table.frontends.get(&frontend).copied();
            let told = self.listeners.settle(&frontend, &mut self.table);
            let after = self.table.frontends.get(&frontend).copied();
            if frontend.protocol == Protocol::UDP && after.is_some() && after != before {
                self.note_address(frontend.address);
            }
            all_told.push((Source::Frontend(frontend), told));
        }
        let change_family = self.changing_family > 0;
        if self.table.change_family != change_family {
            Arc::make_mut(&mut self.table).change_family = change_family;
        }
        let have_affinity = self.with_affinity > 0;
        if self.table.have_affinity != have_affinity {
            Arc::make_mut(&mut self.table).have_affinity = have_affinity;
        }
        let have_direct = self.with_direct > 0;
        if self.table.have_direct != have_direct {
            Arc::make_mut(&mut self.table).have_direct = have_direct;
        }
        let have_stateless = self.with_stateless > 0;
        if self.table.have_stateless != have_stateless {
            Arc::make_mut(&mut self.table).have_stateless = have_stateless;
        }
        let have_least = self.with_least_connections > 0;
        if self.table.have_least_connections != have_least {
            Arc::make_mut(&mut self.table).have_least_connections = have_least;
        }
        all_told
    }

    /// The slices of the service of this name.
    pub(super) fn slices_of<'a>(
        &'a self,
        service: &ObjectName,
        state: &'a ClusterState,
    ) -> impl Iterator<Item = &'a EndpointSlice> {
        let names = self.slices.get(service).into_iter().flatten();
        names.filter_map(|name| state.endpoint_slices.get(name))
    }

    /// Whether a service or host port listens on `address`.
    pub(super) fn listen_on(&self, address: IpAddr) -> bool {
        self.listeners.has(address)
    }

    /// The number of a port in one family; `None` where it is not in force.
    pub(super) fn number_of(&self, key: &Key) -> Option<ServiceId> {
        self.ids.get(key).map(ServiceId)
    }

    /// The sets of backends in force.
    pub(super) fn sets(&self) -> &BackendSets {
        &self.sets
    }

    fn numbered(&mut self, owner: &Owner, ports: Vec<PortDraft>, of: DraftedOf<'_>) -> Entries {
        let mut drafts: BTreeMap<Key, (Service, BTreeSet<u16>)> = BTreeMap::new();
        let mut frontends_of = Vec::new();
        for PortDraft { place, key, frontends, mut service, host_backends } in ports {
            service.cluster = self.sets.acquire(service.cluster);
            service.local = self.sets.acquire(service.local);
            if let Some((other, _)) = drafts.insert(key.clone(), (service, host_backends)) {
                self.release_sets(&other);
            }
            frontends_of.push((place, key, frontends));
        }
        let mut entries = Entries::default();
        for (key, (service, host_backends)) in drafts {
            let protocol = key.protocol;
            let host_backends =
                host_backends.into_iter().map(|l4_port| (protocol, l4_port)).collect();
            let (id, _) = self.ids.acquire(key);
            let id = ServiceId(id);
            let known = self.table.services.get(&id).filter(|known| same_service(known, &service));
            let service = known.cloned().unwrap_or_else(|| Arc::new(service));
            entries.entries.push(Entry { id, protocol, service, host_backends });
        }
        for (place, key, frontends) in frontends_of {
            let Some(id) = self.ids.get(&key) else { continue };
            for (frontend, kind) in frontends {
                let whose = of.whose(frontend.address);
                let listener =
                    Listener { owner: owner.clone(), place, id: ServiceId(id), kind, whose };
                entries.listening.insert((frontend, listener));
            }
        }
        entries
    }

    /// Puts the service's new entries in the place of the old ones.
    fn replace(&mut self, owner: &Owner, new: Entries, touched: &mut BTreeSet<Frontend>) {
        let old = self.compiled.remove(owner).unwrap_or_default();
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
            self.with_affinity += usize::from(entry.service.affinity.is_some());
            self.with_direct += usize::from(entry.service.direct);
            self.with_stateless += usize::from(entry.service.stateless);
            self.with_least_connections += usize::from(is_by_connections(&entry.service));
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
            self.note_let_go(entry, &new);
            self.let_go(entry);
        }
        if !new.entries.is_empty() {
            self.compiled.insert(owner.clone(), new);
        }
    }

    /// UDP flows stay with a backend while it serves ([`Service::serves_by`]).
    fn note_let_go(&mut self, old: &Entry, now: &Entries) {
        let mut entries = now.entries.iter();
        let new = entries.find(|new| new.id == old.id && old.protocol == Protocol::UDP);
        let Some(Entry { service: new, .. }) = new else { return };
        if new.has_backends() && !old.service.has_backends() {
            let own = now.listening.iter().filter(|(_, listener)| listener.id == old.id);
            own.for_each(|(frontend, _)| self.note_address(frontend.address));
        }
        let Service { cluster, local, lingering, .. } = &*old.service;
        if Arc::ptr_eq(cluster, &new.cluster)
            && Arc::ptr_eq(local, &new.local)
            && *lingering == new.lingering
        {
            return;
        }
        let all = cluster.backends.iter().chain(&local.backends).chain(lingering);
        let gone = all.filter(|one| !new.serves_by((one.address, one.l4_port)));
        gone.for_each(|one| self.note_address(one.address));
    }

    /// Of more than are told one by one, everything is.
    fn note_address(&mut self, address: IpAddr) {
        if self.let_go.len() <= AFFECTED_MAX {
            self.let_go.insert(address);
        }
    }

    /// Addresses of backends that UDP flows were let go from since this was last asked, and of frontends that
    /// serve them since.
    pub(super) fn take_let_go(&mut self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.let_go)
    }

    fn let_go(&mut self, entry: &Entry) {
        self.changing_family -= usize::from(entry.service.changes_family);
        self.with_affinity -= usize::from(entry.service.affinity.is_some());
        self.with_direct -= usize::from(entry.service.direct);
        self.with_stateless -= usize::from(entry.service.stateless);
        self.with_least_connections -= usize::from(is_by_connections(&entry.service));
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

fn note(services: &mut BTreeSet<ObjectName>, name: &ObjectName, is_in: bool) {
    if is_in {
        services.insert(name.clone());
    } else {
        services.remove(name);
    }
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.service.as_deref()?;
    Some(ObjectName::new(Arc::clone(&slice.name.namespace), service))
}

fn is_by_connections(service: &Service) -> bool {
    service.choice == Choice::LeastConnections
}

fn same_service(one: &Service, other: &Service) -> bool {
    one.name == other.name
        && one.cluster == other.cluster
        && one.local == other.local
        && one.lingering == other.lingering
        && one.internal_policy == other.internal_policy
        && one.external_policy == other.external_policy
        && one.source_ranges == other.source_ranges
        && one.choice == other.choice
        && one.affinity == other.affinity
        && one.changes_family == other.changes_family
        && one.direct == other.direct
        && one.stateless == other.stateless
}
