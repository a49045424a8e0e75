//! Bytes to fields: checked reads at offsets, and the walk over IPv6 extension headers.
//!
//! [`checksum`] has the arithmetic of RFC 1071 and RFC 1624, [`crc32c`] that of SCTP.

pub mod checksum;
pub mod crc32c;

use crate::DropReason;
use crate::address::Protocol;

/// Length of an Ethernet header without VLAN tags, in bytes.
pub const ETHERNET_LEN: usize = 14;
/// Shortest frame, without its check sequence, in bytes: shorter ones are padded (IEEE 802.3, 3.2.8).
pub const FRAME_LEN_MIN: usize = 60;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_LEN: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_LEN: usize = 40;
/// Length of a TCP header without options, in bytes.
pub const TCP_LEN: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_LEN: usize = 8;
/// Length of the common SCTP header, in bytes.
pub const SCTP_LEN: usize = 12;
/// Length of the part of an ICMP or ICMPv6 header that every message has, in bytes.
pub const ICMP_LEN: usize = 8;
/// EtherType of IPv4 (IEEE 802 numbers).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Extension headers walked at most. RFC 8200, 4.1 lists seven; more is an attack.
pub const EXTENSIONS_MAX: usize = 8;

/// `N` bytes at `offset`.
#[inline(always)]
#[must_use]
pub fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<&[u8; N]> {
    bytes.get(offset..)?.first_chunk()
}

/// The same, writable.
#[inline(always)]
#[must_use]
pub fn array_at_mut<const N: usize>(bytes: &mut [u8], offset: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(offset..)?.first_chunk_mut()
}

/// The 16-bit word at `offset`, in network order.
#[inline(always)]
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(|word| u16::from_be_bytes(*word))
}

/// An IPv6 address at `offset` of a fixed IPv6 header.
#[inline(always)]
#[must_use]
pub fn u128_at(header: &[u8; IPV6_LEN], offset: usize) -> u128 {
    array_at(header, offset).map_or(0, |address| u128::from_be_bytes(*address))
}

/// A packet's place among the fragments of a larger one (RFC 791, 3.1; RFC 8200, 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// What all fragments of the larger packet share, with its addresses.
    pub identification: u32,
    /// Where its payload belongs, in bytes.
    pub offset: u16,
    /// Whether others follow.
    pub more: bool,
}

impl Fragment {
    /// Whether it carries the L4 header.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.offset == 0
    }

    /// The fragment that an IPv4 header describes; `None` for a packet in one piece.
    #[inline(always)]
    #[must_use]
    pub fn of_ipv4(header: &[u8; IPV4_LEN]) -> Option<Self> {
        let field = u16::from_be_bytes([header[6], header[7]]);
        // More fragments, or an offset in units of eight bytes (RFC 791, 3.1).
        (field & 0x3fff != 0).then(|| Self {
            identification: u32::from(u16::from_be_bytes([header[4], header[5]])),
            offset: (field & 0x1fff) << 3,
            more: field & 0x2000 != 0,
        })
    }

    /// The fragment that an IPv6 fragment header describes. One that is both first and last
    /// ("atomic", RFC 6946) is a packet in one piece: `None`.
    pub(crate) fn of_ipv6(header: &[u8; 8]) -> Option<Self> {
        let field = u16::from_be_bytes([header[2], header[3]]);
        (field & 0xfff9 != 0).then(|| Self {
            identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            offset: field & 0xfff8,
            more: field & 1 != 0,
        })
    }
}

/// What follows the extension headers of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Transport {
    /// The upper-layer protocol.
    pub protocol: Protocol,
    /// Where its header begins.
    pub offset: usize,
    /// Its fragment header, if it is a fragment.
    pub fragment: Option<Fragment>,
}

/// Extension headers that are walked (RFC 8200, 4.1; RFC 4302).
pub(crate) mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Walks the extension headers from `offset` to at most `end` (RFC 8200, 4).
///
/// # Errors
/// [`DropReason::Truncated`] when one ends beyond the packet, [`DropReason::Malformed`] for more
/// than [`EXTENSIONS_MAX`], for hop-by-hop options anywhere but first and for a second fragment
/// header,
/// [`DropReason::SourceRouted`] for a routing header of type 0 (RFC 5095), and for any that has
/// segments left: policy would judge a destination that is not the last.
#[inline(always)]
pub fn ipv6_extensions(
    bytes: &[u8],
    first: u8,
    offset: usize,
    end: usize,
) -> Result<Ipv6Transport, DropReason> {
    match Protocol(first) {
        protocol @ (Protocol::TCP | Protocol::UDP | Protocol::ICMPV6) => {
            Ok(Ipv6Transport { protocol, offset, fragment: None })
        }
        _ => walk_extensions(bytes, first, offset, end),
    }
}

#[cold]
fn walk_extensions(
    bytes: &[u8],
    first: u8,
    offset: usize,
    end: usize,
) -> Result<Ipv6Transport, DropReason> {
    use extension::{AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
    let mut at = Ipv6Transport { protocol: Protocol(first), offset, fragment: None };
    let mut had_fragment_header = false;
    for _ in 0..=EXTENSIONS_MAX {
        // What a later fragment begins with is payload.
        if at.fragment.is_some_and(|fragment| !fragment.is_first()) {
            return Ok(at);
        }
        let number = at.protocol.0;
        if !matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
        {
            return Ok(at);
        }
        // RFC 8200, 4.1: hop-by-hop options "appear immediately after an IPv6 header only".
        if number == HOP_BY_HOP && at.offset != offset {
            return Err(DropReason::Malformed);
        }
        let header: &[u8; 8] = array_at(bytes, at.offset).ok_or(DropReason::Truncated)?;
        if number == ROUTING && (header[2] == 0 || header[3] != 0) {
            return Err(DropReason::SourceRouted);
        }
        if number == FRAGMENT {
            // A second one could hide the first.
            if had_fragment_header {
                return Err(DropReason::Malformed);
            }
            had_fragment_header = true;
            at.fragment = Fragment::of_ipv6(header);
        }
        at.protocol = Protocol(header[0]);
        at.offset += match number {
            FRAGMENT => 8,
            // It counts words of four bytes, less two (RFC 4302, 2.2).
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if at.offset > end {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::Malformed)
}
