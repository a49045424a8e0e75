//! Packets in pieces, and packets that become too long for the next link.

use dataplane::DropReason;
use xskiff_tests::packet_builder::{read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, pod_port};

use crate::{CASES, at, node, seen, to_pod, world};

/// The two pieces of a datagram with 40 bytes of payload, cut behind 24 of them.
fn pieces(from: &str, to: &str, payload: &[u8; 40]) -> [Vec<u8>; 2] {
    let whole = udp(from, to).payload(payload).build();
    let header_len = if whole[12] == 8 { 34 } else { 54 };
    let mut first = udp(from, to).payload(&payload[..24]).fragment(0x0012_3456, 0, true).build();
    // The naive builder sums what is in its own piece.
    let udp_at = if whole[12] == 8 { 34 } else { 62 };
    first[udp_at..udp_at + 8].copy_from_slice(&whole[header_len..header_len + 8]);
    let rest = udp(from, to).payload(&payload[24..]).fragment(0x0012_3456, 32, false).build();
    [first, rest]
}

/// The pieces put together over a whole packet's headers.
fn join([first, rest]: [&[u8]; 2]) -> Vec<u8> {
    let is_v4 = first[12] == 8;
    let (header, behind) = if is_v4 { (34, 34) } else { (54, 62) };
    let mut whole = [&first[..header], &first[behind..], &rest[behind..]].concat();
    let len = u16::try_from(whole.len() - if is_v4 { 14 } else { 54 }).expect("short");
    if is_v4 {
        whole[16..18].copy_from_slice(&len.to_be_bytes());
        whole[20..22].copy_from_slice(&[0; 2]);
        crate::headers::mend_ipv4_header(&mut whole);
    } else {
        whole[18..20].copy_from_slice(&len.to_be_bytes());
        whole[20] = 17;
    }
    whole
}

#[test]
fn pieces_of_a_datagram_make_a_whole_one_in_the_other_family_in_both_directions() {
    let payload = &std::array::from_fn(|at| u8::try_from(at).expect("small"));
    for workers in [1, 3] {
        for case in CASES {
            for is_disordered in [false, true] {
                let mut node = Simulation::new(workers, 1000, &world().tables());
                let mut pass = |port, mut pieces: [Vec<u8>; 2]| {
                    if is_disordered {
                        pieces.reverse();
                    }
                    let worker = usize::from(is_disordered) % workers;
                    let mut out: Vec<_> =
                        pieces.iter().flat_map(|piece| node.pass_to(worker, port, piece)).collect();
                    assert_eq!(out.len(), 2, "{case:?}: {}", node.moved_counters());
                    out.sort_by_key(|(_, frame)| match frame[12] {
                        8 => frame[21] & 0x1f,
                        _ => frame[57],
                    });
                    let (port, pieces) = (out[0].0, [&*out[0].1, &*out[1].1]);
                    for piece in pieces {
                        // The number that the pieces share: its lower half is IPv4's.
                        let number = if piece[12] == 8 { &piece[18..20] } else { &piece[60..62] };
                        assert_eq!(number, [0x34, 0x56], "{case:?}");
                    }
                    (port, seen(&join(pieces)))
                };
                let (port, there) = pass(case.port, pieces(case.client, case.frontend, payload));
                assert_eq!((port, there.destination), (pod_port(2), at(case.backend)));
                assert_eq!(there.payload, payload);
                let own = there.source.to_string();
                let (port, back) = pass(pod_port(2), pieces(case.backend, &own, payload));
                assert_eq!((port, back.source), (case.port, at(case.frontend)));
                assert_eq!((back.destination, &back.payload[..]), (at(case.client), &payload[..]));
            }
        }
    }
}

/// RFC 7915, 4.5: what one piece holds does not make a checksum.
#[test]
fn first_piece_of_a_datagram_without_checksum_is_dropped_by_name() {
    let case = CASES[0];
    let [mut first, rest] = pieces(case.client, case.frontend, &[7; 40]);
    first[40..42].copy_from_slice(&[0; 2]);
    let mut node = node();
    node.expect_drop(case.port, &first, DropReason::UdpNoChecksum);
    // A whole one gets one.
    let mut whole = udp(case.client, case.frontend).payload(b"payload").build();
    whole[40..42].copy_from_slice(&[0; 2]);
    assert_eq!(to_pod(&mut node, case.port, &whole).payload, b"payload");
    assert!(node.pass(case.port, &rest).is_empty(), "it goes nowhere without its first");
}

/// The longer headers do not fit: the sender is told what does, in its own family's terms.
#[test]
fn packet_that_becomes_too_long_is_answered_with_what_fits() {
    for case in CASES {
        let is_from_v4 = case.is_from_v4();
        let mut node = node();
        let there = to_pod(&mut node, case.port, &udp(case.client, case.frontend).build());
        let header = 28;
        for (ip_len, fits) in [(1480, true), (1481, false)] {
            let payload = vec![7; ip_len - header];
            // Toward IPv6, 20 bytes more than came; the other way what is short enough comes shorter.
            let (port, frame) = if is_from_v4 {
                (case.port, udp(case.client, case.frontend).payload(&payload).build())
            } else {
                let own = there.source.to_string();
                (pod_port(2), udp(case.backend, &own).payload(&payload).build())
            };
            let (out, frame) = node.forward(port, &frame);
            let answer = seen(&frame);
            if fits {
                assert_ne!(out, port, "{case:?}");
                assert_eq!(frame.len(), 14 + 1500);
            } else {
                assert_eq!((out, answer.icmp_type), (port, 3), "{case:?}: fragmentation needed");
                assert_eq!(frame[35..42], [4, frame[36], frame[37], 0, 0, 0x05, 0xc8], "1480");
            }
        }
        assert_eq!(node.dropped(DropReason::TooBig), 1);
    }
}

/// A link that carries less than 1300 bytes of IPv4 toward an IPv6 client's backend.
#[test]
fn ipv6_sender_is_told_of_a_short_ipv4_link() {
    let client = "[fd01::1]:1000";
    for (mtu, told) in [(1400u16, 1420u16), (576, 1280)] {
        let backends = [("192.0.2.50".parse().expect("an address"), 8080)];
        let kind = dataplane::lb::FrontendKind::ClusterIp;
        let world = world().with_service(kind, "fd02::9", 80, &backends).with_uplink_mtu(mtu);
        let mut node = Simulation::single(&world.tables());
        let (port, frame) = node.forward(pod_port(1), &tcp(client, "[fd02::9]:80", "S").build());
        assert_eq!((port, seen(&frame).source.ip()), (UPLINK, crate::ip("10.0.0.1")));
        let payload = vec![7; usize::from(mtu) - 39];
        let data = tcp(client, "[fd02::9]:80", "A").payload(&payload).build();
        let (port, frame) = node.forward(pod_port(1), &data);
        assert_eq!(read(&frame).map(|seen| seen.icmp_type), Ok(2), "packet too big");
        assert_eq!((port, &frame[58..62]), (pod_port(1), &u32::from(told).to_be_bytes()[..]));
    }
}

#[test]
fn hop_limit_that_ends_here_is_told_to_the_sender() {
    for case in CASES {
        let mut node = node();
        let (port, frame) =
            node.forward(case.port, &udp(case.client, case.frontend).ttl(1).build());
        let kind = if case.is_from_v4() { 11 } else { 3 };
        assert_eq!((port, seen(&frame).icmp_type), (case.port, kind), "{case:?}");
    }
}
