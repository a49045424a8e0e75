//! Many UDP flows at once, each of whose datagrams must be echoed to the address and port that it came
//! from.
//!
//! A flow is an address and an L4 port toward one server, so that a million of them take a dozen
//! sockets: the sources are a prefix that the client routes to its loopback interface, and a socket
//! speaks from each of them in turn (`IP_PKTINFO`, ip(7)). A datagram that is lost, as datagrams may
//! be, is sent again; a flow is held against whatever never lets one through.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::Ipv4Net;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use super::report::{FlowsHeld, Report};
use super::{Stop, payload, stopped};

/// Most flows of one run.
const FLOWS_MAX: u32 = 4_000_000;

/// Sockets, and so L4 ports, of one run at most.
const SOCKETS_MAX: u64 = 1024;

/// Datagrams under way at the same time: more would only overflow the servers' sockets.
const WINDOW: usize = 64;

/// How long the echoes of a window are waited for; what is missing then is sent again later.
const WINDOW_PATIENCE: Duration = Duration::from_millis(100);

/// How often a flow's first and last datagram is sent.
const TRIES: usize = 50;

/// How often counts are said.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Hold many UDP flows and count those that are answered no more
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of the echo server
    #[arg(long)]
    to: SocketAddrV4,
    /// Addresses to send from, all of which the client takes for its own
    #[arg(long)]
    sources: Ipv4Net,
    /// Flows to hold
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)))]
    flows: u32,
    /// How many of them send again and again; the others do so first and last
    #[arg(long, default_value_t = 0)]
    active: u32,
    /// Pause between two datagrams of an active one, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval_ms: u64,
    /// Chooses the active ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) async fn run(arguments: Arguments, stop: Stop) -> anyhow::Result<()> {
    let is_stopped = Arc::new(AtomicBool::new(false));
    let mut flows = Flows::open(&arguments, Arc::clone(&is_stopped))?;
    let mut work = tokio::task::spawn_blocking(move || flows.hold(&arguments));
    let ended = tokio::select! {
        ended = &mut work => ended,
        () = stopped(stop) => {
            is_stopped.store(true, Ordering::Relaxed);
            work.await
        }
    };
    ended.context("the flows' thread panicked")?
}

struct Flows {
    /// Each with its own L4 port.
    sockets: Vec<UdpSocket>,
    to: SockaddrIn,
    sources: Ipv4Net,
    /// By flow: whether the last datagram's echo is still to come.
    waits: Vec<bool>,
    /// How many of them wait.
    waiting: usize,
    held: FlowsHeld,
    said: Instant,
    is_stopped: Arc<AtomicBool>,
}

