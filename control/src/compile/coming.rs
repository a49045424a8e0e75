//! Objects that come in the order of API servers' lists while there is none of their kind yet: those of a
//! snapshot, or of a list. In a large cluster most of what it takes to take them over is to find each
//! one's place among those before, so that they wait, and a map is built of all of them at once.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::once;
use std::sync::Arc;

use super::{Compiled, beside};
use crate::model::{EndpointSlice, Kind, Object, ObjectName, Pod, Service};
use crate::store::{Change, ClusterState};

/// From this many pods on they are put into their map by a second thread.
const PODS_APART: usize = 10_000;

/// Objects that are taken over and not yet in the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Coming {
    pods: Vec<(ObjectName, Box<Pod>)>,
    services: Vec<(ObjectName, Service)>,
    endpoint_slices: Vec<(ObjectName, EndpointSlice)>,
}

/// Lists come in the order of the text `namespace/name`: `shop-eu/a` before `shop/a`, unlike in our maps.
fn listed_order(one: &ObjectName, other: &ObjectName) -> Ordering {
    if one.namespace == other.namespace {
        return one.name.cmp(&other.name);
    }
    let [one, other] = [one, other].map(|of| of.namespace.bytes().chain(once(b'/')));
    one.cmp(other)
}

/// Whether what has this name is the next of those that wait.
fn is_next<T>(
    name: &ObjectName,
    waiting: &[(ObjectName, T)],
    present: &BTreeMap<ObjectName, T>,
) -> bool {
    present.is_empty() && waiting.last().is_none_or(|(last, _)| listed_order(last, name).is_lt())
}

/// Puts those that wait where they belong: what is nearly in order is sorted quickly.
fn file<T>(waiting: &mut Vec<(ObjectName, T)>, present: &mut BTreeMap<ObjectName, T>) {
    *present = std::mem::take(waiting).into_iter().collect();
}

impl Compiled {
    /// Lets what comes in order wait; gives back everything else.
    pub(super) fn let_wait(&mut self, change: Change) -> Option<Change> {
        let (waiting, present) = (&self.coming, &self.state);
        match change {
            Change::Set(Object::Pod(mut pod))
                if is_next(&pod.name, &waiting.pods, &present.pods) =>
            {
                self.share_names_of(&mut pod);
                self.note_pod(&pod, true);
                self.coming.pods.push((pod.name.clone(), pod));
                None
            }
            Change::Set(Object::Service(service))
                if is_next(&service.name, &waiting.services, &present.services) =>
            {
                self.coming.services.push((service.name.clone(), *service));
                None
            }
            Change::Set(Object::EndpointSlice(slice))
                if is_next(&slice.name, &waiting.endpoint_slices, &present.endpoint_slices) =>
            {
                self.coming.endpoint_slices.push((slice.name.clone(), slice));
                None
            }
            other => Some(other),
        }
    }

    /// Puts all of a kind that wait into the state.
    pub(super) fn file(&mut self, kind: Kind) {
        let Self { coming, balanced, dirt, state, .. } = self;
        match kind {
            Kind::Pod if !coming.pods.is_empty() => {
                file(&mut coming.pods, &mut Arc::make_mut(state).pods);
            }
            Kind::Service if !coming.services.is_empty() => {
                dirt.add_services(coming.services.iter().map(|(name, _)| name.clone()));
                file(&mut coming.services, &mut Arc::make_mut(state).services);
            }
            Kind::EndpointSlice if !coming.endpoint_slices.is_empty() => {
                let slices = coming.endpoint_slices.iter();
                let concerned = slices.flat_map(|(name, slice)| {
                    balanced.note_slice(name, None, Some(slice)).into_iter().flatten()
                });
                dirt.add_services(concerned);
                file(&mut coming.endpoint_slices, &mut Arc::make_mut(state).endpoint_slices);
            }
            // Nothing waits, or nothing ever does.
            _ => {}
        }
    }

