//! Packets on their way to the worker that owns their flow.
//!
//! Only a miss travels: a packet of a known flow is finished by whichever worker received it.
//! Descriptors go in vectors of a burst, so that the ring's cost is paid once for 32 packets.

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;

use crate::DropReason;
use crate::counters::{Level, WorkerCounters};
use crate::worker::{BURST, Received, RxBurst};

/// Why a packet goes on to another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoffCause {
    /// It has no flow here, and only its hash's owner may open one.
    Miss,
    /// The same for what is mapped by its end point: its source's home opens all of its flows.
    Mapping,
    /// The same for what goes to a service with session affinity: its client's home.
    Affinity,
    /// Its flow is over, and another worker has the entry: opened where its first fragments met, or
    /// dealt out when the tables were taken over by another number of workers. Who has it removes it.
    Holder,
    /// A fragment goes to where all of its packet meet.
    Fragment,
}

impl HandoffCause {
    /// Every cause.
    pub const ALL: [Self; 5] =
        [Self::Miss, Self::Mapping, Self::Affinity, Self::Holder, Self::Fragment];

    /// For metrics and people.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Mapping => "mapping",
            Self::Affinity => "affinity",
            Self::Holder => "holder",
            Self::Fragment => "fragment",
        }
    }
}

/// Vectors that may wait for one worker.
pub const VECTORS_MAX: usize = 256;
/// Workers a node may have.
pub const WORKERS_MAX: usize = 64;

#[derive(Debug)]
struct Inbox<B> {
    vectors: ArrayQueue<RxBurst<B>>,
    level: Level,
}

/// Every worker's inbox.
#[derive(Debug)]
pub struct Inboxes<B>(Vec<Inbox<B>>);

impl<B> Inboxes<B> {
    /// Inboxes for `workers` workers, at most [`WORKERS_MAX`].
    #[must_use]
    pub fn new(workers: usize) -> Arc<Self> {
        let count = workers.clamp(1, WORKERS_MAX);
        let inbox = |_| Inbox { vectors: ArrayQueue::new(VECTORS_MAX), level: Level::default() };
        Arc::new(Self((0..count).map(inbox).collect()))
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// Vectors waiting for `worker` now.
    #[must_use]
    pub fn waiting(&self, worker: usize) -> usize {
        self.0.get(worker).map_or(0, |inbox| inbox.vectors.len())
    }

    /// Most vectors that ever waited for `worker`.
    #[must_use]
    pub fn waited_most(&self, worker: usize) -> u64 {
        self.0.get(worker).map_or(0, |inbox| inbox.level.most())
    }
}

/// One worker's end: its inbox, and vectors being filled for the others.
#[derive(Debug)]
pub struct Handoff<B> {
    inboxes: Arc<Inboxes<B>>,
    worker: usize,
    filling: Vec<RxBurst<B>>,
    /// Workers that were given something since [`Handoff::take_woken`], one bit each.
    woken: u64,
}

impl<B> Handoff<B> {
    /// The end of `worker`.
    #[must_use]
    pub fn new(inboxes: Arc<Inboxes<B>>, worker: usize) -> Self {
        let filling = (0..inboxes.workers()).map(|_| ArrayVec::new()).collect();
        Self { inboxes, worker, filling, woken: 0 }
    }

    /// Whether others gave this worker something.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.inboxes.waiting(self.worker) > 0
    }

    /// The next vector that others gave this worker.
    pub fn take(&mut self) -> Option<RxBurst<B>> {
        self.inboxes.0.get(self.worker)?.vectors.pop()
    }

    /// Stages a packet for `worker`; what cannot be sent comes back through `refused`.
    pub fn give(
        &mut self,
        worker: usize,
        packet: Received<B>,
        counters: &WorkerCounters,
        refused: &mut impl FnMut(B),
    ) {
        let vector = &mut self.filling[worker];
        vector.push(packet);
        if vector.len() == BURST {
            self.send(worker, counters, refused);
        }
    }

    /// Sends every staged vector.
    pub fn flush(&mut self, counters: &WorkerCounters, refused: &mut impl FnMut(B)) {
        for worker in 0..self.filling.len() {
            if !self.filling[worker].is_empty() {
                self.send(worker, counters, refused);
            }
        }
    }

    /// Workers given something since the last call, one bit each: whoever of them sleeps must be
    /// woken.
    pub fn take_woken(&mut self) -> u64 {
        std::mem::take(&mut self.woken)
    }

    fn send(&mut self, worker: usize, counters: &WorkerCounters, refused: &mut impl FnMut(B)) {
        let vector = std::mem::take(&mut self.filling[worker]);
        let packets = vector.len() as u64;
        let inbox = &self.inboxes.0[worker];
        match inbox.vectors.push(vector) {
            Ok(()) => {
                inbox.level.note(inbox.vectors.len() as u64);
                counters.handed_out.add(packets);
                self.woken |= 1 << worker;
            }
            Err(vector) => {
                for packet in vector {
                    counters.drop_for(DropReason::HandoffFull);
                    refused(packet.buffer);
                }
            }
        }
    }
}
