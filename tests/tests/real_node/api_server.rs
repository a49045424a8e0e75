//! `xskiff run` that follows an API server: nothing is served before the whole cluster is known, and
//! from then on an outage, and even a start during one, changes nothing.

use control::admin::Status;
use control::admin::status::Level;
use control::model::Kind;
use nix::sys::signal::Signal;
use serde_json::json;
use xskiff::lab::link::{self, End};
use xskiff::lab::{Process, wait_until};
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::bare::Bare;
use crate::followed::ApiServer;
use crate::world::PATIENCE;

const PROBES: &str = "http://127.0.0.1:9964";

fn status(bare: &Bare, socket: &str) -> Option<Status> {
    let words = ["--socket", socket, "--json", "status"];
    let answer = bare.node.run(&path().to_string_lossy(), &words).ok()?;
    Some(serde_json::from_str(&answer).expect("a status"))
}

/// Status code and text of a probe; 0 where nobody answers.
fn probe(bare: &Bare, page: &str) -> (u16, String) {
    let url = format!("{PROBES}{page}");
    let answer = bare.node.run("curl", &["-sS", "-w", "\n%{http_code}", &url]).unwrap_or_default();
    let (text, code) = answer.trim().rsplit_once('\n').unwrap_or(("", "0"));
    (code.parse().unwrap_or(0), text.to_owned())
}

