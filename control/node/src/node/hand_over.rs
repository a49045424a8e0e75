//! One process hands over to the next: the next makes everything ready that touches nothing (program
//! loaded, packet memory mapped, cluster compiled), tries what it can make ready only behind that (flow
//! tables, threads), and only then asks the one before to end. Whatever goes wrong before leaves its
//! predecessor serving.
//!
//! The one before stops its workers and sends its sockets and packet memory ([`xdp_redirect::hand_over`])
//! to a Unix socket that the next one listens at in the run directory, root's alone like the admin socket,
//! and each looks whether the other is of its own user. What is ours waits in the sockets until the next
//! one serves. What cannot be handed on is closed and bound anew, and dropped meanwhile.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control::admin::status::HandedOn;
use control::admin::{Reply, Request};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use xdp_redirect::{Regions, hand_over};

use super::network_claim::NetworkClaim;
use super::{Node, NodeError, Settings};
use crate::admin_server::{AdminSocketError, RunDirectory};
use crate::cli::client::{Client, ClientError};
use crate::http::{self, Listening};
use crate::leaving::close_all;
use crate::workers::beforehand;

/// How long the process before may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// Where sockets are handed on, in the run directory.
const SOCKET: &str = "hand-over.sock";
/// How long the other side may take for its part of what is sent.
const SENT_WITHIN: Duration = Duration::from_secs(2);
/// How long workers may take to adopt the first tables before they receive.
const ADOPTED_WITHIN: Duration = Duration::from_secs(1);

/// That this process is the only one: the run directory and the network namespace.
pub(super) struct Claims {
    pub directory: RunDirectory,
    pub network: NetworkClaim,
}

impl Claims {
    pub fn take(settings: &Settings) -> Result<Self, NodeError> {
        let directory = RunDirectory::claim(&settings.run_directory)?;
        let network = NetworkClaim::claim()?;
        Ok(Self { directory, network })
    }
}

/// The process that serves now.
#[derive(Debug)]
pub struct Predecessor {
    socket: PathBuf,
}

impl Predecessor {
    /// Who answers at the admin socket of this run directory; `None` when nobody does.
    ///
    /// # Errors
    /// [`NodeError::HandOver`] when the socket is there and may not be used.
    pub fn find(run_directory: &Path) -> Result<Option<Self>, NodeError> {
        let socket = run_directory.join("admin.sock");
        match Client::connect(&socket) {
            Ok(_) => Ok(Some(Self { socket })),
            Err(ClientError::Connect { source, .. }) if nobody_listens(&source) => Ok(None),
            Err(error) => Err(NodeError::HandOver(error)),
        }
    }

    /// Asks, on a connection of its own: a client that says nothing for seconds, while a large cluster is
    /// compiled, is hung up on.
    fn ask(&self, request: Request) -> Result<Reply, NodeError> {
        let connected = Client::connect(&self.socket);
        connected.and_then(|mut client| client.ask(request)).map_err(NodeError::HandOver)
    }

