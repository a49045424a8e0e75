//! Where a table lives: the heap, or memory the caller mapped (huge pages, a shared file).

#[cfg(not(any(loom, shuttle)))]
use std::alloc::{Layout, alloc_zeroed, dealloc};
#[cfg(not(any(loom, shuttle)))]
use std::ptr::NonNull;

use crate::error::SetupError;

/// Every array starts on a cache line.
pub(crate) const LINE_BYTES: usize = 64;

/// Where a table lives.
#[derive(Debug)]
pub enum Memory {
    /// Zeroed by the kernel on first touch: pages that no flow has used cost nothing.
    Heap,
    /// Memory of the caller's for as long as the process lives: at least
    /// [`crate::Table::memory_bytes`] bytes, aligned to 64. What it held is lost: all that a table
    /// of the capacity asked for needs is zeroed at once, so that no packet pays for a page fault
    /// later. What growth may need is not touched, and must be zero.
    #[cfg(not(any(loom, shuttle)))]
    Mapped(&'static mut [u8]),
}

/// A type that may be made by zeroing memory.
///
/// # Safety
/// Any bytes are a valid value, shared access to which is sound from any thread; dropping it does
/// nothing; its alignment is at most [`LINE_BYTES`].
pub(crate) unsafe trait Zeroable: Send + Sync + Sized {
    /// Loom's atomics must be made one by one.
    #[cfg(any(loom, shuttle))]
    fn zeroed() -> Self;
}

/// Hands out arrays of a [`Memory`] one after the other.
pub(crate) struct Carver(Memory);

impl Carver {
    /// Checks that mapped memory is aligned, and large enough for `needed_bytes`.
    pub(crate) fn new(memory: Memory, needed_bytes: usize) -> Result<Self, SetupError> {
        #[cfg(not(any(loom, shuttle)))]
        if let Memory::Mapped(bytes) = &memory {
            let address = bytes.as_ptr().addr();
            if !address.is_multiple_of(LINE_BYTES) {
                return Err(SetupError::Misaligned { address });
            }
            if bytes.len() < needed_bytes {
                return Err(SetupError::MemoryTooSmall { given_bytes: bytes.len(), needed_bytes });
            }
        }
        let _ = needed_bytes;
        Ok(Self(memory))
    }

    /// The next array of `length` elements, of which the first `needed` are zeroed at once.
    pub(crate) fn array<T: Zeroable>(
        &mut self,
        length: usize,
        needed: usize,
    ) -> Result<Array<T>, SetupError> {
        #[cfg(any(loom, shuttle))]
        let _ = needed;
        match &mut self.0 {
            Memory::Heap => Array::heap(length),
            #[cfg(not(any(loom, shuttle)))]
            Memory::Mapped(rest) => {
                let taken = array_bytes::<T>(length);
                let bytes = std::mem::take(rest);
                if bytes.len() < taken {
                    return Err(SetupError::MemoryTooSmall {
                        given_bytes: bytes.len(),
                        needed_bytes: taken,
                    });
                }
                let (mine, others) = bytes.split_at_mut(taken);
                *rest = others;
                Array::mapped(mine, length, needed)
            }
        }
    }
}

/// An array of the process's own memory, zeroed on first touch.
pub(crate) fn heap<T: Zeroable>(length: usize) -> Result<Array<T>, SetupError> {
    Array::heap(length)
}

/// Bytes that an array of `length` elements takes, in whole lines.
pub(crate) const fn array_bytes<T>(length: usize) -> usize {
    (size_of::<T>() * length).next_multiple_of(LINE_BYTES)
}

/// An array of atomics that starts on a cache line and never moves.
#[cfg(not(any(loom, shuttle)))]
pub(crate) struct Array<T> {
    start: NonNull<T>,
    length: usize,
    /// The allocation to free; `None` for mapped memory.
    allocation: Option<(NonNull<u8>, Layout)>,
}

#[cfg(not(any(loom, shuttle)))]
impl<T: Zeroable> Array<T> {
    fn heap(length: usize) -> Result<Self, SetupError> {
        // The allocator zeroes a request of small alignment lazily (fresh pages are zero already)
        // and one of large alignment by writing to all of it, so align by hand.
        let bytes = array_bytes::<T>(length).saturating_add(LINE_BYTES);
        let layout = Layout::from_size_align(bytes, align_of::<u64>())
            .map_err(|_| SetupError::OutOfMemory { bytes })?;
        // SAFETY: the layout is not of size zero, for LINE_BYTES were added.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or(SetupError::OutOfMemory { bytes })?;
        let skip = base.as_ptr().align_offset(LINE_BYTES);
        // SAFETY: `skip` is below LINE_BYTES, which were added to the size: both `start` and the
        // `array_bytes` after it lie in the allocation.
        let start = unsafe { base.add(skip) }.cast::<T>();
        Ok(Self { start, length, allocation: Some((base, layout)) })
    }

