//! A pod limited by its annotations gets its rate, and no more: over TCP and UDP, each way, from and
//! to another pod of the node and the outside, counted by the receiver's own kernel.
//!
//! `XSKIFF_BANDWIDTH_SECONDS` is how long each rate is measured, `XSKIFF_BANDWIDTH_MBIT` a list of
//! rates. From eight seconds on every rate must be within 3 %, and delays are of 300 round trips;
//! shorter runs beside other tests are held to nine tenths, and to the limit itself always.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use control::admin::status::LimitInfo;
use xskiff::demo::scene::{BUYER, CLIENT, STRANGER};
use xskiff::lab::{Namespace, Process, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, number_from, within};

const MBIT: u64 = 1_000_000;
/// Of a datagram, which with its headers fills a frame of 1,514 bytes.
const DATAGRAM_BYTES: &str = "1472";
/// Measured when a sender has found its rate.
const RUN_UP: Duration = Duration::from_millis(700);
/// For a rate that something else kept a sender from reaching.
const TRIES: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// Which of the limited pod's annotations, and who is at the other end.
#[derive(Debug, Clone, Copy)]
struct Path {
    direction: &'static str,
    outside: bool,
}

const PATHS: [Path; 4] = [
    Path { direction: "egress", outside: false },
    Path { direction: "ingress", outside: false },
    Path { direction: "egress", outside: true },
    Path { direction: "ingress", outside: true },
];

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = if self.outside { "the outside" } else { "a pod of the node" };
        let way = if self.direction == "egress" { "to" } else { "from" };
        write!(f, "{way} {other}")
    }
}

impl Path {
    /// Who sends, who receives, and the receiver's address.
    fn ends<'w>(&self, world: &'w World) -> (&'w Namespace, &'w Namespace, &'static str) {
        let scene = &world.scene;
        let (other, address) = if self.outside {
            (&scene.client, CLIENT[0])
        } else {
            (scene.pod(BUYER), BUYER.addresses[0])
        };
        let limited = scene.pod(STRANGER);
        match self.direction {
            "egress" => (limited, other, address),
            _ => (other, limited, STRANGER.addresses[0]),
        }
    }
}

/// Puts a limit on the stranger, in that direction alone, and waits until it is in force.
fn limit(world: &World, direction: &str, mbit: u64) {
    let file = world.files.manifests.join("pods.yaml");
    let text = fs::read_to_string(&file).expect("the pods");
    let named = "  name: stranger\n  namespace: market\n";
    let (before, after) = text.split_once(named).expect("the stranger");
    let rest = after.find("  labels:").expect("its labels");
    let annotation = format!("  annotations: {{kubernetes.io/{direction}-bandwidth: {mbit}M}}\n");
    fs::write(&file, format!("{before}{named}{annotation}{}", &after[rest..])).expect("written");
    let is_in_force = || {
        let limits = world.port(STRANGER.name).limits;
        limits.len() == 1
            && limits[0].direction == direction
            && limits[0].bits_per_second == mbit * MBIT
    };
    assert!(wait_until(PATIENCE, is_in_force).is_some(), "{:?}", world.port(STRANGER.name).limits);
}

fn in_force(world: &World) -> LimitInfo {
    world.port(STRANGER.name).limits.remove(0)
}

/// Bytes that an end's kernel has received, Ethernet headers included.
fn received(namespace: &Namespace) -> (Instant, u64) {
    let text = within(namespace, || fs::read_to_string("/proc/thread-self/net/dev"));
    let at = Instant::now();
    let text = text.expect("its interfaces");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("eth0");
    let bytes = line.split_whitespace().next().and_then(|bytes| bytes.parse().ok());
    (at, bytes.expect("a number"))
}

/// A sender and its receiver, that end with this value.
struct Load {
    sender: Process,
    _receiver: Process,
}

impl Load {
    /// Sends for that long: TCP as fast as it goes, UDP at `mbit`.
    fn start(world: &World, path: Path, protocol: Protocol, mbit: u64, time: Duration) -> Self {
        let (from, to, address) = path.ends(world);
        let receiver = to.spawn("iperf3-server", "iperf3", &["-s", "-1"]).expect("iperf3");
        let listens = || {
            let text = within(to, || fs::read_to_string("/proc/thread-self/net/tcp6"));
            // Port 5201 in state LISTEN, not what is left of the connection before.
            let mut lines = text.as_ref().expect("sockets").lines();
            lines.any(|line| line.contains(":1451 ") && line.contains(":0000 0A "))
        };
        assert!(wait_until(PATIENCE, listens).is_some(), "{}", receiver.log_tail());
        // Round trips are measured after the rate.
        let seconds = (time + RUN_UP + RUN_UP).as_secs() + 5;
        let (seconds, rate) = (seconds.to_string(), format!("{mbit}M"));
        let mut words = vec!["-c", address, "-t", &seconds];
        if protocol == Protocol::Udp {
            words.extend(["-u", "-b", &rate, "-l", DATAGRAM_BYTES]);
        }
        let sender = from.spawn("iperf3", "iperf3", &words).expect("iperf3");
        Self { sender, _receiver: receiver }
    }
}

