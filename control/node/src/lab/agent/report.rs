//! What agents say, one JSON object a line.

use std::io::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One line of an agent's standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// A server listens.
    Ready {
        /// Its name.
        name: String,
    },
    /// What a server has served so far; sent when it changed, at most once a second, and last.
    Served(Served),
    /// Bytes of a transfer so far; sent every 250 ms.
    Progress {
        /// Bytes that arrived and were right.
        bytes: u64,
    },
    /// An HTTP request has ended.
    Fetched(Fetched),
    /// All datagrams were sent, and the time to wait for echoes is over.
    Echoed(Echoed),
    /// New connections began or ceased to work.
    Probed {
        /// Whether the newest attempt got its answer.
        ok: bool,
        /// The error of a failed one.
        error: Option<Trouble>,
    },
    /// All attempts of a probe.
    ProbedInAll {
        /// New connections tried.
        attempts: u64,
        /// How many of them failed.
        failures: u64,
        /// Longest time between two that worked, in milliseconds.
        longest_gap_ms: u64,
    },
    /// State of the held connections; sent every second, and last.
    Held(Held),
    /// A held connection broke; said where they are opened again.
    Broke(Connection),
    /// A held connection's last request was answered; said where they are opened again.
    Answers(Connection),
    /// State of the held UDP flows; sent every second, and last.
    FlowsHeld(FlowsHeld),
    /// SYN segments sent; sent every 250 ms, and last.
    Flooded {
        /// Segments given to the kernel.
        sent: u64,
        /// Segments it refused.
        refused: u64,
    },
}

impl Report {
    /// Writes the line. A reader that is gone ends the agent, as nobody is left to work for.
    pub(super) fn say(&self) {
        let mut line = match serde_json::to_vec(self) {
            Ok(line) => line,
            Err(error) => return eprintln!("a report cannot be written: {error}"),
        };
        line.push(b'\n');
        let mut output = std::io::stdout().lock();
        if output.write_all(&line).and_then(|()| output.flush()).is_err() {
            std::process::exit(1);
        }
    }
}

/// Counts of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// TCP connections accepted.
    pub connections: u64,
    /// Of these, still open.
    pub open: u64,
    /// HTTP requests answered.
    pub requests: u64,
    /// Datagrams echoed.
    pub datagrams: u64,
}

/// How an HTTP request ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fetched {
    /// Status 200, and every byte as it had to be.
    pub ok: bool,
    /// What went wrong, if anything.
    pub error: Option<Trouble>,
    /// Name of the server that answered.
    pub server: Option<String>,
    /// The client's address as the server saw it.
    pub client: Option<IpAddr>,
    /// Bytes transferred and checked (body of the request for an upload, of the answer else).
    pub bytes: u64,
    /// From the first SYN to the last byte, in milliseconds.
    pub took_ms: u64,
    /// SHA-256 of the body that was sent, or of the one received, in hexadecimal.
    pub sha256: Option<String>,
}

/// Counts of an echo client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echoed {
    /// Datagrams sent.
    pub sent: u64,
    /// Echoes equal to what was sent, each counted once.
    pub received: u64,
    /// Anything else that arrived.
    pub wrong: u64,
    /// Median time from datagram to echo, in microseconds; 0 without any echo. Of several
    /// sockets, the median of theirs.
    pub median_us: u64,
}

/// Counts of held connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Connections asked for.
    pub wanted: u64,
    /// Connections made.
    pub opened: u64,
    /// Of these, still open.
    pub alive: u64,
    /// Ended by a reset.
    pub resets: u64,
    /// Ended by the server or by a time-out.
    pub ended: u64,
    /// Never made.
    pub refused: u64,
    /// Requests answered over them.
    pub requests: u64,
    /// Of the open ones, those whose last request was answered; 0 before the agent is stopped.
    pub answered_last: u64,
}

/// A held connection. Times are milliseconds since 1970, as all processes of the machine have them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Its server's address, by the server; `None` before its first answer.
    pub server: Option<IpAddr>,
    /// When it was open.
    pub opened_ms: u64,
    /// When it broke, or was answered for the last time.
    pub until_ms: u64,
}

/// Counts of held UDP flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsHeld {
    /// Flows asked for.
    pub wanted: u64,
    /// Flows whose first datagram was echoed.
    pub opened: u64,
    /// Echoes, each of what was sent to its flow.
    pub echoes: u64,
    /// Anything else that arrived.
    pub wrong: u64,
    /// Flows whose last datagram was echoed; 0 before the agent is stopped.
    pub answered_last: u64,
}

/// Why traffic failed, as far as the client's socket can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// No answer to the SYN, or none to the request.
    TimedOut,
    /// The transfer stopped in its middle for longer than allowed.
    Stalled,
    /// A reset answered the SYN.
    Refused,
    /// A reset ended the connection.
    Reset,
    /// The kernel knows no way, or was told so by ICMP.
    Unreachable,
    /// The connection ended before all was transferred.
    Closed,
    /// The answer is not the expected one.
    WrongAnswer,
    /// A byte differs from what was sent.
    Corrupted,
    /// Anything else.
    Other,
}

impl From<&std::io::Error> for Trouble {
    fn from(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted => Self::Closed,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "timed out",
            Self::Stalled => "stalled",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed early",
            Self::WrongAnswer => "wrong answer",
            Self::Corrupted => "corrupted",
            Self::Other => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Fetched, Report, Trouble};

    #[test]
    fn a_report_is_read_back_as_it_was_said() {
        let fetched = Fetched {
            error: Some(Trouble::TimedOut),
            client: Some("fd00::1".parse().unwrap()),
            ..Fetched::default()
        };
        let report = Report::Fetched(fetched);
        let line = serde_json::to_string(&report).unwrap();
        assert!(line.starts_with(r#"{"report":"fetched""#), "{line}");
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
    }
}
