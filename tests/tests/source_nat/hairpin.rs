//! Pods of one node that address each other as the outside sees them (RFC 4787, REQ-9; RFC 5382,
//! REQ-8).

use dataplane::DropReason;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, address, pod_port};

use crate::independent::world;
use crate::{at, seen};

#[test]
fn pods_reach_each_other_by_their_mappings_and_are_seen_by_them() {
    for workers in [1, 3] {
        for (a, b, outside) in [
            ("10.1.0.1:1000", "10.1.0.2:2000", "192.0.2.7:3478"),
            ("[fd01::1]:1000", "[fd01::2]:2000", "[2001:db8::7]:3478"),
        ] {
            let mut node = Simulation::new(workers, 4096, &world(2).tables());
            // Each learns its own by a server outside, and the other's by word of mouth.
            let mapped = [(a, pod_port(1)), (b, pod_port(2))].map(|(from, port)| {
                seen(&node.forward(port, &udp(from, outside).build()).1).source.to_string()
            });
            let (port, frame) = node.forward(pod_port(1), &udp(a, &mapped[1]).build());
            let there = seen(&frame);
            assert_eq!((port, there.destination), (pod_port(2), at(b)));
            assert_eq!(there.source, at(&mapped[0]), "REQ-9a: the external address and port");
            let (port, frame) = node.forward(pod_port(2), &udp(b, &mapped[0]).build());
            let back = seen(&frame);
            assert_eq!((port, back.destination, back.source), (pod_port(1), at(a), at(&mapped[1])));
            assert_eq!(node.flows().len(), 3, "one flow between the two");
        }
    }
}

#[test]
fn pod_reaches_itself_by_its_own_mapping() {
    let mut node = Simulation::single(&world(1).tables());
    let own = "10.1.0.1:1000";
    let there = udp(own, "192.0.2.7:3478").build();
    let mapped = seen(&node.forward(pod_port(1), &there).1).source.to_string();
    let (port, frame) = node.forward(pod_port(1), &udp(own, &mapped).build());
    let seen = seen(&frame);
    assert_eq!((port, seen.destination, seen.source), (pod_port(1), at(own), at(&mapped)));
}

#[test]
fn policy_judges_the_pods_behind_the_mappings() {
    let world = world(2).with_ingress_only_from(2, &[], 1..=1);
    let mut node = Simulation::single(&world.tables());
    let there = udp("10.1.0.2:2000", "192.0.2.7:3478").build();
    let mapped = seen(&node.forward(pod_port(2), &there).1).source.to_string();
    let frame = udp("10.1.0.1:1000", &mapped).build();
    node.expect_drop(pod_port(1), &frame, DropReason::PolicyIngress);
}

#[test]
fn port_that_maps_to_nobody_of_this_protocol_leads_nowhere() {
    let mut node = Simulation::single(&world(2).tables());
    let there = udp("10.1.0.2:2000", "192.0.2.7:3478").build();
    let mapped = seen(&node.forward(pod_port(2), &there).1).source.to_string();
    let syn = tcp("10.1.0.1:1000", &mapped, "S").build();
    node.expect_drop(pod_port(1), &syn, DropReason::NoFlow);
}

/// Without a mapping by end point a port is many end points', and names none of them.
#[test]
fn dependent_mapping_has_no_hairpin() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let there = udp("10.1.0.2:2000", "192.0.2.7:3478").build();
    let mapped = seen(&node.forward(pod_port(2), &there).1).source;
    assert_eq!(mapped.ip(), address("10.0.0.1"));
    let frame = udp("10.1.0.1:1000", &mapped.to_string()).build();
    node.expect_drop(pod_port(1), &frame, DropReason::NoFlow);
}
