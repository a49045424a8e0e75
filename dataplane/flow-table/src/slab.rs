//! The slab: entries that never move, in segments that owners claim and give back.
//!
//! An owner takes handles from its own segments and writes their records alone; only who owns a
//! segment is decided between owners, by compare-and-swap. A segment with no entry left in use goes
//! back, so that what one owner does not need another can have, and a table can shrink.

use std::ops::Range;

use crate::arch::prefetch;
use crate::cast::half_word;
use crate::entry::{Entry, Handle};
use crate::error::SetupError;
use crate::geometry::Geometry;
use crate::memory::{Array, Carver, Zeroable, array_bytes};
use crate::sync::{AtomicU32, Ordering, fence};

mod free;
mod recovery;

pub(crate) use free::FreeSet;

/// The number of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentId(pub(crate) u32);

/// What is known of a segment.
#[repr(C, align(32))]
pub(crate) struct Segment {
    /// The owner's number and one, or 0.
    pub(crate) owner: AtomicU32,
    /// Handles of it that were ever taken since it was claimed: the first ones.
    pub(crate) touched: AtomicU32,
    /// Handles of it that are in use, or wait to be used again.
    pub(crate) live: AtomicU32,
    /// Once the first of a list of free handles; they are kept elsewhere now.
    unused_free: AtomicU32,
    /// Neighbours in the owner's list of segments with room, as numbers and one; 0 for none.
    pub(crate) next: AtomicU32,
    pub(crate) previous: AtomicU32,
    /// Whether it is in that list.
    pub(crate) listed: AtomicU32,
    unused: AtomicU32,
}

// SAFETY: `AtomicU32`s are valid whatever their bytes are, and need no drop.
unsafe impl Zeroable for Segment {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            owner: zero(),
            touched: zero(),
            live: zero(),
            unused_free: zero(),
            next: zero(),
            previous: zero(),
            listed: zero(),
            unused: zero(),
        }
    }
}

/// The state of an entry: odd while it is in use, and then a stamp that differs from flow to flow;
/// else the handle that follows it in a chain, shifted by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(u32);

impl State {
    pub(crate) fn in_use(stamp: u32) -> Self {
        Self(stamp << 1 | 1)
    }

    pub(crate) fn is_in_use(self) -> bool {
        self.0 & 1 == 1
    }

    fn link(next: Option<Handle>) -> Self {
        Self(next.map_or(0, Handle::number) << 1)
    }

    fn next(self) -> Option<Handle> {
        if self.is_in_use() { None } else { Handle::new(self.0 >> 1) }
    }
}

/// All entries and what is known of them.
pub(crate) struct Slab<const WORDS: usize> {
    entries: Array<Entry<WORDS>>,
    /// As many as entries, or none.
    details: Array<Entry<8>>,
    states: Array<AtomicU32>,
    segments: Array<Segment>,
    /// Handles that are free.
    free: FreeSet,
    segment_bits: u32,
    /// Segments that may be claimed: the first ones.
    limit: AtomicU32,
    /// Segments up to which owners may raise the limit.
    committed: AtomicU32,
    /// Segments there has ever been memory for: records behind them are not read.
    reach: AtomicU32,
    claimed: AtomicU32,
    /// Of those, segments above the limit, which fell since: as they are given back, so fewer.
    above: AtomicU32,
}

impl<const WORDS: usize> Slab<WORDS> {
    /// Bytes that it takes of the memory.
    pub(crate) fn bytes(geometry: Geometry) -> usize {
        let most = geometry.capacity_max;
        array_bytes::<Segment>(geometry.segments(most))
            + array_bytes::<AtomicU32>(most)
            + array_bytes::<Entry<WORDS>>(most)
            + array_bytes::<Entry<8>>(geometry.detailed())
    }

    /// An empty slab, of which `capacity` entries may be used at first, and `committed` later.
    pub(crate) fn new(
        carver: &mut Carver,
        geometry: Geometry,
        capacity: usize,
        committed: usize,
    ) -> Result<Self, SetupError> {
        let slab = Self::carve(carver, geometry, geometry.segments(committed), capacity)?;
        slab.set_capacity(capacity, committed);
        Ok(slab)
    }

    /// The slab as it lies in the memory, of which so many segments and entries are zeroed first.
    /// None of it may be used before its capacity is set.
    fn carve(
        carver: &mut Carver,
        geometry: Geometry,
        segments: usize,
        entries: usize,
    ) -> Result<Self, SetupError> {
        let most = geometry.capacity_max;
        Ok(Self {
            segments: carver.array(geometry.segments(most), segments)?,
            states: carver.array(most, entries)?,
            entries: carver.array(most, entries)?,
            details: carver.array(geometry.detailed(), entries)?,
            free: FreeSet::new(geometry.segments(most), geometry.segment_bits)?,
            segment_bits: geometry.segment_bits,
            limit: AtomicU32::new(0),
            committed: AtomicU32::new(0),
            reach: AtomicU32::new(0),
            claimed: AtomicU32::new(0),
            above: AtomicU32::new(0),
        })
    }

