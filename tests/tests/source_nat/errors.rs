//! ICMP errors across translation (RFC 5508), in whole through a node.

use dataplane::DropReason;
use xskiff_tests::packet_builder::{icmp_error, ping, read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

use crate::{at, seen};

/// RFC 5508, REQ-3, REQ-4 and REQ-10: from outside, about each protocol, whichever the error.
#[test]
fn errors_from_outside_reach_the_pod_about_what_it_sent() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let queries = [
        (udp("10.1.0.1:9", "192.0.2.7:53").build(), at("10.1.0.1:9")),
        (tcp("10.1.0.1:9", "192.0.2.7:80", "S").build(), at("10.1.0.1:9")),
        (ping(pod4(1), address("192.0.2.7"), 9).build(), at("10.1.0.1:9")),
        (udp("[fd01::1]:9", "[2001:db8::7]:53").build(), at("[fd01::1]:9")),
        (tcp("[fd01::1]:9", "[2001:db8::7]:80", "S").build(), at("[fd01::1]:9")),
        (ping(pod6(1), address("2001:db8::7"), 9).build(), at("[fd01::1]:9")),
    ];
    for (query, own) in queries {
        let sent = node.forward(pod_port(1), &query).1;
        let (router, kinds) = if own.is_ipv4() {
            // Unreachable, too big, time exceeded in transit, parameter problem.
            ("192.0.2.254", [(3, 1, 0), (3, 4, 1280), (11, 0, 0), (12, 0, 0)])
        } else {
            ("2001:db8::fe", [(1, 0, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 0)])
        };
        for kind in kinds {
            let error = icmp_error(address(router), seen(&sent).source.ip(), kind, &sent).build();
            let (port, frame) = node.forward(UPLINK, &error);
            let error = seen(&frame);
            assert_eq!((port, error.destination.ip()), (pod_port(1), own.ip()), "{kind:?}");
            assert_eq!(read_quoted(&error).expect("a quote").source, own, "{kind:?}");
        }
    }
}

/// RFC 5508, REQ-5: from a pod, about what reached it by the translation's address.
#[test]
fn error_of_a_pod_about_a_reply_leaves_with_the_translated_address() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = udp("10.1.0.1:9", "192.0.2.7:53").build();
    let own = seen(&node.forward(pod_port(1), &there).1).source;
    let reply = udp("192.0.2.7:53", &own.to_string()).payload(b"late").build();
    let arrived = node.forward(UPLINK, &reply).1;
    let error = icmp_error(pod4(1), address("192.0.2.7"), (3, 3, 0), &arrived).build();
    let (port, frame) = node.forward(pod_port(1), &error);
    let error = seen(&frame);
    assert_eq!((port, error.source.ip()), (UPLINK, own.ip()));
    let quoted = read_quoted(&error).expect("a quote");
    assert_eq!((quoted.source, quoted.destination), (at("192.0.2.7:53"), own));
}

/// RFC 5508, REQ-6: nobody is reached by an error about nothing that stands.
#[test]
fn error_about_no_mapping_reaches_no_pod() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let forged = udp("10.0.0.1:61000", "192.0.2.7:53").build();
    let error = icmp_error(address("192.0.2.7"), pod4(1), (3, 3, 0), &forged).build();
    node.expect_drop(UPLINK, &error, DropReason::IcmpUnrelated);
}

/// RFC 5508, REQ-2 and REQ-9: a query session lasts 60 s.
#[test]
fn ping_is_answered_for_a_minute() {
    use std::time::Duration;
    use xskiff_tests::packet_builder::pong;
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let query = ping(pod4(1), address("192.0.2.7"), 9).build();
    let own = seen(&node.forward(pod_port(1), &query).1).source;
    let answer = pong(address("192.0.2.7"), own.ip(), own.port()).build();
    node.wait(Duration::from_secs(59));
    assert_eq!(node.forward(UPLINK, &answer).0, pod_port(1));
}

/// RFC 5508, REQ-6; RFC 7857, 7: an error neither prolongs nor ends what it is about, whichever
/// side it comes from.
#[test]
fn error_neither_prolongs_nor_ends_a_session() {
    use std::time::Duration;
    for is_query in [true, false] {
        let mut node = Simulation::single(&World::with_pods(1).tables());
        let query = if is_query {
            ping(pod4(1), address("192.0.2.7"), 9).build()
        } else {
            udp("10.1.0.1:9", "192.0.2.7:53").build()
        };
        let sent = node.forward(pod_port(1), &query).1;
        let own = seen(&sent).source.ip();
        let before = node.flows()[0].life;
        node.wait(Duration::from_secs(20));
        let error = icmp_error(address("192.0.2.254"), own, (3, 1, 0), &sent).build();
        assert_eq!(node.forward(UPLINK, &error).0, pod_port(1));
        assert_eq!(node.flows()[0].life, before);
        node.forward(pod_port(1), &query);
        assert_eq!(node.flows().len(), 1);
    }
}

/// RFC 5508, REQ-7: an error between two pods that know each other by their mappings.
#[test]
fn error_is_translated_at_a_hairpin() {
    let mut node = Simulation::single(&crate::independent::world(2).tables());
    let mapped = [("10.1.0.1:1000", 1), ("10.1.0.2:2000", 2)].map(|(from, n)| {
        let frame = udp(from, "192.0.2.7:3478").build();
        seen(&node.forward(pod_port(n), &frame).1).source
    });
    let there = udp("10.1.0.1:1000", &mapped[1].to_string()).payload(b"anybody?").build();
    let arrived = node.forward(pod_port(1), &there).1;
    let error = icmp_error(pod4(2), mapped[0].ip(), (3, 3, 0), &arrived).build();
    let (port, frame) = node.forward(pod_port(2), &error);
    let error = seen(&frame);
    assert_eq!((port, error.destination.ip()), (pod_port(1), pod4(1)));
    assert_eq!(error.source.ip(), mapped[1].ip());
    let quoted = read_quoted(&error).expect("a quote");
    assert_eq!((quoted.source, quoted.destination), (at("10.1.0.1:1000"), mapped[1]));
}

/// RFC 4787, REQ-13: the pod hears of the MTU about the packet as it sent it.
#[test]
fn translated_packet_beyond_the_mtu_is_answered_to_its_pod() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for (from, to, kind) in
        [("10.1.0.1:9", "192.0.2.7:53", 3), ("[fd01::1]:9", "[2001:db8::7]:53", 2)]
    {
        let big = udp(from, to).payload(&[0; 1480]).build();
        let (port, frame) = node.forward(pod_port(1), &big);
        let error = seen(&frame);
        assert_eq!(
            (port, error.icmp_type, error.destination.ip()),
            (pod_port(1), kind, at(from).ip())
        );
        assert_eq!(read_quoted(&error).expect("a quote").source, at(from));
    }
}
