//! What the service manager is told, by sd_notify(3): that the node is ready, how it stands, that it
//! reloads or ends, which process follows it, and, as its watchdog, that the workers live.
//!
//! The watchdog is fed by a thread of its own, as long as every worker ticks or sleeps, and by
//! nothing else: a control thread that hangs, or an API server that is away, ends no node whose
//! packets flow. Without a service manager all of this does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

use sd_notify::NotifyState;

use crate::http::StalledWorkers;
use crate::privileges;

/// The watchdog is fed so many times within its limit, so that a late turn or two is no reason to end.
const FEEDS_PER_LIMIT: u32 = 4;

/// The service manager, if there is one.
#[derive(Debug, Clone)]
pub struct Supervisor {
    is_there: bool,
    is_ending: Arc<AtomicBool>,
}

impl Supervisor {
    /// As the environment says (`NOTIFY_SOCKET`).
    #[must_use]
    pub fn from_environment() -> Self {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { is_there, is_ending: Arc::default() }
    }

    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self { is_there: false, is_ending: Arc::default() }
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// The node serves, or serves by its new configuration.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
    }

    /// How the node stands, for people (`systemctl status`).
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&line(status))]);
    }

    /// A changed configuration is about to be put in force; [`Self::ready`] follows.
    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// The node ends by order: workers that stop are no reason to end it by force.
    pub fn stopping(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
        self.tell(&[NotifyState::Stopping, NotifyState::Status("ending")]);
    }

    /// Another process serves from now on, which this one ends for; `None` where its number cannot be
    /// seen from here.
    pub fn followed_by(&self, process: Option<u32>) {
        self.is_ending.store(true, Ordering::SeqCst);
        match process {
            Some(process) => self.tell(&[NotifyState::MainPid(process)]),
            None if self.is_there => {
                tracing::warn!("the service manager cannot be told which process follows");
            }
            None => {}
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if !self.is_there {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!(%error, "the service manager was not told");
        }
    }

    /// Feeds the watchdog from now on, if the service manager asks for it (`WATCHDOG_USEC`), whenever
    /// no worker has stalled.
    ///
    /// # Errors
    /// No thread.
    pub fn watch(&self, stalled: StalledWorkers) -> std::io::Result<Option<Watchdog>> {
        let Some(limit) = sd_notify::watchdog_enabled().filter(|_| self.is_there) else {
            return Ok(None);
        };
        tracing::info!(?limit, "the service manager's watchdog follows the workers");
        let (stop, stopped) = channel::<()>();
        let supervisor = self.clone();
        let feed = move || {
            privileges::drop_all();
            let mut was_fed = true;
            loop {
                let stalled = supervisor.stalled(&stalled);
                if stalled.is_empty() {
                    supervisor.tell(&[NotifyState::Watchdog]);
                } else if was_fed {
                    tracing::error!(?stalled, "the watchdog is not fed: workers do not tick");
                }
                was_fed = stalled.is_empty();
                match stopped.recv_timeout(limit / FEEDS_PER_LIMIT) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("xskiff-watchdog".into()).spawn(feed)?;
        Ok(Some(Watchdog { stop: Some(stop), thread: Some(thread) }))
    }

    fn stalled(&self, stalled: &StalledWorkers) -> Vec<u16> {
        if self.is_ending.load(Ordering::SeqCst) { Vec::new() } else { stalled() }
    }
}

/// Feeds the watchdog until it is dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One line: each line of a message is an assignment of its own.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_nothing_and_a_status_is_one_line() {
        let nobody = Supervisor::none();
        nobody.ready("1 worker\nMAINPID=1");
        assert!(nobody.watch(Arc::new(Vec::new)).unwrap().is_none());
        assert_eq!(line("1 worker\nMAINPID=1"), "1 worker MAINPID=1");
    }

    #[test]
    fn workers_that_stop_by_order_have_not_stalled() {
        let supervisor = Supervisor::none();
        let stalled: StalledWorkers = Arc::new(|| vec![1]);
        assert_eq!(supervisor.stalled(&stalled), [1]);
        supervisor.stopping();
        assert!(supervisor.stalled(&stalled).is_empty());
    }
}
