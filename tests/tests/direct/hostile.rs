//! What strangers send: wrapped packets, claims that are not so, and packets that lie about themselves.

use std::net::SocketAddr;

use dataplane::DropReason;
use dataplane::direct::Dispatch;
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::{ping, raw, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, pod_port};

use crate::{FORMS, NODES, a_world, at, b_world, cases, dispatched, ip, node_b, seen, wrapped};

const TUNNELS: [Dispatch; 2] = [Dispatch::Ipip, Dispatch::Geneve];

fn honest(family: usize) -> (Vec<u8>, SocketAddr) {
    let (frontend, backend) =
        [("203.0.113.1:80", "10.1.0.2:8080"), ("[2001:db8:113::1]:80", "[fd01::2]:8080")][family];
    (tcp(crate::CLIENTS[family], frontend, "S").build(), at(backend))
}

#[test]
fn what_is_wrapped_by_hand_is_taken_from_nodes_and_from_nobody_else() {
    for form in TUNNELS {
        for family in 0..2 {
            let (frame, backend) = honest(family);
            let mut b = node_b(form);
            for stranger in [["192.0.2.7", "2001:db8::7"], ["10.0.0.9", "fd00::9"]] {
                let wire = wrapped(form, &frame, backend, ip(stranger[family]));
                b.expect_drop(UPLINK, &wire, DropReason::DirectForeign);
            }
            let own = wrapped(form, &frame, backend, ip(crate::B[family]));
            b.expect_drop(UPLINK, &own, DropReason::LocalAddressFromUplink);
            assert!(b.flows().is_empty());
            let wire = wrapped(form, &frame, backend, ip(crate::A[family]));
            let (port, out) = b.forward(UPLINK, &wire);
            assert_eq!((port, seen(&out).destination), (pod_port(2), backend));
            // A pod is no node.
            let wire = wrapped(form, &frame, backend, ip(["10.1.0.1", "fd01::1"][family]));
            assert!(b.pass(pod_port(1), &wire).iter().all(|(_, out)| out[14..] != frame[14..]));
        }
    }
}

#[test]
fn no_more_is_believed_than_this_nodes_tables_say() {
    for form in FORMS {
        for (frontend, backend) in [
            // No service's, another service's backend, a backend's other port, a port of none.
            ("203.0.113.77:80", "10.1.0.2:8080"),
            ("203.0.113.1:80", "10.1.0.3:8080"),
            ("203.0.113.1:81", "10.1.0.2:8080"),
            ("10.0.0.3:30081", "10.1.0.2:8080"),
        ] {
            let mut b = node_b(form);
            let wire = claim(form, frontend, backend);
            b.expect_drop(UPLINK, &wire, DropReason::DirectFrontend);
            assert!(b.flows().is_empty(), "{form:?}");
        }
        if form != Dispatch::Ipip {
            let wire = claim(form, "203.0.113.1:80", "10.1.0.2:8081");
            node_b(form).expect_drop(UPLINK, &wire, DropReason::DirectFrontend);
        }
        // A service that answers by translation.
        let backends = [(ip("10.1.0.2"), 8080)];
        let world =
            b_world(form).with_service(FrontendKind::LoadBalancer, "203.0.113.8", 80, &backends);
        let mut b = Simulation::single(&world.tables());
        let wire = claim(form, "203.0.113.8:80", "10.1.0.2:8080");
        b.expect_drop(UPLINK, &wire, DropReason::DirectFrontend);
    }
}

/// A packet of the form that claims this of itself, made by a node A that believes it.
fn claim(form: Dispatch, frontend: &str, backend: &str) -> Vec<u8> {
    let frame = tcp("192.0.2.7:1000", frontend, "S").build();
    if form != Dispatch::Option {
        return wrapped(form, &frame, at(backend), ip(crate::A[0]));
    }
    let frontend = at(frontend);
    let address = frontend.ip().to_string();
    let world = xskiff_tests::world::World::with_pods(0).as_node(crate::A);
    let backends = [(at(backend).ip(), at(backend).port())];
    let world =
        world.with_service(FrontendKind::LoadBalancer, &address, frontend.port(), &backends);
    let mut a = Simulation::single(&world.with_direct(form, &NODES).tables());
    dispatched(&mut a, &frame)
}

#[test]
fn packet_within_that_no_client_can_have_sent_is_malformed() {
    let (a, frontend) = (ip(crate::A[0]), ip("203.0.113.1"));
    let client = ip("192.0.2.7");
    for form in TUNNELS {
        let (frame, backend) = honest(0);
        let nested = wrapped(Dispatch::Ipip, &frame, backend, a);
        for inner in [
            nested,
            ping(client, frontend, 7).build(),
            raw(client, frontend, 47).payload(&[0; 8]).build(),
            raw(client, frontend, 41).payload(&[0; 48]).build(),
        ] {
            let mut b = node_b(form);
            let wire = wrapped(form, &inner, backend, a);
            b.expect_drop(UPLINK, &wire, DropReason::Malformed);
        }
        // A client that speaks from a pod's address, or the node's.
        for spoofed in ["10.1.0.1:9", "10.0.0.1:9"] {
            let frame = tcp(spoofed, "203.0.113.1:80", "S").build();
            let wire = wrapped(form, &frame, backend, a);
            node_b(form).expect_drop(UPLINK, &wire, DropReason::LocalAddressFromUplink);
        }
    }
}

