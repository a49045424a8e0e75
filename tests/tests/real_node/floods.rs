//! A flood of new connections from outside or from a pod, faster than a worker opens flows, also one that has
//! few frames or gets little of a processor: those that stand, from a pod and from the node, are answered all
//! the while, and what is not served is counted.
//!
//! `XSKIFF_FLOOD_RATE` is how many begin each second (300,000), as far as the sender gets.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{
    BALANCER, BUYER, CLIENT, CLUSTER_IP, FLOOD_SOURCES, HTTP, STRANGER, WEB_1, to,
};
use xskiff::demo::traffic::http;
use xskiff::lab::agent::report::Report;
use xskiff::lab::link::{self, End};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, number_from};

/// Connections of each client; one in five asks all the time.
const CONNECTIONS: u64 = 100;
const ACTIVE: u64 = 20;
/// How long it lasts at least, once something was shed.
const LASTS: Duration = Duration::from_secs(5);

/// What was not served: shed, by the worker or in its stead since it was late, and refused by the uplink's
/// full rings.
fn unserved(world: &World) -> (u64, u64) {
    let rings = world.port("uplink").sockets;
    let shed = world.dropped("overload") + world.status().xdp.late;
    (shed, rings.rx_ring_full + rings.rx_dropped)
}

/// One worker for everything.
fn start(label: &'static str, edit: impl FnOnce(String) -> String) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    World::start_edited(shape, |text| {
        assert!(text.contains("count: 2"), "{text}");
        edit(text.replace("count: 2", "count: 1"))
    })
}

/// Where a flood comes from and goes to.
struct Flood<'a> {
    from: &'a Namespace,
    sources: &'a str,
    to: String,
}

fn from_outside(world: &World) -> Flood<'_> {
    let to = format!("{}:{}", BALANCER[0], HTTP[0]);
    Flood { from: &world.scene.client, sources: FLOOD_SOURCES, to }
}

/// Begins a flood while connections stand, waits until so much of it was shed, and has those
/// connections answered for [`LASTS`] more. Gives those who hold them.
fn assert_answered_beside(world: &World, flood: &Flood<'_>, shed_least: u64) -> [Client; 2] {
    let rate = number_from("XSKIFF_FLOOD_RATE", 300_000);
    let scene = &world.scene;
    let service = to(CLUSTER_IP[0], HTTP[0]);
    let clients = [
        Client::start(scene.pod(BUYER), &service, CONNECTIONS, ACTIVE),
        Client::start(&scene.node, &to(WEB_1.addresses[0], HTTP[2]), CONNECTIONS, ACTIVE),
    ];
    let before = unserved(world);
    let since = |now: (u64, u64)| (now.0 - before.0, now.1 - before.1);
    let [target, sources] = [format!("--to={}", flood.to), format!("--sources={}", flood.sources)];
    let words = ["flood", &target, &sources, &format!("--rate={rate}"), "--count=10000000"];
    let flood = flood.from.agent(&words).expect("a flood");
    let is_shed = || since(unserved(world)).0 >= shed_least;
    assert!(wait_until(PATIENCE, is_shed).is_some(), "served: {:?}", since(unserved(world)));

    let began = Instant::now();
    let asked: u64 = clients.iter().map(Client::requests).sum();
    while began.elapsed() < LASTS {
        clients.iter().for_each(Client::goes_on);
    }
    let answers = clients.iter().map(Client::requests).sum::<u64>() - asked;
    let ((shed, refused), taken) = (since(unserved(world)), began.elapsed());
    let reports = flood.stop().expect("it ends");
    let sent = reports.into_iter().rev().find_map(|stamped| match stamped.report {
        Report::Flooded { sent, .. } => Some(sent),
        _ => None,
    });
    println!(
        "{} segments of a flood; in {taken:?} of it {answers} answers on connections that stood; shed \
         {shed}, refused by full rings {refused}",
        sent.expect("it says how many"),
    );
    clients
}

/// All of them stand once it is over.
fn end_whole(world: &World, clients: [Client; 2]) {
    for client in clients {
        client.end_whole(PATIENCE);
    }
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn connections_that_stand_are_answered_beside_a_flood_that_is_shed_and_counted() {
    if !root_or_skip("a flood beside connections") {
        return;
    }
    let world = start("floods", |text| text);
    let clients = assert_answered_beside(&world, &from_outside(&world), 1000);
    end_whole(&world, clients);
}

/// New connections are served again once it is over.
fn assert_serves_again(world: &World) {
    let serves = || {
        let asked = http(&world.scene.client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT));
        asked.is_ok_and(|seen| seen.outcome == Outcome::Ok)
    };
    assert!(wait_until(PATIENCE, serves).is_some(), "{:#?}", world.status().drops);
}

