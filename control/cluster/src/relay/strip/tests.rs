//! What is left is read as what there was; and what is kept has a number.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

fn stripped(kind: Kind, value: &Value) -> Value {
    let encoded = strip(kind, value.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&encoded.fields).unwrap()
}

fn typed<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// Reads the whole object and what is left of it, as a node does.
macro_rules! read_alike {
    ($kind:ident, $type:ty, $convert:ident, $value:expr) => {{
        let value = $value;
        let left = stripped(Kind::$kind, &value);
        let read = |value: &Value| control::model::convert::$convert(typed::<$type>(value));
        let (whole, left_read) = (read(&value).unwrap(), read(&left).unwrap());
        assert_eq!(whole, left_read, "{left}");
        left
    }};
}

fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": "cart-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "77",
            "labels": { "app": "cart", "tier": "back" },
            "annotations": { "note": "x", "xskiff.io/policy-mode": "audit",
                "kubernetes.io/egress-bandwidth": "10M" },
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            "deletionTimestamp": "2026-01-01T00:00:00Z", "generateName": "cart-",
            "ownerReferences": [{ "kind": "StatefulSet", "name": "cart", "uid": "u", "apiVersion": "apps/v1" }],
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": true, "serviceAccountName": "cart",
            "containers": [
                { "name": "main", "image": "cart", "env": [{ "name": "A", "value": "b" }], "ports": [
                    { "name": "http", "containerPort": 8080, "protocol": "TCP" },
                    { "containerPort": 9090 },
                    { "name": "dns", "containerPort": 53, "protocol": "UDP", "hostPort": 53 },
                ] },
                { "name": "quiet", "image": "quiet" },
            ],
            "initContainers": [
                { "name": "once", "ports": [{ "name": "never", "containerPort": 1 }] },
                { "name": "sidecar", "restartPolicy": "Always",
                  "ports": [{ "name": "mesh", "containerPort": 15001 }] },
            ],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.5", "hostIP": "192.168.0.1", "qosClass": "Burstable",
            "podIPs": [{ "ip": "10.0.0.5" }, { "ip": "fd00::5" }],
            "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                { "type": "Initialized", "status": "True" },
            ],
        },
    })
}

