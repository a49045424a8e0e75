//! The index as somebody has left it in the memory: gone on with, or begun anew.

use std::sync::Arc;

use super::layout::LayoutWords;
use super::resize::Mover;
use super::{Bucket, GROUP_BUCKETS, Index};
use crate::error::SetupError;
use crate::header::Header;
use crate::memory::Carver;
use crate::quiescence::Quiescence;

impl Index {
    /// The index that lies in the memory, with what its header notes of it when it can be right;
    /// else it stands in the first half, and must be cleared.
    pub(crate) fn found(
        carver: &mut Carver,
        header: &Header,
        groups_max: usize,
        quiescence: Arc<Quiescence>,
    ) -> Result<(Self, bool), SetupError> {
        let buckets = groups_max * GROUP_BUCKETS;
        let halves = [carver.array(buckets, 0)?, carver.array(buckets, 0)?];
        let half = header.half();
        let groups = if half < 2 { header.groups(half) } else { 0 };
        let possible = (1..=groups_max).contains(&groups);
        let words = if possible { LayoutWords::new(half, groups) } else { LayoutWords::new(0, 1) };
        Ok((Self { halves, words, mover: Mover::new(quiescence) }, possible))
    }

    /// Forgets all keys, and begins anew with room for so many in at most `groups_max` groups, which
    /// is what there is memory for; while nobody else uses it.
    pub(crate) fn clear(&mut self, header: &Header, keys: usize, groups_max: usize) {
        for (half, buckets) in self.halves.iter().enumerate() {
            let used = header.groups(half).min(groups_max) * GROUP_BUCKETS;
            buckets.iter().take(used).for_each(Bucket::empty);
        }
        let groups = Self::groups_for(keys).clamp(1, groups_max);
        header.note_groups(0, groups);
        header.note_groups(1, 0);
        self.words = LayoutWords::new(0, groups);
    }

    /// Notes where it is, when nothing moves.
    pub(crate) fn note(&self, header: &Header) {
        let view = self.view();
        header.note_groups(view.layout.half(), view.groups());
        header.note_half(view.layout.half());
    }

    /// Whether no slot is in use anywhere.
    #[cfg(all(test, not(any(loom, shuttle))))]
    pub(crate) fn is_empty(&self) -> bool {
        self.halves.iter().flat_map(|half| half.iter()).all(|bucket| bucket.used() == 0)
    }
}
