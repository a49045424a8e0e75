//! Asks the node over its admin socket.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::admin::{AdminError, Reply, Request, encode_request};

/// Longest line taken from the node, in bytes: a full listing of connections fits.
const REPLY_BYTES_MAX: u64 = 64 << 20;
/// The node may take so long for an answer. Streams have no bound.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no node process answers at {}: {source}; is `xskiff run` running, and are you root? \
         (--socket names another socket)", path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the node hung up: {0}; `journalctl` or the node's log may say why")]
    Broken(#[from] std::io::Error),
    /// The answer cannot be read.
    #[error("the node's answer cannot be read: {0}; use the xskiff binary of the running node")]
    Unreadable(#[from] serde_json::Error),
    /// The control thread hangs, or has too much to do.
    #[error(
        "the node did not answer within {} s; packets go on meanwhile, /livez says whether workers \
         live", ANSWER_TIMEOUT.as_secs()
    )]
    Late,
    /// The node ended the conversation without an answer.
    #[error("the node hung up without an answer")]
    Silent,
    /// The node refused.
    #[error("{0}")]
    Refused(AdminError),
}

/// A connection to the node.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks, and waits for one reply.
    ///
    /// # Errors
    /// [`ClientError`]; a refusal is [`ClientError::Refused`].
    pub fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.next()
    }

    /// Asks for a stream; `each` is called with every item until it answers `false` or the stream
    /// ends. Gives what the node says was lost.
    ///
    /// # Errors
    /// [`ClientError`], or whatever `each` gives.
    pub fn stream<E: From<ClientError>>(
        &mut self,
        request: Request,
        mut each: impl FnMut(control::admin::StreamItem) -> Result<bool, E>,
    ) -> Result<u64, E> {
        self.send(request)?;
        let unbounded = self.stream.get_ref().set_read_timeout(None);
        unbounded.map_err(|error| E::from(ClientError::Broken(error)))?;
        loop {
            match self.next()? {
                Reply::Item(item) => {
                    if !each(item)? {
                        return Ok(0);
                    }
                }
                Reply::End { lost } => return Ok(lost),
                _ => return Err(ClientError::Silent.into()),
            }
        }
    }

    fn send(&mut self, request: Request) -> Result<(), ClientError> {
        let bytes = encode_request(request).map_err(ClientError::Refused)?;
        match self.stream.get_mut().write_all(&bytes) {
            Ok(()) => Ok(()),
            // A node that turns a client away says why, and hangs up.
            Err(error) => match self.next() {
                Err(ClientError::Refused(why)) => Err(ClientError::Refused(why)),
                _ => Err(ClientError::Broken(error)),
            },
        }
    }

    fn next(&mut self) -> Result<Reply, ClientError> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(REPLY_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Late,
            _ => ClientError::Broken(error),
        })?;
        if line.is_empty() {
            return Err(ClientError::Silent);
        }
        match serde_json::from_slice(&line)? {
            Reply::Error(error) => Err(ClientError::Refused(error)),
            reply => Ok(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A broken pipe was all that a client turned away was told.
    #[test]
    fn a_client_that_is_turned_away_before_it_asked_is_told_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path).unwrap();
        let busy = AdminError::Busy { what: "admin clients".into(), limit: 32 };
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{}", serde_json::to_string(&Reply::Error(busy.clone())).unwrap())
            .unwrap();
        drop(stream);
        match client.ask(Request::Drops) {
            Err(ClientError::Refused(why)) => assert_eq!(why, busy),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_that_hangs_up_in_the_middle_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        for (said, wanted) in [("", "without an answer"), ("{\"Drops\":[", "cannot be read")] {
            let mut client = Client::connect(&path).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            let node = std::thread::spawn(move || {
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).unwrap();
            });
            let error = client.ask(Request::Drops).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            node.join().unwrap();
        }
    }
}
