//! What a worker is made to suffer by order of an operator, to see how the node takes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::thread::monotonic_now;

/// A failure to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its next turn ends by a panic.
    Panic,
    /// It does nothing for so long, not even what it is told: as a thread that runs in circles.
    Stall(Duration),
}

/// Nothing is to be suffered.
const NONE: u64 = 0;
/// A panic; any other number is the time of `CLOCK_MONOTONIC` to stand still until.
const PANIC: u64 = 1;

/// What is to be suffered next.
#[derive(Debug, Default)]
pub(super) struct PendingFault(AtomicU64);

impl PendingFault {
    pub(super) fn set(&self, fault: Fault) {
        let word = match fault {
            Fault::Panic => PANIC,
            Fault::Stall(time) => monotonic_now().after(time).0,
        };
        self.0.store(word, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed) != NONE
    }

    /// Suffers it.
    #[cold]
    pub(super) fn suffer(&self) {
        match self.0.swap(NONE, Ordering::Relaxed) {
            NONE => {}
            PANIC => panic!("by order of `xskiff debug`"),
            until => {
                while monotonic_now().0 < until {
                    std::hint::spin_loop();
                }
            }
        }
    }
}
