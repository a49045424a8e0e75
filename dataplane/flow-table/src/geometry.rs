//! What the layout of a table's memory depends on.

use std::ops::Range;

use crate::entry::Entry;
use crate::header::Header;
use crate::index::Index;
use crate::memory::{LINE_BYTES, array_bytes};
use crate::shape::Shape;
use crate::slab::Segment;
use crate::sync::AtomicU32;

/// Byte ranges of a table's memory, in order: its header, and for a number of entries the first part
/// of each of its arrays.
pub type Regions = [Range<usize>; 7];

/// Entries of a segment at most. 256 KiB of IPv4 entries.
pub(crate) const SEGMENT_BITS_MAX: u32 = 12;
/// Segments that each owner can have at least, so that no owner's last one keeps much from others.
const SEGMENTS_EACH: usize = 8;

/// What the layout of a table's memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) capacity_max: usize,
    pub(crate) details: bool,
    /// A segment has two to this power entries.
    pub(crate) segment_bits: u32,
}

impl Geometry {
    pub(crate) fn of(shape: &Shape) -> Self {
        let entries = shape.capacity / (shape.owners * SEGMENTS_EACH);
        let segment_bits = entries.checked_ilog2().unwrap_or(0).min(SEGMENT_BITS_MAX);
        Self { capacity_max: shape.capacity_max, details: shape.details, segment_bits }
    }

    /// Segments that hold so many entries.
    pub(crate) fn segments(self, entries: usize) -> usize {
        entries.div_ceil(1 << self.segment_bits)
    }

    /// Entries that have details.
    pub(crate) fn detailed(self) -> usize {
        if self.details { self.capacity_max } else { 0 }
    }

    /// Groups that the index may have while there is memory for so many entries: two keys for each.
    pub(crate) fn groups_of(self, entries: usize) -> usize {
        Index::groups_for(2 * entries.min(self.capacity_max))
    }

    /// What so many entries of `WORDS` words need of the memory.
    pub(crate) fn regions<const WORDS: usize>(self, entries: usize) -> Regions {
        // Whole segments, as they are claimed.
        let entries = (self.segments(entries) << self.segment_bits).min(self.capacity_max);
        let (most, details) = (self.capacity_max, self.detailed());
        let half = Index::half_bytes(self.groups_max());
        let used_half = Index::half_bytes(self.groups_of(entries));
        let arrays = [
            (array_bytes::<Header>(1), array_bytes::<Header>(1)),
            (
                array_bytes::<Segment>(self.segments(most)),
                array_bytes::<Segment>(self.segments(entries)),
            ),
            (array_bytes::<AtomicU32>(most), array_bytes::<AtomicU32>(entries)),
            (array_bytes::<Entry<WORDS>>(most), array_bytes::<Entry<WORDS>>(entries)),
            (array_bytes::<Entry<8>>(details), array_bytes::<Entry<8>>(entries.min(details))),
            (half, used_half),
            (half, used_half),
        ];
        let mut start = 0;
        arrays.map(|(whole, used)| {
            debug_assert!(whole.is_multiple_of(LINE_BYTES));
            let region = start..start + used;
            start += whole;
            region
        })
    }

    /// Groups that the index can have: two keys for each entry.
    pub(crate) fn groups_max(self) -> usize {
        Index::groups_for(2 * self.capacity_max)
    }
}
