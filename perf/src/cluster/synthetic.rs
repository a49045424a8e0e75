//! A cluster out of nothing: objects as a node keeps them, from a seed, in the proportions of large
//! installations.

use std::net::{IpAddr, Ipv4Addr};

use control::compile::NodeView;
use control::model::{
    Endpoint, EndpointSlice, ForwardingMode, L4Ports, LabelSelector, Labels, NamedPort, Namespace,
    NetworkPolicy, Node, Object, ObjectName, Operator, Peer, Pod, PodPhase, PolicyMode, PolicyRule,
    PortMatch, Requirement, Service, ServicePort, SlicePort,
};
use control::store::Change;
use dataplane::address::Protocol;
use dataplane::lb::{Choice, TrafficPolicy};
use dataplane::lpm::Prefix;

use crate::spread::Random;

/// Pods that one policy's selector of the whole cluster picks out: one in so many.
pub const WAVES: usize = 15;
/// Namespaces to each kind of team.
const TEAMS: usize = 40;
/// Applications of a namespace.
const APPS: usize = 12;
const POLICIES_PER_NAMESPACE: usize = 4;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Pods, as many on each node.
    pub pods: usize,
    /// NetworkPolicies, four for each namespace.
    pub policies: usize,
    /// Services, each with a slice.
    pub services: usize,
}

impl Size {
    fn namespaces(self) -> usize {
        (self.policies / POLICIES_PER_NAMESPACE).max(1)
    }

    /// Every object, as it is heard of first.
    pub fn objects(self, random: &mut Random) -> Vec<Change> {
        let mut objects: Vec<Object> = Vec::new();
        objects.extend((0..self.namespaces()).map(namespace));
        objects.extend((0..self.nodes).map(node));
        objects.extend((0..self.policies).map(|number| Object::from(policy(number))));
        objects.extend((0..self.pods).map(|number| Object::from(self.pod(number, random))));
        for number in 0..self.services {
            objects.extend(self.service(number, random));
        }
        objects.into_iter().map(Change::Set).collect()
    }

    /// Pod by number; what is random of it differs from call to call.
    pub fn pod(self, number: usize, random: &mut Random) -> Pod {
        let per_node = (self.pods / self.nodes).max(1);
        let node = number / per_node % self.nodes;
        let place = number % self.namespaces();
        let labels = [
            ("app", format!("app-{}", number / self.namespaces() % APPS)),
            ("app.kubernetes.io/instance", format!("app-{}-{number:06}", number % 7)),
            ("pod-template-hash", format!("{:010x}", random.next() & 0xff_ffff_ffff)),
            ("tier", ["web", "logic", "store"][number % 3].to_owned()),
            ("wave", format!("w{}", number % WAVES)),
        ];
        Pod {
            name: ObjectName::new(
                namespace_name(place),
                format!("app-{:x}-{number:06}", number % 7),
            ),
            uid: uid(random).as_str().into(),
            labels: Labels::from(labels),
            addresses: [pod_address(node, number % per_node)].into(),
            node: Some(node_name(node).into()),
            named_ports: [NamedPort {
                name: "http".into(),
                protocol: Protocol::TCP,
                l4_port: 8080,
            }]
            .into(),
            host_ports: Box::default(),
            host_network: false,
            phase: PodPhase::Running,
            terminating: false,
            bandwidth: None,
            weight: Some(100),
        }
    }

    /// Service by number and its slice, whose endpoints differ from call to call.
    pub fn service(self, number: usize, random: &mut Random) -> [Object; 2] {
        let namespace = namespace_name(number % self.namespaces());
        let name = ObjectName::new(namespace, format!("service-{number}"));
        let per_node = (self.pods / self.nodes).max(1);
        let endpoints = (0..self.pods / self.services.max(1)).map(|_| {
            let pod = random.below(self.pods);
            let node = pod / per_node % self.nodes;
            Endpoint {
                address: pod_address(node, pod % per_node),
                ready: true,
                serving: true,
                terminating: false,
                node: Some(node_name(node).into()),
                hints: None,
                target: None,
            }
        });
        let slice = EndpointSlice {
            name: ObjectName::new(name.namespace.clone(), format!("{}-0", name.name)),
            service: Some(name.name.to_string()),
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::TCP,
                l4_port: Some(8080),
            }],
            endpoints: endpoints.collect(),
            left_out: None,
        };
        let address = Ipv4Addr::from_bits(0x0ac0_0000 + number as u32 + 1);
        let service = Service {
            name,
            cluster_ips: vec![address.into()],
            headless: false,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::TCP,
                l4_port: 80,
                node_port: None,
            }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            source_ranges: Vec::new(),
            health_check_node_port: None,
            affinity_seconds: None,
            choice: Some(Choice::Maglev),
            forwarding: ForwardingMode::default(),
            stateless: Some(false),
        };
        [Object::from(service), Object::EndpointSlice(slice)]
    }

    /// A pod of a Job: no other has its labels.
    pub fn unique_pod(self, number: usize, random: &mut Random) -> Pod {
        let job = format!("nightly-report-{number:06}");
        let labels = [
            ("app", format!("app-{}", number % APPS)),
            ("batch.kubernetes.io/controller-uid", uid(random)),
            ("batch.kubernetes.io/job-name", job.clone()),
            ("controller-uid", uid(random)),
            ("job-name", job.clone()),
        ];
        let name = ObjectName::new(namespace_name(number % self.namespaces()), job);
        Pod { name, labels: Labels::from(labels), ..self.pod(number, random) }
    }
}

