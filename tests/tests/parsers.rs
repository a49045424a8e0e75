//! A million hostile frames through a whole node: no panic, no packet lost, and whatever leaves is
//! well-formed and leaves where it belongs.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dataplane::direct::Dispatch;
use dataplane::lb::FrontendKind;
use dataplane::packet::Packet;
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{icmp_error, ping, pong, raw, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, pod_port, pod4, pod6};

const FRAMES: usize = 1_000_000;
const BATCH: usize = 256;
const PODS: u8 = 4;

fn world() -> World {
    World::with_pods(PODS)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(2), 8080), (pod4(3), 8080)])
        .with_service(FrontendKind::ClusterIp, "fd02::1", 80, &[(pod6(2), 8080)])
        .with_service(FrontendKind::NodePort, "", 30_080, &[(pod4(2), 8080)])
        .with_no_egress(4)
        .with_unfinished_checksums(pod_port(1))
}

/// End points that mean something to the node, so that mutated frames go deep.
const ENDS: [&str; 12] = [
    "10.1.0.1:1000",
    "10.1.0.2:8080",
    "10.1.0.4:9",
    "10.2.0.1:80",
    "10.0.0.1:30080",
    "10.0.0.1:61500",
    "192.0.2.7:53",
    "[fd01::1]:1000",
    "[fd01::2]:8080",
    "[fd02::1]:80",
    "[fd00::1]:61500",
    "[2001:db8::7]:53",
];

fn ip(end: &str) -> IpAddr {
    end.parse::<std::net::SocketAddr>().expect("end point").ip()
}

/// A frame as an honest stack would send it, of every kind there is.
fn honest(random: &mut Random) -> Vec<u8> {
    let one = *random.pick(&ENDS);
    let same_family: Vec<_> =
        ENDS.iter().filter(|end| ip(end).is_ipv4() == ip(one).is_ipv4()).collect();
    let other = **random.pick(&same_family);
    let (a, b) = (ip(one), ip(other));
    let payload = vec![0x5a; random.below(90)];
    let frame = match random.below(9) {
        0 => tcp(one, other, "S"),
        1 => tcp(one, other, random.pick::<&str>(&["SA", "A", "PA", "FA", "R"])),
        2 | 3 => udp(one, other),
        4 => ping(a, b, 7),
        5 => pong(a, b, 7),
        6 => {
            let kind = if a.is_ipv4() { *random.pick(&[3, 11]) } else { *random.pick(&[1, 2, 3]) };
            return icmp_error(a, b, (kind, 0, 1400), &honest_udp(random, other, one)).build();
        }
        7 => raw(a, b, *random.pick(&[0, 43, 44, 47, 50, 51, 59, 60, 132])),
        _ => {
            let offset = *random.pick(&[0, 0, 8, 24, 1480]);
            udp(one, other).fragment(u32::from(random.byte() & 7), offset, random.one_in(2))
        }
    };
    let frame = frame.payload(&payload).ttl(*random.pick(&[0, 1, 2, 64, 255]));
    if random.one_in(4) { frame.partial_checksum().build() } else { frame.build() }
}

fn honest_udp(random: &mut Random, from: &str, to: &str) -> Vec<u8> {
    udp(from, to).payload(&vec![1; random.below(40)]).build()
}

/// Puts an extension header in front of what follows the fixed IPv6 header, lengths mended.
fn extend(random: &mut Random, frame: &mut Vec<u8>) {
    if frame.len() < 54 || frame[12..14] != [0x86, 0xdd] {
        return;
    }
    let kind = *random.pick(&[0, 43, 44, 51, 60]);
    let words = if kind == 44 { 0 } else { random.below(3) };
    let mut extension = vec![0; 8 * (words + 1)];
    extension[0] = std::mem::replace(&mut frame[20], kind);
    extension[1] = u8::try_from(words).expect("small");
    extension[3] = *random.pick(&[0, 0, 1, 8]);
    frame.splice(54..54, extension.iter().copied());
    let len = u16::try_from(frame.len() - 54).expect("short frame");
    frame[18..20].copy_from_slice(&len.to_be_bytes());
}

/// Damages a frame: cut, bits, lying lengths, noise.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(10) {
        0 => frame.truncate(random.below(frame.len() + 1)),
        1 => {
            let more = random.below(64);
            frame.resize(frame.len() + more, 0xee);
        }
        2 => frame.iter_mut().skip(14).for_each(|byte| *byte = random.byte()),
        3 => (0..1 + random.below(4)).for_each(|_| extend(random, frame)),
        4..=7 => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(frame.len());
                frame[at] ^= 1 << random.below(8);
            }
        }
        _ => {}
    }
    let header = frame.get(14).map_or(0, |first| usize::from(first & 15) * 4);
    if random.one_in(2) && frame.len() > 14 + header && header >= 20 && frame[12..14] == [8, 0] {
        mend_ipv4_checksum(&mut frame[14..14 + header]);
    }
}

/// So that damage to an IPv4 header reaches further than its checksum.
fn mend_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// What leaves is a packet; a pod is sent what is addressed to it; nothing of another pod's goes
/// out of a pod's port unanswered for.
fn check(port: PortId, frame: &[u8]) {
    let packet = Packet::parse(frame, frame.len()).unwrap_or_else(|reason| {
        panic!("a frame left port {} that is {reason}: {frame:02x?}", port.0)
    });
    let key = packet.flow_key();
    let pod = (1..=PODS).find(|n| pod_port(*n) == port);
    if let Some(n) = pod {
        assert!([pod4(n), pod6(n)].contains(&key.destination()), "pod {n} was sent {key}");
    }
}

