//! Relays agree on one that writes Events, and it writes each once, whatever happens to it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::relay::writes::{
    CONTROLLER, ElectionTimes, FINDINGS_MAX, LeaseName, Rate, Rates, WriteSettings,
};
use cluster::relay::{Relay, Settings};
use control::model::Kind;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use xskiff_tests::cluster_server::{ClusterServer, Setup, Write, Written};

use super::relay::{relay, settings, until};
use super::{PATIENCE, get};

const TIMES: ElectionTimes = ElectionTimes {
    lease: Duration::from_secs(2),
    renew: Duration::from_millis(1200),
    retry: Duration::from_millis(300),
};
/// What a loaded machine adds to that.
const SLACK: Duration = Duration::from_millis(1500);

/// A way to the server that can be cut without a word, as a path that swallows packets.
struct Way {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let cut = Arc::clone(&cut);
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(server).await else { return };
                    let (from_read, from_write) = from.into_split();
                    let (to_read, to_write) = to.into_split();
                    let there = tokio::spawn(carry(from_read, to_write, Arc::clone(&cut)));
                    carry(to_read, from_write, cut).await;
                    there.abort();
                });
            }
        });
        Self { address, is_cut }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_cut: Arc<AtomicBool>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 64 << 10];
    while let Ok(number @ 1..) = from.read(&mut buffer).await {
        if is_cut.load(Ordering::SeqCst) {
            // Swallowed; the connection ends when the path is there again.
            while is_cut.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        if to.write_all(&buffer[..number]).await.is_err() {
            return;
        }
    }
}

fn writing(server: SocketAddr, identity: &str) -> Settings {
    let mut settings = settings(server);
    settings.metrics = Some("127.0.0.1:0".parse().unwrap());
    let lease = LeaseName { namespace: "xskiff".into(), name: "xskiff-relay".into() };
    let every = Duration::from_millis(20);
    let rates = Rates { all: Rate { burst: 100, every }, ..Rates::default() };
    settings.writes =
        Some(WriteSettings { identity: identity.to_owned(), lease, times: TIMES, rates });
    settings
}

fn leads(relay: &Relay) -> bool {
    relay.writes().unwrap().election().leads
}

async fn server() -> ClusterServer {
    let server = ClusterServer::start(Setup::default()).await.unwrap();
    server.store().set(Kind::Namespace, json!({ "metadata": { "name": "shop" } })).unwrap();
    server
}

/// A policy with a field that nobody knows.
fn bad_policy(name: &str, note: u32) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": format!("u-{name}") },
        "spec": { "podSelector": { "matchLabels": { "note": note.to_string() } },
                  "ingress": [{ "when": "night" }] },
    })
}

fn add(server: &ClusterServer, name: &str) {
    server.store().set(Kind::NetworkPolicy, bad_policy(name, 0)).unwrap();
}

fn regarding(event: &Value) -> String {
    event["regarding"]["name"].as_str().unwrap().to_owned()
}

async fn page(relay: &Relay, path: &str) -> String {
    let url = format!("http://{}", relay.metrics_address().unwrap());
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    String::from_utf8(get(&client, path, PATIENCE).await.unwrap().bytes).unwrap()
}

