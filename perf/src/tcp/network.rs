//! Namespaces and links: of every subject, one for the node, one for each of two pods, and one outside.
//!
//! ```text
//! outside: eth0 ---- uplink :node: client ---- eth0 :client
//!                                  server ---- eth0 :server
//! ```
//! Addresses and ways are those of a node whose pods are routed, or, where the kernel bridges them, of one
//! link. Offloads of pods are as the kernel makes them; the outside stands for a machine behind a wire, whose
//! card finishes what its stack leaves.

use anyhow::{Context, Result};

use crate::netns::{self, Namespaces, run, shell};

/// Interfaces of the node.
pub const UPLINK: &str = "uplink";
/// Toward the pod that asks.
pub const CLIENT: &str = "client";
/// Toward the pod that answers.
pub const SERVER: &str = "server";
/// The node's addresses on the uplink, as all pairs here of each family.
pub const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Of the machine outside.
pub const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// Of the pod that asks.
pub const CLIENT_POD: [&str; 2] = ["10.244.0.11", "fd00:10:244::11"];
/// Of the pod that answers.
pub const SERVER_POD: [&str; 2] = ["10.244.0.12", "fd00:10:244::12"];
/// Pods of the node.
pub const PODS: [&str; 2] = ["10.244.0.0/24", "fd00:10:244::/64"];
/// The service's address in the cluster.
pub const CLUSTER_IP: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];
/// Addresses of services.
pub const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// The service's address for the outside.
pub const BALANCER: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];
/// The service's L4 port.
pub const SERVICE_PORT: u16 = 80;
/// The server's L4 port.
pub const SERVER_PORT: u16 = 8080;

/// The gateways of pods, which no interface carries.
const GATEWAY: [&str; 2] = ["169.254.1.1", "fe80::1"];
/// The node itself, where the kernel bridges its pods.
const ON_BRIDGE: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];
const MACS: [&str; 2] = ["02:00:00:00:03:01", "02:00:00:00:03:02"];

/// All namespaces of a run; removed when dropped.
pub struct Network(Namespaces);

/// The four namespaces of one subject, by the names that `ip netns` knows.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where the forwarding happens.
    pub node: String,
    /// The pod that asks.
    pub client: String,
    /// The pod that answers.
    pub server: String,
    /// The machine behind the uplink.
    pub outside: String,
}

impl Network {
    /// None yet; removes what killed runs left behind.
    ///
    /// # Errors
    /// Not root.
    pub fn new() -> Result<Self> {
        Namespaces::new("tcp").map(Self)
    }

    /// Adds a subject's namespaces; its links are made by [`Place::route_pods`] or [`Place::bridge_pods`].
    ///
    /// # Errors
    /// A missing tool.
    pub fn add(&mut self, subject: &str) -> Result<Place> {
        let mut add = |whose| self.0.add(&format!("{subject}-{whose}"));
        let (node, client) = (add("node")?, add("client")?);
        let place = Place { node, client, server: add("server")?, outside: add("outside")? };
        for name in [&place.node, &place.client, &place.server, &place.outside] {
            // No address is looked for twice, and nothing is announced.
            let quiet = "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; \
                         echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; \
                         echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra; ip link set lo up";
            shell(name, quiet)?;
        }
        Ok(place)
    }
}

