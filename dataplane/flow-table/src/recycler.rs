//! Handles of removed entries, in the order of their removal, until they may be used again.

use crate::quiescence::Quiescence;

/// A queue of handles in three parts: ready to be used, waiting in the grace period under way, and
/// removed since that began. Positions only grow; a handle's place is its position modulo the
/// queue's length, which is the number of handles, so that nothing is ever allocated or lost.
pub(crate) struct Recycler {
    queue: Box<[u32]>,
    /// Taken up to here.
    taken: usize,
    /// May be taken up to here.
    ready: usize,
    /// What the grace period under way releases; equal to `ready` when there is none.
    released_next: usize,
    /// Removed up to here.
    removed: usize,
    /// Where the workers were when the grace period under way began.
    seen: Box<[u64]>,
}

impl Recycler {
    pub(crate) fn new(handles: usize, workers: usize) -> Self {
        Self {
            queue: vec![0; handles].into_boxed_slice(),
            taken: 0,
            ready: 0,
            released_next: 0,
            removed: 0,
            seen: vec![0; workers].into_boxed_slice(),
        }
    }

    /// The handle that the next `take` takes.
    pub(crate) fn peek(&self) -> Option<u32> {
        (self.taken != self.ready).then(|| self.queue[self.taken % self.queue.len()])
    }

    /// Takes what `peek` showed.
    pub(crate) fn take(&mut self) {
        if self.taken != self.ready {
            self.taken = self.taken.wrapping_add(1);
        }
    }

    /// Queues a handle that no index slot names any more.
    pub(crate) fn retire(&mut self, handle: u32) {
        let place = self.removed % self.queue.len();
        self.queue[place] = handle;
        self.removed = self.removed.wrapping_add(1);
    }

    /// Releases what every worker has let go of, and begins the next grace period if need be.
    pub(crate) fn advance(&mut self, quiescence: &Quiescence) {
        if self.released_next != self.ready && quiescence.all_passed(&self.seen) {
            self.ready = self.released_next;
        }
        if self.released_next == self.ready && self.removed != self.ready {
            quiescence.observe(&mut self.seen);
            self.released_next = self.removed;
            // Workers that are all offline hold nothing: there is nothing to wait for.
            if quiescence.all_passed(&self.seen) {
                self.ready = self.released_next;
            }
        }
    }

    /// Handles queued, ready or not.
    pub(crate) fn queued(&self) -> usize {
        self.removed.wrapping_sub(self.taken)
    }

    /// Handles that wait for workers.
    pub(crate) fn waiting(&self) -> usize {
        self.removed.wrapping_sub(self.ready)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_handle_retired_during_a_grace_period_waits_for_the_next() {
        let quiescence = Quiescence::new(1).expect("workers");
        quiescence.go_online(0);
        let mut recycler = Recycler::new(2, 1);
        recycler.retire(7);
        recycler.advance(&quiescence);
        recycler.retire(8);
        quiescence.announce(0);
        recycler.advance(&quiescence);
        assert_eq!((recycler.peek(), recycler.waiting(), recycler.queued()), (Some(7), 1, 2));
        recycler.take();
        recycler.advance(&quiescence);
        assert_eq!(recycler.peek(), None);
        quiescence.announce(0);
        recycler.advance(&quiescence);
        assert_eq!((recycler.peek(), recycler.waiting(), recycler.queued()), (Some(8), 0, 1));
    }

    #[test]
    fn nothing_waits_when_every_worker_is_offline() {
        let quiescence = Quiescence::new(2).expect("workers");
        let mut recycler = Recycler::new(1, 2);
        for _ in 0..3 {
            recycler.retire(1);
            recycler.advance(&quiescence);
            assert_eq!(recycler.peek(), Some(1));
            recycler.take();
        }
    }
}
