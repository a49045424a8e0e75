//! A worker that has more to do than it can: connections between families are known ones, and go on.

use std::time::Duration;

use dataplane::DropReason;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::pod_port;

use crate::{CASES, Case, node, to_pod};

/// Packets of each kind in a burst of 32.
const EACH: usize = 8;
/// From when on, in rounds of 4 ms, pressure has lasted for 10.
const SHED_FROM: usize = 3;

fn client(case: &Case, number: usize) -> String {
    case.client.replace(":1000", &format!(":{number}"))
}

/// Packets of known connections each way, and packets that begin others: between families, and not.
fn burst(node: &mut Simulation, case: &Case, seen_as: &[String], new: usize) {
    for (number, own) in seen_as.iter().enumerate() {
        let known = tcp(&client(case, 1000 + number), case.frontend, "A").build();
        node.deliver(0, case.port, &known);
        node.deliver(0, pod_port(2), &tcp(case.backend, own, "A").build());
        let begins = tcp(&client(case, new + number), case.frontend, "S").build();
        node.deliver(0, case.port, &begins);
        let plain = tcp(&format!("10.1.0.1:{}", new + number), "10.1.0.2:90", "S").build();
        node.deliver(0, pod_port(1), &plain);
    }
    node.tick();
    node.settle();
}

#[test]
fn connections_between_families_go_on_under_pressure_and_new_ones_are_few() {
    for case in CASES {
        let mut node = node();
        let seen_as: Vec<String> = (0..EACH)
            .map(|number| {
                let opening = tcp(&client(&case, 1000 + number), case.frontend, "S").build();
                let own = to_pod(&mut node, case.port, &opening).source.to_string();
                node.forward(pod_port(2), &tcp(case.backend, &own, "SA").build());
                own
            })
            .collect();
        node.wire().borrow_mut().is_pressed = true;
        let (mut shed, mut flows) = (0, node.flows().len());
        for round in 0..2 * SHED_FROM {
            burst(&mut node, &case, &seen_as, 2000 + 100 * round);
            let out = node.take_outgoing().len();
            let begun = node.flows().len() - flows;
            flows += begun;
            // Every packet of a known connection left, and of those that begin one, all or one.
            if round < SHED_FROM {
                assert_eq!((out, begun), (4 * EACH, 2 * EACH), "{case:?}, round {round}");
            } else {
                shed += 2 * EACH as u64 - 1;
                assert_eq!((out, begun), (2 * EACH + 1, 1), "{case:?}, round {round}");
            }
            assert_eq!(node.dropped(DropReason::Overload), shed, "{case:?}, round {round}");
            node.now = node.now.after(Duration::from_millis(4));
        }
    }
}
