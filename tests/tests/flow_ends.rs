//! Flows that are ended by request, by any of what they have, and what those who watch are told.

use std::time::Duration;

use dataplane::address::Protocol;
use dataplane::event::EventKind;
use dataplane::lpm::Prefix;
use dataplane::mailbox::{Command, FlushFilter};
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port, pod4};

fn node() -> Simulation {
    let mut node = Simulation::new(2, 1024, &World::with_pods(3).tables());
    for l4_port in [80, 81] {
        for source in 1000..1010 {
            let (one, two) = (format!("10.1.0.1:{source}"), format!("10.1.0.3:{l4_port}"));
            node.forward(pod_port(1), &tcp(&one, &two, "S").build());
            let (one, two) = (format!("10.1.0.2:{source}"), format!("10.1.0.3:{l4_port}"));
            node.forward(pod_port(2), &udp(&one, &two).build());
        }
    }
    assert_eq!(node.flows().len(), 40);
    node
}

fn pass_two_rounds(node: &mut Simulation) {
    for _ in 0..200 {
        node.now = node.now.after(Duration::from_millis(50));
        node.tick();
    }
}

#[test]
fn flows_are_ended_by_protocol_port_and_address_all_of_which_must_match() {
    let port = FlushFilter { l4_port: Some(80), ..FlushFilter::default() };
    let protocol = FlushFilter { protocol: Some(Protocol::UDP), ..FlushFilter::default() };
    let address = FlushFilter::of(Prefix::host(pod4(1)));
    let both = FlushFilter { l4_port: Some(81), ..address.clone() };
    let none = FlushFilter { protocol: Some(Protocol::UDP), ..address.clone() };
    for (filter, left) in [(port, 20), (protocol, 20), (address, 20), (both, 30), (none, 40)] {
        let mut node = node();
        node.send(|| Command::Flush(filter.clone()));
        pass_two_rounds(&mut node);
        assert_eq!(node.flows().len(), left, "{filter:?}");
    }
}

#[test]
fn flows_that_end_by_themselves_are_told_of_only_while_somebody_watches() {
    for watched in [false, true] {
        let mut node = node();
        node.take_events();
        node.watch(watched);
        node.send(|| Command::Flush(FlushFilter::default()));
        pass_two_rounds(&mut node);
        assert_eq!(node.flows().len(), 0);
        let events = node.take_events();
        let closed = events.iter().filter(|event| event.kind == EventKind::Closed).count();
        assert_eq!(closed, if watched { 40 } else { 0 });
        assert!(events.iter().all(|event| event.key.is_some()));
    }
}
