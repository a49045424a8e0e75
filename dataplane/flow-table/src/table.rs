//! The table: what every thread may do with it.

use std::ops::Range;
use std::sync::Arc;

use crate::arch::{Compare, Path, Portable, prefetch};
use crate::cast::index;
use crate::entry::{Entry, Handle, Key};
use crate::error::SetupError;
use crate::geometry::{Geometry, Regions};
use crate::header::Header;
use crate::index::{Buckets, FILL_LEAST_PERCENT, FILL_MOST_PERCENT, GROUP_SLOTS, Index, Overflow};
use crate::memory::{Array, Carver, Memory, Zeroable, array_bytes};
use crate::owner::Owner;
use crate::quiescence::Quiescence;
use crate::shape::Shape;
use crate::slab::Slab;
use crate::statistics::{Counters, Statistics};
use crate::sync::{AtomicU32, AtomicU64};

/// Lookups that are under way at once in [`Table::lookup_burst`].
pub const BURST: usize = 32;

/// An entry that a lookup found.
#[derive(Debug)]
pub struct Hit<'t, M, const WORDS: usize> {
    /// Which one it is.
    pub handle: Handle,
    /// Its words. They are this flow's until the worker next announces; the removal of the entry
    /// may have begun meanwhile.
    pub entry: &'t Entry<WORDS>,
    /// What [`Key::matches`] told.
    pub matched: M,
}

impl<M: Copy, const WORDS: usize> Clone for Hit<'_, M, WORDS> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Copy, const WORDS: usize> Copy for Hit<'_, M, WORDS> {}

// SAFETY: an `AtomicU32` is valid whatever its bytes are, and needs no drop.
unsafe impl Zeroable for AtomicU32 {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        Self::new(0)
    }
}

/// Flows of `WORDS` 64-bit words each, found by hash and key.
pub struct Table<const WORDS: usize> {
    pub(crate) header: Array<Header>,
    pub(crate) index: Index,
    pub(crate) slab: Slab<WORDS>,
    /// By owner.
    pub(crate) counters: Box<[Counters]>,
    pub(crate) geometry: Geometry,
    pub(crate) path: Path,
}

impl<const WORDS: usize> std::fmt::Debug for Table<WORDS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("words", &WORDS)
            .field("path", &self.path)
            .field("statistics", &self.statistics())
            .finish_non_exhaustive()
    }
}

impl<const WORDS: usize> Table<WORDS> {
    const WHOLE_LINES: () =
        assert!(WORDS > 0 && WORDS.is_multiple_of(8), "entries are whole lines");

