//! Frames forwarded for real, in both directions, on a network of its own: the program is loaded and
//! attached, sockets are bound, and what was sent is counted where it should arrive.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use control::config::{Segments, Transmit};
use dataplane::port::{PortId, PortKind};
use xdp_redirect::forward::Forwarder;
use xdp_redirect::loader::Mode;
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem};

use super::finding::Finding;
use super::trial_network::{ADDRESSES, Apart, INTERFACES, Network, Shape, Signals};

/// Flows sent each way: enough that every queue has some.
pub const FLOWS: u16 = 64;
/// Where they go.
pub const L4_PORT: u16 = 5000;
/// How long to wait for what does not come.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Queues that are tried, however many the interface has.
const QUEUES_TRIED_MAX: u32 = 8;
/// A usual datagram.
const BYTES: usize = 100;
/// A jumbo frame's datagram.
const JUMBO_BYTES: usize = 8000;

/// What is tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    shape: Shape,
    mode: Mode,
    /// Queues that have a socket.
    sockets: u32,
    bytes: usize,
}

/// Datagrams sent, and arrived, each way.
pub type Counts = [(u16, u16); 2];

/// Frames are forwarded as they are, so nothing may be left for a device to finish.
const AS_THEY_ARE: (Segments, Transmit) = (Segments::Cut, Transmit::AfXdp);
/// Of most links.
pub const SHAPE: Shape = Shape { queues: 1, mtu: 1500, ways: AS_THEY_ARE };

const PLAIN: Trial = Trial { shape: SHAPE, mode: Mode::Native, sockets: 1, bytes: BYTES };

/// Tries it all, with as many queues as an interface to be checked has.
#[must_use]
pub fn check(may_try: bool, queues: u32) -> Vec<Finding> {
    if !may_try {
        return vec![Finding::skipped("trial", "needs the privileges above", "")];
    }
    let generic = Trial { mode: Mode::Generic, ..PLAIN };
    let mut findings = vec![
        forwards("forward-native", PLAIN, "update the kernel: veth has native XDP since 4.19"),
        forwards("forward-generic", generic, "see the log of the kernel (`dmesg`)"),
        queues_share(queues.clamp(2, QUEUES_TRIED_MAX)),
    ];
    let jumbo = Trial { shape: Shape { mtu: 9000, ..SHAPE }, bytes: JUMBO_BYTES, ..PLAIN };
    findings.push(match forward_whole(jumbo) {
        Ok(counts) if is_whole(&counts) => {
            Finding::pass("jumbo", format!("{} datagrams of {JUMBO_BYTES} bytes each way", FLOWS))
        }
        Ok(counts) => Finding::warn("jumbo", told(&counts), JUMBO_REMEDY),
        Err(error) => Finding::warn("jumbo", error.to_string(), JUMBO_REMEDY),
    });
    findings
}

const JUMBO_REMEDY: &str = "keep MTUs at 3506 or less, or use a kernel of 6.6 or newer";

fn forwards(check: &str, trial: Trial, remedy: &str) -> Finding {
    match forward_whole(trial) {
        Ok(counts) if is_whole(&counts) => {
            Finding::pass(check, format!("{FLOWS} datagrams each way, none lost"))
        }
        Ok(counts) => Finding::fail(check, told(&counts), remedy),
        Err(error) => Finding::fail(check, error.to_string(), remedy),
    }
}

/// With a socket on every queue nothing is lost; with one on the first alone, what the sender's hash
/// puts into others is. That shows whether steering is even seen here.
fn queues_share(queues: u32) -> Finding {
    let name = "queues";
    let many = Trial { shape: Shape { queues, ..SHAPE }, sockets: queues, ..PLAIN };
    let remedy = "give uplinks one queue (`ethtool -L`)";
    match (forward_whole(many), forward(Trial { sockets: 1, ..many })) {
        (Ok(all), Ok(one)) if is_whole(&all) => {
            let of_one: u16 = one.iter().map(|(_, arrived)| arrived).sum();
            let words = format!(
                "{queues} queues with a socket each lose nothing; with a socket on one of them {of_one} \
                 of {} arrive: a node binds all",
                2 * FLOWS
            );
            Finding::pass(name, words)
        }
        (Ok(all), _) => Finding::fail(name, told(&all), remedy),
        (Err(error), _) => Finding::fail(name, error.to_string(), remedy),
    }
}

