//! Fragments in any order through a node: those that come before their first wait for it, within
//! bounds, and overlaps lead nobody astray.

use std::time::Duration;

use dataplane::DropReason;
use dataplane::fragment::waiting::{WAIT, WAITING_OF_PORT_MAX, WAITING_OF_SOURCE_MAX};
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::udp;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, pod_port, pod4, pod6};

const TALKS: [(&str, &str); 2] =
    [("10.1.0.1:9", "192.0.2.7:53"), ("[fd01::1]:9", "[2001:db8::7]:53")];

/// The `nth` fragment of a datagram; each has 64 bytes of payload, the first 72.
fn part(from: &str, to: &str, identification: u32, nth: u16, more: bool) -> Vec<u8> {
    let mark = u8::try_from(nth).expect("few parts");
    let offset = if nth == 0 { 0 } else { 8 + 64 * nth };
    udp(from, to).payload(&[mark; 64]).fragment(identification, offset, more).build()
}

fn mark(frame: &[u8]) -> u8 {
    *frame.last().expect("not empty")
}

fn held(node: &Simulation) -> u64 {
    node.sum(|counters| counters.held.get())
}

#[test]
fn later_fragments_wait_for_their_first_and_follow_it_in_order_of_arrival() {
    for workers in [1, 3] {
        for (from, to) in TALKS {
            let mut node = Simulation::new(workers, 1000, &World::with_pods(1).tables());
            let arrival = [3, 1, 2, 0];
            for (worker, nth) in arrival.into_iter().enumerate() {
                let frame = part(from, to, 7, nth, nth != 3);
                let out = node.pass_to(worker % workers, pod_port(1), &frame);
                if nth == 0 {
                    let marks: Vec<_> = out.iter().map(|(_, frame)| mark(frame)).collect();
                    assert_eq!(marks, [0, 3, 1, 2], "on {workers}: {}", node.moved_counters());
                    assert!(out.iter().all(|(port, _)| *port == UPLINK));
                } else {
                    assert!(out.is_empty());
                    assert_eq!(held(&node), worker as u64 + 1);
                }
            }
            assert_eq!(held(&node), 0);
        }
    }
}

#[test]
fn fragment_before_its_first_is_translated_as_the_first_is() {
    let world = World::with_pods(2).with_service(
        FrontendKind::ClusterIp,
        "10.2.0.1",
        53,
        &[(pod4(2), 5353)],
    );
    let mut node = Simulation::single(&world.tables());
    let [later, first] =
        [(1, false), (0, true)].map(|(nth, more)| part("10.1.0.1:9", "10.2.0.1:53", 7, nth, more));
    assert!(node.pass(pod_port(1), &later).is_empty());
    let out = node.pass(pod_port(1), &first);
    assert_eq!(out.len(), 2, "{}", node.moved_counters());
    for (port, frame) in out {
        assert_eq!((port, &frame[30..34]), (pod_port(2), &[10, 1, 0, 2][..]));
    }
}

#[test]
fn fragment_whose_first_does_not_come_in_time_is_dropped() {
    for (from, to) in TALKS {
        let mut node = Simulation::single(&World::with_pods(1).tables());
        assert!(node.pass(pod_port(1), &part(from, to, 7, 1, false)).is_empty());
        node.now = node.now.after(WAIT - Duration::from_millis(1));
        node.tick();
        assert_eq!(held(&node), 1);
        node.now = node.now.after(Duration::from_millis(1));
        node.tick();
        assert_eq!((held(&node), node.dropped(DropReason::FragmentUnknown)), (0, 1));
        // The first one alone goes on its way.
        node.forward(pod_port(1), &part(from, to, 7, 0, true));
    }
}

#[test]
fn fragment_of_a_refused_first_goes_nowhere() {
    let world = World::with_pods(2).with_no_egress(1);
    let mut node = Simulation::single(&world.tables());
    let there = |nth, more| part("10.1.0.1:9", "10.1.0.2:53", 7, nth, more);
    assert!(node.pass(pod_port(1), &there(1, false)).is_empty());
    node.expect_drop(pod_port(1), &there(0, true), DropReason::PolicyEgress);
    node.wait(Duration::from_secs(2));
    assert_eq!(node.dropped(DropReason::FragmentUnknown), 1);
}

