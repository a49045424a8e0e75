//! The first page of a table's memory: what it takes to know the table again.
//!
//! Words in order: magic, version, words of an entry, most entries, details, segment bits, owners,
//! half and sizes of the index, entries there may be and those there is memory for; from word 16 on the caller's tag; from word 64 on one for each owner, which tells
//! whether it was closed and how many keys it had.

use crate::cast::{half_word, index};
use crate::entry::CAPACITY_MAX;
use crate::error::TakeOverError;
use crate::geometry::{Geometry, Regions, SEGMENT_BITS_MAX};
use crate::memory::Zeroable;
use crate::sync::{AtomicU64, Ordering};

/// "xskiffct".
const MAGIC: u64 = 0x7873_6b69_6666_6374;
/// Of the layout of all that stands in the memory, and of what it means. To be raised with any
/// change of it.
pub(crate) const VERSION: u64 = 2;

/// Owners that a table can have.
pub(crate) const OWNERS_MAX: usize = 256;

/// Words of the caller's in the header: what it needs to know before it takes a table over.
pub type Tag = [u64; 8];

const MAGIC_WORD: usize = 0;
const VERSION_WORD: usize = 1;
const WORDS_WORD: usize = 2;
const CAPACITY_MAX_WORD: usize = 3;
const DETAILS_WORD: usize = 4;
const SEGMENT_BITS_WORD: usize = 5;
const OWNERS_WORD: usize = 6;
const HALF_WORD: usize = 7;
const GROUPS_WORD: usize = 8;
const CAPACITY_WORD: usize = 10;
const COMMITTED_WORD: usize = 11;
const TAG_WORD: usize = 16;
const CLOSED_WORD: usize = 64;
/// Words that mean something.
const READ_WORDS: usize = CLOSED_WORD + OWNERS_MAX;
/// Words of the header, a page.
const HEADER_WORDS: usize = 512;

const _: () = assert!(READ_WORDS <= HEADER_WORDS && TAG_WORD + 8 <= CLOSED_WORD);

/// See above.
#[repr(C, align(64))]
pub(crate) struct Header([AtomicU64; HEADER_WORDS]);

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Header>() == 4096);

// SAFETY: `AtomicU64`s are valid whatever their bytes are, and need no drop.
unsafe impl Zeroable for Header {
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// What a memory says of the table in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspected {
    /// Entries there could be when that was last noted: see [`crate::Table::note_capacity`].
    pub capacity: usize,
    /// Entries that there has been memory for: see [`Self::regions`].
    pub committed: usize,
    /// Entries there can ever be.
    pub capacity_max: usize,
    /// Whether entries have a second line.
    pub details: bool,
    /// Owners that it had.
    pub owners: usize,
    /// Owners that were not closed: with none, the table can be used as it is.
    pub unclosed: usize,
    /// The caller's words.
    pub tag: Tag,
    pub(crate) geometry: Geometry,
}

impl Inspected {
    /// Whether the table can be used as it is, by as many owners.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unclosed == 0
    }

    /// What so many entries need of the memory.
    #[must_use]
    pub fn regions<const WORDS: usize>(&self, entries: usize) -> Regions {
        self.geometry.regions::<WORDS>(entries)
    }

    /// What `memory` says of a table of entries of `words` words in it.
    pub(crate) fn of(memory: &[u8], words: usize) -> Result<Self, TakeOverError> {
        let mut read = [0; READ_WORDS];
        for (word, bytes) in read.iter_mut().zip(memory.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        parse(&read, words)
    }
}

