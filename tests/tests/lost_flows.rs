//! What begins in mid-stream: the flow was lost with the process before, or there never was one.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowDirection;
use dataplane::time::Nanos;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

const SERVER: &str = "10.1.0.2:80";
const CLIENT: &str = "10.1.0.1:1000";

/// Pod 2 may open nothing, and serves pod 1.
fn world() -> World {
    World::with_pods(2).with_no_egress(2)
}

/// A pod that may open nothing could send whatever it liked without SYN, at any time, wherever the
/// other side might have asked it.
#[test]
fn denied_segment_without_syn_is_dropped_where_no_flow_can_have_been_lost() {
    let mut node = Simulation::single(&world().tables());
    for flags in ["A", "FA", "PA"] {
        let frame = tcp(SERVER, CLIENT, flags).build();
        node.expect_drop(pod_port(2), &frame, DropReason::PolicyEgress);
    }
    assert!(node.flows().is_empty());
    assert_eq!(node.sum(|counters| counters.lost_replies.get()), 0);
}

#[test]
fn reply_of_a_lost_flow_passes_for_a_while_after_a_start_and_is_counted() {
    let until = Nanos(300_000_000_000);
    let mut node = Simulation::single(&world().with_lost_replies_until(until).tables());
    let reply = tcp(SERVER, CLIENT, "A").build();
    assert_eq!(node.forward(pod_port(2), &reply).0, pod_port(1));
    assert_eq!(node.sum(|counters| counters.lost_replies.get()), 1);
    // It lies there as its client opened it, and policy goes on judging it so.
    let flow = &node.flows()[0];
    assert_eq!(flow.original.source_port(), 1000);
    assert!(flow.life.seen(FlowDirection::Original).0 == 0, "{flow:?}");
    assert_eq!(node.forward(pod_port(1), &tcp(CLIENT, SERVER, "A").build()).0, pod_port(2));
    // What opens, or was never allowed the other way, is no lost reply.
    let opening = tcp("10.1.0.2:81", "10.1.0.1:1001", "S").build();
    node.expect_drop(pod_port(2), &opening, DropReason::PolicyEgress);

    node.now = until;
    let late = tcp("10.1.0.2:80", "10.1.0.1:1002", "A").build();
    node.expect_drop(pod_port(2), &late, DropReason::PolicyEgress);
    assert_eq!(node.forward(pod_port(2), &reply).0, pod_port(1), "what was taken up goes on");
    assert_eq!(node.sum(|counters| counters.lost_replies.get()), 1);
}

#[test]
fn segment_that_policy_denies_both_ways_is_no_lost_reply() {
    let world = world().with_no_egress(1).with_lost_replies_until(Nanos(u64::MAX));
    let mut node = Simulation::single(&world.tables());
    let frame = tcp(SERVER, CLIENT, "A").build();
    node.expect_drop(pod_port(2), &frame, DropReason::PolicyEgress);
}

#[test]
fn segment_without_syn_that_policy_allows_is_taken_up_at_any_time() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    node.wait(Duration::from_secs(2));
    assert_eq!(node.forward(pod_port(1), &tcp(CLIENT, SERVER, "A").build()).0, pod_port(2));
    assert_eq!(node.forward(UPLINK, &tcp("192.0.2.7:9", SERVER, "A").build()).0, pod_port(2));
    assert_eq!(node.sum(|counters| counters.lost_replies.get()), 0);
}

#[test]
fn translated_connection_is_not_picked_up_in_mid_stream() {
    let world = World::with_pods(1).with_lost_replies_until(Nanos(u64::MAX));
    let mut node = Simulation::single(&world.tables());
    let frame = tcp(CLIENT, "192.0.2.7:80", "A").build();
    node.expect_drop(pod_port(1), &frame, DropReason::NoFlow);
}
