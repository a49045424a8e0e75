//! What load balancers and the cluster ask a node's proxy, answered as kube-proxy does: of every service
//! with a `healthCheckNodePort` whether it has ready endpoints here, and `/healthz` and `/livez` of the
//! proxy itself.
//!
//! The control thread says what is to be answered ([`HealthChecks::follow`]), a thread of its own
//! answers. Every socket is bound for all addresses; which of them are meant is looked up with each
//! connection, so that addresses may come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use control::compile::HealthCheck;
use control::model::ObjectName;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::http::{HttpLevels, StalledWorkers, plain, respond, serve};

/// Connections served at once, of all services together; more wait in the listen queues.
pub const CONNECTIONS_MAX: usize = 256;
/// Services that are answered for: more than there are node ports by default.
pub const CHECKS_MAX: usize = 4096;
/// After so long without a word from the control thread the proxy is not healthy: services may have
/// changed, and nobody has followed (kube-proxy waits for two of its sync periods).
const SILENCE: Duration = Duration::from_secs(60);
/// How many of a service's endpoints are here, for balancers that weigh nodes by it.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// Whom a socket answers for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The proxy: `/healthz` and `/livez`.
    Proxy,
    /// A service.
    Service(ObjectName),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Proxy => f.write_str("http.proxy_listen"),
            Self::Service(name) => write!(f, "health check of Service {name}"),
        }
    }
}

/// What is to be answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Where the proxy's own state is asked for; `None`: nowhere.
    pub proxy: Option<SocketAddr>,
    /// Services by name.
    pub checks: Arc<BTreeMap<ObjectName, HealthCheck>>,
    /// The node's addresses that answer for services; `None`: all.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Whether new connections should come to this node: it is not about to be taken away.
    pub is_eligible: bool,
}

/// What is known by now.
#[derive(Debug, Clone)]
struct Known {
    wanted: Wanted,
    /// When the control thread last said so.
    heard: Instant,
}

/// A socket to be served.
struct Listening {
    subject: Subject,
    listener: TcpListener,
    stopped: oneshot::Receiver<()>,
}

/// A socket that is served; closed when dropped.
#[derive(Debug)]
struct Open {
    at: SocketAddr,
    _stop: oneshot::Sender<()>,
}

/// The sockets and the thread that serves them, which ends when this is dropped.
#[derive(Debug)]
pub struct HealthChecks {
    known: watch::Sender<Known>,
    listening: Option<mpsc::UnboundedSender<Listening>>,
    open: BTreeMap<Subject, Open>,
    levels: Arc<HttpLevels>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.listening = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl HealthChecks {
    /// Starts the thread; nothing is listened on yet.
    ///
    /// # Errors
    /// No thread or runtime.
    pub fn start(stalled_workers: StalledWorkers) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (listening, mut to_serve) = mpsc::unbounded_channel::<Listening>();
        let (known, of_known) =
            watch::channel(Known { wanted: Wanted::default(), heard: Instant::now() });
        let levels = Arc::new(HttpLevels::default());
        let noted = Arc::clone(&levels);
        let thread = std::thread::Builder::new().name("xskiff-health".into()).spawn(move || {
            crate::privileges::drop_all();
            runtime.block_on(async move {
                let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
                while let Some(Listening { subject, listener, stopped }) = to_serve.recv().await {
                    let (known, stalled) = (of_known.clone(), Arc::clone(&stalled_workers));
                    let answer = move |path: String, at: Option<IpAddr>| {
                        let answered = answer(&subject, &path, at, &known.borrow(), &stalled());
                        std::future::ready(answered)
                    };
                    let served = serve(listener, Arc::clone(&places), Arc::clone(&noted), answer);
                    tokio::spawn(async move {
                        tokio::select! {
                            () = served => {}
                            _ = stopped => {}
                        }
                    });
                }
            });
        })?;
        Ok(Self {
            known,
            listening: Some(listening),
            open: BTreeMap::new(),
            levels,
            thread: Some(thread),
        })
    }

    /// How busy it is.
    #[must_use]
    pub fn levels(&self) -> &HttpLevels {
        &self.levels
    }

