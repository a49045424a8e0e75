//! What changing a field of a running node does.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Config, FlowTable};

/// When a changed field comes into force.
///
/// There is nothing between the two: whatever workers are started with (cores, rings, flow tables,
/// packet memory) is tied to sockets that are bound and flows that are owned, so starting the
/// workers alone again would lose what starting the process again loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// At the next reading of the file, without a packet lost.
    Live,
    /// When the node process is started again.
    Restart,
}

impl Effect {
    /// For people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "applied at once, no packet lost",
            Self::Restart => "in force after `xskiff run` is started again",
        }
    }
}

/// Fields that come into force without a restart; a prefix stands for all below it. Everything
/// else shapes memory, threads or attachments.
const LIVE: &[&str] = &[
    "timeouts",
    "transmit",
    "conntrack.tcp_windows",
    "flow_table.ipv4_flows",
    "flow_table.ipv4_flows_max",
    "flow_table.ipv6_flows",
    "flow_table.ipv6_flows_max",
    "flow_table.flows_per_endpoint_max",
    "nat.mapping",
    "nat.non_masquerade_cidrs",
    "nat.snat",
    "cluster",
    "node_ports",
    "load_balancing",
    "packet_memory.pod_frames",
    "cni.adopt_running_pods",
    "policy",
    "stall",
    "debug",
    "http.proxy_listen",
];

/// What changing `field` does.
#[must_use]
pub fn effect(field: &str) -> Effect {
    let is_below = |prefix: &str| {
        field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if LIVE.iter().any(|prefix| is_below(prefix)) { Effect::Live } else { Effect::Restart }
}

/// One field that differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Path of the field.
    pub field: String,
    /// Its value before, as JSON.
    pub from: String,
    /// Its value after, as JSON.
    pub to: String,
    /// What the change does to a running node.
    pub effect: Effect,
}

impl Config {
    /// What a node that runs `self` would do on being given `candidate`.
    #[must_use]
    pub fn diff(&self, candidate: &Self) -> Vec<Change> {
        let (before, after) = (self.leaves(), candidate.leaves());
        let fields: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let show = |value: Option<&Value>| value.map_or_else(|| "-".to_owned(), Value::to_string);
        fields
            .into_iter()
            .filter(|field| before.get(*field) != after.get(*field))
            .map(|field| Change {
                field: field.clone(),
                from: show(before.get(field)),
                to: show(after.get(field)),
                effect: effect(field),
            })
            .collect()
    }

    /// Takes over from `candidate` every field whose [`effect`] is [`Effect::Live`], and no other.
    pub fn take_live(&mut self, candidate: &Self) {
        self.timeouts.clone_from(&candidate.timeouts);
        self.transmit = candidate.transmit;
        self.conntrack.tcp_windows = candidate.conntrack.tcp_windows;
        let directory = self.flow_table.directory.take();
        self.flow_table = FlowTable { directory, ..candidate.flow_table.clone() };
        self.packet_memory.pod_frames = candidate.packet_memory.pod_frames;
        self.cni.adopt_running_pods = candidate.cni.adopt_running_pods;
        self.nat.mapping = candidate.nat.mapping;
        self.nat.snat.clone_from(&candidate.nat.snat);
        self.nat.non_masquerade_cidrs.clone_from(&candidate.nat.non_masquerade_cidrs);
        self.cluster.clone_from(&candidate.cluster);
        self.node_ports.clone_from(&candidate.node_ports);
        self.load_balancing.clone_from(&candidate.load_balancing);
        self.stall.clone_from(&candidate.stall);
        self.debug.clone_from(&candidate.debug);
        self.policy.clone_from(&candidate.policy);
        self.http.proxy_listen = candidate.http.proxy_listen;
    }

    /// Every field by its path. Lists are one field each.
    #[must_use]
    pub fn leaves(&self) -> BTreeMap<String, Value> {
        let mut leaves = BTreeMap::new();
        if let Ok(value) = serde_json::to_value(self) {
            collect("", value, &mut leaves);
        }
        leaves
    }
}

fn collect(path: &str, value: Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                collect(&path, value, leaves);
            }
        }
        value => {
            leaves.insert(path.to_owned(), value);
        }
    }
}
