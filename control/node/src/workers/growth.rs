//! The flow tables grow before they fill, and are resized on request.
//!
//! Owners double a table's capacity by themselves when three quarters of it are claimed, as far as
//! there is memory for. Here that memory is taken: always for the next doubling, by a thread of its
//! own, since a gigabyte takes half a second; so workers meet neither a page fault nor a full file
//! system in a burst that grows. Memory that cannot be had leaves the table as it is, is named and
//! counted, and asked for again later.
//!
//! What a resize asks for is taken in the same way, and put in force only when all of it is there.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::flow_key::{FlowKey4, FlowKey6};
use flow_table::quiescence::Grace;
use flow_table::{Quiescence, Regions, Table};
use pinning::growing::Growing;
use pinning::memory_file::FileError;

use super::capacity::{Family, FamilyCapacity};
use crate::rate::Rate;

/// How long after memory was refused it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Fewest flows of a table: each worker has a part of it.
const FLOWS_MIN: usize = 64;

/// A table cannot be made so large. It stays as it is, and so does the other one.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Nothing, or too little to share among workers.
    #[error("{table}: {asked} flows cannot be: ask for at least {FLOWS_MIN}")]
    TooFew {
        /// The table.
        table: &'static str,
        /// What was asked for.
        asked: usize,
    },
    /// More than there is address range for.
    #[error(
        "{table}: {asked} flows are more than the running process has set address range aside for \
         ({range}): start it again with {setting}: {asked}"
    )]
    TooMany {
        /// The table.
        table: &'static str,
        /// What was asked for.
        asked: usize,
        /// What there can be.
        range: usize,
        /// What to set.
        setting: &'static str,
    },
    /// Fewer than there are.
    #[error(
        "{table}: {used} flows are in use, which do not fit into {asked}: ask for more, or end some \
         of them first (`xskiff ct top`, `xskiff ct delete`)"
    )]
    InUse {
        /// The table.
        table: &'static str,
        /// What was asked for.
        asked: usize,
        /// Flows there are.
        used: u64,
    },
    /// The memory is not to be had.
    #[error("{table}: {source}; the table stays as it is")]
    Memory {
        /// The table.
        table: &'static str,
        /// Why.
        source: FileError,
    },
    /// One is under way.
    #[error("another resize is under way: `xskiff ct count` shows how far it is")]
    Busy,
}

/// What became of a table's growth since start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrowthCounts {
    /// Times its capacity rose by itself.
    pub grown: u64,
    /// Times it was resized on request.
    pub resized: u64,
    /// Times the memory for more was not to be had.
    pub refused: u64,
    /// Why, the last time, until it was to be had.
    pub last_refusal: Option<String>,
}

/// A thread that takes memory for so many flows.
struct Taking {
    flows: usize,
    thread: JoinHandle<Result<(), FileError>>,
}

/// One table's growth.
pub struct TableGrowth<const W: usize> {
    name: &'static str,
    setting: &'static str,
    table: Arc<Table<W>>,
    growing: Arc<Growing>,
    quiescence: Arc<Quiescence>,
    /// Flows it may grow to.
    max: usize,
    /// Flows there is memory for.
    memory: usize,
    capacity_seen: u32,
    taking: Option<Taking>,
    ask_again: Option<Instant>,
    /// Since when nobody can begin to use what is above a lower capacity.
    shrinking: Option<Grace>,
    counts: GrowthCounts,
    rate: Rate,
}

impl<const W: usize> TableGrowth<W> {
    fn new<K: Family>(
        table: &Arc<Table<W>>,
        growing: &Arc<Growing>,
        quiescence: &Arc<Quiescence>,
        capacity: &FamilyCapacity,
    ) -> Self {
        Self {
            name: K::TABLE,
            setting: K::MAX_SETTING,
            table: Arc::clone(table),
            growing: Arc::clone(growing),
            quiescence: Arc::clone(quiescence),
            max: capacity.max,
            memory: size(table.committed()),
            capacity_seen: table.capacity(),
            taking: None,
            ask_again: None,
            shrinking: None,
            counts: GrowthCounts::default(),
            rate: Rate::default(),
        }
    }

