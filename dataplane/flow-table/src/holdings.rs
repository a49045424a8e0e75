//! The segments of one owner, and the free handles in them.

use std::ops::Range;
use std::sync::Arc;

use crate::entry::Handle;
use crate::slab::{Segment, SegmentId};
use crate::sync::{AtomicU32, Ordering};
use crate::table::Table;

/// Where one owner takes handles from.
pub(crate) struct Holdings<const WORDS: usize> {
    table: Arc<Table<WORDS>>,
    owner: usize,
    /// The first of the segments that have room, linked through their records.
    roomy: Option<SegmentId>,
    /// Entries of all its segments.
    entries: u32,
    /// Entries that were ever used since their segment was claimed.
    known: u32,
    /// Of those, entries in its segments' chains of free ones.
    free: u32,
    /// All its segments are below this one.
    end: u32,
}

fn get(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

/// Only the owner of a segment writes its record.
fn set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Relaxed);
}

fn pack(id: Option<SegmentId>) -> u32 {
    id.map_or(0, |id| id.0 + 1)
}

fn unpack(number: u32) -> Option<SegmentId> {
    number.checked_sub(1).map(SegmentId)
}

impl<const WORDS: usize> Holdings<WORDS> {
    pub(crate) fn new(table: Arc<Table<WORDS>>, owner: usize) -> Self {
        Self { table, owner, roomy: None, entries: 0, known: 0, free: 0, end: 0 }
    }

    /// Holds the segments that are assigned to the owner, whose records are right.
    pub(crate) fn adopt(&mut self) {
        let (table, owner) = (Arc::clone(&self.table), self.owner);
        for id in table.slab().segment_ids().filter(|id| table.slab().is_owned(*id, owner)) {
            let record = table.slab().segment(id);
            let (touched, live) = (get(&record.touched), get(&record.live));
            self.entries += table.slab().len_of(id);
            self.known += touched;
            self.free += touched - live;
            self.end = id.0 + 1;
            set(&record.listed, 0);
            if self.has_room(id) {
                self.list(id);
            }
        }
    }

    /// Entries of its segments.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Entries that were ever used since their segment was claimed.
    pub(crate) fn known(&self) -> u32 {
        self.known
    }

    /// Entries of those known that are free.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    fn record(&self, id: SegmentId) -> &Segment {
        self.table.slab().segment(id)
    }

    /// The handle that the next `take` takes; claims a segment if need be.
    pub(crate) fn peek(&mut self) -> Option<Handle> {
        loop {
            let Some(id) = self.roomy else {
                let id = self.table.slab().claim(self.owner)?;
                self.entries += self.table.slab().len_of(id);
                self.end = self.end.max(id.0 + 1);
                self.list(id);
                continue;
            };
            if self.table.slab().is_within_limit(id) {
                return self.free_in(id);
            }
            // The table shrinks: what is free here stays free.
            self.unlist(id);
            self.give_back_if_idle(id);
        }
    }

    fn free_in(&self, id: SegmentId) -> Option<Handle> {
        let record = self.record(id);
        // A used handle rather than one that was never used: its memory is there already.
        Handle::new(get(&record.free))
            .or_else(|| Handle::new(self.table.slab().start_of(id) + get(&record.touched)))
    }

    /// Takes what `peek` showed.
    pub(crate) fn take(&mut self, handle: Handle) {
        let slab = self.table.slab();
        let id = slab.segment_of(handle);
        let record = slab.segment(id);
        if get(&record.free) == handle.number() {
            set(&record.free, slab.next(handle).map_or(0, Handle::number));
            self.free -= 1;
        } else {
            set(&record.touched, get(&record.touched) + 1);
            self.known += 1;
        }
        set(&record.live, get(&record.live) + 1);
        if !self.has_room(id) {
            self.unlist(id);
        }
    }

    fn has_room(&self, id: SegmentId) -> bool {
        let record = self.record(id);
        get(&record.free) != 0 || get(&record.touched) < self.table.slab().len_of(id)
    }

    /// Takes back a handle that nobody can find any more.
    pub(crate) fn release(&mut self, handle: Handle) {
        let slab = self.table.slab();
        let id = slab.segment_of(handle);
        let record = slab.segment(id);
        slab.link(handle, Handle::new(get(&record.free)));
        set(&record.free, handle.number());
        self.free += 1;
        set(&record.live, get(&record.live).saturating_sub(1));
        let within_limit = slab.is_within_limit(id);
        if get(&record.listed) == 0 && within_limit {
            self.list(id);
        }
        // One with room is kept, lest it comes and goes with every flow.
        if !within_limit || self.roomy.is_some_and(|first| get(&self.record(first).next) != 0) {
            self.give_back_if_idle(id);
        }
    }

    fn give_back_if_idle(&mut self, id: SegmentId) {
        let record = self.record(id);
        if get(&record.live) != 0 {
            return;
        }
        if get(&record.listed) != 0 {
            self.unlist(id);
        }
        let slab = self.table.slab();
        let touched = get(&slab.segment(id).touched);
        self.known -= touched;
        self.free -= touched;
        self.entries -= slab.len_of(id);
        slab.give_back(id);
    }

    fn list(&mut self, id: SegmentId) {
        let record = self.record(id);
        set(&record.listed, 1);
        set(&record.previous, 0);
        set(&record.next, pack(self.roomy));
        if let Some(next) = self.roomy {
            set(&self.record(next).previous, pack(Some(id)));
        }
        self.roomy = Some(id);
    }

    fn unlist(&mut self, id: SegmentId) {
        let record = self.record(id);
        let (previous, next) = (unpack(get(&record.previous)), unpack(get(&record.next)));
        set(&record.listed, 0);
        match previous {
            Some(previous) => set(&self.record(previous).next, pack(next)),
            None => self.roomy = next,
        }
        if let Some(next) = next {
            set(&self.record(next).previous, pack(previous));
        }
    }

    /// The handles in use or used before of the first own segment from `id` on.
    pub(crate) fn used_from(&self, id: SegmentId) -> Option<(SegmentId, Range<u32>)> {
        let slab = self.table.slab();
        (id.0..self.end).map(SegmentId).find_map(|id| {
            let touched = slab.is_owned(id, self.owner).then(|| get(&slab.segment(id).touched))?;
            let start = slab.start_of(id);
            (touched > 0).then_some((id, start..start + touched))
        })
    }
}
