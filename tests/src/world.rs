//! A small cluster as tables, by hand: the compiler has no part in the tests of the pipeline.
//!
//! | port | kind | addresses |
//! |---|---|---|
//! | 0 | host | 10.0.0.1, fd00::1 (the node) |
//! | 1 | uplink | neighbours 10.0.0.2 (gateway), fd00::2 |
//! | 2.. | pods | 10.1.0.N, fd01::N for pod N |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use dataplane::address::{MacAddr, Protocol};
use dataplane::connections::Connections;
use dataplane::direct::Direct;
use dataplane::epochs::Epochs;
use dataplane::forwarding::{Forwarding, NextHop, NextHopId, Route};
use dataplane::identity::{Holder, Identity, IdentityTable, PodTag};
use dataplane::lb::{
    Affinity, Backend, BackendSet, Choice, Frontend, FrontendKind, Service, ServiceId, ServiceTable,
};
use dataplane::lpm::{Prefix, PrefixTable};
use dataplane::nat::rules::SnatRule;
use dataplane::nat::{Mapping, SourceNat};
use dataplane::pacing::{Limits, PortLimits};
use dataplane::policy::{Policy, PortRule, RuleId, SubjectPolicy, VerdictTable};
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::tables::{Tables, TcpWindows};
use dataplane::time::{Nanos, Seconds};

mod direct;

/// The port of the node's own stack.
pub const HOST: PortId = PortId(0);
/// The way outside.
pub const UPLINK: PortId = PortId(1);

/// The port of pod `n`, counted from 1.
#[must_use]
pub fn pod_port(n: u8) -> PortId {
    PortId(1 + u16::from(n))
}

/// Pod `n`'s IPv4 address.
#[must_use]
pub fn pod4(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, n).into()
}

/// Pod `n`'s IPv6 address.
#[must_use]
pub fn pod6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, n.into()).into()
}

/// Who has the addresses of pod `n` in this incarnation: a pod that took the place of one before is
/// another.
#[must_use]
pub fn pod_holder(n: u8, incarnation: u8) -> Holder {
    let pod = PodTag::of_hash(u64::from(incarnation) << 8 | u64::from(n));
    Holder { identity: pod_identity(n), pod }
}

/// Pod `n`'s identity.
#[must_use]
pub fn pod_identity(n: u8) -> Identity {
    Identity(Identity::FIRST_COMPILED + u32::from(n))
}

/// The node's address of `like`'s family.
#[must_use]
pub fn node_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::new(10, 0, 0, 1).into() } else { address("fd00::1") }
}

/// Parses an address; panics on nonsense, as a test should.
#[must_use]
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Ranges of the cluster, which pods speak to by their own addresses.
const CLUSTER: [&str; 4] = ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "fd00::/15"];

fn prefix(text: &str) -> Prefix {
    let (base, length) = text.split_once('/').unwrap_or_else(|| panic!("{text}: no length"));
    let length = length.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    Prefix::new(address(base), length).unwrap_or_else(|| panic!("{text}: too long"))
}

fn mac(kind: u8, n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, kind, n])
}

/// Builds [`Tables`] step by step.
#[derive(Debug, Clone)]
pub struct World {
    ports: Vec<Option<Port>>,
    forwarding: Forwarding,
    services: ServiceTable,
    direct: Option<Arc<Direct>>,
    identities: IdentityTable,
    policy: Policy,
    source_nat: SourceNat,
    generation: u32,
    epochs: Option<Epochs>,
    lost_replies_until: Nanos,
    tcp_windows: TcpWindows,
    limits: Option<Arc<Limits>>,
    connections: Option<Arc<Connections>>,
}

