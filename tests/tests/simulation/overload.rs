//! A worker that has more to do than it can: what is known goes on, new flows are shed.

use std::time::Duration;

use dataplane::DropReason;
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port};

/// Packets of each kind in a burst.
const EACH: usize = 16;

fn segment(number: usize, flags: &str) -> Vec<u8> {
    tcp(&format!("10.1.0.1:{number}"), "10.1.0.2:80", flags).build()
}

/// One burst of packets of known flows and packets that begin others, by turns.
fn burst(node: &mut Simulation, new: usize) {
    for number in 0..EACH {
        node.deliver(0, pod_port(1), &segment(1000 + number, "A"));
        node.deliver(0, pod_port(1), &segment(new + number, "S"));
    }
    node.tick();
}

#[test]
fn known_flows_go_on_under_pressure_and_new_ones_are_few_until_it_is_over() {
    for workers in [1, 3] {
        let mut node = Simulation::new(workers, 10_000, &World::with_pods(2).tables());
        for number in 0..EACH {
            node.forward(pod_port(1), &segment(1000 + number, "S"));
            let answer = tcp("10.1.0.2:80", &format!("10.1.0.1:{}", 1000 + number), "SA").build();
            node.forward(pod_port(2), &answer);
        }
        let shed = |node: &Simulation| node.dropped(DropReason::Overload);
        let all = 2 * EACH;

        // What is over soon is no overload, and neither is what comes back now and then.
        node.wire().borrow_mut().is_pressed = true;
        for (round, pause) in [0, 11, 4, 4].into_iter().enumerate() {
            node.now = node.now.after(Duration::from_millis(pause));
            burst(&mut node, 2000 + 100 * round);
            node.settle();
            assert_eq!((node.take_outgoing().len(), shed(&node)), (all, 0));
        }
        for round in 1..=3 {
            node.now = node.now.after(Duration::from_millis(4));
            burst(&mut node, 3000 + 100 * round);
            node.settle();
            let out = node.take_outgoing();
            assert_eq!(out.len(), EACH + 1, "known flows, and one new");
            assert_eq!(shed(&node), (round * (EACH - 1)) as u64);
        }
        assert!(node.counters(0).pressed_bursts.get() >= 3);

        node.wire().borrow_mut().is_pressed = false;
        node.now = node.now.after(Duration::from_millis(11));
        let before = shed(&node);
        burst(&mut node, 4000);
        node.settle();
        assert_eq!((node.take_outgoing().len(), shed(&node)), (all, before));
    }
}

/// It ended only when the worker received something itself.
#[test]
fn pressure_is_over_for_what_others_hand_on_when_a_workers_own_sockets_fall_silent() {
    const NEW: usize = 32;
    let mut node = Simulation::new(2, 10_000, &World::with_pods(2).tables());
    node.wire().borrow_mut().is_pressed = true;
    for round in 0..5 {
        node.now = node.now.after(Duration::from_millis(4));
        for number in 0..NEW {
            node.deliver(1, pod_port(1), &segment(1000 + 100 * round + number, "S"));
        }
        node.settle();
    }
    let before = node.dropped(DropReason::Overload);
    assert!(before > 0);
    node.take_outgoing();

    node.wire().borrow_mut().is_pressed = false;
    node.now = node.now.after(Duration::from_secs(1));
    let handed_in = node.counters(1).handed_in.get();
    for number in 0..NEW {
        node.deliver(0, pod_port(1), &segment(4000 + number, "S"));
    }
    node.settle();
    assert!(node.counters(1).handed_in.get() > handed_in + 8, "by worker 0");
    assert_eq!((node.take_outgoing().len(), node.dropped(DropReason::Overload)), (NEW, before));
}
