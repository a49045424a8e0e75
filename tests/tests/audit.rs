//! Policies under audit: what only they refuse passes, and is reported.

use dataplane::DropReason;
use dataplane::event::{EventKind, FlowEvent};
use dataplane::policy::Direction;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port};

/// Toward pod 2 only pod 3 is allowed, on port 80.
fn world() -> World {
    World::with_pods(3).with_ingress_only_from(2, &[3], 80..=80)
}

fn audited(node: &mut Simulation) -> Vec<FlowEvent> {
    let of_audit = |event: &FlowEvent| matches!(event.kind, EventKind::Audited(_));
    node.take_events().into_iter().filter(of_audit).collect()
}

#[test]
fn what_only_a_policy_under_audit_refuses_passes_and_is_reported_once() {
    let mut node = Simulation::single(&world().with_ingress_under_audit(2).tables());
    for flags in ["S", "A", "A"] {
        node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.1.0.2:80", flags).build());
    }
    let events = audited(&mut node);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, EventKind::Audited(Direction::Ingress));
    assert_eq!(node.sum(|counters| counters.flows_audited.get()), 1);

    node.forward(pod_port(3), &tcp("10.1.0.3:1000", "10.1.0.2:80", "S").build());
    assert!(audited(&mut node).is_empty(), "the policy allows it");
}

#[test]
fn a_policy_that_goes_under_audit_and_back_ends_and_reports_standing_flows() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    let packet = |flags| tcp("10.1.0.1:1000", "10.1.0.2:80", flags).build();
    node.forward(pod_port(1), &packet("S"));
    let under_audit = world().with_ingress_under_audit(2).next_generation();
    node.publish(&under_audit.tables());
    node.forward(pod_port(1), &packet("A"));
    node.forward(pod_port(1), &packet("A"));
    assert_eq!(audited(&mut node).len(), 1, "judged again once");
    node.publish(&world().next_generation().next_generation().tables());
    node.expect_drop(pod_port(1), &packet("A"), DropReason::PolicyIngress);
}

#[test]
fn what_is_enforced_beside_a_policy_under_audit_is_enforced() {
    let world = world().with_ingress_under_audit(2).with_ingress_only_from(2, &[1], 80..=80);
    let mut node = Simulation::single(&world.tables());
    let from_3 = tcp("10.1.0.3:1000", "10.1.0.2:80", "S").build();
    node.expect_drop(pod_port(3), &from_3, DropReason::PolicyIngress);
    node.forward(pod_port(1), &tcp("10.1.0.1:1000", "10.1.0.2:80", "S").build());
    assert_eq!(node.sum(|counters| counters.flows_audited.get()), 1);
}