fn parse(read: &[u64; READ_WORDS], words: usize) -> Result<Inspected, TakeOverError> {
    if read[MAGIC_WORD] != MAGIC {
        return Err(TakeOverError::NoTable);
    }
    let (version, found) = (read[VERSION_WORD], read[WORDS_WORD]);
    if version != VERSION {
        return Err(TakeOverError::Version { found: version, known: VERSION });
    }
    if found != words as u64 {
        return Err(TakeOverError::Words { found, wanted: words as u64 });
    }
    let (capacity_max, segment_bits) = (read[CAPACITY_MAX_WORD], read[SEGMENT_BITS_WORD]);
    if !(1..=CAPACITY_MAX as u64).contains(&capacity_max) {
        return Err(TakeOverError::Damaged { what: "its capacity is impossible" });
    }
    let (capacity, committed) = (read[CAPACITY_WORD], read[COMMITTED_WORD]);
    if !(1..=capacity_max).contains(&committed) || !(1..=committed).contains(&capacity) {
        return Err(TakeOverError::Damaged { what: "its size is impossible" });
    }
    let segment_bits = half_word(index(segment_bits));
    if segment_bits > SEGMENT_BITS_MAX {
        return Err(TakeOverError::Damaged { what: "its segments are impossible" });
    }
    if !(1..=OWNERS_MAX as u64).contains(&read[OWNERS_WORD]) {
        return Err(TakeOverError::Damaged { what: "its number of owners is impossible" });
    }
    let (owners, details) = (index(read[OWNERS_WORD]), read[DETAILS_WORD] != 0);
    let closed = &read[CLOSED_WORD..CLOSED_WORD + owners];
    let capacity_max = index(capacity_max);
    Ok(Inspected {
        capacity: index(capacity),
        committed: index(committed),
        capacity_max,
        details,
        owners,
        unclosed: closed.iter().filter(|word| **word & 1 == 0).count(),
        tag: std::array::from_fn(|number| read[TAG_WORD + number]),
        geometry: Geometry { capacity_max, details, segment_bits },
    })
}

impl Header {
    fn set(&self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::SeqCst);
    }

    fn get(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::SeqCst)
    }

    /// Writes all but the caller's tag and what is known of the index: a table in use.
    pub(crate) fn begin(&self, words: usize, geometry: Geometry, owners: usize) {
        self.set(MAGIC_WORD, 0);
        self.set(VERSION_WORD, VERSION);
        self.set(WORDS_WORD, words as u64);
        self.set(CAPACITY_MAX_WORD, geometry.capacity_max as u64);
        self.set(DETAILS_WORD, geometry.details.into());
        self.set(SEGMENT_BITS_WORD, geometry.segment_bits.into());
        self.open(owners);
        self.set(MAGIC_WORD, MAGIC);
    }

    /// Notes how many entries there may be, and how many there has been memory for.
    pub(crate) fn note_size(&self, capacity: u32, committed: u32) {
        self.set(COMMITTED_WORD, committed.into());
        self.set(CAPACITY_WORD, capacity.into());
    }

    /// From here on so many owners use the table: whoever finds it so must rebuild it.
    pub(crate) fn open(&self, owners: usize) {
        (CLOSED_WORD..CLOSED_WORD + OWNERS_MAX).for_each(|word| self.set(word, 0));
        self.set(OWNERS_WORD, owners as u64);
    }

    /// The owner has finished all it had begun, and has so many keys in the index.
    pub(crate) fn close(&self, owner: usize, keys: u64) {
        self.set(CLOSED_WORD + owner, keys << 1 | 1);
    }

    /// Keys that an owner had when it was closed.
    pub(crate) fn keys(&self, owner: usize) -> u64 {
        self.get(CLOSED_WORD + owner) >> 1
    }

    pub(crate) fn set_tag(&self, tag: &Tag) {
        tag.iter().zip(TAG_WORD..).for_each(|(value, word)| self.set(word, *value));
    }

    pub(crate) fn set_tag_word(&self, number: usize, value: u64) {
        if number < size_of::<Tag>() / 8 {
            self.set(TAG_WORD + number, value);
        }
    }

    /// Notes how many groups of a half are used from now on: others hold no key.
    pub(crate) fn note_groups(&self, half: usize, groups: usize) {
        self.set(GROUPS_WORD + half.min(1), groups as u64);
    }

    /// Notes which half the index is in, while nothing moves.
    pub(crate) fn note_half(&self, half: usize) {
        self.set(HALF_WORD, half as u64);
    }

    /// Groups of a half that may hold keys.
    pub(crate) fn groups(&self, half: usize) -> usize {
        index(self.get(GROUPS_WORD + half.min(1)))
    }

    /// The half that the index was in when the table was closed.
    pub(crate) fn half(&self) -> usize {
        index(self.get(HALF_WORD))
    }

    /// What the header says, if it is that of a table of entries of `words` words.
    pub(crate) fn read(&self, words: usize) -> Result<Inspected, TakeOverError> {
        parse(&std::array::from_fn(|word| self.get(word)), words)
    }
}