#[test]
fn packets_cut_short_or_lying_about_their_length_are_refused() {
    for form in TUNNELS {
        for family in 0..2 {
            let (frame, backend) = honest(family);
            let wire = wrapped(form, &frame, backend, ip(crate::A[family]));
            for len in 0..wire.len() {
                let mut b = node_b(form);
                let out = b.pass(UPLINK, &wire[..len]);
                assert!(out.is_empty(), "{form:?}: {len} bytes of {}", wire.len());
            }
            // The packet within says that it is longer than what it came in.
            let mut longer = wire.clone();
            let at = wire.len() - (frame.len() - 14) + if family == 0 { 2 } else { 4 };
            let said = u16::from_be_bytes([wire[at], wire[at + 1]]) + 8;
            longer[at..at + 2].copy_from_slice(&said.to_be_bytes());
            if family == 0 {
                let inner = at - 2;
                longer[inner + 10..inner + 12].fill(0);
                let sum = crate::naive_checksum(&longer[inner..inner + 20]);
                longer[inner + 10..inner + 12].copy_from_slice(&sum.to_be_bytes());
            }
            node_b(form).expect_drop(UPLINK, &longer, DropReason::Truncated);
        }
    }
}

#[test]
fn options_cut_short_or_of_other_lengths_are_no_claim() {
    let mut a = Simulation::single(&a_world(Dispatch::Option).tables());
    let wire = dispatched(&mut a, &honest(0).0);
    for (at, value) in [(34, 1), (34, 30), (35, 4), (35, 60), (14, 0x46), (14, 0x4f)] {
        let mut frame = wire.clone();
        frame[at] = value;
        let end = 14 + usize::from(frame[14] & 15) * 4;
        frame[24..26].fill(0);
        let sum = crate::naive_checksum(frame.get(14..end).unwrap_or(&[]));
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let mut b = node_b(Dispatch::Option);
        b.pass(UPLINK, &frame);
        assert_eq!(b.sum(|counters| counters.directed.get()), 0, "byte {at} is {value}");
    }
    for len in 0..wire.len() {
        assert!(node_b(Dispatch::Option).pass(UPLINK, &wire[..len]).is_empty());
    }
}

/// Another's tunnel between the nodes goes on to the host, as before there was direct return.
#[test]
fn tunnels_of_others_to_the_node_itself_are_the_hosts() {
    let a = ip(crate::A[0]);
    let pods = udp("10.1.3.7:9", "10.1.0.2:53").build();
    let mut b = node_b(Dispatch::Ipip);
    let wire = wrapped(Dispatch::Ipip, &pods, at("10.0.0.1:0"), a);
    let (port, out) = b.forward(UPLINK, &wire);
    assert_eq!((port, &out[14..]), (HOST, &wire[14..]));
    let ping = ping(ip("10.1.3.7"), ip("10.1.0.2"), 7).build();
    let wire = wrapped(Dispatch::Ipip, &ping, at("10.0.0.1:0"), a);
    let (port, out) = b.forward(UPLINK, &wire);
    assert_eq!((port, &out[14..]), (HOST, &wire[14..]), "whatever it carries");
    let mut b = node_b(Dispatch::Geneve);
    let other = udp("10.0.0.3:50000", "10.0.0.1:6081").payload(&[0, 0, 0x65, 0x58, 0, 0, 7, 0]);
    let (port, out) = b.forward(UPLINK, &other.build());
    assert_eq!((port, out[14..].len()), (HOST, 36));
}

/// Forms that are not the configured one mean nothing.
#[test]
fn form_that_is_not_configured_is_not_taken() {
    for form in FORMS {
        for other in FORMS.into_iter().filter(|other| *other != form) {
            let mut a = Simulation::single(&a_world(other).tables());
            let wire = dispatched(&mut a, &honest(0).0);
            let mut b = node_b(form);
            b.pass(UPLINK, &wire);
            assert_eq!(b.sum(|counters| counters.directed.get()), 0, "{other:?} to {form:?}");
        }
    }
}

#[test]
fn under_pressure_packets_of_known_flows_go_on() {
    for form in FORMS {
        let case = cases()[0];
        let mut a = Simulation::single(&a_world(form).tables());
        let mut b = node_b(form);
        let syn = dispatched(&mut a, &tcp(case.client, case.frontend, "S").build());
        b.forward(UPLINK, &syn);
        let more = dispatched(&mut a, &tcp(case.client, case.frontend, "A").build());
        b.wire().borrow_mut().is_pressed = true;
        (0..20).for_each(|_| b.deliver(0, UPLINK, &more));
        b.settle();
        assert_eq!(b.take_outgoing().len(), 20, "{form:?}: {}", b.moved_counters());
    }
}
