//! Connections, and what is answered to a request.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::model::Kind;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::counts::{Counts, add, one_less};
use super::guard::Guarded;
use super::list::Listing;
use super::request::{Asked, UNKNOWN, is_api, parse};
use super::status::Failure;
use super::store::Store;
use super::watch::{Place, Times, Watching};
use crate::resource::{GROUPS, WATCHED};

/// A body, sent as it is made.
pub type AnswerBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
/// What a request is answered.
pub type Answer = Response<AnswerBody>;

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Largest body of a request, where bodies are read at all.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Most header lines of a request.
const HEADERS_MAX: usize = 64;
/// What failed is asked again after so many seconds.
const RETRY_SECONDS: u32 = 1;

/// Why a client may not have what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// 401: it does not say who it is.
    Unauthorized,
    /// 403: it may not.
    Forbidden,
}

/// Judges a bearer token that asks for a verb on a kind.
pub type Access = Arc<dyn Fn(Option<&str>, &str, Kind) -> Result<(), Denied> + Send + Sync>;

/// A page beside the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The HTTP status.
    pub code: StatusCode,
    /// The content's type.
    pub content_type: &'static str,
    /// The content.
    pub text: String,
}

/// Pages beside the API, by path.
pub type Pages = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;

/// Sees every answer before it is sent, and may change it: faults, for tests.
pub type Layer =
    Arc<dyn Fn(Parts, Answer) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Answers a request, with its body, in place of the API, where it gives anything: writes, for
/// tests. This crate serves none itself.
pub type Writes = Arc<dyn Fn(&Parts, &[u8]) -> Option<Answer> + Send + Sync>;

/// Bounds of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are closed.
    pub connections: usize,
    /// Watches at once; more are refused with 429.
    pub watches: usize,
    /// Lists under way at once; more are refused with 429.
    pub lists: usize,
    /// For a TLS handshake, and for a request's head.
    pub head_time: Duration,
    /// For a list, from its first byte to its last.
    pub list_time: Duration,
    /// A connection on which nothing could be written for so long is closed.
    pub write_patience: Duration,
    /// Between bookmarks.
    pub bookmarks: Duration,
    /// A watch without `timeoutSeconds` ends after so long.
    pub watch_time: Duration,
}

impl Default for Limits {
    /// For 5,000 nodes with a connection per kind.
    fn default() -> Self {
        Self {
            connections: 40_000,
            watches: 40_000,
            lists: 256,
            head_time: Duration::from_secs(10),
            list_time: Duration::from_secs(120),
            write_patience: Duration::from_secs(30),
            bookmarks: Duration::from_secs(60),
            watch_time: Duration::from_secs(45 * 60),
        }
    }
}

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// With TLS, by this configuration.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may ask; everybody when absent.
    pub access: Option<Access>,
    /// Pages beside the API, asked first.
    pub pages: Option<Pages>,
    /// Takes what is written; absent but in tests.
    pub writes: Option<Writes>,
    /// A header of every answer.
    pub header: Option<(HeaderName, HeaderValue)>,
    /// Sees every answer; absent but in tests.
    pub layer: Option<Layer>,
    /// Bounds.
    pub limits: Limits,
}

