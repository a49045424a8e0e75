//! Which addresses are an end of some flow, so far as a filter can tell: a change that concerns none
//! of them needs no flow to be judged again.
//!
//! Workers note both ends of every flow that they insert; nothing is taken out when a flow ends, so
//! the control thread makes the filter anew now and then from the flows that there are ([`census`]).
//! A filter may say of an address that it is an end when it is not, never the reverse. Full of
//! addresses, it says so of all, and every change makes every flow's next packet ask its epochs.

mod census;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::address_hash::AddressHash;

pub use census::{Adoption, Census};

/// Bits of a filter, half a MiB: with a hundred thousand addresses it errs once in a thousand times,
/// with a million once in six.
pub const FILTER_BITS_MAX: usize = 1 << 22;
const WORDS: usize = FILTER_BITS_MAX / u64::BITS as usize;
/// Bits that an address sets, all in one word: one line of memory is looked at, not four.
const BITS_OF_ADDRESS: u32 = 4;

/// A Bloom filter.
#[derive(Debug)]
struct Filter(Box<[AtomicU64]>);

impl Filter {
    fn new() -> Self {
        Self((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    fn word_of(&self, address: AddressHash) -> (&AtomicU64, u64) {
        let hash = address.mixed();
        let bit = |number: u32| 1_u64 << (hash >> (6 * number) & 63);
        let bits = (0..BITS_OF_ADDRESS).fold(0, |bits, number| bits | bit(number));
        let word = usize::try_from(hash >> 32).unwrap_or_default() % WORDS;
        (&self.0[word], bits)
    }

    #[inline]
    fn set(&self, address: AddressHash) {
        let (word, bits) = self.word_of(address);
        // Nearly all are there already, and a line that is only read is everybody's.
        if word.load(Ordering::Relaxed) & bits != bits {
            word.fetch_or(bits, Ordering::Relaxed);
        }
    }

    fn has(&self, address: AddressHash) -> bool {
        let (word, bits) = self.word_of(address);
        word.load(Ordering::Relaxed) & bits == bits
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn used(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.0.iter().map(ones).sum()
    }
}

/// What all workers note in. While a filter is made anew they note in both.
#[derive(Debug)]
pub struct FlowEnds {
    filters: [Filter; 2],
    /// A bit for each filter.
    noted_in: AtomicU8,
}

impl Default for FlowEnds {
    fn default() -> Self {
        Self { filters: [Filter::new(), Filter::new()], noted_in: AtomicU8::new(1) }
    }
}

impl FlowEnds {
    /// A flow with these ends was inserted: after that, so that whoever reads a cleared filter finds
    /// the flow itself.
    #[inline]
    pub(crate) fn note(&self, ends: [AddressHash; 2]) {
        let noted_in = self.noted_in.load(Ordering::Relaxed);
        for (number, filter) in self.filters.iter().enumerate() {
            if noted_in >> number & 1 == 1 {
                ends.into_iter().for_each(|end| filter.set(end));
            }
        }
    }
}

#[cfg(test)]
mod tests;
