//! Two nodes that compile a cluster's objects, and the way of a packet through their tables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use control::compile::{Compiled, NodeView, compile};
use control::config::UnknownPods;
use control::model::{InvalidObject, Object, ObjectName, convert};
use control::store::ClusterState;
use dataplane::DropReason;
use dataplane::address::{MacAddr, Protocol};
use dataplane::decision::{Decision, NewPacket, decide};
use dataplane::flow_key::FlowKey;
use dataplane::forwarding::{Forwarding, NextHop, NextHopId, Route};
use dataplane::identity::Identity;
use dataplane::lpm::{Prefix, PrefixTable};
use dataplane::nat::SourceNat;
use dataplane::policy::{Direction, Query};
use dataplane::port::{Checksums, Port, PortId, PortKind};
use dataplane::tables::Tables;
use xskiff_tests::policy_model::{
    self as model, Answer, Objects, Owner, Packet, Transport, node_addresses, node_name,
    pod_addresses,
};

const HOST: PortId = PortId(0);
const UPLINK: PortId = PortId(1);
/// The L4 port that clients speak from: no rule looks at it.
const CLIENT_PORT: u16 = 40_000;
/// The flag that opens a TCP connection.
const SYN: u8 = 0x02;

/// The cluster's state as the control thread keeps it.
pub fn state(objects: &Objects) -> Result<ClusterState, InvalidObject> {
    let mut state = ClusterState::default();
    for object in objects.namespaces.iter().cloned() {
        state.insert(Object::Namespace(convert::namespace(object)?));
    }
    for object in objects.nodes.iter().cloned() {
        state.insert(Object::Node(convert::node(object)?));
    }
    for object in objects.pods.iter().filter(|pod| !objects.is_untold(pod)).cloned() {
        state.insert(Object::from(convert::pod(object)?));
    }
    for object in objects.policies.iter().cloned() {
        state.insert(Object::from(convert::network_policy(object)?));
    }
    Ok(state)
}

/// Where a packet ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It came through.
    Passed,
    /// Policy of the source's node dropped it.
    DeniedByEgress,
    /// Policy of the destination's node dropped it.
    DeniedByIngress,
}

impl End {
    /// What becomes of a packet about which the model says `answer`.
    pub fn meant(answer: Answer) -> Self {
        match (answer.egress, answer.ingress) {
            (Some(false), _) => Self::DeniedByEgress,
            (_, Some(false)) => Self::DeniedByIngress,
            _ => Self::Passed,
        }
    }
}

/// One node: its interfaces as they are, and what it compiled.
pub struct Node {
    name: String,
    /// What it compiled.
    pub compiled: Compiled,
    /// Everything but what is compiled.
    wiring: Tables,
    /// Ports of the addresses of local pods.
    pods: BTreeMap<IpAddr, PortId>,
    own: Vec<IpAddr>,
}

impl Node {
    /// Plugs in the pods that live on node `name`, and compiles `state` as it does.
    pub fn new(name: &str, objects: &Objects, state: &ClusterState, previous: &Compiled) -> Self {
        let own: Vec<IpAddr> = objects
            .nodes
            .iter()
            .filter(|node| node.metadata.name.as_deref() == Some(name))
            .flat_map(node_addresses)
            .collect();
        let mut wiring = Wiring::new(&own);
        let mut view = NodeView {
            name: name.to_owned(),
            addresses: own.iter().copied().collect(),
            unknown_pods: match objects.unknown_pods {
                model::UnknownPods::ByNamespace => UnknownPods::ByNamespace,
                model::UnknownPods::Deny => UnknownPods::Deny,
                model::UnknownPods::Allow => UnknownPods::Allow,
            },
            ..NodeView::default()
        };
        for pod in objects.pods.iter().filter(|pod| node_name(pod).as_deref() == Some(name)) {
            let has = |address: &IpAddr| {
                objects.owner(*address).pod().is_some_and(|owner| std::ptr::eq(owner, pod))
            };
            let addresses: Vec<IpAddr> = pod_addresses(pod).into_iter().filter(has).collect();
            if addresses.is_empty() {
                continue;
            }
            wiring.plug(&addresses);
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let name = pod.metadata.name.as_deref().expect("a pod has a name");
            let name = ObjectName::new(namespace, name);
            view.endpoints.insert(name, addresses.into_iter().collect());
        }
        let compiled = compile(state, &view, previous);
        let pods = wiring.pods.clone();
        Self { name: name.to_owned(), compiled, wiring: wiring.tables(), pods, own }
    }

