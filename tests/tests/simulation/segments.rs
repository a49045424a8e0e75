//! How segments that are longer than their link takes are to be cut where they leave.

use dataplane::DropReason;
use dataplane::port::PortId;
use dataplane::tables::TcpWindows;
use xskiff_tests::packet_builder::{FrameBuilder, icmp_error, read, tcp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port};

/// Source, destination, and a router between them.
const ENDS: [[&str; 3]; 2] = [
    ["10.1.0.1:1000", "192.0.2.7:80", "198.51.100.1"],
    ["[fd00:1::1]:1000", "[2001:db8::7]:80", "2001:db8:1::1"],
];
const ERRORS: [(u8, u8); 2] = [(3, 4), (2, 0)];
/// What the source has sent and the destination has acknowledged.
const NEXT: u32 = 101;

/// A connection of pod 1, which leaves segments to its interface to cut, to the outside.
struct Connection {
    node: Simulation,
    family: usize,
    /// Its source as the outside sees it.
    own: String,
}

impl Connection {
    fn open(family: usize, details: bool, offers: [u16; 2]) -> Self {
        let world = World::with_pods(1).with_unfinished_checksums(pod_port(1));
        let tables = world.with_tcp_windows(TcpWindows::Relaxed).tables();
        let mut node = match details {
            true => Simulation::with_details(1, 100, &tables),
            false => Simulation::single(&tables),
        };
        let [inside, outside, _] = ENDS[family];
        let syn = tcp(inside, outside, "S").numbers(NEXT - 1, 0, 60_000);
        let (_, frame) = node.forward(pod_port(1), &syn.offering_segment(offers[0]).build());
        let own = read(&frame).expect("whole").source.to_string();
        let answer = tcp(outside, &own, "SA").numbers(500, NEXT, 60_000);
        node.forward(UPLINK, &answer.offering_segment(offers[1]).build());
        node.forward(pod_port(1), &tcp(inside, outside, "A").numbers(NEXT, 501, 60_000).build());
        Self { node, family, own }
    }

    fn data(&self, bytes: usize) -> FrameBuilder {
        let [inside, outside, _] = ENDS[self.family];
        tcp(inside, outside, "A").numbers(NEXT, 501, 60_000).payload(&vec![7; bytes])
    }

    /// Sends so much; the frame that leaves, and how it is to be cut.
    fn send(&mut self, bytes: usize) -> (Vec<u8>, u16) {
        let frame = self.data(bytes).partial_checksum().build();
        let (port, frame) = self.node.forward(pod_port(1), &frame);
        assert_eq!(port, UPLINK);
        (frame, self.node.wire().borrow().segment_size)
    }

    fn size(&mut self) -> u16 {
        self.send(20_000).1
    }

    fn error(&self, (kind, code): (u8, u8), word: u32, about: &[u8]) -> Vec<u8> {
        let to = self.own.parse::<std::net::SocketAddr>().expect("an end").ip();
        let router = address(ENDS[self.family][2]);
        icmp_error(router, to, (kind, code, word), &about[..about.len().min(300)]).build()
    }

    fn told(&mut self, mtu: u32, about: &[u8]) -> (PortId, Vec<u8>) {
        let error = self.error(ERRORS[self.family], mtu, about);
        self.node.forward(UPLINK, &error)
    }
}

/// They were lost at the router for ever: the pod's stack was told, and made its packets smaller, but its
/// whole segments were cut as before.
#[test]
fn segments_become_as_small_as_a_router_says_that_their_path_takes() {
    for (family, details) in [(0, false), (0, true), (1, false), (1, true)] {
        let headers = if family == 0 { 40 } else { 60 };
        let mut pod = Connection::open(family, details, [1460, 1460]);
        let (sent, size) = pod.send(20_000);
        assert_eq!(size, 1500 - headers);
        assert_eq!(pod.told(1400, &sent).0, pod_port(1), "the pod hears of it as well");
        let (sent, size) = pod.send(20_000);
        assert!((1280..=1400 - headers).contains(&size), "{size}");
        // Another router later on.
        pod.told(1300, &sent);
        let (sent, size) = pod.send(20_000);
        assert!((1200..=1300 - headers).contains(&size), "{size}");
        // What is more than it takes already says nothing new.
        pod.told(1450, &sent);
        assert_eq!(pod.size(), size);
    }
}

#[test]
fn forged_errors_make_segments_no_smaller_than_every_host_takes() {
    for (family, least) in [(0, 536), (1, 1220)] {
        for mtu in [0, 1, 68, 7 << 24] {
            let mut pod = Connection::open(family, false, [1460, 1460]);
            let sent = pod.send(20_000).0;
            pod.told(mtu, &sent);
            assert!(pod.size() >= least, "{mtu}: {}", pod.size());
        }
    }
}

#[test]
fn only_an_error_that_is_right_and_says_too_big_makes_segments_smaller() {
    for family in [0, 1] {
        let mut pod = Connection::open(family, false, [1460, 1460]);
        let (sent, size) = pod.send(20_000);
        let unreachable = pod.error([(3, 1), (1, 0)][family], 1300, &sent);
        pod.node.forward(UPLINK, &unreachable);
        assert_eq!(pod.size(), size);
        let mut damaged = pod.error(ERRORS[family], 1300, &sent);
        *damaged.last_mut().expect("a frame") ^= 1;
        pod.node.expect_drop(UPLINK, &damaged, DropReason::Malformed);
        assert_eq!(pod.size(), size);
    }
}

#[test]
fn error_about_what_is_not_under_way_changes_nothing_where_sequence_numbers_are_known() {
    for family in [0, 1] {
        let mut pod = Connection::open(family, true, [1460, 1460]);
        let (sent, size) = pod.send(20_000);
        let l4 = if family == 0 { 34 } else { 54 };
        for sequence in [NEXT - 1, NEXT + 20_001, NEXT.wrapping_sub(1 << 30)] {
            let mut forged = sent.clone();
            forged[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            pod.told(1300, &forged);
            assert_eq!(pod.size(), size, "{sequence}");
        }
        pod.told(1300, &sent);
        assert!(pod.size() < size);
    }
}