fn fill(server: &ApiServer) {
    server.set(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    let range = json!({"podCIDRs": ["10.1.0.0/24"]});
    server.set(Kind::Node, json!({"metadata": {"name": "node-a"}, "spec": range}));
    let metadata = json!({"name": "deny", "namespace": "shop"});
    server.set(Kind::NetworkPolicy, json!({"metadata": metadata, "spec": {"podSelector": {}}}));
}

#[test]
fn an_api_server_is_waited_for_followed_missed_and_done_without() {
    if !root_or_skip("an API server") {
        return;
    }
    let bare = Bare::new("api");
    let (run, socket) = (bare.directory("run"), bare.directory("run/admin.sock"));
    let state = bare.directory("state");
    let kubernetes = format!(
        "kubernetes: {{state_directory: {state}, snapshot_seconds: 1, request_timeout_seconds: 2}}"
    );
    let file = bare.configuration("up0", &run, &kubernetes);
    // Nobody is there yet.
    let server = ApiServer::start(&bare.node, Setup::default());
    server.kill();
    let server_words = ["--api-server", &*server.url];
    let process = bare.spawn_with(&[], &file, &server_words);
    let waits = || {
        let (code, text) = probe(&bare, "/readyz");
        code == 503 && text.contains("waiting for") && text.contains("NetworkPolicy")
    };
    assert!(wait_until(PATIENCE, waits).is_some(), "{}", process.log_tail());
    assert_eq!(probe(&bare, "/livez").0, 200);
    assert!(status(&bare, &socket).is_none(), "nothing is served");

    fill(&server);
    server.come_back();
    bare.ready(&process, &socket);
    assert_eq!(probe(&bare, "/readyz").0, 200);
    let objects = |status: &Status| -> u64 {
        let kinds = &status.kubernetes.as_ref().expect("followed").kinds;
        kinds.iter().map(|kind| kind.objects).sum()
    };
    assert_eq!(objects(&status(&bare, &socket).expect("a status")), 3);
    server.set(Kind::Namespace, json!({"metadata": {"name": "bank"}}));
    let arrives = || status(&bare, &socket).is_some_and(|status| objects(&status) == 4);
    assert!(wait_until(PATIENCE, arrives).is_some(), "{}", process.log_tail());

    server.kill();
    let missed = || {
        let status = status(&bare, &socket).expect("a status");
        status.verdict.level == Level::Degraded
            && status.verdict.summary.contains("cannot be followed")
    };
    assert!(wait_until(PATIENCE, missed).is_some(), "{:?}", status(&bare, &socket));
    assert_eq!((probe(&bare, "/readyz").0, probe(&bare, "/livez").0), (200, 200));
    let metrics = probe(&bare, "/metrics").1;
    assert!(
        metrics.contains("xskiff_kubernetes_failures_total{kind=\"Pod\",reason=\"connection\"}")
    );
    process.signal(Signal::SIGTERM).expect("a signal");
    assert!(process.wait(PATIENCE).expect("its end").success(), "{}", process.log_tail());

    let process = bare.spawn_with(&[], &file, &server_words);
    bare.ready(&process, &socket);
    let now = status(&bare, &socket).expect("a status");
    assert_eq!(objects(&now), 4);
    let snapshot = now.kubernetes.expect("followed").snapshot;
    assert_eq!((snapshot.restored, snapshot.not_restored), (4, None));
    assert_eq!(probe(&bare, "/readyz").0, 200);
    let told = bare.node.run(&path().to_string_lossy(), &["--socket", &socket, "status"]);
    assert!(told.expect("a status").contains("began with 4 objects"));
    server.come_back();
    let followed = || {
        let now = status(&bare, &socket).and_then(|status| status.kubernetes);
        now.is_some_and(|now| now.unlisted.is_empty() && now.kinds.iter().all(|kind| kind.in_step))
    };
    assert!(wait_until(PATIENCE * 2, followed).is_some(), "{:?}", status(&bare, &socket));
    assert_eq!(objects(&status(&bare, &socket).expect("a status")), 4);
}

/// Who waited for the cluster heard it, and had gone when it came: the process was deaf to it from then on,
/// until its supervisor killed it.
#[test]
fn a_process_that_is_told_to_end_while_it_starts_late_ends_in_order() {
    if !root_or_skip("an end in a late start") {
        return;
    }
    let bare = Bare::new("api-end");
    let (run, state) = (bare.directory("run"), bare.directory("state"));
    let kubernetes = format!("kubernetes: {{state_directory: {state}}}");
    let file = bare.configuration("up0", &run, &kubernetes);
    let server = ApiServer::start(&bare.node, Setup::default());
    server.kill();
    let process = bare.spawn_with(&[], &file, &["--api-server", &*server.url]);
    let waits = || probe(&bare, "/readyz").1.contains("waiting for");
    assert!(wait_until(PATIENCE, waits).is_some(), "{}", process.log_tail());
    fill(&server);
    server.come_back();
    // Probes are answered by who waits, and then by the node: in between it starts.
    assert!(wait_until(PATIENCE, || !waits()).is_some(), "{}", process.log_tail());
    process.signal(Signal::SIGTERM).expect("a signal");
    let ended = process.wait(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    assert!(ended.success(), "{}", process.log_tail());
}

#[test]
fn a_node_that_knows_the_api_servers_service_alone_does_not_start_and_says_the_way_out() {
    if !root_or_skip("the API servers' Service") {
        return;
    }
    let bare = Bare::new("api-service");
    let file = bare.configuration("up0", &bare.directory("run"), "kubernetes: {enabled: true}");
    let said = bare.refused(&["env", "KUBERNETES_SERVICE_HOST=10.96.0.1"], &file);
    assert!(said.contains("10.96.0.1") && said.contains("--api-server"), "{said}");
    let both = "manifests: /etc/xskiff\nkubernetes: {enabled: true}";
    let said = bare.refused(&[], &bare.configuration("up0", &bare.directory("run"), both));
    assert!(said.contains("kubernetes.enabled") && said.contains("/etc/xskiff"), "{said}");
}

/// What the node says of the API server: objects that it has, and why it failed last.
fn followed(bare: &Bare, socket: &str) -> (u64, Vec<String>) {
    let kinds = status(bare, socket).expect("a status").kubernetes.expect("followed").kinds;
    let objects = kinds.iter().map(|kind| kind.objects).sum();
    (objects, kinds.into_iter().filter_map(|kind| Some(kind.last_error?.message)).collect())
}

/// In the hosts file of [`spawn_by_name`]: that is the one name that is spoken to without TLS.
fn localhost_is(bare: &Bare, address: &str) {
    std::fs::write(bare.directory("hosts"), format!("{address} localhost\n")).expect("written");
}

/// Starts a node with a hosts file of its own.
fn spawn_by_name(bare: &Bare, file: &str, url: &str) -> Process {
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", bare.directory("hosts"));
    let before = ["unshare", "--mount", "sh", "-c", &*script, "sh"];
    bare.spawn_with(&before, file, &["--api-server", url])
}

#[test]
fn a_name_is_resolved_anew_when_its_server_is_gone() {
    if !root_or_skip("an API server with a name") {
        return;
    }
    let bare = Bare::new("api-name");
    let socket = bare.directory("run/admin.sock");
    let state = bare.directory("state");
    let kubernetes =
        format!("kubernetes: {{state_directory: {state}, request_timeout_seconds: 2}}");
    let file = bare.configuration("up0", &bare.directory("run"), &kubernetes);
    let server = ApiServer::start(&bare.node, Setup::default());
    fill(&server);
    localhost_is(&bare, "127.0.0.1");
    let process = spawn_by_name(&bare, &file, &server.url.replace("127.0.0.1", "localhost"));
    bare.ready(&process, &socket);
    assert_eq!(followed(&bare, &socket).0, 3);

    server.kill();
    let missed = || !followed(&bare, &socket).1.is_empty();
    assert!(wait_until(PATIENCE, missed).is_some(), "{}", process.log_tail());
    server.come_back_at("127.0.0.2".parse().expect("an address"));
    server.set(Kind::Namespace, json!({"metadata": {"name": "bank"}}));
    localhost_is(&bare, "127.0.0.2");
    let is_found = || followed(&bare, &socket) == (4, Vec::new());
    assert!(wait_until(PATIENCE, is_found).is_some(), "{:?}", followed(&bare, &socket));
}

#[test]
fn a_server_whose_machine_is_gone_is_missed_before_a_watch_is_silent_for_too_long() {
    if !root_or_skip("an API server that vanishes") {
        return;
    }
    let bare = Bare::new("api-gone");
    let outside = "192.0.2.18";
    let end = End { namespace: &bare.outside, interface: "up1" };
    link::address(end, &format!("{outside}/28")).expect("an address");
    let (socket, state) = (bare.directory("run/admin.sock"), bare.directory("state"));
    // Given up after four times the second that a connection may take, although no watch is silent for long.
    let kubernetes = format!(
        "kubernetes: {{state_directory: {state}, connect_timeout_seconds: 1, silence_seconds: 3600, \
         watch_seconds_min: 3000, watch_seconds_max: 3600}}"
    );
    let file = bare.configuration("up0", &bare.directory("run"), &kubernetes);
    let address = Some(outside.parse().expect("an address"));
    let server = ApiServer::start(&bare.outside, Setup { address, ..Setup::default() });
    fill(&server);
    localhost_is(&bare, outside);
    let process = spawn_by_name(&bare, &file, &server.url.replace(outside, "localhost"));
    bare.ready(&process, &socket);
    bare.outside.ip("link set up1 down").expect("down");
    let missed = || followed(&bare, &socket).1.len() == Kind::ALL.len();
    assert!(wait_until(PATIENCE, missed).is_some(), "{:?}", followed(&bare, &socket));
    bare.outside.ip("link set up1 up").expect("up");
    server.set(Kind::Namespace, json!({"metadata": {"name": "bank"}}));
    let is_back = || followed(&bare, &socket) == (4, Vec::new());
    assert!(wait_until(PATIENCE * 2, is_back).is_some(), "{:?}", followed(&bare, &socket));
}
