//! An owner of handles: it alone inserts, sweeps and removes their entries.

use std::ops::Range;
use std::sync::Arc;

use crate::entry::{Entry, Handle, Key};
use crate::error::{InsertError, RemoveError};
use crate::holdings::Holdings;
use crate::quiescence::Quiescence;
use crate::recycler::Recycler;
use crate::slab::{SegmentId, Slab};
use crate::sync::model_fence;
use crate::table::Table;

/// How far ahead of itself a sweep asks for entries.
const SWEEP_AHEAD: u32 = 16;

/// Removals that a sweep gathers, so that their index lines arrive together.
const SWEEP_REMOVALS: usize = 16;

/// Handles that a sweep gives back to their segments at most, of those that no insert took.
const RELEASED_AT_ONCE: usize = 64;

/// Keys inserted after which an owner sees whether the index is to grow, or moves a group of it: a
/// group's worth of keys is moved for an eighth of it inserted. Counted in keys: at twice as many for
/// a step, among ten thousand groups one fills before its turn comes. Two where schedules are random
/// and tables have some dozen keys.
const KEYS_EACH_STEP: u32 = if cfg!(shuttle) { 2 } else { 32 };

/// The hashes that an entry is found under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// The hash of its original key.
    pub original: u64,
    /// The hash of its alias, if it was inserted with one.
    pub alias: Option<u64>,
}

impl Hashes {
    fn count(self) -> u64 {
        1 + u64::from(self.alias.is_some())
    }
}

/// What becomes of an entry that a sweep visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// It stays.
    Keep,
    /// It goes; the hashes must be those it was inserted under.
    Remove(Hashes),
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Entries in use that it visited.
    pub visited: u32,
    /// Entries that it removed.
    pub removed: u32,
    /// Whether it passed the end of the owner's entries, and began again at the first one.
    pub wrapped: bool,
}

/// The one who inserts, sweeps and removes entries of the segments it claims.
pub struct Owner<const WORDS: usize> {
    table: Arc<Table<WORDS>>,
    number: usize,
    holdings: Holdings<WORDS>,
    recycler: Recycler,
    /// Where the next sweep begins: handles that are left of a segment, and the segment after it.
    cursor: (Range<u32>, SegmentId),
    /// Tells one flow of an entry from the next.
    stamp: u32,
    /// Keys of its entries in the index.
    keys: u64,
    /// Keys it was to insert since it last saw to the index.
    keys_since_step: u32,
}

impl<const WORDS: usize> std::fmt::Debug for Owner<WORDS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner")
            .field("number", &self.number)
            .field("entries", &self.holdings.entries())
            .finish_non_exhaustive()
    }
}

impl<const WORDS: usize> Owner<WORDS> {
    pub(crate) fn new(
        table: Arc<Table<WORDS>>,
        quiescence: Arc<Quiescence>,
        number: usize,
    ) -> Self {
        Self {
            holdings: Holdings::new(Arc::clone(&table), number),
            table,
            number,
            recycler: Recycler::new(quiescence),
            cursor: (0..0, SegmentId(0)),
            stamp: 0,
            keys: 0,
            keys_since_step: 0,
        }
    }

    /// Goes on with the segments that are assigned to it, and with `keys` in the index.
    pub(crate) fn adopt(&mut self, keys: u64) {
        self.holdings.adopt();
        self.keys = keys;
        self.report();
    }

    /// Which one it is.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Keys of its entries in the index.
    pub(crate) fn keys(&self) -> u64 {
        self.keys
    }

