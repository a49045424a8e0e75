//! Entries, their handles, and what a key must answer.

use std::num::NonZeroU32;

use crate::memory::Zeroable;
use crate::sync::AtomicU64;

/// Bits of a handle in an index slot.
pub(crate) const HANDLE_BITS: u32 = 28;

/// The most entries a table can have.
pub(crate) const CAPACITY_MAX: usize = (1 << HANDLE_BITS) - 1;

/// The number of an entry, from 1 to the most entries there can be. It stays with the entry until it is removed,
/// and is used again after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(NonZeroU32);

impl Handle {
    /// The handle of this number; `None` for 0 and for what needs more than 28 bits.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        if number >> HANDLE_BITS == 0 { NonZeroU32::new(number).map(Self) } else { None }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// Its place in the slab.
    pub(crate) fn position(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// One flow's words: 8 of them are one cache line (IPv4), 16 are two (IPv6).
///
/// What they mean is the caller's. Any thread may change any word at any time by atomic
/// operations; words that [`Key::matches`] reads must not change while the entry is in the table.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Entry<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> Entry<WORDS> {
    /// The words.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> &[AtomicU64; WORDS] {
        &self.0
    }
}

// SAFETY: an array of `AtomicU64` is valid when all its bytes are zero, and needs no drop; `Table`
// admits only `WORDS` that leave no padding.
unsafe impl<const WORDS: usize> Zeroable for Entry<WORDS> {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// A tuple to look for, which can tell whether an entry is its flow's.
///
/// The table finds candidates by hash alone; `matches` decides. It may be asked about an entry of
/// another flow, and about one whose removal has just begun.
pub trait Key<const WORDS: usize>: Copy {
    /// What a match tells, such as the direction that matched.
    type Match: Copy;

    /// Whether `entry` is this key's. Relaxed loads suffice: the lookup has acquired the entry.
    fn matches(&self, entry: &Entry<WORDS>) -> Option<Self::Match>;
}
