//! A whole node in memory: several workers, their hand-offs, a wire, and the conservation law
//! checked after every tick.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dataplane::DropReason;
use dataplane::counters::WorkerCounters;
use dataplane::event::{FlowEvent, NeighbourRequest, Reports};
use dataplane::flow_ends::Census;
use dataplane::flows::{Capacities, Capacity, FlowRecord, FlowTables};
use dataplane::handoff::{Handoff, HandoffCause, Inboxes};
use dataplane::mailbox::{Command, Mailbox};
use dataplane::memory::HeapBuffer;
use dataplane::pipeline::Pipeline;
use dataplane::port::PortId;
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::Worker;
use flow_table::Memory;

use crate::memory_ports::{MemoryPorts, Wire};

struct SimulatedWorker {
    worker: Worker<MemoryPorts>,
    counters: Arc<WorkerCounters>,
    mailbox: Arc<Mailbox>,
    reports: Arc<Reports>,
}

/// The node.
pub struct Simulation {
    workers: Vec<SimulatedWorker>,
    inboxes: Arc<Inboxes<HeapBuffer>>,
    flows: FlowTables,
    /// Whose ends flows have, as the control thread knows it.
    pub census: Census,
    wire: Rc<RefCell<Wire>>,
    /// The node's time; tests move it.
    pub now: Nanos,
}

impl Simulation {
    /// A node of `workers` workers with room for `capacity` flows of each family.
    #[must_use]
    pub fn new(workers: usize, capacity: usize, tables: &Arc<Tables>) -> Self {
        Self::with_capacities(workers, Capacities::fixed(capacity, capacity), tables)
    }

    /// The same whose flows have details.
    #[must_use]
    pub fn with_details(workers: usize, capacity: usize, tables: &Arc<Tables>) -> Self {
        let capacities = Capacities { details: true, ..Capacities::fixed(capacity, capacity) };
        Self::with_capacities(workers, capacities, tables)
    }

    /// A node whose tables begin with `capacity` flows of each family and double up to `most`.
    #[must_use]
    pub fn growing(workers: usize, (capacity, most): (usize, usize), tables: &Arc<Tables>) -> Self {
        let growing = Capacity { now: capacity, committed: most, max: most };
        let capacities = Capacities { v4: growing, v6: growing, details: false };
        Self::with_capacities(workers, capacities, tables)
    }

    fn with_capacities(workers: usize, capacities: Capacities, tables: &Arc<Tables>) -> Self {
        let memory = (Memory::Heap, Memory::Heap);
        let (flows, holds) = FlowTables::new(capacities, memory, workers, [0x5eed, 0xca5e])
            .unwrap_or_else(|error| panic!("flow tables: {error}"));
        let inboxes = Inboxes::new(workers);
        let wire = Rc::new(RefCell::new(Wire::default()));
        let workers = holds
            .into_iter()
            .enumerate()
            .map(|(index, hold)| {
                let counters = Arc::new(WorkerCounters::default());
                let mailbox = Arc::new(Mailbox::default());
                let reports = Arc::new(Reports::default());
                let pipeline = Pipeline::new(
                    index,
                    workers,
                    Arc::clone(tables),
                    hold,
                    Arc::clone(&counters),
                    Arc::clone(&reports),
                );
                let ports = MemoryPorts::new(index, Rc::clone(&wire));
                let handoff = Handoff::new(Arc::clone(&inboxes), index);
                let worker = Worker::new(ports, pipeline, Arc::clone(&mailbox), handoff);
                SimulatedWorker { worker, counters, mailbox, reports }
            })
            .collect();
        let now = Nanos(1_000_000_000);
        let census = Census::of(&flows, now);
        Self { workers, inboxes, flows, census, wire, now }
    }

    /// The control thread's view of flows' ends, found in the flows that there are by now.
    #[must_use]
    pub fn census_of_present_flows(&self) -> Census {
        let mut census = Census::of(&self.flows, self.now);
        for _ in 0..100 {
            census.tend(self.now, 1 << 16, &[]);
        }
        census
    }

    /// A node of one worker with room for plenty.
    #[must_use]
    pub fn single(tables: &Arc<Tables>) -> Self {
        Self::new(1, 10_000, tables)
    }

    /// Puts a frame into a worker's receive ring.
    pub fn deliver(&mut self, worker: usize, port: PortId, frame: &[u8]) {
        self.wire.borrow_mut().deliver(worker, port, frame);
    }

