//! Direct server return between two simulated nodes: what one sends, what the other makes of it, and what
//! neither takes. What is on the wire is read by the naive builder, which shares no code with the dataplane.
//!
//! | | |
//! |---|---|
//! | node A | 10.0.0.3, fd00::3, has the frontends and no pods |
//! | node B | 10.0.0.1, fd00::1, has pods 1 to 3 and a server of its own |
#![forbid(unsafe_code)]

mod errors;
mod forms;
mod hostile;
mod life;
mod sizes;
mod stateless;

use std::net::{IpAddr, SocketAddr};

use dataplane::direct::Dispatch;
use dataplane::lb::FrontendKind;
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{Seen, read};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{HOST, UPLINK, World, pod_port};

const FORMS: [Dispatch; 3] = [Dispatch::Option, Dispatch::Ipip, Dispatch::Geneve];
const A: [&str; 2] = ["10.0.0.3", "fd00::3"];
const B: [&str; 2] = ["10.0.0.1", "fd00::1"];
const CLIENTS: [&str; 2] = ["192.0.2.7:1000", "[2001:db8::7]:1000"];
/// What is behind each node.
const NODES: [(&str, &str); 5] = [
    ("10.0.0.3", "10.1.3.0/24"),
    ("fd00::3", "fd01:3::/64"),
    ("10.0.0.1", "10.1.0.0/24"),
    ("fd00::1", "fd01::/64"),
    ("10.0.0.1", "10.0.0.1/32"),
];

/// A frontend and where it leads.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: FrontendKind,
    client: &'static str,
    frontend: &'static str,
    backend: &'static str,
    /// By which port it leaves node B.
    port: PortId,
}

fn cases() -> Vec<Case> {
    use FrontendKind::{ExternalIp, LoadBalancer, NodePort};
    let mut cases = Vec::new();
    // Each from a port of its own: several lead to one backend.
    for (kind, clients, of_pod, of_host) in [
        (
            LoadBalancer,
            CLIENTS,
            ["203.0.113.1:80", "[2001:db8:113::1]:80"],
            ["203.0.113.2:80", "[2001:db8:113::2]:80"],
        ),
        (
            ExternalIp,
            ["192.0.2.7:1001", "[2001:db8::7]:1001"],
            ["203.0.113.3:80", "[2001:db8:113::3]:80"],
            ["203.0.113.4:80", "[2001:db8:113::4]:80"],
        ),
        (
            NodePort,
            ["192.0.2.7:1002", "[2001:db8::7]:1002"],
            ["10.0.0.3:30080", "[fd00::3]:30080"],
            ["10.0.0.3:30090", "[fd00::3]:30090"],
        ),
    ] {
        for family in 0..2 {
            let client = clients[family];
            let pod = ["10.1.0.2:8080", "[fd01::2]:8080"][family];
            let host = ["10.0.0.1:9090", "[fd00::1]:9090"][family];
            let pod = (of_pod[family], pod, pod_port(2));
            for (frontend, backend, port) in [pod, (of_host[family], host, HOST)] {
                cases.push(Case { kind, client, frontend, backend, port });
            }
        }
    }
    cases
}

/// The services of both nodes as node A sees these.
fn with_services(world: World) -> World {
    with_services_by(world, true)
}

/// Node ports are on the addresses of node A, or on the node's own.
fn with_services_by(mut world: World, is_a: bool) -> World {
    for case in cases() {
        let (frontend, backend) = (at(case.frontend), at(case.backend));
        let address = match case.kind {
            FrontendKind::NodePort if !is_a => String::new(),
            _ => frontend.ip().to_string(),
        };
        let backends = [(backend.ip(), backend.port())];
        world = world.with_service(case.kind, &address, frontend.port(), &backends);
    }
    world
}

fn a_world(form: Dispatch) -> World {
    let world = World::with_pods(0).as_node(A);
    let world = B.iter().fold(world, |world, own| world.with_neighbour(own));
    with_services(world).with_direct(form, &NODES)
}

fn b_world(form: Dispatch) -> World {
    with_services_by(World::with_pods(3), false).with_direct(form, &NODES)
}

fn node_a(form: Dispatch) -> Simulation {
    Simulation::single(&a_world(form).tables())
}

