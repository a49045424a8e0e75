//! Making sockets ([`crate::open`]): in the large region in its mode, in a region of pods in copy mode.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::anchor::{Anchor, make_tap};
use crate::error::Error;
use crate::hand_over::message::{Role, SocketRecord};
use crate::loader::interface_index;
use crate::open::{bind_registered, bind_shared, make_rings, open, open_registered};
use crate::pool::FramePool;
use crate::regions::Place;
use crate::ring::{Consumer, Producer};
use crate::ring_map::{RingKind, SocketMaps};
use crate::socket::{LinkState, Polling, Receiving, Socket, get_option, has_napi};
use crate::statistics::{Monitored, SocketMonitor};
use crate::umem::{CopyMode, Umem};
use crate::umem_config::check_ring;

/// How long a queue may stay busy after its last socket was closed: the kernel lets go of it in
/// the background.
const BUSY_PATIENCE: Duration = Duration::from_secs(4);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// The same for frames of a zero-copy queue: until then the device may still write to them.
const ZERO_COPY_PATIENCE: Duration = Duration::from_secs(1);
/// `TX_BATCH_SIZE` of `net/xdp/xsk.c`: descriptors that one call sends in copy mode.
const KICK_DESCRIPTORS: u32 = 32;
/// `XDP_MAX_TX_SKB_BUDGET` (`linux/if_xdp.h`, kernel 6.17).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Busy polling: the worker runs the queue's receive processing itself, in its receive turns, where
/// the kernel lets it ([`Socket::busy_polls`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// Time one poll may take, in microseconds (`SO_BUSY_POLL`).
    pub micros: u32,
    /// Packets one poll may take (`SO_BUSY_POLL_BUDGET`).
    pub budget: u32,
}

/// What a socket is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketConfig {
    /// Entries of the receive ring, a power of two.
    pub receive_ring: u32,
    /// Entries of the transmit ring, a power of two, at most the region's completion ring.
    pub transmit_ring: u32,
    /// Frames kept with the kernel for packets to come. Fewer cost less memory and lose more in a
    /// burst; the kernel counts an empty fill ring.
    pub fill_frames: u32,
    /// The same while the port receives little, or less where a quarter of the region does not
    /// suffice to give all sockets as many. When packets wait in half of what the kernel was given,
    /// it is given twice as much, up to `fill_frames` and while a quarter of the region is free;
    /// when less than an eighth is, it gets less again as packets come. Equal to `fill_frames`:
    /// always that many.
    pub idle_frames: u32,
    /// Poll the queue from the worker.
    pub busy_poll: Option<BusyPoll>,
    /// Descriptors one system call sends in copy mode, at most the transmit ring's; `None`, less
    /// than 32, and kernels before 6.17: 32. On veth more gains nothing while the receiver has
    /// another core, and costs 60 ns a packet when it shares the sender's: the packets have left
    /// the cache by then.
    pub transmit_budget: Option<u32>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            receive_ring: 2048,
            transmit_ring: 2048,
            fill_frames: 2048,
            idle_frames: 2048,
            busy_poll: None,
            transmit_budget: None,
        }
    }
}

impl SocketConfig {
    /// For one of hundreds of pods: 16 frames while it is idle and 256 under load.
    #[must_use]
    pub fn small() -> Self {
        Self {
            receive_ring: 256,
            transmit_ring: 512,
            fill_frames: 256,
            idle_frames: 16,
            ..Self::default()
        }
    }
}

/// A socket that is bound, as the kernel has it. Closes it when dropped.
pub(crate) struct Bound {
    maps: SocketMaps,
    fd: Arc<OwnedFd>,
}

/// A number under which the region keeps the frames of one queue's sockets.
pub(crate) struct Lease {
    umem: Umem,
    pub number: u16,
    zero_copy: bool,
    /// Of a pod's: given up when its frames are found again.
    _place: Option<Arc<Place>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.zero_copy {
            std::thread::sleep(ZERO_COPY_PATIENCE);
        }
        self.umem.reclaim(self.number);
    }
}

impl Socket {
    /// Binds a socket to an interface's queue and fills its ring. On the control side: a bind
    /// takes milliseconds, and up to half a second while a predecessor's queue is being let go.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::Bind`] and [`Error::SocketOption`] with the way out,
    /// [`Error::Memory`] when copy mode lacks its tap device, [`Error::Setting`].
    pub fn bind(
        umem: &Umem,
        interface: &str,
        queue: u32,
        config: &SocketConfig,
    ) -> Result<Self, Error> {
        let ifindex = interface_index(interface)?;
        check(umem, config)?;
        let bound = bind_in_mode(umem, (interface, ifindex, queue), config)?;
        Self::of(umem, None, (interface, queue), config, bound)
    }

