//! What the pipeline does to packets: one worker, tables by hand, frames in and out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::event::EventKind;
use dataplane::lb::FrontendKind;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::policy::RuleId;
use xskiff_tests::link_frames::{advertisement, arp_reply, arp_request, solicitation};
use xskiff_tests::packet_builder::{icmp_error, ping, pong, raw, read, read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, address, pod_port, pod4, pod6};

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

fn seen(frame: &[u8]) -> xskiff_tests::packet_builder::Seen {
    read(frame).expect("a well-formed frame with right checksums")
}

fn cluster_ip_world() -> World {
    World::with_pods(4).with_service(
        FrontendKind::ClusterIp,
        "10.2.0.1",
        80,
        &[(pod4(2), 8080), (pod4(3), 8080)],
    )
}

#[test]
fn pod_reaches_pod_directly_and_the_reply_comes_back() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for (a, b) in [("10.1.0.1:1000", "10.1.0.2:80"), ("[fd01::1]:1000", "[fd01::2]:80")] {
        let (port, frame) = node.forward(pod_port(1), &tcp(a, b, "S").build());
        assert_eq!(port, pod_port(2));
        let packet = seen(&frame);
        assert_eq!((packet.source, packet.destination, packet.ttl), (at(a), at(b), 63));
        assert_eq!(packet.to, [2, 0, 0, 0, 3, 2], "the pod's own link address");
        let (port, _) = node.forward(pod_port(2), &tcp(b, a, "SA").build());
        assert_eq!(port, pod_port(1));
    }
    assert_eq!(node.flows().len(), 2, "one flow per connection, not per direction");
}

#[test]
fn service_address_becomes_a_backend_and_the_reply_is_turned_back() {
    let mut node = Simulation::single(&cluster_ip_world().tables());
    let (port, frame) =
        node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.2.0.1:80", "S").build());
    let out = seen(&frame);
    assert!([pod_port(2), pod_port(3)].contains(&port));
    assert_eq!(out.source, at("10.1.0.1:1000"), "the client's address is preserved");
    assert_eq!(out.destination.port(), 8080);
    let backend = out.destination.to_string();
    let reply = tcp(&backend, "10.1.0.1:1000", "SA").build();
    let (port, frame) = node.forward(port, &reply);
    let back = seen(&frame);
    assert_eq!(port, pod_port(1));
    assert_eq!((back.source, back.destination), (at("10.2.0.1:80"), at("10.1.0.1:1000")));
}

#[test]
fn connections_to_a_service_spread_over_its_backends_and_stay() {
    let mut node = Simulation::single(&cluster_ip_world().tables());
    let mut ports = std::collections::BTreeMap::<_, u32>::new();
    for client_port in 1000..1200 {
        let frame = tcp(&format!("10.1.0.1:{client_port}"), "10.2.0.1:80", "S").build();
        let (first, _) = node.forward(pod_port(1), &frame);
        let (again, _) = node.forward(pod_port(1), &frame);
        assert_eq!(first, again);
        *ports.entry(first).or_default() += 1;
    }
    assert_eq!(ports.len(), 2, "both backends are used: {ports:?}");
    assert!(ports.values().all(|share| *share > 60), "shares: {ports:?}");
}

#[test]
fn pod_to_outside_is_masqueraded_and_its_reply_finds_it() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for (pod, outside, own) in [
        ("10.1.0.1:1000", "192.0.2.7:80", "10.0.0.1"),
        ("[fd01::1]:1000", "[2001:db8::7]:80", "fd00::1"),
    ] {
        for build in [tcp(pod, outside, "S"), udp(pod, outside)] {
            let (port, frame) = node.forward(pod_port(1), &build.build());
            let out = seen(&frame);
            assert_eq!((port, out.source.ip()), (UPLINK, address(own)));
            assert!((61_000..=61_999).contains(&out.source.port()));
            let back = match out.protocol {
                6 => tcp(outside, &out.source.to_string(), "SA"),
                _ => udp(outside, &out.source.to_string()),
            };
            let (port, frame) = node.forward(UPLINK, &back.build());
            assert_eq!((port, seen(&frame).destination), (pod_port(1), at(pod)));
        }
    }
}

