//! Making sockets. In the large region xsk-rs binds them, in the region's mode; in a region of pods
//! they are bound here ([`crate::open`]), in copy mode.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig as XskConfig};
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use crate::anchor::{Anchor, make_tap};
use crate::error::Error;
use crate::loader::interface_index;
use crate::mapping::Mapping;
use crate::open::{open, open_transmit_only};
use crate::pool::FramePool;
use crate::regions::Place;
use crate::ring::{Consumer, Producer};
use crate::ring_map::{RingKind, SocketMaps};
use crate::socket::{LinkState, Polling, Receiving, Socket, get_option, has_napi};
use crate::statistics::{Monitored, SocketMonitor};
use crate::umem::{CopyMode, Umem};

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

/// xsk-rs's side of a socket: kept for what its drop does.
pub(crate) struct Rings {
    rx: RxQueue,
    _tx: TxQueue,
    _shared: Option<(FillQueue, CompQueue)>,
}

/// Whatever closes the socket when dropped.
pub(crate) enum Owner {
    Bound { _rings: Rings, _mapped: Vec<Mapping> },
    Own { _mapped: Vec<Mapping>, _fd: OwnedFd },
}

/// A socket that is bound, as the kernel has it.
struct Bound {
    fd: RawFd,
    maps: SocketMaps,
    /// Keeps it open, beside its mappings.
    holds: Holds,
}

enum Holds {
    Rings(Rings),
    Own(OwnedFd),
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
        interface_index(interface)?;
        check(umem, config)?;
        let rings = bind_in_mode(umem, interface, queue, config)?;
        let fd = rings.rx.fd().as_raw_fd();
        let maps = SocketMaps::find(fd, &all_rings(umem, config))
            .map_err(|source| Error::Bind { interface: interface.into(), queue, source })?;
        let bound = Bound { fd, maps, holds: Holds::Rings(rings) };
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
        let sibling = sibling.map(|socket| socket.fd);
        let rings = all_rings(umem, config);
        let (fd, maps) =
            when_free(|| open(umem, (ifindex, queue), &rings, sibling)).map_err(refuse)?;
        let bound = Bound { fd: fd.as_raw_fd(), maps, holds: Holds::Own(fd) };
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
        Bound { fd, maps, holds }: Bound,
    ) -> Result<Self, Error> {
        let region = umem.config();
        let refuse = |source| Error::Bind { interface: interface.into(), queue, source };
        let options: libc::xdp_options = get_option(fd, libc::XDP_OPTIONS).map_err(refuse)?;
        let zero_copy = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        let number = umem.take_socket_number().ok_or(Error::OutOfRange {
            what: "number of sockets of one packet memory",
            value: crate::umem::SOCKETS_MAX as u64 + 1,
            max: crate::umem::SOCKETS_MAX as u64,
        })?;
        let lease = Lease { umem: umem.clone(), number, zero_copy, _place: place.cloned() };
        let lease = Arc::new(lease);
        // SAFETY: the entry types are the kernel's for each ring; the mappings live in `owner`,
        // which `Socket` drops last; xsk-rs's own ring ends, if it has some, are never used.
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
            partial: None,
            discarding: false,
        };
        let monitor = monitor(fd, interface, queue, zero_copy);
        let mapped = maps.into_mapped();
        let owner = Some(match holds {
            Holds::Rings(rings) => Owner::Bound { _rings: rings, _mapped: mapped },
            Holds::Own(fd) => Owner::Own { _mapped: mapped, _fd: fd },
        });
        let mut socket = Self {
            tx: Producer::new(tx),
            receiving: Some(receiving),
            link: LinkState::Up,
            kicks_max: kicks_max(config),
            polling: Polling::Off,
            fd,
            umem: umem.clone(),
            monitor,
            owner,
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
        if let Some(receiving) = &mut socket.receiving {
            receiving.wanted = receiving.least(umem);
        }
        socket.fill(&mut FramePool::new(umem));
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
        let (fd, mapped, ring) =
            open_transmit_only(self.fd, ifindex, queue, config.transmit_ring).map_err(refuse)?;
        let raw = fd.as_raw_fd();
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
            owner: Some(Owner::Own { _mapped: mapped, _fd: fd }),
            lease: Arc::clone(&self.lease),
        })
    }
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

fn xsk_config(config: &SocketConfig, flags: BindFlags) -> Result<XskConfig, Error> {
    let size = |setting, value: u32| {
        let reason = "use a power of two";
        QueueSize::new(value).map_err(|_| Error::Setting { setting, value: value.into(), reason })
    };
    Ok(XskConfig::builder()
        .rx_queue_size(size("receive_ring", config.receive_ring)?)
        .tx_queue_size(size("transmit_ring", config.transmit_ring)?)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build())
}

/// Binds in the region's mode, anchoring the region first if this is its first socket.
fn bind_in_mode(
    umem: &Umem,
    interface: &str,
    queue: u32,
    config: &SocketConfig,
) -> Result<Rings, Error> {
    let mut flags = BindFlags::XDP_USE_NEED_WAKEUP;
    if umem.config().multi_buffer {
        flags |= BindFlags::XDP_USE_SG;
    }
    let Some((region, mut anchor)) = umem.whole() else {
        let reason = "a socket in a region of pods needs a place there";
        return Err(Error::Setting { setting: "region", value: umem.region().into(), reason });
    };
    if matches!(*anchor, Anchor::None) {
        if umem.config().copy_mode != CopyMode::Copy {
            let wanted = xsk_config(config, flags | BindFlags::XDP_ZEROCOPY)?;
            match bind_when_free(region, interface, queue, wanted) {
                Ok(rings) => {
                    *anchor = Anchor::FirstSocket;
                    return Ok(rings);
                }
                Err(error) if umem.config().copy_mode == CopyMode::ZeroCopy => return Err(error),
                Err(error) if error.errno() == Some(libc::EBUSY) => return Err(error),
                Err(error) => tracing::info!(interface, queue, %error, "copy mode instead"),
            }
        }
        let bytes = u64::from(umem.config().frames) * u64::from(umem.config().chunk_bytes);
        let (device, name) = make_tap().map_err(|source| Error::Memory { bytes, source })?;
        let wanted = xsk_config(config, flags | BindFlags::XDP_COPY)?;
        let socket = bind_when_free(region, &name, 0, wanted)?;
        *anchor = Anchor::Tap { _socket: socket, _device: device };
    }
    // Flags are the anchor's; the kernel refuses any with XDP_SHARED_UMEM.
    bind_when_free(region, interface, queue, xsk_config(config, BindFlags::empty())?)
}

fn bind_when_free(
    region: &xsk_rs::Umem,
    interface: &str,
    queue: u32,
    config: XskConfig,
) -> Result<Rings, Error> {
    let name: Interface =
        interface.parse().map_err(|_| Error::NoInterface { interface: interface.into() })?;
    when_free(|| {
        // SAFETY: no program is loaded by xsk-rs (INHIBIT_PROG_LOAD), which is what it asks for.
        match unsafe { xsk_rs::Socket::new(config, region, &name, queue) } {
            Ok((tx, rx, shared @ Some(_))) => Ok(Ok(Rings { rx, _tx: tx, _shared: shared })),
            // This process has the queue already, on this region.
            Ok((_, _, None)) => Ok(Err(io::Error::from_raw_os_error(libc::EBUSY))),
            Err(error) => Err(crate::error::io_error(&error)),
        }
    })
    .and_then(|bound| bound)
    .map_err(|source| Error::Bind { interface: interface.into(), queue, source })
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
