//! What changes concern: the addresses, policies and services that must be compiled again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::claims::Claim;
use super::policies::{PortName, Uses, is_audited};
use super::selectors::{Scope, Selector, namespace_labels};
use super::weights::is_weighted;
use super::{Compiled, NodeView};
use crate::model::{Kind, LabelSelector, Node, Object, ObjectKey, ObjectName, Pod};
use crate::store::Change;

/// Looks at pods by one selector after the other, as many as there are pods times this, cost more
/// than to name all of them anew.
const LOOKS_PER_POD: usize = 4;

/// What changed since the last compilation.
#[derive(Debug, Clone, Default)]
pub(super) struct Dirt {
    /// Who has them, or what of them matters to selectors; some more than once.
    pub(super) addresses: Vec<IpAddr>,
    /// Whose labels changed.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// Which came or went, or whose first pod came or last pod went.
    pub(super) counted_namespaces: BTreeSet<Arc<str>>,
    pub(super) policies: BTreeSet<ObjectName>,
    /// Which a node has now, or has no more.
    pub(super) node_addresses: BTreeSet<IpAddr>,
    /// Themselves or their slices.
    pub(super) services: BTreeSet<ObjectName>,
    /// Pods whose host ports may be others.
    pub(super) host_ports: BTreeSet<ObjectName>,
    /// Local endpoints that came or went, or whose Pod object did.
    pub(super) endpoints: BTreeSet<ObjectName>,
    /// Whether policies are under audit here may have changed.
    pub(super) own_mode: bool,
    /// Whether endpoints without a Pod object may other things now.
    pub(super) unknown_pods: bool,
}

impl Dirt {
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
            && self.namespaces.is_empty()
            && self.counted_namespaces.is_empty()
            && self.policies.is_empty()
            && self.services.is_empty()
            && self.host_ports.is_empty()
            && self.endpoints.is_empty()
            && !self.own_mode
            && !self.unknown_pods
    }

    /// Services that changed, or whose slices did: a set of many is built at once.
    pub(super) fn add_services(&mut self, names: impl Iterator<Item = ObjectName>) {
        if self.services.is_empty() {
            self.services = names.collect();
        } else {
            self.services.extend(names);
        }
    }

    /// The addresses that a pod claims, or claimed.
    fn note_claims_of(&mut self, pod: &Pod) {
        if Claim::of(pod).is_some() {
            self.addresses.extend(&pod.addresses);
        }
    }
}

impl Compiled {
    /// Takes over a change of the cluster. It is in force once it was compiled and published.
    pub fn take(&mut self, change: Change) {
        let Some(change) = self.let_wait(change) else { return };
        let change = match change {
            Change::Set(Object::Pod(pod)) => return self.take_pod(pod),
            other => other,
        };
        let key = change.key();
        self.file(key.kind);
        let before = Arc::make_mut(&mut self.state).apply(change);
        let ObjectKey { name, .. } = &key;
        match key.kind {
            Kind::Namespace => self.note_namespace(&name.name, before),
            Kind::Node => self.note_node(&name.name, before),
            Kind::Pod => {
                if let Some(Object::Pod(gone)) = before {
                    self.note_pod_gone(&gone);
                }
            }
            Kind::Service => {
                let is_same = match (&before, self.state.services.get(name)) {
                    (Some(Object::Service(before)), Some(after)) => **before == *after,
                    (before, after) => before.is_none() && after.is_none(),
                };
                if !is_same {
                    self.dirt.services.insert(name.clone());
                }
            }
            Kind::EndpointSlice => self.note_slice(name, before),
            Kind::NetworkPolicy => {
                let after = self.state.network_policies.get(name);
                if before != after.cloned().map(Object::from) {
                    self.dirt.policies.insert(name.clone());
                }
            }
        }
    }

    /// Takes over a pod that came or changed.
    fn take_pod(&mut self, mut pod: Box<Pod>) {
        self.file(Kind::Pod);
        self.share_names_of(&mut pod);
        let mut is_new = true;
        if let Some((name, before)) = self.state.pods.get_key_value(&pod.name) {
            if *before == pod {
                return;
            }
            is_new = false;
            pod.name.clone_from(name);
            Arc::make_mut(&mut self.claims).remove_pod(before);
            self.dirt.note_claims_of(before);
            if is_weighted(before) || is_weighted(&pod) {
                let before = before.clone();
                self.note_weight(Some(&before), Some(&pod));
            }
        }
        self.note_pod(&pod, is_new);
        Arc::make_mut(&mut self.state).pods.insert(pod.name.clone(), pod);
    }