#[test]
fn ping_is_masqueraded_by_its_identifier() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let frame = ping(pod4(1), address("192.0.2.7"), 7).build();
    let (_, frame) = node.forward(pod_port(1), &frame);
    let identifier = seen(&frame).source.port();
    assert!((61_000..=61_999).contains(&identifier));
    let reply = pong(address("192.0.2.7"), address("10.0.0.1"), identifier).build();
    let (port, frame) = node.forward(UPLINK, &reply);
    let back = seen(&frame);
    assert_eq!((port, back.destination), (pod_port(1), at("10.1.0.1:7")));
    let v6 = ping(pod6(1), address("2001:db8::7"), 9).build();
    let (_, frame) = node.forward(pod_port(1), &v6);
    let identifier = seen(&frame).source.port();
    let reply = pong(address("2001:db8::7"), address("fd00::1"), identifier).build();
    assert_eq!(seen(&node.forward(UPLINK, &reply).1).destination, at("[fd01::1]:9"));
}

#[test]
fn pods_keep_their_address_toward_the_cluster() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let (port, frame) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.7.7:53").build());
    assert_eq!((port, seen(&frame).source), (UPLINK, at("10.1.0.1:9")));
}

#[test]
fn two_clients_of_one_destination_get_different_ports_until_none_is_left() {
    let world = World::with_pods(1).with_snat_ports(61_000..=61_003);
    let mut node = Simulation::single(&world.tables());
    let mut used = std::collections::BTreeSet::new();
    for client in 1..=4 {
        let frame = udp(&format!("10.1.0.1:{client}"), "192.0.2.7:53").build();
        used.insert(seen(&node.forward(pod_port(1), &frame).1).source.port());
    }
    assert_eq!(used.len(), 4);
    let frame = udp("10.1.0.1:5", "192.0.2.7:53").build();
    node.expect_drop(pod_port(1), &frame, DropReason::NatPortsExhausted);
    let elsewhere = udp("10.1.0.1:5", "192.0.2.8:53").build();
    node.forward(pod_port(1), &elsewhere);
}

#[test]
fn node_port_from_outside_reaches_a_local_backend_unmasqueraded() {
    let world =
        World::with_pods(2).with_service(FrontendKind::NodePort, "", 30_080, &[(pod4(2), 8080)]);
    let mut node = Simulation::single(&world.tables());
    let (port, frame) = node.forward(UPLINK, &tcp("192.0.2.7:999", "10.0.0.1:30080", "S").build());
    let out = seen(&frame);
    assert_eq!(
        (port, out.source, out.destination),
        (pod_port(2), at("192.0.2.7:999"), at("10.1.0.2:8080"))
    );
    let (port, frame) =
        node.forward(pod_port(2), &tcp("10.1.0.2:8080", "192.0.2.7:999", "SA").build());
    assert_eq!((port, seen(&frame).source), (UPLINK, at("10.0.0.1:30080")));
}

#[test]
fn service_with_a_remote_backend_is_masqueraded_so_that_replies_return_here() {
    let world = World::with_pods(1).with_service(
        FrontendKind::LoadBalancer,
        "198.51.100.1",
        80,
        &[(address("10.1.9.9"), 8080)],
    );
    let mut node = Simulation::single(&world.tables());
    let (port, frame) = node.forward(UPLINK, &tcp("192.0.2.7:999", "198.51.100.1:80", "S").build());
    let out = seen(&frame);
    assert_eq!(
        (port, out.source.ip(), out.destination),
        (UPLINK, address("10.0.0.1"), at("10.1.9.9:8080"))
    );
    let reply = tcp("10.1.9.9:8080", &out.source.to_string(), "SA").build();
    let (_, frame) = node.forward(UPLINK, &reply);
    let back = seen(&frame);
    assert_eq!((back.source, back.destination), (at("198.51.100.1:80"), at("192.0.2.7:999")));
}

