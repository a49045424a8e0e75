//! Which server is asked: the first in order that is well.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::model::Service;
use http::{Response, Uri, header};

use super::access::Access;
use super::error::{ClientError, chain, cut};
use super::server::{Ask, Server, jittered};
use super::timed::Timed;
use crate::list_watch::wire::Status;

/// Before the next server is asked in place of one that failed, so that those who lost a relay do
/// not come to the next all at once; jittered.
const TURN: Duration = Duration::from_millis(200);
/// What is read of an answer that says why not.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Largest answer that is one object: those that are asked for one by one have a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// By Service, its addresses with the port that it has there; 0: all.
type Listening = BTreeMap<Box<str>, Box<[(IpAddr, u16)]>>;

/// Addresses of Services, which this node serves itself: no server may be reached through one.
#[derive(Debug, Default, Clone)]
pub struct Frontends(Arc<Mutex<Listening>>);

impl Frontends {
    fn lock(&self) -> MutexGuard<'_, Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Service came or changed. Its cluster addresses are no server's on any port; one that it
    /// shares with a node is its own only on its ports.
    pub fn set(&self, service: &Service) {
        let whole = service.cluster_ips.iter().map(|address| (*address, 0));
        let shared = service.external_ips.iter().chain(&service.load_balancer_ips);
        let shared = shared
            .flat_map(|address| service.ports.iter().map(move |port| (*address, port.l4_port)));
        let addresses: Box<[_]> = whole.chain(shared).collect();
        self.lock().insert(service.name.to_string().into(), addresses);
    }

    /// With the API servers' own Service, if the environment of a Pod names it.
    #[must_use]
    pub fn of_pod() -> Self {
        let own = Self::default();
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok();
        if let Some(host) = host.and_then(|host| host.parse().ok()) {
            own.set_service_host(host);
        }
        own
    }

    /// The API servers' own Service, of which a Pod is told before any is known.
    fn set_service_host(&self, host: IpAddr) {
        self.lock().insert("".into(), [(host, 0)].into());
    }

    /// A Service went.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Whether a Service listens there.
    #[must_use]
    pub fn contain(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let frontends = self.lock();
        let mut all = frontends.values().flat_map(|own| own.iter());
        all.any(|(own, port)| *own == ip && (*port == 0 || *port == address.port()))
    }
}

/// All servers.
pub struct Servers {
    access: Arc<Access>,
    list: Vec<Arc<Server>>,
    frontends: Frontends,
    in_use: AtomicUsize,
}

impl Servers {
    /// The servers of `access`. Relays are alike, so each node begins with another of them.
    #[must_use]
    pub fn new(access: Access, frontends: Frontends) -> Self {
        let access = Arc::new(access);
        let server = |is_relay| {
            let access = Arc::clone(&access);
            move |uri: &Uri| Arc::new(Server::new(uri.clone(), is_relay, Arc::clone(&access)))
        };
        let mut list: Vec<_> = access.relays.iter().map(server(true)).collect();
        let turn = if list.is_empty() { 0 } else { fastrand::usize(..list.len()) };
        list.rotate_left(turn);
        list.extend(access.api_servers.iter().map(server(false)));
        Self { access, list, frontends, in_use: AtomicUsize::new(usize::MAX) }
    }

    /// All of them, in the order in which they are preferred.
    #[must_use]
    pub fn list(&self) -> &[Arc<Server>] {
        &self.list
    }

    /// The one that answered last.
    #[must_use]
    pub fn in_use(&self) -> Option<&Arc<Server>> {
        self.list.get(self.in_use.load(Ordering::Relaxed))
    }

    /// How long until one is well; nothing when one is.
    #[must_use]
    pub fn rest(&self) -> Duration {
        let now = tokio::time::Instant::now();
        let rests = self.list.iter().map(|server| {
            server.rests_until().map_or(Duration::ZERO, |until| until.duration_since(now))
        });
        rests.min().unwrap_or_default()
    }

    /// Asks for `path`, query included, of the first server that is well; of the next when it is
    /// not. `silence` bounds every pause of the answer's body.
    ///
    /// # Errors
    /// What the last one that was asked said. Answers with another status than 200 are errors.
    pub async fn get(&self, path: &str, silence: Duration) -> Result<Timed, ClientError> {
        self.answer(&Ask::get(path), silence).await
    }

