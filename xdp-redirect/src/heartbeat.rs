//! How a worker tells the XDP program that it lives: one word of shared memory per worker.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use dataplane::time::Nanos;

use crate::cast::index;
use crate::error::Error;
use crate::limits;

/// The word of a worker that waits for packets: alive, whatever the time.
const ASLEEP: u64 = u64::MAX / 2;
const BYTES: usize = index(limits::WORKERS_MAX * limits::HEARTBEAT_STRIDE);

/// The mapped array, shared by all writers.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    memory: NonNull<u8>,
}

// SAFETY: the memory is only reached through atomics, and lives until the last owner drops.
unsafe impl Send for Heartbeats {}
// SAFETY: as above.
unsafe impl Sync for Heartbeats {}

impl Heartbeats {
    pub(crate) fn map(map: &MapData) -> Result<Arc<Self>, Error> {
        let fd = map.fd().as_fd().as_raw_fd();
        // SAFETY: a new shared mapping at an address of the kernel's choice; `fd` is open.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        match NonNull::new(memory.cast::<u8>()) {
            Some(memory) if memory.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(Arc::new(Self { memory }))
            }
            _ => Err(Error::Map { map: "heartbeats", source: io::Error::last_os_error() }),
        }
    }

    pub(crate) fn writer(self: &Arc<Self>, worker: u32) -> Result<HeartbeatWriter, Error> {
        if worker >= limits::WORKERS_MAX {
            return Err(Error::OutOfRange {
                what: "worker",
                value: worker.into(),
                max: u64::from(limits::WORKERS_MAX) - 1,
            });
        }
        Ok(HeartbeatWriter { heartbeats: Arc::clone(self), worker: index(worker) })
    }

    fn word(&self, worker: usize) -> &AtomicU64 {
        assert!(worker < index(limits::WORKERS_MAX));
        // SAFETY: within the mapping by the assert; aligned, since the stride is a multiple of 8
        // and the mapping starts at a page; the kernel reads the word as a whole.
        unsafe {
            &*self.memory.as_ptr().add(worker * index(limits::HEARTBEAT_STRIDE)).cast::<AtomicU64>()
        }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and no reference outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), BYTES) };
    }
}

/// One worker's heartbeat. While it is neither beaten within the stall limit nor asleep, what is
/// ours on the worker's queues is dropped.
#[derive(Debug)]
pub struct HeartbeatWriter {
    heartbeats: Arc<Heartbeats>,
    worker: usize,
}

impl HeartbeatWriter {
    /// Says that the worker ticked at `now`, by `CLOCK_MONOTONIC`.
    #[inline]
    pub fn beat(&self, now: Nanos) {
        // 0 means never ticked; ASLEEP is 146 years of uptime away.
        self.heartbeats.word(self.worker).store(now.0.max(1), Ordering::Relaxed);
    }

    /// Says that the worker waits for packets and will wake when one comes.
    pub fn sleep(&self) {
        self.heartbeats.word(self.worker).store(ASLEEP, Ordering::Relaxed);
    }

    /// Says that nobody serves this worker's queues.
    pub fn stop(&self) {
        self.heartbeats.word(self.worker).store(0, Ordering::Relaxed);
    }
}
