//! Bytes to fields: checked reads at offsets, and the walk over IPv6 extension headers.
//!
//! [`checksum`] has the arithmetic of RFC 1071 and RFC 1624.

pub mod checksum;

use crate::DropReason;
use crate::address::Protocol;

/// Length of an Ethernet header without VLAN tags, in bytes.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options, in bytes.
pub const IPV4_LEN: usize = 20;
/// Length of the fixed IPv6 header, in bytes.
pub const IPV6_LEN: usize = 40;
/// Length of a TCP header without options, in bytes.
pub const TCP_LEN: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_LEN: usize = 8;
/// Length of the part of an ICMP or ICMPv6 header that every message has, in bytes.
pub const ICMP_LEN: usize = 8;
/// EtherType of IPv4 (IEEE 802 numbers).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
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

/// What follows the extension headers of an IPv6 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Transport {
    /// The upper-layer protocol.
    pub protocol: Protocol,
    /// Where its header begins.
    pub offset: usize,
    /// Identification and whether it is the first, of a fragment. A packet in one piece with a
    /// fragment header ("atomic fragment", RFC 6946) is none.
    pub fragment: Option<(u32, bool)>,
}

/// Walks the extension headers from `offset` to at most `end` (RFC 8200, 4).
///
/// # Errors
/// [`DropReason::Truncated`] when one ends beyond the packet, [`DropReason::Malformed`] for more
/// than [`EXTENSIONS_MAX`], [`DropReason::SourceRouted`] for a routing header that has segments
/// left (type 0 always, RFC 5095).
#[inline]
pub fn ipv6_extensions(
    bytes: &[u8],
    first: u8,
    offset: usize,
    end: usize,
) -> Result<Ipv6Transport, DropReason> {
    let mut at = Ipv6Transport { protocol: Protocol(first), offset, fragment: None };
    for _ in 0..=EXTENSIONS_MAX {
        let is_later_fragment = at.fragment.is_some_and(|(_, is_first)| !is_first);
        if is_later_fragment || !matches!(at.protocol.0, 0 | 43 | 44 | 51 | 60) {
            return Ok(at);
        }
        let header: &[u8; 8] = array_at(bytes, at.offset).ok_or(DropReason::Truncated)?;
        let len = match at.protocol.0 {
            44 => 8,
            // The authentication header counts words of four bytes, less two (RFC 4302, 2.2).
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if at.protocol.0 == 43 && (header[2] == 0 || header[3] != 0) {
            return Err(DropReason::SourceRouted);
        }
        if at.protocol.0 == 44 {
            let field = u16::from_be_bytes([header[2], header[3]]);
            let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            // Offset or more fragments.
            if field & 0xfff9 != 0 {
                at.fragment = Some((identification, field & 0xfff8 == 0));
            }
        }
        at.protocol = Protocol(header[0]);
        at.offset += len;
        if at.offset > end {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::Malformed)
}
