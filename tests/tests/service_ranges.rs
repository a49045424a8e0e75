//! Ranges that only services have addresses in: what is sent to an address there that no service has ends
//! at the node, whoever sends it, and what is known already goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::DropReason;
use dataplane::lb::{FrontendKind, ServiceRanges};
use dataplane::lpm::Prefix;
use dataplane::tables::Tables;
use xskiff_tests::packet_builder::{ping, raw, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, address, node_address, pod_port, pod4, pod6};

const RANGES: [(&str, u8); 2] = [("10.2.0.0", 16), ("fd02::", 112)];

/// Tables of this world, with [`RANGES`] and `more` being services'.
fn tables_with(world: &World, more: &[(&str, u8)]) -> Arc<Tables> {
    let mut tables = (*world.tables()).clone();
    let ranges = RANGES.iter().chain(more);
    let ranges = ranges.map(|(base, length)| Prefix::new(address(base), *length).expect("a range"));
    let ranges = ServiceRanges::new(ranges.collect(), &tables.services.addresses);
    tables.service_ranges = Arc::new(ranges);
    Arc::new(tables)
}

fn tables(world: &World) -> Arc<Tables> {
    tables_with(world, &[])
}

/// Two pods, of which the second is behind a service of each family.
fn world() -> World {
    World::with_pods(2)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(2), 8080)])
        .with_service(FrontendKind::ClusterIp, "fd02::1", 80, &[(pod6(2), 8080)])
}

#[test]
fn what_is_sent_to_an_address_that_no_service_has_is_dropped_and_not_answered() {
    for (pod, node, outside, nobody) in [
        ("10.1.0.1:1000", "10.0.0.1:1000", "10.0.0.2:1000", "10.2.0.9"),
        ("[fd01::1]:1000", "[fd00::1]:1000", "[fd00::2]:1000", "fd02::9"),
    ] {
        let mut simulation = Simulation::single(&tables(&world()));
        let to = match nobody.contains(':') {
            true => format!("[{nobody}]:80"),
            false => format!("{nobody}:80"),
        };
        for (port, from) in [(pod_port(1), pod), (HOST, node), (UPLINK, outside)] {
            let source = from.parse::<std::net::SocketAddr>().expect("a socket address").ip();
            for frame in [
                tcp(from, &to, "S").build(),
                udp(from, &to).payload(b"hello").build(),
                ping(source, address(nobody), 7).build(),
                raw(source, address(nobody), 47).build(),
            ] {
                simulation.expect_drop(port, &frame, DropReason::NoService);
            }
        }
        assert_eq!(simulation.dropped(DropReason::NoService), 12);
        assert!(simulation.flows().is_empty());
    }
}

#[test]
fn a_services_address_is_served_within_a_range_as_anywhere_and_its_other_ports_are_not() {
    let mut node = Simulation::single(&tables(&world()));
    for (client, frontend) in [("10.1.0.1:1000", "10.2.0.1:80"), ("[fd01::1]:1000", "[fd02::1]:80")]
    {
        let (port, _) = node.forward(pod_port(1), &tcp(client, frontend, "S").build());
        assert_eq!(port, pod_port(2));
        let other = frontend.replace(":80", ":81");
        let frame = tcp(client, &other, "S").build();
        node.expect_drop(pod_port(1), &frame, DropReason::NoServicePort);
    }
}

