//! Sequence windows of a TCP connection, as a node between its ends can know them.
//!
//! Neither end's state is known here, only what each has sent. What follows from it is Guido van
//! Rooij's ("Real Stateful TCP Packet Filtering in IP Filter", 2000): a segment can be taken by its
//! receiver only if
//! 1. it begins no later than the receiver ever allowed (its acknowledgement and window),
//! 2. it ends no earlier than a window before the furthest its sender has sent,
//! 3. it acknowledges no more than the receiver has sent,
//! 4. nor less than a window before what was acknowledged already (as RFC 5961, 5.2 has it).
//!
//! What is not known allows everything: where one direction takes another way, the rules that need
//! it are silent. Of a connection that is picked up in mid-stream the first segment of each end is
//! believed; it may be an old one that is sent again, so that numbers are uncertain by the widest
//! window there can be. Each direction is written by its own segments alone, so that two workers that see
//! the two directions never write the same words.
//!
//! Resets and SYNs that anybody can forge blindly change nothing (RFC 5961): see [`judge`].
//!
//! Translation here never changes sequence numbers, so that both sides of it have the same.

use super::segment::{SCALE_LARGEST, Segment, Sequence};
use super::{FlowState, Seen};

/// Rule 4 allows this much at least, however small windows are: what arrives late is harmless. An
/// unscaled window, rounded up.
const ACKNOWLEDGED_BACK: u32 = 66_000;
/// The widest window there can be (RFC 7323, 2.3), in octets: what one is taken for whose scale was
/// not seen.
const WIDEST: u32 = 0xffff << SCALE_LARGEST;
/// How far data sent with a SYN (RFC 7413) or before the connection stands may reach beyond it: its
/// SYN-ACK may acknowledge the SYN alone.
const SYN_DATA: u32 = 0xffff;

/// What one end's SYN said about scaling windows (RFC 7323, 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offer {
    /// It was not seen: the connection was picked up in mid-stream.
    #[default]
    Unknown,
    /// No scale: then neither end's windows are scaled.
    Refused,
    /// This shift, if the other end offers one too.
    Scale(u8),
}

/// What one end of a connection has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct End {
    /// The furthest it has sent, and the widest window it has announced, in octets; `None` before
    /// its first segment.
    pub sent: Option<(Sequence, u32)>,
    /// The furthest it has acknowledged, and the furthest it has ever allowed the other to send;
    /// `None` before its first acknowledgement.
    pub allowed: Option<(Sequence, Sequence)>,
    /// What its SYN said.
    pub offer: Offer,
}

/// What a segment means for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is what its receiver expects: it counts, and is learnt from.
    Fits,
    /// It passes, since its receiver knows better, and changes nothing: a reset that is in the
    /// window but not what is expected next, which is answered by a challenge (RFC 5961, 3.2), a SYN
    /// on a connection that stands (4.2), and whatever is odd before it stands.
    PassesOnly,
    /// Its receiver would drop it.
    Outside,
}

/// Whether sequence number `a` comes before `b` (RFC 9293, 3.4).
fn is_before(a: Sequence, b: Sequence) -> bool {
    a.wrapping_sub(b) >> 31 == 1
}

fn later(a: Sequence, b: Sequence) -> Sequence {
    if is_before(a, b) { b } else { a }
}

/// How far `a` is beyond `b`; 0 if it is not.
fn beyond(a: Sequence, b: Sequence) -> u32 {
    if is_before(a, b) { 0 } else { a.wrapping_sub(b) }
}

/// Judges a segment on a connection in `state`.
///
/// A reset fits only with the number that is expected next: the furthest its sender has sent, or
/// the furthest its receiver has acknowledged, which a reset answers with (RFC 9293, 3.10.7.1). They
/// differ while octets are under way. Who does not see the connection has two chances in 2^32. Of a
/// connection picked up in mid-stream only what is acknowledged counts: its windows hold back nobody
/// who first sends a segment and then a reset behind it.
#[must_use]
pub fn judge(state: FlowState, sender: &End, receiver: &End, segment: &Segment) -> Fit {
    let stands = state >= FlowState::Established;
    let unless_it_stands = if stands { Fit::Outside } else { Fit::PassesOnly };
    if segment.has(Seen::SYN) {
        let begins = !stands && answers_syn(receiver, segment);
        return if begins { Fit::Fits } else { Fit::PassesOnly };
    }
    if segment.has(Seen::RST) {
        return match () {
            () if is_exact_reset(sender, receiver, segment) => Fit::Fits,
            () if may_be_in_window(receiver, segment) => Fit::PassesOnly,
            () => unless_it_stands,
        };
    }
    if is_in_window(sender, receiver, segment) { Fit::Fits } else { unless_it_stands }
}

/// Whether a SYN-ACK acknowledges the other's SYN, and perhaps data with it.
fn answers_syn(receiver: &End, segment: &Segment) -> bool {
    match (segment.acknowledgement, receiver.sent) {
        (Some(acknowledged), Some((sent, _))) => sent.wrapping_sub(acknowledged) <= SYN_DATA,
        _ => true,
    }
}

