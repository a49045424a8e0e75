//! What the XDP program did, counted per CPU in the kernel and summed here.

use aya::maps::{MapData, PerCpuArray};

use crate::error::Error;
use crate::limits;
use crate::rules::map_error;

/// Frames by what the XDP program did with them, since it was loaded, all interfaces together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedirectCounters {
    /// Handed to a socket. A full receive ring shows in the socket's own statistics.
    pub redirected: u64,
    /// Not ours: left to the kernel.
    pub passed: u64,
    /// Dropped: ours, and no socket serves the queue.
    pub no_socket: u64,
    /// Dropped: ours, and the queue's worker does not tick.
    pub stalled: u64,
    /// Dropped: from a pod or the host's stack, and neither IP nor ARP.
    pub not_ip: u64,
    /// The frame ends before the headers it announces. Dropped when even the Ethernet header is
    /// short, otherwise left to the kernel.
    pub malformed: u64,
    /// Left to the kernel: the interface is in no table.
    pub unknown_interface: u64,
    /// Left to the kernel without a live worker, as configured.
    pub passed_on_stall: u64,
    /// Dropped: ours, and behind a priority tag (802.1Q, VLAN 0) on an uplink.
    pub tagged: u64,
    /// Dropped: ours, begins a TCP connection, and the queue's worker is late: it has not ticked for an
    /// eighth of the stall limit.
    pub late: u64,
}

impl RedirectCounters {
    pub(crate) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Self, Error> {
        let sum = |counter: u32| match map.get(&counter, 0) {
            Ok(values) => Ok(values.iter().sum::<u64>()),
            Err(error) => Err(map_error("counters", &error)),
        };
        Ok(Self {
            redirected: sum(limits::COUNTER_REDIRECTED)?,
            passed: sum(limits::COUNTER_PASSED)?,
            no_socket: sum(limits::COUNTER_NO_SOCKET)?,
            stalled: sum(limits::COUNTER_STALLED)?,
            not_ip: sum(limits::COUNTER_NOT_IP)?,
            malformed: sum(limits::COUNTER_MALFORMED)?,
            unknown_interface: sum(limits::COUNTER_UNKNOWN_INTERFACE)?,
            passed_on_stall: sum(limits::COUNTER_PASSED_ON_STALL)?,
            tagged: sum(limits::COUNTER_TAGGED)?,
            late: sum(limits::COUNTER_LATE)?,
        })
    }
}
