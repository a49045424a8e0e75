//! `/metrics`, `/livez` and `/readyz`, on a thread of their own.
//!
//! Liveness is the workers' heartbeat alone: it is read here, without the control thread, so that
//! a control thread that hangs, or an API server that is away, never gets a node killed whose
//! packets flow. Readiness is both, that and what the control thread last said. Metrics are asked of the control
//! thread, and refused after [`ANSWER_TIMEOUT`] when it does not answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::admin::Status;
use dataplane::counters::Level;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::metrics;

/// Who answers (RFC 9110, 10.2.4): where kube-proxy's answers are given, whoever looks for one must tell
/// ours from its.
pub const SERVER: &str = "xskiff";
/// Bytes of a request's head, and of what is kept of a connection.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Connections served at once; more wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 64;
/// A connection may take so long to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection lives no longer than this: scrapers reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// The control thread may take so long to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A request for the node's status.
pub type StatusRequest = oneshot::Sender<Box<Status>>;

/// Whether the node is ready, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Tables are in force and every port has its sockets.
    Ready,
    /// What is missing.
    NotReady(String),
}

/// Asks the workers themselves: the numbers of those that have stalled.
pub type StalledWorkers = Arc<dyn Fn() -> Vec<u16> + Send + Sync>;

/// What the server answers from.
#[derive(Clone)]
pub struct Sources {
    /// Workers that stalled; empty when all live.
    pub stalled_workers: StalledWorkers,
    /// What the control thread last said.
    pub readiness: watch::Receiver<Readiness>,
    /// Where to ask for the status.
    pub status: mpsc::Sender<StatusRequest>,
}

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for metrics and probes: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No thread or runtime.
    #[error("cannot start the metrics thread: {0}")]
    Thread(std::io::Error),
}

/// How busy the server is.
#[derive(Debug, Default)]
pub struct HttpLevels {
    /// Connections served now, of [`CONNECTIONS_MAX`].
    pub connections: Level,
    /// Requests for the status that were under way at most.
    pub status_requests: Level,
}

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct HttpServer {
    /// Where it listens (the port is chosen by the kernel when 0 was configured).
    pub address: SocketAddr,
    levels: Arc<HttpLevels>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl HttpServer {
    /// How busy it is.
    #[must_use]
    pub fn levels(&self) -> &HttpLevels {
        &self.levels
    }
}

/// An address that is ours, where nothing is answered yet: who asks waits.
#[derive(Debug)]
pub struct Listening {
    listener: std::net::TcpListener,
    address: SocketAddr,
}

/// Listens on `address`.
///
/// # Errors
/// [`HttpError::Listen`].
pub fn listen(address: SocketAddr) -> Result<Listening, HttpError> {
    let failed = |source| HttpError::Listen { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listening { listener, address })
}

impl HttpError {
    /// Whether somebody listens there already.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse)
    }
}

