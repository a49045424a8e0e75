//! The protocol, request by request.

use control::model::Kind;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// The lines of a watch, as they come.
pub struct Lines {
    body: std::pin::Pin<Box<dyn futures_util::Stream<Item = Vec<u8>> + Send>>,
    rest: Vec<u8>,
}

impl Lines {
    pub async fn of(client: &Client, query: &str) -> Self {
        let path = format!("/api/v1/pods?watch=true&{query}");
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let body = answer.into_body().into_data_stream();
        let body = body.filter_map(|piece| async { piece.ok().map(|piece| piece.to_vec()) });
        Self { body: Box::pin(body), rest: Vec::new() }
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        let read = async {
            loop {
                if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.rest.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                self.rest.extend(self.body.next().await?);
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an event or the end")
    }

    pub async fn kinds(&mut self, number: usize) -> Vec<String> {
        let mut kinds = Vec::new();
        for _ in 0..number {
            let event = self.next().await.expect("an event");
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
            kinds.push(format!("{} {name}", event["type"].as_str().unwrap()));
        }
        kinds
    }
}

#[tokio::test]
async fn pages_show_the_moment_of_the_first_whatever_comes_between() {
    let (server, store) = serving(|_| {}).await;
    let client = client(&server);
    fill_pods(&store, 10);
    let (_, first) = get_json(&client, "/api/v1/pods?limit=4").await;
    assert_eq!(names(&first), ["p000", "p001", "p002", "p003"]);
    store.delete(Kind::Pod, "shop", "p005").unwrap();
    store.set(Kind::Pod, pod("shop", "p0041", "n1")).unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let next = format!("/api/v1/pods?limit=4&continue={token}");
    let (_, second) = get_json(&client, &next).await;
    assert_eq!(names(&second), ["p004", "p005", "p006", "p007"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let (_, third) = get_json(&client, &format!("/api/v1/pods?limit=4&continue={token}")).await;
    assert_eq!(names(&third), ["p008", "p009"]);
    assert_eq!(third["metadata"]["continue"], Value::Null);

    // The past is lost: 410, and a token to go on at the cost of consistency.
    store.forget_history();
    let (code, status) = get_json(&client, &next).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    let token = status["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = get_json(&client, &format!("/api/v1/pods?continue={token}")).await;
    assert_eq!(names(&rest), ["p004", "p0041", "p006", "p007", "p008", "p009"]);
}

#[tokio::test]
async fn a_list_says_of_what_moment_it_is_and_may_be_asked_for_one() {
    let (server, store) = serving(|_| {}).await;
    let client = client(&server);
    fill_pods(&store, 2);
    let (_, list) = get_json(&client, "/api/v1/pods").await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodList"), &json!("v1")));
    // The API server leaves kind and apiVersion out of a list's items.
    assert_eq!(list["items"][0]["kind"], Value::Null);
    store.delete(Kind::Pod, "shop", "p000").unwrap();
    let at = format!("/api/v1/pods?resourceVersion={version}&resourceVersionMatch=");
    let (_, exact) = get_json(&client, &format!("{at}Exact")).await;
    assert_eq!(exact, list);
    let (_, newer) = get_json(&client, &format!("{at}NotOlderThan")).await;
    assert_eq!(names(&newer), ["p001"]);
    store.forget_history();
    assert_eq!(get(&client, &format!("{at}Exact")).await.0, 410);
    let (code, status) = get_json(&client, "/api/v1/pods?resourceVersion=999").await;
    assert_eq!((code, &status["details"]["retryAfterSeconds"]), (504, &json!(1)));
}

#[tokio::test]
async fn a_list_longer_than_a_piece_is_whole() {
    let (server, store) = serving(|_| {}).await;
    for index in 0..5000 {
        let mut object = pod("shop", &format!("p{index:04}"), "n1");
        object["metadata"]["annotations"] = json!({ "note": "x".repeat(200) });
        store.set(Kind::Pod, object).unwrap();
    }
    let (_, list) = get_json(&client(&server), "/api/v1/pods").await;
    assert_eq!(names(&list).len(), 5000);
    assert!(names(&list).is_sorted());
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_annotated_bookmark() {
    let (server, store) = serving(|_| {}).await;
    fill_pods(&store, 2);
    let query = "allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut lines = Lines::of(&client(&server), query).await;
    assert_eq!(lines.kinds(2).await, ["ADDED p000", "ADDED p001"]);
    let end = lines.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(end["object"]["metadata"]["resourceVersion"], "3");
    store.set(Kind::Pod, pod("shop", "p002", "n1")).unwrap();
    assert_eq!(lines.kinds(1).await, ["ADDED p002"]);
}

#[tokio::test]
async fn bookmarks_come_in_time_and_before_the_end_and_an_empty_kind_gets_none() {
    let often = |options: &mut Options| options.limits.bookmarks = Duration::from_millis(100);
    let (server, store) = serving(often).await;
    let client = client(&server);
    let quiet = "allowWatchBookmarks=true&timeoutSeconds=1";
    assert_eq!(Lines::of(&client, quiet).await.next().await, None);
    fill_pods(&store, 1);
    store.set(Kind::Namespace, json!({ "metadata": { "name": "shop" } })).unwrap();
    let mut lines = Lines::of(&client, "resourceVersion=2&allowWatchBookmarks=true").await;
    let bookmark = lines.next().await.unwrap();
    // The counter is of all kinds: nothing of this one is missing up to there.
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], "3");
    assert_eq!(lines.kinds(1).await, ["BOOKMARK -"]);
    // With bookmarks a minute apart, the last one comes two seconds before the end.
    let (server, store) = serving(|_| {}).await;
    fill_pods(&store, 1);
    let query = "resourceVersion=2&allowWatchBookmarks=true&timeoutSeconds=3";
    let mut lines = Lines::of(&super::client(&server), query).await;
    assert_eq!(lines.kinds(1).await, ["BOOKMARK -"]);
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn what_enters_and_leaves_a_selection_is_added_and_deleted() {
    let (server, store) = serving(|_| {}).await;
    let client = client(&server);
    store.set(Kind::Pod, pod("shop", "a", "n1")).unwrap();
    store.set(Kind::Pod, pod("bank", "b", "n2")).unwrap();
    let mut lines = Lines::of(&client, "fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(lines.kinds(1).await, ["ADDED a"]);
    store.set(Kind::Pod, pod("bank", "b", "n1")).unwrap();
    store.set(Kind::Pod, pod("bank", "b", "n1")).unwrap();
    store.set(Kind::Pod, pod("shop", "a", "n3")).unwrap();
    store.set(Kind::Pod, pod("shop", "c", "n3")).unwrap();
    store.delete(Kind::Pod, "bank", "b").unwrap();
    assert_eq!(lines.kinds(4).await, ["ADDED b", "MODIFIED b", "DELETED a", "DELETED b"]);
    let (_, list) = get_json(&client, "/api/v1/namespaces/shop/pods?labelSelector=app%3Dc").await;
    assert_eq!(names(&list), ["c"]);
    let (_, one) = get_json(&client, "/api/v1/namespaces/shop/pods/c").await;
    assert_eq!((&one["kind"], &one["spec"]["nodeName"]), (&json!("Pod"), &json!("n3")));
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told_so_by_its_first_event() {
    let (server, store) = serving(|_| {}).await;
    fill_pods(&store, 3);
    store.forget_history();
    let mut lines = Lines::of(&client(&server), "resourceVersion=2").await;
    let event = lines.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["message"], "too old resource version: 2 (4)");
    assert_eq!(lines.next().await, None);
    assert_eq!(Counts::get(&server.counts().expired), 1);
}

#[tokio::test]
async fn refusals_are_status_objects() {
    let access: Access = Arc::new(|token, _, kind| match (token, kind) {
        (None, _) => Err(Denied::Unauthorized),
        (Some("known"), Kind::Pod) => Ok(()),
        _ => Err(Denied::Forbidden),
    });
    let (server, _store) = serving(|options| {
        options.access = Some(access);
        options.limits.watches = 0;
    })
    .await;
    let address = server.address();
    let asks = |method: &'static str, path: &'static str, header: &'static str| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let known = "Authorization: Bearer known\r\n";
    for (method, path, header, code, reason) in [
        ("GET", "/api/v1/pods", "", "401", "Unauthorized"),
        ("GET", "/api/v1/nodes", known, "403", "Forbidden"),
        ("GET", "/apis/cilium.io/v2/ciliumnodes", known, "404", "NotFound"),
        ("POST", "/api/v1/pods", known, "405", "MethodNotAllowed"),
        ("GET", "/api/v1/pods?limit=x", known, "400", "BadRequest"),
        ("GET", "/api/v1/pods?watch=1", known, "429", "TooManyRequests"),
    ] {
        let text = asks(method, path, header).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {text}");
        let status: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!((&status["kind"], &status["reason"]), (&json!("Status"), &json!(reason)));
    }
    assert!(asks("GET", "/api/v1/pods?watch=1", known).await.contains("retry-after: 1\r\n"));
    let protobuf = "Authorization: Bearer known\r\nAccept: application/vnd.kubernetes.protobuf\r\n";
    assert!(asks("GET", "/api/v1/pods", protobuf).await.starts_with("HTTP/1.1 406"));
    assert!(asks("GET", "/livez", "").await.starts_with("HTTP/1.1 200"));
    assert_eq!(Counts::get(&server.counts().watches_refused), 2);
}

#[tokio::test]
async fn a_head_without_end_is_refused_and_connections_are_bounded() {
    let (server, _store) = serving(|options| options.limits.connections = 1).await;
    let mut first = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let counts = server.counts();
    until("the connection", || Counts::get(&counts.connections) == 1).await;
    let mut second = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    assert_eq!(second.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed at once");
    assert_eq!(Counts::get(&counts.connections_refused), 1);
    first.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    let long = "x".repeat(128 << 10);
    // The answer may come, and the connection end, before all of it was taken.
    let _ = first.write_all(long.as_bytes()).await;
    let mut text = vec![0; 12];
    first.read_exact(&mut text).await.unwrap();
    assert_eq!(text, b"HTTP/1.1 431");
}

/// Opens a watch of all pods and reads nothing of it.
async fn deaf(server: &Server) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    let head = b"GET /api/v1/pods?watch=true HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let counts = server.counts();
    until("the watch", || Counts::get(&counts.watches) == 1).await;
    stream
}

fn large_pod(index: usize) -> Value {
    let mut object = pod("shop", "large", "n1");
    object["metadata"]["annotations"] = json!({ "note": format!("{index}{}", "x".repeat(30_000)) });
    object
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_closed_and_counted() {
    let impatient =
        |options: &mut Options| options.limits.write_patience = Duration::from_millis(300);
    let (server, store) = serving(impatient).await;
    let stream = deaf(&server).await;
    for index in 0..600 {
        store.set(Kind::Pod, large_pod(index)).unwrap();
    }
    let counts = server.counts();
    until("the end", || Counts::get(&counts.watches) == 0).await;
    until("the count", || Counts::get(&counts.stalled) >= 1).await;
    drop(stream);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_the_history_is_told_so_and_counted() {
    let limits = HistoryLimits { events: 16, bytes: 64 << 20 };
    let (server, store) = serving_store(Store::numbering(limits), |_| {}).await;
    let mut stream = deaf(&server).await;
    // Far more than the kernel holds for it, while nobody reads.
    for index in 0..600 {
        store.set(Kind::Pod, large_pod(index)).unwrap();
        tokio::task::yield_now().await;
    }
    let counts = server.counts();
    let mut text = Vec::new();
    let end = b"\"code\":410";
    let read = async {
        while !text.windows(end.len()).any(|window| window == end) {
            let mut piece = vec![0; 1 << 20];
            let number = stream.read(&mut piece).await.unwrap();
            assert!(number > 0, "ended without a word");
            text = piece[..number].to_vec();
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the error");
    assert_eq!(Counts::get(&counts.watches_behind), 1);
}

#[tokio::test]
async fn an_orderly_end_closes_watches_between_events_and_takes_no_more() {
    let (server, store) = serving(|_| {}).await;
    fill_pods(&store, 1);
    let client = client(&server);
    let mut lines = Lines::of(&client, "resourceVersion=2").await;
    store.set(Kind::Pod, pod("shop", "last", "n1")).unwrap();
    let address = server.address();
    assert_eq!(lines.kinds(1).await, ["ADDED last"]);
    server.shut_down(PATIENCE).await;
    assert_eq!(lines.next().await, None);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn tls_is_spoken_by_a_certificate_of_the_clusters_own() {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![certificate.clone()], private.unwrap())
    .unwrap();
    let (server, store) = serving(|options| options.tls = Some(Arc::new(config))).await;
    fill_pods(&store, 2);
    let mut config = Config::new(format!("https://{}", server.address()).parse().unwrap());
    config.root_cert = Some(vec![certificate.to_vec()]);
    let (_, list) = get_json(&Client::try_from(config).unwrap(), "/api/v1/pods").await;
    assert_eq!(names(&list).len(), 2);
    let plain = Config::new(format!("https://{}", server.address()).parse().unwrap());
    let stranger = Client::try_from(plain).unwrap();
    let request = http::Request::get("/api/v1/pods").body(Body::empty()).unwrap();
    assert!(stranger.send(request).await.is_err(), "nobody vouches for the certificate");
    until("the count", || Counts::get(&server.counts().handshake_failures) >= 1).await;
}
