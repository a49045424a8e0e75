//! A server: HTTP/1.1 over TCP, and an echo over UDP.
//!
//! `GET /` answers with the server's name and the client's address; `GET
//! /download?bytes=N&seed=S&rate=R` streams N predictable bytes, at most R a second; `POST
//! /upload` answers with the length and SHA-256 of what it was sent.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::report::{Report, Served};
use super::{Stop, payload, stopped};

/// Most bytes one download may have: 64 GiB.
const DOWNLOAD_BYTES_MAX: u64 = 64 << 30;

/// Largest datagram echoed, in bytes.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How often counts are said, when they changed.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Serve HTTP/1.1 and echo UDP.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// TCP address to serve HTTP on, such as [::]:80
    #[arg(long)]
    http: Option<SocketAddr>,
    /// UDP address to echo on, such as [::]:53
    #[arg(long)]
    udp: Option<SocketAddr>,
    /// Let further servers listen on the same HTTP address: each has files for so many connections
    #[arg(long)]
    shared: bool,
    /// Name that answers carry
    #[arg(long)]
    name: String,
}

/// What `GET /` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The server's name.
    pub server: String,
    /// The client's address as the server's socket has it.
    pub client: IpAddr,
    /// The server's address as its socket has it: of several, the one that was asked.
    pub address: IpAddr,
}

/// What `POST /upload` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploaded {
    /// The server's name.
    pub server: String,
    /// The client's address as the server's socket has it.
    pub client: IpAddr,
    /// Length of the body.
    pub bytes: u64,
    /// SHA-256 of the body, in hexadecimal.
    pub sha256: String,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct Server {
    name: String,
    served: Cell<Served>,
}

impl Server {
    fn count(&self, change: impl FnOnce(&mut Served)) {
        let mut served = self.served.get();
        change(&mut served);
        self.served.set(served);
    }
}

pub(super) async fn run(arguments: &Arguments, stop: Stop) -> anyhow::Result<()> {
    let tcp = match arguments.http {
        Some(address) => Some(listen(address, arguments.shared)?),
        None => None,
    };
    let udp = match arguments.udp {
        Some(address) => Some(UdpSocket::bind(address).await?),
        None => None,
    };
    let server = Rc::new(Server { name: arguments.name.clone(), served: Cell::default() });
    Report::Ready { name: arguments.name.clone() }.say();
    let tasks = LocalSet::new();
    if let Some(listener) = tcp {
        tasks.spawn_local(accept(listener, Rc::clone(&server)));
    }
    if let Some(socket) = udp {
        tasks.spawn_local(echo(socket, Rc::clone(&server)));
    }
    tasks.spawn_local(report(Rc::clone(&server)));
    tasks.run_until(stopped(stop)).await;
    Report::Served(server.served.get()).say();
    Ok(())
}

fn listen(address: SocketAddr, is_shared: bool) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(is_shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn report(server: Rc<Server>) {
    let mut said = Served::default();
    loop {
        tokio::time::sleep(REPORT_PERIOD).await;
        let served = server.served.get();
        if served != said {
            said = served;
            Report::Served(served).say();
        }
    }
}

async fn echo(socket: UdpSocket, server: Rc<Server>) {
    let mut datagram = vec![0u8; DATAGRAM_BYTES_MAX];
    loop {
        // An error here is an earlier echo's ICMP answer; the socket goes on.
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        if socket.send_to(&datagram[..length], from).await.is_ok() {
            server.count(|served| served.datagrams += 1);
        }
    }
}

async fn accept(listener: TcpListener, server: Rc<Server>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                drop(tokio::task::spawn_local(converse(stream, from, Rc::clone(&server))));
            }
            Err(error) => {
                // Out of files: the waiting connections are kept by the kernel meanwhile.
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, from: SocketAddr, server: Rc<Server>) {
    server.count(|served| {
        served.connections += 1;
        served.open += 1;
    });
    // Without it the last part of an answer could wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let client = from.ip().to_canonical();
    let own = stream.local_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |own| own.ip());
    let address = own.to_canonical();
    let service = service_fn(|request| {
        let server = Rc::clone(&server);
        async move { Ok::<_, Infallible>(answer(request, (client, address), &server).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
        eprintln!("connection from {from}: {error}");
    }
    server.count(|served| served.open -= 1);
}

async fn answer(
    request: Request<Incoming>,
    (client, address): (IpAddr, IpAddr),
    server: &Server,
) -> Answer {
    server.count(|served| served.requests += 1);
    let name = server.name.clone();
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => json(&Hello { server: name, client, address }),
        (&Method::GET, "/download") => {
            let wanted = Download::parse(request.uri().query().unwrap_or_default());
            wanted.map_or_else(|| refuse(StatusCode::BAD_REQUEST), Download::answer)
        }
        (&Method::POST, "/upload") => match digest(request.into_body()).await {
            Ok((bytes, sha256)) => json(&Uploaded { server: name, client, bytes, sha256 }),
            Err(_) => refuse(StatusCode::BAD_REQUEST),
        },
        _ => refuse(StatusCode::NOT_FOUND),
    }
}

async fn digest(mut body: Incoming) -> Result<(u64, String), hyper::Error> {
    let (mut hash, mut length) = (Sha256::new(), 0u64);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len() as u64;
            hash.update(&data);
        }
    }
    Ok((length, hexadecimal(&hash.finalize())))
}

