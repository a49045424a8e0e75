//! When is a removed entry out of every worker's hands?
//!
//! Each worker has one word. It is odd while the worker is online and grows by two at every
//! announcement, so that a word that differs from what was seen, or was seen even, says that its
//! worker has held no entry at some instant in between.
//!
//! Why that is enough: the remover clears the index slots, then (a) issues a sequentially
//! consistent fence and reads all words. A worker (b) writes its word, issues such a fence, and
//! only then looks up again. If the remover read a word older than the one the worker wrote, fence
//! (a) precedes fence (b) in their total order, hence the worker's later lookups see the cleared
//! slots. What the worker had found before is done with before its write, which is a release, and
//! the remover acquires it before it uses the entry again.

use std::sync::Arc;

use crate::error::SetupError;
use crate::sync::{AtomicU64, Ordering, fence};

/// A word with a cache line to itself: workers write theirs at every burst.
#[repr(align(64))]
#[derive(Debug)]
struct Padded(AtomicU64);

/// Where every worker was at some moment; at first, offline. One thread at a time uses it.
#[derive(Debug)]
pub(crate) struct Snapshot(Box<[AtomicU64]>);

impl Snapshot {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicU64::new(0)).collect())
    }
}

/// A wait for every worker: see [`Quiescence::begin_grace`].
#[derive(Debug)]
pub struct Grace(Snapshot);

/// What every worker has announced. One serves all tables that the same workers read.
#[derive(Debug)]
pub struct Quiescence {
    workers: Box<[Padded]>,
}

impl Quiescence {
    /// A record for `workers` workers, all offline.
    ///
    /// # Errors
    /// [`SetupError::NoWorkers`] for zero workers.
    pub fn new(workers: usize) -> Result<Arc<Self>, SetupError> {
        if workers == 0 {
            return Err(SetupError::NoWorkers);
        }
        let workers = (0..workers).map(|_| Padded(AtomicU64::new(0))).collect();
        Ok(Arc::new(Self { workers }))
    }

    /// How many workers it is for.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The worker holds no entry at this moment, and goes on: to be called between bursts. Does
    /// nothing for a worker that is offline.
    ///
    /// # Panics
    /// If there is no such worker.
    #[inline]
    pub fn announce(&self, worker: usize) {
        let word = &self.workers[worker].0;
        let seen = word.load(Ordering::Relaxed);
        if seen & 1 == 1 {
            word.store(seen.wrapping_add(2), Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    /// The worker begins to look entries up. Does nothing when it is online already.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn go_online(&self, worker: usize) {
        let word = &self.workers[worker].0;
        let seen = word.load(Ordering::Relaxed);
        if seen & 1 == 0 {
            word.store(seen.wrapping_add(1), Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    /// The worker holds no entry and looks none up until it is online again: to be called before
    /// it sleeps or ends, lest removed entries wait for it. Does nothing when it is offline.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn go_offline(&self, worker: usize) {
        let word = &self.workers[worker].0;
        let seen = word.load(Ordering::Relaxed);
        if seen & 1 == 1 {
            word.store(seen.wrapping_add(1), Ordering::Release);
        }
    }

    /// Begins a wait for every worker to let go of what it may have seen until now.
    #[must_use]
    pub fn begin_grace(&self) -> Grace {
        let noted = Snapshot::new(self.workers());
        self.note(&noted);
        Grace(noted)
    }

    /// Whether every worker has announced, or was offline, since `grace` began.
    #[must_use]
    pub fn is_over(&self, grace: &Grace) -> bool {
        self.have_passed(&grace.0)
    }

    /// Notes where every worker is, after all that the caller did before.
    pub(crate) fn note(&self, noted: &Snapshot) {
        fence(Ordering::SeqCst);
        for (noted, worker) in noted.0.iter().zip(&self.workers) {
            noted.store(worker.0.load(Ordering::Acquire), Ordering::Relaxed);
        }
    }

    /// Whether every worker has announced, or was offline, since that was `noted`.
    pub(crate) fn have_passed(&self, noted: &Snapshot) -> bool {
        noted.0.iter().zip(&self.workers).all(|(noted, worker)| {
            let noted = noted.load(Ordering::Relaxed);
            noted & 1 == 0 || worker.0.load(Ordering::Acquire) != noted
        })
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn noted(quiescence: &Quiescence) -> Snapshot {
        let noted = Snapshot::new(quiescence.workers());
        quiescence.note(&noted);
        noted
    }

    #[test]
    fn every_online_worker_is_waited_for() {
        let quiescence = Quiescence::new(3).expect("workers");
        quiescence.go_online(0);
        quiescence.go_online(1);
        let noted = noted(&quiescence);
        assert!(!quiescence.have_passed(&noted));
        quiescence.announce(0);
        quiescence.announce(2);
        assert!(!quiescence.have_passed(&noted), "worker 1 has not announced");
        quiescence.announce(1);
        assert!(quiescence.have_passed(&noted));
    }

    #[test]
    fn going_offline_and_back_counts_as_an_announcement() {
        let quiescence = Quiescence::new(1).expect("workers");
        quiescence.go_online(0);
        let noted = noted(&quiescence);
        quiescence.go_offline(0);
        assert!(quiescence.have_passed(&noted));
        quiescence.go_online(0);
        assert!(quiescence.have_passed(&noted));
        assert!(!quiescence.have_passed(&self::noted(&quiescence)));
    }

    #[test]
    fn a_record_of_no_workers_is_refused() {
        assert_eq!(Quiescence::new(0).err(), Some(SetupError::NoWorkers));
    }
}
