use std::os::unix::fs::PermissionsExt;

use control::admin::reply::{FlowRecord, StreamItem};
use control::admin::{FlowFilter, encode_request};

use super::*;

struct World {
    _directory: tempfile::TempDir,
    run: RunDirectory,
    server: AdminServer,
}

fn world() -> (World, mpsc::Receiver<Call>) {
    let directory = tempfile::tempdir().unwrap();
    let run = RunDirectory::claim(&directory.path().join("run")).unwrap();
    let (server, calls) = AdminServer::start(&run).unwrap();
    (World { _directory: directory, run, server }, calls)
}

/// Answers every count with 7, every flow stream with two items, and never says that an endpoint was added.
async fn control(mut calls: mpsc::Receiver<Call>) {
    let mut under_way = Vec::new();
    while let Some(call) = calls.recv().await {
        match call.request {
            Request::Flows { .. } => {
                for _ in 0..2 {
                    let record = FlowRecord {
                        state: None,
                        time_unix_ms: 1,
                        verdict: "opened".into(),
                        reason: None,
                        interface: "veth0".into(),
                        protocol: None,
                        source: None,
                        destination: None,
                        backend: None,
                        service: None,
                        source_endpoint: None,
                        destination_endpoint: None,
                        rule: None,
                        policies: Vec::new(),
                    };
                    let item = StreamItem::Flow(Box::new(record));
                    call.reply.send(Reply::Item(item)).await.unwrap();
                }
                call.reply.send(Reply::End { lost: 3 }).await.unwrap();
            }
            Request::EndpointAdd(_) => under_way.push(call),
            _ => call.reply.send(Reply::Count(7)).await.unwrap(),
        }
    }
}

async fn ask(stream: &mut BufReader<UnixStream>, bytes: &[u8]) -> Reply {
    stream.get_mut().write_all(bytes).await.unwrap();
    next(stream).await
}

async fn next(stream: &mut BufReader<UnixStream>) -> Reply {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn client(world: &World) -> BufReader<UnixStream> {
    BufReader::new(UnixStream::connect(world.run.socket_path()).await.unwrap())
}

fn count_request() -> Vec<u8> {
    encode_request(Request::CtCount { filter: FlowFilter::default() }).unwrap()
}

#[tokio::test]
async fn the_socket_is_roots_alone_and_gone_with_the_server() {
    let (world, _calls) = world();
    let path = world.run.socket_path();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(world.run.path()), mode(&path)), (0o700, 0o600));
    drop(world.server);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused_and_a_killed_one_is_not_in_the_way() {
    let (world, _calls) = world();
    let second = RunDirectory::claim(world.run.path());
    assert!(matches!(second, Err(AdminSocketError::InUse { .. })), "{second:?}");
    let path = world.run.path().to_owned();
    let World { _directory, run, server } = world;
    // The socket file stays, as after SIGKILL; the lock does not.
    let left = run.socket_path();
    drop((run, server));
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    let run = RunDirectory::claim(&path).unwrap();
    assert!(AdminServer::start(&run).is_ok());
}

#[tokio::test]
async fn a_directory_that_others_may_write_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o775);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let error = RunDirectory::claim(directory.path()).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

/// A fresh installation by the manifests never started: the kubelet makes the volume's directory so.
#[tokio::test]
async fn a_directory_that_the_kubelet_made_is_closed_to_others_and_used() {
    let directory = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    // Pods were admitted already.
    std::fs::create_dir(directory.path().join("admitted")).unwrap();
    let run = RunDirectory::claim(directory.path()).unwrap();
    let mode = std::fs::metadata(directory.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(AdminServer::start(&run).is_ok());
}

#[tokio::test]
async fn requests_are_answered_one_after_another_and_refusals_do_not_end_the_conversation() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut client = client(&world).await;
    assert_eq!(ask(&mut client, &count_request()).await, Reply::Count(7));
    let refused = ask(&mut client, b"{\"version\":1,\"request\":\"nonsense\"}\n").await;
    assert!(matches!(refused, Reply::Error(AdminError::Malformed { .. })), "{refused:?}");
    assert_eq!(ask(&mut client, &count_request()).await, Reply::Count(7));
}

