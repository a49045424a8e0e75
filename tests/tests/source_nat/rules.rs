//! Explicit translation: chosen pods leave with chosen addresses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::nat::{Mapping, share};
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{icmp_error, ping, pong, read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

use crate::{at, seen};

const EGRESS: &str = "198.51.100.40";
const EGRESS6: &str = "2001:db8:1::40";

/// Pod 1 leaves as [`EGRESS`] and [`EGRESS6`], pod 2 by masquerade.
fn world() -> World {
    World::with_pods(2).with_snat_rule(&["10.1.0.1/32", "fd01::1/128"], &[], &[EGRESS, EGRESS6])
}

/// Where a datagram that worker 0 is given seems to come from outside.
fn source_of(node: &mut Simulation, from: &str, to: &str) -> SocketAddr {
    let n = if from.contains("0.1:") || from.contains("::1]") { 1 } else { 2 };
    let (port, frame) = node.forward(pod_port(n), &udp(from, to).build());
    assert_eq!(port, UPLINK);
    seen(&frame).source
}

fn flows_of(node: &Simulation) -> (u64, u64) {
    (
        node.sum(|counters| counters.flows_translated_by_rule.get()),
        node.sum(|counters| counters.flows_masqueraded.get()),
    )
}

#[test]
fn chosen_pod_leaves_with_the_rules_address_and_others_are_masqueraded() {
    let mut node = Simulation::single(&world().tables());
    let outside = ["192.0.2.7", "2001:db8::7"].map(address);
    let own = [["10.1.0.1:9", "10.1.0.2:9"], ["[fd01::1]:9", "[fd01::2]:9"]];
    let leaves_as = [[EGRESS, "10.0.0.1"], [EGRESS6, "fd00::1"]];
    for family in 0..2 {
        for n in 0..2u8 {
            let (pod, expected) = (own[family][usize::from(n)], leaves_as[family][usize::from(n)]);
            let server = SocketAddr::new(outside[family], 80).to_string();
            let pod_address = if family == 0 { pod4(n + 1) } else { pod6(n + 1) };
            let port: PortId = pod_port(n + 1);
            for frame in [
                udp(pod, &server).build(),
                tcp(pod, &server, "S").build(),
                ping(pod_address, outside[family], 9).build(),
            ] {
                let sent = node.forward(port, &frame).1;
                let out = seen(&sent);
                assert_eq!(out.source.ip(), address(expected));
                let reply = match out.protocol {
                    6 => tcp(&server, &out.source.to_string(), "SA"),
                    17 => udp(&server, &out.source.to_string()),
                    _ => pong(outside[family], out.source.ip(), out.source.port()),
                };
                let (back, frame) = node.forward(UPLINK, &reply.build());
                assert_eq!((back, seen(&frame).destination.ip()), (port, pod_address));
            }
        }
    }
    assert_eq!(flows_of(&node), (6, 6));
}

/// Rules outrank masquerade and its exceptions; the cluster outranks rules.
#[test]
fn first_rule_that_matches_decides_and_none_does_inside_the_cluster() {
    let world = World::with_pods(3)
        .with_non_masquerade("172.16.0.0/12")
        .with_snat_rule(&["10.1.0.1/32"], &["192.0.2.0/24", "172.16.9.0/24"], &["198.51.100.1"])
        .with_snat_rule(&["10.1.0.0/31"], &["0.0.0.0/0"], &["198.51.100.2"])
        .with_snat_rule(&["10.1.0.0/16"], &[], &["198.51.100.3"]);
    let mut node = Simulation::single(&world.tables());
    for (from, to, source) in [
        ("10.1.0.1:9", "192.0.2.7:53", "198.51.100.1"),
        // A destination that masquerade leaves alone, by a rule that names it, and by one for all.
        ("10.1.0.1:9", "172.16.9.1:53", "198.51.100.1"),
        ("10.1.0.1:9", "172.16.8.1:53", "198.51.100.2"),
        ("10.1.0.1:9", "203.0.113.1:53", "198.51.100.2"),
        // A rule without destinations goes where masquerade would.
        ("10.1.0.2:9", "203.0.113.1:53", "198.51.100.3"),
        ("10.1.0.2:9", "172.16.9.1:53", "10.1.0.2"),
        // A pod of another node.
        ("10.1.0.1:9", "10.1.77.1:53", "10.1.0.1"),
        ("[fd01::1]:9", "[2001:db8::7]:53", "fd00::1"),
    ] {
        let seen = source_of(&mut node, from, to);
        assert_eq!(seen.ip(), address(source), "{from} to {to}");
    }
    // A local pod, directly.
    let (port, frame) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.0.3:53").build());
    assert_eq!((port, seen(&frame).source), (pod_port(3), at("10.1.0.1:9")));
}

#[test]
fn each_address_has_ports_of_its_own() {
    let world = world().with_snat_ports(61_000..=61_099);
    let mut node = Simulation::single(&world.tables());
    for (n, from) in [(1, "10.1.0.1"), (2, "10.1.0.2")] {
        let mut ports = BTreeSet::new();
        for client in 1000..1100 {
            ports.insert(source_of(&mut node, &format!("{from}:{client}"), "192.0.2.7:53").port());
        }
        assert_eq!(ports.len(), 100);
        let late = udp(&format!("{from}:2000"), "192.0.2.7:53").build();
        node.expect_drop(pod_port(n), &late, DropReason::NatPortsExhausted);
    }
    assert_eq!(flows_of(&node), (100, 100));
}

/// A port of an address is one worker's, however many workers and addresses there are.
#[test]
fn workers_shares_of_an_addresses_ports_do_not_overlap() {
    for workers in 1..=8 {
        let range = 61_000..=61_799;
        let world = world().with_snat_ports(range.clone());
        let mut node = Simulation::new(workers, 4096, &world.tables());
        let mut used = BTreeSet::new();
        let mut of_workers = BTreeSet::new();
        for client in 1000..1300u16 {
            let frame = udp(&format!("10.1.0.1:{client}"), "192.0.2.7:53").build();
            let worker = usize::from(client) % workers;
            let out = node.pass_to(worker, pod_port(1), &frame);
            assert_eq!(out.len(), 1, "{}", node.moved_counters());
            let source = seen(&out[0].1).source;
            assert_eq!(source.ip(), address(EGRESS));
            assert!(used.insert(source), "{source} was given twice");
            let owner = (0..workers).find(|worker| {
                let share = share(&range, *worker, workers).expect("ports for all");
                share.contains(&source.port())
            });
            of_workers.insert(owner.expect("a worker's"));
            let reply = udp("192.0.2.7:53", &source.to_string()).build();
            let back = node.pass_to((worker + 1) % workers, UPLINK, &reply);
            assert_eq!(seen(&back[0].1).destination, at(&format!("10.1.0.1:{client}")));
        }
        assert_eq!(of_workers.len(), workers, "every worker opens flows");
    }
}

/// Toward those that a rule names it has another one, which is all its own as well.
#[test]
fn end_point_keeps_one_port_of_each_of_its_addresses() {
    let world = World::with_pods(2).with_mapping(Mapping::EndpointIndependent).with_snat_rule(
        &["10.1.0.0/16"],
        &["203.0.113.0/24"],
        &[EGRESS],
    );
    for workers in [1, 3] {
        let mut node = Simulation::new(workers, 4096, &world.tables());
        let mut own = BTreeSet::new();
        for destination in 1..40 {
            for net in ["203.0.113", "192.0.2"] {
                let source =
                    source_of(&mut node, "10.1.0.1:1000", &format!("{net}.{destination}:53"));
                let reply = udp(&format!("{net}.{destination}:53"), &source.to_string()).build();
                assert_eq!(node.forward(UPLINK, &reply).0, pod_port(1));
                own.insert(source);
            }
        }
        let addresses: BTreeSet<_> = own.iter().map(SocketAddr::ip).collect();
        assert_eq!((own.len(), addresses.len()), (2, 2), "{own:?}");
        assert_eq!(addresses, [EGRESS, "10.0.0.1"].map(address).into());
        node.wait(Duration::from_secs(140));
        assert_eq!(
            node.sum(|counters| counters.flows_created.get()),
            node.sum(|counters| counters.flows_expired.get()),
            "mappings end with their flows"
        );
    }
}

/// RFC 4787, REQ-9a: seen by its external address, which is the rule's.
#[test]
fn pods_reach_each_other_by_the_addresses_that_rules_give_them() {
    let world = world().with_mapping(Mapping::EndpointIndependent);
    let mut node = Simulation::single(&world.tables());
    let one = source_of(&mut node, "10.1.0.1:1000", "192.0.2.7:3478");
    let two = source_of(&mut node, "10.1.0.2:2000", "192.0.2.7:3478");
    assert_eq!([one.ip(), two.ip()], [EGRESS, "10.0.0.1"].map(address));
    let (port, frame) = node.forward(pod_port(1), &udp("10.1.0.1:1000", &two.to_string()).build());
    let there = seen(&frame);
    assert_eq!((port, there.source, there.destination), (pod_port(2), one, at("10.1.0.2:2000")));
    let (port, frame) = node.forward(pod_port(2), &udp("10.1.0.2:2000", &one.to_string()).build());
    let back = seen(&frame);
    assert_eq!((port, back.source, back.destination), (pod_port(1), two, at("10.1.0.1:1000")));
}

#[test]
fn error_about_a_rules_flow_reaches_its_pod_and_others_nobody() {
    let mut node = Simulation::single(&world().tables());
    let there = udp("10.1.0.1:9", "192.0.2.7:53").build();
    let sent = node.forward(pod_port(1), &there).1;
    let error = icmp_error(address("192.0.2.254"), address(EGRESS), (3, 4, 1280), &sent).build();
    let (port, frame) = node.forward(UPLINK, &error);
    let error = seen(&frame);
    assert_eq!((port, error.destination.ip()), (pod_port(1), pod4(1)));
    assert_eq!(read_quoted(&error).expect("a quote").source, at("10.1.0.1:9"));
    let forged = udp(&format!("{EGRESS}:61999"), "192.0.2.9:53").build();
    let error = icmp_error(address("192.0.2.9"), address(EGRESS), (3, 3, 0), &forged).build();
    node.expect_drop(UPLINK, &error, DropReason::IcmpUnrelated);
}

/// The address is nobody's: neither the node's stack nor the way to the gateway gets such a packet.
#[test]
fn stranger_reaches_nobody_by_a_rules_address() {
    let mut node = Simulation::single(&world().tables());
    let own = source_of(&mut node, "10.1.0.1:9", "192.0.2.7:53").to_string();
    node.expect_drop(UPLINK, &udp("192.0.2.8:53", &own).build(), DropReason::NoFlow);
    let syn = tcp("192.0.2.7:53", &own, "S").build();
    node.expect_drop(UPLINK, &syn, DropReason::NoFlow);
    node.expect_drop(pod_port(2), &udp("10.1.0.2:9", &own).build(), DropReason::NoFlow);
}

#[test]
fn rule_without_an_address_of_the_family_lets_nothing_out() {
    let rules = |to: &[&str]| World::with_pods(1).with_snat_rule(&["10.1.0.0/16"], &[], to);
    for world in [rules(&[]), rules(&[EGRESS6])] {
        let mut node = Simulation::single(&world.tables());
        let there = udp("10.1.0.1:9", "192.0.2.7:53").build();
        node.expect_drop(pod_port(1), &there, DropReason::NoNatAddress);
        source_of(&mut node, "[fd01::1]:9", "[2001:db8::7]:53");
    }
}

#[test]
fn policy_judges_the_pod_and_not_its_address_outside() {
    let mut node = Simulation::single(&world().with_no_egress(1).tables());
    let there = udp("10.1.0.1:9", "192.0.2.7:53").build();
    node.expect_drop(pod_port(1), &there, DropReason::PolicyEgress);
}

/// A rule that comes, goes or changes is for flows to come.
#[test]
fn flows_keep_their_address_when_rules_change_under_them() {
    for mapping in [Mapping::EndpointDependent, Mapping::EndpointIndependent] {
        let plain = World::with_pods(2).with_mapping(mapping);
        let mut node = Simulation::new(3, 4096, &plain.tables());
        let open = |node: &mut Simulation, client: u16| {
            let (from, to) = (format!("10.1.0.1:{client}"), "192.0.2.7:80");
            let own = seen(&node.forward(pod_port(1), &tcp(&from, to, "S").build()).1).source;
            node.forward(UPLINK, &tcp(to, &own.to_string(), "SA").build());
            node.forward(pod_port(1), &tcp(&from, to, "A").build());
            (client, own)
        };
        let mut open_ones = vec![open(&mut node, 1000)];
        let with = |to: &str| plain.clone().with_snat_rule(&["10.1.0.0/24"], &[], &[to]);
        let (one, other) = (with(EGRESS), with("198.51.100.41"));
        let steps = [
            (one.clone(), EGRESS),
            (other.with_snat_rule(&["10.9.0.0/16"], &[], &[EGRESS]), "198.51.100.41"),
            (one.without_snat_rules(), "10.0.0.1"),
        ];
        for (step, (world, address_then)) in (1..).zip(steps) {
            let world = (0..step).fold(world, |world, _| world.next_generation());
            node.publish(&world.tables());
            let (client, own) = open(&mut node, 1000 + step);
            assert_eq!(own.ip(), address(address_then), "step {step}");
            open_ones.push((client, own));
            for (client, own) in &open_ones {
                let from = format!("10.1.0.1:{client}");
                let out = node.forward(pod_port(1), &tcp(&from, "192.0.2.7:80", "PA").build()).1;
                assert_eq!(seen(&out).source, *own, "step {step}");
                let back = tcp("192.0.2.7:80", &own.to_string(), "PA").build();
                assert_eq!(seen(&node.forward(UPLINK, &back).1).destination, at(&from));
                let error = icmp_error(address("192.0.2.254"), own.ip(), (3, 1, 0), &out).build();
                assert_eq!(node.forward(UPLINK, &error).0, pod_port(1));
            }
        }
    }
}
