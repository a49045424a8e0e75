//! Bytes of anybody's choice: a million frames, none of which may stop a worker.

use std::mem::discriminant;

use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::flow_key::FlowKey;
use dataplane::forwarding::NextHop;
use dataplane::icmp::{ERROR_FRAME_MAX, IcmpErrorKind, build_error};
use dataplane::memory::HeapBuffer;
use dataplane::nat64::{ErrorWays, plan, translate_error};
use dataplane::packet::{Packet, PacketKind, quoted};
use dataplane::port::PortId;
use dataplane::rewrite::{apply, apply_to_error, finish_checksum};
use xskiff_tests::packet_builder::{icmp_error, ping, raw, tcp, udp};

use crate::captured;
use crate::frames::{
    FROM, TO, address, forward_as, hex, mend_ipv4_header, tuple, with_extension, with_options,
};

const FRAMES: u64 = 1_200_000;
const SEED: u64 = 0x5eed_0000_0000_0001;

/// SplitMix64: enough for noise, and the same on every machine.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.word() % u64::try_from(bound.max(1)).expect("small")).expect("small")
    }

    fn byte(&mut self) -> u8 {
        self.word().to_be_bytes()[0]
    }
}

fn honest_frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = captured::ALL.iter().map(|frame| hex(frame)).collect();
    let v4 = tcp("10.0.0.1:1000", "10.0.0.2:80", "PA").payload(b"some payload");
    let v6 = udp("[fd00::1]:1000", "[fd00::2]:53").payload(b"some more payload");
    let (a, b) = (address("fd00::1"), address("fd00::2"));
    frames.extend([
        v4.build(),
        v6.build(),
        with_options(&v4.build(), &[7, 7, 4, 1, 2, 3, 4, 0]),
        with_extension(&v6.build(), 60, &[0, 1, 4, 0, 0, 0, 0]),
        with_extension(&v6.build(), 43, &[0, 4, 0, 0, 0, 0, 0]),
        with_extension(&v6.build(), 51, &[4; 23]),
        v4.clone().fragment(7, 0, true).build(),
        v4.fragment(7, 800, false).build(),
        v6.clone().fragment(7, 0, true).build(),
        v6.clone().fragment(7, 800, false).build(),
        icmp_error(b, a, (3, 0, 0), &v6.build()).build(),
        icmp_error(b, a, (1, 4, 0), &with_extension(&v6.build(), 60, &[0; 7])).build(),
        icmp_error(b, a, (2, 0, 1400), &ping(a, b, 9).build()).build(),
        raw(a, b, 132).payload(&[1; 40]).build(),
    ]);
    frames
}

/// Damages `frame`; half of what is IPv4 gets a right header checksum again, to reach deeper.
fn mutate(noise: &mut Noise, frame: &mut Vec<u8>) {
    match noise.below(8) {
        0 => frame.truncate(noise.below(frame.len() + 1)),
        1 => {
            let len = noise.below(64);
            frame.extend(std::iter::repeat_with(|| noise.byte()).take(len));
        }
        2 => {
            // Keeps the EtherType, else everything ends there.
            for byte in frame.iter_mut().skip(14) {
                *byte = noise.byte();
            }
        }
        _ => {}
    }
    for _ in 0..noise.below(6) {
        let reach = frame.len().min(110);
        if let Some(byte) = (reach > 0).then(|| noise.below(reach)).and_then(|at| frame.get_mut(at))
        {
            *byte = noise.byte();
        }
    }
    let is_v4 = frame.len() >= 34 && frame[12..14] == [8, 0];
    if is_v4 && noise.word() & 1 == 0 {
        mend_ipv4_header(frame);
    }
}

/// Makes it a packet of the other family, where that has one like it.
fn translate(packet: &Packet, buffer: &mut HeapBuffer) {
    let key = match packet.kind {
        PacketKind::IcmpError => quoted(packet, buffer.bytes()).map(|quote| quote.key),
        _ => Ok(packet.flow_key()),
    };
    let Ok(key) = key else { return };
    let ends = match key {
        FlowKey::V4(_) => ("[fd00::1]:61000", "[2001:db8::7]:53"),
        FlowKey::V6(_) => ("10.0.0.1:61000", "192.0.2.7:53"),
    };
    let target = tuple(key.protocol(), ends.0, ends.1);
    if packet.kind == PacketKind::IcmpError {
        let hop = back();
        let ways = ErrorWays { back: &hop, left_by: None };
        let change = forward_as(target.reversed());
        let own = target.source();
        if translate_error(&change, (&target, own), packet, buffer, &ways).is_ok() {
            let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
            assert_eq!(quoted(&again, buffer.bytes()).map(|quote| quote.key), Ok(target));
        }
    } else if let Ok(translation) = plan(packet, buffer.bytes(), &target) {
        assert_eq!(translation.apply(&forward_as(target), packet, buffer, 7), Ok(()));
        let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
        assert_eq!(again.ip_len, translation.ip_len(packet));
        assert_eq!(discriminant(&again.kind), discriminant(&packet.kind));
        assert_eq!(again.flow_key().source(), target.source());
    }
}

