//! Servers and nodes that are started again.

use super::*;

fn with_snapshot(servers: &[String], directory: &tempfile::TempDir) -> Settings {
    let place = (directory.path().join("state"), Duration::from_millis(300));
    Settings { snapshot: Some(place), ..settings(servers) }
}

#[tokio::test]
async fn a_server_that_is_started_again_is_followed_on_and_nothing_goes() {
    let store = store();
    fill(&store, 40);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let address = server.address().to_string();
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    drop(server);
    node.until("a failure", |node| node.failures(Kind::Pod, "connection") > 1).await;
    store.forget_history();
    store.set(Kind::Pod, pod("new")).unwrap();
    store.delete(Kind::Pod, "shop", "p1").unwrap();
    let _server = serve_at(&address, &store, &faults).await;
    node.until("the change", |node| node.has("new") && !node.has("p1")).await;
    assert_eq!((node.gone, node.state.pods.len()), (1, 40));
}

#[tokio::test]
async fn without_a_server_nothing_is_complete_and_what_is_waited_for_is_said() {
    let mut node = Node::start(settings(&["http://127.0.0.1:1".to_owned()]));
    node.until("failures", |node| node.failures(Kind::Pod, "connection") > 1).await;
    assert!(!node.reporter().is_complete());
    let waits = node.reporter().waits_for();
    assert!(waits.contains("NetworkPolicy (http://127.0.0.1:1"), "{waits}");
    assert_eq!(node.status().unlisted.len(), 6);
}

#[tokio::test]
async fn a_node_without_a_server_serves_what_was_in_force_and_later_only_differences() {
    let state = tempfile::tempdir().unwrap();
    let store = store();
    fill(&store, 40);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let address = server.address().to_string();
    let mut node = Node::start(with_snapshot(&[url(&server)], &state));
    node.complete().await;
    let in_force = node.state.clone();
    node.until("a writing", |node| node.status().snapshot.writes > 0).await;
    store.set(Kind::Pod, pod("late")).unwrap();
    node.until("a change", |node| node.has("late")).await;
    // The end of the process writes what is not written yet.
    node.handle = None;
    drop(server);

    let mut node = Node::start(with_snapshot(&[format!("http://{address}")], &state));
    node.complete().await;
    assert!(node.has("late"));
    assert_eq!(node.state.pods.len(), in_force.pods.len() + 1);
    assert_eq!(node.state.network_policies, in_force.network_policies);
    let status = node.status();
    assert_eq!((status.snapshot.restored, status.unlisted.len()), (44, 6));
    assert!(status.snapshot.age_seconds.is_some());
    node.until("failures", |node| node.failures(Kind::Pod, "connection") > 0).await;

    store.delete(Kind::Pod, "shop", "p3").unwrap();
    store.set(Kind::Pod, pod("newest")).unwrap();
    let mut changed = pod("p5");
    changed["metadata"]["labels"] = json!({"changed": "yes"});
    store.set(Kind::Pod, changed).unwrap();
    let restored = node.sent;
    assert_eq!(restored, 44);
    let _server = serve_at(&address, &store, &faults).await;
    node.until("the difference", |node| node.has("newest") && !node.has("p3")).await;
    node.until("lists", |node| node.kinds_listed() == 6).await;
    assert_eq!((node.sent - restored, node.gone), (3, 1), "what is as it was is not sent again");
}

#[tokio::test]
async fn a_first_list_that_lacks_much_of_what_was_restored_is_held() {
    let state = tempfile::tempdir().unwrap();
    let store = store();
    fill(&store, 40);
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut node = Node::start(with_snapshot(&[url(&server)], &state));
    node.complete().await;
    node.handle = None;
    for number in 0..25 {
        store.delete(Kind::Pod, "shop", &format!("p{number}")).unwrap();
    }
    let own = with_snapshot(&[url(&server)], &state);
    let mut node = Node::start(Settings { hold_after: Duration::from_secs(2), ..own });
    node.until("a hold", |node| node.kind(Kind::Pod).held == 25).await;
    assert_eq!((node.state.pods.len(), node.gone), (40, 0), "what was in force stays");
    node.until("agreement", |node| node.state.pods.len() == 15).await;
    assert_eq!((node.kind(Kind::Pod).held, node.kind(Kind::Pod).holds), (0, 1));
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_used_or_written_is_named_and_disturbs_nothing() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join("state");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("cluster.snapshot"), b"half of something").unwrap();
    // A directory in the way stands for a disk that takes no more.
    std::fs::create_dir(directory.join("cluster.snapshot.new")).unwrap();
    let store = store();
    fill(&store, 5);
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut node = Node::start(with_snapshot(&[url(&server)], &state));
    node.complete().await;
    assert_eq!(node.state.pods.len(), 5);
    let told = node.status().snapshot.not_restored.unwrap();
    assert!(told.contains("cluster.snapshot"), "{told}");
    node.until("a failure", |node| node.status().snapshot.failures > 1).await;
    assert!(node.status().snapshot.last_error.is_some());
    std::fs::remove_dir(directory.join("cluster.snapshot.new")).unwrap();
    node.until("a writing", |node| node.status().snapshot.writes > 0).await;
    assert_eq!(node.status().snapshot.last_error, None);
}

#[tokio::test]
async fn a_snapshot_of_part_of_the_cluster_never_takes_the_place_of_a_whole_one() {
    let state = tempfile::tempdir().unwrap();
    let store = store();
    fill(&store, 5);
    let faults = judge(|asked| if is_of_pods(asked) { Fault::Code(500) } else { Fault::No });
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(with_snapshot(&[url(&server)], &state));
    node.until("the others", |node| node.state.network_policies.len() == 1).await;
    node.until("failures", |node| node.failures(Kind::Pod, "server-error") > 3).await;
    node.handle = None;
    assert!(!state.path().join("state/cluster.snapshot").exists());
}