fn is_exact_reset(sender: &End, receiver: &End, segment: &Segment) -> bool {
    let is_next = |next: Option<Sequence>| next == Some(segment.sequence);
    let acknowledged = receiver.allowed.map(|(acknowledged, _)| acknowledged);
    // Where windows are as wide as can be, whoever guesses may have put it there.
    let is_certain = sender.offer != Offer::Unknown || acknowledged.is_none();
    let sent = sender.sent.filter(|_| is_certain).map(|(end, _)| end);
    // The answer to a SYN: there is no number yet to go by (RFC 9293, 3.10.7.3).
    let refuses_syn = sender.sent.is_none()
        && acknowledged.is_none()
        && receiver.sent.is_some_and(|(syn, _)| segment.acknowledgement == Some(syn));
    is_next(sent) || is_next(acknowledged) || refuses_syn
}

/// Whether a reset's number is one that the receiver may be waiting for, as far as is known.
fn may_be_in_window(receiver: &End, segment: &Segment) -> bool {
    receiver.allowed.is_none_or(|(acknowledged, furthest)| {
        !is_before(segment.sequence, acknowledged) && !is_before(furthest, segment.sequence)
    })
}

/// The four rules.
fn is_in_window(sender: &End, receiver: &End, segment: &Segment) -> bool {
    if let Some((_, furthest)) = receiver.allowed
        && is_before(furthest, segment.sequence)
    {
        return false;
    }
    let acknowledged = receiver.allowed.map(|(acknowledged, _)| acknowledged);
    // Of who was not heard yet, the other knows how far it came.
    let sent = sender.sent.map_or(acknowledged, |(end, _)| Some(end));
    if let (Some(sent), Some((_, window))) = (sent, receiver.sent) {
        // What is not acknowledged may be sent again, however far that is; and an octet before is
        // how an idle peer is asked whether it is there (RFC 9293, 3.8.4).
        let unacknowledged = acknowledged.map_or(0, |acknowledged| beyond(sent, acknowledged));
        if is_before(segment.end, sent.wrapping_sub(window.max(unacknowledged) + 1)) {
            return false;
        }
    }
    let (Some(acknowledgement), Some((sent, _))) = (segment.acknowledgement, receiver.sent) else {
        return true;
    };
    let ahead = if receiver.offer == Offer::Unknown { WIDEST } else { 0 };
    let is_too_late =
        sender.sent.zip(sender.allowed).is_some_and(|((_, window), (acknowledged, _))| {
            is_before(acknowledgement, acknowledged.wrapping_sub(window.max(ACKNOWLEDGED_BACK)))
        });
    !is_before(sent.wrapping_add(ahead), acknowledgement) && !is_too_late
}

/// Whether a segment that begins at `sequence` may have been sent and not acknowledged yet. What is not
/// known allows it.
#[must_use]
pub fn is_under_way(sender: &End, receiver: &End, sequence: Sequence) -> bool {
    let is_sent = sender.sent.is_none_or(|(end, _)| !is_before(end, sequence));
    let is_acknowledged =
        receiver.allowed.is_some_and(|(acknowledged, _)| is_before(sequence, acknowledged));
    is_sent && !is_acknowledged
}

impl End {
    /// What its sender has sent after a segment that fits. A SYN begins anew, since the one before it
    /// may have got no answer; unless it is that one, late, behind data of its own. A reset teaches
    /// nothing.
    #[must_use]
    pub fn after(self, other: &Self, segment: &Segment) -> Self {
        if segment.has(Seen::RST) {
            return self;
        }
        if segment.has(Seen::SYN) {
            // A SYN's own window is never scaled (RFC 7323, 2.2).
            let offer = segment.scale.map_or(Offer::Refused, Offer::Scale);
            let is_late = self.offer != Offer::Unknown
                && self.sent.is_some_and(|(sent, _)| sent.wrapping_sub(segment.end) <= SYN_DATA);
            let before = if is_late { self } else { Self::default() };
            return Self { offer, ..before }.with(segment, segment.window.into());
        }
        let window = u32::from(segment.window);
        let window = match (self.offer, other.offer) {
            (Offer::Unknown, _) => WIDEST,
            (Offer::Refused, _) | (_, Offer::Refused) => window,
            (Offer::Scale(scale), _) => window << scale,
        };
        self.with(segment, window)
    }

    fn with(self, segment: &Segment, window: u32) -> Self {
        // Into a closed window an octet may be sent, to learn whether it still is (RFC 9293,
        // 3.8.6.1).
        let edge = |number: Sequence| (number, number.wrapping_add(window.max(1)));
        let allowed = segment.acknowledgement.map(edge);
        self.joined(&Self { sent: Some((segment.end, window)), allowed, ..self })
    }

    /// The furthest of both. Two workers may have learnt from segments of one direction at once.
    #[must_use]
    pub fn joined(self, other: &Self) -> Self {
        let sent = match (self.sent, other.sent) {
            (Some((end, window)), Some(more)) => Some((later(end, more.0), window.max(more.1))),
            (one, another) => one.or(another),
        };
        let allowed = match (self.allowed, other.allowed) {
            (Some((acknowledged, furthest)), Some(more)) => {
                Some((later(acknowledged, more.0), later(furthest, more.1)))
            }
            (one, another) => one.or(another),
        };
        Self { sent, allowed, ..self }
    }
}

#[cfg(test)]
#[path = "tcp_window_tests.rs"]
mod tests;