    /// What is in force here.
    pub fn tables(&self) -> Tables {
        Tables {
            identities: Arc::clone(&self.compiled.identities),
            policy: Arc::clone(&self.compiled.policy),
            services: Arc::clone(&self.compiled.services),
            ..self.wiring.clone()
        }
    }

    /// The port that `address` speaks through here.
    fn port_of(&self, address: IpAddr) -> PortId {
        let pod = || self.pods.get(&address).copied();
        if self.own.contains(&address) { HOST } else { pod().unwrap_or(UPLINK) }
    }

    fn judge(&self, direction: Direction, packet: &Packet) -> Option<bool> {
        let (subject, peer) = match direction {
            Direction::Ingress => (packet.to, packet.from),
            Direction::Egress => (packet.from, packet.to),
        };
        let port = *self.pods.get(&subject)?;
        if self.port_of(peer) == port {
            return Some(true);
        }
        // What enters by the host port is the node, whatever its address; as in the pipeline.
        let peer = match (direction, self.port_of(peer)) {
            (Direction::Ingress, HOST) => Identity::HOST,
            _ => self.compiled.identities.lookup(peer),
        };
        let subject = self.compiled.identities.lookup(subject);
        let (protocol, l4_port) = protocol_of(packet);
        let query = Query { subject, peer, protocol, l4_port };
        Some(self.compiled.policy.judge(direction, &query).allowed)
    }
}

/// Both nodes.
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Compiles `state` on every node that `objects` name, on top of what `previous` compiled.
    pub fn new(objects: &Objects, state: &ClusterState, previous: Option<&Self>) -> Self {
        let nodes = objects.nodes.iter().map(|node| {
            let name = node.metadata.name.as_deref().expect("a node has a name");
            let before = previous.and_then(|nodes| nodes.0.iter().find(|node| node.name == name));
            let none = Compiled::default();
            Node::new(name, objects, state, before.map_or(&none, |node| &node.compiled))
        });
        Self(nodes.collect())
    }

    /// Every node, to be spoilt.
    pub fn each(&mut self) -> impl Iterator<Item = &mut Node> {
        self.0.iter_mut()
    }

    /// Every node.
    pub fn all(&self) -> &[Node] {
        &self.0
    }

    /// Tables ready to be asked many times.
    pub fn in_force(&self) -> InForce<'_> {
        InForce { nodes: self.0.iter().map(|node| (node, node.tables())).collect() }
    }
}

/// Nodes with their tables.
pub struct InForce<'a> {
    nodes: Vec<(&'a Node, Tables)>,
}

impl InForce<'_> {
    /// The verdict of each end's own tables, asked one by one.
    pub fn judge(&self, packet: &Packet) -> Answer {
        let ask = |direction| self.nodes.iter().find_map(|(node, _)| node.judge(direction, packet));
        Answer { egress: ask(Direction::Egress), ingress: ask(Direction::Ingress) }
    }

    /// Sends `packet` on its way: to the source's node, and from there on.
    pub fn pass(&self, packet: &Packet) -> End {
        let is_at = |(node, _): &&(&Node, Tables)| node.port_of(packet.from) != UPLINK;
        if let Some((node, tables)) = self.nodes.iter().find(is_at) {
            match step(tables, node.port_of(packet.from), packet) {
                Step::Out => {}
                Step::Ended(end) => return end,
            }
        }
        let is_at = |(node, _): &&(&Node, Tables)| node.port_of(packet.to) != UPLINK;
        match self.nodes.iter().find(is_at).map(|(_, tables)| step(tables, UPLINK, packet)) {
            Some(Step::Ended(end)) => end,
            Some(Step::Out) => panic!("{packet:?} was for this node, and is sent on"),
            None => End::Passed,
        }
    }
}

enum Step {
    /// It leaves by the uplink.
    Out,
    Ended(End),
}

