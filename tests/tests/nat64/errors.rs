//! ICMP errors about translated packets: in the words of the family of the packet's sender, about the
//! packet that it sent.

use dataplane::DropReason;
use dataplane::address::{MacAddr, Protocol};
use dataplane::buffer::Buffer;
use dataplane::flow_key::FlowKey;
use dataplane::forwarding::NextHop;
use dataplane::lb::FrontendKind;
use dataplane::memory::HeapBuffer;
use dataplane::nat64::{ErrorWays, translate_error};
use dataplane::packet::Packet;
use dataplane::port::PortId;
use proptest::prelude::*;
use xskiff_tests::packet_builder::{icmp_error, read, read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, pod_port};

use crate::headers::{change, tuple};
use crate::{CASES, at, ip, node, seen, to_pod, world};

type Words = (u8, u8, u32);

/// The tuple of a packet as it was sent and as it went on, in each direction.
const SENT4: (&str, &str) = ("192.0.2.7:1000", "203.0.113.1:80");
const WENT6: (&str, &str) = ("[fd00::1]:61000", "[fd01::2]:8080");

fn hop(mtu: u16) -> NextHop {
    NextHop {
        port: PortId(1),
        to_host: false,
        source: MacAddr([2; 6]),
        destination: Some(MacAddr([4; 6])),
        mtu,
        neighbour: ip("10.0.0.2"),
    }
}

/// An error by `router` about a packet of `went`, of which `quote_len` bytes are quoted, for whoever
/// `sent` it.
fn translated(
    words: Words,
    (sent, went): ((&str, &str), (&str, &str)),
    (own, router): (&str, &str),
    edit: impl Fn(&mut Vec<u8>),
    mtus: (u16, Option<u16>),
) -> Result<Vec<u8>, DropReason> {
    let quote = tcp(went.0, went.1, "PA").payload(&[7; 100]).build();
    let mut frame = icmp_error(ip(router), at(went.0).ip(), words, &quote).build();
    edit(&mut frame);
    let packet = Packet::parse(&frame, frame.len())?;
    let sent = tuple(Protocol::TCP, sent);
    let hop = hop(mtus.0);
    let ways = ErrorWays { back: &hop, left_by: mtus.1 };
    let mut buffer = HeapBuffer::new(&frame);
    translate_error(&change(sent.reversed()), (&sent, ip(own)), &packet, &mut buffer, &ways)?;
    Ok(buffer.bytes().to_vec())
}

fn to_ipv4(words: Words) -> Result<Words, DropReason> {
    let ends = (SENT4, WENT6);
    let frame = translated(words, ends, ("10.0.0.1", "fd00::99"), |_| {}, (1500, Some(1500)))?;
    read(&frame).expect("right checksums");
    Ok((frame[34], frame[35], u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]])))
}

fn to_ipv6(words: Words) -> Result<Words, DropReason> {
    let ends = (WENT6, SENT4);
    let frame = translated(words, ends, ("fd00::1", "198.51.100.9"), |_| {}, (1500, Some(1500)))?;
    read(&frame).expect("right checksums");
    Ok((frame[54], frame[55], u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]])))
}

