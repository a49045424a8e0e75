//! A translated packet is byte for byte the packet that the naive builder makes for the new tuple.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::flow_key::FlowKey;
use dataplane::rewrite::apply;
use proptest::prelude::*;
use xskiff_tests::packet_builder::{raw, read};

use crate::frames::{
    address, forward_as, frame_of, parse, tuple, with_extension, with_link_addresses, with_options,
    without,
};

/// An address that packets may bear.
pub fn unicast(is_v6: bool) -> impl Strategy<Value = IpAddr> {
    let v4 = (1u8..127, any::<[u8; 3]>())
        .prop_map(|(first, [b, c, d])| IpAddr::from(Ipv4Addr::new(first, b, c, d)));
    let v6 = any::<u128>().prop_map(|bits| {
        IpAddr::from(Ipv6Addr::from_bits((bits & (u128::MAX >> 8)) | (0xfd << 120)))
    });
    if is_v6 { v6.boxed() } else { v4.boxed() }
}

/// Any tuple of a protocol that is translated. For ICMP both ports are the identifier.
pub fn any_tuple(is_v6: bool, protocol: Protocol) -> impl Strategy<Value = FlowKey> {
    let is_query = matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
    (unicast(is_v6), unicast(is_v6), any::<u16>(), any::<u16>()).prop_map(
        move |(source, destination, a, b)| {
            let b = if is_query { a } else { b };
            FlowKey::new(protocol, (source, a), (destination, b)).expect("one family")
        },
    )
}

/// Two tuples of one family and protocol.
pub fn two_tuples() -> impl Strategy<Value = (FlowKey, FlowKey)> {
    (any::<bool>(), 0..3).prop_flat_map(|(is_v6, protocol)| {
        let protocol = match (protocol, is_v6) {
            (0, _) => Protocol::TCP,
            (1, _) => Protocol::UDP,
            (_, false) => Protocol::ICMP,
            (_, true) => Protocol::ICMPV6,
        };
        (any_tuple(is_v6, protocol), any_tuple(is_v6, protocol))
    })
}

/// ICMP's checksum of zero is written as all ones, the other zero: alike to any receiver.
fn with_one_zero(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12] == 8 && frame[23] == 1 && frame[36..38] == [0xff; 2] {
        frame[36..38].copy_from_slice(&[0; 2]);
    }
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn translated_packet_equals_one_built_for_the_new_tuple(
        (old, new) in two_tuples(),
        is_reply in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        ttl in 2u8..=255,
    ) {
        let mut frame = frame_of(&old, is_reply).payload(&payload).ttl(ttl).build();
        let packet = parse(&frame);
        prop_assert_eq!(packet.flow_key(), old);
        prop_assert_eq!(apply(&forward_as(new), &packet, &mut frame), Ok(()));
        prop_assert_eq!(read(&frame).err(), None);
        let built = frame_of(&new, is_reply).payload(&payload).ttl(ttl - 1).build();
        prop_assert_eq!(with_one_zero(frame), with_one_zero(with_link_addresses(built)));
    }

    #[test]
    fn translation_reaches_past_options_and_extension_headers(
        (old, new) in two_tuples(),
        words in 1usize..10,
    ) {
        let base = frame_of(&old, false).payload(b"payload").build();
        let (mut frame, len) = match old {
            FlowKey::V4(_) => (with_options(&base, &vec![1; words * 4]), words * 4),
            FlowKey::V6(_) => {
                let last = u8::try_from(words - 1).expect("small");
                let mut body = vec![last];
                body.resize(words * 8 - 1, 0);
                (with_extension(&base, 60, &body), words * 8)
            }
        };
        let packet = parse(&frame);
        prop_assert_eq!(packet.flow_key(), old);
        prop_assert_eq!(apply(&forward_as(new), &packet, &mut frame), Ok(()));
        prop_assert_eq!(parse(&frame).flow_key(), new);
        prop_assert_eq!(read(&without(&frame, len)).err(), None);
    }

    #[test]
    fn damage_on_the_way_here_stays_visible(
        (old, new) in two_tuples(),
        at in 0usize..7,
        flip in 1u8..=255,
    ) {
        let mut frame = frame_of(&old, false).payload(b"payload").build();
        let packet = parse(&frame);
        let from_end = frame.len() - 1 - at;
        frame[from_end] ^= flip;
        prop_assert_eq!(apply(&forward_as(new), &packet, &mut frame), Ok(()));
        prop_assert!(read(&frame).is_err());
    }
}

#[test]
fn datagram_without_checksum_stays_without() {
    let old = tuple(Protocol::UDP, "10.0.0.1:1000", "10.0.0.2:53");
    let new = tuple(Protocol::UDP, "10.0.0.9:61000", "10.0.0.2:53");
    let mut frame = frame_of(&old, false).build();
    frame[40..42].copy_from_slice(&[0; 2]);
    assert_eq!(apply(&forward_as(new), &parse(&frame), &mut frame), Ok(()));
    assert_eq!(frame[40..42], [0; 2]);
    assert_eq!(parse(&frame).flow_key(), new);
}

#[test]
fn echo_of_nothing_but_zeros_keeps_a_checksum_that_verifies() {
    // A message that is zero throughout has the sum 0, which only all ones completes. The update of
    // RFC 1624 alone makes it 0.
    let old = tuple(Protocol::ICMP, "10.0.0.1:61000", "10.0.0.2:61000");
    let new = tuple(Protocol::ICMP, "10.0.0.1:0", "10.0.0.3:0");
    let mut frame = frame_of(&old, true).build();
    frame[40..42].copy_from_slice(&[0; 2]);
    frame[36..38].copy_from_slice(&(!61_000u16).to_be_bytes());
    assert_eq!(read(&frame).err(), None);
    assert_eq!(apply(&forward_as(new), &parse(&frame), &mut frame), Ok(()));
    assert_eq!(read(&frame).err(), None);
}

#[test]
fn only_the_addresses_of_other_protocols_change() {
    let sctp = [0x03, 0xe8, 0x00, 0x50, 1, 2, 3, 4, 5, 6, 7, 8];
    let router_solicitation = [10, 0, 0xf5, 0xff, 0, 0, 0, 0];
    for (protocol, payload) in
        [(132, &sctp[..]), (47, b"gre"), (1, &router_solicitation), (1, &[42; 8])]
    {
        let (source, destination) = (address("10.0.0.1"), address("10.0.0.2"));
        let mut frame = raw(source, destination, protocol).payload(payload).build();
        let (packet, before) = (parse(&frame), frame.clone());
        let outside = address("10.0.0.9");
        let new = packet.flow_key().with_source(outside, 61_000);
        assert_eq!(apply(&forward_as(new), &packet, &mut frame), Ok(()));
        assert_eq!(frame[34..], before[34..], "protocol {protocol}");
        assert_eq!(parse(&frame).flow_key().source(), outside);
    }
}

#[test]
fn translation_into_the_other_family_is_refused() {
    let old = tuple(Protocol::TCP, "10.0.0.1:1", "10.0.0.2:2");
    let new = tuple(Protocol::TCP, "[fd00::1]:1", "[fd00::2]:2");
    let mut frame = frame_of(&old, false).build();
    let packet = parse(&frame);
    assert_eq!(apply(&forward_as(new), &packet, &mut frame), Err(DropReason::Malformed));
}
