//! The control thread's side: whom a change concerns, and the filter made anew.
//!
//! **A change that seems to concern nobody** is put in force under the generation that is. A worker
//! may have judged a flow by the tables before, and noted its ends after the filter was asked. So once
//! every worker has adopted the new tables, and has announced since, which makes what it noted
//! before visible here, the same addresses are asked for once more. Any that is an end now is
//! concerned: for one such flow that begins at the very moment of a change, the change comes some
//! milliseconds later than for all others.
//!
//! **Making a filter anew.** (a) The spare filter is cleared and workers are told to note in both;
//! (b) every worker has announced since, so each later flow is noted in both; (c) all flows that there
//! are, those inserted before (b) among them, are noted in the spare one, a few thousand at a time;
//! (d) the spare one is asked from then on, and the other becomes the spare. The order of memory is
//! that of [`flow_table::Quiescence`]: what a worker did before it announced is seen after the wait is over, and
//! what was done before the wait began is seen by the worker after it has announced.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flow_table::{Grace, Handle};

use super::FlowEnds;
use crate::address_hash::AddressHash;
use crate::counters::Level;
use crate::epochs::Epochs;
use crate::flow::FlowView;
use crate::flow_key::{FlowKey4, FlowKey6};
use crate::flows::FlowTables;
use crate::tables::Tables;
use crate::time::Nanos;

/// How long a filter is used, so that it does not fill with ends of flows that are over.
const USED_FOR: Duration = Duration::from_secs(300);
/// Addresses that may wait to be asked for once more; a change of more concerns everybody's epochs at
/// once.
pub const WAITING_MAX: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Census {
    flows: FlowTables,
    /// The filter that is asked; `None` while none knows every flow.
    current: Option<usize>,
    stage: Stage,
    /// Changed without a new generation, by tables of which some may not have been given yet.
    waiting: BTreeSet<IpAddr>,
    /// The same; to be asked for when each worker has adopted so many tables.
    adopting: Option<(BTreeSet<IpAddr>, Vec<u64>)>,
    /// Adopted by every worker; to be asked for when the wait is over.
    asked: Option<(BTreeSet<IpAddr>, Grace)>,
    level: Level,
}

/// How many tables one worker was given, and has adopted of them, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adoption {
    /// With those that are still to be given.
    pub given: u64,
    /// Of these.
    pub adopted: u64,
}

/// Where the making of the other filter stands.
#[derive(Debug)]
enum Stage {
    /// It is not needed before.
    Resting { until: Nanos },
    /// (b)
    Waiting(Grace),
    /// (c): the next entry of both tables.
    Walking(u32),
}

impl Census {
    /// Of tables that no worker has yet.
    #[must_use]
    pub fn of(flows: &FlowTables, now: Nanos) -> Self {
        let is_empty = flows.v4.statistics().used + flows.v6.statistics().used == 0;
        Self {
            flows: flows.clone(),
            current: is_empty.then_some(0),
            stage: match is_empty {
                true => Stage::Resting { until: now.after(USED_FOR) },
                // Every worker notes in the first from its beginning.
                false => Stage::Walking(0),
            },
            waiting: BTreeSet::new(),
            adopting: None,
            asked: None,
            level: Level::default(),
        }
    }

    /// Whether some flow may have this end.
    #[must_use]
    pub fn may_be_end(&self, address: IpAddr) -> bool {
        self.current.is_none_or(|filter| self.ends().filters[filter].has(address.into()))
    }

    /// Generation and epochs of the tables that come after `old`, and decide otherwise about these
    /// addresses.
    pub fn next(&mut self, old: &Tables, addresses: BTreeSet<IpAddr>) -> (u32, Arc<Epochs>) {
        let next = old.generation.wrapping_add(1);
        let Some(epochs) = &old.epochs else { return (next, Epochs::beginning_at(next).into()) };
        let has_room = self.waiting.len() + addresses.len() <= WAITING_MAX;
        if has_room && !addresses.iter().any(|address| self.may_be_end(*address)) {
            self.waiting.extend(addresses);
            return (old.generation, Arc::clone(epochs));
        }
        let mut epochs = Epochs::clone(epochs);
        epochs.concern(next, addresses);
        (next, Arc::new(epochs))
    }

