//! What is asked and told of services in detail.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::reply::{FrontendInfo, Peer, TraceStage};

/// Backends that are told of one service port; the rest is counted.
pub const BACKENDS_TOLD_MAX: usize = 1000;

/// Which backend would a packet get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTraceQuestion {
    /// Who speaks: a pod's address here, the node's own, or one outside.
    pub from: IpAddr,
    /// Its L4 port; absent: any, which is then told for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// The address that is asked for.
    pub to: IpAddr,
    /// The L4 port there.
    pub l4_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// Which backend a packet would get, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraceReport {
    /// In the order of the decision.
    pub stages: Vec<TraceStage>,
    /// The backend; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Peer>,
    /// What becomes of the packet.
    pub outcome: String,
}

/// A service and all that is behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// `namespace/name`.
    pub name: String,
    /// `Cluster` or `Local`.
    pub internal_policy: String,
    /// `Cluster` or `Local`.
    pub external_policy: String,
    /// Who may use its load balancer addresses; empty: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<String>,
    /// The health check, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckInfo>,
    /// Its ports, of each family that it has addresses of.
    pub ports: Vec<ServicePortDetail>,
    /// What of it is in force otherwise than it was probably meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What load balancers are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheckInfo {
    /// `healthCheckNodePort`.
    pub l4_port: u16,
    /// Ready endpoints of this node.
    pub local_endpoints: u32,
    /// Why it is not answered, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// One port of a service in one family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortDetail {
    /// The port's name, or its number.
    pub name: String,
    /// `IPv4` or `IPv6`, of the frontends.
    pub family: String,
    /// Where it listens.
    pub frontends: Vec<FrontendInfo>,
    /// How hints narrow the backends.
    pub topology: String,
    /// As of [`super::reply::ServiceInfo::choice`]; empty where it is not in force.
    #[serde(default)]
    pub choice: String,
    /// As of [`super::reply::ServiceInfo::way_back`]; empty where it is not in force.
    #[serde(default)]
    pub way_back: String,
    /// All of its endpoints, used or not; at most [`BACKENDS_TOLD_MAX`].
    pub backends: Vec<BackendDetail>,
    /// How many more there are.
    pub left_out: u64,
}

/// One endpoint, used or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendDetail {
    /// Pod or host address.
    pub address: IpAddr,
    /// Target port.
    pub l4_port: u16,
    /// The node it is on, as far as that is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it is on this node.
    pub local: bool,
    /// Its share of new connections, in proportion to those of others.
    pub weight: u16,
    /// `ready`, `serving-terminating`, `terminating` or `unready`.
    pub state: String,
    /// Whether the policy Cluster chooses it.
    pub in_cluster: bool,
    /// Whether the policy Local chooses it.
    pub in_local: bool,
    /// Why neither does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Connections that it has by this service, of this node's.
    pub connections: u64,
    /// Bytes of their IP packets both ways, where flows have details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}
