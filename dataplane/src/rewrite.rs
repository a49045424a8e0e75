//! Changes to a packet: decided elsewhere as a value, applied here in one place.
//!
//! Checksums are changed by what changed (RFC 1624), so that a packet that was damaged on its way
//! here stays recognisable as damaged.

use crate::DropReason;
use crate::address::{MacAddr, Protocol};
use crate::buffer::Buffer;
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::packet::{PLAIN_LEN, Packet, PacketKind, quoted};
use crate::wire::checksum::{Delta, Sum, pseudo_header};
use crate::wire::crc32c::{self, Crc32c};
use crate::wire::{self, ETHERNET_LEN, IPV4_LEN};

/// What a packet is to look like when it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// Its tuple.
    pub tuple: FlowKey,
    /// Source link address.
    pub source_mac: MacAddr,
    /// Destination link address.
    pub destination_mac: MacAddr,
    /// Whether this node is a hop that counts.
    pub decrement_ttl: bool,
}

/// Writes the Ethernet addresses.
#[inline(always)]
pub fn set_link_addresses(bytes: &mut [u8], source: MacAddr, destination: MacAddr) {
    if let Some(header) = wire::array_at_mut::<12>(bytes, 0) {
        header[..6].copy_from_slice(&destination.0);
        header[6..].copy_from_slice(&source.0);
    }
}

/// Applies `change` to a parsed packet.
///
/// # Errors
/// [`DropReason::Malformed`] when the change is of another family than the packet.
#[inline(always)]
pub fn apply(change: &Rewrite, packet: &Packet, bytes: &mut [u8]) -> Result<(), DropReason> {
    if let (FlowKey::V4(old), FlowKey::V4(new)) = (packet.key(), &change.tuple)
        && packet.is_plain()
        && let Some(frame) = bytes.first_chunk_mut()
    {
        set_plain(frame, change, old, new);
        return Ok(());
    }
    set_link_addresses(bytes, change.source_mac, change.destination_mac);
    match (packet.flow_key(), change.tuple) {
        (FlowKey::V4(old), FlowKey::V4(new)) => {
            let addresses = set_ipv4(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl)?;
            if old == new {
                return Ok(());
            }
            let ports = Ports {
                old: (old.source_port(), old.destination_port()),
                new: (new.source_port(), new.destination_port()),
            };
            set_l4(bytes, packet, old.protocol, ports, addresses)
        }
        (FlowKey::V6(old), FlowKey::V6(new)) => {
            let addresses = set_ipv6(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl)?;
            if old == new {
                return Ok(());
            }
            let ports = Ports {
                old: (old.source_port, old.destination_port),
                new: (new.source_port, new.destination_port),
            };
            set_l4(bytes, packet, old.protocol, ports, addresses)
        }
        _ => Err(DropReason::Malformed),
    }
}

/// All of [`apply`] for whole TCP or UDP over IPv4 without options, whose headers lie at fixed
/// places: in whole words, without a look at lengths.
#[inline(always)]
fn set_plain(frame: &mut [u8; PLAIN_LEN], change: &Rewrite, old: &FlowKey4, new: &FlowKey4) {
    frame[..6].copy_from_slice(&change.destination_mac.0);
    frame[6..12].copy_from_slice(&change.source_mac.0);
    let addresses = Delta::default().word64(old.addresses(), new.addresses());
    let mut header = addresses;
    if change.decrement_ttl {
        let before = u16::from_be_bytes([frame[22], frame[23]]);
        let after = before.wrapping_sub(0x0100);
        frame[22..24].copy_from_slice(&after.to_be_bytes());
        header = header.word(before, after);
    }
    let checksum = header.apply(u16::from_be_bytes([frame[24], frame[25]]));
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[26..34].copy_from_slice(&new.addresses().to_be_bytes());
    if old.addresses() == new.addresses() && old.ports() == new.ports() {
        return;
    }
    frame[34..38].copy_from_slice(&new.ports().to_be_bytes());
    let delta = addresses.word32(old.ports(), new.ports());
    match old.protocol {
        Protocol::TCP => update(frame, PLAIN_LEN - 4, delta, Zero::IsASum),
        _ => update(frame, 40, delta, Zero::MeansNone),
    }
}

/// (Source, destination) L4 ports before and after.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) old: (u16, u16),
    pub(crate) new: (u16, u16),
}

