//! The index: from 36 bits of a hash to handles, in buckets of one cache line.
//!
//! A hash has two buckets. It goes to its primary one while that is comfortably empty, else to
//! whichever of the two holds less. A lookup therefore reads the primary bucket, and the alternate
//! one only if the primary's overflow filter says that a hash like this went there.
//!
//! # Why a lookup cannot miss
//! A slot, once published, stays where it is until its owner clears it: nothing is displaced. So
//! a key in its primary bucket is found there. A key in its alternate bucket was counted in the
//! primary's meta word, and its filter bit set, by one compare-and-swap *before* its slot was
//! published; the count falls, by compare-and-swap, after its slot was cleared, and the filter is
//! emptied only by the compare-and-swap that takes the count from one to zero. While the key is in
//! the index the count is therefore at least one and its bit stays set, in every later value of
//! the meta word. A lookup that the insert happened before reads such a value, by coherence.
//!
//! # Why two inserts of one key cannot both stay
//! Publishing swaps a slot, and the look for others that follows it loads slots and meta words,
//! all sequentially consistent. Of two inserts one published first in that total order; the other
//! one, looking after its own publishing, sees it. (A meta word that does not announce an overflow
//! was read before the overflowing insert announced, so that insert sees ours.) The check compares
//! entries, which is the caller's part: see [`Index::find`].

use crate::arch::prefetch;
use crate::entry::{HANDLE_BITS, Handle};
use crate::error::SetupError;
use crate::memory::{Array, Carver, Zeroable, array_bytes};
use crate::sync::{AtomicU64, Ordering};

/// Slots of a bucket: what a line holds beside the meta word. One in a loom model, where every
/// load costs and every second key shall overflow.
const SLOTS: usize = if cfg!(loom) { 1 } else { 7 };

/// Slots in use up to which a primary bucket takes what comes. With 4 of 7, two keys for each of
/// `capacity` entries fit (no failure in 50 million inserts of a simulation, against 1 in 2,000
/// with 7), 2.5 % of the keys overflow when each entry has one key, 12 % when each has two.
const COMFORTABLE: usize = 4;

const HANDLE_MASK: u64 = (1 << HANDLE_BITS) - 1;
const HASH_BITS: u32 = u64::BITS - HANDLE_BITS;

/// The meta word: how many keys of this primary bucket are in their alternate one, and a filter
/// with a bit for each of their hashes.
const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const FILTER_BITS: u64 = 48;

