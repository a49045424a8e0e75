//! Worker threads: one per core of the plan, each driving the pipeline over its own sockets.
//!
//! [`thread`] is what a thread does, [`handle`] what both sides have of it, [`restarts`] how often it
//! goes on after a panic, [`fault`] what it is made to suffer for a showing; [`flow_memory`] where its
//! flows live, [`capacity`] how many, and [`growth`] how they come to be more; [`beforehand`] what is tried
//! before a process takes over; [`levels`] how full its queues are. Here is the control side's end: start, publish, ask, stop. Nothing here waits for a
//! worker, except [`Workers::stop`], for a bounded time, and a worker waits for nothing here.

mod adoption;
pub mod beforehand;
pub mod capacity;
mod fault;
pub mod flow_memory;
pub mod growth;
mod handle;
pub mod levels;
pub mod restarts;
mod thread;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::counters::WorkerCounters;
use dataplane::event::{FlowEvent, NeighbourRequest, Reports};
use dataplane::flow_ends::{Adoption, Census};
use dataplane::flows::FlowTables;
use dataplane::handoff::{Handoff, Inboxes, WORKERS_MAX};
use dataplane::mailbox::{Command, Mailbox};
use dataplane::pipeline::Pipeline;
use dataplane::tables::Tables;
use dataplane::worker::Worker;
use pinning::CpuId;
use pinning::memory::MemoryError;
use pinning::memory_file::FileError;
use xdp_redirect::heartbeat::HeartbeatWriter;
use xdp_redirect::ports::PortsControl;
use xdp_redirect::{Frame, LiveTransmit, Redirect, Regions, SegmentSender, Socket, WorkerPorts};

use crate::leaving::close_all;

use capacity::FlowCapacities;
use flow_memory::{Beginning, FlowMemory};
use growth::FlowGrowth;
use handle::{Ending, Handle, Shared};

pub use fault::Fault;
pub use handle::WorkerGone;
pub use thread::monotonic_now;

// The configuration is held to the pipeline's bounds; the XDP program must not have lower ones.
const _: () = assert!(WORKERS_MAX <= xdp_redirect::limits::WORKERS_MAX as usize);
const _: () = assert!(dataplane::counters::PORTS_MAX <= xdp_redirect::limits::PORTS_MAX as usize);

/// Flow entries of each family that are looked at in one go for their ends: a third of a millisecond.
const CENSUS_ENTRIES: u32 = 1 << 14;

/// How long a worker may take to stop. What it is at takes microseconds, so one that takes longer never
/// will; its flows are found again by the next process, which makes the index anew.
const STOPS_WITHIN: Duration = Duration::from_secs(2);

/// What a worker does when it finds no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Look again at once: the lowest delay, a core each.
    Spin,
    /// Look again for this long, then sleep until a packet, a message or a hand-off comes.
    Adaptive(Duration),
    /// Look again at once, running the queues' receive processing itself (sockets must be bound
    /// with [`xdp_redirect::socket::BusyPoll`]).
    BusyPoll,
}

impl Idle {
    /// The word of the configuration.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive(_) => "adaptive",
            Self::BusyPoll => "busy-poll",
        }
    }
}

/// What workers need to start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The core of each worker, in order.
    pub cores: Vec<CpuId>,
    /// What to do without packets.
    pub idle: Idle,
    /// Flows of each family.
    pub capacities: FlowCapacities,
    /// Whether ports may be given TCP segments that are longer than the MTU.
    pub whole_segments: bool,
    /// Where the flow tables' files are: a directory on tmpfs or hugetlbfs, root's alone.
    pub flow_directory: PathBuf,
    /// Random for every start, and used when no flows are taken over: see [`FlowTables::new`].
    pub hash_key: [u64; 2],
}

