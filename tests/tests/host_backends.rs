//! Backends in the node's own network: what they answer comes by the host port, so that clients who
//! address them directly have flows as well as those who come through a service.

use std::net::SocketAddr;

use dataplane::DropReason;
use dataplane::lb::FrontendKind;
use xskiff_tests::packet_builder::{FrameBuilder, Seen, ping, read, tcp, udp};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, address};

/// The node's address with the backend's L4 port, the client, and the service, of each family.
const CASES: [(&str, &str, &str); 2] = [
    ("10.0.0.1:6443", "192.0.2.7:40000", "203.0.113.1:443"),
    ("[fd00::1]:6443", "[2001:db8::7]:40000", "[2001:db8:113::1]:443"),
];

fn node() -> Simulation {
    let world = CASES.into_iter().fold(World::with_pods(1), |world, (backend, _, service)| {
        let (backend, service) = (at(backend), at(service));
        let frontend = service.ip().to_string();
        let backends = [(backend.ip(), backend.port())];
        world.with_service(FrontendKind::LoadBalancer, &frontend, service.port(), &backends)
    });
    Simulation::single(&world.tables())
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

fn seen(frame: &[u8]) -> Seen {
    read(frame).expect("a well-formed frame with right checksums")
}

/// Sends `there` from outside and `back` from the host; gives both as they left.
fn exchange(node: &mut Simulation, there: &FrameBuilder, back: &FrameBuilder) -> (Seen, Seen) {
    let (port, there) = node.forward(UPLINK, &there.build());
    assert_eq!(port, HOST);
    let (port, back) = node.forward(HOST, &back.build());
    assert_eq!(port, UPLINK);
    (seen(&there), seen(&back))
}

/// SYN-ACKs were dropped as no-flow, and UDP answers masqueraded: whoever addressed a node's API
/// server by the node's own address was cut off.
#[test]
fn direct_client_of_a_host_backend_is_answered_from_the_address_it_asked() {
    let mut node = node();
    for (own, client, _) in CASES {
        for (there, back) in [
            (tcp(client, own, "S"), tcp(own, client, "SA")),
            (tcp(client, own, "A"), tcp(own, client, "A")),
            (udp(client, own), udp(own, client)),
        ] {
            let (asked, answered) = exchange(&mut node, &there, &back);
            assert_eq!((asked.source, asked.destination), (at(client), at(own)));
            assert_eq!((answered.source, answered.destination), (at(own), at(client)));
        }
    }
}

#[test]
fn client_of_a_host_backend_has_a_flow_by_the_service_and_one_beside_it() {
    let mut node = node();
    for (own, client, service) in CASES {
        let (asked, answered) =
            exchange(&mut node, &tcp(client, service, "S"), &tcp(own, client, "SA"));
        assert_eq!((asked.destination, answered.source), (at(own), at(service)));
        // From the same L4 port: its answers must be told from those of the first.
        let (port, frame) = node.forward(UPLINK, &tcp(client, own, "S").build());
        let moved = seen(&frame).source;
        assert_eq!((port, moved.ip()), (HOST, at(client).ip()));
        assert_ne!(moved, at(client));
        let back = tcp(own, &moved.to_string(), "SA").build();
        let answered = seen(&node.forward(HOST, &back).1);
        assert_eq!((answered.source, answered.destination), (at(own), at(client)));
    }
}

#[test]
fn host_backend_that_speaks_first_is_not_masqueraded_and_nothing_is_guessed_of_lost_flows() {
    let mut node = node();
    for (own, client, _) in CASES {
        let (_, frame) = node.forward(HOST, &udp(own, client).build());
        assert_eq!(seen(&frame).source, at(own));
        // Its client may have addressed the service: the client's own next packet tells.
        let (there, back) = (tcp(client, own, "A"), tcp(own, client, "A"));
        node.expect_drop(HOST, &back.build(), DropReason::NoFlow);
        exchange(&mut node, &there, &back);
    }
}

/// A node of the control plane that asks for its own API server by the cluster's address. The server saw
/// the node's own address, so that what it answered went over `lo`: nobody ever connected.
#[test]
fn host_process_that_reaches_the_nodes_own_backend_by_a_service_is_not_seen_as_the_node() {
    let mut node = node();
    for ((own, _, service), seen_as) in
        CASES.into_iter().zip(["169.254.7.1", "fd78:736b:6966:7::1"])
    {
        let process = SocketAddr::new(at(own).ip(), 40_000).to_string();
        let of_udp = |from: &str, to: &str, _: &str| udp(from, to);
        for build in [of_udp as fn(&str, &str, &str) -> FrameBuilder, tcp] {
            let (port, frame) = node.forward(HOST, &build(&process, service, "S").build());
            let asked = seen(&frame);
            assert_eq!((port, asked.destination), (HOST, at(own)));
            assert_eq!(asked.source.ip(), address(seen_as));
            let client = asked.source.to_string();
            let (port, frame) = node.forward(HOST, &build(own, &client, "SA").build());
            let answered = seen(&frame);
            assert_eq!(port, HOST);
            assert_eq!((answered.source, answered.destination), (at(service), at(&process)));
            let (_, frame) = node.forward(HOST, &build(&process, service, "A").build());
            assert_eq!(seen(&frame).source, asked.source);
        }
        // What the node's stack only forwards is answered to whoever it is.
        let forwarded = if at(own).is_ipv4() { "172.17.0.2:40000" } else { "[fd17::2]:40000" };
        let (_, frame) = node.forward(HOST, &tcp(forwarded, service, "S").build());
        assert_eq!(seen(&frame).source, at(forwarded));
    }
}

#[test]
fn everything_else_at_the_node_stays_the_hosts_own() {
    let mut node = node();
    let ssh = tcp("192.0.2.7:40000", "10.0.0.1:22", "S").build();
    let echo = ping(address("192.0.2.7"), address("10.0.0.1"), 6443).build();
    for frame in [ssh, echo] {
        let (port, out) = node.forward(UPLINK, &frame);
        assert_eq!((port, &out[14..]), (HOST, &frame[14..]), "layer 3 is unchanged");
    }
    assert!(node.flows().is_empty(), "what is the host's own has no flow");
}