impl Flows {
    fn open(arguments: &Arguments, is_stopped: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let count = u64::from(arguments.flows).div_ceil(hosts(arguments.sources));
        anyhow::ensure!(
            count <= SOCKETS_MAX,
            "{} flows from {} take {count} ports; give a shorter prefix",
            arguments.flows,
            arguments.sources
        );
        let open = |_| -> anyhow::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            Ok(socket)
        };
        Ok(Self {
            sockets: (0..count).map(open).collect::<anyhow::Result<_>>()?,
            to: arguments.to.into(),
            sources: arguments.sources,
            waits: vec![false; arguments.flows as usize],
            waiting: 0,
            held: FlowsHeld { wanted: arguments.flows.into(), ..FlowsHeld::default() },
            said: Instant::now(),
            is_stopped,
        })
    }

    fn hold(&mut self, arguments: &Arguments) -> anyhow::Result<()> {
        let all: Vec<u32> = (0..arguments.flows).collect();
        self.held.opened = self.ask_until_answered(&all, true)?;
        let active: Vec<u32> = chosen(arguments).into_iter().collect();
        while !self.is_stopped.load(Ordering::Relaxed) {
            self.ask(&active)?;
            self.say_at_times();
            std::thread::sleep(Duration::from_millis(arguments.interval_ms));
        }
        self.held.answered_last = self.ask_until_answered(&all, false)?;
        Report::FlowsHeld(self.held).say();
        Ok(())
    }

    /// Sends to each until it is answered, [`TRIES`] times at most, or as long as nobody asks to stop
    /// if it `may_stop`. Returns how many were answered.
    fn ask_until_answered(&mut self, flows: &[u32], may_stop: bool) -> anyhow::Result<u64> {
        let mut left = flows.to_vec();
        left.iter().for_each(|flow| self.waits[*flow as usize] = true);
        for _ in 0..TRIES {
            for window in left.chunks(WINDOW) {
                if may_stop && self.is_stopped.load(Ordering::Relaxed) {
                    break;
                }
                self.ask_window(window)?;
                self.say_at_times();
            }
            left.retain(|flow| self.waits[*flow as usize]);
            if left.is_empty() {
                break;
            }
        }
        Ok((flows.len() - left.len()) as u64)
    }

    fn ask(&mut self, flows: &[u32]) -> anyhow::Result<()> {
        flows.chunks(WINDOW).try_for_each(|window| self.ask_window(window))
    }

    /// Sends to each, and waits for what comes back.
    fn ask_window(&mut self, window: &[u32]) -> anyhow::Result<()> {
        for flow in window {
            self.expect(*flow, true);
        }
        for flow in window {
            // What the kernel refuses counts as lost: the way may be gone for a moment.
            let _ = self.send(*flow);
        }
        let until = Instant::now() + WINDOW_PATIENCE;
        while self.waiting > 0 && Instant::now() < until {
            let mut files: Vec<_> =
                self.sockets.iter().map(|of| PollFd::new(of.as_fd(), PollFlags::POLLIN)).collect();
            let left = until.saturating_duration_since(Instant::now());
            poll(&mut files, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
            let readable = |of: &PollFd<'_>| of.any().unwrap_or(false);
            let ready: Vec<usize> =
                files.iter().enumerate().filter(|(_, of)| readable(of)).map(|of| of.0).collect();
            ready.into_iter().for_each(|socket| self.receive(socket));
        }
        // Whatever comes later is an echo, but of a window that is over.
        self.waiting = 0;
        Ok(())
    }

    fn expect(&mut self, flow: u32, waits: bool) {
        self.waits[flow as usize] = waits;
        self.waiting = if waits { self.waiting + 1 } else { self.waiting.saturating_sub(1) };
    }

    fn send(&self, flow: u32) -> nix::Result<usize> {
        let (socket, source) = self.end_of(flow);
        let source = u32::from_ne_bytes(source.octets());
        let info = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr { s_addr: source },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        let datagram = flow.to_be_bytes();
        let (bytes, control) = ([IoSlice::new(&datagram)], [ControlMessage::Ipv4PacketInfo(&info)]);
        let file = self.sockets[socket].as_raw_fd();
        sendmsg(file, &bytes, &control, MsgFlags::MSG_DONTWAIT, Some(&self.to))
    }

    /// Reads all that a socket has.
    fn receive(&mut self, socket: usize) {
        let file = self.sockets[socket].as_raw_fd();
        let mut control = nix::cmsg_space!(nix::libc::in_pktinfo);
        let mut datagram = [0; 8];
        loop {
            let mut bytes = [IoSliceMut::new(&mut datagram)];
            let flags = MsgFlags::MSG_DONTWAIT;
            // An error is the ICMP answer to an earlier datagram, or there is nothing left.
            let Ok(message) = recvmsg::<SockaddrIn>(file, &mut bytes, Some(&mut control), flags)
            else {
                return;
            };
            let to = message.cmsgs().ok().and_then(|mut control| {
                control.find_map(|message| match message {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr.s_addr),
                    _ => None,
                })
            });
            let is_from_server = message.address == Some(self.to);
            let length = message.bytes;
            let to = to.map(|octets| Ipv4Addr::from(octets.to_ne_bytes()));
            let flow = to.and_then(|to| self.flow_of(socket, to));
            match flow.filter(|flow| is_from_server && datagram[..length] == flow.to_be_bytes()) {
                Some(flow) if self.waits[flow as usize] => {
                    self.held.echoes += 1;
                    self.expect(flow, false);
                }
                // Its datagram was sent twice.
                Some(_) => {}
                None => self.held.wrong += 1,
            }
        }
    }

    /// A flow's socket and source address: the addresses take turns.
    fn end_of(&self, flow: u32) -> (usize, Ipv4Addr) {
        let hosts = hosts(self.sources);
        let (socket, host) = (u64::from(flow) / hosts, u64::from(flow) % hosts);
        let network = self.sources.network().to_bits();
        (socket as usize, Ipv4Addr::from_bits(network | u32::try_from(host).unwrap_or(0)))
    }

    fn flow_of(&self, socket: usize, source: Ipv4Addr) -> Option<u32> {
        let host = source.to_bits().checked_sub(self.sources.network().to_bits())?;
        let flow = u32::try_from(socket as u64 * hosts(self.sources) + u64::from(host)).ok()?;
        (self.sources.contains(&source) && (flow as usize) < self.waits.len()).then_some(flow)
    }

    fn say_at_times(&mut self) {
        if self.said.elapsed() >= REPORT_PERIOD {
            self.said = Instant::now();
            Report::FlowsHeld(self.held).say();
        }
    }
}

