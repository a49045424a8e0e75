//! From the Kubernetes API's types to the model: what is kept, and what is refused.
//!
//! Objects from an API server have been validated there; objects from a folder have not, so the
//! checks that matter for the dataplane are made here, on both ways in.

use std::net::IpAddr;

use dataplane::address::Protocol;
use dataplane::lpm::Prefix;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as ApiSelector, ObjectMeta};

use super::labels::{check_key, check_value, labels};
use crate::shown::shortened;

pub use super::convert_policy::network_policy;
pub use super::convert_service::{PROXY_NAME_LABEL, endpoint_slice, service};
use super::{
    HostPort, InvalidObject, LabelSelector, NamedPort, Namespace, Node, ObjectName, Operator, Pod,
    PodBandwidth, PodPhase, PolicyMode, Requirement,
};

/// The label of a Node that says in which zone it is.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The taint of a Node that is about to be taken away.
pub const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// Longest object name: a DNS subdomain (RFC 1123).
const NAME_BYTES_MAX: usize = 253;

/// What went wrong at which field, before the object is named.
pub(super) struct Problem {
    pub(super) field: String,
    pub(super) problem: String,
}

pub(super) fn problem(field: impl Into<String>, problem: impl Into<String>) -> Problem {
    Problem { field: field.into(), problem: problem.into() }
}

impl Problem {
    pub(super) fn of(self, object: String) -> InvalidObject {
        InvalidObject { object, field: self.field, problem: self.problem }
    }
}

/// The object's name as an error shows it, whatever state its metadata is in.
pub(super) fn title(kind: &str, metadata: &ObjectMeta) -> String {
    let name = shortened(metadata.name.as_deref().unwrap_or("(no name)"));
    match metadata.namespace.as_deref().map(shortened) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// Reads a Namespace.
///
/// # Errors
/// A missing or unusable name.
pub fn namespace(object: core::Namespace) -> Result<Namespace, InvalidObject> {
    let title = title("Namespace", &object.metadata);
    read_namespace(object).map_err(|problem| problem.of(title))
}

fn read_namespace(object: core::Namespace) -> Result<Namespace, Problem> {
    let name = plain_name(&object.metadata)?;
    let mode = PolicyMode::of(object.metadata.annotations.as_ref());
    let mut labels = labels("metadata.labels", object.metadata.labels)?;
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
    Ok(Namespace { name, labels, mode })
}

/// Reads a Node.
///
/// # Errors
/// A missing name, an address or range that cannot be read.
pub fn node(object: core::Node) -> Result<Node, InvalidObject> {
    let title = title("Node", &object.metadata);
    read_node(object).map_err(|problem| problem.of(title))
}

fn read_node(object: core::Node) -> Result<Node, Problem> {
    let name = plain_name(&object.metadata)?;
    let mut addresses = Vec::new();
    let listed = object.status.and_then(|status| status.addresses).unwrap_or_default();
    for (index, entry) in listed.iter().enumerate() {
        if matches!(entry.type_.as_str(), "InternalIP" | "ExternalIP") {
            addresses.push(address(&format!("status.addresses[{index}].address"), &entry.address)?);
        }
    }
    let spec = object.spec.unwrap_or_default();
    let ranges = spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|range| vec![range]));
    let pod_cidrs = prefixes("spec.podCIDRs", &ranges.unwrap_or_default())?;
    let is_marked = spec.taints.iter().flatten().any(|taint| taint.key == LEAVING_TAINT);
    let mode = PolicyMode::of(object.metadata.annotations.as_ref());
    let zone = object.metadata.labels.and_then(|mut labels| labels.remove(ZONE_LABEL));
    Ok(Node {
        name,
        addresses,
        pod_cidrs,
        zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
        is_leaving: is_marked || object.metadata.deletion_timestamp.is_some(),
        mode,
    })
}

