//! A cluster's API server for tests: the list and watch protocol over real HTTP and TLS, with faults
//! that a seed repeats, and clusters of any size to fill it with.
//!
//! Reading order: this file (the server, up and down), [`faults`] (what goes wrong), [`bodies`]
//! (how), [`written`] (Leases and Events, which clients write), [`synthetic`] (clusters),
//! [`authority`] (certificates).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cluster::serve::{Access, HistoryLimits, Limits, ListenError, Options, Server, Store, start};

pub mod authority;
mod bodies;
pub mod faults;
pub mod synthetic;
pub mod written;

pub use authority::Authority;
pub use faults::{Fault, Faults, Live, On};
pub use synthetic::{Detail, SERVICES, Size, Synthetic};
pub use written::{Write, Written};

/// How often a port that is not free yet is asked for again.
const REBINDS: u32 = 100;

/// How the server is set up.
#[derive(Clone, Default)]
pub struct Setup {
    /// Where it listens; on the loopback interface when absent.
    pub address: Option<IpAddr>,
    /// Speaks TLS by a certificate of this authority.
    pub authority: Option<Arc<Authority>>,
    /// Who may ask; everybody when absent.
    pub access: Option<Access>,
    /// Bounds and times.
    pub limits: Limits,
    /// How much of the past is kept.
    pub history: HistoryLimits,
    /// Of all that is left to chance.
    pub seed: u64,
}

/// The server. It needs a runtime; dropping it closes everything.
pub struct ClusterServer {
    options: Options,
    store: Arc<Store>,
    faults: Arc<Faults>,
    written: Arc<Written>,
    server: Option<Server>,
    authority: Option<Arc<Authority>>,
}

impl ClusterServer {
    /// Listens on a port of the kernel's choice.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn start(setup: Setup) -> Result<Self, ListenError> {
        let faults = Arc::new(Faults::new(setup.seed));
        let written = Arc::new(Written::default());
        let options = Options {
            tls: setup.authority.as_ref().map(|authority| authority.server()),
            access: setup.access,
            writes: Some(written.taker()),
            layer: Some(faults.layer()),
            limits: setup.limits,
            ..Options::plain((setup.address.unwrap_or(Ipv4Addr::LOCALHOST.into()), 0).into())
        };
        let store = Arc::new(Store::numbering(setup.history));
        let authority = setup.authority;
        let mut this = Self { options, store, faults, written, server: None, authority };
        this.listen().await?;
        Ok(this)
    }

    async fn listen(&mut self) -> Result<(), ListenError> {
        let mut tries = 0;
        loop {
            match start(self.options.clone(), Arc::clone(&self.store)).await {
                Ok(server) => {
                    self.options.address = server.address();
                    self.server = Some(server);
                    return Ok(());
                }
                // Connections of the one before are still being closed.
                Err(_) if tries < REBINDS => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it listens, or listened.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.options.address
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Its objects.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    /// What was written.
    #[must_use]
    pub fn written(&self) -> &Arc<Written> {
        &self.written
    }

    /// The running server, for its counts; absent while it is down.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Gone at once, as by SIGKILL: connections are closed, further ones refused.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Ends as by SIGTERM.
    pub async fn terminate(&mut self, grace: Duration) {
        if let Some(server) = self.server.take() {
            server.shut_down(grace).await;
        }
    }

    /// Comes back at the same address with its objects, and without their past: watches from
    /// before are answered with 410.
    ///
    /// # Errors
    /// [`ListenError`]: somebody else has taken the port meanwhile.
    pub async fn come_back(&mut self) -> Result<(), ListenError> {
        self.store.forget_history();
        self.listen().await
    }

    /// The same, with the same port at another address.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn come_back_at(&mut self, address: IpAddr) -> Result<(), ListenError> {
        self.options.address.set_ip(address);
        self.come_back().await
    }
}
