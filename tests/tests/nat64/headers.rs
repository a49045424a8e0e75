//! Single packets, header field by header field.

use dataplane::DropReason;
use dataplane::address::{MacAddr, Protocol};
use dataplane::buffer::Buffer;
use dataplane::flow_key::FlowKey;
use dataplane::memory::HeapBuffer;
use dataplane::nat64::plan;
use dataplane::packet::Packet;
use dataplane::rewrite::Rewrite;
use proptest::prelude::*;
use xskiff_tests::packet_builder::{FrameBuilder, read, tcp, udp};

use crate::at;

const FROM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x11]);
const TO: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x22]);
const V4: (&str, &str) = ("192.0.2.7:1000", "203.0.113.1:80");
const V6: (&str, &str) = ("[fd00::1]:61000", "[fd01::2]:8080");

pub fn tuple(protocol: Protocol, (source, destination): (&str, &str)) -> FlowKey {
    let end = |text: &str| (at(text).ip(), at(text).port());
    FlowKey::new(protocol, end(source), end(destination)).expect("one family")
}

pub fn change(tuple: FlowKey) -> Rewrite {
    Rewrite { tuple, source_mac: FROM, destination_mac: TO, decrement_ttl: true }
}

/// The frame as one of `ends`' family; `identification` is 7.
fn translated(frame: &[u8], ends: (&str, &str)) -> Result<Vec<u8>, DropReason> {
    let packet = Packet::parse(frame, frame.len())?;
    let target = tuple(packet.flow_key().protocol(), ends);
    let translation = plan(&packet, frame, &target)?;
    let mut buffer = HeapBuffer::new(frame);
    translation.apply(&change(target), &packet, &mut buffer, 7)?;
    assert_eq!(translation.ip_len(&packet), buffer.len() - 14);
    Ok(buffer.bytes().to_vec())
}

/// With the link addresses of [`change`].
fn linked(frame: &FrameBuilder) -> Vec<u8> {
    let mut frame = frame.build();
    frame[..6].copy_from_slice(&TO.0);
    frame[6..12].copy_from_slice(&FROM.0);
    frame
}

/// The sum over an IPv4 header, written where it belongs.
pub fn mend_ipv4_header(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].copy_from_slice(&[0; 2]);
    let words =
        frame[14..end].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
}

fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut long = [&frame[..34], options, &frame[34..]].concat();
    long[14] += u8::try_from(options.len() / 4).expect("few");
    let len = u16::try_from(long.len() - 14).expect("short");
    long[16..18].copy_from_slice(&len.to_be_bytes());
    mend_ipv4_header(&mut long);
    long
}

fn with_extension(frame: &[u8], number: u8, body: &[u8]) -> Vec<u8> {
    let mut long = [&frame[..54], &[frame[20]], body, &frame[54..]].concat();
    long[20] = number;
    let len = u16::try_from(long.len() - 54).expect("short");
    long[18..20].copy_from_slice(&len.to_be_bytes());
    long
}

#[test]
fn ipv4_packet_becomes_the_ipv6_packet_that_a_naive_builder_makes() {
    for (old, new) in [
        (tcp(V4.0, V4.1, "PA").payload(b"odd"), tcp(V6.0, V6.1, "PA").payload(b"odd")),
        (tcp(V4.0, V4.1, "S").offering_scale(7), tcp(V6.0, V6.1, "S").offering_scale(7)),
        (udp(V4.0, V4.1).payload(b"even"), udp(V6.0, V6.1).payload(b"even")),
        (udp(V4.0, V4.1), udp(V6.0, V6.1)),
    ] {
        let expected = linked(&new.ttl(63));
        assert_eq!(translated(&old.build(), V6), Ok(expected.clone()));
        // RFC 7915, 4.1: options are ignored. With ten words of them the header becomes shorter.
        for words in [1, 5, 10] {
            let long = with_options(&old.build(), &vec![1; words * 4]);
            assert_eq!(translated(&long, V6), Ok(expected.clone()), "{words} words of options");
        }
        // A short frame is padded; the longer one needs none.
        let mut padded = old.build();
        padded.resize(padded.len().max(70), 0);
        assert_eq!(translated(&padded, V6), Ok(expected));
    }
}

#[test]
fn ipv6_packet_becomes_the_ipv4_packet_that_a_naive_builder_makes() {
    for (old, new) in [
        (tcp(V6.0, V6.1, "PA").payload(b"odd"), tcp(V4.0, V4.1, "PA").payload(b"odd")),
        (udp(V6.0, V6.1).payload(b"even"), udp(V4.0, V4.1).payload(b"even")),
    ] {
        let mut expected = linked(&new.ttl(63));
        // RFC 7915, 5.1: short ones may be fragmented, and have a number for it.
        expected[18..22].copy_from_slice(&[0, 7, 0, 0]);
        mend_ipv4_header(&mut expected);
        let frame = old.build();
        assert_eq!(translated(&frame, V4), Ok(expected.clone()));
        let padded = [&frame[..], &[0; 4]].concat();
        assert_eq!(translated(&padded, V4), Ok(expected.clone()));
        // Options for hops and for the destination, a routing header that is used up, and a fragment
        // header on a packet in one piece (RFC 6946) have no counterpart and are left out.
        let with = |frame: &[u8], number| {
            let body: &[u8] = match number {
                43 => &[0, 4, 0, 0, 0, 0, 0],
                44 => &[0, 0, 0, 0, 0, 0, 9],
                _ => &[0, 1, 4, 0, 0, 0, 0],
            };
            with_extension(frame, number, body)
        };
        for numbers in [&[60][..], &[43, 60], &[60, 43, 0], &[44], &[44, 43]] {
            let long = numbers.iter().fold(frame.clone(), |frame, number| with(&frame, *number));
            assert_eq!(translated(&long, V4), Ok(expected.clone()), "{numbers:?}");
        }
    }
}

