//! Each form there and back, for every kind of frontend and of backend.

use dataplane::direct::Dispatch;
use dataplane::lb::FrontendKind;
use dataplane::packet::Packet;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, pod_port};

use crate::{
    A, B, FORMS, NODES, added, at, cases, dispatched, ip, node_a, node_b, seen, with_services,
    without_option, without_wrapping,
};

#[test]
fn each_packet_says_on_the_wire_what_was_addressed_and_what_was_chosen() {
    for form in FORMS {
        let mut a = node_a(form);
        for case in cases() {
            let is_v4 = at(case.client).is_ipv4();
            // A host's own IPv6 address is in no range here: Geneve does not know its node.
            if form == Dispatch::Geneve && !is_v4 && case.port == HOST {
                continue;
            }
            for frame in [
                tcp(case.client, case.frontend, "S").build(),
                tcp(case.client, case.frontend, "A").payload(b"odd").build(),
                udp(case.client, case.frontend).payload(b"question").build(),
            ] {
                let wire = dispatched(&mut a, &frame);
                assert_eq!(wire.len(), frame.len() + added(form, is_v4), "{form:?} {case:?}");
                assert!(Packet::parse(&wire, wire.len()).is_ok());
                let (inner, sent_to) = if form == Dispatch::Option {
                    let (inner, frontend) = without_option(&wire);
                    assert_eq!(frontend, at(case.frontend));
                    (inner, at(case.backend))
                } else {
                    (without_wrapping(form, &wire), at(case.frontend))
                };
                let (was, is) = (seen(&frame), seen(&inner));
                assert_eq!((is.source, is.destination), (at(case.client), sent_to), "{form:?}");
                assert_eq!((is.payload, is.ttl), (was.payload, was.ttl - 1));
                if form == Dispatch::Ipip {
                    let outer = Packet::parse(&wire, wire.len()).expect("parsed").flow_key();
                    assert_eq!(outer.destination(), at(case.backend).ip());
                    assert_eq!(outer.source(), crate::ip(crate::A[usize::from(!is_v4)]));
                }
                if form == Dispatch::Geneve {
                    let outer = Packet::parse(&wire, wire.len()).expect("parsed").flow_key();
                    assert_eq!(outer.destination(), crate::ip(crate::B[usize::from(!is_v4)]));
                    assert_eq!(outer.destination_port(), 6081);
                }
            }
        }
    }
}

#[test]
fn backend_sees_the_client_and_the_client_is_answered_by_the_frontend() {
    for form in FORMS {
        let (mut a, mut b) = (node_a(form), node_b(form));
        for case in cases() {
            if form == Dispatch::Geneve && case.port == HOST && !at(case.client).is_ipv4() {
                continue;
            }
            for (there, back) in [
                (tcp(case.client, case.frontend, "S"), tcp(case.backend, case.client, "SA")),
                (tcp(case.client, case.frontend, "A"), tcp(case.backend, case.client, "PA")),
                (udp(case.client, case.frontend), udp(case.backend, case.client)),
            ] {
                let wire = dispatched(&mut a, &there.payload(b"there").build());
                let (port, frame) = b.forward(UPLINK, &wire);
                let asked = seen(&frame);
                assert_eq!(port, case.port, "{form:?} {case:?}: {}", b.moved_counters());
                assert_eq!((asked.source, asked.destination), (at(case.client), at(case.backend)));
                assert_eq!(asked.payload, b"there");
                let (port, frame) = b.forward(case.port, &back.payload(b"back").build());
                let answered = seen(&frame);
                assert_eq!(port, UPLINK);
                assert_eq!(
                    (answered.source, answered.destination),
                    (at(case.frontend), at(case.client)),
                    "{form:?}"
                );
            }
        }
        assert_eq!(b.sum(|counters| counters.flows_masqueraded.get()), 0);
        assert_eq!(a.sum(|counters| counters.flows_masqueraded.get()), 0);
    }
}

