//! The relay: watches the API server once per kind, whatever the number of nodes, and serves what
//! nodes need of it by the API server's own protocol and resourceVersions, so that a node may go from
//! one to the other and back without listing anew, as far as the history reaches.
//!
//! Last known good holds here too: while the API server is away, what was there is served. Before
//! the first complete lists nothing is; a kind that the API server does not have is answered as there,
//! and picked up when it is installed. A list that misses much of what there was is believed only
//! when a second one agrees, but for addresses that another pod claims.
//!
//! Reading order: [`strip`] (what nodes need), [`upstream`] (what becomes of one kind, as
//! [`crate::list_watch`] hands it over), [`hold`] (losses that are not believed at once, by
//! [`crate::hold`]), [`judge`] (what nodes cannot use), [`writes`] (the leader and its
//! Events), [`standing`] (how it stands), [`access`] (certificates and tokens).

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::server::{backoff, jittered};
use crate::client::{self, ClientError, Frontends, Servers};
use crate::kept;
use crate::list_watch::Follower;
use crate::serve::{self, HistoryLimits, Limits, ListenError, Options, Server, Store};

pub mod access;
mod hold;
mod judge;
pub mod standing;
pub mod strip;
mod upstream;
pub mod writes;

use access::{Access, AccessError};
use hold::Holds;
use judge::Judge;
use standing::Standing;
use upstream::OfKind;
pub use upstream::Times;
use writes::{Candidate, Findings, WriteSettings, Writer, Writes};

/// How long lists under way are waited for at the end.
const GRACE: Duration = Duration::from_secs(5);
/// How often files of certificates and tokens are looked at.
const RELOAD: Duration = Duration::from_secs(30);

