//! One node process after another, under connections that are held: none breaks, and how long nothing
//! is answered meanwhile, seen by a client that asks a thousand times a second through a service.
//! `XSKIFF_RESTART_CONNECTIONS` TCP connections and `XSKIFF_RESTART_DATAGRAMS` UDP flows, of which
//! `XSKIFF_RESTART_SEED` chooses the busy ones; the others are idle. `XSKIFF_EARLIER_BINARY` names an
//! earlier version, which the first restart is an upgrade of; `XSKIFF_RESTART_FIRST` says which of the
//! restarts that is.

use std::fs::{OpenOptions, Permissions};
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::take_over::format::Format;
use nix::sys::signal::Signal;
use xskiff::demo::scene::{BALANCER, ECHO, HTTP, to};
use xskiff::lab::{Process, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, Datagrams, resets};
use crate::world::{PATIENCE, Shape, Stage, World, number_from, within};

/// What a process says once the one before hands over.
const ASKED: &str = "the process before hands over";
/// Where flow tables of the node are not.
const ELSEWHERE: &str = "/dev/shm/xskiff-test-elsewhere";
const EVERY: Duration = Duration::from_millis(1);
/// What a restart may take on a machine that does much else.
const GAP_MAX: Duration = Duration::from_secs(20);

/// Says so when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When answers came, while `work` went on, which can see how many there were.
fn answers_during(world: &World, target: &str, work: impl FnOnce(&AtomicUsize)) -> Vec<Instant> {
    let socket = within(&world.scene.client, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.connect(target).expect("an address");
        socket
    });
    socket.set_read_timeout(Some(EVERY)).expect("set");
    let (is_over, count) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let (mut answers, mut buffer) = (Vec::new(), [0; 64]);
            while !is_over.load(Ordering::Relaxed) {
                let next = Instant::now() + EVERY;
                // One that cannot be sent for a moment is as one that is lost.
                let _ = socket.send(b"still there?");
                match socket.recv(&mut buffer) {
                    Ok(_) => {
                        answers.push(Instant::now());
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        let silent = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                        assert!(silent.contains(&error.kind()), "refused: {error}");
                    }
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            answers
        });
        // Also when it panics, or nobody would be told.
        let over = Over(is_over);
        work(count);
        drop(over);
        asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn longest_gap(answers: &[Instant]) -> Duration {
    let gaps = answers.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().expect("answers")
}

