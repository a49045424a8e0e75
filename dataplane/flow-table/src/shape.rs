//! How large a table is, and may become.

use crate::entry::CAPACITY_MAX;
use crate::error::SetupError;
use crate::header::OWNERS_MAX;

/// How large a table is, and may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Entries there can be at first: 1 to [`Self::capacity_max`].
    pub capacity: usize,
    /// Entries that the table may grow to by itself, from [`Self::capacity`] to
    /// [`Self::capacity_max`]: there is memory for them, and for nothing else of the table
    /// ([`crate::Table::regions`]). More may follow ([`crate::Table::commit`]).
    pub committed: usize,
    /// Entries there can ever be, below 2^28: address range is set aside for them, which costs no
    /// memory until it is used.
    pub capacity_max: usize,
    /// Threads that insert; at most 256, and at most [`Self::capacity`].
    pub owners: usize,
    /// Whether every entry has a second line: see [`crate::Table::details`].
    pub details: bool,
}

impl Shape {
    /// A table of a capacity that stays, without details.
    #[must_use]
    pub fn fixed(capacity: usize, owners: usize) -> Self {
        let (committed, capacity_max) = (capacity, capacity);
        Self { capacity, committed, capacity_max, owners, details: false }
    }

    pub(crate) fn check(&self) -> Result<(), SetupError> {
        let Self { capacity, committed, capacity_max, owners, .. } = *self;
        if capacity == 0 {
            return Err(SetupError::ZeroCapacity);
        }
        let largest = capacity.max(capacity_max);
        if largest > CAPACITY_MAX {
            return Err(SetupError::CapacityTooLarge { capacity: largest, most: CAPACITY_MAX });
        }
        if capacity_max < capacity {
            return Err(SetupError::CapacityAboveMax { capacity, capacity_max });
        }
        if !(capacity..=capacity_max).contains(&committed) {
            return Err(SetupError::Committed { capacity, committed, capacity_max });
        }
        if owners == 0 || owners > capacity.min(OWNERS_MAX) {
            return Err(SetupError::Owners { capacity, owners, most: capacity.min(OWNERS_MAX) });
        }
        Ok(())
    }
}
