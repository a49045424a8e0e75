use control::model::read::{UnknownFields, object};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;

/// One of each kind, every field and variant used.
fn objects() -> Vec<Object> {
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "uid": "u-1", "labels": {"a": "b", "c": ""}});
    let pod = |phase: &str, extra: bool| {
        json!({"metadata": metadata("pod"), "spec": {"nodeName": "node-a", "hostNetwork": extra, "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"containerPort": 81, "hostPort": 8081, "hostIP": "192.0.2.4"}, {"containerPort": 82, "hostPort": 8082}]}]},
            "status": {"phase": phase, "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00:1::5"}]}})
    };
    let service = json!({"metadata": metadata("svc"), "spec": {"type": "LoadBalancer",
        "clusterIPs": ["10.96.0.9", "fd00:96::9"], "externalIPs": ["192.0.2.1"],
        "sessionAffinity": "ClientIP", "trafficDistribution": "PreferClose",
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
        "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "s", "port": 9, "protocol": "SCTP"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    let slice = json!({"addressType": "IPv4", "metadata": {"name": "s", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "svc"}}, "ports": [{"name": "http", "port": 8080}, {"name": "all"}],
        "endpoints": [{"addresses": ["10.1.0.5"], "nodeName": "node-a", "conditions": {"ready": false, "serving": true, "terminating": true},
            "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "node-a"}]},
            "targetRef": {"kind": "Pod", "name": "p-1"}}]});
    let policy = json!({"metadata": metadata("p"), "spec": {
        "podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "x", "operator": "NotIn", "values": ["1", "2"]}, {"key": "y", "operator": "Exists"},
            {"key": "z", "operator": "DoesNotExist"}]},
        "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {}}, {"podSelector": {}}],
            "ports": [{"port": "http"}, {"port": 80, "endPort": 90}, {"protocol": "UDP"}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:1::/32"]}}]}, {}]}});
    let node = json!({"metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.4"}]}});
    let moded = |mode: &str| json!({"metadata": {"name": "shop", "annotations": {"xskiff.io/policy-mode": mode}}});
    let read = |kind, value: Value| object(kind, value, UnknownFields::Refuse).unwrap();
    let mut objects: Vec<Object> = ["Pending", "Running", "Succeeded", "Failed", "Unknown"]
        .into_iter()
        .zip([false, true].into_iter().cycle())
        .map(|(phase, extra)| read(Kind::Pod, pod(phase, extra)))
        .collect();
    let limited = json!({"metadata": {"name": "p", "annotations": {
        "kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "ten"}},
        "spec": {"containers": []}});
    objects.extend([
        read(Kind::Pod, limited),
        read(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"tier": "one"}}})),
        read(Kind::Namespace, moded("audit")),
        read(Kind::Namespace, moded("perhaps")),
        read(Kind::Node, node),
        read(Kind::Service, service),
        read(Kind::EndpointSlice, slice),
        read(Kind::NetworkPolicy, policy),
    ]);
    objects
}

#[test]
fn every_object_comes_back_as_it_was() {
    for object in objects() {
        let bytes = encode(&object);
        assert_eq!(decode(object.key().kind, &bytes), Ok(object));
    }
}

/// Change what is written, and raise the snapshot's version: an older one's bytes would be read as something
/// else.
#[test]
fn what_is_written_is_what_the_snapshots_version_says() {
    let bytes: Vec<u8> = objects().iter().flat_map(encode).collect();
    let digest = Sha256::digest(&bytes);
    let start = digest.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    assert_eq!((crate::snapshot::file::VERSION, start), (7, 0xe950_1fdf_357f_e199), "{start:#x}");
}

#[test]
fn bytes_that_are_cut_or_followed_by_others_are_damaged() {
    for object in objects() {
        let (kind, bytes) = (object.key().kind, encode(&object));
        for length in 0..bytes.len() {
            assert_eq!(decode(kind, &bytes[..length]), Err(Damaged), "{object} cut at {length}");
        }
        assert_eq!(decode(kind, &[&bytes[..], &[0]].concat()), Err(Damaged));
    }
}

#[test]
fn no_bytes_make_it_panic_or_reserve_what_it_cannot_have() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
        for kind in Kind::ALL {
            let _ = decode(kind, &bytes);
        }
    }
    assert_eq!(decode(Kind::Node, &[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Damaged));
}

#[test]
fn a_usual_pod_takes_few_bytes() {
    let pod = &objects()[1];
    assert!(encode(pod).len() < 128, "{} bytes", encode(pod).len());
}
