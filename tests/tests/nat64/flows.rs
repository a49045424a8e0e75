//! Whole connections: who sees whom, what is listed, and who is let in.

use dataplane::DropReason;
use dataplane::flow_key::FlowKey;
use xskiff_tests::packet_builder::{FrameBuilder, ping, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, address, pod_port, pod4};

use crate::{CASES, at, ip, node, seen, to_pod, world};

type Build = fn(&str, &str) -> FrameBuilder;

#[test]
fn connection_reaches_the_other_familys_backend_and_its_replies_come_back_from_the_frontend() {
    let syn: Build = |from, to| tcp(from, to, "S");
    let syn_ack: Build = |from, to| tcp(from, to, "SA");
    let data: Build = |from, to| tcp(from, to, "PA");
    let datagram: Build = udp;
    for workers in [1, 3] {
        for case in CASES {
            for talk in [[syn, syn_ack], [datagram, datagram]] {
                let mut node = Simulation::new(workers, 1000, &world().tables());
                let request = talk[0](case.client, case.frontend).payload(b"request").build();
                let there = to_pod(&mut node, case.port, &request);
                assert_eq!(there.destination, at(case.backend), "{case:?}");
                assert_eq!(there.source.ip(), ip(case.node), "{case:?}");
                assert_eq!((there.payload.as_slice(), there.ttl), (&b"request"[..], 63));

                let own = there.source.to_string();
                let reply = talk[1](case.backend, &own).payload(b"reply").build();
                for worker in 0..workers {
                    let out = node.pass_to(worker, pod_port(2), &reply);
                    assert_eq!(out.len(), 1, "{case:?}: {}", node.moved_counters());
                    let back = seen(&out[0].1);
                    assert_eq!(out[0].0, case.port, "{case:?}");
                    assert_eq!(back.destination, at(case.client), "{case:?}");
                    assert_eq!(back.source, at(case.frontend), "{case:?}");
                    assert_eq!((back.payload.as_slice(), back.ttl), (&b"reply"[..], 63));
                }
                // What follows is known by every worker, whichever it comes to.
                let next = if talk[0] as usize == syn as usize { data } else { datagram };
                for worker in 0..workers {
                    let frame = next(case.client, case.frontend).payload(b"more").build();
                    let out = node.pass_to(worker, case.port, &frame);
                    assert_eq!(out.len(), 1, "{case:?}: {}", node.moved_counters());
                    assert_eq!(seen(&out[0].1).source, there.source, "{case:?}");
                }
                assert_eq!(node.flows().len(), 1, "one entry for both families: {case:?}");
            }
        }
    }
}

#[test]
fn flow_is_listed_with_the_addresses_that_its_packets_bear() {
    for case in CASES {
        let mut node = node();
        let there = to_pod(&mut node, case.port, &udp(case.client, case.frontend).build());
        let flow = node.flows().remove(0);
        let opened = format!("udp {} -> {}", case.client, case.frontend);
        assert_eq!(flow.original.to_string(), opened);
        assert_eq!(flow.reply.to_string(), format!("udp {} -> {}", case.backend, there.source));
        assert_eq!(matches!(flow.original, FlowKey::V4(_)), case.is_from_v4());
        assert_eq!(matches!(flow.reply, FlowKey::V4(_)), !case.is_from_v4());
        assert!(flow.origin.service.is_some());
        let events = node.take_events();
        assert_eq!(events[0].key.map(|key| key.to_string()), Some(opened));
        assert_eq!(events[0].backend, Some((there.destination.ip(), there.destination.port())));
    }
}

#[test]
fn the_nodes_own_client_is_served_through_the_host_port() {
    let mut node = node();
    let syn = tcp("10.0.0.1:1000", "10.2.0.1:80", "S").ttl(1).build();
    node.expect_drop(UPLINK, &syn, DropReason::LocalAddressFromUplink);
    let syn = tcp("10.0.0.1:1000", "10.2.0.1:80", "S").build();
    let there = to_pod(&mut node, HOST, &syn);
    assert_eq!(there.source.ip(), ip("fd00::1"));
    let reply = tcp("[fd01::2]:8080", &there.source.to_string(), "SA").ttl(1).build();
    let (port, frame) = node.forward(pod_port(2), &reply);
    let back = seen(&frame);
    assert_eq!(
        (port, back.source, back.destination),
        (HOST, at("10.2.0.1:80"), at("10.0.0.1:1000"))
    );
    assert_eq!(back.ttl, 1, "the node is no hop to itself");
}

