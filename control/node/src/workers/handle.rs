//! What a worker's thread and the control side share of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flow_ends::Adoption;
use dataplane::flows::WorkerFlows;
use dataplane::mailbox::{Command, Mailbox};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use flow_table::Quiescence;
use pinning::CpuId;

use super::fault::PendingFault;
use super::thread::monotonic_now;

/// A worker's thread is gone, though nobody stopped it: it panicked more often than it may
/// ([`super::restarts`]). Its flows and queues have no owner any more, so the process must end and be
/// started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "worker {worker} on CPU {core} panicked too often (its messages are in the log above): the node \
     ends, so that its supervisor starts it again; please report the messages"
)]
pub struct WorkerGone {
    /// The worker.
    pub worker: usize,
    /// Its core.
    pub core: CpuId,
}

/// What a thread and the control side share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) asleep: AtomicBool,
    pub(super) stop: AtomicBool,
    /// Another process goes on with its sockets when it has stopped.
    pub(super) is_followed: AtomicBool,
    /// The thread is over.
    pub(super) ended: AtomicBool,
    /// What it is to suffer, for a showing: see [`super::fault`].
    pub(super) fault: PendingFault,
    /// Time of the last tick, or of when the sleep is over at the latest, in nanoseconds of
    /// `CLOCK_MONOTONIC`.
    pub(super) last_tick: AtomicU64,
    pub(super) waker: mio::Waker,
}

impl Shared {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self {
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            is_followed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            fault: PendingFault::default(),
            last_tick: AtomicU64::new(monotonic_now().0),
            waker,
        }
    }

    /// Notes a tick at `now`, or that none is to be expected before it.
    pub(super) fn note_tick(&self, now: Nanos) {
        self.last_tick.store(now.0, Ordering::Relaxed);
    }

    /// Whether the thread runs, and has ticked within `limit`, or within it after the longest sleep
    /// that it announced.
    pub(super) fn is_alive(&self, limit: Duration) -> bool {
        // First: whoever asks may have to wait for a processor before it reads on.
        let now = monotonic_now();
        let last = Nanos(self.last_tick.load(Ordering::Relaxed));
        now.since(last) <= limit && !self.ended.load(Ordering::Relaxed)
    }

    /// Wakes the worker if it sleeps.
    pub(super) fn wake(&self) {
        // Sequentially consistent with the worker's own store and check before it sleeps: one of
        // the two sees the other.
        if self.asleep.load(Ordering::SeqCst) {
            // A failed wake is made good by the sleep's time limit.
            let _ = self.waker.wake();
        }
    }
}

/// Marks the end of the thread that owns it, by order or by a panic: nobody waits for it to let go
/// of flow entries any more.
pub(super) struct Ending {
    pub(super) shared: Arc<Shared>,
    pub(super) quiescence: Arc<Quiescence>,
    pub(super) worker: usize,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.quiescence.go_offline(self.worker);
        self.shared.ended.store(true, Ordering::SeqCst);
    }
}

/// One worker, from outside.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) core: CpuId,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) reports: Arc<Reports>,
    /// Frames that may wait in it for their time.
    pub(super) paced_frames: usize,
    /// Gives the worker's flows back when it ends.
    pub(super) thread: Option<JoinHandle<WorkerFlows>>,
    /// Had no room for the tables published last.
    pub(super) behind: bool,
    /// Tables that were put into its mailbox.
    pub(super) given: u64,
    /// How often it had gone on after a panic when it was last looked after.
    pub(super) restarts: u64,
}

impl Handle {
    /// How many of the tables published it has not adopted.
    pub(super) fn not_adopted(&self) -> u64 {
        let Adoption { given, adopted } = self.adoption();
        given.saturating_sub(adopted)
    }

    /// What was published while its mailbox was full is given later, the last of it alone.
    pub(super) fn adoption(&self) -> Adoption {
        let given = self.given + u64::from(self.behind);
        Adoption { given, adopted: self.counters.tables_adopted.get() }
    }

    pub(super) fn give(&mut self, tables: &Arc<Tables>) {
        self.behind = self.mailbox.send(Command::Publish(Arc::clone(tables))).is_err();
        self.given += u64::from(!self.behind);
    }
}
