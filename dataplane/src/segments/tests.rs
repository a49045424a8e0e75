//! Cutting against the packets that it must give.

use proptest::prelude::*;

use super::*;
use crate::memory::HeapBuffer;
use crate::wire::IPV6_LEN;

const FIN: u8 = Seen::FIN;
const PSH: u8 = 0x08;
const ACK: u8 = Seen::ACK;

/// A TCP packet with so many bytes of options and payload, as a local stack leaves it to its interface.
fn long(is_ipv4: bool, options: usize, payload: &[u8], flags: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    let tcp_len = TCP_LEN + options + payload.len();
    let half = |number: usize| u16::try_from(number).expect("a packet").to_be_bytes();
    if is_ipv4 {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(half(IPV4_LEN + tcp_len));
        frame.extend([0xff, 0xfe, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::default().bytes(&frame[14..34]).checksum();
        put(&mut frame, 24, sum);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(half(tcp_len));
        frame.extend([6, 64]);
        let address = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        frame.extend(address(1).into_iter().chain(address(2)));
    }
    frame.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9]);
    let words = u8::try_from((TCP_LEN + options) / 4).expect("a header");
    frame.extend([words << 4, flags, 1, 0, 0xba, 0xad, 0, 0]);
    frame.resize(frame.len() + options, 1);
    frame.extend(payload);
    frame
}

fn planned(frame: &[u8], mtu: u16, limit: u16) -> Result<HeapBuffer, DropReason> {
    let mut buffer = HeapBuffer::new(frame);
    plan(&mut buffer, mtu, SegmentLimit::of(limit)).map(|()| buffer)
}

fn cut(whole: &HeapBuffer) -> Vec<Vec<u8>> {
    let layout = Layout::of(whole).expect("it was planned");
    let write = |number| {
        let mut segment = HeapBuffer::new(&[0; 9014]);
        layout.write(whole, number, &mut segment).expect("there is room");
        segment.bytes().to_vec()
    };
    (0..layout.segments(whole.segment_size())).map(write).collect()
}

/// Whether the checksums of IP and of TCP are right.
fn assert_sound(frame: &[u8]) -> Packet {
    let packet = Packet::parse(frame, frame.len()).expect("a packet");
    let (addresses, tcp) = match matches!(packet.flow_key(), FlowKey::V4(_)) {
        true => (&frame[26..34], &frame[ETHERNET_LEN + IPV4_LEN..]),
        false => (&frame[22..54], &frame[ETHERNET_LEN + IPV6_LEN..]),
    };
    assert_eq!(pseudo_header(addresses, 6, tcp.len()).bytes(tcp).fold(), 0xffff, "{packet:?}");
    assert_eq!(ETHERNET_LEN + packet.ip_len, frame.len());
    packet
}

proptest! {
    /// What is cut is the same stream, in packets that the link takes.
    #[test]
    fn segments_are_the_stream_in_packets_of_the_link(
        is_ipv4: bool,
        options in (0usize..=10).prop_map(|words| words * 4),
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        mtu in 200u16..9000,
        limit: u16,
    ) {
        let frame = long(is_ipv4, options, &payload, ACK | PSH | FIN | CWR);
        let whole = planned(&frame, mtu, limit).expect("TCP");
        if whole.segment_size() == 0 {
            assert_sound(whole.bytes());
            prop_assert!(whole.len() <= ETHERNET_LEN + usize::from(mtu));
            return Ok(());
        }
        let layout = Layout::of(&whole).expect("TCP");
        let segments = cut(&whole);
        let mut stream = Vec::<u8>::new();
        for (number, segment) in segments.iter().enumerate() {
            let packet = assert_sound(segment);
            prop_assert!(packet.ip_len <= usize::from(mtu));
            let (is_first, is_last) = (number == 0, number + 1 == segments.len());
            let flags = if is_last { PSH | FIN } else { 0 } | if is_first { CWR } else { 0 };
            prop_assert_eq!(packet.tcp_flags, ACK | flags);
            let tcp = &segment[layout.l4_offset..];
            let from = u32::try_from(stream.len()).expect("short");
            prop_assert_eq!(&tcp[4..8], &0xffff_ff00u32.wrapping_add(from).to_be_bytes());
            prop_assert_eq!(&tcp[20..20 + options], &vec![1; options]);
            if is_ipv4 {
                let number = u16::try_from(number).expect("few");
                prop_assert_eq!(wire::u16_at(segment, 18), Some(0xfffeu16.wrapping_add(number)));
            }
            stream.extend(&segment[layout.payload_offset..]);
            let in_segment = segment.len() - layout.payload_offset + options;
            prop_assert!(in_segment <= usize::from(SegmentLimit::of(limit).bytes()));
        }
        prop_assert_eq!(stream, payload);
    }
}

