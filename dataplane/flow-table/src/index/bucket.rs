//! One line of the index: a meta word and seven slots of hash bits and a handle.

use crate::entry::{HANDLE_BITS, Handle};
use crate::memory::Zeroable;
use crate::sync::{AtomicU64, Ordering};

/// Slots of a bucket: what a line holds beside the meta word. One in a loom model, where every
/// load costs and every second key shall overflow; two where schedules are random.
pub(crate) const SLOTS: usize = if cfg!(loom) {
    1
} else if cfg!(shuttle) {
    2
} else {
    7
};

const HANDLE_MASK: u64 = (1 << HANDLE_BITS) - 1;

/// The meta word, from bit 0: how many keys of this primary bucket are elsewhere (12 bits), how
/// many of those are in neither of their two buckets (12 bits), and a filter with a bit for each
/// of their hashes (40 bits). A group has fewer keys than either count can tell.
const COUNT_BITS: u32 = 12;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const STRAY: u64 = 1 << COUNT_BITS;
const STRAY_MASK: u64 = COUNT_MASK << COUNT_BITS;
const FILTER_SHIFT: u64 = 2 * COUNT_BITS as u64;
const FILTER_BITS: u64 = u64::BITS as u64 - FILTER_SHIFT;

/// Where a key is that its primary bucket has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overflow {
    /// In its alternate bucket.
    Alternate,
    /// In another bucket of the group.
    Stray,
}

impl Overflow {
    fn counted(self) -> u64 {
        match self {
            Self::Alternate => 1,
            Self::Stray => 1 + STRAY,
        }
    }
}

/// One line of the index.
#[repr(C, align(64))]
pub(crate) struct Bucket {
    meta: AtomicU64,
    slots: [AtomicU64; SLOTS],
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Bucket>() == 64);

// SAFETY: an array of `AtomicU64` is valid when all its bytes are zero, and needs no drop.
unsafe impl Zeroable for Bucket {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        Self { meta: AtomicU64::new(0), slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// The filter bit of a hash, from bits that choose its group only in the largest tables.
#[inline(always)]
fn filter_bit(hash: u64) -> u64 {
    let low = (hash >> HANDLE_BITS) & 0xffff;
    1 << (FILTER_SHIFT + ((low * FILTER_BITS) >> 16))
}

/// What a slot holds for `handle` under `hash`.
#[inline(always)]
pub(crate) fn slot_of(hash: u64, handle: Handle) -> u64 {
    (hash & !HANDLE_MASK) | u64::from(handle.number())
}

/// As much of the hash as a slot keeps: all that places depend on.
pub(crate) fn hash_in(slot: u64) -> u64 {
    slot & !HANDLE_MASK
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
            if let Some(handle) = self.handle(candidates.trailing_zeros() as usize, hash) {
                return Some(handle);
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// The handle in a slot, if it is in use for `hash`.
    #[inline(always)]
    pub(crate) fn handle(&self, slot: usize, hash: u64) -> Option<Handle> {
        handle_in(self.slots.get(slot)?.load(Ordering::SeqCst), hash)
    }

    /// The first handle under `hash` that `decide` accepts, with sequentially consistent loads,
    /// which on x86 cost what others do.
    #[inline(always)]
    pub(crate) fn find<T>(
        &self,
        hash: u64,
        decide: &mut impl FnMut(Handle) -> Option<T>,
    ) -> Option<T> {
        self.slots
            .iter()
            .filter_map(|slot| handle_in(slot.load(Ordering::SeqCst), hash))
            .find_map(decide)
    }

    /// The slots, for one who moves them.
    pub(crate) fn slots(&self) -> &[AtomicU64; SLOTS] {
        &self.slots
    }

    /// Where a key with this hash may be beside this primary bucket of it: the farthest place.
    #[inline(always)]
    pub(crate) fn overflow(&self, hash: u64) -> Option<Overflow> {
        let meta = self.meta.load(Ordering::SeqCst);
        if meta & filter_bit(hash) == 0 {
            None
        } else if meta & STRAY_MASK == 0 {
            Some(Overflow::Alternate)
        } else {
            Some(Overflow::Stray)
        }
    }

    /// Whether so many slots are likely in use: they are claimed from the first on.
    #[inline(always)]
    pub(crate) fn has_likely(&self, used: usize) -> bool {
        self.slots.get(used.wrapping_sub(1)).is_some_and(|slot| slot.load(Ordering::Relaxed) != 0)
    }

    pub(crate) fn used(&self) -> usize {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
    }

    /// Publishes a slot where one is empty.
    pub(crate) fn claim(&self, value: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == 0
                && slot.compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })
    }