    /// Flows it may grow to by itself.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Flows there is memory for.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.memory
    }

    /// Bytes of memory that it has.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.growing.taken_bytes()
    }

    /// Whether memory is being taken for it.
    #[must_use]
    pub fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// What became of it.
    #[must_use]
    pub fn counts(&self) -> &GrowthCounts {
        &self.counts
    }

    /// Seconds until it holds as many flows as it may, at the pace of the last minute; `None` when
    /// it does not fill.
    #[must_use]
    pub fn seconds_to_full(&self) -> Option<u64> {
        self.rate.seconds_until(self.table.statistics().used, self.max as u64)
    }

    /// Once a second.
    fn note_rate(&mut self) {
        self.rate.note(self.table.statistics().used);
    }

    /// Sees whether it has grown, and whether there is to be memory for more. Often: between two
    /// looks a table may double.
    fn tend(&mut self) {
        let capacity = self.table.capacity();
        if capacity != self.capacity_seen {
            self.table.note_capacity();
            if capacity > self.capacity_seen {
                self.counts.grown += 1;
                let (table, before) = (self.name, self.capacity_seen);
                tracing::info!(table, flows = capacity, before, max = self.max, "it grows");
            }
            self.capacity_seen = capacity;
        }
        self.finish_taking();
        let wanted = FamilyCapacity::memory_ahead(size(capacity), self.max);
        let is_due = self.ask_again.is_none_or(|at| at <= Instant::now());
        if wanted > self.memory && self.taking.is_none() && is_due {
            self.begin_taking(wanted);
        }
        self.give_back_when_free();
    }

    fn begin_taking(&mut self, flows: usize) {
        let (growing, regions) = (Arc::clone(&self.growing), self.table.regions_of(flows));
        let thread = std::thread::Builder::new().name("flow-memory".into()).spawn(move || {
            crate::privileges::drop_all();
            growing.take(&regions)
        });
        match thread {
            Ok(thread) => self.taking = Some(Taking { flows, thread }),
            Err(error) => self.refuse(format!("no thread to take memory: {error}")),
        }
    }

    fn finish_taking(&mut self) {
        let Some(taking) = self.taking.take_if(|taking| taking.thread.is_finished()) else {
            return;
        };
        match taking.thread.join() {
            // What was resized meanwhile may have a lower maximum.
            Ok(Ok(())) => {
                self.memory = self.memory.max(taking.flows);
                self.table.commit(self.memory.min(self.max));
                self.ask_again = None;
                if self.counts.last_refusal.take().is_some() {
                    tracing::info!(table = self.name, "there is memory for growth again");
                }
            }
            Ok(Err(error)) => {
                self.give_back_above(self.memory, taking.flows);
                self.refuse(error.to_string());
            }
            Err(_) => self.refuse("taking memory panicked; the log says more".into()),
        }
    }

    fn refuse(&mut self, why: String) {
        self.counts.refused += 1;
        self.ask_again = Some(Instant::now() + ASK_AGAIN);
        if self.counts.last_refusal.as_ref() != Some(&why) {
            tracing::warn!(table = self.name, why, "it cannot grow");
        }
        self.counts.last_refusal = Some(why);
    }

    /// Gives back the memory that only more than `kept` flows need, of `taken` ones. Records and index
    /// are kept as far as they were ever used: the index shrinks in its own time.
    fn give_back_above(&self, kept: usize, taken: usize) {
        let used = self.table.regions_of(kept.max(size(self.table.reached())));
        let (kept, taken) = (self.table.regions_of(kept), self.table.regions_of(taken));
        for (number, taken) in taken.iter().enumerate() {
            let kept = if ENTRIES.contains(&number) { &kept[number] } else { &used[number] };
            if kept.end < taken.end
                && let Err(error) = self.growing.give_back(&(kept.end..taken.end))
            {
                tracing::warn!(table = self.name, %error, "memory is not given back");
            }
        }
    }

    fn check(&self, flows: usize) -> Result<(), ResizeError> {
        let range = self.table.handles().len();
        let (table, asked, setting) = (self.name, flows, self.setting);
        let used = self.table.statistics().used;
        match () {
            () if flows < FLOWS_MIN => Err(ResizeError::TooFew { table, asked }),
            () if flows > range => Err(ResizeError::TooMany { table, asked, range, setting }),
            () if used > flows as u64 => Err(ResizeError::InUse { table, asked, used }),
            () => Ok(()),
        }
    }

    /// Puts a maximum in force, and a capacity within it; there is memory for that.
    fn put_in_force(&mut self, capacity: usize, max: usize) {
        self.max = max;
        let before = size(self.table.capacity());
        let wanted = if capacity > before { capacity } else { before.min(max) };
        if wanted == before {
            self.table.commit(self.memory.min(max));
        } else {
            self.table.set_capacity(wanted, self.memory.min(max).max(wanted));
        }
        self.capacity_seen = self.table.capacity();
        self.ask_again = None;
        if self.memory > max {
            self.shrinking = Some(self.quiescence.begin_grace());
        }
    }

    /// Once no worker can begin to use it, and the last flow above the capacity has ended.
    fn give_back_when_free(&mut self) {
        let Some(grace) = &self.shrinking else { return };
        if self.max >= self.memory {
            self.shrinking = None;
        } else if self.taking.is_none()
            && self.quiescence.is_over(grace)
            && self.table.is_free_above_capacity()
        {
            self.give_back_above(self.max, self.memory);
            self.memory = self.max;
            self.shrinking = None;
            tracing::info!(table = self.name, flows = self.max, "memory above it is given back");
        }
    }
}