/// Behind a service's external address may be a machine outside, or another node: whoever spoke to it by
/// another port than the service's was dropped.
#[test]
fn other_ports_of_an_external_address_are_routed_from_here_and_refused_to_clients_outside() {
    let external = [("198.51.100.7", pod4(2)), ("2001:db8:51::7", pod6(2))];
    let balanced = [("203.0.113.7", pod4(2)), ("2001:db8:113::7", pod6(2))];
    let kinds = [(FrontendKind::ExternalIp, external), (FrontendKind::LoadBalancer, balanced)];
    let mut world = world();
    for (kind, addresses) in kinds {
        for (frontend, backend) in addresses {
            world = world.with_service(kind, frontend, 80, &[(backend, 8080)]);
        }
    }
    let mut node = Simulation::single(&tables(&world));
    for (_, addresses) in kinds {
        for (frontend, _) in addresses {
            let is_ipv4 = !frontend.contains(':');
            let [pod, own, outside] = match is_ipv4 {
                true => ["10.1.0.1:1000", "10.0.0.1:1000", "192.0.2.7:1000"],
                false => ["[fd01::1]:1000", "[fd00::1]:1000", "[2001:db8::7]:1000"],
            };
            let at = |port: u16| SocketAddr::new(address(frontend), port).to_string();
            for (ingress, from) in [(pod_port(1), pod), (HOST, own)] {
                let source: SocketAddr = from.parse().expect("a socket address");
                assert_eq!(node.forward(ingress, &tcp(from, &at(80), "S").build()).0, pod_port(2));
                // As anybody outside sees them: what answers comes back here.
                let (port, frame) = node.forward(ingress, &tcp(from, &at(22), "S").build());
                let there = read(&frame).expect("a well-formed frame");
                assert_eq!((port, there.destination.to_string()), (UPLINK, at(22)));
                assert_eq!(there.source.ip(), node_address(source.ip()), "{from}");
                let back = tcp(&at(22), &there.source.to_string(), "SA").build();
                let (port, frame) = node.forward(UPLINK, &back);
                let answer = read(&frame).expect("a well-formed frame");
                assert_eq!((port, answer.destination), (ingress, source));
            }
            let echo = ping(
                address(pod.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])),
                address(frontend),
                7,
            );
            assert_eq!(node.forward(pod_port(1), &echo.build()).0, UPLINK);
            let stray = tcp(outside, &at(22), "S").build();
            node.expect_drop(UPLINK, &stray, DropReason::NoServicePort);
        }
    }
}

#[test]
fn an_external_address_that_a_pod_here_has_is_the_pods_on_all_other_ports() {
    let world = World::with_pods(2).with_service(
        FrontendKind::ExternalIp,
        "10.1.0.1",
        80,
        &[(pod4(2), 8080)],
    );
    let mut node = Simulation::single(&world.tables());
    for (ingress, from) in [(UPLINK, "192.0.2.7:1000"), (pod_port(2), "10.1.0.2:1000")] {
        let (port, _) = node.forward(ingress, &tcp(from, "10.1.0.1:22", "S").build());
        assert_eq!(port, pod_port(1), "{from}");
    }
}

/// A node's cache of DNS has a service's address itself; and where a range is given too widely, what is
/// here is still reached.
#[test]
fn what_the_node_or_a_pod_of_it_has_is_theirs_whatever_range_it_is_in() {
    let wide = [("10.0.0.0", 24), ("10.1.0.0", 24)];
    let mut node = Simulation::single(&tables_with(&world(), &wide));
    let (port, _) = node.forward(pod_port(1), &udp("10.1.0.1:1000", "10.0.0.1:53").build());
    assert_eq!(port, HOST);
    let (port, _) = node.forward(UPLINK, &udp("10.0.0.2:1000", "10.0.0.1:53").build());
    assert_eq!(port, HOST);
    let (port, _) = node.forward(pod_port(1), &udp("10.1.0.1:1000", "10.1.0.2:53").build());
    assert_eq!(port, pod_port(2));
    let nobody = udp("10.1.0.1:1000", "10.1.0.9:53").build();
    node.expect_drop(pod_port(1), &nobody, DropReason::NoService);
}

#[test]
fn what_is_in_no_range_is_routed_as_ever() {
    let mut node = Simulation::single(&tables(&world()));
    let (port, _) = node.forward(pod_port(1), &udp("10.1.0.1:1000", "10.0.0.2:53").build());
    assert_eq!(port, UPLINK);
}

#[test]
fn a_connection_goes_on_when_its_service_is_deleted_and_no_other_begins() {
    let mut node = Simulation::single(&tables(&world()));
    let (client, frontend) = ("10.1.0.1:1000", "10.2.0.1:80");
    node.forward(pod_port(1), &tcp(client, frontend, "S").build());
    node.forward(pod_port(2), &tcp("10.1.0.2:8080", client, "SA").build());
    node.forward(pod_port(1), &tcp(client, frontend, "A").build());

    node.publish(&tables(&World::with_pods(2).next_generation()));
    let (port, _) = node.forward(pod_port(1), &tcp(client, frontend, "A").build());
    assert_eq!(port, pod_port(2));
    let (port, reply) = node.forward(pod_port(2), &tcp("10.1.0.2:8080", client, "A").build());
    let seen = read(&reply).expect("a well-formed frame");
    assert_eq!((port, seen.source.to_string()), (pod_port(1), frontend.to_owned()));
    let another = tcp("10.1.0.1:1001", frontend, "S").build();
    node.expect_drop(pod_port(1), &another, DropReason::NoService);
}
