//! Mapping by end point and destination.

use std::collections::BTreeSet;
use std::time::Duration;

use dataplane::DropReason;
use xskiff_tests::packet_builder::{ping, raw, sctp, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

use crate::{at, seen};

/// RFC 4787, 4.2.1; RFC 5382, REQ-7: the range is ours, so a port in it can be kept.
#[test]
fn port_is_preserved_where_it_is_ours_to_give_and_free() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for (pod, n) in [("10.1.0.1:61234", 1), ("[fd01::1]:61234", 1)] {
        let outside = if pod.starts_with('[') { "[2001:db8::7]:53" } else { "192.0.2.7:53" };
        for frame in [udp(pod, outside).build(), tcp(pod, outside, "S").build()] {
            let out = seen(&node.forward(pod_port(n), &frame).1);
            assert_eq!(out.source.port(), 61_234);
        }
    }
    let ping = ping(pod4(1), address("192.0.2.7"), 61_001).build();
    assert_eq!(seen(&node.forward(pod_port(1), &ping).1).source.port(), 61_001);
    let second = udp("10.1.0.2:61234", "192.0.2.7:53").build();
    assert_ne!(seen(&node.forward(pod_port(2), &second).1).source.port(), 61_234, "it is taken");
}

/// RFC 4787, REQ-4: RTP takes an even port and RTCP the odd one after it.
#[test]
fn parity_of_udp_ports_is_preserved() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for l4_port in 1000..1400u16 {
        for (pod, outside) in [("10.1.0.1", "192.0.2.7:53"), ("[fd01::1]", "[2001:db8::7]:53")] {
            let frame = udp(&format!("{pod}:{l4_port}"), outside).build();
            let out = seen(&node.forward(pod_port(1), &frame).1);
            assert_eq!(out.source.port() % 2, l4_port % 2, "{l4_port} became {}", out.source);
        }
    }
}

/// RFC 4787, REQ-3c; RFC 6056, 3.3.
#[test]
fn ports_of_successive_flows_do_not_tell_each_other() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let mut ports = Vec::new();
    for l4_port in 1000..1100u16 {
        let frame = tcp(&format!("10.1.0.1:{l4_port}"), "192.0.2.7:80", "S").build();
        ports.push(seen(&node.forward(pod_port(1), &frame).1).source.port());
    }
    let steps: BTreeSet<_> = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 80, "{ports:?}");
}

/// As many flows to each destination as there are ports, however many to others.
#[test]
fn each_destination_has_all_ports() {
    let world = World::with_pods(1).with_snat_ports(61_000..=61_099);
    let mut node = Simulation::single(&world.tables());
    for destination in 1..=20 {
        let mut ports = BTreeSet::new();
        for l4_port in 1000..1100 {
            let to = format!("192.0.2.{destination}:80");
            let frame = tcp(&format!("10.1.0.1:{l4_port}"), &to, "S").build();
            ports.insert(seen(&node.forward(pod_port(1), &frame).1).source.port());
        }
        assert_eq!(ports.len(), 100, "to {destination}");
    }
    assert_eq!(node.dropped(DropReason::NatPortsExhausted), 0);
}

/// RFC 4787, REQ-1 is not met in this mode, and filtering is address- and port-dependent in both.
#[test]
fn nobody_but_the_one_spoken_to_reaches_a_translated_port() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let out = seen(&node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build()).1);
    for stranger in ["192.0.2.7:54", "192.0.2.8:53"] {
        let frame = udp(stranger, &out.source.to_string()).build();
        node.expect_drop(UPLINK, &frame, DropReason::NoFlow);
    }
    let reply = udp("192.0.2.7:53", &out.source.to_string()).build();
    assert_eq!(node.forward(UPLINK, &reply).0, pod_port(1));
}

/// RFC 4787, REQ-5 and REQ-6: 120 s from the last packet, which may be either side's.
#[test]
fn udp_mapping_lives_for_two_minutes_from_the_last_packet() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = udp("10.1.0.1:9", "192.0.2.7:53").build();
    let own = seen(&node.forward(pod_port(1), &there).1).source;
    let back = udp("192.0.2.7:53", &own.to_string()).build();
    node.forward(UPLINK, &back);
    for frame in [&there, &back] {
        let port = if frame == &there { pod_port(1) } else { UPLINK };
        node.wait(Duration::from_secs(119));
        node.forward(port, frame);
    }
    node.wait(Duration::from_secs(119));
    assert_eq!(seen(&node.forward(pod_port(1), &there).1).source, own);
    node.wait(Duration::from_secs(122));
    node.expect_drop(UPLINK, &back, DropReason::NoFlow);
}

