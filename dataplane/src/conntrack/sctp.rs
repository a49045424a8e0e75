//! SCTP (RFC 9260): what the chunks of a packet show, and the state of an association that follows.
//!
//! As for TCP, the state is derived from what both directions have shown. Chunks are noted in the
//! bits of [`Seen`] under the TCP flags that mean the same (INIT is SYN, INIT ACK is SYN with ACK,
//! SHUTDOWN is FIN, ABORT and SHUTDOWN COMPLETE are RST), so that what begins a flow, answers one or
//! ends it needs no second rule. Only control chunks count; those of a packet come before its data.
//!
//! Left out: multi-homing. Each pair of addresses of an association is a flow of its own, which
//! policy must allow by itself, and which heartbeats open and keep.

use self::chunk_bits::{ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK};
use super::{FlowState, Seen};
use crate::DropReason;
use crate::tables::Timeouts;
use crate::time::Seconds;
use crate::wire::{self, SCTP_LEN};

/// Chunks of a packet that are looked at. More than any stack bundles before its data; what follows
/// is carried unread.
const CHUNKS_MAX: usize = 16;
/// Length of a chunk without its value, in bytes (RFC 9260, 3.2).
const CHUNK_LEN: usize = 4;
/// Least length of INIT and INIT ACK, in bytes (RFC 9260, 3.3.2).
const INIT_LEN: usize = 20;

/// Chunk types that matter here (RFC 9260, 3.2; RFC 8260, 2.1 for I-DATA).
mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    pub const I_DATA: u8 = 64;
}

/// What chunks show, in the bits of [`Seen`].
pub(super) mod chunk_bits {
    use super::Seen;

    pub(crate) const INIT: u8 = Seen::SYN;
    pub(crate) const INIT_ACK: u8 = Seen::SYN | Seen::ACK;
    pub(crate) const SHUTDOWN: u8 = Seen::FIN;
    /// SHUTDOWN COMPLETE as well: either way the association is over.
    pub(crate) const ABORT: u8 = Seen::RST;
    pub(crate) const SHUTDOWN_ACK: u8 = 0x08;
    pub(crate) const COOKIE_ECHO: u8 = 0x20;
    pub(crate) const COOKIE_ACK: u8 = 0x40;
}

/// What the control chunks of a packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunks {
    /// The verification tag in the common header.
    pub tag: u32,
    /// What they show, in the bits of [`Seen`]; 0 for data alone.
    pub shown: u8,
    /// The tag that its sender wants to be spoken to with; of INIT and INIT ACK.
    pub initiate_tag: Option<u32>,
    /// Whether the tag is the sender's own, sent back for want of the other (the T bit of ABORT and
    /// SHUTDOWN COMPLETE; RFC 9260, 8.5.1).
    pub is_reflected: bool,
}

impl Chunks {
    /// Reads the control chunks of the packet whose common header is at `offset` and that ends at
    /// `end`, both in bytes from the frame's start. `bytes` may be shorter, and is not read beyond
    /// its end; nor is the packet, where it is not `is_whole` but a first fragment.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] for a short common header; [`DropReason::Malformed`] for a chunk
    /// that is shorter than its own header or, in a whole packet, longer than the packet, for INIT,
    /// INIT ACK and SHUTDOWN COMPLETE beside others (RFC 9260, 6.10), and for one of the first two
    /// that is short or asks for the tag 0 (3.3.2, 3.3.3); [`DropReason::SctpWrongTag`] for the tag
    /// 0 without INIT, and INIT with another (8.5.1).
    pub fn read(
        bytes: &[u8],
        offset: usize,
        end: usize,
        is_whole: bool,
    ) -> Result<Self, DropReason> {
        let common: &[u8; SCTP_LEN] = wire::array_at(bytes, offset).ok_or(DropReason::Truncated)?;
        if offset + SCTP_LEN > end {
            return Err(DropReason::Truncated);
        }
        let tag = u32::from_be_bytes([common[4], common[5], common[6], common[7]]);
        let mut chunks = Self { tag, ..Self::default() };
        let mut at = offset + SCTP_LEN;
        for number in 0..CHUNKS_MAX {
            let header: Option<&[u8; CHUNK_LEN]> = wire::array_at(bytes, at);
            let Some([kind, flags, a, b]) = header.filter(|_| at + CHUNK_LEN <= end) else { break };
            if matches!(*kind, chunk::DATA | chunk::I_DATA) {
                break;
            }
            let len = usize::from(u16::from_be_bytes([*a, *b]));
            if len < CHUNK_LEN || (is_whole && at + len > end) {
                return Err(DropReason::Malformed);
            }
            let next = at + len.next_multiple_of(4);
            let must_be_alone =
                matches!(*kind, chunk::INIT | chunk::INIT_ACK | chunk::SHUTDOWN_COMPLETE);
            if must_be_alone && (number > 0 || (is_whole && next < end)) {
                return Err(DropReason::Malformed);
            }
            chunks.shown |= shown_by(*kind);
            chunks.is_reflected |=
                matches!(*kind, chunk::ABORT | chunk::SHUTDOWN_COMPLETE) && flags & 1 != 0;
            if matches!(*kind, chunk::INIT | chunk::INIT_ACK) {
                let word = wire::array_at(bytes, at + CHUNK_LEN).ok_or(DropReason::Malformed)?;
                let initiate_tag = u32::from_be_bytes(*word);
                if len < INIT_LEN || initiate_tag == 0 {
                    return Err(DropReason::Malformed);
                }
                chunks.initiate_tag = Some(initiate_tag);
            }
            at = next;
        }
        if (chunks.shown == INIT) != (tag == 0) {
            return Err(DropReason::SctpWrongTag);
        }
        Ok(chunks)
    }

