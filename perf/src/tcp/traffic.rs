//! Client and server: plain TCP sockets, whose bytes are compared at both ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::within;

/// What a connection begins with: who sends.
const UPLOAD: u8 = b'U';
const DOWNLOAD: u8 = b'D';
/// Each byte is answered by the same.
const ECHO: u8 = b'E';

/// How long an end waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long connections may take to close.
const CLOSING: Duration = Duration::from_millis(20);
/// Bytes of one write or read.
const CHUNK: usize = 128 << 10;

/// What streams are made of, over and over; its length shares no factor with that of writes.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take((1 << 20) / 8).flatten().collect();
    bytes.push(7);
    bytes
});

/// Where an end is in the stream.
#[derive(Default)]
struct Position(usize);

impl Position {
    /// As much of what comes next as there is up to `most` bytes, without a turn of the pattern.
    fn next(&self, most: usize) -> &'static [u8] {
        let pattern = &*PATTERN;
        &pattern[self.0..(self.0 + most).min(pattern.len())]
    }

    fn advance(&mut self, bytes: usize) {
        self.0 = (self.0 + bytes) % PATTERN.len();
    }
}

/// Whether the other end has closed, or is not heard of any more. A stream that stands still while it is
/// measured counts as what it moved.
fn is_over(error: &std::io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
    matches!(error.kind(), BrokenPipe | ConnectionReset | TimedOut | WouldBlock)
}

/// Sends until the other end closes or `until` says so.
fn send(stream: &mut TcpStream, until: impl Fn() -> bool) -> Result<()> {
    let mut at = Position::default();
    while !until() {
        match stream.write(at.next(CHUNK)) {
            Ok(0) => break,
            Ok(bytes) => at.advance(bytes),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_over(&error) => break,
            Err(error) => return Err(error).context("send a stream"),
        }
    }
    Ok(())
}

