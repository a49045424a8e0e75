//! How a worker tells the XDP program that it lives: one word of shared memory per worker.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use dataplane::time::Nanos;

use crate::cast::index;
use crate::error::Error;
use crate::limits;
use crate::mapping::Mapping;

/// The word of what is alive whatever the time. No clock comes to it: it is 292 years of uptime.
const FOR_EVER: u64 = u64::MAX / 2;
const BYTES: usize = index(limits::WORKERS_MAX * limits::HEARTBEAT_STRIDE);

/// The mapped array, shared by all writers.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    memory: Mapping,
}

impl Heartbeats {
    pub(crate) fn map(map: &MapData) -> Result<Arc<Self>, Error> {
        let refuse = |source: io::Error| Error::Map { map: "heartbeats", source };
        let memory = Mapping::new(map.fd().as_fd().as_raw_fd(), 0, BYTES).map_err(refuse)?;
        Ok(Arc::new(Self { memory }))
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
        self.memory.word(worker * index(limits::HEARTBEAT_STRIDE))
    }
}

/// One worker's heartbeat. When the last beat is longer ago than the stall limit, what is ours on the
/// worker's queues is dropped.
#[derive(Debug)]
pub struct HeartbeatWriter {
    heartbeats: Arc<Heartbeats>,
    worker: usize,
}

impl HeartbeatWriter {
    /// Says that the worker ticked at `now`, by `CLOCK_MONOTONIC`.
    #[inline]
    pub fn beat(&self, now: Nanos) {
        // 0 means never ticked.
        self.heartbeats.word(self.worker).store(now.0.max(1), Ordering::Relaxed);
    }

    /// Says that the worker waits for packets and wakes when one comes, at `until` at the latest: the
    /// stall limit counts from then on. A worker that can run no more sleeps as well.
    pub fn sleep(&self, until: Nanos) {
        self.beat(until);
    }

    /// Says that what serves the queues needs not be watched: a measurement's loop, a trial's, a test's.
    pub fn beat_for_ever(&self) {
        self.heartbeats.word(self.worker).store(FOR_EVER, Ordering::Relaxed);
    }

    /// Says that nobody serves this worker's queues.
    pub fn stop(&self) {
        self.heartbeats.word(self.worker).store(0, Ordering::Relaxed);
    }
}