    /// Asks for one object, or writes one, and gives the answer's body. A write may have been done
    /// though it is an error here, since the answer may be lost on its way: it must bear repeating.
    ///
    /// # Errors
    /// As [`Self::get`]; any status of success is one. [`ClientError::Garbage`] for an answer of more
    /// than an object may have.
    pub async fn call(&self, ask: &Ask) -> Result<Vec<u8>, ClientError> {
        self.answer(ask, self.access.request_timeout).await?.whole(ANSWER_BYTES_MAX).await
    }

    /// Reads the files that every server is asked by, so that a start fails where it can be mended.
    ///
    /// # Errors
    /// [`ClientError::Credentials`].
    pub async fn check(&self) -> Result<(), ClientError> {
        for server in &self.list {
            server.check().await?;
        }
        Ok(())
    }

    async fn answer(&self, ask: &Ask, silence: Duration) -> Result<Timed, ClientError> {
        let mut failure = None;
        for index in self.candidates() {
            let Some(server) = self.list.get(index) else { continue };
            if failure.is_some() {
                tokio::time::sleep(jittered(TURN)).await;
            }
            match self.ask(server, ask, silence).await {
                Ok(answer) => {
                    server.answered();
                    self.in_use.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err((error, retry_after)) => {
                    // What is about the request is the same everywhere.
                    let is_final = matches!(&error,
                        ClientError::Http { status: 400..=499, .. } if error.reason() != "busy");
                    if is_final {
                        server.answered();
                        self.in_use.store(index, Ordering::Relaxed);
                        return Err(error);
                    }
                    server.failed(&error, retry_after);
                    tracing::debug!(server = server.name(), %error, "a server did not answer");
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| ClientError::Connection {
            server: "no server".to_owned(),
            message: "none is named".to_owned(),
        }))
    }

    /// Those that do not rest, in order; when all do, the one that is due next.
    fn candidates(&self) -> Vec<usize> {
        let rests: Vec<_> = self.list.iter().map(|server| server.rests_until()).collect();
        let well: Vec<usize> =
            rests.iter().enumerate().filter(|(_, rest)| rest.is_none()).map(|(at, _)| at).collect();
        if well.is_empty() {
            let due = rests.iter().enumerate().min_by_key(|(_, rest)| **rest);
            return due.map(|(at, _)| at).into_iter().collect();
        }
        well
    }

    async fn ask(
        &self,
        server: &Arc<Server>,
        ask: &Ask,
        silence: Duration,
    ) -> Result<Timed, (ClientError, Option<Duration>)> {
        self.check_way(server).await.map_err(|error| (error, None))?;
        let answer = server.send(ask).await.map_err(|error| (error, None))?;
        let (status, retry_after) = (answer.status(), retry_after(&answer));
        if status.is_success() {
            return Ok(Timed::new(answer.into_body(), Arc::clone(server), silence));
        }
        let body = Timed::new(answer.into_body(), Arc::clone(server), self.access.request_timeout);
        let said = body.whole(REFUSAL_BYTES_MAX).await.unwrap_or_default();
        let message = match serde_json::from_slice::<Status>(&said) {
            Ok(Status { message: Some(message), .. }) => message,
            _ => String::from_utf8_lossy(&said).trim().to_owned(),
        };
        let (server, status, message) = (server.name(), status.as_u16(), cut(message));
        Err((ClientError::Http { server, status, message }, retry_after))
    }

    /// Whether a connection to `server` would stay out of this node's own tables.
    async fn check_way(&self, server: &Server) -> Result<(), ClientError> {
        let host = server.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let default = if server.uri.scheme_str() == Some("http") { 80 } else { 443 };
        let port = server.uri.port_u16().unwrap_or(default);
        let after = self.access.connect_timeout;
        let looked_up = tokio::time::timeout(after, tokio::net::lookup_host((host, port))).await;
        let mut addresses = match looked_up {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => {
                let message = format!("{host} is not resolved: {}", chain(&error));
                return Err(ClientError::Connection { server: server.name(), message });
            }
            Err(_) => return Err(ClientError::Timeout { server: server.name(), after }),
        };
        match addresses.find(|address| self.frontends.contain(*address)) {
            Some(address) => Err(ClientError::Frontend { server: server.name(), address }),
            None => Ok(()),
        }
    }
}

fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