/// Regions that hold entries and what goes with each; header and records are before them, the index
/// behind.
const ENTRIES: Range<usize> = 2..5;

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Flows of each family that a resize asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resize {
    /// IPv4: capacity and maximum; `None` leaves it.
    pub v4: Option<(usize, usize)>,
    /// IPv6.
    pub v6: Option<(usize, usize)>,
}

impl Resize {
    /// Capacity and maximum alike, so that a table neither grows nor shrinks from there by itself.
    #[must_use]
    pub fn to(v4: Option<usize>, v6: Option<usize>) -> Self {
        let both = |flows: usize| (flows, flows);
        Self { v4: v4.map(both), v6: v6.map(both) }
    }
}

/// Memory of a resize that is being taken.
struct Resizing {
    asked: Resize,
    thread: JoinHandle<Result<(), ResizeError>>,
}

/// Both tables' growth.
pub struct FlowGrowth {
    /// IPv4.
    pub v4: TableGrowth<8>,
    /// IPv6.
    pub v6: TableGrowth<16>,
    resizing: Option<Resizing>,
}

impl FlowGrowth {
    pub(super) fn new(
        flows: &dataplane::flows::FlowTables,
        growing: &[Arc<Growing>; 2],
        capacities: &super::capacity::FlowCapacities,
    ) -> Self {
        let (quiescence, [v4, v6]) = (&flows.quiescence, growing);
        Self {
            v4: TableGrowth::new::<FlowKey4>(&flows.v4, v4, quiescence, &capacities.v4),
            v6: TableGrowth::new::<FlowKey6>(&flows.v6, v6, quiescence, &capacities.v6),
            resizing: None,
        }
    }

    /// Sees to both tables. Answers how a resize has ended that was under way.
    pub fn tend(&mut self) -> Option<Result<(), ResizeError>> {
        let ended = self.finish_resize();
        self.v4.tend();
        self.v6.tend();
        ended
    }