    /// Clears a slot with this value. Who fails, because the slot has moved, has acquired where to.
    pub(crate) fn clear(&self, value: u64) -> bool {
        self.slots.iter().any(|slot| {
            slot.load(Ordering::Acquire) == value
                && slot.compare_exchange(value, 0, Ordering::SeqCst, Ordering::Acquire).is_ok()
        })
    }

    /// Counts a key that is about to overflow and sets its filter bit.
    pub(crate) fn announce(&self, hash: u64, overflow: Overflow) {
        let change = |meta| Some((meta + overflow.counted()) | filter_bit(hash));
        // `change` never declines. Another writer that comes first succeeds, so somebody advances.
        let _ = self.meta.fetch_update(Ordering::SeqCst, Ordering::Relaxed, change);
    }

    /// Takes back the count of a key that has left where it overflowed to, and empties the filter
    /// when it was the last one. After [`Self::forget_overflows`] there may be none.
    pub(crate) fn retract(&self, overflow: Overflow) {
        let change = |meta: u64| match meta & COUNT_MASK {
            0 => None,
            1 => Some(0),
            _ if overflow == Overflow::Stray && meta & STRAY_MASK != 0 => Some(meta - 1 - STRAY),
            _ => Some(meta - 1),
        };
        let _ = self.meta.fetch_update(Ordering::Release, Ordering::Relaxed, change);
    }

    /// Forgets all keys, while nobody else uses the index.
    pub(crate) fn empty(&self) {
        self.forget_overflows();
        self.slots.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }

    /// Forgets overflows, when nobody looks here any more.
    pub(crate) fn forget_overflows(&self) {
        self.meta.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
impl Bucket {
    /// A bucket of these words, the first one being the meta word.
    pub(crate) fn of_words(words: [u64; 8]) -> Self {
        let [meta, slots @ ..] = words.map(AtomicU64::new);
        Self { meta, slots }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_told_from_the_announcement_to_the_retraction_of_the_last() {
        let bucket = Bucket::of_words([0; 8]);
        let hash = 0x0fed_cba9_8765_4321;
        assert_eq!(bucket.overflow(hash), None);
        bucket.announce(hash, Overflow::Alternate);
        assert_eq!(bucket.overflow(hash), Some(Overflow::Alternate));
        bucket.announce(hash, Overflow::Stray);
        assert_eq!(bucket.overflow(hash), Some(Overflow::Stray));
        bucket.retract(Overflow::Stray);
        assert_eq!(bucket.overflow(hash), Some(Overflow::Alternate));
        bucket.retract(Overflow::Alternate);
        assert_eq!(bucket.overflow(hash), None);
        assert_eq!(bucket.meta.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn as_many_keys_as_a_group_holds_can_be_announced() {
        let bucket = Bucket::of_words([0; 8]);
        for _ in 0..super::super::GROUP_SLOTS {
            bucket.announce(0, Overflow::Stray);
        }
        let meta = bucket.meta.load(Ordering::Relaxed);
        assert_eq!(meta & COUNT_MASK, super::super::GROUP_SLOTS as u64);
        for _ in 0..super::super::GROUP_SLOTS {
            assert_eq!(bucket.overflow(0), Some(Overflow::Stray));
            bucket.retract(Overflow::Stray);
        }
        assert_eq!(bucket.overflow(0), None);
    }
}
