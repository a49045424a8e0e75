//! The configuration file: one YAML document, every field with a default, all of it checked before
//! anything is touched.
//!
//! [`Config::parse`] refuses what it does not know by its path (`workers.cuont`), and what it
//! knows but cannot use by path, value and way out. [`Config::cautions`] names what can be used and
//! is probably not meant. [`effects`] says what changing each field of a running node does, and
//! predicts it for a candidate file.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::shown::shortened;
use crate::yaml;

mod cautions;
mod cni;
mod conntrack;
pub mod effects;
mod kubernetes;
mod load_balancing;
mod packet_memory;
mod policy;
mod ranges;
mod snat;
mod timeouts;
mod transmit;
mod validate;

pub use cautions::Caution;
pub use cni::{Cni, NodeAbsent};
pub use conntrack::{Conntrack, TcpWindows};
pub use effects::{Change, Effect};
pub use kubernetes::{Kubernetes, check_server};
pub use load_balancing::{Dispatch, ForwardingMode, LoadBalancing};
pub use packet_memory::PacketMemory;
pub use policy::{Policy, UnknownPods};
pub use snat::Snat;
pub use timeouts::Timeouts;
pub use transmit::{Segments, Transmit};
pub use validate::Problem;

/// `--service-node-port-range` of the API server, unless told otherwise.
pub const NODE_PORTS_DEFAULT: RangeInclusive<u16> = 30_000..=32_767;

/// The configuration cannot be used; nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, or a value of the wrong type: the setting's path, where there is one, line, column
    /// and what is wrong.
    #[error("{0}")]
    Syntax(String),
    /// Fields nobody reads: a misspelt one would silently be its default.
    #[error("unknown field{}: {}; `xskiff config print` lists the known ones",
        if .0.len() == 1 { "" } else { "s" }, .0.join(", "))]
    Unknown(Vec<String>),
    /// Values that cannot work.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// What is wrong, one by one.
    #[must_use]
    pub fn each(&self) -> Vec<String> {
        match self {
            Self::Syntax(what) => vec![what.clone()],
            Self::Unknown(fields) => {
                fields.iter().map(|field| format!("unknown field: {field}")).collect()
            }
            Self::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Where the XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native where the driver can, generic elsewhere.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack.
    Generic,
}

/// How packets get between driver and packet memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// Zero-copy if the first uplink can, otherwise copy.
    #[default]
    Auto,
    /// The kernel copies.
    Copy,
    /// The NIC reads and writes packet memory.
    ZeroCopy,
}

/// What workers do without packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// Look again at once.
    Spin,
    /// Look again for a while, then sleep.
    #[default]
    Adaptive,
    /// Look again at once, running the queues' receive processing as well.
    BusyPoll,
}

/// What happens to traffic of ours while no worker serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStall {
    /// It is dropped: TCP retransmits.
    #[default]
    Drop,
    /// Pods that no policy isolates are left to the kernel. What is translated or policed is
    /// dropped all the same.
    Pass,
}

