//! A backend in the node's own network, as the API server's is: reached by a service and directly.

use std::time::Duration;

use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{CLIENT, NODE};
use xskiff::demo::traffic::{echo, http};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World};

const BALANCER: [&str; 2] = ["203.0.113.90", "2001:db8:113::90"];

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
}
