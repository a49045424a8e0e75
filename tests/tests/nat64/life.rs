//! The one entry of a flow between two families: how it ends, and what outlives its service.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::lb::FrontendKind;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::nat::Mapping;
use dataplane::tables::TcpWindows;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4};

use crate::{CASES, SERVICE, TARGET, at, ip, node, seen, to_pod, world};

#[test]
fn entry_expires_and_gives_its_port_back() {
    let world = world().with_snat_ports(61_000..=61_000);
    for case in CASES {
        let mut node = Simulation::single(&world.tables());
        to_pod(&mut node, case.port, &udp(case.client, case.frontend).build());
        let other = case.client.replace(":1000", ":1001");
        let second = udp(&other, case.frontend).build();
        node.expect_drop(case.port, &second, DropReason::NatPortsExhausted);
        node.wait(Duration::from_secs(40));
        assert!(node.flows().is_empty());
        assert_eq!(to_pod(&mut node, case.port, &second).source.port(), 61_000);
    }
}

#[test]
fn connection_follows_tcps_states_and_is_opened_again_after_its_end() {
    for case in CASES {
        let mut node = node();
        let there = to_pod(&mut node, case.port, &tcp(case.client, case.frontend, "S").build());
        let own = there.source.to_string();
        let state = |node: &Simulation| node.flows()[0].life.state();
        assert_eq!(state(&node), FlowState::Opening);
        node.forward(pod_port(2), &tcp(case.backend, &own, "SA").build());
        to_pod(&mut node, case.port, &tcp(case.client, case.frontend, "A").build());
        assert_eq!(state(&node), FlowState::Established);
        to_pod(&mut node, case.port, &tcp(case.client, case.frontend, "FA").build());
        node.forward(pod_port(2), &tcp(case.backend, &own, "FA").build());
        assert_eq!(state(&node), FlowState::TimeWait);
        to_pod(&mut node, case.port, &tcp(case.client, case.frontend, "S").build());
        assert_eq!((node.flows().len(), state(&node)), (1, FlowState::Opening));
    }
}

#[test]
fn entry_is_flushed_by_the_address_that_its_packets_bear() {
    for case in CASES {
        for end in [case.client, case.frontend, case.backend] {
            let mut node = node();
            to_pod(&mut node, case.port, &udp(case.client, case.frontend).build());
            let address = Prefix::host(at(end).ip());
            node.send(|| Command::Flush(FlushFilter::of(address)));
            node.wait(Duration::from_secs(2));
            assert!(node.flows().is_empty(), "by {end}");
        }
    }
}

/// Two tables, one wire: what comes back to a port of the node's IPv4 address must be one flow's.
#[test]
fn ipv4_port_is_never_given_to_a_flow_of_each_table_toward_one_destination() {
    let backends = [(ip("192.0.2.50"), TARGET)];
    let world = |mapping| {
        world()
            .with_service(FrontendKind::ClusterIp, "fd02::9", SERVICE, &backends)
            .with_snat_ports(61_000..=61_000)
            .with_mapping(mapping)
            .tables()
    };
    let own = udp("10.1.0.1:1000", "192.0.2.50:8080").build();
    let across = udp("[fd01::1]:1000", "[fd02::9]:80").build();
    for (mapping, first, second, reason) in [
        (Mapping::EndpointDependent, &own, &across, DropReason::NatPortsExhausted),
        (Mapping::EndpointDependent, &across, &own, DropReason::NatPortsExhausted),
        (Mapping::EndpointIndependent, &own, &across, DropReason::NatPortsExhausted),
        (Mapping::EndpointIndependent, &across, &own, DropReason::NatClash),
    ] {
        let mut node = Simulation::single(&world(mapping));
        let (port, frame) = node.forward(pod_port(1), first);
        assert_eq!((port, seen(&frame).source), (UPLINK, at("10.0.0.1:61000")));
        node.expect_drop(pod_port(1), second, reason);
        node.wait(Duration::from_secs(40));
        assert!(node.flows().is_empty());
        node.forward(pod_port(1), second);
    }
}

