//! How segments that are longer than their link takes are to be cut where they leave.

use std::sync::Arc;

use dataplane::DropReason;
use dataplane::port::PortId;
use dataplane::tables::{Tables, TcpWindows};
use xskiff_tests::packet_builder::{FrameBuilder, icmp_error, read, tcp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, address, pod_port};

/// Source, destination, and a router between them.
const ENDS: [[&str; 3]; 2] = [
    ["10.1.0.1:1000", "192.0.2.7:80", "198.51.100.1"],
    ["[fd01::1]:1000", "[2001:db8::7]:80", "2001:db8:1::1"],
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
        Self::open_in(&tables, family, details, offers)
    }

    fn open_in(tables: &Arc<Tables>, family: usize, details: bool, offers: [u16; 2]) -> Self {
        let mut node = match details {
            true => Simulation::with_details(1, 100, tables),
            false => Simulation::single(tables),
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

/// They left as one packet, which was more than their receiver takes.
#[test]
fn segments_that_fit_the_link_in_one_packet_are_cut_for_a_receiver_that_takes_less() {
    for (family, offered) in [(0, 536), (1, 536), (0, 700), (1, 640)] {
        let mut pod = Connection::open(family, false, [1460, offered]);
        for bytes in [usize::from(offered) + 1, 1400] {
            let is_told = bytes > 1000 || offered == 536;
            let size = pod.send(bytes).1;
            assert_eq!(size != 0, is_told, "{bytes} of {offered}");
            assert!(size <= offered);
        }
        for bytes in [1, 500, usize::from(offered)] {
            assert_eq!(pod.send(bytes).1, 0, "{bytes}");
        }
    }
    // Without options, both ends take a packet that fills the link.
    let mut pod = Connection::open(0, false, [1460, 1460]);
    let (frame, size) = pod.send(1460);
    assert_eq!((read(&frame).expect("whole").payload.len(), size), (1460, 0));
}

/// The pod was told that its packets are too big for the uplink, made its segments smaller, and left as many
/// of them in one packet that was too big again.
#[test]
fn packet_that_fits_its_own_link_and_not_the_next_is_cut_if_its_stack_may_have_left_it_so() {
    for family in [0, 1] {
        let world = World::with_pods(1).with_unfinished_checksums(pod_port(1));
        let tables = world.with_uplink_mtu(1280).tables();
        let mut pod = Connection::open_in(&tables, family, false, [1460, 1460]);
        let size = pod.send(1400).1;
        assert_eq!(usize::from(size), 1280 - if family == 0 { 40 } else { 60 });
        assert_eq!(pod.node.dropped(DropReason::TooBig), 0);
    }
}

/// A connection that stood before the node did tells nothing of what its ends take.
#[test]
fn packets_of_a_connection_whose_beginning_was_not_seen_leave_as_they_came() {
    let world = World::with_pods(2).with_unfinished_checksums(pod_port(1));
    let mut node = Simulation::single(&world.tables());
    let data = tcp(ENDS[0][0], "10.1.0.2:80", "A").payload(&[7; 1460]).partial_checksum();
    let (_, frame) = node.forward(pod_port(1), &data.build());
    assert_eq!(read(&frame).expect("whole").payload.len(), 1460);
    assert_eq!(node.wire().borrow().segment_size, 0);
}