fn back() -> NextHop {
    NextHop {
        port: PortId(1),
        to_host: false,
        source: FROM,
        destination: Some(TO),
        mtu: 1500,
        neighbour: address("10.0.0.2"),
    }
}

/// Does to a parsed packet everything that the pipeline may.
fn exercise(packet: &Packet, buffer: &mut HeapBuffer) {
    let outside = match packet.flow_key().source() {
        std::net::IpAddr::V4(_) => address("192.0.2.1"),
        std::net::IpAddr::V6(_) => address("2001:db8::1"),
    };
    let mut answer = [0; ERROR_FRAME_MAX];
    let kind = IcmpErrorKind::TooBig { mtu: 1280 };
    if let Ok(len) = build_error(kind, packet, buffer.bytes(), outside, &mut answer) {
        let built = Packet::parse(&answer[..len], len);
        assert_eq!(built.map(|packet| packet.kind), Ok(PacketKind::IcmpError));
    }
    finish_checksum(packet, buffer);
    if packet.kind == PacketKind::IcmpError {
        if let Ok(quote) = quoted(packet, buffer.bytes()) {
            let sent = quote.key.with_source(outside, 61_000);
            let change = forward_as(sent.reversed());
            let _ = apply_to_error(&change, &sent, packet, buffer.bytes_mut());
        }
        return;
    }
    let new = packet.flow_key().with_source(outside, 61_000);
    assert_eq!(apply(&forward_as(new), packet, buffer.bytes_mut()), Ok(()));
    let again = Packet::parse(buffer.bytes(), buffer.len()).expect("still a packet");
    assert_eq!((again.kind, again.l4_offset), (packet.kind, packet.l4_offset));
    assert_eq!(again.flow_key().source(), outside);
}

#[test]
fn million_random_and_mutated_frames_are_parsed_or_dropped_with_a_reason() {
    let mut noise = Noise(SEED);
    let honest = honest_frames();
    let mut buffer = HeapBuffer::new(&[0; 2048]);
    let mut outcomes = [0u64; DropReason::COUNT + 1];
    let mut frame = Vec::new();
    for _ in 0..FRAMES {
        frame.clone_from(&honest[noise.below(honest.len())]);
        mutate(&mut noise, &mut frame);
        match Packet::parse(&frame, frame.len()) {
            Ok(packet) => {
                assert!(
                    packet.l4_offset <= 14 + packet.ip_len && 14 + packet.ip_len <= frame.len()
                );
                outcomes[DropReason::COUNT] += 1;
                // A hop limit of 0 is dropped before any rewrite.
                buffer.refill(&frame);
                translate(&packet, &mut buffer);
                buffer.refill(&frame);
                exercise(&packet, &mut buffer);
            }
            Err(reason) => outcomes[reason as usize] += 1,
        }
    }
    // The noise must reach every reason that the parser has, and leave enough alive.
    for reason in [
        DropReason::Truncated,
        DropReason::Malformed,
        DropReason::NotIp,
        DropReason::BadHeaderChecksum,
        DropReason::SourceRouted,
        DropReason::Multicast,
    ] {
        assert!(outcomes[reason as usize] > 100, "{reason}: {}", outcomes[reason as usize]);
    }
    assert!(outcomes[DropReason::COUNT] > FRAMES / 5, "{outcomes:?}");
}

/// A packet in two chunks.
struct TwoChunks([Vec<u8>; 2]);

impl Buffer for TwoChunks {
    fn bytes(&self) -> &[u8] {
        &self.0[0]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0[0]
    }
    fn len(&self) -> usize {
        self.0[0].len() + self.0[1].len()
    }
    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
        self.0.iter().for_each(|chunk| visit(chunk));
    }
    fn grow_front(&mut self, _: usize) -> Result<(), DropReason> {
        Err(DropReason::NoRoom)
    }
    fn shrink_front(&mut self, _: usize) -> Result<(), DropReason> {
        Err(DropReason::Truncated)
    }
    fn set_len(&mut self, _: usize) -> Result<(), DropReason> {
        Err(DropReason::NoRoom)
    }
}

#[test]
fn checksum_is_finished_across_chunks_that_part_anywhere() {
    for (source, destination) in
        [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")]
    {
        let frame = tcp(source, destination, "A").payload(&[0xa5; 99]);
        let finished = frame.build();
        let unfinished = frame.partial_checksum().build();
        let packet = Packet::parse(&unfinished, unfinished.len()).expect("a packet");
        for at in packet.l4_offset + 20..unfinished.len() {
            let (first, rest) = unfinished.split_at(at);
            let mut buffer = TwoChunks([first.to_vec(), rest.to_vec()]);
            let packet = Packet::parse(buffer.bytes(), buffer.len()).expect("a packet");
            finish_checksum(&packet, &mut buffer);
            assert_eq!(buffer.0.concat(), finished, "parted at {at}");
        }
    }
}

#[test]
fn tuple_text_of_a_hostile_frame_is_harmless() {
    let shown = tuple(dataplane::address::Protocol(255), "10.0.0.1:0", "10.0.0.2:0").to_string();
    assert_eq!(shown, "ip-proto-255 10.0.0.1 -> 10.0.0.2");
}
