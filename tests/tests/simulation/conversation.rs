//! One client's talk with one server, as both of them see it.

use std::net::{IpAddr, SocketAddr};

use dataplane::port::PortId;
use xskiff_tests::packet_builder::{FrameBuilder, Seen, ping, pong, tcp, udp};
use xskiff_tests::random::Random;
use xskiff_tests::world::{UPLINK, node_address, pod_port, pod4, pod6};

/// Pods of the simulated node. Pod 4 may open nothing; pod 3 is isolated.
pub const PODS: u8 = 4;
/// L4 port of the services, and of what stands behind them.
pub const SERVICE_PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8080;
pub const NODE_PORT: u16 = 30_080;

/// Who opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Pod(u8),
    Outside(u8),
}

/// What it addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Service,
    NodePort,
    /// A service that the other family's pods serve.
    OtherFamily,
    Pod(u8),
    Outside(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Ping,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing came back yet.
    Opening,
    /// The client has heard the server.
    Answered,
    /// The client has said so, and the server has heard it.
    Open,
}

#[derive(Debug, Clone)]
pub struct Conversation {
    pub client: Client,
    pub target: Target,
    pub kind: Kind,
    pub is_v6: bool,
    /// The client's own end and what it addresses.
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub phase: Phase,
    /// What the server sees of the flow, once it saw it: its own end, and its peer.
    pub server: Option<(SocketAddr, SocketAddr)>,
}

fn outside(n: u8, is_v6: bool) -> IpAddr {
    let text = if is_v6 { format!("2001:db8::{n}") } else { format!("192.0.2.{n}") };
    text.parse().expect("an address")
}

pub fn pod(n: u8, is_v6: bool) -> IpAddr {
    if is_v6 { pod6(n) } else { pod4(n) }
}

impl Conversation {
    pub fn new(random: &mut Random, client_port: u16) -> Self {
        let by_v6 = random.one_in(3);
        let kind = *random.pick(&[Kind::Tcp, Kind::Tcp, Kind::Udp, Kind::Udp, Kind::Ping]);
        let number = u8::try_from(1 + random.below(usize::from(PODS))).expect("few pods");
        let client = if random.one_in(4) { Client::Outside(number) } else { Client::Pod(number) };
        let other = u8::try_from(1 + random.below(usize::from(PODS))).expect("few pods");
        let target = match (client, kind) {
            (Client::Pod(_), Kind::Ping) => *random.pick(&[Target::Pod(other), Target::Outside(9)]),
            (Client::Outside(_), Kind::Ping) => Target::Pod(other),
            (Client::Pod(_), _) => *random.pick(&[
                Target::Service,
                Target::Service,
                Target::OtherFamily,
                Target::Pod(other),
                Target::Outside(9),
            ]),
            (Client::Outside(_), _) => {
                *random.pick(&[Target::NodePort, Target::OtherFamily, Target::Pod(other)])
            }
        };
        // The node port's backends are of one family.
        let is_v6 = by_v6 && target != Target::NodePort;
        let address = match client {
            Client::Pod(n) => pod(n, is_v6),
            Client::Outside(n) => outside(n, is_v6),
        };
        let to = match target {
            Target::Service if is_v6 => ("fd02::1".parse().expect("an address"), SERVICE_PORT),
            Target::Service => ("10.2.0.1".parse().expect("an address"), SERVICE_PORT),
            Target::OtherFamily if is_v6 => ("fd02::2".parse().expect("an address"), SERVICE_PORT),
            Target::OtherFamily => ("10.2.0.2".parse().expect("an address"), SERVICE_PORT),
            Target::NodePort => (node_address(address), NODE_PORT),
            Target::Pod(n) => (pod(n, is_v6), BACKEND_PORT),
            Target::Outside(n) => (outside(n, is_v6), BACKEND_PORT),
        };
        let to = SocketAddr::new(to.0, if kind == Kind::Ping { 0 } else { to.1 });
        Self {
            client,
            target,
            kind,
            is_v6,
            from: SocketAddr::new(address, client_port),
            to,
            phase: Phase::Opening,
            server: None,
        }
    }

    /// A talk of a pod with itself by its own address never reaches the node.
    pub fn is_possible(&self) -> bool {
        self.from.ip() != self.to.ip()
    }

    /// Whether its server speaks IPv6.
    pub fn server_is_v6(&self) -> bool {
        self.is_v6 != (self.target == Target::OtherFamily)
    }

    /// Whether a server with this address is the client itself.
    pub fn is_with_itself(&self, server: IpAddr) -> bool {
        matches!(self.client, Client::Pod(n) if server == pod(n, self.server_is_v6()))
    }

    /// Whether policy may ever have another answer, and the answer under `strict` tables, for the
    /// pod that served it or may serve it.
    pub fn allowed(&self, server: IpAddr, strict: bool) -> bool {
        if self.is_with_itself(server) {
            return true;
        }
        if self.client == Client::Pod(4) {
            return false;
        }
        if server != pod(3, self.server_is_v6()) {
            return true;
        }
        let by_tcp = self.kind == Kind::Tcp;
        match self.client {
            Client::Pod(1) => by_tcp,
            Client::Pod(2) => by_tcp && !strict,
            _ => false,
        }
    }

    /// The port the client speaks through.
    pub fn client_port(&self) -> PortId {
        match self.client {
            Client::Pod(n) => pod_port(n),
            Client::Outside(_) => UPLINK,
        }
    }

    /// What the client sends next.
    pub fn request(&self, payload: &[u8]) -> FrameBuilder {
        let (from, to) = (self.from.to_string(), self.to.to_string());
        let frame = match self.kind {
            Kind::Tcp if self.phase == Phase::Opening => tcp(&from, &to, "S"),
            Kind::Tcp => tcp(&from, &to, "PA"),
            Kind::Udp => udp(&from, &to),
            Kind::Ping => ping(self.from.ip(), self.to.ip(), self.from.port()),
        };
        frame.payload(payload)
    }

    /// What the server answers to a packet that looked like `seen` to it.
    pub fn answer(&self, seen: &Seen, payload: &[u8]) -> FrameBuilder {
        let (from, to) = (seen.destination.to_string(), seen.source.to_string());
        let frame = match self.kind {
            Kind::Tcp if self.phase == Phase::Opening => tcp(&from, &to, "SA"),
            Kind::Tcp => tcp(&from, &to, "PA"),
            Kind::Udp => udp(&from, &to),
            Kind::Ping => pong(seen.destination.ip(), seen.source.ip(), seen.source.port()),
        };
        frame.payload(payload)
    }
}
