//! The cluster as last heard of: one map per kind, ordered by name, and what changes it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use dataplane::address::Protocol;

use crate::model::{
    EndpointSlice, Kind, Namespace, NetworkPolicy, Node, Object, ObjectKey, ObjectName, Pod,
    Service,
};

/// One object came, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is there, and is this.
    Set(Object),
    /// It is there no more.
    Gone(ObjectKey),
}

impl Change {
    /// The object that it is about.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Set(object) => object.key(),
            Self::Gone(key) => key.clone(),
        }
    }
}

/// Everything known about the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// By name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<ObjectName, Box<Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<ObjectName, Service>,
    /// By namespace and name.
    pub endpoint_slices: BTreeMap<ObjectName, EndpointSlice>,
    /// By namespace and name.
    pub network_policies: BTreeMap<ObjectName, NetworkPolicy>,
}

/// Two objects that cannot both hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two live pods have one address.
    #[error("Pod {first} and Pod {second} both claim {address}: give each its own status.podIPs")]
    PodAddress {
        /// The address.
        address: IpAddr,
        /// One claimant.
        first: ObjectName,
        /// The other.
        second: ObjectName,
    },
    /// A pod has a node's address without being on the host's network.
    #[error(
        "Pod {pod} claims {address}, which is an address of Node {node}: \
         change it, or set spec.hostNetwork"
    )]
    NodeAddress {
        /// The address.
        address: IpAddr,
        /// The pod.
        pod: ObjectName,
        /// The node.
        node: String,
    },
    /// A service listens on a pod's address.
    #[error("Service {service} listens on {address}, which is the address of Pod {pod}")]
    ServiceAddress {
        /// The address.
        address: IpAddr,
        /// The service.
        service: ObjectName,
        /// The pod.
        pod: ObjectName,
    },
    /// Two services listen on one address and port.
    #[error(
        "Service {first} and Service {second} both listen on {address} port {l4_port}/{protocol}: \
             change one"
    )]
    Frontend {
        /// The address.
        address: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        l4_port: u16,
        /// One claimant.
        first: ObjectName,
        /// The other.
        second: ObjectName,
    },
    /// Two services have one node port.
    #[error(
        "Service {first} and Service {second} both claim node port {l4_port}/{protocol}: \
             change one nodePort"
    )]
    NodePort {
        /// The protocol.
        protocol: Protocol,
        /// The node port.
        l4_port: u16,
        /// One claimant.
        first: ObjectName,
        /// The other.
        second: ObjectName,
    },
}

