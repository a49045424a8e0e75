//! New tables judge again the flows that a change concerns, and leave all others alone.

use dataplane::DropReason;
use dataplane::event::EventKind;
use dataplane::lb::FrontendKind;
use dataplane::policy::RuleId;
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_identity, pod_port, pod4, pod6};

/// A flow: where its packets enter, who opens it, and to whom.
struct Case {
    name: &'static str,
    port: PortId,
    client: &'static str,
    frontend: &'static str,
    /// Whose changes concern it, and one whose do not.
    ends: [&'static str; 2],
    stranger: &'static str,
}

fn cases() -> [Case; 5] {
    [
        Case {
            name: "pod to pod",
            port: pod_port(1),
            client: "10.1.0.1:1000",
            frontend: "10.1.0.2:80",
            ends: ["10.1.0.1", "10.1.0.2"],
            stranger: "10.1.0.3",
        },
        Case {
            name: "pod to pod, IPv6",
            port: pod_port(1),
            client: "[fd01::1]:1000",
            frontend: "[fd01::2]:80",
            ends: ["fd01::1", "fd01::2"],
            stranger: "fd01::3",
        },
        Case {
            name: "through a service, whose address is neither end's",
            port: pod_port(1),
            client: "10.1.0.1:1000",
            frontend: "10.2.0.1:80",
            ends: ["10.1.0.1", "10.1.0.2"],
            stranger: "10.2.0.1",
        },
        Case {
            name: "from outside",
            port: UPLINK,
            client: "192.0.2.9:1000",
            frontend: "10.2.0.1:80",
            ends: ["192.0.2.9", "10.1.0.2"],
            stranger: "10.0.0.1",
        },
        Case {
            name: "from IPv4 to an IPv6 backend",
            port: pod_port(1),
            client: "10.1.0.1:1000",
            frontend: "10.2.0.6:80",
            ends: ["10.1.0.1", "fd01::2"],
            stranger: "10.2.0.6",
        },
    ]
}

fn world() -> World {
    World::with_pods(3)
        .with_neighbour("192.0.2.9")
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(2), 8080)])
        .with_service(FrontendKind::ClusterIp, "10.2.0.6", 80, &[(pod6(2), 8080)])
}

fn rejudged(node: &Simulation) -> u64 {
    node.sum(|counters| counters.flows_rejudged.get())
}

#[test]
fn a_change_judges_again_the_flows_of_its_addresses_alone() {
    for case in cases() {
        let mut node = Simulation::single(&world().tables());
        let (back_port, there) =
            node.forward(case.port, &tcp(case.client, case.frontend, "S").build());
        let there = read(&there).expect("a frame");
        let (backend, client) = (there.destination.to_string(), there.source.to_string());
        let mut world = world();
        let both_ways = |node: &mut Simulation, world: &World, times: u64| {
            let before = rejudged(node);
            node.publish(&world.tables());
            node.forward(case.port, &tcp(case.client, case.frontend, "A").build());
            node.forward(back_port, &tcp(&backend, &client, "A").build());
            assert_eq!(rejudged(node) - before, times, "{}", case.name);
        };
        both_ways(&mut node, &world, 0);
        for end in case.ends {
            world = world.next_generation_for(&[case.stranger]);
            both_ways(&mut node, &world, 0);
            // Many changes that this flow slept through are as one.
            for _ in 0..5 {
                world = world.next_generation_for(&[case.stranger]);
            }
            both_ways(&mut node, &world, 0);
            world = world.next_generation_for(&[end]).next_generation_for(&[case.stranger]);
            both_ways(&mut node, &world, 1);
        }
    }
}

#[test]
fn the_control_thread_knows_whose_changes_concern_a_flow() {
    for case in cases() {
        let mut node = Simulation::single(&world().tables());
        let ends = case.ends.map(address);
        assert!(ends.iter().all(|end| !node.census.may_be_end(*end)), "{}", case.name);
        node.forward(case.port, &tcp(case.client, case.frontend, "S").build());
        for census in [&node.census, &node.census_of_present_flows()] {
            assert!(ends.iter().all(|end| census.may_be_end(*end)), "{}", case.name);
            assert!(!census.may_be_end(address(case.stranger)), "{}", case.name);
        }
    }
}

#[test]
fn a_flow_that_is_denied_ends_only_if_the_change_is_told_of_one_of_its_ends() {
    let denying = |addresses: &[&str]| {
        world().with_ingress_only_from(2, &[3], 80..=80).next_generation_for(addresses)
    };
    for told in [&["10.1.0.1"], &["10.1.0.2"]] {
        let mut node = Simulation::single(&world().tables());
        node.forward(pod_port(1), &udp("10.1.0.1:1000", "10.1.0.2:80").build());
        node.publish(&denying(told).tables());
        let more = udp("10.1.0.1:1000", "10.1.0.2:80").build();
        node.watch(true);
        node.take_events();
        node.expect_drop(pod_port(1), &more, DropReason::PolicyIngress);
        let dropped = EventKind::Dropped(DropReason::PolicyIngress);
        let event = node.take_events().into_iter().find(|event| event.kind == dropped);
        let event = event.expect("whose policy it was can be asked");
        assert_eq!(event.rule, Some(RuleId::DEFAULT_DENY));
        assert_eq!(
            (event.source, event.destination),
            (Some(pod_identity(1)), Some(pod_identity(2)))
        );
        // It stays denied under tables that concern others.
        node.publish(&denying(told).next_generation_for(&["10.1.0.3"]).tables());
        node.expect_drop(pod_port(1), &more, DropReason::PolicyIngress);
    }
}
