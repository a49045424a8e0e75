//! Expiry: a slice of the worker's own entries at a time, never a pass over all, at a pace that
//! comes round in four seconds however many packets there are. What [`crate::eviction`] gives up
//! under pressure goes on the same way.

use arrayvec::ArrayVec;
use flow_table::{Hasher, Sweep};

use crate::address::Protocol;
use crate::charge::{Charge, Charges};
use crate::connections::{self, Counted};
use crate::conntrack::{FlowDirection, FlowState, seconds};
use crate::context::Context;
use crate::event::{EventKind, FlowEvent};
use crate::eviction::Pressure;
use crate::flow::{BackendPod, FlowFamily, FlowView};
use crate::flow_key::{FlowKey4, FlowKey6};
use crate::flows::{Flows, TableKey, WorkerFlows, hashes_of_flow};
use crate::mailbox::FlushFilter;
use crate::nat::binding;
use crate::time::Nanos;

/// How long a sweep takes to come round: a flow that is over keeps its entry for no longer, while
/// the worker is awake. Short against every time-out; at a million flows a quarter of an entry per
/// microsecond.
const SWEEP_ROUND_NS: u64 = 4_000_000_000;
/// The same under pressure: what may be given up is found before the last eighth is full.
const PRESSED_ROUND_NS: u64 = SWEEP_ROUND_NS / 16;
/// Entries looked at together, so that the memory of one arrives while others are looked at.
const ENTRIES_MIN: u32 = 16;
/// Entries looked at in one tick at most, after a pause or for a flush.
const ENTRIES_MAX: u32 = 256;

/// When the next slice of one family is due.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Nanos,
    /// The most entries there were in this round: what it gives back makes it no slower.
    most: u32,
}

impl Pace {
    /// Entries to look at now, of `known` that were ever used; 0 while too few are due to be worth
    /// the way there.
    fn due(&mut self, now: Nanos, known: u32, pressure: Pressure) -> u32 {
        let round_ns = if pressure == Pressure::None { SWEEP_ROUND_NS } else { PRESSED_ROUND_NS };
        // Below 2^32 nanoseconds times 2^28 entries.
        let elapsed_ns = now.0.saturating_sub(self.last.0).min(round_ns);
        self.most = self.most.max(known);
        let due = elapsed_ns * u64::from(self.most) / round_ns;
        if due < u64::from(ENTRIES_MIN.min(known)) {
            return 0;
        }
        self.last = now;
        u32::try_from(due).unwrap_or(ENTRIES_MAX).min(ENTRIES_MAX)
    }
}

/// A flush under way: it ends when the sweep has been round once in both families.
#[derive(Debug)]
pub(crate) struct Flush {
    filter: FlushFilter,
    wraps: [u8; 2],
}

/// How long a connection whose backend left this node waits for its client to speak, in seconds: one
/// that does not in the time of a keep-alive (RFC 5382, REQ-5) is not there any more.
const GONE_SECONDS: u32 = 7440;

/// Wraps of the cursor after which every entry was seen: the first may begin in the middle.
const WRAPS: u8 = 2;

/// Flushes that may be under way at once: a node that drains ends many pods together.
pub const FLUSHES_MAX: usize = 64;

/// All that are under way.
pub(crate) type Flushes = ArrayVec<Flush, FLUSHES_MAX>;

impl Flush {
    pub(crate) fn new(filter: FlushFilter) -> Self {
        Self { filter, wraps: [0; 2] }
    }

    fn effect<K: FlowFamily>(&self, flow: &FlowView<'_, K>) -> Effect {
        let reply = flow.tuple(FlowDirection::Reply).generic();
        let original = flow.tuple(FlowDirection::Original).generic();
        let service = flow.origin().service;
        if !self.filter.matches(&original, &reply, service) {
            return Effect::None;
        }
        let leads_there =
            self.filter.address.is_some_and(|address| address.contains(reply.source()));
        let stays = self.filter.is_pod_gone
            && leads_there
            && service.is_some()
            && reply.protocol() == Protocol::TCP
            && flow.life().state() < FlowState::TimeWait;
        match (stays, flow.pod()) {
            (false, _) => Effect::Ends,
            (true, BackendPod::Gone) => Effect::None,
            (true, BackendPod::Tagged(_)) => Effect::LosesBackend,
        }
    }
}

/// What a flush does to a flow; of several, the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    None,
    /// It stays until its client speaks next ([`crate::fate`]).
    LosesBackend,
    Ends,
}

