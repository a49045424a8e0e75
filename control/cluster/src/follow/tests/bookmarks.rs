//! Bookmarks: a kind in which nothing happens is followed on, however much happens elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[tokio::test]
async fn a_watch_goes_on_from_its_bookmark_where_the_past_was_compacted() {
    let store = store();
    fill(&store, 20);
    let compacted = Arc::new(AtomicU64::new(0));
    let oldest = Arc::clone(&compacted);
    // As an API server whose history is short: what is older is answered with 410.
    let faults = judge(move |asked| {
        let version = asked.split_once("&resourceVersion=").map(|(_, version)| version);
        let version: Option<u64> = version.and_then(|version| version.parse().ok());
        match version {
            Some(version) if version < oldest.load(Ordering::Relaxed) => Fault::Code(410),
            _ => Fault::No,
        }
    });
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    for number in 0..50 {
        let name = format!("n{number}");
        store.set(Kind::Namespace, json!({"metadata": {"name": name}})).unwrap();
    }
    node.until("the others", |node| node.state.namespaces.len() == 51).await;
    let bookmarks = || server.counts().bookmarks.load(Ordering::Relaxed);
    let (before, version) = (bookmarks(), store.counts(Kind::Pod).version);
    // Some of every kind that has objects: four have.
    node.until("bookmarks", |_| bookmarks() >= before + 5 * 4).await;
    compacted.store(version, Ordering::Relaxed);
    let watches = node.kind(Kind::Pod).watches;
    node.until("other watches", |node| node.kind(Kind::Pod).watches > watches + 1).await;
    let pods = node.kind(Kind::Pod);
    assert_eq!((pods.lists, pods.relists, node.failures(Kind::Pod, "expired")), (1, 0, 0));
    store.set(Kind::Pod, pod("after")).unwrap();
    node.until("a change", |node| node.has("after")).await;
    assert_eq!(node.gone, 0);
}
