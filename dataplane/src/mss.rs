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

/// The largest segment that both ends of a connection take, and its path, as far as six bits of its flow can
/// tell: the next lower one of some sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLimit(u8);

/// Sizes with their numbers. What Ethernet's usual links leave, with and without tunnels, is told exactly by
/// the size one above it; sizes between are less than twice as large as the next lower one, so that two
/// segments together are always told from one.
///
/// The lower three bits of a number are that of a size of [`OF_EARLIER`] that is no larger: versions that know
/// no others read those bits alone, and write numbers without the rest.
const SIZES: [(u16, usize); 34] = [
    (536, 0),
    (536, 8),
    (537, 16),
    (1000, 24),
    (1220, 1),
    (1221, 9),
    (1300, 2),
    (1360, 3),
    (1361, 11),
    (1380, 19),
    (1381, 27),
    (1390, 35),
    (1391, 43),
    (1400, 4),
    (1401, 12),
    (1410, 20),
    (1411, 28),
    (1440, 5),
    (1441, 13),
    (1452, 21),
    (1453, 29),
    (1460, 6),
    (1461, 14),
    (2800, 22),
    (5500, 30),
    (8890, 38),
    (8891, 46),
    (8910, 54),
    (8911, 62),
    (8940, 7),
    (8941, 15),
    (8960, 23),
    (8961, 31),
    (8962, 39),
];
const OF_EARLIER: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1460, 8940];
/// Of each number its size, and from what length on a segment is more than that for certain.
const LIMITS: [(u16, u16); 64] = limits();

const fn limits() -> [(u16, u16); 64] {
    let mut limits = [(0, u16::MAX); 64];
    let mut number = 0;
    while number < limits.len() {
        limits[number].0 = OF_EARLIER[number % OF_EARLIER.len()];
        number += 1;
    }
    // Of the first one, for connections whose SYNs were not seen, nothing is certain.
    let mut place = 1;
    while place < SIZES.len() {
        let (bytes, number) = SIZES[place];
        let next = if place + 1 < SIZES.len() { SIZES[place + 1].0 } else { u16::MAX };
        limits[number] = (bytes, next);
        place += 1;
    }
    limits
}

impl SegmentLimit {
    /// What every host takes (RFC 9293, 3.7.1): of connections whose SYNs were not seen.
    pub const LEAST: Self = Self(0);

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

    /// The greatest that is not more, or else the least.
    #[must_use]
    pub fn of(bytes: u16) -> Self {
        let known = SIZES.iter().skip(1);
        let (_, number) = known.rev().find(|(size, _)| *size <= bytes).unwrap_or(&SIZES[1]);
        Self(u8::try_from(*number).unwrap_or(0))
    }

    /// Of its number, of which six bits count.
    #[must_use]
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 63)
    }

    /// Its number.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// The size, TCP options included.
    #[must_use]
    pub fn bytes(self) -> u16 {
        LIMITS[usize::from(self.0 & 63)].0
    }

    /// Whether a segment of so many bytes, TCP options included, is certainly more.
    #[inline(always)]
    #[must_use]
    pub fn is_exceeded_by(self, segment: usize) -> bool {
        segment >= usize::from(LIMITS[usize::from(self.0 & 63)].1)
    }

    /// The smaller one.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        // Of two that are alike, the one that says less.
        let order = |one: Self| {
            let (bytes, next) = LIMITS[usize::from(one.0 & 63)];
            (bytes, std::cmp::Reverse(next), one.0)
        };
        if order(other) < order(self) { other } else { self }
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
