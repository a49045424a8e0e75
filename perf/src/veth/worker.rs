//! The AF_XDP subjects: bare forwarding, and xskiff's worker, each a thread on the node's core with
//! sockets of the same kind, that rests while others are measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flows::{Capacities, Capacity, FlowTables};
use dataplane::handoff::{Handoff, Inboxes};
use dataplane::mailbox::{Command, FlushFilter, Mailbox};
use dataplane::pipeline::Pipeline;
use dataplane::port::{PortId, PortKind, Ports};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::{BURST, Received, RxBurst, Worker};
use nix::time::{ClockId, clock_gettime};
use pinning::CpuId;
use xdp_redirect::forward::Forwarder;
use xdp_redirect::heartbeat::HeartbeatWriter;
use xdp_redirect::live_transmit::{LivePeer, Trial};
use xdp_redirect::loader::{Mode, RunningMode, interface_index};
use xdp_redirect::rules::{OnStall, OurPrefix, PortRule};
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;
use xdp_redirect::{LiveTransmit, Redirect, Socket, Umem, WorkerPorts};

use super::kernel::pin_receiver;
use super::network::Links;
use super::service::{Job, POD, UPLINK, frontends_prefix};
use crate::flow_memory::flow_tables;

/// IPv4 flows that there is room for before the table grows.
const FLOWS_AT_FIRST: usize = 1 << 16;
/// IPv6 flows, of which there are none.
const FLOWS_V6: usize = 64;
/// Turns between two looks at whether to rest.
const TURNS: usize = 64;
/// Bursts taken in before what they sent is announced, as a worker does.
const RECEIVE_BURSTS: usize = 4;
/// How long a worker may take to forget its flows.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is given before it is asked again.
const FLUSH: Duration = Duration::from_millis(50);

/// What the thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Forwards and looks at nothing.
    Bare,
    /// The same by [`WorkerPorts`], with live frames as a second way out.
    BareLive,
    /// The full pipeline, with room for so many flows.
    Xskiff {
        /// IPv4 flows.
        flows: usize,
        /// Whether live frames are a second way out.
        live: bool,
        /// What it does.
        job: Job,
    },
}

impl Work {
    fn is_live(self) -> bool {
        matches!(self, Self::BareLive | Self::Xskiff { live: true, .. })
    }
}

/// What both sides of the thread see.
#[derive(Default)]
struct Shared {
    is_active: AtomicBool,
    stop: AtomicBool,
    counters: Arc<WorkerCounters>,
    mailbox: Arc<Mailbox>,
    flows: Mutex<Option<FlowTables>>,
}

/// A node with one worker thread.
pub struct WorkerNode {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    modes: String,
}

impl WorkerNode {
    /// Starts the thread, resting. With `is_onecore` the node's receive processing is done on
    /// `core`, too.
    pub fn new(links: Links, work: Work, is_onecore: bool, core: CpuId) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ready, answer) = channel();
        let thread = {
            let shared = Arc::clone(&shared);
            let run = move || run(&links, work, is_onecore, core, &shared, &ready);
            thread::Builder::new().name("worker".into()).spawn(run)?
        };
        let modes = answer.recv().map_err(|_| anyhow!("the worker's thread ended"))??;
        Ok(Self { shared, thread: Some(thread), modes })
    }

    /// What the kernel says it runs.
    pub fn modes(&self) -> &str {
        &self.modes
    }

    /// Lets the worker work, or rest.
    pub fn set_active(&self, is_active: bool) {
        self.shared.is_active.store(is_active, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Forgets every flow.
    pub fn flush(&self) -> Result<()> {
        let flows = self.shared.flows.lock().map_err(|_| anyhow!("the worker panicked"))?;
        let Some(flows) = &*flows else { return Ok(()) };
        self.set_active(true);
        let started = Instant::now();
        // Packets that were under way when the worker came to rest begin their flows anew.
        while flows.v4.statistics().used > 0 {
            if started.elapsed() > PATIENCE {
                bail!("the worker does not forget its flows: {:?}", flows.v4.statistics());
            }
            // A full mailbox holds what was asked before.
            drop(self.shared.mailbox.send(Command::Flush(FlushFilter::default())));
            thread::sleep(FLUSH);
        }
        self.set_active(false);
        Ok(())
    }

    /// Reasons for which packets were dropped, for an error message.
    pub fn drops(&self) -> String {
        let counters = &self.shared.counters;
        let drops = dataplane::DropReason::ALL.iter().filter_map(|reason| {
            let count = counters.dropped(*reason);
            (count > 0).then(|| format!("{} {count}", reason.label()))
        });
        drops.collect::<Vec<_>>().join(", ")
    }
}

impl Drop for WorkerNode {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has printed its message already.
            drop(thread.join());
        }
    }
}