#[test]
fn pod_that_reaches_itself_through_its_service_sees_the_node_as_its_peer() {
    let world = World::with_pods(1).with_service(
        FrontendKind::ClusterIp,
        "10.2.0.1",
        80,
        &[(pod4(1), 8080)],
    );
    let mut node = Simulation::single(&world.tables());
    let (port, frame) =
        node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.2.0.1:80", "S").build());
    let out = seen(&frame);
    assert_eq!((port, out.source.ip()), (pod_port(1), address("10.0.0.1")));
    let reply = tcp("10.1.0.1:8080", &out.source.to_string(), "SA").build();
    let (_, frame) = node.forward(pod_port(1), &reply);
    assert_eq!(seen(&frame).source, at("10.2.0.1:80"));
}

#[test]
fn service_without_backends_answers_port_unreachable() {
    let world = World::with_pods(1).with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[]);
    let mut node = Simulation::single(&world.tables());
    let frame = udp("10.1.0.1:1000", "10.2.0.1:80").payload(b"hello").build();
    let (port, answer) = node.forward(pod_port(1), &frame);
    let error = seen(&answer);
    assert_eq!((port, error.icmp_type, error.destination.ip()), (pod_port(1), 3, pod4(1)));
    let quoted = read_quoted(&error).expect("quoted packet");
    assert_eq!((quoted.source, quoted.destination), (at("10.1.0.1:1000"), at("10.2.0.1:80")));
    assert_eq!(node.dropped(DropReason::NoBackend), 1);
}

#[test]
fn other_ports_of_a_service_address_are_dropped_not_routed() {
    let mut node = Simulation::single(&cluster_ip_world().tables());
    let frame = tcp("10.1.0.1:1000", "10.2.0.1:81", "S").build();
    node.expect_drop(pod_port(1), &frame, DropReason::NoServicePort);
}

#[test]
fn policy_sees_the_backend_and_admits_replies_unasked() {
    let world = cluster_ip_world()
        .with_ingress_only_from(2, &[1], 8080..=8080)
        .with_ingress_only_from(3, &[1], 8080..=8080)
        .with_no_egress(2)
        .with_no_egress(3);
    let mut node = Simulation::single(&world.tables());
    let (backend, frame) =
        node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.2.0.1:80", "S").build());
    let reply = tcp(&seen(&frame).destination.to_string(), "10.1.0.1:1000", "SA").build();
    assert_eq!(node.forward(backend, &reply).0, pod_port(1));
    let stranger = tcp("10.1.0.4:1000", "10.2.0.1:80", "S").build();
    node.expect_drop(pod_port(4), &stranger, DropReason::PolicyIngress);
    let own = tcp("10.1.0.2:1000", "10.1.0.4:80", "S").build();
    node.expect_drop(pod_port(2), &own, DropReason::PolicyEgress);
    let denied = node
        .take_events()
        .into_iter()
        .find(|event| event.kind == EventKind::Dropped(DropReason::PolicyIngress));
    assert_eq!(denied.and_then(|event| event.rule), Some(RuleId::DEFAULT_DENY));
}

#[test]
fn own_node_reaches_an_isolated_pod() {
    let world = World::with_pods(1).with_ingress_only_from(1, &[], 1..=1);
    let mut node = Simulation::single(&world.tables());
    let (port, _) = node.forward(HOST, &tcp("10.0.0.1:40000", "10.1.0.1:80", "S").build());
    assert_eq!(port, pod_port(1));
    let reply = tcp("10.1.0.1:80", "10.0.0.1:40000", "SA").build();
    assert_eq!(
        node.forward(pod_port(1), &reply).0,
        HOST,
        "flows that came by the host port return there"
    );
}

