//! SCTP associations and protocols without ports, through a whole node.
#![forbid(unsafe_code)]

use dataplane::DropReason;
use dataplane::conntrack::FlowState;
use xskiff_tests::packet_builder::{FrameBuilder, raw, sctp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, pod_port, pod4, pod6};

const CLIENT: &str = "10.1.0.1:5000";
const SERVER: &str = "10.1.0.2:5001";

type Chunk<'a> = (u8, u8, &'a [u8]);

const DATA: Chunk = (0, 3, &[0; 16]);
const SHUTDOWN: Chunk = (7, 0, &[0; 4]);
const SHUTDOWN_ACK: Chunk = (8, 0, &[]);
const COOKIE_ECHO: Chunk = (10, 0, &[1; 20]);
const COOKIE_ACK: Chunk = (11, 0, &[]);
const ABORT: Chunk = (6, 0, &[]);
const SHUTDOWN_COMPLETE: Chunk = (14, 0, &[]);

/// The value of INIT and INIT ACK that ask for `tag`.
fn asking(tag: u32) -> Vec<u8> {
    [&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]].concat()
}

fn client(tag: u32, chunks: &[Chunk<'_>]) -> FrameBuilder {
    sctp(CLIENT, SERVER, tag, chunks)
}

fn server(tag: u32, chunks: &[Chunk<'_>]) -> FrameBuilder {
    sctp(SERVER, CLIENT, tag, chunks)
}

/// The client's end has tag 7, the server's 9.
fn open(node: &mut Simulation) {
    node.forward(pod_port(1), &client(0, &[(1, 0, &asking(7))]).build());
    node.forward(pod_port(2), &server(7, &[(2, 0, &asking(9))]).build());
    node.forward(pod_port(1), &client(9, &[COOKIE_ECHO, DATA]).build());
    node.forward(pod_port(2), &server(7, &[COOKIE_ACK]).build());
    assert_eq!(state(node), FlowState::Established);
}

fn state(node: &Simulation) -> FlowState {
    node.flows()[0].life.state()
}

#[test]
fn association_is_followed_from_init_to_shutdown_complete() {
    for mut node in [
        Simulation::single(&World::with_pods(2).tables()),
        Simulation::with_details(2, 100, &World::with_pods(2).tables()),
    ] {
        open(&mut node);
        let seconds = |node: &Simulation| node.flows()[0].life.deadline_seconds();
        assert_eq!(seconds(&node), 1 + 210);
        for (port, frame, expected) in [
            (1, client(9, &[DATA]), FlowState::Established),
            (1, client(9, &[SHUTDOWN]), FlowState::Closing),
            (2, server(7, &[SHUTDOWN_ACK]), FlowState::TimeWait),
            (1, client(9, &[SHUTDOWN_COMPLETE]), FlowState::Closed),
        ] {
            node.forward(pod_port(port), &frame.build());
            assert_eq!(state(&node), expected);
        }
        // Another one between the same ends.
        node.forward(pod_port(1), &client(0, &[(1, 0, &asking(70))]).build());
        assert_eq!((node.flows().len(), state(&node)), (1, FlowState::Opening));
    }
}

#[test]
fn packets_with_another_tag_are_dropped_where_flows_have_details() {
    let mut node = Simulation::with_details(2, 100, &World::with_pods(2).tables());
    open(&mut node);
    for frame in [server(8, &[ABORT]), server(9, &[DATA]), server(8, &[(6, 1, &[])])] {
        node.expect_drop(pod_port(2), &frame.build(), DropReason::SctpWrongTag);
    }
    assert_eq!(state(&node), FlowState::Established);
    node.forward(pod_port(2), &server(7, &[DATA]).build());
    // RFC 9260, 8.5.1: its own tag, sent back.
    node.forward(pod_port(2), &server(9, &[(6, 1, &[])]).build());
    assert_eq!(state(&node), FlowState::Closed);
}

#[test]
fn association_that_begins_again_changes_its_tags_and_a_forged_init_does_not() {
    let mut node = Simulation::with_details(1, 100, &World::with_pods(2).tables());
    open(&mut node);
    node.forward(pod_port(1), &client(0, &[(1, 0, &asking(100))]).build());
    assert_eq!(state(&node), FlowState::Established);
    node.forward(pod_port(2), &server(100, &[(2, 0, &asking(200))]).build());
    node.forward(pod_port(2), &server(7, &[DATA]).build());
    node.forward(pod_port(1), &client(200, &[COOKIE_ECHO]).build());
    node.forward(pod_port(2), &server(100, &[COOKIE_ACK]).build());
    node.forward(pod_port(1), &client(200, &[DATA]).build());
    node.expect_drop(pod_port(1), &client(9, &[DATA]).build(), DropReason::SctpWrongTag);
}

#[test]
fn what_answers_begins_no_association() {
    let mut node = Simulation::single(&World::with_pods(2).tables());
    for frame in [client(9, &[ABORT]), client(9, &[SHUTDOWN_COMPLETE])] {
        node.expect_drop(pod_port(1), &frame.build(), DropReason::NoFlow);
    }
    let init_ack = client(9, &[(2, 0, &asking(7))]).build();
    node.expect_drop(pod_port(1), &init_ack, DropReason::NoFlow);
    let two = client(0, &[(1, 0, &asking(7)), DATA]).build();
    node.expect_drop(pod_port(1), &two, DropReason::Malformed);
    assert!(node.flows().is_empty());
}

#[test]
fn tunnels_and_ciphers_are_flows_of_their_pair_of_addresses_with_the_generic_time() {
    // GRE, ESP, IP in IP, OSPF, and AH, which in IPv6 is an extension header.
    for (protocol, v4_only) in [(47, false), (50, false), (4, false), (89, false), (51, true)] {
        let ends = [(pod4(1), pod4(2)), (pod6(1), pod6(2))];
        for (one, other) in ends.into_iter().take(if v4_only { 1 } else { 2 }) {
            let mut node = Simulation::single(&World::with_pods(2).tables());
            let payload = [0; 24];
            node.forward(pod_port(1), &raw(one, other, protocol).payload(&payload).build());
            let flow = node.flows()[0];
            assert_eq!((flow.life.protocol().0, flow.life.state()), (protocol, FlowState::Opening));
            node.forward(pod_port(2), &raw(other, one, protocol).payload(&payload).build());
            let [flow] = node.flows()[..] else { panic!("one flow: {:?}", node.flows()) };
            assert_eq!(flow.life.state(), FlowState::Established);
            assert_eq!(flow.life.deadline_seconds(), 1 + 600);
        }
    }
}
