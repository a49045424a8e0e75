//! Services that are marked stateless: node A, and any other with their frontends, sends each packet on by
//! its hash and remembers nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::direct::Dispatch;
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::{icmp_error, read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4, pod6};

use crate::{Case, FORMS, NODES, a_world, at, b_world, cases, dispatched, ip, node_b, seen};

const SERVICES: [&str; 2] = ["203.0.113.9:80", "[2001:db8:113::9]:80"];

fn client(family: usize, l4_port: u16) -> String {
    ["192.0.2.7:", "[2001:db8::7]:"][family].to_owned() + &l4_port.to_string()
}

/// With a service of these pods on node B, and all others.
fn with_pods(world: World, form: Dispatch, pods: &[u8]) -> World {
    with_direct_pods(world, form, pods).without_flows_at_frontends()
}

fn with_direct_pods(world: World, form: Dispatch, pods: &[u8]) -> World {
    let of = |pod: fn(u8) -> IpAddr| pods.iter().map(|n| (pod(*n), 8080)).collect::<Vec<_>>();
    let nodes = [&NODES[..], &[("10.0.0.4", "10.1.4.0/24"), ("fd00::4", "fd01:4::/64")]].concat();
    world
        .with_service(FrontendKind::LoadBalancer, "203.0.113.9", 80, &of(pod4))
        .with_service(FrontendKind::LoadBalancer, "2001:db8:113::9", 80, &of(pod6))
        .with_direct(form, &nodes)
}

fn a(form: Dispatch) -> Simulation {
    Simulation::single(&with_pods(a_world(form), form, &[1, 2, 3]).tables())
}

/// Another node with the same frontends, which has seen nothing.
fn other(form: Dispatch) -> Simulation {
    let world = World::with_pods(0).as_node(["10.0.0.4", "fd00::4"]);
    let world = crate::B.iter().fold(world, |world, own| world.with_neighbour(own));
    Simulation::single(&with_pods(crate::with_services(world), form, &[1, 2, 3]).tables())
}

fn b(form: Dispatch) -> Simulation {
    Simulation::single(&with_pods(b_world(form), form, &[1, 2, 3]).tables())
}

/// The number of the pod that a client's frame comes to by way of both.
fn by_way_of(a: &mut Simulation, b: &mut Simulation, frame: &[u8]) -> u8 {
    let wire = dispatched(a, frame);
    let (port, out) = b.forward(UPLINK, &wire);
    assert_eq!(seen(&out).source, seen(frame).source);
    (1..=3).find(|n| port == pod_port(*n)).expect("a pod")
}

#[test]
fn every_packet_of_a_connection_goes_to_one_backend_by_whichever_node_and_leaves_nothing_there() {
    for form in FORMS {
        let (mut one, mut two, mut b) = (a(form), other(form), b(form));
        let mut chosen = BTreeSet::new();
        for (family, service) in SERVICES.into_iter().enumerate() {
            for l4_port in 1000..1040 {
                let client = client(family, l4_port);
                let packet = |flags: &str| tcp(&client, service, flags).build();
                let backend = by_way_of(&mut one, &mut b, &packet("S"));
                chosen.insert(backend);
                // A reset too: it begins nothing, and ends the backend's connection.
                for (nodes, flags) in ["A", "PA", "A", "FA", "A", "R"].iter().enumerate() {
                    let by = if nodes % 2 == 0 { &mut two } else { &mut one };
                    assert_eq!(by_way_of(by, &mut b, &packet(flags)), backend, "{form:?} {flags}");
                }
                let datagram = udp(&client, service).build();
                let backend = by_way_of(&mut one, &mut b, &datagram);
                assert_eq!(by_way_of(&mut two, &mut b, &datagram), backend, "{form:?}");
            }
        }
        assert_eq!(chosen.len(), 3);
        for node in [&one, &two] {
            assert!(node.flows().is_empty(), "{form:?}");
            assert_eq!(node.sum(|counters| counters.flows_created.get()), 0);
            let without = node.sum(|counters| counters.dispatched_without_flow.get());
            assert_eq!(without, node.sum(|counters| counters.dispatched.get()));
        }
        assert_eq!(b.flows().len(), 160);
    }
}

