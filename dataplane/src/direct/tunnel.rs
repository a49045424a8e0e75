//! The client's packet in another: IP in IP, and Geneve.
//!
//! ```text
//! IP in IP   IP to the backend | the client's packet
//! Geneve     IP to the node | UDP to 6081 | Geneve | class 0xfff0, type 0x81: L4 port, address | the packet
//! ```
//! The outer header takes over traffic class, ECN (RFC 6040, 4.1, normal mode) and, of IPv4, whether it
//! may be fragmented (RFC 2003, 3.1). The packet within was decremented once, as where it enters a tunnel
//! (RFC 2003, 3.1).

use std::net::IpAddr;

use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::packet::{Packet, PacketKind};
use crate::wire::checksum::Sum;
use crate::wire::{self, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN};

/// IPv4 in another packet (IANA "Protocol Numbers").
const IPV4_WITHIN: u8 = 4;
/// IPv6 in another packet.
const IPV6_WITHIN: u8 = 41;
/// Geneve's L4 port (RFC 8926, 3.3).
pub const GENEVE_PORT: u16 = 6081;
/// Length of the Geneve header without options, in bytes (RFC 8926, 3.4).
const GENEVE_LEN: usize = 8;
/// Our option's class, of those for experiments (RFC 8926, 7), and type, with the bit that whoever does not
/// know it must drop the packet (3.5).
const OPTION_CLASS: u16 = 0xfff0;
const OPTION_TYPE: u8 = 0x81;
/// Length of an option's header, in bytes.
const OPTION_HEADER_LEN: usize = 4;
/// TTL and hop limit of what this node sends (IANA "IP Parameters").
const TTL: u8 = 64;
/// Bytes of the packet within that are looked at: its headers must be among them.
const LOOKED_AT: usize = 192;

/// Bytes between the outer IP header and the packet within, of Geneve.
#[must_use]
pub const fn geneve_len(is_ipv4: bool) -> usize {
    UDP_LEN + GENEVE_LEN + OPTION_HEADER_LEN + backend_len(is_ipv4)
}

/// Bytes of a backend in our option: L4 port and address, in words of four bytes.
const fn backend_len(is_ipv4: bool) -> usize {
    if is_ipv4 { 8 } else { 20 }
}

/// A packet around another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// This node's address.
    pub source: IpAddr,
    /// Where it goes: to the backend, or to its node.
    pub destination: IpAddr,
    /// The backend, for Geneve.
    pub backend: Option<(IpAddr, u16)>,
    /// For an IPv4 packet that may be fragmented.
    pub identification: u16,
    /// What tells flows apart on the way (RFC 8926, 3.3): of the outer source port.
    pub entropy: u16,
}

/// Wraps `packet`, whose bytes are as they are to arrive.
///
/// # Errors
/// [`DropReason::NoRoom`] without headroom, or for a packet that becomes longer than IP allows.
pub fn wrap<B: Buffer>(outer: &Outer, packet: &Packet, buffer: &mut B) -> Result<(), DropReason> {
    let is_ipv4 = outer.destination.is_ipv4();
    // Padding of a short frame is no part of the longer one.
    let end = ETHERNET_LEN + packet.ip_len;
    if end < buffer.len() && buffer.len() == buffer.bytes().len() {
        buffer.set_len(end)?;
    }
    let middle = if outer.backend.is_some() { geneve_len(is_ipv4) } else { 0 };
    let header_len = if is_ipv4 { IPV4_LEN } else { IPV6_LEN };
    let (added, inner_len) = (header_len + middle, packet.ip_len);
    let payload_len = u16::try_from(middle + inner_len).map_err(|_| DropReason::NoRoom)?;
    let first: [u8; 8] =
        *wire::array_at(buffer.bytes(), ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    buffer.grow_front(added)?;
    let bytes = buffer.bytes_mut();
    if bytes.len() < added + ETHERNET_LEN {
        return Err(DropReason::Truncated);
    }
    bytes.copy_within(added..added + ETHERNET_LEN, 0);
    let into = bytes.get_mut(ETHERNET_LEN..ETHERNET_LEN + added).ok_or(DropReason::Truncated)?;
    let (header, between) = into.split_at_mut(header_len);
    match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = header.first_chunk_mut().ok_or(DropReason::Truncated)?;
            let len = payload_len.checked_add(20).ok_or(DropReason::NoRoom)?;
            write_ipv4(outer, &first, len, header);
            header[12..16].copy_from_slice(&source.octets());
            header[16..].copy_from_slice(&destination.octets());
            let checksum = Sum::default().bytes(header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header: &mut [u8; IPV6_LEN] =
                header.first_chunk_mut().ok_or(DropReason::Truncated)?;
            header.fill(0);
            // Version, traffic class and flow label of the packet within (RFC 6438, 3).
            header[..4].copy_from_slice(&first[..4]);
            header[4..6].copy_from_slice(&payload_len.to_be_bytes());
            header[6] = if outer.backend.is_some() { Protocol::UDP.0 } else { IPV6_WITHIN };
            header[7] = TTL;
            header[8..24].copy_from_slice(&source.octets());
            header[24..].copy_from_slice(&destination.octets());
        }
        _ => return Err(DropReason::Malformed),
    }
    match outer.backend {
        Some(backend) => write_geneve(outer.entropy, backend, payload_len, between),
        None => Ok(()),
    }
}

