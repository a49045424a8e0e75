//! What sockets and packet memory report, as plain numbers.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::socket::get_option;

/// Where the frames of a region are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// All there are.
    pub total: u32,
    /// In pools and the depot.
    pub free: u32,
    /// Received, waiting, or lost.
    pub held: u32,
    /// With sockets: to be filled, or to be transmitted.
    pub in_sockets: u32,
}

impl Census {
    /// Of both regions together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            free: self.free + other.free,
            held: self.held + other.held,
            in_sockets: self.in_sockets + other.in_sockets,
        }
    }
}

macro_rules! socket_counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What one socket did, counted by its worker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct SocketStatistics {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// The same, while it is counted: one writer, any readers.
        #[derive(Debug, Default)]
        pub(crate) struct SocketCounters {
            $(pub $name: AtomicU64,)+
        }

        impl SocketCounters {
            fn read(&self) -> SocketStatistics {
                SocketStatistics { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

socket_counters! {
    /// Packets received.
    received_packets,
    /// Packets put on the transmit ring.
    transmitted_packets,
    /// Chunks whose transmission the kernel reported as over (not: as delivered).
    completed_chunks,
    /// System calls to start transmission.
    transmit_kicks,
    /// Of those, refused for a full queue below or a lack of memory.
    transmit_refusals,
    /// Packets given back because the transmit ring was full.
    transmit_ring_full,
    /// Times the fill ring could not be kept full, for want of free frames.
    fill_starved,
    /// Packets dropped for having more chunks than a frame may.
    too_many_chunks,
    /// Descriptors from the kernel that name memory it did not have: always 0.
    bad_descriptors,
}

/// Adds to a counter that this thread alone writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// What the kernel counted on a socket (`XDP_STATISTICS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelStatistics {
    /// Packets dropped for want of a frame (those counted as an empty fill ring), or for being
    /// larger than a chunk on a socket that takes one only.
    pub rx_dropped: u64,
    /// Fill ring entries that name no chunk: always 0.
    pub rx_invalid_descs: u64,
    /// Transmit ring entries that name no chunk: always 0.
    pub tx_invalid_descs: u64,
    /// Packets dropped because the receive ring was full: the worker is too slow.
    pub rx_ring_full: u64,
    /// Times a packet came and the fill ring was empty.
    pub rx_fill_ring_empty: u64,
    /// Times the kernel looked at an empty transmit ring.
    pub tx_ring_empty: u64,
}

impl KernelStatistics {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_invalid_descs: self.rx_invalid_descs + other.rx_invalid_descs,
            tx_invalid_descs: self.tx_invalid_descs + other.tx_invalid_descs,
            rx_ring_full: self.rx_ring_full + other.rx_ring_full,
            rx_fill_ring_empty: self.rx_fill_ring_empty + other.rx_fill_ring_empty,
            tx_ring_empty: self.tx_ring_empty + other.tx_ring_empty,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Monitored {
    pub counters: SocketCounters,
    /// `None` once the socket is closing: its number may then be another file's.
    fd: Mutex<Option<RawFd>>,
}

impl Monitored {
    pub(crate) fn new(fd: RawFd) -> Arc<Self> {
        Arc::new(Self { counters: SocketCounters::default(), fd: Mutex::new(Some(fd)) })
    }

    pub(crate) fn close(&self) {
        *self.fd.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads a socket's statistics from any thread, while its worker uses it and after.
#[derive(Debug, Clone)]
pub struct SocketMonitor {
    /// Kernel name of the interface.
    pub interface: Box<str>,
    /// Its queue.
    pub queue: u32,
    /// Whether the kernel moves packets without copying.
    pub zero_copy: bool,
    pub(crate) monitored: Arc<Monitored>,
}

impl SocketMonitor {
    /// What the worker counted.
    #[must_use]
    pub fn statistics(&self) -> SocketStatistics {
        self.monitored.counters.read()
    }

    /// What the kernel counted; `None` once the socket is closed.
    ///
    /// # Errors
    /// The kernel's, when it does not answer.
    pub fn kernel_statistics(&self) -> io::Result<Option<KernelStatistics>> {
        let fd = self.monitored.fd.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fd) = *fd else { return Ok(None) };
        let counted: libc::xdp_statistics = get_option(fd, libc::XDP_STATISTICS)?;
        Ok(Some(KernelStatistics {
            rx_dropped: counted.rx_dropped,
            rx_invalid_descs: counted.rx_invalid_descs,
            tx_invalid_descs: counted.tx_invalid_descs,
            rx_ring_full: counted.rx_ring_full,
            rx_fill_ring_empty: counted.rx_fill_ring_empty_descs,
            tx_ring_empty: counted.tx_ring_empty_descs,
        }))
    }
}
