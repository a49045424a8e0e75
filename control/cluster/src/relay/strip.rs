//! Objects without what nodes do not read: a Pod of 7 KiB becomes some 600 bytes.
//!
//! Kept is what [`control::model::convert`] reads, as it was written: values pass through unread, so
//! that judging them stays the node's. Of a NetworkPolicy everything in `spec` is kept, fields that
//! nobody here knows included: a node must see what it does not understand, to close it.

use std::collections::BTreeMap;

use control::model::convert::{LEAVING_TAINT, PROXY_NAME_LABEL, ZONE_LABEL};
use control::model::{EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, Kind};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::serve::{Encoded, mark};

/// Annotations of ours begin so.
pub const ANNOTATIONS: &str = "xskiff.io/";
/// And those of Kubernetes that are read.
const OF_KUBERNETES: [&str; 2] = [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH];
/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// What every stripped object begins with; its resourceVersion is put in behind it.
const START: &[u8] = b"{\"metadata\":{";

/// An object cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub enum StripError {
    /// It is no object of its kind.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It has no name.
    #[error("metadata.name is missing")]
    NoName,
    /// Its version is no number.
    #[error("metadata.resourceVersion is {0:?}, not a number")]
    Version(String),
}

type Raw<'a> = Option<&'a RawValue>;

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    uid: Raw<'a>,
    #[serde(default, skip_serializing)]
    resource_version: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    deletion_timestamp: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    labels: Raw<'a>,
    #[serde(
        borrow,
        default,
        deserialize_with = "annotations_read",
        skip_serializing_if = "Option::is_none"
    )]
    annotations: Option<BTreeMap<String, &'a RawValue>>,
}

fn annotations_read<'de: 'a, 'a, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<String, &'a RawValue>>, D::Error> {
    let all = Option::<BTreeMap<String, &'a RawValue>>::deserialize(from)?;
    Ok(all
        .map(|mut all| {
            all.retain(|key, _| {
                key.starts_with(ANNOTATIONS) || OF_KUBERNETES.contains(&key.as_str())
            });
            all
        })
        .filter(|left| !left.is_empty()))
}

#[derive(Deserialize, Serialize)]
struct Whole<'a, S, T> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    spec: Option<S>,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    status: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

/// A part of which nothing is kept.
#[derive(Deserialize, Serialize)]
struct Nothing {}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    node_name: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    host_network: Raw<'a>,
    #[serde(borrow, default)]
    containers: Option<Vec<Container<'a>>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    init_containers: Option<Vec<Container<'a>>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Container<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    name: Raw<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restart_policy: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<ContainerPort<'a>>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    container_port: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    host_port: Raw<'a>,
    #[serde(borrow, default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    host_ip: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    protocol: Raw<'a>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    phase: Raw<'a>,
    #[serde(borrow, default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    pod_ip: Raw<'a>,
    #[serde(borrow, default, rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pod_ips: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    conditions: Option<Vec<Condition<'a>>>,
}

#[derive(Deserialize, Serialize)]
struct Condition<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    status: &'a RawValue,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec<'a> {
    #[serde(borrow, default, rename = "podCIDR", skip_serializing_if = "Option::is_none")]
    pod_cidr: Raw<'a>,
    #[serde(borrow, default, rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    pod_cidrs: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    taints: Option<Vec<Taint<'a>>>,
}

#[derive(Deserialize, Serialize)]
struct Taint<'a> {
    #[serde(default)]
    key: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    effect: Raw<'a>,
}

#[derive(Deserialize, Serialize)]
struct NodeStatus<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    addresses: Raw<'a>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec<'a> {
    #[serde(borrow, default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Raw<'a>,
    #[serde(borrow, default, rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    cluster_ip: Raw<'a>,
    #[serde(borrow, default, rename = "clusterIPs", skip_serializing_if = "Option::is_none")]
    cluster_ips: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    ports: Raw<'a>,
    #[serde(borrow, default, rename = "externalIPs", skip_serializing_if = "Option::is_none")]
    external_ips: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    internal_traffic_policy: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    external_traffic_policy: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    load_balancer_source_ranges: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    health_check_node_port: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    session_affinity: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    session_affinity_config: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traffic_distribution: Raw<'a>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    load_balancer: Raw<'a>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Slice<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    address_type: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    ports: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<Endpoint<'a>>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    addresses: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    conditions: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    node_name: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    hints: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    target_ref: Option<TargetRef<'a>>,
}

/// Its namespace is the slice's, and its UID nobody reads.
#[derive(Deserialize, Serialize)]
struct TargetRef<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    kind: Raw<'a>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    name: Raw<'a>,
}

