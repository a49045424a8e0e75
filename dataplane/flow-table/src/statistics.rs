//! How full a table is, and what it had to refuse.

// The standard atomics also under loom: a model need not follow what no decision reads.
use std::sync::atomic::{AtomicU64, Ordering};

/// How full a table, or one owner's part of it, is. Read while others work, so its figures may be
/// of slightly different instants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Entries there can be.
    pub capacity: u64,
    /// Entries there are.
    pub used: u64,
    /// The most entries there were at once, per owner; for a table the sum of its owners'.
    pub used_high_water: u64,
    /// Removed entries that wait until every worker has announced.
    pub retired_waiting: u64,
    /// Inserts refused as [`crate::InsertError::SlabFull`].
    pub slab_full: u64,
    /// Inserts refused as [`crate::InsertError::IndexFull`].
    pub index_full: u64,
    /// Inserts refused as [`crate::InsertError::Exists`] or
    /// [`crate::InsertError::AliasExists`].
    pub exists: u64,
    /// Index slots lost to removals with a wrong hash ([`crate::RemoveError::WrongHash`]).
    pub slots_lost: u64,
    /// Keys in the index: one or two for each entry.
    pub keys: u64,
}

impl Statistics {
    /// Adds the figures of another part of the same table.
    pub(crate) fn add(&mut self, part: Self) {
        self.capacity += part.capacity;
        self.used += part.used;
        self.used_high_water += part.used_high_water;
        self.retired_waiting += part.retired_waiting;
        self.slab_full += part.slab_full;
        self.index_full += part.index_full;
        self.exists += part.exists;
        self.slots_lost += part.slots_lost;
        self.keys += part.keys;
    }
}

/// One owner's figures on a cache line of their own. The owner alone writes them.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) used: Counter,
    pub(crate) used_high_water: Counter,
    pub(crate) retired_waiting: Counter,
    pub(crate) slab_full: Counter,
    pub(crate) index_full: Counter,
    pub(crate) exists: Counter,
    pub(crate) slots_lost: Counter,
    /// Entries of the owner's segments.
    entries: Counter,
    keys: Counter,
}

impl Counters {
    /// `unclaimed` is what the owner may count on beside its own segments.
    #[inline(always)]
    pub(crate) fn read(&self, unclaimed: u64) -> Statistics {
        Statistics {
            capacity: self.entries.get() + unclaimed,
            used: self.used.get(),
            used_high_water: self.used_high_water.get(),
            retired_waiting: self.retired_waiting.get(),
            slab_full: self.slab_full.get(),
            index_full: self.index_full.get(),
            exists: self.exists.get(),
            slots_lost: self.slots_lost.get(),
            keys: self.keys.get(),
        }
    }

    /// Entries in use and waiting, after either changed.
    pub(crate) fn occupancy(&self, used: usize, waiting: usize) {
        self.used.set(used as u64);
        self.used_high_water.set(self.used_high_water.get().max(used as u64));
        self.retired_waiting.set(waiting as u64);
    }
}

impl Counters {
    /// Entries of the owner's segments, and keys in the index, after either changed.
    pub(crate) fn holdings(&self, entries: u64, keys: u64) {
        self.entries.set(entries);
        self.keys.set(keys);
    }

    pub(crate) fn keys(&self) -> u64 {
        self.keys.get()
    }
}

/// A figure with one writer, so that a load and a store suffice.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.set(self.get() + 1);
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