#[test]
fn long_ipv4_packet_made_of_an_ipv6_one_may_not_be_fragmented() {
    // 20 bytes of header and 20 of TCP's.
    for (payload, field) in [(1220, [0, 7, 0, 0]), (1221, [0, 0, 0x40, 0])] {
        let frame = tcp(V6.0, V6.1, "A").payload(&vec![7; payload]).build();
        let frame = translated(&frame, V4).expect("translated");
        assert_eq!(frame[18..22], field, "{payload} bytes");
    }
}

#[test]
fn traffic_class_and_hop_limit_are_carried_over_and_the_flow_label_is_not() {
    let mut frame = udp(V4.0, V4.1).ttl(9).build();
    frame[15] = 0xb9;
    mend_ipv4_header(&mut frame);
    let six = translated(&frame, V6).expect("translated");
    assert_eq!((&six[14..18], six[21]), (&[0x6b, 0x90, 0, 0][..], 8));
    let mut frame = udp(V6.0, V6.1).ttl(9).build();
    frame[14..18].copy_from_slice(&[0x6b, 0x9a, 0xbc, 0xde]);
    let four = translated(&frame, V4).expect("translated");
    assert_eq!((four[15], four[22]), (0xb9, 8));
}

/// RFC 7915, 4.5: the receiver over IPv6 would drop it otherwise (RFC 8200, 8.1).
#[test]
fn datagram_without_checksum_gets_one() {
    for payload in [&b""[..], b"odd", b"even"] {
        let mut frame = udp(V4.0, V4.1).payload(payload).build();
        frame[40..42].copy_from_slice(&[0; 2]);
        let expected = linked(&udp(V6.0, V6.1).payload(payload).ttl(63));
        assert_eq!(translated(&frame, V6), Ok(expected.clone()));
        // Bytes behind the datagram are none of its.
        let mut longer = [&frame[..], b"tail"].concat();
        let len = u16::try_from(longer.len() - 14).expect("short");
        longer[16..18].copy_from_slice(&len.to_be_bytes());
        mend_ipv4_header(&mut longer);
        let six = translated(&longer, V6).expect("translated");
        assert_eq!(six[54..62], expected[54..62]);
    }
}

#[test]
fn what_has_no_counterpart_is_refused_by_name() {
    let mut unsummed = udp(V6.0, V6.1).build();
    unsummed[60..62].copy_from_slice(&[0; 2]);
    assert_eq!(translated(&unsummed, V4), Err(DropReason::UdpNoChecksum));
    let authenticated = with_extension(&tcp(V6.0, V6.1, "A").build(), 51, &[4; 23]);
    assert_eq!(translated(&authenticated, V4), Err(DropReason::NoCounterpart));
    let options = with_extension(&udp(V6.0, V6.1).payload(&[0; 64]).build(), 60, &[0; 7]);
    let first = with_extension(&options, 44, &[0, 0, 1, 0, 0, 0, 7]);
    assert_eq!(translated(&first, V4), Err(DropReason::NoCounterpart));
}

#[test]
fn sender_is_told_what_fits_its_own_familys_packets() {
    let mtu_before = |frame: &[u8], ends, mtu| {
        let packet = Packet::parse(frame, frame.len()).expect("a packet");
        let target = tuple(packet.flow_key().protocol(), ends);
        plan(&packet, frame, &target).expect("translatable").mtu_before(mtu)
    };
    let four = udp(V4.0, V4.1);
    assert_eq!(mtu_before(&four.build(), V6, 1500), 1480);
    let piece = four.payload(&[0; 64]).fragment(7, 0, true).build();
    assert_eq!(mtu_before(&piece, V6, 1500), 1472, "its fragment header takes 8 more");
    let six = udp(V6.0, V6.1).build();
    assert_eq!(mtu_before(&six, V4, 1480), 1500);
    assert_eq!(mtu_before(&six, V4, 576), 1280, "no IPv6 link has less");
}

/// A buffer of two chunks, of which the second stays where it is.
struct TwoChunks(HeapBuffer, Vec<u8>);

impl Buffer for TwoChunks {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
    fn len(&self) -> usize {
        self.0.len() + self.1.len()
    }
    fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.0.bytes());
        visit(&self.1);
    }
    fn grow_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        self.0.grow_front(bytes)
    }
    fn shrink_front(&mut self, bytes: usize) -> Result<(), DropReason> {
        self.0.shrink_front(bytes)
    }
    fn set_len(&mut self, _: usize) -> Result<(), DropReason> {
        Err(DropReason::NoRoom)
    }
}

