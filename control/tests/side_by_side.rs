//! A whole cluster is compiled by several threads, each with a part of it; the same cluster in small
//! pieces by one. What comes out must be the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use control::compile::{Compiled, NodeView};
use control::model::{
    Endpoint, EndpointSlice, Kind, Labels, Object, ObjectName, Pod, PodPhase, SlicePort, Uid, read,
};
use control::store::Change;
use dataplane::address::Protocol;

/// More than are filed, and compiled, by one thread.
const PODS: u32 = 12_000;
const SERVICES: u32 = 1_500;
/// Fewer than are compiled by two.
const PIECE: usize = 400;

fn name(number: u32) -> ObjectName {
    ObjectName::new(format!("team-{:02}", number % 20), format!("object-{number:05}"))
}

fn pod_address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

fn pod(number: u32) -> Object {
    Object::from(Pod {
        name: name(number),
        uid: Uid::Absent,
        labels: Labels::from([("app", if number.is_multiple_of(3) { "web" } else { "job" })]),
        addresses: [pod_address(number)].into(),
        node: Some(if number.is_multiple_of(100) { "one" } else { "two" }.into()),
        named_ports: Box::default(),
        host_ports: Box::default(),
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        bandwidth: None,
        weight: Some(if number.is_multiple_of(500) { 7 } else { 100 }),
    })
}

/// Every 400th wants the address of the one before, in whichever thread that is.
fn service(number: u32) -> Object {
    let ObjectName { namespace, name } = name(number);
    let place = if number % 400 == 399 { number - 1 } else { number };
    let address = Ipv4Addr::from_bits(0x0a60_0000 + place);
    let manifest = serde_json::json!({
        "metadata": { "namespace": *namespace, "name": *name },
        "spec": { "clusterIP": address, "ports": [{ "port": 80 }] },
    });
    read::object(Kind::Service, manifest, read::UnknownFields::Refuse).expect("a good one")
}

fn slice(number: u32) -> Object {
    let port = SlicePort { name: String::new(), protocol: Protocol::TCP, l4_port: Some(8080) };
    let endpoint = |place: u32| Endpoint {
        address: pod_address((number * 8 + place) % PODS),
        ready: place != 3,
        serving: true,
        terminating: false,
        node: Some("two".into()),
        hints: None,
        target: None,
    };
    Object::EndpointSlice(EndpointSlice {
        name: name(number),
        service: Some(name(number).name.to_string()),
        ports: vec![port],
        endpoints: (0..number % 8).map(endpoint).collect(),
        left_out: None,
    })
}

/// In the order of their names, as a snapshot and a list have them.
fn cluster() -> Vec<Object> {
    let of = |count: u32, make: fn(u32) -> Object| {
        let mut all: Vec<_> = (0..count).map(make).collect();
        all.sort_by_key(|object| object.key());
        all
    };
    [of(PODS, pod), of(SERVICES, service), of(SERVICES, slice)].concat()
}

/// Who listens where, with which backends in which slots.
fn listening(compiled: &Compiled) -> BTreeMap<String, String> {
    let services = &compiled.services;
    let frontends = services.frontends.iter().map(|(frontend, (id, kind))| {
        let service = services.get(*id).expect("it is in force");
        let sets = (&service.cluster, &service.local, &service.lingering);
        (format!("{frontend:?}"), format!("{kind:?} {} {sets:?}", service.name))
    });
    frontends.collect()
}

fn warnings(compiled: &Compiled) -> BTreeSet<String> {
    compiled.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn cluster_compiled_side_by_side_is_what_it_is_piece_by_piece() {
    let node = NodeView { name: "one".into(), ..NodeView::default() };
    let objects = cluster();
    let mut together = Compiled::default();
    objects.iter().for_each(|object| together.take(Change::Set(object.clone())));
    together.compile(&node);
    let mut pieces = Compiled::default();
    for piece in objects.chunks(PIECE) {
        piece.iter().for_each(|object| pieces.take(Change::Set(object.clone())));
        pieces.compile(&node);
    }
    assert_eq!(together.state(), pieces.state());
    let listens = listening(&together);
    assert!(listens.len() as u32 > SERVICES - 10, "{}", listens.len());
    assert_eq!(listens, listening(&pieces));
    for number in 0..PODS {
        let of = |one: &Compiled| {
            let identity = one.identities.lookup(pod_address(number));
            (one.identity_name(identity), one.is_local_address(pod_address(number)))
        };
        assert_eq!(of(&together), of(&pieces), "pod {number}");
    }
    assert!(!warnings(&together).is_empty());
    assert_eq!(warnings(&together), warnings(&pieces));
}
