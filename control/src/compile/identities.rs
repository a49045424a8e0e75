//! Who an address is: the set of policy selectors that match it, interned to a number.
//!
//! Pods that no policy tells apart share an identity, however their labels differ. An identity
//! also holds the numbers behind the port names that policies use, since a rule that says `http`
//! allows different L4 ports toward pods that mean different numbers by it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::identity::{Identity, IdentityTable};
use dataplane::lpm::Prefix;

use super::interner::Interner;
use super::selectors::{self, Matcher, Selector, SelectorId};
use super::{NodeView, Warning};
use crate::model::{L4Ports, NamedPort, ObjectName, Pod};
use crate::store::ClusterState;

/// What kind of thing has an identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// This node.
    Host,
    /// Another node.
    RemoteNode,
    /// A pod whose labels are known.
    Pod,
    /// A local endpoint of this namespace whose Pod object is not known. Until it is, every policy
    /// of the namespace that might select it isolates it.
    UnknownPod { namespace: String },
    /// Anything else.
    World,
}

/// Everything that policy can tell about an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// Ascending.
    pub(super) selectors: Vec<SelectorId>,
    /// The ports whose names some policy uses, by name.
    pub(super) named_ports: Vec<NamedPort>,
}

/// The identities in force, and what each stands for.
#[derive(Debug, Clone)]
pub struct Identities {
    pub(super) selectors: Interner<Selector>,
    keys: Interner<Key>,
    /// By number, reserved ones included where something has them.
    pub(super) by_number: BTreeMap<Identity, Key>,
    /// Identities of pods on this node, the subjects whose policy is enforced here, with the
    /// addresses that have them.
    pub(super) local: BTreeMap<Identity, BTreeSet<IpAddr>>,
    exact: BTreeMap<IpAddr, Identity>,
    pub(super) prefixes: BTreeMap<Prefix, Identity>,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            selectors: Interner::starting_at(0),
            keys: Interner::starting_at(Identity::FIRST_COMPILED),
            by_number: BTreeMap::new(),
            local: BTreeMap::new(),
            exact: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        }
    }
}

impl Identities {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn name(&self, identity: Identity) -> String {
        let plain = match identity {
            Identity::HOST => "host",
            Identity::REMOTE_NODE => "remote-node",
            Identity::KUBE_APISERVER => "kube-apiserver",
            Identity::HEALTH => "health",
            Identity::INGRESS => "ingress",
            Identity::WORLD => "world",
            _ => "",
        };
        if !plain.is_empty() {
            return plain.to_owned();
        }
        let Some(key) = self.by_number.get(&identity) else {
            return format!("identity {}", identity.0);
        };
        let kind = match &key.kind {
            Kind::Host => "host",
            Kind::RemoteNode => "remote-node",
            Kind::Pod => "pod",
            Kind::UnknownPod { .. } => "pod without Pod object",
            Kind::World => "world",
        };
        let matching: Vec<String> = self
            .selectors
            .iter()
            .filter(|(_, id)| key.selectors.binary_search(id).is_ok())
            .map(|(selector, _)| selector.to_string())
            .collect();
        if matching.is_empty() {
            format!("{kind} that no policy selects")
        } else {
            let mut matching = matching;
            matching.sort_unstable();
            format!("{kind} in {}", matching.join("; "))
        }
    }

    fn number(&mut self, key: Key, previous: &Self) -> Identity {
        let bare = key.selectors.is_empty();
        let identity = match key.kind {
            Kind::Host if bare => Identity::HOST,
            Kind::RemoteNode if bare => Identity::REMOTE_NODE,
            Kind::World if bare => Identity::WORLD,
            _ => Identity(self.keys.intern(key.clone(), &previous.keys)),
        };
        self.by_number.entry(identity).or_insert(key);
        identity
    }
}

/// A pod's claim to an address; the greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// Its pod is ending, so the address may be another's already.
    Ending,
    /// A live pod's status says so.
    Live,
    /// It is a local endpoint's.
    Endpoint,
}

/// Compiles the identity table.
pub(super) fn compile(
    state: &ClusterState,
    node: &NodeView,
    (old_table, previous): (&Arc<IdentityTable>, &Identities),
    warnings: &mut BTreeSet<Warning>,
) -> (Arc<IdentityTable>, Identities) {
    let selectors = selectors::intern(state, &previous.selectors);
    let port_names = port_names(state);
    let mut matcher = Matcher::new(state, &selectors);
    let mut memory = Identities { keys: Interner::after(&previous.keys), ..Identities::default() };
    memory.by_number.insert(
        Identity::WORLD,
        Key { kind: Kind::World, selectors: Vec::new(), named_ports: Vec::new() },
    );

    for (prefix, blocks) in matcher.boundaries() {
        let key = Key { kind: Kind::World, selectors: blocks.to_vec(), named_ports: Vec::new() };
        let identity = memory.number(key, previous);
        memory.prefixes.insert(prefix, identity);
    }
    for (address, kind) in node_addresses(state, node) {
        let selectors = matcher.address(address).to_vec();
        let identity = memory.number(Key { kind, selectors, named_ports: Vec::new() }, previous);
        memory.exact.insert(address, identity);
    }
    for (address, (name, _)) in claims(state, node, warnings) {
        if memory.exact.contains_key(&address) {
            let message = format!("claims {address}, which is a node's; it stays the node's");
            warnings.insert(Warning { object: format!("Pod {name}"), message });
            continue;
        }
        let pod = state.pods.get(name);
        let mut key = pod_key(&mut matcher, name, pod, &port_names);
        key.selectors.extend_from_slice(matcher.address(address));
        key.selectors.sort_unstable();
        let identity = memory.number(key, previous);
        memory.exact.insert(address, identity);
        if is_local(node, name, pod) {
            memory.local.entry(identity).or_default().insert(address);
        }
    }
    warn_of_unknown_namespaces(state, warnings);
    drop(matcher);
    memory.selectors = selectors;

    if memory.exact == previous.exact && memory.prefixes == previous.prefixes {
        return (Arc::clone(old_table), memory);
    }
    let table = IdentityTable {
        exact: memory.exact.iter().map(|(address, identity)| (*address, *identity)).collect(),
        prefixes: memory.prefixes.iter().map(|(prefix, identity)| (*prefix, *identity)).collect(),
    };
    (Arc::new(table), memory)
}