impl Place {
    fn pods(&self) -> [(&'static str, &str, &'static str, [&'static str; 2]); 2] {
        [(CLIENT, &self.client, MACS[0], CLIENT_POD), (SERVER, &self.server, MACS[1], SERVER_POD)]
    }

    /// Makes the links, with pods behind routes of their own.
    ///
    /// # Errors
    /// A kernel without veth, or a missing tool.
    pub fn route_pods(&self) -> Result<()> {
        let queues = "numrxqueues 1 numtxqueues 1";
        for (interface, namespace, mac, addresses) in self.pods() {
            self.ip(
                &self.node,
                &format!(
                    "link add dev {interface} {queues} type veth peer name eth0 address {mac} \
                     netns {namespace} {queues}\nlink set dev {interface} up\n"
                ),
            )?;
            let gateway_mac = self.mac_of(interface)?;
            let mut commands = String::from("link set dev eth0 up\n");
            for (family, address) in addresses.iter().enumerate() {
                let (gateway, bits) = (GATEWAY[family], [32, 128][family]);
                commands += &format!(
                    "address add {address}/{bits} dev eth0\n\
                     neigh replace {gateway} lladdr {gateway_mac} dev eth0 nud permanent\n\
                     route add default via {gateway} dev eth0 onlink\n"
                );
            }
            self.ip(namespace, &commands)?;
        }
        self.link_outside()
    }

    fn link_outside(&self) -> Result<()> {
        let (queues, outside) = ("numrxqueues 1 numtxqueues 1", &self.outside);
        let mut node = format!(
            "link add dev {UPLINK} {queues} type veth peer name eth0 netns {outside} {queues}\n\
             link set dev {UPLINK} up\n"
        );
        let mut far = String::from("link set dev eth0 up\n");
        for family in [0, 1] {
            let bits = [24, 64][family];
            let (own, other) = (NODE[family], OUTSIDE[family]);
            node +=
                &format!("address add {own}/{bits} dev {UPLINK}\nroute add default via {other}\n");
            let host = [32, 128][family];
            far += &format!(
                "address add {other}/{bits} dev eth0\nroute add {}/{host} via {own}\n",
                BALANCER[family]
            );
        }
        self.ip(&self.node, &node)?;
        self.ip(outside, &far)?;
        shell(outside, "ethtool -K eth0 tx off").context("`ethtool` is of the package ethtool")
    }

    /// Makes the links, with both pods and the node itself on one bridge of the kernel's.
    ///
    /// # Errors
    /// A kernel without veth or bridges.
    pub fn bridge_pods(&self) -> Result<()> {
        let mut bridge = String::from("link add dev pods type bridge\nlink set dev pods up\n");
        for (address, bits) in ON_BRIDGE.iter().zip([24, 64]) {
            bridge += &format!("address add {address}/{bits} dev pods\n");
        }
        self.ip(&self.node, &bridge)?;
        for (interface, namespace, mac, addresses) in self.pods() {
            self.ip(
                &self.node,
                &format!(
                    "link add dev {interface} type veth peer name eth0 address {mac} \
                     netns {namespace}\nlink set dev {interface} master pods up\n"
                ),
            )?;
            let [v4, v6] = addresses;
            self.ip(
                namespace,
                &format!(
                    "address add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0\nlink set dev eth0 up\n"
                ),
            )?;
        }
        Ok(())
    }

    /// Turns off the offloads of both pods, and of the node's links to them, so that no segment is longer than
    /// the MTU.
    ///
    /// # Errors
    /// `ethtool` is missing.
    pub fn cut(&self) -> Result<()> {
        for (interface, namespace, ..) in self.pods() {
            shell(namespace, "ethtool -K eth0 tx off")?;
            shell(&self.node, &format!("ethtool -K {interface} tx off"))?;
        }
        Ok(())
    }

    /// Lets the node's kernel do the job: routing with conntrack, an nftables DNAT, and a policy for the
    /// server.
    ///
    /// # Errors
    /// No nftables, or a kernel without NAT.
    pub fn route_in_kernel(&self) -> Result<()> {
        shell(
            &self.node,
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n\
             for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done",
        )?;
        let mut commands = String::new();
        for (interface, _, mac, addresses) in self.pods() {
            for (address, bits) in addresses.iter().zip([32, 128]) {
                commands += &format!(
                    "route add {address}/{bits} dev {interface}\n\
                     neigh replace {address} lladdr {mac} dev {interface} nud permanent\n"
                );
            }
        }
        self.ip(&self.node, &commands)?;
        let dnat = |family: &str, index: usize| {
            format!(
                "{family} daddr {{ {}, {} }} tcp dport {SERVICE_PORT} dnat {family} to {}\n",
                CLUSTER_IP[index],
                BALANCER[index],
                socket(SERVER_POD[index], SERVER_PORT)
            )
        };
        let rules = format!(
            "table inet perf {{\n\
             chain services {{ type nat hook prerouting priority dstnat; policy accept;\n{}{}}}\n\
             chain admitted {{ type filter hook forward priority filter; policy accept;\n\
             ct state established,related accept\n\
             oifname \"{SERVER}\" tcp dport {SERVER_PORT} accept\noifname \"{SERVER}\" drop\n}}\n\
             }}\n",
            dnat("ip", 0),
            dnat("ip6", 1)
        );
        run("ip", &["netns", "exec", &self.node, "nft", "-f", "-"], &rules)
            .context("`nft` is of the package nftables")
    }

    fn mac_of(&self, interface: &str) -> Result<String> {
        let path = format!("/sys/class/net/{interface}/address");
        let output = netns::output("ip", &["netns", "exec", &self.node, "cat", &path])?;
        Ok(output.trim().to_owned())
    }

    fn ip(&self, namespace: &str, commands: &str) -> Result<()> {
        run("ip", &["-n", namespace, "-batch", "-"], commands)
    }
}

/// An address and L4 port, as URLs and nftables write them.
pub fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
