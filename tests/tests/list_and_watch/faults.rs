//! Each fault is what it says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control::model::Kind;
use http_body_util::BodyExt as _;
use kube::client::Body;
use xskiff_tests::cluster_server::synthetic::{Detail, Size, Synthetic};
use xskiff_tests::cluster_server::{Authority, ClusterServer, Fault, Live, On, Setup};

use super::{Got, PATIENCE, client, get};

const PODS: &str = "/api/v1/pods";
/// Whatever has not come by then does not come.
const SILENCE: Duration = Duration::from_millis(300);

fn cluster() -> Synthetic {
    Synthetic { size: Size::SMALL, detail: Detail::Lean, seed: 7 }
}

async fn server() -> ClusterServer {
    let server = ClusterServer::start(Setup::default()).await.unwrap();
    cluster().fill(server.store());
    server
}

async fn pods(server: &ClusterServer) -> Got {
    get(&client(server, None), PODS, PATIENCE).await.expect("an answer")
}

#[tokio::test]
async fn refusals_are_met_once_or_until_they_are_cleared() {
    let server = server().await;
    let faults = server.faults();
    faults.once(On::LISTS, Fault::TOO_MANY);
    faults.once(On::LISTS.of("nodes"), Fault::INTERNAL);
    let refused = pods(&server).await;
    assert_eq!((refused.code, refused.retry_after.as_deref()), (429, Some("1")));
    assert_eq!(refused.json()["kind"], "Status");
    assert_eq!(pods(&server).await.code, 200, "the other is for nodes");
    faults.always(On::ALL, Fault::GONE);
    for _ in 0..3 {
        assert_eq!(pods(&server).await.code, 410);
    }
    faults.clear();
    assert_eq!(pods(&server).await.code, 200);
    assert_eq!(faults.met().into_iter().collect::<Vec<_>>(), [("refusal", 4)]);
}

#[tokio::test]
async fn stalls_say_nothing_and_half_open_answers_stop() {
    let server = server().await;
    server.faults().once(On::ALL, Fault::Stall);
    server.faults().once(On::ALL, Fault::HalfOpen { after: 1000 });
    for _ in 0..2 {
        assert!(get(&client(&server, None), PODS, SILENCE).await.is_none());
    }
    assert!(pods(&server).await.whole);
}

#[tokio::test]
async fn cuts_and_garbage_come_after_what_is_right() {
    let server = server().await;
    let right = pods(&server).await;
    for after in [0, 1, 1000] {
        server.faults().once(On::ALL, Fault::Cut { after });
        let cut = pods(&server).await;
        assert!(!cut.whole);
        assert_eq!(cut.bytes, right.bytes[..after]);
    }
    server.faults().once(On::ALL, Fault::Garbage { after: 500 });
    let garbage = pods(&server).await;
    assert!(garbage.whole && garbage.bytes.starts_with(&right.bytes[..500]));
    assert!(serde_json::from_slice::<serde_json::Value>(&garbage.bytes).is_err());
}

#[tokio::test]
async fn a_slow_answer_is_whole_and_takes_its_time() {
    let server = server().await;
    let right = pods(&server).await;
    let pause = Duration::from_millis(20);
    server.faults().once(On::ALL, Fault::Slow { bytes: right.bytes.len() / 10, pause });
    let began = Instant::now();
    assert_eq!(pods(&server).await.bytes, right.bytes);
    assert!(began.elapsed() >= pause * 10);
}

#[tokio::test]
async fn a_lossy_list_misses_a_third_and_looks_whole() {
    let server = server().await;
    let right = pods(&server).await.json();
    server.faults().once(On::LISTS, Fault::Lossy);
    let lossy = pods(&server).await.json();
    let number = |list: &serde_json::Value| list["items"].as_array().unwrap().len();
    assert_eq!((number(&right), number(&lossy)), (60, 40));
    assert_eq!(right["metadata"], lossy["metadata"]);
}

#[tokio::test]
async fn open_watches_fall_silent_and_speak_again() {
    let server = server().await;
    let client = client(&server, None);
    let version = server.store().counts(Kind::Pod).version;
    let path = format!("{PODS}?watch=true&resourceVersion={version}");
    let request = http::Request::get(path).body(Body::empty()).unwrap();
    let mut watch = client.send(request).await.unwrap().into_body();
    let change = |turn| server.store().set(Kind::Pod, cluster().pod_at(3, turn)).unwrap();
    change(1);
    let event = tokio::time::timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().unwrap();
    assert!(event.into_data().unwrap().starts_with(b"{\"type\":\"MODIFIED\""));
    server.faults().live(Live::Silent);
    change(2);
    assert!(tokio::time::timeout(SILENCE, watch.frame()).await.is_err());
    server.faults().live(Live::Flowing);
    let event = tokio::time::timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().unwrap();
    assert!(event.is_data());
    server.faults().live(Live::Cut);
    assert!(tokio::time::timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn a_server_that_comes_back_has_its_objects_and_no_past() {
    let authority = Arc::new(Authority::default());
    let setup = Setup { authority: Some(Arc::clone(&authority)), ..Setup::default() };
    let mut server = ClusterServer::start(setup).await.unwrap();
    cluster().fill(server.store());
    let client = client(&server, Some(&authority));
    let list = get(&client, PODS, PATIENCE).await.unwrap().json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    server.kill();
    let request = http::Request::get(PODS).body(Body::empty()).unwrap();
    assert!(client.send(request).await.is_err(), "refused while it is down");
    server.store().set(Kind::Pod, cluster().pod_at(1, 1)).unwrap();
    server.come_back().await.unwrap();
    let watch = format!("{PODS}?watch=true&resourceVersion={version}");
    let error = get(&client, &watch, PATIENCE).await.unwrap().json();
    assert_eq!((&error["type"], &error["object"]["code"]), (&"ERROR".into(), &410.into()));
    assert_eq!(get(&client, PODS, PATIENCE).await.unwrap().code, 200);
}

#[tokio::test]
async fn chance_is_repeated_by_the_seed() {
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let server = ClusterServer::start(Setup { seed, ..Setup::default() }).await.unwrap();
        server.faults().by_chance(3, vec![Fault::TOO_MANY, Fault::INTERNAL, Fault::GONE]);
        let client = client(&server, None);
        let mut codes = Vec::new();
        for _ in 0..40 {
            codes.push(get(&client, "/api/v1/nodes", PATIENCE).await.unwrap().code);
        }
        assert!(codes.contains(&200) && codes.iter().any(|code| *code != 200), "{codes:?}");
        runs.push(codes);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}
