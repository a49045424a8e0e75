//! IPv6 extension headers (RFC 8200, 4).

use dataplane::DropReason;
use dataplane::packet::{Packet, PacketKind};
use xskiff_tests::packet_builder::{raw, tcp, udp};

use crate::frames::{address, parse, with_extension};

/// Body of an options header of eight bytes: PadN.
const OPTIONS: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

fn outcome(frame: &[u8]) -> Result<Packet, DropReason> {
    Packet::parse(frame, frame.len())
}

#[test]
fn transport_is_found_behind_every_extension_header() {
    let plain = tcp("[fd00::1]:1000", "[fd00::2]:80", "S").build();
    let authentication = [4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    let mut frame = with_extension(&plain, 60, &OPTIONS);
    let mut len = 8;
    for (number, body) in [
        (51, &authentication[..]),
        // An atomic fragment (RFC 6946) is a packet in one piece.
        (44, &[0, 0, 0, 0, 0, 0, 7]),
        // A routing header of type 4 with no segments left has done its work.
        (43, &[0, 4, 0, 0, 0, 0, 0]),
        (0, &OPTIONS),
    ] {
        frame = with_extension(&frame, number, body);
        len += body.len() + 1;
        let packet = parse(&frame);
        assert_eq!(packet.flow_key(), parse(&plain).flow_key(), "header {number}");
        assert_eq!((packet.kind, packet.tcp_flags), (PacketKind::Tcp, 2));
        assert_eq!(packet.l4_offset, 54 + len);
    }
}

#[test]
fn chain_longer_than_eight_headers_is_malformed() {
    let mut frame = udp("[fd00::1]:1000", "[fd00::2]:53").build();
    for _ in 0..8 {
        frame = with_extension(&frame, 60, &OPTIONS);
        assert_eq!(outcome(&frame).map(|packet| packet.kind), Ok(PacketKind::Udp));
    }
    let frame = with_extension(&frame, 60, &OPTIONS);
    assert_eq!(outcome(&frame), Err(DropReason::Malformed));
}

#[test]
fn routing_header_that_leads_elsewhere_is_refused() {
    let plain = udp("[fd00::1]:1000", "[fd00::2]:53").build();
    // Type 0 always (RFC 5095); others while segments are left.
    for body in [[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 4, 1, 0, 0, 0, 0]] {
        let frame = with_extension(&plain, 43, &body);
        assert_eq!(outcome(&frame), Err(DropReason::SourceRouted));
    }
}

#[test]
fn hop_by_hop_options_come_first_or_not_at_all() {
    let plain = udp("[fd00::1]:1000", "[fd00::2]:53").build();
    let frame = with_extension(&with_extension(&plain, 0, &OPTIONS), 60, &OPTIONS);
    assert_eq!(outcome(&frame), Err(DropReason::Malformed));
}

#[test]
fn second_fragment_header_cannot_hide_the_first() {
    let plain = udp("[fd00::1]:1000", "[fd00::2]:53").payload(b"payload.").build();
    let atomic = with_extension(&plain, 44, &[0, 0, 0, 0, 0, 0, 7]);
    let frame = with_extension(&atomic, 44, &[0, 0, 1, 0, 0, 0, 7]);
    assert_eq!(outcome(&frame), Err(DropReason::Malformed));
}

#[test]
fn extension_that_ends_beyond_the_packet_is_truncated() {
    let plain = udp("[fd00::1]:1000", "[fd00::2]:53").build();
    let frame = with_extension(&plain, 60, &[200, 1, 4, 0, 0, 0, 0]);
    assert_eq!(outcome(&frame), Err(DropReason::Truncated));
}

#[test]
fn payload_that_is_encrypted_or_absent_is_another_protocol() {
    let (a, b) = (address("fd00::1"), address("fd00::2"));
    for protocol in [50, 59, 47] {
        let packet = parse(&raw(a, b, protocol).build());
        assert_eq!(packet.kind, PacketKind::Other);
        assert_eq!(packet.flow_key().protocol().0, protocol);
    }
}
