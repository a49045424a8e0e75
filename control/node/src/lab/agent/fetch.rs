//! An HTTP/1.1 client that checks every byte and never waits for ever.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::report::{Fetched, Report, Trouble};
use super::serve::{Hello, Uploaded, hexadecimal};
use super::{Stop, connect, milliseconds, payload, stopped};

/// Longest answer that is not a download, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// How often progress is looked at and said.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// Make one HTTP request, or a few, and check every byte of the answers.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Address and port of the server
    #[arg(long)]
    to: SocketAddr,
    /// Ask for this many predictable bytes
    #[arg(long, conflicts_with = "upload_bytes")]
    download_bytes: Option<u64>,
    /// Send this many predictable bytes
    #[arg(long)]
    upload_bytes: Option<u64>,
    /// Which bytes: both ends compute them from this number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compare a download's bytes and do not hash them as well, so that the network is what takes time
    #[arg(long)]
    unhashed: bool,
    /// Bytes a second the server sends at most
    #[arg(long)]
    rate: Option<u64>,
    /// Requests to make, each over a new connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// How long to wait for a connection, and for any next byte, in milliseconds
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let all = async {
        for _ in 0..arguments.count {
            Report::Fetched(fetch(arguments).await).say();
        }
    };
    tokio::select! {
        () = all => {}
        () = stopped(stop) => {}
    }
    Ok(())
}

/// Bytes checked so far, shared with whoever watches for a stall.
type Moved = Arc<AtomicU64>;

async fn fetch(arguments: &Arguments) -> Fetched {
    let begin = Instant::now();
    let patience = Duration::from_millis(arguments.timeout_ms);
    let moved = Moved::default();
    let work = async {
        let (sender, connection) = open(arguments.to, None, patience).await?;
        // The connection ends when its sender is dropped; its errors reach the request.
        drop(tokio::spawn(connection));
        match (arguments.download_bytes, arguments.upload_bytes) {
            (Some(bytes), _) => download(sender, arguments, bytes, &moved).await,
            (None, Some(bytes)) => upload(sender, arguments, bytes, &moved).await,
            (None, None) => hello(sender, arguments.to).await.map(|hello| Fetched {
                server: Some(hello.server),
                client: Some(hello.client),
                ..Fetched::default()
            }),
        }
    };
    let mut fetched = tokio::select! {
        result = work => match result {
            Ok(fetched) => Fetched { ok: true, ..fetched },
            Err(trouble) => Fetched { error: Some(trouble), ..Fetched::default() },
        },
        trouble = stall(&moved, patience * 2) => Fetched { error: Some(trouble), ..Fetched::default() },
    };
    fetched.bytes = moved.load(Ordering::Relaxed);
    fetched.took_ms = milliseconds(begin.elapsed());
    fetched
}

/// Ends when nothing has moved for `patience`; says how far it is meanwhile.
async fn stall(moved: &Moved, patience: Duration) -> Trouble {
    let (mut bytes, mut since) = (0, Instant::now());
    loop {
        tokio::time::sleep(PROGRESS_PERIOD).await;
        let now = moved.load(Ordering::Relaxed);
        if now != bytes {
            (bytes, since) = (now, Instant::now());
            Report::Progress { bytes }.say();
        } else if since.elapsed() >= patience {
            return if bytes == 0 { Trouble::TimedOut } else { Trouble::Stalled };
        }
    }
}

pub(super) type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

/// Opens an HTTP connection: what requests are made with, and what must be polled meanwhile.
pub(super) async fn open(
    to: SocketAddr,
    from: Option<IpAddr>,
    timeout: Duration,
) -> Result<
    (SendRequest<RequestBody>, impl Future<Output = Result<(), hyper::Error>> + Send + 'static),
    Trouble,
> {
    let stream = connect(to, from, timeout).await.map_err(|error| Trouble::from(&error))?;
    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| trouble(&e))
}

/// What an error of the HTTP library means for the traffic.
pub(super) fn trouble(error: &hyper::Error) -> Trouble {
    use std::error::Error;
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return Trouble::from(error);
        }
        source = cause.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Trouble::Closed;
    }
    Trouble::Other
}

/// Asks who is there.
pub(super) async fn hello(
    mut sender: SendRequest<RequestBody>,
    to: SocketAddr,
) -> Result<Hello, Trouble> {
    ask(&mut sender, to).await
}

