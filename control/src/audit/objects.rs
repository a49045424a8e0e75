//! What the objects say, read plainly.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::sync::Arc;

use dataplane::identity::PodTag;

use super::Moment;
use super::index::Index;
use crate::compile::naming::tag_of;
use crate::compile::selectors::{Scope, Selector, namespace_labels};
use crate::model::{NetworkPolicy, ObjectName, Peer, Pod, WEIGHT_DEFAULT};
use crate::store::ClusterState;

/// An address that stands for all that nobody knows: of TEST-NET-3 (RFC 5737).
pub(super) const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 254));

/// The entry that follows `last`.
pub(super) fn after<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    last: Option<&K>,
) -> Option<(&'a K, &'a V)> {
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<K, _>((from, Bound::Unbounded)).next()
}

/// Who has an address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// This node.
    Host,
    /// Another one.
    RemoteNode,
    /// A pod, or a local endpoint whose pod is not known.
    Pod(&'a ObjectName, Option<&'a Pod>),
    /// Nobody here.
    World,
}

/// An [`Owner`] to be remembered while objects change.
#[derive(Debug, Clone)]
pub(super) enum Holder {
    Host,
    RemoteNode,
    Pod(ObjectName),
    World,
}

impl From<Owner<'_>> for Holder {
    fn from(owner: Owner<'_>) -> Self {
        match owner {
            Owner::Host => Self::Host,
            Owner::RemoteNode => Self::RemoteNode,
            Owner::Pod(name, _) => Self::Pod(name.clone()),
            Owner::World => Self::World,
        }
    }
}

impl Holder {
    pub(super) fn owner<'a>(&'a self, state: &'a ClusterState) -> Owner<'a> {
        match self {
            Self::Host => Owner::Host,
            Self::RemoteNode => Owner::RemoteNode,
            Self::Pod(name) => Owner::Pod(name, state.pod(name)),
            Self::World => Owner::World,
        }
    }
}

/// Who has `address`: this node as the kernel says, before local endpoints, these before other nodes as
/// their objects say, these before live pods, these before those that are ending.
pub(super) fn owner<'a>(moment: &Moment<'a>, index: &Index, address: IpAddr) -> Owner<'a> {
    let (state, node) = (moment.state, moment.node);
    if node.addresses.contains(&address) {
        return Owner::Host;
    }
    let endpoint = node.endpoints.values().any(|own| own.contains(&address));
    if !endpoint && index.nodes(state, address).next().is_some() {
        return Owner::RemoteNode;
    }
    match pod_at(moment, index, address) {
        Some((name, pod)) => Owner::Pod(name, pod),
        None => Owner::World,
    }
}

/// The pod or endpoint that has `address`, whatever nodes have.
fn pod_at<'a>(
    moment: &Moment<'a>,
    index: &Index,
    address: IpAddr,
) -> Option<(&'a ObjectName, Option<&'a Pod>)> {
    let (state, node) = (moment.state, moment.node);
    if let Some((name, _)) = node.endpoints.iter().find(|(_, own)| own.contains(&address)) {
        return Some((name, state.pod(name)));
    }
    let holder = index.pods(state, address).min_by_key(|pod| (pod.terminating, &pod.name));
    holder.map(|pod| (&pod.name, Some(pod)))
}

/// What tells who has an address from others that had it: pods alone are told apart.
pub(super) fn tag(owner: Owner<'_>) -> PodTag {
    match owner {
        Owner::Pod(_, Some(pod)) => tag_of(pod),
        Owner::Pod(_, None) | Owner::Host | Owner::RemoteNode | Owner::World => PodTag::Unknown,
    }
}

/// What a pod weighs as a backend.
pub(super) fn weight(pod: &Pod) -> u16 {
    pod.weight.unwrap_or(WEIGHT_DEFAULT)
}

/// What a backend at `address` weighs.
pub(super) fn weight_at(moment: &Moment<'_>, index: &Index, address: IpAddr) -> u16 {
    pod_at(moment, index, address).and_then(|(_, pod)| pod).map_or(WEIGHT_DEFAULT, weight)
}

/// Whether policy of the pod or endpoint of this name is enforced here.
pub(super) fn is_here(moment: &Moment<'_>, name: &ObjectName, pod: Option<&Pod>) -> bool {
    let on_this = |pod: &Pod| pod.node.as_ref().is_none_or(|node| **node == *moment.node.name);
    moment.node.endpoints.contains_key(name) || pod.is_some_and(on_this)
}

/// Whether its addresses are its own.
pub(super) fn claims(pod: &Pod) -> bool {
    !pod.host_network && !pod.is_completed()
}

/// A selector, and how many times policies have it.
#[derive(Debug)]
struct Held {
    selector: Selector,
    times: usize,
}

/// Every selector of every policy, by its text.
type ByText = BTreeMap<String, Held>;

/// Where a policy's selector is: its namespace, if it is of the pods of one, and its text.
type Kept = (Option<Arc<str>>, String);

/// Those of pods of one namespace are asked about no others: of most clusters' selectors that leaves a
/// handful for each address.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    of_namespace: BTreeMap<Arc<str>, ByText>,
    others: ByText,
    of_policy: BTreeMap<ObjectName, Vec<Kept>>,
}