/// RFC 7915, 4.2 and 5.2, line by line.
#[test]
fn each_error_is_said_in_the_other_familys_words_or_not_at_all() {
    let none = Err(DropReason::NoCounterpart);
    for (four, six) in [
        ((3, 0, 0), Ok((1, 0, 0))),
        ((3, 1, 0), Ok((1, 0, 0))),
        ((3, 2, 0), Ok((4, 1, 6))),
        ((3, 3, 0), Ok((1, 4, 0))),
        ((3, 4, 1300), Ok((2, 0, 1320))),
        ((3, 4, 600), Ok((2, 0, 1280))),
        ((3, 5, 0), Ok((1, 0, 0))),
        ((3, 6, 0), Ok((1, 0, 0))),
        ((3, 7, 0), Ok((1, 0, 0))),
        ((3, 8, 0), Ok((1, 0, 0))),
        ((3, 9, 0), Ok((1, 1, 0))),
        ((3, 10, 0), Ok((1, 1, 0))),
        ((3, 11, 0), Ok((1, 0, 0))),
        ((3, 12, 0), Ok((1, 0, 0))),
        ((3, 13, 0), Ok((1, 1, 0))),
        ((3, 14, 0), none),
        ((3, 15, 0), Ok((1, 1, 0))),
        ((3, 16, 0), none),
        ((4, 0, 0), none),
        ((11, 0, 0), Ok((3, 0, 0))),
        ((11, 1, 0), Ok((3, 1, 0))),
        ((12, 0, 0), Ok((4, 0, 0))),
        ((12, 0, 1 << 24), Ok((4, 0, 1))),
        ((12, 2, 2 << 24), Ok((4, 0, 4))),
        ((12, 0, 4 << 24), none),
        ((12, 0, 6 << 24), none),
        ((12, 0, 8 << 24), Ok((4, 0, 7))),
        ((12, 0, 9 << 24), Ok((4, 0, 6))),
        ((12, 0, 10 << 24), none),
        ((12, 0, 14 << 24), Ok((4, 0, 8))),
        ((12, 0, 19 << 24), Ok((4, 0, 24))),
        ((12, 0, 20 << 24), none),
        ((12, 1, 0), none),
    ] {
        assert_eq!(to_ipv6(four), six, "ICMP {four:?}");
    }
    for (six, four) in [
        ((1, 0, 0), Ok((3, 1, 0))),
        ((1, 1, 0), Ok((3, 10, 0))),
        ((1, 2, 0), Ok((3, 1, 0))),
        ((1, 3, 0), Ok((3, 1, 0))),
        ((1, 4, 0), Ok((3, 3, 0))),
        ((1, 5, 0), none),
        ((2, 0, 1300), Ok((3, 4, 1280))),
        ((2, 0, 9000), Ok((3, 4, 1480))),
        ((2, 0, u32::MAX), Ok((3, 4, 1480))),
        ((3, 0, 0), Ok((11, 0, 0))),
        ((3, 1, 0), Ok((11, 1, 0))),
        ((4, 0, 0), Ok((12, 0, 0))),
        ((4, 0, 1), Ok((12, 0, 1 << 24))),
        ((4, 0, 2), none),
        ((4, 0, 5), Ok((12, 0, 2 << 24))),
        ((4, 0, 6), Ok((12, 0, 9 << 24))),
        ((4, 0, 7), Ok((12, 0, 8 << 24))),
        ((4, 0, 23), Ok((12, 0, 12 << 24))),
        ((4, 0, 39), Ok((12, 0, 16 << 24))),
        ((4, 0, 40), none),
        ((4, 1, 6), Ok((3, 2, 0))),
        ((4, 2, 0), none),
    ] {
        assert_eq!(to_ipv4(six), four, "ICMPv6 {six:?}");
    }
}

/// RFC 7915, 4.2: of a router that is older than RFC 1191 the likely MTU is guessed.
#[test]
fn path_mtu_is_the_least_that_anybody_knows_of() {
    let mtu_of = |words, edit: &dyn Fn(&mut Vec<u8>), mtus| {
        let ends = (WENT6, SENT4);
        let frame = translated(words, ends, ("fd00::1", "198.51.100.9"), edit, mtus);
        let frame = frame.expect("translated");
        u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]])
    };
    let quote_len = |len: u16| {
        move |frame: &mut Vec<u8>| {
            frame[44..46].copy_from_slice(&len.to_be_bytes());
            crate::errors::mend(frame);
        }
    };
    let far = (9000, Some(9000));
    assert_eq!(mtu_of((3, 4, 0), &quote_len(5000), far), 4352 + 20);
    assert_eq!(mtu_of((3, 4, 0), &quote_len(4352), far), 2002 + 20);
    assert_eq!(mtu_of((3, 4, 0), &quote_len(1500), far), 1492 + 20);
    assert_eq!(mtu_of((3, 4, 0), &quote_len(1400), far), 1280);
    assert_eq!(mtu_of((3, 4, 4000), &|_| {}, (9000, Some(1500))), 1520, "the link it left by");
    assert_eq!(mtu_of((3, 4, 4000), &|_| {}, (1400, Some(9000))), 1400, "the link back");
}

