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
    if let Some(at) = find(packet, bytes) {
        set(bytes, packet.l4_offset, at, most);
    }
}

/// Where in a SYN the size is that it offers.
fn find(packet: &Packet, bytes: &[u8]) -> Option<usize> {
    let l4 = packet.l4_offset;
    if packet.kind != PacketKind::Tcp {
        return None;
    }
    let words = usize::from(bytes.get(l4 + 12)? >> 4);
    let end = (l4 + words * 4).min(bytes.len());
    let mut at = l4 + TCP_LEN;
    // A header has forty bytes of options at most, and each takes one.
    while at + 4 <= end {
        match (bytes[at], bytes[at + 1]) {
            (0, _) => return None,
            (1, _) => at += 1,
            (kind, len) if [kind, len] == MSS => return Some(at + 2),
            (_, len) if len >= 2 => at += usize::from(len),
            _ => return None,
        }
    }
    None
}

/// The largest segment that both ends of a connection take, as far as three bits of its flow can tell:
/// the next lower one of eight sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentLimit(u8);

impl SegmentLimit {
    /// What every host takes (RFC 9293, 3.7.1): of connections whose SYNs were not seen.
    pub const LEAST: Self = Self(0);
    /// What Ethernet's usual sizes leave, with and without tunnels; 8,940 is that of IPv6 in 9,000.
    const BYTES: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1460, 8940];

    /// What the sender of a SYN says it takes. Without the option that is what every host takes.
    #[must_use]
    pub fn offered(packet: &Packet, bytes: &[u8]) -> Self {
        let every_host = match packet.flow_key() {
            FlowKey::V4(_) => 536,
            FlowKey::V6(_) => 1220,
        };
        let option = find(packet, bytes).and_then(|at| wire::u16_at(bytes, at));
        Self::of(option.unwrap_or(every_host))
    }

    /// The greatest that is not more.
    #[must_use]
    pub fn of(bytes: u16) -> Self {
        let below = Self::BYTES.iter().skip(1).filter(|limit| **limit <= bytes).count();
        Self(u8::try_from(below).unwrap_or(0))
    }

    /// Of its number, of which three bits count.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// Its number.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The size, TCP options included.
    #[must_use]
    pub fn bytes(self) -> u16 {
        Self::BYTES[usize::from(self.0 & 7)]
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
