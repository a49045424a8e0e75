//! A naive judge of NetworkPolicy: plain loops over the objects as the Kubernetes API has them.
//!
//! It shares nothing with what it judges but the API's types: no identities, no tables, no model of
//! its own; a selector, a range and a port are compared anew for every packet. The sentences beside
//! the code are what the Kubernetes documentation of NetworkPolicy promises.
//!
//! Where that leaves room, it says what this dataplane means to do: traffic from a pod's own node is
//! admitted, traffic to it is judged; protocols without ports are allowed by rules without ports; a pod
//! of which nobody has told its node yet does what [`UnknownPods`] says, and is nobody elsewhere.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

/// A cluster, as far as NetworkPolicy looks at it.
#[derive(Clone, Default, PartialEq)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods, those without address and those that have ended among them.
    pub pods: Vec<Pod>,
    /// Policies.
    pub policies: Vec<NetworkPolicy>,
    /// Namespace and name of those of `pods` of which nobody has told any node yet: their own node
    /// has their interfaces.
    pub untold: Vec<(String, String)>,
    /// What these may.
    pub unknown_pods: UnknownPods,
}

/// What a pod may of which its node knows no more than name and addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnknownPods {
    /// What is right whatever its labels turn out to be.
    #[default]
    ByNamespace,
    /// Nothing.
    Deny,
    /// Everything.
    Allow,
}

impl fmt::Debug for Objects {
    /// One line of JSON for each object, without the fields that are not set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn lines(f: &mut fmt::Formatter<'_>, objects: &[impl Serialize]) -> fmt::Result {
            for object in objects {
                writeln!(f, "  {}", serde_json::to_string(object).map_err(|_| fmt::Error)?)?;
            }
            Ok(())
        }
        writeln!(f, "objects:")?;
        lines(f, &self.namespaces)?;
        lines(f, &self.nodes)?;
        lines(f, &self.pods)?;
        lines(f, &self.policies)?;
        writeln!(f, "untold: {:?}, who may: {:?}", self.untold, self.unknown_pods)
    }
}

/// What a packet is transported by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port.
    Udp(u16),
    /// SCTP to a port.
    Sctp(u16),
    /// ICMP of the addresses' family.
    Icmp,
}

/// The first packet of a connection, as it would be without any translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who speaks.
    pub from: IpAddr,
    /// To whom, of the same family.
    pub to: IpAddr,
    /// How, and to which port.
    pub transport: Transport,
}

/// Whether a packet may leave its source and reach its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// `None` when the source is no pod that policy applies to.
    pub egress: Option<bool>,
    /// `None` when the destination is none.
    pub ingress: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Who has an address.
#[derive(Clone, Copy)]
pub enum Owner<'a> {
    /// A node; pods on its network are the node.
    Node(&'a Node),
    /// A pod with a network of its own.
    Pod(&'a Pod),
    /// Nobody in the cluster.
    Outside,
}

impl<'a> Owner<'a> {
    /// The pod, if it is one.
    #[must_use]
    pub fn pod(self) -> Option<&'a Pod> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Node(_) | Self::Outside => None,
        }
    }
}

