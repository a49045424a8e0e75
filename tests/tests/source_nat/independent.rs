//! Mapping by end point alone (RFC 4787, REQ-1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::nat::Mapping;
use xskiff_tests::packet_builder::{icmp_error, ping, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4};

use crate::{at, seen};

pub fn world(pods: u8) -> World {
    World::with_pods(pods).with_mapping(Mapping::EndpointIndependent)
}

/// Sends a datagram by some worker; answers where it seems to come from.
fn source_of(node: &mut Simulation, worker: usize, from: &str, to: &str) -> SocketAddr {
    let out = node.pass_to(worker, pod_port(1), &udp(from, to).build());
    assert_eq!(out.len(), 1, "{}", node.moved_counters());
    seen(&out[0].1).source
}

/// RFC 4787, REQ-1; RFC 5382, REQ-1; RFC 5508, REQ-1.
#[test]
fn end_point_has_one_port_toward_all_destinations_on_any_number_of_workers() {
    for workers in [1, 2, 4] {
        let mut node = Simulation::new(workers, 4096, &world(1).tables());
        let mut own = BTreeMap::<String, BTreeSet<SocketAddr>>::new();
        for destination in 1..60 {
            for (from, to) in [
                ("10.1.0.1:1000", format!("192.0.2.{destination}:53")),
                ("10.1.0.1:1001", format!("192.0.2.{destination}:53")),
                ("[fd01::1]:1000", format!("[2001:db8::{destination}]:53")),
            ] {
                let source = source_of(&mut node, destination % workers, from, &to);
                own.entry(from.to_owned()).or_default().insert(source);
                let reply = udp(&to, &source.to_string()).build();
                let back = node.pass_to((destination + 1) % workers, UPLINK, &reply);
                assert_eq!(back.len(), 1, "{}", node.moved_counters());
                assert_eq!(seen(&back[0].1).destination, at(from));
            }
            let worker = destination % workers;
            let to = format!("192.0.2.{destination}:80");
            let syn = tcp("10.1.0.1:1000", &to, "S").build();
            let out = node.pass_to(worker, pod_port(1), &syn);
            own.entry("tcp".into()).or_default().insert(seen(&out[0].1).source);
            let to = address(&format!("192.0.2.{destination}"));
            let out = node.pass_to(worker, pod_port(1), &ping(pod4(1), to, 1000).build());
            own.entry("ping".into()).or_default().insert(seen(&out[0].1).source);
        }
        assert!(own.values().all(|sources| sources.len() == 1), "{workers}: {own:?}");
        assert_ne!(own["10.1.0.1:1000"], own["10.1.0.1:1001"], "two end points");
    }
}

/// RFC 4787, REQ-3: no port overloading.
#[test]
fn no_two_end_points_share_a_port_until_none_is_left() {
    let world = world(2).with_snat_ports(61_000..=61_063);
    let mut node = Simulation::single(&world.tables());
    let mut used = BTreeSet::new();
    for client in 1000..1064 {
        // Each to a destination of its own, where any port would be free.
        let to = format!("192.0.2.{}:53", client - 999);
        assert!(used.insert(source_of(&mut node, 0, &format!("10.1.0.1:{client}"), &to)));
    }
    let one_more = udp("10.1.0.2:1000", "192.0.2.200:53").build();
    node.expect_drop(pod_port(2), &one_more, DropReason::NatPortsExhausted);
    source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.201:53");
    let tcp = tcp("10.1.0.2:1000", "192.0.2.200:80", "S").build();
    assert_eq!(node.forward(pod_port(2), &tcp).0, UPLINK, "TCP's ports are its own");
}

/// RFC 4787, REQ-4.
#[test]
fn parity_of_mapped_udp_ports_is_preserved() {
    let mut node = Simulation::single(&world(1).tables());
    for client in 1000..1200u16 {
        let own = source_of(&mut node, 0, &format!("10.1.0.1:{client}"), "192.0.2.7:53");
        assert_eq!(own.port() % 2, client % 2);
    }
}

