//! Failures of the pipeline that were found once, each kept as a case with what it was.

use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::forwarding::{NextHopId, Route};
use dataplane::identity::Identity;
use dataplane::lb::FrontendKind;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::policy::{PortRule, RuleId, VerdictTable};
use dataplane::tables::Tables;
use dataplane::time::Seconds;
use xskiff_tests::packet_builder::{icmp_error, ping, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, address, pod_identity, pod_port, pod4};

/// The tables of `world`, changed by hand where [`World`] has no word for it.
fn changed(world: &World, change: impl FnOnce(&mut Tables)) -> Arc<Tables> {
    let mut tables = (*world.tables()).clone();
    change(&mut tables);
    Arc::new(tables)
}

fn only_pod(n: u8) -> FlushFilter {
    FlushFilter::of(Prefix::host(pod4(n)))
}

/// The node's identity may reach every pod, so its address on the wire was a key to all of them.
#[test]
fn nodes_own_address_from_outside_is_refused() {
    let world = World::with_pods(1).with_ingress_only_from(1, &[], 1..=1);
    let mut node = Simulation::single(&world.tables());
    for (from, to) in [("10.0.0.1:9", "10.1.0.1:53"), ("[fd00::1]:9", "[fd01::1]:53")] {
        let forged = tcp(from, to, "S").build();
        node.expect_drop(UPLINK, &forged, DropReason::LocalAddressFromUplink);
        node.forward(HOST, &forged);
        node.expect_drop(UPLINK, &forged, DropReason::LocalAddressFromUplink);
    }
}

/// A router's report was accepted from outside also about a flow that never leaves the node.
#[test]
fn icmp_error_from_outside_about_a_flow_between_local_pods_is_refused() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let (_, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.0.2:53").build());
    let error = icmp_error(address("192.0.2.9"), pod4(1), (3, 3, 0), &sent).build();
    node.expect_drop(UPLINK, &error, DropReason::LocalAddressFromUplink);
}

/// The port a flow's far end speaks by was looked up by next hops that the new tables had
/// numbered anew.
#[test]
fn icmp_error_right_after_next_hops_were_renumbered_still_arrives() {
    let world = World::with_pods(1);
    let mut node = Simulation::single(&world.tables());
    let (_, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    node.publish(&changed(&world.next_generation(), |tables| {
        let forwarding = Arc::make_mut(&mut tables.forwarding);
        let last = forwarding.next_hops.len() - 1;
        forwarding.next_hops.reverse();
        let moved = |id: &mut NextHopId| {
            id.0 = u16::try_from(last - usize::from(id.0)).expect("few next hops");
        };
        forwarding.endpoints.values_mut().for_each(moved);
        forwarding.neighbours.values_mut().for_each(moved);
        forwarding.host.as_mut().into_iter().for_each(moved);
        let routes = forwarding.routes.iter().map(|(prefix, route)| {
            let mut route = *route;
            if let Route::Via(id) = &mut route {
                moved(id);
            }
            (prefix, route)
        });
        forwarding.routes = routes.collect();
    }));
    let error = icmp_error(address("192.0.2.254"), address("10.0.0.1"), (3, 1, 0), &sent).build();
    assert_eq!(node.forward(UPLINK, &error).0, pod_port(1));
}

/// An error for another address than its quoted packet's sender was turned round to that sender.
#[test]
fn icmp_error_sent_to_another_than_the_quoted_sender_is_unrelated() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    let (_, sent) = node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    let error = icmp_error(address("192.0.2.254"), pod4(3), (3, 1, 0), &sent).build();
    node.expect_drop(UPLINK, &error, DropReason::IcmpUnrelated);
}

/// A second flush began where the first one ended: the flows of a removed pod lived on.
#[test]
fn flushes_under_way_at_once_are_all_carried_out() {
    let mut node = Simulation::single(&World::with_pods(20).tables());
    for pod in 2..=20 {
        for client_port in 1..=40 {
            let to = format!("10.1.0.{pod}:53");
            node.forward(pod_port(1), &udp(&format!("10.1.0.1:{client_port}"), &to).build());
        }
    }
    for pod in 2..=19 {
        node.send(|| Command::Flush(only_pod(pod)));
    }
    (0..20).for_each(|_| node.tick());
    let left = node.flows();
    assert!(left.iter().all(|flow| flow.original.destination() == pod4(20)), "flows are left");
    assert_eq!(left.len(), 40);
}