impl World {
    /// A node with `pods` local pods, and nothing else.
    #[must_use]
    pub fn with_pods(pods: u8) -> Self {
        let mut world = Self {
            ports: vec![
                Some(port("host", PortKind::Host, mac(0, 0), &[])),
                Some(port("uplink", PortKind::Uplink, mac(1, 0), &[])),
            ],
            forwarding: Forwarding::default(),
            services: ServiceTable::default(),
            direct: None,
            identities: IdentityTable { pods_are_known: true, ..IdentityTable::default() },
            policy: Policy::default(),
            source_nat: SourceNat {
                v4: Some(Ipv4Addr::new(10, 0, 0, 1)),
                v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
                host_v4: Some(Ipv4Addr::new(169, 254, 7, 1)),
                host_v6: Some(Ipv6Addr::new(0xfd78, 0x736b, 0x6966, 7, 0, 0, 0, 1)),
                l4_ports: 61_000..=61_999,
                mapping: Mapping::EndpointDependent,
                non_masquerade: CLUSTER.iter().map(|text| (prefix(text), ())).collect(),
                cluster: CLUSTER.iter().map(|text| (prefix(text), ())).collect(),
                ..SourceNat::default()
            },
            generation: 1,
            epochs: None,
            lost_replies_until: Nanos::default(),
            tcp_windows: TcpWindows::Off,
            connections: None,
            limits: None,
        };
        world.add_node();
        (1..=pods).for_each(|n| world.add_pod(n));
        world
    }

    fn add_node(&mut self) {
        let host = self.add_hop(HOST, mac(0, 1), address("10.0.0.1"));
        self.forwarding.host = Some(host);
        for own in ["10.0.0.1", "fd00::1"] {
            self.forwarding.node_addresses.insert(address(own), ());
            self.identities.exact.insert(address(own), Identity::HOST.into());
        }
        let mut routes = PrefixTable::default();
        for (gateway, link, default) in
            [("10.0.0.2", "10.0.0.0/24", "0.0.0.0/0"), ("fd00::2", "fd00::/64", "::/0")]
        {
            let hop = self.add_hop(UPLINK, mac(1, 2), address(gateway));
            self.forwarding.neighbours.insert((UPLINK, address(gateway)), hop);
            routes.insert(prefix(default), Route::Via(hop));
            routes.insert(prefix(link), Route::OnLink(UPLINK));
        }
        self.forwarding.routes = routes;
    }

    fn add_hop(&mut self, port: PortId, to: MacAddr, neighbour: IpAddr) -> NextHopId {
        let id = NextHopId(u16::try_from(self.forwarding.next_hops.len()).unwrap_or(u16::MAX));
        let source = self.ports[usize::from(port.0)].as_ref().map_or(to, |port| port.mac);
        self.forwarding.next_hops.push(NextHop {
            port,
            to_host: port == HOST,
            source,
            destination: Some(to),
            mtu: 1500,
            neighbour,
        });
        id
    }

    fn add_pod(&mut self, n: u8) {
        let own = [pod4(n), pod6(n)];
        let name = format!("pod{n}");
        self.ports.push(Some(port(&name, PortKind::Pod, mac(2, n), &own)));
        for address in own {
            let hop = self.add_hop(pod_port(n), mac(3, n), address);
            self.forwarding.endpoints.insert(address, hop);
            self.identities.exact.insert(address, pod_holder(n, 0));
        }
    }

    /// The service's backends from now on, and those that linger beside them.
    #[must_use]
    pub fn with_backends_of(
        mut self,
        id: ServiceId,
        backends: &[(IpAddr, u16)],
        lingering: &[(IpAddr, u16)],
    ) -> Self {
        let of = |all: &[(IpAddr, u16)]| -> Box<[Backend]> {
            all.iter()
                .map(|(address, l4_port)| Backend {
                    address: *address,
                    l4_port: *l4_port,
                    local: self.forwarding.endpoints.contains_key(address),
                    weight: 100,
                })
                .collect()
        };
        if let Some(known) = self.services.get(id) {
            let local = of(backends).into_iter().filter(|one| one.local).collect();
            let service = Service {
                cluster: Arc::new(set(of(backends))),
                local: Arc::new(set(local)),
                lingering: of(lingering),
                ..Service::clone(known)
            };
            self.services.services.insert(id, Arc::new(service));
        }
        self
    }

    /// The service remembers a client's backend for so long.
    #[must_use]
    pub fn with_affinity(mut self, id: ServiceId, timeout: Seconds) -> Self {
        if let Some(known) = self.services.get(id) {
            let affinity = Some(Affinity { service: 0x5e55_1011 + u64::from(id.0), timeout });
            let service = Service { affinity, ..Service::clone(known) };
            self.services.services.insert(id, Arc::new(service));
            self.services.have_affinity = true;
        }
        self
    }