/// All but the addresses and the checksum.
fn write_ipv4(outer: &Outer, first: &[u8; 8], len: u16, header: &mut [u8; IPV4_LEN]) {
    header.fill(0);
    (header[0], header[1]) = (0x45, first[1]);
    header[2..4].copy_from_slice(&len.to_be_bytes());
    let may_fragment = first[6] & 0x40 == 0;
    if may_fragment {
        header[4..6].copy_from_slice(&outer.identification.to_be_bytes());
    } else {
        header[6] = 0x40;
    }
    header[8] = TTL;
    header[9] = if outer.backend.is_some() { Protocol::UDP.0 } else { IPV4_WITHIN };
}

fn write_geneve(
    entropy: u16,
    (address, l4_port): (IpAddr, u16),
    len: u16,
    into: &mut [u8],
) -> Result<(), DropReason> {
    let is_ipv4 = address.is_ipv4();
    into.fill(0);
    let (udp, geneve) = into.split_at_mut(UDP_LEN);
    // Of the dynamic ports (RFC 6335, 6), which RFC 8926, 3.3 recommends. No checksum: the packet within
    // has its own, in IPv6 too (RFC 6936, 4).
    udp[..2].copy_from_slice(&(0xc000 | entropy).to_be_bytes());
    udp[2..4].copy_from_slice(&GENEVE_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    let header: &mut [u8; GENEVE_LEN + OPTION_HEADER_LEN] =
        geneve.first_chunk_mut().ok_or(DropReason::Truncated)?;
    let [option_words, backend_words] = if is_ipv4 { [3, 2] } else { [6, 5] };
    header[0] = option_words;
    // Critical options are there.
    header[1] = 0x40;
    let ethertype = if is_ipv4 { wire::ETHERTYPE_IPV4 } else { wire::ETHERTYPE_IPV6 };
    header[2..4].copy_from_slice(&ethertype.to_be_bytes());
    header[8..10].copy_from_slice(&OPTION_CLASS.to_be_bytes());
    (header[10], header[11]) = (OPTION_TYPE, backend_words);
    let backend = geneve.get_mut(GENEVE_LEN + OPTION_HEADER_LEN..).ok_or(DropReason::Truncated)?;
    backend[..2].copy_from_slice(&l4_port.to_be_bytes());
    match address {
        IpAddr::V4(address) => backend[4..8].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => backend[4..20].copy_from_slice(&address.octets()),
    }
    Ok(())
}

/// A packet found in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// As it will be once it is taken out.
    pub packet: Packet,
    /// Who wrapped it.
    pub wrapped_by: IpAddr,
    /// The backend's address.
    pub backend: IpAddr,
    /// Its L4 port, where the form names it.
    pub l4_port: Option<u16>,
    /// Bytes to cut off in front.
    pub wrapping: usize,
}

/// The packet within an IP in IP packet; `None` where it is none.
///
/// # Errors
/// As [`Packet::parse`] of the packet within; [`DropReason::Malformed`] for one that no client can have
/// sent to a service: not TCP or UDP, nor an ICMP error.
pub fn read_ipip(packet: &Packet, bytes: &[u8], len: usize) -> Result<Option<Inner>, DropReason> {
    let key = packet.flow_key();
    let is_ipv4 = key.destination().is_ipv4();
    let wanted = if is_ipv4 { IPV4_WITHIN } else { IPV6_WITHIN };
    if packet.kind != PacketKind::Other || key.protocol().0 != wanted {
        return Ok(None);
    }
    let inner = read_within(packet, bytes, len, (packet.l4_offset, is_ipv4))?;
    let (wrapped_by, backend) = (key.source(), key.destination());
    let wrapping = packet.l4_offset - ETHERNET_LEN;
    Ok(Some(Inner { packet: inner, wrapped_by, backend, l4_port: None, wrapping }))
}

