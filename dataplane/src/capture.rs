//! Copies of packets for people, since tcpdump cannot see a redirected frame.

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;

use crate::DropReason;
use crate::counters::Level;
use crate::port::PortId;
use crate::time::Nanos;

/// Bytes kept of each packet.
pub const SNAP_BYTES: usize = 256;
/// Packets that may wait for the reader.
pub const CAPTURE_PACKETS_MAX: usize = 2048;

/// Where in its way a packet was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapturePoint {
    /// As received, before anything was decided.
    Received,
    /// As transmitted, after every rewrite.
    Transmitted,
    /// As dropped.
    Dropped(DropReason),
}

/// Which packets to copy. Every field narrows; the default copies all, as received and as sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Only this port (entering for received and dropped, leaving for transmitted).
    pub port: Option<PortId>,
    /// Only packets received (`Some(true)`) or transmitted (`Some(false)`).
    pub received: Option<bool>,
    /// Only packets dropped, for this reason.
    pub reason: Option<DropReason>,
    /// Only packets dropped, for whatever reason.
    pub dropped_only: bool,
}

impl CaptureFilter {
    /// Whether to copy a packet at `point` on `port`.
    #[must_use]
    pub fn matches(&self, point: CapturePoint, port: PortId) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        match point {
            CapturePoint::Dropped(reason) => {
                self.received.is_none() && self.reason.is_none_or(|own| own == reason)
            }
            CapturePoint::Received => !self.drops_only() && self.received != Some(false),
            CapturePoint::Transmitted => !self.drops_only() && self.received != Some(true),
        }
    }

    fn drops_only(&self) -> bool {
        self.dropped_only || self.reason.is_some()
    }
}

/// One copy.
#[derive(Debug, Clone)]
pub struct CapturedPacket {
    /// When, in the worker's time.
    pub time: Nanos,
    /// On which port.
    pub port: PortId,
    /// Where in its way.
    pub point: CapturePoint,
    /// Length of the packet before cutting, in bytes.
    pub len: usize,
    /// Its first bytes.
    pub bytes: ArrayVec<u8, SNAP_BYTES>,
}

/// Copies on their way to the reader.
#[derive(Debug)]
pub struct CaptureRing {
    /// The copies, oldest first.
    pub packets: ArrayQueue<CapturedPacket>,
    /// How full `packets` was at most.
    pub level: Level,
}

impl Default for CaptureRing {
    fn default() -> Self {
        Self { packets: ArrayQueue::new(CAPTURE_PACKETS_MAX), level: Level::default() }
    }
}

impl CaptureRing {
    /// Copies a packet; `false` when the reader is too slow and the copy was lost.
    #[must_use]
    pub fn copy(
        &self,
        time: Nanos,
        port: PortId,
        point: CapturePoint,
        len: usize,
        bytes: &[u8],
    ) -> bool {
        let kept = &bytes[..bytes.len().min(SNAP_BYTES)];
        let bytes = kept.iter().copied().collect();
        let copied = self.packets.push(CapturedPacket { time, port, point, len, bytes }).is_ok();
        self.level.note(self.packets.len() as u64);
        copied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_by_reason_copies_only_those_drops() {
        let filter = CaptureFilter { reason: Some(DropReason::Spoofed), ..Default::default() };
        assert!(filter.matches(CapturePoint::Dropped(DropReason::Spoofed), PortId(1)));
        assert!(!filter.matches(CapturePoint::Dropped(DropReason::NoRoute), PortId(1)));
        assert!(!filter.matches(CapturePoint::Received, PortId(1)));
    }

    #[test]
    fn filter_by_direction_leaves_drops_out() {
        let filter = CaptureFilter { received: Some(true), ..Default::default() };
        assert!(filter.matches(CapturePoint::Received, PortId(1)));
        assert!(!filter.matches(CapturePoint::Transmitted, PortId(1)));
        assert!(!filter.matches(CapturePoint::Dropped(DropReason::NoRoute), PortId(1)));
    }
}