#[test]
fn segments_of_an_ethernet_are_as_large_as_its_stack_makes_them() {
    let frame = long(true, 12, &[7; 60_000], ACK);
    let whole = planned(&frame, 1500, 1460).expect("TCP");
    assert_eq!(whole.segment_size(), 1448);
    assert_eq!(cut(&whole).len(), 42);
    assert_eq!(planned(&frame, 1500, 0).expect("TCP").segment_size(), 536 - 12);
    assert_eq!(planned(&frame, 1400, 8940).expect("TCP").segment_size(), 1348);
}

#[test]
fn what_no_link_takes_and_what_is_no_stream_is_refused() {
    let frame = long(false, 0, &[7; 3000], ACK);
    assert_eq!(planned(&frame, 67, 1460), Err(DropReason::Uncuttable));
    let mut datagram = long(true, 0, &[7; 3000], ACK);
    (datagram[23], datagram[38], datagram[39]) = (17, 0, 8);
    put(&mut datagram, 24, 0);
    let sum = Sum::default().bytes(&datagram[14..34]).checksum();
    put(&mut datagram, 24, sum);
    assert_eq!(planned(&datagram, 1500, 1460), Err(DropReason::Uncuttable));
}

/// It lost a part of its number in all pieces but the first.
#[test]
fn congestion_counted_by_accecn_is_told_by_every_piece() {
    let mut frame = long(true, 0, &[7; 3000], ACK | CWR);
    frame[ETHERNET_LEN + IPV4_LEN + 12] |= AE;
    let whole = planned(&frame, 1500, 1460).expect("TCP");
    assert!(!Layout::of(&whole).expect("TCP").has_cwr, "no flag that the kernel clears");
    for segment in cut(&whole) {
        let tcp = &segment[ETHERNET_LEN + IPV4_LEN..];
        assert_eq!((tcp[12] & AE, tcp[13]), (AE, ACK | CWR));
    }
}

#[test]
fn kernel_is_left_the_pseudo_headers_sum() {
    for is_ipv4 in [true, false] {
        let frame = long(is_ipv4, 0, &[7; 3000], ACK);
        let mut whole = planned(&frame, 1500, 1460).expect("TCP");
        let layout = Layout::of(&whole).expect("TCP");
        layout.leave_checksum(&mut whole);
        // As the kernel goes on from there (`skb_checksum_help`).
        let mut bytes = whole.bytes().to_vec();
        let sum = Sum::default().bytes(&bytes[layout.l4_offset..]).checksum();
        put(&mut bytes, layout.l4_offset + CHECKSUM_AT, sum);
        assert_sound(&bytes);
    }
}

#[test]
fn limits_are_the_next_lower_size_and_survive_their_bits() {
    for (offered, kept) in [
        (0, 536),
        (536, 536),
        (1219, 1000),
        (1220, 1220),
        (1380, 1380),
        (1452, 1452),
        (1460, 1460),
        (8910, 8910),
        (9000, 8962),
        (u16::MAX, 8962),
    ] {
        let limit = SegmentLimit::of(offered);
        assert_eq!(limit.bytes(), kept);
        assert_eq!(SegmentLimit::from_bits(limit.bits()), limit);
    }
    // What an earlier version reads of it, and what it has written.
    const EARLIER: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1460, 8940];
    for offered in 536..=u16::MAX {
        let limit = SegmentLimit::of(offered);
        assert!(limit.bytes() <= offered);
        assert!(EARLIER[usize::from(limit.bits() & 7)] <= limit.bytes(), "{limit:?}");
    }
    for (number, bytes) in (0..).zip(EARLIER) {
        assert_eq!(SegmentLimit::from_bits(number).bytes(), bytes);
    }
}

