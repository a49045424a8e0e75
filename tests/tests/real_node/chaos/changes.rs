//! What goes on in the cluster meanwhile: policies, labels, pods and endpoints that come, change and
//! go. None of it ends a connection that is held.

use control::model::Kind;
use serde_json::{Value, json};
use xskiff_tests::cluster_server::Synthetic;
use xskiff_tests::random::Random;

use crate::followed::ApiServer;

use super::objects::History;

/// Policies that come and go in each namespace.
const POLICIES: usize = 4;
/// What a pod that is asked about may be.
const ROLES: [&str; 3] = ["stranger", "buyer", "guest"];

/// The cluster, as it changes.
pub struct Changes {
    pub history: History,
    random: Random,
    cluster: Synthetic,
    /// The demo's pod that changes its labels, and its slice whose endpoint is ready or not.
    stranger: Value,
    slice: Value,
    turn: usize,
}

impl Changes {
    pub fn new(objects: &[(Kind, Value)], cluster: Synthetic, seed: u64) -> Self {
        let named = |kind: Kind, name: &str| {
            let mut found = objects.iter().filter(|(own, _)| *own == kind);
            let found = found.find(|(_, object)| object["metadata"]["name"] == name);
            found.expect("the demo has it").1.clone()
        };
        Self {
            history: History::new(objects.iter()),
            random: Random::new(seed),
            cluster,
            stranger: named(Kind::Pod, "stranger"),
            slice: named(Kind::EndpointSlice, "web-ipv4"),
            turn: 0,
        }
    }

    fn set(&mut self, server: &ApiServer, kind: Kind, object: Value) {
        // First, so that no answer is looked for in vain.
        self.history.set(kind, &object);
        server.set(kind, object);
    }

    fn delete(&mut self, server: &ApiServer, kind: Kind, object: &Value) {
        self.history.delete(kind, object);
        let metadata = &object["metadata"];
        let [namespace, name] = ["namespace", "name"].map(|key| metadata[key].as_str());
        // It may not be there.
        server.store.delete(kind, namespace.unwrap_or_default(), name.expect("a name"));
    }

    /// One change.
    pub fn step(&mut self, server: &ApiServer) {
        self.turn += 1;
        match self.random.below(8) {
            0..3 => self.policy(server),
            3 => self.label(server),
            4 => self.namespace(server),
            5 => self.endpoint(server),
            _ => self.elsewhere(server),
        }
    }

    /// A policy comes, changes or goes. Those of the shop only allow more, and those of the market
    /// leave what its buyer does alone.
    fn policy(&mut self, server: &ApiServer) {
        let random = &mut self.random;
        let (number, is_shop) = (random.below(POLICIES), random.one_in(2));
        let namespace = if is_shop { "shop" } else { "market" };
        let metadata = json!({ "name": format!("chaos-{number}"), "namespace": namespace });
        if random.one_in(3) {
            let object = json!({ "metadata": metadata });
            return self.delete(server, Kind::NetworkPolicy, &object);
        }
        let rules: Vec<Value> = (0..random.below(3)).map(|_| rule(random)).collect();
        let spec = if is_shop || random.one_in(2) {
            let subject = if is_shop { json!({ "app": "web" }) } else { json!({}) };
            json!({
                "podSelector": { "matchLabels": subject },
                "policyTypes": ["Ingress"],
                "ingress": rules.iter().map(|rule| json!({
                    "from": rule["peers"], "ports": rule["ports"],
                })).collect::<Vec<_>>(),
            })
        } else {
            json!({
                "podSelector": { "matchLabels": { "role": "stranger" } },
                "policyTypes": ["Egress"],
                "egress": rules.iter().map(|rule| json!({
                    "to": rule["peers"], "ports": rule["ports"],
                })).collect::<Vec<_>>(),
            })
        };
        self.set(server, Kind::NetworkPolicy, json!({ "metadata": metadata, "spec": spec }));
    }

    fn label(&mut self, server: &ApiServer) {
        self.stranger["metadata"]["labels"]["role"] = json!(self.random.pick(&ROLES));
        self.set(server, Kind::Pod, self.stranger.clone());
    }

    fn namespace(&mut self, server: &ApiServer) {
        let tier = *self.random.pick(&["front", "back"]);
        let labels = json!({ "kubernetes.io/metadata.name": "market", "tier": tier });
        let object = json!({ "metadata": { "name": "market", "labels": labels } });
        self.set(server, Kind::Namespace, object);
    }

    /// A backend that is ready no more, or again: its connections stay.
    fn endpoint(&mut self, server: &ApiServer) {
        let ready = &mut self.slice["endpoints"][1]["conditions"]["ready"];
        *ready = json!(*ready != json!(true));
        self.set(server, Kind::EndpointSlice, self.slice.clone());
    }

    /// A pod of another node comes, goes, or is another one.
    fn elsewhere(&mut self, server: &ApiServer) {
        let pod = self.random.below(self.cluster.size.pods);
        let object = self.cluster.pod_at(pod, self.turn);
        if self.random.one_in(4) {
            self.delete(server, Kind::Pod, &object);
        } else {
            let mut object = object;
            object["metadata"]["labels"]["app"] =
                json!(self.random.pick(&["web", "app-0", "none"]));
            self.set(server, Kind::Pod, object);
        }
    }
}

/// A rule's peers and ports.
fn rule(random: &mut Random) -> Value {
    let peer = match random.below(5) {
        0 => json!({ "podSelector": {} }),
        1 => json!({ "podSelector": { "matchLabels": { "role": *random.pick(&ROLES) } } }),
        2 => json!({
            "namespaceSelector": { "matchLabels": { "tier": *random.pick(&["front", "back"]) } },
        }),
        3 => json!({
            "namespaceSelector": {},
            "podSelector": { "matchExpressions": [
                { "key": "app", "operator": *random.pick(&["Exists", "DoesNotExist"]) },
            ] },
        }),
        _ => json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.244.0.16/28"] } }),
    };
    let ports = match random.below(3) {
        0 => json!([]),
        1 => json!([{ "protocol": "TCP", "port": "http" }]),
        _ => json!([{ "protocol": "UDP", "port": 5000, "endPort": 6000 }]),
    };
    json!({ "peers": [peer], "ports": ports })
}
