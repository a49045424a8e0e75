//! The table: what every thread may do with it.

use std::ops::Range;
use std::sync::Arc;

use crate::arch::{Compare, Path, Portable, prefetch};
use crate::entry::{CAPACITY_MAX, Entry, Handle, Key};
use crate::error::SetupError;
use crate::index::Index;
use crate::memory::{Array, Carver, Memory, Zeroable, array_bytes};
use crate::owner::Owner;
use crate::quiescence::Quiescence;
use crate::statistics::{Counters, Statistics};
use crate::sync::{AtomicU32, Ordering, fence};

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

// SAFETY: an `AtomicU32` is valid when all its bytes are zero, and needs no drop.
unsafe impl Zeroable for AtomicU32 {
    #[cfg(loom)]
    fn zeroed() -> Self {
        Self::new(0)
    }
}

/// One owner's part.
struct Part {
    capacity: u32,
    counters: Counters,
}

/// Flows of `WORDS` 64-bit words each, found by hash and key.
pub struct Table<const WORDS: usize> {
    index: Index,
    /// Entry 0 is no entry.
    entries: Array<Entry<WORDS>>,
    /// By handle: odd while the entry is in use; grows with every insert and removal.
    states: Array<AtomicU32>,
    parts: Box<[Part]>,
    path: Path,
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

    /// Memory that a table needs, in bytes: for each entry its words, 4 bytes of state and 36.6
    /// bytes of index, which two keys for each entry fill to one half. A further 4 bytes for each
    /// entry lie in the heap.
    ///
    /// # Errors
    /// [`SetupError::ZeroCapacity`], [`SetupError::CapacityTooLarge`].
    pub fn memory_bytes(capacity: usize) -> Result<usize, SetupError> {
        let () = Self::WHOLE_LINES;
        match capacity {
            0 => Err(SetupError::ZeroCapacity),
            1..=CAPACITY_MAX => Ok(Index::memory_bytes(capacity)
                + array_bytes::<Entry<WORDS>>(capacity + 1)
                + array_bytes::<AtomicU32>(capacity + 1)),
            _ => Err(SetupError::CapacityTooLarge { capacity, most: CAPACITY_MAX }),
        }
    }

    /// An empty table of `capacity` entries, 1 to 2^28 - 1, split evenly among `owners` owners,
    /// one for each thread that inserts. Removed entries wait for the workers of `quiescence`,
    /// which is all who look up.
    ///
    /// # Errors
    /// Any [`SetupError`] but `NoWorkers`.
    pub fn new(
        memory: Memory,
        capacity: usize,
        owners: usize,
        quiescence: Arc<Quiescence>,
    ) -> Result<(Arc<Self>, Vec<Owner<WORDS>>), SetupError> {
        Self::with_path(memory, capacity, owners, quiescence, Path::best())
    }

    /// As `new`, comparing buckets in the way given.
    fn with_path(
        memory: Memory,
        capacity: usize,
        owners: usize,
        quiescence: Arc<Quiescence>,
        path: Path,
    ) -> Result<(Arc<Self>, Vec<Owner<WORDS>>), SetupError> {
        let bytes = Self::memory_bytes(capacity)?;
        if owners == 0 || owners > capacity {
            return Err(SetupError::Owners { capacity, owners });
        }
        let mut carver = Carver::new(memory, bytes)?;
        let parts = partition(capacity, owners);
        let table = Arc::new(Self {
            index: Index::new(&mut carver, capacity)?,
            entries: carver.array(capacity + 1)?,
            states: carver.array(capacity + 1)?,
            parts: parts
                .iter()
                .map(|part| Part { capacity: part.end - part.start, counters: Counters::default() })
                .collect(),
            path,
        });
        let owners = parts
            .into_iter()
            .enumerate()
            .map(|(number, handles)| {
                Owner::new(Arc::clone(&table), Arc::clone(&quiescence), number, handles)
            })
            .collect();
        Ok((table, owners))
    }

    /// Handles that entries of this table have: 1 to the capacity.
    #[must_use]
    pub fn handles(&self) -> Range<u32> {
        1..self.parts.iter().map(|part| part.capacity).sum::<u32>() + 1
    }

