//! A flood of new connections from outside, faster than a worker opens flows, also one that gets little of a
//! processor or has few frames: those that stand, from a pod and from the node, are answered all the
//! while, and what is not served is counted.
//!
//! `XSKIFF_FLOOD_RATE` is how many begin each second (300,000), as far as the sender gets.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, CLUSTER_IP, FLOOD_SOURCES, HTTP, WEB_1, to};
use xskiff::demo::traffic::http;
use xskiff::lab::agent::report::Report;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, number_from};

/// Connections of each client; one in five asks all the time.
const CONNECTIONS: u64 = 100;
const ACTIVE: u64 = 20;
/// How long it lasts at least, once something was shed.
const LASTS: Duration = Duration::from_secs(5);

/// What was not served: shed by the worker, and refused by the uplink's full rings.
fn unserved(world: &World) -> (u64, u64) {
    let rings = world.port("uplink").sockets;
    (world.dropped("overload"), rings.rx_ring_full + rings.rx_dropped)
}

/// One worker for everything.
fn start(label: &'static str, edit: impl FnOnce(String) -> String) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    World::start_edited(shape, |text| {
        assert!(text.contains("count: 2"), "{text}");
        edit(text.replace("count: 2", "count: 1"))
    })
}

/// Begins a flood while connections stand, waits until `is_enough` of it was not served, and has those
/// connections answered for [`LASTS`] more.
fn assert_answered_beside_a_flood(world: &World, is_enough: impl Fn((u64, u64)) -> bool) {
    let rate = number_from("XSKIFF_FLOOD_RATE", 300_000);
    let scene = &world.scene;
    let service = to(CLUSTER_IP[0], HTTP[0]);
    let clients = [
        Client::start(scene.pod(BUYER), &service, CONNECTIONS, ACTIVE),
        Client::start(&scene.node, &to(WEB_1.addresses[0], HTTP[2]), CONNECTIONS, ACTIVE),
    ];
    let before = unserved(world);
    let since = |now: (u64, u64)| (now.0 - before.0, now.1 - before.1);
    let target = format!("--to={}:{}", BALANCER[0], HTTP[0]);
    let (sources, rate_word) = (format!("--sources={FLOOD_SOURCES}"), format!("--rate={rate}"));
    let flood = ["flood", &target, &sources, &rate_word, "--count=10000000"];
    let flood = scene.client.agent(&flood).expect("a flood");
    let is_shed = || is_enough(since(unserved(world)));
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
    assert_answered_beside_a_flood(&world, |(shed, refused)| shed + refused > 0);
}

/// New connections are served again once it is over.
fn assert_serves_again(world: &World) {
    let serves = || {
        let asked = http(&world.scene.client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT));
        asked.is_ok_and(|seen| seen.outcome == Outcome::Ok)
    };
    assert!(wait_until(PATIENCE, serves).is_some(), "{:#?}", world.status().drops);
}

/// What takes the processor of the first worker, which gets a twentieth of it at most, until it is
/// dropped.
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

/// Computes on `cpus` alone until told otherwise.
fn compute(cpus: &CpuSet, is_over: &AtomicBool) {
    sched_setaffinity(Pid::from_raw(0), cpus).expect("a processor");
    while !is_over.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

#[test]
fn a_worker_that_starves_for_a_processor_sheds_new_flows_and_keeps_those_that_stand() {
    if !root_or_skip("a worker that starves") {
        return;
    }
    // A worker this slow may not tick for a while, and is no stalled one.
    let world =
        start("starved", |text| text + "stall: {after_ms: 5000, restart_after_ms: 60000}\n");
    let worker = worker_thread(world.status().pid);
    let cpus = sched_getaffinity(worker).expect("its processors");
    let renice = Command::new("renice").args(["-n", "19", "-p", &worker.to_string()]).output();
    assert!(renice.expect("renice").status.success());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _starved = Starved(&is_over);
        scope.spawn(|| compute(&cpus, &is_over));
        assert_answered_beside_a_flood(&world, |(shed, _)| shed > 0);
    });
    let status = world.status();
    assert!(status.workers[0].pressed_bursts > 0, "{:?}", status.workers);
    assert_eq!(status.xdp.passed_on_stall, 0);
    assert_serves_again(&world);
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
    assert_answered_beside_a_flood(&world, |(shed, _)| shed > 1000);
    let tables = world.status().tables;
    let frames = tables.iter().find(|table| table.name == "packet_frames").expect("its row");
    assert!(8 * frames.high_water > 7 * frames.capacity, "{frames:?}");
    assert_serves_again(&world);
}
