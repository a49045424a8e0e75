//! Who it is that enters by the host port: the node by its own addresses, and all others by theirs.
#![forbid(unsafe_code)]

use dataplane::DropReason;
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, World, pod_port, pod4};

/// Pod 1 admits pod 2 alone, by TCP.
fn world() -> World {
    World::with_pods(3).with_ingress_only_from(1, &[2], 1..=65_535)
}

#[test]
fn the_nodes_own_addresses_reach_an_isolated_pod_without_a_rule() {
    let world = world().with_link_addresses(&["fe80::7:2", "169.254.20.10"]);
    let mut node = Simulation::single(&world.tables());
    for (from, to) in [
        ("10.0.0.1:40000", "10.1.0.1:80"),
        ("[fd00::1]:40000", "[fd01::1]:80"),
        // What a socket has that chose no address, where no uplink has one of the family.
        ("[fe80::7:2]:40000", "[fd01::1]:80"),
        // As a name server's on each node.
        ("169.254.20.10:40000", "10.1.0.1:80"),
    ] {
        assert_eq!(node.forward(HOST, &tcp(from, to, "S").build()).0, pod_port(1), "{from}");
        assert_eq!(node.forward(pod_port(1), &tcp(to, from, "SA").build()).0, HOST, "{from}");
        assert_eq!(node.forward(HOST, &udp(from, to).build()).0, pod_port(1), "{from}");
    }
}

/// What the node's stack forwards (from a container's bridge, a tunnel, a VLAN) was taken for the node,
/// which every policy admits.
#[test]
fn what_the_node_forwards_is_judged_by_its_own_address() {
    let mut node = Simulation::single(&world().with_link_addresses(&["fe80::7:2"]).tables());
    for (from, to) in [
        ("172.17.0.2:40000", "10.1.0.1:80"),
        ("192.0.2.9:40000", "10.1.0.1:80"),
        ("[2001:db8::9]:40000", "[fd01::1]:80"),
        ("[fe80::9]:40000", "[fd01::1]:80"),
        ("169.254.20.10:40000", "10.1.0.1:80"),
        // A pod whose packets do not come by a port of its own.
        ("10.1.0.3:40000", "10.1.0.1:80"),
    ] {
        node.expect_drop(HOST, &tcp(from, to, "S").build(), DropReason::PolicyIngress);
        node.expect_drop(HOST, &udp(from, to).build(), DropReason::PolicyIngress);
    }
    let admitted = tcp("10.1.0.2:40000", "10.1.0.1:80", "S").build();
    assert_eq!(node.forward(HOST, &admitted).0, pod_port(1), "a rule admits it");
    let open = tcp("172.17.0.2:40000", "10.1.0.3:80", "S").build();
    assert_eq!(node.forward(HOST, &open).0, pod_port(3), "no policy isolates it");
    let answer = tcp("10.1.0.3:80", "172.17.0.2:40000", "SA").build();
    assert_eq!(node.forward(pod_port(3), &answer).0, HOST);
}

#[test]
fn a_service_is_judged_so_too() {
    let world = world().with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(1), 8080)]);
    let mut node = Simulation::single(&world.tables());
    let from = |from: &str| tcp(from, "10.2.0.1:80", "S").build();
    assert_eq!(node.forward(HOST, &from("10.0.0.1:40000")).0, pod_port(1));
    node.expect_drop(HOST, &from("172.17.0.2:40000"), DropReason::PolicyIngress);
}

#[test]
fn known_flows_of_the_node_go_on_when_tables_change() {
    let own = world().with_link_addresses(&["fe80::7:2"]);
    let mut node = Simulation::single(&own.tables());
    let flows = [
        ("10.0.0.1:40000", "10.1.0.1:80"),
        ("[fd00::1]:40000", "[fd01::1]:80"),
        ("[fe80::7:2]:40000", "[fd01::1]:80"),
    ];
    for (from, to) in flows {
        node.forward(HOST, &tcp(from, to, "S").build());
    }
    node.publish(&own.next_generation().tables());
    for (from, to) in flows {
        assert_eq!(node.forward(pod_port(1), &tcp(to, from, "SA").build()).0, HOST, "{from}");
        assert_eq!(node.forward(HOST, &tcp(from, to, "A").build()).0, pod_port(1), "{from}");
    }
}