/// Packets of a flow past its deadline were dropped by every worker but its owner until the
/// owner's sweep came by.
#[test]
fn expired_flow_is_opened_anew_whichever_worker_receives_its_next_packet() {
    for client_port in 1..=16 {
        let mut node = Simulation::new(4, 1000, &World::with_pods(2).tables());
        let frame = udp(&format!("10.1.0.1:{client_port}"), "10.1.0.2:53").build();
        node.forward(pod_port(1), &frame);
        node.now = node.now.after(Duration::from_secs(40));
        let out = node.pass_to(client_port % 4, pod_port(1), &frame);
        assert_eq!(out.len(), 1, "{}", node.moved_counters());
    }
}

/// Few packets in many vectors overran an inbox of which four vectors were read in each tick.
#[test]
fn sixteen_workers_that_hand_on_few_packets_each_lose_none() {
    let mut node = Simulation::new(16, 20_000, &World::with_pods(2).tables());
    let mut client_port = 1000;
    for _ in 0..100 {
        for worker in 0..16 {
            for _ in 0..32 {
                let from = format!("10.1.0.1:{client_port}");
                node.deliver(worker, pod_port(1), &udp(&from, "10.1.0.2:53").build());
                client_port += 1;
                if client_port == 20_000 {
                    client_port = 1000;
                }
            }
        }
        node.tick();
    }
    assert_eq!(node.dropped(DropReason::HandoffFull), 0, "{}", node.moved_counters());
}

fn two_ways_to_one_neighbour(world: &World) -> Arc<Tables> {
    changed(world, |tables| {
        let forwarding = Arc::make_mut(&mut tables.forwarding);
        let gateway = forwarding.neighbours[&(UPLINK, address("10.0.0.2"))];
        let mut unresolved = forwarding.next_hops[usize::from(gateway.0)];
        unresolved.destination = None;
        let id = NextHopId(u16::try_from(forwarding.next_hops.len()).expect("few next hops"));
        forwarding.next_hops.push(unresolved);
        let everything = Prefix::new(address("0.0.0.0"), 0).expect("a prefix");
        forwarding.routes.insert(everything, Route::Via(id));
    })
}