#[test]
fn newly_denied_flow_ends_at_its_next_packet_and_others_go_on() {
    let world = World::with_pods(3);
    let mut node = Simulation::single(&world.tables());
    for client in ["10.1.0.1:1000", "10.1.0.3:1000"] {
        let port = if client.starts_with("10.1.0.1") { pod_port(1) } else { pod_port(3) };
        node.forward(port, &tcp(client, "10.1.0.2:80", "S").build());
    }
    let world = world.with_ingress_only_from(2, &[3], 80..=80).next_generation();
    node.publish(&world.tables());
    let denied = tcp("10.1.0.1:1000", "10.1.0.2:80", "A").build();
    node.expect_drop(pod_port(1), &denied, DropReason::PolicyIngress);
    node.forward(pod_port(3), &tcp("10.1.0.3:1000", "10.1.0.2:80", "A").build());
    assert_eq!(node.flows().len(), 1, "the denied flow is over");
}

#[test]
fn pod_speaks_from_its_own_addresses_only() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let forged = udp("10.1.0.2:9", "10.1.0.1:53").build();
    node.expect_drop(pod_port(1), &forged, DropReason::Spoofed);
    let forged6 = udp("[fd01::2]:9", "[fd01::1]:53").build();
    node.expect_drop(pod_port(1), &forged6, DropReason::Spoofed);
    let outside = udp("10.1.0.2:9", "10.1.0.1:53").build();
    node.expect_drop(UPLINK, &outside, DropReason::LocalAddressFromUplink);
}

#[test]
fn pod_cannot_answer_for_another_on_an_open_flow() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.0.2:53").build());
    let forged = udp("10.1.0.2:53", "10.1.0.1:9").build();
    node.expect_drop(pod_port(3), &forged, DropReason::Spoofed);
    node.expect_drop(UPLINK, &forged, DropReason::LocalAddressFromUplink);
    node.forward(pod_port(2), &forged);
}

#[test]
fn pod_cannot_claim_anothers_address_by_arp_or_neighbour_discovery() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let ([IpAddr::V4(own), IpAddr::V4(other)], [IpAddr::V6(own6), IpAddr::V6(other6)]) =
        ([pod4(1), pod4(2)], [pod6(1), pod6(2)])
    else {
        panic!("each of its family")
    };
    let mac = [2, 0, 0, 0, 3, 1];
    let local = "fe80::1".parse().expect("an address");
    for lie in [
        arp_request(mac, other, own),
        arp_reply(mac, mac, other, own),
        advertisement(mac, own6, other6),
        advertisement(mac, other6, own6),
        solicitation(mac, mac, other6, own6),
    ] {
        node.expect_drop(pod_port(1), &lie, DropReason::Spoofed);
    }
    // What it may say is the kernel's to hear, and goes nowhere from here.
    node.expect_drop(pod_port(1), &arp_request(mac, own, other), DropReason::NotIp);
    let probe = arp_request(mac, Ipv4Addr::UNSPECIFIED, other);
    node.expect_drop(pod_port(1), &probe, DropReason::NotIp);
    let honest = advertisement(mac, local, own6);
    node.expect_drop(pod_port(1), &honest, DropReason::Multicast);
    node.expect_drop(UPLINK, &arp_request(mac, other, own), DropReason::NotIp);
    let cut = &arp_request(mac, other, own)[..30];
    node.expect_drop(pod_port(1), cut, DropReason::NotIp);
}

#[test]
fn pod_cannot_advertise_itself_as_a_router() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let mut frame = ping(pod6(1), address("ff02::1"), 0).build();
    frame[14 + 40] = 134;
    node.expect_drop(pod_port(1), &frame, DropReason::RouterAdvertisement);
}

