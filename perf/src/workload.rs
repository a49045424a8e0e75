//! The cluster that packets are sent through, and the flows that are sent.
//!
//! | port | kind | addresses |
//! |---|---|---|
//! | 0 | host | 10.0.0.1 |
//! | 1 | uplink | clients 198.18.0.0/15 behind 10.0.0.2 |
//! | 2.. | 100 pods | 10.1.0.1 to 10.1.0.100 |
//!
//! 1,000 services (203.0.0.0/16, port 53 of UDP or TCP) have 10 of the pods each as backends; every pod is
//! isolated both ways by policy and admits the clients, by an ipBlock, and the pods of two labels.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dataplane::address::{MacAddr, Protocol};
use dataplane::flow_key::{FlowKey, FlowKey4};
use dataplane::forwarding::{Forwarding, NextHop, NextHopId, Route};
use dataplane::identity::{Identity, IdentityTable};
use dataplane::lb::{
    Backend, BackendSet, Frontend, FrontendKind, Service, ServiceId, ServiceTable,
};
use dataplane::lpm::Prefix;
use dataplane::nat::SourceNat;
use dataplane::policy::{Policy, PortRule, RuleId, SubjectPolicy, VerdictTable};
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::tables::{Tables, TcpWindows, Timeouts};

/// The node's own stack.
const HOST: PortId = PortId(0);
/// The way to the clients.
pub const UPLINK: PortId = PortId(1);
/// Local pods.
pub const PODS: u32 = 100;
const SERVICES: u32 = 1000;
const BACKENDS: u32 = 10;
const SERVICE_PORT: u16 = 53;
const POD_PORT: u16 = 8053;
/// Pods that no policy tells apart share an identity.
const IDENTITIES: u32 = 10;
const CLIENTS_IDENTITY: Identity = Identity(Identity::FIRST_COMPILED + IDENTITIES);
/// Addresses of 198.18.0.0/15 (RFC 2544).
const CLIENT_ADDRESSES: u64 = 1 << 17;
const FIRST_L4_PORT: u64 = 1024;

/// A packet of a flow, and what must become of it.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// Where it comes in.
    pub ingress: PortId,
    /// Its source as sent.
    pub source: SocketAddrV4,
    /// Its destination as sent.
    pub destination: SocketAddrV4,
    /// Where it must leave.
    pub egress: PortId,
    /// What its source must be then.
    pub source_after: SocketAddrV4,
    /// What its destination must be then.
    pub destination_after: SocketAddrV4,
}

/// The tables in force, with what is needed to tell what a packet should become.
#[derive(Debug, Clone)]
pub struct Cluster {
    tables: Arc<Tables>,
    protocol: Protocol,
}

impl Default for Cluster {
    fn default() -> Self {
        Self::of(Protocol::UDP)
    }
}

impl Cluster {
    /// Services, backends and rules of this protocol.
    pub fn of(protocol: Protocol) -> Self {
        Self { tables: Arc::new(tables(protocol)), protocol }
    }

    /// As the control thread would publish them.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The first packet of flow `number` from a client to a service.
    pub fn request(&self, number: u64) -> Packet {
        let client = client(number);
        let id = (number % u64::from(SERVICES)) as u32;
        let frontend = SocketAddrV4::new(frontend(id), SERVICE_PORT);
        let pod = self.backend(id, client, frontend);
        Packet {
            ingress: UPLINK,
            source: client,
            destination: frontend,
            egress: port_of(*pod.ip()),
            source_after: client,
            destination_after: pod,
        }
    }

    /// The answer to [`Self::request`].
    pub fn reply(&self, number: u64) -> Packet {
        let request = self.request(number);
        Packet {
            ingress: request.egress,
            source: request.destination_after,
            destination: request.source,
            egress: UPLINK,
            source_after: request.destination,
            destination_after: request.source,
        }
    }

