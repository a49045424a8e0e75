//! Objects of an API server that no node can use, while connections go on: each is named in status, log and
//! metrics for as long as it is there, and nothing else is disturbed.

use cluster::decode::{LABELS_MAX, OBJECT_BYTES_MAX};
use control::model::Kind;
use serde_json::{Map, Value, json};
use xskiff::demo::scene::{BALANCER, HTTP, to};
use xskiff::lab::wait_until;
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets};
use crate::followed::follow;
use crate::world::{PATIENCE, Shape, World};

const NAMESPACE: &str = "careless";
/// Outside of every range that the demo's pods and nodes are in.
const CLAIMED_TWICE: &str = "10.200.0.77";
/// Of two services.
const EXTERNAL: &str = "198.51.100.77";
/// Of another node, and of a service.
const OTHER_NODE: &str = "198.51.100.88";

fn policy(name: &str, spec: Value) -> (Kind, Value) {
    (
        Kind::NetworkPolicy,
        json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec }),
    )
}

fn pod(name: &str, metadata: Value) -> (Kind, Value) {
    let mut metadata = metadata;
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(NAMESPACE);
    (
        Kind::Pod,
        json!({
            "metadata": metadata,
            "spec": { "nodeName": "elsewhere", "containers": [] },
            "status": { "phase": "Running", "podIP": CLAIMED_TWICE,
                        "podIPs": [{ "ip": CLAIMED_TWICE }] },
        }),
    )
}

fn service(name: &str, spec: Value) -> (Kind, Value) {
    (Kind::Service, json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec }))
}

