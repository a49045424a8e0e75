//! What a TCP end says it takes, made to fit what is added on the way (RFC 9293, 3.7.1).

use crate::flow_key::FlowKey;
use crate::packet::{Packet, PacketKind};
use crate::wire::checksum::Delta;
use crate::wire::{self, IPV4_LEN, IPV6_LEN, TCP_LEN};

/// The option's kind and length (RFC 9293, 3.2).
const MSS: [u8; 2] = [2, 4];

/// The largest segment that fits into packets of `mtu` bytes with `overhead`.
#[must_use]
pub fn fitting(packet: &Packet, mtu: u16, overhead: u16) -> u16 {
    let header = match packet.flow_key() {
        FlowKey::V4(_) => IPV4_LEN,
        FlowKey::V6(_) => IPV6_LEN,
    };
    let headers = u16::try_from(header + TCP_LEN).unwrap_or(u16::MAX);
    mtu.saturating_sub(overhead).saturating_sub(headers)
}

/// Lowers the maximum segment size that a SYN offers to `most`, if it offers more. Where it offers none,
/// the other end sends what every host takes, which fits.
pub fn clamp(packet: &Packet, bytes: &mut [u8], most: u16) {
    if packet.kind != PacketKind::Tcp {
        return;
    }
    let l4 = packet.l4_offset;
    let Some(words) = bytes.get(l4 + 12).map(|byte| usize::from(byte >> 4)) else { return };
    let end = (l4 + words * 4).min(bytes.len());
    let mut at = l4 + TCP_LEN;
    // A header has forty bytes of options at most, and each takes one.
    while at + 4 <= end {
        match (bytes[at], bytes[at + 1]) {
            (0, _) => return,
            (1, _) => at += 1,
            (kind, len) if [kind, len] == MSS => return set(bytes, l4, at + 2, most),
            (_, len) if len >= 2 => at += usize::from(len),
            _ => return,
        }
    }
}

/// Writes the field at `at`, which lies across two words of the checksum where that is odd.
fn set(bytes: &mut [u8], l4: usize, at: usize, most: u16) {
    let Some(offered) = wire::u16_at(bytes, at).filter(|offered| *offered > most) else { return };
    let delta = match (at - l4) % 2 {
        0 => Delta::default().word(offered, most),
        // Of a number and the same with its bytes exchanged the sums are each other's.
        _ => Delta::default().word(offered.swap_bytes(), most.swap_bytes()),
    };
    if let Some(field) = wire::array_at_mut(bytes, at) {
        *field = most.to_be_bytes();
    }
    if let Some(field) = wire::array_at_mut::<2>(bytes, l4 + 16) {
        *field = delta.apply(u16::from_be_bytes(*field)).to_be_bytes();
    }
}
