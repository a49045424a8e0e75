//! Who addresses are as things stand: a node, a pod with the selectors that match it, or nobody.
//!
//! Pods that differ in nothing that policy can see are matched once, however many they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::identity::PodTag;
use hashbrown::HashMap;

use super::Compiled;
use super::claims::Claim;
use super::identities::{Key, Kind};
use super::selectors::{SelectorId, namespace_labels};
use super::warnings::Warning;
use crate::model::{NamedPort, ObjectName, Pod, Uid};

/// Of fewer addresses than one for this many pods, each one's pod is looked for by its name.
const PODS_PER_ADDRESS: usize = 8;

/// Who has an address.
#[derive(Clone, Copy)]
pub(super) struct Who {
    /// The place of its key.
    pub(super) key: usize,
    /// Whether it is on this node.
    pub(super) is_local: bool,
    /// Which pod it is.
    pub(super) pod: PodTag,
}

/// Who addresses are: of a large cluster hundreds of thousands.
pub(super) struct Names {
    /// In the order of the addresses; `None`: nobody has it.
    pub(super) who: Vec<Option<Who>>,
    /// What those are warned about who claim an address in vain, by its place.
    pub(super) told: BTreeMap<usize, BTreeSet<Warning>>,
    pub(super) keys: Vec<Key>,
}

/// Everything that the key of an address which a pod has is made of.
#[derive(Default, PartialEq, Eq, Hash)]
struct Likeness<'a> {
    namespace: &'a str,
    /// Those that selectors ask about.
    labels: Vec<(&'a str, &'a str)>,
    /// Those whose names policies use.
    named_ports: Vec<&'a NamedPort>,
    blocks: &'a [SelectorId],
}

/// A pod that claims an address, with the place of its key there.
#[derive(Clone, Copy)]
struct Claimant<'a> {
    pod: &'a ObjectName,
    who: Who,
}

/// The keys of pods so far, each once.
#[derive(Default)]
struct Keys<'a> {
    alike: HashMap<Likeness<'a>, usize>,
    /// The one that is looked for.
    looked_for: Likeness<'a>,
    all: Vec<Key>,
}

impl Keys<'_> {
    fn push(&mut self, key: Key) -> usize {
        self.all.push(key);
        self.all.len() - 1
    }
}

