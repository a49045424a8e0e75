//! A table that outlives its process: closed, taken over as it is, rebuilt, or moved to another.
//!
//! A process that ends in order closes its table; the next one then goes on with the index as it
//! is. When a process was killed, its index may hold slots of inserts that never ended and lack
//! others that were being moved, so it is made anew from the entries in use, each of which is whole:
//! see [`Slab::commit`]. The same is done when there are other owners than before.
//!
//! Nothing in the memory is trusted. The header must be a table's of this version whose layout fits
//! into the memory; segments' records are checked against the entries' states; handles in the index
//! are checked at every lookup, as they always are. Words that are wrong without being impossible
//! can make flows be lost, or be somebody else's, but nothing else.

use std::sync::Arc;

use crate::arch::Path;
use crate::cast::index;
use crate::entry::{Entry, Handle, Key};
use crate::error::{SetupError, TakeOverError};
use crate::header::{Header, Inspected, Tag};
use crate::index::{Index, Step};
use crate::memory::{Array, Carver, Memory};
use crate::owner::Owner;
use crate::quiescence::Quiescence;
use crate::shape::Shape;
use crate::slab::{SegmentId, Slab};
use crate::statistics::Counters;
use crate::table::{BURST, Table};

/// What became of a table that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TakenOver {
    /// Whether the index was made anew from the entries.
    pub rebuilt: bool,
    /// Entries that the table has.
    pub entries: u64,
    /// Entries that were given up when the index was made anew: `keys` refused them, another entry
    /// had one of their keys, or the index had no room. A process that was killed leaves none such.
    pub given_up: u64,
}

/// The keys of an entry with their hashes: the original one, and the alias if there is one.
pub type Keys<K> = ((u64, K), Option<(u64, K)>);

impl<const WORDS: usize> Table<WORDS> {
    /// Words of the caller's, which [`Self::inspect`] tells again.
    pub fn set_tag(&self, tag: &Tag) {
        self.header[0].set_tag(tag);
    }

    /// One of them; a number above 7 does nothing.
    pub fn set_tag_word(&self, number: usize, value: u64) {
        self.header[0].set_tag_word(number, value);
    }

    /// What `memory` says of the table in it, for whoever is to decide what becomes of it.
    ///
    /// # Errors
    /// [`TakeOverError`], for memory that holds no table of this version and these words, or not
    /// all of it.
    pub fn inspect(memory: &[u8]) -> Result<Inspected, TakeOverError> {
        let inspected = Inspected::of(memory, WORDS)?;
        let needed_bytes = Self::bytes(inspected.geometry);
        if memory.len() < needed_bytes {
            let given_bytes = memory.len();
            return Err(SetupError::MemoryTooSmall { given_bytes, needed_bytes }.into());
        }
        Ok(inspected)
    }

    /// Goes on with the table in `memory`, which nobody else uses and which has all that the entries
    /// need that it was committed to or is to be, with the owners and the capacity of `shape`: as it is when all its owners were closed and are as many, else with an index
    /// that is made anew of the entries, whose keys `keys` tells; what is `None` to it is given up.
    ///
    /// Entries stay their owners' unless these are of another number; then they are dealt out
    /// evenly, by segments: [`Self::holder`] tells whose an entry is.
    ///
    /// # Errors
    /// Any [`TakeOverError`]: `Shape` when most entries or details are to be others.
    pub fn take_over<K: Key<WORDS>>(
        memory: &'static mut [u8],
        shape: &Shape,
        quiescence: &Arc<Quiescence>,
        keys: impl Fn(&Entry<WORDS>) -> Option<Keys<K>>,
    ) -> Result<(Arc<Self>, Vec<Owner<WORDS>>, TakenOver), TakeOverError> {
        shape.check()?;
        let Found { inspected, mut carver, header, slab } = Self::find(memory)?;
        if (inspected.capacity_max, inspected.details) != (shape.capacity_max, shape.details) {
            let Inspected { capacity_max, details, .. } = inspected;
            return Err(TakeOverError::Shape { capacity_max, details });
        }
        let groups_max = inspected.geometry.groups_max();
        let (index, possible) =
            Index::found(&mut carver, &header[0], groups_max, Arc::clone(quiescence))?;
        slab.set_capacity(shape.capacity, shape.committed);
        let counters = (0..shape.owners).map(|_| Counters::default()).collect();
        let geometry = inspected.geometry;
        let mut table = Self { header, slab, index, counters, geometry, path: Path::best() };
        let closed = inspected.is_clean() && inspected.owners == shape.owners && possible;
        let recorded: Vec<u64> =
            (0..shape.owners).map(|owner| table.header[0].keys(owner)).collect();
        table.header[0].open(shape.owners);
        table.note_capacity();
        let mut taken = TakenOver { entries: table.deal(inspected.owners), ..TakenOver::default() };
        // One or two for each entry.
        let sum = recorded.iter().fold(0u64, |sum, keys| sum.saturating_add(*keys));
        taken.rebuilt = !closed || !(taken.entries..=2 * taken.entries).contains(&sum);
        let keys_of = if taken.rebuilt { table.rebuild(&keys, &mut taken) } else { recorded };
        table.slab.recount();
        let (table, mut owners) = table.with_owners(quiescence);
        owners.iter_mut().zip(keys_of).for_each(|(owner, keys)| owner.adopt(keys));
        Ok((table, owners, taken))
    }

