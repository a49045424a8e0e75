//! Threads of the node that stall or panic while connections are held: none of them is reset, what is
//! ours is dropped or goes on and is never passed on, and everything is back.
//! `XSKIFF_HELD_CONNECTIONS` is the number of connections.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use control::admin::Status;
use xskiff::demo::scene::{BALANCER, BUYER, ECHO, FAMILIES, HTTP, WEB_1, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets};
use crate::world::{PATIENCE, Shape, World, number_from, within};

/// Connections of one client process.
const CONNECTIONS_PER_CLIENT: u64 = 500;
/// One in so many asks all the time; the others are idle.
const ACTIVE_SHARE: u64 = 10;
/// When a worker counts as stalled.
const STALL_AFTER: Duration = Duration::from_millis(400);
/// Where the node's health and readiness are asked for.
const PROBES: [&str; 2] = ["http://127.0.0.1:9964/livez", "http://127.0.0.1:9964/readyz"];
/// How long a worker stands still.
const STALL: Duration = Duration::from_secs(4);
/// How long a short one lasts, which must be told of nevertheless.
const SHORT_MS: &str = "700";
/// What a stall lasts at most until the node knows of it, a sleep before it included.
const DETECTED_WITHIN: Duration = Duration::from_millis(500);
/// What it takes to order a stall and to ask for the status.
const ASKED_WITHIN: Duration = Duration::from_millis(150);
/// What may come between a stall and a client that hears of it.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// A node that may be made to fail.
fn start(label: &'static str, restart_after_ms: u32) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    World::start_edited(shape, |text| {
        let stall = format!("\nstall: {{restart_after_ms: {restart_after_ms}}}\n");
        text + &stall + "debug: {faults: true}\n"
    })
}

/// Clients that hold so many connections through a service, in both families.
fn hold(world: &World, wanted: u64) -> Vec<Client> {
    let sizes = (0..wanted).step_by(usize::try_from(CONNECTIONS_PER_CLIENT).expect("small"));
    let sizes = sizes.map(|first| CONNECTIONS_PER_CLIENT.min(wanted - first));
    let start = |(number, held): (usize, u64)| {
        let target = to(BALANCER[number % FAMILIES.len()], HTTP[0]);
        Client::start(&world.scene.client, &target, held, held.div_ceil(ACTIVE_SHARE))
    };
    let clients: Vec<Client> = sizes.enumerate().map(start).collect();
    let count = world.ask_json(&["ct", "count", "--proto", "tcp", "--service", "shop/web"]);
    assert!(count.as_u64().is_some_and(|count| count >= wanted), "{count} translated");
    clients
}

/// Every connection is asked once more and answers.
fn end_whole(world: &World, clients: Vec<Client>, wanted: u64) {
    let ends = clients.into_iter().map(|client| client.end_whole(PATIENCE).answered_last);
    assert_eq!(ends.sum::<u64>(), wanted);
    world.assert_kernel_forwarded_nothing();
}

fn alive(status: &Status) -> usize {
    status.workers.iter().filter(|worker| worker.alive).count()
}

#[test]
fn a_stalled_worker_is_noticed_and_its_connections_are_there_when_it_is_back() {
    if !root_or_skip("a stalled worker") {
        return;
    }
    let wanted = number_from("XSKIFF_HELD_CONNECTIONS", 500);
    let world = start("stalled", 8000);
    let clients = hold(&world, wanted);
    let (before, resets_before) = (world.status(), resets(&world));
    let workers = before.workers.len();

    let stalled = Instant::now();
    let for_ms = STALL.as_millis().to_string();
    world.ask(&["debug", "stall-worker", "0", "--for-ms", &for_ms]);
    let noticed = wait_until(PATIENCE, || alive(&world.status()) == workers - 1);
    let noticed = noticed.map(|_| stalled.elapsed()).expect("the stall is noticed");
    assert!(noticed < STALL_AFTER + NOTICED_WITHIN, "{noticed:?}");
    let status = world.status();
    assert!(status.verdict.summary.starts_with("worker 0 has stalled"), "{:?}", status.verdict);
    for probe in PROBES {
        let said = world.scene.node.run("curl", &["-s", "-w", "%{http_code}", probe]);
        let said = said.expect("asked");
        assert!(said.contains("heartbeat: [0]") && said.trim().ends_with("503"), "{probe}: {said}");
    }
    // Clients ask on: what is theirs is dropped.
    let dropped = || world.status().xdp.stalled > before.xdp.stalled;
    assert!(wait_until(PATIENCE, dropped).is_some(), "nothing was dropped");

    let back = wait_until(PATIENCE, || alive(&world.status()) == workers).is_some();
    let gone = stalled.elapsed();
    assert!(back && gone >= STALL, "back after {gone:?}");
    let stalls: Vec<u64> = world.status().workers.iter().map(|worker| worker.stalls).collect();
    assert_eq!(stalls, [1, 0]);
    assert!(world.metrics().contains("xskiff_worker_stalls_total{worker=\"0\"} 1\n"));
    clients.iter().for_each(Client::goes_on);
    let after = world.status();
    assert_eq!((after.pid, after.xdp.passed_on_stall), (before.pid, 0));
    assert_eq!(resets(&world), resets_before);
    end_whole(&world, clients, wanted);
    println!(
        "{wanted} translated connections: a worker's stall of {STALL:?} was told after {noticed:?}, \
         {} frames were dropped, no connection reset",
        after.xdp.stalled - before.xdp.stalled
    );
}

