//! All of a worker's sockets, as the dataplane's driver wants them.
//!
//! The worker owns them; the control side makes and closes them. Both talk by two bounded queues:
//! commands go one way ([`PortsControl`]), sockets to close come back the other.
//!
//! A worker with more than [`ALL_LOOKED_AT_MAX`] receiving sockets looks only at those that the XDP
//! program says have packets ([`WorkerPorts::with_ready_flags`]). The program says so before a
//! packet can be seen, so a flag is not cleared at the first vain look, all sockets are looked at
//! every [`SWEEP_INTERVAL`], and once more before the worker sleeps ([`WorkerPorts::is_settled`]).

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use dataplane::DropReason;
use dataplane::counters::Level;
use dataplane::port::{PortId, Ports};
use dataplane::worker::{Received, RxBurst};

use crate::cast::index;
use crate::frame::Frame;
use crate::limits;
use crate::live_transmit::{Gather, LivePeer, LiveSender};
use crate::pool::FramePool;
use crate::pools::{LARGE, Pools};
use crate::ready::{FlagPlace, ReadyFlags};
use crate::regions::Regions;
use crate::rings::{Entry, Rings, put};
use crate::segment_transmit::{Gather as SegmentGather, SegmentCounters, SegmentSender};
use crate::socket::{LinkState, Socket};
use crate::turns::Turns;
use crate::umem::Umem;

mod control;
mod segments;

pub use control::PortsControl;
use control::{Command, Queues};

pub use crate::turns::{ALL_LOOKED_AT_MAX, SWEEP_INTERVAL};

/// Sockets one worker has at most.
pub const WORKER_SOCKETS_MAX: usize = 4096;
/// Commands that may wait for a worker.
pub const COMMANDS_MAX: usize = 256;
const _: () = assert!(WORKER_SOCKETS_MAX <= u16::MAX as usize);

/// How packets leave by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransmitPath {
    /// They do not: the worker has no socket of the port.
    #[default]
    None,
    /// By an AF_XDP transmit ring.
    AfXdp {
        /// The socket's place among the worker's.
        socket: u16,
    },
    /// As live frames when they are many, by the AF_XDP transmit ring otherwise
    /// ([`crate::live_transmit`]).
    LiveFrames {
        /// The socket's place among the worker's.
        socket: u16,
    },
    /// Whole segments by a packet socket, with what follows them to the port in one flush; the rest by
    /// the AF_XDP transmit ring ([`crate::segment_transmit`]).
    Whole {
        /// The socket's place among the worker's.
        socket: u16,
    },
}

impl TransmitPath {
    pub(crate) fn socket(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::AfXdp { socket } | Self::LiveFrames { socket } | Self::Whole { socket } => {
                Some(socket)
            }
        }
    }
}

/// A worker's sockets. Allocates nothing after it is made.
pub struct WorkerPorts {
    sockets: Vec<Option<Entry>>,
    /// Of the sockets that receive.
    turns: Turns,
    paths: Box<[TransmitPath]>,
    dirty: Vec<u16>,
    live: Option<Box<Gather>>,
    segments: Option<Box<SegmentGather>>,
    pools: Pools,
    queues: Arc<Queues>,
    generation: u64,
    /// The socket that was received from last had most of what it can have waiting.
    is_crowded: bool,
}

const _: () = {
    const fn moves_to_its_worker<T: Send>() {}
    moves_to_its_worker::<WorkerPorts>();
};

impl WorkerPorts {
    /// No ports yet, with frames of `umem`. All sockets are looked at in every receive call; see
    /// [`Self::with_ready_flags`].
    #[must_use]
    pub fn new(umem: &Umem) -> Self {
        Self {
            sockets: Vec::with_capacity(WORKER_SOCKETS_MAX),
            turns: Turns::new(WORKER_SOCKETS_MAX),
            paths: vec![TransmitPath::None; index(limits::PORTS_MAX)].into_boxed_slice(),
            dirty: Vec::with_capacity(WORKER_SOCKETS_MAX),
            live: None,
            segments: None,
            pools: Pools::new(umem),
            queues: Arc::new(Queues {
                commands: ArrayQueue::new(COMMANDS_MAX),
                returned: ArrayQueue::new(2 * WORKER_SOCKETS_MAX + COMMANDS_MAX),
                commands_level: Level::default(),
                sockets: Level::default(),
                held_back: AtomicBool::new(false),
                live: OnceLock::new(),
                segments: Arc::new(SegmentCounters::default()),
            }),
            generation: 0,
            is_crowded: false,
        }
    }

