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
    /// Of those, free entries.
    free: u32,
    /// All its segments are below this one.
    end: u32,
    ahead: Ahead,
}

/// Handles that are asked for before their turn: with a new flow in some 100 ns, a line of memory
/// comes in time for the second or third after.
const AHEAD: u32 = 8;
/// Handles, or changes of segment, looked at for each one taken.
const AHEAD_STEPS: u32 = 4;

/// Handles that will probably be taken next, whose lines were asked for.
struct Ahead {
    /// The latest ones, each at its number's place.
    handles: [Option<Handle>; AHEAD as usize],
    /// How many were asked for, and how many of these were taken or given up; they wrap.
    asked: u32,
    taken: u32,
    /// The place in a segment where the next one is looked for.
    at: (SegmentId, u32),
}

impl Ahead {
    fn new() -> Self {
        Self { handles: [None; AHEAD as usize], asked: 0, taken: 0, at: (SegmentId(0), 0) }
    }

    fn is_next(&self, handle: Handle) -> bool {
        self.asked != self.taken && self.handles[(self.taken % AHEAD) as usize] == Some(handle)
    }

    fn ask(&mut self, handle: Handle) {
        self.handles[(self.asked % AHEAD) as usize] = Some(handle);
        self.asked = self.asked.wrapping_add(1);
    }
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
        Self {
            table,
            owner,
            roomy: None,
            entries: 0,
            known: 0,
            free: 0,
            end: 0,
            ahead: Ahead::new(),
        }
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
        let slab = self.table.slab();
        // A used handle rather than one that was never used: its memory is there already.
        let place = slab.free().first(id).unwrap_or_else(|| get(&self.record(id).touched));
        slab.handle_at(id, place)
    }

    /// Takes what `peek` showed.
    pub(crate) fn take(&mut self, handle: Handle) {
        let slab = self.table.slab();
        let id = slab.segment_of(handle);
        let (record, place) = (slab.segment(id), slab.place_of(handle));
        if place < get(&record.touched) {
            slab.free().remove(id, place);
            self.free -= 1;
        } else {
            set(&record.touched, place + 1);
            self.known += 1;
        }
        set(&record.live, get(&record.live) + 1);
        self.look_ahead((id, place), handle);
        if !self.has_room(id) {
            self.unlist(id);
        }
    }

    /// Asks for what later inserts will write, so far ahead that it has come by then. Only a guess:
    /// a segment that comes back into the list takes its turn first.
    #[inline(always)]
    fn look_ahead(&mut self, (id, place): (SegmentId, u32), taken: Handle) {
        if self.ahead.is_next(taken) {
            self.ahead.taken = self.ahead.taken.wrapping_add(1);
        } else {
            (self.ahead.at, self.ahead.taken) = ((id, place + 1), self.ahead.asked);
        }
        let slab = self.table.slab();
        for _ in 0..AHEAD_STEPS {
            if self.ahead.asked.wrapping_sub(self.ahead.taken) >= AHEAD {
                return;
            }
            let (id, from) = self.ahead.at;
            let record = slab.segment(id);
            let fresh = || get(&record.touched).max(from);
            let place = slab.free().from(id, from).unwrap_or_else(fresh);
            if place < slab.len_of(id) {
                self.ahead.at.1 = place + 1;
                if let Some(handle) = slab.handle_at(id, place) {
                    slab.prefetch_for_insert(handle);
                    self.ahead.ask(handle);
                }
            } else if let Some(following) = unpack(get(&record.next)) {
                self.ahead.at = (following, 0);
            } else {
                return;
            }
        }
    }

    fn has_room(&self, id: SegmentId) -> bool {
        let record = self.record(id);
        let slab = self.table.slab();
        !slab.free().is_empty(id) || get(&record.touched) < slab.len_of(id)
    }

    /// Takes back a handle that nobody can find any more.
    pub(crate) fn release(&mut self, handle: Handle) {
        let slab = self.table.slab();
        let id = slab.segment_of(handle);
        let record = slab.segment(id);
        slab.free().insert(id, slab.place_of(handle));
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

    /// Gives back what is idle of the segments that may not be used any more; there may be one.
    pub(crate) fn leave_above_limit(&mut self) {
        let mut next = self.roomy;
        while let Some(id) = next {
            next = unpack(get(&self.record(id).next));
            if !self.table.slab().is_within_limit(id) {
                self.unlist(id);
                self.give_back_if_idle(id);
            }
        }
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
