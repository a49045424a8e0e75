//! Flows that somebody watches: what has become of each since it was looked at last.
//!
//! Workers tell when a flow begins and ends. That it changes its state they do not, since the packet
//! that does it is on the fast path; so known flows are looked at several times a second. What changes
//! twice in between is seen once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dataplane::conntrack::FlowState;
use dataplane::event::{EventKind, FlowEvent};
use dataplane::flow::FlowView;
use dataplane::flow_key::{FlowKey, FlowKey6};
use dataplane::flows::{FlowTables, TableKey};
use dataplane::time::Nanos;
use flow_table::Table;

/// Flows whose state is followed.
pub const WATCHED_MAX: usize = 16_384;
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// See above.
#[derive(Debug, Default)]
pub struct FlowWatch {
    states: HashMap<FlowKey, FlowState>,
    looked: Option<Instant>,
    /// Flows that found no room here: they are seen to begin and to end.
    left_out: u64,
}

impl FlowWatch {
    /// Begins with the flows that there are.
    pub fn begin(&mut self, flows: &FlowTables, now: Nanos) {
        flows.for_each(now, |flow| self.add(flow.original, flow.life.state()));
    }

    /// Nobody watches any more.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    /// Flows that are followed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Flows that found no room since somebody watches.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn add(&mut self, key: FlowKey, state: FlowState) {
        if self.states.len() < WATCHED_MAX || self.states.contains_key(&key) {
            self.states.insert(key, state);
        } else {
            self.left_out += 1;
        }
    }

    /// Takes in what a worker reports.
    pub fn note(&mut self, event: &FlowEvent) {
        let Some(key) = event.key else { return };
        match event.kind {
            EventKind::Opened => self.add(key, FlowState::Opening),
            EventKind::Closed => drop(self.states.remove(&key)),
            EventKind::Audited(_) | EventKind::Dropped(_) => {}
        }
    }

    /// The flows whose state is another one than when they were looked at last, if it is time to look
    /// again.
    pub fn look(&mut self, flows: &FlowTables) -> Vec<(FlowKey, FlowState)> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Vec::new();
        }
        self.looked = Some(Instant::now());
        let mut changed = Vec::new();
        self.states.retain(|key, state| {
            let Some(now) = state_of(flows, key) else { return false };
            if now != *state {
                changed.push((*key, now));
                *state = now;
            }
            true
        });
        changed
    }
}

fn state_of(flows: &FlowTables, key: &FlowKey) -> Option<FlowState> {
    match key {
        FlowKey::V4(key) => state_in(&flows.v4, key.hash(&flows.hasher), key).or_else(|| {
            // A flow that changes family lies in the other table.
            let key = FlowKey6::mapped(key);
            state_in(&flows.v6, key.hash(&flows.hasher), &key)
        }),
        FlowKey::V6(key) => state_in(&flows.v6, key.hash(&flows.hasher), key),
    }
}

/// Its entry may be another flow's at any moment, for this thread announces nothing: so it is
/// compared again after it was read.
fn state_in<K: TableKey<W>, const W: usize>(
    table: &Table<W>,
    hash: u64,
    key: &K,
) -> Option<FlowState> {
    let hit = table.lookup(hash, key)?;
    let state = FlowView::<K>::new(hit.entry.words()).life().state();
    key.matches(hit.entry).map(|_| state)
}
