//! ICMP errors in the other family's words, with the packet that they quote (RFC 7915, 4.2, 4.3, 5.2
//! and 5.3).
//!
//! The error is written anew and no longer than its family's may be. Extensions behind the quote
//! (RFC 4884) are left out: they speak of links that the receiver does not know.

use std::net::IpAddr;

use super::header::{HEADERS_LEN, Meaning, translate_l4, write_link_header};
use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::flow_key::FlowKey;
use crate::forwarding::NextHop;
use crate::icmp::{ERROR_FRAME_MAX, IPV4_ERROR_MAX, IPV6_ERROR_MAX};
use crate::packet::{Packet, Quoted, quoted};
use crate::rewrite::{self, Rewrite};
use crate::wire::{self, ETHERNET_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN};

/// The links on both sides of the translation that an error is about.
#[derive(Debug, Clone, Copy)]
pub struct ErrorWays<'a> {
    /// Back to the quoted packet's sender.
    pub back: &'a NextHop,
    /// What the link takes by which the quoted packet left, in bytes; `None` when it is gone.
    pub left_by: Option<u16>,
}

/// Likely path MTUs (RFC 1191, 7.1), in bytes: for routers that do not say what is too long.
const PLATEAUS: [u16; 10] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// Replaces an ICMP error by one of the other family to the sender of the packet that it quotes, which
/// `sent` it with that tuple. `own` is whom a router appears as.
///
/// # Errors
/// [`DropReason::NoCounterpart`] for what the other family has no words for, [`DropReason::Malformed`]
/// for an error that arrived damaged, [`DropReason::NoRoom`] when the buffer is too short.
pub fn translate_error<B: Buffer>(
    change: &Rewrite,
    (sent, own): (&FlowKey, IpAddr),
    packet: &Packet,
    buffer: &mut B,
    ways: &ErrorWays<'_>,
) -> Result<(), DropReason> {
    let bytes = buffer.bytes();
    let quote = quoted(packet, bytes)?;
    let end = ETHERNET_LEN + packet.ip_len;
    let outer = packet.flow_key();
    let is_v6 = matches!(outer, FlowKey::V6(_));
    if is_v6 == matches!(sent, FlowKey::V6(_)) {
        return Err(DropReason::Malformed);
    }
    if rewrite::icmp_sum(bytes, packet, end, is_v6)?.fold() != 0xffff {
        return Err(DropReason::Malformed);
    }
    let message: &[u8; ICMP_LEN] =
        wire::array_at(bytes, packet.l4_offset).ok_or(DropReason::Truncated)?;
    let words = match is_v6 {
        true => to_ipv4(message, ways),
        false => to_ipv6(message, ways, &bytes[quote.ip_offset..]),
    };
    let words = words.ok_or(DropReason::NoCounterpart)?;

    let mut frame = [0; ERROR_FRAME_MAX];
    let (outer_len, longest) = match is_v6 {
        true => (IPV4_LEN, IPV4_ERROR_MAX),
        false => (IPV6_LEN, IPV6_ERROR_MAX),
    };
    let longest = longest.min(usize::from(ways.back.mtu)).max(outer_len + ICMP_LEN + HEADERS_LEN);
    let quote_at = ETHERNET_LEN + outer_len + ICMP_LEN;
    let room = frame.get_mut(quote_at..ETHERNET_LEN + longest).ok_or(DropReason::NoRoom)?;
    let quote_end = end_of_quote(message, is_v6, &quote, end);
    let quote_len = write_quote(room, bytes, &quote, quote_end, sent)?;
    let len = quote_at + quote_len;

    let meaning = Meaning::read(bytes, ETHERNET_LEN, packet.l4_offset, &outer)?;
    let meaning = Meaning {
        ttl: meaning.ttl.saturating_sub(u8::from(change.decrement_ttl)),
        payload_len: ICMP_LEN + quote_len,
        protocol: if is_v6 { Protocol::ICMP } else { Protocol::ICMPV6 },
        fragment: None,
        ..meaning
    };
    // The other end itself reports under the address its peer knows it by.
    let is_end = outer.source() == quote.key.destination();
    let source = if is_end { change.tuple.source() } else { own };
    let tuple = change.tuple.with_source(source, 0);
    write_link_header(&mut frame, change)?;
    meaning.write(&tuple, 0, &mut frame[ETHERNET_LEN..])?;
    write_words(words, &mut frame[quote_at - ICMP_LEN..]);
    let made = Packet::parse(&frame[..len], len)?;
    rewrite::write_icmp_checksum(&mut frame, &made, len, !is_v6)?;

    buffer.set_len(len)?;
    buffer.bytes_mut().get_mut(..len).ok_or(DropReason::NoRoom)?.copy_from_slice(&frame[..len]);
    Ok(())
}