#[test]
fn last_hop_of_a_ttl_is_answered_with_time_exceeded() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for (a, b, kind) in [("10.1.0.1:9", "10.1.0.2:53", 11), ("[fd01::1]:9", "[fd01::2]:53", 3)] {
        let (port, answer) = node.forward(pod_port(1), &udp(a, b).ttl(1).payload(b"x").build());
        assert_eq!((port, seen(&answer).icmp_type), (pod_port(1), kind));
    }
    assert_eq!(node.dropped(DropReason::TtlExceeded), 2);
}

#[test]
fn packet_beyond_the_mtu_is_answered_with_the_mtu() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let big = udp("10.1.0.1:9", "10.1.0.2:53").payload(&[0; 1480]).build();
    let (_, answer) = node.forward(pod_port(1), &big);
    assert_eq!(seen(&answer).icmp_type, 3);
    assert_eq!(u16::from_be_bytes([answer[40], answer[41]]), 1500);
    let big = udp("[fd01::1]:9", "[fd01::2]:53").payload(&[0; 1480]).build();
    let (_, answer) = node.forward(pod_port(1), &big);
    assert_eq!(seen(&answer).icmp_type, 2);
}

#[test]
fn icmp_error_about_a_masqueraded_flow_is_translated_inside() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for (pod, outside, router, own, kind) in [
        ("10.1.0.1:1000", "192.0.2.7:53", "192.0.2.254", "10.0.0.1", 3),
        ("[fd01::1]:1000", "[2001:db8::7]:53", "2001:db8::fe", "fd00::1", 1),
    ] {
        let (_, sent) = node.forward(pod_port(1), &udp(pod, outside).payload(b"query").build());
        let error = icmp_error(address(router), address(own), (kind, 1, 0), &sent).build();
        let (port, frame) = node.forward(UPLINK, &error);
        let error = seen(&frame);
        assert_eq!((port, error.source.ip()), (pod_port(1), address(router)));
        assert_eq!(error.destination.ip(), at(pod).ip());
        let quoted = read_quoted(&error).expect("quoted packet");
        assert_eq!((quoted.source, quoted.destination), (at(pod), at(outside)));
    }
}

#[test]
fn icmp_error_of_a_backend_comes_from_the_service_address() {
    let mut node = Simulation::single(&cluster_ip_world().tables());
    let (backend, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.2.0.1:80").build());
    let from = seen(&sent).destination.ip();
    let error = icmp_error(from, pod4(1), (3, 3, 0), &sent).build();
    let (port, frame) = node.forward(backend, &error);
    let error = seen(&frame);
    assert_eq!((port, error.source.ip()), (pod_port(1), address("10.2.0.1")));
    assert_eq!(read_quoted(&error).expect("quoted").destination, at("10.2.0.1:80"));
}

#[test]
fn icmp_error_about_nothing_is_dropped_from_a_pod_and_the_hosts_from_outside() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let never_sent = udp("10.1.0.2:9", "10.1.0.1:53").build();
    let error = icmp_error(pod4(1), pod4(2), (3, 3, 0), &never_sent).build();
    node.expect_drop(pod_port(1), &error, DropReason::IcmpUnrelated);
    let hosts_own = udp("10.0.0.1:9", "192.0.2.7:53").build();
    let error =
        icmp_error(address("192.0.2.7"), address("10.0.0.1"), (3, 3, 0), &hosts_own).build();
    let (port, frame) = node.forward(UPLINK, &error);
    assert_eq!(port, HOST);
    assert_eq!(frame[14..], error[14..], "layer 3 is unchanged");
}

#[test]
fn pod_cannot_forge_an_icmp_error_about_anothers_flow() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    let (_, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.0.2:53").build());
    let error = icmp_error(pod4(3), pod4(1), (3, 3, 0), &sent).build();
    node.expect_drop(pod_port(3), &error, DropReason::Spoofed);
}

