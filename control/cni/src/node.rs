//! Asks the node process over its admin socket. Nothing here waits without a bound: a node that is
//! not there, that has as many clients as it may, that hangs, and one that sends its answer a byte at a
//! time all end in an error within the configured times.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use control::admin::{AdminError, Reply, Request, encode_request};
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest answer that is read, in bytes. The longest is the node's status.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Between two attempts to reach a node.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No process listens there, or it ended meanwhile.
    #[error("no node process answers at {}: {source}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("{}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is there and says nothing.
    #[error("the node process at {} does not answer within {} s", path.display(), limit.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// What it says cannot be understood.
    #[error("the node's answer cannot be read ({0}): plugin and node are of different versions")]
    Unreadable(String),
    /// It refuses.
    #[error("{0}")]
    Refused(AdminError),
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until a node is there.
    pub wait: Duration,
    /// Until one that is there has answered.
    pub answer: Duration,
}

/// Asks the node at `socket`.
///
/// # Errors
/// [`NodeError`].
pub fn ask(socket: &Path, request: &Request, patience: Patience) -> Result<Reply, NodeError> {
    let (began, mut absent) = (Instant::now(), None);
    // As many clients as it may have are served within its own bounds.
    let busy_until = began + patience.answer;
    loop {
        match ask_once(socket, request, patience.answer) {
            Err(NodeError::Refused(AdminError::Busy { .. })) if Instant::now() < busy_until => {}
            Err(NodeError::Absent { path, source }) => {
                if began.elapsed() + PAUSE > patience.wait {
                    // What it was at first says more than what it is at last.
                    return Err(absent.unwrap_or(NodeError::Absent { path, source }));
                }
                absent = absent.or(Some(NodeError::Absent { path, source }));
            }
            answered => return answered,
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask_once(path: &Path, request: &Request, limit: Duration) -> Result<Reply, NodeError> {
    let until = Instant::now() + limit;
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            NodeError::Late { path: path.to_owned(), limit }
        }
        // It ended, or ends.
        _ => NodeError::Absent { path: path.to_owned(), source: error },
    };
    let mut stream = connect(path, limit)?;
    let bytes = encode_request(request.clone()).map_err(NodeError::Refused)?;
    let sent = stream.write_all(&bytes);
    // One that turns a client away says why before it reads.
    match (read_line(&mut stream, until), sent) {
        (Ok(line), _) => match serde_json::from_slice(&line) {
            Ok(Reply::Error(error)) => Err(NodeError::Refused(error)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(NodeError::Unreadable(error.to_string())),
        },
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(broken(error)),
    }
}

/// Connects within `limit`: one that accepts nobody has a full queue at some time, and then a
/// connection would wait for ever.
fn connect(path: &Path, limit: Duration) -> Result<UnixStream, NodeError> {
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            NodeError::Absent { path: path.to_owned(), source }
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            NodeError::Late { path: path.to_owned(), limit }
        }
        _ => NodeError::Socket { path: path.to_owned(), source },
    };
    let address = SockAddr::unix(path).map_err(failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.set_write_timeout(Some(limit)).map_err(failed)?;
    socket.connect(&address).map_err(failed)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

/// One line without its newline, whole before `until`.
fn read_line(stream: &mut UnixStream, until: Instant) -> io::Result<Vec<u8>> {
    let (mut line, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&chunk[..read]);
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(line);
        }
        if line.len() > REPLY_BYTES_MAX {
            return Err(io::Error::other("it says too much"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;

    use super::*;

    const SHORT: Patience =
        Patience { wait: Duration::from_millis(300), answer: Duration::from_millis(300) };

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        (directory, socket)
    }

    /// Says those lines, one a client.
    fn serve(socket: &Path, lines: Vec<&'static str>) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for line in lines {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                io::BufReader::new(&stream).read_line(&mut request).unwrap();
                stream.write_all(line.as_bytes()).unwrap();
            }
        })
    }

    #[test]
    fn a_node_that_is_not_there_is_waited_for_and_no_longer() {
        let (_directory, socket) = directory();
        let began = Instant::now();
        let error = ask(&socket, &Request::Status, SHORT).unwrap_err();
        assert!(matches!(error, NodeError::Absent { .. }), "{error}");
        assert!((200..2000).contains(&began.elapsed().as_millis()));
        let at_once = Patience { wait: Duration::ZERO, ..SHORT };
        let began = Instant::now();
        assert!(ask(&socket, &Request::Status, at_once).is_err());
        assert!(began.elapsed() < Duration::from_millis(40));
        // A socket that nobody listens at any more.
        drop(UnixListener::bind(&socket).unwrap());
        let error = ask(&socket, &Request::Status, at_once).unwrap_err();
        assert!(matches!(error, NodeError::Absent { .. }), "{error}");
    }

    #[test]
    fn a_node_that_is_busy_or_hangs_up_is_asked_again() {
        let (_directory, socket) = directory();
        let busy = "{\"error\":{\"kind\":\"busy\",\"what\":\"admin clients\",\"limit\":32}}\n";
        let node = serve(&socket, vec![busy, "", "{\"removed\":true}\n"]);
        let reply = ask(&socket, &Request::Status, SHORT).unwrap();
        assert_eq!(reply, Reply::Removed(true));
        node.join().unwrap();
    }

    #[test]
    fn a_node_that_accepts_and_says_nothing_is_late() {
        let (_directory, socket) = directory();
        let _listener = UnixListener::bind(&socket).unwrap();
        let began = Instant::now();
        let error = ask(&socket, &Request::Status, SHORT).unwrap_err();
        assert!(matches!(error, NodeError::Late { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    /// Each byte began the wait anew.
    #[test]
    fn a_node_that_answers_a_byte_at_a_time_is_late_too() {
        let (_directory, socket) = directory();
        let listener = UnixListener::bind(&socket).unwrap();
        let node = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let error = ask(&socket, &Request::Status, SHORT).unwrap_err();
        assert!(matches!(error, NodeError::Late { .. }), "{error}");
        node.join().unwrap();
    }

    #[test]
    fn an_answer_of_another_version_is_no_answer() {
        let (_directory, socket) = directory();
        let node = serve(&socket, vec!["{\"moved\":7}\n"]);
        let error = ask(&socket, &Request::Status, SHORT).unwrap_err();
        assert!(matches!(error, NodeError::Unreadable(_)), "{error}");
        node.join().unwrap();
    }
}