/// Receives to the end, compares, and counts as it goes.
fn receive(stream: &mut TcpStream, count: &AtomicU64, until: impl Fn() -> bool) -> Result<()> {
    let (mut at, mut buffer) = (Position::default(), vec![0; CHUNK]);
    while !until() {
        let bytes = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // Its sender was stopped before it could say that this is all.
            Err(error) if is_over(&error) => break,
            Err(error) => return Err(error).context("receive a stream"),
        };
        let mut rest = &buffer[..bytes];
        while !rest.is_empty() {
            let expected = at.next(rest.len());
            let (own, after) = rest.split_at(expected.len());
            ensure!(own == expected, "a stream came otherwise than it was sent");
            at.advance(own.len());
            rest = after;
        }
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// What clients and the server share.
#[derive(Default)]
struct Shared {
    /// Bytes that the server received.
    received: AtomicU64,
    /// What went wrong at the server.
    wrong: AtomicBool,
    stop: AtomicBool,
}

/// The pod's server: a thread for each connection.
pub struct Server {
    shared: Arc<Shared>,
    namespace: String,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` in a namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(namespace: &str, address: &str) -> Result<Self> {
        let address: SocketAddr = address.parse()?;
        let listener = within(namespace, || Ok(TcpListener::bind(address)?))?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("server".into()).spawn(move || {
            for stream in listener.incoming() {
                if own.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), own) = (stream, Arc::clone(&own)) else { continue };
                thread::spawn(move || {
                    if let Err(error) = serve(stream, &own) {
                        eprintln!("server: {error:#}");
                        own.wrong.store(true, Ordering::Relaxed);
                    }
                });
            }
        })?;
        let (namespace, listener) = (namespace.to_owned(), Some(thread));
        Ok(Self { shared, namespace, address, listener })
    }

    /// Bytes that clients sent it so far.
    ///
    /// # Errors
    /// Something came otherwise than it was sent.
    fn received(&self) -> Result<u64> {
        ensure!(!self.shared.wrong.load(Ordering::Relaxed), "the server failed");
        Ok(self.shared.received.load(Ordering::Relaxed))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let address = self.address;
        // It looks at the flag when somebody comes.
        let woken = within(&self.namespace, || Ok(TcpStream::connect_timeout(&address, PATIENCE)?));
        if let (Ok(_), Some(listener)) = (woken, self.listener.take()) {
            drop(listener.join());
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut what = [0];
    match stream.read(&mut what) {
        Ok(1) => {}
        // One that only looked whether somebody listens.
        _ => return Ok(()),
    }
    match what {
        [UPLOAD] => receive(&mut stream, &shared.received, || false),
        [DOWNLOAD] => send(&mut stream, || false),
        [ECHO] => {
            let mut byte = [0];
            while matches!(stream.read(&mut byte), Ok(1)) {
                stream.write_all(&byte)?;
            }
            Ok(())
        }
        _ => bail!("a client says {what:?}"),
    }
}

/// A client of one server, in a namespace.
pub struct Client<'a> {
    /// Where it is.
    pub namespace: &'a str,
    /// Whom it asks.
    pub target: SocketAddr,
    /// The server behind that.
    pub server: &'a Server,
}

/// Where a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the server.
    Upload,
    /// From it.
    Download,
}

/// How long streams run: what counts comes after the first part.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Until the connection is at its speed.
    pub warm_up: Duration,
    /// What is measured.
    pub measured: Duration,
}

impl Client<'_> {
    fn connect(&self, what: u8) -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.target, PATIENCE)
            .with_context(|| format!("connect to {}", self.target))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&[what])?;
        Ok(stream)
    }

    /// Gbit/s of so many streams, to the server or from it.
    ///
    /// # Errors
    /// Nobody answers, or something came otherwise than it was sent.
    pub fn stream(&self, direction: Direction, streams: usize, span: Span) -> Result<f64> {
        let (own, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let until = || over.load(Ordering::Relaxed);
        let received = || match direction {
            Direction::Upload => self.server.received(),
            Direction::Download => Ok(own.load(Ordering::Relaxed)),
        };
        let what = match direction {
            Direction::Upload => UPLOAD,
            Direction::Download => DOWNLOAD,
        };
        let connect = |_| within(self.namespace, || self.connect(what));
        let connections = (0..streams).map(connect).collect::<Result<Vec<_>>>()?;
        thread::scope(|scope| {
            let work = |mut stream: TcpStream| match direction {
                Direction::Upload => send(&mut stream, until),
                Direction::Download => receive(&mut stream, &own, until),
            };
            let threads: Vec<_> =
                connections.into_iter().map(|stream| scope.spawn(move || work(stream))).collect();
            thread::sleep(span.warm_up);
            let (begin, before) = (Instant::now(), received());
            thread::sleep(span.measured);
            let (after, elapsed) = (received(), begin.elapsed());
            over.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            // Both ends close before the node is stopped.
            thread::sleep(CLOSING);
            Ok((after? - before?) as f64 * 8.0 / 1e9 / elapsed.as_secs_f64())
        })
    }

    /// Microseconds of round trips of one byte on one connection: the middle one, and the one that 99 of 100
    /// do not exceed.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn round_trips(&self, span: Span) -> Result<(f64, f64)> {
        let mut stream = within(self.namespace, || self.connect(ECHO))?;
        let (begin, mut times, mut byte) = (Instant::now(), Vec::new(), [1]);
        while begin.elapsed() < span.warm_up + span.measured {
            let asked = Instant::now();
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte).context("wait for an answer")?;
            if begin.elapsed() > span.warm_up {
                times.push(asked.elapsed());
            }
        }
        times.sort_unstable();
        ensure!(!times.is_empty(), "no answer came in time");
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        Ok((at(50), at(99)))
    }

    /// Connections per second, one after the other, with a request and an answer of one byte each. Those of
    /// the first part do not count: a node that has just been continued is late, and sheds what begins
    /// connections until its worker has run.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn connections(&self, span: Span) -> Result<f64> {
        within(self.namespace, || {
            self.connections_within(span.warm_up)?;
            let begin = Instant::now();
            let count = self.connections_within(span.measured)?;
            Ok(f64::from(count) / begin.elapsed().as_secs_f64())
        })
    }

    /// Connections that are made and answered until a time is over; at least one.
    fn connections_within(&self, limit: Duration) -> Result<u32> {
        let (begin, mut count) = (Instant::now(), 0);
        loop {
            let (mut stream, mut byte) = (self.connect(ECHO)?, [2]);
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte).context("wait for an answer")?;
            count += 1;
            if begin.elapsed() >= limit {
                return Ok(count);
            }
        }
    }
}