/// Asks who is there over a connection that is used again.
pub(super) async fn ask(
    sender: &mut SendRequest<RequestBody>,
    to: SocketAddr,
) -> Result<Hello, Trouble> {
    let request = Request::get("/").header("host", to.to_string());
    let request = request.body(Empty::new().boxed_unsync()).map_err(|_| Trouble::Other)?;
    let response = sender.send_request(request).await.map_err(|error| trouble(&error))?;
    read_json(response).await
}

async fn read_json<T: serde::de::DeserializeOwned>(
    response: Response<Incoming>,
) -> Result<T, Trouble> {
    if response.status() != StatusCode::OK {
        return Err(Trouble::WrongAnswer);
    }
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match body.collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).map_err(|_| Trouble::WrongAnswer),
        Err(error) => Err(match error.downcast_ref::<hyper::Error>() {
            Some(error) => trouble(error),
            None => Trouble::WrongAnswer,
        }),
    }
}

async fn download(
    mut sender: SendRequest<RequestBody>,
    arguments: &Arguments,
    bytes: u64,
    moved: &Moved,
) -> Result<Fetched, Trouble> {
    let seed = arguments.seed;
    let rate = arguments.rate.map(|rate| format!("&rate={rate}")).unwrap_or_default();
    let request = Request::get(format!("/download?bytes={bytes}&seed={seed}{rate}"))
        .header("host", arguments.to.to_string())
        .body(Empty::new().boxed_unsync())
        .map_err(|_| Trouble::Other)?;
    let response = sender.send_request(request).await.map_err(|error| trouble(&error))?;
    if response.status() != StatusCode::OK {
        return Err(Trouble::WrongAnswer);
    }
    let mut hash = (!arguments.unhashed).then(Sha256::new);
    let mut scratch = Vec::new();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| trouble(&error))?.into_data() else { continue };
        if !payload::matches(seed, moved.load(Ordering::Relaxed), &data, &mut scratch) {
            return Err(Trouble::Corrupted);
        }
        if let Some(hash) = &mut hash {
            hash.update(&data);
        }
        moved.fetch_add(data.len() as u64, Ordering::Relaxed);
    }
    if moved.load(Ordering::Relaxed) != bytes {
        return Err(Trouble::Closed);
    }
    let sha256 = hash.map(|hash| hexadecimal(&hash.finalize()));
    Ok(Fetched { sha256, ..Fetched::default() })
}

async fn upload(
    mut sender: SendRequest<RequestBody>,
    arguments: &Arguments,
    bytes: u64,
    moved: &Moved,
) -> Result<Fetched, Trouble> {
    let hash = Arc::new(std::sync::Mutex::new(Sha256::new()));
    let chunks = upload_chunks(arguments.seed, bytes, Arc::clone(&hash), Arc::clone(moved));
    let body = StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk))));
    let request = Request::post("/upload")
        .header("host", arguments.to.to_string())
        .header("content-length", bytes)
        .body(body.boxed_unsync())
        .map_err(|_| Trouble::Other)?;
    let response = sender.send_request(request).await.map_err(|error| trouble(&error))?;
    let answer: Uploaded = read_json(response).await?;
    let hash = hash.lock().map_err(|_| Trouble::Other)?.clone();
    let sha256 = hexadecimal(&hash.finalize());
    if answer.bytes != bytes || answer.sha256 != sha256 {
        return Err(Trouble::Corrupted);
    }
    Ok(Fetched {
        server: Some(answer.server),
        client: Some(answer.client),
        sha256: Some(sha256),
        ..Fetched::default()
    })
}

fn upload_chunks(
    seed: u64,
    bytes: u64,
    hash: Arc<std::sync::Mutex<Sha256>>,
    moved: Moved,
) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::iter((0..bytes).step_by(payload::CHUNK_BYTES)).map(move |position| {
        let length = (bytes - position).min(payload::CHUNK_BYTES as u64);
        let mut chunk = vec![0u8; usize::try_from(length).unwrap_or(payload::CHUNK_BYTES)];
        payload::fill(seed, position, &mut chunk);
        if let Ok(mut hash) = hash.lock() {
            hash.update(&chunk);
        }
        moved.fetch_add(length, Ordering::Relaxed);
        Bytes::from(chunk)
    })
}