/// Strips an object of `kind`, given in JSON.
///
/// # Errors
/// [`StripError`]: nothing can be said of such an object.
pub fn strip(kind: Kind, text: &[u8]) -> Result<Encoded, StripError> {
    match kind {
        Kind::Namespace => {
            let object: Whole<'_, Nothing, Nothing> = serde_json::from_slice(text)?;
            finish(object.metadata.identity(None)?, &Whole { spec: None, status: None, ..object })
        }
        Kind::Node => {
            let mut object: Whole<'_, NodeSpec<'_>, NodeStatus<'_>> = serde_json::from_slice(text)?;
            // A node's labels are long, and no selector of a policy reads them.
            let kept = only_label(object.metadata.labels, ZONE_LABEL)?;
            object.metadata.labels = kept.as_deref();
            if let Some(spec) = &mut object.spec {
                let taints = spec.taints.get_or_insert_default();
                taints.retain(|taint| taint.key == LEAVING_TAINT);
                spec.taints.take_if(|taints| taints.is_empty());
            }
            finish(object.metadata.identity(None)?, &object)
        }
        Kind::Pod => strip_pod(text),
        Kind::Service => {
            let mut object: Whole<'_, ServiceSpec<'_>, ServiceStatus<'_>> =
                serde_json::from_slice(text)?;
            let kept = only_label(object.metadata.labels, PROXY_NAME_LABEL)?;
            object.metadata.labels = kept.as_deref();
            finish(object.metadata.identity(None)?, &object)
        }
        Kind::EndpointSlice => strip_slice(text),
        Kind::NetworkPolicy => {
            let object: Whole<'_, &RawValue, Nothing> = serde_json::from_slice(text)?;
            finish(object.metadata.identity(None)?, &Whole { status: None, ..object })
        }
    }
}

fn strip_pod(text: &[u8]) -> Result<Encoded, StripError> {
    let mut object: Whole<'_, PodSpec<'_>, PodStatus<'_>> = serde_json::from_slice(text)?;
    let mut node = None;
    if let Some(spec) = &mut object.spec {
        node = spec.node_name.and_then(|name| serde_json::from_str::<String>(name.get()).ok());
        let named = |container: &mut Container<'_>| {
            let ports = container.ports.get_or_insert_default();
            ports.retain(|port| {
                port.host_port.is_some()
                    || port.name.as_deref().is_some_and(|name| !name.is_empty())
            });
            !ports.is_empty()
        };
        let containers = spec.containers.get_or_insert_default();
        containers.retain_mut(named);
        containers.iter_mut().for_each(|container| container.restart_policy = None);
        if let Some(sidecars) = &mut spec.init_containers {
            sidecars.retain_mut(|container| {
                container.restart_policy.as_deref() == Some("Always") && named(container)
            });
            if sidecars.is_empty() {
                spec.init_containers = None;
            }
        }
    }
    if let Some(conditions) = object.status.as_mut().and_then(|status| status.conditions.as_mut()) {
        conditions.retain(|condition| condition.kind == "Ready");
    }
    finish(object.metadata.identity(node)?, &object)
}

fn strip_slice(text: &[u8]) -> Result<Encoded, StripError> {
    let mut object: Slice<'_> = serde_json::from_slice(text)?;
    let kept = only_label(object.metadata.labels, SERVICE_NAME)?;
    object.metadata.labels = kept.as_deref();
    finish(object.metadata.identity(None)?, &object)
}

/// The label of this name alone; `None` where there is none.
fn only_label(labels: Raw<'_>, name: &str) -> Result<Option<Box<RawValue>>, serde_json::Error> {
    let Some(labels) = labels else { return Ok(None) };
    let mut all: BTreeMap<String, &RawValue> = serde_json::from_str(labels.get())?;
    all.retain(|key, _| key == name);
    (!all.is_empty()).then(|| serde_json::value::to_raw_value(&all)).transpose()
}

impl Metadata<'_> {
    /// What the protocol has to know.
    fn identity(&self, node: Option<String>) -> Result<Encoded, StripError> {
        if self.name.is_empty() {
            return Err(StripError::NoName);
        }
        let version = self.resource_version.as_deref().unwrap_or_default();
        let number = version.parse().map_err(|_| StripError::Version(version.to_owned()))?;
        Ok(Encoded {
            namespace: self.namespace.clone().unwrap_or_default(),
            name: self.name.clone(),
            version: number,
            node,
            fields: Vec::new(),
            mark: None,
        })
    }
}

/// Writes the object, first without its resourceVersion: what is equal then is the same to nodes.
fn finish(mut encoded: Encoded, object: &impl Serialize) -> Result<Encoded, StripError> {
    let mut content = serde_json::to_vec(object)?;
    // White space between values, if any: a watch's events end where a line does.
    content.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    encoded.mark = Some(mark(&content));
    let version = format!("\"resourceVersion\":\"{}\",", encoded.version);
    let rest = content.strip_prefix(START).unwrap_or_default();
    encoded.fields = [START, version.as_bytes(), rest].concat();
    Ok(encoded)
}

#[cfg(test)]
mod tests;