    /// Tries what would fail a start behind the point of no return. Gives the HTTP server's address, if
    /// it is anybody's but that process's own, which it has until it ends.
    ///
    /// # Errors
    /// [`NodeError`]; the process before has not been asked for anything but its status.
    pub(super) fn try_what_may_fail(
        &self,
        settings: &Settings,
    ) -> Result<Option<Listening>, NodeError> {
        let status = match self.ask(Request::Status)? {
            Reply::Status(status) => status,
            _ => return Err(NodeError::HandOver(ClientError::Silent)),
        };
        let files = status.flow_tables.iter().filter_map(|table| table.file.as_deref());
        let files: Vec<&Path> = files.map(Path::new).collect();
        beforehand::try_out(&settings.workers, &files)?;
        let Some(address) = settings.http else { return Ok(None) };
        match http::listen(address) {
            Ok(listening) => Ok(Some(listening)),
            Err(error) if error.is_taken() && is_its_own(status.http_listen, address) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end, and waits until it has; goes on with its packet memory and sockets if it can.
    pub(super) async fn hand_over(
        self,
        settings: &Settings,
        regions: &Regions,
    ) -> Result<(Claims, Taken), NodeError> {
        let workers = settings.workers.cores.len();
        let listener = Listener::new(&settings.run_directory);
        let mut taken = Taken::default();
        match &listener {
            Ok(_) => taken.reason = Some("the process before sent no sockets".to_owned()),
            Err(error) => taken.reason = Some(format!("{SOCKET}: {error}")),
        }
        let pid = match self.ask(Request::HandOver)? {
            Reply::HandingOver { pid } => pid,
            _ => return Err(NodeError::HandOver(ClientError::Silent)),
        };
        tracing::info!(pid, "the process before hands over");
        let until = Instant::now() + ENDS_WITHIN;
        loop {
            let claimed = Claims::take(settings);
            // Looked at after the claims: whoever has given them up has sent before.
            if taken.replaced.is_none()
                && let Ok(listener) = &listener
                && let Some(stream) = listener.accept()
            {
                taken = Taken::receive(&stream, regions, workers);
            }
            match claimed {
                Err(error) if is_taken(&error) && Instant::now() < until => {
                    tokio::time::sleep(LOOK).await;
                }
                claimed => return Ok((claimed?, taken)),
            }
        }
    }
}

/// What was handed on.
#[derive(Default)]
pub(super) struct Taken {
    /// Why nothing can be used.
    reason: Option<String>,
    /// Packet memory that was made ready and is not needed.
    replaced: Option<Box<dyn Send>>,
}

impl Taken {
    fn receive(stream: &UnixStream, regions: &Regions, workers: usize) -> Self {
        let received = is_ours(stream)
            .and_then(|()| hand_over::receive(stream).map_err(|error| error.to_string()));
        let gone_on = received.and_then(|(message, fds)| {
            regions.go_on(&message, fds, workers).map_err(|error| error.to_string())
        });
        match gone_on {
            Ok(replaced) => Self { reason: None, replaced: Some(replaced) },
            Err(reason) => Self { reason: Some(reason), replaced: None },
        }
    }
}

/// Where the process before sends its sockets. Removed when it is dropped.
struct Listener {
    path: PathBuf,
    listener: UnixListener,
}

impl Listener {
    fn new(run_directory: &Path) -> io::Result<Self> {
        let path = run_directory.join(SOCKET);
        // What a process has left that was killed while it took over.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let listener = Self { path, listener };
        // Between the bind and this the directory's mode alone keeps others out.
        std::fs::set_permissions(&listener.path, std::fs::Permissions::from_mode(0o600))?;
        listener.listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(SENT_WITHIN)).ok()?;
        Some(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether an address that is taken is taken by the process before, which listens at `its`.
fn is_its_own(its: Option<SocketAddr>, address: SocketAddr) -> bool {
    its.is_some_and(|its| {
        let is_every = its.ip().is_unspecified() || address.ip().is_unspecified();
        its.port() == address.port() && (is_every || its.ip() == address.ip())
    })
}

/// Whether the other side is of our user.
fn is_ours(stream: &UnixStream) -> Result<(), String> {
    let other = getsockopt(stream, PeerCredentials).map_err(|error| error.to_string())?;
    let own = nix::unistd::geteuid().as_raw();
    if other.uid() == own { Ok(()) } else { Err(format!("user {} is at {SOCKET}", other.uid())) }
}

fn nobody_listens(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    [NotFound, ConnectionRefused].contains(&error.kind())
}

fn is_taken(error: &NodeError) -> bool {
    matches!(
        error,
        NodeError::SecondProcess { .. } | NodeError::Admin(AdminSocketError::InUse { .. })
    )
}

impl Node {
    /// Ends for the process that asks: what is attached stays, flow tables are closed for it. A service
    /// manager is told whom to follow instead, so that it neither ends the other one nor starts a third.
    pub(super) fn begin_hand_over(&mut self, peer: Option<u32>) -> Reply {
        tracing::info!(peer, "another process takes over");
        self.is_handing_over = true;
        self.tell_supervisor_followed_by(peer);
        Reply::HandingOver { pid: std::process::id() }
    }

    /// Stops the workers and sends their sockets to the process that has asked. Where that fails, they
    /// are closed, and it binds anew.
    pub(super) async fn hand_sockets_on(&mut self) {
        // The answer leaves first, which another task of this thread writes: the next process listens
        // for sockets once it has it.
        tokio::time::sleep(LOOK).await;
        let workers = self.workers.count();
        let Some(mut sockets) = self.workers.stop_for_next() else { return };
        match send(&self.settings.run_directory, self.ports.regions(), workers, &mut sockets) {
            Ok(sockets) => tracing::info!(sockets, "handed on"),
            Err(reason) => tracing::warn!(reason, "sockets are not handed on"),
        }
        close_all(sockets.into_iter().map(|(_, socket)| socket).collect());
    }

    /// Lets workers receive, once they know what to do with what comes.
    pub(super) fn begin_to_receive(&self) {
        let until = Instant::now() + ADOPTED_WITHIN;
        let is_behind = || self.workers.behind(Duration::ZERO).iter().any(Option::is_some);
        while is_behind() && Instant::now() < until {
            std::thread::sleep(LOOK / 10);
        }
        self.workers.hold_back(false);
    }

    /// Closes sockets of the process before that no port has taken, and notes what became of all.
    pub(super) fn end_hand_over(&mut self, taken: Option<Taken>) {
        let Some(Taken { reason, replaced }) = taken else { return };
        let handed = self.ports.regions().end_hand_over();
        let (sockets, bound_anew) = (handed.taken, handed.came - handed.taken);
        let told = reason.as_deref().unwrap_or("none");
        tracing::info!(sockets, bound_anew, refused = told, "sockets of the process before");
        self.handed_on = Some(HandedOn { sockets, bound_anew, reason });
        drop(replaced);
    }
}

fn send(
    run_directory: &Path,
    regions: &Regions,
    workers: usize,
    sockets: &mut [(usize, Box<xdp_redirect::Socket>)],
) -> Result<usize, String> {
    let stream = UnixStream::connect(run_directory.join(SOCKET));
    let stream = stream.map_err(|error| format!("{SOCKET}: {error}"))?;
    is_ours(&stream)?;
    let limited = stream.set_write_timeout(Some(SENT_WITHIN));
    let sent = limited.and_then(|()| hand_over::send(&stream, regions, workers, sockets));
    sent.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    /// It was connected to before the cluster was compiled, and hung up on when that took ten seconds.
    #[test]
    fn the_process_before_is_asked_however_long_ago_it_was_found() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("admin.sock")).unwrap();
        let predecessor = Predecessor::find(directory.path()).unwrap().unwrap();
        let answering = std::thread::spawn(move || {
            // Nothing was said for too long.
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            let reply = serde_json::to_string(&Reply::HandingOver { pid: 7 }).unwrap();
            writeln!(stream, "{reply}").unwrap();
        });
        let reply = predecessor.ask(Request::HandOver).unwrap();
        assert!(matches!(reply, Reply::HandingOver { pid: 7 }), "{reply:?}");
        answering.join().unwrap();
    }

    #[test]
    fn an_address_is_the_process_befores_own_where_it_listens_there() {
        let at = |text: &str| text.parse().unwrap();
        for (its, wanted, is_own) in [
            ("127.0.0.1:9964", "127.0.0.1:9964", true),
            ("0.0.0.0:9964", "127.0.0.1:9964", true),
            ("127.0.0.1:9964", "[::]:9964", true),
            ("127.0.0.1:9964", "127.0.0.1:9965", false),
            ("127.0.0.1:9964", "127.0.0.2:9964", false),
        ] {
            assert_eq!(is_its_own(Some(at(its)), at(wanted)), is_own, "{its} {wanted}");
        }
        assert!(!is_its_own(None, at("127.0.0.1:9964")));
    }
}
