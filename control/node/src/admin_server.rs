//! The admin socket: accepts clients, bounds them, and passes their requests to the control loop.
//!
//! Only root reaches it: the directory is root's alone (0700), the socket 0600. Who asked what is
//! logged by the peer's credentials (SO_PEERCRED). A client that sends too much, too slowly, or
//! reads too slowly is cut off and counted; at most [`CLIENTS_MAX`] are served at once. More wait for
//! a place. Who has asked for an endpoint to be added or removed gives its place up until that is done,
//! so that many pods that come at once keep nobody else away.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::admin::endpoint::ADMITTED_DIRECTORY;
use control::admin::{AdminError, REQUEST_BYTES_MAX, Reply, Request, decode_request};
use dataplane::counters::{Level, PORTS_MAX};
use pinning::own_directory::{NotOwn, OwnDirectory};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Clients connected at once: as many as endpoints may wait to be added, as many removals, and some;
/// more are told [`AdminError::Busy`].
pub const CONNECTIONS_MAX: usize = 2 * PORTS_MAX + CLIENTS_MAX;
/// Clients served at once; more wait [`CLIENT_TIMEOUT`] for a place, and are told [`AdminError::Busy`]
/// then.
pub const CLIENTS_MAX: usize = 32;
/// Requests under way to the control loop.
pub const CALLS_MAX: usize = 64;
/// Replies under way to one client; a stream that finds this full counts what it loses.
pub const REPLIES_MAX: usize = 256;
/// A client may take so long to send a whole request, and to take a reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The control loop may take so long for a request's first reply.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Why whoever waits for an answer is hung up on: the process ends, or has lost the request in a panic.
const NO_ANSWER: &str = "the process ends, or lost its request";
/// What may lie in the run directory before any node process has been there: words of the CNI plugin.
const LEFT_IN_ADVANCE: [&str; 1] = [ADMITTED_DIRECTORY];

/// A request, and where to answer it.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Takes one reply, or a stream's items and its end. Dropping it ends the conversation; it is
    /// closed when the client hangs up.
    pub reply: mpsc::Sender<Reply>,
    /// The process that asks, where it can be seen from here.
    pub peer: Option<u32>,
}