    /// The table in the memory as far as it depends on nothing but its geometry.
    fn find(memory: &'static mut [u8]) -> Result<Found<WORDS>, TakeOverError> {
        let given_bytes = memory.len();
        let mut carver = Carver::new(Memory::Mapped(memory), size_of::<Header>())?;
        let header: Array<Header> = carver.array(1, 0)?;
        let inspected = header[0].read(WORDS)?;
        let needed_bytes = Self::bytes(inspected.geometry);
        if given_bytes < needed_bytes {
            return Err(SetupError::MemoryTooSmall { given_bytes, needed_bytes }.into());
        }
        let slab = Slab::found(&mut carver, inspected.geometry)?;
        slab.remember(inspected.committed);
        Ok(Found { inspected, carver, header, slab })
    }

    /// Checks segments and gives each to an owner: the one it had if there are as many as before,
    /// else to one after the other. Returns how many entries they have.
    fn deal(&self, owners_before: usize) -> u64 {
        let owners = self.counters.len();
        let (mut turn, mut entries) = (0, 0);
        for id in self.slab.segment_ids() {
            let Some(before) = self.slab.owner_of(id) else {
                self.slab.assign(id, None);
                continue;
            };
            let live = self.slab.recover(id);
            entries += u64::from(live);
            let owner = if owners == owners_before && before < owners { before } else { turn };
            turn = (turn + usize::from(live > 0)) % owners;
            self.slab.assign(id, (live > 0).then_some(owner));
        }
        entries
    }

    /// Makes the index anew of the entries in use. Returns how many keys each owner has.
    fn rebuild<K: Key<WORDS>>(
        &mut self,
        keys: &impl Fn(&Entry<WORDS>) -> Option<Keys<K>>,
        taken: &mut TakenOver,
    ) -> Vec<u64> {
        // As many as there can be, each with an alias: no group must be too full for its keys.
        let room = (2 * index(taken.entries)).max(self.capacity() as usize);
        self.index.clear(&self.header[0], room, self.groups_committed());
        let mut keys_of = vec![0; self.counters.len()];
        for id in self.slab.segment_ids() {
            let Some(owner) = self.slab.owner_of(id) else { continue };
            let (published, given_up) = self.publish_segment(id, keys);
            keys_of[owner] += published;
            if given_up > 0 {
                taken.given_up += given_up;
                taken.entries -= given_up;
                self.slab.recover(id);
            }
        }
        keys_of
    }