#[test]
fn a_pod_is_read_alike_and_keeps_nothing_else() {
    let left = read_alike!(Pod, core::Pod, pod, pod());
    let wanted = json!({
        "metadata": {
            "name": "cart-0", "namespace": "shop", "uid": "u-1", "resourceVersion": "77",
            "labels": { "app": "cart", "tier": "back" },
            "annotations": { "kubernetes.io/egress-bandwidth": "10M", "xskiff.io/policy-mode": "audit" },
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": "n1", "hostNetwork": true,
            "containers": [{ "name": "main", "ports": [
                { "name": "http", "containerPort": 8080, "protocol": "TCP" },
                { "name": "dns", "containerPort": 53, "protocol": "UDP", "hostPort": 53 },
            ] }],
            "initContainers": [{ "name": "sidecar", "restartPolicy": "Always",
                "ports": [{ "name": "mesh", "containerPort": 15001 }] }],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.5",
            "podIPs": [{ "ip": "10.0.0.5" }, { "ip": "fd00::5" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    assert_eq!(left, wanted);
}

#[test]
fn what_the_protocol_needs_is_found() {
    let encoded = strip(Kind::Pod, pod().to_string().as_bytes()).unwrap();
    assert_eq!((&*encoded.namespace, &*encoded.name, encoded.version), ("shop", "cart-0", 77));
    assert_eq!(encoded.node.as_deref(), Some("n1"));
}

#[test]
fn a_change_that_nodes_do_not_read_has_the_same_mark() {
    let mark = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        strip(Kind::Pod, pod.to_string().as_bytes()).unwrap().mark
    };
    let before = mark(&|_| {});
    assert_eq!(before, mark(&|pod| pod["metadata"]["resourceVersion"] = json!("78")));
    assert_eq!(before, mark(&|pod| pod["status"]["qosClass"] = json!("Guaranteed")));
    assert_eq!(before, mark(&|pod| pod["metadata"]["annotations"]["note"] = json!("y")));
    assert_ne!(before, mark(&|pod| pod["metadata"]["labels"]["app"] = json!("cart2")));
    assert_ne!(before, mark(&|pod| pod["status"]["conditions"][0]["status"] = json!("False")));
    let audit = &|pod: &mut Value| {
        pod["metadata"]["annotations"]["xskiff.io/policy-mode"] = json!("enforce");
    };
    assert_ne!(before, mark(audit));
}

#[test]
fn the_other_kinds_are_read_alike() {
    let left = read_alike!(
        Namespace,
        core::Namespace,
        namespace,
        json!({
            "metadata": { "name": "shop", "labels": { "tier": "web" }, "resourceVersion": "1",
                "annotations": { "a": "b" } },
            "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
        })
    );
    assert!(left.get("spec").is_none() && left["metadata"].get("annotations").is_none());
    let left = read_alike!(
        Node,
        core::Node,
        node,
        json!({
            "metadata": { "name": "n1", "resourceVersion": "1",
                "labels": { "a": "b", "topology.kubernetes.io/zone": "z1" } },
            "spec": { "podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"],
                "taints": [{ "key": "a", "effect": "NoSchedule" },
                    { "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1" }] },
            "status": {
                "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }],
                "images": [{ "names": ["large"] }], "conditions": [{ "type": "Ready", "status": "True" }],
            },
        })
    );
    assert!(left["status"].get("images").is_none());
    assert_eq!(left["metadata"]["labels"], json!({ "topology.kubernetes.io/zone": "z1" }));
    assert_eq!(left["spec"]["taints"].as_array().map(Vec::len), Some(1));
    read_alike!(
        Service,
        core::Service,
        service,
        json!({
            "metadata": { "name": "web", "namespace": "shop", "resourceVersion": "1",
                "labels": { "service.kubernetes.io/service-proxy-name": "other", "a": "b" } },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                "externalIPs": ["203.0.113.1"], "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "nodePort": 30080, "targetPort": "http",
                    "protocol": "TCP" }],
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31000, "loadBalancerSourceRanges": ["198.51.100.0/24"],
                "sessionAffinity": "ClientIP", "trafficDistribution": "PreferClose",
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.2" }] } },
        })
    );
    let left = read_alike!(
        EndpointSlice,
        discovery::EndpointSlice,
        endpoint_slice,
        json!({
            "metadata": { "name": "web-1", "namespace": "shop", "resourceVersion": "1",
                "labels": { "kubernetes.io/service-name": "web", "other": "x" } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["10.0.0.5"], "nodeName": "n1",
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "hints": { "forZones": [{ "name": "z1" }], "forNodes": [{ "name": "n1" }] },
                "targetRef": { "kind": "Pod", "name": "web-0", "namespace": "shop" } }],
        })
    );
    assert_eq!(left["metadata"]["labels"], json!({ "kubernetes.io/service-name": "web" }));
    assert_eq!(left["endpoints"][0]["targetRef"], json!({ "kind": "Pod", "name": "web-0" }));
    read_alike!(
        NetworkPolicy,
        networking::NetworkPolicy,
        network_policy,
        json!({
            "metadata": { "name": "deny", "namespace": "shop", "resourceVersion": "1" },
            "spec": { "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }],
                  "ports": [{ "port": 80, "endPort": 90, "protocol": "TCP" }] },
            ] },
        })
    );
}

