//! TCP windows in a whole node: what is let through, what is dropped and counted, and what can end
//! a connection.
#![forbid(unsafe_code)]

use std::time::Duration;

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use dataplane::tables::TcpWindows;
use xskiff_tests::packet_builder::{FrameBuilder, Seen, read, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port};

const OUTSIDE: &str = "192.0.2.7:80";
const INSIDE: &str = "10.1.0.1:1000";

/// A connection of pod 1 to the outside, translated on its way.
struct Connection {
    node: Simulation,
    /// Its source as the outside sees it.
    own: String,
}

impl Connection {
    fn open(windows: TcpWindows) -> Self {
        let tables = World::with_pods(1).with_tcp_windows(windows).tables();
        let mut node = Simulation::with_details(1, 100, &tables);
        let syn = tcp(INSIDE, OUTSIDE, "S").numbers(100, 0, 1000).offering_scale(2);
        let (_, frame) = node.forward(pod_port(1), &syn.build());
        let own = read(&frame).expect("whole").source.to_string();
        let mut connection = Self { node, own };
        let answer = connection.server("SA").numbers(500, 101, 1000).offering_scale(0);
        connection.comes(&answer);
        connection.leaves(&connection.client("A").numbers(101, 501, 1000));
        assert_eq!(connection.state(), FlowState::Established);
        connection
    }

    fn client(&self, flags: &str) -> FrameBuilder {
        tcp(INSIDE, OUTSIDE, flags)
    }

    fn server(&self, flags: &str) -> FrameBuilder {
        tcp(OUTSIDE, &self.own, flags)
    }

    fn leaves(&mut self, frame: &FrameBuilder) -> Seen {
        let (port, frame) = self.node.forward(pod_port(1), &frame.build());
        assert_eq!(port, UPLINK);
        read(&frame).expect("whole")
    }

    fn comes(&mut self, frame: &FrameBuilder) -> Seen {
        let (port, frame) = self.node.forward(UPLINK, &frame.build());
        assert_eq!(port, pod_port(1));
        read(&frame).expect("whole")
    }

    fn is_dropped(&mut self, frame: &FrameBuilder) {
        self.node.expect_drop(UPLINK, &frame.build(), DropReason::TcpOutOfWindow);
    }

    fn state(&self) -> FlowState {
        self.node.flows()[0].life.state()
    }
}

#[test]
fn strict_windows_drop_what_lies_outside_and_count_it_by_name() {
    let mut tcp = Connection::open(TcpWindows::Strict);
    // The client's window is scaled by 4: up to 501 + 4000.
    tcp.comes(&tcp.server("A").numbers(4501, 101, 1000).payload(b"edge"));
    tcp.is_dropped(&tcp.server("A").numbers(4502, 101, 1000).payload(b"beyond"));
    tcp.is_dropped(&tcp.server("A").numbers(501, 102, 1000));
    tcp.is_dropped(&tcp.server("FA").numbers(3_000_000_000, 101, 1000));
    assert_eq!(tcp.state(), FlowState::Established);
    assert_eq!(tcp.node.sum(|counters| counters.out_of_window_passed.get()), 0);
}

#[test]
fn relaxed_windows_drop_resets_alone_and_count_the_others() {
    let mut tcp = Connection::open(TcpWindows::Relaxed);
    tcp.comes(&tcp.server("A").numbers(4502, 101, 1000).payload(b"beyond"));
    tcp.is_dropped(&tcp.server("R").numbers(4502, 0, 0));
    assert_eq!(tcp.state(), FlowState::Established);
    assert_eq!(tcp.node.sum(|counters| counters.out_of_window_passed.get()), 1);
}

/// One forged datagram made 120 seconds of five days.
#[test]
fn fin_outside_of_the_window_passes_and_changes_nothing() {
    let mut tcp = Connection::open(TcpWindows::Relaxed);
    let before = tcp.node.flows()[0].life;
    tcp.node.now = tcp.node.now.after(Duration::from_secs(5));
    tcp.comes(&tcp.server("FA").numbers(3_000_000_000, 101, 1000));
    assert_eq!(tcp.node.flows()[0].life, before);
    assert_eq!(tcp.node.sum(|counters| counters.out_of_window_passed.get()), 1);
    tcp.comes(&tcp.server("FA").numbers(501, 101, 1000));
    assert_eq!(tcp.state(), FlowState::Closing);
}

#[test]
fn reset_ends_a_connection_only_with_the_number_that_is_expected_next() {
    for windows in [TcpWindows::Relaxed, TcpWindows::Strict] {
        let mut tcp = Connection::open(windows);
        tcp.comes(&tcp.server("R").numbers(502, 0, 0));
        assert_eq!(tcp.state(), FlowState::Established, "in the window: challenged");
        assert_eq!(tcp.node.sum(|counters| counters.resets_challenged.get()), 1);
        tcp.comes(&tcp.server("R").numbers(501, 0, 0));
        assert_eq!(tcp.state(), FlowState::Closed);
    }
    let mut tcp = Connection::open(TcpWindows::Off);
    tcp.comes(&tcp.server("R").numbers(3_000_000_000, 0, 0));
    assert_eq!(tcp.state(), FlowState::Closed, "nobody looks");
}

#[test]
fn blind_resets_never_end_a_connection() {
    let mut random = Random::new(0x5961);
    for windows in [TcpWindows::Relaxed, TcpWindows::Strict] {
        let mut tcp = Connection::open(windows);
        for _ in 0..2000 {
            let number = u32::from_be_bytes([0; 4].map(|_: u8| random.byte()));
            if number != 501 {
                tcp.node.pass(UPLINK, &tcp.server("R").numbers(number, 0, 0).build());
            }
            assert_eq!(tcp.state(), FlowState::Established, "{number}");
        }
        let dropped = tcp.node.dropped(DropReason::TcpOutOfWindow);
        assert!(dropped > 1900, "{dropped} of 2000 were outside");
        tcp.comes(&tcp.server("A").numbers(501, 101, 1000).payload(b"goes on"));
    }
}

