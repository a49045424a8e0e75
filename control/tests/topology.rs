//! Hints of endpoints: which of the ready ones a node uses, and that this is followed live.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::{Kind, ObjectKey, ObjectName};
use control::store::{Change, ClusterState};
use dataplane::address::Protocol;
use dataplane::lb::{Frontend, Service};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        addresses: [ip("172.16.0.1")].into(),
        node_port_addresses: [ip("172.16.0.1")].into(),
        ..NodeView::default()
    }
}

fn state(text: &str) -> ClusterState {
    manifests::parse(Path::new("case.yaml"), text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"))
        .state
}

const IN_ZONE_A: &str = "---\n{apiVersion: v1, kind: Node, metadata: {name: one, \
                         labels: {topology.kubernetes.io/zone: a}}}\n";

/// Endpoints 10.0.0.1 and so on, each with its node, conditions and hints.
fn text(endpoints: &[(&str, &str, &str)]) -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                    spec: {clusterIP: 10.96.0.1, trafficDistribution: PreferSameNode, \
                    ports: [{port: 80}]}\n---\n\
                    apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                    metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                    addressType: IPv4\nports: [{port: 8080}]\nendpoints:\n"
        .to_owned();
    for (number, (node, conditions, hints)) in (1..).zip(endpoints) {
        text += &format!(
            "- {{addresses: [10.0.0.{number}], nodeName: {node}, conditions: {{{conditions}}}, \
             hints: {{{hints}}}}}\n"
        );
    }
    text
}

fn service(compiled: &Compiled) -> Arc<Service> {
    let at = Frontend { address: ip("10.96.0.1"), protocol: Protocol::TCP, l4_port: 80 };
    let (id, _) = compiled.services.frontends.get(&at).expect("it listens");
    Arc::clone(compiled.services.get(*id).expect("a frontend has its service"))
}

/// Last octets of what is used under `Cluster`, and what is told.
fn used(compiled: &Compiled) -> (Vec<u8>, Vec<String>) {
    let last = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let used = service(compiled).cluster.backends.iter().map(|one| last(one.address)).collect();
    (used, compiled.warnings.iter().map(ToString::to_string).collect())
}

fn of(text: &str) -> (Vec<u8>, Vec<String>) {
    used(&compile(&state(text), &node(), &Compiled::default()))
}

const A: &str = "forZones: [{name: a}]";
const B: &str = "forZones: [{name: b}]";
const ENDING: &str = "ready: false, serving: true, terminating: true";

#[test]
fn hints_for_the_zone_are_followed_when_every_ready_endpoint_has_one_and_any_is_for_here() {
    let both = "forZones: [{name: b}, {name: a}]";
    let all = [("two", "", A), ("two", "", B), ("two", "", both), ("two", "ready: false", "")];
    assert_eq!(of(&(text(&all) + IN_ZONE_A)), (vec![1, 3], vec![]));
    let one_without = [("two", "", A), ("two", "", ""), ("two", "", B)];
    assert_eq!(of(&(text(&one_without) + IN_ZONE_A)), (vec![1, 2, 3], vec![]));
}

#[test]
fn hints_that_are_not_followed_are_told_with_the_reason() {
    let (used, told) = of(&(text(&[("two", "", B), ("two", "", B)]) + IN_ZONE_A));
    assert_eq!(used, [1, 2]);
    assert!(told[0].contains("Service shop/web") && told[0].contains("this zone (a)"), "{told:?}");
    let (used, told) = of(&text(&[("two", "", B), ("two", "", A)]));
    assert_eq!(used, [1, 2]);
    assert!(told[0].contains("topology.kubernetes.io/zone"), "{told:?}");
    let (used, told) = of(&(text(&[("two", "", "forNodes: [{name: two}]")]) + IN_ZONE_A));
    assert_eq!(used, [1]);
    assert!(told[0].contains("this node (one)"), "{told:?}");
}

#[test]
fn hints_for_the_node_come_before_those_for_the_zone() {
    let here = "forZones: [{name: a}], forNodes: [{name: one}]";
    let there = "forZones: [{name: a}], forNodes: [{name: two}]";
    let away = "forZones: [{name: b}], forNodes: [{name: three}]";
    let of = |hints: [&str; 3]| of(&(text(&hints.map(|hints| ("two", "", hints))) + IN_ZONE_A)).0;
    assert_eq!(of([here, there, away]), [1]);
    assert_eq!(of([there, there, away]), [1, 2], "none for this node: its zone counts");
    assert_eq!(of([here, "forZones: [{name: a}]", away]), [1, 2], "one has no hint for a node");
}

/// A hint of an endpoint that is not ready counts for nothing, and ending ones are used wherever they
/// are.
#[test]
fn hints_are_of_ready_endpoints_alone() {
    let all = [("two", "", B), ("two", "ready: false", A), ("two", ENDING, A)];
    assert_eq!(of(&(text(&all) + IN_ZONE_A)).0, [1]);
    let all = [("two", "ready: false", A), ("two", ENDING, B), ("two", ENDING, "")];
    assert_eq!(of(&(text(&all) + IN_ZONE_A)), (vec![2, 3], vec![]));
}

#[test]
fn hints_say_nothing_under_a_local_policy() {
    let all = [("one", "", B), ("one", "", A), ("two", "", A)];
    let compiled = compile(&state(&(text(&all) + IN_ZONE_A)), &node(), &Compiled::default());
    let service = service(&compiled);
    assert_eq!((service.cluster.backends.len(), service.local.backends.len()), (2, 2));
    assert!(service.local.backends.iter().any(|one| one.address == ip("10.0.0.1")));
}

/// `serving` that is absent is true whatever `ready` says (discovery.k8s.io/v1).
#[test]
fn ending_endpoint_that_does_not_say_whether_it_serves_does() {
    assert_eq!(of(&text(&[("two", "ready: false, terminating: true", "")])).0, [1]);
    assert!(of(&text(&[("two", "ready: false", "")])).0.is_empty());
}

#[test]
fn zone_of_the_node_is_followed_live() {
    let mut compiled = Compiled::default();
    let cluster = state(&text(&[("two", "", A), ("two", "", B)]));
    ClusterState::default().changes_to(&cluster).into_iter().for_each(|one| compiled.take(one));
    let now = |compiled: &mut Compiled, change: Option<Change>| {
        change.into_iter().for_each(|change| compiled.take(change));
        compiled.compile(&node());
        used(compiled).0
    };
    let own = |zone: &str| {
        let nodes = state(&IN_ZONE_A.replace("zone: a", &format!("zone: {zone}")));
        ClusterState::default().changes_to(&nodes).into_iter().next()
    };
    assert_eq!(now(&mut compiled, None), [1, 2]);
    assert_eq!(now(&mut compiled, own("b")), [2]);
    assert_eq!(now(&mut compiled, own("a")), [1]);
    let gone = ObjectKey::new(Kind::Node, ObjectName::new("", "one"));
    assert_eq!(now(&mut compiled, Some(Change::Gone(gone))), [1, 2]);
}
