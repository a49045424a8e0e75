//! One workload cannot take the flow table from the others.

use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::event::EventKind;
use dataplane::mailbox::{Command, FlushFilter};
use dataplane::tables::Tables;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

const MOST: u32 = 100;

fn node(workers: usize) -> Simulation {
    let tables = World::with_pods(3).tables();
    let tables = Tables { flows_per_endpoint_max: MOST, ..Tables::clone(&tables) };
    Simulation::new(workers, 4096, &Arc::new(tables))
}

fn syn(pod: u8, l4_port: u16) -> Vec<u8> {
    tcp(&format!("10.1.0.{pod}:{l4_port}"), "10.1.0.3:80", "S").build()
}

fn open(node: &mut Simulation, pod: u8, l4_ports: std::ops::Range<u16>) -> usize {
    let opened = |l4_port| node.pass(pod_port(pod), &syn(pod, l4_port)).len();
    l4_ports.map(opened).sum()
}

fn charged(node: &Simulation, pod: u8) -> u32 {
    node.flow_tables().charges.flows(pod_port(pod))
}

#[test]
fn a_pod_at_its_bound_opens_no_more_while_others_do_and_its_flows_go_on() {
    for workers in [1, 3] {
        let mut node = node(workers);
        assert_eq!(open(&mut node, 1, 1000..1300), 100, "{}", node.moved_counters());
        assert_eq!((charged(&node, 1), node.dropped(DropReason::EndpointFlows)), (100, 200));
        assert_eq!(open(&mut node, 2, 1000..1050), 50, "another pod is not concerned");
        assert_eq!(
            (charged(&node, 2), charged(&node, 3)),
            (50, 0),
            "the opener's, not the target's"
        );
        // What is open goes on, both ways.
        assert_eq!(open(&mut node, 1, 1000..1100), 100);
        node.forward(pod_port(3), &tcp("10.1.0.3:80", "10.1.0.1:1000", "SA").build());
        let refused = node
            .take_events()
            .into_iter()
            .find(|event| event.kind == EventKind::Dropped(DropReason::EndpointFlows));
        assert_eq!(refused.map(|event| event.port), Some(pod_port(1)), "an event names it");
    }
}

#[test]
fn flows_from_outside_are_charged_to_the_pod_they_lead_to_and_both_families_together() {
    let mut node = node(1);
    for l4_port in 0..60u16 {
        node.pass(UPLINK, &udp(&format!("198.51.100.7:{}", 2000 + l4_port), "10.1.0.1:53").build());
        node.pass(
            pod_port(1),
            &udp(&format!("[fd01::1]:{}", 2000 + l4_port), "[fd01::3]:53").build(),
        );
    }
    assert_eq!(charged(&node, 1), 100, "{}", node.moved_counters());
    assert_eq!(node.dropped(DropReason::EndpointFlows), 20);
}

#[test]
fn a_charge_ends_with_its_flow_whether_it_expires_is_flushed_or_evicted() {
    let mut node = node(2);
    assert_eq!(open(&mut node, 1, 1000..1100), 100);
    // The time-out of a connection that nobody answers.
    node.now = node.now.after(Duration::from_secs(121));
    for _ in 0..200 {
        node.now = node.now.after(Duration::from_millis(50));
        node.tick();
    }
    assert_eq!(charged(&node, 1), 0, "{}", node.moved_counters());
    assert_eq!(open(&mut node, 1, 1000..1300), 100);
    node.send(|| Command::Flush(FlushFilter::default()));
    for _ in 0..200 {
        node.now = node.now.after(Duration::from_millis(50));
        node.tick();
    }
    assert_eq!(charged(&node, 1), 0, "{}", node.moved_counters());
}

#[test]
fn zero_is_no_bound() {
    let mut node = Simulation::new(1, 4096, &World::with_pods(3).tables());
    assert_eq!(open(&mut node, 1, 1000..1300), 300);
    assert_eq!(charged(&node, 1), 300);
}