#[test]
fn damaged_icmp_error_does_not_come_out_mended() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let (_, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    let mut error = icmp_error(address("192.0.2.7"), address("10.0.0.1"), (3, 3, 0), &sent).build();
    *error.last_mut().expect("not empty") ^= 1;
    node.expect_drop(UPLINK, &error, DropReason::Malformed);
}

#[test]
fn fragments_follow_their_first_through_translation() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for (pod, outside) in [("10.1.0.1:9", "192.0.2.7:53"), ("[fd01::1]:9", "[2001:db8::7]:53")] {
        let first = udp(pod, outside).payload(&[1; 64]).fragment(77, 0, true).build();
        let later = udp(pod, outside).payload(&[2; 64]).fragment(77, 72, false).build();
        let (port, _) = node.forward(pod_port(1), &first);
        assert_eq!(port, UPLINK);
        let (port, frame) = node.forward(pod_port(1), &later);
        assert_eq!(port, UPLINK);
        assert_eq!(&frame[frame.len() - 64..], &[2; 64], "payload is untouched");
    }
}

#[test]
fn unfinished_checksum_is_finished_before_it_is_translated() {
    let world = cluster_ip_world().with_unfinished_checksums(pod_port(1));
    let mut node = Simulation::single(&world.tables());
    let frames = [
        tcp("10.1.0.1:1000", "10.2.0.1:80", "S").payload(b"odd").partial_checksum(),
        udp("10.1.0.1:1000", "10.2.0.1:80").payload(b"even").partial_checksum(),
        udp("[fd01::1]:1", "[fd01::2]:2").payload(b"six").partial_checksum(),
        tcp("10.1.0.1:1001", "10.2.0.1:80", "S").payload(b"finished already"),
    ];
    for frame in frames {
        let (_, out) = node.forward(pod_port(1), &frame.build());
        seen(&out);
    }
}

#[test]
fn unknown_neighbour_is_asked_for_and_the_packet_waits() {
    let world = World::with_pods(1);
    let mut node = Simulation::single(&world.tables());
    let frame = udp("10.1.0.1:9", "10.0.0.9:53").build();
    assert!(node.pass(pod_port(1), &frame).is_empty());
    let asked = node.take_neighbour_requests();
    assert_eq!(
        asked.first().map(|request| (request.port, request.address)),
        Some((UPLINK, address("10.0.0.9")))
    );
    node.publish(&world.with_neighbour("10.0.0.9").tables());
    node.settle();
    let out = node.take_outgoing();
    assert_eq!(out.len(), 1, "{}", node.moved_counters());
}

#[test]
fn packet_that_waits_too_long_is_dropped_as_unresolved() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    node.pass(pod_port(1), &udp("10.1.0.1:9", "10.0.0.9:53").build());
    node.wait(Duration::from_secs(4));
    assert_eq!(node.dropped(DropReason::Unresolved), 1);
}

#[test]
fn packet_for_a_full_port_is_counted() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.wire().borrow_mut().set_full(pod_port(2), true);
    let frame = udp("10.1.0.1:9", "10.1.0.2:53").build();
    node.expect_drop(pod_port(1), &frame, DropReason::TxRingFull);
}

#[test]
fn full_table_refuses_new_flows_keeps_established_ones_and_gives_up_closed_ones() {
    let mut node = Simulation::new(1, 8, &World::with_pods(2).tables());
    let server = "10.1.0.2:53";
    let client = |n| format!("10.1.0.1:{n}");
    for n in 1..=8 {
        node.forward(pod_port(1), &tcp(&client(n), server, "S").build());
        node.forward(pod_port(2), &tcp(server, &client(n), "SA").build());
        node.forward(pod_port(1), &tcp(&client(n), server, "A").build());
    }
    let ninth = tcp(&client(9), server, "S").build();
    node.expect_drop(pod_port(1), &ninth, DropReason::TableFull);
    for n in 1..=8 {
        node.forward(pod_port(2), &tcp(server, &client(n), "A").build());
    }
    node.forward(pod_port(2), &tcp(server, &client(1), "RA").build());
    // Found by the sweep, and two grace periods until its entry is used again.
    (0..3).for_each(|_| node.tick());
    node.forward(pod_port(1), &ninth);
    assert_eq!(node.sum(|counters| counters.flows_evicted.get()), 1);
}

