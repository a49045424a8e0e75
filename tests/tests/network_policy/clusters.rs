//! Random clusters of few names, labels, ports and addresses, so that whatever a policy can say is met
//! by something. Everything that the API server admits can come up; what it refuses does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::json;
use xskiff_tests::policy_model::{Objects, Packet, Transport, node_addresses, pod_addresses};

use crate::changes::{Change, change};
use crate::nodes::concerns_a_pod;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 2] = ["k", "l"];
const VALUES: [&str; 2] = ["x", "y"];
const PORT_NAMES: [&str; 2] = ["http", "dns"];
/// Pods have the addresses below, in 10.0.0.0 and in fd00::.
const POD_HOSTS: u8 = 24;
/// Nodes "one" and "two" have these.
const NODE_HOSTS: [u8; 2] = [24, 25];
/// Nobody has these.
const OUTSIDE_HOSTS: [u8; 2] = [28, 40];
/// What packets are sent by and to; rules speak of ports 1 to 4.
pub const TRANSPORTS: [Transport; 10] = [
    Transport::Tcp(1),
    Transport::Tcp(2),
    Transport::Tcp(3),
    Transport::Tcp(4),
    Transport::Tcp(5),
    Transport::Udp(1),
    Transport::Udp(3),
    Transport::Udp(4),
    Transport::Sctp(2),
    Transport::Icmp,
];

/// A cluster, and what happens to it.
#[derive(Clone)]
pub struct Scenario {
    pub objects: Objects,
    pub changes: Vec<Change>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}changes: {:#?}", self.objects, self.changes)
    }
}

pub fn scenario() -> impl Strategy<Value = Scenario> {
    (objects(), vec(change(), 0..3)).prop_map(|(objects, changes)| Scenario { objects, changes })
}

/// Every pair of addresses that are or might be somebody's, in every way to speak.
pub fn packets(objects: &Objects) -> Vec<Packet> {
    let pods = objects.pods.iter().flat_map(pod_addresses);
    let nodes = objects.nodes.iter().flat_map(node_addresses);
    let outside = OUTSIDE_HOSTS.into_iter().flat_map(|host| [at(true, host), at(false, host)]);
    let addresses: BTreeSet<IpAddr> = pods.chain(nodes).chain(outside).collect();
    let mut packets = Vec::new();
    for from in &addresses {
        for to in addresses.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            let packet = Packet { from: *from, to: *to, transport: Transport::Icmp };
            if concerns_a_pod(objects, &packet) {
                packets.extend(TRANSPORTS.map(|transport| Packet { transport, ..packet }));
            }
        }
    }
    packets
}

pub fn at(is_ipv4: bool, host: u8) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::new(10, 0, 0, host).into()
    } else {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
    }
}

fn one_of(list: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(list).prop_map(str::to_owned)
}

pub type Labels = BTreeMap<String, String>;

pub fn labels() -> impl Strategy<Value = Labels> {
    btree_map(one_of(&KEYS), one_of(&VALUES), 0..3)
}

fn objects() -> impl Strategy<Value = Objects> {
    let namespaces = vec(option::weighted(0.9, labels()), NAMESPACES.len());
    let policies = vec(policy_spec(), 0..6);
    (namespaces, vec(pod_draft(), 0..8), policies).prop_map(|(labels, drafts, specs)| {
        let namespaces = NAMESPACES.iter().zip(labels).filter_map(|(name, labels)| {
            let metadata = ObjectMeta { labels: Some(labels?), ..named(name) };
            Some(core::Namespace { metadata, ..core::Namespace::default() })
        });
        let policies = specs
            .into_iter()
            .enumerate()
            .map(|(index, (namespace, spec))| policy(&format!("policy{index}"), &namespace, spec));
        Objects {
            namespaces: namespaces.collect(),
            nodes: ["one", "two"]
                .iter()
                .zip(NODE_HOSTS)
                .map(|(name, host)| node(name, host))
                .collect(),
            pods: pods(drafts),
            policies: policies.collect(),
            ..Objects::default()
        }
    })
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn node(name: &str, host: u8) -> core::Node {
    let address = |type_: &str, address: String| core::NodeAddress { type_: type_.into(), address };
    core::Node {
        metadata: named(name),
        status: Some(core::NodeStatus {
            addresses: Some(vec![
                address("Hostname", name.into()),
                address("InternalIP", at(true, host).to_string()),
                address("ExternalIP", at(false, host).to_string()),
            ]),
            ..core::NodeStatus::default()
        }),
        ..core::Node::default()
    }
}

/// How a pod fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Runs,
    IsPending,
    HasSucceeded,
    HasFailed,
    /// Its deletion was asked for, and it still runs.
    IsTerminating,
    /// It is on its node's network.
    IsOnHost,
    /// It has no address yet.
    HasNoAddress,
}

