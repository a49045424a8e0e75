//! Pods that come and go while one node process follows another.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xskiff::cli::client::Client;
use xskiff::lab::{Process, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, PATIENCE, Primary};
use crate::driver::{Container, Network};

/// Pods that come and go all the time.
const PODS: usize = 6;
/// Processes that follow the first one.
const FOLLOWERS: usize = 4;
/// How long pods come and go between two of them.
const BETWEEN: Duration = Duration::from_millis(700);

/// Adds and removes pods until `next`, which is asked for one process after the other, has brought the last:
/// each ADD succeeds, also one that was under way when its process ended.
fn come_and_go(cluster: &Cluster, mut next: impl FnMut(usize, Process) -> Process) {
    let more = json!({ "waitSeconds": 60, "answerSeconds": 60 });
    let network = cluster.network(Primary::Ptp, "1.0.0", more);
    let primary = network.without_ours();
    let namespaces: Vec<_> = (0..PODS)
        .map(|number| cluster.laboratory.namespace(&format!("p{number}")).expect("a namespace"))
        .collect();
    let pods: Vec<(Container, Value)> = (0..PODS)
        .map(|number| {
            let pod = format!("many/pod-{number}");
            let container = Container::of_pod(&format!("c{number}"), &namespaces[number], &pod);
            let result = primary.add(&cluster.node, &container);
            (container, result.unwrap_or_else(|refusal| panic!("{refusal:?}")))
        })
        .collect();
    let (is_over, added) = (AtomicBool::new(false), AtomicUsize::new(0));
    let node = &cluster.node;
    let add_and_delete = |network: &Network, (container, result): &(Container, Value)| {
        while !is_over.load(Ordering::Relaxed) {
            let previous = json!({ "prevResult": result });
            let said = network.ours(node, "ADD", Some(container), previous);
            said.unwrap_or_else(|refusal| panic!("{}: {refusal:?}", container.id));
            added.fetch_add(1, Ordering::Relaxed);
            network.ours(node, "DEL", Some(container), json!({})).expect("gone");
        }
    };
    let process = cluster.spawn("first", &[]);
    let answers = || Client::connect(&cluster.files.socket).is_ok();
    assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
    let _last = std::thread::scope(|scope| {
        let mut process = process;
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| {
                let (network, add_and_delete) = (&network, &add_and_delete);
                scope.spawn(move || add_and_delete(network, pod))
            })
            .collect();
        for number in 0..FOLLOWERS {
            std::thread::sleep(BETWEEN);
            process = next(number, process);
        }
        // Whoever removes a pod while nobody is there is content with that.
        assert!(wait_until(PATIENCE, answers).is_some(), "{}", process.log_tail());
        std::thread::sleep(BETWEEN);
        is_over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        process
    });
    let added = added.load(Ordering::Relaxed);
    assert!(added > PODS * FOLLOWERS, "{added} were added: this test could not see anything");
    cluster.settle();
    assert_eq!(cluster.endpoints().len(), 0);
}

/// It was refused with code 100, "the node refuses the pod", and what the runtime had made of the pod was
/// thrown away.
#[test]
fn pods_whose_node_ends_in_order_while_it_adds_them_are_added_by_the_next() {
    if !root_or_skip("a restart while pods come") {
        return;
    }
    let cluster = Cluster::build("comerestart");
    come_and_go(&cluster, |number, process| {
        process.signal(Signal::SIGTERM).expect("told");
        assert_eq!(process.wait(PATIENCE).expect("ended").code(), Some(0));
        cluster.spawn(&format!("follower{number}"), &[])
    });
}

#[test]
fn pods_whose_node_hands_over_while_it_adds_them_are_added_by_the_next() {
    if !root_or_skip("a take-over while pods come") {
        return;
    }
    let cluster = Cluster::build("cometake");
    come_and_go(&cluster, |number, process| {
        let next = cluster.spawn(&format!("follower{number}"), &["--take-over"]);
        let ended = process.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(ended.code(), Some(0), "{}", next.log_tail());
        next
    });
}
