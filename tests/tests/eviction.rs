//! A table that fills: who gives way, and who never does.

use std::time::Duration;

use dataplane::DropReason;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

const CAPACITY: usize = 1024;

fn node() -> Simulation {
    Simulation::new(1, CAPACITY, &World::with_pods(2).tables())
}

fn syn(from: u32) -> Vec<u8> {
    let [_, b, c, d] = from.to_be_bytes();
    tcp(&format!("198.{b}.{c}.{d}:999"), "10.1.0.1:80", "S").build()
}

fn establish(node: &mut Simulation, l4_port: u16) {
    let (a, b) = (format!("10.1.0.1:{l4_port}"), "10.1.0.2:80");
    node.forward(pod_port(1), &tcp(&a, b, "S").build());
    node.forward(pod_port(2), &tcp(b, &a, "SA").build());
    node.forward(pod_port(1), &tcp(&a, b, "A").build());
}

/// 32 SYNs, then a real connection.
fn flood_and_establish(node: &mut Simulation, burst: u16) {
    for one in 0..32 {
        node.deliver(0, UPLINK, &syn(u32::from(burst) * 32 + one));
    }
    node.settle();
    node.take_outgoing();
    establish(node, 2000 + burst);
}

#[test]
fn syn_flood_ends_no_established_connection_and_keeps_no_new_one_out() {
    let mut node = node();
    (1000..1100).for_each(|l4_port| establish(&mut node, l4_port));
    for burst in 0..200 {
        flood_and_establish(&mut node, burst);
        node.now = node.now.after(Duration::from_millis(200));
    }
    assert_eq!(node.dropped(DropReason::TableFull), 0, "{}", node.moved_counters());
    assert!(node.sum(|counters| counters.flows_evicted.get()) > 4000);
    for l4_port in (1000..1100).chain(2000..2200) {
        let (a, b) = (format!("10.1.0.1:{l4_port}"), "10.1.0.2:80");
        node.forward(pod_port(2), &tcp(b, &a, "A").build());
    }
}

#[test]
fn flood_faster_than_any_grace_ends_no_established_connection() {
    let mut node = node();
    (1000..1100).for_each(|l4_port| establish(&mut node, l4_port));
    for one in 0..20_000 {
        node.deliver(0, UPLINK, &syn(one));
    }
    node.settle();
    node.take_outgoing();
    assert!(node.sum(|counters| counters.flows_evicted.get()) > 4000, "{}", node.moved_counters());
    for l4_port in 1000..1100 {
        let (a, b) = (format!("10.1.0.1:{l4_port}"), "10.1.0.2:80");
        node.forward(pod_port(2), &tcp(b, &a, "A").build());
    }
}

#[test]
fn table_of_established_connections_refuses_and_counts() {
    let mut node = node();
    for l4_port in 1000..1000 + u16::try_from(CAPACITY).expect("small") {
        establish(&mut node, l4_port);
    }
    node.expect_drop(UPLINK, &syn(1), DropReason::TableFull);
    assert_eq!(node.sum(|counters| counters.flows_evicted.get()), 0);
    node.forward(pod_port(2), &tcp("10.1.0.2:80", "10.1.0.1:1000", "A").build());
}

#[test]
fn short_lived_protocols_give_way_last() {
    let mut node = node();
    for l4_port in 1000..1000 + u16::try_from(CAPACITY).expect("small") {
        let (a, b) = (format!("10.1.0.1:{l4_port}"), "10.1.0.2:53");
        node.forward(pod_port(1), &udp(&a, b).build());
        node.forward(pod_port(2), &udp(b, &a).build());
    }
    establish(&mut node, 999);
    assert!(node.sum(|counters| counters.flows_evicted.get()) > 0, "{}", node.moved_counters());
}

#[test]
fn flow_that_is_over_gives_its_entry_back_within_a_round_of_the_sweep() {
    let mut node = node();
    for l4_port in 1000..1700 {
        node.forward(pod_port(1), &udp(&format!("10.1.0.1:{l4_port}"), "10.1.0.2:53").build());
    }
    let time_out = Duration::from(dataplane::tables::Timeouts::default().udp);
    node.now = node.now.after(time_out);
    let before = node.sum(|counters| counters.flows_expired.get());
    // A whole second more: deadlines are kept in seconds. Then a round, at a busy worker's pace.
    for _ in 0..5_100 {
        node.now = node.now.after(Duration::from_millis(1));
        node.tick();
    }
    assert_eq!(node.sum(|counters| counters.flows_expired.get()) - before, 700);
}
