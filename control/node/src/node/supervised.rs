//! The node under a service manager: what it is told of this node's standing, and whom its watchdog
//! asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use control::admin::status::{Level, Verdict};

use super::Node;
use crate::http::StalledWorkers;
use crate::supervisor::{Supervisor, Watchdog};
use crate::workers::Workers;

/// How often the service manager is told how the node stands.
const TELL: Duration = Duration::from_secs(10);

/// The service manager, and when it was told last, of what.
pub(super) struct Supervised {
    by: Supervisor,
    told: Option<(Instant, String)>,
    /// Feeds its watchdog.
    _watchdog: Option<Watchdog>,
}

impl Default for Supervised {
    fn default() -> Self {
        Self { by: Supervisor::none(), told: None, _watchdog: None }
    }
}

/// Asks the workers themselves, without the control thread; `limit` is in nanoseconds.
pub(super) fn stalled_workers(workers: &Workers, limit: &Arc<AtomicU64>) -> StalledWorkers {
    let (stalled, limit) = (workers.stalled(), Arc::clone(limit));
    Arc::new(move || stalled(Duration::from_nanos(limit.load(Ordering::Relaxed))))
}

impl Node {
    /// Tells `supervisor` that this node is ready, and from now on how it stands; its watchdog follows
    /// the workers.
    ///
    /// # Errors
    /// No thread to feed the watchdog.
    pub fn supervise(&mut self, supervisor: Supervisor) -> std::io::Result<()> {
        let stalled = stalled_workers(&self.workers, &self.stall_after_ns);
        let watchdog = supervisor.watch(stalled)?;
        self.supervised = Supervised { by: supervisor, told: None, _watchdog: watchdog };
        self.tell_supervisor_ready();
        Ok(())
    }

    /// Before a new configuration is put in force.
    pub(super) fn tell_supervisor_reloading(&self) {
        self.supervised.by.reloading();
    }

    /// After it, and at first.
    pub(super) fn tell_supervisor_ready(&mut self) {
        if self.supervised.by.is_there() {
            let standing = self.standing();
            self.supervised.by.ready(&standing);
            self.supervised.told = Some((Instant::now(), standing));
        }
    }

    /// Before anything is taken away.
    pub(super) fn tell_supervisor_stopping(&self) {
        self.supervised.by.stopping();
    }

    /// Before another process serves in the place of this one.
    pub(super) fn tell_supervisor_followed_by(&self, process: Option<u32>) {
        self.supervised.by.followed_by(process);
    }

    /// Says how the node stands, when that has changed and it is time.
    pub(super) fn tell_supervisor(&mut self) {
        let is_due = self.supervised.told.as_ref().is_none_or(|(at, _)| at.elapsed() >= TELL);
        if !self.supervised.by.is_there() || !is_due {
            return;
        }
        let standing = self.standing();
        if self.supervised.told.as_ref().is_none_or(|(_, told)| *told != standing) {
            self.supervised.by.status(&standing);
        }
        self.supervised.told = Some((Instant::now(), standing));
    }

    /// The verdict of `xskiff status`, in one line.
    fn standing(&mut self) -> String {
        let Verdict { level, summary, .. } = self.status().verdict;
        match level {
            Level::Ok => summary,
            Level::Degraded => format!("degraded: {summary}"),
            Level::Failing => format!("failing: {summary}"),
        }
    }
}