/// The node that compiles: the first of the cluster, with its pods plugged in.
pub fn view(size: Size, random: &mut Random) -> NodeView {
    let own = (0..size.pods / size.nodes).map(|number| size.pod(number, random));
    NodeView {
        name: node_name(0),
        addresses: [node_address(0)].into(),
        endpoints: own.map(|pod| (pod.name, pod.addresses.iter().copied().collect())).collect(),
        ..NodeView::default()
    }
}

/// A policy that admits one pod of [`WAVES`] of the whole cluster.
pub fn policy_of_a_wave() -> NetworkPolicy {
    NetworkPolicy {
        name: ObjectName::new(namespace_name(0), "wave"),
        subject: LabelSelector::default(),
        ingress: Some(vec![rule(anywhere("wave", "w3"), &[])]),
        egress: None,
        mode: PolicyMode::Enforce,
    }
}

fn namespace_name(number: usize) -> String {
    format!("namespace-{number}")
}

fn node_name(number: usize) -> String {
    format!("node-{number}.example.net")
}

fn node_address(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(0xac10_0000 + number as u32 + 1).into()
}

fn pod_address(node: usize, place: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + ((node as u32) << 8) + place as u32 + 1).into()
}

fn uid(random: &mut Random) -> String {
    let [high, low] = [random.next(), random.next()];
    let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
    format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
}

fn namespace(number: usize) -> Object {
    let name = namespace_name(number);
    let team = format!("team-{}", number % TEAMS);
    let labels = Labels::from([("kubernetes.io/metadata.name", name.clone()), ("team", team)]);
    Object::Namespace(Namespace { name, labels, mode: PolicyMode::Enforce })
}

fn node(number: usize) -> Object {
    let range = Prefix::new(pod_address(number, 0), 24);
    Object::Node(Node {
        name: node_name(number),
        addresses: vec![node_address(number)],
        pod_cidrs: range.into_iter().collect(),
        mode: PolicyMode::Enforce,
        zone: None,
        is_leaving: false,
    })
}

fn label(key: &str, value: &str) -> LabelSelector {
    let operator = Operator::In([value.to_owned()].into());
    [Requirement { key: key.into(), operator }].into_iter().collect()
}

fn anywhere(key: &str, value: &str) -> Peer {
    Peer::Pods { namespaces: Some(LabelSelector::default()), pods: label(key, value) }
}

fn rule(peer: Peer, ports: &[L4Ports]) -> PolicyRule {
    let port =
        |l4_ports: &L4Ports| PortMatch { protocol: Protocol::TCP, l4_ports: l4_ports.clone() };
    PolicyRule { peers: vec![peer], ports: ports.iter().map(port).collect() }
}

/// Of each namespace: closed by default; an application for another of the namespace; for the
/// front of another team; and some ranges outside for one application.
fn policy(number: usize) -> NetworkPolicy {
    let namespace = number / POLICIES_PER_NAMESPACE;
    let name = ObjectName::new(namespace_name(namespace), format!("policy-{number}"));
    let app = |turn: usize| label("app", &format!("app-{}", (namespace + turn) % APPS));
    let (subject, ingress, egress) = match number % POLICIES_PER_NAMESPACE {
        0 => (LabelSelector::default(), Some(Vec::new()), None),
        1 => {
            let peer = Peer::Pods { namespaces: None, pods: app(1) };
            (app(0), Some(vec![rule(peer, &[L4Ports::Range(8080..=8080)])]), None)
        }
        2 => {
            let team = label("team", &format!("team-{}", (namespace + 1) % TEAMS));
            let peer = Peer::Pods { namespaces: Some(team), pods: label("tier", "web") };
            (app(2), Some(vec![rule(peer, &[L4Ports::Named("http".into())])]), None)
        }
        _ => {
            let block = Ipv4Addr::from_bits(0xcb00_0000 + ((namespace as u32 % 250) << 8)).into();
            let cidr = Prefix::new(block, 24).unwrap_or(Prefix::host(block));
            let rules = vec![
                rule(Peer::Block { cidr, except: Vec::new() }, &[L4Ports::Range(443..=443)]),
                rule(Peer::Pods { namespaces: None, pods: app(0) }, &[]),
            ];
            (app(1), None, Some(rules))
        }
    };
    NetworkPolicy { name, subject, ingress, egress, mode: PolicyMode::Enforce }
}
