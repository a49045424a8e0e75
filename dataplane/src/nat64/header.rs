//! One packet's headers in the other family (RFC 7915, 4.1, 4.5, 5.1 and 5.1.1).
//!
//! A packet is planned first, which changes nothing and says why it cannot be translated and how long
//! it becomes; then it moves in its buffer by what the headers differ. Checksums are changed by what
//! changed, as everywhere, so that damage stays visible.

use std::net::IpAddr;

use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::flow_key::FlowKey;
use crate::packet::{Packet, PacketKind};
use crate::rewrite::{self, Ports, Rewrite};
use crate::wire::checksum::{Delta, Sum, pseudo_header};
use crate::wire::{self, ETHERNET_LEN, Fragment, IPV4_LEN, IPV6_LEN, extension};

/// Length of the IPv6 fragment header, in bytes.
const FRAGMENT_LEN: usize = 8;
/// The longest headers written, in bytes.
pub(super) const HEADERS_LEN: usize = IPV6_LEN + FRAGMENT_LEN;
/// The least MTU of an IPv6 link (RFC 8200, 5), in bytes.
const IPV6_MTU_LEAST: u16 = 1280;
/// An IPv4 packet made of an IPv6 one may be fragmented up to this length (RFC 7915, 5.1), in bytes:
/// what a link of the least IPv6 MTU carries.
const FRAGMENTED_LEN: usize = 1260;

/// What the headers of an IP packet say in either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Type of service or traffic class.
    pub class: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes behind the headers, as these say.
    pub payload_len: usize,
    /// What begins there.
    pub protocol: Protocol,
    pub fragment: Option<Fragment>,
}

impl Meaning {
    /// Reads the headers from `at` to `l4_offset`, which parsing has found.
    ///
    /// # Errors
    /// [`DropReason::NoCounterpart`] for an authentication header, which covers the header that is
    /// to be replaced, and for options behind a fragment header: they count as payload there, and the
    /// offsets of later fragments with them.
    pub(super) fn read(
        bytes: &[u8],
        at: usize,
        l4_offset: usize,
        key: &FlowKey,
    ) -> Result<Self, DropReason> {
        let headers_len = l4_offset.checked_sub(at).ok_or(DropReason::Malformed)?;
        let protocol = key.protocol();
        match key {
            FlowKey::V4(_) => {
                let header: &[u8; IPV4_LEN] =
                    wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
                let ip_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                Ok(Self {
                    class: header[1],
                    ttl: header[8],
                    payload_len: ip_len.checked_sub(headers_len).ok_or(DropReason::Malformed)?,
                    protocol,
                    fragment: Fragment::of_ipv4(header),
                })
            }
            FlowKey::V6(_) => {
                let header: &[u8; IPV6_LEN] =
                    wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
                let ip_len = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
                Ok(Self {
                    class: header[0] << 4 | header[1] >> 4,
                    ttl: header[7],
                    payload_len: ip_len.checked_sub(headers_len).ok_or(DropReason::Malformed)?,
                    protocol,
                    fragment: fragment_of(bytes, header[6], at + IPV6_LEN, l4_offset)?,
                })
            }
        }
    }

    /// Length of the headers that [`Self::write`] writes toward `destination`'s family, in bytes.
    pub(super) fn headers_len(&self, destination: IpAddr) -> usize {
        match destination {
            IpAddr::V4(_) => IPV4_LEN,
            IpAddr::V6(_) if self.fragment.is_some() => IPV6_LEN + FRAGMENT_LEN,
            IpAddr::V6(_) => IPV6_LEN,
        }
    }

