//! What can go wrong, by name.

use crate::entry::Handle;

/// A table or its quiescence record cannot be made as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A table of no entries.
    #[error("flow table capacity is 0: ask for at least one entry")]
    ZeroCapacity,
    /// Handles have 28 bits.
    #[error("flow table capacity {capacity} is above {most}: ask for fewer entries")]
    CapacityTooLarge {
        /// Entries asked for.
        capacity: usize,
        /// Entries a table can have.
        most: usize,
    },
    /// A table that is larger than it may become.
    #[error("flow table capacity {capacity} is above its maximum {capacity_max}: raise that")]
    CapacityAboveMax {
        /// Entries asked for.
        capacity: usize,
        /// Entries there may ever be.
        capacity_max: usize,
    },
    /// Memory for less than it holds, or for more than it may ever hold.
    #[error(
        "flow table of {capacity} to {capacity_max} entries cannot have memory for {committed}"
    )]
    Committed {
        /// Entries asked for.
        capacity: usize,
        /// Entries there is memory for.
        committed: usize,
        /// Entries there may ever be.
        capacity_max: usize,
    },
    /// No owner, or more owners than entries, or than a table has room to remember.
    #[error("flow table of {capacity} entries cannot have {owners} owners: give 1 to {most}")]
    Owners {
        /// Entries asked for.
        capacity: usize,
        /// Owners asked for.
        owners: usize,
        /// Owners it can have.
        most: usize,
    },
    /// No worker to wait for.
    #[error("quiescence needs at least one worker")]
    NoWorkers,
    /// The mapped memory does not hold the table.
    #[error("flow table needs {needed_bytes} bytes and was given {given_bytes}: map more memory")]
    MemoryTooSmall {
        /// Size of the memory given.
        given_bytes: usize,
        /// Size needed.
        needed_bytes: usize,
    },
    /// The mapped memory does not start on a cache line.
    #[error("flow table memory at {address:#x} is not aligned to 64 bytes: map whole pages")]
    Misaligned {
        /// Where the memory starts.
        address: usize,
    },
    /// The heap refused.
    #[error("flow table needs {bytes} bytes and the allocator has not got them")]
    OutOfMemory {
        /// Bytes asked for in one piece.
        bytes: usize,
    },
}

/// A table that somebody has left in memory cannot be taken over as asked. The memory is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// The memory does not begin as a table's.
    #[error("there is no flow table in the memory: begin a new one")]
    NoTable,
    /// It was written by another version of this crate.
    #[error("the flow table has format {found} and this program knows {known}: begin a new one")]
    Version {
        /// In the memory.
        found: u64,
        /// Known here.
        known: u64,
    },
    /// Its entries are of another size.
    #[error("the flow table has entries of {found} words instead of {wanted}: begin a new one")]
    Words {
        /// In the memory.
        found: u64,
        /// Asked for.
        wanted: u64,
    },
    /// Its memory is laid out for another shape: see [`crate::Table::salvage`].
    #[error(
        "the flow table was made for {capacity_max} entries, with details: {details}: \
         move its flows to a new one"
    )]
    Shape {
        /// Entries it can have.
        capacity_max: usize,
        /// Whether they have a second line.
        details: bool,
    },
    /// Its words contradict each other.
    #[error("the flow table is damaged ({what}): begin a new one")]
    Damaged {
        /// How.
        what: &'static str,
    },
    /// As for a new one.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// An entry was not inserted. The table is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InsertError {
    /// No handle of this owner is free: all are in use, or wait for workers to announce.
    #[error("no free entry in this owner's part of the flow table")]
    SlabFull,
    /// The group of a hash is full. The index grows in time, so that this does not happen to
    /// hashes that are spread evenly.
    #[error("the index has no room for the flow's hash")]
    IndexFull,
    /// An entry that the original key matches is there already, or is being inserted at this very
    /// moment. Look it up again: of two inserts at the same instant both may be told this.
    #[error("the flow is in the table already")]
    Exists(Handle),
    /// An entry that the alias key matches is there already: choose another translation.
    #[error("the flow's alias is taken by another flow")]
    AliasExists(Handle),
}

/// An entry was not removed as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// The handle belongs to another owner; nothing was done.
    #[error("the entry belongs to another owner")]
    NotOwned,
    /// The handle is free; nothing was done.
    #[error("the entry is not in use")]
    NotInUse,
    /// The entry is removed, but a hash given is not the one it was inserted under, so an index
    /// slot is lost until the table is made anew. Counted in
    /// [`crate::Statistics::slots_lost`].
    #[error("a hash given for removal is not the one the entry was inserted under")]
    WrongHash,
}
