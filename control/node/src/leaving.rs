//! Sockets of ports that are none any more, until the kernel has closed them.
//!
//! Each worker gives up its sockets in a tick of its own, and only then can they be closed. Until the
//! last one is, nothing new can be bound to the interface: the kernel says EBUSY. So whoever makes a
//! port waits for this ([`Leaving::on`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dataplane::port::PortId;
use xdp_redirect::Socket;

use crate::pool::Pool;
use crate::privileges;
use crate::workers::Workers;

/// Threads that close sockets. The kernel takes a grace period for each, and these overlap.
const CLOSERS: usize = 8;

/// A port that is none any more.
struct Left {
    port: PortId,
    ifindex: u32,
    /// Sockets that are not closed yet.
    open: Arc<AtomicUsize>,
    /// Workers whose queue had no room to be told.
    untold: Vec<usize>,
    since: Instant,
}

/// What stands in the way of a new port on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Sockets that are not closed yet.
    pub sockets: usize,
    /// Since when the port is none any more.
    pub since: Instant,
}

/// All of them; at most as many as there are ports, since each keeps its number.
pub struct Leaving {
    left: Vec<Left>,
    closers: Pool,
    /// Time that the slowest took from its removal until the kernel had closed its sockets.
    longest: Duration,
}

impl Leaving {
    /// None, and threads that wait for some.
    #[must_use]
    pub fn new() -> Self {
        let closers = Pool::new("closing", CLOSERS, privileges::drop_all);
        Self { left: Vec::new(), closers, longest: Duration::ZERO }
    }

    /// Takes the sockets of `port` from every worker, of which it was given `sockets`.
    pub fn add(&mut self, workers: &Workers, port: PortId, ifindex: u32, sockets: usize) {
        if sockets == 0 {
            return;
        }
        let open = Arc::new(AtomicUsize::new(sockets));
        let untold = (0..workers.count()).collect();
        let mut left = Left { port, ifindex, open, untold, since: Instant::now() };
        tell(workers, &mut left);
        if !left.untold.is_empty() {
            let (workers, port) = (&left.untold, port.0);
            tracing::warn!(?workers, port, "they do not take commands: their sockets go later");
        }
        self.left.push(left);
    }

    /// Closes what workers gave up since, on other threads, and tells those again that had no room.
    /// To be called every few milliseconds while there [are any](Self::is_empty).
    pub fn collect(&mut self, workers: &Workers) {
        for left in &mut self.left {
            tell(workers, left);
        }
        for ports in (0..workers.count()).filter_map(|worker| workers.ports(worker)) {
            while let Some((port, socket)) = ports.collect() {
                self.close(port, socket);
            }
        }
        let longest = &mut self.longest;
        self.left.retain(|left| {
            let is_open = left.open.load(Ordering::Acquire) > 0;
            if !is_open {
                *longest = left.since.elapsed().max(*longest);
            }
            is_open
        });
    }

    fn close(&self, port: PortId, socket: Box<Socket>) {
        let open = self.left.iter().find(|left| left.port == port).map(|left| left.open.clone());
        if open.is_none() {
            // A worker that has as many as it can takes no more.
            tracing::error!(port = port.0, interface = socket.interface(), "a worker refused it");
        }
        self.closers.give(move || {
            drop(socket);
            if let Some(open) = open {
                // Whoever reads 0 sees the socket closed.
                open.fetch_sub(1, Ordering::Release);
            }
        });
    }

    /// What is left of a port that the interface was.
    #[must_use]
    pub fn on(&self, ifindex: u32) -> Option<Held> {
        let of = |left: &&Left| left.ifindex == ifindex;
        let left = self.left.iter().find(of)?;
        Some(Held { sockets: left.open.load(Ordering::Acquire), since: left.since })
    }

    /// Whether a port had this number, and is not gone yet.
    #[must_use]
    pub fn has(&self, port: PortId) -> bool {
        self.left.iter().any(|left| left.port == port)
    }

    /// Whether nothing is left of any port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Sockets that are not closed yet.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.left.iter().map(|left| left.open.load(Ordering::Acquire)).sum()
    }

    /// The longest time from a port's removal until its interface was free again.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

impl Default for Leaving {
    fn default() -> Self {
        Self::new()
    }
}

/// Closes `sockets` at once, as a process does that ends.
pub fn close_all(sockets: Vec<Box<Socket>>) {
    let closers = Pool::new("closing", CLOSERS.min(sockets.len()), privileges::drop_all);
    for socket in sockets {
        closers.give(move || drop(socket));
    }
}

fn tell(workers: &Workers, left: &mut Left) {
    let port = left.port;
    let is_refused =
        |worker: usize| workers.ports(worker).is_some_and(|ports| ports.remove(port).is_err());
    if !left.untold.is_empty() {
        left.untold.retain(|worker| is_refused(*worker));
        workers.wake();
    }
}