fn step(tables: &Tables, port: PortId, packet: &Packet) -> Step {
    let (protocol, l4_port) = protocol_of(packet);
    let key = FlowKey::new(protocol, (packet.from, CLIENT_PORT), (packet.to, l4_port))
        .expect("both ends are of one family");
    let new = NewPacket {
        key,
        tcp_flags: if protocol == Protocol::TCP { SYN } else { 0 },
        may_begin: true,
        hairpin: None,
        directed: None,
        remembered: None,
        moment: 0,
        may_be_lost_reply: false,
    };
    match decide(tables, port, &new) {
        Ok(Decision::Admit(admission)) => {
            let hop = tables.forwarding.next_hop(admission.hop).expect("an admitted flow's hop");
            if hop.port == UPLINK { Step::Out } else { Step::Ended(End::Passed) }
        }
        Ok(Decision::Foreign(_)) => Step::Ended(End::Passed),
        Err(refusal) if refusal.reason == DropReason::PolicyEgress => {
            Step::Ended(End::DeniedByEgress)
        }
        Err(refusal) if refusal.reason == DropReason::PolicyIngress => {
            Step::Ended(End::DeniedByIngress)
        }
        other => panic!("{packet:?}: {other:?}"),
    }
}

fn protocol_of(packet: &Packet) -> (Protocol, u16) {
    match packet.transport {
        Transport::Tcp(l4_port) => (Protocol::TCP, l4_port),
        Transport::Udp(l4_port) => (Protocol::UDP, l4_port),
        Transport::Sctp(l4_port) => (Protocol::SCTP, l4_port),
        Transport::Icmp if packet.from.is_ipv4() => (Protocol::ICMP, 0),
        Transport::Icmp => (Protocol::ICMPV6, 0),
    }
}

/// Ports and next hops of one node, while they are put together.
struct Wiring {
    ports: Vec<Option<Port>>,
    forwarding: Forwarding,
    pods: BTreeMap<IpAddr, PortId>,
}

impl Wiring {
    fn new(own: &[IpAddr]) -> Self {
        let mut wiring =
            Self { ports: Vec::new(), forwarding: Forwarding::default(), pods: BTreeMap::new() };
        let host = wiring.add(PortKind::Host, own);
        let out = wiring.add(PortKind::Uplink, &[]);
        wiring.forwarding.host = Some(host);
        wiring.forwarding.node_addresses = own.iter().copied().collect();
        let mut routes = PrefixTable::default();
        for any in ["0.0.0.0", "::"] {
            let any = any.parse().expect("an address");
            routes.insert(Prefix::new(any, 0).expect("a range"), Route::Via(out));
        }
        wiring.forwarding.routes = routes;
        wiring
    }

    fn add(&mut self, kind: PortKind, addresses: &[IpAddr]) -> NextHopId {
        let port = PortId(u16::try_from(self.ports.len()).expect("few ports"));
        let hop = NextHopId(port.0);
        self.ports.push(Some(Port {
            name: format!("port{}", port.0).into(),
            kind,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            checksums: Checksums::Complete,
            addresses: addresses.into(),
        }));
        self.forwarding.next_hops.push(NextHop {
            port,
            to_host: kind == PortKind::Host,
            source: MacAddr([2, 0, 0, 0, 0, 1]),
            destination: Some(MacAddr([2, 0, 0, 0, 0, 2])),
            mtu: 1500,
            neighbour: IpAddr::from([0, 0, 0, 0]),
        });
        hop
    }

    fn plug(&mut self, addresses: &[IpAddr]) {
        let hop = self.add(PortKind::Pod, addresses);
        for address in addresses {
            self.forwarding.endpoints.insert(*address, hop);
            self.pods.insert(*address, PortId(hop.0));
        }
    }

    /// Nothing is masqueraded: the next node must see who speaks.
    fn tables(self) -> Tables {
        let mut non_masquerade = PrefixTable::default();
        for any in ["0.0.0.0", "::"] {
            let any = any.parse().expect("an address");
            non_masquerade.insert(Prefix::new(any, 0).expect("a range"), ());
        }
        Tables {
            generation: 1,
            ports: self.ports.into(),
            forwarding: Arc::new(self.forwarding),
            source_nat: Arc::new(SourceNat { non_masquerade, ..SourceNat::default() }),
            ..Tables::default()
        }
    }
}

/// Whether some pod that policy applies to is at an end of `packet`.
pub fn concerns_a_pod(objects: &Objects, packet: &Packet) -> bool {
    [packet.from, packet.to].iter().any(|end| matches!(objects.owner(*end), Owner::Pod(_)))
}