/// Two digits a byte, lower case.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A download as its query asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Download {
    bytes: u64,
    seed: u64,
    bytes_per_second: Option<u64>,
}

impl Download {
    fn parse(query: &str) -> Option<Self> {
        let mut wanted = Self { bytes: 0, seed: 0, bytes_per_second: None };
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let number = value.parse().ok()?;
            match key {
                "bytes" => wanted.bytes = number,
                "seed" => wanted.seed = number,
                "rate" => wanted.bytes_per_second = Some(number).filter(|rate| *rate > 0),
                _ => return None,
            }
        }
        (wanted.bytes <= DOWNLOAD_BYTES_MAX).then_some(wanted)
    }

    fn answer(self) -> Answer {
        let body = StreamBody::new(self.chunks().map(|chunk| Ok(Frame::data(chunk))));
        let length = self.bytes;
        let builder = Response::builder().header("content-length", length);
        built(builder.body(body.boxed_unsync()))
    }

    fn chunks(self) -> impl Stream<Item = Bytes> + Send + 'static {
        let begin = Instant::now();
        let chunk_bytes = payload::CHUNK_BYTES as u64;
        // What is paced comes evenly, a hundred times a second, and not in bursts.
        let piece = self.bytes_per_second.map_or(chunk_bytes, |rate| (rate / 100).max(1));
        let piece = piece.min(chunk_bytes);
        stream::unfold(0u64, move |position| async move {
            let length = (self.bytes - position).min(piece);
            if length == 0 {
                return None;
            }
            if let Some(rate) = self.bytes_per_second {
                let due = Duration::from_secs_f64(position as f64 / rate as f64);
                tokio::time::sleep_until(begin + due).await;
            }
            let mut chunk = vec![0u8; usize::try_from(length).unwrap_or(payload::CHUNK_BYTES)];
            payload::fill(self.seed, position, &mut chunk);
            Some((Bytes::from(chunk), position + length))
        })
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let builder = Response::builder().header("content-type", "application/json");
            built(builder.body(Full::new(Bytes::from(text)).boxed_unsync()))
        }
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn refuse(status: StatusCode) -> Answer {
    built(Response::builder().status(status).body(Full::default().boxed_unsync()))
}

fn built<B: Body<Data = Bytes, Error = Infallible> + Send + 'static>(
    response: hyper::http::Result<Response<B>>,
) -> Answer {
    match response {
        Ok(response) => response.map(BodyExt::boxed_unsync),
        // All headers here are constants or numbers, which every header may hold.
        Err(_) => Response::new(Full::default().boxed_unsync()),
    }
}

#[cfg(test)]
mod tests {
    use super::{DOWNLOAD_BYTES_MAX, Download, hexadecimal};

    #[test]
    fn a_download_is_what_its_query_says() {
        let wanted = Download { bytes: 10, seed: 3, bytes_per_second: Some(5) };
        assert_eq!(Download::parse("bytes=10&seed=3&rate=5"), Some(wanted));
    }

    #[test]
    fn queries_with_unknown_keys_bad_numbers_or_too_many_bytes_are_refused() {
        for query in ["size=1", "bytes=x", "bytes=-1"] {
            assert_eq!(Download::parse(query), None, "{query}");
        }
        assert_eq!(Download::parse(&format!("bytes={}", DOWNLOAD_BYTES_MAX + 1)), None);
    }

    #[test]
    fn hexadecimal_keeps_leading_zeros() {
        assert_eq!(hexadecimal(&[0, 0x0a, 0xff]), "000aff");
    }
}
