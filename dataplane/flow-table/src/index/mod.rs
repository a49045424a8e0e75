//! The index: from 36 bits of a hash to handles, in buckets of one cache line.
//!
//! A hash has a group, which is one page of 64 buckets, and in it two buckets. It goes to its
//! primary one while that is comfortably empty, else to whichever of the two holds less, and only
//! if both are full to any bucket of the group. A lookup therefore reads the primary bucket, the
//! alternate one if the primary's overflow filter says that a hash like this went there, and the
//! whole group for one key in thousands.
//!
//! The index lives in one of two halves of its memory. To grow or shrink, it is moved to the other
//! half one group after the other, by whoever inserts: see [`resize`].
//!
//! # Why a lookup cannot miss
//! A slot, once published, stays where it is until its owner clears it or its group moves. So a key
//! in its primary bucket is found there. A key elsewhere in the group was counted in the primary's
//! meta word, and its filter bit set, by one compare-and-swap *before* its slot was published; the
//! count falls, by compare-and-swap, after its slot was cleared, and the filter is emptied only by
//! the compare-and-swap that takes the count from one to zero. While the key is in the group the
//! count is therefore at least one and its bit stays set, in every later value of the meta word. A
//! lookup that the insert happened before reads such a value, by coherence. What moving adds to
//! this stands in [`resize`].
//!
//! # Why two inserts of one key cannot both stay
//! Publishing swaps a slot, and the look for others that follows it loads slots and meta words,
//! all sequentially consistent. Of two inserts one published first in that total order; the other
//! one, looking after its own publishing, sees it. (A meta word that does not announce an overflow
//! was read before the overflowing insert announced, so that insert sees ours.) The check compares
//! entries, which is the caller's part: see [`Index::find`].

mod bucket;
mod layout;
mod recovery;
mod resize;

use std::sync::Arc;

pub(crate) use bucket::{Bucket, Overflow};
pub(crate) use layout::View;
use layout::{LayoutWords, Place, Whereabouts};
use resize::Mover;
pub(crate) use resize::Step;

use crate::arch::{Compare, Path, Portable, prefetch};
use crate::entry::{HANDLE_BITS, Handle};
use crate::error::SetupError;
use crate::memory::{Array, Carver, array_bytes};
use crate::quiescence::Quiescence;
use crate::sync::{Ordering, fence, model_fence};
use bucket::{SLOTS, slot_of};

/// Slots in use up to which a primary bucket takes what comes. With 5 of 7, one key in eight
/// overflows and one in 3,000 strays at [`FILL_MOST`].
const COMFORTABLE: usize = 5;

/// Buckets of a group: a page of them, so that both buckets of a hash share a page table entry,
/// and so many keys that no group fills long before the others. Two in a loom model, four where
/// schedules are random.
const GROUP_BUCKETS: usize = if cfg!(loom) {
    2
} else if cfg!(shuttle) {
    4
} else {
    64
};
pub(crate) const GROUP_SLOTS: usize = GROUP_BUCKETS * SLOTS;

/// The part of the slots, in percent, above which the index grows.
pub(crate) const FILL_MOST_PERCENT: usize = 70;

/// The part below which it shrinks to what its capacity asks for.
pub(crate) const FILL_LEAST_PERCENT: usize = 20;

/// The number of a group in its half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group(pub(crate) usize);

/// A group is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IndexFull;

/// All buckets.
pub(crate) struct Index {
    halves: [Array<Bucket>; 2],
    words: LayoutWords,
    mover: Mover,
}

/// A hash's two buckets, as places in its group; never the same, and a function of the bits that a
/// slot keeps, so that a slot tells both.
#[inline(always)]
fn buckets_of(hash: u64) -> (usize, usize) {
    const ODD: u64 = 0xC2B2_AE3D_27D4_EB4F;
    const BUCKET_BITS: u32 = GROUP_BUCKETS.trailing_zeros();
    let mixed = (hash >> HANDLE_BITS).wrapping_mul(ODD);
    let primary = (mixed >> (u64::BITS - BUCKET_BITS)) as usize;
    let distance = 1 + ((((mixed >> 32) & 0xffff) as usize * (GROUP_BUCKETS - 1)) >> 16);
    (primary, primary ^ distance)
}