/// A packet may come to any worker of either node, and its flow is one.
#[test]
fn workers_agree_about_a_flow_whichever_of_them_gets_its_packets() {
    for form in FORMS {
        let mut a = node_a(form);
        let mut b =
            xskiff_tests::simulation::Simulation::new(3, 1000, &crate::b_world(form).tables());
        for case in cases().into_iter().filter(|case| case.port == pod_port(2)) {
            let first = 100 * (at(case.client).port() - 1000);
            for l4_port in 2000 + first..2020 + first {
                let client = std::net::SocketAddr::new(at(case.client).ip(), l4_port).to_string();
                for (turn, flags) in ["S", "A", "PA", "A"].into_iter().enumerate() {
                    let wire = dispatched(&mut a, &tcp(&client, case.frontend, flags).build());
                    let mut out = b.pass_to((turn + usize::from(l4_port)) % 3, UPLINK, &wire);
                    assert_eq!(out.len(), 1, "{form:?} {flags}: {}", b.moved_counters());
                    let (port, frame) = out.remove(0);
                    assert_eq!((port, seen(&frame).destination), (case.port, at(case.backend)));
                }
                let back = tcp(case.backend, &client, "A").build();
                let out = b.pass_to(usize::from(l4_port) % 3, case.port, &back);
                assert_eq!(seen(&out[0].1).source, at(case.frontend));
            }
        }
        assert_eq!(b.flows().len(), 6 * 20, "one each");
    }
}

/// The backend could not tell the two connections apart: it sees the second from another port, as with
/// services on one node.
#[test]
fn client_may_use_one_port_toward_two_frontends_of_one_backend() {
    for form in FORMS {
        let (mut a, mut b) = (node_a(form), node_b(form));
        let (client, backend) = ("192.0.2.7:1000", "10.1.0.2:8080");
        let frontends = ["203.0.113.1:80", "203.0.113.3:80", "10.0.0.3:30080"];
        let mut ports = std::collections::BTreeSet::new();
        for flags in ["S", "A"] {
            for frontend in frontends {
                let wire = dispatched(&mut a, &tcp(client, frontend, flags).build());
                let (_, frame) = b.forward(UPLINK, &wire);
                let asked = seen(&frame);
                assert_eq!((asked.source.ip(), asked.destination), (at(client).ip(), at(backend)));
                ports.insert(asked.source.port());
                let back = tcp(backend, &asked.source.to_string(), "A").build();
                let answered = seen(&b.forward(pod_port(2), &back).1);
                assert_eq!((answered.source, answered.destination), (at(frontend), at(client)));
            }
        }
        assert_eq!(ports.len(), 3, "{form:?}");
    }
}

#[test]
fn fragments_follow_their_first_by_both_nodes() {
    for form in FORMS {
        let (mut a, mut b) = (node_a(form), node_b(form));
        for case in cases().into_iter().filter(|case| case.port == pod_port(2)) {
            let whole = udp(case.client, case.frontend).payload(&[7; 16]);
            let first = whole.clone().fragment(77, 0, true).build();
            let last =
                udp(case.client, case.frontend).payload(&[8; 9]).fragment(77, 24, false).build();
            for frame in [first, last] {
                let wire = dispatched(&mut a, &frame);
                let (port, out) = b.forward(UPLINK, &wire);
                let packet = Packet::parse(&out, out.len()).expect("a fragment");
                assert_eq!(
                    (port, packet.flow_key().destination()),
                    (case.port, at(case.backend).ip())
                );
                assert_eq!(packet.flow_key().source(), at(case.client).ip());
                assert_eq!(out.len(), frame.len(), "{form:?}");
            }
        }
    }
}

/// A node port by an address of the node that no Node object lists: the backend's node dropped each packet
/// as `direct-frontend`, or `direct-foreign` where such an address was around it.
#[test]
fn what_the_backends_node_would_not_believe_is_translated() {
    let others: Vec<(&str, &str)> =
        NODES.into_iter().filter(|(node, _)| !A.contains(node)).collect();
    for form in FORMS {
        for case in cases() {
            let world = B
                .iter()
                .fold(World::with_pods(0).as_node(A), |world, own| world.with_neighbour(own));
            let mut a =
                Simulation::single(&with_services(world).with_direct(form, &others).tables());
            let frame = tcp(case.client, case.frontend, "S").build();
            let wire = dispatched(&mut a, &frame);
            let is_direct = form == Dispatch::Option && case.kind != FrontendKind::NodePort;
            if is_direct {
                assert_eq!(without_option(&wire).1, at(case.frontend), "{case:?}");
                continue;
            }
            let there = seen(&wire);
            let own = ip(A[usize::from(!at(case.frontend).is_ipv4())]);
            assert_eq!((there.source.ip(), there.destination), (own, at(case.backend)), "{case:?}");
        }
    }
}
