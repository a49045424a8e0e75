//! Packets of a stream that come one by one from a wire and leave as one whole segment (generic receive
//! offload, as the kernel does it in `net/ipv4/tcp_offload.c`).
//!
//! Only what carries data and says nothing else is joined: acknowledgements by themselves and every other
//! flag go on as they are. Each packet's checksum is looked at before it is joined, since the whole one gets
//! another, and its receiver could not tell any more that a piece was damaged on its way.

use super::{Layout, put};
use crate::buffer::Buffer;
use crate::conntrack::Seen;
use crate::flow_key::FlowKey;
use crate::packet::{Packet, PacketKind};
use crate::wire::{self, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN};

/// Payload of the first packet at least, in bytes: less is not worth waiting for more.
const PAYLOAD_MIN: usize = 256;
/// Payload of a whole segment at most, in bytes: with any headers it stays below what an IP packet holds.
const PAYLOAD_MAX: usize = 65_000;
const PUSH: u8 = 0x08;

/// A packet that may be joined with others of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    layout: Layout,
    key: FlowKey,
    sequence: u32,
    pushes: bool,
}

impl Piece {
    /// Of a packet that lies in one chunk; `None` for one that must go as it is.
    #[must_use]
    pub fn of<B: Buffer>(buffer: &B) -> Option<Self> {
        let (bytes, len) = (buffer.bytes(), buffer.len());
        let packet = Packet::parse(bytes, len).ok()?;
        if packet.kind != PacketKind::Tcp || packet.tcp_flags & !PUSH != Seen::ACK {
            return None;
        }
        let is_ipv4 = matches!(packet.flow_key(), FlowKey::V4(_));
        // Neither options nor extension headers.
        let plain = ETHERNET_LEN + if is_ipv4 { IPV4_LEN } else { IPV6_LEN };
        let header: &[u8; TCP_LEN] = wire::array_at(bytes, packet.l4_offset)?;
        let payload_offset = packet.l4_offset + usize::from(header[12] >> 4) * 4;
        let end = ETHERNET_LEN + packet.ip_len;
        let payload = end.checked_sub(payload_offset)?;
        let is_joinable = packet.l4_offset == plain && payload > 0 && end <= bytes.len();
        is_joinable.then(|| Self {
            layout: Layout {
                is_ipv4,
                l4_offset: packet.l4_offset,
                payload_offset,
                payload,
                has_cwr: false,
            },
            key: packet.flow_key(),
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            pushes: packet.tcp_flags & PUSH != 0,
        })
    }

    /// Whether it is of the same stream and direction as another.
    #[must_use]
    pub fn is_of_stream(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Its payload, in the frame's bytes.
    #[must_use]
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let from = self.layout.payload_offset;
        bytes.get(from..from + self.layout.payload).unwrap_or_default()
    }

    /// Whether TCP's checksum is right.
    fn is_right(&self, bytes: &[u8]) -> bool {
        let Layout { l4_offset, payload_offset, payload, .. } = self.layout;
        let tcp = bytes.get(l4_offset..payload_offset + payload).unwrap_or_default();
        let pseudo = self.layout.pseudo_sum(bytes, tcp.len());
        pseudo.is_some_and(|sum| sum.bytes(tcp).fold() == 0xffff)
    }

    /// All that a whole segment says once, for all of its pieces: of IP the kind of service, the hop limit,
    /// and whether it may be fragmented; of TCP the acknowledgement, the window, the options, and the flag of
    /// AccECN (RFC 9768) that lies beside the header's length.
    fn says_the_same(&self, bytes: &[u8], next: &Self, next_bytes: &[u8]) -> bool {
        let alike = |from: usize, to: usize| {
            let part = bytes.get(from..to);
            part.is_some() && part == next_bytes.get(from..to)
        };
        let ip = ETHERNET_LEN;
        let (l4, payload) = (self.layout.l4_offset, self.layout.payload_offset);
        let is_ip_alike = match self.layout.is_ipv4 {
            true => alike(ip + 1, ip + 2) && alike(ip + 6, ip + 9),
            false => alike(ip, ip + 4) && alike(ip + 7, ip + 8),
        };
        payload == next.layout.payload_offset
            && alike(0, ETHERNET_LEN)
            && is_ip_alike
            && alike(l4 + 8, l4 + 13)
            && alike(l4 + 14, l4 + 16)
            && alike(l4 + TCP_LEN, payload)
    }
}

/// A whole segment that is being made: its first packet, and what follows it.
#[derive(Debug, Clone, Copy)]
pub struct Join {
    first: Piece,
    payload: usize,
    pieces: usize,
    pushes: bool,
    /// Nothing follows any more.
    is_over: bool,
}

impl Join {
    /// Of its first packet; `None` for one that is not worth waiting for more.
    #[must_use]
    pub fn begin(first: Piece) -> Option<Self> {
        let (payload, pushes) = (first.layout.payload, first.pushes);
        let join = Self { first, payload, pieces: 1, pushes, is_over: pushes };
        (payload >= PAYLOAD_MIN).then_some(join)
    }

    /// Takes in the next packet of the stream, if it is what follows; else this segment is over, lest
    /// packets overtake each other.
    pub fn take(&mut self, first: &[u8], next: &Piece, bytes: &[u8]) -> bool {
        let size = self.first.layout.payload;
        let follows = !self.is_over
            && self.payload + next.layout.payload <= PAYLOAD_MAX
            && next.sequence == self.first.sequence.wrapping_add(offset(self.payload))
            && next.layout.payload <= size
            && self.first.says_the_same(first, next, bytes)
            && (self.pieces > 1 || self.first.is_right(first))
            && next.is_right(bytes);
        if !follows {
            self.is_over = true;
            return false;
        }
        self.payload += next.layout.payload;
        self.pieces += 1;
        self.pushes = next.pushes;
        // Only the last one may be shorter.
        self.is_over = next.pushes || next.layout.payload < size;
        true
    }

    /// Packets in it.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// Payload of each of its packets but the last, in bytes.
    #[must_use]
    pub fn size(&self) -> u16 {
        u16::try_from(self.first.layout.payload).unwrap_or(u16::MAX)
    }

    /// Makes the first packet's headers those of the whole segment, whose checksum is left to the kernel, and
    /// answers how that lies.
    pub fn finish<B: Buffer>(&self, first: &mut B) -> Layout {
        let layout = Layout { payload: self.payload, ..self.first.layout };
        let bytes = first.bytes_mut();
        let half = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let ip_len = layout.payload_offset - ETHERNET_LEN + layout.payload;
        if layout.is_ipv4 {
            let ip = bytes.get_mut(ETHERNET_LEN..layout.l4_offset).unwrap_or_default();
            put(ip, 2, half(ip_len));
            put(ip, 10, 0);
            let sum = crate::wire::checksum::Sum::default().bytes(ip).checksum();
            put(ip, 10, sum);
        } else {
            put(bytes, ETHERNET_LEN + 4, half(ip_len - IPV6_LEN));
        }
        if let Some(flags) = bytes.get_mut(layout.l4_offset + 13) {
            *flags |= if self.pushes { PUSH } else { 0 };
        }
        layout.leave_checksum(first);
        layout
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
