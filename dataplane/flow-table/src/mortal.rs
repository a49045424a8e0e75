//! Atomics for tests: the standard library's, which end their thread at a write that was chosen,
//! as a kill does: what was written before stands in the memory, and nothing comes after.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{self, Ordering};

thread_local! {
    /// Writes that this thread has left; `None` for as many as it likes.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    /// What is to happen before how many more writes.
    static INTERRUPTION: RefCell<Option<(u64, Interruption)>> = const { RefCell::new(None) };
}

type Interruption = Box<dyn FnOnce()>;

struct Killed;

/// Runs `work` until it has made `writes` writes. False when it was killed before its end.
pub(crate) fn live_for(writes: u64, work: impl FnOnce()) -> bool {
    LEFT.set(Some(writes));
    let outcome = catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    match outcome {
        Ok(()) => true,
        Err(cause) if cause.is::<Killed>() => false,
        Err(other) => resume_unwind(other),
    }
}

/// Does `other` just before the write after `writes` more of this thread, as another thread might.
pub(crate) fn interrupt_after(writes: u64, other: impl FnOnce() + 'static) {
    INTERRUPTION.set(Some((writes, Box::new(other))));
}

fn before_write() {
    match INTERRUPTION.take() {
        Some((0, other)) => {
            let left = LEFT.take();
            other();
            LEFT.set(left);
        }
        Some((writes, other)) => INTERRUPTION.set(Some((writes - 1, other))),
        None => {}
    }
    match LEFT.get() {
        None => {}
        Some(0) => {
            // What unwinding drops may write to the process's own memory.
            LEFT.set(None);
            resume_unwind(Box::new(Killed));
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

macro_rules! mortal {
    ($name:ident, $value:ty) => {
        #[repr(transparent)]
        #[derive(Debug, Default)]
        pub struct $name(atomic::$name);

        impl Deref for $name {
            type Target = atomic::$name;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        #[allow(dead_code)]
        impl $name {
            pub const fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            pub fn store(&self, value: $value, order: Ordering) {
                before_write();
                self.0.store(value, order);
            }

            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                before_write();
                self.0.compare_exchange(current, new, success, failure)
            }

            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                before_write();
                self.0.fetch_update(set, fetch, change)
            }

            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                before_write();
                self.0.fetch_add(value, order)
            }

            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                before_write();
                self.0.fetch_sub(value, order)
            }
        }
    };
}

mortal!(AtomicU32, u32);
mortal!(AtomicU64, u64);
