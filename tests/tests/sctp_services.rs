//! Services of SCTP: the port changes and with it the checksum, which is a CRC over all of the packet.
#![forbid(unsafe_code)]

use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::lb::{Frontend, FrontendKind};
use xskiff_tests::packet_builder::{Seen, icmp_error, read, read_quoted, sctp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{World, address, pod_port, pod4, pod6};

const INIT: [u8; 16] = [0, 0, 0, 7, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];

/// Both families' service on port 80 of SCTP with pod 2 behind it, on another port.
fn node() -> Simulation {
    let mut world = World::with_pods(2);
    for (frontend, backend) in [("10.2.0.1", pod4(2)), ("fd02::1", pod6(2))] {
        world = world.with_service(FrontendKind::ClusterIp, frontend, 80, &[(backend, 8132)]);
    }
    let mut services = (*world.tables().services).clone();
    for frontend in ["10.2.0.1", "fd02::1"] {
        let at = |protocol| Frontend { address: address(frontend), protocol, l4_port: 80 };
        let known = *services.frontends.get(&at(Protocol::TCP)).expect("it listens");
        services.frontends.insert(at(Protocol::SCTP), known);
    }
    Simulation::single(&world.with_services(&services).tables())
}

fn seen(frame: &[u8]) -> Seen {
    read(frame).expect("right checksums")
}

const CASES: [(&str, &str, &str); 2] = [
    ("10.1.0.1:5000", "10.2.0.1:80", "10.1.0.2:8132"),
    ("[fd01::1]:5000", "[fd02::1]:80", "[fd01::2]:8132"),
];

#[test]
fn association_with_a_service_has_other_ports_and_right_checksums_both_ways() {
    let mut node = node();
    for (client, service, backend) in CASES {
        for length in [0, 1, 3, 4, 700, 1200] {
            let data: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
            let there: [(u8, u8, &[u8]); 2] = [(10, 0, &[1; 20]), (0, 3, &data)];
            node.forward(pod_port(1), &sctp(client, service, 0, &[(1, 0, &INIT)]).build());
            let (port, frame) =
                node.forward(pod_port(1), &sctp(client, service, 9, &there).build());
            let left = seen(&frame);
            assert_eq!((port, left.destination.to_string()), (pod_port(2), backend.to_owned()));
            assert_eq!(left.source.to_string(), client);
            let back: [(u8, u8, &[u8]); 2] = [(11, 0, &[]), (0, 3, &data)];
            let (port, frame) = node.forward(pod_port(2), &sctp(backend, client, 7, &back).build());
            let left = seen(&frame);
            assert_eq!((port, left.source.to_string()), (pod_port(1), service.to_owned()));
        }
    }
}

#[test]
fn damaged_packet_stays_damaged() {
    let mut node = node();
    let (client, service, _) = CASES[0];
    let mut frame = sctp(client, service, 0, &[(1, 0, &INIT)]).build();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    let (_, out) = node.forward(pod_port(1), &frame);
    assert!(read(&out).is_err());
}

/// What a local stack leaves to a device is a checksum of zero.
#[test]
fn checksum_that_a_local_stack_left_out_is_finished() {
    let mut world = World::with_pods(2).with_unfinished_checksums(pod_port(1));
    world = world.with_service(FrontendKind::ClusterIp, "10.2.0.1", 80, &[(pod4(2), 80)]);
    let mut node = Simulation::single(&world.tables());
    let mut frame = sctp("10.1.0.1:5000", "10.1.0.2:5001", 0, &[(1, 0, &INIT)]).build();
    let at = 14 + 20 + 8;
    frame[at..at + 4].fill(0);
    let (_, out) = node.forward(pod_port(1), &frame);
    seen(&out);
}

#[test]
fn first_fragment_whose_port_is_to_change_is_dropped_and_counted() {
    let mut node = node();
    let (client, service, _) = CASES[0];
    node.forward(pod_port(1), &sctp(client, service, 0, &[(1, 0, &INIT)]).build());
    let data = vec![7; 1196];
    let frame = sctp(client, service, 9, &[(10, 0, &INIT), (0, 3, &data)]);
    let frame = frame.fragment(77, 0, true).build();
    node.expect_drop(pod_port(1), &frame, DropReason::SctpFragment);
}

#[test]
fn error_about_an_association_quotes_the_ports_that_its_sender_used() {
    let mut node = node();
    let (client, service, backend) = CASES[0];
    let (_, frame) = node.forward(pod_port(1), &sctp(client, service, 0, &[(1, 0, &INIT)]).build());
    let error = icmp_error(pod4(2), pod4(1), (3, 3, 0), &frame);
    let (port, out) = node.forward(pod_port(2), &error.build());
    let quoted = read_quoted(&seen(&out)).expect("a quoted packet");
    assert_eq!(port, pod_port(1));
    assert_eq!(
        (quoted.source.to_string(), quoted.destination.to_string()),
        (client.into(), service.into())
    );
    assert_ne!(service, backend);
}
