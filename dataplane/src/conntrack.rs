//! Connection tracking: what a flow has seen, the state that follows, and when it ends.
//!
//! The state of a TCP connection is not stored; it is derived from the flags each direction has
//! shown, so that two workers that see the two directions never disagree and a lost update is
//! repaired by the next packet. So is that of an SCTP association ([`sctp`]).
//!
//! Where flows have a second line ([`details`]), forged packets are told from a connection's own: by
//! sequence windows ([`tcp_window`]) and by verification tags.

pub mod details;
pub mod sctp;
pub mod segment;
mod tags;
pub mod tcp_window;

use crate::address::Protocol;
use crate::connections::Counted;
use crate::direct::Role;
use crate::mss::SegmentLimit;
use crate::tables::Timeouts;
use crate::time::{Nanos, Seconds};

mod one_way;

/// Which way a packet goes along its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowDirection {
    /// As the packet that opened the flow.
    Original,
    /// Back.
    Reply,
}

impl FlowDirection {
    /// The other way.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// What one direction of a flow has shown so far. TCP flags keep their wire positions (RFC 9293,
/// 3.1); any packet at all sets [`Seen::ANY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen(pub u8);

impl Seen {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// Any packet.
    pub const ANY: u8 = 0x80;
    const TCP: u8 = Self::FIN | Self::SYN | Self::RST | Self::ACK;

    /// What a packet with these TCP flags (0 for protocols without) shows.
    #[must_use]
    pub fn of(tcp_flags: u8) -> Self {
        Self((tcp_flags & Self::TCP) | Self::ANY)
    }

    /// Whether any of `flags` was shown.
    #[must_use]
    pub fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    /// The same without `flags`.
    fn without(self, flags: u8) -> Self {
        Self(self.0 & !flags)
    }

    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// TCP: SYN seen, no answer. Others: no reply yet.
    Opening,
    /// TCP: SYN and SYN-ACK seen.
    Answered,
    /// TCP: handshake complete, or both directions seen in mid-stream. Others: both directions seen.
    Established,
    /// TCP: one FIN seen.
    Closing,
    /// TCP: both FINs seen.
    TimeWait,
    /// TCP: reset.
    Closed,
}

impl FlowState {
    /// The word the CLI prints.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
        }
    }

    /// The state that follows from what both directions have shown.
    #[must_use]
    pub fn of(protocol: Protocol, original: Seen, reply: Seen) -> Self {
        if protocol == Protocol::SCTP {
            return sctp::AssociationState::of(original, reply).flow_state();
        }
        if protocol != Protocol::TCP {
            return if reply.has(Seen::ANY) { Self::Established } else { Self::Opening };
        }
        if original.has(Seen::RST) || reply.has(Seen::RST) {
            return Self::Closed;
        }
        match (original.has(Seen::FIN), reply.has(Seen::FIN)) {
            (true, true) => return Self::TimeWait,
            (false, false) => {}
            _ => return Self::Closing,
        }
        if !original.has(Seen::SYN) {
            // Picked up in mid-stream: the handshake was before our time, or never. One side alone
            // proves nothing, and anybody can forge it.
            let both = original.has(Seen::ANY) && reply.has(Seen::ANY);
            return if both { Self::Established } else { Self::Opening };
        }
        match (reply.has(Seen::SYN | Seen::ACK), original.has(Seen::ACK)) {
            (false, _) => Self::Opening,
            (true, false) => Self::Answered,
            (true, true) => Self::Established,
        }
    }

    /// Idle time after which a flow in this state ends, of any protocol but SCTP.
    fn timeout(self, protocol: Protocol, timeouts: &Timeouts) -> Seconds {
        match protocol {
            Protocol::TCP => match self {
                Self::Opening => timeouts.tcp_syn_sent,
                Self::Answered => timeouts.tcp_syn_recv,
                Self::Established => timeouts.tcp_established,
                Self::Closing => timeouts.tcp_fin_wait,
                Self::TimeWait => timeouts.tcp_time_wait,
                Self::Closed => timeouts.tcp_close,
            },
            Protocol::UDP if self == Self::Established => timeouts.udp_stream,
            Protocol::UDP => timeouts.udp,
            Protocol::ICMP | Protocol::ICMPV6 => timeouts.icmp,
            _ => timeouts.generic,
        }
    }
}