/// What the server counts.
#[derive(Debug, Default)]
pub struct AdminCounts {
    /// Clients served.
    pub clients: AtomicU64,
    /// Clients turned away or cut off.
    pub refusals: AtomicU64,
    /// Clients connected now, of [`CONNECTIONS_MAX`].
    pub connections: Level,
    /// Clients served now, of [`CLIENTS_MAX`].
    pub served: Level,
    /// Requests under way to the control loop, of [`CALLS_MAX`].
    pub calls: Level,
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AdminSocketError {
    /// The directory is not root's alone.
    #[error("{path}: {detail}; make it root's alone: `chown root {path} && chmod 700 {path}`")]
    Directory {
        /// The directory.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// Another node process answers there.
    #[error("{path}: another node process is running; stop it, or give this one another directory")]
    InUse {
        /// The lock or socket.
        path: String,
    },
    /// The kernel refused.
    #[error("{path}: {source}; the node needs a directory it may write: see run_directory")]
    Io {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> AdminSocketError + '_ {
    move |source| AdminSocketError::Io { path: path.display().to_string(), source }
}

/// Proof that this is the only node process that uses the run directory. The lock dies with the
/// process, however it ends.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    _lock: std::fs::File,
}

impl RunDirectory {
    /// Makes the directory, or checks that it is root's alone, and locks it. One that others may look
    /// into, as the kubelet makes it, is closed to them ([`OwnDirectory`]).
    ///
    /// # Errors
    /// [`AdminSocketError`], naming the path and the way out.
    pub fn claim(path: &Path) -> Result<Self, AdminSocketError> {
        let name = path.display().to_string();
        match OwnDirectory::take(path, &LEFT_IN_ADVANCE) {
            Ok(OwnDirectory { closed: Some(mode), .. }) => {
                let mode = format!("{mode:o}");
                tracing::info!(
                    path = name,
                    mode,
                    "others could look into it; it is root's alone now"
                );
            }
            Ok(_) => {}
            Err(NotOwn::Unfit(detail)) => {
                return Err(AdminSocketError::Directory { path: name, detail });
            }
            Err(NotOwn::Io { source, .. }) => return Err(io_error(path)(source)),
        }
        let lock_path = path.join("lock");
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(AdminSocketError::InUse { path: lock_path.display().to_string() })
            }
            Err(std::fs::TryLockError::Error(source)) => Err(io_error(&lock_path)(source)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where clients connect.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.path.join("admin.sock")
    }
}

/// The running server. The socket is removed when it is dropped.
#[derive(Debug)]
pub struct AdminServer {
    socket: PathBuf,
    task: JoinHandle<()>,
    counts: Arc<AdminCounts>,
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl AdminServer {
    /// Listens in `directory`; requests come out of the receiver, one [`Call`] each.
    ///
    /// # Errors
    /// [`AdminSocketError::Io`].
    pub fn start(
        directory: &RunDirectory,
    ) -> Result<(Self, mpsc::Receiver<Call>), AdminSocketError> {
        let socket = directory.socket_path();
        // The lock proves that nobody listens on what is left there.
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(&socket)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(io_error(&socket))?;
        // Between the bind and this the directory's mode alone keeps others out.
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&socket, mode).map_err(io_error(&socket))?;
        let (calls, receiver) = mpsc::channel(CALLS_MAX);
        let counts = Arc::new(AdminCounts::default());
        let task = tokio::spawn(accept(listener, calls, counts.clone()));
        Ok((Self { socket, task, counts }, receiver))
    }

    /// The server's counters.
    #[must_use]
    pub fn counts(&self) -> &AdminCounts {
        &self.counts
    }
}

async fn accept(listener: UnixListener, calls: mpsc::Sender<Call>, counts: Arc<AdminCounts>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an admin client was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (calls, counts, places) = (calls.clone(), counts.clone(), places.clone());
        let connected = counts.connections.get();
        counts.connections.set(connected + 1);
        tokio::spawn(async move {
            let is_full = connected >= CONNECTIONS_MAX as u64;
            let mut place = Place { places, permit: None, counts: &counts };
            if is_full || !place.take().await {
                counts.refusals.fetch_add(1, Ordering::Relaxed);
                let (_, mut writer) = stream.into_split();
                let limit = if is_full { CONNECTIONS_MAX } else { CLIENTS_MAX } as u64;
                let busy = AdminError::Busy { what: "admin clients".into(), limit };
                let _ = send(&mut writer, &Reply::Error(busy)).await;
            } else {
                counts.clients.fetch_add(1, Ordering::Relaxed);
                if let Err(reason) = converse(stream, &calls, &counts, &mut place).await {
                    counts.refusals.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(reason, "an admin client was cut off");
                }
            }
            place.give_up();
            counts.connections.set(counts.connections.get() - 1);
        });
    }
}

/// A client's place among [`CLIENTS_MAX`].
struct Place<'a> {
    places: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    counts: &'a AdminCounts,
}

impl Place<'_> {
    /// Waits for one; answers whether it came in time.
    async fn take(&mut self) -> bool {
        if self.permit.is_none()
            && let Ok(Ok(permit)) =
                timeout(CLIENT_TIMEOUT, self.places.clone().acquire_owned()).await
        {
            self.permit = Some(permit);
            // All clients are served by the control thread.
            self.counts.served.set(self.counts.served.get() + 1);
        }
        self.permit.is_some()
    }

    fn give_up(&mut self) {
        if self.permit.take().is_some() {
            self.counts.served.set(self.counts.served.get() - 1);
        }
    }
}