#[test]
fn one_pod_cannot_take_the_room_of_another() {
    let mut node = Simulation::single(&World::with_pods(3).tables());
    for identification in 0..1000 {
        let from = if identification % 2 == 0 { "10.1.0.1:9" } else { "[fd01::1]:9" };
        let to = if identification % 2 == 0 { "192.0.2.7:53" } else { "[2001:db8::7]:53" };
        node.deliver(0, pod_port(1), &part(from, to, identification, 1, false));
    }
    node.settle();
    assert_eq!(held(&node), WAITING_OF_PORT_MAX as u64);
    assert_eq!(node.dropped(DropReason::FragmentsFull), 1000 - WAITING_OF_PORT_MAX as u64);
    for pod in [2, 3] {
        let from = format!("10.1.0.{pod}:9");
        let there = |nth, more| part(&from, "192.0.2.7:53", 7, nth, more);
        assert!(node.pass(pod_port(pod), &there(1, false)).is_empty());
        assert_eq!(node.pass(pod_port(pod), &there(0, true)).len(), 2);
    }
}

#[test]
fn pod_cannot_wait_in_anothers_name() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    let forged = part("10.1.0.2:9", "192.0.2.7:53", 7, 1, false);
    node.expect_drop(pod_port(1), &forged, DropReason::Spoofed);
    let outside = part("10.1.0.2:9", "10.1.0.1:53", 7, 1, false);
    node.expect_drop(UPLINK, &outside, DropReason::LocalAddressFromUplink);
}

#[test]
fn a_whole_datagram_may_come_in_reverse() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let last = u16::try_from(WAITING_OF_SOURCE_MAX).expect("few");
    let there = |nth| part("10.1.0.1:9", "192.0.2.7:53", 7, nth, nth != last);
    (1..=last).rev().for_each(|nth| node.deliver(0, pod_port(1), &there(nth)));
    node.settle();
    assert!(node.take_outgoing().is_empty());
    let out = node.pass(pod_port(1), &there(0));
    let marks: Vec<u16> = out.iter().map(|(_, frame)| mark(frame).into()).collect();
    let expected: Vec<u16> = std::iter::once(0).chain((1..=last).rev()).collect();
    assert_eq!(marks, expected);
}

/// What is the host's reaches it, whichever fragment comes first.
#[test]
fn hosts_own_fragments_wait_and_reach_the_host_unchanged() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for (from, to) in [("192.0.2.7:53", "10.0.0.1:40000"), ("[2001:db8::7]:53", "[fd00::1]:40000")]
    {
        let [later, first] =
            [(1, false), (0, true)].map(|(nth, more)| part(from, to, 7, nth, more));
        assert!(node.pass(UPLINK, &later).is_empty());
        let out = node.pass(UPLINK, &first);
        assert_eq!(out.len(), 2, "{}", node.moved_counters());
        for ((port, frame), sent) in out.iter().zip([&first, &later]) {
            assert_eq!((*port, &frame[14..]), (HOST, &sent[14..]));
        }
    }
}

/// A reply in fragments, the last of which comes first, was the host's before: nobody knew it.
#[test]
fn reply_to_a_translated_flow_in_reverse_order_reaches_its_pod() {
    for ((pod, outside), own) in TALKS.into_iter().zip(["10.0.0.1", "[fd00::1]"]) {
        let mut node = Simulation::single(&World::with_pods(1).tables());
        let out = node.forward(pod_port(1), &udp(pod, outside).build()).1;
        let at = if own.starts_with('[') { 54 } else { 34 };
        let own = format!("{own}:{}", u16::from_be_bytes([out[at], out[at + 1]]));
        let [later, first] =
            [(1, false), (0, true)].map(|(nth, more)| part(outside, &own, 7, nth, more));
        assert!(node.pass(UPLINK, &later).is_empty());
        let out = node.pass(UPLINK, &first);
        assert_eq!(out.len(), 2, "{}", node.moved_counters());
        assert!(out.iter().all(|(port, _)| *port == pod_port(1)));
    }
}

