//! Namespaces and links: of every subject, one for the node, one for its client and one for its
//! pod.
//!
//! ```text
//! client: eth0 ---- uplink :node: pod ---- eth0 :pod
//! ```
//! Addresses and ways are those of a node whose pods are routed; who forwards is not set up here.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use pinning::CpuId;

use crate::netns::{self, Namespaces, run, shell, within};
use crate::veth::kernel::pin_receiver;

/// Interface of the node toward the client.
pub const UPLINK: &str = "uplink";
/// Interface of the node toward the pod.
pub const POD: &str = "pod";
/// The node's address on the uplink.
pub const NODE_ADDRESS: &str = "192.0.2.1";
/// The pod's address.
pub const POD_ADDRESS: &str = "10.244.0.11";
/// Pods of the node.
pub const POD_NETWORK: &str = "10.244.0.0/24";
/// The service's load balancer address.
pub const BALANCER: &str = "203.0.113.80";
/// The service's L4 port.
pub const SERVICE_PORT: u16 = 53;
/// The pod's L4 port.
pub const POD_PORT: u16 = 5353;

const CLIENT_ADDRESS: &str = "192.0.2.2";
/// The gateway of pods, which no interface carries.
const POD_GATEWAY: &str = "169.254.1.1";
const POD_MAC: &str = "02:00:00:00:02:01";

/// All namespaces of a run; removed when dropped.
pub struct Network(Namespaces);

/// The three namespaces of one subject, by the names that `ip netns` knows.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where the forwarding happens.
    pub node: String,
    /// Where the requests come from.
    pub client: String,
    /// Where they are answered.
    pub pod: String,
}

impl Network {
    /// None yet; removes what killed runs left behind.
    ///
    /// # Errors
    /// Not root.
    pub fn new() -> Result<Self> {
        Namespaces::new("latency").map(Self)
    }

    /// Adds a subject's namespaces with their links.
    ///
    /// # Errors
    /// A missing tool, or a kernel without veth.
    pub fn add(&mut self, subject: &str) -> Result<Place> {
        let mut add = |whose| self.0.add(&format!("{subject}-{whose}"));
        let place = Place { node: add("node")?, client: add("client")?, pod: add("pod")? };
        place.quiet()?;
        place.link()?;
        Ok(place)
    }
}

impl Place {
    /// Clients and pods speak IPv4 only: nothing comes by itself that would wake a node.
    fn quiet(&self) -> Result<()> {
        let silence = "for scope in all default; do \
                       file=/proc/sys/net/ipv6/conf/$scope/disable_ipv6; \
                       [ ! -e $file ] || echo 1 >$file; done; ip link set lo up";
        shell(&self.client, silence)?;
        shell(&self.pod, silence)?;
        shell(&self.node, "ip link set lo up")
    }

    fn link(&self) -> Result<()> {
        let queues = "numrxqueues 1 numtxqueues 1";
        let (client, pod) = (&self.client, &self.pod);
        self.ip(
            &self.node,
            &format!(
                "link add dev {UPLINK} {queues} type veth peer name eth0 netns {client} {queues}\n\
                 link add dev {POD} {queues} type veth peer name eth0 address {POD_MAC} \
                 netns {pod} {queues}\n\
                 address add {NODE_ADDRESS}/24 dev {UPLINK}\n\
                 link set dev {UPLINK} up\nlink set dev {POD} up\n\
                 route add default via {CLIENT_ADDRESS}\n"
            ),
        )?;
        self.ip(
            client,
            &format!(
                "address add {CLIENT_ADDRESS}/24 dev eth0\nlink set dev eth0 up\n\
                 route add {BALANCER}/32 via {NODE_ADDRESS}\n"
            ),
        )?;
        // The client stands for a machine behind a wire, whose card finishes every checksum.
        shell(client, "ethtool -K eth0 tx off").context("`ethtool` is of the package ethtool")?;
        let gateway_mac = self.node_mac()?;
        self.ip(
            pod,
            &format!(
                "address add {POD_ADDRESS}/32 dev eth0\nlink set dev eth0 up\n\
                 neigh replace {POD_GATEWAY} lladdr {gateway_mac} dev eth0 nud permanent\n\
                 route add default via {POD_GATEWAY} dev eth0 onlink\n"
            ),
        )
    }

    /// Link address of the node toward the pod.
    fn node_mac(&self) -> Result<String> {
        let path = format!("/sys/class/net/{POD}/address");
        let output = netns::output("ip", &["netns", "exec", &self.node, "cat", &path])?;
        Ok(output.trim().to_owned())
    }

    /// Lets the node's kernel do the job: routing, and an nftables DNAT.
    ///
    /// # Errors
    /// No nftables, or a kernel without NAT.
    pub fn route_in_kernel(&self) -> Result<()> {
        shell(
            &self.node,
            "echo 1 >/proc/sys/net/ipv4/ip_forward\n\
             for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done",
        )?;
        self.ip(
            &self.node,
            &format!(
                "route add {POD_ADDRESS}/32 dev {POD}\n\
                 neigh replace {POD_ADDRESS} lladdr {POD_MAC} dev {POD} nud permanent\n"
            ),
        )?;
        let rules = format!(
            "table ip perf {{\n\
             chain services {{\n\
             type nat hook prerouting priority dstnat; policy accept;\n\
             ip daddr {BALANCER} udp dport {SERVICE_PORT} dnat to {POD_ADDRESS}:{POD_PORT}\n\
             }}\n\
             }}\n"
        );
        run("ip", &["netns", "exec", &self.node, "nft", "-f", "-"], &rules)
            .context("`nft` is of the package nftables")
    }

    /// Has the node's kernel receive in threads on `core` instead of on the sender's.
    ///
    /// # Errors
    /// A kernel without threaded NAPI (Linux 5.12).
    pub fn receive_on(&self, core: CpuId) -> Result<()> {
        // The threads are found by their interfaces' names, and the other nodes' are the same. A
        // thread's name is at most 15 characters.
        for (interface, own) in [(UPLINK, "thr-up"), (POD, "thr-pod")] {
            shell(
                &self.node,
                &format!(
                    "ip link set dev {interface} name {own}\n\
                     ethtool -K {own} gro on\n\
                     echo 1 >/sys/class/net/{own}/threaded"
                ),
            )?;
            pin_receiver(own, core)?;
        }
        Ok(())
    }

    /// A socket of the client's, which sends to the service.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn client_socket(&self, patience: Duration) -> Result<UdpSocket> {
        within(&self.client, || -> Result<UdpSocket> {
            let socket = UdpSocket::bind((CLIENT_ADDRESS, 0))?;
            socket.connect(SocketAddrV4::new(BALANCER.parse()?, SERVICE_PORT))?;
            socket.set_read_timeout(Some(patience))?;
            Ok(socket)
        })
    }

    /// The pod's socket.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pod_socket(&self, patience: Duration) -> Result<UdpSocket> {
        within(&self.pod, || -> Result<UdpSocket> {
            let socket = UdpSocket::bind((POD_ADDRESS, POD_PORT))?;
            socket.set_read_timeout(Some(patience))?;
            Ok(socket)
        })
    }

    fn ip(&self, namespace: &str, commands: &str) -> Result<()> {
        run("ip", &["-n", namespace, "-batch", "-"], commands)
    }
}
