//! The stage: a node, an outside client, four pods of two namespaces, their links and servers.
//!
//! ```text
//! client 192.0.2.2 ---- uplink 192.0.2.1 node
//!        2001:db8::2           2001:db8::1 |-- web-1     shop/web-1       .11
//!                                          |-- web-2     shop/web-2       .12
//!                  10.244.0.0/24           |-- buyer     market/buyer     .21
//!                  fd00:10:244::/64        `-- stranger  market/stranger  .22
//! ```

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::lab::link::{self, End};
use crate::lab::{Agent, LabError, Laboratory, Namespace};

/// Receive and transmit queues of every link: one per worker.
const QUEUES: u16 = 2;

/// Largest packet of every link, in bytes.
const MTU: u16 = 1500;

/// How long a server may take to listen.
pub const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Both families, in the order of every pair of addresses here.
pub const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// The node's own addresses.
pub const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// The outside client's addresses.
pub const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// The service's load balancer addresses.
pub const BALANCER: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];
/// The service's cluster addresses.
pub const CLUSTER_IP: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];
/// Where the flood's segments claim to come from.
pub const FLOOD_SOURCES: &str = "100.64.0.0/16";

/// L4 ports of the service's HTTP: service port, node port, target port.
pub const HTTP: [u16; 3] = [80, 30080, 8080];
/// L4 port of the service's UDP echo.
pub const ECHO: u16 = 53;
/// L4 port of the pods' UDP echo.
const ECHO_TARGET: u16 = 5353;