#[test]
fn every_frontend_kind_is_served_so() {
    for form in FORMS {
        let mut a = Simulation::single(&a_world(form).without_flows_at_frontends().tables());
        let mut b = Simulation::single(&b_world(form).without_flows_at_frontends().tables());
        for case in cases() {
            for flags in ["S", "A", "R"] {
                let wire = dispatched(&mut a, &tcp(case.client, case.frontend, flags).build());
                let (port, frame) = b.forward(UPLINK, &wire);
                assert_eq!((port, seen(&frame).destination), (case.port, at(case.backend)));
            }
        }
        // Geneve needs to know behind which node a backend is: what it is not told of is translated.
        let is_untold = |case: &&Case| form == Dispatch::Geneve && case.backend.contains("fd00::1");
        assert_eq!(a.flows().len(), cases().iter().filter(is_untold).count(), "{:?}", a.flows());
        assert_eq!(b.flows().len(), cases().len());
    }
}

/// There is no flow that a worker owns.
#[test]
fn no_packet_is_handed_on() {
    for form in FORMS {
        let tables = with_pods(a_world(form), form, &[1, 2, 3]).tables();
        let mut a = Simulation::new(4, 64, &tables);
        let mut b = b(form);
        for l4_port in 1000..1200 {
            let frame = tcp(&client(0, l4_port), SERVICES[0], "PA").build();
            let out = a.pass_to(usize::from(l4_port) % 4, UPLINK, &frame);
            assert_eq!(out.len(), 1, "more than the table has room for: {}", a.moved_counters());
            b.forward(UPLINK, &out[0].1);
        }
        let handed = |counters: &dataplane::counters::WorkerCounters| counters.handed_out.get();
        assert_eq!((a.sum(handed), a.flows().len()), (0, 0));
    }
}

#[test]
fn fragments_follow_their_first_by_its_hash() {
    for form in FORMS {
        let (mut one, mut two, mut b) = (a(form), other(form), b(form));
        for (family, service) in SERVICES.into_iter().enumerate() {
            for l4_port in 1000..1010 {
                let whole = udp(&client(family, l4_port), service);
                let backend = by_way_of(&mut one, &mut b, &whole.clone().build());
                let piece = |identification, offset, more| {
                    let payload = vec![7; if more { 64 } else { 24 }];
                    whole.clone().payload(&payload).fragment(identification, offset, more).build()
                };
                // In order by one node, the other way round by the other.
                let id = u32::from(l4_port);
                let first = dispatched(&mut one, &piece(id, 0, true));
                let later = dispatched(&mut one, &piece(id, 72, false));
                for wire in [first, later] {
                    assert_eq!(b.forward(UPLINK, &wire).0, pod_port(backend), "{form:?}");
                }
                assert!(two.pass(UPLINK, &piece(id + 100, 72, false)).is_empty(), "it waits");
                let out = two.pass(UPLINK, &piece(id + 100, 0, true));
                assert_eq!(out.len(), 2, "{form:?}: {}", two.moved_counters());
                let mut ports = BTreeSet::new();
                for (_, wire) in out {
                    ports.extend(b.pass(UPLINK, &wire).into_iter().map(|(port, _)| port));
                }
                assert_eq!(ports, [pod_port(backend)].into(), "{form:?}: {}", b.moved_counters());
            }
        }
        assert!(one.flows().is_empty() && two.flows().is_empty());
    }
}