#[test]
fn mapping_lasts_as_long_as_its_last_flow_and_no_longer() {
    let world = world(1).with_snat_ports(61_000..=61_000 + 63);
    let mut node = Simulation::single(&world.tables());
    let own = source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53");
    node.wait(Duration::from_secs(20));
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.8:53"), own);
    // The first flow is over, the second is not.
    node.wait(Duration::from_secs(20));
    assert_eq!(node.flows().len(), 1);
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.9:53"), own);
    node.wait(Duration::from_secs(40));
    // All ports for others: the mapping gave its own back.
    for client in 2000..2064 {
        source_of(&mut node, 0, &format!("10.1.0.1:{client}"), "192.0.2.7:53");
    }
    node.wait(Duration::from_secs(40));
    for _ in 0..8 {
        node.wait(Duration::from_secs(1));
    }
    let (made, gone) = (
        node.sum(|counters| counters.flows_created.get()),
        node.sum(|counters| counters.flows_expired.get()),
    );
    assert_eq!(made, gone, "flows and mappings alike");
}

#[test]
fn removed_pod_takes_its_mappings_along() {
    let mut node = Simulation::single(&world(2).tables());
    source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53");
    node.send(|| Command::Flush(FlushFilter::of(Prefix::host(pod4(1)))));
    (0..10).for_each(|_| node.tick());
    let made = node.sum(|counters| counters.flows_created.get());
    let gone = node.sum(|counters| counters.flows_deleted.get() + counters.flows_expired.get());
    assert_eq!((made, gone), (2, 2), "{}", node.moved_counters());
    // Its address may be another's now, which begins afresh.
    source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53");
}

/// RFC 4787, REQ-8: filtering is address- and port-dependent.
#[test]
fn nobody_but_those_spoken_to_reaches_a_mapped_port() {
    let mut node = Simulation::single(&world(1).tables());
    let own = source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53").to_string();
    for stranger in ["192.0.2.7:54", "192.0.2.8:53"] {
        node.expect_drop(UPLINK, &udp(stranger, &own).build(), DropReason::NoFlow);
    }
    source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.8:53");
    assert_eq!(node.forward(UPLINK, &udp("192.0.2.8:53", &own).build()).0, pod_port(1));
}

/// A fragment carries no port by which its end point could be told.
#[test]
fn flow_that_begins_in_fragments_has_its_end_points_port() {
    for worker in 0..4 {
        let mut node = Simulation::new(4, 4096, &world(1).tables());
        let own = source_of(&mut node, worker, "10.1.0.1:1000", "192.0.2.7:53");
        let part = |offset, more| {
            udp("10.1.0.1:1000", "192.0.2.8:53").payload(&[7; 64]).fragment(9, offset, more).build()
        };
        let first = node.pass_to(worker, pod_port(1), &part(0, true));
        assert_eq!(first.len(), 1, "{}", node.moved_counters());
        let port = u16::from_be_bytes([first[0].1[34], first[0].1[35]]);
        assert_eq!(port, own.port());
        assert_eq!(node.pass_to((worker + 1) % 4, pod_port(1), &part(72, false)).len(), 1);
    }
}

/// A mapping is no flow: whoever quotes its tuple says nothing about it.
#[test]
fn crafted_icmp_error_about_a_mapping_changes_nothing() {
    let mut node = Simulation::single(&world(1).tables());
    let own = source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53");
    let quoted = tcp(&own.to_string(), "0.0.0.0:17", "S").build();
    let error = icmp_error(address("192.0.2.9"), own.ip(), (3, 1, 0), &quoted).build();
    node.pass(UPLINK, &error);
    assert_eq!(node.sum(|counters| counters.flows_rejudged.get()), 0);
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.9:53"), own);
    assert_eq!(node.flows().len(), 2, "a mapping is not listed");
}

#[test]
fn flows_keep_their_ports_when_the_mode_changes_under_them() {
    let dependent = World::with_pods(1);
    let mut node = Simulation::single(&dependent.tables());
    let before = source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53");
    node.publish(&world(1).next_generation().tables());
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.7:53"), before);
    let mapped = source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.8:53");
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.9:53"), mapped);
    node.publish(&dependent.next_generation().next_generation().tables());
    assert_eq!(source_of(&mut node, 0, "10.1.0.1:1000", "192.0.2.9:53"), mapped);
    node.wait(Duration::from_secs(45));
    let made = node.sum(|counters| counters.flows_created.get());
    assert_eq!(made, node.sum(|counters| counters.flows_expired.get()), "nothing is left");
}
