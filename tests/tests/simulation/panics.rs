//! A worker that panics in the middle of a burst goes on: what was on its way is lost and counted, its
//! flows are not.

use std::panic::{AssertUnwindSafe, catch_unwind};

use dataplane::DropReason;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port};

/// Of these, the eleventh meets the panic.
const BURST: usize = 24;

fn connection(number: usize) -> String {
    format!("10.1.0.1:{}", 1000 + number)
}

#[test]
fn a_panic_costs_what_was_on_its_way_and_no_flow() {
    for workers in [1, 3] {
        let mut node = Simulation::new(workers, 10_000, &World::with_pods(2).tables());
        for number in 0..BURST {
            let syn = tcp(&connection(number), "10.1.0.2:80", "S").build();
            node.forward(pod_port(1), &syn);
            let answer = tcp("10.1.0.2:80", &connection(number), "SA").build();
            node.forward(pod_port(2), &answer);
        }
        let flows = node.flows().len();
        assert_eq!(flows, BURST);

        // Others' mail lies in its hand-off at this moment, too, and a fragment waits.
        node.wire().borrow_mut().panics_after = Some((pod_port(2), 10));
        for number in 0..BURST {
            let data = tcp(&connection(number), "10.1.0.2:80", "A").build();
            node.deliver(0, pod_port(1), &data);
        }
        let tick = catch_unwind(AssertUnwindSafe(|| node.tick_worker(0)));
        assert!(tick.is_err(), "the path did not panic");
        let lost = node.recover(0);
        let sent = node.take_outgoing().len();
        assert_eq!((sent, lost), (10, (BURST - 10) as u64));
        assert_eq!(node.dropped(DropReason::WorkerRestarted), lost);
        assert_eq!(node.counters(0).restarts.get(), 1);

        for number in 0..BURST {
            let data = tcp(&connection(number), "10.1.0.2:80", "A").build();
            node.forward(pod_port(1), &data);
            let answer = tcp("10.1.0.2:80", &connection(number), "A").build();
            node.forward(pod_port(2), &answer);
        }
        assert_eq!(node.flows().len(), flows, "the same flows");
        assert_eq!(node.sum(|counters| counters.flows_created.get()), flows as u64);
    }
}
