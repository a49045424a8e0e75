//! `xskiff-perf transmit`: what leaves by ports of a worker by each way out, by how many packets leave
//! at once and by how many ports they leave.
//!
//! Links are veth pairs of one queue in network namespaces of our own. One thread makes packets and sends
//! them, on one core, which also does what their arrival causes: it counts what arrives. The far ends
//! have an XDP program that drops (`xdp`), or are as a pod with GRO (`plain`), whose stack drops for
//! want of an address. For each number of ports the ways follow each other.
//!
//! `live-frames` makes a call for any number of packets here: that shows what is worth one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use dataplane::port::{PortId, Ports};
use pinning::CpuId;
use xdp_redirect::ethtool::{Offload, set_offload};
use xdp_redirect::live_frames::{Expected, FrameCounter};
use xdp_redirect::live_transmit::{LivePeer, Trial};
use xdp_redirect::loader::interface_index;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{LiveTransmit, Socket, Umem, WorkerPorts};

use crate::choice::chosen;
use crate::figure::Figure;
use crate::packet;
use crate::ports::network::{Network, pod_interface};
use crate::report::Report;

const BENCH: &str = "transmit";
const BURSTS: [u16; 5] = [1, 8, 32, 64, 256];
const PORTS: [u16; 3] = [1, 8, 32];
const PORTS_MOST: u16 = PORTS[PORTS.len() - 1];
/// Bytes of frames, without their checksum: the shortest, and of an MTU of 1500.
const SIZES: [usize; 2] = [60, 1514];
const RECEIVERS: [&str; 2] = ["xdp", "plain"];
const WAYS: [&str; 2] = ["af-xdp", "live-frames"];
/// Bursts between two looks at the clock.
const BURSTS_PER_LOOK: u32 = 16;

/// Options of `transmit`.
#[derive(Debug, Args)]
pub struct Options {
    /// Receivers, of xdp and plain; both when not given.
    #[arg(long, value_delimiter = ',')]
    receivers: Vec<String>,
    /// Times every rate is measured; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Length of a run, in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    millis: u64,
    /// CPU of the worker; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// Two short runs: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

/// A worker with ports to all pods that leave by one way.
struct Way {
    name: &'static str,
    ports: WorkerPorts,
    _live: Option<LiveTransmit>,
}

/// Runs the cases and reports.
///
/// # Errors
/// Not root, no such CPU, or the kernel refuses a namespace, a socket or a program.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let receivers = chosen(&options.receivers, &RECEIVERS, |name| name)?;
    let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
    let last = allowed.iter().last().context("this process may run on no CPU")?;
    let core = options.core.map_or(last, CpuId);
    report.header(&[
        format!("mode     veth of one queue, copy; worker and receivers on CPU {core}"),
        "work     makes packets and sends them; what arrived is counted".into(),
    ])?;
    pinning::apply::pin_current_thread(core)?;
    for receiver in receivers {
        measure(receiver, options, report).context(*receiver)?;
    }
    Ok(report.table(&[])?)
}

fn measure(receiver: &str, options: &Options, report: &mut Report) -> Result<()> {
    let network = Network::new(PORTS_MOST)?;
    let _counters = receive(&network, receiver)?;
    let (runs, run) = match options.quick {
        true => (2, Duration::from_millis(2)),
        false => (options.runs, Duration::from_millis(options.millis)),
    };
    for bytes in SIZES {
        for count in PORTS {
            let mut samples = vec![[Vec::new(), Vec::new()]; BURSTS.len()];
            for (index, name) in WAYS.into_iter().enumerate() {
                // A device's queue has one socket at a time, so a way is made for all its bursts.
                report.progress(&format!("{receiver} {bytes} bytes, {count} ports, {name}"));
                let mut way = Way::new(name, count)?;
                for _ in 0..runs {
                    for (burst, samples) in BURSTS.into_iter().zip(&mut samples) {
                        samples[index].push(way.rate(&network, burst, count, bytes, run)?);
                    }
                }
            }
            for (burst, samples) in BURSTS.into_iter().zip(&samples) {
                let case = format!("{receiver}/{bytes}/ports-{count}/burst-{burst}");
                for (name, samples) in WAYS.into_iter().zip(samples) {
                    report.add(Figure::of(BENCH, &case, name, "kpps", samples))?;
                }
            }
        }
    }
    Ok(())
}

/// Makes the far ends what they are to be. What is returned keeps them so.
fn receive(network: &Network, receiver: &str) -> Result<Vec<FrameCounter>> {
    let expected = Expected {
        destination: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9),
        address_bits: 0,
        ttl: packet::TTL,
    };
    network.within("far", || {
        let mut counters = Vec::new();
        for pod in 1..=PORTS_MOST {
            let interface = format!("in{pod}");
            if receiver == RECEIVERS[0] {
                counters.push(FrameCounter::attach(&interface, &expected)?);
            } else {
                set_offload(&interface, Offload::GenericReceive, true)?;
            }
        }
        Ok(counters)
    })?
}

impl Way {
    fn new(name: &'static str, count: u16) -> Result<Self> {
        let umem = Umem::new(UmemConfig { frames: 8192, ..UmemConfig::default() })?;
        let mut ports = WorkerPorts::new(&umem);
        let mut live = (name == WAYS[1]).then(|| LiveTransmit::load(1)).transpose()?;
        if let Some(live) = &live {
            ports = ports.with_live_transmit(live.sender(0)?.with_packets_min(1));
        }
        let config = SocketConfig { fill_frames: 16, idle_frames: 16, ..SocketConfig::small() };
        let control = ports.control();
        for pod in 1..=count {
            let (interface, port) = (pod_interface(pod), PortId(pod));
            let socket = Socket::bind(&umem, &interface, 0, &config)?;
            control.add(port, socket).map_err(|(error, _)| error)?;
            if let Some(live) = &mut live {
                live.set_port(port, interface_index(&interface)?)?;
                let trial = live.try_port(port, &interface)?;
                ensure!(trial == Trial::Arrives, "live frames do not arrive at {interface}");
                control.set_live(port, Some(LivePeer::Program))?;
            }
            ports.take_commands();
        }
        Ok(Self { name, ports, _live: live })
    }

    /// Sends for `run`; thousand packets a second that arrived.
    fn rate(
        &mut self,
        network: &Network,
        burst: u16,
        count: u16,
        bytes: usize,
        run: Duration,
    ) -> Result<f64> {
        let from = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 1024);
        let mut frame =
            packet::udp(from, SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 2), 9)).to_vec();
        frame.resize(bytes, 0);
        let mut next = 0;
        let before = network.delivered()?;
        let started = Instant::now();
        while started.elapsed() < run {
            for _ in 0..BURSTS_PER_LOOK {
                for _ in 0..burst {
                    let Some(buffer) = self.ports.pool().allocate_with(&frame) else { break };
                    if let Err((_, buffer)) = self.ports.transmit(PortId(1 + next), buffer) {
                        self.ports.release(buffer);
                    }
                    next = if next + 1 < count { next + 1 } else { 0 };
                }
                self.ports.flush();
            }
        }
        let elapsed = started.elapsed();
        let packets = network.delivered()? - before;
        ensure!(packets > 0, "{}: nothing arrived", self.name);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 packets")]
        Ok(packets as f64 / elapsed.as_secs_f64() / 1e3)
    }
}
