//! Packets that wait for their time, in a queue for each limit.
//!
//! Carousel has a timing wheel; here each limit's packets stay in order of arrival in a list of their
//! own, and a heap knows whose first packet leaves next. So packets of a flow cannot overtake each
//! other, whatever becomes of the rate meanwhile; a limit that goes lets its own packets go, without
//! a search; and a packet's time need be neither rounded nor within a wheel's turn. The heap has one
//! entry per limit that has packets here, of which there are few.
//!
//! What waits occupies packet memory that is needed to receive. So it is bounded by frames of it, and
//! no limit may have more than are still free (Choudhury and Hahne's dynamic threshold): one alone
//! gets half of them, and a pod that sends as fast as it can leaves room for the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::over_limit;
use crate::DropReason;
use crate::buffer::Buffer;
use crate::counters::PORTS_MAX;
use crate::policy::Direction;
use crate::port::PortId;
use crate::time::Nanos;
use crate::worker::Received;

/// Frames of packet memory that may wait for their time, per worker.
pub const PACED_MAX: usize = 1024;
/// Queues: one for each direction of each port.
pub const QUEUES_MAX: usize = 2 * PORTS_MAX;
/// What one frame holds of a packet at least: 2,048 bytes less the headroom. Where frames are
/// larger, more is counted than is taken.
const FRAME_BYTES: usize = 1792;

/// No place.
const NONE: u16 = u16::MAX;
const _: () = assert!(PACED_MAX < NONE as usize);
const _: () = assert!(QUEUES_MAX < NONE as usize);

/// A limit's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId(u16);

impl QueueId {
    /// `None` beyond [`PORTS_MAX`].
    #[inline]
    #[must_use]
    pub fn of(port: PortId, direction: Direction) -> Option<Self> {
        let direction = match direction {
            Direction::Ingress => 0,
            Direction::Egress => 1,
        };
        (usize::from(port.0) < PORTS_MAX).then_some(Self(port.0 * 2 + direction))
    }

    /// The port whose limit it is.
    #[must_use]
    pub fn port(self) -> PortId {
        PortId(self.0 / 2)
    }

    /// Which of its two limits it is.
    #[must_use]
    pub fn direction(self) -> Direction {
        if self.0.is_multiple_of(2) { Direction::Ingress } else { Direction::Egress }
    }
}

/// A packet that waits.
#[derive(Debug)]
pub struct Waiting<B> {
    /// It, and where it came in.
    pub packet: Received<B>,
    /// Where it is to go out.
    pub out: PortId,
    /// When.
    pub departure: Nanos,
}

struct Place<B> {
    waiting: Option<Waiting<B>>,
    /// The next of the same queue, or the next free one.
    next: u16,
}

#[derive(Clone, Copy)]
struct Queue {
    first: u16,
    last: u16,
    frames: u16,
}

/// Everything that waits at one worker. Its memory is taken at the start.
pub struct Paced<B> {
    places: Box<[Place<B>]>,
    free: u16,
    queues: Box<[Queue]>,
    /// Of every queue that is not empty, when its first packet leaves.
    due: BinaryHeap<Reverse<(Nanos, QueueId)>>,
    packets: usize,
    frames: usize,
    frames_max: usize,
}

/// Frames that a packet takes.
fn frames_of(bytes: usize) -> usize {
    bytes.div_ceil(FRAME_BYTES).max(1)
}

impl<B: Buffer> Paced<B> {
    /// Room for `frames_max` frames, at most [`PACED_MAX`].
    #[must_use]
    pub fn new(frames_max: usize) -> Self {
        let frames_max = frames_max.min(PACED_MAX);
        let numbered = (1u16..).take(frames_max);
        let places: Box<[Place<B>]> = numbered.map(|next| Place { waiting: None, next }).collect();
        let queues = vec![Queue { first: NONE, last: NONE, frames: 0 }; QUEUES_MAX];
        Self {
            places,
            free: 0,
            queues: queues.into(),
            due: BinaryHeap::with_capacity(QUEUES_MAX),
            packets: 0,
            frames: 0,
            frames_max,
        }
    }

    /// Whether nothing waits.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether packets of this limit wait: what comes after them must not pass them.
    #[inline]
    #[must_use]
    pub fn has_waiting(&self, queue: QueueId) -> bool {
        self.queues[usize::from(queue.0)].first != NONE
    }

