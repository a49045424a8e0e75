//! The follower: what API servers say, on its way to the node.
//!
//! Reading order: this file (a thread of its own, and what runs on it), [`kind`] (what
//! [`crate::list_watch`] says of one kind), [`whole`] (what is in force, and what changes it),
//! [`known`] (the objects of a kind), [`crate::hold`] (losses that are not believed at once),
//! [`standing`] (how it stands, for people).
//!
//! Everything runs on one thread with a runtime of its own: reading 150,000 pods takes seconds,
//! which the node's control thread does not have.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::client::server::{backoff, jittered};
use crate::client::{Access, Frontends, Servers};
use crate::list_watch::{Follower, Times};
use crate::{feed, snapshot};

mod kind;
pub(crate) mod known;
pub mod standing;
pub mod whole;

use kind::OfKind;
use standing::Reporter;
use whole::Whole;

/// How often it is looked whether anything is to be written.
const LOOK: Duration = Duration::from_millis(200);
/// How long the end of the process waits for the last snapshot.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// How servers are followed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which, and as whom.
    pub access: Access,
    /// A watch without a byte for so long is given up.
    pub silence: Duration,
    /// A watch lasts at least and at most so long.
    pub watch: (Duration, Duration),
    /// A streamed list may take so long; then lists are asked for in pages.
    pub list_timeout: Duration,
    /// When streamed lists are tried again where they were refused.
    pub stream_retry: Duration,
    /// When a kind that no server has is asked for again.
    pub absent_retry: Duration,
    /// The first pause after a failure, and the longest.
    pub backoff: (Duration, Duration),
    /// Losses above this part, in percent, are held.
    pub hold_percent: u32,
    /// Until a second list.
    pub hold_after: Duration,
    /// Where what is in force is written, and how long after a change; `None`: nowhere.
    pub snapshot: Option<(PathBuf, Duration)>,
}

impl Settings {
    /// What the configuration says, to be followed by `access`.
    #[must_use]
    pub fn new(settings: &control::config::Kubernetes, access: Access) -> Self {
        let seconds = |number: u32| Duration::from_secs(number.into());
        Self {
            access,
            silence: seconds(settings.silence_seconds),
            watch: (seconds(settings.watch_seconds_min), seconds(settings.watch_seconds_max)),
            list_timeout: seconds(settings.request_timeout_seconds) * 4,
            stream_retry: Duration::from_secs(1800),
            absent_retry: Duration::from_secs(60),
            backoff: (Duration::from_millis(800), Duration::from_secs(30)),
            hold_percent: settings.hold_percent,
            hold_after: seconds(settings.hold_seconds),
            snapshot: Some((settings.state_directory.clone(), seconds(settings.snapshot_seconds))),
        }
    }

    fn times(&self) -> Times {
        Times {
            answer: self.access.request_timeout,
            silence: self.silence,
            watch: self.watch,
            list: self.list_timeout,
            stream_retry: self.stream_retry,
            absent_retry: self.absent_retry,
            backoff: self.backoff,
            hold: self.hold_after,
        }
    }
}

/// What all kinds share.
struct Shared {
    settings: Settings,
    servers: Arc<Servers>,
    reporter: Reporter,
    whole: RefCell<Whole>,
}

/// The running follower; ends when dropped.
#[derive(Debug)]
pub struct Handle {
    reporter: Reporter,
    stop: Option<oneshot::Sender<()>>,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Handle {
    /// How it stands.
    #[must_use]
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }
}

impl Drop for Handle {
    /// Writes the last snapshot, unless the disk hangs.
    fn drop(&mut self) {
        self.stop = None;
        if self.ended.recv_timeout(LAST_WRITE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("the last snapshot of the cluster is not written: the disk hangs");
        }
    }
}

/// Starts to follow; what is on disk is in force at once.
///
/// # Errors
/// No thread or runtime.
pub fn start(settings: Settings, node: feed::Sender) -> std::io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let frontends = Frontends::of_pod();
    let servers = Arc::new(Servers::new(settings.access.clone(), frontends.clone()));
    let reporter = Reporter::new(Arc::clone(&servers));
    node.send([], |report| report.kubernetes = Some(reporter.clone()));
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel();
    let told = reporter.clone();
    std::thread::Builder::new().name("xskiff-cluster".into()).spawn(move || {
        let percent = settings.hold_percent;
        let whole = Whole::new(node, reporter.clone(), frontends, percent);
        let shared = Shared { settings, servers, reporter, whole: RefCell::new(whole) };
        LocalSet::new().block_on(&runtime, run(Rc::new(shared), stopped));
        // Whoever waits for an answer of the system's resolver is not waited for.
        runtime.shutdown_background();
        let _ = end.send(());
    })?;
    Ok(Handle { reporter: told, stop: Some(stop), ended })
}

async fn run(shared: Rc<Shared>, stopped: oneshot::Receiver<()>) {
    let mut keeper = snapshot::Keeper::new(shared.settings.snapshot.clone(), &shared.reporter);
    keeper.restore(&mut shared.whole.borrow_mut());
    for kind in Kind::ALL {
        tokio::task::spawn_local(supervise(Rc::clone(&shared), kind));
    }
    keep(&shared, &mut keeper, stopped).await;
    keeper.finish(&mut shared.whole.borrow_mut());
}

/// Writes what changed, until nobody takes anything any more. What is being written is waited for.
async fn keep(shared: &Shared, keeper: &mut snapshot::Keeper, mut stopped: oneshot::Receiver<()>) {
    while !shared.whole.borrow().is_abandoned() {
        tokio::select! {
            _ = &mut stopped => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let bytes = keeper.due(&mut shared.whole.borrow_mut());
        if let Some(bytes) = bytes {
            keeper.write(bytes, &shared.whole).await;
        }
    }
}

/// A kind whose follower panics is followed by another one: what is in force stays.
async fn supervise(shared: Rc<Shared>, kind: Kind) {
    for panics in 1.. {
        let sink = OfKind::new(Rc::clone(&shared), kind);
        let servers = Arc::clone(&shared.servers);
        let follower = Follower::new(servers, kind, shared.settings.times(), sink);
        match tokio::task::spawn_local(follower.follow()).await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(kind = kind.name(), %error, "following panicked (a defect: please report it); it is begun again");
                shared.reporter.kind(kind, |own| own.panics += 1);
            }
        }
        tokio::time::sleep(jittered(backoff(shared.settings.backoff, panics))).await;
    }
}

#[cfg(test)]
mod tests;
