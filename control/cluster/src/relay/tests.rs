//! The relay between an API server and kube's own client.

use std::net::SocketAddr;
use std::sync::Mutex;

use control::model::Kind;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::*;
use crate::resource::GROUPS;
use crate::serve::Counts;

const PATIENCE: Duration = Duration::from_secs(30);

fn quick() -> Times {
    Times {
        silence: Duration::from_secs(62),
        backoff: (Duration::from_millis(10), Duration::from_millis(100)),
        hold: Duration::from_secs(1),
    }
}

fn settings(upstream: SocketAddr) -> Settings {
    let any = "127.0.0.1:0".parse().unwrap();
    Settings {
        listen: any,
        metrics: Some(any),
        tls: None,
        token_file: None,
        upstream: client::Access::in_a_test(
            [format!("http://{upstream}")],
            Duration::from_secs(2),
            quick().backoff,
        ),
        times: quick(),
        limits: Limits::default(),
        history: HistoryLimits::default(),
        writes: None,
    }
}

/// An API server, and the same one at another time at the same address.
struct ApiServer {
    store: Arc<Store>,
    server: Option<Server>,
    address: SocketAddr,
    /// Paths that contain this are not found.
    lacks: Arc<Mutex<Option<&'static str>>>,
}

impl ApiServer {
    async fn start() -> Self {
        let store = Arc::new(Store::numbering(HistoryLimits::default()));
        let address = "127.0.0.1:0".parse().unwrap();
        let mut this = Self { store, server: None, address, lacks: Arc::default() };
        this.come_up().await;
        this
    }

    async fn come_up(&mut self) {
        for _ in 0..500 {
            let mut options = Options::plain(self.address);
            let lacks = Arc::clone(&self.lacks);
            options.layer = Some(Arc::new(move |parts, mut answer| {
                let lacks = *lacks.lock().unwrap();
                if lacks.is_some_and(|own| parts.uri.path().contains(own)) {
                    *answer.status_mut() = http::StatusCode::NOT_FOUND;
                }
                if lacks.is_some() && parts.uri.path() == GROUPS {
                    let none = Full::from(r#"{"groups": []}"#).map_err(|never| match never {});
                    *answer.body_mut() = none.boxed_unsync();
                }
                Box::pin(std::future::ready(answer))
            }));
            if let Ok(server) = serve::start(options, Arc::clone(&self.store)).await {
                self.address = server.address();
                self.server = Some(server);
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} stays in use", self.address);
    }

    fn pods(&self, number: usize) {
        for index in 0..number {
            self.store.set(Kind::Pod, pod(&format!("p{index}"), "Running")).unwrap();
        }
    }
}

fn pod(name: &str, phase: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "shop", "annotations": { "note": name } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "main", "image": "a" }] },
        "status": { "phase": phase },
    })
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what} did not come true");
}

async fn watching(relay: &Relay) {
    until("all kinds watched", || {
        Kind::ALL
            .into_iter()
            .all(|kind| relay.standing().of(kind).doing == standing::Doing::Watching)
    })
    .await;
}

async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    (code, text)
}

#[tokio::test]
async fn what_the_api_server_has_is_served_stripped_by_its_own_versions() {
    let upstream = ApiServer::start().await;
    upstream.pods(1200);
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    watching(&relay).await;
    assert_eq!(relay.store().versions(Kind::Pod), upstream.store.versions(Kind::Pod));
    let (code, text) = page(relay.address(), "/api/v1/namespaces/shop/pods/p7").await;
    assert!(code == 200 && !text.contains("annotations") && text.contains("\"n1\""), "{text}");
    let version = upstream.store.set(Kind::Pod, pod("p7", "Failed")).unwrap();
    until("the change", || relay.store().counts(Kind::Pod).version == version).await;
    upstream.store.delete(Kind::Pod, "shop", "p8").unwrap();
    until("the deletion", || relay.store().counts(Kind::Pod).objects == 1199).await;
    assert_eq!(relay.store().versions(Kind::Pod), upstream.store.versions(Kind::Pod));
    // Nothing that nodes read: kept, not announced.
    let mut same = pod("p9", "Running");
    same["metadata"]["annotations"]["note"] = json!("another");
    let version = upstream.store.set(Kind::Pod, same).unwrap();
    until("the version", || relay.store().counts(Kind::Pod).version == version).await;
    assert_eq!(relay.store().counts(Kind::Pod).unannounced, 1);
}