    /// Releases all that was removed; false when a worker may hold some of it.
    pub(crate) fn release_all(&mut self) -> bool {
        loop {
            let queued = self.recycler.queued();
            if queued == 0 {
                return true;
            }
            self.release_removed();
            if self.recycler.queued() == queued {
                return false;
            }
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Arc<Table<WORDS>> {
        &self.table
    }

    /// Entries of its segments that were ever used, which is what a sweep goes round.
    #[must_use]
    pub fn known(&self) -> u32 {
        self.holdings.known()
    }

    fn slab(&self) -> &Slab<WORDS> {
        self.table.slab()
    }

    /// Adds an entry of these words, found by `original` and, if given, by `alias`, each a key
    /// with its hash; both keys must match the words. When it returns, every thread that learns
    /// of it finds the entry under both. Its details, if the table has them, are zero.
    ///
    /// # Errors
    /// Any [`InsertError`]; then no entry was added.
    pub fn insert<K: Key<WORDS>>(
        &mut self,
        original: (u64, K),
        alias: Option<(u64, K)>,
        words: &[u64; WORDS],
    ) -> Result<Handle, InsertError> {
        self.keys_since_step += 1 + u32::from(alias.is_some());
        if self.keys_since_step >= KEYS_EACH_STEP {
            self.keys_since_step = 0;
            self.table.tend_index();
        }
        let inserted = self.try_insert(original, alias, words);
        let counters = self.table.counters(self.number);
        match inserted {
            Ok(_) => {}
            Err(InsertError::SlabFull) => counters.slab_full.increment(),
            Err(InsertError::IndexFull) => counters.index_full.increment(),
            Err(InsertError::Exists(_) | InsertError::AliasExists(_)) => {
                counters.exists.increment()
            }
        }
        self.report();
        inserted
    }

    fn try_insert<K: Key<WORDS>>(
        &mut self,
        original: (u64, K),
        alias: Option<(u64, K)>,
        words: &[u64; WORDS],
    ) -> Result<Handle, InsertError> {
        // Before anything is published, so that a translation that is taken costs no handle.
        self.conflict(&original, alias.as_ref(), None)?;
        let handle = self.take_handle().ok_or(InsertError::SlabFull)?;
        self.slab().fill(handle, words);
        if self.table.index().publish(original.0, handle).is_err() {
            self.recycler.put_back(self.table.slab(), handle);
            return Err(InsertError::IndexFull);
        }
        let mut hashes = Hashes { original: original.0, alias: None };
        if let Some((hash, _)) = alias {
            if self.table.index().publish(hash, handle).is_err() {
                self.keys += hashes.count();
                self.withdraw(handle, hashes);
                return Err(InsertError::IndexFull);
            }
            hashes.alias = Some(hash);
        }
        self.keys += hashes.count();
        // Only another owner can have inserted one of the keys meanwhile.
        if self.table.owners() > 1 {
            model_fence();
            if let Err(error) = self.conflict(&original, alias.as_ref(), Some(handle)) {
                self.withdraw(handle, hashes);
                return Err(error);
            }
        }
        // Only now that it stays: of what a process leaves behind when it is killed, no two entries
        // in use have one key.
        self.stamp = self.stamp.wrapping_add(1);
        self.slab().commit(handle, self.stamp);
        // The next insert's lines are fetched while the caller goes on; those of a segment's handles
        // were long ago.
        self.recycler.peek().into_iter().for_each(|next| self.slab().prefetch_for_insert(next));
        Ok(handle)
    }

    /// Another entry than `own` that one of the keys matches.
    fn conflict<K: Key<WORDS>>(
        &self,
        original: &(u64, K),
        alias: Option<&(u64, K)>,
        own: Option<Handle>,
    ) -> Result<(), InsertError> {
        if let Some(other) = self.table.other(original.0, &original.1, own) {
            return Err(InsertError::Exists(other));
        }
        match alias.and_then(|(hash, key)| self.table.other(*hash, key, own)) {
            Some(other) => Err(InsertError::AliasExists(other)),
            None => Ok(()),
        }
    }

    /// Removes an entry, which nobody finds any more once this returns, but for lookups during a
    /// step of a resize. Those who found it may use it until they announce.
    ///
    /// # Errors
    /// Any [`RemoveError`].
    pub fn remove(&mut self, handle: Handle, hashes: Hashes) -> Result<(), RemoveError> {
        if !self.slab().is_owned(self.slab().segment_of(handle), self.number) {
            return Err(RemoveError::NotOwned);
        }
        if !self.slab().in_use(handle) {
            return Err(RemoveError::NotInUse);
        }
        let whole = self.withdraw(handle, hashes);
        self.report();
        if whole { Ok(()) } else { Err(RemoveError::WrongHash) }
    }

    /// Visits the next `entries` handles of its segments, as far as they were ever used, and
    /// removes those that `decide` says; lets removed entries be used again that every worker has
    /// let go of; and moves a part of the index, if that grows or shrinks. Call it at every burst.
    pub fn sweep(
        &mut self,
        entries: u32,
        mut decide: impl FnMut(Handle, &Entry<WORDS>) -> Sweep,
    ) -> Swept {
        // With nothing ever inserted there is nothing to come round to.
        let mut swept = Swept { wrapped: self.known() == 0, ..Swept::default() };
        let mut removals = [None; SWEEP_REMOVALS];
        let mut gathered = 0;
        self.leave_foreign_segment();
        for _ in 0..entries.min(self.known()) {
            // At the end of a round the sweep ends: no entry is visited twice.
            let Some(number) = self.cursor.0.next().or_else(|| self.next_segment()) else { break };
            self.prefetch_swept(number);
            let Some(handle) = Handle::new(number).filter(|handle| self.slab().in_use(*handle))
            else {
                continue;
            };
            let Some(entry) = self.table.entry(handle) else { continue };
            swept.visited += 1;
            if let Sweep::Remove(hashes) = decide(handle, entry) {
                self.table.prefetch(hashes.original);
                hashes.alias.into_iter().for_each(|hash| self.table.prefetch(hash));
                removals[gathered] = Some((handle, hashes));
                gathered += 1;
                swept.removed += 1;
                if gathered == SWEEP_REMOVALS {
                    self.withdraw_all(&removals);
                    gathered = 0;
                }
            }
        }
        if self.cursor.0.is_empty() && self.holdings.used_from(self.cursor.1).is_none() {
            swept.wrapped = true;
            self.cursor.1 = SegmentId(0);
        }
        self.withdraw_all(&removals[..gathered]);
        self.table.tend_index();
        self.reclaim();
        if swept.wrapped && self.slab().has_above() {
            self.holdings.leave_above_limit();
        }
        swept
    }

    /// The first handle of the next segment.
    fn next_segment(&mut self) -> Option<u32> {
        let (id, handles) = self.holdings.used_from(self.cursor.1)?;
        self.cursor = (handles, SegmentId(id.0 + 1));
        self.cursor.0.next()
    }

    /// The cursor's segment may have been given back since the last sweep, and be another's now.
    fn leave_foreign_segment(&mut self) {
        let segment = Handle::new(self.cursor.0.start).map(|next| self.slab().segment_of(next));
        if segment.is_some_and(|id| !self.slab().is_owned(id, self.number)) {
            self.cursor.0 = 0..0;
        }
    }

    fn prefetch_swept(&self, from: u32) {
        let ahead = Handle::new(from + SWEEP_AHEAD);
        ahead.into_iter().for_each(|handle| self.table.prefetch_entry(handle));
    }

    fn withdraw_all(&mut self, removals: &[Option<(Handle, Hashes)>]) {
        for (handle, hashes) in removals.iter().flatten() {
            self.withdraw(*handle, *hashes);
        }
    }

    /// Lets removed entries be used again that every worker has let go of. [`Self::sweep`] does
    /// it too, and so does an insert that finds nothing free.
    #[inline]
    pub fn reclaim(&mut self) {
        if self.recycler.queued() > 0 {
            self.release_removed();
        }
    }

    fn release_removed(&mut self) {
        self.recycler.advance(self.table.slab());
        for _ in 0..RELEASED_AT_ONCE {
            let Some(handle) = self.recycler.take(self.table.slab()) else { break };
            self.holdings.release(handle);
        }
        self.report();
    }

    /// The handle for the next insert; waits for nobody.
    fn take_handle(&mut self) -> Option<Handle> {
        if let Some(handle) = self.recycler.take(self.table.slab()) {
            return Some(handle);
        }
        let Some(handle) = self.holdings.peek() else {
            self.recycler.advance(self.table.slab());
            return self.recycler.take(self.table.slab());
        };
        self.holdings.take(handle);
        Some(handle)
    }

    /// Clears the slots of an entry and retires it. False when a slot was not found; then the
    /// slot that is left points to whatever has the handle next, which is not what is looked for
    /// under its hash, so the handle can be used again all the same.
    fn withdraw(&mut self, handle: Handle, hashes: Hashes) -> bool {
        let index = self.table.index();
        // Before the slots are cleared, so that a process that is killed meanwhile leaves no entry
        // that seems to be in use and cannot be found.
        self.recycler.retire(self.table.slab(), handle);
        self.slab().prefetch_for_release(handle);
        let original = index.withdraw(hashes.original, handle);
        let alias = hashes.alias.is_none_or(|hash| index.withdraw(hash, handle));
        self.keys = self.keys.saturating_sub(hashes.count());
        for found in [original, alias] {
            if !found {
                self.table.counters(self.number).slots_lost.increment();
            }
        }
        original && alias
    }

    fn report(&self) {
        let counters = self.table.counters(self.number);
        let free = self.holdings.free() as usize + self.recycler.queued();
        counters.occupancy(self.known() as usize - free, self.recycler.waiting());
        counters.holdings(self.holdings.entries().into(), self.keys);
    }
}
