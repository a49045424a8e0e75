//! Descriptor rings shared with the kernel: single producer, single consumer, power-of-two sizes,
//! free-running 32-bit indices (Documentation/networking/af_xdp.rst, "Rings").
//!
//! A ring works in its cached indices and publishes in batches: a producer's entries are seen
//! after [`Producer::submit`], a consumer's places are free after [`Consumer::release`].

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cast::index;

/// `XDP_RING_NEED_WAKEUP`: the kernel waits for a system call before it looks at the ring.
const NEED_WAKEUP: u32 = 1;
/// `XDP_PKT_CONTD`: the packet goes on in the next descriptor.
pub const CONTINUED: u32 = 1;

/// One entry of a receive or transmit ring (`struct xdp_desc`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Descriptor {
    /// Offset of the bytes within the region.
    pub address: u64,
    /// How many.
    pub length: u32,
    /// [`CONTINUED`] or nothing.
    pub options: u32,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

/// Where a ring lies in memory.
#[derive(Debug)]
pub(crate) struct RingMemory<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    entries_count: u32,
}

// SAFETY: the pointers lead to memory shared with the kernel, reached through atomics and, for the
// entries, only where the indices say that they are ours. One side has one owner.
unsafe impl<T: Send> Send for RingMemory<T> {}

impl<T: Copy> RingMemory<T> {
    /// # Safety
    /// All four stay valid as long as the value lives; `entries` has `entries_count` of them, a
    /// power of two; nobody else acts for the side that is made of it (producer or consumer).
    pub(crate) unsafe fn new(
        producer: NonNull<AtomicU32>,
        consumer: NonNull<AtomicU32>,
        flags: NonNull<AtomicU32>,
        entries: NonNull<T>,
        entries_count: u32,
    ) -> Self {
        assert!(entries_count.is_power_of_two());
        Self { producer, consumer, flags, entries, entries_count }
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: valid while `self` lives (`new`).
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: valid while `self` lives (`new`).
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: valid while `self` lives (`new`).
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    #[inline]
    fn entry(&self, position: u32) -> NonNull<T> {
        // SAFETY: the mask keeps it below `entries_count`, a power of two.
        unsafe { self.entries.add(index(position & (self.entries_count - 1))) }
    }
}

/// Our end of a ring that the kernel reads: fill or transmit.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    memory: RingMemory<T>,
    /// Next entry to write.
    head: u32,
    /// What the kernel had read when we last looked.
    tail: u32,
    submitted: u32,
}

impl<T: Copy> Producer<T> {
    pub(crate) fn new(memory: RingMemory<T>) -> Self {
        let head = memory.producer().load(Ordering::Relaxed);
        let tail = memory.consumer().load(Ordering::Acquire);
        Self { memory, head, tail, submitted: head }
    }

    /// Places free to write, as far as is known; looks at the kernel's index only when that is
    /// fewer than `wanted`.
    #[inline]
    pub(crate) fn free(&mut self, wanted: u32) -> u32 {
        let free = self.memory.entries_count - self.head.wrapping_sub(self.tail);
        if free >= wanted {
            return free;
        }
        // Acquire: the kernel has read the entries it gave back.
        self.tail = self.memory.consumer().load(Ordering::Acquire);
        self.memory.entries_count - self.head.wrapping_sub(self.tail)
    }

    /// Writes an entry; says whether there was room.
    #[inline(always)]
    pub(crate) fn push(&mut self, entry: T) -> bool {
        if self.free(1) == 0 {
            return false;
        }
        // SAFETY: within the entries, and free: the kernel reads it only after `submit`.
        unsafe { self.memory.entry(self.head).write(entry) };
        self.head = self.head.wrapping_add(1);
        true
    }

    /// Shows the kernel everything written.
    #[inline]
    pub(crate) fn submit(&mut self) {
        if self.submitted != self.head {
            // Release: the entries are written before the index that shows them.
            self.memory.producer().store(self.head, Ordering::Release);
            self.submitted = self.head;
        }
    }

    /// Entries submitted that the kernel has not read yet.
    #[inline]
    pub(crate) fn pending(&mut self) -> u32 {
        self.tail = self.memory.consumer().load(Ordering::Acquire);
        self.submitted.wrapping_sub(self.tail)
    }

    #[inline]
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.memory.needs_wakeup()
    }

    /// Places there are.
    pub(crate) fn entries(&self) -> u32 {
        self.memory.entries_count
    }
}

/// Our end of a ring that the kernel writes: receive or completion.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    memory: RingMemory<T>,
    /// What the kernel had written when we last looked.
    head: u32,
    /// Next entry to read.
    tail: u32,
    released: u32,
}

impl<T: Copy> Consumer<T> {
    pub(crate) fn new(memory: RingMemory<T>) -> Self {
        let tail = memory.consumer().load(Ordering::Relaxed);
        let head = memory.producer().load(Ordering::Acquire);
        Self { memory, head, tail, released: tail }
    }

