//! A backend in the node's own network, as the API server's is: reached by a service and directly.

use std::time::Duration;

use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{CLIENT, NODE, WEB_1, to};
use xskiff::demo::traffic::{echo, http};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets};
use crate::world::{PATIENCE, Shape, World};

const CLUSTER: [&str; 2] = ["10.96.0.90", "fd00:10:96::90"];
const BALANCER: [&str; 2] = ["203.0.113.90", "2001:db8:113::90"];
/// As whom the node's own processes are seen.
const BEHIND_HOST_PORT: [&str; 2] = ["169.254.7.1", "fd78:736b:6966:7::1"];

/// Once a service had the node's own address as a backend, whoever addressed that L4 port directly
/// was cut off: the answers came by the host port, where no flow was.
#[test]
fn one_client_reaches_a_host_backend_by_the_service_and_directly_by_tcp_and_udp() {
    if !root_or_skip("host backends") {
        return;
    }
    let world = World::start(Shape { label: "hosts", mtu: 1500, xdp_mode: "native" });
    let words = ["serve", "--http=[::]:6443", "--udp=[::]:6444", "--name=own"];
    let server = world.scene.node.agent(&words).expect("a server");
    server.wait_ready(Duration::from_secs(10)).expect("it listens");
    let client = &world.scene.client;
    let direct = || {
        let asked = http(client, NODE, 6443, &["own"], Some(CLIENT)).expect("asked");
        let echoed = echo(client, NODE, 6444).expect("asked");
        assert_eq!(asked.outcome, Outcome::Ok, "TCP: {asked:?}, {:#?}", world.status());
        assert_eq!(echoed.outcome, Outcome::Ok, "UDP: {echoed:?}, {:#?}", world.status());
    };
    direct();

    world.add_manifests("own.yaml", include_str!("host_backends.yaml"));
    let is_led = || world.scene.node.ip("rule show").expect("rules").contains("sport 6443");
    assert!(wait_until(PATIENCE, is_led).is_some(), "{:#?}", world.status());
    for _ in 0..2 {
        direct();
        let asked = http(client, BALANCER, 80, &["own"], Some(CLIENT)).expect("asked");
        let echoed = echo(client, BALANCER, 53).expect("asked");
        assert_eq!(
            asked.outcome,
            Outcome::Ok,
            "TCP by the service: {asked:?}, {:#?}",
            world.status()
        );
        assert_eq!(
            echoed.outcome,
            Outcome::Ok,
            "UDP by the service: {echoed:?}, {:#?}",
            world.status()
        );
    }
    assert!(world.port("xskiff-port").received_packets > 0, "answers come by the host port");
    // The node's own processes, as an API server's clients on its node are.
    let node = &world.scene.node;
    for addresses in [CLUSTER, BALANCER] {
        let asked = http(node, addresses, 80, &["own"], Some(BEHIND_HOST_PORT)).expect("asked");
        let echoed = echo(node, addresses, 53).expect("asked");
        assert_eq!(asked.outcome, Outcome::Ok, "TCP: {asked:?}, {:#?}", world.status());
        assert_eq!(echoed.outcome, Outcome::Ok, "UDP: {echoed:?}, {:#?}", world.status());
    }
}

/// What led the backend's answers here ended with its endpoint: the next answer of each open connection
/// came from the node's own address, and reset it.
#[test]
fn connections_to_a_host_backend_outlive_its_readiness_its_slices_and_its_service() {
    if !root_or_skip("host backends that go") {
        return;
    }
    let world = World::start(Shape { label: "hostsgo", mtu: 1500, xdp_mode: "native" });
    let server = world.scene.node.agent(&["serve", "--http=[::]:6443", "--name=own"]);
    let server = server.expect("a server");
    server.wait_ready(Duration::from_secs(10)).expect("it listens");
    let objects = include_str!("host_backends.yaml");
    world.add_manifests("own.yaml", objects);
    let is_led = || world.scene.node.ip("rule show").expect("rules").contains("sport 6443");
    assert!(wait_until(PATIENCE, is_led).is_some(), "{:#?}", world.status());
    let start = |from: &Namespace, address: &str| Client::start(from, &to(address, 80), 20, 5);
    let outside = BALANCER.map(|address| start(&world.scene.client, address));
    let inside = CLUSTER.map(|address| start(world.scene.pod(WEB_1), address));
    let resets_before = resets(&world);

    let here = "nodeName: demo-node\n";
    assert_eq!(objects.matches(here).count(), 2);
    let conditions = "    conditions: {ready: false, serving: false, terminating: true}\n";
    let unready = objects.replace(here, &format!("{here}{conditions}"));
    let (service, _) = objects.split_once("---\n").expect("slices come after the service");
    let usable = || world.ask_json(&["service", "list"]).to_string().contains("192.0.2.1");
    assert!(usable());
    for (text, word) in [(&*unready, "unready"), (service, "in no slice")] {
        world.add_manifests("own.yaml", text);
        assert!(wait_until(PATIENCE, || !usable()).is_some(), "{word}");
        for _ in 0..3 {
            outside.iter().chain(&inside).for_each(Client::goes_on);
        }
        assert!(is_led(), "{word}");
    }
    for client in outside {
        client.end_whole(PATIENCE);
    }
    // An address that no service has is led here no longer from outside. Pods speak on.
    world.add_manifests("own.yaml", "");
    let is_known = || world.ask(&["service", "list"]).contains("shop/own");
    assert!(wait_until(PATIENCE, || !is_known()).is_some());
    for _ in 0..3 {
        inside.iter().for_each(Client::goes_on);
    }
    assert!(is_led());
    assert_eq!(resets(&world), resets_before, "resets");
    for client in inside {
        client.end_whole(PATIENCE);
    }
}
