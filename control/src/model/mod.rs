//! Cluster objects, reduced to what a node's dataplane needs.
//!
//! The Kubernetes API's own types are large and mostly irrelevant here, and every object of the
//! cluster is kept, so only the fields that are read are kept. [`read`] makes these of an object's
//! text, by way of [`convert`], which takes the API's types and refuses what cannot be meant;
//! [`selector`] says how labels are matched.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::lb::{Choice, TrafficPolicy};
use dataplane::lpm::Prefix;

mod bandwidth;
pub mod convert;
mod convert_policy;
mod convert_service;
mod forwarding;
mod label_set;
mod labels;
pub mod mode;
pub mod read;
pub mod selector;
mod uid;
mod weight;

pub use bandwidth::{
    AnnotatedRate, EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, PodBandwidth, RateError, bits_per_second,
    rate_text,
};
pub use forwarding::{FORWARDING_MODE, ForwardingMode, STATELESS};
pub use label_set::{Labels, LabelsBuilder};
pub use mode::PolicyMode;
pub use selector::{LabelSelector, Operator, Requirement};
pub use uid::Uid;
pub use weight::{LOAD_BALANCING, SERVICE_WEIGHT, WEIGHT_DEFAULT};

/// What names an object of a kind within the cluster.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name `namespace/name`.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for ObjectName {
    /// By namespace, then by name. Most that are compared share the namespace's text.
    fn cmp(&self, other: &Self) -> Ordering {
        let namespaces = match Arc::ptr_eq(&self.namespace, &other.namespace) {
            true => Ordering::Equal,
            false => self.namespace.cmp(&other.namespace),
        };
        namespaces.then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no object: write NAMESPACE/NAME, such as shop/web-0")]
pub struct ObjectNameError(String);

impl std::str::FromStr for ObjectName {
    type Err = ObjectNameError;

    fn from_str(text: &str) -> Result<Self, ObjectNameError> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::new(namespace, name))
            }
            _ => Err(ObjectNameError(text.to_owned())),
        }
    }
}

/// A Namespace: only its labels matter, and how its policies are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`, with `kubernetes.io/metadata.name` always set, as the API server does.
    pub labels: Labels,
    /// How its policies are meant.
    pub mode: PolicyMode,
}

/// A Node and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses` of the types InternalIP and ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Prefix>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether it is about to go: deleted, or tainted `ToBeDeletedByClusterAutoscaler`.
    pub is_leaving: bool,
    /// How policy is meant that is enforced there.
    pub mode: PolicyMode,
}

/// `status.phase` of a Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers have started.
    Pending,
    /// At least one container runs.
    Running,
    /// All containers ended well: its addresses may be another pod's by now.
    Succeeded,
    /// All containers ended, one badly: its addresses may be another pod's by now.
    Failed,
    /// The node does not answer.
    Unknown,
}

/// A container port that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// `containers[].ports[].name`.
    pub name: String,
    /// `containers[].ports[].protocol`.
    pub protocol: Protocol,
    /// `containers[].ports[].containerPort`.
    pub l4_port: u16,
}

/// A container port that is served on the node's addresses as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `containers[].ports[].hostIP`: one of the node's addresses, or the unspecified one of a
    /// family; `None`: all.
    pub address: Option<IpAddr>,
    /// `containers[].ports[].protocol`.
    pub protocol: Protocol,
    /// `containers[].ports[].hostPort`.
    pub l4_port: u16,
    /// `containers[].ports[].containerPort`.
    pub container_port: u16,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.podIPs`.
    pub addresses: Box<[IpAddr]>,
    /// `spec.nodeName`; `None` while unscheduled.
    pub node: Option<Arc<str>>,
    /// Named container ports in the order of the containers; the first of a name counts.
    pub named_ports: Box<[NamedPort]>,
    /// Container ports that are served on the node's addresses, in the order of the containers; none
    /// on the host's network, where the container itself listens.
    pub host_ports: Box<[HostPort]>,
    /// `spec.hostNetwork`: its addresses are its node's, and policy does not apply to it.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: PodPhase,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// What its annotations say of its bandwidth.
    pub bandwidth: Option<Box<PodBandwidth>>,
    /// Its share of a service's flows ([`SERVICE_WEIGHT`]), [`WEIGHT_DEFAULT`] where nothing is said;
    /// `None` where that is no weight.
    pub weight: Option<u16>,
}

impl Pod {
    /// Whether its containers have ended for good, so that its addresses are no longer its own.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// The number behind a named port.
    #[must_use]
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.named_ports
            .iter()
            .find(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.l4_port)
    }
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty when the service has a single, unnamed port.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub l4_port: u16,
    /// `nodePort`, where one was allocated.
    pub node_port: Option<u16>,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.clusterIPs`; empty for headless services and those without an address yet.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether it is not to be served here by intent: `clusterIP: None`, type ExternalName, or a
    /// label that another proxy serves it.
    pub headless: bool,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`, except those of `ipMode: Proxy`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.ports`; at least one unless headless.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<Prefix>,
    /// `spec.healthCheckNodePort` of a LoadBalancer with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where `spec.sessionAffinity` is ClientIP.
    pub affinity_seconds: Option<u32>,
    /// What [`LOAD_BALANCING`] says; `None` where that is no word for it.
    pub choice: Option<Choice>,
    /// What [`FORWARDING_MODE`] says.
    pub forwarding: ForwardingMode,
    /// What [`STATELESS`] says; `None` where that is neither `true` nor `false`.
    pub stateless: Option<bool>,
}

