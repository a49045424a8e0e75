//! Frames as Linux 6.x sent them between two network namespaces over a veth pair with its default
//! offloads, read from a packet socket at the receiving end: checksums of TCP and UDP are left to a
//! device that is none.

use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::buffer::Buffer;
use dataplane::memory::HeapBuffer;
use dataplane::packet::{Packet, PacketKind, quoted};
use dataplane::rewrite::finish_checksum;
use xskiff_tests::packet_builder::read;

use crate::frames::{hex, parse, tuple};

/// A SYN, its checksum unfinished.
pub const SYN_V4: &str = "02000000000b02000000000a0800 4500003ca777400040067f300a0900010a090002
    86060050e767c71300000000a002faf014430000020405b40402080aa0151e5a000000000103030a";
/// The reset that answers it, finished by the stack itself.
pub const RESET_V4: &str = "02000000000a02000000000b0800 4500002800004000400626bc0a0900020a090001
    0050860600000000e767c7145014000066e90000";
/// A datagram, its checksum unfinished.
pub const UDP_V4: &str = "02000000000b02000000000a0800 45000021e978400040113d3f0a0900010a090002
    ca6d0035000d143368656c6c6f";
/// The error about it: the quote shows the unfinished checksum.
pub const PORT_UNREACHABLE_V4: &str = "02000000000a02000000000b0800
    45c0003d542f0000400111bd0a0900020a090001 0303da4700000000
    45000021e978400040113d3f0a0900010a090002 ca6d0035000d143368656c6c6f";
/// A SYN, its checksum unfinished.
pub const SYN_V6: &str = "02000000000b02000000000a86dd 600a139a00280640
    fd090000000000000000000000000001 fd090000000000000000000000000002
    ecb600507158dc6c00000000a002fd20fa440000020405a00402080ab239b41d000000000103030a";
/// A datagram, its checksum unfinished.
pub const UDP_V6: &str = "02000000000b02000000000a86dd 60064d05000d1140
    fd090000000000000000000000000001 fd090000000000000000000000000002
    8fd70035000dfa3468656c6c6f";
/// The error about it.
pub const PORT_UNREACHABLE_V6: &str = "02000000000a02000000000b86dd 600998db003d3a40
    fd090000000000000000000000000002 fd090000000000000000000000000001 01047ddd00000000
    60064d05000d1140fd090000000000000000000000000001fd090000000000000000000000000002
    8fd70035000dfa3468656c6c6f";
/// An echo request.
pub const PING_V4: &str = "02000000000b02000000000a0800 450000248b1b400040019ba90a0900010a090002
    08007e696d8500010001020304050607";
/// An echo reply.
pub const PONG_V6: &str = "02000000000a02000000000b86dd 60070f5f00103a40
    fd090000000000000000000000000002 fd090000000000000000000000000001
    81000b076d8600010001020304050607";
/// A neighbour solicitation.
pub const SOLICITATION: &str = "3333ff00000202000000000a86dd 6000000000203aff
    fd090000000000000000000000000001 ff0200000000000000000001ff000002
    87007d7c00000000fd090000000000000000000000000002010102000000000a";
/// Duplicate address detection: a solicitation from the unspecified address.
pub const DUPLICATE_DETECTION: &str = "3333ff00000b02000000000b86dd 6000000000203aff
    00000000000000000000000000000000 ff0200000000000000000001ff00000b
    8700ff8e00000000fe80000000000000000000fffe00000b0e01fc2958f21a5d";
/// A multicast listener report, behind a hop-by-hop router alert.
pub const LISTENER_REPORT: &str = "33330000001602000000000b86dd 6000000000380001
    00000000000000000000000000000000 ff020000000000000000000000000016 3a00050200000100
    8f006d630000000204000000ff0200000000000000000001ff00000b
    04000000ff0200000000000000000001ff000002";
/// A question for a link address.
pub const ARP: &str = "ffffffffffff02000000000a0806 0001080006040001
    02000000000a0a0900010000000000000a090002";

/// Every captured IP frame.
pub const ALL: [&str; 12] = [
    SYN_V4,
    RESET_V4,
    UDP_V4,
    PORT_UNREACHABLE_V4,
    SYN_V6,
    UDP_V6,
    PORT_UNREACHABLE_V6,
    PING_V4,
    PONG_V6,
    SOLICITATION,
    DUPLICATE_DETECTION,
    LISTENER_REPORT,
];