    #[inline(always)]
    pub(crate) fn entry(&self, handle: Handle) -> Option<&Entry<WORDS>> {
        self.entries.get(handle.position())
    }

    #[inline(always)]
    pub(crate) fn detail(&self, handle: Handle) -> Option<&Entry<8>> {
        self.details.get(handle.position())
    }

    #[inline(always)]
    pub(crate) fn has_details(&self) -> bool {
        !self.details.is_empty()
    }

    pub(crate) fn prefetch_for_insert(&self, handle: Handle) {
        self.entry(handle).into_iter().for_each(prefetch);
        self.detail(handle).into_iter().for_each(prefetch);
        self.prefetch_state(handle);
    }

    /// Asks for what is written when a handle is free again.
    pub(crate) fn prefetch_for_release(&self, handle: Handle) {
        self.free.prefetch(self.segment_of(handle), self.place_of(handle));
    }

    #[inline(always)]
    pub(crate) fn prefetch_state(&self, handle: Handle) {
        self.states.get(handle.position()).into_iter().for_each(prefetch);
    }

    /// Handles there can be.
    pub(crate) fn handles_max(&self) -> u32 {
        half_word(self.entries.len())
    }

    /// Entries that may be in use.
    pub(crate) fn capacity(&self) -> u32 {
        self.end_of(SegmentId(self.limit.load(Ordering::Relaxed).saturating_sub(1)))
    }

    /// Lets so many entries be used, rounded up to whole segments, and owners raise that to
    /// `committed`. Returns what it is now.
    pub(crate) fn set_capacity(&self, capacity: usize, committed: usize) -> u32 {
        self.allow(committed.max(capacity));
        let limit = self.segments_of(capacity);
        self.limit.store(limit, Ordering::Relaxed);
        // Of a claim that goes on meanwhile it may miss one: that is one segment less for others
        // until it is given back.
        self.above.store(self.owned_from(limit), Ordering::Relaxed);
        self.capacity()
    }

    /// Lets owners raise the capacity to so many entries, for which there is memory.
    pub(crate) fn allow(&self, entries: usize) -> u32 {
        let segments = self.segments_of(entries);
        self.remember(entries);
        self.committed.store(segments, Ordering::Relaxed);
        self.end_of(SegmentId(segments - 1))
    }

    /// There has been memory for so many entries.
    pub(crate) fn remember(&self, entries: usize) {
        self.reach.fetch_max(self.segments_of(entries), Ordering::Relaxed);
    }

    /// Segments of so many entries, of which there is at least one.
    fn segments_of(&self, entries: usize) -> u32 {
        half_word(entries.clamp(1, self.entries.len()).div_ceil(1 << self.segment_bits))
    }

    /// Entries that owners may raise the capacity to.
    pub(crate) fn committed(&self) -> u32 {
        self.end_of(SegmentId(self.committed.load(Ordering::Relaxed).saturating_sub(1)))
    }

    /// Entries there has ever been memory for.
    pub(crate) fn reach(&self) -> u32 {
        self.end_of(SegmentId(self.reach.load(Ordering::Relaxed).saturating_sub(1)))
    }

    /// Records that may be read.
    pub(crate) fn records(&self) -> &[Segment] {
        let reach = self.reach.load(Ordering::Relaxed) as usize;
        &self.segments[..reach.min(self.segments.len())]
    }

    /// Whether nobody has a segment that may not be used any more.
    pub(crate) fn is_free_above_limit(&self) -> bool {
        self.owned_from(self.limit.load(Ordering::Relaxed)) == 0
    }

    /// Segments from this one on that somebody has.
    fn owned_from(&self, first: u32) -> u32 {
        let records = self.records().iter().skip(first as usize);
        half_word(records.filter(|record| record.owner.load(Ordering::Relaxed) != 0).count())
    }

    /// Whether somebody had segments above the limit when that fell, and may have some still.
    pub(crate) fn has_above(&self) -> bool {
        self.above.load(Ordering::Relaxed) > 0
    }

    /// Segments within the limit that somebody has.
    fn claimed_within(&self) -> u32 {
        let above = self.above.load(Ordering::Relaxed);
        self.claimed.load(Ordering::Relaxed).saturating_sub(above)
    }

    /// Entries of segments that nobody has claimed, those included that the table may grow by.
    pub(crate) fn unclaimed(&self) -> u32 {
        let claimed = self.claimed_within();
        let most = self.limit.load(Ordering::Relaxed).max(self.committed.load(Ordering::Relaxed));
        (most.saturating_sub(claimed) << self.segment_bits).min(self.handles_max())
    }

    #[inline(always)]
    pub(crate) fn segment(&self, id: SegmentId) -> &Segment {
        &self.segments[id.0 as usize]
    }

    #[inline(always)]
    pub(crate) fn segment_of(&self, handle: Handle) -> SegmentId {
        SegmentId((handle.number() - 1) >> self.segment_bits)
    }

    pub(crate) fn free(&self) -> &FreeSet {
        &self.free
    }

    /// The handle at a place of a segment.
    pub(crate) fn handle_at(&self, id: SegmentId, place: u32) -> Option<Handle> {
        Handle::new(self.start_of(id) + place)
    }

