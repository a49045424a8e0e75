//! The second line of a flow's entry, where its table has one: bytes of both directions, and what
//! tells forged packets from a connection's own.
//!
//! | words (original / reply) | TCP | SCTP |
//! |---|---|---|
//! | 0 / 4 | bytes | bytes |
//! | 1 / 5 | furthest sent, furthest allowed | tag, tag of a restart |
//! | 2 / 6 | furthest acknowledged, widest window | |
//! | 3 / 7 | run, window scale | run |
//!
//! Each direction's half is written by its own packets, but for SCTP's tags, which either end may
//! tell of. The run names the process that filled the half: after a pause in which packets may have
//! passed elsewhere, what the process before knew is forgotten, and learnt from what is seen.

use std::sync::atomic::{AtomicU64, Ordering};

use super::sctp::Chunks;
use super::segment::{SCALE_LARGEST, Segment, Sequence};
use super::tcp_window::{End, Fit, Offer, is_under_way, judge};
use super::{FlowDirection, FlowState, Seen, tags};
use crate::DropReason;
use crate::address::Protocol;
use crate::counters::WorkerCounters;
use crate::flow_key::low_half;
use crate::packet::{Packet, PacketKind};
use crate::tables::TcpWindows;
use crate::wire::ETHERNET_LEN;

/// Words of one direction.
const HALF: usize = 4;
const BYTES: usize = 0;
const EDGES: usize = 1;
const ACKNOWLEDGED: usize = 2;
const RUN: usize = 3;

/// In the word [`ACKNOWLEDGED`], beside a window of at most 30 bits: that there was one.
const HAS_ACKNOWLEDGED: u64 = 1 << 31;
/// How often a word is tried to be changed: another worker can win only as often as it has packets
/// of this very direction.
const TRIES: usize = 4;

/// The two numbers in a word.
pub(super) fn halves(word: u64) -> [u32; 2] {
    [low_half(word >> 32), low_half(word)]
}

/// The words [`EDGES`] and [`ACKNOWLEDGED`] of one end.
fn pack(end: &End) -> [u64; 2] {
    let (sent, window) = end.sent.unwrap_or_default();
    let (number, furthest) = end.allowed.unwrap_or_default();
    let has_acknowledged = if end.allowed.is_some() { HAS_ACKNOWLEDGED } else { 0 };
    [
        u64::from(sent) << 32 | u64::from(furthest),
        u64::from(number) << 32 | has_acknowledged | u64::from(window),
    ]
}

/// The word [`RUN`]: the process that filled the others, and the scale; 0 while they say nothing.
fn pack_run(run: u32, offer: Offer) -> u64 {
    let offer = match offer {
        Offer::Unknown => 0,
        Offer::Refused => 1,
        Offer::Scale(scale) => 2 + u64::from(scale),
    };
    (1 + u64::from(run)) << 8 | offer
}

fn unpack_run(word: u64) -> (Option<u32>, Offer) {
    let offer = match word.to_be_bytes()[7] {
        0 => Offer::Unknown,
        1 => Offer::Refused,
        scale => Offer::Scale((scale - 2).min(SCALE_LARGEST)),
    };
    let run = (word >> 8).checked_sub(1).and_then(|run| u32::try_from(run).ok());
    (run, offer)
}

/// What a packet of a flow with details does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is counted, and shows what its flags show.
    Counts,
    /// It is counted, and changes neither state nor deadline.
    PassesOnly,
}

/// What the second line is asked with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// What becomes of segments outside of their windows.
    pub(crate) windows: TcpWindows,
    /// Tells this process from those before.
    pub(crate) run: u32,
    pub(crate) counters: &'a WorkerCounters,
}

/// The second line of a flow's entry.
#[derive(Debug, Clone, Copy)]
pub struct Details<'a>(&'a [AtomicU64; 2 * HALF]);

impl<'a> Details<'a> {
    /// A view of an entry's second line.
    #[must_use]
    pub fn new(words: &'a [AtomicU64; 2 * HALF]) -> Self {
        Self(words)
    }

