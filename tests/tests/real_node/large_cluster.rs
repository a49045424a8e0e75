//! A node that follows a large cluster: from nothing until it is in force, one pod's change and one
//! policy's until every worker has them, and a start from disk without an API server.
//!
//! In another one of many services (`XSKIFF_CLUSTER_SERVICES`, 300; 50,000) one endpoint's change until every
//! worker has it.
//!
//! `XSKIFF_CLUSTER_PODS` is how many pods there are (150,000: with 5,000 nodes, 20,000 services and
//! 2,000 policies), `XSKIFF_CLUSTER_EVENTS` how often a pod changes. What each takes is said, and
//! judged: at full size by what is promised, which is for an optimised build ([`Wanted`]).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use control::admin::Request;
use control::model::Kind;
use serde_json::{Value, json};
use xskiff::cli::client::Client;
use xskiff_tests::cluster_server::{Setup, Size, Synthetic};
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::followed::{ApiServer, follow};
use crate::world::{PATIENCE, Shape, World, number_from};

const SHAPE: Shape = Shape { label: "large", mtu: 1500, xdp_mode: "native" };
/// What is promised of the largest cluster: what things may take at most.
struct Wanted;

impl Wanted {
    const FROM_NOTHING_CPU_SECONDS: f64 = 30.0;
    const POD_MS: [f64; 2] = [20.0, 100.0];
    const POLICY_MS: f64 = 500.0;
    const FROM_DISK_MS: f64 = 1000.0;
    const ENDPOINT_MS: f64 = 20.0;

    /// `limit` at full size. What is smaller is run by builds that are not optimised, on machines that have
    /// other work: it is held to what only a fault passes.
    fn held_to(limit: f64, is_full: bool) -> f64 {
        if is_full { limit } else { 10.0 * limit }
    }
}

/// Between two looks at what workers have; less than the figures are about.
const LOOK: Duration = Duration::from_micros(200);
/// Between two changes, so that one is not taken for the other.
const PAUSE: Duration = Duration::from_millis(20);
/// Services among which one endpoint's change is promised to be quick.
const MANY_SERVICES: usize = 50_000;
/// Pods for each of many services.
const PODS_EACH: usize = 5;
/// How often the policy comes and goes.
const POLICY_CHANGES: usize = 10;

/// In the proportions of the largest.
pub fn size(pods: usize) -> Size {
    let part = |of: usize| (of * pods / Size::LARGE.pods).max(2);
    Size {
        nodes: part(Size::LARGE.nodes),
        namespaces: part(Size::LARGE.namespaces),
        pods,
        services: part(Size::LARGE.services),
        policies: part(Size::LARGE.policies),
    }
}

/// Seconds of CPU that a process has used, all its threads together (proc_pid_stat(5)).
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("its statistics");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks =
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks"));
    // USER_HZ, which is the same on every architecture that we run on.
    ticks.sum::<u64>() as f64 / 100.0
}

/// Bytes of a process's memory that are in RAM (proc_pid_status(5)).
pub fn resident_mib(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

/// Tables that each worker has adopted.
fn adopted(world: &World) -> Vec<u64> {
    world.status().workers.iter().map(|worker| worker.tables_adopted).collect()
}

/// Milliseconds from `change` until every worker has adopted the tables that it led to.
fn in_force_after(world: &World, change: impl FnOnce()) -> f64 {
    std::thread::sleep(PAUSE);
    let before = adopted(world);
    let began = Instant::now();
    change();
    loop {
        let elapsed = began.elapsed();
        assert!(elapsed < PATIENCE, "not adopted: {before:?}, {:?}", adopted(world));
        if adopted(world).iter().zip(&before).all(|(now, before)| now > before) {
            return began.elapsed().as_secs_f64() * 1e3;
        }
        std::thread::sleep(LOOK);
    }
}

/// Says the middle, the slow end and the worst of `samples`, and gives the first two.
fn say(what: &str, mut samples: Vec<f64>) -> [f64; 2] {
    samples.sort_by(f64::total_cmp);
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part).round() as usize];
    println!(
        "{what}: median {:.2} ms, p99 {:.2} ms, most {:.2} ms, of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        samples.len()
    );
    [at(0.5), at(0.99)]
}

/// Whether it is the whole of the cluster that the figures are promised for.
fn is_full(cluster: &Synthetic) -> bool {
    cluster.size.pods >= Size::LARGE.pods
}