    /// A pod has the names of its namespace and node that others have too.
    pub(super) fn share_names_of(&mut self, pod: &mut Pod) {
        pod.name.namespace = self.shared_name(&pod.name.namespace);
        pod.node = pod.node.take().map(|node| self.shared_name(&node));
    }

    /// A pod came, or is another.
    pub(super) fn note_pod(&mut self, pod: &Pod, is_new: bool) {
        Arc::make_mut(&mut self.claims).add_pod(pod);
        self.dirt.note_claims_of(pod);
        self.note_host_ports(&pod.name, !pod.host_ports.is_empty());
        self.note_pod_at(&pod.name);
        if is_new {
            self.note_weight(None, Some(pod));
            let namespace = &pod.name.namespace;
            match self.pods_in.get_mut(namespace) {
                Some(pods) => *pods += 1,
                None => {
                    self.pods_in.insert(Arc::clone(namespace), 1);
                    self.dirt.counted_namespaces.insert(Arc::clone(namespace));
                }
            }
        }
    }

    /// A pod that was there is gone.
    fn note_pod_gone(&mut self, pod: &Pod) {
        Arc::make_mut(&mut self.claims).remove_pod(pod);
        self.dirt.note_claims_of(pod);
        self.note_host_ports(&pod.name, false);
        self.note_weight(Some(pod), None);
        self.note_pod_at(&pod.name);
        let namespace = &pod.name.namespace;
        if let Some(pods) = self.pods_in.get_mut(namespace) {
            *pods -= 1;
            if *pods == 0 {
                self.pods_in.remove(namespace);
                self.dirt.counted_namespaces.insert(Arc::clone(namespace));
            }
        }
    }

    /// A pod that has host ports, or had some.
    fn note_host_ports(&mut self, name: &ObjectName, has_any: bool) {
        let had_any = self.with_host_ports.contains(name);
        if has_any && !had_any {
            self.with_host_ports.insert(name.clone());
        } else if had_any && !has_any {
            self.with_host_ports.remove(name);
        }
        if has_any || had_any {
            self.dirt.host_ports.insert(name.clone());
        }
    }

    /// A pod came, changed or went: what hangs on it if it is a local endpoint's.
    fn note_pod_at(&mut self, name: &ObjectName) {
        if let Some(own) = self.node.endpoints.get(name) {
            self.dirt.addresses.extend(own);
            self.dirt.endpoints.insert(name.clone());
        }
    }

