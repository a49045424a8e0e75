//! What the audit has read of objects so far, by what it looks for.
//!
//! Whoever may have an address is found among 150,000 pods thousands of times in a round, each of which
//! would take milliseconds. So a round begins by noting names, a little in each step, and what changes
//! meanwhile is noted when it does. Only names are kept, and too many of them: whoever asks looks at the
//! objects themselves, as they are by then.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::objects;
use crate::model::{EndpointSlice, Node, ObjectName, Pod, Service};
use crate::store::ClusterState;

/// Names, of which nearly always there is one. Trees, since those can be taken down a little at a time.
#[derive(Debug)]
struct Names<K, N> {
    first: BTreeMap<K, N>,
    /// Of keys that have several.
    others: BTreeMap<K, BTreeSet<N>>,
}

impl<K, N> Default for Names<K, N> {
    fn default() -> Self {
        Self { first: BTreeMap::default(), others: BTreeMap::default() }
    }
}

impl<K: Ord + Clone, N: Ord + Clone> Names<K, N> {
    fn note(&mut self, key: K, name: &N) {
        match self.first.entry(key) {
            Entry::Vacant(place) => {
                place.insert(name.clone());
            }
            Entry::Occupied(first) if first.get() == name => {}
            Entry::Occupied(first) => {
                self.others.entry(first.key().clone()).or_default().insert(name.clone());
            }
        }
    }

    /// Takes one key out; whether there was one.
    fn forget_one(&mut self) -> bool {
        self.others.pop_first().is_some() || self.first.pop_first().is_some()
    }

    fn of<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a N> + use<'a, K, N> {
        self.first.get(key).into_iter().chain(self.others.get(key).into_iter().flatten())
    }
}

/// Names by what is looked for.
#[derive(Debug, Default)]
pub(super) struct Index {
    pods: Names<IpAddr, ObjectName>,
    nodes: Names<IpAddr, String>,
    services: Names<IpAddr, ObjectName>,
    /// By service.
    slices: Names<ObjectName, ObjectName>,
}

impl Index {
    pub(super) fn note_pod(&mut self, pod: &Pod) {
        if objects::claims(pod) {
            pod.addresses.iter().for_each(|address| self.pods.note(*address, &pod.name));
        }
    }

    pub(super) fn note_node(&mut self, node: &Node) {
        node.addresses.iter().for_each(|address| self.nodes.note(*address, &node.name));
    }

    pub(super) fn note_service(&mut self, service: &Service) {
        service.addresses().for_each(|address| self.services.note(address, &service.name));
    }

    pub(super) fn note_slice(&mut self, slice: &EndpointSlice) {
        if let Some(service) = &slice.service {
            let service = ObjectName::new(slice.name.namespace.clone(), service.clone());
            self.slices.note(service, &slice.name);
        }
    }

    /// Takes something out; whether there was anything.
    pub(super) fn forget_one(&mut self) -> bool {
        self.pods.forget_one()
            || self.nodes.forget_one()
            || self.services.forget_one()
            || self.slices.forget_one()
    }

    /// Pods that claim `address` now, in no particular order.
    pub(super) fn pods<'a>(
        &self,
        state: &'a ClusterState,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Pod> {
        let claims = move |pod: &&Pod| objects::claims(pod) && pod.addresses.contains(&address);
        self.pods.of(&address).filter_map(|name| state.pod(name)).filter(claims)
    }

    /// Nodes that have `address` now, in no particular order.
    pub(super) fn nodes<'a>(
        &self,
        state: &'a ClusterState,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Node> {
        let known = self.nodes.of(&address).filter_map(|name| state.nodes.get(name));
        known.filter(move |node| node.addresses.contains(&address))
    }

    /// Services that have `address` now, in no particular order.
    pub(super) fn services<'a>(
        &self,
        state: &'a ClusterState,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Service> {
        let known = self.services.of(&address).filter_map(|name| state.services.get(name));
        known.filter(move |service| service.addresses().any(|own| own == address))
    }

    /// The slices of `service` now, by name.
    pub(super) fn slices<'a>(
        &self,
        state: &'a ClusterState,
        service: &ObjectName,
    ) -> Vec<&'a EndpointSlice> {
        let known = self.slices.of(service).filter_map(|name| state.endpoint_slices.get(name));
        let mut all: Vec<_> =
            known.filter(|slice| slice.service.as_deref() == Some(&*service.name)).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }
}