impl Objects {
    /// Whether policy lets `packet` pass.
    #[must_use]
    pub fn judge(&self, packet: &Packet) -> Answer {
        let (source, destination) = (self.owner(packet.from), self.owner(packet.to));
        let judge = |direction, subject: Owner<'_>, other| {
            let pod = subject.pod()?;
            let told = destination.pod().filter(|pod| !self.is_untold(pod));
            Some(self.allows(direction, pod, (self.as_seen_by(pod, other), packet), told))
        };
        Answer {
            egress: judge(Direction::Egress, source, destination),
            ingress: judge(Direction::Ingress, destination, source),
        }
    }

    /// Who has `address`. Of two pods the one that is not ending has it.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Owner<'_> {
        for node in &self.nodes {
            if node_addresses(node).contains(&address) {
                return Owner::Node(node);
            }
        }
        let mut found = Owner::Outside;
        for pod in &self.pods {
            if !has_network(pod) || !pod_addresses(pod).contains(&address) {
                continue;
            }
            let is_ending = pod.metadata.deletion_timestamp.is_some();
            if !is_ending || found.pod().is_none() {
                found = Owner::Pod(pod);
            }
        }
        found
    }

    /// Whether no node has been told of `pod`.
    #[must_use]
    pub fn is_untold(&self, pod: &Pod) -> bool {
        let name = (namespace_name(&pod.metadata.namespace), pod.metadata.name.clone());
        self.untold
            .iter()
            .any(|(namespace, own)| *namespace == name.0 && Some(own) == name.1.as_ref())
    }

    /// Who `other` is on the node of `pod`.
    fn as_seen_by<'a>(&self, pod: &Pod, other: Owner<'a>) -> Owner<'a> {
        match other {
            Owner::Pod(other) if self.is_untold(other) && node_name(other) != node_name(pod) => {
                Owner::Outside
            }
            other => other,
        }
    }

    /// Whether a selector matches a pod, as far as its labels are known.
    fn selector_matches(&self, selector: Option<&LabelSelector>, pod: &Pod) -> bool {
        if self.is_untold(pod) {
            return matches_every_pod(selector);
        }
        matches(selector, &labels(pod))
    }

    fn allows(
        &self,
        direction: Direction,
        subject: &Pod,
        (other, packet): (Owner<'_>, &Packet),
        destination: Option<&Pod>,
    ) -> bool {
        // "A Pod cannot block access to itself."
        if other.pod().is_some_and(|pod| is_same(pod, subject)) {
            return true;
        }
        // Traffic from the node where a pod is running is always allowed, whatever its address.
        if let Owner::Node(node) = other
            && direction == Direction::Ingress
            && node.metadata.name == node_name(subject)
        {
            return true;
        }
        match self.unknown_pods {
            UnknownPods::Allow if self.is_untold(subject) => return true,
            UnknownPods::Deny if self.is_untold(subject) => return false,
            _ => {}
        }
        let address = if direction == Direction::Ingress { packet.from } else { packet.to };
        let mut is_isolated = false;
        for policy in &self.policies {
            let Some(spec) = &policy.spec else { continue };
            let is_near = namespace_name(&policy.metadata.namespace)
                == namespace_name(&subject.metadata.namespace);
            let selects = self.selector_matches(spec.pod_selector.as_ref(), subject);
            let may_select = is_near && (selects || self.is_untold(subject));
            if !may_select || !applies(spec, direction) {
                continue;
            }
            is_isolated = true;
            if !selects {
                continue;
            }
            // Policies do not conflict, they are additive: one that allows suffices.
            for (peers, ports) in rules(spec, direction) {
                let namespace = namespace_name(&policy.metadata.namespace);
                if self.any_peer_matches(peers, &namespace, other, address)
                    && any_port_matches(ports, packet.transport, destination)
                {
                    return true;
                }
            }
        }
        !is_isolated
    }

    /// An empty list and a missing one mean everybody.
    fn any_peer_matches(
        &self,
        peers: &[NetworkPolicyPeer],
        namespace: &str,
        other: Owner<'_>,
        address: IpAddr,
    ) -> bool {
        peers.is_empty()
            || peers.iter().any(|peer| match &peer.ip_block {
                // Whoever has the address: "outside" is only what it is usually meant for.
                Some(block) => is_in_block(block, address),
                None => other.pod().is_some_and(|pod| self.selectors_match(peer, namespace, pod)),
            })
    }

    fn selectors_match(&self, peer: &NetworkPolicyPeer, namespace: &str, pod: &Pod) -> bool {
        let own = namespace_name(&pod.metadata.namespace);
        let namespace_matches = match &peer.namespace_selector {
            // Absent: the policy's own namespace. Empty: every namespace.
            None => own == namespace,
            Some(selector) => {
                matches(Some(selector), &self.namespace_labels(&own))
                    && (self.is_known(&own) || !asks_for_lack(selector))
            }
        };
        namespace_matches && self.selector_matches(peer.pod_selector.as_ref(), pod)
    }

    fn is_known(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|own| own.metadata.name.as_deref() == Some(namespace))
    }

    fn namespace_labels(&self, name: &str) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for namespace in &self.namespaces {
            if namespace.metadata.name.as_deref() == Some(name) {
                all.extend(namespace.metadata.labels.clone().unwrap_or_default());
            }
        }
        // The control plane sets this one on every namespace.
        let name_label = "kubernetes.io/metadata.name";
        all.retain(|(key, _)| key != name_label);
        all.push((name_label.to_owned(), name.to_owned()));
        all
    }
}

/// Whether it depends on what a namespace does not have, which nobody can say of one whose object is not
/// known; its name is always known.
fn asks_for_lack(selector: &LabelSelector) -> bool {
    selector.match_expressions.iter().flatten().any(|one| {
        matches!(&*one.operator, "NotIn" | "DoesNotExist")
            && one.key != "kubernetes.io/metadata.name"
    })
}

type Rule<'a> = (&'a [NetworkPolicyPeer], &'a [NetworkPolicyPort]);

fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    let mut all: Vec<Rule<'_>> = Vec::new();
    match direction {
        Direction::Ingress => {
            for rule in spec.ingress.iter().flatten() {
                all.push((
                    rule.from.as_deref().unwrap_or_default(),
                    rule.ports.as_deref().unwrap_or_default(),
                ));
            }
        }
        Direction::Egress => {
            for rule in spec.egress.iter().flatten() {
                all.push((
                    rule.to.as_deref().unwrap_or_default(),
                    rule.ports.as_deref().unwrap_or_default(),
                ));
            }
        }
    }
    all
}

