//! ICMP and ICMPv6 errors that this node sends about packets it cannot forward.

use std::net::IpAddr;

use crate::DropReason;
use crate::address::Protocol;
use crate::packet::{Packet, PacketKind};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{self, ETHERNET_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN};

/// The longest IPv4 error: what every host accepts (RFC 1812, 4.3.2.3), in bytes.
pub(crate) const IPV4_ERROR_MAX: usize = 576;
/// The longest IPv6 error: the minimum MTU (RFC 4443, 2.4 c), in bytes.
pub(crate) const IPV6_ERROR_MAX: usize = 1280;
/// The longest frame that [`build_error`] writes, in bytes.
pub const ERROR_FRAME_MAX: usize = ETHERNET_LEN + IPV6_ERROR_MAX;
/// TTL and hop limit of what this node sends (IANA "IP Parameters").
const DEFAULT_TTL: u8 = 64;

/// What to tell the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// The TTL or hop limit reached zero.
    TimeExceeded,
    /// No route.
    NetUnreachable,
    /// Nobody listens.
    PortUnreachable,
    /// Larger than the next hop takes.
    TooBig {
        /// What it takes, in bytes.
        mtu: u16,
    },
}

impl IcmpErrorKind {
    /// Type, code and the second word of the header (RFC 792, RFC 1191).
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::NetUnreachable => (3, 0, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::TooBig { mtu } => (3, 4, mtu.into()),
        }
    }

    /// The same for ICMPv6 (RFC 4443, 3).
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::NetUnreachable => (1, 0, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::TooBig { mtu } => (2, 0, mtu.into()),
        }
    }
}

/// Writes the frame of an error about `offender`, which came as `bytes`, from this node's address
/// `from` back over the link it came by; answers the frame's length.
///
/// # Errors
/// [`DropReason::IcmpUnrelated`] where no error may be sent: about an ICMP error, a later
/// fragment, an ICMP message that may be an error, a link-layer broadcast, or a packet of the other
/// family (RFC 1812, 4.3.2.7; RFC 4443, 2.4 e).
pub fn build_error(
    kind: IcmpErrorKind,
    offender: &Packet,
    bytes: &[u8],
    from: IpAddr,
    frame: &mut [u8; ERROR_FRAME_MAX],
) -> Result<usize, DropReason> {
    let never = matches!(
        offender.kind,
        PacketKind::IcmpError
            | PacketKind::LaterFragment { .. }
            | PacketKind::NeighbourDiscovery
            | PacketKind::RouterAdvertisement
    ) || is_unknown_icmp(offender);
    let link: &[u8; ETHERNET_LEN] = wire::array_at(bytes, 0).ok_or(DropReason::Truncated)?;
    // Nor does an answer go to a group, which is no frame's honest source.
    if never || link[0] & 1 != 0 || link[6] & 1 != 0 {
        return Err(DropReason::IcmpUnrelated);
    }
    frame[..6].copy_from_slice(&link[6..12]);
    frame[6..12].copy_from_slice(&link[..6]);
    frame[12..14].copy_from_slice(&link[12..]);
    let end = (ETHERNET_LEN + offender.ip_len).min(bytes.len());
    let quote = bytes.get(ETHERNET_LEN..end).ok_or(DropReason::Truncated)?;
    match (from, offender.flow_key().source()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ok(write_v4(kind, quote, (from.octets(), to.octets()), frame))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(write_v6(kind, quote, (from.octets(), to.octets()), frame))
        }
        _ => Err(DropReason::IcmpUnrelated),
    }
}

/// An ICMP message of no known kind may be an error, and no error is ever told about those.
fn is_unknown_icmp(offender: &Packet) -> bool {
    offender.kind == PacketKind::Other
        && matches!(offender.flow_key().protocol(), Protocol::ICMP | Protocol::ICMPV6)
}

fn write_v4(
    kind: IcmpErrorKind,
    quote: &[u8],
    (from, to): ([u8; 4], [u8; 4]),
    frame: &mut [u8; ERROR_FRAME_MAX],
) -> usize {
    let quote = &quote[..quote.len().min(IPV4_ERROR_MAX - IPV4_LEN - ICMP_LEN)];
    let ip_len = IPV4_LEN + ICMP_LEN + quote.len();
    let (header, message) = frame[ETHERNET_LEN..ETHERNET_LEN + ip_len].split_at_mut(IPV4_LEN);
    header.fill(0);
    header[0] = 0x45;
    // Precedence "internetwork control" (RFC 1812, 4.3.2.5).
    header[1] = 0xc0;
    header[2..4].copy_from_slice(&u16::try_from(ip_len).unwrap_or(u16::MAX).to_be_bytes());
    header[8] = DEFAULT_TTL;
    header[9] = Protocol::ICMP.0;
    header[12..16].copy_from_slice(&from);
    header[16..20].copy_from_slice(&to);
    let checksum = Sum::default().bytes(header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    write_message(kind.v4(), quote, Sum::default(), message);
    ETHERNET_LEN + ip_len
}

fn write_v6(
    kind: IcmpErrorKind,
    quote: &[u8],
    (from, to): ([u8; 16], [u8; 16]),
    frame: &mut [u8; ERROR_FRAME_MAX],
) -> usize {
    let quote = &quote[..quote.len().min(IPV6_ERROR_MAX - IPV6_LEN - ICMP_LEN)];
    let payload_len = ICMP_LEN + quote.len();
    let ip_len = IPV6_LEN + payload_len;
    let (header, message) = frame[ETHERNET_LEN..ETHERNET_LEN + ip_len].split_at_mut(IPV6_LEN);
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes());
    header[6] = Protocol::ICMPV6.0;
    header[7] = DEFAULT_TTL;
    header[8..24].copy_from_slice(&from);
    header[24..40].copy_from_slice(&to);
    let pseudo = pseudo_header(&header[8..40], Protocol::ICMPV6.0, payload_len);
    write_message(kind.v6(), quote, pseudo, message);
    ETHERNET_LEN + ip_len
}

fn write_message((kind, code, word): (u8, u8, u32), quote: &[u8], pseudo: Sum, message: &mut [u8]) {
    let (header, body) = message.split_at_mut(ICMP_LEN);
    header.fill(0);
    header[0] = kind;
    header[1] = code;
    header[4..8].copy_from_slice(&word.to_be_bytes());
    body.copy_from_slice(quote);
    let checksum = pseudo.bytes(header).bytes(body).checksum();
    header[2..4].copy_from_slice(&checksum.to_be_bytes());
}