/// Writes addresses and TTL into the IPv4 header at `at`; answers what the addresses changed.
#[inline(always)]
fn set_ipv4(
    bytes: &mut [u8],
    at: usize,
    old: &FlowKey4,
    new: &FlowKey4,
    decrement_ttl: bool,
) -> Result<Delta, DropReason> {
    let header: &mut [u8; IPV4_LEN] = wire::array_at_mut(bytes, at).ok_or(DropReason::Truncated)?;
    let addresses = Delta::default().word64(old.addresses(), new.addresses());
    let mut delta = addresses;
    if decrement_ttl {
        let before = u16::from_be_bytes([header[8], header[9]]);
        header[8] = header[8].wrapping_sub(1);
        delta = delta.word(before, u16::from_be_bytes([header[8], header[9]]));
    }
    let checksum = delta.apply(u16::from_be_bytes([header[10], header[11]]));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header[12..20].copy_from_slice(&new.addresses().to_be_bytes());
    Ok(addresses)
}

/// Writes addresses and hop limit into the IPv6 header at `at`; answers what the addresses changed.
fn set_ipv6(
    bytes: &mut [u8],
    at: usize,
    old: &FlowKey6,
    new: &FlowKey6,
    decrement_ttl: bool,
) -> Result<Delta, DropReason> {
    let header: &mut [u8; wire::IPV6_LEN] =
        wire::array_at_mut(bytes, at).ok_or(DropReason::Truncated)?;
    if decrement_ttl {
        header[7] = header[7].wrapping_sub(1);
    }
    header[8..24].copy_from_slice(&new.source.to_be_bytes());
    header[24..40].copy_from_slice(&new.destination.to_be_bytes());
    Ok(Delta::default().word128(old.source, new.source).word128(old.destination, new.destination))
}

/// Writes ports or identifier and the L4 checksum of a whole packet or first fragment.
#[inline(always)]
fn set_l4(
    bytes: &mut [u8],
    packet: &Packet,
    protocol: Protocol,
    ports: Ports,
    addresses: Delta,
) -> Result<(), DropReason> {
    if matches!(packet.kind, PacketKind::LaterFragment { .. }) {
        return Ok(());
    }
    let l4 = bytes.get_mut(packet.l4_offset..).ok_or(DropReason::Truncated)?;
    if protocol == Protocol::SCTP && ports.old != ports.new {
        set_sctp_checksum(l4, packet, ports)?;
    }
    set_l4_header(l4, protocol, ports, addresses);
    Ok(())
}

/// SCTP's checksum after a change of ports; it covers no addresses (RFC 9260, 6.8).
#[cold]
fn set_sctp_checksum(l4: &mut [u8], packet: &Packet, ports: Ports) -> Result<(), DropReason> {
    // It covers what the other fragments carry, and its change depends on how much that is.
    if packet.kind != PacketKind::Sctp {
        return Err(DropReason::SctpFragment);
    }
    let length = ETHERNET_LEN + packet.ip_len - packet.l4_offset;
    let following = u16::try_from(length.saturating_sub(4)).map_err(|_| DropReason::Malformed)?;
    let field: &mut [u8; 4] = wire::array_at_mut(l4, 8).ok_or(DropReason::Truncated)?;
    let bytes = |(source, destination): (u16, u16)| {
        let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
        [a, b, c, d]
    };
    *field = crc32c::changed(*field, bytes(ports.old), bytes(ports.new), following);
    Ok(())
}

/// The same for any L4 header, of which a quoted packet may have lost its end.
#[inline(always)]
pub(crate) fn set_l4_header(l4: &mut [u8], protocol: Protocol, ports: Ports, addresses: Delta) {
    let with_ports = addresses.word(ports.old.0, ports.new.0).word(ports.old.1, ports.new.1);
    match protocol {
        Protocol::TCP => {
            set_ports(l4, ports.new);
            update(l4, 16, with_ports, Zero::IsASum);
        }
        Protocol::UDP => {
            set_ports(l4, ports.new);
            update(l4, 6, with_ports, Zero::MeansNone);
        }
        // Echo and timestamp alone carry an identifier there; ICMP's checksum covers no addresses
        // (RFC 792).
        Protocol::ICMP if matches!(l4.first(), Some(0 | 8 | 13 | 14)) => {
            set_identifier(l4, ports.new.0);
            let delta = Delta::default().word(ports.old.0, ports.new.0);
            update(l4, 2, delta, Zero::IsAllOnes);
        }
        Protocol::ICMPV6 if matches!(l4.first(), Some(128 | 129)) => {
            set_identifier(l4, ports.new.0);
            update(l4, 2, addresses.word(ports.old.0, ports.new.0), Zero::IsASum);
        }
        Protocol::ICMPV6 => update(l4, 2, addresses, Zero::IsASum),
        Protocol::SCTP => set_ports(l4, ports.new),
        _ => {}
    }
}

#[inline(always)]
fn set_ports(l4: &mut [u8], (source, destination): (u16, u16)) {
    if let Some(ports) = wire::array_at_mut::<4>(l4, 0) {
        ports[..2].copy_from_slice(&source.to_be_bytes());
        ports[2..].copy_from_slice(&destination.to_be_bytes());
    }
}