    /// Looks only at sockets that the program says have packets
    /// ([`crate::Redirect::ready_flags`]), once there are many.
    #[must_use]
    pub fn with_ready_flags(mut self, flags: ReadyFlags) -> Self {
        self.turns.set_flags(flags);
        self
    }

    /// Serves sockets of pods as well, which have regions of their own.
    #[must_use]
    pub fn with_regions(mut self, regions: &Regions) -> Self {
        self.pools = Pools::of_all(regions);
        self
    }

    /// Can send live frames to ports that may be sent them ([`PortsControl::set_live`]).
    #[must_use]
    pub fn with_live_transmit(mut self, sender: LiveSender) -> Self {
        let gather = Gather::new(sender);
        // Once: a second sender would count where nobody looks.
        let _ = self.queues.live.set(Arc::clone(gather.counters()));
        self.live = Some(Box::new(gather));
        self
    }

    /// Can send whole segments to ports that take them ([`PortsControl::set_whole`]).
    #[must_use]
    pub fn with_segment_transmit(mut self, sender: SegmentSender) -> Self {
        let counters = Arc::clone(&self.queues.segments);
        self.segments = Some(Box::new(SegmentGather::new(sender, counters)));
        self
    }

    /// How often a socket was found with packets and without a flag: each had waited up to
    /// [`SWEEP_INTERVAL`].
    #[must_use]
    pub fn stranded(&self) -> u64 {
        self.turns.stranded()
    }

    /// The control side's end.
    #[must_use]
    pub fn control(&self) -> PortsControl {
        PortsControl { queues: Arc::clone(&self.queues) }
    }

    /// The worker's free frames of the large region, for packets it makes itself.
    pub fn pool(&mut self) -> &mut FramePool {
        self.pools.of(LARGE)
    }

    /// Grows whenever a socket comes or goes: [`Self::fds`] is another set then.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What becomes readable when a packet waits, with its port: for a worker that sleeps. Close
    /// nothing, and ask again when [`Self::generation`] has grown.
    pub fn fds(&self) -> impl Iterator<Item = (PortId, BorrowedFd<'_>)> {
        self.receiving().map(|entry| (entry.port, entry.socket.fd()))
    }

    /// How packets leave by `port` now.
    #[must_use]
    pub fn path(&self, port: PortId) -> TransmitPath {
        self.paths.get(usize::from(port.0)).copied().unwrap_or_default()
    }

    /// Ports whose interface is down or gone.
    pub fn failed(&self) -> impl Iterator<Item = (PortId, LinkState)> {
        let entries = self.sockets.iter().flatten();
        entries
            .map(|entry| (entry.port, entry.socket.link()))
            .filter(|(_, link)| *link != LinkState::Up)
    }

    fn receiving(&self) -> impl Iterator<Item = &Entry> {
        self.sockets.iter().flatten().filter(|entry| entry.socket.receiving.is_some())
    }