    /// Writes the headers of the family of `key`, the tuple that the packet gets.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when `into` is shorter than they are.
    pub(super) fn write(
        &self,
        key: &FlowKey,
        identification: u16,
        into: &mut [u8],
    ) -> Result<(), DropReason> {
        match (key.source(), key.destination()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = into.first_chunk_mut().ok_or(DropReason::Truncated)?;
                self.write_ipv4(header, identification);
                header[12..16].copy_from_slice(&source.octets());
                header[16..].copy_from_slice(&destination.octets());
                let checksum = Sum::default().bytes(header).checksum();
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                Ok(())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.write_ipv6(into)?;
                let header: &mut [u8; IPV6_LEN] =
                    into.first_chunk_mut().ok_or(DropReason::Truncated)?;
                header[8..24].copy_from_slice(&source.octets());
                header[24..].copy_from_slice(&destination.octets());
                Ok(())
            }
            _ => Err(DropReason::Malformed),
        }
    }

    /// RFC 7915, 5.1 and 5.1.1. What is short enough for any IPv6 link may be fragmented further on,
    /// since its sender may not look for a shorter path.
    fn write_ipv4(&self, header: &mut [u8; IPV4_LEN], identification: u16) {
        let ip_len = IPV4_LEN + self.payload_len;
        let (identification, field) = match self.fragment {
            Some(fragment) => {
                let [.., a, b] = fragment.identification.to_be_bytes();
                let more = if fragment.more { 0x2000 } else { 0 };
                (u16::from_be_bytes([a, b]), fragment.offset >> 3 | more)
            }
            None if ip_len <= FRAGMENTED_LEN => (identification, 0),
            None => (0, 0x4000),
        };
        header.fill(0);
        header[0] = 0x45;
        header[1] = self.class;
        header[2..4].copy_from_slice(&u16::try_from(ip_len).unwrap_or(u16::MAX).to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[6..8].copy_from_slice(&field.to_be_bytes());
        header[8] = self.ttl;
        header[9] = self.protocol.0;
    }

    /// RFC 7915, 4.1.
    fn write_ipv6(&self, into: &mut [u8]) -> Result<(), DropReason> {
        let fragment_len = self.fragment.map_or(0, |_| FRAGMENT_LEN);
        let payload_len = u16::try_from(self.payload_len + fragment_len).unwrap_or(u16::MAX);
        let header: &mut [u8; IPV6_LEN] = into.first_chunk_mut().ok_or(DropReason::Truncated)?;
        header.fill(0);
        header[0] = 0x60 | self.class >> 4;
        header[1] = self.class << 4;
        header[4..6].copy_from_slice(&payload_len.to_be_bytes());
        header[6] = self.fragment.map_or(self.protocol.0, |_| extension::FRAGMENT);
        header[7] = self.ttl;
        if let Some(fragment) = self.fragment {
            let header: &mut [u8; FRAGMENT_LEN] =
                wire::array_at_mut(into, IPV6_LEN).ok_or(DropReason::Truncated)?;
            *header = [0; FRAGMENT_LEN];
            header[0] = self.protocol.0;
            let field = fragment.offset | u16::from(fragment.more);
            header[2..4].copy_from_slice(&field.to_be_bytes());
            header[4..].copy_from_slice(&fragment.identification.to_be_bytes());
        }
        Ok(())
    }
}

/// What the extension headers from `at` to `l4_offset` say about fragments. Those that have done their
/// work are left out of an IPv4 packet (RFC 7915, 5.1).
fn fragment_of(
    bytes: &[u8],
    mut number: u8,
    mut at: usize,
    l4_offset: usize,
) -> Result<Option<Fragment>, DropReason> {
    let mut fragment = None;
    // Each is eight bytes at least, and parsing has counted them.
    while at < l4_offset {
        if number == extension::AUTHENTICATION || fragment.is_some() {
            return Err(DropReason::NoCounterpart);
        }
        let header: &[u8; 8] = wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
        at += match number {
            extension::FRAGMENT => {
                fragment = Fragment::of_ipv6(header);
                FRAGMENT_LEN
            }
            _ => (usize::from(header[1]) + 1) * 8,
        };
        number = header[0];
    }
    Ok(fragment)
}

/// How a packet changes family.
#[derive(Debug, Clone, Copy)]
pub struct Translation {
    meaning: Meaning,
    old_len: usize,
    new_len: usize,
    /// Whether it is a datagram whose sender computed no checksum.
    lacks_checksum: bool,
}

/// Plans the translation of `packet`, TCP or UDP or a fragment of either, toward `target` of the other
/// family.
///
/// # Errors
/// [`DropReason::NoCounterpart`] and [`DropReason::UdpNoChecksum`] for what cannot be translated,
/// [`DropReason::Malformed`] when the target is of the packet's own family.
pub fn plan(packet: &Packet, bytes: &[u8], target: &FlowKey) -> Result<Translation, DropReason> {
    let key = packet.flow_key();
    let protocol = key.protocol();
    if matches!(key, FlowKey::V4(_)) == matches!(target, FlowKey::V4(_)) {
        return Err(DropReason::Malformed);
    }
    if !matches!(protocol, Protocol::TCP | Protocol::UDP) {
        return Err(DropReason::NoCounterpart);
    }
    let meaning = Meaning::read(bytes, ETHERNET_LEN, packet.l4_offset, &key)?;
    let has_udp_header =
        protocol == Protocol::UDP && !matches!(packet.kind, PacketKind::LaterFragment { .. });
    let lacks_checksum = has_udp_header && wire::u16_at(bytes, packet.l4_offset + 6) == Some(0);
    // RFC 7915, 4.5: of a fragment alone it cannot be computed. RFC 8200, 8.1: IPv6 demands one.
    if lacks_checksum && (meaning.fragment.is_some() || matches!(key, FlowKey::V6(_))) {
        return Err(DropReason::UdpNoChecksum);
    }
    Ok(Translation {
        meaning,
        old_len: packet.l4_offset - ETHERNET_LEN,
        new_len: meaning.headers_len(target.destination()),
        lacks_checksum,
    })
}

impl Translation {
    /// The length of the IP packet to come, in bytes.
    #[must_use]
    pub fn ip_len(&self, packet: &Packet) -> usize {
        (packet.ip_len + self.new_len).saturating_sub(self.old_len)
    }