/// A packet whose neighbour was known by one next hop and unknown by another was tried for ever
/// within one tick.
#[test]
fn held_packet_is_tried_once_for_each_publish() {
    let world = World::with_pods(1);
    let mut node = Simulation::single(&two_ways_to_one_neighbour(&world));
    node.pass(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    node.publish(&two_ways_to_one_neighbour(&world));
    assert_eq!(node.sum(|counters| counters.held.get()), 1);
}

/// Each try set a new deadline, so that a packet could wait for as long as tables changed.
#[test]
fn publishes_do_not_prolong_how_long_a_packet_is_held() {
    let world = World::with_pods(1);
    let mut node = Simulation::single(&two_ways_to_one_neighbour(&world));
    node.pass(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    for _ in 0..4 {
        node.wait(Duration::from_secs(1));
        node.publish(&two_ways_to_one_neighbour(&world));
    }
    assert_eq!(node.dropped(DropReason::Unresolved), 1, "{}", node.moved_counters());
}

/// Two flows shared a reply tuple when the one through the service came first, and the replies of
/// the second came from the service's address.
#[test]
fn connection_to_a_backend_beside_one_through_its_service_keeps_its_replies() {
    let world = || {
        World::with_pods(2).with_service(
            FrontendKind::ClusterIp,
            "10.2.0.1",
            80,
            &[(pod4(2), 8080)],
        )
    };
    let service = tcp("10.1.0.1:1000", "10.2.0.1:80", "S").build();
    let direct = tcp("10.1.0.1:1000", "10.1.0.2:8080", "S").build();
    for order in [[&service, &direct], [&direct, &service]] {
        let mut node = Simulation::single(&world().tables());
        for opening in order {
            let (port, frame) = node.forward(pod_port(1), opening);
            let out = read(&frame).expect("frame");
            assert_eq!((port, out.source.ip()), (pod_port(2), pod4(1)), "the address is kept");
            let reply = tcp("10.1.0.2:8080", &out.source.to_string(), "SA").build();
            let back = read(&node.forward(pod_port(2), &reply).1).expect("frame");
            let asked = read(opening).expect("frame");
            assert_eq!((back.source, back.destination), (asked.destination, asked.source));
        }
    }
}

/// One segment without a handshake earned an entry for five days, which nothing evicts.
#[test]
fn segment_in_mid_stream_is_established_only_when_the_other_side_spoke() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.1.0.2:80", "A").build());
    let life = node.flows()[0].life;
    assert_eq!(life.state(), FlowState::Opening);
    assert!(life.deadline_seconds() < 200, "deadline {}", life.deadline_seconds());
    node.forward(pod_port(2), &tcp("10.1.0.2:80", "10.1.0.1:1000", "A").build());
    assert_eq!(node.flows()[0].life.state(), FlowState::Established);
}

/// First fragments that policy refused filled the table that all others need.
#[test]
fn refused_first_fragments_take_no_room() {
    let world = World::with_pods(3).with_no_egress(1);
    let mut node = Simulation::single(&world.tables());
    for identification in 0..5000 {
        let first = udp("10.1.0.1:9", "10.1.0.2:53").payload(&[1; 64]);
        let first = first.fragment(identification, 0, true).build();
        node.expect_drop(pod_port(1), &first, DropReason::PolicyEgress);
    }
    let first = udp("10.1.0.3:9", "10.1.0.2:53").payload(&[1; 64]).fragment(1, 0, true).build();
    let later = udp("10.1.0.3:9", "10.1.0.2:53").payload(&[2; 64]).fragment(1, 72, false).build();
    node.forward(pod_port(3), &first);
    node.forward(pod_port(3), &later);
}

/// A fragment without ports followed a flow past its deadline and prolonged it.
#[test]
fn later_fragment_does_not_revive_an_expired_flow() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.publish(&changed(&World::with_pods(2), |tables| {
        tables.timeouts.udp = Seconds(2);
    }));
    let first = udp("10.1.0.1:9", "10.1.0.2:53").payload(&[1; 64]).fragment(1, 0, true).build();
    node.forward(pod_port(1), &first);
    node.now = node.now.after(Duration::from_secs(3));
    let later = udp("10.1.0.1:9", "10.1.0.2:53").payload(&[2; 64]).fragment(1, 72, false).build();
    node.expect_drop(pod_port(1), &later, DropReason::FragmentUnknown);
}

fn service_with(backend: u8) -> World {
    World::with_pods(3).with_service(
        FrontendKind::ClusterIp,
        "10.2.0.1",
        80,
        &[(pod4(backend), 8080)],
    )
}

/// Opens a connection through [`service_with`] and ends it by two FINs.
fn finished_connection(node: &mut Simulation) {
    let backend = read(&node.forward(pod_port(1), &to_service("S")).1).expect("frame").destination;
    let from = |flags| tcp(&backend.to_string(), "10.1.0.1:1000", flags).build();
    node.forward(pod_port(2), &from("SA"));
    node.forward(pod_port(1), &to_service("A"));
    node.forward(pod_port(1), &to_service("FA"));
    node.forward(pod_port(2), &from("FA"));
    assert_eq!(node.flows()[0].life.state(), FlowState::TimeWait);
}

fn to_service(flags: &str) -> Vec<u8> {
    tcp("10.1.0.1:1000", "10.2.0.1:80", flags).build()
}

/// A client that used its port again within the TIME-WAIT of the last connection was sent to that
/// connection's backend, also when the service had long left it.
#[test]
fn new_connection_from_a_reused_port_is_decided_anew() {
    let mut node = Simulation::single(&service_with(2).tables());
    finished_connection(&mut node);
    node.publish(&service_with(3).next_generation().tables());
    let (port, _) = node.forward(pod_port(1), &to_service("S"));
    assert_eq!(port, pod_port(3), "the service's backend now");
    assert_eq!(node.flows().len(), 1);
}

