//! How long flows live of which one direction is seen, who takes another way, and what policy says.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::direct::Dispatch;
use dataplane::flows::FlowRecord;
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4};

use crate::{FORMS, NODES, a_world, at, b_world, dispatched, node_a, node_b, seen};

const CLIENT: &str = "192.0.2.7:1000";
const FRONTEND: &str = "203.0.113.1:80";

fn one(node: &Simulation) -> FlowRecord {
    let flows = node.flows();
    assert_eq!(flows.len(), 1, "{flows:?}");
    flows[0]
}

#[test]
fn connection_of_which_only_the_client_is_seen_outlives_its_silence_and_ends_by_fin_and_reset() {
    for form in FORMS {
        let mut a = node_a(form);
        for flags in ["S", "A", "PA"] {
            dispatched(&mut a, &tcp(CLIENT, FRONTEND, flags).build());
        }
        assert_eq!(one(&a).life.state(), FlowState::Answered);
        // Half-open flows end after 120 s: this one is none.
        a.wait(Duration::from_secs(3600));
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
        assert_eq!(one(&a).packets.0, 4, "the same flow");
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "FA").build());
        assert_eq!(one(&a).life.state(), FlowState::Closing);
        // The server goes on, and is acknowledged.
        for _ in 0..3 {
            a.wait(Duration::from_secs(100));
            dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
        }
        assert_eq!(one(&a).packets.0, 8);
        a.wait(Duration::from_secs(121));
        assert!(a.flows().is_empty());

        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "S").build());
        a.wait(Duration::from_secs(119));
        assert_eq!(a.flows().len(), 1);
        a.wait(Duration::from_secs(2));
        assert!(a.flows().is_empty(), "a SYN that nobody follows up");
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "S").build());
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, "R").build());
        a.wait(Duration::from_secs(11));
        assert!(a.flows().is_empty(), "reset");
    }
}

#[test]
fn silent_connection_is_forgotten_after_what_rfc_5382_asks_for() {
    let mut a = node_a(Dispatch::Ipip);
    dispatched(&mut a, &tcp(CLIENT, FRONTEND, "S").build());
    dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
    a.wait(Duration::from_secs(7400));
    assert_eq!(a.flows().len(), 1);
    a.wait(Duration::from_secs(60));
    assert!(a.flows().is_empty());
    // It goes on all the same: by its hash.
    dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
}

#[test]
fn next_connection_of_a_client_that_closed_begins_as_one() {
    let mut a = node_a(Dispatch::Option);
    for flags in ["S", "A", "FA", "S"] {
        dispatched(&mut a, &tcp(CLIENT, FRONTEND, flags).build());
    }
    assert_eq!((one(&a).life.state(), one(&a).packets.0), (FlowState::Opening, 1));
}

#[test]
fn flow_stays_with_its_backend_when_tables_change_and_more_backends_come() {
    for form in FORMS {
        let of = |world: World, backends: &[(std::net::IpAddr, u16)]| {
            world
                .with_service(FrontendKind::LoadBalancer, "203.0.113.9", 80, backends)
                .with_direct(form, &NODES)
        };
        let few = [(pod4(1), 8080)];
        let many: Vec<_> = (1..=3).map(|n| (pod4(n), 8080)).collect();
        let mut a = Simulation::single(&of(a_world(form), &few).tables());
        let mut b = Simulation::single(&of(b_world(form), &few).tables());
        let (clients, service) = (1000..1030, "203.0.113.9:80");
        let ask = |a: &mut Simulation, b: &mut Simulation, l4_port: u16, flags: &str| {
            let client = format!("192.0.2.7:{l4_port}");
            let wire = dispatched(a, &tcp(&client, service, flags).build());
            let (port, frame) = b.forward(UPLINK, &wire);
            assert_eq!(seen(&frame).source, at(&client));
            port
        };
        for client in clients.clone() {
            assert_eq!(ask(&mut a, &mut b, client, "S"), pod_port(1));
            assert_eq!(ask(&mut a, &mut b, client, "A"), pod_port(1));
        }
        a.publish(&of(a_world(form), &many).next_generation().tables());
        b.publish(&of(b_world(form), &many).next_generation().tables());
        for client in clients {
            assert_eq!(ask(&mut a, &mut b, client, "PA"), pod_port(1), "{form:?}");
        }
        let others: std::collections::BTreeSet<_> =
            (2000..2030).map(|client| ask(&mut a, &mut b, client, "S")).collect();
        assert!(others.len() > 1, "new ones go to others as well: {others:?}");
    }
}

/// Those of the cluster would come to B with an address that nobody outside may have.
#[test]
fn clients_of_the_cluster_and_others_take_the_way_by_translation() {
    for form in FORMS {
        let mut a = node_a(form);
        for client in ["10.0.0.9:1000", "10.1.7.7:1000"] {
            let (port, frame) = a.forward(UPLINK, &tcp(client, FRONTEND, "S").build());
            let sent = seen(&frame);
            assert_eq!(port, UPLINK);
            assert_eq!(
                (sent.source.ip(), sent.destination),
                (crate::ip(crate::A[0]), at("10.1.0.2:8080"))
            );
        }
        assert_eq!(a.sum(|counters| counters.dispatched.get()), 0);
        assert_eq!(a.sum(|counters| counters.flows_masqueraded.get()), 2);
    }
}