/// They were looked for once a second: most stalls of less than that were neither counted nor logged.
#[test]
fn a_stall_of_less_than_a_second_is_counted_and_told_of_within_half_a_second() {
    if !root_or_skip("short stalls") {
        return;
    }
    let world = start("short", 8000);
    let stalls = || world.status().workers[0].stalls;
    let before = stalls();
    let told = (1..=4).map(|times| {
        let began = Instant::now();
        world.ask(&["debug", "stall-worker", "0", "--for-ms", SHORT_MS]);
        let is_counted = || stalls() >= before + times;
        assert!(wait_until(PATIENCE, is_counted).is_some(), "number {times}");
        let told = began.elapsed();
        let is_back = || alive(&world.status()) == world.status().workers.len();
        assert!(wait_until(PATIENCE, is_back).is_some(), "{:#?}", world.status().workers);
        told
    });
    // A machine that is busy otherwise makes some of them late.
    let soonest = told.min().expect("some");
    assert!(soonest < DETECTED_WITHIN + ASKED_WITHIN, "{soonest:?}");
    println!("a stall of {SHORT_MS} ms was told after {soonest:?}, the soonest of four");
}

#[test]
fn a_worker_that_never_comes_back_ends_the_process_and_the_next_goes_on_with_its_connections() {
    if !root_or_skip("a worker that stalls for good") {
        return;
    }
    let wanted = number_from("XSKIFF_HELD_CONNECTIONS", 500);
    let world = start("forgood", 3000);
    let clients = hold(&world, wanted);
    let (before, resets_before) = (world.status(), resets(&world));

    world.ask(&["debug", "stall-worker", "0", "--for-ms", "3600000"]);
    let began = Instant::now();
    let error = world.wait_for_failure();
    let ended = began.elapsed();
    assert!(error.contains("worker 0 on CPU") && error.contains("has not ticked for"), "{error}");
    let next = world.start_again();
    clients.iter().for_each(Client::goes_on);
    let after = world.status();
    assert_ne!(after.pid, before.pid);
    // Who has asked in vain all the while asks again after as long once more (RFC 6298, 5.5).
    std::thread::sleep(began.elapsed());
    assert_eq!(resets(&world), resets_before);
    end_whole(&world, clients, wanted);
    println!("{wanted} connections: the process ended after {ended:?}, the next one went on");
    drop(next);
}

#[test]
fn a_worker_that_panics_goes_on_and_loses_no_connection() {
    if !root_or_skip("a worker that panics") {
        return;
    }
    let wanted = number_from("XSKIFF_HELD_CONNECTIONS", 500);
    let world = start("panics", 8000);
    let clients = hold(&world, wanted);
    let (before, resets_before) = (world.status(), resets(&world));
    for worker in &before.workers {
        world.ask(&["debug", "panic-worker", &worker.worker.to_string()]);
    }
    let restarted =
        || world.status().workers.iter().all(|worker| worker.restarts == 1 && worker.alive);
    assert!(wait_until(PATIENCE, restarted).is_some(), "{:#?}", world.status().workers);
    clients.iter().for_each(Client::goes_on);
    let told = || world.status().errors.iter().any(|error| error.object == "worker 0");
    assert!(wait_until(PATIENCE, told).is_some(), "{:#?}", world.status().errors);
    let metrics = world.metrics();
    assert!(metrics.contains("xskiff_worker_restarts_total{worker=\"0\"} 1"), "{metrics}");
    assert_eq!((world.status().pid, resets(&world)), (before.pid, resets_before));
    end_whole(&world, clients, wanted);
}