impl Index {
    /// Groups in which `keys` fill [`FILL_MOST_PERCENT`] of the slots.
    pub(crate) const fn groups_for(keys: usize) -> usize {
        let groups = (keys * 100).div_ceil(GROUP_SLOTS * FILL_MOST_PERCENT);
        if groups == 0 { 1 } else { groups }
    }

    /// Bytes of each half, if it shall have at most so many groups.
    pub(crate) const fn half_bytes(groups_max: usize) -> usize {
        array_bytes::<Bucket>(groups_max * GROUP_BUCKETS)
    }

    /// Two halves of `groups_max` groups, of which the first `groups` of the first half are used.
    pub(crate) fn new(
        carver: &mut Carver,
        groups: usize,
        groups_max: usize,
        quiescence: Arc<Quiescence>,
    ) -> Result<Self, SetupError> {
        let buckets = groups_max * GROUP_BUCKETS;
        Ok(Self {
            halves: [carver.array(buckets, groups * GROUP_BUCKETS)?, carver.array(buckets, 0)?],
            words: LayoutWords::new(0, groups),
            mover: Mover::new(quiescence),
        })
    }

    /// Where everything is, for some lookups.
    #[inline(always)]
    pub(crate) fn view(&self) -> View {
        self.words.view()
    }

    /// Slots there are, of the half that is in use or moved from.
    pub(crate) fn slots(&self) -> usize {
        self.view().groups() * GROUP_SLOTS
    }

    #[inline(always)]
    fn group(&self, place: Place) -> &[Bucket] {
        let start = place.group.0 * GROUP_BUCKETS;
        &self.halves[place.half][start..start + GROUP_BUCKETS]
    }