#[test]
fn syn_on_a_connection_that_stands_passes_and_changes_nothing() {
    let mut tcp = Connection::open(TcpWindows::Strict);
    let before = tcp.node.flows()[0].life;
    tcp.node.now = tcp.node.now.after(Duration::from_secs(5));
    tcp.leaves(&tcp.client("S").numbers(9_000_000, 0, 1000));
    assert_eq!(tcp.node.flows()[0].life, before);
    // The peer's challenge, and the reset with which a client answers that knows nothing of it.
    tcp.comes(&tcp.server("A").numbers(501, 101, 1000));
    tcp.leaves(&tcp.client("R").numbers(101, 0, 0));
    assert_eq!(tcp.state(), FlowState::Closed);
    tcp.leaves(&tcp.client("S").numbers(9_000_000, 0, 1000));
    assert_eq!(tcp.state(), FlowState::Opening, "another connection");
}

#[test]
fn connection_met_in_mid_stream_and_one_direction_alone_pass() {
    let tables = World::with_pods(2).with_tcp_windows(TcpWindows::Strict).tables();
    let mut node = Simulation::with_details(2, 100, &tables);
    let (there, back) = (("10.1.0.1:1000", "10.1.0.2:80"), ("10.1.0.2:80", "10.1.0.1:1000"));
    let segment = |ends: (&str, &str), numbers: (u32, u32)| {
        tcp(ends.0, ends.1, "A").numbers(numbers.0, numbers.1, 100).payload(&[7; 1000]).build()
    };
    for sequence in [7_000_000, 7_900_000, 7_000_000] {
        node.forward(pod_port(1), &segment(there, (sequence, 5000)));
    }
    node.forward(pod_port(2), &segment(back, (5000, 7_900_500)));
    node.forward(pod_port(1), &segment(there, (8_500_000, 6000)));
    node.expect_drop(
        pod_port(2),
        &segment(back, (3_000_000_000, 7_900_500)),
        DropReason::TcpOutOfWindow,
    );
}

#[test]
fn windows_that_are_looked_at_later_begin_with_what_is_seen_then() {
    let mut connection = Connection::open(TcpWindows::Strict);
    let publish = |connection: &mut Connection, windows| {
        connection.node.publish(&World::with_pods(1).with_tcp_windows(windows).tables());
    };
    publish(&mut connection, TcpWindows::Off);
    // Far beyond all windows: nobody looks.
    let far = 1_000_000_000;
    connection.comes(&connection.server("A").numbers(far, 101, 1000));
    connection.leaves(&connection.client("A").numbers(101, far, 1000));
    publish(&mut connection, TcpWindows::Strict);
    connection.comes(&connection.server("A").numbers(far, 101, 1000));
    connection.leaves(&connection.client("A").numbers(101, far, 1000));
    connection.is_dropped(&connection.server("R").numbers(far.wrapping_sub(9), 0, 0));
    connection.comes(&connection.server("R").numbers(far, 0, 0));
    assert_eq!(connection.state(), FlowState::Closed);
}

#[test]
fn segments_in_fragments_are_followed_and_so_is_what_acknowledges_them() {
    let tables = World::with_pods(2).with_tcp_windows(TcpWindows::Strict).tables();
    let mut node = Simulation::with_details(1, 100, &tables);
    let (client, server) = ("10.1.0.1:1000", "10.1.0.2:80");
    for (port, frame) in [
        (1, tcp(client, server, "S").numbers(100, 0, 1000)),
        (2, tcp(server, client, "SA").numbers(500, 101, 65_535)),
        (1, tcp(client, server, "A").numbers(101, 501, 1000)),
        (
            1,
            tcp(client, server, "A").numbers(101, 501, 1000).payload(&[1; 68]).fragment(7, 0, true),
        ),
        (1, tcp(client, server, "A").payload(&[1; 912]).fragment(7, 88, false)),
        (2, tcp(server, client, "A").numbers(501, 101 + 68 + 912, 65_535)),
    ] {
        node.forward(pod_port(port), &frame.build());
    }
    assert_eq!(node.dropped(DropReason::TcpOutOfWindow), 0);
}

#[test]
fn bytes_are_counted_in_each_direction_and_only_where_flows_have_details() {
    let world = World::with_pods(2);
    let (there, back) =
        (udp("10.1.0.1:9", "10.1.0.2:53"), udp("10.1.0.2:53", "10.1.0.1:9").payload(&[1; 500]));
    for v6 in [false, true] {
        let (there, back) = match v6 {
            false => (there.clone(), back.clone()),
            true => (
                udp("[fd01::1]:9", "[fd01::2]:53"),
                udp("[fd01::2]:53", "[fd01::1]:9").payload(&[1; 500]),
            ),
        };
        let mut node = Simulation::with_details(2, 100, &world.tables());
        node.forward(pod_port(1), &there.build());
        node.forward(pod_port(2), &back.build());
        node.forward(pod_port(2), &back.build());
        let header = if v6 { 48 } else { 28 };
        assert_eq!(node.flows()[0].packets, (1, 2));
        assert_eq!(node.flows()[0].bytes, Some((header, 2 * (header + 500))));
    }
    let mut plain = Simulation::single(&world.tables());
    plain.forward(pod_port(1), &there.build());
    assert_eq!(plain.flows()[0].bytes, None);
}
