//! The relay: watches the API server once per kind, whatever the number of nodes, and serves what
//! nodes need of it by the API server's own protocol and resourceVersions, so that a node may go from
//! one to the other and back without listing anew, as far as the history reaches.
//!
//! Last known good holds here too: while the API server is away, what was there is served. Before
//! the first complete lists nothing is. A list that misses much of what there was is believed only
//! when a second one agrees.
//!
//! Reading order: [`strip`] (what nodes need), [`upstream`] (lists and watches), [`hold`] (losses
//! that are not believed at once), [`standing`] (how it stands), [`access`] (certificates and tokens).

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use tokio::task::JoinSet;

use crate::serve::{self, HistoryLimits, Limits, ListenError, Options, Server, Store};

pub mod access;
mod hold;
pub mod standing;
pub mod strip;
mod upstream;

use access::{Access, AccessError};
use standing::Standing;
pub use upstream::{Credentials, Times, Upstream, UpstreamError};

/// How long lists under way are waited for at the end.
const GRACE: Duration = Duration::from_secs(5);
/// How often files of certificates and tokens are looked at.
const RELOAD: Duration = Duration::from_secs(30);

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
    /// Whom to ask.
    pub upstream: Upstream,
    /// When to lose patience with it.
    pub times: Times,
    /// Bounds of what is served.
    pub limits: Limits,
    /// How much of the past is kept.
    pub history: HistoryLimits,
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
    /// Nobody to ask.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// A running relay; dropping it ends it at once.
#[derive(Debug)]
pub struct Relay {
    server: Server,
    metrics: Option<Server>,
    store: Arc<Store>,
    standing: Arc<Standing>,
    tasks: JoinSet<()>,
}

impl Relay {
    /// Begins to follow the API server and to serve.
    ///
    /// # Errors
    /// [`RelayError`], before anything is served.
    pub async fn start(settings: Settings) -> Result<Self, RelayError> {
        let access = Access::load(settings.tls.clone(), settings.token_file.clone())?;
        let clients = settings.upstream.clients(settings.times).await?;
        let store = Arc::new(Store::following(settings.history));
        let standing = Arc::new(Standing::default());
        let options = Options {
            tls: access.tls(),
            access: access.tokens(),
            limits: settings.limits,
            ..Options::plain(settings.listen)
        };
        let server = serve::start(options, Arc::clone(&store)).await?;
        let mut tasks = JoinSet::new();
        let metrics = match settings.metrics {
            None => None,
            Some(address) => {
                let pages = standing::pages(&standing, &store, server.counts());
                let options = Options {
                    pages: Some(pages),
                    // Nothing but pages: objects are asked for where clients are known.
                    access: Some(Arc::new(|_, _, _| Err(serve::Denied::Unauthorized))),
                    ..Options::plain(address)
                };
                Some(serve::start(options, Arc::clone(&store)).await?)
            }
        };
        for kind in Kind::ALL {
            let follower = upstream::Follower {
                kind,
                clients: clients.clone(),
                store: Arc::clone(&store),
                standing: Arc::clone(&standing),
                times: settings.times,
            };
            tasks.spawn(follower.run());
        }
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(RELOAD).await;
                access.reload();
            }
        });
        Ok(Self { server, metrics, store, standing, tasks })
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

    /// Serves until `stop` comes, then ends watches between two events.
    pub async fn until(mut self, stop: impl Future<Output = ()>) {
        stop.await;
        self.tasks.abort_all();
        // Watches end first and probes last: what ends is not ready, and says so.
        self.standing.end();
        self.server.shut_down(GRACE).await;
    }
}

#[cfg(test)]
mod tests;