/// One port of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// `name`: matches the Service port of the same name.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`; `None` means "all ports", which no Service can use.
    pub l4_port: Option<u16>,
}

/// One endpoint of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the API gives further ones no meaning.
    pub address: IpAddr,
    /// `conditions.ready`; absent means ready.
    pub ready: bool,
    /// `conditions.serving`; absent means serving, whatever `ready` says (discovery.k8s.io/v1).
    pub serving: bool,
    /// `conditions.terminating`; absent means not.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints`; `None` without any.
    pub hints: Option<Box<Hints>>,
    /// `targetRef.name` where that is a Pod, of the slice's namespace.
    pub target: Option<String>,
}

/// Whose clients an endpoint is meant for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forNodes[].name`.
    pub nodes: Vec<Arc<str>>,
    /// `forZones[].name`.
    pub zones: Vec<Arc<str>>,
}

/// An EndpointSlice of addresses (FQDN slices hold none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// The label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// `ports`.
    pub ports: Vec<SlicePort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// What is wrong with those that are left out, if any are.
    pub left_out: Option<String>,
}

/// Which L4 ports one entry of a rule's `ports` allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum L4Ports {
    /// No port is named: all of the protocol.
    All,
    /// `port`, or `port` to `endPort`.
    Range(RangeInclusive<u16>),
    /// Whatever the destination pod gives this name.
    Named(String),
}

/// One entry of a rule's `ports`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortMatch {
    /// `protocol`, TCP by default.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub l4_ports: L4Ports,
}

/// One entry of a rule's `from` or `to`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// `podSelector`, `namespaceSelector` or both.
    Pods {
        /// `namespaceSelector`; absent means the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; absent means all pods.
        pods: LabelSelector,
    },
    /// `ipBlock`.
    Block {
        /// `cidr`.
        cidr: Prefix,
        /// `except`, each within `cidr`; sorted.
        except: Vec<Prefix>,
    },
}

/// One entry of `ingress` or `egress`: what it allows, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    /// Empty: every peer.
    pub peers: Vec<Peer>,
    /// Empty: every protocol and L4 port.
    pub ports: Vec<PortMatch>,
}

impl PolicyRule {
    /// One that allows nothing to nobody: what stands for a rule that is not understood, so that
    /// those after it keep their numbers.
    #[must_use]
    pub fn nothing() -> Self {
        let peer = Peer::Pods { namespaces: None, pods: LabelSelector::nothing() };
        Self { peers: vec![peer], ports: Vec::new() }
    }
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.podSelector`; empty selects every pod of the namespace.
    pub subject: LabelSelector,
    /// The ingress rules, if the policy isolates in that direction (`policyTypes`).
    pub ingress: Option<Vec<PolicyRule>>,
    /// The egress rules, if the policy isolates in that direction (`policyTypes`).
    pub egress: Option<Vec<PolicyRule>>,
    /// How it is meant.
    pub mode: PolicyMode,
}

/// Any object that is read. Those that are large or many lie apart: on their way from a server or a disk
/// they are moved many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A Namespace.
    Namespace(Namespace),
    /// A Node.
    Node(Node),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A NetworkPolicy.
    NetworkPolicy(Box<NetworkPolicy>),
}

impl From<Pod> for Object {
    fn from(object: Pod) -> Self {
        Self::Pod(object.into())
    }
}

impl From<Service> for Object {
    fn from(object: Service) -> Self {
        Self::Service(object.into())
    }
}

impl From<NetworkPolicy> for Object {
    fn from(object: NetworkPolicy) -> Self {
        Self::NetworkPolicy(object.into())
    }
}

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1`, of the cluster.
    Namespace,
    /// `v1`, of the cluster.
    Node,
    /// `v1`.
    Pod,
    /// `v1`.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
}

impl Kind {
    /// Every kind, the least dependent first.
    pub const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
    ];

    /// As manifests spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The `apiVersion` that is read.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }
}

/// What names an object within the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name; without a namespace for kinds of the cluster.
    pub name: ObjectName,
}

impl ObjectKey {
    /// The key of the object of this kind, namespace and name.
    #[must_use]
    pub fn new(kind: Kind, name: ObjectName) -> Self {
        Self { kind, name }
    }
}

impl fmt::Display for ObjectKey {
    /// `Kind namespace/name`, as errors name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, ObjectName { namespace, name }) = (self.kind.name(), &self.name);
        match &**namespace {
            "" => write!(f, "{kind} {name}"),
            _ => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

impl Object {
    /// What names it.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let of_cluster = |name: &String| ObjectName::new("", name.as_str());
        match self {
            Self::Namespace(object) => ObjectKey::new(Kind::Namespace, of_cluster(&object.name)),
            Self::Node(object) => ObjectKey::new(Kind::Node, of_cluster(&object.name)),
            Self::Pod(object) => ObjectKey::new(Kind::Pod, object.name.clone()),
            Self::Service(object) => ObjectKey::new(Kind::Service, object.name.clone()),
            Self::EndpointSlice(object) => ObjectKey::new(Kind::EndpointSlice, object.name.clone()),
            Self::NetworkPolicy(object) => ObjectKey::new(Kind::NetworkPolicy, object.name.clone()),
        }
    }
}

impl fmt::Display for Object {
    /// `Kind namespace/name`, as errors name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key().fmt(f)
    }
}

/// An object that cannot be meant as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {problem}")]
pub struct InvalidObject {
    /// Kind, namespace and name.
    pub object: String,
    /// Path of the field, `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with its value, and what to write instead.
    pub problem: String,
}