/// Whether nothing was lost.
pub fn is_whole(counts: &Counts) -> bool {
    counts.iter().all(|(sent, arrived)| sent == arrived)
}

/// What was lost, in words.
pub fn told(counts: &Counts) -> String {
    let [(sent, there), (_, back)] = counts;
    format!("of {sent} datagrams {there} arrived one way, {back} the other way")
}

/// One that loses something is tried once more: on a machine that is busy at this moment it says
/// nothing, and what really does not get through is lost again.
fn forward_whole(trial: Trial) -> io::Result<Counts> {
    match forward(trial)? {
        counts if is_whole(&counts) => Ok(counts),
        _ => forward(trial),
    }
}

fn forward(trial: Trial) -> io::Result<Counts> {
    let network = Network::make(trial.shape)?;
    let forward = move |signals: &Signals| in_the_middle(trial, signals);
    let (_, counts) = network.while_forwarding(forward, |ends| both_ways(ends, trial.bytes))?;
    Ok(counts)
}

/// What a node's workers do, with nothing looked at.
fn in_the_middle(trial: Trial, signals: &Signals) -> io::Result<()> {
    let failed = |error: xdp_redirect::Error| io::Error::other(error.to_string());
    let mut redirect = Redirect::load(true).map_err(failed)?;
    // Nobody watches it.
    redirect.heartbeat(0).map_err(failed)?.beat_for_ever();
    let config =
        UmemConfig { frames: 8192, multi_buffer: redirect.multi_buffer(), ..UmemConfig::default() };
    let umem = Umem::new(config).map_err(failed)?;
    let rings = SocketConfig {
        receive_ring: 256,
        transmit_ring: 256,
        fill_frames: 256,
        idle_frames: 256,
        ..SocketConfig::default()
    };
    let mut pairs = Vec::new();
    for queue in 0..trial.sockets {
        let mut bind = |port: u16, interface: &str| -> Result<Socket, xdp_redirect::Error> {
            let socket = Socket::bind(&umem, interface, queue, &rings)?;
            redirect.set_socket(PortId(port), queue, 0, socket.fd())?;
            Ok(socket)
        };
        let [left, right] = INTERFACES;
        pairs.push([bind(0, left).map_err(failed)?, bind(1, right).map_err(failed)?]);
    }
    for (port, interface) in (0..).zip(INTERFACES) {
        let queues = trial.shape.queues;
        let rule = PortRule { port: PortId(port), kind: PortKind::Pod, queues, everything: true };
        redirect.attach(interface, &rule, trial.mode).map_err(failed)?;
    }
    let mut forwarder = Forwarder::new(&umem, pairs);
    signals.set_ready();
    while !signals.is_over() {
        if forwarder.turn() == 0 {
            forwarder.wait(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Sends [`FLOWS`] datagrams each way.
///
/// # Errors
/// What the kernel says of a socket.
pub fn both_ways([left, right]: &[Apart; 2], bytes: usize) -> io::Result<Counts> {
    Ok([exchange(left, right, 1, bytes)?, exchange(right, left, 0, bytes)?])
}

/// Sends [`FLOWS`] datagrams of a socket each to the end whose address is `to`.
fn exchange(from: &Apart, into: &Apart, to: usize, bytes: usize) -> io::Result<(u16, u16)> {
    let target = SocketAddr::from((ADDRESSES[to], L4_PORT));
    let socket = into.run(move || UdpSocket::bind(target))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // What arrives is taken while more is sent: a socket's buffer holds less than all of it.
    let sending = from.begin(move || send(1 - to, target, bytes));
    let mut senders = BTreeSet::new();
    let mut buffer = vec![0; 2 * bytes];
    while senders.len() < usize::from(FLOWS) {
        match socket.recv_from(&mut buffer) {
            Ok((length, sender)) if length == bytes => {
                senders.insert(sender);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    sending.recv().map_err(io::Error::other)??;
    Ok((FLOWS, u16::try_from(senders.len()).unwrap_or(u16::MAX)))
}

/// Sends them; the sockets stay until all are under way, so that no two have one port.
fn send(own: usize, target: SocketAddr, bytes: usize) -> io::Result<()> {
    let payload = vec![b'x'; bytes];
    let mut sockets = Vec::new();
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind((ADDRESSES[own], 0))?;
        socket.send_to(&payload, target)?;
        sockets.push(socket);
        // Slow enough for the smallest ring.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