    fn word(self, direction: FlowDirection, word: usize) -> &'a AtomicU64 {
        match direction {
            FlowDirection::Original => &self.0[word],
            FlowDirection::Reply => &self.0[HALF + word],
        }
    }

    /// Bytes of IP packets in the original and the reply direction; approximate when two workers
    /// saw one direction at once.
    #[must_use]
    pub fn bytes(self) -> (u64, u64) {
        let of = |direction| self.word(direction, BYTES).load(Ordering::Relaxed);
        (of(FlowDirection::Original), of(FlowDirection::Reply))
    }

    /// Judges a packet that is about to leave along a flow in `state`, and learns from it.
    ///
    /// # Errors
    /// [`DropReason::TcpOutOfWindow`] or [`DropReason::SctpWrongTag`]; then nothing was learnt.
    pub(crate) fn pass(
        self,
        asked: &Asked<'_>,
        (state, direction): (FlowState, FlowDirection),
        packet: &Packet,
        bytes: &[u8],
    ) -> Result<Effect, DropReason> {
        let effect = match packet.flow_key().protocol() {
            Protocol::TCP if asked.windows == TcpWindows::Off => {
                self.forget(direction);
                Effect::Counts
            }
            Protocol::TCP => match Segment::read(packet, bytes) {
                Some(segment) => self.pass_segment(asked, (state, direction), &segment)?,
                None => Effect::Counts,
            },
            Protocol::SCTP => self.pass_chunks(asked, (state, direction), packet, bytes)?,
            _ => Effect::Counts,
        };
        let counter = self.word(direction, BYTES);
        let bytes = counter.load(Ordering::Relaxed).wrapping_add(packet.ip_len as u64);
        counter.store(bytes, Ordering::Relaxed);
        Ok(effect)
    }

    /// Whether a TCP packet in `direction` with this sequence number may be under way, as far as is known:
    /// it was sent, and not acknowledged (as RFC 5927, 4.1 has it of ICMP errors).
    pub(crate) fn may_be_under_way(
        self,
        run: u32,
        direction: FlowDirection,
        sequence: Sequence,
    ) -> bool {
        let (sender, receiver) = (self.end(run, direction), self.end(run, direction.reversed()));
        is_under_way(&sender, &receiver, sequence)
    }

    fn pass_segment(
        self,
        asked: &Asked<'_>,
        (state, direction): (FlowState, FlowDirection),
        segment: &Segment,
    ) -> Result<Effect, DropReason> {
        let sender = self.end(asked.run, direction);
        let receiver = self.end(asked.run, direction.reversed());
        let is_reset = segment.has(Seen::RST);
        match judge(state, &sender, &receiver, segment) {
            Fit::Fits => {
                let next = sender.after(&receiver, segment);
                if next != sender {
                    self.learn(asked.run, direction, &next, segment.has(Seen::SYN));
                }
                Ok(Effect::Counts)
            }
            Fit::PassesOnly => {
                asked.counters.resets_challenged.add(is_reset.into());
                Ok(Effect::PassesOnly)
            }
            Fit::Outside if asked.windows == TcpWindows::Relaxed && !is_reset => {
                asked.counters.out_of_window_passed.add(1);
                // A FIN would leave minutes of a connection's days.
                Ok(if segment.has(Seen::FIN) { Effect::PassesOnly } else { Effect::Counts })
            }
            Fit::Outside => Err(DropReason::TcpOutOfWindow),
        }
    }

    fn pass_chunks(
        self,
        asked: &Asked<'_>,
        (state, direction): (FlowState, FlowDirection),
        packet: &Packet,
        bytes: &[u8],
    ) -> Result<Effect, DropReason> {
        if matches!(packet.kind, PacketKind::LaterFragment { .. }) {
            return Ok(Effect::Counts);
        }
        let is_whole = packet.kind == PacketKind::Sctp;
        let end = ETHERNET_LEN + packet.ip_len;
        let chunks = Chunks::read(bytes, packet.l4_offset, end, is_whole)?;
        self.forget_other_runs(asked.run);
        let [own, other] = [direction, direction.reversed()].map(|end| self.word(end, EDGES));
        let stands = state >= FlowState::Established;
        tags::check(own, other, stands, &chunks).map(|()| Effect::Counts)
    }

    /// What is known of one end of a TCP connection.
    fn end(self, run: u32, direction: FlowDirection) -> End {
        let word = |word, order| self.word(direction, word).load(order);
        let (filled_by, offer) = unpack_run(word(RUN, Ordering::Acquire));
        if filled_by != Some(run) {
            return End::default();
        }
        // In the other order than they are written: an edge is there before it is said to be.
        let acknowledged = word(ACKNOWLEDGED, Ordering::Acquire);
        let [sent, furthest] = halves(word(EDGES, Ordering::Relaxed));
        let [number, window] = halves(acknowledged & !HAS_ACKNOWLEDGED);
        let allowed = (acknowledged & HAS_ACKNOWLEDGED != 0).then_some((number, furthest));
        End { sent: Some((sent, window)), allowed, offer }
    }

    /// Notes what is known of one end by now. Two workers may do so at once: unless the connection
    /// `begins`, the furthest of both counts.
    fn learn(self, run: u32, direction: FlowDirection, next: &End, begins: bool) {
        let [edges, acknowledged] = [EDGES, ACKNOWLEDGED].map(|word| self.word(direction, word));
        for _ in 0..TRIES {
            let known = self.end(run, direction);
            if begins || known.sent.is_none() {
                let new = pack(next);
                edges.store(new[0], Ordering::Relaxed);
                acknowledged.store(new[1], Ordering::Release);
                let filled = pack_run(run, next.offer);
                self.word(direction, RUN).store(filled, Ordering::Release);
                return;
            }
            let (old, new) = (pack(&known), pack(&known.joined(next)));
            if change(edges, old[0], new[0]) && change(acknowledged, old[1], new[1]) {
                return;
            }
        }
    }

    /// While windows are not looked at, what is known of them grows old.
    fn forget(self, direction: FlowDirection) {
        let run = self.word(direction, RUN);
        if run.load(Ordering::Relaxed) != 0 {
            run.store(0, Ordering::Relaxed);
        }
    }

    /// An association may have begun again while no process looked.
    fn forget_other_runs(self, run: u32) {
        let filled = pack_run(run, Offer::Unknown);
        for direction in [FlowDirection::Original, FlowDirection::Reply] {
            if self.word(direction, RUN).load(Ordering::Relaxed) != filled {
                self.word(direction, EDGES).store(0, Ordering::Relaxed);
                self.word(direction, RUN).store(filled, Ordering::Relaxed);
            }
        }
    }
}

/// Whether the word is `new` now, which was `old`.
fn change(word: &AtomicU64, old: u64, new: u64) -> bool {
    let order = (Ordering::Release, Ordering::Relaxed);
    old == new || word.compare_exchange(old, new, order.0, order.1).is_ok()
}

#[cfg(test)]
#[path = "details_tests.rs"]
mod tests;
