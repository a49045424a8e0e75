//! One worker's sockets over many ports, as a node has them, without the pipeline.

use std::fs;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::worker::RxBurst;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::time::{ClockId, clock_gettime};
use pinning::CpuId;
use xdp_redirect::heartbeat::HeartbeatWriter;
use xdp_redirect::loader::Mode;
use xdp_redirect::pool::FramePool;
use xdp_redirect::rules::PortRule;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{Redirect, Socket, Umem, WorkerPorts};

use super::network::{self, Network, pod_interface};

/// The port that the source is behind; pods' follow.
const UPLINK: u16 = 0;
/// How long an adaptive worker looks for packets before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long it sleeps at most, as the node's workers do.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Passes between two looks at the clock.
const PASSES: u32 = 64;

/// What adding one port took.
pub struct Added {
    /// Making and binding the socket.
    pub bind: Duration,
    /// Entering it in the XDP program's maps.
    pub enter: Duration,
    /// Attaching the program.
    pub attach: Duration,
}

impl Added {
    pub fn total(&self) -> Duration {
        self.bind + self.enter + self.attach
    }
}

/// A worker and its control side, in one thread.
pub struct Node {
    redirect: Redirect,
    ports: WorkerPorts,
    umem: Umem,
    heartbeat: HeartbeatWriter,
    /// Kernel indices of the ports' interfaces.
    attached: Vec<u32>,
}

impl Node {
    /// A worker with the uplink; `frames` of packet memory.
    pub fn new(frames: u32) -> Result<Self> {
        let redirect = Redirect::load(false)?;
        let heartbeat = redirect.heartbeat(0)?;
        heartbeat.beat_for_ever();
        let umem = Umem::new(UmemConfig { frames, ..UmemConfig::default() })?;
        let ports = WorkerPorts::new(&umem).with_ready_flags(redirect.ready_flags());
        let mut node = Self { redirect, ports, umem, heartbeat, attached: Vec::new() };
        let fill = (frames / 8).min(2048);
        let sockets =
            SocketConfig { fill_frames: fill, idle_frames: fill, ..SocketConfig::default() };
        node.add(network::UPLINK, UPLINK, &sockets)?;
        Ok(node)
    }

    /// Makes a pod's interface a port, as the node process does.
    pub fn add_pod(&mut self, pod: u16) -> Result<Added> {
        self.add(&pod_interface(pod), UPLINK + pod, &SocketConfig::small())
    }

    fn add(&mut self, interface: &str, number: u16, sockets: &SocketConfig) -> Result<Added> {
        let port = PortId(number);
        let started = Instant::now();
        let socket = Socket::bind(&self.umem, interface, 0, sockets)?;
        let bind = started.elapsed();
        self.redirect.set_socket(port, 0, 0, socket.fd())?;
        self.ports.control().add(port, socket).map_err(|(error, _)| error)?;
        let enter = started.elapsed() - bind;
        let kind = if number == UPLINK { PortKind::Host } else { PortKind::Pod };
        let rule = PortRule { port, kind, queues: 1, everything: false };
        let attachment = self.redirect.attach(interface, &rule, Mode::Auto)?;
        let attach = started.elapsed() - bind - enter;
        self.attached.push(attachment.ifindex);
        self.ports.take_commands();
        Ok(Added { bind, enter, attach })
    }

    /// Takes a pod's port away: detaches, and closes the socket.
    pub fn remove_pod(&mut self, pod: u16) -> Result<Duration> {
        let port = PortId(UPLINK + pod);
        let started = Instant::now();
        let ifindex = self.attached.get(usize::from(UPLINK + pod)).context("no such pod")?;
        self.redirect.detach(*ifindex)?;
        self.redirect.remove_socket(port, 0)?;
        let control = self.ports.control();
        control.remove(port)?;
        self.ports.take_commands();
        ensure!(control.collect().is_some(), "the worker keeps the socket of {port:?}");
        Ok(started.elapsed())
    }

    /// Nanoseconds, of the time the thread ran, of a receive call that finds nothing, with the program's flags or, without,
    /// with a look at every ring.
    pub fn empty_pass(&mut self, with_flags: bool, passes: u32) -> Result<f64> {
        if !with_flags {
            self.move_sockets(WorkerPorts::new(&self.umem))?;
        }
        let mut burst = RxBurst::new();
        let mut pass = |ports: &mut WorkerPorts, count: u32| {
            (0..count).for_each(|_| ports.receive(&mut burst));
            let packets = burst.len();
            burst.drain(..).for_each(|packet| ports.release(packet.buffer));
            packets
        };
        pass(&mut self.ports, passes / 10);
        let before = thread_time()?;
        let packets = pass(&mut self.ports, passes);
        let busy = thread_time()?.saturating_sub(before);
        let nanos = busy.as_secs_f64() * 1e9 / f64::from(passes);
        ensure!(packets == 0, "{packets} packets came while nothing was sent");
        if !with_flags {
            let flags = self.redirect.ready_flags();
            self.move_sockets(WorkerPorts::new(&self.umem).with_ready_flags(flags))?;
        }
        Ok(nanos)
    }

