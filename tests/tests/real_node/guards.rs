//! What no way out of a port may do: let a pod that reads nothing, a change of ways or of a pod's offloads
//! disturb anybody, or keep anything for good.
//!
//! `XSKIFF_GUARD_SECONDS` (3) is how long each lasts, `XSKIFF_MIXED_SECONDS` (10) how long mixed traffic does.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use xskiff::demo::scene::{
    BALANCER, BUYER, CLIENT, ECHO, FAMILIES, HTTP, PODS, STRANGER, WEB_1, address, to,
};
use xskiff::demo::traffic::next_fetched;
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::churn::resident_kb;
use crate::clients::{Client, Datagrams};
use crate::world::{PATIENCE, Shape, World, number_from, within};

const WEB_2: &str = PODS[1].name;

fn seconds(name: &str, default: u64) -> Duration {
    Duration::from_secs(number_from(name, default))
}

/// Packets into pods leave as live frames.
fn live(label: &'static str) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| {
        text + "\ntransmit: live-frames\ndebug: {faults: true}\n"
    });
    let is_live = || PODS.iter().all(|plan| world.port(plan.name).transmit == "live-frames");
    assert!(wait_until(PATIENCE, is_live).is_some(), "{:#?}", world.status().ports);
    world
}

/// TCP segments go whole.
fn whole(label: &'static str) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "auto" };
    World::start_edited(shape, |text| text + "\nsegments: whole\ndebug: {faults: true}\n")
}

/// Tells threads to end when it is dropped, also by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Small datagrams to the service, many at once, until told to end; how many were sent.
fn flood(from: &Namespace, is_over: &AtomicBool) -> u64 {
    within(from, || {
        let bind = || UdpSocket::bind("0.0.0.0:0").expect("bound");
        let sockets: [UdpSocket; 16] = std::array::from_fn(|_| bind());
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            for socket in sockets.iter().cycle().take(160) {
                let target = (address(BALANCER[0]), ECHO);
                sent += u64::from(socket.send_to(&[7; 64], target).is_ok());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    })
}

/// Requests that a client's connections have answered each second, for so long.
fn rate(client: &Client, lasts: Duration) -> u64 {
    let (asked, began) = (client.requests(), Instant::now());
    while began.elapsed() < lasts {
        client.goes_on();
    }
    let answers = client.requests() - asked;
    answers * 1000 / u64::try_from(began.elapsed().as_millis()).expect("short").max(1)
}

/// Calls for live frames that the kernel refused.
fn refused_calls(world: &World) -> u64 {
    let live = world.status().live_frames;
    live.refused_no_space + live.refused_no_memory + live.refused_otherwise
}

/// Its sockets fill, and with them the pages that it was sent.
#[test]
fn pod_that_never_reads_disturbs_no_other() {
    if !root_or_skip("a pod that never reads") {
        return;
    }
    let lasts = seconds("XSKIFF_GUARD_SECONDS", 3);
    let world = live("deaf");
    let service = to(PODS[1].addresses[0], HTTP[2]);
    let other = Client::start(world.scene.pod(BUYER), &service, 20, 4);
    let (is_over, client) = (AtomicBool::new(false), &world.scene.client);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(client, &is_over));
        let ends = Ends(&is_over);
        let usual = rate(&other, lasts);
        let server = world.scene.servers.iter().find(|one| one.name == WEB_1.name);
        let server = server.expect("it serves").agent.process();
        server.signal(Signal::SIGSTOP).expect("it reads no more");
        let before = world.port(WEB_1.name).transmitted_packets;
        let beside = rate(&other, lasts);
        let sent = world.port(WEB_1.name).transmitted_packets - before;
        let refused = refused_calls(&world);
        let later = rate(&other, lasts);
        println!("{usual}, then {beside} and {later} answers a second beside {sent} packets");
        assert!(sent > 1000, "{sent}");
        assert_eq!(refused_calls(&world), refused, "{:?}", world.status().live_frames);
        for rate in [beside, later] {
            assert!(3 * rate >= usual, "{rate} a second, and {usual} before");
        }
        server.signal(Signal::SIGCONT).expect("it reads again");
        drop(ends);
        assert!(flood.join().expect("it ends") > 0);
    });
    other.end_whole(PATIENCE);
    let told = world.port(WEB_2).transmit;
    assert_eq!(told, "live-frames", "{:#?}", world.port(WEB_2));
    assert_eq!(world.port(WEB_1.name).live_vanished_packets, 0);
    world.assert_kernel_forwarded_nothing();
}