/// Serves one client until it hangs up. The error is why it was cut off.
async fn converse(
    stream: UnixStream,
    calls: &mpsc::Sender<Call>,
    counts: &AdminCounts,
    place: &mut Place<'_>,
) -> Result<(), &'static str> {
    let peer = stream.peer_cred().map_err(|_| "its credentials cannot be read")?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let line = match timeout(CLIENT_TIMEOUT, read_line(&mut reader)).await {
            Err(_) => return Err("it sent nothing for too long"),
            Ok(Err(error)) => {
                let _ = send(&mut writer, &Reply::Error(error)).await;
                return Err("its request was too long, or the connection broke");
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(line))) => line,
        };
        let request = match decode_request(&line) {
            Ok(request) => request,
            Err(error) => {
                tracing::info!(pid = peer.pid(), uid = peer.uid(), %error, "admin request refused");
                send(&mut writer, &Reply::Error(error)).await?;
                continue;
            }
        };
        tracing::debug!(pid = peer.pid(), uid = peer.uid(), ?request, "admin request");
        if changes_state(&request) {
            tracing::info!(pid = peer.pid(), uid = peer.uid(), ?request, "admin request");
        }
        if takes_its_time(&request) {
            place.give_up();
        }
        // 0: in a namespace of processes that is not seen from here.
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        answer(request, pid, (calls, counts), &mut reader, &mut writer).await?;
        if !place.take().await {
            return Err("others had all places");
        }
    }
}

/// Whether the answer waits for workers and the kernel.
fn takes_its_time(request: &Request) -> bool {
    matches!(
        request,
        Request::EndpointAdd(_) | Request::EndpointRemove { .. } | Request::EndpointDetach(_)
    )
}

fn changes_state(request: &Request) -> bool {
    matches!(
        request,
        Request::EndpointAdd(_)
            | Request::EndpointRemove { .. }
            | Request::EndpointDetach(_)
            | Request::EndpointRetain(_)
            | Request::CtFlush { .. }
            | Request::CtResize { .. }
    )
}

async fn answer(
    request: Request,
    peer: Option<u32>,
    (calls, counts): (&mpsc::Sender<Call>, &AdminCounts),
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Result<(), &'static str> {
    let (reply, mut replies) = mpsc::channel(REPLIES_MAX);
    match timeout(ANSWER_TIMEOUT, calls.send(Call { request, reply, peer })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(NO_ANSWER),
        Err(_) => {
            let what =
                "requests to the control thread, which does not answer (packets go on)".into();
            let busy = AdminError::Busy { what, limit: CALLS_MAX as u64 };
            return send(writer, &Reply::Error(busy)).await;
        }
    }
    counts.calls.note((CALLS_MAX - calls.capacity()) as u64);
    let mut is_stream = false;
    match timeout(ANSWER_TIMEOUT, replies.recv()).await {
        Ok(Some(first)) => {
            send(writer, &first).await?;
            is_stream = matches!(first, Reply::Item(_));
            if !is_stream {
                return Ok(());
            }
        }
        // Nobody has refused what was asked: hung up, the client asks the next process.
        Ok(None) => return Err(NO_ANSWER),
        // A stream may be silent for long; anything else is overdue.
        Err(_) => {}
    }
    loop {
        tokio::select! {
            reply = replies.recv() => match reply {
                Some(reply) => {
                    is_stream = matches!(reply, Reply::Item(_));
                    send(writer, &reply).await?;
                    if !is_stream {
                        return Ok(());
                    }
                }
                None if is_stream => return send(writer, &Reply::End { lost: 0 }).await,
                None => return Err(NO_ANSWER),
            },
            // While a stream runs the client says nothing; end of file means that it left.
            heard = reader.fill_buf() => match heard {
                Ok(bytes) if !bytes.is_empty() => return Err("it spoke while a stream ran"),
                _ => return Ok(()),
            },
        }
    }
}

/// One line without its newline; `None` at the end of the stream.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Vec<u8>>, AdminError> {
    let mut line = Vec::new();
    let bound = REQUEST_BYTES_MAX as u64 + 1;
    let read = reader.take(bound).read_until(b'\n', &mut line).await;
    let read = read.map_err(|error| AdminError::Malformed { detail: error.to_string() })?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && line.len() as u64 == bound {
        return Err(AdminError::TooLong { bytes: bound });
    }
    while line.last().is_some_and(u8::is_ascii_whitespace) {
        line.pop();
    }
    Ok(Some(line))
}

async fn send(writer: &mut OwnedWriteHalf, reply: &Reply) -> Result<(), &'static str> {
    let mut bytes = serde_json::to_vec(reply).map_err(|_| "a reply could not be encoded")?;
    bytes.push(b'\n');
    match timeout(CLIENT_TIMEOUT, writer.write_all(&bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("it hung up before its answer"),
        Err(_) => Err("it does not read its answer"),
    }
}

#[cfg(test)]
mod tests;