#[test]
fn frames_of_linux_mean_what_was_sent() {
    let query = |is_reply| PacketKind::IcmpQuery { is_reply };
    let v4 = ("10.9.0.1", "10.9.0.2");
    let v6 = ("[fd09::1]", "[fd09::2]");
    let (syn, reset) = (0x02, 0x14);
    for (frame, kind, flags, protocol, (a, a_port), (b, b_port)) in [
        (SYN_V4, PacketKind::Tcp, syn, Protocol::TCP, (v4.0, 34310), (v4.1, 80)),
        (RESET_V4, PacketKind::Tcp, reset, Protocol::TCP, (v4.1, 80), (v4.0, 34310)),
        (UDP_V4, PacketKind::Udp, 0, Protocol::UDP, (v4.0, 51821), (v4.1, 53)),
        (PORT_UNREACHABLE_V4, PacketKind::IcmpError, 0, Protocol::ICMP, (v4.1, 0), (v4.0, 0)),
        (PING_V4, query(false), 0, Protocol::ICMP, (v4.0, 28037), (v4.1, 28037)),
        (SYN_V6, PacketKind::Tcp, syn, Protocol::TCP, (v6.0, 60598), (v6.1, 80)),
        (UDP_V6, PacketKind::Udp, 0, Protocol::UDP, (v6.0, 36823), (v6.1, 53)),
        (PORT_UNREACHABLE_V6, PacketKind::IcmpError, 0, Protocol::ICMPV6, (v6.1, 0), (v6.0, 0)),
        (PONG_V6, query(true), 0, Protocol::ICMPV6, (v6.1, 28038), (v6.0, 28038)),
    ] {
        let packet = parse(&hex(frame));
        let expected = tuple(protocol, &format!("{a}:{a_port}"), &format!("{b}:{b_port}"));
        assert_eq!(packet.flow_key(), expected);
        assert_eq!((packet.kind, packet.tcp_flags, packet.ttl), (kind, flags, 64), "{expected}");
        assert_eq!(packet.ip_len + 14, hex(frame).len(), "{expected}");
        assert_eq!(packet.may_begin_flow(), kind != query(true), "{expected}");
    }
}

#[test]
fn link_business_of_linux_is_told_apart_from_traffic() {
    for frame in [SOLICITATION, DUPLICATE_DETECTION, LISTENER_REPORT] {
        assert_eq!(parse(&hex(frame)).kind, PacketKind::NeighbourDiscovery);
    }
    assert_eq!(Packet::parse(&hex(ARP), 42), Err(DropReason::NotIp));
}

#[test]
fn ethernet_padding_is_no_part_of_the_packet() {
    let mut frame = hex(UDP_V4);
    frame.resize(60, 0xee);
    assert_eq!(parse(&frame), parse(&hex(UDP_V4)));
    // A quote that is cut short is not read on in the padding.
    let mut cut = hex(PORT_UNREACHABLE_V4);
    cut[16..18].copy_from_slice(&[0, 20 + 8 + 20 + 4]);
    crate::frames::mend_ipv4_header(&mut cut);
    let packet = parse(&cut);
    assert_eq!(quoted(&packet, &cut), Err(DropReason::Truncated));
}

#[test]
fn unfinished_checksums_of_linux_are_finished_and_finished_ones_kept() {
    for frame in [SYN_V4, UDP_V4, SYN_V6, UDP_V6] {
        let frame = hex(frame);
        assert!(read(&frame).is_err(), "it was captured unfinished");
        let mut buffer = HeapBuffer::new(&frame);
        finish_checksum(&parse(&frame), &mut buffer);
        assert_eq!(read(buffer.bytes()).err(), None);
        let finished = buffer.clone();
        finish_checksum(&parse(&frame), &mut buffer);
        assert_eq!(buffer, finished);
    }
    for frame in [RESET_V4, PING_V4, PONG_V6, PORT_UNREACHABLE_V4, PORT_UNREACHABLE_V6] {
        let frame = hex(frame);
        assert_eq!(read(&frame).err(), None);
        let mut buffer = HeapBuffer::new(&frame);
        finish_checksum(&parse(&frame), &mut buffer);
        assert_eq!(buffer.bytes(), frame);
    }
}

#[test]
fn error_of_linux_quotes_the_datagram_it_is_about() {
    for (error, datagram) in [(PORT_UNREACHABLE_V4, UDP_V4), (PORT_UNREACHABLE_V6, UDP_V6)] {
        let (error, datagram) = (hex(error), hex(datagram));
        let quote = quoted(&parse(&error), &error).expect("a quote");
        assert_eq!(quote.key, parse(&datagram).flow_key());
        assert_eq!(error[quote.ip_offset..], datagram[14..]);
    }
}