    /// The buckets of a layout in which nothing moves; `None` while the index is being moved.
    #[inline(always)]
    pub(crate) fn still(&self, view: View) -> Option<Still<'_>> {
        let groups = view.groups();
        let buckets = &self.halves[view.layout.half()];
        (!view.layout.resizes()).then_some(Still { buckets, groups: groups as u64 })
    }

    /// The buckets of any layout.
    #[inline(always)]
    pub(crate) fn moving(&self, view: View) -> Moving<'_> {
        Moving { index: self, view }
    }

    /// Whether a key that was not found where `view` says, since when it was taken, is surely not
    /// in the index.
    #[inline(always)]
    pub(crate) fn is_settled_since(&self, view: View) -> bool {
        // An empty slot that was read is empty because its key has moved only if the layout, read
        // after this, says so.
        fence(Ordering::Acquire);
        !view.layout.resizes() && self.view() == view
    }

    /// Publishes `handle` under `hash`; the entry's words must be written.
    pub(crate) fn publish(&self, hash: u64, handle: Handle) -> Result<(), IndexFull> {
        let value = slot_of(hash, handle);
        let mut place = self.view().whereabouts(hash).inbound();
        loop {
            let claimed = claim(self.group(place), hash, value)?;
            model_fence();
            let now = self.view().whereabouts(hash).inbound();
            // Where the group began to move meanwhile, whoever clears the slot sees to its key.
            if now == place || !claimed.give_up(self.group(place), hash, value) {
                return Ok(());
            }
            place = now;
        }
    }

    /// Clears the slot that `publish` made. False when there is none.
    pub(crate) fn withdraw(&self, hash: u64, handle: Handle) -> bool {
        let value = slot_of(hash, handle);
        let mut whereabouts = self.view().whereabouts(hash);
        loop {
            let cleared = match whereabouts {
                Whereabouts::Settled(place) => clear(self.group(place), hash, value),
                Whereabouts::Moving(from, to) => {
                    clear(self.group(from), hash, value) || clear(self.group(to), hash, value)
                }
            };
            let now = self.view().whereabouts(hash);
            if cleared || now == whereabouts {
                return cleared;
            }
            whereabouts = now;
        }
    }

    /// The first handle under `hash` that `decide` accepts.
    #[inline]
    pub(crate) fn find<T>(
        &self,
        path: Path,
        hash: u64,
        decide: impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        match path {
            Path::Portable => self.find_by(Portable, hash, decide),
            // SAFETY: the value proves that the processor has AVX2.
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            Path::Avx2(avx2) => unsafe { self.find_by_avx2(avx2, hash, decide) },
            // SAFETY: the value proves that the processor has AVX-512F.
            #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
            Path::Avx512(avx512) => unsafe { self.find_by_avx512(avx512, hash, decide) },
        }
    }

    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    #[target_feature(enable = "avx2")]
    fn find_by_avx2<T>(
        &self,
        avx2: crate::arch::vector::Avx2,
        hash: u64,
        decide: impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        self.find_by(avx2, hash, decide)
    }

    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    #[target_feature(enable = "avx512f")]
    fn find_by_avx512<T>(
        &self,
        avx512: crate::arch::vector::Avx512,
        hash: u64,
        decide: impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        self.find_by(avx512, hash, decide)
    }

    #[inline(always)]
    fn find_by<C: Compare, T>(
        &self,
        compare: C,
        hash: u64,
        mut decide: impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        let mut whereabouts = self.view().whereabouts(hash);
        loop {
            let mut find = |place| find(self.group(place), compare, hash, &mut decide);
            let found = match whereabouts {
                Whereabouts::Settled(place) => find(place),
                // In this order: a key is published in its new group before it leaves the old one.
                Whereabouts::Moving(from, to) => find(from).or_else(|| find(to)),
            };
            if found.is_some() {
                return found;
            }
            let now = self.view().whereabouts(hash);
            if now == whereabouts {
                return None;
            }
            whereabouts = now;
        }
    }

    /// Asks for the lines that lookups of `hashes` read first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hashes: &[u64]) {
        let view = self.view();
        match self.still(view) {
            Some(still) => hashes.iter().for_each(|hash| prefetch(still.primary(*hash))),
            None => hashes.iter().for_each(|hash| prefetch(self.moving(view).primary(*hash))),
        }
    }
}

impl Index {
    /// Asks for a hash's second bucket, where its first one is so full that an insert looks there.
    #[inline(always)]
    pub(crate) fn prefetch_for_insert(&self, hash: u64) {
        let buckets = self.moving(self.view());
        if buckets.primary(hash).has_likely(COMFORTABLE) {
            prefetch(buckets.alternate(hash));
        }
    }
}

/// The two buckets of a hash, under a layout that was read once for many lookups.
pub(crate) trait Buckets: Copy {
    /// The first bucket that a lookup reads.
    fn primary(&self, hash: u64) -> &Bucket;
    /// The second one.
    fn alternate(&self, hash: u64) -> &Bucket;
}

/// Nothing moves: a hash tells its group by one multiplication.
#[derive(Clone, Copy)]
pub(crate) struct Still<'i> {
    buckets: &'i [Bucket],
    groups: u64,
}

impl Still<'_> {
    #[inline(always)]
    fn start(&self, hash: u64) -> usize {
        View::group(hash, self.groups).0 * GROUP_BUCKETS
    }
}

impl Buckets for Still<'_> {
    #[inline(always)]
    fn primary(&self, hash: u64) -> &Bucket {
        &self.buckets[self.start(hash) + buckets_of(hash).0]
    }

    #[inline(always)]
    fn alternate(&self, hash: u64) -> &Bucket {
        &self.buckets[self.start(hash) + buckets_of(hash).1]
    }
}

/// The index is being moved: where a hash's group is depends on how far. Of the one that moves,
/// the old place.
#[derive(Clone, Copy)]
pub(crate) struct Moving<'i> {
    index: &'i Index,
    view: View,
}