/// What is kept, as it was when [`crate::kept::KEPT`] was raised last. Who keeps more raises it: behind relays
/// of before, nodes would miss that without a word.
const KEPT_FIELDS: (u32, &str) = (
    1,
    "\
Metadata: name namespace uid resource_version deletion_timestamp labels annotations
Whole: metadata spec status
PodSpec: node_name host_network containers init_containers
Container: name restart_policy ports
ContainerPort: name container_port host_port host_ip protocol
PodStatus: phase pod_ip pod_ips conditions
Condition: kind status
NodeSpec: pod_cidr pod_cidrs taints
Taint: key effect
NodeStatus: addresses
ServiceSpec: kind cluster_ip cluster_ips ports external_ips internal_traffic_policy external_traffic_policy load_balancer_source_ranges health_check_node_port session_affinity session_affinity_config traffic_distribution
ServiceStatus: load_balancer
Slice: metadata address_type ports endpoints
Endpoint: addresses conditions node_name hints target_ref
TargetRef: kind name
of Kubernetes: kubernetes.io/ingress-bandwidth kubernetes.io/egress-bandwidth
of nodes: topology.kubernetes.io/zone ToBeDeletedByClusterAutoscaler",
);

#[test]
fn what_is_kept_has_a_number() {
    let mut kept = Vec::new();
    let mut is_in_struct = false;
    for line in include_str!("../strip.rs").lines() {
        if let Some(name) = line.strip_prefix("struct ").filter(|rest| rest.ends_with('{')) {
            let name = name.split(['<', ' ']).next().unwrap();
            kept.push(format!("{name}:"));
            is_in_struct = true;
        } else if line == "}" {
            is_in_struct = false;
        } else if is_in_struct
            && let Some((field, _)) = line.trim_start().split_once(": ")
            && field.chars().all(|one| one.is_ascii_lowercase() || one == '_')
        {
            *kept.last_mut().unwrap() += &format!(" {field}");
        }
    }
    kept.push(format!("of Kubernetes: {}", OF_KUBERNETES.join(" ")));
    kept.push(format!("of nodes: {ZONE_LABEL} {LEAVING_TAINT}"));
    let kept = kept.join("\n");
    assert_eq!((crate::kept::KEPT, &*kept), KEPT_FIELDS, "raise KEPT, and note what it means");
}

#[test]
fn what_nobody_knows_in_a_policy_reaches_the_node() {
    let policy = json!({
        "metadata": { "name": "new", "namespace": "shop", "resourceVersion": "1" },
        "spec": { "podSelector": {}, "tiers": ["new"], "ingress": [
            { "from": [{ "serviceAccountSelector": {} }], "ports": [{ "icmp": { "type": 8 } }] },
        ] },
        "status": { "conditions": [] },
    });
    assert_eq!(stripped(Kind::NetworkPolicy, &policy)["spec"], policy["spec"]);
}

#[test]
fn values_pass_through_unread_and_white_space_breaks_no_line() {
    let text = b"{\"metadata\":{\"name\":\"a\",\"namespace\":\"b\",\"resourceVersion\":\"1\",\n\
        \"labels\":{\n\"app\":\n7}},\"spec\":{\"hostNetwork\":\"perhaps\"},\"status\":null}";
    let encoded = strip(Kind::Pod, text).unwrap();
    assert!(!encoded.fields.contains(&b'\n'));
    let left: Value = serde_json::from_slice(&encoded.fields).unwrap();
    assert_eq!(left["metadata"]["labels"]["app"], 7);
    assert_eq!(left["spec"]["hostNetwork"], "perhaps");
}

#[test]
fn what_is_no_object_is_refused_by_name_of_the_fault() {
    let refused = |text: &str| strip(Kind::Pod, text.as_bytes()).unwrap_err().to_string();
    assert!(refused("{}").contains("metadata"));
    assert!(refused(r#"{"metadata":{"resourceVersion":"1"}}"#).contains("name is missing"));
    assert!(refused(r#"{"metadata":{"name":"a","resourceVersion":"x"}}"#).contains("\"x\""));
    assert!(
        refused(r#"{"metadata":{"name":"a"},"spec":{"containers":7}}"#).contains("invalid type")
    );
}