/// The thread: sets up in the node's namespace, says how it went, and works.
fn run(
    links: &Links,
    work: Work,
    is_onecore: bool,
    core: CpuId,
    shared: &Shared,
    ready: &Sender<Result<String>>,
) {
    let prepared = links.enter().and_then(|()| {
        pinning::apply::pin_current_thread(core)?;
        let sockets = Sockets::new(links, work.is_live())?;
        if is_onecore {
            links.shell(&format!("echo 1 >/sys/class/net/{}/threaded", links.uplink))?;
            pin_receiver(&links.uplink, core)?;
        }
        Ok(sockets)
    });
    let when_idle = if is_onecore { thread::yield_now } else { std::hint::spin_loop };
    let sockets = match prepared {
        Ok(sockets) => sockets,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let Sockets { redirect, umem, sockets, heartbeat, modes, live } = sockets;
    let ports = live.as_ref().map(|live| live_ports(&umem, live));
    let ports = match ports.transpose() {
        Ok(ports) => ports.unwrap_or_else(|| WorkerPorts::new(&umem)),
        Err(error) => return drop(ready.send(Err(error))),
    };
    match work {
        Work::Bare => {
            let mut forwarder = Forwarder::new(&umem, vec![sockets]);
            drop(ready.send(Ok(modes)));
            turn_while_active(shared, &heartbeat, when_idle, |_| forwarder.turn());
        }
        Work::BareLive => match add_sockets(ports, sockets, true) {
            Ok(mut ports) => {
                drop(ready.send(Ok(modes)));
                turn_while_active(shared, &heartbeat, when_idle, |_| forward(&mut ports));
            }
            Err(error) => drop(ready.send(Err(error))),
        },
        Work::Xskiff { flows, live, job } => match add_sockets(ports, sockets, live)
            .and_then(|ports| worker(ports, flows, job.tables(links), shared))
        {
            Ok(mut worker) => {
                drop(ready.send(Ok(modes)));
                turn_while_active(shared, &heartbeat, when_idle, |now| worker.tick(now).packets);
            }
            Err(error) => drop(ready.send(Err(error))),
        },
    }
    heartbeat.stop();
    drop((redirect, live));
}

/// Ports with live frames as a second way out.
fn live_ports(umem: &Umem, live: &LiveTransmit) -> Result<WorkerPorts> {
    Ok(WorkerPorts::new(umem).with_live_transmit(live.sender(0)?))
}

fn add_sockets(mut ports: WorkerPorts, sockets: [Socket; 2], live: bool) -> Result<WorkerPorts> {
    let control = ports.control();
    for (port, socket) in [UPLINK, POD].into_iter().zip(sockets) {
        control.add(port, socket).map_err(|(error, _)| error)?;
        control.set_live(port, live.then_some(LivePeer::Program))?;
    }
    ports.take_commands();
    Ok(ports)
}

/// Takes in as much as a worker does in a tick, and sends it out by the other port; returns how many
/// packets.
fn forward(ports: &mut WorkerPorts) -> usize {
    let mut packets = 0;
    let mut burst = RxBurst::new();
    for _ in 0..RECEIVE_BURSTS {
        ports.receive(&mut burst);
        let received = burst.len();
        packets += received;
        for Received { port, buffer } in burst.drain(..) {
            let to = if port == UPLINK { POD } else { UPLINK };
            if let Err((_, buffer)) = ports.transmit(to, buffer) {
                ports.release(buffer);
            }
        }
        if received < BURST {
            break;
        }
    }
    ports.flush();
    packets
}

/// `turn` answers how many packets it had.
fn turn_while_active(
    shared: &Shared,
    heartbeat: &HeartbeatWriter,
    when_idle: fn(),
    mut turn: impl FnMut(Nanos) -> usize,
) {
    while !shared.stop.load(Ordering::Relaxed) {
        if !shared.is_active.load(Ordering::Relaxed) {
            heartbeat.beat_for_ever();
            thread::park();
            continue;
        }
        for _ in 0..TURNS {
            let now =
                clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
            let now = Nanos(0).after(now);
            heartbeat.beat(now);
            if turn(now) == 0 {
                when_idle();
            }
        }
    }
}

/// Program and sockets on both links.
struct Sockets {
    redirect: Redirect,
    umem: Umem,
    sockets: [Socket; 2],
    heartbeat: HeartbeatWriter,
    modes: String,
    live: Option<LiveTransmit>,
}

impl Sockets {
    fn new(links: &Links, is_live: bool) -> Result<Self> {
        let mut redirect = Redirect::load(false)?;
        let heartbeat = redirect.heartbeat(0)?;
        heartbeat.beat_for_ever();
        let umem = Umem::new(UmemConfig::default())?;
        let config = SocketConfig::default();
        let ours =
            OurPrefix { prefix: frontends_prefix(), translated: true, on_stall: OnStall::Drop };
        redirect.change_prefixes(&[ours], &[])?;
        let mut modes = Vec::new();
        let mut add = |port: PortId, kind, interface: &str, config: &SocketConfig| {
            let socket = Socket::bind(&umem, interface, 0, config)?;
            redirect.set_socket(port, 0, 0, socket.fd())?;
            let rule = PortRule { port, kind, queues: 1, everything: false };
            let attachment = redirect.attach(interface, &rule, Mode::Native)?;
            let mode = if attachment.mode == RunningMode::Native { "native" } else { "generic" };
            modes.push(format!(
                "{mode} {}",
                if socket.is_zero_copy() { "zero-copy" } else { "copy" }
            ));
            Ok::<Socket, anyhow::Error>(socket)
        };
        let uplink = add(UPLINK, PortKind::Uplink, &links.uplink, &config)?;
        let pod = add(POD, PortKind::Pod, &links.pod, &config)?;
        modes.dedup();
        let modes = modes.join(", ");
        let live = is_live.then(|| live_transmit(links)).transpose()?;
        Ok(Self { redirect, umem, sockets: [uplink, pod], heartbeat, modes, live })
    }
}

/// Says which interface is whose, once both peers are seen to take live frames.
fn live_transmit(links: &Links) -> Result<LiveTransmit> {
    let mut live = LiveTransmit::load(1)?;
    for (port, interface) in [(UPLINK, &links.uplink), (POD, &links.pod)] {
        live.set_port(port, interface_index(interface)?)?;
    }
    // The client's end, to which nothing is sent here, need not.
    let trial = live.try_port(POD, &links.pod)?;
    ensure!(trial == Trial::Arrives, "live frames do not arrive at the server: {trial:?}");
    Ok(live)
}

fn worker(
    ports: WorkerPorts,
    flows: usize,
    tables: Tables,
    shared: &Shared,
) -> Result<Worker<WorkerPorts>> {
    let capacities = Capacities {
        v4: Capacity { now: flows.min(FLOWS_AT_FIRST), committed: flows, max: flows },
        ..Capacities::fixed(flows, FLOWS_V6)
    };
    let (tables_of_flows, hold) = flow_tables(capacities)?;
    *shared.flows.lock().map_err(|_| anyhow!("another thread panicked"))? = Some(tables_of_flows);
    let pipeline = Pipeline::new(
        0,
        1,
        Arc::new(tables),
        hold,
        Arc::clone(&shared.counters),
        Arc::new(Reports::default()),
    );
    let handoff = Handoff::new(Inboxes::new(1), 0);
    Ok(Worker::new(ports, pipeline, Arc::clone(&shared.mailbox), handoff))
}
