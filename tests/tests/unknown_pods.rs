//! Pods that nobody has told of yet: what is opened by them and to them is decided by the setting and
//! counted; what stands goes on, as far as those are concerned who are known.

use dataplane::DropReason;
use dataplane::event::EventKind;
use dataplane::policy::RuleId;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, pod_port};

const NEW: &str = "10.1.0.1";
const OTHER: &str = "10.1.0.2:80";

fn counted(node: &Simulation) -> (u64, u64) {
    let drops = node.sum(|counters| counters.unknown_pod_drops.get());
    (drops, node.sum(|counters| counters.unknown_pod_flows.get()))
}

/// The rule of the last packet that was dropped.
fn last_rule(node: &mut Simulation) -> Option<RuleId> {
    let events = node.take_events();
    let dropped = events.iter().rev().find(|event| matches!(event.kind, EventKind::Dropped(_)));
    dropped.and_then(|event| event.rule)
}

#[test]
fn what_an_unknown_pod_opens_and_what_is_opened_to_it_is_refused_named_and_counted() {
    let mut node = Simulation::single(&World::with_pods(2).with_unknown_pod(1, false).tables());
    let outward = tcp(&format!("{NEW}:1000"), OTHER, "S").build();
    node.expect_drop(pod_port(1), &outward, DropReason::PolicyEgress);
    assert_eq!(last_rule(&mut node), Some(RuleId::UNKNOWN_POD));
    let inward = tcp("192.0.2.7:9", &format!("{NEW}:80"), "S").build();
    node.expect_drop(UPLINK, &inward, DropReason::PolicyIngress);
    assert_eq!(last_rule(&mut node), Some(RuleId::UNKNOWN_POD));
    assert_eq!(counted(&node), (2, 0));
    // Its own node reaches it, and is answered.
    let probe = tcp("10.0.0.1:7", &format!("{NEW}:80"), "S").build();
    assert_eq!(node.forward(HOST, &probe).0, pod_port(1));
    let answer = tcp(&format!("{NEW}:80"), "10.0.0.1:7", "SA").build();
    assert_eq!(node.forward(pod_port(1), &answer).0, HOST);
    assert_eq!(counted(&node), (2, 0));
}

#[test]
fn what_an_unknown_pod_is_allowed_is_counted() {
    let mut node = Simulation::single(&World::with_pods(2).with_unknown_pod(1, true).tables());
    let outward = tcp(&format!("{NEW}:1000"), OTHER, "S").build();
    assert_eq!(node.forward(pod_port(1), &outward).0, pod_port(2));
    let inward = tcp("192.0.2.7:9", &format!("{NEW}:80"), "S").build();
    assert_eq!(node.forward(UPLINK, &inward).0, pod_port(1));
    assert_eq!(counted(&node), (0, 2));
}

#[test]
fn flows_stand_while_it_is_not_known_who_a_pod_is_and_are_judged_once_it_is() {
    let world = || World::with_pods(2).with_unknown_pod(1, true);
    let mut node = Simulation::single(&world().tables());
    let segment = |flags| tcp(&format!("{NEW}:1000"), OTHER, flags).build();
    let reply = tcp(OTHER, &format!("{NEW}:1000"), "A").build();
    assert_eq!(node.forward(pod_port(1), &segment("S")).0, pod_port(2));

    // The setting is another one now: this holds for flows to come.
    let denied = || World::with_pods(2).with_unknown_pod(1, false).next_generation();
    node.publish(&denied().tables());
    assert_eq!(node.forward(pod_port(1), &segment("A")).0, pod_port(2));
    assert_eq!(node.forward(pod_port(2), &reply).0, pod_port(1));
    let another = tcp(&format!("{NEW}:1001"), OTHER, "S").build();
    node.expect_drop(pod_port(1), &another, DropReason::PolicyEgress);
    assert_eq!(counted(&node), (1, 1));

    // What the other side does not allow any more ends, whoever this one may be.
    let refused = || denied().next_generation().with_ingress_only_from(2, &[], 80..=80);
    node.publish(&refused().tables());
    node.expect_drop(pod_port(1), &segment("A"), DropReason::PolicyIngress);
    node.publish(&denied().next_generation().next_generation().tables());
    assert_eq!(node.forward(pod_port(1), &segment("A")).0, pod_port(2), "allowed again");

    // It is known now.
    let known = World::with_pods(2).with_no_egress(1);
    let known = known.next_generation().next_generation().next_generation().next_generation();
    node.publish(&known.tables());
    node.expect_drop(pod_port(1), &segment("A"), DropReason::PolicyEgress);
    assert_eq!(last_rule(&mut node), Some(RuleId::DEFAULT_DENY));
}