/// "If no policyTypes are specified on a NetworkPolicy then by default Ingress will always be set and
/// Egress will be set if the NetworkPolicy has any egress rules."
fn applies(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    let types = spec.policy_types.clone().unwrap_or_default();
    match direction {
        Direction::Ingress => types.is_empty() || types.contains(&"Ingress".to_owned()),
        Direction::Egress if types.is_empty() => {
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())
        }
        Direction::Egress => types.contains(&"Egress".to_owned()),
    }
}

/// An empty list and a missing one mean every port of every protocol.
fn any_port_matches(
    ports: &[NetworkPolicyPort],
    transport: Transport,
    destination: Option<&Pod>,
) -> bool {
    ports.is_empty() || ports.iter().any(|port| port_matches(port, transport, destination))
}

fn port_matches(port: &NetworkPolicyPort, transport: Transport, destination: Option<&Pod>) -> bool {
    let (protocol, number) = match transport {
        Transport::Tcp(number) => ("TCP", number),
        Transport::Udp(number) => ("UDP", number),
        Transport::Sctp(number) => ("SCTP", number),
        Transport::Icmp => return false,
    };
    if port.protocol.as_deref().unwrap_or("TCP") != protocol {
        return false;
    }
    let number = i32::from(number);
    match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            *first <= number && number <= port.end_port.unwrap_or(*first)
        }
        Some(IntOrString::String(name)) => {
            destination.and_then(|pod| named_port(pod, name, protocol)) == Some(number)
        }
    }
}

/// What `pod` means by a port's name: the first of its containers that has one, then its sidecars.
fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    for container in spec.containers.iter().chain(sidecars) {
        for port in container.ports.iter().flatten() {
            let own = port.protocol.as_deref().unwrap_or("TCP");
            if port.name.as_deref() == Some(name) && own == protocol {
                return Some(port.container_port);
            }
        }
    }
    None
}

fn is_in_block(block: &IPBlock, address: IpAddr) -> bool {
    is_in_range(&block.cidr, address)
        && !block.except.iter().flatten().any(|range| is_in_range(range, address))
}

/// Compares bit by bit; bits of the range beyond its length do not count.
fn is_in_range(range: &str, address: IpAddr) -> bool {
    let (base, length) = range.split_once('/').expect("a range has a length");
    let base: IpAddr = base.parse().expect("a range begins with an address");
    let length: usize = length.parse().expect("a length is a number");
    if base.is_ipv4() != address.is_ipv4() {
        return false;
    }
    let (base, address) = (octets(base), octets(address));
    (0..length).all(|bit| {
        let mask = 0x80 >> (bit % 8);
        base[bit / 8] & mask == address[bit / 8] & mask
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An absent selector of pods and an empty one both match all.
fn matches(selector: Option<&LabelSelector>, labels: &[(String, String)]) -> bool {
    let Some(selector) = selector else { return true };
    let value_of = |wanted: &str| {
        labels.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str())
    };
    let exact = selector.match_labels.iter().flatten();
    let mut exact = exact.map(|(key, value)| value_of(key) == Some(value.as_str()));
    let expressions = selector.match_expressions.iter().flatten();
    let mut expressions =
        expressions.map(|expression| expression_matches(expression, value_of(&expression.key)));
    exact.all(|matches| matches) && expressions.all(|matches| matches)
}

fn matches_every_pod(selector: Option<&LabelSelector>) -> bool {
    selector.is_none_or(|selector| {
        selector.match_labels.iter().flatten().next().is_none()
            && selector.match_expressions.iter().flatten().next().is_none()
    })
}

fn expression_matches(expression: &LabelSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| expression.values.iter().flatten().any(|other| other == value);
    match expression.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        other => panic!("{other} is no operator"),
    }
}

fn labels(pod: &Pod) -> Vec<(String, String)> {
    pod.metadata.labels.clone().unwrap_or_default().into_iter().collect()
}

fn namespace_name(namespace: &Option<String>) -> String {
    namespace.clone().unwrap_or_else(|| "default".to_owned())
}

fn is_same(one: &Pod, other: &Pod) -> bool {
    one.metadata.name == other.metadata.name
        && namespace_name(&one.metadata.namespace) == namespace_name(&other.metadata.namespace)
}

/// The node a pod runs on.
#[must_use]
pub fn node_name(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// Whether the pod's addresses are its own: not its node's, and not given back because it has ended.
fn has_network(pod: &Pod) -> bool {
    let is_on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !is_on_host && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// The addresses that a pod's status names.
#[must_use]
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut texts: Vec<&String> = status.pod_ips.iter().flatten().map(|own| &own.ip).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_ref());
    }
    texts.into_iter().map(|text| text.parse().expect("an address")).collect()
}

/// The addresses of a node that others can reach.
#[must_use]
pub fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let reachable = listed.filter(|one| one.type_ == "InternalIP" || one.type_ == "ExternalIP");
    reachable.map(|one| one.address.parse().expect("an address")).collect()
}