/// The packet within a Geneve packet of ours; `None` where it is none.
///
/// # Errors
/// As [`read_ipip`].
pub fn read_geneve(packet: &Packet, bytes: &[u8], len: usize) -> Result<Option<Inner>, DropReason> {
    let key = packet.flow_key();
    if packet.kind != PacketKind::Udp || key.destination_port() != GENEVE_PORT {
        return Ok(None);
    }
    let at = packet.l4_offset + UDP_LEN;
    let Some(header) = wire::array_at::<{ GENEVE_LEN + OPTION_HEADER_LEN }>(bytes, at) else {
        return Ok(None);
    };
    let ethertype = u16::from_be_bytes([header[2], header[3]]);
    let is_ipv4 = match ethertype {
        wire::ETHERTYPE_IPV4 => true,
        wire::ETHERTYPE_IPV6 => false,
        _ => return Ok(None),
    };
    // Another version, other options, a virtual network: somebody else's tunnel (RFC 8926, 3.4).
    let [option_words, backend_words] = if is_ipv4 { [3, 2] } else { [6, 5] };
    let is_ours = header[0] == option_words
        && header[4..7] == [0; 3]
        && header[8..10] == OPTION_CLASS.to_be_bytes()
        && header[10] == OPTION_TYPE
        && header[11] & 0x1f == backend_words;
    if !is_ours {
        return Ok(None);
    }
    let at = at + GENEVE_LEN + OPTION_HEADER_LEN;
    let backend = bytes.get(at..at + backend_len(is_ipv4)).ok_or(DropReason::Truncated)?;
    let address = match is_ipv4 {
        true => wire::array_at::<4>(backend, 4).map(|octets| IpAddr::from(*octets)),
        false => wire::array_at::<16>(backend, 4).map(|octets| IpAddr::from(*octets)),
    };
    let at = at + backend_len(is_ipv4);
    Ok(Some(Inner {
        packet: read_within(packet, bytes, len, (at, is_ipv4))?,
        wrapped_by: key.source(),
        backend: address.ok_or(DropReason::Truncated)?,
        l4_port: wire::u16_at(backend, 0),
        wrapping: at - ETHERNET_LEN,
    }))
}

/// Parses what begins at `at` of a packet, as a frame of its own.
fn read_within(
    packet: &Packet,
    bytes: &[u8],
    len: usize,
    (at, is_ipv4): (usize, bool),
) -> Result<Packet, DropReason> {
    let mut frame = [0; ETHERNET_LEN + LOOKED_AT];
    let ethertype = if is_ipv4 { wire::ETHERTYPE_IPV4 } else { wire::ETHERTYPE_IPV6 };
    frame[12..ETHERNET_LEN].copy_from_slice(&ethertype.to_be_bytes());
    // A packet that claims to be longer than what it came in is cut off.
    let end = (ETHERNET_LEN + packet.ip_len).min(len);
    let within = bytes.get(at..end.min(bytes.len())).ok_or(DropReason::Truncated)?;
    let looked_at = within.len().min(LOOKED_AT);
    let copied = frame.get_mut(ETHERNET_LEN..ETHERNET_LEN + looked_at);
    copied.ok_or(DropReason::Truncated)?.copy_from_slice(&within[..looked_at]);
    let frame = frame.get(..ETHERNET_LEN + looked_at).ok_or(DropReason::Truncated)?;
    let inner = Packet::parse(frame, ETHERNET_LEN + (end - at))?;
    match inner.kind {
        PacketKind::Tcp | PacketKind::Udp | PacketKind::IcmpError => Ok(inner),
        PacketKind::FirstFragment { .. } | PacketKind::LaterFragment { .. }
            if matches!(inner.flow_key().protocol(), Protocol::TCP | Protocol::UDP) =>
        {
            Ok(inner)
        }
        _ => Err(DropReason::Malformed),
    }
}

/// Takes the packet out.
///
/// # Errors
/// [`DropReason::Truncated`] when the buffer is shorter than it was when it was read.
pub fn unwrap<B: Buffer>(inner: &Inner, buffer: &mut B) -> Result<(), DropReason> {
    let bytes = buffer.bytes_mut();
    if bytes.len() < inner.wrapping + ETHERNET_LEN {
        return Err(DropReason::Truncated);
    }
    bytes.copy_within(..12, inner.wrapping);
    let ethertype = match inner.packet.flow_key() {
        crate::flow_key::FlowKey::V4(_) => wire::ETHERTYPE_IPV4,
        crate::flow_key::FlowKey::V6(_) => wire::ETHERTYPE_IPV6,
    };
    let field = wire::array_at_mut(bytes, inner.wrapping + 12).ok_or(DropReason::Truncated)?;
    *field = ethertype.to_be_bytes();
    buffer.shrink_front(inner.wrapping)
}
