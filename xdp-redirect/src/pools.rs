//! A worker's free frames of every region.

use dataplane::worker::Received;

use crate::frame::Frame;
use crate::pool::FramePool;
use crate::regions::Regions;
use crate::transfer;
use crate::umem::Umem;

/// The number of the large region.
pub(crate) const LARGE: u8 = 0;

/// Pools by the number of their region, the large one first.
pub(crate) struct Pools {
    of: Box<[FramePool]>,
}

impl Pools {
    /// Of the large region alone.
    pub(crate) fn new(large: &Umem) -> Self {
        Self { of: Box::new([FramePool::new(large)]) }
    }

    /// Of all regions.
    pub(crate) fn of_all(regions: &Regions) -> Self {
        Self { of: regions.iter().map(FramePool::new).collect() }
    }

    /// Whether there is one of this region.
    pub(crate) fn knows(&self, region: u8) -> bool {
        usize::from(region) < self.of.len()
    }

    /// That of a region it knows.
    #[inline]
    pub(crate) fn of(&mut self, region: u8) -> &mut FramePool {
        &mut self.of[usize::from(region)]
    }

    /// That of the large region.
    #[inline]
    pub(crate) fn large(&self) -> &FramePool {
        &self.of[usize::from(LARGE)]
    }

    /// Frees a frame. One of a region that is not known here is lost to it, as if dropped.
    #[inline]
    pub(crate) fn release(&mut self, frame: Frame) {
        if let Some(pool) = self.of.get_mut(usize::from(frame.region())) {
            pool.release(frame);
        }
    }

    /// Moves `packets`, just received, from a short region of pods to the large one, as long as that
    /// has some left: they may have to wait for their time or for a neighbour, and the region's few
    /// frames are for its pods' rings. Whole segments stay, unless the region is nearly used up: to copy them
    /// costs as much as to send them, and most leave in the same tick.
    #[cold]
    pub(crate) fn make_room(&mut self, region: u8, packets: &mut [Received<Frame>]) {
        let [large, of_pods @ ..] = &mut *self.of else { return };
        let Some(pool) = of_pods.get_mut(usize::from(region) - 1) else { return };
        let is_used_up = pool.umem().is_nearly_used_up();
        for packet in packets.iter_mut().filter(|one| is_used_up || one.buffer.chunks() == 1) {
            if large.umem().is_short() {
                return;
            }
            let Some(copied) = transfer::copy(&packet.buffer, large) else { return };
            pool.release(std::mem::replace(&mut packet.buffer, copied));
        }
    }
}