#[tokio::test]
async fn a_stream_ends_with_what_was_lost_and_the_client_may_ask_again() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut client = client(&world).await;
    let filter = FlowFilter::default();
    let request = encode_request(Request::Flows { filter, follow: true }).unwrap();
    assert!(matches!(ask(&mut client, &request).await, Reply::Item(_)));
    assert!(matches!(next(&mut client).await, Reply::Item(_)));
    assert_eq!(next(&mut client).await, Reply::End { lost: 3 });
    assert_eq!(ask(&mut client, &count_request()).await, Reply::Count(7));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_stream_at_the_control_loop() {
    let (world, mut calls) = world();
    let mut client = client(&world).await;
    let filter = FlowFilter::default();
    let request = encode_request(Request::Flows { filter, follow: true }).unwrap();
    client.get_mut().write_all(&request).await.unwrap();
    let call = calls.recv().await.unwrap();
    let item = StreamItem::Packet(control::admin::CaptureRecord {
        time_unix_ns: 0,
        interface: "veth0".into(),
        direction: control::admin::CaptureDirection::Received,
        reason: None,
        length_bytes: 0,
        frame: String::new(),
    });
    call.reply.send(Reply::Item(item)).await.unwrap();
    assert!(matches!(next(&mut client).await, Reply::Item(_)));
    drop(client);
    call.reply.closed().await;
}