/// Reads a Pod.
///
/// # Errors
/// A missing name or specification, an unknown phase, an address or port that cannot be read.
pub fn pod(object: core::Pod) -> Result<Pod, InvalidObject> {
    let title = title("Pod", &object.metadata);
    read_pod(object).map_err(|problem| problem.of(title))
}

fn read_pod(object: core::Pod) -> Result<Pod, Problem> {
    let name = namespaced_name(&object.metadata)?;
    let spec = object.spec.ok_or_else(|| problem("spec", "is missing"))?;
    let status = object.status.unwrap_or_default();
    let phase = match status.phase.as_deref() {
        // A manifest has no status, and its pod is meant to run.
        None | Some("Running") => PodPhase::Running,
        Some("Pending") => PodPhase::Pending,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        Some("Unknown") => PodPhase::Unknown,
        Some(other) => {
            let known = "Pending, Running, Succeeded, Failed or Unknown";
            return Err(problem("status.phase", format!("{other:?} is no phase; use {known}")));
        }
    };
    let mut addresses = Vec::new();
    match status.pod_ips {
        Some(listed) if !listed.is_empty() => {
            for (index, entry) in listed.iter().enumerate() {
                addresses.push(address(&format!("status.podIPs[{index}].ip"), &entry.ip)?);
            }
        }
        _ => {
            if let Some(text) = status.pod_ip.filter(|text| !text.is_empty()) {
                addresses.push(address("status.podIP", &text)?);
            }
        }
    }
    let bandwidth = PodBandwidth::of(object.metadata.annotations.as_ref());
    let host_network = spec.host_network.unwrap_or(false);
    let (named_ports, mut host_ports) =
        container_ports(&spec.containers, spec.init_containers.as_deref())?;
    if host_network {
        host_ports.clear();
    }
    Ok(Pod {
        name,
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        labels: labels("metadata.labels", object.metadata.labels)?,
        addresses: addresses.into(),
        node: spec.node_name.filter(|node| !node.is_empty()).map(Into::into),
        named_ports: named_ports.into(),
        host_ports: host_ports.into(),
        host_network,
        phase,
        terminating: object.metadata.deletion_timestamp.is_some(),
        bandwidth,
        weight: super::weight::weight(object.metadata.annotations.as_ref()),
    })
}

/// Containers' ports that have a name and those that have a host port, then those of sidecars: init
/// containers that go on running.
fn container_ports(
    containers: &[core::Container],
    init_containers: Option<&[core::Container]>,
) -> Result<(Vec<NamedPort>, Vec<HostPort>), Problem> {
    let main = containers
        .iter()
        .enumerate()
        .map(|(index, container)| (format!("spec.containers[{index}]"), container));
    let sidecars = init_containers
        .unwrap_or_default()
        .iter()
        .enumerate()
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|(index, container)| (format!("spec.initContainers[{index}]"), container));
    let (mut named, mut on_host) = (Vec::new(), Vec::new());
    for (path, container) in main.chain(sidecars) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let path = format!("{path}.ports[{index}]");
            let number = l4_port(&format!("{path}.containerPort"), port.container_port)?;
            let protocol = protocol(&format!("{path}.protocol"), port.protocol.as_deref())?;
            if let Some(name) = port.name.clone().filter(|name| !name.is_empty()) {
                named.push(NamedPort { name, protocol, l4_port: number });
            }
            let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0) else {
                continue;
            };
            let host_ip = port.host_ip.as_deref().filter(|text| !text.is_empty());
            on_host.push(HostPort {
                address: host_ip
                    .map(|text| address(&format!("{path}.hostIP"), text))
                    .transpose()?,
                protocol,
                l4_port: l4_port(&format!("{path}.hostPort"), host_port)?,
                container_port: number,
            });
        }
    }
    Ok((named, on_host))
}

fn plain_name(metadata: &ObjectMeta) -> Result<String, Problem> {
    let name = metadata.name.clone().unwrap_or_default();
    check_name("metadata.name", &name)?;
    Ok(name)
}

