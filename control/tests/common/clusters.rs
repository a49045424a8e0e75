//! Random clusters and policies, in few namespaces, labels, addresses and ports, so that they meet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use control::compile::NodeView;
use control::model::{
    L4Ports, LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, Node, ObjectName,
    Operator, Peer, Pod, PodPhase, PolicyMode, PolicyRule, PortMatch, Requirement,
};
use control::store::ClusterState;
use dataplane::address::Protocol;
use dataplane::lpm::Prefix;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::common::{Cluster, Packet};

pub const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 2] = ["k", "l"];
const VALUES: [&str; 2] = ["x", "y"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];

pub fn one_of(list: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(list).prop_map(str::to_owned)
}

pub fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(one_of(&KEYS), one_of(&VALUES), 0..3).prop_map(Labels::from)
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let values = || prop::collection::btree_set(one_of(&VALUES), 1..3);
    let operator = prop_oneof![
        values().prop_map(Operator::In),
        values().prop_map(Operator::NotIn),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ];
    let requirement =
        (one_of(&KEYS), operator).prop_map(|(key, operator)| Requirement { key, operator });
    vec(requirement, 0..3).prop_map(|requirements| requirements.into_iter().collect())
}

pub fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&[Protocol::TCP, Protocol::UDP][..])
}

/// Few addresses, so that blocks, pods and exceptions meet.
pub fn address() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0u16..64).prop_map(|(ipv4, host)| at(ipv4, host))
}

pub fn at(ipv4: bool, host: u16) -> IpAddr {
    if ipv4 {
        Ipv4Addr::from(0x0a00_0000 + u32::from(host)).into()
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host).into()
    }
}

fn block() -> impl Strategy<Value = Peer> {
    (address(), 0u8..9, vec((0u16..64, 1u8..9), 0..3)).prop_map(|(address, host_bits, holes)| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let cidr = Prefix::new(address, bits - host_bits).expect("a length of the family");
        let mut except: Vec<Prefix> = holes
            .into_iter()
            .map(|(host, longer)| {
                let length = (cidr.length() + longer).min(bits);
                Prefix::new(at(address.is_ipv4(), host), length).expect("a length of the family")
            })
            .filter(|hole| hole.length() > cidr.length() && cidr.contains(hole.address()))
            .collect();
        except.sort_unstable();
        except.dedup();
        Peer::Block { cidr, except }
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        2 => (option::of(selector()), selector())
            .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        1 => block(),
    ]
}

fn port() -> impl Strategy<Value = PortMatch> {
    let l4_ports = prop_oneof![
        1 => Just(L4Ports::All),
        2 => (1u16..6, 0u16..3).prop_map(|(first, more)| L4Ports::Range(first..=first + more)),
        2 => one_of(&PORT_NAMES).prop_map(L4Ports::Named),
    ];
    (protocol(), l4_ports).prop_map(|(protocol, l4_ports)| PortMatch { protocol, l4_ports })
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let rule = (vec(peer(), 0..3), vec(port(), 0..3))
        .prop_map(|(peers, ports)| PolicyRule { peers, ports });
    option::of(vec(rule, 0..3))
}

fn policies() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    vec(policy(), 0..6).prop_map(|policies| {
        let numbered = policies.into_iter().enumerate();
        let named = numbered.map(|(index, policy)| {
            let name = ObjectName::new(policy.name.namespace, format!("p{index}"));
            NetworkPolicy { name, ..policy }
        });
        named.collect()
    })
}

/// One in `of` is under audit.
pub fn mode(of: u8) -> impl Strategy<Value = PolicyMode> {
    (0..of).prop_map(|at| if at == 0 { PolicyMode::Audit } else { PolicyMode::Enforce })
}

/// One of few names.
pub fn policy() -> impl Strategy<Value = NetworkPolicy> {
    (one_of(&NAMESPACES), 0u8..4, selector(), rules(), rules(), mode(6)).prop_map(
        |(namespace, number, subject, ingress, egress, mode)| NetworkPolicy {
            name: ObjectName::new(namespace, format!("p{number}")),
            subject,
            ingress,
            egress,
            mode,
        },
    )
}

