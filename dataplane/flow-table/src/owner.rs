//! The owner of a range of handles: it alone inserts, sweeps and removes their entries.

use std::ops::Range;
use std::sync::Arc;

use crate::entry::{Entry, Handle, Key};
use crate::error::{InsertError, RemoveError};
use crate::quiescence::Quiescence;
use crate::recycler::Recycler;
use crate::sync::model_fence;
use crate::table::Table;

/// How far ahead of itself a sweep asks for entries.
const SWEEP_AHEAD: u32 = 16;

/// Removals that a sweep gathers, so that their index lines arrive together.
const SWEEP_REMOVALS: usize = 16;

/// The hashes that an entry is found under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// The hash of its original key.
    pub original: u64,
    /// The hash of its alias, if it was inserted with one.
    pub alias: Option<u64>,
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
    /// Whether it passed the end of the owner's part, and began again at the first entry.
    pub wrapped: bool,
}

/// The one who inserts, sweeps and removes entries of a range of handles.
pub struct Owner<const WORDS: usize> {
    table: Arc<Table<WORDS>>,
    quiescence: Arc<Quiescence>,
    number: usize,
    handles: Range<u32>,
    /// The first handle that was never used.
    unused: u32,
    recycler: Recycler,
    /// Where the next sweep begins.
    cursor: u32,
}

impl<const WORDS: usize> std::fmt::Debug for Owner<WORDS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner")
            .field("number", &self.number)
            .field("handles", &self.handles)
            .finish_non_exhaustive()
    }
}

impl<const WORDS: usize> Owner<WORDS> {
    pub(crate) fn new(
        table: Arc<Table<WORDS>>,
        quiescence: Arc<Quiescence>,
        number: usize,
        handles: Range<u32>,
    ) -> Self {
        let recycler = Recycler::new(handles.len(), quiescence.workers());
        let (unused, cursor) = (handles.start, handles.start);
        Self { table, quiescence, number, handles, unused, recycler, cursor }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Arc<Table<WORDS>> {
        &self.table
    }

    /// The handles it owns.
    #[must_use]
    pub fn handles(&self) -> Range<u32> {
        self.handles.clone()
    }

    /// Entries of its part that were ever used, which is what a sweep goes round.
    #[must_use]
    pub fn known(&self) -> u32 {
        self.unused - self.handles.start
    }

    /// Adds an entry of these words, found by `original` and, if given, by `alias`, each a key
    /// with its hash; both keys must match the words. When it returns, every thread that learns
    /// of it finds the entry under both.
    ///
    /// # Errors
    /// Any [`InsertError`]; then no entry was added.
    pub fn insert<K: Key<WORDS>>(
        &mut self,
        original: (u64, K),
        alias: Option<(u64, K)>,
        words: &[u64; WORDS],
    ) -> Result<Handle, InsertError> {
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
        let handle = self.free_handle().ok_or(InsertError::SlabFull)?;
        self.table.fill(handle, words);
        if self.table.index().publish(original.0, handle).is_err() {
            self.table.vacate(handle);
            return Err(InsertError::IndexFull);
        }
        self.take(handle);
        let mut hashes = Hashes { original: original.0, alias: None };
        if let Some((hash, _)) = alias {
            if self.table.index().publish(hash, handle).is_err() {
                self.withdraw(handle, hashes);
                return Err(InsertError::IndexFull);
            }
            hashes.alias = Some(hash);
        }
        model_fence();
        if let Err(error) = self.conflict(&original, alias.as_ref(), Some(handle)) {
            self.withdraw(handle, hashes);
            return Err(error);
        }
        // The next insert's line is fetched while the caller goes on.
        self.peek().into_iter().for_each(|next| self.table.prefetch_entry(next));
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

    /// Removes an entry, which nobody finds any more once this returns. Those who found it before
    /// may use it until they announce.
    ///
    /// # Errors
    /// Any [`RemoveError`].
    pub fn remove(&mut self, handle: Handle, hashes: Hashes) -> Result<(), RemoveError> {
        if !self.handles.contains(&handle.number()) {
            return Err(RemoveError::NotOwned);
        }
        if !self.table.in_use(handle) {
            return Err(RemoveError::NotInUse);
        }
        let whole = self.withdraw(handle, hashes);
        self.report();
        if whole { Ok(()) } else { Err(RemoveError::WrongHash) }
    }

    /// Visits the next `entries` handles of its part, as far as they were ever used, and removes
    /// those that `decide` says; then lets removed entries be used again that every worker has
    /// let go of. Call it at every burst.
    pub fn sweep(
        &mut self,
        entries: u32,
        mut decide: impl FnMut(Handle, &Entry<WORDS>) -> Sweep,
    ) -> Swept {
        // With nothing ever inserted there is nothing to come round to.
        let mut swept = Swept { wrapped: self.unused == self.handles.start, ..Swept::default() };
        let mut removals = [None; SWEEP_REMOVALS];
        let mut gathered = 0;
        for _ in 0..entries.min(self.known()) {
            let handle = self.cursor;
            self.prefetch_swept(handle);
            self.cursor += 1;
            if self.cursor == self.unused {
                self.cursor = self.handles.start;
                swept.wrapped = true;
            }
            let Some(handle) = Handle::new(handle).filter(|handle| self.table.in_use(*handle))
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
        self.withdraw_all(&removals[..gathered]);
        self.reclaim();
        swept
    }

    fn prefetch_swept(&self, from: u32) {
        let ahead = from + SWEEP_AHEAD;
        if ahead < self.unused {
            Handle::new(ahead).into_iter().for_each(|handle| self.table.prefetch_entry(handle));
        }
    }

    fn withdraw_all(&mut self, removals: &[Option<(Handle, Hashes)>]) {
        for (handle, hashes) in removals.iter().flatten() {
            self.withdraw(*handle, *hashes);
        }
    }

    /// Lets removed entries be used again that every worker has let go of. [`Self::sweep`] does
    /// it too, and so does an insert that finds nothing free.
    pub fn reclaim(&mut self) {
        self.recycler.advance(&self.quiescence);
        self.report();
    }

    /// The handle for the next insert; waits for nobody.
    fn free_handle(&mut self) -> Option<Handle> {
        if self.peek().is_none() {
            self.recycler.advance(&self.quiescence);
        }
        self.peek()
    }

    /// A used handle rather than one that was never used: its memory is there already.
    fn peek(&self) -> Option<Handle> {
        let unused = (self.unused < self.handles.end).then_some(self.unused);
        Handle::new(self.recycler.peek().or(unused)?)
    }

    /// Takes what `peek` showed.
    fn take(&mut self, handle: Handle) {
        if handle.number() == self.unused {
            self.unused += 1;
        } else {
            self.recycler.take();
        }
    }

    /// Clears the slots of an entry and retires it. False when a slot was not found; then the
    /// slot that is left points to whatever has the handle next, which is not what is looked for
    /// under its hash, so the handle can be used again all the same.
    fn withdraw(&mut self, handle: Handle, hashes: Hashes) -> bool {
        let index = self.table.index();
        let original = index.withdraw(hashes.original, handle);
        let alias = hashes.alias.is_none_or(|hash| index.withdraw(hash, handle));
        self.table.vacate(handle);
        self.recycler.retire(handle.number());
        for found in [original, alias] {
            if !found {
                self.table.counters(self.number).slots_lost.increment();
            }
        }
        original && alias
    }

    fn report(&self) {
        let used = self.known() as usize - self.recycler.queued();
        self.table.counters(self.number).occupancy(used, self.recycler.waiting());
    }
}
