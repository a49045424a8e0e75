//! What somebody who forges packets without seeing any can do to others' flows where nobody looks at
//! sequence numbers.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::lb::FrontendKind;
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{FrameBuilder, ping, pong, read, tcp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4};

const OUTSIDE: &str = "192.0.2.7:80";
const INSIDE: &str = "10.1.0.1:1000";

fn one(node: &mut Simulation, at: (usize, PortId), frame: &FrameBuilder) -> (PortId, Vec<u8>) {
    let mut out = node.pass_to(at.0, at.1, &frame.build());
    assert_eq!(out.len(), 1, "{}", node.moved_counters());
    out.remove(0)
}

/// A connection of pod 1 to the outside that stands, and its source as the outside sees it.
fn to_outside(node: &mut Simulation) -> String {
    let (_, frame) = one(node, (0, pod_port(1)), &tcp(INSIDE, OUTSIDE, "S"));
    let own = read(&frame).expect("whole").source.to_string();
    one(node, (0, UPLINK), &tcp(OUTSIDE, &own, "SA"));
    one(node, (0, pod_port(1)), &tcp(INSIDE, OUTSIDE, "A"));
    own
}

fn is_dropped(node: &mut Simulation, worker: usize, frame: &FrameBuilder, reason: DropReason) {
    let before = node.dropped(reason);
    let out = node.pass_to(worker, UPLINK, &frame.build());
    let dropped = node.dropped(reason) - before;
    assert_eq!((dropped, out.len()), (1, 0), "for {reason}:\n{}", node.moved_counters());
}

/// The SYN was refused after the entry had been removed for it: what its pod went on to send found no
/// flow, for good.
#[test]
fn forged_reset_and_syn_do_not_end_a_translated_connection() {
    for workers in 1..=4 {
        for by in 0..workers {
            let mut node = Simulation::new(workers, 1000, &World::with_pods(1).tables());
            let own = to_outside(&mut node);
            one(&mut node, (by, UPLINK), &tcp(OUTSIDE, &own, "R"));
            assert_eq!(node.flows()[0].life.state(), FlowState::Closed);
            let syn = tcp(OUTSIDE, &own, "S");
            is_dropped(&mut node, by, &syn, DropReason::InvalidState);
            node.wait(Duration::from_secs(3));
            is_dropped(&mut node, by, &syn, DropReason::NoFlow);
            let (port, frame) = one(&mut node, (by, pod_port(1)), &tcp(INSIDE, OUTSIDE, "A"));
            assert_eq!(port, UPLINK);
            assert_eq!(read(&frame).expect("whole").source.to_string(), own);
            assert_eq!(one(&mut node, (by, UPLINK), &tcp(OUTSIDE, &own, "A")).0, pod_port(1));
            assert_eq!(node.flows()[0].life.state(), FlowState::Established);
        }
    }
}

#[test]
fn other_side_of_a_connection_that_was_reset_opens_another_one_once_nobody_went_on() {
    for workers in 1..=4 {
        for by in 0..workers {
            let mut node = Simulation::new(workers, 1000, &World::with_pods(2).tables());
            let (from, to) = ("10.1.0.1:1000", "10.1.0.2:80");
            one(&mut node, (by, pod_port(1)), &tcp(from, to, "S"));
            one(&mut node, (0, pod_port(2)), &tcp(to, from, "SA"));
            one(&mut node, (by, pod_port(1)), &tcp(from, to, "A"));
            one(&mut node, (by, pod_port(2)), &tcp(to, from, "R"));
            let syn = tcp(to, from, "S").build();
            assert!(node.pass_to(by, pod_port(2), &syn).is_empty(), "too soon");
            assert_eq!(node.dropped(DropReason::InvalidState), 1);
            node.wait(Duration::from_secs(3));
            one(&mut node, (by, pod_port(2)), &tcp(to, from, "S"));
            let flows = node.flows();
            assert_eq!((flows.len(), flows[0].life.state()), (1, FlowState::Opening));
            assert_eq!(flows[0].original.source(), address("10.1.0.2"));
            assert_eq!(flows[0].original.source_port(), 80);
        }
    }
}