    /// How the service chooses.
    #[must_use]
    pub fn with_choice(mut self, id: ServiceId, choice: Choice) -> Self {
        if let Some(known) = self.services.get(id) {
            let service = Service { choice, ..Service::clone(known) };
            self.services.services.insert(id, Arc::new(service));
            self.services.have_least_connections |= choice == Choice::LeastConnections;
        }
        self
    }

    /// The node's process has this number, and so many workers, which count connections.
    #[must_use]
    pub fn with_connections_counted_by(mut self, process: u16, workers: usize) -> Self {
        self.connections = Some(Arc::new(Connections::new(process, workers)));
        self
    }

    /// No services at all.
    #[must_use]
    pub fn without_services(mut self) -> Self {
        self.services = ServiceTable::default();
        self
    }

    /// Nobody has told of any pod; local ones are known by their ports alone.
    #[must_use]
    pub fn without_pods_told(mut self) -> Self {
        self.identities = IdentityTable::default();
        self
    }

    /// A pod that left this node: its port and its way, while its Pod object is there yet.
    #[must_use]
    pub fn without_endpoint(mut self, address: IpAddr) -> Self {
        if let Some(hop) = self.forwarding.endpoints.remove(&address)
            && let Some(hop) = self.forwarding.next_hops.get(usize::from(hop.0))
        {
            let port = hop.port;
            self = self.without_port(port);
        }
        self
    }

    /// An address elsewhere that pod `n` of this incarnation has, or nobody any more.
    #[must_use]
    pub fn with_pod_at(mut self, text: &str, pod: Option<(u8, u8)>) -> Self {
        match pod {
            Some((n, incarnation)) => {
                self.identities.exact.insert(address(text), pod_holder(n, incarnation))
            }
            None => self.identities.exact.remove(&address(text)),
        };
        self
    }

    /// Addresses of the node's own that mean nothing beyond their link.
    #[must_use]
    pub fn with_link_addresses(mut self, addresses: &[&str]) -> Self {
        for text in addresses {
            self.forwarding.link_addresses.insert(address(text), ());
        }
        self
    }

    /// A neighbour on the uplink's link that can be reached at once.
    #[must_use]
    pub fn with_neighbour(mut self, text: &str) -> Self {
        let hop = self.add_hop(UPLINK, mac(1, 9), address(text));
        self.forwarding.neighbours.insert((UPLINK, address(text)), hop);
        self
    }