fn node_b(form: Dispatch) -> Simulation {
    Simulation::single(&b_world(form).tables())
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn seen(frame: &[u8]) -> Seen {
    read(frame).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"))
}

/// Sends a client's frame through A, and gives what is on the wire to B.
fn dispatched(a: &mut Simulation, frame: &[u8]) -> Vec<u8> {
    let (port, wire) = a.forward(UPLINK, frame);
    assert_eq!(port, UPLINK, "{}", a.moved_counters());
    wire
}

/// Length of what is before the client's packet, or of the option in it.
fn added(form: Dispatch, is_v4: bool) -> usize {
    match (form, is_v4) {
        (Dispatch::Option, true) => 8,
        (Dispatch::Option, false) => 24,
        (Dispatch::Ipip, true) => 20,
        (Dispatch::Ipip, false) => 40,
        (Dispatch::Geneve, true) => 20 + 8 + 8 + 12,
        (Dispatch::Geneve, false) => 40 + 8 + 8 + 24,
    }
}

fn naive_checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

/// A frame on the wire with the option taken out by hand, and what the option says.
fn without_option(frame: &[u8]) -> (Vec<u8>, SocketAddr) {
    let mut frame = frame.to_vec();
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    if frame[12..14] == [8, 0] {
        assert_eq!(
            (frame[14], naive_checksum(&frame[14..42])),
            (0x47, 0),
            "the header with options"
        );
        let option: Vec<u8> = frame.drain(34..42).collect();
        assert_eq!(option[..2], [158, 8]);
        frame[14] = 0x45;
        let len = word(&frame[16..]) - 8;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        frame[24..26].fill(0);
        let sum = naive_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let address: [u8; 4] = option[4..].try_into().expect("4");
        return (frame, SocketAddr::new(address.into(), word(&option[2..])));
    }
    assert_eq!(frame[20], 60, "destination options first");
    let options: Vec<u8> = frame.drain(54..78).collect();
    assert_eq!((options[1], &options[2..4], &options[22..]), (2, &[0x1e, 18][..], &[1, 0][..]));
    frame[20] = options[0];
    let len = word(&frame[18..]) - 24;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    let address: [u8; 16] = options[4..20].try_into().expect("16");
    (frame, SocketAddr::new(address.into(), word(&options[20..])))
}

/// A frame on the wire with what is around it cut off by hand.
fn without_wrapping(form: Dispatch, frame: &[u8]) -> Vec<u8> {
    let is_v4 = frame[12..14] == [8, 0];
    [&frame[..14], &frame[14 + added(form, is_v4)..]].concat()
}

/// Wraps a frame as node A does, by hand.
fn wrapped(form: Dispatch, frame: &[u8], backend: SocketAddr, source: IpAddr) -> Vec<u8> {
    let is_v4 = backend.is_ipv4();
    let node = ip(B[usize::from(!is_v4)]);
    let inner = &frame[14..];
    let middle = match form {
        Dispatch::Option => panic!("no wrapping"),
        Dispatch::Ipip => Vec::new(),
        Dispatch::Geneve => geneve(inner.len(), backend),
    };
    let destination = if form == Dispatch::Ipip { backend.ip() } else { node };
    let protocol = match (form, is_v4) {
        (Dispatch::Geneve, _) => 17,
        (_, true) => 4,
        (_, false) => 41,
    };
    let mut out = frame[..14].to_vec();
    let len = u16::try_from(middle.len() + inner.len()).expect("short");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [a, b] = (len + 20).to_be_bytes();
            let mut header = vec![0x45, 0, a, b, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = naive_checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [a, b] = len.to_be_bytes();
            out.extend([0x60, 0, 0, 0, a, b, protocol, 64]);
            out.extend(source.octets());
            out.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    out.extend(middle);
    out.extend(inner);
    out
}

fn geneve(inner: usize, backend: SocketAddr) -> Vec<u8> {
    let (address, words, kind) = match backend.ip() {
        IpAddr::V4(address) => (address.octets().to_vec(), 2, [8, 0]),
        IpAddr::V6(address) => (address.octets().to_vec(), 5, [0x86, 0xdd]),
    };
    let option = [&[0xff, 0xf0, 0x81, words][..], &backend.port().to_be_bytes(), &[0, 0], &address];
    let option = option.concat();
    let len = u16::try_from(16 + option.len() + inner).expect("short").to_be_bytes();
    let udp = [0xc0, 1, 0x17, 0xc1, len[0], len[1], 0, 0];
    [&udp[..], &[words + 1, 0x40, kind[0], kind[1], 0, 0, 0, 0], &option].concat()
}