    /// How full the table is.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut sum = Statistics::default();
        (0..self.parts.len())
            .filter_map(|owner| self.statistics_of(owner))
            .for_each(|part| sum.add(part));
        sum
    }

    /// How full one owner's part is; `None` if there is no such owner.
    #[must_use]
    pub fn statistics_of(&self, owner: usize) -> Option<Statistics> {
        let part = self.parts.get(owner)?;
        Some(part.counters.read(u64::from(part.capacity)))
    }

    /// Asks for the line that a lookup of `hash` reads first. Worth its while when there is other
    /// work for some 100 ns before the lookup.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// The entry with this handle, in use or not; `None` if the table has no such handle.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, handle: Handle) -> Option<&Entry<WORDS>> {
        self.entries.get(handle.position())
    }

    /// The entry under `hash` that is `key`'s.
    #[inline]
    pub fn lookup<K: Key<WORDS>>(&self, hash: u64, key: &K) -> Option<Hit<'_, K::Match, WORDS>> {
        self.index.find(hash, |handle| self.compare(handle, key))
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
            hashes.iter().for_each(|hash| self.prefetch(*hash));
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
            #[cfg(all(target_arch = "x86_64", not(loom)))]
            Path::Avx2(avx2) => unsafe { self.choose_avx2(avx2, hashes, candidates) },
            // SAFETY: the value proves that the processor has AVX-512F.
            #[cfg(all(target_arch = "x86_64", not(loom)))]
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

    #[cfg(all(target_arch = "x86_64", not(loom)))]
    #[target_feature(enable = "avx2")]
    fn choose_avx2(
        &self,
        avx2: crate::arch::vector::Avx2,
        hashes: &[u64],
        candidates: &mut [Option<Handle>],
    ) {
        self.choose(avx2, hashes, candidates);
    }

    #[cfg(all(target_arch = "x86_64", not(loom)))]
    #[target_feature(enable = "avx512f")]
    fn choose_avx512(
        &self,
        avx512: crate::arch::vector::Avx512,
        hashes: &[u64],
        candidates: &mut [Option<Handle>],
    ) {
        self.choose(avx512, hashes, candidates);
    }

    /// At most [`BURST`] in stages, each of which asks for the lines of the next: primary buckets,
    /// alternate buckets where the filter says so.
    #[inline(always)]
    fn choose<C: Compare>(&self, compare: C, hashes: &[u64], candidates: &mut [Option<Handle>]) {
        let mut overflowed = [0usize; BURST];
        let mut overflowed_count = 0;
        let hashes = &hashes[..hashes.len().min(BURST)];
        for (number, (&hash, candidate)) in hashes.iter().zip(&mut *candidates).enumerate() {
            let bucket = self.index.primary(hash);
            *candidate = bucket.first(compare.candidates(bucket, hash), hash);
            if let Some(handle) = *candidate {
                self.prefetch_entry(handle);
            } else if bucket.may_overflow(hash) {
                prefetch(self.index.alternate(hash));
                overflowed[overflowed_count] = number;
                overflowed_count += 1;
            }
        }
        for &number in &overflowed[..overflowed_count] {
            let bucket = self.index.alternate(hashes[number]);
            let found = bucket.first(compare.candidates(bucket, hashes[number]), hashes[number]);
            found.into_iter().for_each(|handle| self.prefetch_entry(handle));
            candidates[number] = found;
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
        let state = self.states.get(handle.position())?;
        let before = state.load(Ordering::Acquire);
        if before & 1 == 0 {
            return None;
        }
        let words = self.entry(handle)?.words();
        let words = std::array::from_fn(|word| words[word].load(Ordering::Relaxed));
        // With the fence in `fill`: whoever read a word of a later flow sees the state that came
        // before that word.
        fence(Ordering::Acquire);
        (state.load(Ordering::Relaxed) == before).then_some(words)
    }

    /// Calls `visit` with a snapshot of every entry in use among `handles`.
    pub fn for_each(&self, handles: Range<u32>, mut visit: impl FnMut(Handle, [u64; WORDS])) {
        let within = self.handles();
        for number in handles.start.max(within.start)..handles.end.min(within.end) {
            let Some(handle) = Handle::new(number) else { continue };
            if let Some(words) = self.snapshot(handle) {
                visit(handle, words);
            }
        }
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn counters(&self, owner: usize) -> &Counters {
        &self.parts[owner].counters
    }

    /// Whether the entry is in use. For its owner, who alone changes that.
    pub(crate) fn in_use(&self, handle: Handle) -> bool {
        let state = self.states.get(handle.position());
        state.is_some_and(|state| state.load(Ordering::Relaxed) & 1 == 1)
    }

    /// Writes the words of an entry that is not in use, then marks it as in use.
    pub(crate) fn fill(&self, handle: Handle, words: &[u64; WORDS]) {
        // With the fence in `snapshot`: the even state comes before the words.
        fence(Ordering::Release);
        for (word, value) in self.entries[handle.position()].words().iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        self.turn(handle);
    }

    /// Marks an entry as no longer in use.
    pub(crate) fn vacate(&self, handle: Handle) {
        self.turn(handle);
    }

    /// Steps the state of an entry; its owner alone does, so a load and a store suffice.
    fn turn(&self, handle: Handle) {
        let state = &self.states[handle.position()];
        state.store(state.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Another entry than `own` under this hash that is the key's.
    pub(crate) fn other<K: Key<WORDS>>(
        &self,
        hash: u64,
        key: &K,
        own: Option<Handle>,
    ) -> Option<Handle> {
        self.index.find(hash, |handle| {
            if Some(handle) == own { None } else { self.compare(handle, key).map(|hit| hit.handle) }
        })
    }
}

/// Ranges of handles, as even as can be. `owners` is not above `capacity`, which has 28 bits.
fn partition(capacity: usize, owners: usize) -> Vec<Range<u32>> {
    let start = |owner: usize| {
        let before = capacity as u64 * owner as u64 / owners as u64;
        // At most the capacity.
        before as u32 + 1
    };
    (0..owners).map(|owner| start(owner)..start(owner + 1)).collect()
}

#[cfg(all(test, not(loom)))]
#[path = "table_tests.rs"]
mod tests;