    /// Address range that a table of this shape needs, in bytes. What is used of it at first is for
    /// each entry of the capacity its words, 4 bytes of state and 13 bytes of index for one key.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn memory_bytes(shape: &Shape) -> Result<usize, SetupError> {
        let () = Self::WHOLE_LINES;
        shape.check()?;
        Ok(Self::bytes(Geometry::of(shape)))
    }

    pub(crate) fn bytes(geometry: Geometry) -> usize {
        let halves = 2 * Index::half_bytes(geometry.groups_max());
        array_bytes::<Header>(1) + Slab::<WORDS>::bytes(geometry) + halves
    }

    /// What of that must be there, all zero, for a table of this shape to hold so many entries.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn regions(shape: &Shape, entries: usize) -> Result<Regions, SetupError> {
        shape.check()?;
        Ok(Geometry::of(shape).regions::<WORDS>(entries))
    }

    /// What of its memory must be there for this table to hold so many entries: see
    /// [`Self::commit`].
    #[must_use]
    pub fn regions_of(&self, entries: usize) -> Regions {
        self.geometry.regions::<WORDS>(entries)
    }

    /// An empty table and its owners, one for each thread that inserts. Removed entries wait for
    /// the workers of `quiescence`, which is all who look up.
    ///
    /// # Errors
    /// Any [`SetupError`] but `NoWorkers`.
    pub fn new(
        memory: Memory,
        shape: Shape,
        quiescence: Arc<Quiescence>,
    ) -> Result<(Arc<Self>, Vec<Owner<WORDS>>), SetupError> {
        Self::with_path(memory, shape, quiescence, Path::best())
    }

    /// As `new`, comparing buckets in the way given.
    fn with_path(
        memory: Memory,
        shape: Shape,
        quiescence: Arc<Quiescence>,
        path: Path,
    ) -> Result<(Arc<Self>, Vec<Owner<WORDS>>), SetupError> {
        let mut carver = Carver::new(memory, Self::memory_bytes(&shape)?)?;
        let geometry = Geometry::of(&shape);
        let (groups, groups_max) = (Index::groups_for(shape.capacity), geometry.groups_max());
        let header: Array<Header> = carver.array(1, 1)?;
        let table = Self {
            slab: Slab::new(&mut carver, geometry, shape.capacity, shape.committed)?,
            index: Index::new(&mut carver, groups, groups_max, Arc::clone(&quiescence))?,
            header,
            counters: (0..shape.owners).map(|_| Counters::default()).collect(),
            geometry,
            path,
        };
        table.note_capacity();
        table.header[0].note_groups(0, groups);
        table.header[0].begin(WORDS, geometry, shape.owners);
        Ok(table.with_owners(&quiescence))
    }

    pub(crate) fn with_owners(
        self,
        quiescence: &Arc<Quiescence>,
    ) -> (Arc<Self>, Vec<Owner<WORDS>>) {
        let table = Arc::new(self);
        let owners = (0..table.counters.len())
            .map(|number| Owner::new(Arc::clone(&table), Arc::clone(quiescence), number))
            .collect();
        (table, owners)
    }

    /// Handles that entries of this table can have.
    #[must_use]
    pub fn handles(&self) -> Range<u32> {
        1..self.slab.handles_max() + 1
    }

    /// Entries that there may be now.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.slab.capacity()
    }

    /// Lets so many entries be, of which there can be at most [`Shape::capacity_max`]; and lets
    /// owners double that by themselves when three quarters are claimed, up to `committed`, for
    /// which there must be memory. Rounds up to whole segments and returns what came of it.
    ///
    /// Nothing is removed by a lower capacity: nobody inserts into what is above it, and its
    /// memory comes free with the last entry there.
    pub fn set_capacity(&self, capacity: usize, committed: usize) -> u32 {
        let capacity = self.slab.set_capacity(capacity, committed);
        self.note_capacity();
        capacity
    }

    /// Lets owners raise the capacity to so many entries by themselves, now that their memory is
    /// there ([`Self::regions_of`]). Rounds up to whole segments and returns what came of it.
    pub fn commit(&self, entries: usize) -> u32 {
        let committed = self.slab.allow(entries);
        self.note_capacity();
        committed
    }

    /// Entries that owners may raise the capacity to.
    #[must_use]
    pub fn committed(&self) -> u32 {
        self.slab.committed()
    }

    /// Entries there has ever been memory for. The index may use as much of its own as so many need,
    /// also when the capacity is lower by now.
    #[must_use]
    pub fn reached(&self) -> u32 {
        self.slab.reach()
    }

    /// Notes for the next process how far the table has grown. Whoever may take it over finds what
    /// was noted last.
    pub fn note_capacity(&self) {
        self.header[0].note_size(self.slab.capacity(), self.slab.reach());
    }

    /// Whether no entry is left above the capacity, so that the memory there may be given back: once
    /// a grace period has passed, since an owner may have begun a claim before the capacity fell.
    #[must_use]
    pub fn is_free_above_capacity(&self) -> bool {
        self.slab.is_free_above_limit()
    }

    /// How full the table is.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut sum = Statistics::default();
        self.counters.iter().for_each(|part| sum.add(part.read(0)));
        Statistics { capacity: self.capacity().into(), ..sum }
    }

    /// How full one owner's part is, its share of what nobody has claimed included; `None` if there
    /// is no such owner. Inlined: who asks at every tick wants few of the figures.
    #[inline(always)]
    #[must_use]
    pub fn statistics_of(&self, owner: usize) -> Option<Statistics> {
        let part = self.counters.get(owner)?;
        let share = match self.slab.unclaimed() {
            0 => 0,
            unclaimed => u64::from(unclaimed) / self.counters.len() as u64,
        };
        Some(part.read(share))
    }

    /// Slots of the index, which holds one or two keys for each entry.
    #[must_use]
    pub fn index_slots(&self) -> usize {
        self.index.slots()
    }

    /// Whether the index is being moved, to grow or to shrink.
    #[must_use]
    pub fn is_resizing(&self) -> bool {
        self.index.resizes()
    }

    /// Moves a group of the index if it is to grow or shrink. For owners, who do it as they insert
    /// and sweep.
    pub(crate) fn tend_index(&self) {
        if self.index.resizes() {
            self.index.step();
            return;
        }
        let keys = index(self.counters.iter().map(Counters::keys).sum());
        let slots = self.index.slots();
        let is_full = keys * 100 > slots * FILL_MOST_PERCENT;
        if !is_full && keys * 100 >= slots * FILL_LEAST_PERCENT {
            return;
        }
        let target = self.groups_wanted(keys);
        if target * GROUP_SLOTS != slots && (target * GROUP_SLOTS > slots) == is_full {
            self.index.begin_resize(target, self.note());
        }
    }

    /// Begins to move the index to so many groups. For models, which cannot fill it first.
    #[cfg(any(loom, shuttle))]
    pub fn begin_resize(&self, groups: usize) -> bool {
        self.index.begin_resize(groups, self.note())
    }

    /// For a process that finds the table after this one.
    fn note(&self) -> impl FnOnce(usize, usize) {
        |half, groups| self.header[0].note_groups(half, groups)
    }

    /// Groups for half as many keys again, or for one key for each entry there may be, as far as there
    /// is memory.
    fn groups_wanted(&self, keys: usize) -> usize {
        let keys = (keys + keys / 2).max(self.capacity() as usize);
        Index::groups_for(keys).min(self.groups_committed())
    }

    /// Groups that there is memory for.
    pub(crate) fn groups_committed(&self) -> usize {
        self.geometry.groups_of(self.slab.reach() as usize)
    }

    /// Asks for the line that a lookup of `hash` reads first. Worth its while when there is other
    /// work for some 100 ns before the lookup.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(&[hash]);
    }

    /// Asks for what an insert under `hash` writes beside the line that [`Self::prefetch`] has asked
    /// for, if that has come: the hash's second line, where the first is so full that the insert may
    /// go there. A lookup does not ask for it, since not every miss is followed by an insert.
    #[inline(always)]
    pub fn prefetch_for_insert(&self, hash: u64) {
        self.index.prefetch_for_insert(hash);
    }

    /// The same as [`Self::prefetch`] for many hashes.
    #[inline(always)]
    pub fn prefetch_burst(&self, hashes: &[u64]) {
        self.index.prefetch(hashes);
    }

    /// The entry with this handle, in use or not; `None` if the table has no such handle.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, handle: Handle) -> Option<&Entry<WORDS>> {
        self.slab.entry(handle)
    }

    /// The second line of an entry, zero when it is inserted; `None` if the table has no details.
    #[inline(always)]
    #[must_use]
    pub fn details(&self, handle: Handle) -> Option<&[AtomicU64; 8]> {
        self.slab.detail(handle).map(Entry::words)
    }

    /// Whether entries have a second line.
    #[inline(always)]
    #[must_use]
    pub fn has_details(&self) -> bool {
        self.slab.has_details()
    }

    /// Asks for what the removal of an entry reads and writes beside the entry and the index line of
    /// its key: some time before [`Owner::remove`], for a whole burst.
    #[inline(always)]
    pub fn prefetch_for_remove(&self, handle: Handle) {
        self.slab.prefetch_state(handle);
    }

    /// Asks for an entry's second line, if there is one.
    #[inline(always)]
    pub fn prefetch_details(&self, handle: Handle) {
        self.slab.detail(handle).into_iter().for_each(prefetch);
    }

    /// The entry under `hash` that is `key`'s.
    #[inline]
    pub fn lookup<K: Key<WORDS>>(&self, hash: u64, key: &K) -> Option<Hit<'_, K::Match, WORDS>> {
        self.index.find(self.path, hash, |handle| self.compare(handle, key))
    }

    /// Looks up every key under its hash, in as many as the shortest slice has, and overlaps
    /// their waits for memory.
    #[inline]
    pub fn lookup_burst<'t, K: Key<WORDS>>(
        &'t self,
        hashes: &[u64],
        keys: &[K],
        hits: &mut [Option<Hit<'t, K::Match, WORDS>>],
    ) {
        let bursts = hashes.chunks(BURST).zip(keys.chunks(BURST)).zip(hits.chunks_mut(BURST));
        for ((hashes, keys), hits) in bursts {
            let mut candidates = [None; BURST];
            self.prefetch_burst(hashes);
            self.candidates(hashes, &mut candidates);
            for (((hash, key), candidate), hit) in hashes.iter().zip(keys).zip(candidates).zip(hits)
            {
                *hit = self.confirm(*hash, key, candidate);
            }
        }
    }

    /// The first half of [`Self::lookup_burst`]: finds the entry that each hash's key most likely
    /// has, and asks for the entries' lines. Ask for the index lines some time before
    /// ([`Self::prefetch`]), and [`Self::confirm`] later: a caller that works on one packet after
    /// the other meanwhile waits for nothing.
    ///
    /// Takes as many hashes as both slices have, at most [`BURST`].
    #[inline]
    pub fn candidates(&self, hashes: &[u64], candidates: &mut [Option<Handle>]) {
        match self.path {
            Path::Portable => self.choose(Portable, hashes, candidates),
            // SAFETY: the value proves that the processor has AVX2.
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            Path::Avx2(avx2) => unsafe { self.choose_avx2(avx2, hashes, candidates) },
            // SAFETY: the value proves that the processor has AVX-512F.
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            Path::Avx512(avx512) => unsafe { self.choose_avx512(avx512, hashes, candidates) },
        }
    }

    /// The second half: the entry under `hash` that is `key`'s, given what [`Self::candidates`]
    /// found. An entry that was inserted since may be missed, as if the lookup had been then.
    #[inline(always)]
    pub fn confirm<K: Key<WORDS>>(
        &self,
        hash: u64,
        key: &K,
        candidate: Option<Handle>,
    ) -> Option<Hit<'_, K::Match, WORDS>> {
        match self.compare(candidate?, key) {
            // A candidate that is another flow's is as rare as 36 equal hash bits; then all
            // candidates are tried.
            None => self.lookup(hash, key),
            found => found,
        }
    }

    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    #[target_feature(enable = "avx2")]
    fn choose_avx2(
        &self,
        avx2: crate::arch::vector::Avx2,
        hashes: &[u64],
        candidates: &mut [Option<Handle>],
    ) {
        self.choose(avx2, hashes, candidates);
    }

    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    #[target_feature(enable = "avx512f")]
    fn choose_avx512(
        &self,
        avx512: crate::arch::vector::Avx512,
        hashes: &[u64],
        candidates: &mut [Option<Handle>],
    ) {
        self.choose(avx512, hashes, candidates);
    }

    #[inline(always)]
    fn choose<C: Compare>(&self, compare: C, hashes: &[u64], candidates: &mut [Option<Handle>]) {
        let count = hashes.len().min(candidates.len()).min(BURST);
        let (hashes, candidates) = (&hashes[..count], &mut candidates[..count]);
        let view = self.index.view();
        match self.index.still(view) {
            Some(still) => self.choose_in(still, compare, hashes, candidates),
            None => self.choose_in(self.index.moving(view), compare, hashes, candidates),
        }
        if !self.index.is_settled_since(view) {
            self.choose_again(hashes, candidates);
        }
    }

    /// At most [`BURST`] in stages, each of which asks for the lines of the next: primary buckets,
    /// alternate buckets where the filter says so, and whatever else for the few that strayed.
    #[inline(always)]
    fn choose_in<C: Compare>(
        &self,
        buckets: impl Buckets,
        compare: C,
        hashes: &[u64],
        candidates: &mut [Option<Handle>],
    ) {
        // A bit for each hash whose key may be beside its primary bucket, and beside both.
        let (mut overflowed, mut strayed) = (0u32, 0u32);
        for (number, (&hash, candidate)) in hashes.iter().zip(&mut *candidates).enumerate() {
            let bucket = buckets.primary(hash);
            *candidate = bucket.first(compare.candidates(bucket, hash), hash);
            if let Some(handle) = *candidate {
                self.prefetch_entry(handle);
            } else if let Some(overflow) = bucket.overflow(hash) {
                prefetch(buckets.alternate(hash));
                overflowed |= 1 << number;
                strayed |= u32::from(overflow == Overflow::Stray) << number;
            }
        }
        while overflowed != 0 {
            let number = overflowed.trailing_zeros() as usize;
            overflowed &= overflowed - 1;
            let hash = hashes[number];
            let bucket = buckets.alternate(hash);
            let found = bucket.first(compare.candidates(bucket, hash), hash);
            let is_elsewhere = found.is_none() && strayed >> number & 1 != 0;
            candidates[number] =
                if is_elsewhere { self.index.find(self.path, hash, Some) } else { found };
            candidates[number].into_iter().for_each(|handle| self.prefetch_entry(handle));
        }
    }

    /// Looks again for what was missed while the index moved.
    #[cold]
    fn choose_again(&self, hashes: &[u64], candidates: &mut [Option<Handle>]) {
        for (hash, candidate) in hashes.iter().zip(candidates) {
            if candidate.is_none() {
                *candidate = self.index.find(self.path, *hash, Some);
            }
        }
    }

    #[inline(always)]
    fn compare<K: Key<WORDS>>(&self, handle: Handle, key: &K) -> Option<Hit<'_, K::Match, WORDS>> {
        let entry = self.entry(handle)?;
        key.matches(entry).map(|matched| Hit { handle, entry, matched })
    }

    /// Asks for the first line of an entry.
    #[inline(always)]
    pub(crate) fn prefetch_entry(&self, handle: Handle) {
        self.entry(handle).into_iter().for_each(prefetch);
    }

    /// A copy of an entry's words, for threads that announce nothing, such as one that dumps.
    /// `None` while the entry is not in use, or if it was removed or replaced during the copy.
    ///
    /// All words are of the same flow. Workers may change words between the reads of two of them,
    /// so two words that change together may be of different instants.
    #[must_use]
    pub fn snapshot(&self, handle: Handle) -> Option<[u64; WORDS]> {
        self.slab.snapshot(handle)
    }

    /// Calls `visit` with a snapshot of every entry in use among `handles`.
    pub fn for_each(&self, handles: Range<u32>, mut visit: impl FnMut(Handle, [u64; WORDS])) {
        for touched in self.slab.touched() {
            for number in handles.start.max(touched.start)..handles.end.min(touched.end) {
                let Some(handle) = Handle::new(number) else { continue };
                if let Some(words) = self.snapshot(handle) {
                    visit(handle, words);
                }
            }
        }
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn slab(&self) -> &Slab<WORDS> {
        &self.slab
    }

    pub(crate) fn owners(&self) -> usize {
        self.counters.len()
    }

    pub(crate) fn counters(&self, owner: usize) -> &Counters {
        &self.counters[owner]
    }

    /// Another entry than `own` under this hash that is the key's.
    pub(crate) fn other<K: Key<WORDS>>(
        &self,
        hash: u64,
        key: &K,
        own: Option<Handle>,
    ) -> Option<Handle> {
        self.index.find(self.path, hash, |handle| {
            if Some(handle) == own { None } else { self.compare(handle, key).map(|hit| hit.handle) }
        })
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[path = "table_tests.rs"]
mod tests;
