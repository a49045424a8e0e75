//! What comes by a ring, of which the test is the kernel.

use super::*;
use crate::ring::pairs::{Pair, pair};
use crate::umem::UmemConfig;

const NUMBER: u16 = 1;

struct Ring {
    umem: Umem,
    pool: FramePool,
    receiving: Receiving,
    kernel: Producer<Descriptor>,
    counters: SocketCounters,
    _memory: Vec<Box<dyn std::any::Any>>,
}

impl Ring {
    fn new() -> Self {
        let config = UmemConfig { frames: 1024, multi_buffer: true, ..UmemConfig::default() };
        let umem = Umem::new(config).expect("memory");
        let Pair { producer: kernel, consumer: rx, memory } = pair::<Descriptor>(32, 0);
        let Pair { producer: fill, memory: of_fill, .. } = pair::<u64>(32, 0);
        let Pair { consumer: completion, memory: of_completion, .. } = pair::<u64>(32, 0);
        let receiving = Receiving {
            rx,
            fill,
            completion,
            fill_frames: 32,
            idle_frames: 32,
            wanted: 32,
            posted: 0,
            quiet: 0,
            is_crowded: false,
            partial: None,
            discarding: false,
        };
        let pool = FramePool::new(&umem);
        let _memory: Vec<Box<dyn std::any::Any>> = vec![memory, of_fill, of_completion];
        let counters = SocketCounters::default();
        Self { umem, pool, receiving, kernel, counters, _memory }
    }

    /// A chunk of a packet comes, of so many bytes that begin there in it, with more of the packet behind or
    /// not.
    fn comes(&mut self, (offset, length): (u64, u32), goes_on: bool) {
        let chunk = self.pool.take().expect("a chunk");
        let address = self.umem.post(chunk, NUMBER) + offset;
        let options = if goes_on { CONTINUED } else { 0 };
        assert!(self.kernel.push(Descriptor { address, length, options }));
        self.kernel.submit();
        self.receiving.posted += 1;
    }

    /// Lengths of the packets that came.
    fn taken(&mut self) -> Vec<usize> {
        use dataplane::buffer::Buffer;
        let (mut frames, from) = (Vec::new(), (&self.umem, NUMBER));
        let (pool, counters) = (&mut self.pool, &self.counters);
        self.receiving.take_packets(from, counters, pool, 32, &mut |frame| frames.push(frame));
        let lengths = frames.iter().map(|frame| frame.len()).collect();
        frames.into_iter().for_each(|frame| self.pool.release(frame));
        lengths
    }

    fn bad(&self) -> u64 {
        self.counters.bad_descriptors.load(std::sync::atomic::Ordering::Relaxed)
    }
}

const GOOD: (u64, u32) = (256, 1000);
/// Of a chunk of 2048 bytes.
const TOO_LONG: (u64, u32) = (256, 1793);
/// Where the way to the next chunk is written.
const TOO_EARLY: (u64, u32) = (8, 1000);

/// The rest of the packet was taken for one, and what followed for a part of it.
#[test]
fn packet_of_which_a_fragment_lies_about_its_length_is_thrown_away_and_no_other() {
    for lie in [TOO_LONG, TOO_EARLY] {
        for (number, fragments) in [(0, 3), (1, 3), (2, 3), (0, 1), (0, 2), (4, 6)] {
            let mut ring = Ring::new();
            ring.comes(GOOD, false);
            for at in 0..fragments {
                ring.comes(if at == number { lie } else { GOOD }, at + 1 < fragments);
            }
            ring.comes(GOOD, true);
            ring.comes(GOOD, false);
            ring.comes(GOOD, false);
            assert_eq!(ring.taken(), [1000, 2000, 1000], "{lie:?}, {number} of {fragments}");
            assert_eq!(ring.bad(), 1);
        }
    }
}

#[test]
fn packet_of_too_many_fragments_is_thrown_away_and_no_other() {
    let mut ring = Ring::new();
    for _ in 0..3 {
        (0..13).for_each(|_| ring.comes(GOOD, true));
        assert!(ring.taken().is_empty());
    }
    ring.comes(GOOD, false);
    ring.comes(GOOD, true);
    ring.comes(GOOD, false);
    assert_eq!(ring.taken(), [2000]);
    let too_many = ring.counters.too_many_chunks.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((too_many, ring.bad()), (1, 0));
}

/// Only a region that was short made them fewer again.
#[test]
fn frames_that_a_burst_has_asked_for_are_given_up_when_little_comes_for_long() {
    let mut ring = Ring::new();
    let receiving = &mut ring.receiving;
    (receiving.idle_frames, receiving.wanted) = (8, 8);
    for wanted in [16, 32] {
        (0..16).for_each(|_| ring.comes(GOOD, false));
        ring.receiving.adapt(ring.receiving.rx.waiting(), &ring.umem);
        assert_eq!(ring.receiving.wanted, wanted);
        assert_eq!(ring.taken().len(), 16);
    }
    let mut little = |looks: u32| {
        for _ in 0..looks {
            ring.comes(GOOD, false);
            ring.receiving.adapt(ring.receiving.rx.waiting(), &ring.umem);
            ring.taken();
            // Nothing comes: that tells nothing.
            ring.receiving.adapt(ring.receiving.rx.waiting(), &ring.umem);
        }
        ring.receiving.wanted
    };
    assert_eq!(little(QUIET_LOOKS - 1), 32);
    assert_eq!(little(1), 16);
    assert_eq!(little(QUIET_LOOKS), 8);
    assert_eq!(little(2 * QUIET_LOOKS), 8, "as many as are promised");
}

/// It was never so for a pod's queue whose region was short: what waited was compared with frames that it had
/// never got.
#[test]
fn queue_that_got_few_frames_is_crowded_when_most_of_those_wait() {
    let mut ring = Ring::new();
    (ring.receiving.idle_frames, ring.receiving.wanted) = (8, 8);
    let mut is_crowded_by = |packets: u32, posted: u32| {
        (0..packets).for_each(|_| ring.comes(GOOD, false));
        ring.receiving.posted = posted;
        ring.receiving.note_crowd(ring.receiving.rx.waiting());
        ring.taken();
        ring.receiving.is_crowded
    };
    assert!(!is_crowded_by(0, 8) && !is_crowded_by(5, 8) && is_crowded_by(6, 8));
    assert!(!is_crowded_by(6, 32) && is_crowded_by(24, 32), "of those that it has got meanwhile");
    assert!(!is_crowded_by(0, 0), "nothing came, and nothing could");
}