    /// The first packet of flow `number` from a pod to another pod.
    pub fn between_pods(&self, number: u64) -> Packet {
        let from = (number % u64::from(PODS)) as u32;
        let step = (number / u64::from(PODS) % u64::from(PODS - 1)) as u32;
        let to = (from + 1 + step) % PODS;
        let round = number / u64::from(PODS * (PODS - 1));
        let source = SocketAddrV4::new(pod(from), l4_port(round));
        let destination = SocketAddrV4::new(pod(to), POD_PORT);
        Packet {
            ingress: pod_port(from),
            source,
            destination,
            egress: pod_port(to),
            source_after: source,
            destination_after: destination,
        }
    }

    fn backend(&self, id: u32, client: SocketAddrV4, frontend: SocketAddrV4) -> SocketAddrV4 {
        let end = |at: SocketAddrV4| (at.ip().to_bits(), at.port());
        let key = FlowKey::V4(FlowKey4::new(self.protocol, end(client), end(frontend)));
        let service = self.tables.services.get(ServiceId(id));
        let chosen = service.and_then(|service| service.cluster.choose(key.stable_hash()));
        match chosen.map(|backend| (backend.address, backend.l4_port)) {
            Some((IpAddr::V4(address), l4_port)) => SocketAddrV4::new(address, l4_port),
            _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
        }
    }
}

fn client(number: u64) -> SocketAddrV4 {
    let base = Ipv4Addr::new(198, 18, 0, 0).to_bits();
    let address = Ipv4Addr::from_bits(base + (number % CLIENT_ADDRESSES) as u32);
    SocketAddrV4::new(address, l4_port(number / CLIENT_ADDRESSES))
}

fn l4_port(round: u64) -> u16 {
    (FIRST_L4_PORT + round % (0x1_0000 - FIRST_L4_PORT)) as u16
}

fn frontend(id: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(203, 0, 0, 1).to_bits() + id)
}

fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + number)
}

fn pod_port(number: u32) -> PortId {
    PortId(2 + number as u16)
}

fn port_of(address: Ipv4Addr) -> PortId {
    pod_port(address.to_bits().wrapping_sub(pod(0).to_bits()))
}

fn mac(kind: u8, number: u32) -> MacAddr {
    MacAddr([2, 0, 0, 0, kind, (number & 0xff) as u8])
}

fn prefix(address: [u8; 4], length: u8) -> Prefix {
    let address = Ipv4Addr::from(address).into();
    Prefix::new(address, length).unwrap_or_else(|| Prefix::host(address))
}

fn tables(protocol: Protocol) -> Tables {
    let identities = identities();
    Tables {
        generation: 1,
        ports: ports(),
        forwarding: Arc::new(forwarding()),
        services: Arc::new(services(protocol)),
        identities: Arc::new(identities),
        policy: Arc::new(policy(protocol)),
        source_nat: Arc::new(SourceNat {
            v4: Some(Ipv4Addr::new(10, 0, 0, 1)),
            non_masquerade: [(prefix([10, 0, 0, 0], 8), ())].into_iter().collect(),
            ..SourceNat::default()
        }),
        timeouts: Timeouts::default(),
        tcp_windows: TcpWindows::Off,
        direct: None,
        ..Tables::default()
    }
}

fn ports() -> Arc<[Option<Port>]> {
    let port = |name: String, kind, mac, own: &[IpAddr]| {
        Some(Port {
            name: name.into(),
            kind,
            mac,
            mtu: 1500,
            checksums: Checksums::Complete,
            addresses: own.into(),
        })
    };
    let host = port("host".into(), PortKind::Host, mac(0, 0), &[]);
    let uplink = port("uplink".into(), PortKind::Uplink, mac(1, 0), &[]);
    let pods = (0..PODS).map(|number| {
        let own = [pod(number).into()];
        port(format!("pod{number}"), PortKind::Pod, mac(2, number), &own)
    });
    [host, uplink].into_iter().chain(pods).collect()
}

fn identity(pod: u32) -> Identity {
    Identity(Identity::FIRST_COMPILED + pod % IDENTITIES)
}

