//! Services that the other family serves: a client's connection is translated between IPv4 and IPv6,
//! and back (RFC 7915). What leaves is compared with what the naive builder makes, which shares no code
//! with the dataplane, or read back by it with every checksum computed again.
#![forbid(unsafe_code)]

mod errors;
mod flows;
mod fragments;
mod headers;
mod life;
mod pressure;

use std::net::{IpAddr, SocketAddr};

use dataplane::lb::FrontendKind;
use dataplane::port::PortId;
use xskiff_tests::packet_builder::{Seen, read};
use xskiff_tests::simulation::Simulation;
use xskiff_tests::world::{UPLINK, World, pod_port, pod4, pod6};

/// L4 ports of the services and of the pod behind them.
const SERVICE: u16 = 80;
const TARGET: u16 = 8080;

/// One way across.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// Who asks, by which port.
    client: &'static str,
    port: PortId,
    /// What it asks.
    frontend: &'static str,
    /// Where it comes out: pod 2.
    backend: &'static str,
    /// Whom the backend sees.
    node: &'static str,
}

/// From outside to load balancer and node ports, from a pod to cluster addresses, in both directions.
const CASES: [Case; 6] = [
    Case {
        client: "192.0.2.7:1000",
        port: UPLINK,
        frontend: "203.0.113.1:80",
        backend: "[fd01::2]:8080",
        node: "fd00::1",
    },
    Case {
        client: "[2001:db8::7]:1000",
        port: UPLINK,
        frontend: "[2001:db8:113::1]:80",
        backend: "10.1.0.2:8080",
        node: "10.0.0.1",
    },
    Case {
        client: "192.0.2.7:1000",
        port: UPLINK,
        frontend: "10.0.0.1:30080",
        backend: "[fd01::2]:8080",
        node: "fd00::1",
    },
    Case {
        client: "[2001:db8::7]:1000",
        port: UPLINK,
        frontend: "[fd00::1]:30080",
        backend: "10.1.0.2:8080",
        node: "10.0.0.1",
    },
    Case {
        client: "10.1.0.1:1000",
        port: PortId(2),
        frontend: "10.2.0.1:80",
        backend: "[fd01::2]:8080",
        node: "fd00::1",
    },
    Case {
        client: "[fd01::1]:1000",
        port: PortId(2),
        frontend: "[fd02::1]:80",
        backend: "10.1.0.2:8080",
        node: "10.0.0.1",
    },
];

impl Case {
    fn is_from_v4(&self) -> bool {
        at(self.client).is_ipv4()
    }
}

fn world() -> World {
    let (v4, v6) = ([(pod4(2), TARGET)], [(pod6(2), TARGET)]);
    World::with_pods(2)
        .with_service(FrontendKind::LoadBalancer, "203.0.113.1", SERVICE, &v6)
        .with_service(FrontendKind::LoadBalancer, "2001:db8:113::1", SERVICE, &v4)
        .with_service(FrontendKind::NodePort, "10.0.0.1", 30_080, &v6)
        .with_service(FrontendKind::NodePort, "fd00::1", 30_080, &v4)
        .with_service(FrontendKind::ClusterIp, "10.2.0.1", SERVICE, &v6)
        .with_service(FrontendKind::ClusterIp, "fd02::1", SERVICE, &v4)
}

fn node() -> Simulation {
    Simulation::single(&world().tables())
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("socket address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn seen(frame: &[u8]) -> Seen {
    read(frame).expect("a well-formed frame with right checksums")
}

/// Delivers a frame that must reach pod 2, and reads it.
fn to_pod(node: &mut Simulation, port: PortId, frame: &[u8]) -> Seen {
    let (out, frame) = node.forward(port, frame);
    assert_eq!(out, pod_port(2), "{}", node.moved_counters());
    seen(&frame)
}
