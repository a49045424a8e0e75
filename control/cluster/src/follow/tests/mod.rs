//! The follower against a server that speaks the protocol, over real connections.

mod access;
mod bookmarks;
mod faults;
mod relay;
mod restarts;
mod restored;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use control::admin::kubernetes::{KindStatus, KubernetesStatus};
use control::model::{Kind, ObjectName};
use control::store::{Change, ClusterState};
use futures_util::StreamExt as _;
use http::request::Parts;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::*;
use crate::client::Credentials;
use crate::resource::{GROUPS, index};
use crate::serve::{Answer, HistoryLimits, Options, Server, Store};

/// Nothing here takes longer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// What becomes of an answer.
enum Fault {
    /// It is sent.
    No,
    /// This status is sent in its place.
    Code(u16),
    /// The version asked for is called one of the future.
    TooLarge,
    /// Its head is sent, and nothing more, ever.
    Silent,
    /// Nothing is sent, ever.
    Never,
    /// This text is sent in its place, as a whole answer.
    Text(&'static str),
    /// So many bytes of it are sent; then the connection ends.
    Cut(usize),
}

/// Judges requests by path and query.
type Judge = Arc<Mutex<Box<dyn FnMut(&str) -> Fault + Send>>>;

fn judge(judge: impl FnMut(&str) -> Fault + Send + 'static) -> Judge {
    Arc::new(Mutex::new(Box::new(judge)))
}

fn set(to: &Judge, next: impl FnMut(&str) -> Fault + Send + 'static) {
    *to.lock().unwrap() = Box::new(next);
}

fn plain(status: u16, text: &'static str) -> Answer {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn spoil(judge: Judge, parts: Parts, answer: Answer) -> Answer {
    let asked = parts.uri.path_and_query().unwrap().to_string();
    let fault = (judge.lock().unwrap())(&asked);
    match fault {
        Fault::No => answer,
        Fault::Code(status) => {
            let mut answer = plain(status, r#"{"kind":"Status","message":"a fault"}"#);
            if status == 429 {
                answer.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
            }
            answer
        }
        Fault::TooLarge => plain(
            504,
            r#"{"kind":"Status","reason":"Timeout","code":504,
            "message":"Too large resource version: 900, current: 50"}"#,
        ),
        Fault::Never => std::future::pending().await,
        Fault::Silent => {
            let frames = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
            Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
        }
        Fault::Text(text) => plain(StatusCode::OK.as_u16(), text),
        Fault::Cut(most) => {
            let (parts, body) = answer.into_parts();
            let mut left = most;
            let frames = body.into_data_stream().map(move |bytes| {
                let bytes = bytes?;
                if left == 0 {
                    return Err(BoxError::from("cut"));
                }
                let sent = bytes.slice(..bytes.len().min(left));
                left -= sent.len();
                Ok(Frame::data(sent))
            });
            Response::from_parts(parts, BodyExt::boxed_unsync(StreamBody::new(frames)))
        }
    }
}

/// Serves `store` at `address`.
async fn serve_at(address: &str, store: &Arc<Store>, judge: &Judge) -> Server {
    serve_with(address, store, judge, |_| {}).await
}

async fn serve_with(
    address: &str,
    store: &Arc<Store>,
    judge: &Judge,
    change: impl FnOnce(&mut Options),
) -> Server {
    let mut options = Options::plain(address.parse().unwrap());
    let judge = Arc::clone(judge);
    options.limits.bookmarks = Duration::from_millis(100);
    options.layer = Some(Arc::new(move |parts, answer| {
        let spoilt: Pin<Box<dyn Future<Output = Answer> + Send>> =
            Box::pin(spoil(Arc::clone(&judge), parts, answer));
        spoilt
    }));
    change(&mut options);
    // A port that was just given up may be another's for a moment.
    for _ in 0..100 {
        if let Ok(server) = crate::serve::start(options.clone(), Arc::clone(store)).await {
            return server;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{address} is not free");
}

fn store() -> Arc<Store> {
    Arc::new(Store::numbering(HistoryLimits::default()))
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address())
}

fn settings(servers: &[String]) -> Settings {
    let rest = (Duration::from_millis(20), Duration::from_millis(200));
    let access = Access::in_a_test(servers.to_vec(), Duration::from_secs(2), rest);
    Settings {
        access,
        silence: Duration::from_secs(3),
        watch: (Duration::from_secs(3), Duration::from_secs(5)),
        list_timeout: Duration::from_secs(3),
        stream_retry: Duration::from_secs(600),
        absent_retry: Duration::from_millis(200),
        backoff: (Duration::from_millis(20), Duration::from_millis(200)),
        hold_percent: 30,
        hold_after: Duration::from_millis(500),
        snapshot: None,
    }
}

/// A follower, and the node that takes what it sends.
struct Node {
    handle: Option<Handle>,
    feed: feed::Receiver,
    state: ClusterState,
    /// Changes that it was sent.
    sent: usize,
    /// Those of them that are removals.
    gone: usize,
}

impl Node {
    fn start(settings: Settings) -> Self {
        let (sender, feed) = feed::feed();
        let handle = Some(start(settings, sender).unwrap());
        Self { handle, feed, state: ClusterState::default(), sent: 0, gone: 0 }
    }

    fn reporter(&self) -> &Reporter {
        self.handle.as_ref().unwrap().reporter()
    }

    fn status(&self) -> KubernetesStatus {
        self.reporter().status()
    }

    fn kind(&self, kind: Kind) -> KindStatus {
        self.status().kinds.swap_remove(index(kind))
    }

    fn failures(&self, kind: Kind, reason: &str) -> u64 {
        let failures = self.kind(kind).failures;
        failures.iter().find(|(own, _)| own == reason).unwrap().1
    }

    /// Kinds of which a list was complete.
    fn kinds_listed(&self) -> usize {
        self.status().kinds.iter().filter(|own| own.lists > 0).count()
    }

    fn has(&self, pod: &str) -> bool {
        self.state.pods.contains_key(&ObjectName::new("shop", pod))
    }

    fn take(&mut self) {
        for change in self.feed.take() {
            self.sent += 1;
            self.gone += usize::from(matches!(change, Change::Gone(_)));
            self.state.apply(change);
        }
    }

    async fn complete(&mut self) {
        let waited = tokio::time::timeout(PATIENCE, self.reporter().completed()).await;
        assert!(waited.is_ok(), "{:#?}", self.status());
        self.take();
    }

    /// Waits until `wanted` holds.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let began = tokio::time::Instant::now();
        loop {
            self.take();
            if wanted(self) {
                return;
            }
            if began.elapsed() > PATIENCE {
                panic!("{what} did not come true: {:#?}", self.status());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": []},
           "status": {"phase": "Running"}})
}

fn fill(store: &Store, pods: usize) {
    store.set(Kind::Namespace, json!({"metadata": {"name": "shop"}})).unwrap();
    store.set(Kind::Node, json!({"metadata": {"name": "n1"}})).unwrap();
    for number in 0..pods {
        store.set(Kind::Pod, pod(&format!("p{number}"))).unwrap();
    }
    let policy =
        json!({"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}});
    store.set(Kind::NetworkPolicy, policy).unwrap();
}

/// As a server answers that has neither EndpointSlices nor NetworkPolicies, nor their groups.
fn lacks_groups(asked: &str) -> Fault {
    match asked {
        GROUPS => Fault::Text(r#"{"kind": "APIGroupList", "groups": [{"name": "apps"}]}"#),
        asked if asked.starts_with(GROUPS) => Fault::Code(404),
        _ => Fault::No,
    }
}

fn is_streamed(asked: &str) -> bool {
    asked.contains("sendInitialEvents")
}

fn is_watch(asked: &str) -> bool {
    asked.contains("watch=1") && !is_streamed(asked)
}

fn is_of_pods(asked: &str) -> bool {
    asked.starts_with("/api/v1/pods")
}

#[tokio::test]
async fn a_cluster_is_followed_by_streamed_lists_and_by_pages() {
    for streams in [true, false] {
        let store = store();
        fill(&store, 1200);
        let faults = judge(move |asked| match is_streamed(asked) && !streams {
            true => Fault::Code(400),
            false => Fault::No,
        });
        let server = serve_at("127.0.0.1:0", &store, &faults).await;
        let mut node = Node::start(settings(&[url(&server)]));
        node.complete().await;
        assert_eq!((node.state.pods.len(), node.state.network_policies.len()), (1200, 1));
        store.set(Kind::Pod, pod("new")).unwrap();
        store.delete(Kind::Pod, "shop", "p7").unwrap();
        node.until("a change", |node| node.has("new") && !node.has("p7")).await;
        // Watches end and go on where they were.
        let watches = node.kind(Kind::Pod).watches;
        node.until("another watch", |node| node.kind(Kind::Pod).watches > watches + 1).await;
        store.set(Kind::Pod, pod("newer")).unwrap();
        node.until("a change after it", |node| node.has("newer")).await;
        let pods = node.kind(Kind::Pod);
        assert_eq!((pods.lists, pods.relists), (1, 0), "{pods:#?}");
        assert_eq!((pods.streamed_lists, pods.objects), (u64::from(streams), 1201));
        assert!(pods.in_step && pods.last_error.is_none() && pods.events >= 3, "{pods:#?}");
        assert!(pods.seconds_since_sign_of_life.is_some_and(|seconds| seconds < 5));
        assert_eq!(node.status().server, Some(url(&server)));
    }
}

#[tokio::test]
async fn a_lost_past_is_listed_anew_and_only_what_went_goes() {
    let store = store();
    fill(&store, 50);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut node = Node::start(settings(&[url(&server)]));
    node.complete().await;
    store.delete(Kind::Pod, "shop", "p3").unwrap();
    store.set(Kind::Pod, pod("new")).unwrap();
    store.forget_history();
    node.until("the new list", |node| node.has("new") && !node.has("p3")).await;
    node.until("relists", |node| node.status().kinds.iter().all(|own| own.relists > 0)).await;
    assert_eq!((node.gone, node.state.pods.len()), (1, 50));
    assert_eq!(node.state.network_policies.len(), 1);
    assert!(node.failures(Kind::Pod, "expired") >= 1);
}

#[tokio::test]
async fn a_list_that_loses_most_is_held_until_a_second_one_and_reported_meanwhile() {
    let store = store();
    fill(&store, 100);
    let faults = judge(|_| Fault::No);
    let server = serve_at("127.0.0.1:0", &store, &faults).await;
    let mut settings = settings(&[url(&server)]);
    settings.hold_after = Duration::from_secs(3);
    let mut node = Node::start(settings);
    node.complete().await;
    // Gone while nobody could watch: the next list lacks them.
    set(&faults, |asked| if is_of_pods(asked) { Fault::Code(500) } else { Fault::No });
    node.until("a failure", |node| node.failures(Kind::Pod, "server-error") > 0).await;
    for number in 0..60 {
        store.delete(Kind::Pod, "shop", &format!("p{number}")).unwrap();
    }
    store.set(Kind::Pod, pod("new")).unwrap();
    store.forget_history();
    set(&faults, |_| Fault::No);
    node.until("a hold", |node| node.kind(Kind::Pod).held == 60).await;
    assert!(node.has("new"), "what came is in force");
    assert_eq!((node.state.pods.len(), node.kind(Kind::Pod).holds), (101, 1));
    // What is said of one of them counts.
    store.set(Kind::Pod, pod("p7")).unwrap();
    store.delete(Kind::Pod, "shop", "p7").unwrap();
    node.until("its end", |node| !node.has("p7")).await;
    node.until("agreement", |node| node.state.pods.len() == 41).await;
    assert_eq!(node.kind(Kind::Pod).held, 0);
    assert!(node.kind(Kind::Pod).in_step);
}