#[test]
fn a_worker_that_is_short_of_frames_sheds_new_flows_and_keeps_those_that_stand() {
    if !root_or_skip("a worker short of frames") {
        return;
    }
    let world = start("frames", |text| {
        let (usual, few) = ("fill_frames: 2048", "fill_frames: 256");
        assert!(text.contains(usual), "{text}");
        text.replace(usual, few) + "packet_memory: {frames: 960}\n"
    });
    let clients = assert_answered_beside(&world, &from_outside(&world), 1000);
    end_whole(&world, clients);
    let tables = world.status().tables;
    let frames = tables.iter().find(|table| table.name == "packet_frames").expect("its row");
    assert!(8 * frames.high_water > 7 * frames.capacity, "{frames:?}");
    assert_serves_again(&world);
}

/// Only the memory of everything but pods counted, and rings longer than a pod's queue can fill.
#[test]
fn a_pod_that_floods_from_a_region_short_of_frames_has_its_new_flows_shed_and_no_others_break() {
    if !root_or_skip("a pod's region short of frames") {
        return;
    }
    let world = start("region", |text| text + "packet_memory: {pod_frames: 1024}\n");
    // Three quarters of the region's frames are promised then: the most.
    let crowd = world.scene.laboratory.namespace("crowd").expect("a namespace");
    for number in 0..8 {
        let [own, far] = ["crowd", "far"].map(|name| format!("{name}{number}"));
        let own_end = End { namespace: &world.scene.node, interface: &own };
        link::pair(own_end, End { namespace: &crowd, interface: &far }, 2, 1500).expect("a pair");
        let [name, address] = [format!("market/{own}"), format!("10.244.0.{}", 100 + number)];
        world.ask(&["endpoint", "add", &name, "--interface", &own, "--address", &address]);
    }
    // Each of them is masqueraded, which takes longest.
    let [sources, to] = [format!("{}/32", STRANGER.addresses[0]), format!("{}:9", CLIENT[0])];
    let flood = Flood { from: world.scene.pod(STRANGER), sources: &sources, to };
    let clients = assert_answered_beside(&world, &flood, 1000);
    end_whole(&world, clients);
    assert_serves_again(&world);
}

/// What takes the processor of the first worker, until it is dropped.
struct Starved<'a>(&'a AtomicBool);

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn worker_thread(process: u32) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
    let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let mut found = tasks.filter(|task| name(task).is_ok_and(|name| name.trim() == "worker-0"));
    let task = found.next().expect("a worker");
    Pid::from_raw(task.file_name().to_string_lossy().parse().expect("a number"))
}

fn renice(thread: Pid, nice: &str) {
    let said = Command::new("renice").args(["-n", nice, "-p", &thread.to_string()]).output();
    assert!(said.expect("renice").status.success());
}

/// Computes on `cpus` alone until told otherwise.
fn compute(cpus: &CpuSet, is_over: &AtomicBool) {
    sched_setaffinity(Pid::from_raw(0), cpus).expect("a processor");
    while !is_over.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// What full rings refuse, such a worker never sees: it shed nothing.
#[test]
fn of_a_worker_that_starves_new_connections_are_shed_and_those_that_stand_are_answered() {
    if !root_or_skip("a worker that starves") {
        return;
    }
    // It runs for some milliseconds, some five times a second: it is late each time, and seldom stalls.
    let stall = "stall: {after_ms: 800, restart_after_ms: 60000}\n";
    let world = start("starved", |text| text + stall);
    let worker = worker_thread(world.status().pid);
    let cpus = sched_getaffinity(worker).expect("its processors");
    renice(worker, "19");
    let is_over = AtomicBool::new(false);
    let clients = std::thread::scope(|scope| {
        let _starved = Starved(&is_over);
        scope.spawn(|| compute(&cpus, &is_over));
        assert_answered_beside(&world, &from_outside(&world), 1)
    });
    renice(worker, "0");
    let ended = Instant::now();
    let late = world.status().xdp.late;
    assert!(late > 0, "{:?}", world.status().xdp);
    assert_serves_again(&world);
    let again = ended.elapsed();
    println!("{late} of them were dropped since the worker was late; served again after {again:?}");
    assert!(again < Duration::from_secs(3), "{again:?}");
    end_whole(&world, clients);
    assert_eq!(world.status().xdp.passed_on_stall, 0);
}
