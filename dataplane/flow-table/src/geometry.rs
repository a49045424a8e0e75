//! What the layout of a table's memory depends on.

use crate::index::Index;
use crate::shape::Shape;

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

    /// Groups that the index can have: two keys for each entry.
    pub(crate) fn groups_max(self) -> usize {
        Index::groups_for(2 * self.capacity_max)
    }
}