/// Answers from `sources`.
///
/// # Errors
/// [`HttpError::Thread`], before anything is served.
pub fn start(listening: Listening, sources: Sources) -> Result<HttpServer, HttpError> {
    let Listening { listener, address: bound } = listening;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(HttpError::Thread)?;
    let (stop, stopped) = oneshot::channel();
    let levels = Arc::new(HttpLevels::default());
    let noted = Arc::clone(&levels);
    let thread = std::thread::Builder::new().name("xskiff-http".into()).spawn(move || {
        crate::privileges::drop_all();
        let (asked, places) = (Arc::clone(&noted), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        let answer = move |path: String, _: Option<IpAddr>| {
            let answered = answer(path, sources.clone(), Arc::clone(&asked));
            async move { Some(answered.await) }
        };
        runtime.block_on(async move {
            tokio::select! {
                () = serve(listener, places, noted, answer) => {}
                _ = stopped => {}
            }
        });
    });
    let thread = thread.map_err(HttpError::Thread)?;
    Ok(HttpServer { address: bound, stop: Some(stop), levels, thread: Some(thread) })
}

/// Serves what comes to `listener`, GET and HEAD alone. `answer` is told the path and the address that a
/// connection came to; without an answer the connection ends.
pub(crate) async fn serve<A, F>(
    listener: std::net::TcpListener,
    places: Arc<Semaphore>,
    levels: Arc<HttpLevels>,
    answer: A,
) where
    A: Fn(String, Option<IpAddr>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Response<Full<Bytes>>>> + Send + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a socket is not served"),
    };
    let mut failures = 0u64;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: wait instead of spinning.
                failures += 1;
                tracing::warn!(%error, failures, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // After it was accepted, since several sockets share the places.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (answer, levels) = (answer.clone(), Arc::clone(&levels));
        // All connections are served by this thread.
        levels.connections.set(levels.connections.get() + 1);
        tokio::spawn(async move {
            let at = stream.local_addr().ok().map(|at| at.ip().to_canonical());
            let service = service_fn(move |request: Request<Incoming>| {
                let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
                let answered = is_read.then(|| answer(request.uri().path().to_owned(), at));
                async move {
                    match answered {
                        Some(answered) => answered.await.ok_or(Unanswered),
                        None => {
                            let text = "only GET and HEAD are served\n".into();
                            Ok(plain(StatusCode::METHOD_NOT_ALLOWED, text))
                        }
                    }
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(REQUEST_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // A client that hangs up early or talks nonsense is its own matter.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            levels.connections.set(levels.connections.get() - 1);
            drop(place);
        });
    }
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("nobody is meant by it")]
struct Unanswered;

async fn answer(path: String, sources: Sources, levels: Arc<HttpLevels>) -> Response<Full<Bytes>> {
    match path.as_str() {
        "/livez" => livez(&(sources.stalled_workers)()),
        "/readyz" => readyz(&(sources.stalled_workers)(), &sources.readiness.borrow()),
        "/metrics" => metrics_page(&sources.status, &levels).await,
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n".into()),
    }
}

fn livez(stalled: &[u16]) -> Response<Full<Bytes>> {
    if stalled.is_empty() {
        return plain(StatusCode::OK, "ok\n".into());
    }
    let text = format!("workers without a heartbeat: {stalled:?}\n");
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn readyz(stalled: &[u16], readiness: &Readiness) -> Response<Full<Bytes>> {
    match readiness {
        Readiness::Ready if !stalled.is_empty() => livez(stalled),
        Readiness::Ready => plain(StatusCode::OK, "ok\n".into()),
        Readiness::NotReady(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics_page(
    status: &mpsc::Sender<StatusRequest>,
    levels: &HttpLevels,
) -> Response<Full<Bytes>> {
    let (reply, answer) = oneshot::channel();
    let unavailable = |why: &str| plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if status.try_send(reply).is_err() {
        return unavailable("the control thread is busy or gone");
    }
    levels.status_requests.note((status.max_capacity() - status.capacity()) as u64);
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(status)) => match metrics::encode(&status) {
            Ok(text) => respond(StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode\n".into()),
        },
        _ => unavailable("the control thread does not answer"),
    }
}

pub(crate) fn plain(code: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(code, "text/plain; charset=utf-8", text)
}

pub(crate) fn respond(code: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::SERVER, header::HeaderValue::from_static(SERVER));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::Mutex;

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn liveness_is_the_workers_alone_and_metrics_time_out_when_control_hangs() {
        let stalled = Arc::new(Mutex::new(vec![]));
        let shared = stalled.clone();
        let (ready, readiness) = watch::channel(Readiness::NotReady("no tables yet".into()));
        // Nobody ever answers a status request: the control thread hangs.
        let (status, requests) = mpsc::channel(4);
        let server = start(
            listen("127.0.0.1:0".parse().unwrap()).unwrap(),
            Sources {
                stalled_workers: Arc::new(move || shared.lock().unwrap().clone()),
                readiness,
                status,
            },
        )
        .unwrap();
        assert!(get(server.address, "/livez").starts_with("HTTP/1.1 200"));
        assert!(get(server.address, "/readyz").contains("no tables yet"));
        assert!(get(server.address, "/metrics").starts_with("HTTP/1.1 503"));
        ready.send(Readiness::Ready).unwrap();
        assert!(get(server.address, "/readyz").starts_with("HTTP/1.1 200"));
        stalled.lock().unwrap().push(1);
        let livez = get(server.address, "/livez");
        assert!(livez.starts_with("HTTP/1.1 503") && livez.contains("[1]"), "{livez}");
        let readyz = get(server.address, "/readyz");
        assert!(readyz.starts_with("HTTP/1.1 503") && readyz.contains("[1]"), "{readyz}");
        drop(requests);
    }

    #[test]
    fn an_address_in_use_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).unwrap_err();
        assert!(error.is_taken() && error.to_string().contains(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_status_becomes_metrics() {
        let (status, mut requests) = mpsc::channel::<StatusRequest>(1);
        tokio::spawn(async move {
            let request = requests.recv().await.unwrap();
            request.send(Box::default()).unwrap();
        });
        let levels = HttpLevels::default();
        assert_eq!(metrics_page(&status, &levels).await.status(), StatusCode::OK);
        assert_eq!(levels.status_requests.most(), 1);
    }
}