/// Addresses of a prefix.
fn hosts(sources: Ipv4Net) -> u64 {
    1 << (32 - sources.prefix_len())
}

/// The active flows.
fn chosen(arguments: &Arguments) -> BTreeSet<u32> {
    let wanted = arguments.active.min(arguments.flows) as usize;
    let mut chosen = BTreeSet::new();
    let mut position = 0;
    while chosen.len() < wanted {
        let mut random = [0; 4];
        payload::fill(arguments.seed, position, &mut random);
        position += random.len() as u64;
        chosen.insert(u32::from_le_bytes(random) % arguments.flows);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(flows: u32, active: u32) -> Arguments {
        let sources = "100.64.0.0/28".parse().expect("a prefix");
        let to = "127.0.0.1:9".parse().expect("to");
        Arguments { to, sources, flows, active, interval_ms: 1, seed: 7 }
    }

    #[test]
    fn every_flow_has_an_end_of_its_own() {
        let flows = Flows::open(&arguments(40, 0), Arc::default()).expect("sockets");
        assert_eq!(flows.sockets.len(), 3);
        for flow in 0..40 {
            let (socket, source) = flows.end_of(flow);
            assert_eq!(flows.flow_of(socket, source), Some(flow));
        }
        assert_eq!(flows.flow_of(2, "100.64.0.8".parse().expect("an address")), None);
        assert_eq!(flows.flow_of(0, "100.64.0.16".parse().expect("an address")), None);
    }

    #[test]
    fn a_seed_chooses_as_many_as_are_asked_for_and_the_same_again() {
        let of = |active| chosen(&arguments(40, active));
        assert_eq!((of(10).len(), of(40).len(), of(50).len()), (10, 40, 40));
        assert_eq!(of(10), of(10));
    }

    #[test]
    fn echoes_are_counted_for_the_flow_that_was_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a server");
        let std::net::SocketAddr::V4(to) = server.local_addr().expect("its address") else {
            panic!("of IPv4")
        };
        std::thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut datagram) {
                let _ = server.send_to(&datagram[..length], from);
            }
        });
        // All of 127.0.0.0/8 is the loopback interface's.
        let sources = "127.1.0.0/29".parse().expect("a prefix");
        let arguments = Arguments { to, sources, flows: 20, active: 5, interval_ms: 1, seed: 3 };
        let mut flows = Flows::open(&arguments, Arc::default()).expect("sockets");
        let all: Vec<u32> = (0..20).collect();
        assert_eq!(flows.ask_until_answered(&all, false).expect("asked"), 20);
        assert_eq!((flows.held.echoes, flows.held.wrong), (20, 0));
    }
}
