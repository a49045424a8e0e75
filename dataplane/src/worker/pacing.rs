//! What a worker does about bandwidth limits: packets go at once, wait for their time, or end.

use super::{BURST, Received, Worker};
use crate::buffer::Buffer;
use crate::pacing::over_limit;
use crate::pacing::queue::{QUEUES_MAX, QueueId, Waiting};
use crate::policy::Direction;
use crate::port::{PortId, Ports};
use crate::time::Nanos;
use crate::{DropReason, tables::Tables};

/// Packets whose time has come that leave in one tick, so that they do not hold up reception.
const RELEASED: usize = 4 * BURST;

/// What becomes of a packet at one limit.
enum Pace {
    Now,
    At(QueueId, Nanos),
    Never(DropReason),
}

impl<P: Ports> Worker<P> {
    /// When the next packet that waits for its time leaves: whoever sleeps must be awake by then.
    #[must_use]
    pub fn next_departure(&self) -> Option<Nanos> {
        self.paced.next_departure()
    }

    /// Sends a packet from one port to another, as their limits let it.
    #[inline]
    pub(super) fn forward(&mut self, now: Nanos, packet: Received<P::Buffer>, out: PortId) {
        let limits = self.pipeline.tables().limits.as_deref();
        if limits.is_some_and(|limits| limits.concern(packet.port, out)) {
            return self.forward_limited(now, packet, out);
        }
        self.transmit(now, out, packet.buffer);
    }

    /// Sends the worker's own answer back to where its offender came from, as that port's limit
    /// lets it.
    pub(super) fn answer(&mut self, now: Nanos, packet: Received<P::Buffer>) {
        let out = packet.port;
        self.enter(now, packet, out);
    }

    #[inline(never)]
    fn forward_limited(&mut self, now: Nanos, packet: Received<P::Buffer>, out: PortId) {
        if let Some(packet) = self.admit(now, packet, out, Direction::Egress) {
            self.enter(now, packet, out);
        }
    }

    /// The second half of the way: to the pod.
    fn enter(&mut self, now: Nanos, packet: Received<P::Buffer>, out: PortId) {
        if let Some(packet) = self.admit(now, packet, out, Direction::Ingress) {
            self.transmit(now, out, packet.buffer);
        }
    }

    /// Gives the packet back if it may pass one limit now; keeps it or drops it otherwise.
    fn admit(
        &mut self,
        now: Nanos,
        packet: Received<P::Buffer>,
        out: PortId,
        direction: Direction,
    ) -> Option<Received<P::Buffer>> {
        let port = match direction {
            Direction::Ingress => out,
            Direction::Egress => packet.port,
        };
        let bytes = packet.buffer.len();
        let refused = match self.pace(now, port, direction, bytes) {
            Pace::Now => return Some(packet),
            Pace::Never(reason) => (reason, packet),
            Pace::At(queue, departure) => {
                match self.paced.keep(queue, Waiting { packet, out, departure }) {
                    Ok(()) => {
                        self.count_paced(port, direction, bytes);
                        return None;
                    }
                    Err(refused) => refused,
                }
            }
        };
        if let Some(port) = self.counters.port(port) {
            port.limit(direction).dropped_packets.add(1);
        }
        let (reason, packet) = refused;
        self.discard(now, packet, reason);
        None
    }

    #[inline]
    fn pace(&self, now: Nanos, port: PortId, direction: Direction, bytes: usize) -> Pace {
        let limits = self.pipeline.tables().limits.as_deref();
        let Some(limit) = limits.and_then(|limits| limits.get(port, direction)) else {
            return Pace::Now;
        };
        let Some(queue) = QueueId::of(port, direction) else { return Pace::Now };
        let Some(outlook) = limit.outlook(now) else {
            return Pace::Never(over_limit(direction));
        };
        let others_wait = self.paced.has_waiting(queue);
        if (others_wait || outlook > now)
            && let Err(reason) = self.paced.check_room(queue, bytes)
        {
            return Pace::Never(reason);
        }
        let departure = limit.charge(now, bytes);
        if others_wait || departure > now { Pace::At(queue, departure) } else { Pace::Now }
    }

    fn count_paced(&self, port: PortId, direction: Direction, bytes: usize) {
        self.counters.paced_packets.add(1);
        self.counters.paced_bytes.add(bytes as u64);
        if let Some(port) = self.counters.port(port) {
            port.limit(direction).delayed_packets.add(1);
        }
        self.count_held();
    }

    /// Lets go whose time has come, and after new tables whose limit is gone. Answers how many.
    pub(super) fn release_paced(&mut self, now: Nanos, adopted: bool) -> usize {
        if adopted {
            self.release_unlimited(now);
        }
        let mut released = 0;
        while released < RELEASED {
            let Some((direction, waiting)) = self.paced.take_due(now) else { break };
            released += 1;
            self.release(now, direction, waiting);
        }
        self.end_release();
        released
    }

    /// Packets whose limit is not in force any more go on, in order and before any that comes after
    /// them; those of a port that is gone end.
    #[cold]
    fn release_unlimited(&mut self, now: Nanos) {
        let is_limited = |tables: &Tables, queue: QueueId| {
            let limits = tables.limits.as_deref();
            limits.is_some_and(|limits| limits.get(queue.port(), queue.direction()).is_some())
        };
        // Each round empties a queue; what goes on waits at most in one that has a limit.
        for _ in 0..QUEUES_MAX {
            let tables = self.pipeline.tables();
            let Some(queue) = self.paced.find_without(|queue| is_limited(tables, queue)) else {
                return;
            };
            let is_there = tables.port(queue.port()).is_some();
            while let Some(waiting) = self.paced.take_of(queue) {
                if is_there {
                    self.release(now, queue.direction(), waiting);
                } else {
                    self.discard(now, waiting.packet, DropReason::PortGone);
                }
            }
        }
    }

    fn release(&mut self, now: Nanos, direction: Direction, waiting: Waiting<P::Buffer>) {
        let Waiting { packet, out, .. } = waiting;
        match direction {
            Direction::Egress => self.enter(now, packet, out),
            Direction::Ingress => self.transmit(now, out, packet.buffer),
        }
    }

    /// Counts what [`Self::release`] sent.
    fn end_release(&mut self) {
        let run = std::mem::take(&mut self.sent);
        self.count_sent(run);
        self.count_held();
    }
}