impl ClusterState {
    /// The pod of this name.
    #[must_use]
    pub fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name).map(|pod| &**pod)
    }

    /// Adds or replaces an object; returns what stood under its kind and name.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        match object {
            Object::Namespace(object) => {
                self.namespaces.insert(object.name.clone(), object).map(Object::Namespace)
            }
            Object::Node(object) => {
                self.nodes.insert(object.name.clone(), object).map(Object::Node)
            }
            Object::Pod(object) => self.pods.insert(object.name.clone(), object).map(Object::Pod),
            Object::Service(object) => {
                let before = self.services.insert(object.name.clone(), *object);
                before.map(Object::from)
            }
            Object::EndpointSlice(object) => {
                self.endpoint_slices.insert(object.name.clone(), object).map(Object::EndpointSlice)
            }
            Object::NetworkPolicy(object) => {
                let before = self.network_policies.insert(object.name.clone(), *object);
                before.map(Object::from)
            }
        }
    }

    /// Takes an object out; returns it.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        let ObjectKey { kind, name } = key;
        match kind {
            Kind::Namespace => self.namespaces.remove(&*name.name).map(Object::Namespace),
            Kind::Node => self.nodes.remove(&*name.name).map(Object::Node),
            Kind::Pod => self.pods.remove(name).map(Object::Pod),
            Kind::Service => self.services.remove(name).map(Object::from),
            Kind::EndpointSlice => self.endpoint_slices.remove(name).map(Object::EndpointSlice),
            Kind::NetworkPolicy => self.network_policies.remove(name).map(Object::from),
        }
    }

    /// Makes a change; returns what stood there before.
    pub fn apply(&mut self, change: Change) -> Option<Object> {
        match change {
            Change::Set(object) => self.insert(object),
            Change::Gone(key) => self.remove(&key),
        }
    }

    /// The changes that make `next` of this state.
    #[must_use]
    pub fn changes_to(&self, next: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let at = |name: &String| ObjectName::new("", name.as_str());
        let in_cluster = |kind| move |name: &String| ObjectKey::new(kind, at(name));
        let in_namespace = |kind| move |name: &ObjectName| ObjectKey::new(kind, name.clone());
        let (old, new) = (self, next);
        let out = &mut changes;
        differ(
            (&old.namespaces, &new.namespaces),
            Object::Namespace,
            in_cluster(Kind::Namespace),
            out,
        );
        differ((&old.nodes, &new.nodes), Object::Node, in_cluster(Kind::Node), out);
        differ((&old.pods, &new.pods), Object::Pod, in_namespace(Kind::Pod), out);
        differ((&old.services, &new.services), Object::from, in_namespace(Kind::Service), out);
        differ(
            (&old.endpoint_slices, &new.endpoint_slices),
            Object::EndpointSlice,
            in_namespace(Kind::EndpointSlice),
            out,
        );
        differ(
            (&old.network_policies, &new.network_policies),
            Object::from,
            in_namespace(Kind::NetworkPolicy),
            out,
        );
        changes
    }

    /// Objects by kind, for people: `("Pod", 12)`.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); 6] {
        [
            ("Namespace", self.namespaces.len()),
            ("Node", self.nodes.len()),
            ("Pod", self.pods.len()),
            ("Service", self.services.len()),
            ("EndpointSlice", self.endpoint_slices.len()),
            ("NetworkPolicy", self.network_policies.len()),
        ]
    }

    /// Objects that cannot both hold. A folder with any is refused; from an API server they pass
    /// by while addresses change hands, and the compiler then takes the one that is not ending.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let pods = self.pod_address_conflicts(&mut conflicts);
        self.frontend_conflicts(&pods, &mut conflicts);
        conflicts
    }

    fn pod_address_conflicts<'a>(
        &'a self,
        conflicts: &mut Vec<Conflict>,
    ) -> BTreeMap<IpAddr, &'a ObjectName> {
        let nodes: BTreeMap<IpAddr, &String> = self
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().map(move |address| (*address, &node.name)))
            .collect();
        let mut owners: BTreeMap<IpAddr, &ObjectName> = BTreeMap::new();
        let live = |pod: &&Pod| !pod.host_network && !pod.is_completed() && !pod.terminating;
        for pod in self.pods.values().map(|pod| &**pod).filter(live) {
            for address in &pod.addresses {
                if let Some(node) = nodes.get(address) {
                    conflicts.push(Conflict::NodeAddress {
                        address: *address,
                        pod: pod.name.clone(),
                        node: (*node).clone(),
                    });
                }
                if let Some(first) = owners.insert(*address, &pod.name) {
                    conflicts.push(Conflict::PodAddress {
                        address: *address,
                        first: first.clone(),
                        second: pod.name.clone(),
                    });
                }
            }
        }
        owners
    }

    fn frontend_conflicts(
        &self,
        pods: &BTreeMap<IpAddr, &ObjectName>,
        conflicts: &mut Vec<Conflict>,
    ) {
        let mut frontends: BTreeMap<(IpAddr, Protocol, u16), &ObjectName> = BTreeMap::new();
        let mut node_ports: BTreeMap<(Protocol, u16), &ObjectName> = BTreeMap::new();
        for service in self.services.values() {
            for address in service.addresses() {
                if let Some(pod) = pods.get(&address) {
                    conflicts.push(Conflict::ServiceAddress {
                        address,
                        service: service.name.clone(),
                        pod: (*pod).clone(),
                    });
                }
            }
            for port in &service.ports {
                for address in service.addresses() {
                    let key = (address, port.protocol, port.l4_port);
                    match frontends.entry(key) {
                        Entry::Occupied(first) if *first.get() != &service.name => {
                            conflicts.push(Conflict::Frontend {
                                address,
                                protocol: port.protocol,
                                l4_port: port.l4_port,
                                first: (*first.get()).clone(),
                                second: service.name.clone(),
                            });
                        }
                        // A service may list one address as external and as balanced address.
                        Entry::Occupied(_) => {}
                        Entry::Vacant(entry) => {
                            entry.insert(&service.name);
                        }
                    }
                }
                let Some(l4_port) = port.node_port else { continue };
                if let Some(first) = node_ports.insert((port.protocol, l4_port), &service.name) {
                    conflicts.push(Conflict::NodePort {
                        protocol: port.protocol,
                        l4_port,
                        first: first.clone(),
                        second: service.name.clone(),
                    });
                }
            }
        }
    }
}

/// What of one kind came, changed or went.
fn differ<K: Ord, V: Clone + PartialEq>(
    (old, new): (&BTreeMap<K, V>, &BTreeMap<K, V>),
    object: fn(V) -> Object,
    key: impl Fn(&K) -> ObjectKey,
    changes: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    changes.extend(gone.map(|name| Change::Gone(key(name))));
    let set = new.iter().filter(|(name, value)| old.get(*name) != Some(*value));
    changes.extend(set.map(|(_, value)| Change::Set(object(value.clone()))));
}

impl Service {
    /// Every address it listens on, apart from the nodes' own.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.cluster_ips.iter().chain(&self.external_ips).chain(&self.load_balancer_ips).copied()
    }
}
