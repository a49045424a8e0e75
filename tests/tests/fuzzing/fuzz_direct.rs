//! Packets for direct server return: options, and packets in packets, of anybody's choice.

use dataplane::buffer::Buffer;
use dataplane::direct::option;
use dataplane::direct::tunnel::{Outer, read_geneve, read_ipip, unwrap, wrap};
use dataplane::memory::HeapBuffer;
use dataplane::mss;
use dataplane::packet::Packet;
use xskiff_tests::packet_builder::{tcp, udp};
use xskiff_tests::world::address;

use crate::{Damage, damaged};

const ENDS: [[&str; 3]; 2] = [
    ["192.0.2.7:1000", "203.0.113.1:80", "10.1.0.2"],
    ["[2001:db8::7]:1000", "[2001:db8:113::1]:80", "fd01::2"],
];

/// Each form of each family.
fn honest_frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for [client, frontend, backend] in ENDS {
        let frame = tcp(client, frontend, "S").offering_scale(7).payload(b"odd").build();
        let packet = Packet::parse(&frame, frame.len()).expect("honest");
        let mut buffer = HeapBuffer::new(&frame);
        option::insert(&packet, (address(backend), 80), &mut buffer).expect("room");
        frames.push(buffer.bytes().to_vec());
        let (source, destination) = (address(backend), address(backend));
        for backend in [None, Some((destination, 8080))] {
            let outer = Outer { source, destination, backend, identification: 7, entropy: 9 };
            let mut buffer = HeapBuffer::new(&frame);
            wrap(&outer, &packet, &mut buffer).expect("room");
            frames.push(buffer.bytes().to_vec());
        }
        frames.push(frame);
        frames.push(udp(client, frontend).payload(&[1; 64]).fragment(1, 0, true).build());
    }
    frames
}

/// Everything that is ever done to such a packet.
fn exercise(frame: &[u8], more: usize) {
    let len = frame.len() + more;
    let Ok(packet) = Packet::parse(frame, len) else { return };
    for inner in [read_ipip(&packet, frame, len), read_geneve(&packet, frame, len)] {
        let Ok(Some(inner)) = inner else { continue };
        let mut buffer = HeapBuffer::new(frame);
        unwrap(&inner, &mut buffer).expect("as long as it was");
        let again = Packet::parse(buffer.bytes(), buffer.len() + more);
        // A group's link address may be on the frame, which was not looked at within.
        if frame[0] & 1 == 0 {
            assert_eq!(again, Ok(inner.packet));
        }
    }
    let mut buffer = HeapBuffer::new(frame);
    if let Some(frontend) = option::read(&packet, frame) {
        let is_ipv4 = frontend.0.is_ipv4();
        option::remove(is_ipv4, &mut buffer).expect("it is there");
        let again = Packet::parse(buffer.bytes(), buffer.len() + more).expect("still a packet");
        assert_eq!(again.flow_key(), packet.flow_key());
        assert_eq!(again.l4_offset + option::len(is_ipv4), packet.l4_offset);
    }
    let frontend = (packet.flow_key().destination(), 80);
    let mut buffer = HeapBuffer::new(frame);
    if option::insert(&packet, frontend, &mut buffer).is_ok() {
        // Of an IPv6 packet that has as many headers as there may be it is one too many.
        let Ok(with) = Packet::parse(buffer.bytes(), buffer.len() + more) else { return };
        assert_eq!(option::read(&with, buffer.bytes()), Some(frontend));
        assert_eq!(with.flow_key(), packet.flow_key());
        option::remove(frontend.0.is_ipv4(), &mut buffer).expect("it is there");
        assert_eq!(Packet::parse(buffer.bytes(), len), Ok(packet));
    }
    mss::clamp(&packet, &mut frame.to_vec(), 1000);
}

#[test]
fn any_bytes_are_a_packet_for_direct_return_or_none() {
    bolero::check!().for_each(|frame: &[u8]| exercise(frame, 0));
}

#[test]
fn damaged_packets_for_direct_return_are_read_as_what_they_become_or_refused() {
    let honest = honest_frames();
    bolero::check!().with_type::<(u8, Damage, u8)>().for_each(|(which, damage, more)| {
        let frame = damaged(&honest[usize::from(*which) % honest.len()], damage);
        exercise(&frame, usize::from(*more));
    });
}
