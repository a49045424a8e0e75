//! A flood of new connections from outside, faster than a worker opens flows: those that stand, from a pod
//! and from the node, are answered all the while, and what is not served is counted.
//!
//! `XSKIFF_FLOOD_RATE` is how many begin each second (300,000), as far as the sender gets.

use std::time::{Duration, Instant};

use xskiff::demo::scene::{BALANCER, BUYER, CLUSTER_IP, FLOOD_SOURCES, HTTP, WEB_1, to};
use xskiff::lab::agent::report::Report;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, number_from};

/// Connections of each client; one in five asks all the time.
const CONNECTIONS: u64 = 100;
const ACTIVE: u64 = 20;
/// How long it lasts at least, once something was shed.
const LASTS: Duration = Duration::from_secs(5);

/// What was not served: shed by the worker, and refused by the uplink's full rings.
fn unserved(world: &World) -> (u64, u64) {
    let rings = world.port("uplink").sockets;
    (world.dropped("overload"), rings.rx_ring_full + rings.rx_dropped)
}

#[test]
fn connections_that_stand_are_answered_beside_a_flood_that_is_shed_and_counted() {
    if !root_or_skip("a flood beside connections") {
        return;
    }
    let rate = number_from("XSKIFF_FLOOD_RATE", 300_000);
    let shape = Shape { label: "floods", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| {
        assert!(text.contains("count: 2"), "{text}");
        text.replace("count: 2", "count: 1")
    });
    let scene = &world.scene;
    let service = to(CLUSTER_IP[0], HTTP[0]);
    let clients = [
        Client::start(scene.pod(BUYER), &service, CONNECTIONS, ACTIVE),
        Client::start(&scene.node, &to(WEB_1.addresses[0], HTTP[2]), CONNECTIONS, ACTIVE),
    ];
    let before = unserved(&world);
    let target = format!("--to={}:{}", BALANCER[0], HTTP[0]);
    let (sources, rate_word) = (format!("--sources={FLOOD_SOURCES}"), format!("--rate={rate}"));
    let flood = ["flood", &target, &sources, &rate_word, "--count=10000000"];
    let flood = scene.client.agent(&flood).expect("a flood");
    let is_shed = || unserved(&world) != before;
    assert!(wait_until(PATIENCE, is_shed).is_some(), "all of it is served: {before:?}");

    let began = Instant::now();
    let asked: u64 = clients.iter().map(Client::requests).sum();
    while began.elapsed() < LASTS {
        clients.iter().for_each(Client::goes_on);
    }
    let answers = clients.iter().map(Client::requests).sum::<u64>() - asked;
    let (after, taken) = (unserved(&world), began.elapsed());
    let reports = flood.stop().expect("it ends");
    let sent = reports.into_iter().rev().find_map(|stamped| match stamped.report {
        Report::Flooded { sent, .. } => Some(sent),
        _ => None,
    });
    println!(
        "{} segments of a flood; in {taken:?} of it {answers} answers on connections that stood; shed \
         {}, refused by full rings {}",
        sent.expect("it says how many"),
        after.0 - before.0,
        after.1 - before.1,
    );
    for client in clients {
        client.end_whole(PATIENCE);
    }
    world.assert_kernel_forwarded_nothing();
}