    /// The place of a handle in its segment.
    pub(crate) fn place_of(&self, handle: Handle) -> u32 {
        (handle.number() - 1) & ((1 << self.segment_bits) - 1)
    }

    /// The first handle of a segment.
    pub(crate) fn start_of(&self, id: SegmentId) -> u32 {
        (id.0 << self.segment_bits) + 1
    }

    /// Entries up to the end of a segment.
    fn end_of(&self, id: SegmentId) -> u32 {
        ((id.0 + 1) << self.segment_bits).min(self.handles_max())
    }

    /// Entries of a segment.
    pub(crate) fn len_of(&self, id: SegmentId) -> u32 {
        self.end_of(id) - (id.0 << self.segment_bits)
    }

    /// Whether a segment's entries may be taken.
    pub(crate) fn is_within_limit(&self, id: SegmentId) -> bool {
        id.0 < self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn is_owned(&self, id: SegmentId, owner: usize) -> bool {
        let record = self.segments.get(id.0 as usize);
        record.is_some_and(|record| record.owner.load(Ordering::Relaxed) == half_word(owner) + 1)
    }

    /// The handles of every segment that were ever taken since it was claimed.
    pub(crate) fn touched(&self) -> impl Iterator<Item = Range<u32>> {
        self.records().iter().zip(0..).map(|(record, number)| {
            let start = self.start_of(SegmentId(number));
            start..start + record.touched.load(Ordering::Relaxed)
        })
    }

    /// Claims a segment for an owner; raises the limit if three quarters are claimed already.
    pub(crate) fn claim(&self, owner: usize) -> Option<SegmentId> {
        self.raise_limit();
        let limit = self.limit.load(Ordering::Relaxed);
        if self.claimed_within() >= limit {
            return None;
        }
        let order = (Ordering::Acquire, Ordering::Relaxed);
        let claimed = self.records().iter().take(limit as usize).position(|record| {
            record.owner.load(Ordering::Relaxed) == 0
                && record.owner.compare_exchange(0, half_word(owner) + 1, order.0, order.1).is_ok()
        })?;
        self.claimed.fetch_add(1, Ordering::Relaxed);
        Some(SegmentId(half_word(claimed)))
    }

    fn raise_limit(&self) {
        let (limit, claimed) = (self.limit.load(Ordering::Relaxed), self.claimed_within());
        if claimed >= limit / 4 * 3 {
            let raised = limit.saturating_mul(2).min(self.committed.load(Ordering::Relaxed));
            if raised > limit {
                let order = Ordering::Relaxed;
                let _ = self.limit.compare_exchange(limit, raised, order, order);
            }
        }
    }

    /// Gives a segment back, none of whose entries is in use.
    pub(crate) fn give_back(&self, id: SegmentId) {
        let record = self.segment(id);
        record.touched.store(0, Ordering::Relaxed);
        self.free.clear(id);
        self.claimed.fetch_sub(1, Ordering::Relaxed);
        if !self.is_within_limit(id) {
            let fewer = |above: u32| above.checked_sub(1);
            let _ = self.above.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        }
        record.owner.store(0, Ordering::Release);
    }

    pub(crate) fn state(&self, handle: Handle) -> State {
        let state = self.states.get(handle.position());
        State(state.map_or(0, |state| state.load(Ordering::Relaxed)))
    }

    pub(crate) fn in_use(&self, handle: Handle) -> bool {
        self.state(handle).is_in_use()
    }

    /// Writes the words of an entry that is not in use.
    pub(crate) fn fill(&self, handle: Handle, words: &[u64; WORDS]) {
        // With the fence in `snapshot`: the old state comes before the words.
        fence(Ordering::Release);
        for (word, value) in self.entries[handle.position()].words().iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        if let Some(detail) = self.detail(handle) {
            detail.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Marks an entry that is filled as in use: from here on it outlives the process.
    pub(crate) fn commit(&self, handle: Handle, stamp: u32) {
        self.states[handle.position()].store(State::in_use(stamp).0, Ordering::Release);
    }

    /// Marks an entry as no longer in use, and links it to another in a chain.
    pub(crate) fn link(&self, handle: Handle, next: Option<Handle>) {
        self.states[handle.position()].store(State::link(next).0, Ordering::Release);
    }

    /// What follows an entry that is not in use.
    pub(crate) fn next(&self, handle: Handle) -> Option<Handle> {
        self.state(handle).next()
    }

    /// See [`crate::Table::snapshot`].
    pub(crate) fn snapshot(&self, handle: Handle) -> Option<[u64; WORDS]> {
        let state = self.states.get(handle.position())?;
        let before = State(state.load(Ordering::Acquire));
        if !before.is_in_use() {
            return None;
        }
        let words = self.entry(handle)?.words();
        let words = std::array::from_fn(|word| words[word].load(Ordering::Relaxed));
        // With the fence in `fill`: whoever read a word of a later flow sees the state that came
        // before that word.
        fence(Ordering::Acquire);
        (State(state.load(Ordering::Relaxed)) == before).then_some(words)
    }
}
