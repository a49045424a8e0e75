//! Workers that are to be told by which interface whole segments leave a port, and did not listen yet.

use dataplane::port::PortId;
use xdp_redirect::Error;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct One {
    worker: usize,
    port: PortId,
    ifindex: u32,
    /// It did not listen at least once, which the log says.
    is_late: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Untold(Vec<One>);

impl Untold {
    /// All workers are to be told of a port.
    pub(super) fn add(&mut self, port: PortId, ifindex: u32, workers: usize) {
        let one = |worker| One { worker, port, ifindex, is_late: false };
        self.0.extend((0..workers).map(one));
    }

    /// Tells them, as far as they listen.
    pub(super) fn tell(&mut self, tell: impl Fn(usize, PortId, u32) -> Result<(), Error>) {
        self.0.retain_mut(|one| {
            let Err(error) = tell(one.worker, one.port, one.ifindex) else { return false };
            if !std::mem::replace(&mut one.is_late, true) {
                let (port, worker) = (one.port.0, one.worker);
                tracing::warn!(port, worker, %error, "it cuts what leaves by the port until it is told");
            }
            true
        });
    }

    /// Whether a worker was not told of `port`.
    pub(super) fn has(&self, port: PortId) -> bool {
        self.0.iter().any(|one| one.port == port)
    }

    /// The port is none any more.
    pub(super) fn forget(&mut self, port: PortId) {
        self.0.retain(|one| one.port != port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was told once, and the status went on to say that its segments leave whole.
    #[test]
    fn worker_that_does_not_listen_is_told_again() {
        let (port, other) = (PortId(3), PortId(4));
        let mut untold = Untold::default();
        untold.add(port, 30, 2);
        untold.add(other, 40, 2);
        let busy = || Err(Error::WorkerBusy { capacity: 1 });
        untold.tell(|worker, _, _| if worker == 1 { busy() } else { Ok(()) });
        assert!(untold.has(port) && untold.has(other));
        untold.forget(other);
        assert!(!untold.has(other));
        untold.tell(|worker, at, ifindex| {
            assert_eq!((worker, at, ifindex), (1, port, 30));
            Ok(())
        });
        assert!(!untold.has(port));
        untold.tell(|_, _, _| panic!("all were told"));
    }
}