fn forwarding() -> Forwarding {
    let mut forwarding = Forwarding::default();
    let mut add = |port, source, destination, neighbour: Ipv4Addr| {
        let id = NextHopId(forwarding.next_hops.len() as u16);
        let neighbour = neighbour.into();
        forwarding.next_hops.push(NextHop {
            port,
            to_host: port == HOST,
            source,
            destination: Some(destination),
            mtu: 1500,
            neighbour,
        });
        (id, neighbour)
    };
    let (host, node) = add(HOST, mac(0, 0), mac(0, 1), Ipv4Addr::new(10, 0, 0, 1));
    let (gateway, _) = add(UPLINK, mac(1, 0), mac(1, 1), Ipv4Addr::new(10, 0, 0, 2));
    let endpoints =
        (0..PODS).map(|number| add(pod_port(number), mac(2, number), mac(3, number), pod(number)));
    let endpoints = endpoints.map(|(id, address)| (address, id)).collect();
    forwarding.endpoints = endpoints;
    forwarding.host = Some(host);
    forwarding.node_addresses.insert(node, ());
    let routes = [
        (prefix([0, 0, 0, 0], 0), Route::Via(gateway)),
        (prefix([10, 0, 0, 0], 24), Route::OnLink(UPLINK)),
        (prefix([10, 1, 0, 0], 16), Route::Unreachable),
    ];
    forwarding.routes = routes.into_iter().collect();
    forwarding
}

fn services(protocol: Protocol) -> ServiceTable {
    let mut table = ServiceTable::default();
    for id in 0..SERVICES {
        let backend = |turn| Backend {
            address: pod((id + turn * (PODS / BACKENDS)) % PODS).into(),
            l4_port: POD_PORT,
            local: true,
            weight: 100,
        };
        let mut backends: Vec<Backend> = (0..BACKENDS).map(backend).collect();
        backends.sort_unstable();
        let set = Arc::new(BackendSet { backends: backends.into(), maglev: slots() });
        let service = Service::of_set(format!("default/service{id}:dns"), set);
        table.services.insert(ServiceId(id), Arc::new(service));
        let at = Frontend { address: frontend(id).into(), protocol, l4_port: SERVICE_PORT };
        table.frontends.insert(at, (ServiceId(id), FrontendKind::LoadBalancer));
        table.addresses.insert(at.address, ());
    }
    table
}

/// A Maglev table as large as the compiler's for so many backends. Which backend stands where does
/// not matter to the time a choice takes.
fn slots() -> Box<[u16]> {
    (0..1021).map(|slot: u16| slot % BACKENDS as u16).collect()
}

/// Clients are known by an ipBlock among others of several lengths.
fn identities() -> IdentityTable {
    let blocks = [
        (prefix([198, 18, 0, 0], 15), CLIENTS_IDENTITY),
        (prefix([192, 0, 2, 0], 24), Identity(CLIENTS_IDENTITY.0 + 1)),
        (prefix([172, 16, 0, 0], 12), Identity(CLIENTS_IDENTITY.0 + 2)),
    ];
    let exact = (0..PODS).map(|number| (pod(number).into(), identity(number).into())).collect();
    IdentityTable { exact, prefixes: blocks.into_iter().collect(), pods_are_known: true }
}

fn policy(protocol: Protocol) -> Policy {
    let rule = |l4_ports, number| PortRule {
        protocol: Some(protocol),
        l4_ports,
        rule: RuleId(RuleId::FIRST_COMPILED + number),
    };
    let peers = (0..IDENTITIES).map(|number| Identity(Identity::FIRST_COMPILED + number));
    let admitted: Arc<[PortRule]> = [rule(53..=53, 0), rule(POD_PORT..=POD_PORT, 1)].into();
    let by_peer =
        peers.chain([CLIENTS_IDENTITY]).map(|peer| (peer, Arc::clone(&admitted))).collect();
    let table = Arc::new(VerdictTable { by_peer, ..VerdictTable::default() });
    let subject = SubjectPolicy {
        ingress: Some(Arc::clone(&table)),
        egress: Some(table),
        ..SubjectPolicy::default()
    };
    let subjects = (0..IDENTITIES)
        .map(|number| (Identity(Identity::FIRST_COMPILED + number), subject.clone()))
        .collect();
    Policy { subjects }
}