/// RFC 5722: a second first fragment with other ports would lead the later ones elsewhere.
#[test]
fn overlapping_first_fragment_opens_nothing_and_leads_nobody_astray() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    let there = |l4_port: u16, nth, more| {
        part("[fd01::1]:9", &format!("[2001:db8::7]:{l4_port}"), 7, nth, more)
    };
    let first = node.forward(pod_port(1), &there(53, 0, true)).1;
    let flows = node.flows();
    node.expect_drop(pod_port(1), &there(54, 0, true), DropReason::FragmentOverlap);
    assert_eq!(node.flows(), flows, "no flow is opened or changed");
    let later = node.forward(pod_port(1), &there(53, 1, false)).1;
    assert_eq!(first[22..54], later[22..54], "both have the first flow's addresses");
    // Sent again it is no overlap.
    node.forward(pod_port(1), &there(53, 0, true));
}

#[test]
fn fragment_that_waits_holds_up_no_other_traffic_and_no_removed_port() {
    let world = World::with_pods(2);
    let mut node = Simulation::single(&world.tables());
    node.pass(pod_port(1), &part("10.1.0.1:9", "192.0.2.7:53", 7, 1, false));
    node.forward(pod_port(2), &udp("10.1.0.2:9", "192.0.2.7:53").build());
    node.publish(&World::with_pods(0).next_generation().tables());
    node.wait(Duration::from_secs(2));
    assert_eq!(held(&node), 0);
}

/// First fragments were refused once 4,096 had come within 30 s, so that no more than 136 fragmented
/// packets passed in a second.
#[test]
fn many_fragmented_packets_in_a_short_time_all_pass() {
    let mut node = Simulation::single(&World::with_pods(1).tables());
    for identification in 0..10_000 {
        for (nth, more) in [(0, true), (1, false)] {
            let frame = part("10.1.0.1:9", "192.0.2.7:53", identification, nth, more);
            node.forward(pod_port(1), &frame);
        }
    }
}

/// The same behind destination options (RFC 8200, 4.6), which come after the fragment header, and so in
/// the first fragment alone.
fn behind_options(mut fragment: Vec<u8>, is_first: bool) -> Vec<u8> {
    const FRAGMENT_HEADER: usize = 14 + 40;
    let upper = std::mem::replace(&mut fragment[FRAGMENT_HEADER], 60);
    if is_first {
        let options = [upper, 0, 1, 4, 0, 0, 0, 0];
        let at = FRAGMENT_HEADER + 8;
        fragment.splice(at..at, options);
        let payload = u16::try_from(fragment.len() - FRAGMENT_HEADER).expect("short");
        fragment[18..20].copy_from_slice(&payload.to_be_bytes());
    }
    fragment
}

/// A later fragment names the header that follows the fragment header, and its first what lies behind
/// all of them.
#[test]
fn fragments_of_ipv6_meet_whatever_lies_before_the_transport() {
    let world = World::with_pods(2).with_service(
        FrontendKind::ClusterIp,
        "fd02::1",
        53,
        &[(pod6(2), 5353)],
    );
    for workers in [1, 3] {
        for to in ["[fd01::2]:53", "[2001:db8::7]:53", "[fd02::1]:53"] {
            for first_comes in [0, 1] {
                let mut node = Simulation::new(workers, 1000, &world.tables());
                let first = behind_options(part("[fd01::1]:9", to, 7, 0, true), true);
                let later = udp("[fd01::1]:9", to).payload(&[1; 64]).fragment(7, 80, false);
                let later = behind_options(later.build(), false);
                let mut frames = [first, later];
                frames.rotate_left(first_comes);
                let mut out = Vec::new();
                for (worker, frame) in frames.iter().enumerate() {
                    out.extend(node.pass_to(worker % workers, pod_port(1), frame));
                }
                assert_eq!(out.len(), 2, "to {to} on {workers}: {}", node.moved_counters());
                assert!(out[0].0 == out[1].0 && out[0].1[38..54] == out[1].1[38..54]);
                assert!(out[0].1[22..38] == out[1].1[22..38], "one source");
            }
        }
    }
}
