//! Expiry: a slice of the worker's own entries at every tick, never a pass over all.

use flow_table::{Hasher, Sweep};

use crate::conntrack::FlowDirection;
use crate::context::Context;
use crate::flow::FlowView;
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

impl Flush {
    pub(crate) fn new(filter: FlushFilter) -> Self {
        Self { filter, wraps: [0; 2] }
    }
}

/// Sweeps `entries` of each family.
pub(crate) fn sweep(
    context: &mut Context,
    flows: &mut WorkerFlows,
    flush: &mut Option<Flush>,
    now: Nanos,
    entries: u32,
) {
    let filter = flush.as_ref().map(|flush| &flush.filter);
    let hasher = &flows.hasher;
    let v4 = sweep_family::<FlowKey4, 8>(context, &mut flows.v4, hasher, filter, now, entries);
    let v6 = sweep_family::<FlowKey6, 16>(context, &mut flows.v6, hasher, filter, now, entries);
    if let Some(under_way) = flush {
        for (wraps, wrapped) in under_way.wraps.iter_mut().zip([v4, v6]) {
            *wraps = wraps.saturating_add(u8::from(wrapped));
        }
        if under_way.wraps.iter().all(|wraps| *wraps >= WRAPS) {
            *flush = None;
        }
    }
}

/// Says whether every entry has had its turn again.
fn sweep_family<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &mut Flows<W>,
    hasher: &Hasher,
    filter: Option<&FlushFilter>,
    now: Nanos,
    entries: u32,
) -> bool {
    let (mut expired, mut deleted) = (0, 0);
    let swept = flows.owner.sweep(entries, |_, entry| {
        let view = FlowView::<K>::new(entry.words());
        let flushed = filter.is_some_and(|filter| {
            filter.matches(
                &view.tuple(FlowDirection::Original).generic(),
                &view.tuple(FlowDirection::Reply).generic(),
            )
        });
        if view.life().expired(now) {
            expired += 1;
        } else if flushed {
            deleted += 1;
        } else {
            return Sweep::Keep;
        }
        Sweep::Remove(hashes_of_flow(hasher, &view))
    });
    context.counters.flows_expired.add(expired);
    context.counters.flows_deleted.add(deleted);
    swept.wrapped
}