fn set_identifier(l4: &mut [u8], identifier: u16) {
    if let Some(field) = wire::array_at_mut::<2>(l4, 4) {
        *field = identifier.to_be_bytes();
    }
}

/// What a checksum of zero is to a protocol.
#[derive(Clone, Copy)]
enum Zero {
    /// A value as any other.
    IsASum,
    /// UDP sends none as zero, and a computed zero as all ones (RFC 768).
    MeansNone,
    /// Without a pseudo-header a message may be zero throughout, and then only all ones, the other
    /// zero of one's complement, verifies; elsewhere both do.
    IsAllOnes,
}

/// Updates the checksum at `at`, when the header reaches that far.
#[inline(always)]
fn update(l4: &mut [u8], at: usize, delta: Delta, zero: Zero) {
    let Some(field) = wire::array_at_mut::<2>(l4, at) else { return };
    let before = u16::from_be_bytes(*field);
    if before == 0 && matches!(zero, Zero::MeansNone) {
        return;
    }
    *field = match delta.apply(before) {
        0 if !matches!(zero, Zero::IsASum) => [0xff; 2],
        after => after.to_be_bytes(),
    };
}

/// Applies `change` to an ICMP error, inside as well: the quoted packet becomes `sent`, the tuple
/// its sender sent (RFC 5508, REQ-4 and REQ-5).
///
/// # Errors
/// [`DropReason::Malformed`] when the error's own checksum is wrong: it is made anew here, and a
/// damaged or forged error must not come out mended.
pub fn apply_to_error(
    change: &Rewrite,
    sent: &FlowKey,
    packet: &Packet,
    bytes: &mut [u8],
) -> Result<(), DropReason> {
    let quote = quoted(packet, bytes)?;
    let end = ETHERNET_LEN + packet.ip_len;
    let outer = packet.flow_key();
    let is_v6 = matches!(outer, FlowKey::V6(_));
    if icmp_sum(bytes, packet, end, is_v6)?.fold() != 0xffff {
        return Err(DropReason::Malformed);
    }
    // The other end itself reports under the address its peer knows it by; a router under its own.
    let source = if outer.source() == quote.key.destination() {
        change.tuple.source()
    } else {
        outer.source()
    };
    let tuple = FlowKey::new(outer.protocol(), (source, 0), (change.tuple.destination(), 0))
        .ok_or(DropReason::Malformed)?;
    set_link_addresses(bytes, change.source_mac, change.destination_mac);
    match (outer, tuple, quote.key, *sent) {
        (FlowKey::V4(old), FlowKey::V4(new), FlowKey::V4(was), FlowKey::V4(is)) => {
            set_ipv4(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl)?;
            let inner = set_ipv4(bytes, quote.ip_offset, &was, &is, false)?;
            set_quoted_l4(bytes, quote.l4_offset, end, &quote.key, sent, inner);
        }
        (FlowKey::V6(old), FlowKey::V6(new), FlowKey::V6(was), FlowKey::V6(is)) => {
            set_ipv6(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl)?;
            let inner = set_ipv6(bytes, quote.ip_offset, &was, &is, false)?;
            set_quoted_l4(bytes, quote.l4_offset, end, &quote.key, sent, inner);
        }
        _ => return Err(DropReason::Malformed),
    }
    write_icmp_checksum(bytes, packet, end, is_v6)
}

/// Applies `change`, whose tuple differs in addresses alone, to an ICMP error, and leaves what it quotes as
/// it is.
///
/// # Errors
/// [`DropReason::Malformed`] when the change is of another family than the packet.
pub fn apply_outside(
    change: &Rewrite,
    packet: &Packet,
    bytes: &mut [u8],
) -> Result<(), DropReason> {
    set_link_addresses(bytes, change.source_mac, change.destination_mac);
    match (packet.flow_key(), change.tuple) {
        (FlowKey::V4(old), FlowKey::V4(new)) => {
            set_ipv4(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl).map(drop)
        }
        (FlowKey::V6(old), FlowKey::V6(new)) => {
            let addresses = set_ipv6(bytes, ETHERNET_LEN, &old, &new, change.decrement_ttl)?;
            let l4 = bytes.get_mut(packet.l4_offset..).ok_or(DropReason::Truncated)?;
            update(l4, 2, addresses, Zero::IsASum);
            Ok(())
        }
        _ => Err(DropReason::Malformed),
    }
}

fn set_quoted_l4(
    bytes: &mut [u8],
    at: usize,
    end: usize,
    was: &FlowKey,
    is: &FlowKey,
    addresses: Delta,
) {
    let end = end.min(bytes.len());
    if let Some(l4) = bytes.get_mut(at..end) {
        let ports = Ports {
            old: (was.source_port(), was.destination_port()),
            new: (is.source_port(), is.destination_port()),
        };
        set_l4_header(l4, was.protocol(), ports, addresses);
    }
}