#[test]
fn million_hostile_frames_leave_a_node_whole() {
    let mut random = Random::new(0x5eed);
    let mut node = Simulation::new(3, 2000, &world().tables());
    let ports = [HOST, UPLINK, pod_port(1), pod_port(2), pod_port(4), PortId(77)];
    let mut sent = 0;
    while sent < FRAMES {
        for _ in 0..BATCH {
            let mut frame = honest(&mut random);
            damage(&mut random, &mut frame);
            node.deliver(random.below(3), *random.pick(&ports), &frame);
        }
        sent += BATCH;
        node.settle();
        for (port, frame) in node.take_outgoing() {
            check(port, &frame);
        }
        node.now = node.now.after(Duration::from_millis(200));
        if random.one_in(64) {
            node.publish(&world().next_generation().tables());
            node.publish(&world().tables());
        }
        drop((node.take_events(), node.take_neighbour_requests()));
    }
    let received = node.sum(|counters| counters.received.get());
    assert_eq!(received, u64::try_from(sent).expect("a count"), "every frame is counted");
    let transmitted = node.sum(|counters| counters.transmitted.get());
    assert!(transmitted > received / 20, "too few survive to prove anything: {transmitted}");
}

/// Packets for direct server return, damaged: what is around a packet, what is in it, and options.
#[test]
fn hostile_frames_of_every_form_leave_a_node_whole() {
    let mut random = Random::new(0xd5a);
    for form in [Dispatch::Option, Dispatch::Ipip, Dispatch::Geneve] {
        let nodes = [
            ("10.0.0.3", "10.1.3.0/24"),
            ("fd00::3", "fd01:3::/64"),
            ("10.0.0.1", "10.1.0.0/24"),
            ("fd00::1", "fd01::/64"),
        ];
        let services = |world: World| {
            world
                .with_service(FrontendKind::LoadBalancer, "203.0.113.1", 80, &[(pod4(2), 8080)])
                .with_service(FrontendKind::LoadBalancer, "2001:db8:113::1", 80, &[(pod6(2), 8080)])
                .with_direct(form, &nodes)
        };
        let other = World::with_pods(0).as_node(["10.0.0.3", "fd00::3"]);
        let other = services(other.with_neighbour("10.0.0.1").with_neighbour("fd00::1"));
        let mut other = Simulation::new(1, 2000, &other.tables());
        let mut node = Simulation::new(2, 2000, &services(world()).tables());
        for _ in 0..FRAMES / 30 {
            let port = 1000 + u16::from(random.byte());
            let (client, frontend) = *random.pick(&[
                ("192.0.2.7", "203.0.113.1:80"),
                ("[2001:db8::7]", "[2001:db8:113::1]:80"),
            ]);
            let client = format!("{client}:{port}");
            let frame = match random.below(3) {
                0 => udp(&client, frontend).payload(&vec![1; random.below(60)]),
                1 => udp(&client, frontend)
                    .fragment(7, *random.pick(&[0, 8]), true)
                    .payload(&[1; 16]),
                _ => tcp(&client, frontend, random.pick::<&str>(&["S", "A", "FA", "R"])),
            };
            for (_, mut wire) in other.pass(UPLINK, &frame.build()) {
                damage(&mut random, &mut wire);
                node.deliver(random.below(2), UPLINK, &wire);
            }
            if random.one_in(32) {
                node.settle();
                node.take_outgoing().iter().for_each(|(port, frame)| check(*port, frame));
                node.now = node.now.after(Duration::from_millis(200));
                drop((node.take_events(), node.take_neighbour_requests()));
                drop((other.take_events(), other.take_neighbour_requests()));
            }
        }
        node.settle();
        let taken = node.sum(|counters| counters.directed.get());
        assert!(taken > 1000, "too few survive to prove anything: {taken} by {form:?}");
    }
}

#[test]
fn every_kind_of_frame_cut_at_every_length_is_dropped_or_forwarded() {
    let mut random = Random::new(7);
    let tables: Arc<_> = world().tables();
    for _ in 0..200 {
        let whole = honest(&mut random);
        let mut node = Simulation::new(1, 200, &tables);
        for len in 0..=whole.len() {
            node.deliver(0, pod_port(1), &whole[..len]);
            node.deliver(0, UPLINK, &whole[..len]);
        }
        node.settle();
        node.take_outgoing().iter().for_each(|(port, frame)| check(*port, frame));
    }
}

#[test]
fn frame_with_each_bit_flipped_passes_without_a_panic() {
    let mut random = Random::new(11);
    let mut node = Simulation::new(2, 2000, &world().tables());
    for _ in 0..40 {
        let whole = honest(&mut random);
        for bit in 0..whole.len() * 8 {
            let mut frame = whole.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            node.deliver(bit % 2, *random.pick(&[UPLINK, pod_port(1)]), &frame);
        }
        node.settle();
        node.take_outgoing().iter().for_each(|(port, frame)| check(*port, frame));
        drop(node.take_events());
    }
}