impl Moving<'_> {
    #[inline(always)]
    fn group(&self, hash: u64) -> &[Bucket] {
        match self.view.whereabouts(hash) {
            Whereabouts::Settled(place) | Whereabouts::Moving(place, _) => self.index.group(place),
        }
    }
}

impl Buckets for Moving<'_> {
    #[inline(always)]
    fn primary(&self, hash: u64) -> &Bucket {
        &self.group(hash)[buckets_of(hash).0]
    }

    #[inline(always)]
    fn alternate(&self, hash: u64) -> &Bucket {
        &self.group(hash)[buckets_of(hash).1]
    }
}

/// Where a slot was published: the bucket of its group, and what the primary one counts it as.
struct Claimed {
    bucket: usize,
    overflow: Option<Overflow>,
}

impl Claimed {
    /// Clears the slot, unless somebody has. Not looked for by the primary's meta word: where the
    /// group has moved meanwhile, that has forgotten its overflows.
    fn give_up(self, group: &[Bucket], hash: u64, value: u64) -> bool {
        let cleared = group[self.bucket].clear(value);
        if cleared && let Some(overflow) = self.overflow {
            group[buckets_of(hash).0].retract(overflow);
        }
        cleared
    }
}

/// Publishes a slot somewhere in a group.
fn claim(group: &[Bucket], hash: u64, value: u64) -> Result<Claimed, IndexFull> {
    let (primary_number, alternate_number) = buckets_of(hash);
    let (primary, alternate) = (&group[primary_number], &group[alternate_number]);
    let at_home = Claimed { bucket: primary_number, overflow: None };
    let used = primary.used();
    if used < COMFORTABLE.min(SLOTS) && primary.claim(value) {
        return Ok(at_home);
    }
    if used <= alternate.used() && primary.claim(value) {
        return Ok(at_home);
    }
    primary.announce(hash, Overflow::Alternate);
    if alternate.claim(value) {
        return Ok(Claimed { bucket: alternate_number, overflow: Some(Overflow::Alternate) });
    }
    primary.retract(Overflow::Alternate);
    if primary.claim(value) {
        return Ok(at_home);
    }
    primary.announce(hash, Overflow::Stray);
    match others(hash).find(|number| group[*number].claim(value)) {
        Some(bucket) => Ok(Claimed { bucket, overflow: Some(Overflow::Stray) }),
        None => {
            primary.retract(Overflow::Stray);
            Err(IndexFull)
        }
    }
}

/// Clears a slot of this value, wherever it is in a group.
fn clear(group: &[Bucket], hash: u64, value: u64) -> bool {
    let (primary, alternate) = buckets_of(hash);
    let (primary, alternate) = (&group[primary], &group[alternate]);
    if primary.clear(value) {
        return true;
    }
    let overflow = if alternate.clear(value) {
        Overflow::Alternate
    } else if primary.overflow(hash) == Some(Overflow::Stray)
        && others(hash).any(|number| group[number].clear(value))
    {
        Overflow::Stray
    } else {
        return false;
    };
    primary.retract(overflow);
    true
}

#[inline(always)]
fn find<C: Compare, T>(
    group: &[Bucket],
    compare: C,
    hash: u64,
    decide: &mut impl FnMut(Handle) -> Option<T>,
) -> Option<T> {
    let (primary, alternate) = buckets_of(hash);
    let primary = &group[primary];
    if let Some(found) = compare.find(primary, hash, decide) {
        return Some(found);
    }
    let overflow = primary.overflow(hash)?;
    compare.find(&group[alternate], hash, decide).or_else(|| match overflow {
        Overflow::Alternate => None,
        Overflow::Stray => {
            others(hash).find_map(|number| compare.find(&group[number], hash, decide))
        }
    })
}

/// All buckets of a group but the two of this hash, from behind its alternate one on.
fn others(hash: u64) -> impl Iterator<Item = usize> {
    let (primary, alternate) = buckets_of(hash);
    let numbers = (1..GROUP_BUCKETS).map(move |step| (alternate + step) % GROUP_BUCKETS);
    numbers.filter(move |number| *number != primary)
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[path = "tests.rs"]
mod tests;