/// A pod of the demo.
#[derive(Debug, Clone, Copy)]
pub struct PodPlan {
    /// Kubernetes namespace.
    pub kubernetes_namespace: &'static str,
    /// Name of the pod, of its network namespace and of the node's end of its link.
    pub name: &'static str,
    /// Its addresses.
    pub addresses: [&'static str; 2],
    /// Whether it serves HTTP and echo.
    pub serves: bool,
}

const fn pod(
    kubernetes_namespace: &'static str,
    name: &'static str,
    addresses: [&'static str; 2],
    serves: bool,
) -> PodPlan {
    PodPlan { kubernetes_namespace, name, addresses, serves }
}

/// The pods, as `deploy/demo/pods.yaml` has them.
pub const PODS: [PodPlan; 4] = [
    pod("shop", "web-1", ["10.244.0.11", "fd00:10:244::11"], true),
    pod("shop", "web-2", ["10.244.0.12", "fd00:10:244::12"], true),
    pod("market", "buyer", ["10.244.0.21", "fd00:10:244::21"], false),
    pod("market", "stranger", ["10.244.0.22", "fd00:10:244::22"], false),
];

/// The first of the pods that serve.
pub const WEB_1: PodPlan = PODS[0];
/// A pod that may ask the service.
pub const BUYER: PodPlan = PODS[2];
/// A pod that may not.
pub const STRANGER: PodPlan = PODS[3];

/// A running server and its pod's name (`client` for the outside's).
#[derive(Debug)]
pub struct Server {
    /// Who serves.
    pub name: &'static str,
    /// What serves.
    pub agent: Agent,
}

/// Everything the demo made, in the order in which it goes away.
#[derive(Debug)]
pub struct Scene {
    /// Servers in the pods and outside.
    pub servers: Vec<Server>,
    /// Outside.
    pub client: Namespace,
    /// As [`PODS`].
    pub pods: [Namespace; 4],
    /// Where the node process runs.
    pub node: Namespace,
    /// Files and names.
    pub laboratory: Laboratory,
}

impl Scene {
    /// Builds it all; nothing forwards yet.
    ///
    /// # Errors
    /// Whatever the laboratory lacks: root, a tool, a kernel feature.
    pub fn build(laboratory: Laboratory) -> Result<Self, LabError> {
        let node = laboratory.namespace("node")?;
        node.set(&[
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/default/forwarding", "0"),
        ])?;
        let client = build_client(&laboratory, &node, "client")?;
        let [a, b, c, d] = PODS.map(|plan| build_pod(&laboratory, &node, &plan));
        let mut scene =
            Self { servers: Vec::new(), client, pods: [a?, b?, c?, d?], node, laboratory };
        scene.serve()?;
        Ok(scene)
    }

    fn serve(&mut self) -> Result<(), LabError> {
        let hosts = self.pods.iter().zip(PODS).filter(|(_, plan)| plan.serves);
        for (namespace, plan) in hosts {
            self.servers.push(start_server(namespace, plan.name)?);
        }
        self.servers.push(start_server(&self.client, "client")?);
        for server in &self.servers {
            server.agent.wait_ready(SERVER_TIMEOUT)?;
        }
        Ok(())
    }

    /// The namespace of a pod.
    #[must_use]
    pub fn pod(&self, plan: PodPlan) -> &Namespace {
        let place = PODS.iter().position(|other| other.name == plan.name).unwrap_or(0);
        &self.pods[place]
    }

    /// Leaves everything behind, with servers that nobody needs to watch.
    ///
    /// # Errors
    /// A server cannot be replaced; then everything goes away as usual.
    pub fn keep(mut self) -> Result<(), LabError> {
        self.servers.clear();
        let hosts = self.pods.iter().zip(PODS).filter(|(_, plan)| plan.serves);
        let hosts = hosts.map(|(namespace, plan)| (namespace, plan.name));
        let program = self.laboratory.program().to_string_lossy().into_owned();
        let mut processes = Vec::new();
        for (namespace, name) in hosts.chain([(&self.client, "client")]) {
            let arguments = server_arguments(name);
            let mut words = vec!["lab-agent", "--detached"];
            words.extend(arguments.iter().map(String::as_str));
            processes.push(namespace.spawn("kept-server", &program, &words)?);
        }
        processes.iter_mut().for_each(crate::lab::Process::keep);
        self.pods.iter_mut().for_each(Namespace::keep);
        self.client.keep();
        self.node.keep();
        self.laboratory.keep();
        Ok(())
    }
}

/// Builds the outside: a namespace of that name, and its link to a node or router.
///
/// # Errors
/// A name that is taken, or what the laboratory lacks.
pub fn build_client(
    laboratory: &Laboratory,
    node: &Namespace,
    name: &str,
) -> Result<Namespace, LabError> {
    let client = laboratory.namespace(name)?;
    let outside = End { namespace: &client, interface: "eth0" };
    let uplink = End { namespace: node, interface: "uplink" };
    link::pair(outside, uplink, QUEUES, MTU)?;
    for (end, [v4, v6]) in [(outside, CLIENT), (uplink, NODE)] {
        link::address(end, &format!("{v4}/24"))?;
        link::address(end, &format!("{v6}/64"))?;
    }
    // The client stands for a machine behind a wire, whose card finishes every checksum.
    client.features("eth0", "tx off")?;
    for (prefix, gateway) in [
        ("10.244.0.0/24", NODE[0]),
        ("203.0.113.0/24", NODE[0]),
        ("fd00:10:244::/64", NODE[1]),
        ("2001:db8:113::/64", NODE[1]),
    ] {
        client.ip(&format!("route add {prefix} via {gateway}"))?;
    }
    for gateway in CLIENT {
        node.ip(&format!("route add default via {gateway}"))?;
    }
    Ok(client)
}

/// Builds a pod with its link to a node or router.
///
/// # Errors
/// As [`build_client`].
pub fn build_pod(
    laboratory: &Laboratory,
    node: &Namespace,
    plan: &PodPlan,
) -> Result<Namespace, LabError> {
    let namespace = laboratory.namespace(plan.name)?;
    let inner = End { namespace: &namespace, interface: "eth0" };
    let outer = End { namespace: node, interface: plan.name };
    link::pair(inner, outer, QUEUES, MTU)?;
    link::routed_pod(inner, outer, &plan.addresses.map(address))?;
    Ok(namespace)
}

/// Starts a server, which is not ready yet.
///
/// # Errors
/// It cannot be started.
pub fn start_server(namespace: &Namespace, name: &'static str) -> Result<Server, LabError> {
    let arguments = server_arguments(name);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(Server { name, agent: namespace.agent(&words)? })
}

fn server_arguments(name: &str) -> [String; 5] {
    [
        "serve".into(),
        "--shared".into(),
        format!("--http=[::]:{}", HTTP[2]),
        format!("--udp=[::]:{ECHO_TARGET}"),
        format!("--name={name}"),
    ]
}

/// An address of this file's constants.
#[must_use]
pub fn address(text: &str) -> IpAddr {
    // The unspecified address reaches nothing; a test below reads every constant.
    text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

/// `--to=ADDRESS:PORT` for an agent.
#[must_use]
pub fn to(host: &str, l4_port: u16) -> String {
    format!("--to={}", SocketAddr::new(address(host), l4_port))
}

#[cfg(test)]
mod tests {
    use super::{BALANCER, CLIENT, CLUSTER_IP, NODE, PODS, address, to};

    #[test]
    fn every_pair_of_addresses_is_one_of_each_family() {
        let pairs = PODS.map(|plan| plan.addresses).into_iter();
        for [v4, v6] in pairs.chain([NODE, CLIENT, BALANCER, CLUSTER_IP]) {
            assert!(address(v4).is_ipv4() && !address(v4).is_unspecified(), "{v4}");
            assert!(address(v6).is_ipv6(), "{v6}");
        }
    }

    #[test]
    fn an_ipv6_address_is_bracketed_for_agents() {
        assert_eq!(to("2001:db8::1", 80), "--to=[2001:db8::1]:80");
    }

    #[test]
    fn pods_and_addresses_are_those_of_the_manifests() {
        let manifests = crate::demo::files::MANIFESTS.map(|(_, text)| text).concat();
        for plan in PODS {
            assert!(manifests.contains(&format!("name: {}\n", plan.name)), "{}", plan.name);
            assert!(plan.addresses.iter().all(|own| manifests.contains(own)), "{}", plan.name);
        }
        for own in NODE.iter().chain(&BALANCER).chain(&CLUSTER_IP) {
            assert!(manifests.contains(own), "{own}");
        }
    }
}
