//! Frames of anybody's choice.

use std::mem::discriminant;
use std::net::IpAddr;

use dataplane::address::MacAddr;
use dataplane::buffer::Buffer;
use dataplane::conntrack::sctp::Chunks;
use dataplane::conntrack::segment::{SCALE_LARGEST, Segment, window_scale};
use dataplane::flow_key::FlowKey;
use dataplane::forwarding::NextHop;
use dataplane::icmp::{ERROR_FRAME_MAX, IcmpErrorKind, build_error};
use dataplane::lb::FrontendKind;
use dataplane::memory::HeapBuffer;
use dataplane::nat64::{ErrorWays, plan, translate_error};
use dataplane::packet::{Packet, PacketKind, quoted};
use dataplane::rewrite::{Rewrite, apply, apply_to_error, finish_checksum};
use dataplane::tables::TcpWindows;
use xskiff_tests::packet_builder::{icmp_error, ping, raw, read, sctp, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port, pod4, pod6};

use crate::{Damage, damaged};

fn honest_frames() -> Vec<Vec<u8>> {
    let v4 = udp("10.1.0.1:9", "192.0.2.7:53").payload(b"odd").build();
    let v6 = udp("[fd01::1]:9", "[2001:db8::7]:53").payload(b"even").build();
    let (own4, own6) = (address("10.0.0.1"), address("fd00::1"));
    let to_ipv4_client = udp("10.2.0.1:53", "10.1.0.1:9").payload(b"reply").build();
    let to_ipv6_backend = udp("[fd00::1]:61000", "[fd01::2]:53").payload(b"request").build();
    vec![
        tcp("10.1.0.1:1000", "10.1.0.2:80", "S").payload(b"x").build(),
        tcp("[fd01::1]:1000", "[fd01::2]:80", "PA").partial_checksum().build(),
        icmp_error(address("192.0.2.9"), own4, (3, 4, 1400), &v4).build(),
        icmp_error(address("2001:db8::9"), own6, (2, 0, 1400), &v6).build(),
        ping(pod4(1), pod4(2), 7).build(),
        ping(pod6(1), pod6(2), 7).build(),
        udp("10.1.0.1:9", "10.1.0.2:53").payload(&[1; 64]).fragment(1, 0, true).build(),
        udp("[fd01::1]:9", "[fd01::2]:53").payload(&[1; 64]).fragment(1, 72, false).build(),
        raw(pod6(1), pod6(2), 60).payload(&[17, 0, 1, 4, 0, 0, 0, 0, 0, 9, 0, 9, 0, 8]).build(),
        tcp("10.1.0.1:1000", "10.1.0.2:80", "A").numbers(1, 9, 500).build(),
        tcp("10.1.0.2:80", "10.1.0.1:1000", "SA").offering_scale(7).build(),
        sctp("10.1.0.1:1000", "10.1.0.2:80", 0, &[(1, 0, &[7; 16])]).build(),
        sctp("[fd01::1]:9", "[fd01::2]:9", 7, &[(11, 0, &[]), (3, 0, &[0; 12]), (6, 1, &[])])
            .build(),
        raw(pod6(1), pod6(2), 0).payload(&[43, 0, 1, 4, 0, 0, 0, 0, 59, 0, 4, 0]).build(),
        udp("10.1.0.1:9", "10.2.0.1:53").payload(&[1; 64]).fragment(1, 0, true).build(),
        udp("10.1.0.1:9", "10.2.0.1:53").payload(&[1; 64]).fragment(1, 72, false).build(),
        tcp("10.1.0.1:1000", "10.2.0.1:53", "S").build(),
        tcp("[fd01::1]:1000", "[fd02::1]:53", "S").build(),
        icmp_error(pod4(1), address("10.2.0.1"), (3, 4, 1400), &to_ipv4_client).build(),
        icmp_error(pod6(2), own6, (1, 4, 0), &to_ipv6_backend).build(),
        v4,
        v6,
    ]
}

