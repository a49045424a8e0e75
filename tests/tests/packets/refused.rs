//! Frames that end in the parser, and the reason they end for.

use dataplane::DropReason;
use dataplane::packet::Packet;
use xskiff_tests::packet_builder::{ping, raw, tcp, udp};

use crate::captured;
use crate::frames::{address, hex, mend_ipv4_header, with_options};

fn refusal(frame: &[u8]) -> Option<DropReason> {
    Packet::parse(frame, frame.len()).err()
}

/// The frame with `value` at `at`, its IPv4 header checksum mended.
fn with(mut frame: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    frame[at..at + value.len()].copy_from_slice(value);
    if frame[12] == 8 {
        mend_ipv4_header(&mut frame);
    }
    frame
}

#[test]
fn header_that_contradicts_itself_has_its_reason() {
    use DropReason::{BadHeaderChecksum, Malformed, NotIp, SourceRouted, Truncated};
    let v4 = || tcp("10.0.0.1:1", "10.0.0.2:2", "S").build();
    let v6 = || tcp("[fd00::1]:1", "[fd00::2]:2", "S").build();
    let udp4 = || udp("10.0.0.1:1", "10.0.0.2:2").payload(b"12345678").build();
    let (a4, b4) = (address("10.0.0.1"), address("10.0.0.2"));
    let (a6, b6) = (address("fd00::1"), address("fd00::2"));
    let mut flipped = v4();
    flipped[24] ^= 1;
    for (what, frame, reason) in [
        ("ARP", hex(captured::ARP), NotIp),
        ("VLAN tag", with(v6(), 12, &[0x81, 0x00]), NotIp),
        ("header checksum", flipped, BadHeaderChecksum),
        ("IPv4 version 5", with(v4(), 14, &[0x55]), Malformed),
        ("IPv4 header of 16 bytes", with(v4(), 14, &[0x44]), Malformed),
        ("IPv4 length of 19", with(v4(), 16, &[0, 19]), Malformed),
        ("IPv4 length beyond the frame", with(v4(), 16, &[0, 41]), Truncated),
        ("IPv4 length before the TCP header's end", with(v4(), 16, &[0, 39]), Truncated),
        ("IPv6 version 4", with(v6(), 14, &[0x40]), Malformed),
        ("IPv6 length beyond the frame", with(v6(), 18, &[0, 21]), Truncated),
        ("IPv6 length before the TCP header's end", with(v6(), 18, &[0, 19]), Truncated),
        ("loose source route", with_options(&v4(), &[131, 4, 4, 0]), SourceRouted),
        ("strict source route", with_options(&v4(), &[1, 137, 3, 4]), SourceRouted),
        ("option of length 1", with_options(&v4(), &[7, 1, 0, 0]), Malformed),
        ("option beyond the header", with_options(&v4(), &[7, 5, 4, 0]), Malformed),
        ("option without length", with_options(&v4(), &[1, 1, 1, 7]), Malformed),
        ("TCP data offset of 4", with(v4(), 46, &[0x40]), Malformed),
        ("TCP data offset beyond the packet", with(v4(), 46, &[0x60]), Malformed),
        ("TCP without flags", with(v4(), 47, &[0]), Malformed),
        ("TCP SYN and FIN", with(v4(), 47, &[3]), Malformed),
        ("TCP SYN and RST", with(v4(), 47, &[6]), Malformed),
        ("UDP length of 7", with(udp4(), 38, &[0, 7]), Malformed),
        ("UDP length beyond the packet", with(udp4(), 38, &[0, 17]), Malformed),
        ("ICMP of 7 bytes", raw(a4, b4, 1).payload(&[8; 7]).build(), Truncated),
        ("ICMPv6 of 7 bytes", raw(a6, b6, 58).payload(&[128; 7]).build(), Truncated),
        ("SCTP of 11 bytes", raw(a4, b4, 132).payload(&[1; 11]).build(), Truncated),
        ("ICMPv6 in IPv4", raw(a4, b4, 58).payload(&[128; 8]).build(), Malformed),
        ("ICMP in IPv6", raw(a6, b6, 1).payload(&[8; 8]).build(), Malformed),
    ] {
        assert_eq!(refusal(&frame), Some(reason), "{what}");
    }
}

#[test]
fn address_that_no_router_forwards_has_its_reason() {
    use DropReason::{Malformed, Multicast};
    let v4 = tcp("10.0.0.1:1", "10.0.0.2:2", "S").build();
    let v6 = tcp("[fd00::1]:1", "[fd00::2]:2", "S").build();
    let v6_source = |text: &str| tcp(&format!("[{text}]:1"), "[fd00::2]:2", "S").build();
    let v6_destination = |text: &str| tcp("[fd00::1]:1", &format!("[{text}]:2"), "S").build();
    let v4_source = |text: &str| tcp(&format!("{text}:1"), "10.0.0.2:2", "S").build();
    let v4_destination = |text: &str| tcp("10.0.0.1:1", &format!("{text}:2"), "S").build();
    for (what, frame, reason) in [
        ("from this network", v4_source("0.0.0.0"), Malformed),
        ("from loopback", v4_source("127.0.0.1"), Malformed),
        ("from a group", v4_source("224.0.0.1"), Malformed),
        ("from everybody", v4_source("255.255.255.255"), Malformed),
        ("to this network", v4_destination("0.1.2.3"), Malformed),
        ("to loopback", v4_destination("127.0.0.1"), Malformed),
        ("to a group", v4_destination("239.1.2.3"), Multicast),
        ("to everybody", v4_destination("255.255.255.255"), Multicast),
        ("to everybody on the link", with(v4, 0, &[0xff; 6]), Multicast),
        ("to a group on the link", with(v6, 0, &[0x33, 0x33]), Multicast),
        ("from nobody, IPv6", v6_source("::"), Malformed),
        ("from loopback, IPv6", v6_source("::1"), Malformed),
        ("from a group, IPv6", v6_source("ff02::1"), Malformed),
        ("from an IPv4-mapped address", v6_source("::ffff:127.0.0.1"), Malformed),
        ("to nobody, IPv6", v6_destination("::"), Malformed),
        ("to loopback, IPv6", v6_destination("::1"), Malformed),
        ("to an IPv4-mapped address", v6_destination("::ffff:10.0.0.1"), Malformed),
        ("to a group, IPv6", v6_destination("ff02::1"), Multicast),
        ("ping to a group", ping(address("fd00::1"), address("ff02::1"), 7).build(), Multicast),
    ] {
        assert_eq!(refusal(&frame), Some(reason), "{what}");
    }
}

#[test]
fn frame_cut_anywhere_in_its_headers_is_truncated() {
    for frame in captured::ALL {
        let whole = hex(frame);
        let packet = Packet::parse(&whole, whole.len()).expect("a packet");
        for len in 0..whole.len() {
            assert_eq!(refusal(&whole[..len]), Some(DropReason::Truncated), "cut to {len}");
            // The same for a first chunk that ends too early, though the packet goes on.
            match Packet::parse(&whole[..len], whole.len()) {
                Ok(cut) => assert_eq!(cut, packet),
                Err(reason) => {
                    assert_eq!(reason, DropReason::Truncated, "first chunk of {len}");
                    assert!(len < packet.l4_offset + 20, "first chunk of {len}");
                }
            }
        }
    }
}