    fn move_sockets(&mut self, to: WorkerPorts) -> Result<()> {
        let from = std::mem::replace(&mut self.ports, to).control();
        while let Some((port, socket)) = from.collect() {
            self.ports.control().add(port, *socket).map_err(|(error, _)| error)?;
            self.ports.take_commands();
        }
        Ok(())
    }

    /// Percent of a core that an idle worker takes, who looks all the time or sleeps in between.
    pub fn idle_percent(&mut self, sleeps: bool, duration: Duration) -> Result<f64> {
        let mut poll = Poll::new()?;
        for (number, (_, fd)) in self.ports.fds().enumerate() {
            let source = &mut SourceFd(&fd.as_raw_fd());
            poll.registry().register(source, Token(number), Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(64);
        let mut burst = RxBurst::new();
        let (started, busy_before) = (Instant::now(), thread_time()?);
        let mut spinning_since = started;
        while started.elapsed() < duration {
            for _ in 0..PASSES {
                self.ports.receive(&mut burst);
                self.ports.flush();
            }
            ensure!(burst.is_empty(), "packets came while nothing was sent");
            if sleeps && spinning_since.elapsed() >= SPIN && self.ports.is_settled() {
                poll.poll(&mut events, Some(SLEEP_MAX))?;
                spinning_since = Instant::now();
            }
        }
        let busy = thread_time()?.saturating_sub(busy_before);
        Ok(100.0 * busy.as_secs_f64() / started.elapsed().as_secs_f64())
    }

    /// Forwards what the source sends to `pods` pods in turn; kpps that they received.
    pub fn fan_out(&mut self, network: &Network, pods: u16, duration: Duration) -> Result<f64> {
        let before = network.delivered()?;
        let mut burst = RxBurst::new();
        let mut next = 0;
        let started = Instant::now();
        while started.elapsed() < duration {
            for _ in 0..PASSES {
                self.ports.receive(&mut burst);
                for packet in burst.drain(..) {
                    let to = PortId(UPLINK + 1 + next);
                    next = if next + 1 < pods { next + 1 } else { 0 };
                    if let Err((_, frame)) = self.ports.transmit(to, packet.buffer) {
                        self.ports.release(frame);
                    }
                }
                self.ports.flush();
            }
        }
        let elapsed = started.elapsed();
        let packets = network.delivered()? - before;
        ensure!(packets > 0, "nothing arrived at the pods");
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 packets")]
        Ok(packets as f64 / elapsed.as_secs_f64() / 1e3)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.heartbeat.stop();
    }
}

fn thread_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// Sends `packet` out of the source's interface as fast as one core can, until told to stop. Runs in a thread of
/// its own, in the far namespace.
pub fn send(packet: &[u8], core: CpuId, stop: &AtomicBool) -> Result<()> {
    pinning::apply::pin_current_thread(core)?;
    let umem = Umem::new(UmemConfig { frames: 4096, ..UmemConfig::default() })?;
    let config = SocketConfig { fill_frames: 64, idle_frames: 64, ..SocketConfig::default() };
    let mut pool = FramePool::new(&umem);
    let mut socket = Socket::bind(&umem, network::SOURCE, 0, &config)?;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            let Some(frame) = pool.allocate_with(packet) else { break };
            if let Err((reason, frame)) = socket.transmit(&mut pool, frame) {
                pool.release(frame);
                if reason != dataplane::DropReason::TxRingFull {
                    return Err(anyhow!("the source cannot send: {reason:?}"));
                }
            }
        }
        socket.flush(&mut pool);
        // Takes what was sent back.
        socket.receive(&mut pool, 0, |_| {});
    }
    Ok(())
}

/// Memory in use, in kilobytes.
pub struct Memory {
    /// Slab that cannot be reclaimed, vmalloc areas and per-CPU memory of the whole machine.
    pub kernel: f64,
    /// This process's own pages and page tables. Rings and maps are the kernel's.
    pub process: f64,
}

impl Memory {
    pub fn now() -> Result<Self> {
        let sum = |path: &str, names: &[&str]| -> Result<f64> {
            let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
            let of_name = |line: &str| -> Option<f64> {
                let (name, value) = line.split_once(':')?;
                let number = value.split_whitespace().next().filter(|_| names.contains(&name))?;
                number.parse().ok()
            };
            Ok(text.lines().filter_map(of_name).sum())
        };
        Ok(Self {
            kernel: sum("/proc/meminfo", &["SUnreclaim", "VmallocUsed", "Percpu"])?,
            process: sum("/proc/self/status", &["RssAnon", "VmPTE"])?,
        })
    }
}