impl Options {
    /// Plain HTTP for everybody.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        let limits = Limits::default();
        Self {
            address,
            tls: None,
            access: None,
            pages: None,
            writes: None,
            header: None,
            layer: None,
            limits,
        }
    }
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for lists and watches: {source}")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// A running server. Dropping it closes everything at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    counts: Arc<Counts>,
    ending: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it counted.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Accepts no more, ends the watches where an event ends, and lets lists be finished for at
    /// most `grace`.
    pub async fn shut_down(mut self, grace: Duration) {
        self.ending.send_replace(true);
        if let Some(task) = self.task.as_mut() {
            let _ = tokio::time::timeout(grace, task).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// What every connection shares.
struct Shared {
    store: Arc<Store>,
    options: Options,
    counts: Arc<Counts>,
    connections: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    ending: watch::Receiver<bool>,
}

/// Listens and serves `store` until the server is dropped.
///
/// # Errors
/// [`ListenError`].
pub async fn start(options: Options, store: Arc<Store>) -> Result<Server, ListenError> {
    let address = options.address;
    let failed = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let counts = Arc::new(Counts::default());
    let (ending, ends) = watch::channel(false);
    let limits = options.limits;
    let shared = Arc::new(Shared {
        store,
        counts: Arc::clone(&counts),
        connections: Arc::new(Semaphore::new(limits.connections)),
        watches: Arc::new(Semaphore::new(limits.watches)),
        lists: Arc::new(Semaphore::new(limits.lists)),
        ending: ends,
        options,
    });
    let task = Some(tokio::spawn(accept(listener, shared)));
    Ok(Server { address, counts, ending, task })
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut ending = shared.ending.clone();
    // Ends every connection when this task is dropped.
    let mut connections = JoinSet::new();
    while !*ending.borrow() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = ending.changed() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: wait instead of spinning.
                add(&shared.counts.accept_failures, 1);
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&shared.connections).try_acquire_owned() else {
            add(&shared.counts.connections_refused, 1);
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            add(&shared.counts.connections, 1);
            let _open = Open(Arc::clone(&shared.counts));
            connection(stream, shared).await;
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A connection that is open, however it ends.
struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        one_less(&self.0.connections);
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let limits = shared.options.limits;
    let socket = socket2::SockRef::from(&stream);
    // A client that is gone without a word is noticed by the kernel, also while nothing is sent.
    let alive = socket2::TcpKeepalive::new()
        .with_time(limits.write_patience)
        .with_interval(limits.write_patience / 3);
    let _ = socket.set_tcp_keepalive(&alive);
    let _ = socket.set_tcp_user_timeout(Some(limits.write_patience));
    let _ = stream.set_nodelay(true);
    let guarded = Guarded::new(stream, limits.write_patience, Arc::clone(&shared.counts));
    let Some(config) = shared.options.tls.clone() else {
        return converse(guarded, shared).await;
    };
    let handshake = TlsAcceptor::from(config).accept(guarded);
    match tokio::time::timeout(limits.head_time, handshake).await {
        Ok(Ok(stream)) => converse(stream, shared).await,
        Ok(Err(error)) => {
            add(&shared.counts.handshake_failures, 1);
            tracing::debug!(%error, "a TLS handshake failed");
        }
        Err(_) => add(&shared.counts.handshake_failures, 1),
    }
}

async fn converse<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut ending = shared.ending.clone();
    let head_time = shared.options.limits.head_time;
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_time)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // A client that hangs up early or talks nonsense is its own matter.
        _ = connection.as_mut() => return,
        _ = ending.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Infallible> {
    let (parts, body) = request.into_parts();
    add(&shared.counts.requests, 1);
    let written = match &shared.options.writes {
        None => None,
        Some(writes) => {
            let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
            body.ok().and_then(|body| writes(&parts, &body.to_bytes()))
        }
    };
    let mut answer = match written {
        Some(answer) => answer,
        None => respond(&parts, &shared).await.unwrap_or_else(|failure| {
            add(&shared.counts.refusals, 1);
            failure.answer()
        }),
    };
    if let Some((name, value)) = &shared.options.header {
        answer.headers_mut().insert(name, value.clone());
    }
    Ok(match &shared.options.layer {
        None => answer,
        Some(layer) => layer(parts, answer).await,
    })
}

async fn respond(parts: &Parts, shared: &Arc<Shared>) -> Result<Answer, Failure> {
    let path = parts.uri.path();
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Failure::method());
    }
    if let Some(page) = shared.options.pages.as_ref().and_then(|pages| pages(path)) {
        return Ok(plain(page));
    }
    if path == GROUPS {
        check_filled(shared)?;
        return Ok(groups(&shared.store));
    }
    if !is_api(path) {
        return probe(path, shared);
    }
    let asked = parse(path, parts.uri.query().unwrap_or_default())?;
    check_access(parts, &asked, shared)?;
    if !speaks_json(parts) {
        return Err(Failure::not_acceptable());
    }
    check_filled(shared)?;
    if shared.store.is_absent(asked.resource().kind) {
        return Err(Failure::not_found(UNKNOWN));
    }
    match asked {
        Asked::Get(resource, namespace, name) => {
            let object = shared.store.get(resource.kind, &namespace, &name).ok_or_else(|| {
                Failure::not_found(format!("{} {name:?} not found", resource.plural))
            })?;
            Ok(as_json(Full::new(object.object()).map_err(|never| match never {}).boxed_unsync()))
        }
        Asked::List(resource, query) => {
            let place = Arc::clone(&shared.lists)
                .try_acquire_owned()
                .map_err(|_| Failure::too_many("too many lists are under way", RETRY_SECONDS))?;
            let (store, counts) = (Arc::clone(&shared.store), Arc::clone(&shared.counts));
            let time = shared.options.limits.list_time;
            let listing = Listing::begin(store, resource, query, time, counts).await?;
            let pieces = stream::unfold((listing, place), |(mut listing, place)| async {
                let piece = listing.piece()?;
                Some((piece.map(Frame::data).map_err(Into::into), (listing, place)))
            });
            Ok(as_json(StreamBody::new(pieces).boxed_unsync()))
        }
        Asked::Watch(resource, query) => {
            let permit = Arc::clone(&shared.watches).try_acquire_owned().map_err(|_| {
                add(&shared.counts.watches_refused, 1);
                Failure::too_many("too many watches are open", RETRY_SECONDS)
            })?;
            let place = Place::new(permit, Arc::clone(&shared.counts));
            let limits = shared.options.limits;
            let times = Times { bookmarks: limits.bookmarks, watch: limits.watch_time };
            let (store, ending) = (Arc::clone(&shared.store), shared.ending.clone());
            let watching = Watching::begin(store, resource, query, times, ending, place).await?;
            let pieces = stream::unfold(watching, |mut watching| async {
                let piece = watching.piece().await?;
                Some((Ok(Frame::data(piece)), watching))
            });
            Ok(as_json(StreamBody::new(pieces).boxed_unsync()))
        }
    }
}