/// RFC 5382, REQ-5: 2 h 4 min at least for an established connection.
#[test]
fn established_connection_is_kept_while_its_ends_only_keep_it_alive() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |flags| tcp("10.1.0.1:1000", "192.0.2.7:80", flags).build();
    let own = seen(&node.forward(pod_port(1), &there("S")).1).source;
    let back = |flags| tcp("192.0.2.7:80", &own.to_string(), flags).build();
    node.forward(UPLINK, &back("SA"));
    node.forward(pod_port(1), &there("A"));
    for _ in 0..3 {
        node.now = node.now.after(Duration::from_secs(2 * 3600 + 4 * 60));
        (0..100).for_each(|_| node.tick());
        node.forward(pod_port(1), &there("A"));
        node.forward(UPLINK, &back("A"));
    }
}

/// RFC 5382, REQ-2: both ends may open at once.
#[test]
fn simultaneous_open_goes_through_translation() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |flags| tcp("10.1.0.1:1000", "192.0.2.7:80", flags).build();
    let own = seen(&node.forward(pod_port(1), &there("S")).1).source;
    let back = |flags| tcp("192.0.2.7:80", &own.to_string(), flags).build();
    node.forward(UPLINK, &back("S"));
    node.forward(pod_port(1), &there("SA"));
    node.forward(UPLINK, &back("SA"));
    node.forward(pod_port(1), &there("PA"));
}

/// RFC 5382, REQ-4: an unsolicited SYN earns no answer within 6 s; here it earns none at all.
#[test]
fn unsolicited_syn_to_a_translated_port_is_dropped_silently() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let syn = tcp("192.0.2.9:80", "10.0.0.1:61234", "S").build();
    node.expect_drop(UPLINK, &syn, DropReason::NoFlow);
}

/// RFC 5382, REQ-10 and RFC 4787, REQ-12: an ICMP error ends no mapping.
#[test]
fn icmp_error_ends_no_mapping() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = tcp("10.1.0.1:1000", "192.0.2.7:80", "S").build();
    let sent = node.forward(pod_port(1), &there).1;
    for code in [0, 1, 2, 3, 13] {
        let error = xskiff_tests::packet_builder::icmp_error(
            address("192.0.2.254"),
            address("10.0.0.1"),
            (3, code, 0),
            &sent,
        );
        node.forward(UPLINK, &error.build());
    }
    let back = tcp("192.0.2.7:80", &seen(&sent).source.to_string(), "SA").build();
    assert_eq!(node.forward(UPLINK, &back).0, pod_port(1));
}

/// RFC 5508, REQ-1: queries of many pods at one destination are told apart.
#[test]
fn pings_of_two_pods_with_one_identifier_are_told_apart() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let mut own = BTreeSet::new();
    for n in [1, 2] {
        for frame in
            [ping(pod4(n), address("192.0.2.7"), 7), ping(pod6(n), address("2001:db8::7"), 7)]
        {
            let out = seen(&node.forward(pod_port(n), &frame.build()).1);
            own.insert((out.source, n));
        }
    }
    for (source, n) in own {
        let to = if source.is_ipv4() { "192.0.2.7" } else { "2001:db8::7" };
        let pong =
            xskiff_tests::packet_builder::pong(address(to), source.ip(), source.port()).build();
        assert_eq!(node.forward(UPLINK, &pong).0, pod_port(n));
    }
}