/// A SYN against the direction of a flow that was over passed as a part of it, unjudged.
#[test]
fn connection_against_the_direction_of_an_old_one_is_judged_by_itself() {
    let world = World::with_pods(2).with_no_egress(2);
    let mut node = Simulation::single(&world.tables());
    let there = |flags| tcp("10.1.0.1:1000", "10.1.0.2:80", flags).build();
    let back = |flags| tcp("10.1.0.2:80", "10.1.0.1:1000", flags).build();
    node.forward(pod_port(1), &there("S"));
    node.forward(pod_port(2), &back("SA"));
    node.forward(pod_port(1), &there("A"));
    node.expect_drop(pod_port(2), &back("S"), DropReason::InvalidState);
    node.forward(pod_port(1), &there("FA"));
    node.forward(pod_port(2), &back("FA"));
    node.expect_drop(pod_port(2), &back("S"), DropReason::PolicyEgress);
    node.forward(pod_port(1), &there("S"));
}

/// Packets to a pod that was gone went out to the gateway, which sent them back: a loop until the
/// TTL ended.
#[test]
fn packet_from_outside_to_nobody_here_is_not_sent_back_outside() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let out = node.pass(UPLINK, &udp("192.0.2.7:9", "10.1.0.200:53").build());
    assert!(out.iter().all(|(_, frame)| read(frame).expect("frame").icmp_type == 3), "{out:?}");
    assert_eq!(node.dropped(DropReason::NoRoute), 1, "{}", node.moved_counters());
}

/// A reply to a binding that had ended reached the host's stack, which reset the connection.
#[test]
fn reply_to_an_expired_binding_is_dropped_as_no_flow() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let (_, out) = node.forward(pod_port(1), &udp("10.1.0.1:9", "192.0.2.7:53").build());
    let own = read(&out).expect("frame").source;
    node.wait(Duration::from_secs(40));
    let reply = udp("192.0.2.7:53", &own.to_string()).build();
    node.expect_drop(UPLINK, &reply, DropReason::NoFlow);
    let (port, _) = node.forward(UPLINK, &ping(address("192.0.2.7"), own.ip(), own.port()).build());
    assert_eq!(port, HOST, "what may be the host's own goes there");
}

/// The same for a pod that had reached itself through its service, as the node.
#[test]
fn reply_of_a_pod_to_an_expired_binding_is_dropped_as_no_flow() {
    let mut node = Simulation::single(&service_with(1).tables());
    let (port, out) = node.forward(pod_port(1), &udp("10.1.0.1:9", "10.2.0.1:80").build());
    let own = read(&out).expect("frame").source;
    assert_eq!((port, own.ip()), (pod_port(1), address("10.0.0.1")));
    node.wait(Duration::from_secs(40));
    let reply = udp("10.1.0.1:8080", &own.to_string()).build();
    node.expect_drop(pod_port(1), &reply, DropReason::NoFlow);
}

/// Deadlines in whole seconds cut off up to a second of what RFC 4787 (REQ-5) promises.
#[test]
fn flow_lives_at_least_its_whole_time_out() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.now = node.now.after(Duration::from_millis(999));
    node.forward(pod_port(1), &udp("10.1.0.1:9", "10.1.0.2:53").build());
    node.now = node.now.after(Duration::from_millis(29_900));
    assert_eq!(node.flows().len(), 1);
}

/// One forged reset, whatever its sequence number, ended a connection that went on.
#[test]
fn connection_that_goes_on_both_ways_after_a_reset_is_kept() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |flags| tcp("10.1.0.1:1000", "192.0.2.7:80", flags).build();
    let (_, out) = node.forward(pod_port(1), &there("S"));
    let own = read(&out).expect("frame").source.to_string();
    let back = |flags| tcp("192.0.2.7:80", &own, flags).build();
    node.forward(UPLINK, &back("SA"));
    node.forward(pod_port(1), &there("A"));
    node.forward(UPLINK, &back("R"));
    assert_eq!(node.flows()[0].life.state(), FlowState::Closed);
    node.forward(pod_port(1), &there("A"));
    assert_eq!(node.flows()[0].life.state(), FlowState::Closed, "in flight when it was reset");
    node.forward(UPLINK, &back("A"));
    assert_eq!(node.flows()[0].life.state(), FlowState::Established);
    node.wait(Duration::from_secs(60));
    node.forward(pod_port(1), &there("A"));
}

