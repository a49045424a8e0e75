//! What does not fit with what is added, and what the ends say that they take.

use dataplane::DropReason;
use dataplane::direct::Dispatch;
use xskiff_tests::packet_builder::{read_quoted, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, pod_port};

use crate::{FORMS, a_world, added, at, cases, dispatched, node_a, node_b, seen};

#[test]
fn packet_that_fits_to_the_byte_goes_on_and_the_next_longer_is_answered_with_what_fits() {
    for form in FORMS {
        let mut a = node_a(form);
        for case in cases().into_iter().filter(|case| case.port == pod_port(2)) {
            let is_v4 = at(case.client).is_ipv4();
            let header = if is_v4 { 28 } else { 48 };
            let fits = 1500 - added(form, is_v4);
            let datagram =
                |len: usize| udp(case.client, case.frontend).payload(&vec![1; len - header]);
            let wire = dispatched(&mut a, &datagram(fits).build());
            assert_eq!(wire.len(), 1514);
            let (port, frame) = a.forward(UPLINK, &datagram(fits + 1).build());
            assert_eq!(port, UPLINK, "back to the client");
            let told = seen(&frame);
            assert_eq!(told.icmp_type, if is_v4 { 3 } else { 2 });
            assert_eq!(told.destination.ip(), at(case.client).ip());
            let mtu = usize::from(u16::from_be_bytes([
                frame[frame_mtu(is_v4)],
                frame[frame_mtu(is_v4) + 1],
            ]));
            assert_eq!(mtu, fits, "{form:?}");
            let quoted = read_quoted(&told).expect("a quote");
            assert_eq!(quoted.destination, at(case.frontend), "what the client sent");
        }
        assert_eq!(a.dropped(DropReason::TooBig), 6);
    }
}

/// Where an error has the lower half of its MTU.
fn frame_mtu(is_v4: bool) -> usize {
    if is_v4 { 14 + 20 + 6 } else { 14 + 40 + 6 }
}

#[test]
fn no_less_is_told_than_every_ipv6_link_has() {
    for form in FORMS {
        let tables = a_world(form).with_uplink_mtu(1290).tables();
        let mut a = Simulation::single(&tables);
        let frame = udp(crate::CLIENTS[1], "[2001:db8:113::1]:80").payload(&[0; 1240]).build();
        let (_, answer) = a.forward(UPLINK, &frame);
        assert_eq!(answer[60..62], 1280u16.to_be_bytes(), "{form:?}");
    }
}

/// A segment with the option MSS, after `noops` bytes that mean nothing.
fn offering(source: &str, destination: &str, flags: &str, mss: u16, noops: usize) -> Vec<u8> {
    let mut options = vec![1; noops];
    options.extend([2, 4]);
    options.extend(mss.to_be_bytes());
    options.resize(options.len().next_multiple_of(4), 0);
    let mut frame = tcp(source, destination, flags).payload(&options).build();
    // The payload becomes options: the length of the header says so, and the checksum with it.
    let l4 = if at(source).is_ipv4() { 34 } else { 54 };
    let words = u8::try_from(5 + options.len() / 4).expect("few") << 4;
    let before = u16::from_be_bytes([frame[l4 + 12], frame[l4 + 13]]);
    frame[l4 + 12] = words;
    let after = u16::from_be_bytes([frame[l4 + 12], frame[l4 + 13]]);
    let sum = u32::from(!u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]))
        + u32::from(!before)
        + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    seen(&frame);
    frame
}

fn mss_of(frame: &[u8], noops: usize) -> u16 {
    let payload = seen(frame).payload;
    assert_eq!(payload[noops..noops + 2], [2, 4]);
    u16::from_be_bytes([payload[noops + 2], payload[noops + 3]])
}

#[test]
fn both_ends_are_told_of_segments_that_fit_on_the_way_between_the_nodes() {
    for form in FORMS {
        for noops in 0..4 {
            let (mut a, mut b) = (node_a(form), node_b(form));
            for case in cases().into_iter().filter(|case| case.port == pod_port(2)) {
                let is_v4 = at(case.client).is_ipv4();
                let headers = if is_v4 { 40 } else { 60 };
                let most = u16::try_from(1500 - added(form, is_v4) - headers).expect("small");
                for (offered, told) in [(most + 9, most), (most, most), (536, 536)] {
                    let syn = offering(case.client, case.frontend, "S", offered, noops);
                    let wire = dispatched(&mut a, &syn);
                    let (_, frame) = b.forward(UPLINK, &wire);
                    assert_eq!(mss_of(&frame, noops), told, "{form:?} {noops}");
                    let back = offering(case.backend, case.client, "SA", offered, noops);
                    let (_, frame) = b.forward(pod_port(2), &back);
                    assert_eq!(mss_of(&frame, noops), told, "{form:?} {noops}");
                }
            }
        }
    }
}

/// Padding of a short frame does not travel in the longer one.
#[test]
fn padding_is_left_behind() {
    let mut a = node_a(Dispatch::Ipip);
    let mut frame = udp("192.0.2.7:1000", "203.0.113.1:80").build();
    let len = frame.len();
    frame.resize(60, 0xee);
    assert_eq!(dispatched(&mut a, &frame).len(), len + 20);
}
