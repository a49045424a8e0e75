//! Growing and shrinking: the index moves from one half of its memory to the other, group by group.
//!
//! Groups are numbered by the top bits of the hash in either half, so a group's keys go to the same
//! few neighbours, whatever the two sizes are, and one number tells how far the move is. Each step
//! moves one group, a few microseconds' work, between two bursts of whoever has just inserted:
//! 1. The layout says that the group moves. Lookups of its hashes read the old place, then the new
//!    one; inserts go to the new place.
//! 2. Every slot is published in its new place, then cleared in the old one by compare-and-swap. If
//!    the owner was faster in clearing it, the copy is cleared too.
//! 3. The layout says that the group has moved.
//!
//! # Why nothing is lost
//! *Inserts.* Who published in the old place looks at the layout after that, and the mover looks at
//! the slots after it changed the layout, all sequentially consistent: so either the mover sees the
//! slot, or the inserter sees the change. In the second case both try to clear the slot; the one
//! that succeeds publishes it anew (the mover has done so before). The inserter clears it where it
//! has put it: looked for like any other, a slot beside both its buckets could not be found any more
//! once the mover was done with the group and had its overflows forgotten, and the key was lost.
//!
//! *Lookups.* A lookup that misses because the slot was cleared by the mover has acquired that, so
//! it sees the changed layout when it looks again, and starts over. At most twice a resize.
//!
//! *Removals.* The owner clears the slot where it is. If the mover is copying it at that instant,
//! the mover's own clearing fails and it withdraws the copy before its step ends. Until then a
//! lookup may still find the removed entry; therefore the entry is used again only after *two*
//! grace periods: after the first the mover's step has ended, after the second all lookups have.
//!
//! *Stale layouts.* A worker's view of the layout lives for a part of a burst. A half is used again
//! only after a grace period, so no view is as old as two resizes.

use std::sync::Arc;

use super::bucket::hash_in;
use super::layout::{View, Whereabouts};
use super::{GROUP_BUCKETS, Index, claim, clear};
use crate::quiescence::{Quiescence, Snapshot};
use crate::sync::{AtomicU32, Ordering, model_fence};

/// What a resize is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is nothing to move.
    Idle,
    /// Somebody else moves a group at this moment.
    Taken,
    /// One group was moved, and there are more.
    Moved,
    /// The last group was moved: the other half is free.
    Finished,
    /// The group's new place has no room; it stays half moved, which lookups can bear, and is tried
    /// again.
    NoRoom,
}

/// Who may move, and when a half may be used again.
pub(super) struct Mover {
    taken: AtomicU32,
    quiescence: Arc<Quiescence>,
    /// Where the workers were at the end of the last resize. For whoever has taken the mover.
    left: Snapshot,
}

impl Mover {
    pub(super) fn new(quiescence: Arc<Quiescence>) -> Self {
        let left = Snapshot::new(quiescence.workers());
        Self { taken: AtomicU32::new(0), quiescence, left }
    }

    /// Takes the mover, unless somebody has.
    fn take(&self) -> Option<Taken<'_>> {
        let order = (Ordering::Acquire, Ordering::Relaxed);
        self.taken.compare_exchange(0, 1, order.0, order.1).ok().map(|_| Taken(self))
    }
}

struct Taken<'m>(&'m Mover);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.taken.store(0, Ordering::Release);
    }
}

impl Index {
    /// Begins to move to `groups` groups in the other half, whose memory must be there, and tells
    /// `note` which and how many just before. False when a move is under way, or the last one may
    /// still be in a worker's hands.
    pub(crate) fn begin_resize(&self, groups: usize, note: impl FnOnce(usize, usize)) -> bool {
        let Some(taken) = self.mover.take() else { return false };
        let view = self.view();
        let groups_max = self.halves[0].len() / GROUP_BUCKETS;
        if view.layout.resizes() || !self.mover.quiescence.have_passed(&taken.0.left) {
            return false;
        }
        let (half, groups) = (1 - view.layout.half(), groups.clamp(1, groups_max));
        note(half, groups);
        self.words.set_target(half, groups);
        self.words.store(view.layout.begin());
        true
    }

    /// Whether a move is under way.
    pub(crate) fn resizes(&self) -> bool {
        self.view().layout.resizes()
    }

    /// Moves one group. Only for threads that the quiescence knows, online, or while no other
    /// thread uses the table.
    #[cold]
    pub(crate) fn step(&self) -> Step {
        let Some(taken) = self.mover.take() else { return Step::Taken };
        let view = self.view();
        let layout = view.layout;
        if !layout.resizes() {
            return Step::Idle;
        }
        let moving = layout.begin_group();
        self.words.store(moving);
        model_fence();
        if !self.empty_group(view.with(moving)) {
            return Step::NoRoom;
        }
        let moved = layout.end_group();
        if moved.moved() < view.groups() {
            self.words.store(moved);
            self.forget_overflows(view);
            return Step::Moved;
        }
        self.words.store(moved.end());
        self.forget_overflows(view);
        self.mover.quiescence.note(&taken.0.left);
        Step::Finished
    }

    /// Moves every key of the group that moves. False when there is no room for one.
    fn empty_group(&self, view: View) -> bool {
        self.moving_group(view).iter().flat_map(|bucket| bucket.slots()).all(|slot| {
            let value = slot.load(Ordering::SeqCst);
            if value == 0 {
                return true;
            }
            let hash = hash_in(value);
            let Whereabouts::Moving(_, to) = view.whereabouts(hash) else { return true };
            if claim(self.group(to), hash, value).is_err() {
                return false;
            }
            if slot.compare_exchange(value, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                clear(self.group(to), hash, value);
            }
            true
        })
    }

    /// Who still looks there starts over, and nobody counts there any more.
    fn forget_overflows(&self, view: View) {
        self.moving_group(view).iter().for_each(super::Bucket::forget_overflows);
    }

    fn moving_group(&self, view: View) -> &[super::Bucket] {
        let start = view.layout.moved() * GROUP_BUCKETS;
        &self.halves[view.layout.half()][start..start + GROUP_BUCKETS]
    }
}
