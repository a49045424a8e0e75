//! No node process is there, or one that hangs.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::json;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{CLIENT, HTTP, STRANGER, WEB_1};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, PATIENCE, Primary};

#[test]
fn a_pod_waits_for_the_node_or_is_tried_again_later() {
    if !root_or_skip("an absent node") {
        return;
    }
    let mut cluster = Cluster::build("absent");
    let container = cluster.container(WEB_1, "one");
    let fails = cluster.network(Primary::Ptp, "1.0.0", json!({ "nodeAbsent": "fail" }));
    let began = Instant::now();
    let refusal = fails.add(&cluster.node, &container).unwrap_err();
    assert_eq!(refusal.code, 11, "{refusal:?}");
    assert!(refusal.text.contains("admin.sock"), "{refusal:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    fails.delete(&cluster.node, &container, None).expect("a pod goes without a node");
    assert_eq!(cluster.leased(), 0);

    let bounded = cluster.network(Primary::Ptp, "1.0.0", json!({ "waitSeconds": 1 }));
    assert_eq!(bounded.add(&cluster.node, &container).unwrap_err().code, 11);
    bounded.delete(&cluster.node, &container, None).expect("gone");

    let waits = cluster.network(Primary::Ptp, "1.0.0", json!({ "waitSeconds": 60 }));
    let result = std::thread::scope(|scope| {
        let (node, waits, container) = (&cluster.node, &waits, &container);
        let added = scope.spawn(move || waits.add(node, container));
        std::thread::sleep(Duration::from_secs(1));
        let program = xskiff_tests::xskiff_binary::path().to_string_lossy().into_owned();
        let [configuration, manifests] = [&cluster.files.configuration, &cluster.files.manifests]
            .map(|file| file.display().to_string());
        let words = ["run", "--config", &configuration, "--manifests", &manifests];
        let process = node.spawn("late", &program, &words).expect("started");
        let result = added
            .join()
            .expect("a plugin")
            .unwrap_or_else(|refusal| panic!("{refusal:?}, {}", process.log_tail()));
        (result, process)
    });
    assert_eq!(cluster.container_of("shop/web-1").as_deref(), Some("one"));
    // It goes while there is no node again; the next one finds its interface gone.
    let (result, process) = result;
    drop(process);
    waits.delete(&cluster.node, &container, Some(&result)).expect("gone");
    cluster.begin();
    assert!(cluster.endpoints().is_empty());
}

#[test]
fn pods_that_were_admitted_are_adopted_and_policed_by_the_next_node() {
    if !root_or_skip("admitted pods") {
        return;
    }
    let mut cluster = Cluster::build("admitted");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({ "nodeAbsent": "admit" }));
    let pods = cluster.add_pods(&network);
    assert_eq!(cluster.words_left(), 4);
    for (container, result) in &pods {
        network.check(&cluster.node, container, result).expect("admitted");
    }
    // One goes before any node has seen it: nobody must adopt it.
    let (gone, result) = &pods[1];
    network.delete(&cluster.node, gone, Some(result)).expect("gone");
    assert_eq!(cluster.words_left(), 3);

    cluster.begin();
    let adopted = || cluster.endpoints().len() == 3 && cluster.words_left() == 0;
    assert!(wait_until(PATIENCE, adopted).is_some(), "{:#?}", cluster.status().errors);
    assert_eq!(cluster.status().cni.adopted, 3);
    for (container, result) in [&pods[0], &pods[2], &pods[3]] {
        network.check(&cluster.node, container, result).expect("served");
    }
    let refused = forbidden(cluster.pod(STRANGER), WEB_1.addresses, HTTP[2]).expect("asked");
    assert_eq!(refused.outcome, Outcome::Ok, "{refused:?}");

    // A node that is there adopts as well what was left meanwhile, and nothing of another boot.
    cluster.end(true);
    let (container, result) = &pods[0];
    network.delete(&cluster.node, container, Some(result)).expect("gone");
    let again = cluster.container(WEB_1, "again");
    network.add(&cluster.node, &again).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let file = cluster.files.socket.with_file_name("admitted/again@eth0.json");
    let text = std::fs::read_to_string(&file).expect("a word");
    let foreign = file.with_file_name("foreign@eth0.json");
    std::fs::write(&foreign, text.replace("\"boot_id\":\"", "\"boot_id\":\"x")).expect("written");
    std::fs::write(file.with_file_name("broken@eth0.json"), "{").expect("written");
    cluster.begin();
    let adopted = || cluster.container_of("shop/web-1").as_deref() == Some("again");
    assert!(wait_until(PATIENCE, adopted).is_some(), "{:#?}", cluster.status().errors);
    assert!(wait_until(PATIENCE, || cluster.words_left() == 0).is_some());
    // What cannot be read is told, and nothing stays wrong because of it: it is gone.
    assert!(cluster.log().contains("broken@eth0.json"), "{}", cluster.log());
    let errors = cluster.status().errors;
    assert!(!errors.iter().any(|error| error.object.contains("broken@eth0")), "{errors:?}");
    let seen = http(&cluster.client, WEB_1.addresses, HTTP[2], &["web-1"], Some(CLIENT));
    let seen = seen.expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}");
}

#[test]
fn a_node_that_hangs_holds_no_pod_up_for_long() {
    if !root_or_skip("a hanging node") {
        return;
    }
    let mut cluster = Cluster::build("hangs");
    let run = cluster.files.socket.parent().expect("a directory").to_owned();
    std::fs::create_dir_all(&run).expect("made");
    let listener = UnixListener::bind(&cluster.files.socket).expect("a socket");
    for node_absent in ["wait", "fail", "admit"] {
        let more = json!({ "nodeAbsent": node_absent, "answerSeconds": 1, "waitSeconds": 1 });
        let network = cluster.network(Primary::Ptp, "1.0.0", more);
        let container = cluster.container(WEB_1, "one");
        let began = Instant::now();
        let refusal = network.add(&cluster.node, &container).unwrap_err();
        assert_eq!(refusal.code, 11, "{refusal:?}");
        assert!(refusal.text.contains("hangs"), "{refusal:?}");
        network.delete(&cluster.node, &container, None).expect("a pod goes past it");
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert_eq!((cluster.leased(), cluster.words_left()), (0, 0));
    }
    drop(listener);
    std::fs::remove_dir_all(&run).expect("removed");
    cluster.begin();
    assert!(cluster.endpoints().is_empty());
}
