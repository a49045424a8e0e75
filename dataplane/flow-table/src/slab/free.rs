//! Which handles of a segment are free: a bit for each, so that the next ones are known, and asked
//! for, long before they are taken. Linked lists of them were waited for link by link.
//!
//! It lies in the process's own memory, since the entries' states tell it again. Only the owner of a
//! segment reads or writes its bits; that goes with the segment, by the compare-and-swap that claims
//! it.

// The standard atomics also under loom: nothing here is shared.
use std::sync::atomic::{AtomicU64, Ordering};

use super::SegmentId;
use crate::arch::prefetch;
use crate::cast::{half_word, index};
use crate::error::SetupError;
use crate::memory::{Array, Zeroable, heap};

/// A word of bits, the first one lowest.
#[repr(transparent)]
struct Bits(AtomicU64);

// SAFETY: an `AtomicU64` is valid whatever its bytes are, and needs no drop.
unsafe impl Zeroable for Bits {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Bits {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, bits: u64) {
        self.0.store(bits, Ordering::Relaxed);
    }
}

/// The free handles of all segments, by their places in them.
pub(crate) struct FreeSet {
    /// For each segment a bit for each of its entries, in whole words.
    bits: Array<Bits>,
    /// For each segment a bit for each of those words that is not zero.
    filled: Array<Bits>,
    words: usize,
}

impl FreeSet {
    /// For so many segments of two to the power of `segment_bits` entries; nothing is free.
    pub(super) fn new(segments: usize, segment_bits: u32) -> Result<Self, SetupError> {
        let words = (1usize << segment_bits).div_ceil(64);
        Ok(Self { bits: heap(segments * words)?, filled: heap(segments)?, words })
    }

    fn word(&self, id: SegmentId, number: u32) -> &Bits {
        &self.bits[id.0 as usize * self.words + number as usize]
    }

    fn filled(&self, id: SegmentId) -> &Bits {
        &self.filled[id.0 as usize]
    }

    /// Asks for what [`Self::insert`] writes.
    pub(super) fn prefetch(&self, id: SegmentId, place: u32) {
        prefetch(self.word(id, place / 64));
    }

    pub(crate) fn insert(&self, id: SegmentId, place: u32) {
        let word = self.word(id, place / 64);
        word.set(word.get() | 1 << (place % 64));
        let filled = self.filled(id);
        filled.set(filled.get() | 1 << (place / 64));
    }

    pub(crate) fn remove(&self, id: SegmentId, place: u32) {
        let word = self.word(id, place / 64);
        word.set(word.get() & !(1 << (place % 64)));
        if word.get() == 0 {
            let filled = self.filled(id);
            filled.set(filled.get() & !(1 << (place / 64)));
        }
    }

    /// Sets all places of a segment, of which 64 at a time are given.
    pub(super) fn fill(&self, id: SegmentId, all: impl Iterator<Item = u64>) {
        let mut filled = 0;
        for (number, bits) in (0..half_word(self.words)).zip(all.chain(std::iter::repeat(0))) {
            self.word(id, number).set(bits);
            filled |= u64::from(bits != 0) << number;
        }
        self.filled(id).set(filled);
    }

    pub(super) fn clear(&self, id: SegmentId) {
        self.fill(id, std::iter::empty());
    }

    pub(crate) fn is_empty(&self, id: SegmentId) -> bool {
        self.filled(id).get() == 0
    }

    /// The first free place of a segment.
    #[inline(always)]
    pub(crate) fn first(&self, id: SegmentId) -> Option<u32> {
        let filled = self.filled(id).get();
        if filled == 0 {
            return None;
        }
        let number = filled.trailing_zeros();
        Some(number * 64 + self.word(id, number).get().trailing_zeros())
    }

    /// The first free place of a segment from `place` on.
    #[inline(always)]
    pub(crate) fn from(&self, id: SegmentId, place: u32) -> Option<u32> {
        let number = place / 64;
        if index(number.into()) >= self.words {
            return None;
        }
        let rest = self.word(id, number).get() & !0 << (place % 64);
        if rest != 0 {
            return Some(number * 64 + rest.trailing_zeros());
        }
        // In two shifts, since a word has no 64th bit.
        let later = self.filled(id).get() & (!0 << number << 1);
        if later == 0 {
            return None;
        }
        let number = later.trailing_zeros();
        Some(number * 64 + self.word(id, number).get().trailing_zeros())
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(
            segment_bits in 0u32..=12,
            steps in prop::collection::vec((any::<bool>(), 0u32..3, any::<u32>()), 1..200),
            from in any::<u32>(),
        ) {
            let free = FreeSet::new(3, segment_bits).expect("heap");
            let mut model = BTreeSet::new();
            for (comes, id, place) in steps {
                let place = place % (1 << segment_bits);
                if comes {
                    free.insert(SegmentId(id), place);
                    model.insert((id, place));
                } else {
                    free.remove(SegmentId(id), place);
                    model.remove(&(id, place));
                }
            }
            for id in 0..3 {
                let all: Vec<_> = model.iter().filter(|(other, _)| *other == id).collect();
                prop_assert_eq!(free.is_empty(SegmentId(id)), all.is_empty());
                prop_assert_eq!(free.first(SegmentId(id)), all.first().map(|(_, place)| *place));
                for from in [0, from % (1 << segment_bits), 1 << segment_bits] {
                    let expected = all.iter().map(|(_, place)| *place).find(|place| *place >= from);
                    prop_assert_eq!(free.from(SegmentId(id), from), expected);
                }
                free.clear(SegmentId(id));
                prop_assert!(free.is_empty(SegmentId(id)) && free.from(SegmentId(id), 0).is_none());
            }
        }
    }
}
