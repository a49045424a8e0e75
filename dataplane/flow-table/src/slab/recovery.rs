//! The slab as somebody has left it in the memory.
//!
//! The truth is in the entries' states: an entry is marked as in use when its insert can no longer
//! fail, and as not in use before its removal begins. What a segment's record says beside is checked
//! against them, and made anew where it differs; so none of it is trusted, whoever wrote it.

use super::{SegmentId, Slab};
use crate::cast::half_word;
use crate::entry::Handle;
use crate::error::SetupError;
use crate::geometry::{Geometry, SEGMENT_BITS_MAX};
use crate::memory::Carver;
use crate::sync::{AtomicU32, Ordering};

/// Words with a bit for each entry of a segment.
const SEGMENT_WORDS: usize = (1 << SEGMENT_BITS_MAX) / 64;

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
        (0..half_word(self.records().len())).map(SegmentId)
    }

    /// The handles of a segment, whether they were ever taken or not.
    pub(crate) fn handles_of(&self, id: SegmentId) -> impl Iterator<Item = Handle> + use<WORDS> {
        let start = self.start_of(id);
        (start..start + self.len_of(id)).filter_map(Handle::new)
    }

    /// Who has a segment, by its record; some may not be there any more.
    #[inline(always)]
    pub(crate) fn owner_of(&self, id: SegmentId) -> Option<usize> {
        (get(&self.segment(id).owner) as usize).checked_sub(1)
    }

    /// Makes the record of a segment that was in use tell what the states of its entries say, and
    /// notes which of its handles are free. Returns how many entries are in use.
    pub(crate) fn recover(&self, id: SegmentId) -> u32 {
        let start = self.start_of(id) as usize - 1;
        let states = &self.states[start..start + self.len_of(id) as usize];
        // A bit for each entry that is in use.
        let mut used = [0u64; SEGMENT_WORDS];
        let (mut live, mut last) = (0, 0);
        for ((states, used), start) in states.chunks(64).zip(&mut used).zip((0..).step_by(64)) {
            let bits = states.iter().zip(0u32..).map(|(state, n)| u64::from(get(state) & 1) << n);
            *used = bits.fold(0, |bits, bit| bits | bit);
            live += used.count_ones();
            last = if *used == 0 { last } else { start + u64::BITS - used.leading_zeros() };
        }
        let record = self.segment(id);
        let recorded = get(&record.touched);
        let touched = if (last..=self.len_of(id)).contains(&recorded) { recorded } else { last };
        set(&record.touched, touched);
        set(&record.live, live);
        let starts = (0..touched).step_by(64);
        let free = used.iter().zip(starts).map(|(used, start)| {
            let all = !0 >> (64 - (touched - start).min(64));
            all & !used
        });
        self.free().fill(id, free);
        live
    }

    /// Gives a segment to an owner, or to nobody; while no one uses the table.
    pub(crate) fn assign(&self, id: SegmentId, owner: Option<usize>) {
        let record = self.segment(id);
        if owner.is_none() {
            set(&record.touched, 0);
            set(&record.live, 0);
            self.free().clear(id);
        }
        set(&record.owner, owner.map_or(0, |owner| half_word(owner) + 1));
    }

    /// Counts the segments that have an owner.
    pub(crate) fn recount(&self) {
        let claimed = self.records().iter().filter(|record| get(&record.owner) != 0).count();
        set(&self.claimed, half_word(claimed));
        set(&self.above, self.owned_from(get(&self.limit)));
    }
}