    /// Whether everything queued is under way, and no packet waits. While that is not so, a worker
    /// must not sleep: no event will wake it. Ask after the last wait ended and right before the
    /// next: what comes after the question makes its socket readable.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let mut is_settled = self.dirty.is_empty() && !self.has_gathered();
        for entry in self.receiving().filter(|entry| entry.socket.has_waiting()) {
            self.turns.raise(entry.flag);
            is_settled = false;
        }
        is_settled
    }

    /// Takes what the control side sent. [`Ports::flush`] does so as well.
    pub fn take_commands(&mut self) {
        // Bounded: what comes meanwhile waits for the next tick.
        for _ in 0..COMMANDS_MAX {
            match self.queues.commands.pop() {
                None => return,
                Some(Command::Add(port, socket)) => self.add(port, socket),
                Some(Command::Remove(port)) => self.remove(port),
                Some(Command::Live(port, peer)) => self.set_live(port, peer),
                Some(Command::Whole(port, ifindex)) => self.set_whole(port, ifindex),
            }
        }
    }

    fn add(&mut self, port: PortId, mut socket: Box<Socket>) {
        let vacant = self.sockets.iter().position(Option::is_none);
        let is_full = vacant.is_none() && self.sockets.len() >= WORKER_SOCKETS_MAX;
        let Some(path) = self.paths.get_mut(usize::from(port.0)).filter(|_| !is_full) else {
            return self.give_up(port, socket);
        };
        let place = vacant.unwrap_or(self.sockets.len());
        let (Ok(number), Some(flag)) = (u16::try_from(place), FlagPlace::of(port, socket.queue()))
        else {
            return self.give_up(port, socket);
        };
        let region = socket.umem.region();
        if !self.pools.knows(region) {
            return self.give_up(port, socket);
        }
        if *path == TransmitPath::None {
            *path = TransmitPath::AfXdp { socket: number };
        }
        if socket.receiving.is_some() {
            self.turns.add(flag, number, socket.is_polled());
        }
        // A process before may have left packets on its ring.
        let is_dirty = socket.tx.pending() > 0;
        if is_dirty {
            self.dirty.push(number);
        }
        let entry = Some(Entry { port, socket, region, flag, is_dirty });
        match self.sockets.get_mut(place) {
            Some(vacant) => *vacant = entry,
            None => self.sockets.push(entry),
        }
        self.queues.sockets.set(self.queues.sockets.get() + 1);
        self.generation += 1;
    }

    fn set_live(&mut self, port: PortId, peer: Option<LivePeer>) {
        let Some(live) = &mut self.live else { return };
        let Some(path) = self.paths.get_mut(usize::from(port.0)) else { return };
        match *path {
            TransmitPath::AfXdp { socket } if peer.is_some() => {
                *path = TransmitPath::LiveFrames { socket }
            }
            // It stays so until what it was sent has settled.
            TransmitPath::LiveFrames { .. } => {}
            _ => return,
        }
        live.set_peer(port, peer);
    }

    fn remove(&mut self, port: PortId) {
        if let Some(live) = &mut self.live {
            live.abandon(port, &mut self.pools);
        }
        if let Some(segments) = &mut self.segments {
            segments.abandon(port, &mut self.pools);
        }
        if let Some(path) = self.paths.get_mut(usize::from(port.0)) {
            *path = TransmitPath::None;
        }
        for place in 0..self.sockets.len() {
            let is_of_port = |entry: &mut Entry| entry.port == port;
            if let Some(entry) = self.sockets[place].take_if(is_of_port) {
                self.turns.remove(entry.flag, u16::try_from(place).unwrap_or(u16::MAX));
                self.dirty.retain(|other| usize::from(*other) != place);
                self.give_up(port, entry.socket);
                self.queues.sockets.set(self.queues.sockets.get() - 1);
                self.generation += 1;
            }
        }
    }

    fn has_gathered(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.is_empty())
    }

    /// Puts a packet on a socket's transmit ring.
    #[inline]
    fn by_socket(&mut self, socket: u16, buffer: Frame) -> Result<(), (DropReason, Frame)> {
        match self.sockets.get_mut(usize::from(socket)) {
            Some(Some(entry)) => put(entry, socket, &mut self.dirty, &mut self.pools, buffer),
            _ => Err((DropReason::PortGone, buffer)),
        }
    }

    /// Gathers a packet that may leave as a live frame. Room in the transmit ring is kept for it, so
    /// that it can leave there as well.
    fn gather(
        &mut self,
        port: PortId,
        socket: u16,
        buffer: Frame,
    ) -> Result<(), (DropReason, Frame)> {
        let (Some(live), Some(Some(entry))) =
            (&mut self.live, self.sockets.get_mut(usize::from(socket)))
        else {
            return self.by_socket(socket, buffer);
        };
        let needed = u32::from(live.waiting(port)) + 1;
        let is_usual = Gather::takes(&buffer)
            && entry.socket.link() == LinkState::Up
            && entry.socket.transmit_room(needed) >= needed;
        if !is_usual {
            return self.gather_unusual(socket, buffer);
        }
        let Err(buffer) = live.add(port, buffer) else { return Ok(()) };
        self.flush_gathered();
        match (self.path(port), &mut self.live) {
            (TransmitPath::LiveFrames { .. }, Some(live)) => match live.add(port, buffer) {
                Ok(()) => Ok(()),
                // Other ports' packets have every place, until those ports have settled.
                Err(buffer) if live.has_settled(port) => self.by_socket(socket, buffer),
                Err(buffer) => Err((DropReason::TxRingFull, buffer)),
            },
            // The port has left this way just now, and what follows will not be gathered.
            _ => self.by_socket(socket, buffer),
        }
    }

    /// Sends a packet that cannot be gathered behind those that were: it fits no live frame, the
    /// ring is full, or the link is down, which the socket says with its reason.
    #[cold]
    fn gather_unusual(&mut self, socket: u16, buffer: Frame) -> Result<(), (DropReason, Frame)> {
        self.flush_gathered();
        self.by_socket(socket, buffer)
    }

    /// Sends what was gathered, by the way that is the better one.
    fn flush_gathered(&mut self) {
        let Some(live) = &mut self.live else { return };
        let (sockets, paths) = (&mut self.sockets, &mut self.paths);
        let mut rings = Rings { sockets, paths, dirty: &mut self.dirty };
        live.flush(&mut self.pools, &mut rings);
    }

    fn give_up(&self, port: PortId, socket: Box<Socket>) {
        // There is a place for every socket; were there none, it would be closed here.
        drop(self.queues.returned.push((port, socket)));
    }
}

