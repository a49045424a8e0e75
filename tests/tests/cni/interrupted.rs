//! Plugins that are killed in the middle of their work, at moments from their first instruction until
//! after their last: the same call again does what it is for, and nothing is left behind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xskiff::demo::scene::{BUYER, WEB_1};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{plugin, root_or_skip};

use crate::cluster::{Cluster, PATIENCE, Primary};
use crate::driver::{Call, Container, Network, variables};
use crate::life::attached;

/// Moments that a call is killed at, of which the last is long after its usual end.
const MOMENTS: u32 = 16;

fn moments(usual: Duration) -> impl Iterator<Item = Duration> {
    (1..MOMENTS).map(move |number| usual * number / (MOMENTS * 3 / 4)).chain([usual * 30])
}

/// How long a call takes that nobody kills.
fn usual(network: &Network, cluster: &Cluster, container: &Container, result: &Value) -> Duration {
    let more = json!({ "prevResult": result });
    let call = network.our_call(&cluster.node, "CHECK", Some(container), more);
    let calls = (0..5).map(|_| {
        let began = Instant::now();
        call.answer().unwrap_or_else(|refusal| panic!("{refusal:?}"));
        began.elapsed()
    });
    calls.min().expect("some")
}

#[test]
fn a_verb_that_is_killed_at_any_moment_is_done_by_its_repetition() {
    if !root_or_skip("verbs that are killed") {
        return;
    }
    let (cluster, network, container, result) = attached("killed-verbs");
    let newest = Network { version: "1.1.0", ..network.clone() };
    let previous = json!({ "prevResult": result });
    let usual = usual(&newest, &cluster, &container, &result);
    let (with, there) = (cluster.served(), 1);
    let without = (with.0 - 1, with.1 - 1);
    for verb in ["CHECK", "DEL", "GC"] {
        let more = match verb {
            "GC" => json!({ "cni.dev/valid-attachments": [] }),
            _ => previous.clone(),
        };
        let named = Some(&container).filter(|_| verb != "GC");
        let call = newest.our_call(&cluster.node, verb, named, more);
        let mut killed = 0;
        for after in moments(usual) {
            killed += u32::from(call.kill_after(after));
            let again = call.answer().unwrap_or_else(|refusal| panic!("{verb}: {refusal:?}"));
            assert_eq!(again, "", "{verb} after {after:?}");
            cluster.settle();
            let left = if verb == "CHECK" { there } else { 0 };
            assert_eq!(cluster.endpoints().len(), left, "{verb} after {after:?}");
            if left == 0 {
                assert_eq!(cluster.served(), without, "{verb} after {after:?}");
                assert_eq!(call.answer().expect("gone already"), "");
            }
            let added = newest.ours(&cluster.node, "ADD", Some(&container), previous.clone());
            added.unwrap_or_else(|refusal| panic!("{verb} after {after:?}: {refusal:?}"));
            newest
                .ours(&cluster.node, "CHECK", Some(&container), previous.clone())
                .unwrap_or_else(|refusal| panic!("{verb} after {after:?}: {refusal:?}"));
            assert_eq!(cluster.served(), with, "{verb} after {after:?}");
        }
        println!("{verb}, {usual:?} long, killed in the middle {killed} times of {MOMENTS}");
        assert!((1..MOMENTS).contains(&killed), "{verb}: {killed}");
    }
    network.delete(&cluster.node, &container, Some(&result)).expect("gone");
    assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
    assert_eq!((cluster.endpoints().len(), cluster.served()), (0, without));
    assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
    cluster.wait_well();
}

#[test]
fn what_is_killed_in_the_middle_leaves_nothing_once_its_container_goes() {
    if !root_or_skip("killed plugins") {
        return;
    }
    let (cluster, network, first, result) = attached("killed");
    network.delete(&cluster.node, &first, Some(&result)).expect("gone");
    assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
    let before = cluster.state();
    for (round, after_ms) in [0, 1, 2, 4, 8, 16, 32, 64].into_iter().enumerate() {
        let container = cluster.container(WEB_1, &format!("killed-{round}"));
        // What stands before ours works; ours dies.
        let others = network.without_ours();
        let result = others.add(&cluster.node, &container).unwrap_or_else(|r| panic!("{r:?}"));
        let ours = network.plugins.last().expect("ours");
        let call = Call {
            host: &cluster.node,
            verb: "ADD",
            program: plugin(),
            variables: variables(&container),
            input: network.input(ours, &container, Some(&result)).to_string(),
        };
        call.kill_after(Duration::from_millis(after_ms));
        network.delete(&cluster.node, &container, None).expect("gone");
        assert!(wait_until(PATIENCE, || cluster.endpoints().is_empty()).is_some(), "{round}");
        assert!(wait_until(PATIENCE, || cluster.state() == before).is_some(), "{round}");
    }
    assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
    cluster.wait_well();
}

