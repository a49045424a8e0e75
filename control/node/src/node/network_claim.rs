//! One node process per network namespace: its interfaces, routes and settings have one owner.
//!
//! The run directory tells two processes apart only when they share it, and a second one would
//! take the first one's XDP programs and host port for what a killed process left behind. So the
//! namespace itself is claimed, by the name of an abstract Unix socket (unix(7)): such names
//! belong to a network namespace and go with the process, however it ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::NodeError;

/// The name, without the NUL in front that makes it abstract.
const NAME: &[u8] = b"xskiff-node";

/// The claim; given up when dropped.
#[derive(Debug)]
pub(super) struct NetworkClaim {
    answering: Option<JoinHandle<()>>,
}

impl NetworkClaim {
    /// Claims the network namespace of the calling thread. A name held by anybody but root is no
    /// claim: whoever may open a socket could keep the node from starting.
    ///
    /// # Errors
    /// [`NodeError::SecondProcess`] with its process id, [`NodeError::System`].
    pub(super) fn claim() -> Result<Self, NodeError> {
        let action = "claim the network namespace";
        let failed = |source| NodeError::System { action, source };
        let address = SocketAddr::from_abstract_name(NAME).map_err(failed)?;
        match std::os::unix::net::UnixListener::bind_addr(&address) {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Ok(Self { answering: Some(tokio::spawn(answer(listener))) })
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder() {
                Ok((uid, pid)) if uid != 0 => {
                    tracing::warn!(uid, pid, "somebody holds the name of node processes");
                    Ok(Self { answering: None })
                }
                Ok((_, pid)) => Err(NodeError::SecondProcess { pid }),
                Err(error) => {
                    tracing::debug!(%error, "the other node process does not say who it is");
                    Err(NodeError::SecondProcess { pid: 0 })
                }
            },
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for NetworkClaim {
    fn drop(&mut self) {
        if let Some(answering) = self.answering.take() {
            answering.abort();
        }
    }
}

/// Accepts and hangs up, so that the queue of those who ask never fills.
async fn answer(listener: UnixListener) {
    while listener.accept().await.is_ok() {}
}

/// User and process id of whoever listens on the name, as the kernel knows them.
fn holder() -> io::Result<(u32, i32)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A process that stands still accepts nothing, and must not make this one wait.
    socket.set_nonblocking(true)?;
    let name = [b"\0", NAME].concat();
    socket.connect(&SockAddr::unix(std::ffi::OsStr::new(&*String::from_utf8_lossy(&name)))?)?;
    let stream = UnixStream::from_std(std::os::unix::net::UnixStream::from(
        std::os::fd::OwnedFd::from(socket),
    ))?;
    let credentials = stream.peer_cred()?;
    Ok((credentials.uid(), credentials.pid().unwrap_or(0)))
}
