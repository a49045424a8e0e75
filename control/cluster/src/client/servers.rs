//! Which server is asked: the first in order that is well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::model::Service;
use http::{Response, Uri, header};

use super::access::Access;
use super::error::{ClientError, chain, cut};
use super::server::{Ask, Server, jittered};
use super::spoilers::Spoilers;
use super::timed::Timed;
use crate::kept;
use crate::list_watch::wire::Status;

/// Before the next server is asked in place of one that failed, so that those who lost a relay do
/// not come to the next all at once; jittered.
const TURN: Duration = Duration::from_millis(200);
/// What is read of an answer that says why not.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Largest answer that is one object: those that are asked for one by one have a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Addresses that servers were found at, at most: as many as a name resolves to over the years, and
/// more are not kept free of Services.
pub const SERVER_ADDRESSES_MAX: usize = 1024;

/// Addresses of Services, which this node serves itself, and of servers: no server may be reached
/// through a Service.
///
/// Whoever may create Services may give them any external address, and kube-vip and its like publish
/// the API servers' own. Such an address stays the server's: a node that took it for the Service's would
/// never hear that the Service is gone.
#[derive(Debug, Default, Clone)]
pub struct Frontends(Arc<Mutex<Addresses>>);

#[derive(Debug, Default)]
struct Addresses {
    /// By Service, its addresses with the port that it has there; 0: all.
    services: BTreeMap<Box<str>, Box<[(IpAddr, u16)]>>,
    /// Where servers are, as they are named or their names were resolved.
    servers: BTreeSet<SocketAddr>,
}

impl Frontends {
    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Service came or changed. Its cluster addresses are no server's on any port; one that it
    /// shares with a node is its own only on its ports.
    pub fn set(&self, service: &Service) {
        let whole = service.cluster_ips.iter().map(|address| (*address, 0));
        let addresses: Box<[_]> = match service.headless {
            // Nothing is served of it.
            true => Box::default(),
            false => whole.chain(external(service)).collect(),
        };
        self.lock().services.insert(service.name.to_string().into(), addresses);
    }

    /// External addresses of `service` that are a server's on one of its ports.
    #[must_use]
    pub fn of_servers(&self, service: &Service) -> BTreeSet<SocketAddr> {
        let own = self.lock();
        let all = external(service).map(SocketAddr::from);
        all.filter(|address| own.servers.contains(address)).collect()
    }

    /// A server is at `address`. Gives whether it may be reached there: no Service is.
    pub(crate) fn take(&self, address: SocketAddr) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let mut own = self.lock();
        let of_services = || own.services.values().flat_map(|all| all.iter());
        let (ip, port) = (address.ip(), address.port());
        if of_services().any(|one| *one == (ip, 0)) {
            return false;
        }
        let is_free = !of_services().any(|one| *one == (ip, port));
        if own.servers.len() < SERVER_ADDRESSES_MAX {
            own.servers.insert(address);
        }
        is_free
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
        self.lock().services.insert("".into(), [(host, 0)].into());
    }

    /// A Service went.
    pub fn remove(&self, name: &str) {
        self.lock().services.remove(name);
    }
}

/// Addresses outside the cluster's ranges, with the ports that it has there.
fn external(service: &Service) -> impl Iterator<Item = (IpAddr, u16)> {
    let addresses = service.external_ips.iter().chain(&service.load_balancer_ips);
    addresses.flat_map(|address| service.ports.iter().map(move |port| (*address, port.l4_port)))
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
        for (host, port) in list.iter().map(|server| place(&server.uri)) {
            if let Ok(address) = host.parse() {
                frontends.take(SocketAddr::new(address, port));
            }
        }
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
    /// not, and of `spoilers` last. `silence` bounds every pause of the answer's body.
    ///
    /// # Errors
    /// What the last one that was asked said. Answers with another status than 200 are errors.
    pub(crate) async fn get(
        &self,
        path: &str,
        silence: Duration,
        spoilers: &Spoilers,
    ) -> Result<Timed, ClientError> {
        self.answer(&Ask::get(path), silence, spoilers).await
    }

    /// Asks for one object, or writes one, and gives the answer's body. A write may have been done
    /// though it is an error here, since the answer may be lost on its way: it must bear repeating.
    ///
    /// # Errors
    /// As [`Self::get`]; any status of success is one. [`ClientError::Garbage`] for an answer of more
    /// than an object may have.
    pub async fn call(&self, ask: &Ask) -> Result<Vec<u8>, ClientError> {
        let answer = self.answer(ask, self.access.request_timeout, &Spoilers::default()).await?;
        answer.whole(ANSWER_BYTES_MAX).await
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

    /// What was asked for failed as `error` says: a server that spoilt what it had begun to say, or does not
    /// find what it must have, is counted, and becomes one of `spoilers`.
    pub(crate) fn spoilt(&self, error: &ClientError, spoilers: &mut Spoilers) {
        let name = spoilers.take(error, self.access.rest);
        if let Some(server) = self.list.iter().find(|server| Some(&*server.name()) == name) {
            server.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn answer(
        &self,
        ask: &Ask,
        silence: Duration,
        spoilers: &Spoilers,
    ) -> Result<Timed, ClientError> {
        let mut failure = None;
        for index in self.candidates(spoilers) {
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
                    if is_about_request(&error, server.is_relay) {
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

    /// Those that do not rest, in order, and `spoilers` last; when all rest, the one that is due next.
    fn candidates(&self, spoilers: &Spoilers) -> Vec<usize> {
        let rests: Vec<_> = self.list.iter().map(|server| server.rests_until()).collect();
        let mut well: Vec<usize> =
            rests.iter().enumerate().filter(|(_, rest)| rest.is_none()).map(|(at, _)| at).collect();
        if well.is_empty() {
            let due = rests.iter().enumerate().min_by_key(|(_, rest)| **rest);
            return due.map(|(at, _)| at).into_iter().collect();
        }
        well.sort_by_key(|at| self.list.get(*at).is_some_and(|own| spoilers.holds(&own.name())));
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
            let kept = server.note_kept(kept::told(server, answer.headers()));
            return Ok(Timed::new(answer.into_body(), Arc::clone(server), silence).keeping(kept));
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
        let (host, port) = place(&server.uri);
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
        match addresses.find(|address| !self.frontends.take(*address)) {
            Some(address) => Err(ClientError::Frontend { server: server.name(), address }),
            None => Ok(()),
        }
    }
}

/// The host and the port that a server is named by.
fn place(server: &Uri) -> (&str, u16) {
    let host = server.host().unwrap_or_default();
    let default = if server.scheme_str() == Some("http") { 80 } else { 443 };
    (host.trim_start_matches('[').trim_end_matches(']'), server.port_u16().unwrap_or(default))
}

/// Whether an answer is about the request, and the same everywhere: not one that knows us as nobody,
/// and not a relay's refusal, whose tokens are its own.
fn is_about_request(error: &ClientError, is_relay: bool) -> bool {
    match error {
        ClientError::Http { status: 401 | 429, .. } => false,
        ClientError::Http { status: 403, .. } => !is_relay,
        ClientError::Http { status: 400..=499, .. } => true,
        _ => false,
    }
}

fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