#[test]
fn services_without_direct_return_are_translated_beside_those_with_it() {
    for form in FORMS {
        let world = a_world(form).with_service(
            FrontendKind::LoadBalancer,
            "203.0.113.50",
            80,
            &[(pod4(2), 8080)],
        );
        let mut a = Simulation::single(&world.tables());
        let (_, frame) = a.forward(UPLINK, &tcp(CLIENT, "203.0.113.50:80", "S").build());
        assert_eq!(seen(&frame).source.ip(), crate::ip(crate::A[0]));
    }
}

#[test]
fn backend_on_the_node_itself_needs_nobody_else() {
    for form in FORMS {
        let mut b = node_b(form);
        let (port, frame) = b.forward(UPLINK, &tcp(CLIENT, FRONTEND, "S").build());
        assert_eq!((port, seen(&frame).destination), (pod_port(2), at("10.1.0.2:8080")));
        assert_eq!(b.sum(|counters| counters.dispatched.get() + counters.directed.get()), 0);
        // And a connection that the network moves to the other node goes on.
        let wire = dispatched(&mut node_a(form), &tcp(CLIENT, FRONTEND, "A").build());
        let (port, _) = b.forward(UPLINK, &wire);
        assert_eq!((port, b.flows().len()), (pod_port(2), 1), "{form:?}");
    }
}

#[test]
fn policy_judges_the_client_and_the_backend() {
    for form in FORMS {
        let world = b_world(form).with_ingress_only_from(2, &[1], 8080..=8080);
        let mut b = Simulation::single(&world.tables());
        let wire = dispatched(&mut node_a(form), &tcp(CLIENT, FRONTEND, "S").build());
        b.expect_drop(UPLINK, &wire, DropReason::PolicyIngress);
        // Newly denied, it ends.
        let mut b = node_b(form);
        b.forward(UPLINK, &wire);
        b.publish(&world.next_generation().tables());
        let wire = dispatched(&mut node_a(form), &tcp(CLIENT, FRONTEND, "A").build());
        b.expect_drop(UPLINK, &wire, DropReason::PolicyIngress);
    }
}

#[test]
fn datagrams_follow_the_last_choice_of_their_node() {
    for form in FORMS {
        let services = |world: World, backend: u8| {
            let backends = [(pod4(1), 8080), (pod4(3), 8080)];
            let id = dataplane::lb::ServiceId(12);
            let one = [(pod4(backend), 8080)];
            let world =
                world.with_service(FrontendKind::LoadBalancer, "203.0.113.9", 80, &backends);
            let world = if backend == 0 { world } else { world.with_backends_of(id, &one, &[]) };
            world.with_direct(form, &NODES)
        };
        let mut b = Simulation::single(&services(b_world(form), 0).tables());
        for backend in [1, 3, 1] {
            let mut a = Simulation::single(&services(a_world(form), backend).tables());
            let wire = dispatched(&mut a, &udp(CLIENT, "203.0.113.9:80").build());
            let (port, _) = b.forward(UPLINK, &wire);
            assert_eq!(port, pod_port(backend), "{form:?}");
            assert_eq!(b.flows().len(), 1);
        }
    }
}

/// What was dispatched cannot be translated afterwards: whoever answers it answers another address.
#[test]
fn flows_end_when_direct_return_does() {
    let mut a = node_a(Dispatch::Ipip);
    dispatched(&mut a, &tcp(CLIENT, FRONTEND, "S").build());
    dispatched(&mut a, &tcp(CLIENT, FRONTEND, "A").build());
    a.publish(
        &crate::with_services(World::with_pods(0).as_node(crate::A)).next_generation().tables(),
    );
    a.expect_drop(UPLINK, &tcp(CLIENT, FRONTEND, "A").build(), DropReason::NoFlow);
    let (_, frame) = a.forward(UPLINK, &tcp(CLIENT, FRONTEND, "S").build());
    assert_eq!(seen(&frame).source.ip(), crate::ip(crate::A[0]));
}

/// What a stateless frontend is for: a node that dies takes nothing with it that another does not find by
/// the tuple's hash.
#[test]
fn connections_go_on_by_another_node_when_the_one_with_their_frontend_dies() {
    for form in FORMS {
        let backends: Vec<_> = (1..=3).map(|n| (pod4(n), 8080)).collect();
        let of = |world: World| {
            world
                .with_service(FrontendKind::LoadBalancer, "203.0.113.9", 80, &backends)
                .with_direct(form, &[NODES[0], NODES[2], ("10.0.0.4", "10.1.4.0/24")])
        };
        let other = World::with_pods(0).as_node(["10.0.0.4", "fd00::4"]).with_neighbour("10.0.0.1");
        let other = of(crate::with_services(other));
        let mut first = Simulation::single(&of(a_world(form)).tables());
        let mut second = Simulation::single(&other.tables());
        let mut b = Simulation::single(&of(b_world(form)).tables());
        let mut ask = |a: &mut Simulation, l4_port: u16, flags: &str| {
            let client = format!("192.0.2.7:{l4_port}");
            let wire = dispatched(a, &tcp(&client, "203.0.113.9:80", flags).build());
            let (port, frame) = b.forward(UPLINK, &wire);
            assert_eq!(seen(&frame).source, at(&client));
            port
        };
        let clients = 1000..1060;
        let begun: Vec<_> = clients
            .clone()
            .map(|client| {
                let port = ask(&mut first, client, "S");
                assert_eq!(ask(&mut first, client, "A"), port);
                port
            })
            .collect();
        drop(first);
        let gone_on: Vec<_> = clients.map(|client| ask(&mut second, client, "PA")).collect();
        assert_eq!(begun, gone_on, "{form:?}");
        assert!(begun.iter().any(|port| *port != begun[0]), "several backends");
        assert_eq!(b.flows().len(), 60);
    }
}