    /// Once a second.
    pub fn note_rates(&mut self) {
        self.v4.note_rate();
        self.v6.note_rate();
    }

    /// Whether a resize is under way.
    #[must_use]
    pub fn is_resizing(&self) -> bool {
        self.resizing.is_some()
    }

    /// Begins to make tables larger or smaller: `true` when that is in force already, `false` when
    /// memory is being taken first, whose end [`Self::tend`] tells.
    ///
    /// # Errors
    /// Any [`ResizeError`] but `Memory`; then nothing has changed.
    pub fn resize(&mut self, asked: Resize) -> Result<bool, ResizeError> {
        if self.is_resizing() {
            return Err(ResizeError::Busy);
        }
        self.check(asked)?;
        let v4 = asked.v4.and_then(|(capacity, _)| self.v4.missing(capacity));
        let v6 = asked.v6.and_then(|(capacity, _)| self.v6.missing(capacity));
        if v4.is_none() && v6.is_none() {
            self.put_in_force(asked);
            return Ok(true);
        }
        let spawned = std::thread::Builder::new().name("flow-memory".into()).spawn(move || {
            crate::privileges::drop_all();
            for missing in [v4, v6].into_iter().flatten() {
                let table = missing.name;
                let taken = missing.growing.take(&missing.regions);
                taken.map_err(|source| ResizeError::Memory { table, source })?;
            }
            Ok(())
        });
        match spawned {
            Ok(thread) => self.resizing = Some(Resizing { asked, thread }),
            Err(source) => {
                let path = "a thread to take memory".to_owned();
                let source = FileError::Io { path, action: "start it", source };
                return Err(ResizeError::Memory { table: "flow tables", source });
            }
        }
        Ok(false)
    }

    fn finish_resize(&mut self) -> Option<Result<(), ResizeError>> {
        let resizing = self.resizing.take_if(|resizing| resizing.thread.is_finished())?;
        let asked = resizing.asked;
        let taken = resizing.thread.join().unwrap_or(Err(ResizeError::Busy));
        // Flows may have come meanwhile; then nothing of it is done.
        let ended = taken.and_then(|()| self.check(asked));
        match &ended {
            Ok(()) => {
                self.v4.memory = self.v4.memory.max(asked.v4.map_or(0, |(capacity, _)| capacity));
                self.v6.memory = self.v6.memory.max(asked.v6.map_or(0, |(capacity, _)| capacity));
                self.put_in_force(asked);
            }
            Err(_) => {
                self.v4.forget(asked.v4);
                self.v6.forget(asked.v6);
            }
        }
        Some(ended)
    }

    fn check(&self, asked: Resize) -> Result<(), ResizeError> {
        asked.v4.map_or(Ok(()), |(_, max)| self.v4.check(max))?;
        asked.v6.map_or(Ok(()), |(_, max)| self.v6.check(max))
    }

    fn put_in_force(&mut self, asked: Resize) {
        if let Some((capacity, max)) = asked.v4 {
            self.v4.put_in_force(capacity, max);
            self.v4.counts.resized += 1;
        }
        if let Some((capacity, max)) = asked.v6 {
            self.v6.put_in_force(capacity, max);
            self.v6.counts.resized += 1;
        }
    }
}

/// Memory that a resize needs.
struct Missing {
    name: &'static str,
    growing: Arc<Growing>,
    regions: Regions,
}

impl<const W: usize> TableGrowth<W> {
    fn missing(&self, flows: usize) -> Option<Missing> {
        (flows > self.memory).then(|| Missing {
            name: self.name,
            growing: Arc::clone(&self.growing),
            regions: self.table.regions_of(flows),
        })
    }

    /// Gives back what was taken for a resize that does not come into force.
    fn forget(&mut self, asked: Option<(usize, usize)>) {
        if let Some((capacity, _)) = asked {
            self.counts.refused += 1;
            if self.taking.is_none() && capacity > self.memory {
                self.give_back_above(self.memory, capacity);
            }
        }
    }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