/// A flow's protocol, what its directions have shown, and its deadline, in one atomic word.
///
/// Layout, from bit 63: deadline in seconds (32), original [`Seen`] (8), reply [`Seen`] (8),
/// protocol (8), marks (8): directions that spoke after a reset (bits 0 and 1), what it is to this node
/// ([`Role`], bits 2 and 3), whether it is [`Counted`] (bits 4 to 6), denied (bit 7). Of a TCP connection
/// three bits each that are no flag of the original and of the reply [`Seen`] have the largest segment
/// ([`SegmentLimit`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life(pub u64);

impl Life {
    /// A flow that `protocol`'s first packet opens.
    #[must_use]
    pub fn opened(protocol: Protocol, first: Seen, now: Nanos, timeouts: &Timeouts) -> Self {
        let opened = Self::pack(0, (first, Seen::default()), protocol, 0);
        opened.ending(deadline(now, opened.timeout(timeouts)))
    }

    /// What stands as if both directions had spoken, for `timeout` from `now` on.
    pub(crate) fn standing_for(protocol: Protocol, timeout: Seconds, now: Nanos) -> Self {
        let any = Seen(Seen::ANY);
        Self::pack(deadline(now, timeout), (any, any), protocol, 0)
    }

    fn pack(
        deadline: u32,
        (original, reply): (Seen, Seen),
        protocol: Protocol,
        after_reset: u8,
    ) -> Self {
        let [a, b, c, d] = deadline.to_be_bytes();
        Self(u64::from_be_bytes([a, b, c, d, original.0, reply.0, protocol.0, after_reset]))
    }