impl Selectors {
    /// Takes one policy's out; whether there was any.
    pub(super) fn forget_one(&mut self) -> bool {
        let Some((_, texts)) = self.of_policy.pop_first() else { return false };
        self.forget(texts);
        true
    }

    fn forget(&mut self, texts: Vec<Kept>) {
        for (namespace, text) in texts {
            let among = match &namespace {
                Some(namespace) => self.of_namespace.get_mut(namespace),
                None => Some(&mut self.others),
            };
            let Some(among) = among else { continue };
            if let Some(held) = among.get_mut(&text) {
                held.times -= 1;
                if held.times == 0 {
                    among.remove(&text);
                }
            }
        }
    }

    /// Takes up those of the policy of this name as it is now, in place of what it had.
    pub(super) fn read(&mut self, state: &ClusterState, name: &ObjectName) {
        if let Some(texts) = self.of_policy.remove(name) {
            self.forget(texts);
        }
        let Some(policy) = state.network_policies.get(name) else { return };
        let namespace = &policy.name.namespace;
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        let peers = rules.flat_map(|rule| &rule.peers);
        let peers = peers.map(|peer| Selector::peer(namespace, peer));
        let mut texts = Vec::new();
        for selector in std::iter::once(Selector::subject(policy)).chain(peers) {
            let within = match &selector {
                Selector::Pods { scope: Scope::Named(namespace), .. } => {
                    Some(Arc::clone(namespace))
                }
                Selector::Pods { .. } | Selector::Block { .. } => None,
            };
            let among = match &within {
                Some(namespace) => self.of_namespace.entry(Arc::clone(namespace)).or_default(),
                None => &mut self.others,
            };
            let text = selector.to_string();
            among.entry(text.clone()).or_insert(Held { selector, times: 0 }).times += 1;
            texts.push((within, text));
        }
        self.of_policy.insert(name.clone(), texts);
    }

    /// Those that may match it.
    fn about(&self, owner: Owner<'_>) -> impl Iterator<Item = (&str, &Selector)> {
        let own = match owner {
            Owner::Pod(name, _) => self.of_namespace.get(&name.namespace),
            Owner::Host | Owner::RemoteNode | Owner::World => None,
        };
        let all = self.others.iter().chain(own.into_iter().flatten());
        all.map(|(text, held)| (text.as_str(), &held.selector))
    }

    /// What is said of who has `address`.
    pub(super) fn name(&self, moment: &Moment<'_>, owner: Owner<'_>, address: IpAddr) -> String {
        let kind = match owner {
            Owner::Host => "host",
            Owner::RemoteNode => "remote-node",
            Owner::Pod(_, Some(_)) => "pod",
            Owner::Pod(_, None) => "pod without Pod object",
            Owner::World => "world",
        };
        let labels = match owner {
            Owner::Pod(name, _) => Some(namespace_labels(moment.state, &name.namespace)),
            _ => None,
        };
        let matches = |selector: &Selector| match (selector, owner) {
            (Selector::Block { cidr, except }, _) => {
                cidr.contains(address)
                    && !except.iter().any(|range| range.contains(address))
                    && !moment.compiled.is_left_out(cidr, except)
            }
            (Selector::Pods { scope, pods }, Owner::Pod(name, pod)) => {
                // Of a pod that is not known only what all pods have is sure.
                let are_pods = pod.map_or(pods.is_empty(), |pod| pods.matches(&pod.labels));
                let is_there = match scope {
                    Scope::Named(namespace) => *namespace == name.namespace,
                    Scope::Labelled(selector) => {
                        labels.as_ref().is_some_and(|labels| labels.fulfil(selector))
                    }
                };
                is_there && are_pods
            }
            (Selector::Pods { .. }, _) => false,
        };
        let matching = self.about(owner).filter(|(_, selector)| matches(selector));
        let mut matching: Vec<&str> = matching.map(|(text, _)| text).collect();
        matching.sort_unstable();
        match (matching.is_empty(), owner) {
            (false, _) => format!("{kind} in {}", matching.join("; ")),
            (true, Owner::Pod(..)) => format!("{kind} that no policy selects"),
            (true, _) => kind.to_owned(),
        }
    }
}

/// Addresses at which the set of `policy`'s blocks changes: the first of each range.
pub(super) fn at_edges_of_blocks(policy: &NetworkPolicy) -> Vec<IpAddr> {
    let rules = policy.ingress.iter().chain(&policy.egress).flatten();
    let mut edges = Vec::new();
    for peer in rules.flat_map(|rule| &rule.peers) {
        if let Peer::Block { cidr, except } = peer {
            edges.push(cidr.address());
            edges.extend(except.iter().map(|range| range.address()));
        }
    }
    edges
}

/// The objects of one namespace.
pub(super) fn within<'a, V>(
    map: &'a BTreeMap<ObjectName, V>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a V> {
    let first = ObjectName::new(namespace, "");
    map.range::<ObjectName, _>(first.borrow()..)
        .take_while(move |(name, _)| *name.namespace == *namespace)
        .map(|(_, object)| object)
}
