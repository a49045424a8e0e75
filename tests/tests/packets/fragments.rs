//! Fragments: what a first one shows, what a later one lacks, and that both stay one packet.

use std::net::SocketAddr;

use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::packet::{Packet, PacketKind};
use dataplane::rewrite::apply;
use xskiff_tests::packet_builder::{icmp_error, ping, pong, raw, read, tcp, udp};

use crate::frames::{
    address, forward_as, frame_of, mend_ipv4_header, parse, tuple, with_extension,
};

/// Cuts a frame's IP payload in two at `at` bytes.
fn cut(frame: &[u8], at: usize) -> [Vec<u8>; 2] {
    let l3 = if frame[12] == 8 { 34 } else { 54 };
    let piece = |from: usize, to: usize, more: bool| {
        let mut piece = frame[..l3].to_vec();
        piece.extend(&frame[from..to]);
        let offset = u16::try_from(from - l3).expect("short");
        if l3 == 34 {
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            let len = u16::try_from(piece.len() - 14).expect("short");
            piece[16..18].copy_from_slice(&len.to_be_bytes());
            piece[18..20].copy_from_slice(&[0, 7]);
            piece[20..22].copy_from_slice(&field.to_be_bytes());
            mend_ipv4_header(&mut piece);
            piece
        } else {
            let len = u16::try_from(piece.len() - 54).expect("short");
            piece[18..20].copy_from_slice(&len.to_be_bytes());
            let [high, low] = (offset | u16::from(more)).to_be_bytes();
            with_extension(&piece, 44, &[0, high, low, 0, 0, 0, 7])
        }
    };
    [piece(l3, l3 + at, true), piece(l3 + at, frame.len(), false)]
}

/// Puts the two together again over `whole`'s IP header.
fn join(whole: &[u8], [first, later]: &[Vec<u8>; 2]) -> Vec<u8> {
    let (l3, payload) = if whole[12] == 8 { (34, 34) } else { (54, 62) };
    let mut joined = first[..l3].to_vec();
    joined.extend(&first[payload..]);
    joined.extend(&later[payload..]);
    if l3 == 34 {
        joined[16..22].copy_from_slice(&whole[16..22]);
        mend_ipv4_header(&mut joined);
    } else {
        joined[18..21].copy_from_slice(&whole[18..21]);
    }
    joined
}

#[test]
fn translated_fragments_make_the_translated_packet() {
    for (protocol, old, new) in [
        (Protocol::UDP, ("10.0.0.1:1000", "10.0.0.2:53"), ("10.0.0.9:61000", "10.0.0.3:5353")),
        (Protocol::TCP, ("10.0.0.1:1000", "10.0.0.2:80"), ("10.0.0.9:61000", "10.0.0.3:8080")),
        (Protocol::ICMP, ("10.0.0.1:7", "10.0.0.2:7"), ("10.0.0.9:61000", "10.0.0.2:61000")),
        (Protocol::UDP, ("[fd00::1]:1000", "[fd00::2]:53"), ("[fd00::9]:61000", "[fd00::3]:53")),
        (Protocol::ICMPV6, ("[fd00::1]:7", "[fd00::2]:7"), ("[fd00::9]:6", "[fd00::2]:6")),
    ] {
        let (old, new) = (tuple(protocol, old.0, old.1), tuple(protocol, new.0, new.1));
        let whole = frame_of(&old, false).payload(&[0xa5; 101]).build();
        let mut pieces = cut(&whole, 48);
        let kinds = pieces.each_ref().map(|piece| parse(piece).kind);
        assert_eq!(kinds[0], PacketKind::FirstFragment { identification: 7 });
        assert_eq!(kinds[1], PacketKind::LaterFragment { identification: 7 });
        assert_eq!(parse(&pieces[0]).flow_key(), old);
        assert_eq!(parse(&pieces[1]).flow_key(), old.with_l4_ports(0, 0));
        for piece in &mut pieces {
            let packet = parse(piece);
            assert_eq!(apply(&forward_as(new), &packet, piece), Ok(()));
        }
        let seen = read(&join(&whole, &pieces)).expect("right checksums");
        let end = |address, l4_port| SocketAddr::new(address, l4_port);
        assert_eq!(seen.source, end(new.source(), new.source_port()));
        assert_eq!(seen.destination, end(new.destination(), new.destination_port()));
        assert_eq!(seen.payload, [0xa5; 101]);
    }
}

#[test]
fn fragment_that_no_honest_sender_makes_is_refused() {
    let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
    let (a6, b6) = (address("fd00::1"), address("fd00::2"));
    let datagram = udp("10.0.0.1:1000", "10.0.0.2:53");
    let segment = tcp("10.0.0.1:1000", "10.0.0.2:80", "S");
    let error = icmp_error(a, b, (11, 0, 0), &datagram.build());
    let first_of_eight = raw(a, b, 132).payload(&[0; 8]);
    let advertisement = raw(a6, b6, 58).payload(&[134; 16]);
    for (what, frame, reason) in [
        (
            "odd length and more to come",
            datagram.clone().payload(b"12345").fragment(7, 0, true),
            DropReason::Malformed,
        ),
        (
            "end beyond the longest packet",
            datagram.clone().payload(&[0; 16]).fragment(7, 65_528, false),
            DropReason::Malformed,
        ),
        (
            "TCP flags to be written over",
            segment.payload(&[0; 16]).fragment(7, 8, false),
            DropReason::Malformed,
        ),
        ("part of an SCTP header", first_of_eight.fragment(7, 0, true), DropReason::Truncated),
        ("ICMP error", error.payload(&[0; 64]).fragment(7, 0, true), DropReason::Malformed),
        ("advertisement", advertisement.fragment(7, 0, true), DropReason::Malformed),
    ] {
        let frame = frame.build();
        assert_eq!(Packet::parse(&frame, frame.len()), Err(reason), "{what}");
    }
    // RFC 1858: too small to show its flags.
    let [tiny, _] = cut(&tcp("10.0.0.1:1000", "10.0.0.2:80", "S").build(), 16);
    assert_eq!(Packet::parse(&tiny, tiny.len()), Err(DropReason::Truncated));
}

#[test]
fn reply_in_fragments_opens_no_flow() {
    let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
    let fragment = |frame: xskiff_tests::packet_builder::FrameBuilder| {
        parse(&frame.payload(&[0; 64]).fragment(7, 0, true).build())
    };
    assert!(fragment(ping(a, b, 9)).may_begin_flow());
    assert!(!fragment(pong(a, b, 9)).may_begin_flow());
}