/// Makes the checksums of an IPv4 frame with an ICMP error right again.
fn mend(frame: &mut [u8]) {
    let mut quoted = [&[0; 14], &frame[42..]].concat();
    crate::headers::mend_ipv4_header(&mut quoted);
    frame[42..].copy_from_slice(&quoted[14..]);
    frame[36..38].copy_from_slice(&[0; 2]);
    let words = frame[34..].chunks(2);
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = words.map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    frame[36..38].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn extensions_behind_the_quote_are_left_out() {
    // 60 bytes of the packet, which the header counts in words, then something else (RFC 4884).
    let edit = |frame: &mut Vec<u8>| {
        frame[39] = 15;
        mend(frame);
    };
    let ends = (WENT6, SENT4);
    let routers = ("fd00::1", "198.51.100.9");
    let frame = translated((11, 0, 0), ends, routers, edit, (1500, None)).expect("translated");
    assert_eq!(frame.len(), 14 + 40 + 8 + 40 + 40);
    assert_eq!(frame[58..62], [0; 4], "no length, no extensions");
    read(&frame).expect("right checksums");
}

#[test]
fn error_is_as_long_as_its_family_allows_and_the_link_takes() {
    let quote = udp(SENT4.0, SENT4.1).payload(&[7; 1400]).build();
    let mut frame = icmp_error(ip("198.51.100.9"), at(SENT4.0).ip(), (11, 0, 0), &quote);
    frame = frame.payload(&quote[14..]);
    let frame = frame.build();
    let packet = Packet::parse(&frame, frame.len()).expect("a packet");
    let sent = tuple(Protocol::UDP, WENT6);
    for (mtu, len) in [(1500, 1280), (1281, 1280), (1000, 1000)] {
        let hop = hop(mtu);
        let ways = ErrorWays { back: &hop, left_by: None };
        let mut buffer = HeapBuffer::new(&frame);
        let change = change(sent.reversed());
        assert_eq!(
            translate_error(&change, (&sent, ip("fd00::1")), &packet, &mut buffer, &ways),
            Ok(())
        );
        assert_eq!(buffer.len(), 14 + len);
        read(buffer.bytes()).expect("right checksums");
    }
}

#[test]
fn error_that_arrived_damaged_is_not_mended() {
    let damage = |frame: &mut Vec<u8>| *frame.last_mut().expect("not empty") ^= 1;
    for (ends, routers) in
        [((SENT4, WENT6), ("10.0.0.1", "fd00::99")), ((WENT6, SENT4), ("fd00::1", "198.51.100.9"))]
    {
        let outcome = translated((1, 0, 0), ends, routers, damage, (1500, None));
        let outcome =
            outcome.or_else(|_| translated((3, 0, 0), ends, routers, damage, (1500, None)));
        assert_eq!(outcome, Err(DropReason::Malformed));
    }
}

/// What the other end itself says comes from the address that its peer knows it by.
#[test]
fn error_of_either_end_reaches_the_other_about_the_packet_that_it_sent() {
    for case in CASES {
        let mut node = node();
        let request = udp(case.client, case.frontend).payload(b"request").build();
        let (_, there) = node.forward(case.port, &request);
        let own = seen(&there).source;
        let (six, four) = ((1, 4, 0), (3, 3, 0));
        let (backends, clients) = if case.is_from_v4() { (six, four) } else { (four, six) };

        let error = icmp_error(at(case.backend).ip(), own.ip(), backends, &there).build();
        let (port, frame) = node.forward(pod_port(2), &error);
        let outer = seen(&frame);
        assert_eq!((port, outer.destination.ip()), (case.port, at(case.client).ip()), "{case:?}");
        assert_eq!((outer.source.ip(), outer.ttl), (at(case.frontend).ip(), 63));
        assert_eq!(outer.icmp_type, clients.0);
        let inner = read_quoted(&outer).expect("a quote");
        assert_eq!((inner.source, inner.destination), (at(case.client), at(case.frontend)));
        // But for what it lost on its way here, it is the packet that was sent.
        assert_eq!(inner.payload, b"request");

        let reply = udp(case.backend, &own.to_string()).payload(b"reply").build();
        let (_, back) = node.forward(pod_port(2), &reply);
        let error =
            icmp_error(at(case.client).ip(), at(case.frontend).ip(), clients, &back).build();
        let (port, frame) = node.forward(case.port, &error);
        let outer = seen(&frame);
        assert_eq!((port, outer.destination.ip()), (pod_port(2), at(case.backend).ip()));
        assert_eq!((outer.source.ip(), outer.icmp_type), (ip(case.node), backends.0));
        let inner = read_quoted(&outer).expect("a quote");
        assert_eq!((inner.source, inner.destination), (at(case.backend), own));
        assert_eq!(inner.payload, b"reply");
    }
}

/// A router has no address of the other family, and speaks as this node does.
#[test]
fn error_of_a_router_comes_from_the_node() {
    let backends = [(ip("2001:db8:9::9"), 8080)];
    let world = world().with_service(FrontendKind::ClusterIp, "10.2.0.9", 80, &backends);
    let mut node = Simulation::single(&world.tables());
    let syn = tcp("10.1.0.1:1000", "10.2.0.9:80", "S").build();
    let (port, there) = node.forward(pod_port(1), &syn);
    assert_eq!((port, seen(&there).destination), (UPLINK, at("[2001:db8:9::9]:8080")));
    let error = icmp_error(ip("2001:db8::77"), ip("fd00::1"), (2, 0, 1400), &there).build();
    let (port, frame) = node.forward(UPLINK, &error);
    let outer = seen(&frame);
    assert_eq!((port, outer.source.ip()), (pod_port(1), ip("10.0.0.1")));
    assert_eq!(frame[34..36], [3, 4]);
    assert_eq!(frame[38..42], 1380u32.to_be_bytes());
    let inner = read_quoted(&outer).expect("a quote");
    assert_eq!((inner.source, inner.destination), (at("10.1.0.1:1000"), at("10.2.0.9:80")));

    let (_, back) = node.forward(
        UPLINK,
        &tcp("[2001:db8:9::9]:8080", &seen(&there).source.to_string(), "SA").build(),
    );
    assert_eq!(seen(&back).source, at("10.2.0.9:80"));
}

#[test]
fn error_about_no_flow_or_for_another_is_unrelated() {
    let mut node = node();
    let there = udp("[fd00::1]:61000", "[fd01::2]:8080").build();
    let error = icmp_error(ip("fd01::2"), ip("fd00::1"), (1, 4, 0), &there).build();
    node.expect_drop(pod_port(2), &error, DropReason::IcmpUnrelated);
    let request = udp("192.0.2.7:1000", "203.0.113.1:80").build();
    to_pod(&mut node, UPLINK, &request);
    // Quoted is what the pod sends, but the error is for somebody else.
    let quote = udp("203.0.113.1:80", "192.0.2.7:1000").build();
    let error = icmp_error(ip("192.0.2.7"), ip("203.0.113.9"), (3, 3, 0), &quote).build();
    node.expect_drop(UPLINK, &error, DropReason::IcmpUnrelated);
    // A quote of mapped addresses names an entry, but no packet.
    let quote = udp("[::ffff:203.0.113.1]:80", "[::ffff:192.0.2.7]:1000").build();
    let error = icmp_error(ip("2001:db8::7"), ip("fd00::1"), (1, 4, 0), &quote).build();
    node.expect_drop(UPLINK, &error, DropReason::Malformed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn quote_of_any_length_is_the_packet_that_was_sent(
        is_v6: bool,
        is_tcp: bool,
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        quote_len in 20usize..200,
    ) {
        let (sent, went) = if is_v6 { (WENT6, SENT4) } else { (SENT4, WENT6) };
        let build = |ends: (&str, &str)| {
            let frame = if is_tcp { tcp(ends.0, ends.1, "A") } else { udp(ends.0, ends.1) };
            frame.payload(&payload).build()
        };
        let (original, quote) = (build(sent), build(went));
        let header = if is_v6 { 20 } else { 40 };
        // Half a checksum cannot be told right from wrong.
        let quote_len = (quote_len & !1).max(header + 8).min(quote.len() - 14);
        let (words, own, router) = match is_v6 {
            true => ((11, 0, 0), "fd00::1", "198.51.100.9"),
            false => ((3, 0, 0), "10.0.0.1", "fd00::99"),
        };
        let quote = &quote[..14 + quote_len];
        let frame = icmp_error(ip(router), at(went.0).ip(), words, quote).build();
        let packet = Packet::parse(&frame, frame.len()).expect("a packet");
        let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
        let sent: FlowKey = tuple(protocol, sent);
        let hop = hop(1500);
        let ways = ErrorWays { back: &hop, left_by: None };
        let mut buffer = HeapBuffer::new(&frame);
        let change = change(sent.reversed());
        let outcome = translate_error(&change, (&sent, ip(own)), &packet, &mut buffer, &ways);
        prop_assert_eq!(outcome, Ok(()));
        let outer = read(buffer.bytes()).expect("right checksums");
        prop_assert_eq!((outer.source.ip(), outer.destination.ip()), (ip(own), sent.source()));
        let (quoted_at, l4) = if is_v6 { (14 + 48, 40) } else { (14 + 28, 20) };
        let inner = &buffer.bytes()[quoted_at..];
        prop_assert_eq!(&inner[l4..], &original[14 + l4..][..quote_len - header]);
        let seen = read_quoted(&outer).expect("a quote with a right header checksum");
        prop_assert_eq!(seen.source.ip(), sent.source());
        prop_assert_eq!(seen.destination.ip(), sent.destination());
    }
}