    /// Reads an entry.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.head == self.tail {
            // Acquire: the entries are written before the index that shows them.
            self.head = self.memory.producer().load(Ordering::Acquire);
            if self.head == self.tail {
                return None;
            }
        }
        // SAFETY: within the entries, and written: the kernel overwrites it only after `release`.
        let entry = unsafe { self.memory.entry(self.tail).read() };
        self.tail = self.tail.wrapping_add(1);
        Some(entry)
    }

    /// Entries there are to read; looks at the kernel's index.
    #[inline]
    pub(crate) fn waiting(&self) -> u32 {
        self.memory.producer().load(Ordering::Acquire).wrapping_sub(self.tail)
    }

    /// Places there are.
    pub(crate) fn entries(&self) -> u32 {
        self.memory.entries_count
    }

    /// Gives the places of everything read back to the kernel.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.released != self.tail {
            // Release: the entries are read before the index that frees them.
            self.memory.consumer().store(self.tail, Ordering::Release);
            self.released = self.tail;
        }
    }
}

/// Rings of this process, for tests.
#[cfg(test)]
pub(crate) mod pairs {
    use super::*;

    /// Where a ring lies.
    pub(crate) struct Memory<T> {
        pub(crate) words: Box<[AtomicU32; 3]>,
        _entries: Box<[T]>,
    }

    /// Both ends of a ring.
    pub(crate) struct Pair<T> {
        pub(crate) producer: Producer<T>,
        pub(crate) consumer: Consumer<T>,
        /// To be dropped after the ends that point into it.
        pub(crate) memory: Box<Memory<T>>,
    }

    pub(crate) fn pair<T: Copy + Default>(entries_count: u32, start: u32) -> Pair<T> {
        let words = Box::new([start, start, 0].map(AtomicU32::new));
        let mut entries = vec![T::default(); index(entries_count)].into_boxed_slice();
        let at = NonNull::new(entries.as_mut_ptr()).expect("boxes are not null");
        let [producer, consumer, flags] = &*words;
        let (p, c, f) = (NonNull::from(producer), NonNull::from(consumer), NonNull::from(flags));
        // SAFETY: the boxes live in the pair beside the ends; each side has one owner.
        let memory = || unsafe { RingMemory::new(p, c, f, at, entries_count) };
        Pair {
            producer: Producer::new(memory()),
            consumer: Consumer::new(memory()),
            memory: Box::new(Memory { words, _entries: entries }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::pairs::{Pair, pair};
    use super::*;

    #[test]
    fn entries_are_seen_after_submit_only() {
        let mut ring = pair::<u64>(4, 0);
        assert!(ring.producer.push(7));
        assert_eq!(ring.consumer.pop(), None);
        ring.producer.submit();
        assert_eq!(ring.consumer.pop(), Some(7));
        assert_eq!(ring.consumer.pop(), None);
    }

    #[test]
    fn places_are_free_after_release_only() {
        let mut ring = pair::<u64>(2, 0);
        assert!(ring.producer.push(1) && ring.producer.push(2));
        assert!(!ring.producer.push(3), "the ring has two places");
        ring.producer.submit();
        assert_eq!(ring.producer.pending(), 2);
        assert_eq!(ring.consumer.pop(), Some(1));
        assert!(!ring.producer.push(3), "the place was read, not given back");
        ring.consumer.release();
        assert_eq!(ring.producer.pending(), 1);
        assert!(ring.producer.push(3));
    }

    #[test]
    fn indices_wrap_around_their_32_bits() {
        let mut ring = pair::<u64>(8, u32::MAX - 5);
        for round in 0..100u64 {
            for entry in 0..5 {
                assert!(ring.producer.push(round * 5 + entry));
            }
            ring.producer.submit();
            for entry in 0..5 {
                assert_eq!(ring.consumer.pop(), Some(round * 5 + entry));
            }
            assert_eq!(ring.consumer.pop(), None);
            ring.consumer.release();
            assert_eq!(ring.producer.free(8), 8);
        }
    }

    #[test]
    fn free_looks_at_the_other_side_only_when_it_must() {
        let mut ring = pair::<u64>(4, 0);
        assert!(ring.producer.push(1) && ring.producer.push(2));
        ring.producer.submit();
        assert!(ring.consumer.pop().is_some() && ring.consumer.pop().is_some());
        ring.consumer.release();
        assert_eq!(ring.producer.free(2), 2, "two known places were enough");
        assert_eq!(ring.producer.free(3), 4);
    }

    #[test]
    fn wakeup_flag_is_the_kernels_to_set() {
        let ring = pair::<u64>(2, 0);
        assert!(!ring.producer.needs_wakeup());
        ring.memory.words[2].store(NEED_WAKEUP, Ordering::Relaxed);
        assert!(ring.producer.needs_wakeup());
    }

    #[test]
    fn two_threads_lose_and_invent_nothing() {
        const ENTRIES: u64 = 200_000;
        let Pair { mut producer, mut consumer, memory } = pair::<u64>(64, u32::MAX - 1000);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < ENTRIES {
                    while next < ENTRIES && producer.push(next) {
                        next += 1;
                    }
                    producer.submit();
                    std::thread::yield_now();
                }
            });
            let mut expected = 0;
            while expected < ENTRIES {
                while let Some(entry) = consumer.pop() {
                    assert_eq!(entry, expected);
                    expected += 1;
                }
                consumer.release();
                std::thread::yield_now();
            }
        });
        drop(memory);
    }
}
