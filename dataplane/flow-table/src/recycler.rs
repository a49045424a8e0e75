//! Handles of removed entries, in the order of their removal, until they may be used again.
//!
//! They wait for two grace periods: after the first, whoever was moving the index has withdrawn the
//! copies it made of their slots; after the second, whoever found such a copy has let go of it.

use std::sync::Arc;

use crate::entry::Handle;
use crate::quiescence::{Quiescence, Snapshot};
use crate::slab::Slab;

/// Handles linked through their states, first in, first out.
#[derive(Debug, Default, Clone, Copy)]
struct Chain {
    ends: Option<(Handle, Handle)>,
    len: usize,
}

impl Chain {
    fn push<const W: usize>(&mut self, slab: &Slab<W>, handle: Handle) {
        slab.link(handle, None);
        self.ends = match self.ends {
            None => Some((handle, handle)),
            Some((first, last)) => {
                slab.link(last, Some(handle));
                Some((first, handle))
            }
        };
        self.len += 1;
    }

    fn first(&self) -> Option<Handle> {
        self.ends.map(|(first, _)| first)
    }

    fn pop<const W: usize>(&mut self, slab: &Slab<W>) -> Option<Handle> {
        let (first, last) = self.ends?;
        self.ends = slab.next(first).map(|next| (next, last));
        self.len -= 1;
        Some(first)
    }

    fn append<const W: usize>(&mut self, slab: &Slab<W>, other: &mut Self) {
        let Self { ends, len } = std::mem::take(other);
        self.ends = match (self.ends, ends) {
            (Some((first, last)), Some((next, end))) => {
                slab.link(last, Some(next));
                Some((first, end))
            }
            (mine, theirs) => mine.or(theirs),
        };
        self.len += len;
    }
}

/// Grace periods that a removed entry waits for.
const GRACE_PERIODS: u8 = 2;

/// Where removed handles wait.
pub(crate) struct Recycler {
    quiescence: Arc<Quiescence>,
    /// May be used again.
    ready: Chain,
    /// Waits for the grace periods that are under way.
    waiting: Chain,
    /// Removed since those began.
    removed: Chain,
    /// Grace periods that are left for what waits.
    left: u8,
    /// Where the workers were when the one under way began.
    began: Snapshot,
}

impl Recycler {
    pub(crate) fn new(quiescence: Arc<Quiescence>) -> Self {
        let began = Snapshot::new(quiescence.workers());
        let (ready, waiting, removed) = Default::default();
        Self { quiescence, ready, waiting, removed, left: 0, began }
    }

    /// The handle that the next `take` takes.
    pub(crate) fn peek(&self) -> Option<Handle> {
        self.ready.first()
    }

    /// Takes what `peek` showed.
    pub(crate) fn take<const W: usize>(&mut self, slab: &Slab<W>) -> Option<Handle> {
        self.ready.pop(slab)
    }

    /// Queues a handle that no index slot names any more, and marks its entry as not in use.
    pub(crate) fn retire<const W: usize>(&mut self, slab: &Slab<W>, handle: Handle) {
        self.removed.push(slab, handle);
    }

    /// Queues a handle whose entry nobody ever found.
    pub(crate) fn put_back<const W: usize>(&mut self, slab: &Slab<W>, handle: Handle) {
        self.ready.push(slab, handle);
    }

    /// Releases what every worker has let go of, and begins the next grace periods if need be.
    pub(crate) fn advance<const W: usize>(&mut self, slab: &Slab<W>) {
        // At most: the end of one wait, the whole of another while all workers are offline.
        for _ in 0..=2 * GRACE_PERIODS {
            if self.left > 0 {
                if !self.quiescence.have_passed(&self.began) {
                    return;
                }
                self.left -= 1;
                if self.left == 0 {
                    self.ready.append(slab, &mut self.waiting);
                }
            }
            if self.left == 0 {
                if self.removed.len == 0 {
                    return;
                }
                self.waiting = std::mem::take(&mut self.removed);
                self.left = GRACE_PERIODS;
            }
            self.quiescence.note(&self.began);
        }
    }

    /// Handles that were removed and not taken since.
    pub(crate) fn queued(&self) -> usize {
        self.ready.len + self.waiting()
    }

    /// Handles that wait for workers.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len + self.removed.len
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use crate::memory::{Carver, Memory};
    use crate::shape::Shape;

    fn slab() -> Slab<8> {
        let mut carver = Carver::new(Memory::Heap, 0).expect("heap");
        Slab::new(&mut carver, Geometry::of(&Shape::fixed(8, 1)), 8, 8).expect("heap")
    }

    fn handle(number: u32) -> Handle {
        Handle::new(number).expect("28 bits")
    }

    #[test]
    fn a_handle_waits_for_two_grace_periods_and_one_retired_meanwhile_for_the_next_two() {
        let quiescence = Quiescence::new(1).expect("workers");
        quiescence.go_online(0);
        let slab = slab();
        let mut recycler = Recycler::new(quiescence.clone());
        recycler.retire(&slab, handle(7));
        recycler.advance(&slab);
        recycler.retire(&slab, handle(8));
        let pass = |recycler: &mut Recycler| {
            quiescence.announce(0);
            recycler.advance(&slab);
            (recycler.peek().map(Handle::number), recycler.waiting(), recycler.queued())
        };
        assert_eq!(pass(&mut recycler), (None, 2, 2));
        assert_eq!(pass(&mut recycler), (Some(7), 1, 2));
        assert_eq!(recycler.take(&slab), Some(handle(7)));
        recycler.advance(&slab);
        assert_eq!(recycler.peek(), None);
        assert_eq!(pass(&mut recycler), (None, 1, 1));
        assert_eq!(pass(&mut recycler), (Some(8), 0, 1));
    }

    #[test]
    fn nothing_waits_when_every_worker_is_offline() {
        let slab = slab();
        let mut recycler = Recycler::new(Quiescence::new(2).expect("workers"));
        for _ in 0..3 {
            recycler.retire(&slab, handle(1));
            recycler.retire(&slab, handle(2));
            recycler.advance(&slab);
            assert_eq!(recycler.take(&slab), Some(handle(1)));
            assert_eq!(recycler.take(&slab), Some(handle(2)));
            assert_eq!(recycler.take(&slab), None);
        }
    }
}