/// A pod before its name and its address are given out.
#[derive(Debug, Clone)]
pub struct PodDraft {
    pub namespace: String,
    pub labels: Labels,
    pub ports: Vec<core::ContainerPort>,
    pub fate: Fate,
    pub is_on_one: bool,
    pub host: u8,
    /// IPv4, IPv6.
    pub families: [bool; 2],
}

pub fn pod_draft() -> impl Strategy<Value = PodDraft> {
    let port = (option::weighted(0.9, one_of(&PORT_NAMES)), protocol(), 1..5i32).prop_map(
        |(name, protocol, container_port)| core::ContainerPort {
            name,
            protocol,
            container_port,
            ..core::ContainerPort::default()
        },
    );
    let fate = prop_oneof![
        12 => Just(Fate::Runs),
        1 => Just(Fate::IsPending),
        1 => Just(Fate::HasSucceeded),
        1 => Just(Fate::HasFailed),
        2 => Just(Fate::IsTerminating),
        1 => Just(Fate::IsOnHost),
        1 => Just(Fate::HasNoAddress),
    ];
    let families = prop_oneof![
        3 => Just([true, true]),
        1 => Just([true, false]),
        1 => Just([false, true]),
    ];
    let place = (prop::bool::weighted(0.6), 0..POD_HOSTS, families);
    (one_of(&NAMESPACES), labels(), vec(port, 0..3), fate, place).prop_map(
        |(namespace, labels, ports, fate, (is_on_one, host, families))| PodDraft {
            namespace,
            labels,
            ports,
            fate,
            is_on_one,
            host,
            families,
        },
    )
}

/// Leaves out whoever would have an address that another has for good.
fn pods(drafts: Vec<PodDraft>) -> Vec<core::Pod> {
    let mut pods: Vec<core::Pod> = Vec::new();
    for (index, draft) in drafts.into_iter().enumerate() {
        let pod = pod(&format!("pod{index}"), draft);
        if !claims_anothers(&pods, &pod) {
            pods.push(pod);
        }
    }
    pods
}

/// Whether `pod` and one of `pods` would have one address on equal terms: both live, or both ending.
pub fn claims_anothers(pods: &[core::Pod], pod: &core::Pod) -> bool {
    let is_ending = |pod: &core::Pod| pod.metadata.deletion_timestamp.is_some();
    let is_over = |pod: &core::Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let is_on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        is_on_host || matches!(phase, Some("Succeeded" | "Failed"))
    };
    !is_over(pod)
        && pods.iter().filter(|other| !is_over(other)).any(|other| {
            let theirs = pod_addresses(other);
            is_ending(pod) == is_ending(other)
                && pod_addresses(pod).iter().any(|own| theirs.contains(own))
        })
}

pub fn pod(name: &str, draft: PodDraft) -> core::Pod {
    let is_on_host = draft.fate == Fate::IsOnHost;
    let host = if is_on_host { NODE_HOSTS[usize::from(!draft.is_on_one)] } else { draft.host };
    let addresses: Vec<String> = [true, false]
        .into_iter()
        .zip(draft.families)
        .filter(|(_, has)| *has && draft.fate != Fate::HasNoAddress)
        .map(|(is_ipv4, _)| at(is_ipv4, host).to_string())
        .collect();
    let phase = match draft.fate {
        Fate::IsPending | Fate::HasNoAddress => "Pending",
        Fate::HasSucceeded => "Succeeded",
        Fate::HasFailed => "Failed",
        Fate::Runs | Fate::IsTerminating | Fate::IsOnHost => "Running",
    };
    // Each port in a container of its own, the last in a sidecar, so that one name may come twice.
    let mut containers: Vec<core::Container> = draft
        .ports
        .into_iter()
        .enumerate()
        .map(|(index, port)| core::Container {
            name: format!("c{index}"),
            ports: Some(vec![port]),
            ..core::Container::default()
        })
        .collect();
    let sidecar = if containers.len() > 1 { containers.pop() } else { None };
    let sidecar = sidecar.map(|container| {
        vec![core::Container { restart_policy: Some("Always".into()), ..container }]
    });
    let mut pod = core::Pod {
        metadata: ObjectMeta {
            namespace: Some(draft.namespace),
            labels: Some(draft.labels),
            ..named(name)
        },
        spec: Some(core::PodSpec {
            node_name: Some(if draft.is_on_one { "one" } else { "two" }.into()),
            host_network: is_on_host.then_some(true),
            containers,
            init_containers: sidecar,
            ..core::PodSpec::default()
        }),
        status: Some(core::PodStatus {
            phase: Some(phase.into()),
            pod_ip: addresses.first().cloned(),
            pod_ips: Some(addresses.into_iter().map(|ip| core::PodIP { ip }).collect()),
            ..core::PodStatus::default()
        }),
    };
    if draft.fate == Fate::IsTerminating {
        terminate(&mut pod);
    }
    pod
}

/// Asks for the pod's deletion.
pub fn terminate(pod: &mut core::Pod) {
    let when = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    pod.metadata.deletion_timestamp = Some(when);
}