/// A pod that moves to an address that nobody had: its node's range ends before it.
fn moved(cluster: &Synthetic, pod: usize, turn: usize) -> Value {
    let address = format!("10.200.{}.{}", turn / 250 % 250, turn % 250 + 1);
    let mut object = cluster.pod(pod);
    object["status"]["podIP"] = json!(address);
    object["status"]["podIPs"] = json!([{ "ip": address }]);
    object
}

/// A policy whose selector no other has, of about a fifteenth of all pods.
fn policy_of_many(applications: &[String]) -> Value {
    let peers = json!({ "matchExpressions": [
        { "key": "app", "operator": "In", "values": applications },
        { "key": "large-cluster", "operator": "DoesNotExist" },
    ] });
    json!({
        "metadata": { "name": "many", "namespace": "shop" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "from": [{ "namespaceSelector": {}, "podSelector": peers }] }],
        },
    })
}

/// Applications that have a fifteenth of the pods together, and how many that are.
fn applications(cluster: &Synthetic) -> (Vec<String>, usize) {
    let mut chosen: Vec<String> = Vec::new();
    let label = |pod: usize| cluster.pod(pod)["metadata"]["labels"]["app"].to_string();
    let labels: Vec<String> = (0..cluster.size.pods).map(label).collect();
    let wanted = cluster.size.pods / 15;
    let mut count = 0;
    for label in &labels {
        let name = label.trim_matches('"').to_owned();
        if count >= wanted {
            break;
        }
        if !chosen.contains(&name) {
            count += labels.iter().filter(|other| *other == label).count();
            chosen.push(name);
        }
    }
    (chosen, count)
}

fn events(world: &World, server: &ApiServer, cluster: &Synthetic, count: usize) {
    let mut random = Random::new(cluster.seed);
    let samples = (0..count).map(|turn| {
        let pod = random.below(cluster.size.pods);
        let object = moved(cluster, pod, turn);
        in_force_after(world, || server.set(Kind::Pod, object))
    });
    let took = say("one pod's change in force on all workers", samples.collect());
    let held_to = |limit| Wanted::held_to(limit, is_full(cluster));
    assert!(took[0] <= held_to(Wanted::POD_MS[0]), "one pod: median {} ms", took[0]);
    assert!(took[1] <= held_to(Wanted::POD_MS[1]), "one pod: p99 {} ms", took[1]);
    let (names, pods) = applications(cluster);
    let samples = (0..POLICY_CHANGES).map(|turn| {
        in_force_after(world, || {
            if turn % 2 == 0 {
                server.set(Kind::NetworkPolicy, policy_of_many(&names));
            } else {
                server.store.delete(Kind::NetworkPolicy, "shop", "many").expect("it is there");
            }
        })
    });
    let took = say(&format!("a policy that {pods} pods are told apart by"), samples.collect());
    assert!(took[1] <= held_to(Wanted::POLICY_MS), "one policy: p99 {} ms", took[1]);
}

fn objects(world: &World) -> u64 {
    let followed = world.status().kubernetes.expect("an API server is followed");
    followed.kinds.iter().map(|kind| kind.objects).sum()
}

/// Makes a last change, and waits until a snapshot has it.
fn wait_saved(world: &World, server: &ApiServer) {
    let writes = || world.status().kubernetes.map_or(0, |followed| followed.snapshot.writes);
    let before = writes();
    server.set(Kind::Namespace, json!({ "metadata": { "name": "last" } }));
    let saved = xskiff::lab::wait_until(PATIENCE, || writes() > before);
    assert!(saved.is_some(), "{:?}", world.status().kubernetes);
}

/// Starts the node again while nobody serves; milliseconds until it answers what it is asked, which
/// it does once all is in force.
fn start_from_disk(world: World, server: &ApiServer) -> (World, f64) {
    server.kill();
    let stage = world.end(false);
    let socket = stage.files.socket.clone();
    std::thread::scope(|scope| {
        let began = Instant::now();
        let answers = scope.spawn(move || {
            let answered = || Client::connect(&socket)?.ask(Request::Status);
            while answered().is_err() && began.elapsed() < PATIENCE {
                std::thread::sleep(LOOK);
            }
            began.elapsed().as_secs_f64() * 1e3
        });
        (stage.begin_somehow(began + PATIENCE * 4), answers.join().expect("no panic"))
    })
}