#[tokio::test]
async fn an_api_server_that_is_away_changes_nothing_but_what_is_told() {
    let mut upstream = ApiServer::start().await;
    upstream.pods(20);
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    watching(&relay).await;
    let metrics = relay.metrics_address().unwrap();
    upstream.server = None;
    until("the failures", || relay.standing().of(Kind::Pod).failures >= 2).await;
    let (code, text) = page(metrics, "/readyz").await;
    assert!(code == 200 && text.contains("pods: away for"), "{text}");
    let (_, text) = page(metrics, "/metrics").await;
    assert!(text.contains("xskiff_relay_upstream_up{resource=\"pods\"} 0\n"), "{text}");
    assert_eq!(page(metrics, "/api/v1/pods").await.0, 401, "objects are not for everybody");
    let (_, list) = page(relay.address(), "/api/v1/pods").await;
    assert_eq!(list.matches("\"nodeName\"").count(), 20);

    // It comes back with its past: watches go on, also of kinds without any object or event.
    upstream.come_up().await;
    for kind in Kind::ALL {
        until("its return", || relay.standing().of(kind).away_since.is_none()).await;
        assert_eq!(relay.standing().of(kind).lists, 1, "{kind:?}");
    }
    upstream.server = None;

    // It comes back without its past, and with one pod less and one more.
    upstream.store.delete(Kind::Pod, "shop", "p3").unwrap();
    upstream.store.set(Kind::Pod, pod("new", "Running")).unwrap();
    upstream.store.forget_history();
    let before = relay.store().counts(Kind::Pod);
    upstream.come_up().await;
    until("the second list", || relay.standing().of(Kind::Pod).lists == 2).await;
    assert_eq!(relay.store().versions(Kind::Pod), upstream.store.versions(Kind::Pod));
    let after = relay.store().counts(Kind::Pod);
    assert_eq!((after.changes - before.changes, after.resets), (2, 0), "only what differs");
    // What failed last is still told, and what taking the lists over took.
    let (_, text) = page(metrics, "/readyz").await;
    assert!(text.contains("pods: the last error, "), "{text}");
    let (in_all, longest) = relay.standing().of(Kind::Pod).applying;
    assert!(longest > Duration::ZERO && in_all > longest, "two lists: {in_all:?}, {longest:?}");
    let (_, text) = page(metrics, "/metrics").await;
    let told = "xskiff_relay_upstream_apply_microseconds_total{resource=\"pods\"} ";
    assert!(text.lines().any(|line| line.starts_with(told) && !line.ends_with(" 0")), "{text}");
}

#[tokio::test]
async fn nothing_is_served_before_the_first_lists() {
    let mut upstream = ApiServer::start().await;
    upstream.pods(5);
    upstream.server = None;
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    let metrics = relay.metrics_address().unwrap();
    until("a failure", || relay.standing().of(Kind::Pod).failures >= 1).await;
    assert_eq!(page(metrics, "/livez").await.0, 200);
    assert_eq!(page(metrics, "/readyz").await.0, 503);
    let (code, text) = page(relay.address(), "/api/v1/pods").await;
    assert!(code == 503 && text.contains("retry-after: 1"), "{text}");
    upstream.come_up().await;
    watching(&relay).await;
    assert_eq!(page(metrics, "/readyz").await.0, 200);
    assert_eq!(page(relay.address(), "/api/v1/pods").await.0, 200);
}