/// What decides the L4 port that a pod's flow to the outside is translated to (RFC 4787, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatMapping {
    /// The pod's end point and the destination: flows to different destinations share ports.
    #[default]
    EndpointDependent,
    /// The pod's end point alone: one port toward all destinations, which no other has.
    EndpointIndependent,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// This node's name, as Pods and EndpointSlices spell it; empty: the host's name.
    pub node_name: String,
    /// Root's own directory for the admin socket, the lock and the record of what to give back.
    pub run_directory: PathBuf,
    /// Where the BPF filesystem is, or is to be mounted.
    pub bpf_filesystem: PathBuf,
    /// Folder of Kubernetes manifests; `--manifests` overrides it.
    pub manifests: Option<PathBuf>,
    /// The API servers, in place of a folder.
    pub kubernetes: Kubernetes,
    /// Interfaces to the outside.
    pub uplinks: Vec<Uplink>,
    /// Worker threads.
    pub workers: Workers,
    /// Sockets of pods.
    pub pods: Sockets,
    /// Sockets of uplinks and of the host port.
    #[serde(deserialize_with = "Sockets::of_uplinks")]
    pub uplink_sockets: Sockets,
    /// How packets leave by interfaces.
    pub transmit: Transmit,
    /// What becomes of TCP segments longer than the MTU.
    pub segments: Segments,
    /// Where packets lie.
    pub packet_memory: PacketMemory,
    /// How many flows the node remembers.
    pub flow_table: FlowTable,
    /// What is kept of them beside what forwarding needs.
    pub conntrack: Conntrack,
    /// Source translation.
    pub nat: Nat,
    /// Address ranges of the cluster.
    pub cluster: Cluster,
    /// Node ports.
    pub node_ports: NodePorts,
    /// How services' packets come back from other nodes.
    pub load_balancing: LoadBalancing,
    /// What policy does beside its rules.
    pub policy: Policy,
    /// The way to the node's own stack.
    pub host_port: HostPort,
    /// Workers that stop ticking.
    pub stall: Stall,
    /// Idle time-outs of flows, in seconds.
    pub timeouts: Timeouts,
    /// The plugin's place in the container runtime's configuration.
    pub cni: Cni,
    /// Where metrics and probes are served.
    pub http: Http,
    /// What is allowed for trying a node out.
    pub debug: Debug,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            run_directory: PathBuf::from("/run/xskiff"),
            bpf_filesystem: PathBuf::from("/sys/fs/bpf"),
            manifests: None,
            kubernetes: Kubernetes::default(),
            uplinks: Vec::new(),
            workers: Workers::default(),
            pods: Sockets::pods(),
            uplink_sockets: Sockets::uplinks(),
            transmit: Transmit::default(),
            segments: Segments::default(),
            packet_memory: PacketMemory::default(),
            flow_table: FlowTable::default(),
            conntrack: Conntrack::default(),
            nat: Nat::default(),
            cluster: Cluster::default(),
            node_ports: NodePorts::default(),
            load_balancing: LoadBalancing::default(),
            policy: Policy::default(),
            host_port: HostPort::default(),
            stall: Stall::default(),
            timeouts: Timeouts::default(),
            cni: Cni::default(),
            http: Http::default(),
            debug: Debug::default(),
        }
    }
}

/// An interface to the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Kernel name.
    pub interface: String,
    /// Where the XDP program runs on it.
    #[serde(default)]
    pub xdp_mode: XdpMode,
    /// Take all its traffic, not only what is addressed to pods and services.
    #[serde(default)]
    pub everything: bool,
    /// Start without it, and take it when it comes: a primary plugin makes its tunnel device after it
    /// was started itself, and makes it anew.
    #[serde(default)]
    pub optional: bool,
}

/// Worker threads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workers {
    /// How many, when `cores` names none. 1 to 64.
    pub count: u16,
    /// One worker on each of these CPUs.
    pub cores: Vec<u16>,
    /// What they do without packets.
    pub idle: Idle,
    /// Adaptive: microseconds without a packet before a worker sleeps.
    pub spin_us: u32,
    /// Busy poll: microseconds one poll may take.
    pub busy_poll_us: u32,
    /// Busy poll: packets one poll may take.
    pub busy_poll_packets: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 1,
            cores: Vec::new(),
            idle: Idle::Adaptive,
            spin_us: 50,
            busy_poll_us: 20,
            busy_poll_packets: 64,
        }
    }
}

/// Ring sizes of a kind of socket. What is left out is as for pods, or as for uplinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sockets {
    /// Where the XDP program runs on pods' interfaces and on the host port; unused for uplinks,
    /// which have their own.
    pub xdp_mode: XdpMode,
    /// Entries of the receive ring, a power of two.
    pub receive_ring: u32,
    /// Entries of the transmit ring, a power of two.
    pub transmit_ring: u32,
    /// Frames kept with the kernel for packets to come.
    pub fill_frames: u32,
}