    /// A service on `frontend`:`l4_port` (TCP and UDP) with these backends. A node port without
    /// frontend is on the node's address of the backends' family.
    #[must_use]
    pub fn with_service(
        mut self,
        kind: FrontendKind,
        frontend: &str,
        l4_port: u16,
        backends: &[(IpAddr, u16)],
    ) -> Self {
        let backends: Box<[Backend]> = backends
            .iter()
            .map(|(address, l4_port)| Backend {
                address: *address,
                l4_port: *l4_port,
                local: self.forwarding.endpoints.contains_key(address),
                weight: 100,
            })
            .collect();
        let on_host =
            backends.iter().filter(|one| self.forwarding.node_addresses.contains(&one.address));
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let l4_ports = on_host.clone().map(|one| (protocol, one.l4_port));
            self.services.host_backends.extend(l4_ports);
        }
        let backends_family = backends.first().map_or(address("0.0.0.0"), |one| one.address);
        let frontend = match frontend {
            "" => node_address(backends_family),
            frontend => address(frontend),
        };
        let changes_family =
            !backends.is_empty() && frontend.is_ipv4() != backends_family.is_ipv4();
        self.services.change_family |= changes_family;
        let local: Box<[Backend]> = backends.iter().copied().filter(|one| one.local).collect();
        let id = ServiceId(u32::try_from(self.services.services.len()).unwrap_or(u32::MAX));
        let service = Service {
            local: Arc::new(set(local)),
            changes_family,
            ..Service::of_set(format!("default/service{}:p", id.0), Arc::new(set(backends)))
        };
        self.services.services.insert(id, Arc::new(service));
        for protocol in [Protocol::TCP, Protocol::UDP] {
            if kind == FrontendKind::NodePort {
                self.services.node_ports.insert((protocol, l4_port), id);
                let at = Frontend { address: frontend, protocol, l4_port };
                self.services.frontends.insert(at, (id, kind));
                continue;
            }
            let at = Frontend { address: frontend, protocol, l4_port };
            self.services.frontends.insert(at, (id, kind));
            self.services.addresses.insert(at.address, ());
            if kind != FrontendKind::ClusterIp {
                self.services.external.insert(at.address, ());
            }
        }
        self
    }

    /// These services, instead of those before.
    #[must_use]
    pub fn with_services(mut self, services: &ServiceTable) -> Self {
        self.services = services.clone();
        self
    }

    /// Isolates pod `n` toward itself: only `allowed` pods reach it, on `l4_ports`.
    #[must_use]
    pub fn with_ingress_only_from(
        mut self,
        n: u8,
        allowed: &[u8],
        l4_ports: std::ops::RangeInclusive<u16>,
    ) -> Self {
        let rule = PortRule {
            protocol: Some(Protocol::TCP),
            l4_ports,
            rule: RuleId(RuleId::FIRST_COMPILED),
        };
        let by_peer =
            allowed.iter().map(|peer| (pod_identity(*peer), Arc::from([rule.clone()]))).collect();
        let table = VerdictTable { by_peer, ..VerdictTable::default() };
        self.policy.subjects.entry(pod_identity(n)).or_default().ingress = Some(Arc::new(table));
        self
    }

    /// Puts what isolates pod `n` toward itself under audit: nothing is enforced there any more.
    #[must_use]
    pub fn with_ingress_under_audit(mut self, n: u8) -> Self {
        let subject = self.policy.subjects.entry(pod_identity(n)).or_default();
        subject.ingress_audit = subject.ingress.take();
        self
    }

    /// Isolates pod `n` from everything: it may open nothing.
    #[must_use]
    pub fn with_no_egress(mut self, n: u8) -> Self {
        let subject: &mut SubjectPolicy = self.policy.subjects.entry(pod_identity(n)).or_default();
        subject.egress = Some(Arc::new(VerdictTable::default()));
        self
    }

    /// Pod `n` is one that nobody has told of: it may all, or nothing, and nothing else is in force
    /// of it.
    #[must_use]
    pub fn with_unknown_pod(mut self, n: u8, allowed: bool) -> Self {
        let rule = RuleId::UNKNOWN_POD;
        let all = PortRule { protocol: None, l4_ports: 0..=u16::MAX, rule };
        let any_peer = allowed.then_some(all).into_iter().collect();
        let table = VerdictTable { any_peer, unknown_pod: true, ..VerdictTable::default() };
        let table = Some(Arc::new(table));
        let subject = SubjectPolicy { ingress: table.clone(), egress: table, ..Default::default() };
        self.policy.subjects.insert(pod_identity(n), subject);
        self
    }

    /// Marks frames of `port` as possibly unfinished.
    #[must_use]
    pub fn with_unfinished_checksums(mut self, port: PortId) -> Self {
        if let Some(Some(port)) = self.ports.get_mut(usize::from(port.0)) {
            port.checksums = Checksums::Unknown;
        }
        self
    }

    /// The next generation of the same node, in which something changed about these addresses alone.
    #[must_use]
    pub fn next_generation_for(mut self, addresses: &[&str]) -> Self {
        let mut epochs =
            self.epochs.take().unwrap_or_else(|| Epochs::beginning_at(self.generation));
        self.generation += 1;
        epochs.concern(self.generation, addresses.iter().map(|text| address(text)));
        self.epochs = Some(epochs);
        self
    }

    /// The next generation of the same node: flows are judged again.
    #[must_use]
    pub fn next_generation(mut self) -> Self {
        self.generation += 1;
        self
    }

    /// Bandwidth limits of pods, instead of those before.
    #[must_use]
    pub fn with_limits(mut self, limits: impl IntoIterator<Item = (PortId, PortLimits)>) -> Self {
        self.limits = Limits::of(limits).map(Arc::new);
        self
    }

    /// A port that is gone, with nothing else changed.
    #[must_use]
    pub fn without_port(mut self, port: PortId) -> Self {
        self.ports[usize::from(port.0)] = None;
        self
    }

    /// Until `until` a denied segment in mid-stream may be a lost flow's reply.
    #[must_use]
    pub fn with_lost_replies_until(mut self, until: Nanos) -> Self {
        self.lost_replies_until = until;
        self
    }

    /// What becomes of TCP segments outside of their windows, in a node whose flows have details.
    #[must_use]
    pub fn with_tcp_windows(mut self, windows: TcpWindows) -> Self {
        self.tcp_windows = windows;
        self
    }

    /// SNAT ports.
    #[must_use]
    pub fn with_snat_ports(mut self, l4_ports: std::ops::RangeInclusive<u16>) -> Self {
        self.source_nat.l4_ports = l4_ports;
        self
    }

    /// Nothing to translate sources to in `like`'s family.
    #[must_use]
    pub fn without_masquerade(mut self, like: IpAddr) -> Self {
        match like {
            IpAddr::V4(_) => self.source_nat.v4 = None,
            IpAddr::V6(_) => self.source_nat.v6 = None,
        }
        self
    }

    /// What the next hops on the uplink take, in bytes.
    #[must_use]
    pub fn with_uplink_mtu(mut self, mtu: u16) -> Self {
        let hops = self.forwarding.next_hops.iter_mut();
        hops.filter(|hop| hop.port == UPLINK).for_each(|hop| hop.mtu = mtu);
        self
    }

    /// A rule behind those that there are: what these pods send there leaves as one of `to`.
    #[must_use]
    pub fn with_snat_rule(mut self, sources: &[&str], destinations: &[&str], to: &[&str]) -> Self {
        let ranges = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect();
        let rule = SnatRule {
            sources: ranges(sources),
            destinations: ranges(destinations),
            to: to.iter().map(|text| address(text)).collect(),
        };
        let nat = &mut self.source_nat;
        nat.addresses.extend(rule.to.iter().map(|to| (*to, ())));
        nat.rules = nat.rules.iter().cloned().chain([rule]).collect();
        self
    }

    /// No rules any more; their addresses are kept for the flows that go by them.
    #[must_use]
    pub fn without_snat_rules(mut self) -> Self {
        self.source_nat.rules = Box::default();
        self
    }

    /// One more destination that sees a pod's own address.
    #[must_use]
    pub fn with_non_masquerade(mut self, range: &str) -> Self {
        self.source_nat.non_masquerade.insert(prefix(range), ());
        self
    }

    /// What the SNAT port depends on.
    #[must_use]
    pub fn with_mapping(mut self, mapping: Mapping) -> Self {
        self.source_nat.mapping = mapping;
        self
    }

    /// As the control thread would publish it.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        Arc::new(Tables {
            generation: self.generation,
            epochs: self.epochs.clone().map(Arc::new),
            ports: self.ports.clone().into(),
            limits: self.limits.clone(),
            forwarding: Arc::new(self.forwarding.clone()),
            services: Arc::new(self.services.clone()),
            host_backends: Arc::new(self.services.host_backends.clone()),
            service_ranges: Arc::default(),
            direct: self.direct.clone(),
            identities: Arc::new(self.identities.clone()),
            policy: Arc::new(self.policy.clone()),
            source_nat: Arc::new(self.source_nat.clone()),
            timeouts: dataplane::tables::Timeouts::default(),
            tcp_windows: self.tcp_windows,
            connections: self.connections.clone(),
            flows_per_endpoint_max: 0,
            lost_replies_until: self.lost_replies_until,
        })
    }
}

fn port(name: &str, kind: PortKind, mac: MacAddr, own: &[IpAddr]) -> Port {
    Port {
        name: name.into(),
        kind,
        mac,
        mtu: 1500,
        checksums: Checksums::Complete,
        addresses: own.into(),
    }
}

/// Backends in turn: enough of a Maglev table for a test that does not look at the balance.
fn set(backends: Box<[Backend]>) -> BackendSet {
    let count = u16::try_from(backends.len()).unwrap_or(u16::MAX);
    let maglev =
        if count > 1 { (0..251).map(|slot| slot % count).collect() } else { Box::default() };
    BackendSet { backends, maglev }
}