    /// The second at which the flow ends unless a packet comes.
    #[must_use]
    pub fn deadline_seconds(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    /// The flow's protocol.
    #[must_use]
    pub fn protocol(self) -> Protocol {
        Protocol(self.0.to_be_bytes()[6])
    }

    /// What `direction` has shown.
    #[must_use]
    pub fn seen(self, direction: FlowDirection) -> Seen {
        match direction {
            FlowDirection::Original => Seen(self.0.to_be_bytes()[4]),
            FlowDirection::Reply => Seen(self.0.to_be_bytes()[5]),
        }
    }

    /// The state.
    #[must_use]
    pub fn state(self) -> FlowState {
        if self.is_dispatched() {
            return one_way::state(self.protocol(), self.seen(FlowDirection::Original));
        }
        FlowState::of(
            self.protocol(),
            self.seen(FlowDirection::Original),
            self.seen(FlowDirection::Reply),
        )
    }

    /// Idle time after which a flow in its state ends.
    #[must_use]
    pub fn timeout(self, timeouts: &Timeouts) -> Seconds {
        match self.protocol() {
            protocol if self.is_dispatched() => one_way::timeout(protocol, self.state(), timeouts),
            Protocol::SCTP => {
                let seen = |direction| self.seen(direction);
                let (original, reply) = (seen(FlowDirection::Original), seen(FlowDirection::Reply));
                sctp::AssociationState::of(original, reply).timeout(timeouts)
            }
            protocol => self.state().timeout(protocol, timeouts),
        }
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn expired(self, now: Nanos) -> bool {
        self.deadline_seconds() <= seconds(now)
    }

    /// Whether a packet with `tcp_flags` begins another connection between the same ends: a SYN
    /// after this one was over (RFC 9293, 3.6.1 and 3.10.7.4). It is to be decided about anew.
    #[inline(always)]
    #[must_use]
    pub fn is_followed_by(self, tcp_flags: u8) -> bool {
        is_first_syn(tcp_flags) && self.is_over()
    }

    /// Whether the connection has ended, and its entry only waits for what is still under way.
    #[inline(always)]
    pub(crate) fn is_over(self) -> bool {
        let over = if self.is_dispatched() { FlowState::Closing } else { FlowState::TimeWait };
        self.state() >= over
    }

    /// Whether a packet with `tcp_flags` in `direction` fits the state. The side that was opened
    /// to does not send a first SYN on a connection that stands (RFC 9293, 3.5: only while both
    /// open at once): it would pass as part of a flow that policy judged for the other direction.
    #[inline(always)]
    #[must_use]
    pub fn admits(self, direction: FlowDirection, tcp_flags: u8) -> bool {
        !(is_first_syn(tcp_flags)
            && direction == FlowDirection::Reply
            && matches!(self.state(), FlowState::Established | FlowState::Closing))
    }

    /// The word after a packet that shows `seen` in `direction`; `None` when nothing changes, so
    /// that the entry's cache line is not written.
    ///
    /// A reset may be forged, and nothing here knows sequence numbers: a connection on which both
    /// ends go on speaking was not reset, and is what it was before (RFC 6146, 3.5.2.2).
    #[inline(always)]
    #[must_use]
    pub fn advanced(
        self,
        direction: FlowDirection,
        seen: Seen,
        now: Nanos,
        timeouts: &Timeouts,
    ) -> Option<Self> {
        let next = match self.steady_timeout(direction, seen, timeouts) {
            Some(timeout) => self.ending(deadline(now, timeout)),
            None => self.changed(direction, seen, now, timeouts),
        };
        (next != self).then_some(next)
    }

    /// The time-out of a flow that stays as it is: UDP, or TCP that is established; without marks,
    /// and nothing that `seen` shows is new. Nearly every packet; [`Self::changed`] says the same.
    #[inline(always)]
    fn steady_timeout(
        self,
        direction: FlowDirection,
        seen: Seen,
        timeouts: &Timeouts,
    ) -> Option<Seconds> {
        const ENDING: Seen = Seen(Seen::FIN | Seen::RST);
        const ANY: Seen = Seen(Seen::ANY);
        const ACK: Seen = Seen(Seen::ACK | Seen::ANY);
        // A flow that answers directly, or is counted, is like any other.
        const MARKS: u32 = 0xff ^ 0x78;
        const PROTOCOL: u32 = 0xff00;
        const fn word(protocol: Protocol, original: Seen, reply: Seen) -> u32 {
            u32::from_be_bytes([original.0, reply.0, protocol.0, 0])
        }
        const TCP: u32 = word(Protocol::TCP, ACK, ACK);
        const TCP_MASK: u32 = word(Protocol(0), ENDING, ENDING) | TCP | PROTOCOL | MARKS;
        const UDP: u32 = word(Protocol::UDP, Seen(0), Seen(0));
        const ANSWERED: u32 = word(Protocol(0), Seen(0), ANY);

        let [.., a, b, c, d] = self.0.to_be_bytes();
        let word = u32::from_be_bytes([a, b, c, d]);
        let known = self.seen(direction);
        if known.with(seen) != known {
            None
        } else if word & (PROTOCOL | MARKS) == UDP {
            Some(if word & ANSWERED == 0 { timeouts.udp } else { timeouts.udp_stream })
        } else if word & TCP_MASK == TCP {
            Some(timeouts.tcp_established)
        } else {
            None
        }
    }

    /// The same flow with another deadline.
    #[inline(always)]
    fn ending(self, deadline: u32) -> Self {
        Self(u64::from(deadline) << 32 | self.0 & 0xffff_ffff)
    }

    /// The same flow that ends when `other` does.
    pub(crate) fn ending_with(self, other: Self) -> Self {
        self.ending(other.deadline_seconds())
    }

    /// The same flow that ends at `deadline` at the latest.
    pub(crate) fn ending_by(self, deadline: u32) -> Self {
        self.ending(self.deadline_seconds().min(deadline))
    }

    /// What [`Self::advanced`] says, for any packet.
    fn changed(
        self,
        direction: FlowDirection,
        seen: Seen,
        now: Nanos,
        timeouts: &Timeouts,
    ) -> Self {
        let protocol = self.protocol();
        let before = self.state();
        let seen = if protocol == Protocol::SCTP { sctp::counted(before, seen) } else { seen };
        let (mut original, mut reply) =
            (self.seen(FlowDirection::Original), self.seen(FlowDirection::Reply));
        match direction {
            FlowDirection::Original => original = original.with(seen),
            FlowDirection::Reply => reply = reply.with(seen),
        }
        let mut after_reset = match direction {
            _ if before != FlowState::Closed || seen.has(Seen::RST) => 0,
            FlowDirection::Original => self.after_reset() | 1,
            FlowDirection::Reply => self.after_reset() | 2,
        };
        if after_reset == 3 {
            (original, reply) = (original.without(Seen::RST), reply.without(Seen::RST));
            after_reset = 0;
        }
        let marks = after_reset | self.lasting_marks();
        let next = Self::pack(self.deadline_seconds(), (original, reply), protocol, marks);
        let state = next.state();
        // A flow that is closing counts down from the last FIN or RST, not from each stray packet.
        if state >= FlowState::TimeWait && state == before {
            next
        } else {
            next.ending(deadline(now, next.timeout(timeouts)))
        }
    }

    /// Whether new tables denied the flow. Its entry stays, so that what either end goes on to
    /// send is not taken for a connection picked up in mid-stream.
    #[must_use]
    pub fn is_denied(self) -> bool {
        self.0 & Self::DENIED != 0
    }

    /// The word of the denied flow. The next packet that is admitted undoes it.
    #[must_use]
    pub fn denied(self) -> Self {
        Self(self.0 | Self::DENIED)
    }

    const DENIED: u64 = 0x80;
    const DISPATCHED: u64 = 0x04;
    const ANSWERS: u64 = 0x08;
    const COUNTED: u64 = 0x70;
    const COUNTED_AT: u32 = 4;

    /// What it is to this node, and whether it is counted: no packet changes that.
    fn lasting_marks(self) -> u8 {
        self.0.to_be_bytes()[7] & 0x7c
    }

    /// Whether it is counted among its backend's connections, and by whom.
    #[inline(always)]
    pub(crate) fn counted(self) -> Counted {
        Counted::of(self.0.to_be_bytes()[7] >> Self::COUNTED_AT)
    }

    /// The same flow with another mark.
    #[must_use]
    pub(crate) fn with_counted(self, counted: Counted) -> Self {
        let mark = u64::from(counted.number()) << Self::COUNTED_AT;
        Self(self.0 & !Self::COUNTED | mark)
    }

    /// The largest segment that both ends of a TCP connection take.
    #[inline(always)]
    #[must_use]
    pub fn segment_limit(self) -> SegmentLimit {
        let [.., original, reply, _, _] = self.0.to_be_bytes();
        let three = |seen: u8| seen >> 3 & 1 | seen >> 4 & 6;
        SegmentLimit::from_bits(three(original) | three(reply) << 3)
    }

    /// The same after a SYN that offers `limit`: the first one says so, its answer may lower it, and so
    /// may what is no SYN.
    pub(crate) fn with_segment_limit(self, limit: SegmentLimit, tcp_flags: u8) -> Self {
        let limit = if is_first_syn(tcp_flags) { limit } else { limit.min(self.segment_limit()) };
        let three = |bits: u8| bits << 3 & 8 | bits << 4 & 0x60;
        let [a, b, c, d, original, reply, e, f] = self.0.to_be_bytes();
        let original = original & !Self::SEGMENT_LIMIT | three(limit.bits());
        let reply = reply & !Self::SEGMENT_LIMIT | three(limit.bits() >> 3);
        Self(u64::from_be_bytes([a, b, c, d, original, reply, e, f]))
    }

    /// Bits of a [`Seen`] that are no flag of TCP that is kept.
    const SEGMENT_LIMIT: u8 = 0x68;

    /// The same flow that a packet has opened just now, in this role of direct server return.
    #[must_use]
    pub(crate) fn with_role(self, role: Option<Role>, now: Nanos, timeouts: &Timeouts) -> Self {
        match role {
            None => self,
            Some(Role::Answers) => Self(self.0 | Self::ANSWERS),
            Some(Role::Dispatches) => {
                let own = Self(self.0 | Self::DISPATCHED);
                own.ending(deadline(now, own.timeout(timeouts)))
            }
        }
    }

    /// Whether its packets go on to the node of its backend, and replies do not come here.
    #[inline(always)]
    #[must_use]
    pub fn is_dispatched(self) -> bool {
        self.0 & Self::DISPATCHED != 0
    }

    /// Whether its packets come from the node with the frontend, and replies go to the client.
    #[inline(always)]
    #[must_use]
    pub fn answers_directly(self) -> bool {
        self.0 & Self::ANSWERS != 0
    }

    /// Directions that spoke since the last reset, one bit each.
    pub(crate) fn after_reset(self) -> u8 {
        self.0.to_be_bytes()[7] & 3
    }
}

/// Whether these flags are of a SYN that answers nothing.
#[inline(always)]
#[must_use]
pub fn is_first_syn(tcp_flags: u8) -> bool {
    tcp_flags & (Seen::SYN | Seen::ACK) == Seen::SYN
}

/// Whole seconds of the caller's time.
#[must_use]
pub fn seconds(now: Nanos) -> u32 {
    u32::try_from(now.0 / 1_000_000_000).unwrap_or(u32::MAX)
}

/// The first second by whose beginning `timeout` from `now` will have passed, at least one ahead:
/// rounded up, because the RFCs' times are the least allowed.
#[inline(always)]
fn deadline(now: Nanos, timeout: Seconds) -> u32 {
    let begun = seconds(Nanos(now.0.saturating_add(999_999_999)));
    begun.saturating_add(timeout.0.max(1))
}

#[cfg(test)]
mod tests;
