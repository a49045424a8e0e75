//! The slab as somebody has left it in the memory.
//!
//! The truth is in the entries' states: an entry is marked as in use when its insert can no longer
//! fail, and as not in use before its removal begins. What a segment's record says beside is checked
//! against them, and made anew where it differs; so none of it is trusted, whoever wrote it.

use super::{Segment, SegmentId, Slab};
use crate::cast::half_word;
use crate::entry::Handle;
use crate::error::SetupError;
use crate::geometry::Geometry;
use crate::memory::Carver;
use crate::sync::{AtomicU32, Ordering};

fn get(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

fn set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Relaxed);
}

impl<const WORDS: usize> Slab<WORDS> {
    /// The slab that lies in the memory.
    pub(crate) fn found(carver: &mut Carver, geometry: Geometry) -> Result<Self, SetupError> {
        Self::carve(carver, geometry, 0, 0)
    }

    /// Segments that there are.
    pub(crate) fn segment_ids(&self) -> impl Iterator<Item = SegmentId> + use<WORDS> {
        (0..half_word(self.segments.len())).map(SegmentId)
    }

    /// The handles of a segment, whether they were ever taken or not.
    pub(crate) fn handles_of(&self, id: SegmentId) -> impl Iterator<Item = Handle> + use<WORDS> {
        let start = self.start_of(id);
        (start..start + self.len_of(id)).filter_map(Handle::new)
    }

    /// Who has a segment, by its record; some may not be there any more.
    pub(crate) fn owner_of(&self, id: SegmentId) -> Option<usize> {
        (get(&self.segment(id).owner) as usize).checked_sub(1)
    }

    /// Makes the record of a segment that was in use tell what the states of its entries say, if it
    /// does not. Returns how many entries are in use.
    pub(crate) fn recover(&self, id: SegmentId) -> u32 {
        let (live, touched) = self.count(id);
        if !self.holds_together(id, live, touched) {
            self.mend(id, live, touched);
        }
        live
    }

    /// Entries of a segment in use, and the handles up to the last of them.
    fn count(&self, id: SegmentId) -> (u32, u32) {
        let start = self.start_of(id) as usize - 1;
        let states = &self.states[start..start + self.len_of(id) as usize];
        let live = states.iter().map(|state| get(state) & 1).sum();
        let last = states.iter().rposition(|state| get(state) & 1 == 1);
        (live, last.map_or(0, |last| half_word(last) + 1))
    }

    /// Whether a segment's record is right, its chain of free handles included.
    fn holds_together(&self, id: SegmentId, live: u32, last: u32) -> bool {
        let Segment { touched, free, live: recorded, .. } = self.segment(id);
        let touched = get(touched);
        if get(recorded) != live || touched < last || touched > self.len_of(id) {
            return false;
        }
        let start = self.start_of(id);
        let mut next = get(free);
        // As many steps as there must be; a ring is longer.
        for _ in 0..touched - live {
            let Some(handle) = Handle::new(next) else { return false };
            if !(start..start + touched).contains(&next) || self.in_use(handle) {
                return false;
            }
            next = self.next(handle).map_or(0, Handle::number);
        }
        next == 0
    }

    /// Makes the record of a segment anew, and a chain of what is free before the last entry in use.
    fn mend(&self, id: SegmentId, live: u32, touched: u32) {
        let mut free = None;
        for handle in self.handles_of(id).take(touched as usize) {
            if !self.in_use(handle) {
                self.link(handle, free);
                free = Some(handle);
            }
        }
        let record = self.segment(id);
        set(&record.touched, touched);
        set(&record.live, live);
        set(&record.free, free.map_or(0, Handle::number));
    }

    /// Gives a segment to an owner, or to nobody; while no one uses the table.
    pub(crate) fn assign(&self, id: SegmentId, owner: Option<usize>) {
        let record = self.segment(id);
        if owner.is_none() {
            set(&record.touched, 0);
            set(&record.live, 0);
            set(&record.free, 0);
        }
        set(&record.owner, owner.map_or(0, |owner| half_word(owner) + 1));
    }

    /// Counts the segments that have an owner.
    pub(crate) fn recount(&self) {
        let claimed = self.segments.iter().filter(|record| get(&record.owner) != 0).count();
        set(&self.claimed, half_word(claimed));
    }
}
