//! Many nodes behind a relay cost the API server what one costs, and get less to read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::client::{Access, Credentials};
use cluster::relay::{Relay, Settings, Times, TlsFiles};
use cluster::serve::{Counts, HistoryLimits, Limits};
use control::model::Kind;
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, Config};
use xskiff_tests::cluster_server::synthetic::{Detail, Size, Synthetic};
use xskiff_tests::cluster_server::{Authority, ClusterServer, Fault, Live, On, Setup};

use super::{PATIENCE, certificate, get};

const PATHS: [&str; 6] = [
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/networking.k8s.io/v1/networkpolicies",
];

fn cluster() -> Synthetic {
    Synthetic { size: Size::SMALL, detail: Detail::Real, seed: 5 }
}

pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what} did not come true");
}

pub(crate) fn settings(server: SocketAddr) -> Settings {
    let times = Times {
        silence: Duration::from_secs(3),
        backoff: (Duration::from_millis(10), Duration::from_millis(100)),
        hold: Duration::from_secs(1),
    };
    Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics: None,
        tls: None,
        token_file: None,
        upstream: Access {
            relays: Vec::new(),
            api_servers: vec![format!("http://{server}").parse().unwrap()],
            credentials: Credentials::ServiceAccount("/none".into()),
            ca_file: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(2),
            rest: times.backoff,
        },
        times,
        limits: Limits::default(),
        history: HistoryLimits::default(),
        writes: None,
    }
}

pub(crate) async fn relay(settings: Settings) -> Relay {
    let relay = Relay::start(settings).await.unwrap();
    let store = Arc::clone(relay.store());
    until("the first lists", || store.is_filled()).await;
    relay
}