    /// The same for a pod, in the region where it was given a place. Further queues share what its
    /// first one, `sibling`, registered.
    ///
    /// # Errors
    /// As [`Self::bind`]; [`Error::PodMemory`] when others have taken its frames.
    pub fn bind_in(
        place: &Arc<Place>,
        interface: &str,
        queue: u32,
        config: &SocketConfig,
        sibling: Option<&Self>,
    ) -> Result<Self, Error> {
        let umem = place.umem();
        let config = &SocketConfig { idle_frames: config.idle_frames.min(place.each()), ..*config };
        let ifindex = interface_index(interface)?;
        check(umem, config)?;
        let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
        let to = (ifindex, queue);
        let bound = match sibling {
            Some(sibling) => bind_beside(sibling.fd, to, &all_rings(umem, config)),
            None => Bound::registered(umem, config).and_then(|bound| {
                when_free(|| bind_registered(umem, bound.raw(), to, false))?;
                Ok(bound)
            }),
        };
        let bound = bound.map_err(refuse)?;
        let socket = Self::of(umem, Some(place), (interface, queue), config, bound)?;
        match &socket.receiving {
            Some(receiving) if receiving.posted < receiving.wanted => Err(place.refused()),
            _ => Ok(socket),
        }
    }

    fn of(
        umem: &Umem,
        place: Option<&Arc<Place>>,
        (interface, queue): (&str, u32),
        config: &SocketConfig,
        bound: Bound,
    ) -> Result<Self, Error> {
        let number = umem.take_socket_number().ok_or(Error::OutOfRange {
            what: "number of sockets of one packet memory",
            value: crate::umem::SOCKETS_MAX as u64 + 1,
            max: crate::umem::SOCKETS_MAX as u64,
        })?;
        let lease = Lease { umem: umem.clone(), number, zero_copy: false, _place: place.cloned() };
        let mut socket = Self::with(lease, (interface, queue), config, bound)?;
        if let Some(receiving) = &mut socket.receiving {
            receiving.wanted = receiving.least(umem);
        }
        socket.fill(&mut FramePool::new(umem));
        Ok(socket)
    }

    /// Makes a socket of one that is bound, with its rings as they are.
    fn with(
        mut lease: Lease,
        (interface, queue): (&str, u32),
        config: &SocketConfig,
        bound: Bound,
    ) -> Result<Self, Error> {
        let umem = lease.umem.clone();
        let (region, fd, maps) = (umem.config(), bound.raw(), &bound.maps);
        let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
        let options: libc::xdp_options = get_option(fd, libc::XDP_OPTIONS).map_err(refuse)?;
        let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        lease.zero_copy = zero_copy;
        let lease = Arc::new(lease);
        // SAFETY: the entry types are the kernel's for each ring; the mappings live in `owner`,
        // which `Socket` drops last; nobody else has the rings.
        let (rx, tx, fill, completion) = unsafe {
            (
                maps.ring(RingKind::Receive, config.receive_ring).map_err(refuse)?,
                maps.ring(RingKind::Transmit, config.transmit_ring).map_err(refuse)?,
                maps.ring(RingKind::Fill, region.fill_ring).map_err(refuse)?,
                maps.ring(RingKind::Completion, region.completion_ring).map_err(refuse)?,
            )
        };
        let receiving = Receiving {
            rx: Consumer::new(rx),
            fill: Producer::new(fill),
            completion: Consumer::new(completion),
            fill_frames: config.fill_frames,
            idle_frames: config.idle_frames.min(config.fill_frames),
            wanted: 0,
            posted: 0,
            quiet: 0,
            is_crowded: false,
            partial: None,
            discarding: false,
        };
        let monitor = monitor(fd, interface, queue, zero_copy);
        let mut socket = Self {
            tx: Producer::new(tx),
            receiving: Some(receiving),
            link: LinkState::Up,
            kicks_max: kicks_max(config),
            polling: Polling::Off,
            fd,
            umem: umem.clone(),
            monitor,
            owner: Some(bound),
            lease,
        };
        set_options(fd, interface, queue, config)?;
        if config.busy_poll.is_some() {
            socket.polling = if has_napi(fd) { Polling::On } else { Polling::Unconfirmed };
            if socket.polling == Polling::Unconfirmed {
                tracing::warn!(
                    interface,
                    queue,
                    "the kernel names no NAPI to busy-poll, as for any veth; unless it does with \
                     the first packet, the worker only spins"
                );
            }
        }
        Ok(socket)
    }