/// One line of the index.
#[repr(C, align(64))]
pub(crate) struct Bucket {
    meta: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

// SAFETY: an array of `AtomicU64` is valid when all its bytes are zero, and needs no drop.
unsafe impl Zeroable for Bucket {
    #[cfg(loom)]
    fn zeroed() -> Self {
        Self { meta: AtomicU64::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// The filter bit of a hash, from bits that choose its bucket only in the largest tables.
#[inline(always)]
fn filter_bit(hash: u64) -> u64 {
    let low = (hash >> HANDLE_BITS) & 0xffff;
    1 << (u64::from(COUNT_BITS) + ((low * FILTER_BITS) >> 16))
}

#[inline(always)]
fn slot_of(hash: u64, handle: Handle) -> u64 {
    (hash & !HANDLE_MASK) | u64::from(handle.number())
}

/// The handle in a slot, if the slot is in use for this hash.
#[inline(always)]
fn handle_in(slot: u64, hash: u64) -> Option<Handle> {
    if (slot ^ hash) >> HANDLE_BITS == 0 {
        // Masked to 28 bits, so nothing is cut off.
        Handle::new((slot & HANDLE_MASK) as u32)
    } else {
        None
    }
}

impl Bucket {
    /// A bit for every slot with the hash bits of `hash`.
    #[inline(always)]
    pub(crate) fn candidates(&self, hash: u64) -> u32 {
        let mut found = 0;
        for (number, slot) in self.slots.iter().enumerate() {
            let equal = (slot.load(Ordering::Relaxed) ^ hash) >> HANDLE_BITS == 0;
            found |= u32::from(equal) << number;
        }
        found
    }

    /// The first of `candidates` that is in use for `hash` indeed. Acquires its entry.
    #[inline(always)]
    pub(crate) fn first(&self, mut candidates: u32, hash: u64) -> Option<Handle> {
        while candidates != 0 {
            let slot = self.slots.get(candidates.trailing_zeros() as usize)?;
            if let Some(handle) = handle_in(slot.load(Ordering::Acquire), hash) {
                return Some(handle);
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// Whether a key with this hash may be in its alternate bucket.
    #[inline(always)]
    pub(crate) fn may_overflow(&self, hash: u64) -> bool {
        self.meta.load(Ordering::Acquire) & filter_bit(hash) != 0
    }

    fn used(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
    }

    /// Publishes a slot where one is empty.
    fn claim(&self, value: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == 0
                && slot.compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    /// Clears the slot with this value, which its owner alone may do.
    fn clear(&self, value: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == value
                && slot.compare_exchange(value, 0, Ordering::Release, Ordering::Relaxed).is_ok()
        })
    }

    /// Counts a key that is about to overflow and sets its filter bit. False when no more can be
    /// counted.
    fn announce_overflow(&self, hash: u64) -> bool {
        let mut meta = self.meta.load(Ordering::Relaxed);
        loop {
            if meta & COUNT_MASK == COUNT_MASK {
                return false;
            }
            let next = (meta + 1) | filter_bit(hash);
            let order = (Ordering::SeqCst, Ordering::Relaxed);
            match self.meta.compare_exchange_weak(meta, next, order.0, order.1) {
                Ok(_) => return true,
                // Another writer succeeded, so somebody advances.
                Err(now) => meta = now,
            }
        }
    }

    /// Takes back the count of a key that is no longer in its alternate bucket, and empties the
    /// filter when it was the last one.
    fn retract_overflow(&self) {
        let mut meta = self.meta.load(Ordering::Relaxed);
        while meta & COUNT_MASK != 0 {
            let next = if meta & COUNT_MASK == 1 { 0 } else { meta - 1 };
            let order = (Ordering::Release, Ordering::Relaxed);
            match self.meta.compare_exchange_weak(meta, next, order.0, order.1) {
                Ok(_) => return,
                Err(now) => meta = now,
            }
        }
    }
}

/// Both buckets of a hash are full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IndexFull;

/// All buckets.
pub(crate) struct Index {
    buckets: Array<Bucket>,
}

impl Index {
    /// Buckets for `capacity` entries of two keys each, half of the slots in use; at least two,
    /// and fewer than 2^28 for what a handle can name.
    const fn buckets(capacity: usize) -> usize {
        let buckets = (capacity * 2 * 2).div_ceil(SLOTS);
        if buckets < 2 { 2 } else { buckets }
    }

    pub(crate) const fn memory_bytes(capacity: usize) -> usize {
        array_bytes::<Bucket>(Self::buckets(capacity))
    }

    pub(crate) fn new(carver: &mut Carver, capacity: usize) -> Result<Self, SetupError> {
        Ok(Self { buckets: carver.array(Self::buckets(capacity))? })
    }

    /// Where a hash goes first: its top 36 bits, scaled to the number of buckets.
    #[inline(always)]
    fn primary_position(&self, hash: u64) -> usize {
        let scaled = (hash >> HANDLE_BITS) * self.buckets.len() as u64;
        (scaled >> HASH_BITS) as usize
    }

    #[inline(always)]
    pub(crate) fn primary(&self, hash: u64) -> &Bucket {
        &self.buckets[self.primary_position(hash)]
    }

    /// The other bucket of a hash: never the primary one, and a function of the bits that a slot
    /// keeps, so that a slot tells both its buckets.
    #[inline(always)]
    pub(crate) fn alternate(&self, hash: u64) -> &Bucket {
        const ODD: u64 = 0xC2B2_AE3D_27D4_EB4F;
        let bits = hash >> HANDLE_BITS;
        let mixed = (bits ^ (bits >> 17)).wrapping_mul(ODD) >> HANDLE_BITS;
        let others = self.buckets.len() as u64 - 1;
        let position = ((mixed * others) >> HASH_BITS) as usize;
        &self.buckets[position + usize::from(position >= self.primary_position(hash))]
    }

    /// Publishes `handle` under `hash`; the entry's words must be written.
    pub(crate) fn publish(&self, hash: u64, handle: Handle) -> Result<(), IndexFull> {
        let value = slot_of(hash, handle);
        let primary = self.primary(hash);
        let used = primary.used();
        if used < COMFORTABLE.min(SLOTS) && primary.claim(value) {
            return Ok(());
        }
        let alternate = self.alternate(hash);
        if used <= alternate.used() && primary.claim(value) {
            return Ok(());
        }
        if primary.announce_overflow(hash) {
            if alternate.claim(value) {
                return Ok(());
            }
            primary.retract_overflow();
        }
        if primary.claim(value) { Ok(()) } else { Err(IndexFull) }
    }

    /// Clears the slot that `publish` made. False when there is none.
    pub(crate) fn withdraw(&self, hash: u64, handle: Handle) -> bool {
        let value = slot_of(hash, handle);
        let primary = self.primary(hash);
        if primary.clear(value) {
            return true;
        }
        let cleared = self.alternate(hash).clear(value);
        if cleared {
            primary.retract_overflow();
        }
        cleared
    }

    /// The first handle under `hash` that `decide` accepts, with sequentially consistent loads,
    /// which on x86 cost what others do.
    #[inline]
    pub(crate) fn find<T>(
        &self,
        hash: u64,
        mut decide: impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        let mut find_in = |bucket: &Bucket| {
            bucket
                .slots
                .iter()
                .filter_map(|slot| handle_in(slot.load(Ordering::SeqCst), hash))
                .find_map(&mut decide)
        };
        let primary = self.primary(hash);
        find_in(primary).or_else(|| {
            let overflow = primary.meta.load(Ordering::SeqCst) & filter_bit(hash) != 0;
            if overflow { find_in(self.alternate(hash)) } else { None }
        })
    }

    /// Asks for the line that a lookup of `hash` reads first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(self.primary(hash));
    }
}

#[cfg(all(test, not(loom)))]
impl Bucket {
    /// A bucket of these words, the first one being the meta word.
    pub(crate) fn of_words(words: [u64; 8]) -> Self {
        let [meta, slots @ ..] = words.map(AtomicU64::new);
        Self { meta, slots }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::Memory;

    fn index(capacity: usize) -> Index {
        let mut carver = Carver::new(Memory::Heap, 0).expect("heap");
        Index::new(&mut carver, capacity).expect("heap")
    }

    fn handle(number: u32) -> Handle {
        Handle::new(number).expect("28 bits")
    }

    fn found(index: &Index, hash: u64, wanted: Handle) -> bool {
        index.find(hash, |handle| (handle == wanted).then_some(())).is_some()
    }

    #[test]
    fn the_two_buckets_of_any_hash_are_different() {
        for capacity in [1, 2, 3, 1000] {
            let index = index(capacity);
            for number in 0..10_000u64 {
                let hash = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                assert!(!std::ptr::eq(index.primary(hash), index.alternate(hash)));
            }
            assert!(!std::ptr::eq(index.primary(u64::MAX), index.alternate(u64::MAX)));
        }
    }

    #[test]
    fn one_hash_fills_both_its_buckets_and_then_the_index_is_full() {
        let index = index(100);
        let hash = 0x1234_5678_9abc_def0;
        let handles: Vec<_> = (1..=14).map(handle).collect();
        for &handle in &handles {
            assert_eq!(index.publish(hash, handle), Ok(()));
        }
        assert_eq!(index.publish(hash, handle(15)), Err(IndexFull));
        assert!(handles.iter().all(|handle| found(&index, hash, *handle)));
        assert!(handles.iter().all(|handle| index.withdraw(hash, *handle)));
        assert!(!handles.iter().any(|handle| found(&index, hash, *handle)));
        assert_eq!(
            index.primary(hash).meta.load(Ordering::Relaxed),
            0,
            "the filter is empty again"
        );
        assert!(!index.withdraw(hash, handle(1)));
    }

    #[test]
    fn the_filter_stays_while_one_overflowed_key_is_left() {
        let index = index(100);
        let hash = 0x0fed_cba9_8765_4321;
        let overflowed =
            |count| index.primary(hash).meta.load(Ordering::Relaxed) & COUNT_MASK == count;
        (1..=14).for_each(|number| index.publish(hash, handle(number)).expect("room"));
        assert!(overflowed(7));
        for number in (1..=13).rev() {
            assert!(index.withdraw(hash, handle(number)));
            assert!(found(&index, hash, handle(14)));
        }
    }

    #[test]
    fn a_count_that_is_full_refuses_further_overflow() {
        let bucket = Bucket::of_words([COUNT_MASK, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!bucket.announce_overflow(0));
        bucket.retract_overflow();
        assert!(bucket.announce_overflow(0));
    }

    #[test]
    fn two_keys_for_each_entry_fit() {
        const CAPACITY: u32 = 50_000;
        let index = index(CAPACITY as usize);
        let hasher = crate::Hasher::new([1, 2]);
        for number in 1..=CAPACITY {
            for side in 0..2 {
                let hash = hasher.hash(&[u64::from(number), side]);
                assert_eq!(index.publish(hash, handle(number)), Ok(()));
            }
        }
    }
}