/// Events by who created them.
fn created_by(log: &[Write], identity: &str) -> Vec<(Instant, String)> {
    log.iter()
        .filter(|write| write.is_event() && write.method == "POST")
        .filter(|write| write.object["reportingInstance"] == identity)
        .map(|write| (write.at, regarding(&write.object)))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_is_killed_and_events_go_on_without_doubles() {
    let server = server().await;
    add(&server, "first");
    let leader = relay(writing(server.address(), "a")).await;
    until("a leader", || leads(&leader)).await;
    let other = relay(writing(server.address(), "b")).await;
    until("an Event", || server.written().events().len() == 1).await;
    let event = server.written().events().remove(0);
    assert_eq!((&event["reason"], &event["type"]), (&json!("UnknownField"), &json!("Warning")));
    assert_eq!(event["reportingController"], CONTROLLER);
    assert_eq!(event["regarding"]["uid"], "u-first");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("spec.ingress[0].when") && note.contains("allows nothing"), "{note}");
    until("the other to know it", || {
        other.writes().unwrap().election().leader.as_deref() == Some("a")
    })
    .await;
    assert!(!leads(&other));

    let killed = Instant::now();
    drop(leader);
    add(&server, "meanwhile");
    until("another leader", || leads(&other)).await;
    let after = killed.elapsed();
    assert!(after < TIMES.lease + TIMES.retry + SLACK, "{after:?}");
    assert_eq!(server.written().holder("xskiff-relay").as_deref(), Some("b"));
    until("the next Event", || server.written().events().len() == 2).await;
    until("the one before found", || other.writes().unwrap().events().found == 1).await;
    assert_eq!(other.writes().unwrap().events().written, 1);
    let log = server.written().log();
    assert_eq!(created_by(&log, "a").len() + created_by(&log, "b").len(), 2);
    for event in server.written().events() {
        assert!(event.get("series").is_none(), "each was seen once: {event}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_in_order_gives_up_the_lead_at_once() {
    let server = server().await;
    let leader = relay(writing(server.address(), "a")).await;
    until("a leader", || leads(&leader)).await;
    let mut slow = writing(server.address(), "b");
    // Whoever would wait for the record's end would wait for long.
    let times = ElectionTimes { lease: Duration::from_secs(600), ..TIMES };
    slow.writes.as_mut().unwrap().times = times;
    let other = relay(slow).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ending = tokio::spawn(leader.until(async {
        let _ = stopped.await;
    }));
    let began = Instant::now();
    stop.send(()).unwrap();
    ending.await.unwrap();
    until("the next leader", || leads(&other)).await;
    assert!(began.elapsed() < TIMES.retry + SLACK, "{:?}", began.elapsed());
    assert_eq!(other.writes().unwrap().election().transitions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_stops_writing_before_another_leads() {
    let server = server().await;
    let way = Way::to(server.address()).await;
    let leader = relay(writing(way.address, "a")).await;
    until("a leader", || leads(&leader)).await;
    let other = relay(writing(server.address(), "b")).await;
    add(&server, "before");
    until("an Event", || server.written().events().len() == 1).await;
    // Something is under way all the time, at both.
    let (store, stop) = (Arc::clone(server.store()), Arc::new(AtomicBool::new(false)));
    let ends = Arc::clone(&stop);
    let changes = tokio::spawn(async move {
        for turn in 1.. {
            if ends.load(Ordering::SeqCst) {
                return;
            }
            let name = format!("p{turn}");
            store.set(Kind::NetworkPolicy, bad_policy(&name, turn)).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    until("Events", || server.written().events().len() > 5).await;
    way.cut();
    let cut = Instant::now();
    while leads(&leader) {
        assert!(!leads(&other), "two lead");
        assert!(cut.elapsed() < PATIENCE, "it leads for ever");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(cut.elapsed() < TIMES.renew + SLACK, "{:?}", cut.elapsed());
    until("another leader", || leads(&other)).await;
    let taken = Instant::now();
    way.mend();
    until("Events of the other", || !created_by(&server.written().log(), "b").is_empty()).await;
    stop.store(true, Ordering::SeqCst);
    changes.await.unwrap();
    until("all of them", || {
        server.written().events().len() == server.store().counts(Kind::NetworkPolicy).objects
    })
    .await;
    assert!(!leads(&leader), "it sees that another leads");
    let log = server.written().log();
    let late = created_by(&log, "a").into_iter().filter(|(at, _)| *at > taken);
    assert_eq!(late.count(), 0, "it wrote while another led");
    let events = server.written().events();
    let objects: BTreeSet<String> = events.iter().map(regarding).collect();
    assert_eq!(objects.len(), events.len(), "no doubles");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_policy_makes_one_event_however_often_it_is_listed() {
    let mut server = server().await;
    add(&server, "deny");
    let leader = relay(writing(server.address(), "a")).await;
    until("an Event", || server.written().events().len() == 1).await;
    for lists in 2..5 {
        server.kill();
        // Something happens meanwhile, so that watches cannot go on.
        let name = format!("n{lists}");
        server.store().set(Kind::Namespace, json!({ "metadata": { "name": name } })).unwrap();
        server.come_back().await.unwrap();
        until("a list", || leader.standing().of(Kind::NetworkPolicy).lists >= lists).await;
    }
    let events = || server.written().log().iter().filter(|write| write.is_event()).count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(events(), 1, "{:?}", server.written().log());
    // It is changed, and is as bad as before: the same Event counts.
    server.store().set(Kind::NetworkPolicy, bad_policy("deny", 1)).unwrap();
    until("the series", || server.written().events()[0]["series"]["count"] == 2).await;
    assert_eq!(server.written().events().len(), 1);
    let text = page(&leader, "/metrics").await;
    for line in [
        "xskiff_relay_leader 1\n",
        "xskiff_relay_kubernetes_events_written_total 1\n",
        "xskiff_relay_kubernetes_events_merged_total 1\n",
        "xskiff_relay_objects_unusable{resource=\"networkpolicies\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    // It is mended.
    let good =
        json!({"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}});
    server.store().set(Kind::NetworkPolicy, good).unwrap();
    let version = server.store().counts(Kind::NetworkPolicy).version;
    until("the change", || leader.store().counts(Kind::NetworkPolicy).version == version).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let text = page(&leader, "/metrics").await;
    assert!(text.contains("objects_unusable{resource=\"networkpolicies\"} 0\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_node_cannot_use_is_told_with_its_reason() {
    let server = server().await;
    let set = |kind, object: Value| server.store().set(kind, object).unwrap();
    let policy = |name: &str, rule: Value| {
        json!({ "metadata": { "name": name, "namespace": "shop" },
                "spec": { "podSelector": {}, "ingress": [rule] } })
    };
    let block = json!({ "from": [{ "ipBlock": { "cidr": "10.0.0.0/33" } }] });
    set(Kind::NetworkPolicy, policy("cidr", block));
    set(Kind::NetworkPolicy, policy("port", json!({ "ports": [{ "port": 0 }] })));
    let expressions = json!([{ "key": "a", "operator": "Likes" }]);
    let selector = json!({ "from": [{ "podSelector": { "matchExpressions": expressions } }] });
    set(Kind::NetworkPolicy, policy("selector", selector));
    set(
        Kind::Namespace,
        json!({ "metadata": { "name": "slip", "annotations": { "xskiff.io/policy-mode": "Audit" } } }),
    );
    let pod = |name: &str| {
        json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": { "containers": [] },
                "status": { "phase": "Running", "podIP": "10.1.0.5" } })
    };
    set(Kind::Pod, pod("one"));
    set(Kind::Pod, pod("two"));
    let mut strange = pod("strange");
    strange["status"]["podIP"] = json!("nowhere");
    set(Kind::Pod, strange);
    let _relay = relay(writing(server.address(), "a")).await;
    let told = || -> BTreeSet<(String, String)> {
        let events = server.written().events();
        events
            .iter()
            .map(|event| (regarding(event), event["reason"].as_str().unwrap().into()))
            .collect()
    };
    let wanted: BTreeSet<(String, String)> = [
        ("cidr", "InvalidPolicy"),
        ("port", "InvalidPolicy"),
        ("selector", "InvalidPolicy"),
        ("slip", "UnreadableAnnotation"),
        ("one", "AddressClaimedTwice"),
        ("two", "AddressClaimedTwice"),
        ("strange", "InvalidObject"),
    ]
    .map(|(name, reason)| (name.to_owned(), reason.to_owned()))
    .into();
    until("all of them", || told().len() >= wanted.len()).await;
    assert_eq!(told(), wanted);
    for event in server.written().events() {
        assert!(event["note"].as_str().is_some_and(|note| note.len() > 10), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_held_and_the_one_that_is_taken_are_told() {
    let mut server = server().await;
    for number in 0..60 {
        let pod = json!({ "metadata": { "name": format!("p{number}"), "namespace": "shop" },
                          "spec": { "containers": [] } });
        server.store().set(Kind::Pod, pod).unwrap();
    }
    let leader = relay(writing(server.address(), "a")).await;
    until("a leader", || leads(&leader)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill();
    for number in 0..40 {
        server.store().delete(Kind::Pod, "shop", &format!("p{number}")).unwrap();
    }
    server.come_back().await.unwrap();
    let reasons = || -> Vec<Value> {
        server.written().events().iter().map(|event| event["reason"].clone()).collect()
    };
    until("both", || reasons().len() == 2).await;
    assert!(reasons().contains(&json!("ListHeld")) && reasons().contains(&json!("ListTaken")));
    let events = server.written().events();
    let held = events.iter().find(|event| event["reason"] == "ListHeld").unwrap();
    assert!(held["note"].as_str().unwrap().contains("40 of 60"), "{held}");
    assert_eq!(
        (&held["regarding"]["kind"], regarding(held)),
        (&json!("Lease"), "xskiff-relay".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_objects_is_limited_and_counted() {
    let server = server().await;
    let more = 200;
    for number in 0..FINDINGS_MAX + more {
        add(&server, &format!("p{number}"));
    }
    let mut settings = writing(server.address(), "a");
    let every = Duration::from_millis(200);
    settings.writes.as_mut().unwrap().rates.all = Rate { burst: 50, every };
    let began = Instant::now();
    let leader = relay(settings).await;
    until("the burst", || server.written().events().len() >= 50).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let most = 50 + began.elapsed().as_millis() / every.as_millis() + 1;
    let number = server.written().events().len();
    assert!((55..=most as usize).contains(&number), "{number}, at most {most}");
    let writes = leader.writes().unwrap();
    assert_eq!(writes.events().suppressed, more as u64);
    assert!(writes.waiting() > FINDINGS_MAX - number - 10);
    let text = page(&leader, "/readyz").await;
    assert!(text.contains("200 suppressed") && text.contains("leader: this relay, a"), "{text}");
    assert_eq!(leader.store().counts(Kind::NetworkPolicy).objects, FINDINGS_MAX + more);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_writes_disturbs_nothing_else() {
    let server = server().await;
    server.written().forbid(Some(Written::EVENTS));
    add(&server, "deny");
    let leader = relay(writing(server.address(), "a")).await;
    let writes = Arc::clone(leader.writes().unwrap());
    until("a refusal", || writes.events().failed >= 1).await;
    let error = writes.event_error().unwrap();
    assert!(error.contains("403"), "{error}");
    let text = page(&leader, "/readyz").await;
    assert!(text.starts_with("ok") && text.contains("the last one failed"), "{text}");
    assert!(leads(&leader), "the Lease is another matter");
    server
        .store()
        .set(Kind::Pod, json!({ "metadata": { "name": "a", "namespace": "shop" } }))
        .unwrap();
    until("a pod", || leader.store().counts(Kind::Pod).objects == 1).await;
    assert_eq!(leader.standing().of(Kind::Pod).failures, 0);
    // What failed is written when it may be.
    server.written().forbid(None);
    until("the Event", || server.written().events().len() == 1).await;
    // The server's answer may still be on its way.
    until("its answer", || writes.event_error().is_none()).await;
    assert_eq!(writes.events().written, 1);

    server.written().forbid(Some(Written::LEASES));
    until("a refusal", || writes.election().failures >= 3).await;
    until("the end of the lead", || !leads(&leader)).await;
    assert!(writes.election().last_error.is_some_and(|error| error.contains("403")));
    server
        .store()
        .set(Kind::Pod, json!({ "metadata": { "name": "b", "namespace": "shop" } }))
        .unwrap();
    until("a pod", || leader.store().counts(Kind::Pod).objects == 2).await;
    server.written().forbid(None);
    until("a leader again", || leads(&leader)).await;
}