/// The packet after the one at which a connection was denied passed as a reply in mid-stream.
#[test]
fn denied_connection_stays_denied_until_policy_allows_it_again() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let there = |flags| tcp("10.1.0.1:1000", "10.1.0.2:80", flags).build();
    let back = tcp("10.1.0.2:80", "10.1.0.1:1000", "A").build();
    node.forward(pod_port(1), &there("S"));
    node.forward(pod_port(2), &back);
    node.forward(pod_port(1), &there("A"));
    let denying = World::with_pods(2).with_ingress_only_from(2, &[], 1..=1).next_generation();
    node.publish(&denying.tables());
    for _ in 0..3 {
        node.expect_drop(pod_port(1), &there("PA"), DropReason::PolicyIngress);
        node.expect_drop(pod_port(2), &back, DropReason::PolicyIngress);
        node.wait(Duration::from_secs(60));
    }
    assert!(node.flows().is_empty());
    node.publish(&World::with_pods(2).next_generation().next_generation().tables());
    node.forward(pod_port(2), &back);
    assert_eq!(node.flows().len(), 1);
}

/// A node port answered on every address of the node, also where the configuration had it not.
#[test]
fn node_port_is_served_only_on_addresses_that_are_its_frontends() {
    let backends = [(pod4(1), 8080)];
    let world = World::with_pods(1).with_service(FrontendKind::NodePort, "", 30_080, &backends);
    let mut node = Simulation::single(&changed(&world, |tables| {
        let forwarding = Arc::make_mut(&mut tables.forwarding);
        forwarding.node_addresses.insert(address("10.0.0.11"), ());
    }));
    let (port, _) = node.forward(UPLINK, &tcp("192.0.2.7:9", "10.0.0.1:30080", "S").build());
    assert_eq!(port, pod_port(1));
    let (port, _) = node.forward(UPLINK, &tcp("192.0.2.7:9", "10.0.0.11:30080", "S").build());
    assert_eq!(port, HOST, "the host's own business");
}

/// A SYN-ACK that answered nothing opened a flow, in the direction opposite to the connection's.
#[test]
fn syn_ack_of_no_flow_opens_nothing() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let frame = tcp("10.1.0.2:80", "10.1.0.1:1000", "SA").build();
    node.expect_drop(pod_port(2), &frame, DropReason::NoFlow);
}

/// Whatever left by the host port went to "the node", so that an `ipBlock` with the node's address did
/// not allow a pod's egress to it.
#[test]
fn egress_to_the_own_node_is_judged_by_the_address_that_is_spoken_to() {
    let in_block = Identity(Identity::FIRST_COMPILED + 99);
    let world = World::with_pods(1).with_no_egress(1);
    let mut node = Simulation::single(&changed(&world, |tables| {
        let identities = Arc::make_mut(&mut tables.identities);
        identities.exact.insert(address("10.0.0.1"), in_block.into());
        let rule = RuleId(RuleId::FIRST_COMPILED);
        let everything = PortRule { protocol: None, l4_ports: 0..=u16::MAX, rule };
        let by_peer = [(in_block, Arc::from([everything]))].into_iter().collect();
        let table = VerdictTable { by_peer, ..VerdictTable::default() };
        let policy = Arc::make_mut(&mut tables.policy);
        policy.subjects.entry(pod_identity(1)).or_default().egress = Some(Arc::new(table));
    }));
    node.forward(pod_port(1), &tcp("10.1.0.1:9", "10.0.0.1:6443", "S").build());
    let other = tcp("[fd01::1]:9", "[fd00::1]:6443", "S").build();
    node.expect_drop(pod_port(1), &other, DropReason::PolicyEgress);
}
