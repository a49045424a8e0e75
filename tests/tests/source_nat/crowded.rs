//! A destination to which all ports are taken: what gives way, and what never does.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

use crate::seen;

const SERVER: &str = "192.0.2.7:80";
const PORTS: u16 = 100;

fn node() -> Simulation {
    let world = World::with_pods(1).with_snat_ports(61_000..=61_000 + PORTS - 1);
    Simulation::single(&world.tables())
}

fn there(client: u16, flags: &str) -> Vec<u8> {
    tcp(&format!("10.1.0.1:{client}"), SERVER, flags).build()
}

/// Opens a connection; answers what the server sees as its peer.
fn establish(node: &mut Simulation, client: u16) -> String {
    let own = seen(&node.forward(pod_port(1), &there(client, "S")).1).source.to_string();
    node.forward(UPLINK, &tcp(SERVER, &own, "SA").build());
    node.forward(pod_port(1), &there(client, "A"));
    own
}

fn fill(node: &mut Simulation) -> Vec<String> {
    (1000..1000 + PORTS).map(|client| establish(node, client)).collect()
}

fn assert_all_live(node: &mut Simulation, own: &[String]) {
    for own in own {
        node.forward(UPLINK, &tcp(SERVER, own, "PA").build());
    }
}

#[test]
fn exhaustion_is_counted_by_name_and_takes_no_live_connection() {
    let mut node = node();
    let own = fill(&mut node);
    for client in 2000..2100 {
        node.expect_drop(pod_port(1), &there(client, "S"), DropReason::NatPortsExhausted);
    }
    assert_all_live(&mut node, &own);
    assert!(node.flows().iter().all(|flow| flow.life.state() == FlowState::Established));
    assert_eq!(node.sum(|counters| counters.flows_evicted.get()), 0);
    node.forward(pod_port(1), &tcp("10.1.0.1:2000", "192.0.2.8:80", "S").build());
}

#[test]
fn connection_that_both_ends_closed_gives_its_port_to_a_new_one() {
    let mut node = node();
    let own = fill(&mut node);
    node.forward(pod_port(1), &there(1050, "FA"));
    node.expect_drop(pod_port(1), &there(2000, "S"), DropReason::NatPortsExhausted);
    node.forward(UPLINK, &tcp(SERVER, &own[50], "FA").build());
    node.expect_drop(pod_port(1), &there(2000, "S"), DropReason::NatPortsExhausted);
    node.now = node.now.after(Duration::from_secs(2));
    let out = open_at_last(&mut node, 2000);
    assert_eq!(out, own[50], "the port of the closed one");
    assert_eq!(node.sum(|counters| counters.flows_evicted.get()), 1);
    let others: Vec<_> = own.iter().filter(|other| **other != out).cloned().collect();
    assert_all_live(&mut node, &others);
}

#[test]
fn connection_that_was_reset_gives_its_port_to_a_new_one() {
    let mut node = node();
    let own = fill(&mut node);
    node.forward(UPLINK, &tcp(SERVER, &own[7], "RA").build());
    node.now = node.now.after(Duration::from_secs(2));
    assert_eq!(open_at_last(&mut node, 2000), own[7]);
}

/// A reset from outside may be forged: it must not move a live connection's port to another.
#[test]
fn connection_that_speaks_after_a_reset_keeps_its_port() {
    let mut node = node();
    let own = fill(&mut node);
    for own in &own {
        node.forward(UPLINK, &tcp(SERVER, own, "R").build());
    }
    // At once, and when it has spoken: none gives way.
    for round in 0..2 {
        for client in 2000..2020 {
            node.expect_drop(pod_port(1), &there(client, "S"), DropReason::NatPortsExhausted);
        }
        for client in 1000..1000 + PORTS {
            node.forward(pod_port(1), &there(client, "A"));
        }
        node.now = node.now.after(Duration::from_secs(3 * (1 - round)));
    }
    assert_all_live(&mut node, &own);
}

#[test]
fn flow_past_its_deadline_gives_its_port_back_before_it_is_swept() {
    let mut node = node();
    for client in 1000..1000 + PORTS {
        node.forward(pod_port(1), &udp(&format!("10.1.0.1:{client}"), SERVER).build());
    }
    let late = udp("10.1.0.1:2000", SERVER).build();
    node.expect_drop(pod_port(1), &late, DropReason::NatPortsExhausted);
    // No tick in between: nothing was swept.
    node.now = node.now.after(Duration::from_secs(31));
    node.forward(pod_port(1), &late);
}

#[test]
fn port_that_a_flow_gave_back_serves_again() {
    let mut node = node();
    for round in 0..5u16 {
        for client in 0..PORTS {
            let from = format!("10.1.0.1:{}", 1000 + round * PORTS + client);
            node.forward(pod_port(1), &udp(&from, SERVER).build());
        }
        node.wait(Duration::from_secs(40));
    }
    assert_eq!(node.dropped(DropReason::NatPortsExhausted), 0);
}

/// The SYN of a client is sent again until it finds the one port that is over.
fn open_at_last(node: &mut Simulation, client: u16) -> String {
    for _ in 0..20 {
        if let [(_, frame)] = &node.pass(pod_port(1), &there(client, "S"))[..] {
            return seen(frame).source.to_string();
        }
    }
    panic!("no port is found:\n{}", node.moved_counters());
}