/// Asks by UDP every millisecond while `work` goes on. How many were sent, and how many of them
/// answered.
fn asked_during(world: &World, work: impl FnOnce()) -> (u64, u64) {
    let target = format!("{}:{ECHO}", BALANCER[0]);
    let socket = within(&world.scene.client, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.connect(&target).expect("an address");
        socket
    });
    socket.set_nonblocking(true).expect("set");
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let (mut sent, mut answered, mut buffer) = (0, 0, [0; 64]);
            let mut hear = |answered: &mut u64| loop {
                match socket.recv(&mut buffer) {
                    Ok(_) => *answered += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Err(error) => panic!("refused: {error}"),
                }
            };
            while !is_over.load(Ordering::Relaxed) {
                socket.send(b"still there?").expect("sent");
                sent += 1;
                std::thread::sleep(Duration::from_millis(1));
                hear(&mut answered);
            }
            let until = Instant::now() + Duration::from_secs(2);
            while answered < sent && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
                hear(&mut answered);
            }
            (sent, answered)
        });
        work();
        is_over.store(true, Ordering::Relaxed);
        asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn no_packet_is_lost_while_the_control_thread_hangs_panics_and_begins_anew() {
    if !root_or_skip("the control thread") {
        return;
    }
    let wanted = number_from("XSKIFF_HELD_CONNECTIONS", 500);
    let world = start("control", 8000);
    let clients = hold(&world, wanted);
    let (before, resets_before) = (world.status(), resets(&world));
    let (sent, answered) = asked_during(&world, || {
        world.ask(&["debug", "stall-control", "--for-ms", "2000"]);
        for times in 1..=3 {
            world.ask(&["debug", "panic-control"]);
            let began_anew = || world.status().control.restarts == times;
            assert!(wait_until(PATIENCE, began_anew).is_some());
        }
        clients.iter().for_each(Client::goes_on);
    });
    assert!(sent > 1000, "{sent}");
    assert_eq!(answered, sent, "of what was asked meanwhile");
    let status = world.status();
    assert_eq!((status.pid, resets(&world)), (before.pid, resets_before));
    assert!(status.control.publishes > before.control.publishes, "made anew");
    let told = status.errors.iter().find(|error| error.object == "control thread");
    let told = told.expect("it is told of");
    assert!(told.message.contains("panicked, and began anew"), "{told:?}");
    // What was made anew is as the objects say.
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
    end_whole(&world, clients, wanted);
    println!(
        "{sent} datagrams while the control thread hung for 2 s and panicked 3 times: all echoed"
    );
}

/// An arrival that the control thread panicked over stayed under way for ever: its place and its port's
/// number were lost, and whoever removed the pod waited for it.
#[test]
fn an_add_that_the_control_thread_panics_over_ends_and_the_next_one_succeeds() {
    if !root_or_skip("a panic in the middle of an ADD") {
        return;
    }
    const NAME: &str = "market/buyer";
    let world = start("addpanic", 8000);
    let netns = format!("/run/netns/{}", world.scene.pod(BUYER).system_name());
    let [v4, v6] = BUYER.addresses;
    let add = ["endpoint", "add", NAME, "--interface", BUYER.name, "--address", v4];
    let add = [&add[..], &["--address", v6, "--netns", &netns]].concat();
    let reaches = || {
        let web = to(WEB_1.addresses[0], HTTP[2]);
        let answers = fetch(world.scene.pod(BUYER), &web, 1, &["--timeout-ms=3000"]);
        answers.expect("asked").iter().all(|answer| answer.error.is_none())
    };
    let link = || world.scene.node.ip(&format!("link show {}", BUYER.name)).expect("its link");
    assert!(reaches() && link().contains("prog/xdp"));
    let ports = world.status().ports.len();
    for (times, step) in (1..).zip(["looked", "bound", "attached", "published"]) {
        world.ask(&["endpoint", "remove", NAME]);
        world.ask(&["debug", "panic-control", "--while-adding", step]);
        if step == "published" {
            world.ask(&add);
        } else {
            let refused = world.refusal(&add);
            assert!(refused.contains("ask again"), "{step}: {refused}");
            assert!(!link().contains("prog/xdp"), "{step}: {}", link());
            let is_gone = || world.status().arrivals.closing_sockets == 0;
            assert!(wait_until(PATIENCE, is_gone).is_some(), "{step}");
            assert_eq!(world.status().ports.len(), ports - 1, "{step}");
            world.ask(&add);
        }
        let status = world.status();
        assert_eq!((status.control.restarts, status.arrivals.under_way), (times, 0), "{step}");
        assert_eq!(status.ports.len(), ports, "{step}");
        assert!(reaches(), "{step}");
    }
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn nothing_fails_by_order_where_that_is_not_allowed() {
    if !root_or_skip("faults refused") {
        return;
    }
    let world = World::start(Shape { label: "nofault", mtu: 1500, xdp_mode: "native" });
    let refused = world.refusal(&["debug", "panic-control"]);
    assert!(refused.contains("debug.faults"), "{refused}");
    assert_eq!(world.status().control.restarts, 0);
}