/// The sum over an ICMP message, its checksum field included.
pub(crate) fn icmp_sum(
    bytes: &[u8],
    packet: &Packet,
    end: usize,
    is_v6: bool,
) -> Result<Sum, DropReason> {
    let message = bytes.get(packet.l4_offset..end).ok_or(DropReason::Truncated)?;
    Ok(if is_v6 {
        let addresses =
            bytes.get(ETHERNET_LEN + 8..ETHERNET_LEN + 40).ok_or(DropReason::Truncated)?;
        let protocol = packet.flow_key().protocol().0;
        pseudo_header(addresses, protocol, message.len()).bytes(message)
    } else {
        Sum::default().bytes(message)
    })
}

pub(crate) fn write_icmp_checksum(
    bytes: &mut [u8],
    packet: &Packet,
    end: usize,
    is_v6: bool,
) -> Result<(), DropReason> {
    let at = packet.l4_offset + 2;
    *wire::array_at_mut::<2>(bytes, at).ok_or(DropReason::Truncated)? = [0; 2];
    let checksum = icmp_sum(bytes, packet, end, is_v6)?.checksum();
    *wire::array_at_mut::<2>(bytes, at).ok_or(DropReason::Truncated)? = checksum.to_be_bytes();
    Ok(())
}

/// Finishes the checksum of a frame that a local stack left to a device to finish.
///
/// Linux leaves the sum over the pseudo-header, folded and not complemented, in the field
/// (`CHECKSUM_PARTIAL`, kernel document "Checksum Offloads"). One finished checksum in 65,536
/// happens to look the same; computing it again is then merely work done twice. Of SCTP it leaves
/// zero.
pub fn finish_checksum<B: Buffer>(packet: &Packet, buffer: &mut B) {
    let field = match packet.kind {
        PacketKind::Tcp => packet.l4_offset + 16,
        PacketKind::Udp => packet.l4_offset + 6,
        PacketKind::Sctp => return finish_sctp(packet, buffer),
        _ => return,
    };
    let bytes = buffer.bytes();
    let addresses = match packet.flow_key() {
        FlowKey::V4(_) => bytes.get(ETHERNET_LEN + 12..ETHERNET_LEN + 20),
        FlowKey::V6(_) => bytes.get(ETHERNET_LEN + 8..ETHERNET_LEN + 40),
    };
    let (Some(addresses), Some(found)) = (addresses, wire::u16_at(bytes, field)) else { return };
    let end = ETHERNET_LEN + packet.ip_len;
    let protocol = packet.flow_key().protocol();
    if pseudo_header(addresses, protocol.0, end - packet.l4_offset).fold() != found {
        return;
    }
    let checksum = sum_range(buffer, packet.l4_offset, end).checksum();
    let checksum = if protocol == Protocol::UDP && checksum == 0 { 0xffff } else { checksum };
    if let Some(slot) = wire::array_at_mut::<2>(buffer.bytes_mut(), field) {
        *slot = checksum.to_be_bytes();
    }
}

#[cold]
fn finish_sctp<B: Buffer>(packet: &Packet, buffer: &mut B) {
    let at = packet.l4_offset + 8;
    if wire::array_at::<4>(buffer.bytes(), at) != Some(&[0; 4]) {
        return;
    }
    let (end, mut position, mut sum) = (ETHERNET_LEN + packet.ip_len, 0, Crc32c::NONE);
    buffer.for_each_chunk(&mut |chunk| {
        let first = packet.l4_offset.saturating_sub(position).min(chunk.len());
        let last = end.saturating_sub(position).min(chunk.len());
        sum = sum.bytes(chunk.get(first..last).unwrap_or_default());
        position += chunk.len();
    });
    if let Some(field) = wire::array_at_mut::<4>(buffer.bytes_mut(), at) {
        *field = sum.field();
    }
}

/// The sum over bytes `from..to` of the packet, across chunks; a chunk that begins at an odd
/// distance from `from` counts with its bytes swapped (RFC 1071, 2 B).
pub(crate) fn sum_range<B: Buffer>(buffer: &B, from: usize, to: usize) -> Sum {
    let mut sum = Sum::default();
    let mut position = 0;
    buffer.for_each_chunk(&mut |chunk| {
        let first = from.saturating_sub(position).min(chunk.len());
        let last = to.saturating_sub(position).min(chunk.len());
        if first < last {
            let part = Sum::default().bytes(&chunk[first..last]).fold();
            let is_odd = (position + first - from) % 2 == 1;
            sum = sum.word(if is_odd { part.swap_bytes() } else { part });
        }
        position += chunk.len();
    });
    sum
}
