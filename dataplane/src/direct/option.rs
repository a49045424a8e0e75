//! The frontend in the packet's own header: an IPv4 option, or an IPv6 destination option.
//!
//! Both numbers are of those that RFC 4727 sets aside, 3.1 for IPv4 (158: copied into fragments, class
//! control) and 3.3 for IPv6 (0x1e: who does not know it skips it, and it does not change on the way).
//! The option is the first one, so that a client's own of the same number is never taken for it.
//!
//! ```text
//! IPv4   158 | 8 | frontend's L4 port (2) | frontend's address (4)
//! IPv6   next header | 2 | 0x1e | 18 | address (16) | L4 port (2) | PadN (2)
//! ```

use std::net::IpAddr;

use crate::DropReason;
use crate::buffer::Buffer;
use crate::flow_key::FlowKey;
use crate::packet::Packet;
use crate::wire::checksum::Delta;
use crate::wire::{self, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, extension};

/// RFC 4727, 3.1.
const IPV4_OPTION: u8 = 158;
/// RFC 4727, 3.3.
const IPV6_OPTION: u8 = 0x1e;
/// Of the IPv4 option, in bytes.
const IPV4_OPTION_LEN: usize = 8;
/// Of the IPv6 destination options header, in bytes.
const IPV6_OPTIONS_LEN: usize = 24;
/// The longest IPv4 header, in bytes (RFC 791, 3.1).
const IPV4_HEADER_MAX: usize = 60;

/// Bytes of the option, with its header in IPv6.
#[must_use]
pub const fn len(is_ipv4: bool) -> usize {
    if is_ipv4 { IPV4_OPTION_LEN } else { IPV6_OPTIONS_LEN }
}

/// Whether there is room for it in the packet's header.
#[must_use]
pub fn has_room(packet: &Packet) -> bool {
    match packet.flow_key() {
        FlowKey::V4(_) => packet.l4_offset - ETHERNET_LEN + IPV4_OPTION_LEN <= IPV4_HEADER_MAX,
        FlowKey::V6(_) => true,
    }
}

/// Where in an IPv6 packet it stands: hop-by-hop options come first (RFC 8200, 4.1).
fn ipv6_place(bytes: &[u8]) -> Result<usize, DropReason> {
    let at = ETHERNET_LEN + IPV6_LEN;
    if bytes.get(ETHERNET_LEN + 6) != Some(&extension::HOP_BY_HOP) {
        return Ok(at);
    }
    let words = bytes.get(at + 1).ok_or(DropReason::Truncated)?;
    Ok(at + (usize::from(*words) + 1) * 8)
}

/// The header's byte that says what begins at `place`.
fn next_header_before(place: usize) -> usize {
    if place == ETHERNET_LEN + IPV6_LEN { ETHERNET_LEN + 6 } else { ETHERNET_LEN + IPV6_LEN }
}

/// Puts `frontend` into the packet's header. Its addresses are the backend's already.
///
/// # Errors
/// [`DropReason::NoRoom`] without headroom, or room in an IPv4 header.
pub fn insert<B: Buffer>(
    packet: &Packet,
    frontend: (IpAddr, u16),
    buffer: &mut B,
) -> Result<(), DropReason> {
    if !has_room(packet) {
        return Err(DropReason::NoRoom);
    }
    match frontend.0 {
        IpAddr::V4(address) => {
            open_gap(buffer, ETHERNET_LEN + IPV4_LEN, IPV4_OPTION_LEN)?;
            let mut option = [0; IPV4_OPTION_LEN];
            (option[0], option[1]) = (IPV4_OPTION, 8);
            option[2..4].copy_from_slice(&frontend.1.to_be_bytes());
            option[4..].copy_from_slice(&address.octets());
            let bytes = buffer.bytes_mut();
            *wire::array_at_mut(bytes, ETHERNET_LEN + IPV4_LEN).ok_or(DropReason::Truncated)? =
                option;
            lengthen_ipv4(bytes, true, &option)
        }
        IpAddr::V6(address) => {
            let place = ipv6_place(buffer.bytes())?;
            open_gap(buffer, place, IPV6_OPTIONS_LEN)?;
            let bytes = buffer.bytes_mut();
            let next_header =
                bytes.get_mut(next_header_before(place)).ok_or(DropReason::Truncated)?;
            let next = std::mem::replace(next_header, extension::DESTINATION_OPTIONS);
            let mut options = [0; IPV6_OPTIONS_LEN];
            (options[0], options[1]) = (next, 2);
            (options[2], options[3]) = (IPV6_OPTION, 18);
            options[4..20].copy_from_slice(&address.octets());
            options[20..22].copy_from_slice(&frontend.1.to_be_bytes());
            // PadN of no further bytes.
            options[22] = 1;
            *wire::array_at_mut(bytes, place).ok_or(DropReason::Truncated)? = options;
            lengthen_ipv6(bytes, true)
        }
    }
}

