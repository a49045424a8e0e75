//! A worker's share of free packet memory.
//!
//! Frames drift: a worker that receives what another transmits runs dry while the other fills up.
//! So pools exchange batches through the region's depot, one queue operation per batch.

use dataplane::buffer::Buffer;

use crate::frame::Frame;
use crate::umem::Umem;

/// Batches a pool of the large region keeps at most; with more it gives one to the depot.
const KEPT_BATCHES_MAX: usize = 8;

/// Free frames of one worker. Allocates nothing after it is made.
#[derive(Debug)]
pub struct FramePool {
    umem: Umem,
    free: Vec<u32>,
    batch: usize,
    /// With so many frames it gives a batch to the depot.
    full: usize,
}

impl FramePool {
    /// An empty pool: it takes from the region's depot as it needs.
    #[must_use]
    pub fn new(umem: &Umem) -> Self {
        let batch = umem.batch();
        // A region of pods has few frames, which all workers share.
        let kept = if umem.is_for_pods() { 1 } else { KEPT_BATCHES_MAX };
        let full = (kept + 1) * batch;
        Self { umem: umem.clone(), free: Vec::with_capacity(full), batch, full }
    }

    /// The region it takes from.
    #[must_use]
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// An empty frame with full headroom; `None` when the region is used up.
    pub fn allocate(&mut self) -> Option<Frame> {
        let chunk = self.take()?;
        let frame = self.umem.hold(chunk);
        if frame.is_none() {
            self.put(chunk);
        }
        frame
    }

    /// An empty frame that is given `bytes`; `None` when the region is used up or they do not fit.
    pub fn allocate_with(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.allocate()?;
        match frame.set_len(bytes.len()) {
            Ok(()) => {
                frame.bytes_mut().copy_from_slice(bytes);
                Some(frame)
            }
            Err(_) => {
                self.release(frame);
                None
            }
        }
    }

    /// Frees a frame. One of another region is lost to that region, as if dropped.
    #[inline]
    pub fn release(&mut self, frame: Frame) {
        if let Some(piece) = frame.single() {
            return self.free_chunk(piece.chunk);
        }
        for piece in frame.pieces() {
            self.free_chunk(piece.chunk);
        }
    }

    #[inline]
    pub(crate) fn free_chunk(&mut self, start: std::ptr::NonNull<u8>) {
        if let Some(chunk) = self.umem.chunk_of(start) {
            self.umem.pass_on(chunk, None);
            self.put(chunk);
        }
    }

    /// A free chunk, by number.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            self.umem.take_batch(&mut self.free);
        }
        self.free.pop()
    }

    /// A chunk that just became free.
    #[inline]
    pub(crate) fn put(&mut self, chunk: u32) {
        self.free.push(chunk);
        if self.free.len() >= self.full {
            self.spill();
        }
    }

    #[cold]
    fn spill(&mut self) {
        let left = self.free.len() - self.batch;
        // There is a place for every full batch of the region; were there none, the pool grows.
        if self.umem.put_batch(&self.free[left..]) {
            self.free.truncate(left);
        }
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.umem.give_back(self.free.drain(..));
    }
}
