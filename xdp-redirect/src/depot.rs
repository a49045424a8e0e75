//! Free chunks of a region that no worker has: batches, which pools take and give.
//!
//! Batches of the large region are large, so that an operation on the queue serves many frames. A
//! region of pods has few frames, and what pools keep of them for themselves is lost to the others:
//! there they are small.

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;

/// Frames that move between a pool and the depot of a large region at once.
pub(crate) const BATCH: usize = 64;
/// The same, of a region of pods.
pub(crate) const SMALL_BATCH: usize = 8;

/// Batches of free chunks. Has a place for every full batch of its region.
pub(crate) enum Depot {
    Large(ArrayQueue<ArrayVec<u32, BATCH>>),
    Small(ArrayQueue<ArrayVec<u32, SMALL_BATCH>>),
}

impl Depot {
    /// For a large region of so many frames.
    pub(crate) fn large(frames: usize) -> Self {
        Self::Large(ArrayQueue::new(frames / BATCH + 1))
    }

    /// For a region of pods of so many frames.
    pub(crate) fn small(frames: usize) -> Self {
        Self::Small(ArrayQueue::new(frames / SMALL_BATCH + 1))
    }

    /// Frames of a batch.
    #[inline]
    pub(crate) fn batch(&self) -> usize {
        match self {
            Self::Large(_) => BATCH,
            Self::Small(_) => SMALL_BATCH,
        }
    }

    /// Batches there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Large(queue) => queue.len(),
            Self::Small(queue) => queue.len(),
        }
    }

    /// Frames there are.
    #[inline]
    pub(crate) fn frames(&self) -> usize {
        self.len() * self.batch()
    }

    /// Moves a batch to the end of `free`; false when there is none.
    #[inline]
    pub(crate) fn take(&self, free: &mut Vec<u32>) -> bool {
        match self {
            Self::Large(queue) => queue.pop().map(|batch| free.extend(batch)).is_some(),
            Self::Small(queue) => queue.pop().map(|batch| free.extend(batch)).is_some(),
        }
    }

    /// Takes a full batch; false when it is none, or there is no place for it.
    #[inline]
    pub(crate) fn put(&self, chunks: &[u32]) -> bool {
        match self {
            Self::Large(queue) => put(queue, chunks),
            Self::Small(queue) => put(queue, chunks),
        }
    }
}

fn put<const N: usize>(queue: &ArrayQueue<ArrayVec<u32, N>>, chunks: &[u32]) -> bool {
    let Ok(batch) = <[u32; N]>::try_from(chunks) else { return false };
    queue.push(ArrayVec::from(batch)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_batches_come_back_as_they_went_and_others_do_not() {
        for depot in [Depot::large(256), Depot::small(256)] {
            let batch: Vec<u32> = (0..).take(depot.batch()).collect();
            assert!(!depot.put(&batch[1..]));
            for _ in 0..256 / depot.batch() {
                assert!(depot.put(&batch));
            }
            assert_eq!(depot.frames(), 256);
            let mut free = vec![7];
            assert!(depot.take(&mut free));
            assert_eq!(free[1..], batch);
            while depot.take(&mut free) {}
            assert_eq!((free.len(), depot.len()), (257, 0));
        }
    }
}
