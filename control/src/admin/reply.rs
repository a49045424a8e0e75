//! What the node answers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::policy::{
    DropCause, FoundIdentity, IdentityListing, PolicyExplanation, PolicyListing, PolicyStatus,
};
use super::service::{ServiceDetail, ServiceTraceReport};
use super::status::FlowTableStatus;
use super::status::{LimitInfo, ObjectError, Status};
use super::{AdminError, Attachment, CaptureDirection};

/// One line from the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`super::Request::Status`].
    Status(Box<Status>),
    /// To [`super::Request::EndpointAdd`] and [`super::Request::EndpointCheck`]: the port as it is
    /// now.
    Endpoint(EndpointInfo),
    /// To [`super::Request::EndpointRemove`] and [`super::Request::EndpointDetach`]: whether there
    /// was one.
    Removed(bool),
    /// To [`super::Request::EndpointRetain`]: those that were removed, `namespace/pod`.
    RemovedEndpoints(Vec<String>),
    /// To [`super::Request::EndpointList`].
    Endpoints(Vec<EndpointInfo>),
    /// To [`super::Request::ServiceList`].
    Services(Vec<ServiceInfo>),
    /// To [`super::Request::ServiceShow`].
    Service(Box<ServiceDetail>),
    /// To [`super::Request::ServiceTrace`].
    ServiceTraced(ServiceTraceReport),
    /// To [`super::Request::CtList`].
    Ct(CtListing),
    /// To [`super::Request::CtCount`] and [`super::Request::CtFlush`]: flows counted or ended.
    Count(u64),
    /// To [`super::Request::CtCount`] of all flows.
    CtCounts(CtCounts),
    /// To [`super::Request::CtTop`]: the most first.
    CtTop(Vec<CtTopRow>),
    /// To [`super::Request::CtResize`]: the tables as they are now.
    CtTables(Vec<FlowTableStatus>),
    /// To [`super::Request::Audit`].
    Audit(AuditReport),
    /// To [`super::Request::IdentityList`].
    Identities(IdentityListing),
    /// To [`super::Request::IdentityGet`]: one for each identity that the pod's addresses have.
    Identity(Vec<FoundIdentity>),
    /// To [`super::Request::PolicyList`].
    Policies(PolicyListing),
    /// To [`super::Request::PolicyStatus`].
    PolicyStatus(Box<PolicyStatus>),
    /// To [`super::Request::PolicyExplain`].
    Policy(PolicyExplanation),
    /// To [`super::Request::Drops`].
    Drops(Vec<DropCount>),
    /// To [`super::Request::Trace`].
    Trace(TraceReport),
    /// To [`super::Request::ConfigShow`]: the configuration in force, as YAML.
    Config(String),
    /// To [`super::Request::ConfigDiff`].
    ConfigDiff(Vec<ConfigDiff>),
    /// To [`super::Request::ManifestsStatus`].
    Manifests(ManifestsStatus),
    /// To [`super::Request::HandOver`]: the process ends now.
    HandingOver {
        /// Its process id.
        pid: u32,
    },
    /// To [`super::Request::Inject`]: it fails now.
    Injected,
    /// One of a stream.
    Item(StreamItem),
    /// The stream's end.
    End {
        /// Items that did not reach the client because it read too slowly, or the ring to the
        /// control thread was full.
        lost: u64,
    },
    /// Not obeyed.
    Error(AdminError),
}

/// A round of the audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Things that were compared.
    pub checked: u64,
    /// How many of them differ.
    pub found: u64,
    /// The first of those, at most [`crate::audit::DIFFERENCES_MAX`].
    pub differences: Vec<AuditDifference>,
}

/// Something that is in force otherwise than the objects say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDifference {
    /// Where: `identities`, `policy`, `services`, `endpoints`, `workers` or `kernel`.
    pub audited: String,
    /// Whose.
    pub object: String,
    /// What is expected, and what is there.
    pub detail: String,
}

/// One element of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamItem {
    /// Of [`super::Request::Flows`].
    Flow(Box<FlowRecord>),
    /// Of [`super::Request::Flows`] and [`super::Request::CtWatch`]: so many more were lost on the way.
    Lost(u64),
    /// Of [`super::Request::Capture`].
    Packet(CaptureRecord),
}

/// How many flows there are, and how the tables stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtCounts {
    /// Flows that are not over.
    pub flows: u64,
    /// Both tables.
    pub tables: Vec<FlowTableStatus>,
    /// Flows given up to make room, by class: `half-open`, `closing`, `short-lived`.
    pub evicted: Vec<(String, u64)>,
    /// Flows refused since their pod had as many as it may.
    pub refused_for_endpoint: u64,
}

/// Who has how many flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtTopRow {
    /// `namespace/pod` or `namespace/name:port`; absent for flows of nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Flows.
    pub flows: u64,
    /// Of those, ones that nobody has answered, or whose handshake is not complete.
    pub half_open: u64,
    /// Packets of those flows, both ways.
    pub packets: u64,
    /// Flows that it may have; absent without a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_max: Option<u64>,
}