#[test]
fn idle_flow_expires_and_a_reply_prolongs_it() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.forward(pod_port(1), &udp("10.1.0.1:1", "10.1.0.2:53").build());
    node.forward(pod_port(1), &udp("10.1.0.1:2", "10.1.0.2:53").build());
    node.forward(pod_port(2), &udp("10.1.0.2:53", "10.1.0.1:2").build());
    node.wait(Duration::from_secs(31));
    let left = node.flows();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].life.state(), FlowState::Established);
    node.wait(Duration::from_secs(120));
    assert!(node.flows().is_empty());
    assert_eq!(node.sum(|counters| counters.flows_expired.get()), 2);
}

#[test]
fn flush_ends_the_flows_of_one_address_only() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    node.forward(pod_port(1), &udp("10.1.0.1:1", "10.1.0.2:53").build());
    node.forward(pod_port(1), &udp("10.1.0.1:1", "10.1.0.3:53").build());
    let filter = FlushFilter::of(dataplane::lpm::Prefix::host(pod4(3)));
    node.send(|| Command::Flush(filter.clone()));
    (0..4).for_each(|_| node.tick());
    let left = node.flows();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].original.destination(), pod4(2));
}

#[test]
fn protocols_without_ports_are_tracked_by_their_addresses() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let there = raw(pod4(1), pod4(2), 47).payload(b"tunnel").build();
    let back = raw(pod4(2), pod4(1), 47).payload(b"tunnel").build();
    node.forward(pod_port(1), &there);
    node.forward(pod_port(2), &back);
    assert_eq!(node.flows().len(), 1);
}

#[test]
fn echo_reply_that_nobody_asked_for_opens_nothing() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let frame = pong(pod4(1), pod4(2), 7).build();
    node.expect_drop(pod_port(1), &frame, DropReason::NoFlow);
}

#[test]
fn reset_of_no_flow_opens_nothing() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let frame = tcp("10.1.0.1:1", "10.1.0.2:80", "R").build();
    node.expect_drop(pod_port(1), &frame, DropReason::NoFlow);
    assert!(node.flows().is_empty());
}

#[test]
fn burst_of_new_connections_to_a_service_opens_each_once_beside_other_traffic() {
    let mut node = Simulation::single(&cluster_ip_world().tables());
    let direct = tcp("10.1.0.1:900", "10.1.0.2:80", "S").build();
    node.forward(pod_port(1), &direct);
    for client in 1000..1010 {
        let source = format!("10.1.0.1:{client}");
        // Twice each: the second finds the flow that the first opened, though no flow was found
        // for it when the burst was looked up.
        node.deliver(0, pod_port(1), &udp(&source, "10.2.0.1:80").build());
        node.deliver(0, pod_port(1), &udp(&source, "10.2.0.1:80").build());
        node.deliver(0, pod_port(1), &tcp("10.1.0.1:900", "10.1.0.2:80", "A").build());
    }
    node.tick();
    let out = node.take_outgoing();
    assert_eq!(out.len(), 30, "{}", node.moved_counters());
    for pair in out.chunks(3) {
        let [first, second, direct] = [&pair[0], &pair[1], &pair[2]].map(|(_, frame)| seen(frame));
        assert_eq!(first.destination, second.destination, "one flow, one backend");
        assert_eq!(first.destination.port(), 8080);
        assert_eq!(direct.destination, at("10.1.0.2:80"));
    }
    assert_eq!(node.sum(|counters| counters.flows_created.get()), 11);
}
