//! What several of these tests need to make and to compare frames.

use std::net::{IpAddr, SocketAddr};

use dataplane::address::{MacAddr, Protocol};
use dataplane::flow_key::FlowKey;
use dataplane::packet::Packet;
use dataplane::rewrite::Rewrite;
use xskiff_tests::packet_builder::{FrameBuilder, ping, pong, tcp, udp};

/// Link addresses of translated frames.
pub const FROM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x11]);
/// See [`FROM`].
pub const TO: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x22]);

/// The frame's bytes from two hexadecimal digits each, white space ignored.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|letter| letter.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).expect("two digits")).collect()
}

/// Parses a frame that is whole in memory.
pub fn parse(frame: &[u8]) -> Packet {
    Packet::parse(frame, frame.len()).expect("a packet")
}

/// A tuple from two socket addresses.
pub fn tuple(protocol: Protocol, source: &str, destination: &str) -> FlowKey {
    let end = |text: &str| {
        let at: SocketAddr = text.parse().expect("socket address");
        (at.ip(), at.port())
    };
    FlowKey::new(protocol, end(source), end(destination)).expect("one family")
}

/// A translation to `tuple` on the way to the next hop.
pub fn forward_as(tuple: FlowKey) -> Rewrite {
    Rewrite { tuple, source_mac: FROM, destination_mac: TO, decrement_ttl: true }
}

/// The naive builder's frame for a tuple. ICMP queries take the source port as identifier.
pub fn frame_of(tuple: &FlowKey, is_reply: bool) -> FrameBuilder {
    let source = SocketAddr::new(tuple.source(), tuple.source_port()).to_string();
    let destination = SocketAddr::new(tuple.destination(), tuple.destination_port()).to_string();
    match tuple.protocol() {
        Protocol::TCP => tcp(&source, &destination, "PA"),
        Protocol::UDP => udp(&source, &destination),
        _ if is_reply => pong(tuple.source(), tuple.destination(), tuple.source_port()),
        _ => ping(tuple.source(), tuple.destination(), tuple.source_port()),
    }
}

/// The frame with the link addresses of [`forward_as`].
pub fn with_link_addresses(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&TO.0);
    frame[6..12].copy_from_slice(&FROM.0);
    frame
}

/// The frame with an extension header after its fixed IPv6 header: `body` follows the
/// next-header octet.
pub fn with_extension(frame: &[u8], number: u8, body: &[u8]) -> Vec<u8> {
    let mut long = frame[..54].to_vec();
    long.push(frame[20]);
    long.extend(body);
    long.extend(&frame[54..]);
    long[20] = number;
    add_to_length(&mut long, 18, body.len() + 1);
    long
}

/// The frame with options (a multiple of four bytes) in its IPv4 header.
pub fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0, "IPv4 headers count words");
    let mut long = frame[..34].to_vec();
    long.extend(options);
    long.extend(&frame[34..]);
    long[14] += u8::try_from(options.len() / 4).expect("at most ten words");
    add_to_length(&mut long, 16, options.len());
    mend_ipv4_header(&mut long);
    long
}

/// The frame without the extension headers and options that the functions above put in.
pub fn without(frame: &[u8], len: usize) -> Vec<u8> {
    let is_v4 = frame[12] == 8;
    let at = if is_v4 { 34 } else { 54 };
    let mut short = frame[..at].to_vec();
    short.extend(&frame[at + len..]);
    let field = if is_v4 { 16 } else { 18 };
    let total = u16::from_be_bytes([short[field], short[field + 1]]);
    let total = total - u16::try_from(len).expect("short");
    short[field..field + 2].copy_from_slice(&total.to_be_bytes());
    if is_v4 {
        short[14] = 0x45;
        mend_ipv4_header(&mut short);
    } else {
        short[20] = frame[54];
    }
    short
}

fn add_to_length(frame: &mut [u8], field: usize, len: usize) {
    let total = u16::from_be_bytes([frame[field], frame[field + 1]]);
    let total = total + u16::try_from(len).expect("short");
    frame[field..field + 2].copy_from_slice(&total.to_be_bytes());
}

/// Makes the IPv4 header checksum right again.
pub fn mend_ipv4_header(frame: &mut [u8]) {
    let end = (14 + usize::from(frame[14] & 15) * 4).min(frame.len());
    frame[24..26].copy_from_slice(&[0; 2]);
    let mut sum: u32 = frame[14..end]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).expect("folded");
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// An address from text.
pub fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}