#[tokio::test]
async fn a_kind_that_no_api_server_has_is_served_as_absent_and_picked_up_when_installed() {
    let upstream = ApiServer::start().await;
    upstream.pods(5);
    *upstream.lacks.lock().unwrap() = Some("/networkpolicies");
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    let (at, metrics) = (relay.address(), relay.metrics_address().unwrap());
    until("the first lists", || relay.store().is_filled()).await;
    let policies = "/apis/networking.k8s.io/v1/networkpolicies";
    for path in [policies.to_owned(), format!("{policies}?watch=1&resourceVersion=1")] {
        let (code, text) = page(at, &path).await;
        assert!(code == 404 && text.contains("\"NotFound\""), "{text}");
    }
    assert_eq!(page(at, "/api/v1/pods").await.0, 200);
    let (code, text) = page(metrics, "/readyz").await;
    assert!(code == 200 && text.contains("networkpolicies: the API server does not"), "{text}");
    let policy = relay.standing().of(Kind::NetworkPolicy);
    assert_eq!((policy.doing, policy.failures), (standing::Doing::Absent, 0));
    assert!(policy.away_since.is_none(), "it answers");

    *upstream.lacks.lock().unwrap() = None;
    let object =
        json!({"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}});
    upstream.store.set(Kind::NetworkPolicy, object).unwrap();
    until("the kind", || relay.store().counts(Kind::NetworkPolicy).objects == 1).await;
    let (code, text) = page(at, policies).await;
    assert!(code == 200 && text.contains("deny"), "{text}");

    // What was there once stays, whatever is said of it.
    *upstream.lacks.lock().unwrap() = Some("/networkpolicies");
    upstream.store.forget_history();
    until("a failure", || relay.standing().of(Kind::NetworkPolicy).failures >= 2).await;
    let (code, text) = page(at, policies).await;
    assert!(code == 200 && text.contains("deny"), "{text}");
}

#[tokio::test]
async fn a_kind_of_the_core_is_waited_for() {
    let upstream = ApiServer::start().await;
    upstream.pods(5);
    *upstream.lacks.lock().unwrap() = Some("/pods");
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    until("failures", || relay.standing().of(Kind::Pod).failures >= 2).await;
    assert_eq!(page(relay.address(), "/api/v1/nodes").await.0, 503);
    *upstream.lacks.lock().unwrap() = None;
    until("the first lists", || relay.store().is_filled()).await;
}

#[tokio::test]
async fn a_list_that_lost_much_is_believed_when_a_second_one_agrees() {
    let mut upstream = ApiServer::start().await;
    upstream.pods(60);
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    watching(&relay).await;
    upstream.server = None;
    for index in 0..40 {
        upstream.store.delete(Kind::Pod, "shop", &format!("p{index}")).unwrap();
    }
    upstream.store.forget_history();
    upstream.come_up().await;
    until("the second list", || relay.standing().of(Kind::Pod).lists == 2).await;
    let held = relay.standing().of(Kind::Pod).held;
    assert_eq!((held, relay.store().counts(Kind::Pod).objects), (40, 60));
    until("the third list", || relay.standing().of(Kind::Pod).lists == 3).await;
    assert_eq!(relay.standing().of(Kind::Pod).held, 0);
    assert_eq!(relay.store().versions(Kind::Pod), upstream.store.versions(Kind::Pod));
}

#[tokio::test]
async fn an_api_server_that_was_restored_from_a_copy_makes_everybody_begin_anew() {
    let mut upstream = ApiServer::start().await;
    for _ in 0..5 {
        upstream.pods(20);
    }
    let own = settings(upstream.address);
    let times = Times { silence: Duration::from_secs(4), ..own.times };
    let relay = Relay::start(Settings { times, ..own }).await.unwrap();
    watching(&relay).await;
    let before = relay.store().counts(Kind::Pod).version;
    upstream.server = None;
    upstream.store = Arc::new(Store::numbering(HistoryLimits::default()));
    upstream.pods(18);
    upstream.come_up().await;
    until("the copy", || relay.store().versions(Kind::Pod) == upstream.store.versions(Kind::Pod))
        .await;
    let after = relay.store().counts(Kind::Pod);
    assert!(after.version < before && after.resets == 1, "{after:?}");
    assert_eq!(relay.standing().of(Kind::Pod).held, 0);
}

#[tokio::test]
async fn the_end_is_told_and_orderly() {
    let upstream = ApiServer::start().await;
    upstream.pods(1);
    let relay = Relay::start(settings(upstream.address)).await.unwrap();
    watching(&relay).await;
    let address = relay.address();
    let counts = Arc::clone(relay.server().counts());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let watch = tokio::spawn(async move { page(address, "/api/v1/pods?watch=true").await });
    until("the watch", || Counts::get(&counts.watches) == 1).await;
    let relay = tokio::spawn(relay.until(async {
        let _ = stopped.await;
    }));
    stop.send(()).unwrap();
    let (code, text) = tokio::time::timeout(PATIENCE, watch).await.unwrap().unwrap();
    // The last chunk is there: nothing was torn off.
    assert!(code == 200 && text.ends_with("\r\n0\r\n\r\n"), "{text}");
    tokio::time::timeout(PATIENCE, relay).await.unwrap().unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_and_tokens_are_judged() {
    let upstream = ApiServer::start().await;
    upstream.pods(1);
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    let with_tokens =
        || Settings { token_file: Some(tokens.clone()), ..settings(upstream.address) };
    let error = Relay::start(with_tokens()).await.unwrap_err().to_string();
    assert!(error.contains("tokens"), "{error}");
    std::fs::write(&tokens, "\n\n").unwrap();
    let error = Relay::start(with_tokens()).await.unwrap_err().to_string();
    assert!(error.contains("holds no token"), "{error}");
    std::fs::write(&tokens, "first\nsecond\n").unwrap();
    let access = Access::load(None, Some(tokens.clone())).unwrap();
    let judge = access.tokens().unwrap();
    let allowed = |token| judge(token, "list", Kind::Pod).is_ok();
    assert!(allowed(Some("first")) && allowed(Some("second")));
    assert!(!allowed(Some("third")) && !allowed(None));
    std::fs::write(&tokens, "third\n").unwrap();
    access.reload();
    assert!(allowed(Some("third")) && !allowed(Some("first")));
    std::fs::write(&tokens, "").unwrap();
    access.reload();
    assert!(allowed(Some("third")), "an empty file is no answer");
    let tls = TlsFiles {
        certificate: directory.path().join("none.pem"),
        key: directory.path().join("none.key"),
        client_authority: None,
    };
    let error = Access::load(Some(tls), None).unwrap_err().to_string();
    assert!(error.contains("none.pem"), "{error}");
}