/// A protocol without ports has one reply tuple per destination. The search for a port went
/// through 256 of them, and named the wrong reason.
#[test]
fn second_flow_of_a_protocol_without_ports_to_one_destination_is_a_clash() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let gre = |n| raw(pod4(n), address("192.0.2.7"), 47).payload(&[7; 24]).build();
    let data =
        |n| sctp(&format!("10.1.0.{n}:5000"), "192.0.2.7:5001", 9, &[(0, 3, &[0; 16])]).build();
    let both: [&dyn Fn(u8) -> Vec<u8>; 2] = [&gre, &data];
    for from in both {
        let out = node.forward(pod_port(1), &from(1)).1;
        assert_eq!(out[26..30], [10, 0, 0, 1]);
        node.expect_drop(pod_port(2), &from(2), DropReason::NatClash);
    }
    assert_eq!(node.dropped(DropReason::NatPortsExhausted), 0);
}

/// SCTP's checksum covers its ports and not the addresses. Replies were looked for at port 0, and
/// found no flow.
#[test]
fn sctp_keeps_its_ports_and_its_replies_come_back() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for (n, own_port) in [(1, 5000), (2, 6000)] {
        let chunk = [(0, 3, &[0; 16][..])];
        let there = sctp(&format!("10.1.0.{n}:{own_port}"), "192.0.2.7:5001", 9, &chunk).build();
        let (port, out) = node.forward(pod_port(n), &there);
        assert_eq!((port, &out[26..30]), (UPLINK, &[10, 0, 0, 1][..]));
        assert_eq!(out[34..], there[34..], "ports and checksum stay");
        let back = sctp("192.0.2.7:5001", &format!("10.0.0.1:{own_port}"), 7, &chunk).build();
        let (port, back) = node.forward(UPLINK, &back);
        assert_eq!((port, &back[30..34]), (pod_port(n), &[10, 1, 0, n][..]));
    }
}

/// DNAT and SNAT of one connection: from outside to a backend on another node, and back.
#[test]
fn destination_and_source_are_translated_together_and_back() {
    use dataplane::lb::FrontendKind;
    let world = World::with_pods(1).with_service(
        FrontendKind::NodePort,
        "",
        30_080,
        &[(address("10.1.9.9"), 8080)],
    );
    let mut node = Simulation::single(&world.tables());
    let mut sources = BTreeSet::new();
    for client in ["192.0.2.7:999", "192.0.2.8:999"] {
        let out = seen(&node.forward(UPLINK, &udp(client, "10.0.0.1:30080").build()).1);
        assert_eq!((out.source.ip(), out.destination), (address("10.0.0.1"), at("10.1.9.9:8080")));
        assert!(sources.insert(out.source), "each client has a port of its own");
        let back = udp("10.1.9.9:8080", &out.source.to_string()).build();
        let back = seen(&node.forward(UPLINK, &back).1);
        assert_eq!((back.source, back.destination), (at("10.0.0.1:30080"), at(client)));
    }
}

/// RFC 5382, REQ-2: an end that has sent its FIN is still spoken to, and each end may close first.
#[test]
fn half_closed_connection_goes_on_in_the_other_direction() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |flags| tcp("10.1.0.1:1000", "192.0.2.7:80", flags).build();
    let own = seen(&node.forward(pod_port(1), &there("S")).1).source;
    let back = |flags| tcp("192.0.2.7:80", &own.to_string(), flags).build();
    node.forward(UPLINK, &back("SA"));
    node.forward(pod_port(1), &there("FA"));
    for _ in 0..5 {
        node.wait(Duration::from_secs(60));
        node.forward(UPLINK, &back("PA"));
        node.forward(pod_port(1), &there("A"));
    }
    node.forward(UPLINK, &back("FA"));
    node.forward(pod_port(1), &there("A"));
}

/// RFC 7857, 2.2: a reset is translated, and a forged one ends nothing: both ends go on.
#[test]
fn reset_is_translated_and_ends_no_connection_that_goes_on() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |flags| tcp("10.1.0.1:1000", "192.0.2.7:80", flags).build();
    let own = seen(&node.forward(pod_port(1), &there("S")).1).source;
    let back = |flags| tcp("192.0.2.7:80", &own.to_string(), flags).build();
    node.forward(UPLINK, &back("SA"));
    node.forward(pod_port(1), &there("A"));
    assert_eq!(seen(&node.forward(UPLINK, &back("R")).1).destination, at("10.1.0.1:1000"));
    node.forward(pod_port(1), &there("A"));
    node.forward(UPLINK, &back("A"));
    node.wait(Duration::from_secs(600));
    node.forward(pod_port(1), &there("A"));
}