#[test]
fn two_segments_in_one_are_told_from_one_whatever_a_receiver_takes() {
    const OPTIONS: usize = 40;
    for offered in 536..=9000 {
        let limit = SegmentLimit::of(offered);
        let one = usize::from(offered);
        assert!(!limit.is_exceeded_by(one), "{offered}");
        let is_told = limit.is_exceeded_by(2 * (one - OPTIONS) + OPTIONS);
        assert!(is_told || offered >= 8962, "{offered}");
    }
    for exact in [536, 1220, 1360, 1380, 1390, 1400, 1410, 1440, 1452, 1460, 8890, 8910, 8940, 8960]
    {
        assert!(SegmentLimit::of(exact).is_exceeded_by(usize::from(exact) + 1), "{exact}");
    }
    assert!(!SegmentLimit::LEAST.is_exceeded_by(60_000), "its SYNs were not seen");
    assert_eq!(SegmentLimit::LEAST.min(SegmentLimit::of(536)), SegmentLimit::LEAST);
}

/// Joins packets as the worker does: each behind the last of its stream that is not over.
fn joined(packets: &[Vec<u8>]) -> Vec<(HeapBuffer, u16)> {
    let mut whole: Vec<(HeapBuffer, Option<join::Join>, Vec<u8>)> = Vec::new();
    for packet in packets {
        let buffer = HeapBuffer::new(packet);
        let piece = join::Piece::of(&buffer);
        if let (Some(piece), Some((first, Some(join), rest))) = (&piece, whole.last_mut())
            && join.take(first.bytes(), piece, packet)
        {
            rest.extend(piece.payload(packet));
            continue;
        }
        whole.push((buffer, piece.and_then(join::Join::begin), Vec::new()));
    }
    let finish = |(mut first, join, rest): (HeapBuffer, Option<join::Join>, Vec<u8>)| {
        let Some(join) = join.filter(|join| join.pieces() > 1) else { return (first, 0) };
        let layout = join.finish(&mut first);
        let mut bytes = first.bytes()[..layout.payload_offset + usize::from(join.size())].to_vec();
        bytes.extend(rest);
        let mut buffer = HeapBuffer::new(&bytes);
        buffer.set_segment_size(join.size()).expect("heap memory");
        (buffer, join.size())
    };
    whole.into_iter().map(finish).collect()
}

proptest! {
    /// What was cut is joined to what it was, up to the bounds of a join, and in no other order.
    #[test]
    fn pieces_join_to_the_segment_that_they_were_cut_from(
        is_ipv4: bool,
        payload in proptest::collection::vec(any::<u8>(), 3000..20_000),
        mtu in 600u16..1800,
        flip in proptest::option::of((0usize..8, 60usize..400)),
    ) {
        let frame = long(is_ipv4, 12, &payload, ACK | PSH);
        let whole = planned(&frame, mtu, 8940).expect("TCP");
        let mut pieces = cut(&whole);
        let damaged = flip.filter(|(number, _)| *number < pieces.len());
        if let Some((number, at)) = damaged {
            let last = pieces[number].len() - 1;
            pieces[number][at.min(last)] ^= 0x10;
        }
        let out = joined(&pieces);
        let again = out.iter().flat_map(|(buffer, size)| {
            if *size == 0 { vec![buffer.bytes().to_vec()] } else { cut(buffer) }
        });
        let again: Vec<Vec<u8>> = again.collect();
        // Numbers of IP packets are given anew, and with them their sums.
        let comparable = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let blank = |packet: &Vec<u8>| {
                let mut packet = packet.clone();
                if is_ipv4 {
                    packet[18..20].fill(0);
                    packet[24..26].fill(0);
                }
                packet
            };
            packets.iter().map(blank).collect()
        };
        prop_assert_eq!(comparable(&again), comparable(&pieces));
        if damaged.is_none() {
            prop_assert_eq!(out.len(), 1);
        } else {
            prop_assert!(out.iter().any(|(_, size)| *size == 0), "the damaged one goes alone");
        }
    }
}

