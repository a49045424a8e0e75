//! Workers that fail: one that panics goes on by itself and is told of here, one that stands still is
//! waited for, and for one that does so for too long the process ends, since no thread can be taken
//! its work while it may come back.

use std::time::Instant;

use super::control_loop::HOUSEKEEPING;
use super::{Node, NodeError};
use crate::workers::restarts;

/// What is known of each worker.
#[derive(Debug, Default)]
pub(super) struct WorkerHealth(Vec<Health>);

#[derive(Debug, Default, Clone)]
struct Health {
    /// How often it has gone on after a panic, and when that was last seen to grow.
    restarts: u64,
    restarted: Option<Instant>,
    /// It stood still when it was last looked at.
    is_stalled: bool,
    /// Times of [`HOUSEKEEPING`] in a row in which it has. Counted by this thread, so that a machine
    /// that stood still as a whole is not taken for a worker that does.
    still: u32,
    /// How often it has come to that.
    stalls: u64,
}

impl WorkerHealth {
    /// How often `worker` has stalled.
    pub(super) fn stalls(&self, worker: usize) -> u64 {
        self.0.get(worker).map_or(0, |health| health.stalls)
    }
}

impl Node {
    /// Notes which workers stand still. To be called so often that no stall comes and goes unseen.
    pub(super) fn note_stalls(&mut self) {
        self.worker_health.0.resize(self.workers.count(), Health::default());
        for (worker, health) in self.worker_health.0.iter_mut().enumerate() {
            if self.workers.is_alive(worker, self.settings.stall_after) {
                (health.is_stalled, health.still) = (false, 0);
            } else if !std::mem::replace(&mut health.is_stalled, true) {
                health.stalls += 1;
                tracing::error!(
                    worker,
                    "the worker has stalled: what is ours on its queues is dropped"
                );
            }
        }
    }

    /// Looks how workers are. To be called every [`HOUSEKEEPING`].
    ///
    /// # Errors
    /// [`NodeError::WorkerStalled`].
    pub(super) fn look_after_workers(&mut self) -> Result<(), NodeError> {
        self.note_stalls();
        for worker in 0..self.workers.count() {
            self.note_restarts(worker);
            self.count_still(worker)?;
        }
        Ok(())
    }

    fn note_restarts(&mut self, worker: usize) {
        let count = self.workers.counters(worker).map_or(0, |counters| counters.restarts.get());
        let health = &mut self.worker_health.0[worker];
        let object = format!("worker {worker}");
        if count > health.restarts {
            (health.restarts, health.restarted) = (count, Some(Instant::now()));
            let message = format!(
                "panicked and went on, {count} times since start; its messages are in the log: \
                 please report them"
            );
            self.errors.note(object, message);
        } else if health.restarted.is_some_and(|at| at.elapsed() > restarts::TOLD_FOR) {
            health.restarted = None;
            self.errors.clear(&object);
        }
    }

    fn count_still(&mut self, worker: usize) -> Result<(), NodeError> {
        let health = &mut self.worker_health.0[worker];
        if !health.is_stalled {
            return Ok(());
        }
        health.still += 1;
        let stood = HOUSEKEEPING * health.still;
        match self.settings.restart_after {
            Some(limit) if stood > limit => {
                let core = self.workers.core(worker);
                Err(NodeError::WorkerStalled { worker, core, seconds: stood.as_secs() })
            }
            _ => Ok(()),
        }
    }
}