#[test]
fn first_packet_waits_for_a_backend_whose_link_address_is_not_known_yet() {
    for (frontend, backend) in [("10.2.0.9", "fd00::77"), ("fd02::9", "10.0.0.77")] {
        let backends = [(ip(backend), TARGET)];
        let world = world().with_service(FrontendKind::ClusterIp, frontend, SERVICE, &backends);
        let mut node = Simulation::single(&world.tables());
        let from = if ip(frontend).is_ipv4() { "10.1.0.1:1000" } else { "[fd01::1]:1000" };
        let to = std::net::SocketAddr::new(ip(frontend), SERVICE).to_string();
        assert!(node.pass(pod_port(1), &tcp(from, &to, "S").build()).is_empty());
        assert_eq!(node.take_neighbour_requests()[0].address, ip(backend));
        node.publish(&world.with_neighbour(backend).next_generation().tables());
        node.settle();
        let out = node.take_outgoing();
        assert_eq!(out.len(), 1, "{}", node.moved_counters());
        assert_eq!(seen(&out[0].1).destination.ip(), ip(backend));
    }
}

/// Connections stay with their backends when a service gets some of its own family.
#[test]
fn connection_goes_on_when_its_service_no_longer_changes_family() {
    let mut node = node();
    let (client, frontend) = ("192.0.2.7:1000", "203.0.113.1:80");
    let there = to_pod(&mut node, UPLINK, &tcp(client, frontend, "S").build());
    let own = [(pod4(2), TARGET)];
    let later = World::with_pods(2)
        .with_service(FrontendKind::LoadBalancer, "203.0.113.1", SERVICE, &own)
        .next_generation();
    assert!(!later.tables().services.change_family);
    node.publish(&later.tables());
    let own = there.source.to_string();
    let (_, frame) = node.forward(pod_port(2), &tcp("[fd01::2]:8080", &own, "SA").build());
    assert_eq!(seen(&frame).source, at(frontend));
    let data = to_pod(&mut node, UPLINK, &tcp(client, frontend, "A").build());
    assert_eq!(data.source, there.source);
    let other = to_pod(&mut node, UPLINK, &tcp("192.0.2.7:1001", frontend, "S").build());
    assert_eq!((other.source, other.destination.ip()), (at("192.0.2.7:1001"), ip("10.1.0.2")));
}

#[test]
fn details_and_strict_windows_hold_between_families() {
    let tables = world().with_tcp_windows(TcpWindows::Strict).tables();
    for case in CASES {
        let mut node = Simulation::with_details(1, 1000, &tables);
        let syn = tcp(case.client, case.frontend, "S").numbers(1000, 0, 1000).build();
        let there = to_pod(&mut node, case.port, &syn);
        let own = there.source.to_string();
        let syn_ack = tcp(case.backend, &own, "SA").numbers(5000, 1001, 1000).build();
        node.forward(pod_port(2), &syn_ack);
        let ack = tcp(case.client, case.frontend, "A").numbers(1001, 5001, 1000);
        to_pod(&mut node, case.port, &ack.build());
        let forged = tcp(case.client, case.frontend, "R").numbers(900_000, 0, 0).build();
        node.expect_drop(case.port, &forged, DropReason::TcpOutOfWindow);
        let flow = node.flows().remove(0);
        let header = |is_v4| if is_v4 { 40 } else { 60 };
        let (there, back) = flow.bytes.expect("details");
        assert_eq!(there, 2 * header(case.is_from_v4()), "as received");
        assert_eq!(back, header(!case.is_from_v4()));
    }
}

#[test]
fn connections_are_charged_to_the_pods_at_their_ends() {
    for case in CASES {
        let mut node = node();
        to_pod(&mut node, case.port, &udp(case.client, case.frontend).build());
        let charged = if case.port == UPLINK { pod_port(2) } else { case.port };
        assert_eq!(node.flow_tables().charges.flows(charged), 1, "{case:?}");
    }
}