impl Sockets {
    /// Small: there may be hundreds.
    fn pods() -> Self {
        Self { xdp_mode: XdpMode::Auto, receive_ring: 256, transmit_ring: 512, fill_frames: 256 }
    }

    fn uplinks() -> Self {
        Self { xdp_mode: XdpMode::Auto, receive_ring: 2048, transmit_ring: 2048, fill_frames: 1024 }
    }
}

/// [`Sockets`] of uplinks as a file gives them: any part of them.
#[derive(Deserialize)]
struct SomeSockets {
    xdp_mode: Option<XdpMode>,
    receive_ring: Option<u32>,
    transmit_ring: Option<u32>,
    fill_frames: Option<u32>,
}

impl Sockets {
    fn of_uplinks<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (given, default) = (SomeSockets::deserialize(from)?, Self::uplinks());
        Ok(Self {
            xdp_mode: given.xdp_mode.unwrap_or(default.xdp_mode),
            receive_ring: given.receive_ring.unwrap_or(default.receive_ring),
            transmit_ring: given.transmit_ring.unwrap_or(default.transmit_ring),
            fill_frames: given.fill_frames.unwrap_or(default.fill_frames),
        })
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self::pods()
    }
}

/// The flow tables: how large they are and may become, and where they live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowTable {
    /// IPv4 flows that there is room for at first; absent: a 16th of the maximum, at least 65,536.
    pub ipv4_flows: Option<u32>,
    /// IPv4 flows that the table grows to by itself, 121 bytes each, and 64 more with
    /// `conntrack.details`; absent: derived from memory.
    pub ipv4_flows_max: Option<u32>,
    /// As [`Self::ipv4_flows`].
    pub ipv6_flows: Option<u32>,
    /// As [`Self::ipv4_flows_max`], 185 bytes each.
    pub ipv6_flows_max: Option<u32>,
    /// Flows of both families that one local pod may have; 0: no bound; absent: half of what the IPv4
    /// table may grow to.
    pub flows_per_endpoint_max: Option<u32>,
    /// Directory on tmpfs or hugetlbfs, root's alone, for the tables' files, which the next process
    /// takes over; absent: `run_directory`. Elsewhere flows end with the process.
    pub directory: Option<PathBuf>,
}

/// Source translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nat {
    /// IPv4 source of masqueraded packets; absent: the first uplink's first.
    pub ipv4_source: Option<Ipv4Addr>,
    /// IPv6 source of masqueraded packets; absent: the first uplink's first.
    pub ipv6_source: Option<Ipv6Addr>,
    /// First L4 port to translate to. The range is taken from the kernel's own.
    pub l4_port_first: u16,
    /// Last L4 port to translate to.
    pub l4_port_last: u16,
    /// What the port depends on.
    pub mapping: NatMapping,
    /// Which pods leave with which other address.
    pub snat: Vec<Snat>,
    /// Further destinations that see a pod's own address, beside the cluster's ranges, services
    /// and nodes.
    pub non_masquerade_cidrs: Vec<IpNet>,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            ipv4_source: None,
            ipv6_source: None,
            l4_port_first: 61_000,
            l4_port_last: 65_535,
            mapping: NatMapping::EndpointDependent,
            snat: Vec::new(),
            non_masquerade_cidrs: Vec::new(),
        }
    }
}

impl Nat {
    /// The range.
    #[must_use]
    pub fn l4_ports(&self) -> RangeInclusive<u16> {
        self.l4_port_first..=self.l4_port_last
    }
}

/// Address ranges of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// Ranges that pods of all nodes are in (`--cluster-cidr`).
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges that ClusterIPs are in (`--service-cluster-ip-range`), at most
    /// [`dataplane::lb::SERVICE_RANGES_MAX`]. Nobody else has addresses there: what is sent to one that no
    /// service has is dropped.
    pub service_cidrs: Vec<IpNet>,
}