#[tokio::test]
async fn an_endless_request_is_cut_off_at_the_bound_and_counted() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut client = client(&world).await;
    let endless = vec![b'x'; REQUEST_BYTES_MAX + 1];
    let refused = ask(&mut client, &endless).await;
    assert!(matches!(refused, Reply::Error(AdminError::TooLong { .. })), "{refused:?}");
    let mut rest = Vec::new();
    assert_eq!(client.read_to_end(&mut rest).await.unwrap_or(0), 0);
    assert_eq!(world.server.counts().refusals.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn one_client_too_many_waits_for_a_place() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS_MAX {
        let mut client = client(&world).await;
        assert_eq!(ask(&mut client, &count_request()).await, Reply::Count(7));
        clients.push(client);
    }
    let mut late = client(&world).await;
    let request = count_request();
    let early = timeout(Duration::from_millis(200), ask(&mut late, &request)).await;
    assert!(early.is_err(), "{early:?}");
    clients.pop();
    assert_eq!(next(&mut late).await, Reply::Count(7));
    assert_eq!(world.server.counts().refusals.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn many_pods_that_come_at_once_keep_nobody_else_away() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut pods = Vec::new();
    for number in 0..3 * CLIENTS_MAX {
        let request = Request::EndpointAdd(control::admin::EndpointAdd {
            name: format!("many/pod-{number}"),
            interface: format!("veth{number}"),
            netns: None,
            addresses: vec!["10.0.0.5".parse().unwrap()],
            mac: None,
            attachment: None,
            pod_uid: None,
            bandwidth: None,
        });
        let mut pod = client(&world).await;
        pod.get_mut().write_all(&encode_request(request).unwrap()).await.unwrap();
        pods.push(pod);
    }
    // Nobody answers them.
    let mut other = client(&world).await;
    assert_eq!(ask(&mut other, &count_request()).await, Reply::Count(7));
    let counts = world.server.counts();
    assert_eq!(counts.connections.get(), 3 * CLIENTS_MAX as u64 + 1);
    assert_eq!(counts.refusals.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_or_half_a_request_is_cut_off_in_time_and_counted() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let request = count_request();
    let mut expected = 0;
    for said in [&b""[..], b"{", &request[..request.len() - 1]] {
        let mut client = client(&world).await;
        client.get_mut().write_all(said).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut rest = Vec::new();
        assert_eq!(client.read_to_end(&mut rest).await.unwrap_or(0), 0);
        assert!(began.elapsed() <= CLIENT_TIMEOUT + Duration::from_secs(1));
        expected += 1;
        assert_eq!(world.server.counts().refusals.load(Ordering::Relaxed), expected);
    }
    let mut after = client(&world).await;
    assert_eq!(ask(&mut after, &request).await, Reply::Count(7));
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_after_one_and_others_are_served_meanwhile() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let (mut flood, mut other) = (client(&world).await, client(&world).await);
    let chunk = vec![b'{'; 1 << 20];
    let mut sent = 0;
    while sent < 100 {
        assert_eq!(ask(&mut other, &count_request()).await, Reply::Count(7));
        if flood.get_mut().write_all(&chunk).await.is_err() {
            break;
        }
        sent += 1;
    }
    // The socket's own buffer takes a little more than is read.
    assert!(sent < 4, "{sent} MiB were taken");
    assert!(matches!(next(&mut flood).await, Reply::Error(AdminError::TooLong { .. })));
    assert_eq!(world.server.counts().refusals.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn hostile_lines_are_refused_one_by_one_in_few_words() {
    let (world, calls) = world();
    tokio::spawn(control(calls));
    let mut client = client(&world).await;
    let long = "x".repeat(1 << 19);
    let request = |text: &str| format!("{{\"version\":1,\"request\":{text}}}");
    for line in [
        Vec::new(),
        b"\0\0\0".to_vec(),
        b"\xff\xfe{}".to_vec(),
        b"null".to_vec(),
        "[".repeat(100_000).into_bytes(),
        b"{\"version\":1,\"version\":1,\"request\":\"status\"}".to_vec(),
        request(&format!("\"{long}\"")).into_bytes(),
        request(&format!("{{\"endpoint_remove\":{{\"name\":\"{long}\"}}}}")).into_bytes(),
        request("{\"ct_count\":{\"filter\":{\"adress\":\"10.0.0.1\"}}}").into_bytes(),
        request("\"status\"} {").into_bytes(),
    ] {
        let refused = ask(&mut client, &[line.as_slice(), b"\n"].concat()).await;
        let Reply::Error(error) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().len() < 1200, "{} bytes", error.to_string().len());
    }
    assert_eq!(ask(&mut client, &count_request()).await, Reply::Count(7));
}

/// Whoever asked was told "the control thread does not answer", which the CNI plugin took for a refusal
/// of the pod.
#[tokio::test]
async fn whoever_waits_while_the_process_ends_is_hung_up_on_without_a_word() {
    let (world, mut calls) = world();
    let request = encode_request(Request::Drops).unwrap();
    let hung_up = async |mut client: BufReader<UnixStream>| {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(String::from_utf8(rest).unwrap(), "");
    };
    let mut taken = client(&world).await;
    taken.get_mut().write_all(&request).await.unwrap();
    drop(calls.recv().await.unwrap());
    hung_up(taken).await;
    // One that was never looked at, and one that comes when nobody looks any more.
    let mut waiting = client(&world).await;
    waiting.get_mut().write_all(&request).await.unwrap();
    while calls.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(calls);
    hung_up(waiting).await;
    let mut late = client(&world).await;
    late.get_mut().write_all(&request).await.unwrap();
    hung_up(late).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_finds_the_control_thread_hanging_is_told_that_it_is_busy() {
    let (world, calls) = world();
    let request = encode_request(Request::Drops).unwrap();
    let mut clients = Vec::new();
    for _ in 0..CALLS_MAX {
        let pod = Request::EndpointRemove { name: "shop/web".into() };
        let mut client = client(&world).await;
        client.get_mut().write_all(&encode_request(pod).unwrap()).await.unwrap();
        clients.push(client);
    }
    while calls.len() < CALLS_MAX {
        tokio::task::yield_now().await;
    }
    let mut late = client(&world).await;
    let told = ask(&mut late, &request).await;
    assert!(matches!(told, Reply::Error(AdminError::Busy { .. })), "{told:?}");
}