    /// Makes a socket that only transmits on this one's queue, for another worker: where there are
    /// more workers than queues. What it sent completes with this one, whose worker gets the
    /// frames.
    ///
    /// # Errors
    /// [`Error::Bind`], [`Error::SocketOption`], [`Error::Setting`].
    pub fn bind_transmit_only(&self, config: &SocketConfig) -> Result<Self, Error> {
        check(&self.umem, config)?;
        let (interface, queue) = (self.interface(), self.queue());
        let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
        let ifindex = interface_index(interface)?;
        let rings = [(RingKind::Transmit, config.transmit_ring)];
        let bound = bind_beside(self.fd, (ifindex, queue), &rings).map_err(refuse)?;
        self.transmit_only(config, bound)
    }

    /// Makes a socket of one that is bound beside this one.
    fn transmit_only(&self, config: &SocketConfig, bound: Bound) -> Result<Self, Error> {
        let (interface, queue) = (self.interface(), self.queue());
        let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
        let raw = bound.raw();
        // SAFETY: a transmit ring's entries are descriptors; the mapping lives in `owner`, dropped
        // last; nobody else has the ring.
        let ring = unsafe { bound.maps.ring(RingKind::Transmit, config.transmit_ring) };
        let ring = ring.map_err(refuse)?;
        set_options(raw, interface, queue, &SocketConfig { busy_poll: None, ..*config })?;
        Ok(Self {
            tx: Producer::new(ring),
            receiving: None,
            link: LinkState::Up,
            kicks_max: kicks_max(config),
            polling: Polling::Off,
            fd: raw,
            umem: self.umem.clone(),
            monitor: monitor(raw, interface, queue, self.is_zero_copy()),
            owner: Some(bound),
            lease: Arc::clone(&self.lease),
        })
    }
}

/// Makes a socket of one that a process before has bound, and goes on where its rings are. One that only
/// transmits is `beside` the one that receives from its queue.
pub(crate) fn adopt(
    (interface, umem): (&str, &Umem),
    record: &SocketRecord,
    fd: OwnedFd,
    config: &SocketConfig,
    place: Option<&Arc<Place>>,
    beside: Option<&Socket>,
) -> Result<Socket, Error> {
    let queue = record.queue;
    let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
    let each = place.map_or(u32::MAX, |place| place.each());
    let config = &SocketConfig { idle_frames: config.idle_frames.min(each), ..*config };
    let bound = |rings: &[_]| {
        let maps = SocketMaps::map(fd.as_raw_fd(), rings).map_err(refuse)?;
        Ok::<_, Error>(Bound { maps, fd: Arc::new(fd) })
    };
    if let Some(beside) = beside {
        let rings = [(RingKind::Transmit, config.transmit_ring)];
        return beside.transmit_only(config, bound(&rings)?);
    }
    let (umem, place) = (umem.clone(), place.cloned());
    let rings = all_rings(&umem, config);
    let lease = Lease { umem, number: record.number, zero_copy: false, _place: place };
    let mut socket = Socket::with(lease, (interface, queue), config, bound(&rings)?)?;
    if let Some(receiving) = &mut socket.receiving
        && let Role::Receives { posted, wanted, discarding, .. } = record.role
    {
        (receiving.posted, receiving.discarding) = (posted, discarding);
        receiving.wanted = wanted.min(receiving.fill_frames);
    }
    Ok(socket)
}

/// Every ring of a socket that receives.
fn all_rings(umem: &Umem, config: &SocketConfig) -> [(RingKind, u32); 4] {
    [
        (RingKind::Receive, config.receive_ring),
        (RingKind::Transmit, config.transmit_ring),
        (RingKind::Fill, umem.config().fill_ring),
        (RingKind::Completion, umem.config().completion_ring),
    ]
}

fn monitor(fd: RawFd, interface: &str, queue: u32, zero_copy: bool) -> SocketMonitor {
    SocketMonitor { interface: interface.into(), queue, zero_copy, monitored: Monitored::new(fd) }
}

/// Enough calls for a full transmit ring, and one to see that it is empty, on any kernel.
fn kicks_max(config: &SocketConfig) -> u32 {
    config.transmit_ring / KICK_DESCRIPTORS + 1
}

fn check(umem: &Umem, config: &SocketConfig) -> Result<(), Error> {
    check_ring("receive_ring", config.receive_ring)?;
    check_ring("transmit_ring", config.transmit_ring)?;
    let completion = umem.config().completion_ring;
    if config.transmit_ring > completion {
        return Err(Error::Setting {
            setting: "transmit_ring",
            value: config.transmit_ring.into(),
            reason: "it exceeds the packet memory's completion_ring",
        });
    }
    Ok(())
}

impl Bound {
    /// With a registration of the region and all rings, and to be bound yet.
    fn registered(umem: &Umem, config: &SocketConfig) -> io::Result<Self> {
        Self::with_rings(open_registered(umem)?, &all_rings(umem, config))
    }