#[test]
fn path_mtu_of_the_client_reaches_the_backend_by_a_node_that_never_saw_it() {
    for form in FORMS {
        let (mut one, mut two, mut b) = (a(form), other(form), b(form));
        for family in 0..2 {
            for l4_port in 1000..1010 {
                let (client, service) = (client(family, l4_port), SERVICES[family]);
                let pod = by_way_of(&mut one, &mut b, &tcp(&client, service, "S").build());
                let backend = if family == 0 { pod4(pod) } else { pod6(pod) };
                let from = std::net::SocketAddr::new(backend, 8080).to_string();
                let back = tcp(&from, &client, "SA").payload(&[0; 600]).build();
                let (_, answered) = b.forward(pod_port(pod), &back);
                let (router, kind) = match family {
                    0 => (ip("198.51.100.1"), (3, 4, 1400)),
                    _ => (ip("2001:db8:51::1"), (2, 0, 1400)),
                };
                let error = |to: IpAddr| icmp_error(router, to, kind, &answered).build();
                let wire = dispatched(&mut two, &error(at(service).ip()));
                let (port, frame) = b.forward(UPLINK, &wire);
                let told = seen(&frame);
                assert_eq!((port, told.destination.ip()), (pod_port(pod), backend), "{form:?}");
                let quoted = read_quoted(&told).expect("a quote");
                assert_eq!((quoted.source, quoted.destination), (at(&from), at(&client)));
                // To another than who sent what it quotes, it is about nothing here.
                let elsewhere = ip(["203.0.113.1", "2001:db8:113::1"][family]);
                two.expect_drop(UPLINK, &error(elsewhere), DropReason::IcmpUnrelated);
            }
        }
        assert!(two.flows().is_empty());
    }
}

#[test]
fn what_is_too_long_with_what_is_added_is_answered() {
    for form in FORMS {
        let mut a = a(form);
        for family in 0..2 {
            let packet = udp(&client(family, 1000), SERVICES[family])
                .payload(&[1; 1470][20 * family..])
                .build();
            let (port, frame) = a.forward(UPLINK, &packet);
            let told = seen(&frame);
            assert_eq!((port, told.destination.ip()), (UPLINK, at(&client(family, 1000)).ip()));
            let quoted = read_quoted(&told).expect("a quote");
            assert_eq!(quoted.destination, at(SERVICES[family]), "what the client sent");
        }
        assert_eq!(a.dropped(DropReason::TooBig), 2);
    }
}

#[test]
fn clients_of_the_cluster_and_backends_here_have_flows_as_ever() {
    for form in FORMS {
        let mut a = a(form);
        let (_, frame) = a.forward(UPLINK, &tcp("10.1.7.7:1000", SERVICES[0], "S").build());
        assert_eq!(seen(&frame).source.ip(), ip(crate::A[0]));
        assert_eq!(a.flows().len(), 1);
        let mut b = b(form);
        for l4_port in 1000..1010 {
            let (port, _) = b.forward(UPLINK, &tcp(&client(0, l4_port), SERVICES[0], "S").build());
            assert_ne!(port, UPLINK);
        }
        // A SYN-ACK answers nothing that anybody here has asked.
        let answer = tcp(&client(0, 9), SERVICES[0], "SA").build();
        a.expect_drop(UPLINK, &answer, DropReason::NoFlow);
        assert_eq!((b.flows().len(), b.sum(|counters| counters.dispatched.get())), (10, 0));
    }
}

#[test]
fn policy_judges_the_client_on_the_node_of_the_backend() {
    for form in FORMS {
        let mut a = a(form);
        let world = with_pods(b_world(form), form, &[1, 2, 3]);
        let world = (1..=3).fold(world, |world, pod| {
            world.with_ingress_only_from(pod, &[if pod == 1 { 2 } else { 1 }], 8080..=8080)
        });
        let mut b = Simulation::single(&world.tables());
        for flags in ["S", "A"] {
            let wire = dispatched(&mut a, &tcp(&client(0, 1000), SERVICES[0], flags).build());
            b.expect_drop(UPLINK, &wire, DropReason::PolicyIngress);
        }
    }
}

/// Its connections come to others, which reset them. What is chosen is what any node with the same backends
/// chooses, with flows or without.
#[test]
fn where_a_backend_goes_its_connections_are_chosen_anew_by_their_hash() {
    for form in FORMS {
        let with = |pods: &[u8]| Simulation::single(&with_pods(a_world(form), form, pods).tables());
        let (mut before, mut after) = (with(&[1, 2, 3]), with(&[1, 3]));
        let world = with_direct_pods(a_world(form), form, &[1, 3]);
        let mut keeping = Simulation::single(&world.tables());
        let mut b = b(form);
        for l4_port in 1000..1100 {
            let frame = tcp(&client(0, l4_port), SERVICES[0], "PA").build();
            let first = by_way_of(&mut before, &mut b, &frame);
            let wire = dispatched(&mut after, &frame);
            // Node B knows the connection, and leaves it where it is.
            assert_eq!(b.forward(UPLINK, &wire).0, pod_port(first));
            let chosen = node_b_of(form).forward(UPLINK, &wire).0;
            assert_ne!(chosen, pod_port(2));
            let wire = dispatched(&mut keeping, &frame);
            assert_eq!(node_b_of(form).forward(UPLINK, &wire).0, chosen, "{form:?}");
        }
    }
}