fn check_filled(shared: &Shared) -> Result<(), Failure> {
    let text = "the first lists are not complete yet";
    shared.store.is_filled().then_some(()).ok_or_else(|| Failure::unavailable(text, RETRY_SECONDS))
}

/// The groups that there are beside the core, for whoever does not find a kind (`metav1.APIGroupList`). They
/// are the same for everybody, and no secret.
fn groups(store: &Store) -> Answer {
    let there = WATCHED.iter().filter(|own| !own.group.is_empty() && !store.is_absent(own.kind));
    let groups: Vec<Value> = there
        .map(|own| {
            let version = json!({ "groupVersion": own.api_version(), "version": own.version });
            json!({ "name": own.group, "versions": [version], "preferredVersion": version })
        })
        .collect();
    let list = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups });
    as_json(Full::new(list.to_string().into()).map_err(|never| match never {}).boxed_unsync())
}

fn probe(path: &str, shared: &Shared) -> Result<Answer, Failure> {
    let text = |code, text: &str| {
        let content_type = "text/plain; charset=utf-8";
        Ok(plain(Page { code, content_type, text: text.to_owned() }))
    };
    match path {
        "/livez" => text(StatusCode::OK, "ok"),
        "/readyz" if shared.store.is_filled() => text(StatusCode::OK, "ok"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the first lists are not complete yet"),
        _ => Err(Failure::not_found(UNKNOWN)),
    }
}

fn check_access(parts: &Parts, asked: &Asked, shared: &Shared) -> Result<(), Failure> {
    let Some(access) = &shared.options.access else { return Ok(()) };
    let token = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let resource = asked.resource();
    access(token, asked.verb(), resource.kind).map_err(|denied| match denied {
        Denied::Unauthorized => Failure::unauthorized(),
        Denied::Forbidden => Failure::forbidden(format!(
            "{} is forbidden: cannot {} resource {:?} in API group {:?} at the cluster scope",
            resource.plural,
            asked.verb(),
            resource.plural,
            resource.group
        )),
    })
}

/// Whether the client takes JSON, if it says anything about it.
fn speaks_json(parts: &Parts) -> bool {
    let header = parts.headers.get_all(header::ACCEPT);
    let ranges = header.iter().filter_map(|value| value.to_str().ok());
    let mut types = ranges
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim())
        .peekable();
    types.peek().is_none()
        || types.any(|own| ["application/json", "application/*", "*/*"].contains(&own))
}

fn as_json(body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

fn plain(page: Page) -> Answer {
    let body = Full::new(Bytes::from(page.text)).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = page.code;
    let kind = HeaderValue::from_static(page.content_type);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
