//! ICMP errors about translated flows: outside and inside fit together again (RFC 5508, REQ-4).

use dataplane::DropReason;
use dataplane::flow_key::FlowKey;
use dataplane::packet::{Packet, quoted};
use dataplane::rewrite::apply_to_error;
use proptest::prelude::*;
use xskiff_tests::packet_builder::{icmp_error, read, read_quoted};

use crate::captured;
use crate::frames::{address, forward_as, frame_of, hex, parse, tuple};
use crate::translation::{two_tuples, unicast};

/// Type, code and second word of a "too big" of the tuple's family.
fn too_big(tuple: &FlowKey) -> (u8, u8, u32) {
    match tuple {
        FlowKey::V4(_) => (3, 4, 1400),
        FlowKey::V6(_) => (2, 0, 1400),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn error_reaches_the_sender_about_the_packet_it_sent(
        (sent, seen) in two_tuples(),
        routers in (unicast(false), unicast(true)),
        is_from_router in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
        quote_len in 28usize..200,
    ) {
        // The quoted packet is `sent` as translation made it: `seen`.
        let original = frame_of(&sent, false).payload(&payload).build();
        let translated = frame_of(&seen, false).payload(&payload).build();
        let shortest = if matches!(sent, FlowKey::V4(_)) { 28 } else { 48 };
        // Half a checksum cannot be told right from wrong.
        let quote_len = (quote_len & !1).max(shortest).min(translated.len() - 14);
        let from = match (is_from_router, sent) {
            (false, _) => seen.destination(),
            (true, FlowKey::V4(_)) => routers.0,
            (true, FlowKey::V6(_)) => routers.1,
        };
        let quote = &translated[..14 + quote_len];
        let mut frame = icmp_error(from, seen.source(), too_big(&sent), quote).build();

        let packet = parse(&frame);
        prop_assert_eq!(quoted(&packet, &frame).map(|quote| quote.key), Ok(seen));
        let change = forward_as(sent.reversed());
        prop_assert_eq!(apply_to_error(&change, &sent, &packet, &mut frame), Ok(()));

        let outer = read(&frame).expect("right checksums");
        prop_assert_eq!(outer.destination.ip(), sent.source());
        let is_end = from == seen.destination();
        prop_assert_eq!(outer.source.ip(), if is_end { sent.destination() } else { from });
        prop_assert_eq!(outer.ttl, 63);
        // The naive builder writes an ICMP checksum of zero the other way.
        let inner = read_quoted(&outer).expect("a quote with a right header checksum");
        prop_assert_eq!(inner.source.ip(), sent.source());
        prop_assert_eq!(inner.destination.ip(), sent.destination());
        let (l4, is_icmp_v4) = match sent {
            FlowKey::V4(key) => (20, key.protocol.0 == 1),
            FlowKey::V6(_) => (40, false),
        };
        let (ours, built) = (&outer.payload[..quote_len], &original[14..14 + quote_len]);
        prop_assert_eq!(&ours[..l4], &built[..l4]);
        if !(is_icmp_v4 && ours[22..24] == [0xff; 2]) {
            prop_assert_eq!(ours, built);
        }
    }
}

#[test]
fn error_that_arrived_damaged_is_not_mended() {
    for frame in [captured::PORT_UNREACHABLE_V4, captured::PORT_UNREACHABLE_V6] {
        let mut frame = hex(frame);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let packet = parse(&frame);
        let sent = quoted(&packet, &frame).expect("a quote").key;
        let outcome = apply_to_error(&forward_as(sent.reversed()), &sent, &packet, &mut frame);
        assert_eq!(outcome, Err(DropReason::Malformed));
    }
}

#[test]
fn quote_that_names_no_flow_is_unrelated() {
    let sent = tuple(dataplane::address::Protocol::UDP, "10.0.0.1:1000", "10.0.0.2:53");
    let later = frame_of(&sent, false).payload(b"payload.").fragment(7, 800, false).build();
    let about_an_error = hex(captured::PORT_UNREACHABLE_V4);
    for quote in [later, about_an_error] {
        let frame =
            icmp_error(address("10.0.0.2"), address("10.0.0.1"), (11, 0, 0), &quote).build();
        assert_eq!(quoted(&parse(&frame), &frame), Err(DropReason::IcmpUnrelated));
    }
}

#[test]
fn error_cut_anywhere_in_its_quote_is_refused_without_a_panic() {
    for frame in [captured::PORT_UNREACHABLE_V4, captured::PORT_UNREACHABLE_V6] {
        let whole = hex(frame);
        let packet = parse(&whole);
        let sent = quoted(&packet, &whole).expect("a quote").key;
        for len in 0..whole.len() {
            let mut cut = whole[..len].to_vec();
            let outcome = apply_to_error(&forward_as(sent.reversed()), &sent, &packet, &mut cut);
            assert_eq!(outcome, Err(DropReason::Truncated), "cut to {len}");
            // A frame whose first chunk ends there parses when its headers are in it.
            if let Ok(packet) = Packet::parse(&whole[..len], whole.len()) {
                let _ = quoted(&packet, &whole[..len]);
            }
        }
    }
}
