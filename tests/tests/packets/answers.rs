//! The errors that this node sends, and when it must not.

use dataplane::DropReason;
use dataplane::icmp::{ERROR_FRAME_MAX, IcmpErrorKind, build_error};
use dataplane::packet::{PacketKind, quoted};
use xskiff_tests::packet_builder::{icmp_error, ping, raw, read, tcp, udp};

use crate::captured;
use crate::frames::{address, hex, parse};

const V4: &str = "10.0.0.254";
const V6: &str = "fd00::254";

fn answer(kind: IcmpErrorKind, offender: &[u8], from: &str) -> Result<Vec<u8>, DropReason> {
    let mut frame = [0; ERROR_FRAME_MAX];
    let len = build_error(kind, &parse(offender), offender, address(from), &mut frame)?;
    Ok(frame[..len].to_vec())
}

#[test]
fn error_goes_back_to_the_sender_and_quotes_what_it_sent() {
    let kinds = [
        (IcmpErrorKind::TimeExceeded, (11, 0, 0), (3, 0, 0)),
        (IcmpErrorKind::NetUnreachable, (3, 0, 0), (1, 0, 0)),
        (IcmpErrorKind::PortUnreachable, (3, 3, 0), (1, 4, 0)),
        (IcmpErrorKind::TooBig { mtu: 1400 }, (3, 4, 1400), (2, 0, 1400)),
    ];
    for (kind, v4, v6) in kinds {
        for (offender, from, expected) in [
            (udp("10.0.0.1:1000", "10.0.0.2:53"), V4, v4),
            (tcp("10.0.0.1:1000", "10.0.0.2:80", "S"), V4, v4),
            (ping(address("10.0.0.1"), address("10.0.0.2"), 7), V4, v4),
            (udp("[fd00::1]:1000", "[fd00::2]:53"), V6, v6),
            (ping(address("fd00::1"), address("fd00::2"), 7), V6, v6),
        ] {
            let offender = offender.payload(b"payload").build();
            let frame = answer(kind, &offender, from).expect("an answer");
            let seen = read(&frame).expect("right checksums");
            assert_eq!(seen.source.ip(), address(from));
            assert_eq!(seen.destination.ip(), parse(&offender).flow_key().source());
            assert_eq!((&frame[..6], &frame[6..12]), (&offender[6..12], &offender[..6]));
            assert_eq!(seen.payload, offender[14..]);
            let at = frame.len() - seen.payload.len() - 8;
            let word = u32::from_be_bytes(frame[at + 4..at + 8].try_into().expect("four bytes"));
            assert_eq!((frame[at], frame[at + 1], word), expected);
            // What we say, we understand.
            let packet = parse(&frame);
            assert_eq!(packet.kind, PacketKind::IcmpError);
            let quote = quoted(&packet, &frame).expect("a quote");
            assert_eq!(quote.key, parse(&offender).flow_key());
        }
    }
}

#[test]
fn error_quotes_as_much_as_every_host_and_link_takes() {
    for (offender, from, len) in [
        (udp("10.0.0.1:1000", "10.0.0.2:53"), V4, 14 + 576),
        (udp("[fd00::1]:1000", "[fd00::2]:53"), V6, 14 + 1280),
    ] {
        let offender = offender.payload(&[0xa5; 1400]).build();
        let frame = answer(IcmpErrorKind::TimeExceeded, &offender, from).expect("an answer");
        assert_eq!(frame.len(), len);
        assert_eq!(read(&frame).err(), None);
    }
}

#[test]
fn error_quotes_no_padding() {
    let mut offender = udp("10.0.0.1:1000", "10.0.0.2:53").build();
    let len = offender.len();
    offender.resize(60, 0xee);
    let frame = answer(IcmpErrorKind::TimeExceeded, &offender, V4).expect("an answer");
    assert_eq!(frame.len(), 14 + 28 + len - 14);
}

#[test]
fn nothing_is_said_about_errors_fragments_and_link_business() {
    let datagram = udp("10.0.0.1:1000", "10.0.0.2:53").payload(b"payload.");
    let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
    let unknown_icmp = raw(a, b, 1).payload(&[40, 0, 0, 0, 0, 0, 0, 0]).build();
    for (what, offender, from) in [
        ("error", icmp_error(a, b, (11, 0, 0), &datagram.build()).build(), V4),
        ("later fragment", datagram.clone().fragment(7, 800, false).build(), V4),
        ("possible error", unknown_icmp, V4),
        ("solicitation", hex(captured::SOLICITATION), V6),
        ("error of IPv6", hex(captured::PORT_UNREACHABLE_V6), V6),
        ("packet of the other family", datagram.build(), V6),
    ] {
        let outcome = answer(IcmpErrorKind::TimeExceeded, &offender, from);
        assert_eq!(outcome, Err(DropReason::IcmpUnrelated), "{what}");
    }
    let first = datagram.fragment(7, 0, true).build();
    assert!(answer(IcmpErrorKind::TimeExceeded, &first, V4).is_ok(), "first fragment");
}