/// Type, code and second word.
type Words = (u8, u8, u32);

fn write_words((kind, code, word): Words, message: &mut [u8]) {
    if let Some(header) = message.first_chunk_mut::<ICMP_LEN>() {
        header[..4].copy_from_slice(&[kind, code, 0, 0]);
        header[4..].copy_from_slice(&word.to_be_bytes());
    }
}

/// RFC 7915, 4.2: what an ICMP error is in ICMPv6.
fn to_ipv6(message: &[u8; ICMP_LEN], ways: &ErrorWays<'_>, quote: &[u8]) -> Option<Words> {
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    match (message[0], message[1]) {
        (3, 0 | 1 | 5..=8 | 11 | 12) => Some((1, 0, 0)),
        // The protocol is what the next header field tells.
        (3, 2) => Some((4, 1, 6)),
        (3, 3) => Some((1, 4, 0)),
        (3, 4) => Some((2, 0, longer_mtu(mtu, ways, quote).into())),
        (3, 9 | 10 | 13 | 15) => Some((1, 1, 0)),
        (11, code @ (0 | 1)) => Some((3, code, 0)),
        (12, 0 | 2) => {
            let pointer = match message[4] {
                0 => 0,
                1 => 1,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            Some((4, 0, pointer))
        }
        _ => None,
    }
}

/// RFC 7915, 5.2: what an ICMPv6 error is in ICMP.
fn to_ipv4(message: &[u8; ICMP_LEN], ways: &ErrorWays<'_>) -> Option<Words> {
    let word = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
    match (message[0], message[1]) {
        (1, 0 | 2 | 3) => Some((3, 1, 0)),
        (1, 1) => Some((3, 10, 0)),
        (1, 4) => Some((3, 3, 0)),
        (2, _) => Some((3, 4, shorter_mtu(word, ways).into())),
        (3, code @ (0 | 1)) => Some((11, code, 0)),
        (4, 0) => {
            let pointer: u32 = match word {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            Some((12, 0, pointer << 24))
        }
        (4, 1) => Some((3, 2, 0)),
        _ => None,
    }
}

/// What an IPv6 sender's packets may have: the least of what the router says and both links take, and
/// no less than every IPv6 link does.
fn longer_mtu(mtu: u16, ways: &ErrorWays<'_>, quote: &[u8]) -> u16 {
    let told = match mtu {
        0 => {
            let ip_len = wire::u16_at(quote, 2).unwrap_or(0);
            PLATEAUS.into_iter().find(|plateau| *plateau < ip_len).unwrap_or(68)
        }
        mtu => mtu,
    };
    let left_by = ways.left_by.unwrap_or(u16::MAX);
    told.min(left_by).saturating_add(20).min(ways.back.mtu).max(1280)
}

/// The same for an IPv4 sender.
fn shorter_mtu(mtu: u32, ways: &ErrorWays<'_>) -> u16 {
    let told = u16::try_from(mtu).unwrap_or(u16::MAX);
    let left_by = ways.left_by.unwrap_or(u16::MAX);
    told.min(left_by).saturating_sub(20).min(ways.back.mtu).max(68)
}

/// Where the quoted packet ends and extensions begin, if there are any (RFC 4884, 3): the length is
/// counted in words of four bytes by ICMP, and of eight by ICMPv6.
fn end_of_quote(message: &[u8; ICMP_LEN], is_v6: bool, quote: &Quoted, end: usize) -> usize {
    let len = match (is_v6, message[0]) {
        (true, 1 | 3) => usize::from(message[4]) * 8,
        (false, 3 | 11 | 12) => usize::from(message[5]) * 4,
        _ => 0,
    };
    if len == 0 { end } else { end.min(quote.ip_offset + len) }
}

/// Writes the quoted packet as its sender `sent` it, as much of it as there is room for; answers how
/// much that is.
fn write_quote(
    room: &mut [u8],
    bytes: &[u8],
    quote: &Quoted,
    end: usize,
    sent: &FlowKey,
) -> Result<usize, DropReason> {
    if !matches!(quote.key.protocol(), Protocol::TCP | Protocol::UDP) {
        return Err(DropReason::NoCounterpart);
    }
    let meaning = Meaning::read(bytes, quote.ip_offset, quote.l4_offset, &quote.key)?;
    let headers_len = meaning.headers_len(sent.destination());
    meaning.write(sent, 0, room)?;
    let l4 = bytes.get(quote.l4_offset..end).ok_or(DropReason::Truncated)?;
    let room = room.get_mut(headers_len..).ok_or(DropReason::NoRoom)?;
    let len = l4.len().min(room.len());
    let (room, l4) = (&mut room[..len], &l4[..len]);
    room.copy_from_slice(l4);
    translate_l4(room, &quote.key, sent);
    Ok(headers_len + len)
}