fn protocol() -> impl Strategy<Value = Option<String>> {
    option::weighted(0.7, prop::sample::select(&["TCP", "UDP", "SCTP"][..]))
        .prop_map(|protocol| protocol.map(str::to_owned))
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let operator = prop::sample::select(&["In", "NotIn", "Exists", "DoesNotExist"][..]);
    let expression = (one_of(&KEYS), operator, btree_set(one_of(&VALUES), 1..3)).prop_map(
        |(key, operator, values)| LabelSelectorRequirement {
            key,
            operator: operator.into(),
            values: operator.ends_with("In").then(|| values.into_iter().collect()),
        },
    );
    (option::of(btree_map(one_of(&KEYS), one_of(&VALUES), 0..2)), option::of(vec(expression, 0..2)))
        .prop_map(|(match_labels, match_expressions)| LabelSelector {
            match_labels,
            match_expressions,
        })
}

/// A range that is not always written by its first address, with parts of it left out.
fn block() -> impl Strategy<Value = api::IPBlock> {
    let hosts = 0..=POD_HOSTS + 8;
    (any::<bool>(), hosts, 0..9u8, option::of(vec((0..32u8, 1..9u8), 0..3))).prop_map(
        |(is_ipv4, host, host_bits, holes)| {
            let bits = if is_ipv4 { 32 } else { 128 };
            let length = bits - host_bits;
            let hole = |(offset, longer): (u8, u8)| {
                let mask = u8::MAX.checked_shl(host_bits.into()).unwrap_or(0);
                let within = (host & mask) | (offset & !mask);
                let longer = (length + longer).min(bits);
                (longer > length).then(|| format!("{}/{longer}", at(is_ipv4, within)))
            };
            api::IPBlock {
                cidr: format!("{}/{length}", at(is_ipv4, host)),
                except: holes.map(|holes| holes.into_iter().filter_map(hole).collect()),
            }
        },
    )
}

fn peer() -> impl Strategy<Value = api::NetworkPolicyPeer> {
    let by_labels =
        (option::of(selector()), option::of(selector())).prop_map(|(namespaces, pods)| {
            api::NetworkPolicyPeer {
                // A peer says something.
                pod_selector: match (&namespaces, pods) {
                    (None, None) => Some(LabelSelector::default()),
                    (_, pods) => pods,
                },
                namespace_selector: namespaces,
                ip_block: None,
            }
        });
    let by_address = block().prop_map(|block| api::NetworkPolicyPeer {
        ip_block: Some(block),
        ..api::NetworkPolicyPeer::default()
    });
    prop_oneof![2 => by_labels, 1 => by_address]
}

fn port() -> impl Strategy<Value = api::NetworkPolicyPort> {
    let number = prop_oneof![
        1 => Just((None, None)),
        3 => (1..5i32, option::of(0..3i32)).prop_map(|(first, more)| {
            (Some(IntOrString::Int(first)), more.map(|more| first + more))
        }),
        2 => one_of(&PORT_NAMES).prop_map(|name| (Some(IntOrString::String(name)), None)),
    ];
    (protocol(), number).prop_map(|(protocol, (port, end_port))| api::NetworkPolicyPort {
        protocol,
        port,
        end_port,
    })
}

type PeersAndPorts = (Option<Vec<api::NetworkPolicyPeer>>, Option<Vec<api::NetworkPolicyPort>>);

fn rules() -> impl Strategy<Value = Option<Vec<PeersAndPorts>>> {
    option::of(vec((option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..3))), 0..3))
}

/// A policy's namespace and what it says.
pub fn policy_spec() -> impl Strategy<Value = (String, api::NetworkPolicySpec)> {
    let types = prop_oneof![
        3 => Just(None),
        1 => Just(Some(vec![])),
        2 => Just(Some(vec!["Ingress"])),
        2 => Just(Some(vec!["Egress"])),
        2 => Just(Some(vec!["Ingress", "Egress"])),
    ];
    let subject = option::weighted(0.9, selector());
    (one_of(&NAMESPACES), subject, types, rules(), rules()).prop_map(
        |(namespace, pod_selector, types, ingress, egress)| {
            let ingress = ingress.map(|rules| {
                let rules = rules.into_iter();
                rules.map(|(from, ports)| api::NetworkPolicyIngressRule { from, ports }).collect()
            });
            let egress = egress.map(|rules| {
                let rules = rules.into_iter();
                rules.map(|(to, ports)| api::NetworkPolicyEgressRule { to, ports }).collect()
            });
            let types = types.map(|types| types.into_iter().map(str::to_owned).collect());
            let spec =
                api::NetworkPolicySpec { pod_selector, policy_types: types, ingress, egress };
            (namespace, spec)
        },
    )
}

pub fn policy(name: &str, namespace: &str, spec: api::NetworkPolicySpec) -> api::NetworkPolicy {
    api::NetworkPolicy {
        metadata: ObjectMeta { namespace: Some(namespace.to_owned()), ..named(name) },
        spec: Some(spec),
    }
}
