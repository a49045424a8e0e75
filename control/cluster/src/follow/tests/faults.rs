//! Servers that fail: what is in force stays, each failure has a name, and following goes on.

use super::*;

use super::access::{account, secure, tls};

/// What becomes of an answer, by the path and query that were asked for.
type Judged = fn(&str) -> Fault;

/// Follows a cluster whose pods' watches meet `fault`, until `reason` was counted; then the fault
/// ends and a change arrives.
async fn survives(reason: &str, fault: Judged) {
    let store = store();
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let own = settings(&[url(&server)]);
    follows_beyond(own, &store, &faults, reason, fault).await;
}

async fn survives_over_tls(reason: &str, fault: Judged) {
    let store = store();
    let faults = judge(|_| Fault::No);
    let (authority, config) = tls();
    let account = account(&authority, "one");
    let tls = |options: &mut Options| options.tls = Some(config);
    let server = serve_with("127.0.0.1:0", &store, &faults, tls).await;
    let own = secure(&server, account.path());
    follows_beyond(own, &store, &faults, reason, fault).await;
}

async fn follows_beyond(
    settings: Settings,
    store: &Store,
    faults: &Judge,
    reason: &str,
    fault: Judged,
) {
    fill(store, 30);
    let mut node = Node::start(settings);
    node.complete().await;
    set(faults, move |asked| if is_of_pods(asked) { fault(asked) } else { Fault::No });
    store.set(Kind::Namespace, json!({"metadata": {"name": "bank"}})).unwrap();
    // Something to be said.
    let mut changed = pod("p0");
    changed["metadata"]["labels"] = json!({"changed": "yes"});
    store.set(Kind::Pod, changed).unwrap();
    node.until(reason, |node| node.failures(Kind::Pod, reason) > 0).await;
    let error = node.kind(Kind::Pod).last_error;
    assert!(error.is_none_or(|error| error.object == "Pod" && !error.message.is_empty()));
    node.until("others", |node| node.state.namespaces.contains_key("bank")).await;
    assert_eq!((node.state.pods.len(), node.gone), (30, 0), "what is in force stays");
    set(faults, |_| Fault::No);
    store.set(Kind::Pod, pod("after")).unwrap();
    node.until("a change after the fault", |node| node.has("after")).await;
    node.until("health", |node| node.kind(Kind::Pod).last_error.is_none()).await;
    assert_eq!(node.gone, 0);
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_given_up_and_counted() {
    survives("silent", |_| Fault::Silent).await;
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up() {
    survives("timeout", |_| Fault::Never).await;
}

#[tokio::test]
async fn a_busy_server_is_left_alone_for_a_while() {
    survives("busy", |_| Fault::Code(429)).await;
}

#[tokio::test]
async fn a_server_with_an_inner_error_is_asked_again() {
    survives("server-error", |_| Fault::Code(500)).await;
}

#[tokio::test]
async fn garbage_changes_nothing() {
    survives("garbage", |_| Fault::Text("{\"type\":\"ADDED\",\"obj\n")).await;
    survives("garbage", |_| Fault::Text("{\"kind\":\"PodList\",\"items\":{}}\n")).await;
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_of_an_object_changes_nothing() {
    survives("connection", |_| Fault::Cut(40)).await;
}

#[tokio::test]
async fn what_may_not_be_read_is_named() {
    survives("forbidden", |_| Fault::Code(403)).await;
}

#[tokio::test]
async fn the_same_faults_are_survived_over_tls() {
    let faults: [(&str, Judged); 8] = [
        ("silent", |_| Fault::Silent),
        ("timeout", |_| Fault::Never),
        ("busy", |_| Fault::Code(429)),
        ("server-error", |_| Fault::Code(500)),
        ("garbage", |_| Fault::Text("{\"type\":\"ADDED\",\"obj\n")),
        ("connection", |_| Fault::Cut(40)),
        ("forbidden", |_| Fault::Code(403)),
        ("expired", |_| Fault::Code(410)),
    ];
    let all = faults.map(|(reason, fault)| survives_over_tls(reason, fault));
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn a_pause_that_a_busy_server_asks_for_is_kept() {
    let store = store();
    fill(&store, 5);
    let asked_at = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&asked_at);
    let faults = judge(move |asked| {
        if !is_of_pods(asked) {
            return Fault::No;
        }
        let mut times = times.lock().unwrap();
        times.push(std::time::Instant::now());
        // With `Retry-After: 1`.
        if times.len() == 1 { Fault::Code(429) } else { Fault::No }
    });
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut own = settings(&[url(&server)]);
    own.access.rest = (Duration::from_millis(20), Duration::from_secs(5));
    let mut node = Node::start(own);
    node.complete().await;
    let times = asked_at.lock().unwrap();
    let pause = times[1].duration_since(times[0]);
    assert!(pause >= Duration::from_secs(1), "{pause:?}");
    assert_eq!(node.failures(Kind::Pod, "busy"), 1);
}

#[tokio::test]
async fn a_list_that_breaks_off_removes_nothing() {
    let store = store();
    fill(&store, 1100);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    // A streamed list breaks off, and so does the second page.
    set(&faults, |asked| match asked {
        _ if !is_of_pods(asked) => Fault::No,
        _ if is_streamed(asked) => Fault::Cut(5000),
        _ if is_watch(asked) => Fault::Code(410),
        _ if asked.contains("continue=") => Fault::Code(500),
        _ => Fault::No,
    });
    store.delete(Kind::Pod, "shop", "p0").unwrap();
    store.forget_history();
    node.until("two failures", |node| node.failures(Kind::Pod, "connection") > 1).await;
    set(&faults, |asked| match asked {
        _ if is_of_pods(asked) && is_streamed(asked) => Fault::Code(400),
        _ if asked.contains("continue=") => Fault::Code(500),
        _ => Fault::No,
    });
    node.until("two more", |node| node.failures(Kind::Pod, "server-error") > 1).await;
    assert!(node.gone <= 1 && node.state.pods.len() >= 1099);
    set(&faults, |_| Fault::No);
    node.until("a whole list", |node| node.state.pods.len() == 1099).await;
}

#[tokio::test]
async fn a_server_that_does_not_end_its_stream_is_asked_for_pages() {
    let store = store();
    fill(&store, 20);
    // As one that does not know `sendInitialEvents` and takes it for a watch.
    let faults = judge(|asked| if is_streamed(asked) { Fault::Silent } else { Fault::No });
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut own = settings(&[url(&server)]);
    own.list_timeout = Duration::from_millis(300);
    let mut node = Node::start(own);
    node.complete().await;
    assert_eq!(node.state.pods.len(), 20);
    assert_eq!(node.kind(Kind::Pod).streamed_lists, 0);
}

#[tokio::test]
async fn kinds_that_no_server_has_are_normal_and_picked_up_and_core_kinds_are_waited_for() {
    let store = store();
    fill(&store, 5);
    let faults = judge(lacks_groups);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    assert!(node.kind(Kind::EndpointSlice).absent);
    let slice = json!({"metadata": {"name": "s", "namespace": "shop"}, "addressType": "IPv4", "endpoints": []});
    store.set(Kind::EndpointSlice, slice).unwrap();
    set(&faults, |_| Fault::No);
    node.until("the kind", |node| node.state.endpoint_slices.len() == 1).await;
    assert!(!node.kind(Kind::EndpointSlice).absent);

    let faults = judge(|asked| if is_of_pods(asked) { Fault::Code(404) } else { Fault::No });
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.until("the others", |node| node.state.endpoint_slices.len() == 1).await;
    node.until("a failure", |node| node.failures(Kind::Pod, "absent") > 1).await;
    assert!(!node.reporter().is_complete());
    assert!(node.reporter().waits_for().starts_with("Pod ("), "{}", node.reporter().waits_for());
}

/// A balancer whose servers are away, or one that leads elsewhere, finds nothing: who believed it would
/// serve without any policy.
#[tokio::test]
async fn a_kind_that_is_not_found_is_absent_only_where_the_server_has_no_such_group_either() {
    let store = store();
    fill(&store, 5);
    let is_of_groups = |asked: &str| asked.starts_with(GROUPS);
    let is_of_kind = move |asked: &str| is_of_groups(asked) && asked != GROUPS;
    let empty = |asked: &str| if asked == GROUPS { Fault::Text("{}") } else { Fault::Code(404) };
    let faults: [Judge; 3] = [
        judge(move |asked| if is_of_groups(asked) { Fault::Code(404) } else { Fault::No }),
        judge(move |asked| if is_of_kind(asked) { Fault::Code(404) } else { Fault::No }),
        judge(move |asked| if is_of_groups(asked) { empty(asked) } else { Fault::No }),
    ];
    for faults in faults {
        let server = serve_at("127.0.0.1:0", &store, &faults).await;
        let mut node = Node::start(settings(&[url(&server)]));
        node.until("failures", |node| node.failures(Kind::NetworkPolicy, "absent") > 2).await;
        node.until("the others", |node| node.state.pods.len() == 5).await;
        assert!(!node.kind(Kind::NetworkPolicy).absent && !node.reporter().is_complete());
        set(&faults, |_| Fault::No);
        node.complete().await;
        assert_eq!(node.state.network_policies.len(), 1);
    }
}

#[tokio::test]
async fn another_server_is_asked_for_what_one_does_not_find() {
    let store = store();
    fill(&store, 5);
    let nowhere = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::Code(404))).await;
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut node = Node::start(settings(&[url(&nowhere), url(&server)]));
    node.complete().await;
    assert_eq!((node.state.pods.len(), node.state.network_policies.len()), (5, 1));
    let kinds = node.status().kinds;
    assert!(kinds.iter().all(|kind| !kind.absent && kind.lists > 0), "{kinds:?}");
}

#[tokio::test]
async fn one_bad_object_is_named_and_disturbs_no_other() {
    let store = store();
    fill(&store, 5);
    let mut bad = pod("bad");
    bad["metadata"]["labels"] = json!({"a": "b".repeat(100)});
    store.set(Kind::Pod, bad).unwrap();
    let mut large = pod("large");
    large["metadata"]["annotations"] = json!({"x": "y".repeat(1 << 20)});
    store.set(Kind::Pod, large).unwrap();
    let server = serve_at("127.0.0.1:0", &store, &judge(|_| Fault::No)).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    assert_eq!(node.state.pods.len(), 5);
    let refused = node.status().refused;
    let objects: Vec<&str> = refused.iter().map(|error| error.object.as_str()).collect();
    assert_eq!(objects, ["Pod shop/bad", "Pod shop/large"]);
    assert_eq!(node.kind(Kind::Pod).refused, 2);
    store.set(Kind::Pod, pod("bad")).unwrap();
    store.delete(Kind::Pod, "shop", "large").unwrap();
    node.until("health", |node| node.has("bad") && node.status().refused.is_empty()).await;
}
