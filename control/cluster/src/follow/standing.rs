//! How following stands, for people: filled by the follower's thread, read by the node's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use control::admin::kubernetes::{KindStatus, KubernetesStatus, ServerStatus, SnapshotStatus};
use control::admin::status::{ERRORS_MAX, ObjectError};
use control::model::Kind;
use tokio::sync::watch;

use crate::client::{ClientError, Servers};
use crate::resource::index;

/// One kind, beside what its objects say.
#[derive(Debug, Clone, Default)]
pub(super) struct OfKind {
    pub(super) status: KindStatus,
    pub(super) failures: [u64; ClientError::REASONS.len()],
    pub(super) panics: u64,
    pub(super) sign_of_life: Option<Instant>,
    /// It is in force in whole: listed in this process, or restored.
    pub(super) is_complete: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Standing {
    pub(super) kinds: [OfKind; Kind::ALL.len()],
    pub(super) refused: Vec<ObjectError>,
    pub(crate) snapshot: SnapshotStatus,
    /// When the snapshot was written, by the wall clock.
    pub(crate) snapshot_written: Option<SystemTime>,
}

/// The shared end of it.
#[derive(Clone)]
pub struct Reporter {
    standing: Arc<Mutex<Standing>>,
    servers: Arc<Servers>,
    complete: Arc<watch::Sender<bool>>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn unix_ms_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Reporter {
    pub(super) fn new(servers: Arc<Servers>) -> Self {
        let mut standing = Standing::default();
        for (kind, own) in Kind::ALL.into_iter().zip(&mut standing.kinds) {
            own.status.kind = kind.name().to_owned();
        }
        let (complete, _) = watch::channel(false);
        let standing = Arc::new(Mutex::new(standing));
        Self { standing, servers, complete: Arc::new(complete) }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        change(&mut self.lock())
    }

    pub(super) fn kind<T>(&self, kind: Kind, change: impl FnOnce(&mut OfKind) -> T) -> T {
        self.with(|standing| change(&mut standing.kinds[index(kind)]))
    }

    /// A kind is in force in whole.
    pub(super) fn complete(&self, kind: Kind) {
        self.kind(kind, |own| own.is_complete = true);
        if self.is_complete() {
            self.complete.send_if_modified(|complete| !std::mem::replace(complete, true));
        }
    }

    /// Whether every kind is in force in whole.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lock().kinds.iter().all(|own| own.is_complete)
    }

    /// Waits until every kind is in force in whole: listed, or restored from disk.
    pub async fn completed(&self) {
        let mut complete = self.complete.subscribe();
        // The sender lives as long as we do.
        let _ = complete.wait_for(|complete| *complete).await;
    }

    /// What is waited for before anything can be served, in one line.
    #[must_use]
    pub fn waits_for(&self) -> String {
        let standing = self.lock();
        let waiting = standing.kinds.iter().filter(|own| !own.is_complete);
        let mut text = Vec::new();
        for own in waiting {
            match &own.status.last_error {
                Some(error) => text.push(format!("{} ({})", own.status.kind, error.message)),
                None => text.push(own.status.kind.clone()),
            }
        }
        text.join(", ")
    }

    /// Everything.
    #[must_use]
    pub fn status(&self) -> KubernetesStatus {
        let standing = self.lock();
        let kinds: Vec<KindStatus> = standing.kinds.iter().map(kind_status).collect();
        let written = standing.snapshot_written;
        let age = written.map(|at| at.elapsed().unwrap_or_default().as_secs());
        let unlisted = kinds.iter().filter(|kind| kind.lists == 0 && !kind.absent);
        KubernetesStatus {
            server: self.servers.in_use().map(|server| server.name()),
            servers: self.servers.list().iter().map(|server| server_status(server)).collect(),
            unlisted: unlisted.map(|kind| kind.kind.clone()).collect(),
            kinds,
            snapshot: SnapshotStatus { age_seconds: age, ..standing.snapshot.clone() },
            refused: standing.refused.iter().take(ERRORS_MAX).cloned().collect(),
        }
    }

    /// Objects in force.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.lock().kinds.iter().map(|own| own.status.objects).sum()
    }

    /// Objects that are not in force as they are written.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.lock().kinds.iter().map(|own| own.status.refused).sum()
    }
}

fn kind_status(own: &OfKind) -> KindStatus {
    let reasons = ClientError::REASONS.iter().map(ToString::to_string).zip(own.failures);
    KindStatus {
        failures: reasons.chain([("panic".to_owned(), own.panics)]).collect(),
        seconds_since_sign_of_life: own.sign_of_life.map(|at| at.elapsed().as_secs()),
        ..own.status.clone()
    }
}

fn server_status(server: &crate::client::server::Server) -> ServerStatus {
    let load =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    ServerStatus {
        server: server.name(),
        relay: server.is_relay,
        resting: server.rests_until().is_some(),
        requests: load(&server.requests),
        received_bytes: load(&server.received),
        failures: load(&server.failures),
        of_earlier_version: server.is_of_earlier_version(),
        last_error: server.last_error(),
    }
}