#[test]
fn packet_in_several_chunks_moves_in_its_first() {
    let payload: Vec<u8> = (0..=255).cycle().take(5001).collect();
    let mut unsummed = udp(V4.0, V4.1).payload(&payload).build();
    unsummed[40..42].copy_from_slice(&[0; 2]);
    for (frame, ends, expected) in [
        (tcp(V4.0, V4.1, "A").payload(&payload).build(), V6, tcp(V6.0, V6.1, "A")),
        (unsummed, V6, udp(V6.0, V6.1)),
        (tcp(V6.0, V6.1, "A").payload(&payload).build(), V4, tcp(V4.0, V4.1, "A")),
    ] {
        let (first, rest) = frame.split_at(1793);
        let mut buffer = TwoChunks(HeapBuffer::new(first), rest.to_vec());
        let packet = Packet::parse(first, frame.len()).expect("a packet");
        let target = tuple(packet.flow_key().protocol(), ends);
        let translation = plan(&packet, first, &target).expect("translatable");
        assert_eq!(translation.apply(&change(target), &packet, &mut buffer, 7), Ok(()));
        let whole = [buffer.0.bytes(), &buffer.1].concat();
        assert_eq!(whole, linked(&expected.payload(&payload).ttl(63)));
    }
}

#[test]
fn packet_without_headroom_is_refused_unchanged() {
    struct Tight(Vec<u8>);
    impl Buffer for Tight {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
        fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn for_each_chunk(&self, visit: &mut dyn FnMut(&[u8])) {
            visit(&self.0);
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
    let frame = udp(V4.0, V4.1).payload(b"payload").build();
    let packet = Packet::parse(&frame, frame.len()).expect("a packet");
    let target = tuple(Protocol::UDP, V6);
    let mut buffer = Tight(frame.clone());
    let translation = plan(&packet, &frame, &target).expect("translatable");
    let outcome = translation.apply(&change(target), &packet, &mut buffer, 7);
    assert_eq!((outcome, buffer.0), (Err(DropReason::NoRoom), frame));
}

fn end(is_v6: bool) -> impl Strategy<Value = String> {
    let v4 = (1u8..127, any::<[u8; 3]>(), any::<u16>())
        .prop_map(|(a, [b, c, d], l4_port)| format!("{a}.{b}.{c}.{d}:{l4_port}"));
    let v6 = (any::<u128>(), any::<u16>()).prop_map(|(bits, l4_port)| {
        let address = std::net::Ipv6Addr::from_bits((bits & (u128::MAX >> 8)) | (0xfd << 120));
        format!("[{address}]:{l4_port}")
    });
    if is_v6 { v6.boxed() } else { v4.boxed() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn packet_there_and_back_has_its_transport_again(
        is_v6: bool,
        is_tcp: bool,
        (a, b) in (end(false), end(false)),
        (c, d) in (end(true), end(true)),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        ttl in 3u8..=255,
        class: u8,
    ) {
        let ((from, to), ends) =
            if is_v6 { ((&c, &d), (&a, &b)) } else { ((&a, &b), (&c, &d)) };
        let frame = if is_tcp { tcp(from, to, "PA") } else { udp(from, to) };
        let mut frame = frame.payload(&payload).ttl(ttl).build();
        if is_v6 {
            frame[14..16].copy_from_slice(&[0x60 | class >> 4, class << 4]);
        } else {
            frame[15] = class;
            mend_ipv4_header(&mut frame);
        }
        let there = translated(&frame, (ends.0, ends.1)).expect("translated");
        let seen = read(&there).expect("right checksums");
        prop_assert_eq!((seen.source, seen.destination), (at(ends.0), at(ends.1)));
        prop_assert_eq!((seen.payload, seen.ttl), (payload, ttl - 1));
        let back = translated(&there, (from, to)).expect("translated back");
        prop_assert_eq!(read(&back).err(), None);
        let l4 = if is_v6 { 54 } else { 34 };
        prop_assert_eq!(&back[l4..], &frame[l4..]);
        let addresses = if is_v6 { 22..54 } else { 26..34 };
        prop_assert_eq!(&back[addresses.clone()], &frame[addresses]);
        let of = |frame: &[u8]| if is_v6 { frame[14] << 4 | frame[15] >> 4 } else { frame[15] };
        prop_assert_eq!(of(&back), class);
    }

    #[test]
    fn damage_on_the_way_here_stays_visible(is_v6: bool, is_tcp: bool, at in 0usize..7, flip in 1u8..) {
        let ((from, to), ends) = if is_v6 { (V6, V4) } else { (V4, V6) };
        let frame = if is_tcp { tcp(from, to, "PA") } else { udp(from, to) };
        let mut frame = frame.payload(b"payload").build();
        let from_end = frame.len() - 1 - at;
        frame[from_end] ^= flip;
        prop_assert!(read(&translated(&frame, ends).expect("translated")).is_err());
    }
}