/// Workers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    /// Too many or none.
    #[error("{asked} workers: configure between 1 and {WORKERS_MAX}")]
    Count {
        /// How many were asked for.
        asked: usize,
    },
    /// No memory for the flow tables.
    #[error("flow tables of {bytes} bytes: {source}; lower flow_table capacities or add memory")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// Why.
        source: MemoryError,
    },
    /// The flow tables refuse their settings.
    #[error("flow tables: {0}")]
    Flows(#[from] flow_table::SetupError),
    /// A file of a flow table, which another process has or which cannot be given its name.
    #[error("flow table {0}")]
    File(#[from] FileError),
    /// Flow tables that a process would lose by taking over.
    #[error(
        "the flow tables of the process before cannot be gone on with: {detail}; it goes on serving. \
         Put that right, or restart instead of taking over, which loses these flows"
    )]
    FlowsBefore {
        /// Which, and why.
        detail: String,
    },
    /// The kernel does not tell which boot this is.
    #[error("cannot read /proc/sys/kernel/random/boot_id: {source}; mount /proc")]
    BootId {
        /// What the kernel said.
        source: io::Error,
    },
    /// The XDP program has no heartbeat for the worker.
    #[error(transparent)]
    Redirect(#[from] xdp_redirect::Error),
    /// The kernel refuses a thread, an event queue or the core.
    #[error("worker {worker} on CPU {core}: {source}")]
    Thread {
        /// The worker.
        worker: usize,
        /// Its core.
        core: CpuId,
        /// Why.
        source: io::Error,
    },
}

/// All workers of the node.
pub struct Workers {
    handles: Vec<Handle>,
    ports: Vec<PortsControl>,
    flows: FlowTables,
    beginnings: Vec<Beginning>,
    census: Census,
    growth: FlowGrowth,
    inboxes: Arc<Inboxes<Frame>>,
    latest: Arc<Tables>,
    /// When `latest` was published.
    published: Instant,
    idle: Idle,
}

/// One thread's part before it is started.
struct Parts {
    worker: Worker<WorkerPorts>,
    poll: mio::Poll,
    heartbeat: HeartbeatWriter,
}

impl Workers {
    /// Starts one thread per core, with the flows of the process before where there are some, and
    /// with empty tables in force: [`Self::tables`], whose generation no flow has.
    ///
    /// # Errors
    /// Any [`WorkersError`]; no thread is left behind then.
    pub fn start(
        settings: &Settings,
        regions: &Regions,
        redirect: &Redirect,
        live: Option<&LiveTransmit>,
    ) -> Result<Self, WorkersError> {
        let count = settings.cores.len();
        if count == 0 || count > WORKERS_MAX {
            return Err(WorkersError::Count { asked: count });
        }
        let FlowMemory { tables: flows, holds, beginnings, generation, growing } =
            FlowMemory::start(&flow_memory::Plan {
                directory: &settings.flow_directory,
                capacities: settings.capacities,
                workers: count,
                hash_key: settings.hash_key,
            })?;
        let census = Census::of(&flows, monotonic_now());
        let growth = FlowGrowth::new(&flows, &growing, &settings.capacities);
        let tables = &Arc::new(Tables { generation, ..Tables::default() });
        let inboxes = Inboxes::new(count);
        let paced_frames = levels::paced_frames(regions.large().config().frames, count);
        let mut handles = Vec::with_capacity(count);
        let mut ports = Vec::with_capacity(count);
        let mut parts = Vec::with_capacity(count);
        for (index, (hold, core)) in holds.into_iter().zip(&settings.cores).enumerate() {
            let refuse = |source| WorkersError::Thread { worker: index, core: *core, source };
            let poll = mio::Poll::new().map_err(refuse)?;
            let waker = mio::Waker::new(poll.registry(), thread::WAKE).map_err(refuse)?;
            let counters = Arc::new(WorkerCounters::default());
            let (mailbox, reports) = (Arc::new(Mailbox::default()), Arc::new(Reports::default()));
            let pipeline = Pipeline::new(
                index,
                count,
                Arc::clone(tables),
                hold,
                Arc::clone(&counters),
                Arc::clone(&reports),
            );
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            let mut worker_ports = WorkerPorts::new(regions.large())
                .with_regions(regions)
                .with_ready_flags(redirect.ready_flags());
            if let Some(live) = live {
                worker_ports = worker_ports.with_live_transmit(live.sender(number)?);
            }
            if settings.whole_segments {
                worker_ports = worker_ports.with_segment_transmit(SegmentSender::new()?);
            }
            ports.push(worker_ports.control());
            let handoff = Handoff::new(Arc::clone(&inboxes), index);
            let worker = Worker::new(worker_ports, pipeline, Arc::clone(&mailbox), handoff)
                .with_paced_frames(paced_frames);
            let heartbeat = redirect.heartbeat(number)?;
            parts.push(Parts { worker, poll, heartbeat });
            let shared = Arc::new(Shared::new(waker));
            let thread = None;
            handles.push(Handle {
                core: *core,
                shared,
                counters,
                mailbox,
                reports,
                paced_frames,
                thread,
                behind: false,
                given: 0,
                restarts: 0,
            });
        }
        let latest = Arc::clone(tables);
        let idle = settings.idle;
        let published = Instant::now();
        let mut workers = Self {
            handles,
            ports,
            flows,
            beginnings,
            census,
            growth,
            inboxes,
            latest,
            published,
            idle,
        };
        workers.spawn(parts)?;
        Ok(workers)
    }

