//! Expiry: a slice of the worker's own entries at every tick, never a pass over all. What
//! [`crate::eviction`] gives up under pressure goes on the same way.

use arrayvec::ArrayVec;
use flow_table::{Hasher, Sweep};

use crate::conntrack::FlowDirection;
use crate::context::Context;
use crate::flow::{FlowFamily, FlowView};
use crate::flow_key::{FlowKey4, FlowKey6};
use crate::flows::{Flows, TableKey, WorkerFlows, hashes_of_flow};
use crate::mailbox::FlushFilter;
use crate::time::Nanos;

/// A flush under way: it ends when the sweep has been round once in both families.
#[derive(Debug)]
pub(crate) struct Flush {
    filter: FlushFilter,
    wraps: [u8; 2],
}

/// Wraps of the cursor after which every entry was seen: the first may begin in the middle.
const WRAPS: u8 = 2;

/// Flushes that may be under way at once: a node that drains ends many pods together.
pub(crate) const FLUSHES_MAX: usize = 64;

/// All that are under way.
pub(crate) type Flushes = ArrayVec<Flush, FLUSHES_MAX>;

impl Flush {
    pub(crate) fn new(filter: FlushFilter) -> Self {
        Self { filter, wraps: [0; 2] }
    }

    fn ends<K: FlowFamily>(&self, flow: &FlowView<'_, K>) -> bool {
        self.filter.matches(
            &flow.tuple(FlowDirection::Original).generic(),
            &flow.tuple(FlowDirection::Reply).generic(),
        )
    }
}

/// Sweeps `entries` of each family.
pub(crate) fn sweep(
    context: &mut Context,
    flows: &mut WorkerFlows,
    flushes: &mut Flushes,
    now: Nanos,
    entries: u32,
) {
    let hasher = &flows.hasher;
    let v4 = sweep_family::<FlowKey4, 8>(context, &mut flows.v4, hasher, flushes, now, entries);
    let v6 = sweep_family::<FlowKey6, 16>(context, &mut flows.v6, hasher, flushes, now, entries);
    for flush in flushes.iter_mut() {
        for (wraps, wrapped) in flush.wraps.iter_mut().zip([v4, v6]) {
            *wraps = wraps.saturating_add(u8::from(wrapped));
        }
    }
    flushes.retain(|flush| flush.wraps.iter().any(|wraps| *wraps < WRAPS));
}

/// Says whether every entry has had its turn again.
fn sweep_family<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &mut Flows<W>,
    hasher: &Hasher,
    flushes: &[Flush],
    now: Nanos,
    entries: u32,
) -> bool {
    let (mut expired, mut deleted, mut evicted) = (0, 0, 0u32);
    let (pressure, entries) = flows.eviction.plan(&flows.table, context.worker, entries);
    let swept = flows.owner.sweep(entries, |_, entry| {
        let view = FlowView::<K>::new(entry.words());
        if view.life().expired(now) {
            expired += 1;
        } else if flushes.iter().any(|flush| flush.ends(&view)) {
            deleted += 1;
        } else if pressure.evicts(view.life(), now, &context.tables.timeouts) {
            evicted += 1;
        } else {
            return Sweep::Keep;
        }
        Sweep::Remove(hashes_of_flow(hasher, &view))
    });
    context.counters.flows_expired.add(expired);
    context.counters.flows_deleted.add(deleted);
    context.counters.flows_evicted.add(evicted.into());
    flows.eviction.record(evicted);
    swept.wrapped
}