impl Ports for WorkerPorts {
    type Buffer = Frame;

    #[inline]
    fn receive(&mut self, burst: &mut RxBurst<Frame>) {
        if self.queues.held_back.load(Ordering::Acquire) {
            return;
        }
        let room = burst.remaining_capacity();
        let mut pass = self.turns.begin();
        while let Some(turn) = self.turns.next(&mut pass) {
            let place = usize::from(turn.place);
            let Some(Some(entry)) = self.sockets.get_mut(place) else { continue };
            if turn.is_peek && !entry.socket.has_waiting() {
                continue;
            }
            let (port, region) = (entry.port, entry.region);
            let pool = self.pools.of(region);
            let received = entry.socket.receive(pool, room, |buffer| {
                burst.push(Received { port, buffer });
            });
            if received > 0 {
                if region != LARGE && pool.umem().is_short() {
                    let before = burst.len() - received;
                    self.pools.make_room(region, &mut burst[before..]);
                }
                self.is_crowded = entry.socket.is_crowded();
                return self.turns.found(&turn);
            }
            if let Some(flag) = self.turns.in_vain(&turn)
                && entry.socket.has_waiting()
            {
                self.turns.raise(flag);
            }
        }
    }

    #[inline]
    fn transmit(&mut self, port: PortId, buffer: Frame) -> Result<(), (DropReason, Frame)> {
        match self.path(port) {
            TransmitPath::Whole { socket } => self.by_either(port, socket, buffer),
            TransmitPath::AfXdp { socket } | TransmitPath::LiveFrames { socket }
                if buffer.is_long() =>
            {
                self.in_pieces(port, socket, buffer)
            }
            TransmitPath::AfXdp { socket } => self.by_socket(socket, buffer),
            TransmitPath::LiveFrames { socket } => self.gather(port, socket, buffer),
            TransmitPath::None => Err((DropReason::PortGone, buffer)),
        }
    }

    fn flush(&mut self) {
        if !self.queues.commands.is_empty() {
            self.take_commands();
        }
        if self.has_gathered() {
            self.flush_gathered();
        }
        if let Some(segments) = self.segments.as_mut().filter(|segments| !segments.is_empty()) {
            segments.flush(&mut self.pools);
        }
        let (sockets, pools, turns) = (&mut self.sockets, &mut self.pools, &self.turns);
        self.dirty.retain(|place| match sockets.get_mut(usize::from(*place)) {
            Some(Some(entry)) => {
                let pool = pools.of(entry.region);
                entry.is_dirty = !entry.socket.flush(pool);
                // A port that only sends is not looked at for packets, nor for what completed.
                if entry.socket.receiving.is_some() {
                    entry.socket.complete(pool);
                } else {
                    turns.raise(entry.flag);
                }
                entry.is_dirty
            }
            _ => false,
        });
    }

    #[inline]
    fn is_pressed(&self) -> bool {
        self.is_crowded || self.pools.large().umem().is_short()
    }

    #[inline]
    fn release(&mut self, buffer: Frame) {
        self.pools.release(buffer);
    }
}

impl Drop for WorkerPorts {
    fn drop(&mut self) {
        if let Some(live) = &mut self.live {
            live.clear(&mut self.pools);
        }
        if let Some(segments) = &mut self.segments {
            segments.clear(&mut self.pools);
        }
        // Closed by whoever has the control side, or with the last end of the queues.
        while let Some(command) = self.queues.commands.pop() {
            if let Command::Add(port, socket) = command {
                self.give_up(port, socket);
            }
        }
        for place in 0..self.sockets.len() {
            if let Some(entry) = self.sockets[place].take() {
                self.give_up(entry.port, entry.socket);
            }
        }
    }
}