    fn mapped(bytes: &'static mut [u8], length: usize, needed: usize) -> Result<Self, SetupError> {
        let needed_bytes = (size_of::<T>() * needed.min(length)).min(bytes.len());
        bytes[..needed_bytes].fill(0);
        let address = bytes.as_ptr().addr();
        if !address.is_multiple_of(LINE_BYTES) || bytes.len() < size_of::<T>() * length {
            return Err(SetupError::Misaligned { address });
        }
        Ok(Self { start: NonNull::from(bytes).cast::<T>(), length, allocation: None })
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<T> std::ops::Deref for Array<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `start` is aligned to LINE_BYTES, at least T's alignment (`Zeroable`); `length`
        // elements from it on lie in one allocation of ours, or in memory given to us exclusively
        // for 'static; they are atomics, for which any bytes are valid, and are only ever accessed
        // through shared references, that is, atomically.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        if let Some((base, layout)) = self.allocation {
            // SAFETY: `base` came from `alloc_zeroed` with this layout, and no reference outlives
            // the array.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }
}

// SAFETY: an `Array` owns its memory, and its elements are `Send` and `Sync` (`Zeroable`).
#[cfg(not(any(loom, shuttle)))]
unsafe impl<T: Zeroable> Send for Array<T> {}
// SAFETY: as above; sharing an `Array` shares `&[T]` only.
#[cfg(not(any(loom, shuttle)))]
unsafe impl<T: Zeroable> Sync for Array<T> {}

/// Under loom every element is made through loom, so that it follows its accesses.
#[cfg(any(loom, shuttle))]
pub(crate) struct Array<T>(Box<[T]>);

#[cfg(any(loom, shuttle))]
impl<T: Zeroable> Array<T> {
    fn heap(length: usize) -> Result<Self, SetupError> {
        Ok(Self((0..length).map(|_| T::zeroed()).collect()))
    }
}

#[cfg(any(loom, shuttle))]
impl<T> std::ops::Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::{AtomicU32, Ordering::Relaxed};

    fn leaked(bytes: usize) -> &'static mut [u8] {
        let memory = Box::leak(vec![0xffu8; bytes + LINE_BYTES].into_boxed_slice());
        let skip = memory.as_ptr().align_offset(LINE_BYTES);
        &mut memory[skip..skip + bytes]
    }

    #[test]
    fn a_heap_array_is_zeroed_and_starts_on_a_cache_line() {
        let array = Carver(Memory::Heap).array::<AtomicU32>(1001, 1001).expect("heap");
        assert_eq!(array.len(), 1001);
        assert!(array.as_ptr().addr().is_multiple_of(LINE_BYTES));
        assert!(array.iter().all(|word| word.load(Relaxed) == 0));
    }

    #[test]
    fn mapped_arrays_are_zeroed_aligned_and_apart() {
        let mut carver = Carver::new(Memory::Mapped(leaked(256)), 256).expect("fits");
        let first = carver.array::<AtomicU32>(17, 17).expect("fits");
        let second = carver.array::<AtomicU32>(32, 32).expect("fits");
        assert!(first.iter().chain(second.iter()).all(|word| word.load(Relaxed) == 0));
        assert_eq!(second.as_ptr().addr() - first.as_ptr().addr(), 128);
        assert!(carver.array::<AtomicU32>(1, 1).is_err());
    }

    #[test]
    fn misaligned_and_small_memory_are_refused() {
        let bytes = leaked(256);
        let address = bytes.as_ptr().addr() + 8;
        let refused = Carver::new(Memory::Mapped(&mut bytes[8..]), 64).err();
        assert_eq!(refused, Some(SetupError::Misaligned { address }));
        let refused = Carver::new(Memory::Mapped(leaked(256)), 257).err();
        let small = SetupError::MemoryTooSmall { given_bytes: 256, needed_bytes: 257 };
        assert_eq!(refused, Some(small));
    }
}