/// An end of the other family than `like`, for a translation between them.
fn across(like: &FlowKey) -> FlowKey {
    let (source, destination) = match like {
        FlowKey::V4(_) => (address("fd00::1"), address("2001:db8::7")),
        FlowKey::V6(_) => (address("10.0.0.1"), address("192.0.2.7")),
    };
    FlowKey::new(like.protocol(), (source, 61_000), (destination, 53)).expect("one family")
}

/// What is translatable is a packet of the other family afterwards, and says what was planned.
fn translate(packet: &Packet, frame: &[u8]) {
    let mut buffer = HeapBuffer::new(frame);
    if packet.kind == PacketKind::IcmpError {
        let Ok(quote) = quoted(packet, frame) else { return };
        let (sent, hop) = (across(&quote.key), back());
        let ways = ErrorWays { back: &hop, left_by: Some(1400) };
        let change = change(sent.reversed());
        let own = node_of(sent.source());
        if translate_error(&change, (&sent, own), packet, &mut buffer, &ways).is_ok() {
            let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
            assert_eq!(quoted(&again, buffer.bytes()).map(|quote| quote.key), Ok(sent));
            read(buffer.bytes()).expect("right checksums");
        }
        return;
    }
    let target = across(&packet.flow_key());
    let Ok(translation) = plan(packet, frame, &target) else { return };
    assert_eq!(translation.apply(&change(target), packet, &mut buffer, 7), Ok(()));
    let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
    assert_eq!(again.ip_len, translation.ip_len(packet));
    assert_eq!(again.flow_key().source(), target.source());
    if packet.kind.has_tuple() {
        assert_eq!(again.flow_key(), target);
    }
    // Of a fragment's number IPv4 has the lower half.
    assert_eq!(discriminant(&again.kind), discriminant(&packet.kind));
}

fn back() -> NextHop {
    NextHop {
        port: UPLINK,
        to_host: false,
        source: MacAddr([2; 6]),
        destination: Some(MacAddr([4; 6])),
        mtu: 1500,
        neighbour: address("10.0.0.2"),
    }
}

fn node_of(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { address("10.0.0.1") } else { address("fd00::1") }
}

fn change(tuple: FlowKey) -> Rewrite {
    Rewrite {
        tuple,
        source_mac: MacAddr([2; 6]),
        destination_mac: MacAddr([4; 6]),
        decrement_ttl: true,
    }
}

/// Everything that is ever done to a parsed packet.
fn exercise(frame: &[u8]) {
    let Ok(packet) = Packet::parse(frame, frame.len()) else { return };
    let segment = Segment::read(&packet, frame);
    assert!(segment.is_some() || packet.kind != PacketKind::Tcp);
    let own = node_of(packet.flow_key().source());
    let mut answer = [0; ERROR_FRAME_MAX];
    for kind in [
        IcmpErrorKind::TimeExceeded,
        IcmpErrorKind::NetUnreachable,
        IcmpErrorKind::PortUnreachable,
        IcmpErrorKind::TooBig { mtu: 1280 },
    ] {
        if let Ok(len) = build_error(kind, &packet, frame, own, &mut answer) {
            read(&answer[..len]).expect("an answer with right checksums");
        }
    }
    translate(&packet, frame);
    let mut buffer = HeapBuffer::new(frame);
    finish_checksum(&packet, &mut buffer);
    if packet.kind == PacketKind::IcmpError {
        let Ok(quote) = quoted(&packet, buffer.bytes()) else { return };
        let sent = quote.key.with_source(own, 61_000);
        if apply_to_error(&change(sent.reversed()), &sent, &packet, buffer.bytes_mut()).is_ok() {
            let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
            assert_eq!(quoted(&again, buffer.bytes()).map(|quote| quote.key), Ok(sent));
        }
        return;
    }
    let tuple = packet.flow_key().with_source(own, 61_000);
    assert_eq!(apply(&change(tuple), &packet, buffer.bytes_mut()), Ok(()));
    let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
    assert_eq!(again.flow_key().source(), own);
}