#[test]
fn what_says_more_than_data_is_not_joined() {
    let data = |flags, payload: &[u8]| HeapBuffer::new(&long(true, 0, payload, flags));
    let piece = join::Piece::of(&data(ACK, &[7; 1000])).expect("data");
    assert!(join::Join::begin(piece).is_some());
    for flags in [ACK | FIN, ACK | CWR, ACK | 0x20, ACK | 0x40, Seen::SYN, Seen::RST | ACK] {
        assert_eq!(join::Piece::of(&data(flags, &[7; 1000])), None, "{flags:#x}");
    }
    assert_eq!(join::Piece::of(&data(ACK, &[])), None, "an acknowledgement");
    let little = join::Piece::of(&data(ACK, &[7; 255])).expect("data");
    assert!(join::Join::begin(little).is_none());
}

#[test]
fn packets_that_count_congestion_otherwise_are_not_joined() {
    let pieces = [0, 1, 2].map(|number| piece(true, number * 500, &[7; 500], (ACK, 9)));
    assert_eq!(joined(&pieces).len(), 1);
    let mut other = pieces.clone();
    let tcp = ETHERNET_LEN + IPV4_LEN;
    other[1][tcp + 12] |= AE;
    // Its sum is right again.
    let mut buffer = HeapBuffer::new(&other[1]);
    let (layout, packet) = Layout::read(&buffer).expect("TCP");
    layout.leave_checksum(&mut buffer);
    finish_checksum(&packet, &mut buffer);
    other[1] = buffer.bytes().to_vec();
    let told: Vec<u8> = joined(&other).iter().map(|(one, _)| one.bytes()[tcp + 12] & AE).collect();
    assert_eq!(told, [0, AE, 0]);
}

/// A packet of a stream at `from`, with this acknowledgement and the right sum.
fn piece(is_ipv4: bool, from: usize, payload: &[u8], (flags, acknowledged): (u8, u8)) -> Vec<u8> {
    let mut frame = long(is_ipv4, 0, payload, flags);
    let l4 = frame.len() - payload.len() - TCP_LEN;
    let sequence = 0xffff_ff00u32.wrapping_add(u32::try_from(from).expect("short"));
    frame[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
    frame[l4 + 11] = acknowledged;
    let mut buffer = HeapBuffer::new(&frame);
    let (layout, packet) = Layout::read(&buffer).expect("TCP");
    layout.leave_checksum(&mut buffer);
    finish_checksum(&packet, &mut buffer);
    buffer.bytes().to_vec()
}

proptest! {
    /// Whatever is joined can be cut into what it was made of: nothing is lost, closed up, or said of data
    /// that its sender did not say it of.
    #[test]
    fn what_is_joined_says_what_its_packets_said(
        is_ipv4: bool,
        sizes in proptest::collection::vec((300usize..330, 0u8..12, 0u8..8), 2..40),
        missing in proptest::option::of(0usize..40),
    ) {
        let (mut from, mut acknowledged, mut packets) = (0, 9, Vec::new());
        for (number, (size, push, news)) in sizes.iter().enumerate() {
            // Mostly of one length, as from one sender.
            let size = if size % 10 == 0 { *size } else { 320 };
            acknowledged += u8::from(*news == 0);
            let flags = ACK | if *push == 0 { PSH } else { 0 };
            let payload = vec![u8::try_from(number).expect("few"); size];
            if missing != Some(number) {
                packets.push(piece(is_ipv4, from, &payload, (flags, acknowledged)));
            }
            from += size;
        }
        let again = joined(&packets).into_iter().flat_map(|(buffer, size)| {
            if size == 0 { vec![buffer.bytes().to_vec()] } else { cut(&buffer) }
        });
        let tcp = if is_ipv4 { ETHERNET_LEN + IPV4_LEN } else { ETHERNET_LEN + IPV6_LEN };
        let told = |packet: &Vec<u8>| packet[tcp..].to_vec();
        let again: Vec<Vec<u8>> = again.map(|packet| told(&packet)).collect();
        prop_assert_eq!(again, packets.iter().map(told).collect::<Vec<_>>());
    }
}