/// The frontend that a packet names, if it names one.
#[must_use]
pub fn read(packet: &Packet, bytes: &[u8]) -> Option<(IpAddr, u16)> {
    match packet.flow_key() {
        FlowKey::V4(_) => {
            if packet.l4_offset < ETHERNET_LEN + IPV4_LEN + IPV4_OPTION_LEN {
                return None;
            }
            let option: &[u8; IPV4_OPTION_LEN] = wire::array_at(bytes, ETHERNET_LEN + IPV4_LEN)?;
            let [IPV4_OPTION, 8, a, b, address @ ..] = *option else { return None };
            Some((IpAddr::from(address), u16::from_be_bytes([a, b])))
        }
        FlowKey::V6(_) => {
            let place = ipv6_place(bytes).ok()?;
            let is_there =
                bytes.get(next_header_before(place)) == Some(&extension::DESTINATION_OPTIONS);
            if !is_there || packet.l4_offset < place + IPV6_OPTIONS_LEN {
                return None;
            }
            let options: &[u8; IPV6_OPTIONS_LEN] = wire::array_at(bytes, place)?;
            let [_, 2, IPV6_OPTION, 18, rest @ ..] = options else { return None };
            let address: [u8; 16] = *rest.first_chunk()?;
            Some((IpAddr::from(address), u16::from_be_bytes([rest[16], rest[17]])))
        }
    }
}

/// Takes the option out of a packet that [`read`] found one in.
///
/// # Errors
/// [`DropReason::Truncated`] when the packet is shorter than that.
pub fn remove<B: Buffer>(is_ipv4: bool, buffer: &mut B) -> Result<(), DropReason> {
    let bytes = buffer.bytes_mut();
    if is_ipv4 {
        let at = ETHERNET_LEN + IPV4_LEN;
        let option: [u8; IPV4_OPTION_LEN] =
            *wire::array_at(bytes, at).ok_or(DropReason::Truncated)?;
        lengthen_ipv4(bytes, false, &option)?;
        return close_gap(buffer, at, IPV4_OPTION_LEN);
    }
    let place = ipv6_place(bytes)?;
    let next = *bytes.get(place).ok_or(DropReason::Truncated)?;
    *bytes.get_mut(next_header_before(place)).ok_or(DropReason::Truncated)? = next;
    lengthen_ipv6(bytes, false)?;
    close_gap(buffer, place, IPV6_OPTIONS_LEN)
}

/// Moves the `place` bytes before the gap to the front.
fn open_gap<B: Buffer>(buffer: &mut B, place: usize, len: usize) -> Result<(), DropReason> {
    if place > buffer.bytes().len() {
        return Err(DropReason::Truncated);
    }
    buffer.grow_front(len)?;
    buffer.bytes_mut().copy_within(len..len + place, 0);
    Ok(())
}

fn close_gap<B: Buffer>(buffer: &mut B, place: usize, len: usize) -> Result<(), DropReason> {
    if place + len > buffer.bytes().len() {
        return Err(DropReason::Truncated);
    }
    buffer.bytes_mut().copy_within(..place, len);
    buffer.shrink_front(len)
}

/// The header's lengths and checksum with the option, or without it.
fn lengthen_ipv4(
    bytes: &mut [u8],
    is_longer: bool,
    option: &[u8; IPV4_OPTION_LEN],
) -> Result<(), DropReason> {
    const WORDS: u8 = 2;
    let header: &mut [u8; IPV4_LEN] =
        wire::array_at_mut(bytes, ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let first = u16::from_be_bytes([header[0], header[1]]);
    let ip_len = u16::from_be_bytes([header[2], header[3]]);
    let (words, new_len) = match is_longer {
        true => (header[0].checked_add(WORDS), ip_len.checked_add(8)),
        false => (header[0].checked_sub(WORDS), ip_len.checked_sub(8)),
    };
    let (Some(words), Some(new_len)) = (words, new_len) else { return Err(DropReason::NoRoom) };
    header[0] = words;
    header[2..4].copy_from_slice(&new_len.to_be_bytes());
    let option = u64::from_be_bytes(*option);
    let (before, after) = if is_longer { (0, option) } else { (option, 0) };
    let delta = Delta::default()
        .word(first, u16::from_be_bytes([header[0], header[1]]))
        .word(ip_len, new_len)
        .word64(before, after);
    let checksum = delta.apply(u16::from_be_bytes([header[10], header[11]]));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

fn lengthen_ipv6(bytes: &mut [u8], is_longer: bool) -> Result<(), DropReason> {
    const LEN: u16 = 24;
    let field: &mut [u8; 2] =
        wire::array_at_mut(bytes, ETHERNET_LEN + 4).ok_or(DropReason::Truncated)?;
    let len = u16::from_be_bytes(*field);
    let len = if is_longer { len.checked_add(LEN) } else { len.checked_sub(LEN) };
    *field = len.ok_or(DropReason::NoRoom)?.to_be_bytes();
    Ok(())
}