fn node_b_of(form: Dispatch) -> Simulation {
    Simulation::new(1, 64, &with_pods(b_world(form), form, &[1, 2, 3]).tables())
}

/// A connection that was opened before keeps its entry; what follows it between the same ends must not be
/// led by what is left of that.
#[test]
fn a_service_that_is_marked_later_keeps_what_is_open_and_no_more() {
    for form in FORMS {
        let with = |pods: &[u8]| with_pods(a_world(form), form, pods);
        let keeping = |pods: &[u8]| with_direct_pods(a_world(form), form, pods);
        let mut b = b(form);
        let l4_ports = 1000..1040;
        // While there was one pod, its flows are its.
        let mut a = Simulation::single(&keeping(&[1]).tables());
        let packet = |l4_port, flags: &str| tcp(&client(0, l4_port), SERVICES[0], flags).build();
        for l4_port in l4_ports.clone() {
            for flags in ["S", "A"] {
                assert_eq!(by_way_of(&mut a, &mut b, &packet(l4_port, flags)), 1);
            }
        }
        a.publish(&with(&[1, 2, 3]).next_generation().tables());
        for l4_port in l4_ports.clone() {
            assert_eq!(by_way_of(&mut a, &mut b, &packet(l4_port, "PA")), 1, "it stays");
            by_way_of(&mut a, &mut b, &packet(l4_port, "FA"));
        }
        let mut chosen = BTreeSet::new();
        for l4_port in l4_ports {
            // A node B that knew the connection would leave it where it is.
            let [first, next] = ["S", "A"]
                .map(|flags| by_way_of(&mut a, &mut node_b_of(form), &packet(l4_port, flags)));
            assert_eq!(first, next, "{form:?}");
            chosen.insert(first);
        }
        assert!(chosen.len() > 1);
        a.wait(Duration::from_secs(130));
        assert!(a.flows().is_empty(), "nothing is left of what was kept");
    }
}

#[test]
fn under_pressure_connections_go_on_and_new_ones_are_shed() {
    for form in FORMS {
        let mut a = a(form);
        a.wire().borrow_mut().is_pressed = true;
        let mut of = |flags: &str| {
            a.now = a.now.after(Duration::from_millis(4));
            (1000..1020).for_each(|l4_port| {
                a.deliver(0, UPLINK, &tcp(&client(0, l4_port), SERVICES[0], flags).build());
            });
            a.tick();
            a.settle();
            a.take_outgoing().len()
        };
        (0..4).for_each(|_| assert_eq!(of("A"), 20));
        assert_eq!(of("A"), 20, "{form:?}");
        assert_eq!(of("S"), 1, "{form:?}");
        assert_eq!(a.dropped(DropReason::Overload), 19);
    }
}

#[test]
fn what_waits_for_a_neighbour_goes_on_once_it_is_known() {
    for form in FORMS {
        let world = World::with_pods(0).as_node(crate::A);
        let unknown = with_pods(crate::with_services(world), form, &[1, 2, 3]);
        let mut a = Simulation::single(&unknown.tables());
        let frame = tcp(&client(0, 1000), SERVICES[0], "PA").build();
        let out = a.pass(UPLINK, &frame);
        if out.is_empty() {
            a.publish(&with_pods(a_world(form), form, &[1, 2, 3]).next_generation().tables());
            a.settle();
            assert_eq!(a.take_outgoing().len(), 1, "{form:?}: {}", a.moved_counters());
        }
        assert!(a.flows().is_empty());
        assert!(node_b(form).flows().is_empty());
    }
}