/// How a process ends, and what the next one has otherwise.
struct Restart {
    how: &'static str,
    /// `None`: the next one takes over from it.
    signal: Option<Signal>,
    /// Words of the configuration, and what they become.
    changed: Option<[&'static str; 2]>,
    /// Whether flow tables are as an earlier version of xskiff wrote them.
    is_upgrade: bool,
    /// What the next process finds of the flow table.
    outcome: &'static str,
}

impl Restart {
    const fn new(how: &'static str, signal: Option<Signal>, outcome: &'static str) -> Self {
        Self { how, signal, changed: None, is_upgrade: false, outcome }
    }
}

const RESTARTS: [Restart; 8] = [
    Restart::new("SIGTERM", Some(Signal::SIGTERM), "taken-over"),
    Restart::new("SIGKILL", Some(Signal::SIGKILL), "rebuilt"),
    Restart::new("take-over", None, "taken-over"),
    Restart {
        changed: Some(["details: false", "details: true"]),
        ..Restart::new("SIGTERM, entries of two lines for one", Some(Signal::SIGTERM), "moved")
    },
    Restart {
        changed: Some(["details: true", "details: false"]),
        ..Restart::new("SIGKILL, entries of one line for two", Some(Signal::SIGKILL), "moved")
    },
    Restart {
        changed: Some(["details: false", "details: true"]),
        ..Restart::new("take-over, entries of two lines for one", None, "moved")
    },
    Restart {
        is_upgrade: true,
        ..Restart::new("SIGTERM, an earlier version's flows", Some(Signal::SIGTERM), "moved")
    },
    Restart {
        is_upgrade: true,
        ..Restart::new("SIGKILL, an earlier version's flows", Some(Signal::SIGKILL), "moved")
    },
];

/// Runs the binary of an earlier version in place of the one that the next word names.
const EARLIER: [&str; 4] = ["sh", "-c", "shift; exec \"$XSKIFF_EARLIER_BINARY\" \"$@\"", "sh"];

/// Makes the flow table in `file` one that an earlier version wrote: by the number of its format, and by a
/// layout that is its own affair (words 16 and 22 of the header).
fn write_as_earlier_version(file: &Path) {
    let file = OpenOptions::new().write(true).open(file).expect("the flow table's file");
    for (word, value) in [(16, Format::OneMapping.number()), (22, 0x0bad_f00d)] {
        file.write_all_at(&value.to_ne_bytes(), word * 8).expect("written");
    }
}

/// One TCP connection in so many asks all the time.
const ACTIVE_SHARE: u64 = 10;
/// One UDP flow in so many is busy all the time.
const BUSY_SHARE: u64 = 200;
/// TCP connections of one client process.
const CONNECTIONS_EACH: u64 = 2500;
/// Addresses that the client takes for its own, and those that UDP flows come from.
const OWN: [&str; 2] = ["100.64.0.0/16", "100.64.0.0/18"];

#[test]
fn no_connection_breaks_from_one_process_to_the_next_and_the_gap_is_told() {
    if !root_or_skip("restarts under load") {
        return;
    }
    let connections = number_from("XSKIFF_RESTART_CONNECTIONS", 300);
    let datagrams = number_from("XSKIFF_RESTART_DATAGRAMS", 2000);
    let seed = number_from("XSKIFF_RESTART_SEED", 20_261);
    let patience = PATIENCE + Duration::from_millis(connections + datagrams);
    let shape = Shape { label: "restart", mtu: 1500, xdp_mode: "native" };
    let stage = Stage::build(shape, |text| {
        let flows = (2 * (connections + datagrams)).max(65_536);
        let text = text.replace("ipv4_flows_max: 65536", &format!("ipv4_flows_max: {flows}"));
        text + "\nstall: {on_exit: drop}\nconntrack: {details: false}\n"
            + "timeouts: {udp_seconds: 7200, udp_stream_seconds: 7200}\n"
    });
    let mut is_earlier = std::env::var_os("XSKIFF_EARLIER_BINARY").is_some();
    let world = if is_earlier { stage.begin_behind(&EARLIER) } else { stage.begin() };
    let first = usize::try_from(number_from("XSKIFF_RESTART_FIRST", 0)).expect("small");
    let client = &world.scene.client;
    client.ip(&format!("route add local {} dev lo", OWN[0])).expect("own addresses");
    let resets_before = resets(&world);
    let clients: Vec<Client> = (0..connections)
        .step_by(usize::try_from(CONNECTIONS_EACH).expect("small"))
        .map(|first| {
            let held = CONNECTIONS_EACH.min(connections - first);
            let of = (held, held.div_ceil(ACTIVE_SHARE));
            let started = Client::begin(client, &to(BALANCER[0], HTTP[0]), of, &[]);
            started.wait_open(patience);
            started
        })
        .collect();
    let busy = datagrams.div_ceil(BUSY_SHARE);
    let target = &*to(BALANCER[0], ECHO);
    let flows = Datagrams::begin(client, (target, OWN[1]), (datagrams, busy), seed);
    flows.wait_open(patience);

    let mut running: Option<Process> = None;
    for restart in RESTARTS.iter().cycle().skip(first).take(RESTARTS.len()) {
        let Restart { how, signal, changed, is_upgrade, outcome } = *restart;
        let mut next = None;
        let flow_table = world.status().flow_tables.swap_remove(0).file.expect("it is in a file");
        let probed = format!("{}:{ECHO}", BALANCER[0]);
        let answers = answers_during(&world, &probed, |count| {
            std::thread::sleep(Duration::from_millis(500));
            if let Some([old, new]) = changed {
                world.rewrite_configuration(old, new);
            }
            let before = count.load(Ordering::Relaxed);
            next = Some(match signal {
                Some(signal) => {
                    world.end_process(running.take(), signal);
                    if is_upgrade {
                        write_as_earlier_version(Path::new(&flow_table));
                    }
                    world.start_again()
                }
                None => world.take_over(),
            });
            let goes_on = || count.load(Ordering::Relaxed) > before + 100;
            assert!(wait_until(PATIENCE, goes_on).is_some(), "{:#?}", world.status());
        });
        if signal.is_none() {
            let before = running.as_ref().unwrap_or(world.node.process());
            let ended = before.wait(PATIENCE).expect("it ended");
            assert_eq!(ended.code(), Some(0), "{}", before.log_tail());
        }
        running = next;
        clients.iter().for_each(Client::goes_on);
        flows.goes_on();
        let handed_on = world.status().handed_on;
        match (&handed_on, signal) {
            (Some(handed), None) => {
                assert!(handed.sockets > 0 && handed.reason.is_none(), "{how}: {handed:?}");
                println!("{how}: {} sockets as they were", handed.sockets);
            }
            _ => assert!(handed_on.is_none() && signal.is_some(), "{how}: {handed_on:?}"),
        }
        let table = world.status().flow_tables.swap_remove(0);
        // Whatever the earlier version's format is.
        let outcome =
            if std::mem::take(&mut is_earlier) { table.outcome.clone() } else { outcome.into() };
        assert_eq!((&table.outcome, table.lost, table.reason), (&outcome, 0, None), "{how}");
        assert!(table.flows >= connections + datagrams, "{how}: {}", table.flows);
        let gap = longest_gap(&answers);
        println!(
            "{how}: {} flows {outcome}, {} ms without an answer",
            table.flows,
            gap.as_millis()
        );
        assert!(gap < GAP_MAX, "{how}: {gap:?}");
        assert_eq!(resets(&world), resets_before, "{how}");
    }
    let echoes = flows.end_whole(patience).echoes;
    let ends = clients.into_iter().map(|client| client.end_whole(patience).requests);
    let requests: u64 = ends.sum();
    assert_eq!(resets(&world), resets_before);
    world.assert_kernel_forwarded_nothing();
    println!(
        "all {connections} TCP connections and {datagrams} UDP flows, seed {seed}, answer after {} \
         restarts: {requests} requests, {echoes} echoes, no reset",
        RESTARTS.len()
    );
}

/// What becomes of connections and of the node when the next process cannot start.
#[test]
fn a_successor_that_fails_leaves_its_predecessor_serving_and_no_packet_is_lost() {
    if !root_or_skip("a failing successor") {
        return;
    }
    let world = World::start(Shape { label: "succeed", mtu: 1500, xdp_mode: "native" });
    let (before, held) = (world.status(), 100);
    let client = Client::start(&world.scene.client, &to(BALANCER[0], HTTP[0]), held, held);
    let target = format!("{}:{ECHO}", BALANCER[0]);
    let address = "127.0.0.1:9977";
    let _taken = within(&world.scene.node, || TcpListener::bind(address).expect("bound"));
    let flows = before.flow_tables[1].file.clone().expect("flow tables are in files");
    let mode = |mode: u32| {
        std::fs::set_permissions(&flows, Permissions::from_mode(mode)).expect("set");
    };
    let (run, flow_table) = ("run_directory:", "ipv4_flows_max: 65536");
    let wrong = [
        ("interface: uplink", "interface: uplink9".to_owned(), "uplink9"),
        (flow_table, "ipv4_flows_max: none".to_owned(), "ipv4_flows_max"),
        // What could be seen only by trying was tried once there was no way back.
        (run, format!("http: {{listen: \"{address}\"}}\nrun_directory:"), address),
        (flow_table, format!("directory: {ELSEWHERE}\n  {flow_table}"), "flow_table.directory"),
        (run, run.to_owned(), "mode 644"),
    ];
    let answers = answers_during(&world, &target, |_| {
        for (old, new, told) in &wrong {
            world.rewrite_configuration(old, new);
            mode(if *told == "mode 644" { 0o644 } else { 0o600 });
            let successor = world.spawn_node(&["--take-over"]);
            let ended = successor.wait(PATIENCE).expect("it ends");
            assert_eq!(ended.code(), Some(1), "{}", successor.log_tail());
            assert!(successor.log_tail().contains(told), "{told}: {}", successor.log_tail());
            assert!(!successor.log_tail().contains(ASKED), "{told}: {}", successor.log_tail());
            world.rewrite_configuration(new, old);
        }
        client.goes_on();
    });
    mode(0o600);
    let _ = std::fs::remove_dir(ELSEWHERE);
    let gap = longest_gap(&answers);
    assert!(gap < Duration::from_secs(1), "{gap:?}");
    assert_eq!(world.status().pid, before.pid);
    // With all that put right, the next one takes over, from where each of them has left it.
    let process = world.take_over();
    client.goes_on();
    client.end_whole(PATIENCE);
    drop(process);
}

#[test]
fn where_nobody_serves_taking_over_is_a_start() {
    if !root_or_skip("taking over from nobody") {
        return;
    }
    let world = World::start(Shape { label: "nobody", mtu: 1500, xdp_mode: "native" });
    world.kill();
    let process = world.take_over();
    let held = Client::start(&world.scene.client, &to(BALANCER[1], HTTP[0]), 5, 5);
    held.end_whole(PATIENCE);
    drop(process);
}

/// Either process is killed while one hands over to the other. What is left is what a killed process leaves.
#[test]
fn a_process_that_is_killed_while_it_hands_over_or_takes_over_is_followed_by_the_next() {
    if !root_or_skip("killing while handing over") {
        return;
    }
    let world = World::start(Shape { label: "handing", mtu: 1500, xdp_mode: "native" });
    let client = Client::start(&world.scene.client, &to(BALANCER[0], HTTP[0]), 20, 20);
    let resets_before = resets(&world);
    let mut serving: Option<Process> = None;
    for is_successor_killed in [true, false, true] {
        let successor = world.spawn_node(&["--take-over"]);
        let log = || std::fs::read_to_string(successor.log()).unwrap_or_default();
        let has_asked = || log().contains(ASKED);
        assert!(wait_until(PATIENCE, has_asked).is_some(), "{}", log());
        let before = serving.take();
        let before = before.as_ref().unwrap_or(world.node.process());
        if is_successor_killed {
            successor.signal(Signal::SIGKILL).expect("killed");
            successor.wait(PATIENCE).expect("ended");
            let ended = before.wait(PATIENCE).expect("it ends by itself");
            assert_eq!(ended.code(), Some(0), "{}", before.log_tail());
            serving = Some(world.start_again());
        } else {
            // It may have ended already.
            let _ = before.signal(Signal::SIGKILL);
            let serves = || world.node.status().is_ok_and(|one| one.pid == successor.id());
            assert!(wait_until(PATIENCE, serves).is_some(), "{}", log());
            serving = Some(successor);
        }
        client.goes_on();
        assert_eq!(resets(&world), resets_before, "resets");
    }
    client.end_whole(PATIENCE);
    world.assert_kernel_forwarded_nothing();
    drop(serving);
}