/// Policy is about the client itself, which only this node knows, and the backend.
#[test]
fn policy_judges_the_client_before_and_the_backend_after_the_translation() {
    for case in CASES.into_iter().filter(|case| case.port == pod_port(1)) {
        let syn = tcp(case.client, case.frontend, "S").build();
        for (allowed, l4_ports, is_admitted) in
            [(&[1][..], 8080..=8080, true), (&[1], 80..=80, false), (&[], 8080..=8080, false)]
        {
            let world = world().with_ingress_only_from(2, allowed, l4_ports);
            let mut node = Simulation::single(&world.tables());
            if is_admitted {
                to_pod(&mut node, case.port, &syn);
            } else {
                node.expect_drop(case.port, &syn, DropReason::PolicyIngress);
            }
        }
        let mut node = Simulation::single(&world().with_no_egress(1).tables());
        node.expect_drop(case.port, &syn, DropReason::PolicyEgress);
    }
}

#[test]
fn connection_that_is_denied_later_ends_and_one_that_stands_goes_on_under_new_tables() {
    for case in CASES.into_iter().filter(|case| case.port == pod_port(1)) {
        let mut node = node();
        let there = to_pod(&mut node, case.port, &tcp(case.client, case.frontend, "S").build());
        let own = there.source.to_string();
        node.publish(&world().next_generation().tables());
        node.forward(pod_port(2), &tcp(case.backend, &own, "SA").build());
        let data = tcp(case.client, case.frontend, "A").build();
        assert_eq!(to_pod(&mut node, case.port, &data).source, there.source);
        assert_eq!(node.sum(|counters| counters.flows_rejudged.get()), 1, "once, not each packet");
        assert_eq!(node.sum(|counters| counters.between_families.get()), 3);
        let denied = world().with_ingress_only_from(2, &[], 1..=1);
        node.publish(&denied.next_generation().next_generation().tables());
        node.expect_drop(case.port, &data, DropReason::PolicyIngress);
        let reply = tcp(case.backend, &own, "A").build();
        node.expect_drop(pod_port(2), &reply, DropReason::PolicyIngress);
    }
}

#[test]
fn other_connections_of_the_same_client_are_not_translated() {
    let mut node = node();
    for (from, to) in [("10.1.0.1:1000", "10.1.0.2:8080"), ("[fd01::1]:1000", "[fd01::2]:8080")] {
        let there = to_pod(&mut node, pod_port(1), &tcp(from, to, "S").build());
        assert_eq!((there.source, there.destination), (at(from), at(to)));
        let (port, frame) = node.forward(pod_port(2), &tcp(to, from, "SA").build());
        assert_eq!((port, seen(&frame).source), (pod_port(1), at(to)));
    }
    // Toward a frontend that the service does not have, and by a protocol that services lack.
    let stray = udp("10.1.0.1:1000", "10.2.0.1:81").build();
    node.expect_drop(pod_port(1), &stray, DropReason::NoServicePort);
    let ping = ping(pod4(1), address("10.2.0.1"), 7).build();
    node.expect_drop(pod_port(1), &ping, DropReason::NoServicePort);
}

/// What is to be a reply, or begins in the middle, has no binding to go by.
#[test]
fn segment_of_a_lost_connection_opens_none() {
    let mut node = node();
    for case in CASES {
        let data = tcp(case.client, case.frontend, "PA").build();
        node.expect_drop(case.port, &data, DropReason::NoFlow);
        let own = format!("{}:61000", if case.is_from_v4() { "[fd00::1]" } else { "10.0.0.1" });
        let reply = tcp(case.backend, &own, "PA").build();
        node.expect_drop(pod_port(2), &reply, DropReason::NoFlow);
    }
}

/// An IPv4-mapped address in a packet would find the flow of the IPv4 client that it names.
#[test]
fn mapped_addresses_in_packets_reach_no_flow() {
    let mut node = node();
    let syn = tcp("192.0.2.7:1000", "203.0.113.1:80", "S").build();
    to_pod(&mut node, UPLINK, &syn);
    let forged = tcp("[::ffff:192.0.2.7]:1000", "[::ffff:203.0.113.1]:80", "R").build();
    node.expect_drop(UPLINK, &forged, DropReason::Malformed);
    let half = tcp("[2001:db8::7]:1000", "[::ffff:203.0.113.1]:80", "S").build();
    node.expect_drop(UPLINK, &half, DropReason::Malformed);
    assert_eq!(node.flows().len(), 1);
}

#[test]
fn without_an_address_of_the_other_family_the_client_is_refused_by_name() {
    for case in CASES {
        let world = world().without_masquerade(at(case.backend).ip());
        let mut node = Simulation::single(&world.tables());
        let syn = tcp(case.client, case.frontend, "S").build();
        node.expect_drop(case.port, &syn, DropReason::NoNatAddress);
    }
}