    fn spawn(&mut self, parts: Vec<Parts>) -> Result<(), WorkersError> {
        let everybody: Arc<[Arc<Shared>]> =
            self.handles.iter().map(|handle| Arc::clone(&handle.shared)).collect();
        for (index, parts) in parts.into_iter().enumerate() {
            let core = self.handles[index].core;
            let run = thread::Run {
                worker: parts.worker,
                index,
                core,
                idle: self.idle,
                poll: parts.poll,
                heartbeat: thread::Heart(parts.heartbeat, Arc::clone(&everybody[index])),
                everybody: Arc::clone(&everybody),
                _ending: Ending {
                    shared: Arc::clone(&everybody[index]),
                    quiescence: Arc::clone(&self.flows.quiescence),
                    worker: index,
                },
            };
            let spawned = run.spawn();
            match spawned {
                Ok(thread) => self.handles[index].thread = Some(thread),
                Err(source) => {
                    self.stop();
                    return Err(WorkersError::Thread { worker: index, core, source });
                }
            }
        }
        Ok(())
    }

    /// Puts `tables` in force on every worker. One whose mailbox is full (it is stalled) gets them
    /// from [`Self::maintain`] later.
    pub fn publish(&mut self, tables: &Arc<Tables>) {
        self.latest = Arc::clone(tables);
        // Before any flow is decided under it: a process that follows must not give it again.
        self.flows.note_generation(tables.generation);
        self.published = Instant::now();
        for handle in &mut self.handles {
            handle.give(tables);
            handle.shared.wake();
        }
    }

    /// For each worker, how many of the tables published it has not adopted though they have been
    /// there for longer than `patience`; `None` for one that has all.
    #[must_use]
    pub fn behind(&self, patience: Duration) -> Vec<Option<u64>> {
        let is_due = self.published.elapsed() > patience;
        let behind = |handle: &Handle| {
            let behind = handle.not_adopted();
            (is_due && behind > 0).then_some(behind)
        };
        self.handles.iter().map(behind).collect()
    }

    /// Looks after the filter of flows' ends. Answers addresses that tables before those in force
    /// have decided about ([`Census::tend`]). To be called every few milliseconds.
    pub fn tend_census(&mut self) -> BTreeSet<IpAddr> {
        let workers: Vec<Adoption> = self.handles.iter().map(Handle::adoption).collect();
        self.census.tend(monotonic_now(), CENSUS_ENTRIES, &workers)
    }

