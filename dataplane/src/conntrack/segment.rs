//! What window tracking needs of a TCP segment, read from its frame.
//!
//! Only flows with a second line need it ([`crate::flows::Capacities::details`]), so it is no part of
//! [`Packet`], which every packet pays for.

use super::Seen;
use crate::address::Protocol;
use crate::packet::{Packet, PacketKind};
use crate::wire::{self, ETHERNET_LEN, TCP_LEN};

/// What a first fragment's segment may reach to beyond its sequence number: its true length is told
/// by its last fragment, and is no more than a packet holds.
const FRAGMENTED_LEN: u32 = 0xffff;

/// The largest shift of a window (RFC 7323, 2.3): a larger one is taken for this.
pub const SCALE_LARGEST: u8 = 14;

/// A sequence number, or how far apart two are.
pub type Sequence = u32;

/// A TCP segment (RFC 9293, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Number of its first octet, of SYN or of FIN.
    pub sequence: Sequence,
    /// The number after its last octet; SYN and FIN count as one each. Of a fragmented segment, the
    /// furthest it may be.
    pub end: Sequence,
    /// The next number that its sender expects; `None` without ACK.
    pub acknowledgement: Option<Sequence>,
    /// The window field, without its scale.
    pub window: u16,
    /// Its flags, as on the wire.
    pub flags: u8,
    /// The window scale that a SYN offers (RFC 7323, 2.2).
    pub scale: Option<u8>,
}

impl Segment {
    /// Reads the segment of a parsed packet; `None` for other protocols, for later fragments, and
    /// where the header is not in `bytes` as `packet` says.
    #[must_use]
    pub fn read(packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let is_tcp = packet.flow_key().protocol() == Protocol::TCP;
        if !is_tcp || matches!(packet.kind, PacketKind::LaterFragment { .. }) {
            return None;
        }
        let header: &[u8; TCP_LEN] = wire::array_at(bytes, packet.l4_offset)?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let header_len = usize::from(header[12] >> 4) * 4;
        let flags = header[13];
        let options_at = packet.l4_offset + TCP_LEN;
        let payload_at = packet.l4_offset + header_len;
        let payload = match packet.kind {
            PacketKind::Tcp => {
                u32::try_from((ETHERNET_LEN + packet.ip_len).checked_sub(payload_at)?).ok()?
            }
            _ => FRAGMENTED_LEN,
        };
        let sequence = word(4);
        let has = |flag| Seen(flags).has(flag);
        let counted = u32::from(has(Seen::SYN)) + u32::from(has(Seen::FIN));
        let options = bytes.get(options_at..payload_at).unwrap_or_default();
        Some(Self {
            sequence,
            end: sequence.wrapping_add(payload).wrapping_add(counted),
            acknowledgement: has(Seen::ACK).then(|| word(8)),
            window: u16::from_be_bytes([header[14], header[15]]),
            flags,
            scale: has(Seen::SYN).then(|| window_scale(options)).flatten(),
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        Seen(self.flags).has(flag)
    }
}

/// The window scale option (kind 3, length 3) among a SYN's options. What contradicts itself says
/// nothing more (RFC 9293, 3.1: a receiver must be prepared for it).
///
/// SACK-permitted is of no use here: however much is acknowledged selectively, a sender's right edge
/// stays the acknowledgement plus the window (RFC 2018, 4 and 8).
#[must_use]
pub fn window_scale(options: &[u8]) -> Option<u8> {
    let mut rest = options;
    // An option is an octet at least, so that this ends.
    while let Some((kind, after)) = rest.split_first() {
        rest = match (*kind, after) {
            (0, _) => return None,
            (1, _) => after,
            (3, [3, scale, ..]) => return Some((*scale).min(SCALE_LARGEST)),
            (_, [len, ..]) if *len >= 2 => rest.get(usize::from(*len)..)?,
            _ => return None,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_scale_is_found_among_others_and_not_in_what_contradicts_itself() {
        for (options, scale) in [
            (&[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0][..], Some(7)),
            (&[1, 1, 1, 3, 3, 255], Some(14)),
            (&[3, 3, 0], Some(0)),
            (&[0, 3, 3, 7], None),
            (&[3, 3], None),
            (&[3, 2, 7, 1], None),
            (&[4, 0, 3, 3, 7], None),
            (&[4, 1, 3, 3, 7], None),
            (&[8, 10, 0, 0], None),
            (&[8], None),
            (&[], None),
        ] {
            assert_eq!(window_scale(options), scale, "{options:?}");
        }
    }
}