#[test]
fn any_bytes_are_a_packet_or_dropped_with_a_reason() {
    bolero::check!().for_each(exercise);
}

/// The parsers of what is only read of flows with details, without what stands before them.
#[test]
fn any_bytes_are_options_and_chunks_or_refused() {
    bolero::check!().with_type::<(Vec<u8>, u8, u16)>().for_each(|(bytes, offset, more)| {
        assert!(window_scale(bytes).is_none_or(|scale| scale <= SCALE_LARGEST));
        let end = bytes.len() + usize::from(*more);
        for is_whole in [true, false] {
            if let Ok(chunks) = Chunks::read(bytes, usize::from(*offset), end, is_whole) {
                assert_eq!(chunks.is_init(), chunks.tag == 0, "{chunks:?}");
            }
        }
    });
}

#[test]
fn damaged_frames_are_a_packet_or_dropped_with_a_reason() {
    let honest = honest_frames();
    bolero::check!().with_type::<(u8, Damage)>().for_each(|(which, damage)| {
        exercise(&damaged(&honest[usize::from(*which) % honest.len()], damage));
    });
}

/// The length of all chunks together is what the sender of the buffer says.
#[test]
fn first_chunk_of_a_longer_packet_is_never_read_beyond_its_end() {
    let honest = honest_frames();
    bolero::check!().with_type::<(u8, Damage, u16)>().for_each(|(which, damage, more)| {
        let chunk = damaged(&honest[usize::from(*which) % honest.len()], damage);
        let Ok(packet) = Packet::parse(&chunk, chunk.len() + usize::from(*more)) else { return };
        let mut bytes = chunk.clone();
        let _ = quoted(&packet, &bytes);
        let _ = Segment::read(&packet, &bytes);
        let own = node_of(packet.flow_key().source());
        let tuple = packet.flow_key().with_source(own, 61_000);
        let _ = apply(&change(tuple), &packet, &mut bytes);
        let _ = apply_to_error(&change(tuple), &tuple, &packet, &mut bytes);
        let mut answer = [0; ERROR_FRAME_MAX];
        let _ = build_error(IcmpErrorKind::TimeExceeded, &packet, &chunk, own, &mut answer);
        let (target, hop) = (across(&packet.flow_key()), back());
        let mut buffer = HeapBuffer::new(&chunk);
        if let Ok(translation) = plan(&packet, &chunk, &target) {
            let _ = translation.apply(&change(target), &packet, &mut buffer, 7);
        }
        let ways = ErrorWays { back: &hop, left_by: None };
        let mut buffer = HeapBuffer::new(&chunk);
        let _ = translate_error(&change(target), (&target, own), &packet, &mut buffer, &ways);
    });
}

#[test]
fn any_sequence_of_damaged_frames_leaves_every_packet_counted() {
    let honest = honest_frames();
    let world = World::with_pods(2)
        .with_unfinished_checksums(pod_port(1))
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 53, &[(pod6(2), 53)])
        .with_service(FrontendKind::ClusterIp, "fd02::1", 53, &[(pod4(2), 53)]);
    let tables = world.with_tcp_windows(TcpWindows::Strict).tables();
    bolero::check!().with_type::<(bool, Vec<(u8, Damage, u8)>)>().for_each(|(details, frames)| {
        // A node of its own for each input, so that an input that fails does so alone.
        let mut node = match details {
            true => Simulation::with_details(2, 40, &tables),
            false => Simulation::new(2, 40, &tables),
        };
        for (which, damage, place) in frames {
            let frame = damaged(&honest[usize::from(*which) % honest.len()], damage);
            let port = if place & 1 == 0 { UPLINK } else { pod_port(1 + (place >> 1 & 1)) };
            node.deliver(usize::from(place >> 2 & 1), port, &frame);
        }
        node.settle();
        for (port, frame) in node.take_outgoing() {
            let parsed = Packet::parse(&frame, frame.len());
            assert!(parsed.is_ok(), "{parsed:?} left port {}", port.0);
        }
    });
}