    /// What packets like this one may have so that they fit into `mtu` afterwards, in bytes. For IPv6
    /// it is no less than every link has, which nobody would believe (RFC 8201, 4).
    #[must_use]
    pub fn mtu_before(&self, mtu: u16) -> u16 {
        if self.new_len == IPV4_LEN {
            return mtu.saturating_add(20).max(IPV6_MTU_LEAST);
        }
        mtu.saturating_sub(if self.meaning.fragment.is_some() { 28 } else { 20 })
    }

    /// Makes it one of the other family, with `identification` if it becomes an IPv4 packet that has
    /// none.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] without headroom for the longer header; then nothing has changed.
    pub fn apply<B: Buffer>(
        &self,
        change: &Rewrite,
        packet: &Packet,
        buffer: &mut B,
        identification: u16,
    ) -> Result<(), DropReason> {
        let Self { meaning, old_len, new_len, .. } = *self;
        // An IPv4 header with many options is the longer one.
        match new_len.checked_sub(old_len) {
            Some(more) => buffer.grow_front(more)?,
            None => buffer.shrink_front(old_len - new_len)?,
        }
        let end = ETHERNET_LEN + self.ip_len(packet);
        // Padding of a short frame is no part of the longer one.
        if end < buffer.len() && buffer.len() == buffer.bytes().len() {
            buffer.set_len(end)?;
        }
        let ttl = meaning.ttl.saturating_sub(u8::from(change.decrement_ttl));
        let bytes = buffer.bytes_mut();
        write_link_header(bytes, change)?;
        let ip = bytes.get_mut(ETHERNET_LEN..).ok_or(DropReason::Truncated)?;
        Meaning { ttl, ..meaning }.write(&change.tuple, identification, ip)?;
        if matches!(packet.kind, PacketKind::LaterFragment { .. }) {
            return Ok(());
        }
        let l4_offset = ETHERNET_LEN + new_len;
        let (old, new) = (packet.flow_key(), change.tuple);
        let l4 = bytes.get_mut(l4_offset..).ok_or(DropReason::Truncated)?;
        translate_l4(l4, &old, &new);
        if self.lacks_checksum {
            complete_udp(buffer, &new, l4_offset)?;
        }
        Ok(())
    }
}

/// Link addresses and the type of the tuple's family.
pub(super) fn write_link_header(bytes: &mut [u8], change: &Rewrite) -> Result<(), DropReason> {
    rewrite::set_link_addresses(bytes, change.source_mac, change.destination_mac);
    let ethertype = match change.tuple {
        FlowKey::V4(_) => wire::ETHERTYPE_IPV4,
        FlowKey::V6(_) => wire::ETHERTYPE_IPV6,
    };
    *wire::array_at_mut(bytes, 12).ok_or(DropReason::Truncated)? = ethertype.to_be_bytes();
    Ok(())
}

/// Writes the ports of `new` into a TCP or UDP header that had those of `old`, and what else changes
/// in its checksum: of the pseudo-header the addresses alone, since length and protocol are the same
/// in both families.
pub(super) fn translate_l4(l4: &mut [u8], old: &FlowKey, new: &FlowKey) {
    let ports = Ports {
        old: (old.source_port(), old.destination_port()),
        new: (new.source_port(), new.destination_port()),
    };
    let addresses = instead(without(Delta::default(), old), new);
    rewrite::set_l4_header(l4, old.protocol(), ports, addresses);
}

fn without(delta: Delta, key: &FlowKey) -> Delta {
    match key {
        FlowKey::V4(key) => delta.word64(key.addresses(), 0),
        FlowKey::V6(key) => delta.word128(key.source, 0).word128(key.destination, 0),
    }
}

fn instead(delta: Delta, key: &FlowKey) -> Delta {
    match key {
        FlowKey::V4(key) => delta.word64(0, key.addresses()),
        FlowKey::V6(key) => delta.word128(0, key.source).word128(0, key.destination),
    }
}

/// Computes the checksum of a whole datagram that came without (RFC 7915, 4.5).
fn complete_udp<B: Buffer>(
    buffer: &mut B,
    key: &FlowKey,
    l4_offset: usize,
) -> Result<(), DropReason> {
    let bytes = buffer.bytes();
    let udp_len = wire::u16_at(bytes, l4_offset + 4).ok_or(DropReason::Truncated)?;
    let addresses =
        bytes.get(ETHERNET_LEN + 8..ETHERNET_LEN + IPV6_LEN).ok_or(DropReason::Truncated)?;
    let pseudo = pseudo_header(addresses, key.protocol().0, udp_len.into()).fold();
    let sum = rewrite::sum_range(buffer, l4_offset, l4_offset + usize::from(udp_len));
    let checksum = match sum.word(pseudo).checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    let field = wire::array_at_mut(buffer.bytes_mut(), l4_offset + 6);
    *field.ok_or(DropReason::Truncated)? = checksum.to_be_bytes();
    Ok(())
}
