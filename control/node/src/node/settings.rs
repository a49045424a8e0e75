//! Everything the node process is told, checked and with every default filled in. The
//! configuration file becomes this; tests and the demo make it directly.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use control::config::{OnExit, Segments, Transmit, UnknownPods};
use dataplane::direct::Dispatch;
use dataplane::lpm::Prefix;
use dataplane::nat::Mapping;
use dataplane::nat::rules::SnatRule;
use dataplane::tables::{TcpWindows, Timeouts};
use xdp_redirect::loader::Mode;
use xdp_redirect::regions::PodMemory;
use xdp_redirect::rules::OnStall;
use xdp_redirect::socket::SocketConfig;
use xdp_redirect::umem::UmemConfig;

use crate::workers;

/// An interface to the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub interface: String,
    /// Where the XDP program is to run.
    pub mode: Mode,
    /// Whether all its traffic is ours (host firewall), not only what is addressed to us.
    pub everything: bool,
    /// Whether a start may do without it.
    pub optional: bool,
}

/// The host port's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPortSettings {
    /// Routing table of pods and services; the next number is used, too.
    pub routing_table: u32,
    /// Priority of the rule that asks it; the number before is used, too.
    pub rule_priority: u32,
}

/// How sources are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnatSettings {
    /// IPv4 source; the first address of the first uplink when absent.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 source; the first address of the first uplink when absent.
    pub v6: Option<Ipv6Addr>,
    /// L4 ports to translate to.
    pub l4_ports: RangeInclusive<u16>,
    /// What the port depends on.
    pub mapping: Mapping,
    /// Who leaves with another address. What the kernel and the cluster say of these is looked at
    /// when tables are made.
    pub rules: Vec<SnatRule>,
    /// Ranges of the cluster's pods and services. No rule translates toward them, nor toward the
    /// node's addresses, services, and pods and nodes of the manifests.
    pub cluster: Vec<Prefix>,
    /// Destinations that see the pod's own address. The node's, all service addresses and the pod
    /// ranges of all nodes are always among them.
    pub non_masquerade: Vec<Prefix>,
}

/// Everything the node process is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's name, as Pods and EndpointSlices spell it.
    pub node_name: String,
    /// Root's own directory for the socket, the lock and the record of what to give back.
    pub run_directory: PathBuf,
    /// Where the BPF filesystem is.
    pub bpf_filesystem: PathBuf,
    /// Interfaces to the outside.
    pub uplinks: Vec<Uplink>,
    /// Where the XDP program is to run on pods' interfaces and on the host port.
    pub pod_mode: Mode,
    /// What happens to traffic of ours that nothing translates or polices while no worker lives.
    pub on_stall: OnStall,
    /// What to leave behind at the end.
    pub on_exit: OnExit,
    /// A worker that did not tick for this long has stalled.
    pub stall_after: Duration,
    /// Whose worker did not for this long ends, to be started again; `None`: never.
    pub restart_after: Option<Duration>,
    /// Whether `xskiff debug` may make things fail.
    pub faults: bool,
    /// Threads, cores and flow tables.
    pub workers: workers::Settings,
    /// Packet memory of uplinks and the host port.
    pub umem: UmemConfig,
    /// Packet memory of pods.
    pub pod_memory: PodMemory,
    /// Sockets of uplinks and of the host port.
    pub uplink_sockets: SocketConfig,
    /// Sockets of pods.
    pub pod_sockets: SocketConfig,
    /// How packets leave by interfaces.
    pub transmit: Transmit,
    /// What becomes of TCP segments longer than the MTU.
    pub segments: Segments,
    /// The way to the node's own stack; `None`: the stack reaches pods by the kernel's routes
    /// only, past the pipeline.
    pub host_port: Option<HostPortSettings>,
    /// Source translation.
    pub snat: SnatSettings,
    /// Ranges that services have addresses in.
    pub service_ranges: Vec<Prefix>,
    /// Which of the node's addresses serve node ports; empty: all.
    pub node_port_addresses: Vec<Prefix>,
    /// Node ports that are redirected.
    pub node_port_range: RangeInclusive<u16>,
    /// Whether backends on other nodes answer clients themselves where a Service does not say.
    pub returns_directly: bool,
    /// How packets reach their nodes then.
    pub dispatch: Dispatch,
    /// Idle time-outs of flows.
    pub timeouts: Timeouts,
    /// What becomes of TCP segments outside of their windows.
    pub tcp_windows: TcpWindows,
    /// How long after a start without flows what policy denies may be a lost flow's reply.
    pub lost_replies: Duration,
    /// Whether pods that nobody registered are adopted.
    pub adopt_running_pods: bool,
    /// What endpoints may that have no Pod object.
    pub unknown_pods: UnknownPods,
    /// Where metrics and probes are served; `None`: nowhere.
    pub http: Option<SocketAddr>,
    /// Where kube-proxy's probes are answered; `None`: nowhere.
    pub proxy_http: Option<SocketAddr>,
}

impl Settings {
    /// What decides how a pod's end is to be set up.
    #[must_use]
    pub fn ways(&self) -> (Segments, Transmit) {
        (self.segments, self.transmit)
    }
}