impl Compiled {
    /// Who has `addresses`, which ascend.
    pub(super) fn names_of(&self, addresses: &[IpAddr]) -> Names {
        let mut keys = Keys::default();
        let claimants = self.claimants_of(addresses, &mut keys);
        let (mut all, mut all_told) = (Vec::with_capacity(addresses.len()), BTreeMap::new());
        for (place, address) in addresses.iter().copied().enumerate() {
            let mut told = BTreeSet::new();
            let claimant = claimants.get(place).copied().flatten();
            let holder = match claimant {
                Some(only) if !self.claims.is_contested(address) => Some(only.pod),
                _ => self.claims.holder(address, &mut told),
            };
            let who = if let Some(kind) = self.node_kind(address) {
                if let Some(name) = holder {
                    let message =
                        format!("claims {address}, which is a node's; it stays the node's");
                    told.insert(Warning::new(format!("Pod {name}"), message));
                }
                let key = keys.push(Key::plain(kind, self.selectors.of_address(address)));
                Some(Who { key, is_local: false, pod: PodTag::Unknown })
            } else {
                if let (Some(pod), Some(node)) = (holder, self.node_addresses.holder(address)) {
                    let message =
                        format!("names {address}, which {pod} has on this node; {pod} keeps it");
                    told.insert(Warning::new(format!("Node {node}"), message));
                }
                // By its place in memory at first: who claims it alone has it.
                let has_it = |claimant: &Claimant<'_>| {
                    holder.is_some_and(|name| {
                        std::ptr::eq(claimant.pod, name) || claimant.pod == name
                    })
                };
                holder.map(|name| match claimant.filter(has_it) {
                    Some(claimant) => claimant.who,
                    None => self.name_pod(name, address, &mut keys),
                })
            };
            all.push(who);
            if !told.is_empty() {
                all_told.insert(place, told);
            }
        }
        Names { who: all, told: all_told, keys: keys.all }
    }

    /// For each of `addresses` a pod that claims it; empty where few are asked for. In a large
    /// cluster looking for pods by name is most of the work, and they lie in memory in their own
    /// order, not in that of addresses.
    fn claimants_of<'a>(
        &'a self,
        addresses: &[IpAddr],
        keys: &mut Keys<'a>,
    ) -> Vec<Option<Claimant<'a>>> {
        if addresses.len() * PODS_PER_ADDRESS < self.state.pods.len() {
            return Vec::new();
        }
        let mut claimants = vec![None; addresses.len()];
        for (name, pod) in &self.state.pods {
            if Claim::of(pod).is_none() {
                continue;
            }
            let is_local = self.is_local(name, Some(pod));
            let tag = tag_of(pod);
            // Nearly always the same blocks contain all addresses of a pod, or none does.
            let mut last: Option<(&[SelectorId], usize)> = None;
            for address in &pod.addresses {
                if let Ok(place) = addresses.binary_search(address) {
                    let blocks = self.selectors.of_address(*address);
                    let key = match last {
                        Some((same, key)) if same == blocks => key,
                        _ => self.key_of(pod, blocks, keys),
                    };
                    last = Some((blocks, key));
                    let who = Who { key, is_local, pod: tag };
                    claimants[place] = Some(Claimant { pod: name, who });
                }
            }
        }
        claimants
    }

    fn name_pod<'a>(&'a self, name: &ObjectName, address: IpAddr, keys: &mut Keys<'a>) -> Who {
        let pod = self.state.pod(name);
        let blocks = self.selectors.of_address(address);
        let key = match pod {
            Some(pod) => self.key_of(pod, blocks, keys),
            None => keys.push(self.unknown_pod_key(&name.namespace, blocks)),
        };
        Who { key, is_local: self.is_local(name, pod), pod: pod.map_or(PodTag::Unknown, tag_of) }
    }

    /// The place of the key of `pod`'s addresses that `blocks` contain.
    fn key_of<'a>(&'a self, pod: &'a Pod, blocks: &'a [SelectorId], keys: &mut Keys<'a>) -> usize {
        self.liken(&mut keys.looked_for, pod, blocks);
        if let Some(known) = keys.alike.get(&keys.looked_for) {
            return *known;
        }
        let place = keys.push(self.pod_key(pod, blocks));
        keys.alike.insert(std::mem::take(&mut keys.looked_for), place);
        place
    }

    /// Which node has `address`, this one or another, if any has.
    ///
    /// What is this node's the kernel says. A Node object may be stale, or name an address that a
    /// translation in front of the node has: policy admits this node to all its pods, so that whoever
    /// sends from such an address would be let in everywhere; and a pod of this node whose address it
    /// names would be without policy.
    pub(super) fn node_kind(&self, address: IpAddr) -> Option<Kind> {
        if self.node.addresses.contains(&address) {
            return Some(Kind::Host);
        }
        self.node_addresses.holder(address)?;
        (!self.claims.is_endpoints(address)).then_some(Kind::RemoteNode)
    }

    /// Makes `likeness` that of `pod`, in the memory that it has.
    fn liken<'a>(&'a self, likeness: &mut Likeness<'a>, pod: &'a Pod, blocks: &'a [SelectorId]) {
        let asked_about = |(key, _): &(&str, &str)| self.selectors.asks_about(key);
        let is_used = |port: &&NamedPort| self.policies.uses_port_name(&port.name, port.protocol);
        likeness.namespace = &pod.name.namespace;
        likeness.labels.clear();
        likeness.labels.extend(pod.labels.iter().filter(asked_about));
        likeness.named_ports.clear();
        likeness.named_ports.extend(pod.named_ports.iter().filter(is_used));
        likeness.blocks = blocks;
    }

    fn pod_key(&self, pod: &Pod, blocks: &[SelectorId]) -> Key {
        // The first of a name counts.
        let mut named_ports: Vec<NamedPort> = Vec::new();
        for port in &pod.named_ports {
            let is_known = |own: &NamedPort| own.name == port.name && own.protocol == port.protocol;
            if self.policies.uses_port_name(&port.name, port.protocol)
                && !named_ports.iter().any(is_known)
            {
                named_ports.push(port.clone());
            }
        }
        named_ports.sort_unstable();
        let namespace = &*pod.name.namespace;
        let labels = namespace_labels(&self.state, namespace);
        let matching = self.selectors.of_pod((namespace, &labels), &pod.labels);
        Key { kind: Kind::Pod, selectors: with_blocks(matching, blocks), named_ports }
    }

    fn unknown_pod_key(&self, namespace: &Arc<str>, blocks: &[SelectorId]) -> Key {
        let labels = namespace_labels(&self.state, namespace);
        let matching = self.selectors.of_any_pod((namespace, &labels));
        let kind = Kind::UnknownPod { namespace: Arc::clone(namespace) };
        Key { kind, selectors: with_blocks(matching, blocks), named_ports: Vec::new() }
    }

    /// Whether policy for this pod is enforced here. A pod without a node counts: a folder of
    /// manifests for a single node need not name it.
    fn is_local(&self, name: &ObjectName, pod: Option<&Pod>) -> bool {
        let on_this = |on: &Arc<str>| **on == *self.node.name;
        self.node.endpoints.contains_key(name)
            || pod.is_some_and(|pod| pod.node.as_ref().is_none_or(on_this))
    }
}

fn with_blocks(mut matching: Vec<SelectorId>, blocks: &[SelectorId]) -> Vec<SelectorId> {
    matching.extend_from_slice(blocks);
    matching.sort_unstable();
    matching
}

/// What tells `pod` from others of its address. In manifests, where pods have no UID, those of a name
/// are one.
pub(crate) fn tag_of(pod: &Pod) -> PodTag {
    PodTag::of_hash(match &pod.uid {
        Uid::Uuid(octets) => fnv(octets),
        Uid::Other(text) => fnv(text.as_bytes()),
        Uid::Absent => fnv(pod.name.to_string().as_bytes()),
    })
}

/// FNV-1a (Fowler, Noll, Vo), which stays what it is: tags stand in flow tables that outlive their process.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