    /// Whether it asks for an association.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.shown == INIT
    }

    /// Whether it answers INIT.
    #[must_use]
    pub fn is_init_ack(&self) -> bool {
        self.shown == INIT_ACK
    }

    /// Whether it carries the cookie back.
    #[must_use]
    pub fn echoes_cookie(&self) -> bool {
        self.shown & COOKIE_ECHO != 0
    }

    /// Whether it ends the association.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.shown & ABORT != 0
    }

    /// Whether it says that the cookie was right: from here on the association stands.
    #[must_use]
    pub fn accepts_cookie(&self) -> bool {
        self.shown & COOKIE_ACK != 0
    }
}

fn shown_by(kind: u8) -> u8 {
    match kind {
        chunk::INIT => INIT,
        chunk::INIT_ACK => INIT_ACK,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE => ABORT,
        chunk::SHUTDOWN => SHUTDOWN,
        chunk::SHUTDOWN_ACK => SHUTDOWN_ACK,
        chunk::COOKIE_ECHO => COOKIE_ECHO,
        chunk::COOKIE_ACK => COOKIE_ACK,
        _ => 0,
    }
}

/// Where an association is in its life. Names are Linux conntrack's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AssociationState {
    /// INIT was seen, perhaps INIT ACK.
    CookieWait,
    /// COOKIE ECHO was seen.
    CookieEchoed,
    /// COOKIE ACK was seen; or both directions, of an association that began before our time or by
    /// other addresses.
    Established,
    /// The original direction has shown SHUTDOWN.
    ShutdownSent,
    /// The reply direction has shown SHUTDOWN.
    ShutdownReceived,
    /// SHUTDOWN ACK was seen.
    ShutdownAckSent,
    /// ABORT or SHUTDOWN COMPLETE was seen.
    Closed,
    /// One direction of an association whose beginning was not seen: a heartbeat, most likely, to
    /// another address of a peer.
    HeartbeatSent,
}

impl AssociationState {
    /// The state that follows from what both directions have shown.
    #[must_use]
    pub fn of(original: Seen, reply: Seen) -> Self {
        let either = original.with(reply);
        match () {
            () if either.has(ABORT) => Self::Closed,
            () if either.has(SHUTDOWN_ACK) => Self::ShutdownAckSent,
            () if original.has(SHUTDOWN) => Self::ShutdownSent,
            () if reply.has(SHUTDOWN) => Self::ShutdownReceived,
            () if either.has(COOKIE_ACK) => Self::Established,
            () if !original.has(INIT) && reply.has(Seen::ANY) && original.has(Seen::ANY) => {
                Self::Established
            }
            () if !original.has(INIT) => Self::HeartbeatSent,
            () if either.has(COOKIE_ECHO) => Self::CookieEchoed,
            () => Self::CookieWait,
        }
    }

    /// The same in the terms of all flows. An INIT ACK alone is no answer yet that a peer has
    /// proved: anybody may ask for one.
    #[must_use]
    pub fn flow_state(self) -> FlowState {
        match self {
            Self::CookieWait | Self::HeartbeatSent => FlowState::Opening,
            Self::CookieEchoed => FlowState::Answered,
            Self::Established => FlowState::Established,
            Self::ShutdownSent | Self::ShutdownReceived => FlowState::Closing,
            Self::ShutdownAckSent => FlowState::TimeWait,
            Self::Closed => FlowState::Closed,
        }
    }

    /// Idle time after which a flow in this state ends.
    #[must_use]
    pub fn timeout(self, timeouts: &Timeouts) -> Seconds {
        match self {
            Self::CookieWait => timeouts.sctp_cookie_wait,
            Self::CookieEchoed => timeouts.sctp_cookie_echoed,
            Self::Established => timeouts.sctp_established,
            Self::ShutdownSent => timeouts.sctp_shutdown_sent,
            Self::ShutdownReceived => timeouts.sctp_shutdown_recd,
            Self::ShutdownAckSent => timeouts.sctp_shutdown_ack_sent,
            Self::Closed => timeouts.sctp_closed,
            Self::HeartbeatSent => timeouts.sctp_heartbeat_sent,
        }
    }
}

/// What of `seen` counts for an association in `before`. INIT on one that stands may be a restart
/// or anybody's, and is answered without a change of state (RFC 9260, 5.2.2): COOKIE ECHO tells.
pub(super) fn counted(before: FlowState, seen: Seen) -> Seen {
    let stands = matches!(before, FlowState::Established | FlowState::Closing);
    if stands && super::is_first_syn(seen.0) { Seen(Seen::ANY) } else { seen }
}

#[cfg(test)]
#[path = "sctp_tests.rs"]
mod tests;