/// Whoever opened a connection needs not wait: a client uses its port again at once.
#[test]
fn client_that_was_reset_opens_the_next_connection_at_once() {
    let mut node = Simulation::new(2, 1000, &World::with_pods(1).tables());
    let own = to_outside(&mut node);
    one(&mut node, (1, UPLINK), &tcp(OUTSIDE, &own, "R"));
    one(&mut node, (1, pod_port(1)), &tcp(INSIDE, OUTSIDE, "S"));
    assert_eq!(node.flows()[0].life.state(), FlowState::Opening);
}

/// It made a black hole of a connection whose path takes less, or small packets of a fast one.
#[test]
fn syn_on_a_connection_that_stands_offers_nothing() {
    let world =
        World::with_pods(1).with_service(FrontendKind::NodePort, "", 30_080, &[(pod4(1), 8080)]);
    let mut node = Simulation::single(&world.tables());
    let (client, frontend) = ("192.0.2.9:2000", "10.0.0.1:30080");
    let at_uplink = (0, UPLINK);
    one(&mut node, at_uplink, &tcp(client, frontend, "S").offering_segment(1460));
    let answer = tcp("10.1.0.1:8080", client, "SA").offering_segment(1400);
    one(&mut node, (0, pod_port(1)), &answer);
    one(&mut node, at_uplink, &tcp(client, frontend, "A"));
    for offered in [8960, 536] {
        one(&mut node, at_uplink, &tcp(client, frontend, "S").offering_segment(offered));
        assert_eq!(node.flows()[0].life.segment_limit().bytes(), 1400);
    }
}

/// A request passed as part of a flow that policy had judged for the other direction.
#[test]
fn echo_requests_go_one_way_and_replies_the_other() {
    let (inside, outside) = (address("10.1.0.1"), address("192.0.2.7"));
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let at_pod = (0, pod_port(1));
    let (_, frame) = one(&mut node, at_pod, &ping(inside, outside, 7));
    let (own, identifier) = {
        let source = read(&frame).expect("whole").source;
        (source.ip(), source.port())
    };
    is_dropped(&mut node, 0, &ping(outside, own, identifier), DropReason::InvalidState);
    assert_eq!(one(&mut node, (0, UPLINK), &pong(outside, own, identifier)).0, pod_port(1));
    is_dropped(&mut node, 0, &ping(outside, own, identifier), DropReason::InvalidState);
    // In fragments as well.
    let payload = [7; 72];
    let fragment = |of: FrameBuilder, number| of.payload(&payload).fragment(number, 0, true);
    let request = fragment(ping(outside, own, identifier), 9);
    is_dropped(&mut node, 0, &request, DropReason::InvalidState);
    one(&mut node, (0, UPLINK), &fragment(pong(outside, own, identifier), 10));
    one(&mut node, at_pod, &fragment(ping(inside, outside, 7), 11));
    one(&mut node, at_pod, &ping(inside, outside, 7));
    let answer = pong(inside, outside, 7).build();
    node.expect_drop(pod_port(1), &answer, DropReason::InvalidState);
}

/// In containers identifiers are small numbers of processes, and everybody's are the same.
#[test]
fn pods_that_ping_each_other_with_one_identifier_both_get_their_answers() {
    let (one_pod, other) = (pod4(1), pod4(2));
    let (at_one, at_other) = ((0, pod_port(1)), (0, pod_port(2)));
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for _ in 0..2 {
        assert_eq!(one(&mut node, at_one, &ping(one_pod, other, 1)).0, pod_port(2));
        assert_eq!(one(&mut node, at_other, &ping(other, one_pod, 1)).0, pod_port(1));
        assert_eq!(one(&mut node, at_other, &pong(other, one_pod, 1)).0, pod_port(1));
        assert_eq!(one(&mut node, at_one, &pong(one_pod, other, 1)).0, pod_port(2));
    }
    let closed = World::with_pods(2).with_no_egress(2).tables();
    let mut node = Simulation::single(&closed);
    assert_eq!(one(&mut node, at_one, &ping(one_pod, other, 1)).0, pod_port(2));
    let request = ping(other, one_pod, 1).build();
    node.expect_drop(pod_port(2), &request, DropReason::InvalidState);
    assert_eq!(one(&mut node, at_other, &pong(other, one_pod, 1)).0, pod_port(1));
}