fn pods() -> impl Strategy<Value = Vec<Pod>> {
    vec((pod(), 0u16..40), 1..8).prop_map(|pods| {
        // One that is ending may have lost its address to another.
        let mut taken = BTreeSet::new();
        let free = pods.into_iter().enumerate();
        let free = free.filter(|(_, (pod, host))| taken.insert((pod.terminating, *host)));
        let placed = free.map(|(index, (pod, host))| Pod {
            name: ObjectName::new(pod.name.namespace, format!("pod{index}")),
            addresses: [at(true, host), at(false, host)].into(),
            ..pod
        });
        placed.collect()
    })
}

/// One of few names, on one of two nodes, without address.
pub fn pod() -> impl Strategy<Value = Pod> {
    let ports = vec((one_of(&PORT_NAMES), protocol(), 1u16..8), 0..3);
    (one_of(&NAMESPACES), 0u8..6, labels(), ports, 0u8..8).prop_map(
        |(namespace, number, labels, ports, fate)| Pod {
            name: ObjectName::new(namespace, format!("pod{number}")),
            uid: control::model::Uid::Absent,
            labels,
            addresses: Box::default(),
            node: Some(if fate == 0 { "two" } else { "one" }.into()),
            named_ports: ports
                .into_iter()
                .map(|(name, protocol, l4_port)| NamedPort { name, protocol, l4_port })
                .collect(),
            host_ports: Box::default(),
            host_network: false,
            phase: if fate == 1 { PodPhase::Succeeded } else { PodPhase::Running },
            terminating: fate == 2,
            bandwidth: None,
            weight: Some(100),
        },
    )
}

pub fn cluster() -> impl Strategy<Value = Cluster> {
    let namespaces = vec((labels(), mode(12)), NAMESPACES.len());
    (namespaces, pods(), policies(), mode(20)).prop_map(|(namespaces, pods, policies, own_mode)| {
        let mut state = ClusterState::default();
        for (name, (labels, mode)) in NAMESPACES.iter().zip(namespaces) {
            let name = (*name).to_owned();
            state.namespaces.insert(name.clone(), Namespace { name, labels, mode });
        }
        let (own, other) = (at(true, 60), at(true, 61));
        // What the other node says of itself is none of this one's business.
        for (name, address, mode) in [("one", own, own_mode), ("two", other, PolicyMode::Audit)] {
            let pod_cidrs = Vec::new();
            let node = Node {
                name: name.into(),
                addresses: vec![address],
                pod_cidrs,
                zone: None,
                is_leaving: false,
                mode,
            };
            state.nodes.insert(name.into(), node);
        }
        state.pods = pods.into_iter().map(|pod| (pod.name.clone(), pod.into())).collect();
        state.network_policies =
            policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let node = NodeView { name: "one".into(), addresses: [own].into(), ..NodeView::default() };
        Cluster { state, node }
    })
}

/// Every pair of addresses of one family that could matter.
pub fn packets(cluster: &Cluster) -> Vec<Packet> {
    let pods = cluster.state.pods.values().flat_map(|pod| pod.addresses.clone());
    let others =
        [50, 55, 60, 61, 63].into_iter().flat_map(|host| [at(true, host), at(false, host)]);
    let addresses: Vec<IpAddr> = pods.chain(others).collect();
    let mut packets = Vec::new();
    for from in &addresses {
        for to in addresses.iter().filter(|to| to.is_ipv4() == from.is_ipv4() && *to != from) {
            for (protocol, l4_port) in [
                (Protocol::TCP, 1),
                (Protocol::TCP, 3),
                (Protocol::TCP, 5),
                (Protocol::UDP, 2),
                (Protocol::UDP, 7),
                (Protocol::ICMP, 0),
            ] {
                packets.push(Packet { from: *from, to: *to, protocol, l4_port });
            }
        }
    }
    packets
}
