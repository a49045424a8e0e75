//! The job that every subject does: one service of ten pods, policy, and a way to each.

use dataplane::address::{MacAddr, Protocol};
use dataplane::forwarding::{Forwarding, NextHop, NextHopId, Route};
use dataplane::identity::{Identity, IdentityTable};
use dataplane::lb::{
    Backend, BackendSet, Choice, Frontend, FrontendKind, Service, ServiceId, ServiceTable,
    TrafficPolicy,
};
use dataplane::lpm::Prefix;
use dataplane::policy::{Policy, PortRule, RuleId, SubjectPolicy, VerdictTable};
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::tables::{Tables, Timeouts};
use dataplane::time::Seconds;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::network::Links;

/// The way to the client.
pub const UPLINK: PortId = PortId(0);
/// The way to the server, which has all pods' addresses.
pub const POD: PortId = PortId(1);
/// Where clients send to.
pub const FRONTEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 53);
/// L4 port of the pods.
pub const POD_PORT: u16 = 8053;
/// The pods: addresses of this network, from 1 on.
pub const PODS_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 0);
/// Leading bits of it that all pods share.
pub const PODS_BITS: u8 = 24;
/// Number of pods.
pub const PODS: u8 = 10;
/// First address of the clients (RFC 2544).
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Addresses of the clients, as a power of two.
pub const CLIENT_BITS: u32 = 17;
/// Idle time after which a flow ends, for every subject. Longer than a round of all of them, so
/// that flows meant to be there are.
pub const IDLE: Seconds = Seconds(600);

/// Address of a pod, from 1 on.
pub fn pod_address(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = PODS_NETWORK.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// The tables in force for xskiff.
pub fn tables(links: &Links) -> Tables {
    let pods = Identity(Identity::FIRST_COMPILED);
    let clients = Identity(Identity::FIRST_COMPILED + 1);
    Tables {
        generation: 1,
        ports: ports(links),
        forwarding: Arc::new(forwarding(links)),
        services: Arc::new(services()),
        identities: Arc::new(IdentityTable {
            exact: addresses().map(|address| (address, pods.into())).collect(),
            prefixes: [(clients_prefix(), clients)].into_iter().collect(),
            pods_are_known: true,
        }),
        policy: Arc::new(policy(pods, clients)),
        timeouts: Timeouts { udp: IDLE, udp_stream: IDLE, ..Timeouts::default() },
        ..Tables::default()
    }
}

fn addresses() -> impl Iterator<Item = IpAddr> {
    (1..=PODS).map(|number| pod_address(number).into())
}

/// Networks of both files are constants: their lengths fit.
fn prefix(address: Ipv4Addr, length: u8) -> Prefix {
    Prefix::new(address.into(), length).unwrap_or_else(|| Prefix::host(address.into()))
}

fn clients_prefix() -> Prefix {
    prefix(CLIENTS, 32 - CLIENT_BITS as u8)
}

fn ports(links: &Links) -> Arc<[Option<Port>]> {
    let port = |name: &str, kind, mac, own: Vec<IpAddr>| {
        Some(Port {
            name: name.into(),
            kind,
            mac,
            mtu: 1500,
            checksums: Checksums::Complete,
            addresses: own.into(),
        })
    };
    Arc::new([
        port(&links.uplink, PortKind::Uplink, links.uplink_mac(), Vec::new()),
        port(&links.pod, PortKind::Pod, links.pod_mac(), addresses().collect()),
    ])
}

fn forwarding(links: &Links) -> Forwarding {
    let hop = |port, source, destination: MacAddr, neighbour: Ipv4Addr| NextHop {
        port,
        to_host: false,
        source,
        destination: Some(destination),
        mtu: 1500,
        neighbour: neighbour.into(),
    };
    let gateway = Ipv4Addr::new(10, 0, 0, 2);
    Forwarding {
        next_hops: vec![
            hop(UPLINK, links.uplink_mac(), links.client_mac(), gateway),
            hop(POD, links.pod_mac(), links.server_mac(), pod_address(1)),
        ],
        endpoints: addresses().map(|address| (address, NextHopId(1))).collect(),
        routes: [(prefix(Ipv4Addr::UNSPECIFIED, 0), Route::Via(NextHopId(0)))]
            .into_iter()
            .collect(),
        ..Forwarding::default()
    }
}

fn services() -> ServiceTable {
    let backends: Box<[Backend]> = addresses()
        .map(|address| Backend { address, l4_port: POD_PORT, local: true, weight: 100 })
        .collect();
    // A Maglev table as large as the compiler's for ten backends.
    let maglev = (0..1021).map(|slot: u16| slot % u16::from(PODS)).collect();
    let set = Arc::new(BackendSet { backends, maglev });
    let service = Arc::new(Service {
        name: "default/perf:dns".into(),
        cluster: Arc::clone(&set),
        local: set,
        lingering: Box::default(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Box::default(),
        choice: Choice::Maglev,
        affinity: None,
        changes_family: false,
    });
    let at = Frontend {
        address: (*FRONTEND.ip()).into(),
        protocol: Protocol::UDP,
        l4_port: FRONTEND.port(),
    };
    ServiceTable {
        frontends: [(at, (ServiceId(0), FrontendKind::LoadBalancer))].into_iter().collect(),
        addresses: [at.address].into_iter().collect(),
        services: [(ServiceId(0), service)].into_iter().collect(),
        ..ServiceTable::default()
    }
}

/// The pods admit the clients on their port, and nobody else.
fn policy(pods: Identity, clients: Identity) -> Policy {
    let rule = PortRule {
        protocol: Some(Protocol::UDP),
        l4_ports: POD_PORT..=POD_PORT,
        rule: RuleId(RuleId::FIRST_COMPILED),
    };
    let by_peer = [(clients, Arc::from([rule]))].into_iter().collect();
    let table = Arc::new(VerdictTable { by_peer, ..VerdictTable::default() });
    let subject = SubjectPolicy { ingress: Some(table), ..SubjectPolicy::default() };
    Policy { subjects: [(pods, subject)].into_iter().collect() }
}

/// The same for the kernel: DNAT by a hash of the client, and the policy.
pub fn nftables() -> String {
    let backends: Vec<String> =
        (1..=PODS).map(|number| format!("{} : {}", number - 1, pod_address(number))).collect();
    let (address, l4_port) = (FRONTEND.ip(), FRONTEND.port());
    format!(
        "table ip perf {{\n\
         chain services {{\n\
         type nat hook prerouting priority dstnat; policy accept;\n\
         ip daddr {address} udp dport {l4_port} dnat to jhash ip saddr . udp sport mod {PODS} \
         map {{ {} }} : {POD_PORT}\n\
         }}\n\
         chain pods {{\n\
         type filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\n\
         ip saddr {} ip daddr {PODS_NETWORK}/{PODS_BITS} udp dport {POD_PORT} accept\n\
         }}\n\
         }}\n",
        backends.join(", "),
        clients_prefix(),
    )
}
