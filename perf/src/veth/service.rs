//! The job that every subject does: services, the pods behind them, policy, and a way to each.

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

use control::compile::maglev;
use control::model::WEIGHT_DEFAULT;

use super::network::Links;

/// The way to the client.
pub const UPLINK: PortId = PortId(0);
/// The way to the server, which has all pods' addresses.
pub const POD: PortId = PortId(1);
/// Where the first service listens, and every other at an address after it (RFC 6598).
pub const FRONTEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 1), 53);
/// Leading bits of the services' addresses that all share.
pub const FRONTENDS_BITS: u8 = 10;
/// L4 port of the pods.
pub const POD_PORT: u16 = 8053;
/// The pods: addresses of this network, from 1 on.
pub const PODS_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 0);
/// Leading bits of it that all pods share.
pub const PODS_BITS: u8 = 24;
/// First address of the clients (RFC 2544).
pub const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Addresses of the clients, as a power of two.
pub const CLIENT_BITS: u32 = 17;
/// Idle time after which a flow ends, for every subject. Longer than a round of all of them, so
/// that flows meant to be there are.
pub const IDLE: Seconds = Seconds(600);

/// How much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Services.
    pub services: u32,
    /// Pods, each behind many services where there are many.
    pub pods: u8,
    /// Pods behind each service, at most all of them.
    pub backends: u8,
}

impl Job {
    /// One service of ten pods.
    pub const ONE_SERVICE: Self = Self { services: 1, pods: 10, backends: 10 };

    /// Where a service listens, from 0 on.
    pub fn frontend(&self, service: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(FRONTEND.ip().to_bits() + service)
    }

    /// Services of this number and all that leave the same rest have equal backends.
    pub fn set_of(&self, service: u32) -> u32 {
        service % u32::from(self.pods)
    }

    /// One service of each such set.
    pub fn sets(&self) -> impl Iterator<Item = u32> {
        0..self.services.min(u32::from(self.pods))
    }

    /// Numbers of the pods behind a service.
    pub fn backends_of(&self, service: u32) -> impl Iterator<Item = u8> {
        let (pods, apart) = (u32::from(self.pods), u32::from(self.pods / self.backends));
        let first = self.set_of(service);
        (0..u32::from(self.backends)).map(move |place| ((first + place * apart) % pods) as u8 + 1)
    }

    /// Numbers of all pods.
    pub fn pods(&self) -> impl Iterator<Item = u8> {
        1..=self.pods
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pods().map(|number| pod_address(number).into())
    }

    /// The tables in force for xskiff.
    pub fn tables(&self, links: &Links) -> Tables {
        let pods = Identity(Identity::FIRST_COMPILED);
        let clients = Identity(Identity::FIRST_COMPILED + 1);
        Tables {
            generation: 1,
            ports: self.ports(links),
            forwarding: Arc::new(self.forwarding(links)),
            services: Arc::new(self.service_table()),
            identities: Arc::new(IdentityTable {
                exact: self.addresses().map(|address| (address, pods.into())).collect(),
                pods_are_known: true,
                prefixes: [(clients_prefix(), clients)].into_iter().collect(),
            }),
            policy: Arc::new(policy(pods, clients)),
            timeouts: Timeouts { udp: IDLE, udp_stream: IDLE, ..Timeouts::default() },
            ..Tables::default()
        }
    }

    fn ports(&self, links: &Links) -> Arc<[Option<Port>]> {
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
            port(&links.pod, PortKind::Pod, links.pod_mac(), self.addresses().collect()),
        ])
    }

    fn forwarding(&self, links: &Links) -> Forwarding {
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
            endpoints: self.addresses().map(|address| (address, NextHopId(1))).collect(),
            routes: [(prefix(Ipv4Addr::UNSPECIFIED, 0), Route::Via(NextHopId(0)))]
                .into_iter()
                .collect(),
            ..Forwarding::default()
        }
    }

    fn service_table(&self) -> ServiceTable {
        let mut table = ServiceTable::default();
        for number in 0..self.services {
            let at = Frontend {
                address: self.frontend(number).into(),
                protocol: Protocol::UDP,
                l4_port: FRONTEND.port(),
            };
            table.frontends.insert(at, (ServiceId(number), FrontendKind::LoadBalancer));
            table.addresses.insert(at.address, ());
            table.services.insert(ServiceId(number), Arc::new(self.service(number)));
        }
        table
    }

    fn service(&self, number: u32) -> Service {
        let backend = |pod| Backend {
            address: pod_address(pod).into(),
            l4_port: POD_PORT,
            local: true,
            weight: WEIGHT_DEFAULT,
        };
        let mut backends: Vec<Backend> = self.backends_of(number).map(backend).collect();
        backends.sort_unstable();
        let maglev = maglev::build(&backends);
        let set = Arc::new(BackendSet { backends: backends.into(), maglev });
        Service {
            name: format!("default/perf-{number}:dns").into(),
            cluster: Arc::clone(&set),
            local: set,
            lingering: Box::default(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            source_ranges: Box::default(),
            choice: Choice::Maglev,
            affinity: None,
            changes_family: false,
            direct: false,
        }
    }
}

/// Address of a pod, from 1 on.
pub fn pod_address(number: u8) -> Ipv4Addr {
    let [a, b, c, _] = PODS_NETWORK.octets();
    Ipv4Addr::new(a, b, c, number)
}

/// Networks of both files are constants: their lengths fit.
fn prefix(address: Ipv4Addr, length: u8) -> Prefix {
    Prefix::new(address.into(), length).unwrap_or_else(|| Prefix::host(address.into()))
}

/// Where clients are.
pub fn clients_prefix() -> Prefix {
    prefix(CLIENTS, 32 - CLIENT_BITS as u8)
}

/// Where services are.
pub fn frontends_prefix() -> Prefix {
    prefix(*FRONTEND.ip(), FRONTENDS_BITS)
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
