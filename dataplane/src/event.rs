//! What a worker tells the control thread: flow events and requests for neighbours.
//!
//! Telling never blocks a packet: rings are bounded, events have a budget per second, and what
//! does not fit is counted in [`WorkerCounters::events_lost`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::DropReason;
use crate::counters::{Level, WorkerCounters};
use crate::flow_key::FlowKey;
use crate::identity::Identity;
use crate::lb::ServiceId;
use crate::policy::{Direction, RuleId};
use crate::port::PortId;
use crate::time::Nanos;

/// Events a worker may have under way to the control thread.
pub const EVENTS_MAX: usize = 4096;
/// Neighbour requests a worker may have under way.
pub const NEIGHBOUR_REQUESTS_MAX: usize = 256;
/// Events a worker reports per second; the rest are counted as lost.
pub const EVENTS_PER_SECOND: u32 = 20_000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A flow was admitted and inserted.
    Opened,
    /// A flow was admitted that a policy under audit would have refused in this direction.
    Audited(Direction),
    /// A flow ended: expired, flushed or newly denied.
    Closed,
    /// A packet was dropped.
    Dropped(DropReason),
}

/// One report of a decision.
#[derive(Debug, Clone, Copy)]
pub struct FlowEvent {
    /// When, in the worker's time.
    pub time: Nanos,
    /// What.
    pub kind: EventKind,
    /// Where the packet came in.
    pub port: PortId,
    /// The packet's own tuple; of a known flow that policy denies now, the flow's original one;
    /// `None` when the packet did not parse that far.
    pub key: Option<FlowKey>,
    /// The backend and port a service chose.
    pub backend: Option<(IpAddr, u16)>,
    /// The service.
    pub service: Option<ServiceId>,
    /// Who speaks.
    pub source: Option<Identity>,
    /// Who is spoken to.
    pub destination: Option<Identity>,
    /// The rule that decided.
    pub rule: Option<RuleId>,
}

impl FlowEvent {
    /// Stands where no port is known: of a flow that ended by itself, between others than pods.
    pub const NO_PORT: PortId = PortId(u16::MAX);

    /// An event that knows no more than when, what and where.
    #[must_use]
    pub fn new(time: Nanos, kind: EventKind, port: PortId) -> Self {
        Self {
            time,
            kind,
            port,
            key: None,
            backend: None,
            service: None,
            source: None,
            destination: None,
            rule: None,
        }
    }
}

/// A worker asks the control thread to resolve a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NeighbourRequest {
    /// The port whose link the neighbour is on.
    pub port: PortId,
    /// Its address.
    pub address: IpAddr,
}

/// The rings from one worker to the control thread.
#[derive(Debug)]
pub struct Reports {
    /// Flow events.
    pub events: ArrayQueue<FlowEvent>,
    /// Whether somebody watches flows: then those that end by themselves are reported as well.
    pub watched: AtomicBool,
    /// Neighbours to resolve.
    pub neighbours: ArrayQueue<NeighbourRequest>,
    /// How full `events` was at most.
    pub events_level: Level,
    /// How full `neighbours` was at most.
    pub neighbours_level: Level,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            events: ArrayQueue::new(EVENTS_MAX),
            watched: AtomicBool::new(false),
            neighbours: ArrayQueue::new(NEIGHBOUR_REQUESTS_MAX),
            events_level: Level::default(),
            neighbours_level: Level::default(),
        }
    }
}

/// A budget of so many per second, refilled by the time the caller passes.
#[derive(Debug)]
pub struct Budget {
    per_second: u32,
    left: u32,
    second: u64,
}

impl Budget {
    /// At most `per_second` in each second of the caller's time.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { per_second, left: per_second, second: 0 }
    }

    /// Takes one; `false` when this second's share is spent.
    pub fn take(&mut self, now: Nanos) -> bool {
        let second = now.0 / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.left = self.per_second;
        }
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

/// A worker's end of [`Reports`].
#[derive(Debug)]
pub struct Reporter {
    reports: Arc<Reports>,
    budget: Budget,
}

impl Reporter {
    /// Reports into `reports`.
    #[must_use]
    pub fn new(reports: Arc<Reports>) -> Self {
        Self { reports, budget: Budget::new(EVENTS_PER_SECOND) }
    }

    /// Where it reports.
    pub(crate) fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports)
    }

    /// Whether somebody watches flows end.
    pub(crate) fn is_watched(&self) -> bool {
        self.reports.watched.load(Ordering::Relaxed)
    }

    /// Reports `event`, or counts it as lost.
    pub fn event(&mut self, event: FlowEvent, counters: &WorkerCounters) {
        if !self.budget.take(event.time) || self.reports.events.push(event).is_err() {
            counters.events_lost.add(1);
            return;
        }
        self.reports.events_level.note(self.reports.events.len() as u64);
    }

    /// Asks for a neighbour. A full ring loses the request: the packet that waits asks again.
    pub fn neighbour(&self, request: NeighbourRequest) {
        let _ = self.reports.neighbours.push(request);
        self.reports.neighbours_level.note(self.reports.neighbours.len() as u64);
    }
}