    /// Goes on with what waits, and with at most so many entries. To be called every few
    /// milliseconds, once the tables that were made are published, with what each worker has adopted.
    /// Answers addresses that flows have for ends by now which tables before the last change have
    /// decided about.
    pub fn tend(&mut self, now: Nanos, entries: u32, workers: &[Adoption]) -> BTreeSet<IpAddr> {
        self.make_anew(now, entries);
        let quiescence = Arc::clone(&self.flows.quiescence);
        let is_asked = self.asked.as_ref().is_some_and(|(_, grace)| quiescence.is_over(grace));
        let asked = self.asked.take_if(|_| is_asked);
        let has_adopted = |(worker, mark): (&Adoption, &u64)| worker.adopted >= *mark;
        let have_adopted = self
            .adopting
            .as_ref()
            .is_some_and(|(_, marks)| workers.iter().zip(marks).all(has_adopted));
        if self.asked.is_none()
            && let Some((addresses, _)) = self.adopting.take_if(|_| have_adopted)
        {
            self.asked = Some((addresses, quiescence.begin_grace()));
        }
        if self.adopting.is_none() && !self.waiting.is_empty() {
            let marks = workers.iter().map(|worker| worker.given).collect();
            self.adopting = Some((std::mem::take(&mut self.waiting), marks));
        }
        let mut concerned = asked.map(|(addresses, _)| addresses).unwrap_or_default();
        concerned.retain(|address| self.may_be_end(*address));
        concerned
    }

    /// Bits set of the [`FILTER_BITS_MAX`](super::FILTER_BITS_MAX) of the filter that is asked, and the most
    /// there were whenever this was asked.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        let filter = &self.ends().filters[self.current.unwrap_or(0)];
        self.level.set(filter.used());
        (self.level.get(), self.level.most())
    }

    fn ends(&self) -> &Arc<FlowEnds> {
        &self.flows.ends
    }

    fn spare(&self) -> usize {
        self.current.map_or(0, |current| 1 - current)
    }

    fn make_anew(&mut self, now: Nanos, entries: u32) {
        match &self.stage {
            Stage::Resting { until } if *until <= now => {
                self.ends().filters[self.spare()].clear();
                self.ends().noted_in.store(0b11, Ordering::Relaxed);
                self.stage = Stage::Waiting(self.flows.quiescence.begin_grace());
            }
            Stage::Waiting(grace) if self.flows.quiescence.is_over(grace) => {
                self.stage = Stage::Walking(0);
            }
            Stage::Walking(first) => {
                let first = *first;
                let next = first.saturating_add(entries);
                self.note_entries(first, next);
                let end = self.flows.v4.handles().end.max(self.flows.v6.handles().end);
                self.stage = Stage::Walking(next);
                if next >= end {
                    self.use_spare(now);
                }
            }
            Stage::Resting { .. } | Stage::Waiting(_) => {}
        }
    }

    fn use_spare(&mut self, now: Nanos) {
        let spare = self.spare();
        self.current = Some(spare);
        self.ends().noted_in.store(1 << spare, Ordering::Relaxed);
        self.stage = Stage::Resting { until: now.after(USED_FOR) };
    }

    /// Notes the ends of the flows with these numbers in the spare filter.
    fn note_entries(&self, first: u32, end: u32) {
        let filter = &self.ends().filters[self.spare()];
        let note = |ends: [AddressHash; 2]| ends.into_iter().for_each(|end| filter.set(end));
        self.flows.v4.for_each(first..end, |_: Handle, words| {
            note(FlowView::<FlowKey4>::new(&words.map(AtomicU64::new)).ends());
        });
        self.flows.v6.for_each(first..end, |_: Handle, words| {
            note(FlowView::<FlowKey6>::new(&words.map(AtomicU64::new)).ends());
        });
    }
}