/// Before a follower that panicked is begun again: at first, and at most.
const PANIC_REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How to relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where nodes ask.
    pub listen: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` are served, without TLS; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// The certificate that nodes see and its key, in PEM; plain HTTP when absent.
    pub tls: Option<TlsFiles>,
    /// Bearer tokens that may ask, one a line; everybody who may connect when absent.
    pub token_file: Option<PathBuf>,
    /// Whom to ask, and as whom.
    pub upstream: client::Access,
    /// When to lose patience with it.
    pub times: Times,
    /// Bounds of what is served.
    pub limits: Limits,
    /// How much of the past is kept.
    pub history: HistoryLimits,
    /// Who leads, and what it writes; nothing is written when absent.
    pub writes: Option<WriteSettings>,
}

/// Files of TLS, in PEM; read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Nodes must have a certificate of this authority; anybody may connect when absent.
    pub client_authority: Option<PathBuf>,
}

/// The relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// An address is in use, or not ours.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A certificate, key or token cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// An API server's credentials cannot be used.
    #[error(transparent)]
    Upstream(#[from] ClientError),
}

/// A running relay; dropping it ends it at once.
#[derive(Debug)]
pub struct Relay {
    server: Server,
    metrics: Option<Server>,
    store: Arc<Store>,
    standing: Arc<Standing>,
    tasks: JoinSet<()>,
    lead: Option<Lead>,
}

/// This relay's part in who leads.
#[derive(Debug)]
struct Lead {
    writes: Arc<Writes>,
    findings: Findings,
    stop: watch::Sender<bool>,
    /// Of one; ends when dropped.
    candidate: JoinSet<()>,
}

impl Relay {
    /// Begins to follow the API server and to serve.
    ///
    /// # Errors
    /// [`RelayError`], before anything is served.
    pub async fn start(settings: Settings) -> Result<Self, RelayError> {
        let access = Access::load(settings.tls.clone(), settings.token_file.clone())?;
        let servers = Arc::new(Servers::new(settings.upstream.clone(), Frontends::of_pod()));
        servers.check().await?;
        let store = Arc::new(Store::following(settings.history));
        let standing = Arc::new(Standing::default());
        let options = Options {
            tls: access.tls(),
            access: access.tokens(),
            header: Some((kept::HEADER, kept::value())),
            limits: settings.limits,
            ..Options::plain(settings.listen)
        };
        let server = serve::start(options, Arc::clone(&store)).await?;
        let mut tasks = JoinSet::new();
        let lead =
            settings.writes.as_ref().map(|own| Lead::start(own, &settings.upstream, &mut tasks));
        let metrics = match settings.metrics {
            None => None,
            Some(address) => {
                let writes = lead.as_ref().map(|lead| &lead.writes);
                let pages = standing::pages(&standing, &store, server.counts(), writes);
                let options = Options {
                    pages: Some(pages),
                    // Nothing but pages: objects are asked for where clients are known.
                    access: Some(Arc::new(|_, _, _| Err(serve::Denied::Unauthorized))),
                    ..Options::plain(address)
                };
                Some(serve::start(options, Arc::clone(&store)).await?)
            }
        };
        let holds = Arc::new(Holds::new(Arc::clone(&store), Arc::clone(&standing)));
        for kind in Kind::ALL {
            let (servers, store) = (Arc::clone(&servers), Arc::clone(&store));
            let times = settings.times.of_loop(settings.upstream.request_timeout);
            let judged = lead.as_ref().map(|lead| lead.findings.clone());
            let judged = judged.zip(settings.writes.as_ref().map(|own| own.lease.clone()));
            let sink = {
                let (standing, holds) = (Arc::clone(&standing), Arc::clone(&holds));
                move || {
                    let judge = judged.clone().map(|(findings, lease)| {
                        Judge::new(kind, Arc::clone(&store), findings, lease)
                    });
                    let (store, standing) = (Arc::clone(&store), Arc::clone(&standing));
                    OfKind::new(kind, store, standing, Arc::clone(&holds), judge)
                }
            };
            tasks.spawn(supervise(kind, Arc::clone(&standing), move || {
                Follower::new(Arc::clone(&servers), kind, times, sink()).follow()
            }));
        }
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(RELOAD).await;
                access.reload();
            }
        });
        Ok(Self { server, metrics, store, standing, tasks, lead })
    }

    /// Where nodes ask.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(Server::address)
    }

    /// What was served.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What it holds.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Who leads, and what was written; absent when nothing is.
    #[must_use]
    pub fn writes(&self) -> Option<&Arc<Writes>> {
        self.lead.as_ref().map(|lead| &lead.writes)
    }

    /// Serves until `stop` comes, then ends watches between two events.
    pub async fn until(mut self, stop: impl Future<Output = ()>) {
        stop.await;
        // What writes Events ends before the lead does.
        self.tasks.shutdown().await;
        // Watches end first and probes last: what ends is not ready, and says so.
        self.standing.end();
        let lead = self.lead.take();
        tokio::join!(self.server.shut_down(GRACE), async {
            if let Some(lead) = lead {
                lead.end().await;
            }
        });
    }
}

impl Lead {
    fn start(settings: &WriteSettings, access: &client::Access, tasks: &mut JoinSet<()>) -> Self {
        // Servers of its own: half of the time in which a leader must renew is for one of them,
        // so that another can be asked in time.
        let access = client::Access { request_timeout: settings.times.renew / 2, ..access.clone() };
        let servers = Arc::new(Servers::new(access, Frontends::of_pod()));
        let findings = Findings::new(settings.rates);
        let writes = Arc::new(Writes::new(settings.identity.clone(), findings.clone()));
        let (leads, follows) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let candidate = Candidate::new(Arc::clone(&servers), settings, leads, Arc::clone(&writes));
        let mut of_candidate = JoinSet::new();
        of_candidate.spawn(candidate.run(stopped));
        let writer = Writer {
            servers,
            findings: findings.clone(),
            identity: settings.identity.clone(),
            leads: follows,
            writes: Arc::clone(&writes),
        };
        tasks.spawn(writer.run());
        Self { writes, findings, stop, candidate: of_candidate }
    }

    /// Gives up the lead, if it is held.
    async fn end(mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(GRACE, self.candidate.join_next()).await;
    }
}

/// A kind whose follower panics is followed by another one: what is known is served meanwhile.
async fn supervise<F>(kind: Kind, standing: Arc<Standing>, follow: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for panics in 1.. {
        // A set of one, which ends with this task.
        let mut task = JoinSet::new();
        task.spawn(follow());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(kind = kind.name(), %error, "following panicked (a defect: please report it); it is begun again");
                standing.failed(kind, "following panicked");
            }
            _ => return,
        }
        tokio::time::sleep(jittered(backoff(PANIC_REST, panics))).await;
    }
}

#[cfg(test)]
mod tests;