    /// One tick of every worker, in order; checks the law after each.
    pub fn tick(&mut self) {
        (0..self.workers.len()).for_each(|index| self.tick_worker(index));
    }

    /// One tick of one worker, while the others stall; checks the law.
    pub fn tick_worker(&mut self, index: usize) {
        self.workers[index].worker.tick(self.now);
        self.check_conservation();
    }

    /// Lets a worker go on after a tick that ended by a panic; checks the law. Answers how many packets
    /// it had lost.
    pub fn recover(&mut self, index: usize) -> u64 {
        let lost = self.workers[index].worker.recover();
        self.check_conservation();
        lost
    }

    /// Ticks until nothing is under way, at most a thousand times.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.tick();
            let inboxes = (0..self.workers.len()).map(|worker| self.inboxes.waiting(worker));
            if self.wire.borrow().waiting() + inboxes.sum::<usize>() == 0 {
                return;
            }
        }
        panic!("the node does not come to rest:\n{}", self.moved_counters());
    }

    /// Delivers a frame to worker 0, settles, and returns what left.
    pub fn pass(&mut self, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        self.pass_to(0, port, frame)
    }

    /// The same by any worker.
    pub fn pass_to(&mut self, worker: usize, port: PortId, frame: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        self.deliver(worker, port, frame);
        self.settle();
        self.take_outgoing()
    }

    /// Delivers a frame that must leave as exactly one.
    ///
    /// # Panics
    /// With every counter that moved, when none or several leave.
    pub fn forward(&mut self, port: PortId, frame: &[u8]) -> (PortId, Vec<u8>) {
        let mut out = self.pass(port, frame);
        assert_eq!(out.len(), 1, "one frame in, {} out:\n{}", out.len(), self.moved_counters());
        out.remove(0)
    }

    /// Delivers a frame that must end here for `reason`, with no answer.
    ///
    /// # Panics
    /// With every counter that moved, when it does not.
    pub fn expect_drop(&mut self, port: PortId, frame: &[u8], reason: DropReason) {
        let before = self.dropped(reason);
        let out = self.pass(port, frame);
        assert_eq!(
            (self.dropped(reason) - before, out.len()),
            (1, 0),
            "expected a drop for {reason}:\n{}",
            self.moved_counters()
        );
    }

    /// Frames that left since the last call.
    pub fn take_outgoing(&mut self) -> Vec<(PortId, Vec<u8>)> {
        self.wire.borrow_mut().take_outgoing()
    }

    /// The wire, for faults.
    #[must_use]
    pub fn wire(&self) -> &Rc<RefCell<Wire>> {
        &self.wire
    }

    /// Publishes tables to every worker.
    pub fn publish(&mut self, tables: &Arc<Tables>) {
        self.send(|| Command::Publish(Arc::clone(tables)));
    }

    /// Sends a command to every worker, which reads it in this tick.
    pub fn send(&mut self, command: impl Fn() -> Command) {
        self.post(command);
        self.tick();
    }

    /// Lets workers tell of flows that end by themselves, or not.
    pub fn watch(&mut self, watched: bool) {
        for worker in &self.workers {
            worker.reports.watched.store(watched, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Sends a command to every worker, which reads it in its next tick.
    pub fn post(&mut self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            worker.mailbox.free_retired();
            assert!(worker.mailbox.send(command()).is_ok(), "mailbox full");
        }
    }

    /// Moves time on, ticking, in steps of a second.
    pub fn wait(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.now = self.now.after(Duration::from_secs(1));
            self.tick();
        }
    }

    /// Packets dropped for `reason` by all workers.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.counters.dropped(reason)).sum()
    }

    /// One counter of all workers.
    #[must_use]
    pub fn sum(&self, counter: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers.iter().map(|worker| counter(&worker.counters)).sum()
    }

    /// The flow tables, and whom flows are charged to.
    #[must_use]
    pub fn flow_tables(&self) -> &FlowTables {
        &self.flows
    }

    /// When the next packet leaves that waits for its time at a worker.
    #[must_use]
    pub fn next_departure(&self, worker: usize) -> Option<Nanos> {
        self.workers[worker].worker.next_departure()
    }

    /// Live flows.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowRecord> {
        let mut records = Vec::new();
        self.flows.for_each(self.now, |record| records.push(record));
        records
    }

    /// Events of all workers since the last call.
    pub fn take_events(&mut self) -> Vec<FlowEvent> {
        let rings = self.workers.iter().map(|worker| &worker.reports.events);
        rings.flat_map(|ring| std::iter::from_fn(|| ring.pop())).collect()
    }

    /// Neighbours asked for since the last call.
    pub fn take_neighbour_requests(&mut self) -> Vec<NeighbourRequest> {
        let rings = self.workers.iter().map(|worker| &worker.reports.neighbours);
        rings.flat_map(|ring| std::iter::from_fn(|| ring.pop())).collect()
    }

    /// Every packet is somewhere, on every worker and between them.
    fn check_conservation(&self) {
        for (index, worker) in self.workers.iter().enumerate() {
            let (came, went) = worker.counters.balance();
            assert_eq!(came, went, "worker {index} lost a packet:\n{}", self.moved_counters());
            let counters = &worker.counters;
            let meant =
                HandoffCause::ALL.map(|cause| counters.handed_for(cause)).iter().sum::<u64>();
            let given = counters.handed_out.get() + counters.dropped(DropReason::HandoffFull);
            assert_eq!(
                meant,
                given,
                "worker {index}: hand-offs without a cause:\n{}",
                self.moved_counters()
            );
        }
        let in_inboxes: u64 = self.inboxes_waiting();
        let [out, taken] =
            [self.sum(|one| one.handed_out.get()), self.sum(|one| one.handed_in.get())];
        assert!(out >= taken && (in_inboxes > 0 || out == taken), "{}", self.moved_counters());
    }

    /// Vectors on their way between workers.
    fn inboxes_waiting(&self) -> u64 {
        (0..self.workers.len()).map(|worker| self.inboxes.waiting(worker) as u64).sum()
    }

    /// One worker's counters.
    #[must_use]
    pub fn counters(&self, worker: usize) -> &WorkerCounters {
        &self.workers[worker].counters
    }

    /// Every counter that is not zero, for failing tests.
    #[must_use]
    pub fn moved_counters(&self) -> String {
        let mut lines = Vec::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let counters = &worker.counters;
            let plain = [
                ("received", counters.received.get()),
                ("handed-in", counters.handed_in.get()),
                ("originated", counters.originated.get()),
                ("transmitted", counters.transmitted.get()),
                ("handed-out", counters.handed_out.get()),
                ("foreign-hits", counters.foreign_hits.get()),
                ("flows-opened-for-others", counters.flows_opened_for_others.get()),
                ("flows-with-alias-elsewhere", counters.flows_with_alias_elsewhere.get()),
                ("held", counters.held.get()),
                ("paced-packets", counters.paced_packets.get()),
                ("flows-created", counters.flows_created.get()),
                ("flows-masqueraded", counters.flows_masqueraded.get()),
                ("flows-translated-by-rule", counters.flows_translated_by_rule.get()),
                ("flows-expired", counters.flows_expired.get()),
                ("flows-deleted", counters.flows_deleted.get()),
                ("flows-rejudged", counters.flows_rejudged.get()),
                ("flows-reset", counters.flows_reset.get()),
                ("flows-chosen-anew", counters.flows_chosen_anew.get()),
                ("affinities-created", counters.affinities_created.get()),
                ("affinities-refused", counters.affinities_refused.get()),
                ("flows-audited", counters.flows_audited.get()),
                ("out-of-window-passed", counters.out_of_window_passed.get()),
                ("resets-challenged", counters.resets_challenged.get()),
                ("between-families", counters.between_families.get()),
                ("dispatched", counters.dispatched.get()),
                ("directed", counters.directed.get()),
                ("lost-replies", counters.lost_replies.get()),
                ("unknown-pod-drops", counters.unknown_pod_drops.get()),
                ("unknown-pod-flows", counters.unknown_pod_flows.get()),
                ("replies-suppressed", counters.replies_suppressed.get()),
            ];
            let handed = HandoffCause::ALL.map(|cause| (cause.label(), counters.handed_for(cause)));
            let drops =
                DropReason::ALL.iter().map(|reason| (reason.label(), counters.dropped(*reason)));
            for (name, value) in
                plain.into_iter().chain(handed).chain(drops).filter(|(_, value)| *value > 0)
            {
                lines.push(format!("  worker {index}: {name} = {value}"));
            }
        }
        lines.join("\n")
    }
}