/// Of a service on one port.
fn slice(service: &str, l4_port: u32, endpoint: &str) -> (Kind, Value) {
    (
        Kind::EndpointSlice,
        json!({
            "metadata": { "name": format!("{service}-1"), "namespace": NAMESPACE,
                          "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4",
            "ports": [{ "port": l4_port }],
            "endpoints": [{ "addresses": [endpoint] }],
        }),
    )
}

/// An object, and what is said of it.
type Told = (&'static str, String);

/// Objects that are used otherwise than they were probably meant: who is told of, and what.
fn warned() -> (Vec<(Kind, Value)>, [Told; 3]) {
    let port = json!([{ "port": 80 }]);
    let with = |cluster: &str, external: &str| json!({ "clusterIP": cluster, "externalIPs": [external], "ports": port });
    let other_node = json!({
        "metadata": { "name": "elsewhere" },
        "status": { "addresses": [{ "type": "InternalIP", "address": OTHER_NODE }] },
    });
    let objects = vec![
        service("mixed", json!({ "clusterIP": "10.96.7.1", "ports": port })),
        slice("mixed", 8080, "fd00::9"),
        service("vip-a", with("10.96.7.2", EXTERNAL)),
        service("vip-b", with("10.96.7.3", EXTERNAL)),
        (Kind::Node, other_node),
        service("vip-node", with("10.96.7.4", OTHER_NODE)),
    ];
    let told = [
        ("EndpointSlice careless/mixed-1", "fd00::9 is not of the slice's addressType".to_owned()),
        (
            "Service careless/vip-b",
            format!(
                "listens on {EXTERNAL} port 80/tcp, where Service careless/vip-a listens already"
            ),
        ),
        ("Service careless/vip-node", format!("its address {OTHER_NODE} is node elsewhere's")),
    ];
    (objects, told)
}

/// Each with what its node must say of it.
fn refused() -> Vec<((Kind, Value), &'static str)> {
    let from = |peer: Value| json!({ "podSelector": {}, "ingress": [{ "from": [peer] }] });
    let near = json!({ "matchExpressions": [{ "key": "app", "operator": "Near" }] });
    let ports = json!([{ "ports": [{ "port": 70000 }] }]);
    let bomb: Map<String, Value> =
        (0..=LABELS_MAX).map(|number| (format!("l{number}"), json!("boom"))).collect();
    let long = json!({ "annotations": { "note": "x".repeat(OBJECT_BYTES_MAX) } });
    vec![
        (policy("cidr", from(json!({ "ipBlock": { "cidr": "10.0.0.0/40" } }))), "10.0.0.0/40"),
        (policy("selector", from(json!({ "podSelector": near }))), "Near"),
        (policy("port", json!({ "podSelector": {}, "ingress": ports })), "70000"),
        (policy("newer", from(json!({ "podSelector": {}, "mood": "good" }))), "mood"),
        (pod("label-bomb", json!({ "labels": bomb })), "labels"),
        (pod("long", long), "bytes"),
        (
            service(
                "range",
                json!({ "clusterIP": "10.96.7.5", "ports": [{ "port": 80 }],
                                     "loadBalancerSourceRanges": ["ten"] }),
            ),
            "ten",
        ),
        (
            service("port", json!({ "clusterIP": "10.96.7.6", "ports": [{ "port": 70001 }] })),
            "70001",
        ),
        (slice("wide", 70002, "10.200.0.1"), "70002"),
    ]
}

fn title((kind, object): &(Kind, Value)) -> String {
    format!("{} {NAMESPACE}/{}", kind.name(), object["metadata"]["name"].as_str().expect("a name"))
}

/// Of each of these kinds, how many objects are not in force as they are written.
fn told_refused(world: &World, kind: Kind) -> u64 {
    let followed = world.status().kubernetes.expect("an API server is followed");
    let row = followed.kinds.iter().find(|row| row.kind == kind.name()).expect("every kind");
    row.refused
}

#[test]
fn each_object_that_cannot_be_used_is_named_and_nothing_else_is_disturbed() {
    if !root_or_skip("objects that cannot be used") {
        return;
    }
    let shape = Shape { label: "careless", mtu: 1500, xdp_mode: "native" };
    let (world, server) =
        follow(shape, (Setup::default(), "snapshot_seconds: 1"), PATIENCE, |_| {});
    let clients =
        BALANCER.map(|address| Client::start(&world.scene.client, &to(address, HTTP[0]), 20, 5));
    let resets_before = resets(&world);
    server.set(Kind::Namespace, json!({ "metadata": { "name": NAMESPACE } }));
    let bad = refused();
    bad.iter().for_each(|((kind, object), _)| server.set(*kind, object.clone()));
    let claimants = ["first", "second"].map(|name| pod(name, json!({})));
    claimants.iter().for_each(|(kind, object)| server.set(*kind, object.clone()));

    let refused_of =
        [(Kind::NetworkPolicy, 4), (Kind::Pod, 2), (Kind::Service, 2), (Kind::EndpointSlice, 1)];
    let are_all = || refused_of.iter().all(|(kind, of)| told_refused(&world, *kind) == *of);
    assert!(wait_until(PATIENCE, are_all).is_some(), "{:#?}", world.status().kubernetes);
    let errors = world.status().kubernetes.expect("followed").refused;
    let log = || std::fs::read_to_string(world.node.process().log()).expect("its log");
    for (object, word) in &bad {
        let title = title(object);
        let error = errors.iter().find(|error| error.object == title);
        let message = &error.unwrap_or_else(|| panic!("{title} is not in {errors:#?}")).message;
        assert!(message.contains(word) && message.len() < 1000, "{title}: {message}");
        let is_logged = |line: &str| line.contains(&title) && line.contains("WARN");
        assert!(log().lines().any(is_logged), "{title} is not in the log");
    }
    let metrics = world.metrics();
    for line in [
        "xskiff_kubernetes_refused_objects{kind=\"NetworkPolicy\"} 4",
        "xskiff_kubernetes_refused_objects{kind=\"Pod\"} 2",
        "xskiff_kubernetes_refused_objects{kind=\"Service\"} 2",
        "xskiff_kubernetes_refused_objects{kind=\"EndpointSlice\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    // The first by name has the address, and the other one is told of.
    let told = format!("claims {CLAIMED_TWICE}, which {NAMESPACE}/first has");
    let is_told = || world.ask(&["status"]).contains(&told);
    assert!(wait_until(PATIENCE, is_told).is_some(), "{}", world.ask(&["status"]));
    let is_logged = |line: &str| line.contains(&told) && line.contains(&title(&claimants[1]));
    assert!(log().lines().any(is_logged), "{told} is not in the log");
    let (objects, warnings) = warned();
    objects.iter().for_each(|(kind, object)| server.set(*kind, object.clone()));
    for (object, message) in &warnings {
        let is_told = || world.ask(&["status"]).contains(message.as_str());
        assert!(wait_until(PATIENCE, is_told).is_some(), "{message}: {}", world.ask(&["status"]));
        let is_logged = |line: &str| line.contains(message.as_str()) && line.contains(object);
        assert!(log().lines().any(is_logged), "{object}: {message} is not in the log");
    }
    let identity = world.ask_json(&["identity", "get", CLAIMED_TWICE]);
    assert!(identity.to_string().contains(&format!("{NAMESPACE}/first")), "{identity}");
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
    clients.iter().for_each(Client::goes_on);

    for (kind, object) in bad.iter().map(|(object, _)| object).chain(&claimants).chain(&objects) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let namespace = if *kind == Kind::Node { "" } else { NAMESPACE };
        server.store.delete(*kind, namespace, name).expect("it is there");
    }
    let is_well = || {
        let status = world.status();
        status.kubernetes.is_some_and(|followed| followed.refused.is_empty())
            && !world.ask(&["status"]).contains(&told)
            && warnings.iter().all(|(_, told)| !world.ask(&["status"]).contains(told.as_str()))
    };
    assert!(wait_until(PATIENCE, is_well).is_some(), "{:#?}", world.status());
    clients.iter().for_each(Client::goes_on);
    assert_eq!(resets(&world), resets_before, "resets");
    for client in clients {
        client.end_whole(PATIENCE);
    }
}