#[test]
fn a_large_cluster_is_in_force_soon_and_each_change_of_it_too() {
    if !root_or_skip("a large cluster") {
        return;
    }
    let pods = usize::try_from(number_from("XSKIFF_CLUSTER_PODS", 600)).expect("a size");
    let changes = usize::try_from(number_from("XSKIFF_CLUSTER_EVENTS", 20)).expect("a size");
    let cluster = Synthetic { size: size(pods), detail: Default::default(), seed: 1 };
    let mut filled = Instant::now();
    let (world, server) =
        follow(SHAPE, (Setup::default(), "snapshot_seconds: 1"), PATIENCE * 4, |server| {
            cluster.objects().for_each(|(kind, object)| server.set(kind, object));
            filled = Instant::now();
        });
    let in_force = filled.elapsed().as_secs_f64();
    let all = objects(&world);
    let process = world.node.process().id();
    let cpu = cpu_seconds(process);
    println!(
        "{:?}, {all} objects: in force {in_force:.2} s after the process began, four pods plugged in \
         and all well; {cpu:.2} s of CPU, {:.0} MiB",
        cluster.size,
        resident_mib(process),
    );
    // As on one core: all its threads' time together.
    assert!(cpu <= Wanted::FROM_NOTHING_CPU_SECONDS, "{cpu} s of CPU");
    assert!(all as usize > cluster.size.pods + cluster.size.services);

    events(&world, &server, &cluster, changes);
    let audit = world.ask_json(&["audit"]);
    assert_eq!(audit["found"], 0, "{audit}");
    println!("{:.0} MiB after {changes} changes", resident_mib(process));

    wait_saved(&world, &server);
    let all = all + 1;
    let (world, milliseconds) = start_from_disk(world, &server);
    let followed = world.status().kubernetes.expect("an API server is to be followed");
    assert_eq!((followed.snapshot.restored, followed.snapshot.not_restored), (all, None));
    println!("{all} objects from disk, nobody serves: the node answers after {milliseconds:.0} ms");
    let held_to = Wanted::held_to(Wanted::FROM_DISK_MS, is_full(&cluster));
    assert!(milliseconds <= held_to, "{milliseconds} ms from disk");
    server.come_back();
    let in_step = || {
        let followed = world.status().kubernetes.expect("an API server is followed");
        followed.kinds.iter().all(|kind| kind.in_step && kind.lists > 0)
    };
    assert!(xskiff::lab::wait_until(PATIENCE * 4, in_step).is_some());
    assert_eq!(objects(&world), all);
}

/// An endpoint of a service is no longer ready, or is again.
fn turned(cluster: &Synthetic, service: usize, is_ready: bool) -> Value {
    let mut slice = cluster.slices(service).swap_remove(0);
    slice["endpoints"][0]["conditions"]["ready"] = json!(is_ready);
    slice["endpoints"][0]["conditions"]["serving"] = json!(is_ready);
    slice
}

#[test]
fn one_endpoints_change_among_many_services_is_in_force_soon() {
    if !root_or_skip("many services") {
        return;
    }
    let services = usize::try_from(number_from("XSKIFF_CLUSTER_SERVICES", 300)).expect("a size");
    let changes = usize::try_from(number_from("XSKIFF_CLUSTER_EVENTS", 20)).expect("a size");
    let pods = PODS_EACH * services;
    let size = Size { services, ..size(pods) };
    let cluster = Synthetic { size, detail: Default::default(), seed: 2 };
    let shape = Shape { label: "services", ..SHAPE };
    let (world, server) =
        follow(shape, (Setup::default(), "snapshot_seconds: 60"), PATIENCE * 4, |server| {
            cluster.objects().for_each(|(kind, object)| server.set(kind, object));
        });
    let process = world.node.process().id();
    println!("{size:?}, {} objects; {:.0} MiB", objects(&world), resident_mib(process));
    let mut random = Random::new(cluster.seed);
    // Each once: what is no change is never adopted.
    let chosen: BTreeSet<usize> = (0..changes).map(|_| random.below(services)).collect();
    for is_ready in [false, true] {
        let samples = chosen.iter().map(|service| {
            let slice = turned(&cluster, *service, is_ready);
            in_force_after(&world, || server.set(Kind::EndpointSlice, slice))
        });
        let samples: Vec<f64> = samples.collect();
        let what = if is_ready { "comes back" } else { "goes" };
        let [median, _] = say(&format!("one endpoint {what}, in force on all workers"), samples);
        let held_to = Wanted::held_to(Wanted::ENDPOINT_MS, services >= MANY_SERVICES);
        assert!(median <= held_to, "one endpoint {what}: median {median:.2} ms");
    }
    let audit = world.ask_json(&["audit"]);
    assert_eq!(audit["found"], 0, "{audit}");
}