/// Word of a pod is left, and taken back, as a whole: no draft of it stays either.
#[test]
fn words_for_an_absent_node_that_are_cut_off_are_taken_back_with_their_container() {
    if !root_or_skip("cut off words") {
        return;
    }
    let cluster = Cluster::build("killed-words");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({ "nodeAbsent": "admit" }));
    let container = cluster.container(WEB_1, "one");
    let result = network.add(&cluster.node, &container).unwrap_or_else(|r| panic!("{r:?}"));
    let previous = json!({ "prevResult": result });
    let usual = usual(&network, &cluster, &container, &result);
    let call = |verb| network.our_call(&cluster.node, verb, Some(&container), previous.clone());
    for verb in ["ADD", "DEL"] {
        for after in moments(usual) {
            call(verb).kill_after(after);
            call("DEL").answer().expect("gone");
            assert_eq!(cluster.words_left(), 0, "{verb} after {after:?}");
            call("ADD").answer().unwrap_or_else(|r| panic!("{verb} after {after:?}: {r:?}"));
            assert_eq!(cluster.words_left(), 1, "{verb} after {after:?}");
        }
    }
    network.delete(&cluster.node, &container, Some(&result)).expect("gone");
    assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
    assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
}

/// DEL never comes for what was killed: the runtime says which containers there are, and neither a word
/// nor a draft of any other stays, with or without a node.
#[test]
fn words_and_drafts_of_containers_that_never_saw_a_del_are_collected() {
    if !root_or_skip("words that nobody takes back") {
        return;
    }
    let mut cluster = Cluster::build("garbage-words");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({ "nodeAbsent": "admit" }));
    let newest = Network { version: "1.1.0", ..network.clone() };
    let (kept, lost) = (cluster.container(WEB_1, "kept"), cluster.container(BUYER, "lost"));
    let results = [&kept, &lost]
        .map(|one| network.add(&cluster.node, one).unwrap_or_else(|refusal| panic!("{refusal:?}")));
    let valid = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    let valid = json!({ "cni.dev/valid-attachments": valid });
    let previous = json!({ "prevResult": results[1] });
    let add = newest.our_call(&cluster.node, "ADD", Some(&lost), previous);
    let usual = usual(&network, &cluster, &lost, &results[1]);
    let collect = |network: &Network| network.ours(&cluster.node, "GC", None, valid.clone());
    let elsewhere = Network { name: "storage", ..newest.clone() };
    for after in moments(usual) {
        add.kill_after(after);
        // As one is left by a call that is killed before it has written the whole of it.
        let admitted = cluster.files.socket.with_file_name("admitted");
        std::fs::write(admitted.join("lost@eth0.json.4194305"), "{").expect("a draft");
        // That no node is there is told, and no reason to keep anything.
        assert_eq!(collect(&newest).unwrap_err().code, 11, "{after:?}");
        assert_eq!(cluster.words_left(), 1, "{after:?}");
        assert!(admitted.join("kept@eth0.json").exists());
    }
    add.answer().expect("admitted");
    collect(&elsewhere).expect_err("no node");
    assert_eq!(cluster.words_left(), 2, "another network's are not its matter");
    assert_eq!(collect(&newest).unwrap_err().code, 11);

    // The node that comes adopts the one that is left.
    cluster.begin();
    assert!(wait_until(PATIENCE, || cluster.words_left() == 0).is_some());
    assert_eq!(cluster.container_of("shop/web-1").as_deref(), Some("kept"));
    assert_eq!(cluster.endpoints().len(), 1);
    let admitted = cluster.files.socket.with_file_name("admitted");
    std::fs::write(admitted.join("late@eth0.json.4194305"), "{").expect("a draft");
    assert_eq!(newest.ours(&cluster.node, "GC", None, valid).expect("collected"), "");
    assert_eq!((cluster.words_left(), cluster.endpoints().len()), (0, 1));
    for (container, result) in [&kept, &lost].into_iter().zip(&results) {
        network.delete(&cluster.node, container, Some(result)).expect("gone");
    }
    assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
}