/// A local endpoint and its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// `namespace/pod`.
    pub name: String,
    /// How it stands: one of [`ENDPOINT_STATES`](super::arrivals::ENDPOINT_STATES).
    #[serde(default)]
    pub state: String,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The node's end of the veth pair.
    pub interface: String,
    /// Index of the port in the tables.
    pub port: u16,
    /// Addresses the pod may speak from.
    pub addresses: Vec<IpAddr>,
    /// The pod's link address; absent until known.
    pub mac: Option<String>,
    /// Largest IP packet on the link, in bytes.
    pub mtu: u16,
    /// The MTU of the pod's end where that is larger, as it was when the pod was added: what the pod sends that
    /// is longer than the link takes is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_mtu: Option<u16>,
    /// The identity's number; absent until the Pod object is known.
    pub identity: Option<u32>,
    /// `true` when policy isolates the pod in that direction.
    pub isolated_ingress: bool,
    /// See `isolated_ingress`.
    pub isolated_egress: bool,
    /// The container runtime's name for it; absent when a person added it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// The Pod's `metadata.uid`, when the runtime told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Its bandwidth limits in force, ingress first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitInfo>,
    /// Limits and filters of `tc` on its interface, as they were when it was added, that its packets go past
    /// and that nothing here stands in for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bypassed: Vec<String>,
}

/// One service port and its backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// `namespace/name:port`.
    pub name: String,
    /// Where it listens, with the kind of each frontend.
    pub frontends: Vec<FrontendInfo>,
    /// Usable backends.
    pub backends: Vec<BackendInfo>,
    /// How the backend of a new connection is chosen: `maglev`, `random`, `least-connections` or
    /// `client-ip` (session affinity).
    #[serde(default)]
    pub choice: String,
    /// How clients from outside are answered by backends on other nodes: `snat`, or `direct` with the
    /// form in which these are told, and `stateless` where no flow is kept here.
    #[serde(default)]
    pub way_back: String,
}

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendInfo {
    /// `cluster-ip`, `external-ip`, `load-balancer`, `node-port` or `host-port`.
    pub kind: String,
    /// Absent for node ports and host ports: addresses of the node.
    pub address: Option<IpAddr>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Service port, node port or host port.
    pub l4_port: u16,
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Pod or host address.
    pub address: IpAddr,
    /// Target port.
    pub l4_port: u16,
    /// Whether it is on this node.
    pub local: bool,
    /// Its share of new connections, in proportion to those of others.
    pub weight: u16,
}

/// Flow entries, and whether there are more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtListing {
    /// In no particular order.
    pub entries: Vec<CtEntry>,
    /// Whether the limit cut the listing short.
    pub truncated: bool,
}

/// An address and L4 port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The address.
    pub address: IpAddr,
    /// The L4 port, or the ICMP identifier.
    pub l4_port: u16,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.address, self.l4_port).fmt(f)
    }
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtEntry {
    /// `tcp`, `udp`, `icmp` and so on.
    pub protocol: String,
    /// Who opened it.
    pub source: Peer,
    /// Whom it asked for.
    pub destination: Peer,
    /// Who answers, after DNAT; equal to `destination` without.
    pub backend: Peer,
    /// The source the backend sees, after SNAT; equal to `source` without.
    pub translated_source: Peer,
    /// The state's label.
    pub state: String,
    /// Until it expires when no packet comes, in seconds.
    pub expires_in_seconds: u64,
    /// Packets as the opener sends, and back; 0 where the table keeps no count.
    pub packets: (u64, u64),
    /// Bytes of their IP packets, where flows have details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<(u64, u64)>,
    /// The service it was opened through, `namespace/name:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The rule that admitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// Packets dropped for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DropCount {
    /// The reason's label.
    pub reason: String,
    /// What it means.
    pub explanation: String,
    /// Packets since the node process began.
    pub packets: u64,
    /// Of drops by policy: who caused them, as far as the decisions that are kept still tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<DropCause>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// `opened`, `audited`, `closed` or `dropped`; of a flow that is watched, `changed` as well.
    pub verdict: String,
    /// The flow's state, when it is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The drop reason's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The interface it came in by.
    pub interface: String,
    /// The protocol, when it parsed that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Who sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Peer>,
    /// To whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Peer>,
    /// The backend a service chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Peer>,
    /// The service, `namespace/name:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `namespace/pod` of the sender, when local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_endpoint: Option<String>,
    /// `namespace/pod` of the receiver, when local.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_endpoint: Option<String>,
    /// The rule that decided; of a default deny, with the policies that isolate the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policies behind it, `namespace/name`; at most [`super::policy::POLICIES_NAMED_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

/// One captured packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// Nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// The interface.
    pub interface: String,
    /// Which way it went.
    pub direction: CaptureDirection,
    /// The drop reason's label, when it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Length on the wire, in bytes.
    pub length_bytes: u32,
    /// The captured bytes in hexadecimal.
    pub frame: String,
}

/// One packet's way through the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// In the pipeline's order.
    pub stages: Vec<TraceStage>,
    /// `transmit PORT`, `drop REASON` and so on.
    pub outcome: String,
    /// The frame as it would leave, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
}

/// What one stage found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStage {
    /// The stage.
    pub stage: String,
    /// What it decided.
    pub finding: String,
}

/// One setting that a candidate configuration would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDiff {
    /// The setting's path, `workers.count`.
    pub setting: String,
    /// In force.
    pub from: String,
    /// In the candidate.
    pub to: String,
    /// What changing it live does.
    pub effect: String,
}

/// What the manifests folder gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManifestsStatus {
    /// The folder; absent when none is configured.
    pub folder: Option<String>,
    /// Objects in force by kind.
    pub objects: Vec<(String, u64)>,
    /// Times the folder was read.
    pub reads: u64,
    /// Times a reading was refused whole or in part.
    pub failures: u64,
    /// Time of all readings together.
    pub read_microseconds: u64,
    /// Time of the longest.
    pub longest_read_microseconds: u64,
    /// Seconds since the last reading that succeeded; absent before the first.
    pub seconds_since_success: Option<u64>,
    /// What is refused now.
    pub errors: Vec<ObjectError>,
    /// What is in force otherwise than it was probably meant.
    pub warnings: Vec<String>,
}
