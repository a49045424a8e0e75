//! The laboratory itself, proven with a node whose own kernel forwards: what tests and the demo
//! stand on must not be what fails in them.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use xskiff::lab::agent::report::{Echoed, Fetched, Held, Report, Served, Trouble};
use xskiff::lab::link::{self, End};
use xskiff::lab::{Agent, LabError, Laboratory, Namespace, Process, Stamped, wait_until};
use xskiff_tests::xskiff_binary::{path, root_or_skip};

const PATIENCE: Duration = Duration::from_secs(10);
const QUEUES: u16 = 2;
const MTU: u16 = 1500;

/// Two pods behind a node. Namespaces go before the laboratory's directory.
struct Routed {
    client: Namespace,
    server: Namespace,
    node: Namespace,
    laboratory: Laboratory,
}

const SERVER_V4: &str = "10.244.0.12";
const CLIENT_V4: &str = "10.244.0.11";
const SERVER_V6: &str = "fd00:10:244::12";
const CLIENT_V6: &str = "fd00:10:244::11";

impl Routed {
    fn new(label: &str) -> Result<Self, LabError> {
        let laboratory = Laboratory::new(label, path())?;
        let node = laboratory.namespace("node")?;
        node.set(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let client = pod(&laboratory, &node, "client", [CLIENT_V4, CLIENT_V6])?;
        let server = pod(&laboratory, &node, "server", [SERVER_V4, SERVER_V6])?;
        Ok(Self { client, server, node, laboratory })
    }

    fn serve(&self) -> Result<Agent, LabError> {
        let agent = self.server.agent(&["serve", "--http=[::]:80", "--udp=[::]:53", "--name=s"])?;
        agent.wait_ready(PATIENCE)?;
        Ok(agent)
    }
}

fn pod(
    laboratory: &Laboratory,
    node: &Namespace,
    name: &str,
    addresses: [&str; 2],
) -> Result<Namespace, LabError> {
    let pod = laboratory.namespace(name)?;
    let inner = End { namespace: &pod, interface: "eth0" };
    let outer = End { namespace: node, interface: name };
    link::pair(inner, outer, QUEUES, MTU)?;
    link::routed_pod(inner, outer, &addresses.map(ip))?;
    for address in addresses {
        node.ip(&format!("route add {address} dev {name}"))?;
    }
    // The kernel answers for the gateways itself here; a node of ours needs no such thing.
    node.set(&[(&format!("net/ipv4/conf/{name}/proxy_arp"), "1")])?;
    node.ip(&format!("address add {}/64 dev {name} nodad", link::POD_GATEWAY_V6))?;
    pod.features("eth0", "tx off")?;
    Ok(pod)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn fetched(client: &Namespace, arguments: &[&str]) -> Result<Fetched, LabError> {
    let agent = client.agent(&[&["fetch"], arguments].concat())?;
    agent.expect("an answer", PATIENCE, |report| match report {
        Report::Fetched(fetched) => Some(fetched),
        _ => None,
    })
}

fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn http_udp_and_ping_pass_between_pods_in_both_families_and_the_node_counts_what_it_forwards() {
    if !root_or_skip("the laboratory's traffic") {
        return;
    }
    let lab = Routed::new("traffic").unwrap();
    let server = lab.serve().unwrap();
    for (to, client) in [(SERVER_V4, CLIENT_V4), (SERVER_V6, CLIENT_V6)] {
        let http = format!("--to={}", std::net::SocketAddr::new(ip(to), 80));
        let hello = fetched(&lab.client, &[&http]).unwrap();
        assert!(hello.ok, "{hello:?}");
        assert_eq!((hello.server.as_deref(), hello.client), (Some("s"), Some(ip(client))));

        let upload = fetched(&lab.client, &[&http, "--upload-bytes=1000001"]).unwrap();
        let download = fetched(&lab.client, &[&http, "--download-bytes=1000001"]).unwrap();
        assert!(upload.ok && download.ok, "{upload:?} {download:?}");
        assert_eq!((upload.bytes, download.bytes), (1_000_001, 1_000_001));
        assert_eq!(upload.sha256, download.sha256, "the same seed gives the same bytes");

        let udp = format!("--to={}", std::net::SocketAddr::new(ip(to), 53));
        let udp = lab.client.agent(&["udp", &udp, "--count=5", "--new-socket-each"]).unwrap();
        let echoed = udp.expect("echoes", PATIENCE, |report| match report {
            Report::Echoed(echoed) => Some(echoed),
            _ => None,
        });
        assert!(matches!(echoed.unwrap(), Echoed { sent: 5, received: 5, wrong: 0, .. }));
        assert_eq!(lab.client.ping(ip(to), 2).unwrap().received, 2);
    }
    let forwarded = lab.node.forward_counters().unwrap();
    assert!(forwarded.ipv4 > 0 && forwarded.ipv6 > 0, "{forwarded:?}");
    let last = server.stop().unwrap().pop();
    let Some(Stamped { report: Report::Served(served), .. }) = last else { panic!("{last:?}") };
    assert!(matches!(served, Served { connections: 6, requests: 6, datagrams: 10, .. }));
}

#[test]
fn a_refused_and_a_silent_server_are_told_apart() {
    if !root_or_skip("the laboratory's failures") {
        return;
    }
    let lab = Routed::new("failures").unwrap();
    let refused = fetched(&lab.client, &["--to=10.244.0.12:81"]).unwrap();
    assert_eq!((refused.ok, refused.error), (false, Some(Trouble::Refused)));
    // Nobody has that link address, and nobody says so.
    lab.node.ip("neigh add 10.244.0.98 lladdr 02:00:00:00:00:01 dev server").unwrap();
    lab.node.ip("route add 10.244.0.98 dev server").unwrap();
    let silent = fetched(&lab.client, &["--to=10.244.0.98:80", "--timeout-ms=300"]).unwrap();
    assert_eq!((silent.ok, silent.error), (false, Some(Trouble::TimedOut)));
}

#[test]
fn a_probe_tells_when_a_server_goes_and_comes_back() {
    if !root_or_skip("the laboratory's probe") {
        return;
    }
    let lab = Routed::new("probe").unwrap();
    let server = lab.serve().unwrap();
    let probe = lab.client.agent(&["probe", "--to=[fd00:10:244::12]:80"]).unwrap();
    let turned = |wanted: bool| {
        probe.expect("a turn", PATIENCE, |report| match report {
            Report::Probed { ok, .. } => (ok == wanted).then_some(()),
            _ => None,
        })
    };
    turned(true).unwrap();
    drop(server);
    turned(false).unwrap();
    let _server = lab.serve().unwrap();
    turned(true).unwrap();
    let last = probe.stop().unwrap().pop().map(|stamped| stamped.report);
    let Some(Report::ProbedInAll { failures, attempts, longest_gap_ms }) = last else {
        panic!("{last:?}")
    };
    assert!(0 < failures && failures < attempts && longest_gap_ms > 0);
}

#[test]
fn held_connections_that_break_are_counted_and_not_made_again() {
    if !root_or_skip("the laboratory's held connections") {
        return;
    }
    let lab = Routed::new("hold").unwrap();
    let server = lab.serve().unwrap();
    let to = "--to=10.244.0.12:80";
    let hold = lab.client.agent(&["hold", to, "--connections=500", "--active=20"]).unwrap();
    let all = |held: Held| held.alive == 500 && held.requests > 600;
    let wait = |done: &dyn Fn(Held) -> bool| {
        hold.expect("a state", PATIENCE, |report| match report {
            Report::Held(held) => done(held).then_some(held),
            _ => None,
        })
    };
    wait(&all).unwrap();
    let few = lab.client.agent(&["hold", to, "--connections=7"]).unwrap();
    few.expect("open connections", PATIENCE, |report| match report {
        Report::Held(held) => (held.alive == 7).then_some(()),
        _ => None,
    })
    .unwrap();
    let last = few.stop().unwrap().pop().map(|stamped| stamped.report);
    assert!(
        matches!(last, Some(Report::Held(Held { alive: 7, answered_last: 7, .. }))),
        "{last:?}"
    );
    drop(server);
    let broken = wait(&|held: Held| held.alive == 0).unwrap();
    assert_eq!((broken.opened, broken.refused, broken.resets + broken.ended), (500, 0, 500));
}

#[test]
fn a_flood_sends_as_many_segments_as_it_says_and_an_honest_client_still_gets_in() {
    if !root_or_skip("the laboratory's flood") {
        return;
    }
    let lab = Routed::new("flood").unwrap();
    lab.node.set(&[("net/ipv4/conf/all/rp_filter", "0")]).unwrap();
    let _server = lab.serve().unwrap();
    let arguments = ["flood", "--to=10.244.0.12:80", "--sources=100.64.0.0/16"];
    let flood = lab.client.agent(&[&arguments[..], &["--count=5000"]].concat()).unwrap();
    let sent = flood.expect("its end", PATIENCE, |report| match report {
        Report::Flooded { sent, refused } => (sent + refused == 5000).then_some(sent),
        _ => None,
    });
    assert_eq!(sent.unwrap(), 5000);
    let received = lab.server.run("cat", &["/sys/class/net/eth0/statistics/rx_packets"]).unwrap();
    assert!(received.trim().parse::<u64>().unwrap() >= 5000, "{received}");
    assert!(fetched(&lab.client, &["--to=10.244.0.12:80"]).unwrap().ok);
}

#[test]
fn what_is_dropped_leaves_no_namespace_no_process_and_no_file() {
    if !root_or_skip("the laboratory's end") {
        return;
    }
    let lab = Routed::new("end").unwrap();
    let server = lab.serve().unwrap();
    let forgotten: Process = lab.server.spawn("sleep", "sleep", &["1000"]).unwrap();
    let ids = [server.process().id(), forgotten.id()];
    let names = [&lab.client, &lab.server, &lab.node].map(|space| space.system_name().to_owned());
    let directory = lab.laboratory.directory().to_owned();
    assert!(names.iter().all(|name| namespaces().contains(name)) && directory.exists());
    drop((lab, server, forgotten));
    assert!(!names.iter().any(|name| namespaces().contains(name)));
    assert!(!directory.exists());
    for id in ids {
        assert!(!Path::new(&format!("/proc/{id}")).exists(), "process {id} lives on");
    }
}

/// Not a test of its own: the run that the next two end. It says its namespace's name and waits.
#[test]
fn a_run_to_be_ended() {
    if std::env::var_os("XSKIFF_LAB_RUN_TO_BE_ENDED").is_none() {
        return;
    }
    xskiff::lab::remove_on_signal(|| ()).unwrap();
    let lab = Routed::new("ended").unwrap();
    let _server = lab.serve().unwrap();
    println!("\nNAMESPACE {}", lab.node.system_name());
    println!("DIRECTORY {}", lab.laboratory.directory().display());
    std::thread::sleep(Duration::from_secs(60));
}

/// Starts that run; gives it with the names it said.
fn run_to_be_ended() -> (std::process::Child, String, String) {
    use std::io::{BufRead, BufReader};
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_run_to_be_ended", "--nocapture"])
        .env("XSKIFF_LAB_RUN_TO_BE_ENDED", "1")
        .env("XSKIFF_BINARY", path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said =
        |what| lines.by_ref().find_map(|line| line.strip_prefix(what).map(str::to_owned)).unwrap();
    let names = (said("NAMESPACE "), said("DIRECTORY "));
    (run, names.0, names.1)
}

#[test]
fn a_run_ended_by_sigterm_removes_everything_itself() {
    if !root_or_skip("the laboratory's signals") {
        return;
    }
    let (mut run, namespace, directory) = run_to_be_ended();
    assert!(namespaces().contains(&namespace));
    let status = Command::new("kill").args(["-TERM", &run.id().to_string()]).status();
    assert!(status.unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(128 + 15));
    assert!(!namespaces().contains(&namespace) && !Path::new(&directory).exists());
}

#[test]
fn what_a_killed_run_left_is_removed_when_the_next_begins() {
    if !root_or_skip("the laboratory's leftovers") {
        return;
    }
    let (mut run, namespace, directory) = run_to_be_ended();
    run.kill().unwrap();
    run.wait().unwrap();
    // Its agent goes by itself, since nobody holds its input any more.
    let pids = || Command::new("ip").args(["netns", "pids", &namespace]).output().unwrap().stdout;
    assert!(wait_until(PATIENCE, || pids().is_empty()).is_some());
    let _next = Laboratory::new("next", path()).unwrap();
    assert!(!namespaces().contains(&namespace) && !Path::new(&directory).exists());
}