/// Namespace (`default` when absent, as `kubectl` does) and name.
pub(super) fn namespaced_name(metadata: &ObjectMeta) -> Result<ObjectName, Problem> {
    let name = plain_name(metadata)?;
    let namespace = metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    check_name("metadata.namespace", &namespace)?;
    Ok(ObjectName::new(namespace, name))
}

fn check_name(field: &str, name: &str) -> Result<(), Problem> {
    if name.is_empty() {
        return Err(problem(field, "is missing"));
    }
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(legal) {
        let rule = "use at most 253 lower-case letters, digits, '-' and '.'";
        let name = shortened(name);
        return Err(problem(field, format!("{name:?} is not a legal name; {rule}")));
    }
    Ok(())
}

pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| problem(field, format!("{text:?} is not an IPv4 or IPv6 address")))
}

pub(super) fn prefix(field: &str, text: &str) -> Result<Prefix, Problem> {
    let range: IpNet = text.trim().parse().map_err(|_| {
        problem(field, format!("{text:?} is not a range; write ADDRESS/LENGTH, such as 10.0.0.0/8"))
    })?;
    // As Kubernetes does, bits beyond the length are ignored.
    Prefix::new(range.addr(), range.prefix_len())
        .ok_or_else(|| problem(field, format!("{text:?} has more bits than its family")))
}

pub(super) fn prefixes(field: &str, texts: &[String]) -> Result<Vec<Prefix>, Problem> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| prefix(&format!("{field}[{index}]"), text))
        .collect()
}

pub(super) fn l4_port(field: &str, number: i32) -> Result<u16, Problem> {
    u16::try_from(number).ok().filter(|number| *number != 0).ok_or_else(|| match number {
        0 => problem(field, "is missing or 0; give a port from 1 to 65535"),
        _ => problem(field, format!("{number} is out of range; give a port from 1 to 65535")),
    })
}

pub(super) fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, Problem> {
    match text {
        None | Some("TCP") => Ok(Protocol::TCP),
        Some("UDP") => Ok(Protocol::UDP),
        Some("SCTP") => Ok(Protocol::SCTP),
        Some(other) => {
            Err(problem(field, format!("{other:?} is no protocol; use TCP, UDP or SCTP")))
        }
    }
}

pub(super) fn selector(field: &str, api: ApiSelector) -> Result<LabelSelector, Problem> {
    let exact = api.match_labels.unwrap_or_default().into_iter().map(|(key, value)| {
        check_key(&format!("{field}.matchLabels"), &key)?;
        check_value(&format!("{field}.matchLabels.{key}"), &value)?;
        Ok(Requirement { key, operator: Operator::In([value].into()) })
    });
    let expressions = api.match_expressions.unwrap_or_default().into_iter().enumerate();
    exact
        .chain(expressions.map(|(index, expression)| {
            let path = format!("{field}.matchExpressions[{index}]");
            if expression.key.is_empty() {
                return Err(problem(format!("{path}.key"), "is missing"));
            }
            check_key(&format!("{path}.key"), &expression.key)?;
            let values = expression.values.unwrap_or_default();
            for value in &values {
                check_value(&format!("{path}.values"), value)?;
            }
            let empty = values.is_empty();
            let operator = match expression.operator.as_str() {
                "In" => Operator::In(values.into_iter().collect()),
                "NotIn" => Operator::NotIn(values.into_iter().collect()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let known = "use In, NotIn, Exists or DoesNotExist";
                    let text = format!("{other:?} is no operator; {known}");
                    return Err(problem(format!("{path}.operator"), text));
                }
            };
            let wants_values = matches!(operator, Operator::In(_) | Operator::NotIn(_));
            match (wants_values, empty) {
                (true, true) => Err(problem(format!("{path}.values"), "In and NotIn need values")),
                (false, false) => {
                    Err(problem(format!("{path}.values"), "Exists and DoesNotExist take none"))
                }
                _ => Ok(Requirement { key: expression.key, operator }),
            }
        }))
        .collect()
}