/// Node ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodePorts {
    /// First port (`--service-node-port-range`).
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Ranges of the node's addresses that serve node ports; empty: all.
    pub address_cidrs: Vec<IpNet>,
}

impl Default for NodePorts {
    fn default() -> Self {
        let (first, last) = (*NODE_PORTS_DEFAULT.start(), *NODE_PORTS_DEFAULT.end());
        Self { first, last, address_cidrs: Vec::new() }
    }
}

impl NodePorts {
    /// The range.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

/// The way to the node's own stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostPort {
    /// Whether there is one. Without it, what is the host's cannot be handed back to it.
    pub enabled: bool,
    /// Routing table of pods and services; the next number is used as well.
    pub routing_table: u32,
    /// Priority of the rule that asks it; the number before is used as well.
    pub rule_priority: u32,
}

impl Default for HostPort {
    fn default() -> Self {
        Self { enabled: true, routing_table: 2560, rule_priority: 100 }
    }
}

/// Workers that stop ticking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stall {
    /// Milliseconds without a tick after which a worker has stalled.
    pub after_ms: u32,
    /// Milliseconds after which the process ends, to be started again by its supervisor; 0: never.
    pub restart_after_ms: u32,
    /// What happens to its share meanwhile.
    pub on_stall: OnStall,
    /// What happens to everything when the process has ended by order.
    pub on_exit: OnExit,
}

impl Default for Stall {
    fn default() -> Self {
        Self {
            after_ms: 400,
            restart_after_ms: 10_000,
            on_stall: OnStall::Drop,
            on_exit: OnExit::Detach,
        }
    }
}

/// What the XDP program does when the process has ended by SIGTERM or SIGINT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// It is taken off every interface: the kernel's own stack gets everything.
    #[default]
    Detach,
    /// It stays, as after a SIGKILL: what is ours is dropped until the next process takes over.
    Drop,
}

/// For trying out how a node takes failures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Debug {
    /// Whether `xskiff debug` may make workers and the control thread fail.
    pub faults: bool,
}

/// Where metrics and probes are served, over HTTP without authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Address and port; absent: nowhere.
    pub listen: Option<SocketAddr>,
    /// Address and port of kube-proxy's probes, `/healthz` and `/livez`; absent: nowhere.
    pub proxy_listen: Option<SocketAddr>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9964)),
            // kube-proxy's own (`--healthz-bind-address`).
            proxy_listen: Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 10_256)),
        }
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ConfigError`], naming every field that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut unknown = BTreeSet::new();
        let mut field = String::new();
        let config = if text.trim().is_empty() {
            Self::default()
        } else {
            serde_saphyr::with_deserializer_from_str(text, |deserializer| {
                let mut ignored = |path: serde_ignored::Path<'_>| {
                    unknown.insert(yaml::dotted(&path));
                };
                let fields_named = serde_ignored::Deserializer::new(deserializer, &mut ignored);
                serde_path_to_error::deserialize(fields_named).map_err(
                    |error: serde_path_to_error::Error<_>| {
                        field = error.path().to_string();
                        error.into_inner()
                    },
                )
            })
            .map_err(|error| ConfigError::Syntax(located(&field, &yaml::message(&error))))?
        };
        if !unknown.is_empty() {
            return Err(ConfigError::Unknown(unknown.into_iter().collect()));
        }
        config.check()?;
        Ok(config)
    }

    /// Whether its values can work, each and together.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], naming every field that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let problems = validate::problems(self);
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }

    /// The configuration as a YAML document with every field.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`]; no value of these types is known to cause it.
    pub fn print(&self) -> Result<String, ConfigError> {
        serde_saphyr::to_string(self).map_err(|error| ConfigError::Syntax(error.to_string()))
    }
}

/// `message` behind the setting it is about. The root has none, and what is no YAML at all has an
/// unknown one.
fn located(field: &str, message: &str) -> String {
    if field.is_empty() || field == "." || field == "?" {
        return message.to_owned();
    }
    format!("{}: {message}", shortened(field))
}
