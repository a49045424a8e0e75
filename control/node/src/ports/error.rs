//! Why an interface cannot become a port.

use std::time::Instant;

use dataplane::counters::PORTS_MAX;
use dataplane::port::PortId;
use xdp_redirect::Error;
use xdp_redirect::limits::QUEUES_MAX;

/// A port cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The name is taken by one of our own ports.
    #[error("interface {interface} is port {port} already", port = .port.0)]
    Exists {
        /// The interface.
        interface: String,
        /// Its port.
        port: PortId,
    },
    /// There are as many ports as there can be.
    #[error("{PORTS_MAX} ports exist already: remove an endpoint first")]
    Full,
    /// Something of a port that it was before is not closed yet.
    #[error(
        "interface {interface} still has {sockets} sockets of a port that it was {} ms ago: a worker \
         does not let go of them (`xskiff status` says which stalls); try again",
        .since.elapsed().as_millis()
    )]
    Held {
        /// The interface.
        interface: String,
        /// How many.
        sockets: usize,
        /// When the port ended.
        since: Instant,
    },
    /// More queues than the program's tables have places for.
    #[error(
        "it has {queues} receive queues, and {QUEUES_MAX} are served at most: give it fewer by \
         `ethtool -L {interface} combined {QUEUES_MAX}` (or `rx {QUEUES_MAX}`)"
    )]
    Queues {
        /// The interface.
        interface: String,
        /// Its receive queues.
        queues: u32,
    },
    /// The kernel does not tell the interface's settings.
    #[error("read {path}: {source}; is the interface there?")]
    Sysfs {
        /// What was read.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel tells something that is not understood.
    #[error("{path} says {text:?}, which is no {what}")]
    Unreadable {
        /// What was read.
        path: String,
        /// What it says.
        text: String,
        /// What it should be.
        what: &'static str,
    },
    /// XDP or AF_XDP refuses.
    #[error(transparent)]
    Redirect(#[from] Error),
}