fn client(relay: &Relay) -> Client {
    let mut config = Config::new(format!("http://{}", relay.address()).parse().unwrap());
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// Watches every kind as a node does, and reads whatever comes.
fn node(client: &Client) -> Vec<tokio::task::JoinHandle<()>> {
    let watch = |path: &&str| {
        let (client, path) = (client.clone(), format!("{path}?watch=true"));
        tokio::spawn(async move {
            let request = http::Request::get(path).body(Body::empty()).unwrap();
            let mut body = client.send(request).await.unwrap().into_body();
            while let Some(Ok(_)) = body.frame().await {}
        })
    };
    PATHS.iter().map(watch).collect()
}

#[tokio::test]
async fn the_api_server_has_one_watch_for_each_kind_whatever_the_number_of_nodes() {
    let server = ClusterServer::start(Setup::default()).await.unwrap();
    cluster().fill(server.store());
    let mut settings = settings(server.address());
    settings.times.silence = Duration::from_secs(615);
    let relay = relay(settings).await;
    let upstream = Arc::clone(server.server().unwrap().counts());
    let served = Arc::clone(relay.server().counts());
    let mut readers = Vec::new();
    let pods = Size::SMALL.pods as u64;
    for nodes in [1_u64, 10, 100] {
        while (readers.len() as u64) < nodes * 6 {
            readers.extend(node(&client(&relay)));
        }
        until("all watches", || Counts::get(&served.watches) == nodes * 6).await;
        until("one each", || Counts::get(&upstream.watches) == 6).await;
        let before = (
            Counts::get(&upstream.watch_bytes),
            Counts::get(&upstream.events),
            Counts::get(&served.watch_bytes),
            Counts::get(&served.events),
        );
        for pod in 0..Size::SMALL.pods {
            server.store().set(Kind::Pod, cluster().pod_at(pod, nodes as usize)).unwrap();
        }
        // Which is as many changes of readiness, 1 being odd and the others even.
        let changed = if nodes == 100 { 0 } else { pods };
        until("all events", || Counts::get(&upstream.events) == before.1 + pods).await;
        let version = server.store().counts(Kind::Pod).version;
        until("their end", || relay.store().counts(Kind::Pod).version == version).await;
        until("them at nodes", || Counts::get(&served.events) == before.3 + changed * nodes).await;
        let direct = (Counts::get(&upstream.watch_bytes) - before.0) / pods;
        let relayed = (Counts::get(&served.watch_bytes) - before.2) / (changed * nodes).max(1);
        println!(
            "{nodes} nodes: an event has {direct} bytes from the API server, {relayed} relayed"
        );
        assert!((6000..9000).contains(&direct), "{direct}");
        assert!(relayed < 900, "{relayed}");
        assert_eq!(Counts::get(&upstream.watches_begun), 6);
    }
    assert_eq!(relay.store().counts(Kind::Pod).unannounced, pods, "of nothing that nodes read");
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_comes_through_faults_with_what_the_api_server_has() {
    let mut server =
        ClusterServer::start(Setup { seed: 20_261, ..Setup::default() }).await.unwrap();
    let small = Synthetic { detail: Detail::Lean, ..cluster() };
    small.fill(server.store());
    let relay = relay(settings(server.address())).await;
    let faults = Arc::clone(server.faults());
    let slow = Fault::Slow { bytes: 3000, pause: Duration::from_millis(2) };
    faults.by_chance(
        3,
        vec![
            Fault::Stall,
            Fault::HalfOpen { after: 2000 },
            Fault::TOO_MANY,
            Fault::INTERNAL,
            Fault::GONE,
            Fault::Garbage { after: 700 },
            Fault::Cut { after: 1500 },
            slow,
        ],
    );
    for round in 0..6_usize {
        for pod in 0..10 {
            server.store().set(Kind::Pod, small.pod_at(pod, round)).unwrap();
        }
        match round {
            1 => faults.live(Live::Cut),
            2 => faults.live(Live::Silent),
            3 => {
                server.kill();
                let (namespace, name) = small.pod_name(20);
                server.store().delete(Kind::Pod, &namespace, &name).unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                server.come_back().await.unwrap();
            }
            4 => faults.live(Live::Garbage),
            _ => faults.live(Live::Flowing),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Whatever happens, nothing that is there vanishes.
        let objects = relay.store().counts(Kind::Pod).objects;
        assert!((59..=60).contains(&objects), "{objects} in round {round}");
    }
    faults.clear();
    for kind in Kind::ALL {
        let same = || relay.store().versions(kind) == server.store().versions(kind);
        until("the same objects", same).await;
    }
    println!("met: {:?}", faults.met());
    assert!(faults.met().values().sum::<u64>() >= 5, "{:?}", faults.met());
    for kind in Kind::ALL {
        assert_eq!(relay.store().counts(kind).resets, 0, "nobody had to begin anew");
    }
}

#[tokio::test]
async fn a_lossy_list_is_not_believed() {
    let mut server = ClusterServer::start(Setup::default()).await.unwrap();
    cluster().fill(server.store());
    let relay = relay(settings(server.address())).await;
    // Not as a stream, which has no part to be missed.
    let refused = Fault::Refusal { code: 400, retry_after_seconds: None };
    server.faults().always(On::STREAMED_LISTS.of("pods"), refused);
    server.faults().once(On::LISTS.of("pods"), Fault::Lossy);
    server.kill();
    // Something happens meanwhile, so that watches cannot go on.
    server.store().set(Kind::Namespace, cluster().namespace(0)).unwrap();
    server.come_back().await.unwrap();
    until("a loss", || relay.standing().of(Kind::Pod).held == 20).await;
    assert_eq!(relay.store().counts(Kind::Pod).objects, 60);
    until("the truth", || relay.standing().of(Kind::Pod).held == 0).await;
    assert_eq!(relay.store().versions(Kind::Pod), server.store().versions(Kind::Pod));
    assert_eq!(relay.store().counts(Kind::Pod).changes, 60, "the first list, and nothing since");
}

#[tokio::test]
async fn tls_holds_on_both_sides_and_certificates_are_asked_for() {
    let (cluster_authority, own) = (Arc::new(Authority::default()), Authority::new("relay"));
    let setup = Setup { authority: Some(Arc::clone(&cluster_authority)), ..Setup::default() };
    let server = ClusterServer::start(setup).await.unwrap();
    cluster().fill(server.store());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = own.sign("relay");
    let mut settings = settings(server.address());
    file("token", "of-the-relay");
    settings.upstream.api_servers = vec![server.url().parse().unwrap()];
    settings.upstream.credentials = Credentials::ServiceAccount(directory.path().into());
    settings.upstream.ca_file = Some(file("cluster.pem", &cluster_authority.pem()));
    settings.tls = Some(TlsFiles {
        certificate: file("tls.crt", &identity.certificate),
        key: file("tls.key", &identity.key),
        client_authority: Some(file("clients.pem", &own.pem())),
    });
    let relay = relay(settings).await;
    let url: http::Uri = format!("https://{}", relay.address()).parse().unwrap();
    let ask = |identity: Option<(String, String)>| {
        let mut config = Config::new(url.clone());
        config.default_retry = false;
        config.root_cert = Some(vec![certificate(&own)]);
        if let Some((certificate, key)) = identity {
            let encode = |text: String| Some(super::to_base64(text.as_bytes()));
            config.auth_info.client_certificate_data = encode(certificate);
            config.auth_info.client_key_data = encode(key).map(Into::into);
        }
        let client = Client::try_from(config).unwrap();
        async move { client.send(http::Request::get(PATHS[2]).body(Body::empty()).unwrap()).await }
    };
    let known = own.sign("node");
    let answer = ask(Some((known.certificate, known.key))).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert!(ask(None).await.is_err(), "a certificate is asked for");
    let stranger = cluster_authority.sign("stranger");
    assert!(ask(Some((stranger.certificate, stranger.key))).await.is_err());
}

/// A tenth of the largest cluster, or all of it with `XSKIFF_CLUSTER=large`.
fn large() -> Synthetic {
    let part = match std::env::var("XSKIFF_CLUSTER").as_deref() {
        Ok("large") => 1,
        _ => 10,
    };
    let Size { nodes, namespaces, pods, services, policies } = Size::LARGE;
    let size = Size {
        nodes: nodes / part,
        namespaces: namespaces / part,
        pods: pods / part,
        services: services / part,
        policies: policies / part,
    };
    Synthetic { size, detail: Detail::Lean, seed: 150 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_is_relayed_whole_and_one_change_reaches_who_watches() {
    let patience = Duration::from_secs(300);
    let server = ClusterServer::start(Setup::default()).await.unwrap();
    let (began, size) = (Instant::now(), large().size);
    large().fill(server.store());
    let filled = began.elapsed();
    let began = Instant::now();
    let mut settings = settings(server.address());
    settings.upstream.request_timeout = Duration::from_secs(60);
    settings.times.silence = Duration::from_secs(615);
    let relay = Relay::start(settings).await.unwrap();
    let store = Arc::clone(relay.store());
    while !store.is_filled() && began.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let followed = began.elapsed();
    for kind in Kind::ALL {
        assert_eq!(store.versions(kind), server.store().versions(kind), "{kind:?}");
    }
    let client = client(&relay);
    let began = Instant::now();
    let list = get(&client, PATHS[2], patience).await.unwrap();
    let (listed, bytes) = (began.elapsed(), list.bytes.len());
    assert!(list.whole);
    assert_eq!(list.json()["items"].as_array().unwrap().len(), size.pods);
    drop(list);

    let version = store.counts(Kind::Pod).version;
    let path = format!("{}?watch=true&resourceVersion={version}", PATHS[2]);
    let request = http::Request::get(path).body(Body::empty()).unwrap();
    let mut watch = client.send(request).await.unwrap().into_body();
    let mut delays = Vec::new();
    for pod in 0..200 {
        let began = Instant::now();
        server.store().set(Kind::Pod, large().pod_at(pod, 1)).unwrap();
        let event = tokio::time::timeout(patience, watch.frame()).await.unwrap();
        assert!(event.unwrap().unwrap().is_data());
        delays.push(began.elapsed());
    }
    delays.sort_unstable();
    println!(
        "{size:?}: filled in {filled:?}, relayed in {followed:?}; a list of {bytes} bytes in \
         {listed:?}; a change at who watches the relay in {:?} (median), {:?} (99 %)",
        delays[100], delays[197]
    );
}
