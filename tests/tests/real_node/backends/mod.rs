//! Backends of a service that come, end and go on a real node that follows an API server, under load that
//! is counted at the clients: [`churn`] (connections held), [`rolling`] (requests and datagrams while all
//! are replaced).
//!
//! They go as a kubelet and the cluster's controllers let them: the slice says that the endpoint ends, and
//! serves; later the pod leaves the node, and Pod and endpoint go. Whoever comes has another UID, often an
//! address that another had.

mod churn;
mod rolling;

use std::collections::BTreeMap;

use control::model::Kind;
use serde_json::{Value, json};
use xskiff::lab::Namespace;
use xskiff_tests::cluster_server::Setup;

use crate::churn::{Churn, address};
use crate::followed::{ApiServer, follow};
use crate::world::{PATIENCE, Shape, World};

/// The service's load balancer address and L4 ports.
pub const ADDRESS: &str = "203.0.113.90";
pub const HTTP: u16 = 80;
pub const ECHO: u16 = 53;
/// Those of the pods.
const HTTP_TARGET: u16 = 8080;
const ECHO_TARGET: u16 = 5353;

/// Where a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    Ready,
    /// Not ready, serving, terminating.
    Ending,
}

/// A service whose backends are pods of [`Churn`].
pub struct Backends {
    pub churn: Churn,
    server: ApiServer,
    states: Vec<State>,
    /// How many pods each address has had.
    lives: BTreeMap<usize, u64>,
}

impl Backends {
    /// A node with links of so many pods, none of which is there yet.
    pub fn start(label: &'static str, count: usize) -> Self {
        let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
        let setup = (Setup::default(), "snapshot_seconds: 1");
        let (world, server) = follow(shape, setup, PATIENCE, |server| {
            server.set(Kind::Namespace, json!({ "metadata": { "name": "churn" } }));
            server.set(Kind::Service, service());
            server.set(Kind::EndpointSlice, slice(&[]));
        });
        let churn = Churn::in_world(world, count);
        Self { churn, server, states: vec![State::Absent; count], lives: BTreeMap::new() }
    }

    pub fn world(&self) -> &World {
        &self.churn.world
    }

    pub fn client(&self) -> &Namespace {
        &self.churn.world.scene.client
    }

    /// The namespace of a backend's pod.
    pub fn pod(&self, number: usize) -> &Namespace {
        &self.churn.pods[number / 100]
    }

    pub fn state(&self, number: usize) -> State {
        self.states[number]
    }

    pub fn count_of(&self, state: State) -> usize {
        self.states.iter().filter(|one| **one == state).count()
    }

    /// A pod comes to the node and is known to the cluster; no endpoint yet.
    pub fn come(&mut self, number: usize) {
        let life = self.lives.entry(number).or_default();
        *life += 1;
        let uid = format!("{number:08x}-0000-4000-8000-{life:012x}");
        self.churn.caller.add_pod(number, &uid);
        self.server.set(Kind::Pod, pod(number, &uid));
    }

    /// Endpoints' states change, all in one write of the slice.
    pub fn set(&mut self, changes: &[(usize, State)]) {
        changes.iter().for_each(|(number, state)| self.states[*number] = *state);
        self.server.set(Kind::EndpointSlice, slice(&self.states));
    }

    /// A pod leaves the node, and its Pod object is deleted.
    pub fn go(&mut self, number: usize) {
        self.churn.caller.remove(number);
        let name = format!("pod-{number}");
        self.server.store.delete(Kind::Pod, "churn", &name).expect("it is there");
    }
}

fn service() -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "churn" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.90", "clusterIPs": ["10.96.0.90"],
            "ports": [
                { "name": "http", "protocol": "TCP", "port": HTTP, "targetPort": HTTP_TARGET },
                { "name": "echo", "protocol": "UDP", "port": ECHO, "targetPort": ECHO_TARGET },
            ],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": ADDRESS }] } },
    })
}

fn slice(states: &[State]) -> Value {
    let there = states.iter().enumerate().filter(|(_, state)| **state != State::Absent);
    let endpoints = there.map(|(number, state)| {
        let is_ready = *state == State::Ready;
        json!({
            "addresses": [address(number)],
            "conditions": { "ready": is_ready, "serving": true, "terminating": !is_ready },
            "nodeName": "demo-node",
            "targetRef": { "kind": "Pod", "namespace": "churn", "name": format!("pod-{number}") },
        })
    });
    json!({
        "metadata": {
            "name": "web-0", "namespace": "churn",
            "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4",
        "ports": [
            { "name": "http", "port": HTTP_TARGET, "protocol": "TCP" },
            { "name": "echo", "port": ECHO_TARGET, "protocol": "UDP" },
        ],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn pod(number: usize, uid: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("pod-{number}"), "namespace": "churn", "uid": uid,
            "labels": { "app": "web" },
        },
        "spec": {
            "nodeName": "demo-node",
            "containers": [{ "name": "main", "image": "demo", "ports": [
                { "name": "http", "containerPort": HTTP_TARGET, "protocol": "TCP" },
                { "name": "echo", "containerPort": ECHO_TARGET, "protocol": "UDP" },
            ] }],
        },
        "status": {
            "phase": "Running", "podIP": address(number), "podIPs": [{ "ip": address(number) }],
        },
    })
}