/// Sweeps what is due of each family, and `entries` at least.
pub(crate) fn sweep(
    context: &mut Context,
    flows: &mut WorkerFlows,
    flushes: &mut Flushes,
    now: Nanos,
    entries: u32,
) {
    note_levels(context, flushes);
    context.fragments.forget_old(now);
    let entries = if flushes.is_empty() { entries } else { entries.max(ENTRIES_MAX) };
    let hasher = &flows.hasher;
    let v4 = sweep_family::<FlowKey4, 8>(context, &mut flows.v4, hasher, flushes, now, entries);
    let v6 = sweep_family::<FlowKey6, 16>(context, &mut flows.v6, hasher, flushes, now, entries);
    if !flushes.is_empty() {
        for flush in flushes.iter_mut() {
            for (wraps, wrapped) in flush.wraps.iter_mut().zip([v4, v6]) {
                *wraps = wraps.saturating_add(u8::from(wrapped));
            }
        }
        flushes.retain(|flush| flush.wraps.iter().any(|wraps| *wraps < WRAPS));
    }
    note_levels(context, flushes);
}

/// Tells what the worker's tables beside those of flows hold. They only grow between two sweeps, so
/// that no peak is missed before one; and after it the worker may sleep.
fn note_levels(context: &mut Context, flushes: &Flushes) {
    context.counters.fragments.set(context.fragments.len() as u64);
    context.counters.snat_l4_ports.set(context.nat.taken_most().into());
    context.counters.flushes.set(flushes.len() as u64);
}

/// What is told of a flow that the sweep ends, to those who watch.
#[cold]
fn ended<K: FlowFamily>(flow: &FlowView<'_, K>, charges: &Charges, now: Nanos) -> FlowEvent {
    let port = charges.port(flow.charge()).unwrap_or(FlowEvent::NO_PORT);
    let mut event = FlowEvent::new(now, EventKind::Closed, port);
    event.key = Some(flow.tuple(FlowDirection::Original).generic().canonical());
    event.service = flow.origin().service;
    event
}

/// Which class an evicted flow is counted in: half-open, closing, short-lived.
fn class_of(state: FlowState) -> usize {
    match state {
        FlowState::Opening | FlowState::Answered => 0,
        FlowState::Closing | FlowState::TimeWait | FlowState::Closed => 1,
        FlowState::Established => 2,
    }
}

/// Says whether every entry has had its turn again.
fn sweep_family<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    hasher: &Hasher,
    flushes: &[Flush],
    now: Nanos,
    entries: u32,
) -> bool {
    let (mut expired, mut deleted, mut evicted) = (0, 0, 0u32);
    let mut evicted_by_class = [0u64; 3];
    let pressure = flows.eviction.pressure(&flows.table, context.worker);
    let due = flows.pace.due(now, flows.owner.known(), pressure);
    let entries = entries.max(due).max(flows.eviction.entries(pressure));
    if entries == 0 {
        flows.owner.reclaim();
        return false;
    }
    let is_watched = context.reporter.is_watched();
    let Context { worker, nat, tables, reporter, counters, .. } = context;
    let effect = |view: &FlowView<'_, K>| {
        flushes.iter().map(|flush| flush.effect(view)).max().unwrap_or(Effect::None)
    };
    let swept = flows.owner.sweep(entries, |_, entry| {
        let view = FlowView::<K>::new(entry.words());
        // Nearly always nothing is flushed.
        let effect = if flushes.is_empty() { Effect::None } else { effect(&view) };
        if view.life().expired(now) {
            expired += 1;
        } else if effect == Effect::Ends {
            deleted += 1;
        } else if pressure.evicts(view.life(), now, &tables.timeouts) {
            evicted += 1;
            evicted_by_class[class_of(view.life().state())] += 1;
        } else {
            if effect == Effect::LosesBackend {
                flows.charges.give_back(view.charge());
                view.set_charge(Charge::NOBODY);
                view.set_gone(tables.generation, seconds(now).saturating_add(GONE_SECONDS));
            }
            if flows.charges.is_foreign(view.charge()) {
                flows.charges.charge_again(tables, &view);
            }
            if view.life().counted() != Counted::NOT {
                connections::tend(tables.connections.as_deref(), *worker, &view);
            }
            return Sweep::Keep;
        }
        flows.charges.give_back(view.charge());
        if let Some(connections) = tables.connections.as_deref() {
            connections.give_back(
                *worker,
                view.life().counted(),
                &view.tuple(FlowDirection::Reply),
            );
        }
        if is_watched {
            reporter.event(ended(&view, &flows.charges, now), counters);
        }
        binding::release::<K, W>(nat, &flows.table, hasher, binding::tuples(&view));
        Sweep::Remove(hashes_of_flow(hasher, &view))
    });
    context.counters.flows_expired.add(expired);
    context.counters.flows_deleted.add(deleted);
    context.counters.flows_evicted.add(evicted.into());
    let [half_open, closing, short_lived] = evicted_by_class;
    context.counters.evicted_half_open.add(half_open);
    context.counters.evicted_closing.add(closing);
    context.counters.evicted_short_lived.add(short_lived);
    flows.eviction.record(evicted);
    if swept.wrapped {
        flows.pace.most = flows.owner.known();
    }
    swept.wrapped
}