    /// Whom changes concern.
    #[must_use]
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// The same, for making the next tables.
    pub fn census_mut(&mut self) -> &mut Census {
        &mut self.census
    }

    /// Sends a command to every worker; says how many had no room for it.
    pub fn send(&self, command: impl Fn() -> Command) -> usize {
        let refused = self.handles.iter().filter(|handle| {
            let refused = handle.mailbox.send(command()).is_err();
            handle.shared.wake();
            refused
        });
        refused.count()
    }

    /// Frees what workers handed back and brings those up to date that were behind. To be called
    /// now and then.
    pub fn maintain(&mut self) {
        for handle in &mut self.handles {
            handle.mailbox.free_retired();
            // What a panic cut short may have been their adoption.
            let restarts = handle.counters.restarts.get();
            if handle.behind || handle.restarts != restarts {
                handle.restarts = restarts;
                handle.give(&self.latest);
            }
        }
    }

    /// Wakes every worker that sleeps: its ports changed.
    pub fn wake(&self) {
        self.handles.iter().for_each(|handle| handle.shared.wake());
    }

    /// Number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// What workers do without packets.
    #[must_use]
    pub fn idle(&self) -> Idle {
        self.idle
    }

    /// The tables published last.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.latest
    }

    /// The control side's end of a worker's sockets, until workers are stopped.
    #[must_use]
    pub fn ports(&self, worker: usize) -> Option<&PortsControl> {
        self.ports.get(worker)
    }

    /// The core of a worker.
    #[must_use]
    pub fn core(&self, worker: usize) -> Option<CpuId> {
        self.handles.get(worker).map(|handle| handle.core)
    }

    /// What a worker counts.
    #[must_use]
    pub fn counters(&self, worker: usize) -> Option<&Arc<WorkerCounters>> {
        self.handles.get(worker).map(|handle| &handle.counters)
    }

    /// How the flow tables began.
    #[must_use]
    pub fn beginnings(&self) -> &[Beginning] {
        &self.beginnings
    }

    /// How the flow tables grow.
    #[must_use]
    pub fn growth(&self) -> &FlowGrowth {
        &self.growth
    }

    /// The same, to be seen to.
    pub fn growth_mut(&mut self) -> &mut FlowGrowth {
        &mut self.growth
    }

    /// Who counts connections of backends: the number of this process, and how many workers.
    #[must_use]
    pub fn counted_by(&self) -> (u16, usize) {
        (self.flows.charges.process(), self.count())
    }

    /// The flow tables, for listings.
    #[must_use]
    pub fn flows(&self) -> &FlowTables {
        &self.flows
    }

    /// Whether a worker's thread runs, and has ticked within `limit`, or within it after the longest sleep
    /// that it announced.
    #[must_use]
    pub fn is_alive(&self, worker: usize, limit: Duration) -> bool {
        self.handles.get(worker).is_some_and(|handle| handle.shared.is_alive(limit))
    }

    /// Tells the numbers of workers that are not alive by the given limit, from any thread and for
    /// as long as the process lives.
    pub fn stalled(&self) -> impl Fn(Duration) -> Vec<u16> + Send + Sync + 'static {
        let shared: Vec<Arc<Shared>> =
            self.handles.iter().map(|handle| Arc::clone(&handle.shared)).collect();
        move |limit| {
            let numbered = (0u16..).zip(&shared);
            numbered.filter(|(_, one)| !one.is_alive(limit)).map(|(number, _)| number).collect()
        }
    }

    /// A worker whose thread is over though nobody stopped it.
    #[must_use]
    pub fn gone(&self) -> Option<WorkerGone> {
        let mut handles = self.handles.iter().enumerate();
        handles.find_map(|(worker, handle)| {
            let finished = handle.thread.as_ref().is_some_and(JoinHandle::is_finished);
            let ordered = handle.shared.stop.load(Ordering::SeqCst);
            (finished && !ordered).then_some(WorkerGone { worker, core: handle.core })
        })
    }

    /// Lets workers tell of flows that end by themselves as well, or no more.
    pub fn watch(&self, watched: bool) {
        for handle in &self.handles {
            handle.reports.watched.store(watched, Ordering::Relaxed);
        }
    }

    /// The next flow event of any worker.
    #[must_use]
    pub fn next_event(&self) -> Option<(usize, FlowEvent)> {
        let mut workers = self.handles.iter().enumerate();
        workers.find_map(|(worker, handle)| Some((worker, handle.reports.events.pop()?)))
    }

    /// The next neighbour a worker asks for.
    #[must_use]
    pub fn next_neighbour_request(&self) -> Option<NeighbourRequest> {
        self.handles.iter().find_map(|handle| handle.reports.neighbours.pop())
    }

    /// Makes a worker suffer `fault`; false when there is no such worker.
    pub fn inject(&self, worker: usize, fault: Fault) -> bool {
        let Some(handle) = self.handles.get(worker) else { return false };
        handle.shared.fault.set(fault);
        handle.shared.wake();
        true
    }

    /// Leaves what comes in the sockets' rings, until workers have been told what to do with it.
    pub fn hold_back(&self, held_back: bool) {
        self.ports.iter().for_each(|ports| ports.hold_back(held_back));
        self.wake();
    }

    /// Stops all threads and waits for them, and closes the flow tables for the next process, and the
    /// sockets.
    pub fn stop(&mut self) {
        self.end_threads();
        close_all(self.take_sockets().into_iter().map(|(_, socket)| socket).collect());
    }

    /// The same for a process that goes on with the sockets, each of which comes with its worker. What is
    /// ours waits in them meanwhile: to the XDP program workers look as if they had ticked last just now.
    /// `None` when a worker does not stop, which may use packet memory as long as it is there.
    pub fn stop_for_next(&mut self) -> Option<Vec<(usize, Box<Socket>)>> {
        for handle in &self.handles {
            handle.shared.is_followed.store(true, Ordering::SeqCst);
        }
        let have_ended = self.end_threads();
        let sockets = self.take_sockets();
        if have_ended {
            return Some(sockets);
        }
        close_all(sockets.into_iter().map(|(_, socket)| socket).collect());
        None
    }

    fn take_sockets(&mut self) -> Vec<(usize, Box<Socket>)> {
        let given_up = |(worker, ports): (usize, PortsControl)| {
            std::iter::from_fn(move || Some((worker, ports.collect()?.1)))
        };
        self.ports.drain(..).enumerate().flat_map(given_up).collect()
    }

    /// Says whether all have ended.
    fn end_threads(&mut self) -> bool {
        let mut have_ended = true;
        let mut holds = Vec::with_capacity(self.handles.len());
        for handle in &self.handles {
            handle.shared.stop.store(true, Ordering::SeqCst);
            let _ = handle.shared.waker.wake();
        }
        let until = Instant::now() + STOPS_WITHIN;
        for (worker, handle) in self.handles.iter_mut().enumerate() {
            let Some(thread) = handle.thread.take() else { continue };
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                tracing::error!(worker, "the worker does not stop, and ends with the process");
                have_ended = false;
                continue;
            }
            match thread.join() {
                Ok(hold) => holds.push(hold),
                Err(_) => tracing::error!(worker, "the worker panicked; its message is above"),
            }
        }
        // A panic may have left a part of an index without what it was about to hold: then the next
        // process makes it anew, from the entries themselves.
        let went_on = self.handles.iter().any(|handle| handle.counters.restarts.get() > 0);
        if !holds.is_empty() && !went_on {
            let closed = self.flows.close(holds);
            if closed != [true, true] {
                tracing::warn!(?closed, "flow tables that the next start will have to rebuild");
            }
        }
        have_ended
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
