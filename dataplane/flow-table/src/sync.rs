//! Atomics: the standard library's; loom's when a model is checked, shuttle's when threads take turns
//! at random. In this crate's own tests, ones that can kill their thread at any write.

#[cfg(not(any(loom, shuttle, test)))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, fence};

#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) use {
    crate::mortal::{AtomicU32, AtomicU64},
    std::sync::atomic::fence,
};

pub(crate) use std::sync::atomic::Ordering;

/// Loom treats sequentially consistent accesses as acquire and release; where the algorithm
/// counts on their total order, a model needs this fence and real code, which has it, does not.
#[inline(always)]
pub(crate) fn model_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}
