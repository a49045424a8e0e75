//! A node without a host port: what the XDP program could not tell from ours ends here, counted.

use dataplane::DropReason;
use dataplane::tables::Tables;
use std::sync::Arc;
use std::time::Duration;
use xskiff_tests::packet_builder::{icmp_error, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address};

fn node() -> Simulation {
    let mut tables: Tables = (*World::with_pods(1).tables()).clone();
    Arc::make_mut(&mut tables.forwarding).host = None;
    Simulation::single(&Arc::new(tables))
}

/// What the example and a caution say of `host_port.enabled: false`.
#[test]
fn the_nodes_own_fragments_and_icmp_errors_are_dropped_with_a_reason() {
    let mut node = node();
    let (outside, own) = ("192.0.2.7:53", "10.0.0.1:9");
    let fragment = |offset, more| udp(outside, own).payload(&[0; 64]).fragment(7, offset, more);
    let first = fragment(0, true).build();
    node.pass(UPLINK, &first);
    assert_eq!(node.dropped(DropReason::NoRoute), 1, "{}", node.moved_counters());
    // It waits for a first one that leads somewhere.
    assert!(node.pass(UPLINK, &fragment(72, false).build()).is_empty());
    node.wait(Duration::from_secs(3));
    assert_eq!(node.dropped(DropReason::FragmentUnknown), 1, "{}", node.moved_counters());
    let sent = tcp(own, outside, "A").build();
    let error = icmp_error(address("192.0.2.254"), address("10.0.0.1"), (3, 4, 1400), &sent);
    node.expect_drop(UPLINK, &error.build(), DropReason::IcmpUnrelated);
}