    fn with_rings(fd: OwnedFd, rings: &[(RingKind, u32)]) -> io::Result<Self> {
        let maps = make_rings(fd.as_raw_fd(), rings)?;
        Ok(Self { maps, fd: Arc::new(fd) })
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Binds a socket with the registration of another.
fn bind_beside(with: RawFd, to: (u32, u32), rings: &[(RingKind, u32)]) -> io::Result<Bound> {
    let bound = Bound::with_rings(open()?, rings)?;
    when_free(|| bind_shared(bound.raw(), to, with))?;
    Ok(bound)
}

/// Binds in the large region's mode, anchoring the region first if this is its first socket.
fn bind_in_mode(
    umem: &Umem,
    (interface, ifindex, queue): (&str, u32, u32),
    config: &SocketConfig,
) -> Result<Bound, Error> {
    let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
    let Some(mut anchor) = umem.anchor() else {
        let reason = "a socket in a region of pods needs a place there";
        return Err(Error::Setting { setting: "region", value: umem.region().into(), reason });
    };
    let (to, rings) = ((ifindex, queue), all_rings(umem, config));
    let first = match &mut *anchor {
        Anchor::Tap { socket, .. } => {
            return bind_beside(socket.as_raw_fd(), to, &rings).map_err(refuse);
        }
        Anchor::FirstSocket(first) => match first.upgrade() {
            Some(first) => return bind_beside(first.as_raw_fd(), to, &rings).map_err(refuse),
            None => None,
        },
        Anchor::Unbound(registered) => registered.take(),
    };
    *anchor = Anchor::Unbound(None);
    let first = first.map_or_else(|| open_registered(umem), Ok);
    let first = first.and_then(|fd| Bound::with_rings(fd, &rings)).map_err(refuse)?;
    let bind = |to, zero_copy| when_free(|| bind_registered(umem, first.raw(), to, zero_copy));
    if umem.config().copy_mode != CopyMode::Copy {
        match bind(to, true).map_err(refuse) {
            Ok(()) => {
                *anchor = Anchor::FirstSocket(Arc::downgrade(&first.fd));
                return Ok(first);
            }
            Err(error) if umem.config().copy_mode == CopyMode::ZeroCopy => return Err(error),
            Err(error) if error.errno() == Some(libc::EBUSY) => return Err(error),
            Err(error) => tracing::info!(interface, queue, %error, "copy mode instead"),
        }
    }
    let bytes = u64::from(umem.config().frames) * u64::from(umem.config().chunk_bytes);
    let cannot = |source| Error::Memory { bytes, source };
    let (device, name) = make_tap().map_err(cannot)?;
    let tap = interface_index(&name)?;
    bind((tap, 0), false).map_err(|source| Error::Bind {
        interface: name.into(),
        queue: 0,
        source,
    })?;
    let Bound { maps, fd } = first;
    drop(maps);
    let socket = Arc::into_inner(fd).ok_or_else(|| cannot(io::Error::other("it is shared")))?;
    let bound = bind_beside(socket.as_raw_fd(), to, &rings).map_err(refuse);
    *anchor = Anchor::Tap { socket, device };
    bound
}

/// Tries until a queue is free that its last socket is still being taken from.
fn when_free<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match bind() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY)
                    && started.elapsed() <= BUSY_PATIENCE =>
            {
                std::thread::sleep(BUSY_PAUSE);
            }
            bound => return bound,
        }
    }
}

fn set_options(fd: RawFd, interface: &str, queue: u32, config: &SocketConfig) -> Result<(), Error> {
    let set = |option, level, number, value| {
        set_option(fd, level, number, value).map_err(|source| Error::SocketOption {
            interface: interface.into(),
            queue,
            option,
            source,
        })
    };
    // The kernel wants at least its own 32, and no more than the ring has.
    let budget = config.transmit_budget.map(|budget| budget.min(config.transmit_ring));
    if let Some(budget) = budget.filter(|budget| *budget > KICK_DESCRIPTORS) {
        match set("XDP_MAX_TX_SKB_BUDGET", libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget) {
            // Kernels before 6.17 send 32 descriptors a call.
            Err(error) if error.errno() == Some(libc::ENOPROTOOPT) => {}
            set => set?,
        }
    }
    if let Some(BusyPoll { micros, budget }) = config.busy_poll {
        set("SO_PREFER_BUSY_POLL", libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
        set("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL, micros)?;
        set("SO_BUSY_POLL_BUDGET", libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, budget)?;
    }
    Ok(())
}

pub(crate) fn set_option(
    fd: RawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: u32,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(0);
    // SAFETY: the value lives through the call and has the length that is passed.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