/// Datagrams that carry numbers, from many L4 ports of the client to a pod that nobody's policy guards, as the
/// pod gets them.
#[derive(Default)]
struct Sequenced {
    sent: AtomicU64,
    received: AtomicU64,
    /// Of each flow that did not come in order: what came after what.
    overtaken: std::sync::Mutex<Vec<(SocketAddr, u64, u64)>>,
    is_over: AtomicBool,
}

/// Where they go.
const SEQUENCED: u16 = 7007;
/// How many may be under way: no queue on their way is as short.
const WINDOW: u64 = 128;

impl Sequenced {
    fn receive(&self, pod: &Namespace, is_bound: &AtomicBool) {
        within(pod, || {
            let socket = UdpSocket::bind(("0.0.0.0", SEQUENCED)).expect("bound");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a time limit");
            is_bound.store(true, Ordering::Relaxed);
            let (mut last, mut bytes) = (BTreeMap::new(), [0; 64]);
            while !self.is_over.load(Ordering::Relaxed) {
                let Ok((8, from)) = socket.recv_from(&mut bytes) else { continue };
                let number = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
                if let Some(before) = last.insert(from, number).filter(|before| *before >= number) {
                    self.overtaken.lock().expect("no panic").push((from, before, number));
                }
                self.received.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Sends for so long; how many got lost.
    fn send(&self, from: &Namespace, lasts: Duration) -> u64 {
        within(from, || {
            let sockets: Vec<UdpSocket> =
                (0..4).map(|_| UdpSocket::bind("0.0.0.0:0").expect("bound")).collect();
            let target = (address(BUYER.addresses[0]), SEQUENCED);
            let mut number = 0u64;
            // A flow may be out of order once, at its beginning, where its packets come to a worker that does
            // not own it; and the client's kernel keeps what comes before its gateway has answered ARP.
            for socket in &sockets {
                let received = self.received.load(Ordering::Relaxed);
                let is_open = || {
                    number += 1;
                    socket.send_to(&number.to_be_bytes(), target).expect("sent");
                    self.received.load(Ordering::Relaxed) > received
                };
                assert!(wait_until(PATIENCE, is_open).is_some(), "nothing arrives");
            }
            let (began, mut lost, mut burst) = (Instant::now(), 0, 1);
            while began.elapsed() < lasts {
                // On both sides of what makes a call for live frames.
                burst = (burst * 5 + 3) % 97;
                for socket in sockets.iter().cycle().take(burst) {
                    number += 1;
                    socket.send_to(&number.to_be_bytes(), target).expect("sent");
                }
                self.sent.store(number, Ordering::Relaxed);
                let waited = Instant::now();
                let under_way = || number - lost - self.received.load(Ordering::Relaxed);
                while under_way() > WINDOW - 97 {
                    if waited.elapsed() > Duration::from_millis(500) {
                        lost += under_way();
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            std::thread::sleep(Duration::from_millis(500));
            number - self.received.load(Ordering::Relaxed)
        })
    }
}

/// What the node, the kernel's rings and its own queues say that they lost.
fn counted_as_lost(world: &World) -> u64 {
    let status = world.status();
    let dropped: u64 = status.drops.iter().map(|drop| drop.packets).sum();
    let of_ports: u64 = status
        .ports
        .iter()
        .map(|port| {
            let rings = &port.sockets;
            let received = rings.rx_dropped + rings.rx_ring_full + rings.rx_fill_ring_empty;
            received + port.live_refused_packets + port.live_vanished_packets
        })
        .sum();
    let segments = &status.segments;
    dropped + of_ports + segments.lost_pieces + segments.refused_memory_packets
}

/// Data of TCP connections of a pod both ways while `others` runs, every byte of which is checked.
fn transfers_beside<T>(pod: &Namespace, others: impl FnOnce() -> T) -> T {
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(is_over);
        let moving: Vec<_> = [("upload", 0), ("download", 1)]
            .map(|(option, family)| {
                scope.spawn(move || {
                    let mut moved = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        transfer(pod, option, family);
                        moved += 1;
                    }
                    moved
                })
            })
            .into();
        let result = others();
        drop(ends);
        for one in moving {
            assert!(one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) > 0);
        }
        result
    })
}

fn transfer(pod: &Namespace, option: &str, family: usize) {
    const BYTES: u64 = 4 << 20;
    let size = format!("--{option}-bytes={BYTES}");
    let target = to(BALANCER[family], HTTP[0]);
    let arguments = ["fetch", &target, &size, "--timeout-ms=20000"];
    let agent = pod.agent(&arguments).expect("a client");
    let fetched = next_fetched(&agent, 2 * PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    let is_whole = fetched.ok && fetched.bytes == BYTES;
    assert!(is_whole, "{} {option}: {fetched:?}", FAMILIES[family]);
}

fn order_is_kept(world: &World) {
    let lasts = seconds("XSKIFF_GUARD_SECONDS", 3);
    let (sequenced, is_bound) = (Sequenced::default(), AtomicBool::new(false));
    let counted = counted_as_lost(world);
    let buyer = world.scene.pod(BUYER);
    let lost = std::thread::scope(|scope| {
        scope.spawn(|| sequenced.receive(buyer, &is_bound));
        let _ends = Ends(&sequenced.is_over);
        assert!(wait_until(PATIENCE, || is_bound.load(Ordering::Relaxed)).is_some());
        transfers_beside(buyer, || {
            let for_ms = (lasts.as_millis() + 2000).to_string();
            world.ask(&["debug", "change-ways", "--every-ms", "10", "--for-ms", &for_ms]);
            sequenced.send(&world.scene.client, lasts)
        })
    });
    let counted = counted_as_lost(world) - counted;
    let overtaken = sequenced.overtaken.into_inner().expect("no panic");
    let sent = sequenced.sent.into_inner();
    println!("{sent} datagrams, {lost} of them lost, {counted} packets counted as such");
    assert!(overtaken.is_empty(), "{overtaken:?}");
    assert!(sent > 1000 && lost <= counted, "{lost} of {sent}: {:#?}", world.status());
    // They go their own way again, and all is well.
    transfer(buyer, "download", 0);
}

#[test]
fn packets_keep_their_order_while_ports_are_sent_live_frames_and_then_not() {
    if !root_or_skip("a change between live frames and AF_XDP") {
        return;
    }
    let world = live("changed-live");
    order_is_kept(&world);
    assert!(world.port(BUYER.name).live_packets > 0, "{:#?}", world.port(BUYER.name));
}

#[test]
fn packets_keep_their_order_while_ports_take_whole_segments_and_then_not() {
    if !root_or_skip("a change between the packet socket and AF_XDP") {
        return;
    }
    let world = whole("changed-whole");
    order_is_kept(&world);
    let segments = world.status().segments;
    assert!(segments.whole_packets > 0 && segments.cut_packets > 0, "{segments:?}");
    assert_eq!((segments.refused_header_packets, segments.abandoned_packets), (0, 0));
}

#[test]
fn streams_go_on_while_a_pods_offloads_are_turned_off_and_on() {
    if !root_or_skip("offloads that change") {
        return;
    }
    let lasts = seconds("XSKIFF_GUARD_SECONDS", 3);
    let world = whole("offloads");
    let rounds = transfers_beside(world.scene.pod(BUYER), || {
        let (began, mut rounds) = (Instant::now(), 0);
        while began.elapsed() < lasts {
            for pod in [BUYER, WEB_1] {
                let features = [
                    ["tso off", "gso off", "gro off", "tx off"],
                    ["tx on", "gro on", "gso on", "tso on"],
                ];
                for one in features.into_iter().flatten() {
                    world.scene.pod(pod).features("eth0", one).expect("switched");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            rounds += 1;
        }
        rounds
    });
    let segments = world.status().segments;
    println!("{rounds} rounds, {segments:?}");
    assert!(rounds > 0 && segments.whole_packets > 0, "{segments:?}");
    assert_eq!((segments.refused_header_packets, segments.abandoned_packets), (0, 0));
    world.assert_kernel_forwarded_nothing();
}

/// What a node process and the kernel have for it.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kb: u64,
    descriptors: usize,
    kernel_kb: u64,
}

/// What mixed traffic may add: allocators keep some of what they had, and others use this kernel as well.
const RESIDENT_KB_MAX: u64 = 16 << 10;
const KERNEL_KB_MAX: u64 = 192 << 10;
/// Connections of who asks for the status, and files that are read now and then.
const DESCRIPTORS_MAX: usize = 8;

impl Held {
    fn now(process: u32) -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
        let kernel = ["Slab:", "KernelStack:", "PageTables:", "Percpu:"];
        let lines = memory.lines().filter(|line| kernel.iter().any(|own| line.starts_with(own)));
        let number =
            |line: &str| line.split_whitespace().nth(1).and_then(|one| one.parse::<u64>().ok());
        Self {
            resident_kb: resident_kb(process),
            descriptors: std::fs::read_dir(format!("/proc/{process}/fd")).expect("fd").count(),
            kernel_kb: lines.filter_map(number).sum::<u64>(),
        }
    }

    /// The least of some looks: what is freed is given back a little later.
    fn settled(process: u32) -> Self {
        let looks = (0..20).map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            Self::now(process)
        });
        looks.min_by_key(|held| held.kernel_kb).expect("some")
    }
}

/// Connections that stand, that begin and end, streams, datagrams and floods, for so long.
fn mixed_traffic(world: &World, lasts: Duration) {
    let (is_over, client) = (AtomicBool::new(false), &world.scene.client);
    let service = to(BALANCER[0], HTTP[0]);
    let standing = Client::start(&world.scene.client, &service, 50, 10);
    let datagrams = Datagrams::begin(
        &world.scene.client,
        (&to(BALANCER[0], ECHO), &format!("{}/32", CLIENT[0])),
        (50, 10),
        7,
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let is_enough = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| flood(client, &is_enough));
                    std::thread::sleep(Duration::from_millis(200));
                    is_enough.store(true, Ordering::Relaxed);
                });
                std::thread::sleep(Duration::from_millis(800));
            }
        });
        let _ends = Ends(&is_over);
        transfers_beside(world.scene.pod(BUYER), || {
            let began = Instant::now();
            while began.elapsed() < lasts {
                let fetch = ["fetch", &service, "--count=20", "--timeout-ms=20000"];
                let asking = world.scene.client.agent(&fetch).expect("a client");
                for _ in 0..20 {
                    let fetched = next_fetched(&asking, PATIENCE).expect("an answer");
                    assert!(fetched.ok, "{fetched:?}");
                }
                // Refused by policy, which costs as well.
                let refused = ["fetch", &*service, "--timeout-ms=100"];
                let refused = world.scene.pod(STRANGER).agent(&refused).expect("a client");
                assert!(!next_fetched(&refused, PATIENCE).expect("an answer").ok);
            }
        });
    });
    standing.end_whole(PATIENCE);
    datagrams.end_whole(PATIENCE);
}

fn stays_as_it_is(world: &World) {
    let lasts = seconds("XSKIFF_MIXED_SECONDS", 10) / 2;
    let process = world.status().pid;
    // What is made once is made by then.
    mixed_traffic(world, (lasts / 2).min(Duration::from_secs(60)));
    let before = Held::settled(process);
    mixed_traffic(world, lasts);
    let after = Held::settled(process);
    println!("{before:?}, after {lasts:?} of mixed traffic {after:?}");
    assert!(after.resident_kb <= before.resident_kb + RESIDENT_KB_MAX, "{before:?}, {after:?}");
    assert!(after.descriptors <= before.descriptors + DESCRIPTORS_MAX, "{before:?}, {after:?}");
    assert!(after.kernel_kb <= before.kernel_kb + KERNEL_KB_MAX, "{before:?}, {after:?}");
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn mixed_traffic_leaves_memory_and_descriptors_as_they_were() {
    if !root_or_skip("mixed traffic") {
        return;
    }
    stays_as_it_is(&live("mixed-live"));
    stays_as_it_is(&whole("mixed-whole"));
}
