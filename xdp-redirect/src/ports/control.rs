//! The control side's end of a worker's ports, and what goes between the two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use dataplane::counters::Level;
use dataplane::port::PortId;

use super::COMMANDS_MAX;
use crate::error::Error;
use crate::live_transmit::{LiveCounters, LivePeer};
use crate::segment_transmit::SegmentCounters;
use crate::socket::Socket;

pub(super) enum Command {
    Add(PortId, Box<Socket>),
    Remove(PortId),
    /// Whether the port's peer can take live frames.
    Live(PortId, Option<LivePeer>),
    /// By which interface the port takes whole segments; 0: it does not.
    Whole(PortId, u32),
}

pub(super) struct Queues {
    pub(super) commands: ArrayQueue<Command>,
    /// Has a place for every socket there can be, on the way in, in use and on the way out.
    pub(super) returned: ArrayQueue<(PortId, Box<Socket>)>,
    pub(super) commands_level: Level,
    /// Sockets the worker has.
    pub(super) sockets: Level,
    /// Nothing is received for now.
    pub(super) held_back: AtomicBool,
    /// Of packets that left as live frames, if the worker can.
    pub(super) live: OnceLock<Arc<LiveCounters>>,
    /// Of packets that are longer than their port's link takes.
    pub(super) segments: Arc<SegmentCounters>,
}

impl Queues {
    fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.push(command)?;
        self.commands_level.note(self.commands.len() as u64);
        Ok(())
    }
}

/// The control side's end of a worker's ports.
#[derive(Clone)]
pub struct PortsControl {
    pub(super) queues: Arc<Queues>,
}

impl PortsControl {
    /// Gives the worker a bound socket of `port`: it serves it from its next tick on. Enter it in
    /// the program's table as well ([`crate::Redirect::set_socket`]).
    ///
    /// # Errors
    /// [`Error::WorkerBusy`] with the socket, when the worker does not take its commands.
    pub fn add(&self, port: PortId, socket: Socket) -> Result<(), (Error, Box<Socket>)> {
        match self.queues.send(Command::Add(port, Box::new(socket))) {
            Err(Command::Add(_, socket)) => {
                Err((Error::WorkerBusy { capacity: COMMANDS_MAX }, socket))
            }
            _ => Ok(()),
        }
    }

    /// Takes all sockets of `port` from the worker; [`Self::collect`] gets them.
    ///
    /// # Errors
    /// [`Error::WorkerBusy`] when the worker does not take its commands.
    pub fn remove(&self, port: PortId) -> Result<(), Error> {
        let pushed = self.queues.send(Command::Remove(port));
        pushed.map_err(|_| Error::WorkerBusy { capacity: COMMANDS_MAX })
    }

    /// The next socket the worker gave up: one removed, or one more than it can hold. Dropping it
    /// closes it and finds its frames again.
    #[must_use]
    pub fn collect(&self) -> Option<(PortId, Box<Socket>)> {
        self.queues.returned.pop()
    }

    /// Says whether packets may leave by `port` as live frames from the worker's next tick on, if it
    /// can ([`WorkerPorts::with_live_transmit`]), and what takes them there; `None`: they may not. Order is kept: a port that no longer may first
    /// settles, for a millisecond after the last ones. A port that is added may not.
    ///
    /// # Errors
    /// [`Error::WorkerBusy`] when the worker does not take its commands.
    pub fn set_live(&self, port: PortId, peer: Option<LivePeer>) -> Result<(), Error> {
        let pushed = self.queues.send(Command::Live(port, peer));
        pushed.map_err(|_| Error::WorkerBusy { capacity: COMMANDS_MAX })
    }

    /// Says by which interface whole segments may leave by `port` from the worker's next tick on, if it can
    /// ([`WorkerPorts::with_segment_transmit`]); 0: by none. A port that is added takes none.
    ///
    /// # Errors
    /// [`Error::WorkerBusy`] when the worker does not take its commands.
    pub fn set_whole(&self, port: PortId, ifindex: u32) -> Result<(), Error> {
        let pushed = self.queues.send(Command::Whole(port, ifindex));
        pushed.map_err(|_| Error::WorkerBusy { capacity: COMMANDS_MAX })
    }

    /// What left as whole segments, or in their pieces.
    #[must_use]
    pub fn segment_counters(&self) -> &SegmentCounters {
        &self.queues.segments
    }

    /// Leaves what comes in the sockets' rings, until the worker has been told what to do with it.
    pub fn hold_back(&self, held_back: bool) {
        // Released: whoever receives has seen what was sent to it before.
        self.queues.held_back.store(held_back, Ordering::Release);
    }

    /// What left as live frames; `None` when the worker cannot send them.
    #[must_use]
    pub fn live_counters(&self) -> Option<&Arc<LiveCounters>> {
        self.queues.live.get()
    }

    /// Commands the worker has not taken yet.
    #[must_use]
    pub fn commands_waiting(&self) -> usize {
        self.queues.commands.len()
    }

    /// Most commands that ever waited.
    #[must_use]
    pub fn commands_waited_most(&self) -> u64 {
        self.queues.commands_level.most()
    }

    /// Sockets the worker has, of [`WORKER_SOCKETS_MAX`].
    #[must_use]
    pub fn sockets(&self) -> &Level {
        &self.queues.sockets
    }
}