    /// The cluster as the changes taken so far make it, compiled or not.
    pub fn whole_state(&mut self) -> &ClusterState {
        let file_all = |own: &mut Self| Kind::ALL.into_iter().for_each(|kind| own.file(kind));
        if self.coming.pods.len() < PODS_APART {
            file_all(self);
            return &self.state;
        }
        let mut pods = std::mem::take(&mut self.coming.pods);
        let collect = || std::mem::take(&mut pods).into_iter().collect();
        let filed = beside("xskiff-pods", collect, || file_all(self));
        Arc::make_mut(&mut self.state).pods = filed;
        &self.state
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::compile::{NodeView, compile};
    use crate::model::read;
    use crate::model::{Endpoint, ObjectKey, PodPhase, SlicePort, Uid, WEIGHT_DEFAULT};
    use dataplane::address::Protocol;

    fn address(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    fn name(number: u8) -> ObjectName {
        // The order of lists and that of names are not the same.
        ObjectName::new(["shop", "shop-eu"][usize::from(number % 2)], format!("o{number}"))
    }

    fn pod(number: u8, at: u8) -> Object {
        Object::from(Pod {
            name: name(number),
            uid: Uid::Absent,
            labels: Default::default(),
            addresses: [address(at)].into(),
            node: Some("one".into()),
            named_ports: Box::default(),
            host_ports: Box::default(),
            host_network: false,
            phase: PodPhase::Running,
            terminating: false,
            bandwidth: None,
            weight: Some(WEIGHT_DEFAULT),
        })
    }

    fn service(number: u8, at: u8) -> Object {
        let ObjectName { namespace, name } = name(number);
        let manifest = serde_json::json!({
            "metadata": { "namespace": *namespace, "name": *name },
            "spec": { "clusterIP": address(100 + at % 50), "ports": [{ "port": 80 }] },
        });
        read::object(Kind::Service, manifest, read::UnknownFields::Refuse).expect("a good one")
    }

    fn slice(number: u8, at: u8) -> Object {
        let port = SlicePort { name: String::new(), protocol: Protocol::TCP, l4_port: Some(8080) };
        let endpoint = Endpoint {
            address: address(at),
            ready: true,
            serving: true,
            terminating: false,
            node: Some("one".into()),
            hints: None,
            target: None,
        };
        Object::EndpointSlice(EndpointSlice {
            name: name(number),
            service: Some(name(number).name.to_string()),
            ports: vec![port],
            endpoints: vec![endpoint],
            left_out: None,
        })
    }

    fn change() -> impl Strategy<Value = Change> {
        (0u8..3, 0u8..6, 1u8..5, any::<bool>()).prop_map(|(kind, number, at, is_there)| {
            let object = [pod, service, slice][usize::from(kind)](number, at);
            match is_there {
                true => Change::Set(object),
                false => {
                    let ObjectKey { kind, name } = object.key();
                    Change::Gone(ObjectKey::new(kind, name))
                }
            }
        })
    }

    /// Also where one namespace's name is the beginning of another's, as they often are.
    #[test]
    fn a_list_as_servers_send_it_waits_as_a_whole() {
        let mut names: Vec<u8> = (0..40).collect();
        names.sort_by_key(|number| name(*number).to_string());
        let mut compiled = Compiled::default();
        for number in names {
            compiled.take(Change::Set(pod(number, number)));
        }
        assert_eq!(compiled.coming.pods.len(), 40);
        assert_eq!(compiled.whole_state().pods.len(), 40);
    }

    proptest! {
        /// In whatever order things come, how often, and however often it is compiled meanwhile.
        #[test]
        fn what_waits_is_the_state_that_it_would_be_if_nothing_waited(
            changes in prop::collection::vec((change(), prop::bool::weighted(0.2)), 0..24),
            is_in_order in any::<bool>(),
        ) {
            let mut changes = changes;
            if is_in_order {
                changes.sort_by_key(|(change, _)| (change.key().kind, change.key().name.to_string()));
            }
            let node = NodeView { name: "one".into(), ..NodeView::default() };
            let (mut plain, mut compiled) = (ClusterState::default(), Compiled::default());
            for (change, then_compiled) in changes {
                plain.apply(change.clone());
                compiled.take(change);
                if then_compiled {
                    compiled.compile(&node);
                    prop_assert_eq!(compiled.state(), &plain);
                }
            }
            prop_assert_eq!(compiled.whole_state(), &plain);
            compiled.compile(&node);
            let anew = compile(&plain, &node, &Compiled::default());
            prop_assert_eq!(compiled.pods_in.clone(), anew.pods_in.clone());
            let listening = |of: &Compiled| -> BTreeSet<_> {
                let frontends = of.services.frontends.iter().map(|(frontend, (id, _))| {
                    let service = of.services.get(*id).expect("it is in force");
                    (*frontend, service.name.clone(), service.cluster.backends.clone())
                });
                frontends.collect()
            };
            prop_assert_eq!(listening(&compiled), listening(&anew));
            for number in 0..10 {
                let of = |one: &Compiled| one.identity_name(one.identities.lookup(address(number)));
                prop_assert_eq!(of(&compiled), of(&anew));
                let is_local = |one: &Compiled| one.is_local_address(address(number));
                prop_assert_eq!(is_local(&compiled), is_local(&anew));
            }
        }
    }
}