    /// Sockets that are served.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.open.len()
    }

    /// Nothing has changed; the control thread goes on.
    pub fn hear(&self) {
        self.known.send_modify(|known| known.heard = Instant::now());
    }

    /// Answers as `wanted` from now on: closes what is not wanted any more and listens where it is not
    /// yet. `is_taken` says why a port may not be listened on. Tells of every socket that was tried
    /// whether it is served now, and if not, why; what failed is tried again the next time.
    pub fn follow(
        &mut self,
        wanted: Wanted,
        is_taken: impl Fn(u16) -> Option<String>,
    ) -> Vec<(Subject, Result<(), String>)> {
        let mut sockets: BTreeMap<Subject, SocketAddr> = wanted
            .checks
            .iter()
            .take(CHECKS_MAX)
            .map(|(name, check)| {
                let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), check.l4_port);
                (Subject::Service(name.clone()), at)
            })
            .collect();
        sockets.extend(wanted.proxy.map(|at| (Subject::Proxy, at)));
        let left_out = wanted.checks.keys().skip(CHECKS_MAX).cloned().map(Subject::Service);
        let mut told: Vec<(Subject, Result<(), String>)> = left_out
            .map(|subject| (subject, Err(format!("is one of more than {CHECKS_MAX}: left out"))))
            .collect();
        self.open.retain(|subject, open| {
            let is_taken =
                matches!(subject, Subject::Service(_)) && is_taken(open.at.port()).is_some();
            sockets.get(subject) == Some(&open.at) && !is_taken
        });
        self.known.send_replace(Known { wanted, heard: Instant::now() });
        for (subject, at) in sockets {
            if self.open.contains_key(&subject) {
                continue;
            }
            let taken = match &subject {
                Subject::Proxy => None,
                Subject::Service(_) => is_taken(at.port()),
            };
            let opened = taken.map_or_else(|| self.listen(&subject, at), Err);
            told.push((subject, opened));
        }
        told
    }

    fn listen(&mut self, subject: &Subject, at: SocketAddr) -> Result<(), String> {
        let failed =
            |error: std::io::Error| format!("cannot listen on port {}: {error}", at.port());
        let listener = bind(at).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let listening = Listening { subject: subject.clone(), listener, stopped };
        let sent = self.listening.as_ref().is_some_and(|to| to.send(listening).is_ok());
        if !sent {
            return Err("the thread that would answer has ended (a defect)".into());
        }
        self.open.insert(subject.clone(), Open { at, _stop: stop });
        Ok(())
    }
}

/// Listens for both families where all addresses are meant and there are both.
fn bind(at: SocketAddr) -> std::io::Result<TcpListener> {
    let is_any = at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match TcpListener::bind(at) {
        Err(error) if is_any && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()))
        }
        bound => bound,
    }
}

/// What a request for `path` that came to the address `at` is answered; `None`: nothing, the connection
/// ends.
fn answer(
    subject: &Subject,
    path: &str,
    at: Option<IpAddr>,
    known: &Known,
    stalled: &[u16],
) -> Option<Response<Full<Bytes>>> {
    let is_healthy = stalled.is_empty() && known.heard.elapsed() < SILENCE;
    match subject {
        Subject::Proxy => Some(of_proxy(path, known, is_healthy)),
        Subject::Service(name) => {
            let meant = known.wanted.addresses.as_ref();
            let is_meant = meant.is_none_or(|own| at.is_some_and(|at| own.contains(&at)));
            let check = known.wanted.checks.get(name).filter(|_| is_meant)?;
            Some(of_service(name, check.local_endpoints, is_healthy))
        }
    }
}

fn of_service(name: &ObjectName, local: u32, is_healthy: bool) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": { "namespace": &*name.namespace, "name": &*name.name },
        "localEndpoints": local,
        "serviceProxyHealthy": is_healthy,
    });
    let mut response = json(is_healthy && local > 0, body.to_string());
    response.headers_mut().insert(WEIGHT, local.into());
    response
}

fn of_proxy(path: &str, known: &Known, is_healthy: bool) -> Response<Full<Bytes>> {
    let is_eligible = known.wanted.is_eligible;
    let (is_well, tells_eligible) = match path {
        "/healthz" => (is_healthy && is_eligible, true),
        "/livez" => (is_healthy, false),
        _ => return plain(StatusCode::NOT_FOUND, "there are /healthz and /livez\n".into()),
    };
    let now = SystemTime::now();
    // As kube-proxy: recent while all is well, and else when it last was.
    let silence = if is_well { Duration::ZERO } else { known.heard.elapsed() };
    let updated = now.checked_sub(silence).unwrap_or(now);
    let mut body = serde_json::json!({ "lastUpdated": utc(updated), "currentTime": utc(now) });
    if tells_eligible && let Some(fields) = body.as_object_mut() {
        fields.insert("nodeEligible".into(), is_eligible.into());
    }
    json(is_well, body.to_string())
}

fn json(is_well: bool, body: String) -> Response<Full<Bytes>> {
    let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = respond(code, "application/json", body);
    let nosniff = header::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// `2026-11-29 18:05:00 +0000 UTC`, as kube-proxy writes a time.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0; years begin in March, so that a leap day is the last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let of_era_year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = of_era_year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
}

#[cfg(test)]
#[path = "health_checks_tests.rs"]
mod tests;