    /// Publishes what is in use of a segment. Returns how many keys it has, and how many entries
    /// were given up.
    fn publish_segment<K: Key<WORDS>>(
        &self,
        id: SegmentId,
        keys: &impl Fn(&Entry<WORDS>) -> Option<Keys<K>>,
    ) -> (u64, u64) {
        let (mut published, mut given_up) = (0, 0);
        let mut in_use = self.slab.handles_of(id).filter(|handle| self.slab.in_use(*handle));
        loop {
            // Index lines of a burst arrive together.
            let mut burst = [const { None }; BURST];
            for (place, handle) in burst.iter_mut().zip(&mut in_use) {
                let keys = self.slab.entry(handle).and_then(keys);
                if let Some(((original, _), alias)) = &keys {
                    self.prefetch(*original);
                    alias.iter().for_each(|(hash, _)| self.prefetch(*hash));
                }
                *place = Some((handle, keys));
            }
            if burst[0].is_none() {
                return (published, given_up);
            }
            for (handle, keys) in burst.into_iter().flatten() {
                if let Some(count) = keys.and_then(|keys| self.publish_again(handle, &keys)) {
                    published += count;
                } else {
                    self.slab.link(handle, None);
                    given_up += 1;
                }
            }
        }
    }

    /// Publishes an entry under its keys, unless another one has one of them. Returns how many keys
    /// it has.
    fn publish_again<K: Key<WORDS>>(&self, handle: Handle, keys: &Keys<K>) -> Option<u64> {
        let (original, alias) = keys;
        let is_taken = |(hash, key): &(u64, K)| self.other(*hash, key, None).is_some();
        if is_taken(original) || alias.as_ref().is_some_and(is_taken) {
            return None;
        }
        self.index.publish(original.0, handle).ok()?;
        let Some((hash, _)) = alias else { return Some(1) };
        if self.index.publish(*hash, handle).is_err() {
            self.index.withdraw(original.0, handle);
            return None;
        }
        Some(2)
    }

    /// Closes what is left of a table's owners, once no thread looks anything up any more: finishes
    /// what they have begun, so that the next process can go on with the table as it is. False if
    /// it cannot be finished, because a worker is online still; or if not all owners are given,
    /// such as that of a thread that panicked. Then the next process has to rebuild the table.
    pub fn close(&self, owners: Vec<Owner<WORDS>>) -> bool {
        while self.index.resizes() {
            match self.index.step() {
                Step::Moved | Step::Finished | Step::Idle => {}
                Step::NoRoom | Step::Taken => return false,
            }
        }
        self.index.note(&self.header[0]);
        let mut closed = 0;
        for mut owner in owners {
            if std::ptr::eq(&**owner.table(), self) && owner.release_all() {
                self.header[0].close(owner.number(), owner.keys());
                closed += 1;
            }
        }
        closed == self.counters.len()
    }

    /// Visits the words of every entry in use of the table in `memory`, whatever its shape, and
    /// leaves it as it is: to move its flows to a new table. Returns how many there were.
    ///
    /// # Errors
    /// As [`Self::inspect`].
    pub fn salvage(
        memory: &mut [u8],
        mut visit: impl FnMut([u64; WORDS]),
    ) -> Result<u64, TakeOverError> {
        let (start, bytes) = (memory.as_mut_ptr(), memory.len());
        // SAFETY: the same memory, which stays borrowed until this returns; nothing that points
        // into it is kept longer.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        let Found { slab, .. } = Self::find(memory)?;
        let mut entries = 0;
        for id in slab.segment_ids().filter(|id| slab.owner_of(*id).is_some()) {
            for words in slab.handles_of(id).filter_map(|handle| slab.snapshot(handle)) {
                visit(words);
                entries += 1;
            }
        }
        Ok(entries)
    }

    /// The owner whose an entry is, who alone can remove it; `None` while nobody has it.
    #[must_use]
    pub fn holder(&self, handle: Handle) -> Option<usize> {
        self.slab.entry(handle)?;
        self.slab.owner_of(self.slab.segment_of(handle))
    }

    /// Whether `owner` has an entry that was found just now: [`Self::holder`] for every packet.
    #[inline(always)]
    #[must_use]
    pub fn is_held_by(&self, handle: Handle, owner: usize) -> bool {
        self.slab.owner_of(self.slab.segment_of(handle)) == Some(owner)
    }
}

/// What [`Table::find`] finds.
struct Found<const WORDS: usize> {
    inspected: Inspected,
    carver: Carver,
    header: Array<Header>,
    slab: Slab<WORDS>,
}

#[cfg(all(test, not(any(loom, shuttle))))]
#[path = "take_over_tests.rs"]
mod tests;
