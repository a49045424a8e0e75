//! What the API server holds over time, and what the model says that policy makes of it.
//!
//! A node follows each kind by itself, and each may be late by itself. So what a node may say is what
//! the model says of any mixture of states since the last moment at which it was known to have them
//! all: of this kind as it was then, or as any change since has made it.

use std::net::IpAddr;

use control::model::Kind;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xskiff_tests::policy_model::{Answer, Objects, Packet, Transport};

/// A question to the node: may this packet pass?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub from: IpAddr,
    pub to: IpAddr,
    pub transport: Transport,
}

/// Every state of the kinds that policy looks at, since one that is in force.
pub struct History {
    namespaces: Vec<Objects>,
    pods: Vec<Objects>,
    policies: Vec<Objects>,
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"))
}

fn is_named(object: &Value, namespace: Option<&str>, name: Option<&str>) -> bool {
    let metadata = &object["metadata"];
    metadata["namespace"].as_str() == namespace && metadata["name"].as_str() == name
}

impl History {
    /// Begins with these objects.
    pub fn new<'a>(objects: impl Iterator<Item = &'a (Kind, Value)>) -> Self {
        let mut all = Objects::default();
        for (kind, object) in objects {
            match kind {
                Kind::Namespace => all.namespaces.push(typed(object)),
                Kind::Node => all.nodes.push(typed(object)),
                Kind::Pod => all.pods.push(typed(object)),
                Kind::NetworkPolicy => all.policies.push(typed(object)),
                Kind::Service | Kind::EndpointSlice => {}
            }
        }
        Self { namespaces: vec![all.clone()], pods: vec![all.clone()], policies: vec![all] }
    }

    fn states(&mut self, kind: Kind) -> Option<&mut Vec<Objects>> {
        match kind {
            Kind::Namespace => Some(&mut self.namespaces),
            Kind::Pod => Some(&mut self.pods),
            Kind::NetworkPolicy => Some(&mut self.policies),
            Kind::Node | Kind::Service | Kind::EndpointSlice => None,
        }
    }

    /// An object is set.
    pub fn set(&mut self, kind: Kind, object: &Value) {
        self.change(kind, object, true);
    }

    /// An object is deleted.
    pub fn delete(&mut self, kind: Kind, object: &Value) {
        self.change(kind, object, false);
    }

    fn change(&mut self, kind: Kind, object: &Value, is_set: bool) {
        let Some(states) = self.states(kind) else { return };
        let mut next = states.last().expect("never empty").clone();
        // Compared by name as the API does.
        macro_rules! replace {
            ($list:expr) => {{
                $list.retain(|one| {
                    let metadata = &one.metadata;
                    !is_named(object, metadata.namespace.as_deref(), metadata.name.as_deref())
                });
                if is_set {
                    $list.push(typed(object));
                }
            }};
        }
        match kind {
            Kind::Namespace => replace!(next.namespaces),
            Kind::Pod => replace!(next.pods),
            _ => replace!(next.policies),
        }
        states.push(next);
    }

    /// Everything up to now is in force.
    pub fn is_in_force(&mut self) {
        for states in [&mut self.namespaces, &mut self.pods, &mut self.policies] {
            states.drain(..states.len() - 1);
        }
    }

    /// What the model says of the last state.
    pub fn now(&self) -> impl Fn(Question) -> bool + use<> {
        let state = self.mixtures().next().unwrap_or_default();
        move |question| allows(&state, question)
    }

    /// Whether the model gives this answer in some mixture of states that may be in force.
    pub fn may_say(&self, question: Question, allowed: bool) -> bool {
        self.mixtures().any(|state| allows(&state, question) == allowed)
    }

    /// The latest first.
    fn mixtures(&self) -> impl Iterator<Item = Objects> {
        let of = |states: &'_ [Objects]| (0..states.len()).rev().collect::<Vec<_>>();
        let (namespaces, pods) = (of(&self.namespaces), of(&self.pods));
        let policies = of(&self.policies);
        let pairs = namespaces.into_iter().flat_map(move |namespaces| {
            pods.clone().into_iter().map(move |pods| (namespaces, pods))
        });
        let triples = pairs.flat_map(move |(namespaces, pods)| {
            policies.clone().into_iter().map(move |policies| (namespaces, pods, policies))
        });
        triples.map(|(namespaces, pods, policies)| Objects {
            namespaces: self.namespaces[namespaces].namespaces.clone(),
            nodes: self.namespaces[0].nodes.clone(),
            pods: self.pods[pods].pods.clone(),
            policies: self.policies[policies].policies.clone(),
            ..Objects::default()
        })
    }
}

/// What the node must say: it explains what both ends' nodes do.
fn allows(state: &Objects, question: Question) -> bool {
    let Question { from, to, transport } = question;
    let Answer { egress, ingress } = state.judge(&Packet { from, to, transport });
    egress != Some(false) && ingress != Some(false)
}