/// Whether policy for this pod is enforced here. A pod without a node counts: a folder of
/// manifests for a single node need not name it.
fn is_local(node: &NodeView, name: &ObjectName, pod: Option<&Pod>) -> bool {
    node.endpoints.contains_key(name)
        || pod.is_some_and(|pod| pod.node.as_ref().is_none_or(|on| *on == node.name))
}

fn node_addresses(state: &ClusterState, node: &NodeView) -> BTreeMap<IpAddr, Kind> {
    let mut all = BTreeMap::new();
    for other in state.nodes.values() {
        let kind = if other.name == node.name { Kind::Host } else { Kind::RemoteNode };
        all.extend(other.addresses.iter().map(|address| (*address, kind.clone())));
    }
    all.extend(node.addresses.iter().map(|address| (*address, Kind::Host)));
    all
}

fn claims<'a>(
    state: &'a ClusterState,
    node: &'a NodeView,
    warnings: &mut BTreeSet<Warning>,
) -> BTreeMap<IpAddr, (&'a ObjectName, Claim)> {
    let from_pods =
        state.pods.values().filter(|pod| !pod.host_network && !pod.is_completed()).flat_map(
            |pod| {
                let claim = if pod.terminating { Claim::Ending } else { Claim::Live };
                pod.addresses.iter().map(move |address| (*address, &pod.name, claim))
            },
        );
    let from_endpoints = node.endpoints.iter().flat_map(|(name, addresses)| {
        addresses.iter().map(move |address| (*address, name, Claim::Endpoint))
    });
    let mut claims: BTreeMap<IpAddr, (&ObjectName, Claim)> = BTreeMap::new();
    for (address, name, claim) in from_pods.chain(from_endpoints) {
        let Some((holder, held)) = claims.get_mut(&address) else {
            claims.insert(address, (name, claim));
            continue;
        };
        if *holder != name && *held == claim {
            let message = format!("claims {address}, which {holder} has; {holder} keeps it");
            warnings.insert(Warning { object: format!("Pod {name}"), message });
        }
        if *held < claim {
            (*holder, *held) = (name, claim);
        }
    }
    for name in node.endpoints.keys().filter(|name| !state.pods.contains_key(*name)) {
        let message = "has no Pod object; until it has, policies that may select it deny it";
        warnings.insert(Warning { object: format!("Endpoint {name}"), message: message.into() });
    }
    claims
}

fn pod_key(
    matcher: &mut Matcher<'_>,
    name: &ObjectName,
    pod: Option<&Pod>,
    port_names: &BTreeSet<(&str, Protocol)>,
) -> Key {
    let Some(pod) = pod else {
        return Key {
            kind: Kind::UnknownPod { namespace: name.namespace.clone() },
            selectors: matcher.any_pod(&name.namespace),
            named_ports: Vec::new(),
        };
    };
    let named_ports = port_names.iter().filter_map(|(name, protocol)| {
        let l4_port = pod.named_port(name, *protocol)?;
        Some(NamedPort { name: (*name).to_owned(), protocol: *protocol, l4_port })
    });
    Key {
        kind: Kind::Pod,
        selectors: matcher.pod(&name.namespace, &pod.labels),
        named_ports: named_ports.collect(),
    }
}

/// Every port name that some policy uses.
fn port_names(state: &ClusterState) -> BTreeSet<(&str, Protocol)> {
    state
        .network_policies
        .values()
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
        .flat_map(|rule| &rule.ports)
        .filter_map(|port| match &port.l4_ports {
            L4Ports::Named(name) => Some((name.as_str(), port.protocol)),
            L4Ports::All | L4Ports::Range(_) => None,
        })
        .collect()
}

/// A namespace selector cannot match labels that nobody has told us.
fn warn_of_unknown_namespaces(state: &ClusterState, warnings: &mut BTreeSet<Warning>) {
    if state.network_policies.is_empty() {
        return;
    }
    let used: BTreeSet<&String> = state.pods.keys().map(|name| &name.namespace).collect();
    for namespace in used.into_iter().filter(|name| !state.namespaces.contains_key(*name)) {
        let message = "has no Namespace object, so selectors see no labels but its name; add it";
        warnings
            .insert(Warning { object: format!("Namespace {namespace}"), message: message.into() });
    }
}