/// Bits a second that the receiver's kernel saw.
fn rate(to: &Namespace, time: Duration) -> f64 {
    let (began, before) = received(to);
    std::thread::sleep(time);
    let (ended, after) = received(to);
    (after - before) as f64 * 8.0 / ended.duration_since(began).as_secs_f64()
}

/// Round trips of echo requests over the same path, in milliseconds: their median, what 99 % took
/// at most, and how many were lost.
struct Delay {
    median: f64,
    most: f64,
    lost: usize,
}

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2} ms, {} lost", self.median, self.most, self.lost)
    }
}

fn delay(world: &World, path: Path, count: usize) -> Delay {
    let (from, _, address) = path.ends(world);
    let words = ["-n", "-c", &count.to_string(), "-i", "0.01", "-W", "1", address];
    let output = from.command("ping", &words).output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout);
    let time = |line: &str| line.split_once("time=")?.1.split_whitespace().next()?.parse().ok();
    let mut times: Vec<f64> = text.lines().filter_map(time).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    };
    Delay { median: at(0.5), most: at(0.99), lost: count - times.len() }
}

fn show(protocol: Protocol) {
    let label = if protocol == Protocol::Tcp { "bandwidth-tcp" } else { "bandwidth-udp" };
    if !root_or_skip(label) {
        return;
    }
    let seconds = number_from("XSKIFF_BANDWIDTH_SECONDS", 1);
    let rates = std::env::var("XSKIFF_BANDWIDTH_MBIT").unwrap_or_else(|_| "10,100".into());
    let rates = rates.split(',').map(|mbit| mbit.parse::<u64>().expect("Mbit/s"));
    let time = Duration::from_secs(seconds);
    let (least, pings) = if seconds >= 8 { (0.97, 300) } else { (0.9, 30) };
    let world = World::start(Shape { label, mtu: 1500, xdp_mode: "native" });
    for mbit in rates {
        for path in PATHS {
            limit(&world, path.direction, mbit);
            let what = format!("{protocol:?} {path}, {} {mbit}M", path.direction);
            let quiet = delay(&world, path, pings);
            let wanted = (mbit * MBIT) as f64;
            let mut best = 0.0_f64;
            let mut crowded = format!("quiet {quiet}");
            if protocol == Protocol::Udp && seconds >= 8 {
                let _busy = Load::start(&world, path, protocol, mbit * 9 / 10, time);
                std::thread::sleep(RUN_UP);
                crowded = format!("{crowded}; at 90 % {}", delay(&world, path, pings));
            }
            for _ in 0..TRIES {
                let load = Load::start(&world, path, protocol, 2 * mbit, time);
                std::thread::sleep(RUN_UP);
                let (_, to, _) = path.ends(&world);
                let share = rate(to, time) / wanted;
                // What was held when it began may leave while it is measured.
                assert!(share < 1.0 + 0.03 / seconds as f64 + 0.005, "{what}: {share}");
                best = best.max(share);
                crowded = format!("{crowded}; full {}", delay(&world, path, pings));
                assert!(load.sender.ended().is_none(), "{what}: {}", load.sender.log_tail());
                if share >= least {
                    break;
                }
            }
            println!("{what}: {:.1} % of it; round trips {crowded}", best * 100.0);
            assert!(best >= least, "{what}: {best}, {:?}", in_force(&world));
            let counted = in_force(&world);
            assert!(counted.delayed_packets > 0 && counted.dropped_packets > 0, "{counted:?}");
        }
    }
    let listed = world.ask(&["endpoint", "list"]);
    assert!(listed.contains("bits_per_second"), "{listed}");
    assert!(world.dropped("bandwidth-egress") > 0 && world.dropped("bandwidth-ingress") > 0);
    assert_eq!(world.dropped("pacing-full"), 0);
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn a_limited_pod_gets_its_rate_over_tcp_from_and_to_pods_and_the_outside() {
    show(Protocol::Tcp);
}

#[test]
fn a_limited_pod_gets_its_rate_over_udp_from_and_to_pods_and_the_outside() {
    show(Protocol::Udp);
}
