//! An API server whose store was restored from an older copy: resourceVersions go back.

use super::*;

/// A cluster after many changes, and a copy of it that was taken before them, which lacks `p0` and
/// has `other`.
fn cluster_and_copy() -> (Arc<Store>, Arc<Store>) {
    let (store, copy) = (self::store(), self::store());
    for _ in 0..20 {
        fill(&store, 40);
    }
    fill(&copy, 40);
    copy.delete(Kind::Pod, "shop", "p0").unwrap();
    copy.set(Kind::Pod, pod("other")).unwrap();
    assert!(copy.counts(Kind::Pod).version < store.counts(Kind::Pod).version);
    (store, copy)
}

/// Follows the cluster, then its copy at the same address, before which `fault` stands.
async fn follows_the_copy(fault: fn(&str) -> Fault) -> Node {
    let (store, copy) = cluster_and_copy();
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let address = server.address().to_string();
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    drop(server);
    set(&faults, fault);
    let _server = serve_at(&address, &copy, &faults).await;
    node.until("the copy", |node| node.has("other") && !node.has("p0")).await;
    assert_eq!((node.gone, node.state.pods.len()), (1, 40), "only what it lacks goes");
    copy.set(Kind::Pod, pod("after")).unwrap();
    node.until("a change after it", |node| node.has("after")).await;
    node.until("others", |node| node.kind(Kind::NetworkPolicy).relists > 0).await;
    assert_eq!((node.gone, node.state.network_policies.len()), (1, 1));
    assert_eq!(node.kind(Kind::Pod).relists, 1);
    node
}

/// The version that a watch begins at.
fn begins_at(asked: &str) -> Option<u64> {
    asked.split_once("resourceVersion=").and_then(|(_, version)| version.parse().ok())
}

#[tokio::test]
async fn a_server_that_says_nothing_of_a_version_to_come_is_asked_how_far_it_is() {
    let node = follows_the_copy(|_| Fault::No).await;
    assert!(node.failures(Kind::Pod, "expired") >= 1);
}

#[tokio::test]
async fn a_server_that_calls_a_version_too_large_is_listed_anew() {
    let node = follows_the_copy(|asked| match begins_at(asked) {
        Some(version) if version > 500 => Fault::TooLarge,
        _ => Fault::No,
    })
    .await;
    assert!(node.failures(Kind::Pod, "server-error") >= 1);
}

#[tokio::test]
async fn a_bookmark_of_an_older_version_is_noticed() {
    const BOOKMARK: &str =
        concat!(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"3"}}}"#, "\n");
    let node = follows_the_copy(|asked| match begins_at(asked) {
        Some(version) if version > 500 => Fault::Text(BOOKMARK),
        _ => Fault::No,
    })
    .await;
    assert!(node.failures(Kind::Pod, "expired") >= 1);
}