    fn shared_name(&mut self, name: &Arc<str>) -> Arc<str> {
        if self.names.len() > 2 * (self.state.namespaces.len() + self.state.nodes.len()) + 1024 {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
        Arc::clone(self.names.get_or_insert_with(&**name, |_| Arc::clone(name)))
    }

    fn note_namespace(&mut self, name: &Arc<str>, before: Option<Object>) {
        let before = match &before {
            Some(Object::Namespace(before)) => Some(before),
            _ => None,
        };
        let after = self.state.namespaces.get(&**name);
        if before.map(|before| &before.labels) != after.map(|after| &after.labels) {
            self.dirt.namespaces.insert(Arc::clone(name));
        }
        let has_other_mode = before.map(|before| &before.mode) != after.map(|after| &after.mode);
        if has_other_mode {
            let first = ObjectName::new(Arc::clone(name), "");
            let policies = self.state.network_policies.range(first..).map(|(policy, _)| policy);
            let own = policies.take_while(|policy| policy.namespace == *name).cloned();
            self.dirt.policies.extend(own);
        }
        if has_other_mode || before.is_some() != after.is_some() {
            self.dirt.counted_namespaces.insert(Arc::clone(name));
        }
    }

    fn note_node(&mut self, name: &str, before: Option<Object>) {
        let before = match before {
            Some(Object::Node(before)) => Some(before),
            _ => None,
        };
        let after = self.state.nodes.get(name);
        if before.as_ref() == after {
            return;
        }
        self.node_changes += 1;
        let zone = |node: Option<&Node>| node.and_then(|node| node.zone.clone());
        if *name == *self.node.name && zone(before.as_ref()) != zone(after) {
            self.dirt.services.extend(self.balanced.with_hints().iter().cloned());
        }
        let all = |node: Option<&Node>| -> BTreeSet<IpAddr> {
            node.into_iter().flat_map(|node| node.addresses.iter().copied()).collect()
        };
        let (had, has) = (all(before.as_ref()), all(after));
        let known = Arc::make_mut(&mut self.node_addresses);
        had.difference(&has).for_each(|address| known.remove(*address, name));
        has.difference(&had).for_each(|address| known.add(*address, name));
        self.dirt.addresses.extend(had.union(&has));
        self.dirt.node_addresses.extend(had.symmetric_difference(&has));
        if *name == *self.node.name {
            self.note_own_mode();
        }
    }

    /// Services that listen on an address which came to a node or left it.
    pub(super) fn note_services_of_nodes(&mut self) {
        let mut moved = std::mem::take(&mut self.dirt.node_addresses);
        // Those that are not compiled yet are to be in any case.
        moved.retain(|address| self.balanced.listen_on(*address));
        if moved.is_empty() {
            return;
        }
        let is_there = |address| moved.contains(&address);
        let services = self.state.services.values().filter(|one| one.addresses().any(is_there));
        self.dirt.services.extend(services.map(|service| service.name.clone()));
    }

    /// Every policy may be under audit now, or no more.
    fn note_own_mode(&mut self) {
        self.dirt.own_mode = true;
        self.dirt.policies.extend(self.state.network_policies.keys().cloned());
    }

    fn note_slice(&mut self, name: &ObjectName, before: Option<Object>) {
        let before = match before {
            Some(Object::EndpointSlice(before)) => Some(before),
            _ => None,
        };
        let after = self.state.endpoint_slices.get(name);
        if before.as_ref() != after {
            let services = self.balanced.note_slice(name, before.as_ref(), after);
            self.dirt.services.extend(services.into_iter().flatten());
        }
    }

    /// Takes over what the node says of itself.
    pub(super) fn follow_node(&mut self, node: &NodeView) {
        if self.node == *node {
            return;
        }
        let before = std::mem::replace(&mut self.node, node.clone());
        for (name, addresses) in &before.endpoints {
            if node.endpoints.get(name) != Some(addresses) {
                let claims = Arc::make_mut(&mut self.claims);
                addresses.iter().for_each(|own| claims.remove(*own, name, Claim::Endpoint));
                self.note_endpoint(name, addresses);
            }
        }
        for (name, addresses) in &node.endpoints {
            if before.endpoints.get(name) != Some(addresses) {
                let claims = Arc::make_mut(&mut self.claims);
                addresses.iter().for_each(|own| claims.add(*own, name, Claim::Endpoint));
                self.note_endpoint(name, addresses);
            }
        }
        self.dirt.addresses.extend(before.addresses.symmetric_difference(&node.addresses));
        if before.name != node.name {
            self.note_own_mode();
            // Which pods are local, and which node's addresses are the host's.
            self.dirt.addresses.extend(self.claims.addresses());
            self.dirt.addresses.extend(self.node_addresses.addresses());
        }
        if before.unknown_pods != node.unknown_pods {
            self.dirt.unknown_pods = true;
            // What is told of them.
            self.dirt.endpoints.extend(node.endpoints.keys().cloned());
        }
        let endpoints_apart = |view: &NodeView| NodeView {
            endpoints: Default::default(),
            unknown_pods: Default::default(),
            ..view.clone()
        };
        if endpoints_apart(&before) != endpoints_apart(node) {
            // As a set, which is merged: to look each one up takes as long as all else here.
            self.dirt.services.append(&mut self.state.services.keys().cloned().collect());
            self.dirt.host_ports.extend(self.with_host_ports.iter().cloned());
        }
    }

    fn note_endpoint(&mut self, name: &ObjectName, addresses: &BTreeSet<IpAddr>) {
        self.dirt.addresses.extend(addresses);
        // Whether its pod is local.
        if let Some(pod) = self.state.pods.get(name) {
            self.dirt.addresses.extend(&pod.addresses);
            if !pod.host_ports.is_empty() {
                self.dirt.host_ports.insert(name.clone());
            }
        }
        self.dirt.endpoints.insert(name.clone());
    }

    pub(super) fn follow_policies(&mut self, dirt: &Dirt) -> Uses {
        let (state, node) = (&self.state, &self.node);
        let changed = dirt.policies.iter().map(|name| {
            let policy = state.network_policies.get(name);
            (name, policy.map(|policy| (policy, is_audited(policy, state, node))))
        });
        self.policies.follow(changed, &mut self.selectors)
    }

    /// `dirty` with the addresses of pods in relabelled namespaces and of those that selectors
    /// match that came or went, and of those that have a port whose name policies began or ceased
    /// to use; ascending, each once.
    pub(super) fn addresses_to_name(
        &self,
        mut dirty: Vec<IpAddr>,
        namespaces: &BTreeSet<Arc<str>>,
        uses: &Uses,
    ) -> Vec<IpAddr> {
        put_in_order(&mut dirty);
        // Where nobody has a name yet, all are new.
        let are_all = self.identities.exact.is_empty() || self.claims.are_all_in(&dirty);
        // Those of local endpoints and nodes need not be pods', and are few.
        let uses_changed = [&uses.added, &uses.dropped].iter().any(|uses| !uses.is_empty());
        if uses_changed || !namespaces.is_empty() || !uses.names.is_empty() {
            dirty.extend(self.node.endpoints.values().flatten());
        }
        for (_, selector) in &uses.added {
            if let Selector::Block { cidr, .. } = &**selector {
                let of_nodes = self.node_addresses.addresses().chain(self.node.addresses.clone());
                dirty.extend(of_nodes.filter(|address| cidr.contains(*address)));
            }
        }
        for (id, _) in &uses.dropped {
            dirty.extend(self.known.addresses_with(*id));
        }
        if !are_all {
            self.add_concerned(namespaces, uses, &mut dirty);
        }
        put_in_order(&mut dirty);
        dirty
    }

    fn add_concerned(&self, namespaces: &BTreeSet<Arc<str>>, uses: &Uses, dirty: &mut Vec<IpAddr>) {
        for namespace in namespaces {
            self.pods_of(namespace).for_each(|pod| dirty.extend(&pod.addresses));
        }
        if !uses.names.is_empty() {
            let concerned = self.state.pods.values().filter(|pod| has_port_of(pod, &uses.names));
            concerned.for_each(|pod| dirty.extend(&pod.addresses));
        }
        for (_, selector) in &uses.added {
            if let Selector::Block { cidr, .. } = &**selector {
                dirty.extend(self.claims.within(*cidr));
            }
        }
        self.add_matching(uses, self.pods_in.values().sum(), dirty);
    }

    fn add_matching(&self, uses: &Uses, pods: usize, dirty: &mut Vec<IpAddr>) {
        let mut scopes: HashMap<&LabelSelector, Vec<&Arc<str>>> = HashMap::new();
        let mut looks: Vec<(&Arc<str>, &LabelSelector)> = Vec::new();
        let mut to_look_at = 0;
        for (_, selector) in &uses.added {
            match &**selector {
                Selector::Pods { scope: Scope::Named(namespace), pods } => {
                    to_look_at += self.pods_in.get(namespace).copied().unwrap_or(0);
                    looks.push((namespace, pods));
                }
                Selector::Pods { scope: Scope::Labelled(namespaces), pods } => {
                    let within = scopes.entry(namespaces).or_insert_with(|| {
                        let labels = |name: &Arc<str>| namespace_labels(&self.state, name);
                        let all = self.pods_in.keys();
                        all.filter(|name| labels(name).fulfil(namespaces)).collect()
                    });
                    let count = |name: &&Arc<str>| self.pods_in.get(*name).copied().unwrap_or(0);
                    to_look_at += within.iter().map(count).sum::<usize>();
                    looks.extend(within.iter().map(|name| (*name, pods)));
                }
                Selector::Block { .. } => {}
            }
        }
        if to_look_at > LOOKS_PER_POD * pods {
            dirty.extend(self.claims.addresses());
            return;
        }
        for (namespace, selector) in looks {
            let pods = self.pods_of(namespace).filter(|pod| selector.matches(&pod.labels));
            pods.for_each(|pod| dirty.extend(&pod.addresses));
        }
    }

    fn pods_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        let first = ObjectName::new(Arc::clone(namespace), "");
        let pods = self.state.pods.range(first..).map(|(_, pod)| &**pod);
        let namespace = Arc::clone(namespace);
        pods.take_while(move |pod| pod.name.namespace == namespace)
    }
}

fn put_in_order(addresses: &mut Vec<IpAddr>) {
    // Their own order, by numbers: it compares octets one by one. Stable, since that takes the parts
    // that are in order as they are, and most were put in order before.
    addresses.sort_by_key(|address| match address {
        IpAddr::V4(v4) => (false, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (true, v6.to_bits()),
    });
    addresses.dedup();
}

fn has_port_of(pod: &Pod, names: &BTreeSet<PortName>) -> bool {
    pod.named_ports.iter().any(|port| names.contains(&(port.name.clone(), port.protocol)))
}