    /// Packets that wait.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Frames of packet memory that they take.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// When the next packet leaves.
    #[inline]
    #[must_use]
    pub fn next_departure(&self) -> Option<Nanos> {
        self.due.peek().map(|Reverse((departure, _))| *departure)
    }

    /// Whether a packet of `bytes` may wait for this limit. To be asked before it is charged: what is
    /// dropped uses nothing of the rate.
    ///
    /// # Errors
    /// [`DropReason::PacingFull`] when all memory is taken, the direction's reason when the limit has
    /// its part of it.
    #[inline]
    pub fn check_room(&self, queue: QueueId, bytes: usize) -> Result<(), DropReason> {
        let (frames, free) = (frames_of(bytes), self.frames_max.saturating_sub(self.frames));
        if frames > free {
            return Err(DropReason::PacingFull);
        }
        let own = usize::from(self.queues[usize::from(queue.0)].frames);
        if own + frames > free { Err(over_limit(queue.direction())) } else { Ok(()) }
    }

    /// Lets a packet wait behind those of its limit.
    ///
    /// # Errors
    /// As [`Self::check_room`], with the packet.
    pub fn keep(
        &mut self,
        queue: QueueId,
        waiting: Waiting<B>,
    ) -> Result<(), (DropReason, Received<B>)> {
        let bytes = waiting.packet.buffer.len();
        if let Err(reason) = self.check_room(queue, bytes) {
            return Err((reason, waiting.packet));
        }
        let number = self.free;
        // There are as many places as frames, and each packet takes one at least.
        let Some(place) = self.places.get_mut(usize::from(number)) else {
            return Err((DropReason::PacingFull, waiting.packet));
        };
        let departure = waiting.departure;
        self.free = std::mem::replace(&mut place.next, NONE);
        place.waiting = Some(waiting);
        self.packets += 1;
        self.frames += frames_of(bytes);
        let own = &mut self.queues[usize::from(queue.0)];
        own.frames = own.frames.saturating_add(u16::try_from(frames_of(bytes)).unwrap_or(u16::MAX));
        let last = std::mem::replace(&mut own.last, number);
        if last == NONE {
            own.first = number;
            self.due.push(Reverse((departure, queue)));
        } else {
            self.places[usize::from(last)].next = number;
        }
        Ok(())
    }

    /// The next packet whose time has come.
    #[inline]
    pub fn take_due(&mut self, now: Nanos) -> Option<(Direction, Waiting<B>)> {
        let Reverse((departure, queue)) = *self.due.peek()?;
        if departure > now {
            return None;
        }
        self.due.pop();
        let waiting = self.unlink(queue)?;
        if let Some(next) = self.first_of(queue) {
            self.due.push(Reverse((next, queue)));
        }
        Some((queue.direction(), waiting))
    }

    /// A queue that has packets and for which `holds` is not true.
    pub fn find_without(&self, holds: impl Fn(QueueId) -> bool) -> Option<QueueId> {
        self.due.iter().map(|Reverse((_, queue))| *queue).find(|queue| !holds(*queue))
    }

    /// The first packet of a queue, whether or not its time has come. To be called until there is
    /// none.
    pub fn take_of(&mut self, queue: QueueId) -> Option<Waiting<B>> {
        let waiting = self.unlink(queue);
        if !self.has_waiting(queue) {
            self.due.retain(|Reverse((_, other))| *other != queue);
        }
        waiting
    }

    fn first_of(&self, queue: QueueId) -> Option<Nanos> {
        let first = self.queues[usize::from(queue.0)].first;
        let place = self.places.get(usize::from(first))?;
        place.waiting.as_ref().map(|waiting| waiting.departure)
    }

    fn unlink(&mut self, queue: QueueId) -> Option<Waiting<B>> {
        let own = &mut self.queues[usize::from(queue.0)];
        let number = own.first;
        let place = self.places.get_mut(usize::from(number))?;
        let waiting = place.waiting.take()?;
        own.first = std::mem::replace(&mut place.next, self.free);
        if own.first == NONE {
            own.last = NONE;
        }
        self.free = number;
        let frames = frames_of(waiting.packet.buffer.len());
        own.frames = own.frames.saturating_sub(u16::try_from(frames).unwrap_or(u16::MAX));
        self.packets -= 1;
        self.frames = self.frames.saturating_sub(frames);
        Some(waiting)
    }
}
