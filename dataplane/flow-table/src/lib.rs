//! A bounded table of flows in memory the caller gives, shared by every worker without a lock.
//!
//! # What it promises
//! - A lookup of an inserted, undeleted key finds it, whatever other threads do. It usually reads
//!   one 64-byte index line and the entry's own line; a burst overlaps those reads by prefetching.
//! - Anyone looks up and changes words of entries; an entry is inserted, swept and removed through
//!   the [`Owner`] of its handle, which one thread holds.
//! - Two entries never stay under one key: an insert that meets another entry for its key takes
//!   itself back.
//! - A removed entry's words stay as they were until every online worker has announced, through
//!   [`Quiescence`], that it holds no entry any more.
//! - Nothing is allocated after the start, and every limit that is reached is counted.
//! - A table in memory that outlives its process is taken over by the next one with every entry
//!   that was inserted and not removed, also when the process was killed: see [`Table::take_over`].
//!
//! # What it leaves to others
//! Keys, time-outs and what the words of an entry mean: a [`Key`] compares itself with an entry.
//!
//! # Reading order
//! [`hasher`] (tuples to hashes), `index` (hashes to handles), [`entry`] (handles to words),
//! [`quiescence`] (when a handle may be used again), then [`Table`] and [`Owner`], which join them;
//! `header` and `take_over` are the table's life beyond its process.
//! `memory` and `arch` hold what needs `unsafe`: raw memory, prefetches, vector loads.
//!
//! # Example
//! ```
//! use flow_table::{Entry, Hasher, Hashes, Key, Memory, Quiescence, Shape, Table};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! #[derive(Clone, Copy)]
//! struct Tuple([u64; 2]);
//! impl Key<8> for Tuple {
//!     type Match = ();
//!     fn matches(&self, entry: &Entry<8>) -> Option<()> {
//!         let words = entry.words();
//!         (words[0].load(Relaxed) == self.0[0] && words[1].load(Relaxed) == self.0[1]).then_some(())
//!     }
//! }
//!
//! let quiescence = Quiescence::new(1)?;
//! let (table, mut owners) = Table::<8>::new(Memory::Heap, Shape::fixed(1000, 1), quiescence.clone())?;
//! let owner = &mut owners[0];
//! quiescence.go_online(0);
//!
//! let hasher = Hasher::new([1, 2]); // random in production
//! let tuple = Tuple([10, 20]);
//! let hash = hasher.hash(&tuple.0);
//! let handle = owner.insert((hash, tuple), None, &[10, 20, 0, 0, 0, 0, 0, 0])?;
//! assert_eq!(table.lookup(hash, &tuple).map(|hit| hit.handle), Some(handle));
//!
//! owner.remove(handle, Hashes { original: hash, alias: None })?;
//! assert!(table.lookup(hash, &tuple).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(
    not(test),
    deny(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)
)]
// Models use a part of the crate.
#![cfg_attr(any(loom, shuttle), allow(dead_code))]

mod arch;
mod cast;
pub mod entry;
mod error;
mod geometry;
pub mod hasher;
mod header;
mod holdings;
mod index;
mod memory;
#[cfg(all(test, not(any(loom, shuttle))))]
mod mortal;
mod owner;
pub mod quiescence;
mod recycler;
mod shape;
mod slab;
mod statistics;
mod sync;
mod table;
#[cfg(not(any(loom, shuttle)))]
mod take_over;

pub use arch::prefetch;
pub use entry::{Entry, Handle, Key};
pub use error::{InsertError, RemoveError, SetupError, TakeOverError};
pub use geometry::Regions;
pub use hasher::Hasher;
pub use header::{Inspected, Tag};
pub use memory::Memory;
pub use owner::{Hashes, Owner, Sweep, Swept};
pub use quiescence::{Grace, Quiescence};
pub use shape::Shape;
pub use statistics::Statistics;
pub use table::{BURST, Hit, Table};
#[cfg(not(any(loom, shuttle)))]
pub use take_over::{Keys, TakenOver};
