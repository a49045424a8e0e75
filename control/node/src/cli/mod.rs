//! The command line: what there is to say, and what is done about it.
//!
//! Reading order: this file, [`policy`] and [`service`] (commands and help), [`client`] (asks the node), [`show`] (answers for
//! people), [`table`] (aligned columns), [`capture`] (pcapng), [`cni`] (files of a container runtime),
//! [`debug`] (failures by order), [`execute`] (commands to requests).
//! Exit codes: 0 done, 1 failed (the reason is on standard error), 64 wrong usage (`EX_USAGE` of
//! sysexits.h).

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use control::admin::FlowFilter;

pub mod capture;
pub mod client;
pub mod cni;
pub mod debug;
pub mod execute;
pub mod policy;
pub mod service;
pub mod show;
pub mod table;

pub use crate::kube_proxy::command::KubeProxyCommand;
pub use execute::execute;
pub use policy::{IdentityCommand, PolicyCommand};
pub use service::ServiceCommand;

/// Exit code for wrong usage (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;
/// Where a node listens for clients unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/xskiff/admin.sock";

/// The network dataplane of a Kubernetes node, in userspace.
#[derive(Debug, Parser)]
#[command(
    name = "xskiff",
    version,
    about = "The network dataplane of a Kubernetes node, in userspace",
    long_about = "The network dataplane of a Kubernetes node, in userspace.\n\n\
        A thin XDP program redirects the node's pod and service traffic into AF_XDP sockets; \
        pinned worker threads do connection tracking, NAT, policy and load balancing.\n\n\
        Start with `xskiff run --config FILE` on a node, then ask it with `xskiff status`.",
    after_help = "Exit codes: 0 done, 1 failed, 64 wrong usage.\n\
        Every command that asks the node takes --json.",
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// The node's admin socket; only root may use it.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON instead of a table: the node's answer, or what a command found.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node process until SIGTERM or SIGINT.
    #[command(
        long_about = "Run the node process until SIGTERM or SIGINT.\n\nThe configuration and \
        the manifests are checked whole before any interface is touched. On a clean end everything is detached \
        and given back, unless stall.on_exit says otherwise; after SIGKILL the next start takes over what \
        was left, or `xskiff detach` takes it away."
    )]
    Run(RunArgs),
    /// Take away what a node process has left behind, so that the kernel gets everything again.
    #[command(
        long_about = "Take away what a node process has left behind, so that the kernel gets everything \
        again.\n\nThe XDP program stays on its interfaces after a SIGKILL, a crash, and with \
        stall.on_exit: drop, and drops what is ours until the next process takes over. This takes it off \
        instead, gives back what was changed for pods and removes the host port. Refused while a \
        node process runs in this network namespace: end that one."
    )]
    Detach(DetachArgs),
    /// Watch the API server for many nodes, and serve them what they need of it.
    #[command(
        long_about = "Watch the API server for many nodes, and serve them what they need of it.\n\nEvery kind is \
        watched once, whatever the number of nodes. They ask by the Kubernetes list and watch \
        protocol and with the API server's resourceVersions, so that they may change between it and \
        relays; while it is away, what is known is served. Of several relays one leads, by a Lease, \
        and writes Events about objects that nodes cannot use as they are. Runs until SIGTERM or \
        SIGINT."
    )]
    Relay(crate::relay::Arguments),
    /// How the node stands: a verdict, the next step, then ports, workers and tables.
    Status,
    /// Pods on this node: add, remove, list.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// The CNI plugin's place in the container runtime's configuration: put it there, take it out.
    #[command(subcommand)]
    Cni(cni::CniCommand),
    /// Services in force: list, show one, or say which backend a connection would get.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Tracked connections: list, count, end, and how many there may be.
    #[command(subcommand)]
    Ct(CtCommand),
    /// Identities: what policy can tell addresses apart by, and who has which.
    #[command(
        subcommand,
        long_about = "Identities: what policy can tell addresses apart by, and who has which.\n\nAn \
            identity is the set of selectors (of NetworkPolicies in force) that match an address. \
            Pods that no policy tells apart share one, however many they are. Numbers are this \
            node's own, but for the reserved ones: host, remote-node, world and so on."
    )]
    Identity(IdentityCommand),
    /// NetworkPolicies: list them, how they stand, and which rule decides.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Compare everything in force with what the objects say; exits with 1 on a difference.
    Audit,
    /// Dropped packets, by reason.
    Drops,
    /// Recent decisions; with --follow, new ones as they come.
    Flows(FlowsArgs),
    /// Write packets to a pcapng file (tcpdump cannot see redirected frames).
    Capture(CaptureArgs),
    /// Show one packet's way through the pipeline, stage by stage, without sending anything.
    Trace(TraceArgs),
    /// Check a configuration file, print the one in force, or predict what a new one changes.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Try whether this machine and these interfaces will do, and say why not.
    #[command(
        long_about = "Try whether this machine and these interfaces will do, and say why not.\n\n\
        What can be tried without touching the interfaces is tried for real, in network namespaces \
        made for it; interfaces themselves are only looked at unless --attach is given. Nothing is \
        left behind. Exits with 1 when a check fails; remarks (WARN) say what costs or is lost."
    )]
    Preflight(crate::preflight::Arguments),
    /// A running or left-over kube-proxy: say what there is, and clean up after it.
    #[command(subcommand)]
    KubeProxy(KubeProxyCommand),
    /// Let something fail, to see how the node takes it.
    #[command(
        subcommand,
        long_about = "Let something fail, to see how the node takes it, and whether whoever watches it \
        is told.\n\nRefused unless the node's configuration says debug.faults: true."
    )]
    Debug(debug::DebugCommand),
    /// Print a shell's completions, to be sourced.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory, or print the first one.
    Man {
        /// Where to write them; printed when absent.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Show a node at work in network namespaces of its own, then three outages (2 minutes, root).
    Demo(crate::demo::Arguments),
    /// Traffic for the demo and the tests; runs only inside a network namespace.
    #[command(hide = true)]
    LabAgent(crate::lab::agent::Arguments),
}

/// Of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The configuration that the process had.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
}

/// Of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration, YAML; `deploy/xskiff.example.yaml` explains every field.
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Take over from the node process that runs: everything is made ready beside it, then it ends, and
    /// connections go on. What goes wrong before leaves it serving; where none runs, this is a start.
    #[arg(long)]
    pub take_over: bool,
    /// A folder of ordinary Kubernetes manifests, watched; overrules the configuration's.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["api_servers", "kubeconfig"])]
    pub manifests: Option<PathBuf>,
    /// Follow the API server at this address, never its Service's; repeat for more, the preferred
    /// one first. Overrules the configuration's.
    #[arg(long = "api-server", value_name = "URL")]
    pub api_servers: Vec<String>,
    /// Follow API servers as this kubeconfig file says; overrules the configuration's.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Of `endpoint`.
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Make an interface a pod's port. Repeating it is harmless.
    #[command(after_help = "Example:\n  xskiff endpoint add shop/cart-0 --interface veth1234 \
        --address 10.1.0.5 --address fd00:1::5")]
    Add {
        /// `namespace/pod`, which ties it to the Pod object.
        #[arg(value_name = "NAMESPACE/POD")]
        name: String,
        /// The node's end of the pod's veth pair.
        #[arg(long, value_name = "NAME")]
        interface: String,
        /// An address the pod may speak from; repeat for more.
        #[arg(long = "address", required = true, value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// The pod's link address; asked by ARP and ND when absent.
        #[arg(long, value_name = "MAC")]
        mac: Option<String>,
        /// The pod's network namespace, to turn offloads off in it.
        #[arg(long, value_name = "PATH")]
        netns: Option<String>,
        /// What may go to the pod, in bits a second, such as 10M.
        #[arg(long, value_name = "RATE", value_parser = control::model::bits_per_second)]
        ingress_bandwidth: Option<u64>,
        /// What the pod may send, in bits a second.
        #[arg(long, value_name = "RATE", value_parser = control::model::bits_per_second)]
        egress_bandwidth: Option<u64>,
    },
    /// Remove a pod's port. Removing one that is not there is harmless.
    Remove {
        /// `namespace/pod`.
        #[arg(value_name = "NAMESPACE/POD")]
        name: String,
    },
    /// List the node's pods with their ports.
    List,
}

/// Which flows are meant: every given option must match.
#[derive(Debug, Clone, Default, Args)]
pub struct FilterArgs {
    /// Either end's address, before or after translation.
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Either end's port, before or after translation.
    #[arg(long = "port", value_name = "PORT")]
    pub l4_port: Option<u16>,
    /// tcp, udp, icmp, icmpv6, sctp or a number.
    #[arg(long = "proto", value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// A local pod at either end.
    #[arg(long, value_name = "NAMESPACE/POD")]
    pub endpoint: Option<String>,
    /// The service asked for.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,
    /// The same as KEY=VALUE, of address, port, proto, endpoint, service; repeat for more.
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = term)]
    pub terms: Vec<Term>,
}

/// One word of `--filter`.
#[derive(Debug, Clone)]
pub enum Term {
    /// As `--address`.
    Address(IpAddr),
    /// As `--port`.
    L4Port(u16),
    /// As `--proto`.
    Protocol(String),
    /// As `--endpoint`.
    Endpoint(String),
    /// As `--service`.
    Service(String),
}

fn term(text: &str) -> Result<Term, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let wrong = |what: &str| format!("{value:?} is no {what}");
    Ok(match key {
        "address" => Term::Address(value.parse().map_err(|_| wrong("address"))?),
        "port" => Term::L4Port(value.parse().map_err(|_| wrong("port"))?),
        "proto" => Term::Protocol(value.to_owned()),
        "endpoint" => Term::Endpoint(value.to_owned()),
        "service" => Term::Service(value.to_owned()),
        _ => return Err(format!("{key:?} is none of address, port, proto, endpoint, service")),
    })
}

impl From<FilterArgs> for FlowFilter {
    fn from(args: FilterArgs) -> Self {
        let mut filter = Self {
            address: args.address,
            l4_port: args.l4_port,
            protocol: args.protocol,
            endpoint: args.endpoint,
            service: args.service,
            verdict: None,
            reason: None,
        };
        for term in args.terms {
            match term {
                Term::Address(address) => filter.address = Some(address),
                Term::L4Port(l4_port) => filter.l4_port = Some(l4_port),
                Term::Protocol(protocol) => filter.protocol = Some(protocol),
                Term::Endpoint(endpoint) => filter.endpoint = Some(endpoint),
                Term::Service(service) => filter.service = Some(service),
            }
        }
        filter
    }
}

/// What `ct top` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TopByArg {
    /// The pod that opened it, or else the pod it leads to.
    Pod,
    /// The service it was opened through.
    Service,
}

/// Of `ct`.
#[derive(Debug, Subcommand)]
pub enum CtCommand {
    /// List connections.
    List {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(control::admin::CT_LIST_MAX)))]
        limit: u32,
    },
    /// Count connections; without any option, say how full both tables are, and what they refused.
    Count {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// Say who has how many connections, the most first.
    Top {
        /// Whose: of the pods they are counted for, or of the services they were opened through.
        #[arg(long, value_enum, default_value_t = TopByArg::Pod)]
        by: TopByArg,
    },
    /// Show connections as they begin, change their state and end, until interrupted.
    Watch {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// End the connections that match; at least one option must be said.
    Delete {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
    },
    /// End connections. Without any option, --all must be said.
    Flush {
        /// Which.
        #[command(flatten)]
        filter: FilterArgs,
        /// End every connection.
        #[arg(long)]
        all: bool,
    },
    /// Make the tables larger or smaller while they are in use; nothing is lost, and nobody waits.
    #[command(after_help = "A table then neither grows nor shrinks by itself until it is resized \
        again, its setting in the configuration file changes, or the process is started again. \
        Example:\n  xskiff ct resize --v4 2000000")]
    Resize {
        /// IPv4 connections that there is to be room for.
        #[arg(long, value_name = "FLOWS", required_unless_present = "v6")]
        v4: Option<u32>,
        /// IPv6 connections that there is to be room for.
        #[arg(long, value_name = "FLOWS")]
        v6: Option<u32>,
    },
}

/// A decision's verdict.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum VerdictArg {
    /// A flow was admitted.
    Opened,
    /// A flow was admitted that a policy under audit would refuse.
    Audited,
    /// A flow ended.
    Closed,
    /// A packet was dropped.
    Dropped,
}

/// Of `flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Go on until interrupted.
    #[arg(long, short)]
    pub follow: bool,
    /// Which.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Only these decisions.
    #[arg(long)]
    pub verdict: Option<VerdictArg>,
    /// Only drops for this reason (`xskiff drops` lists them).
    #[arg(long)]
    pub reason: Option<String>,
}

/// A captured packet's way.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DirectionArg {
    /// Came in by the port.
    Received,
    /// Left by the port.
    Transmitted,
}

/// Of `capture`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  xskiff capture --endpoint shop/cart-0 -w cart.pcapng\n  \
    tshark -r cart.pcapng")]
pub struct CaptureArgs {
    /// The pcapng file to write; `-` for standard output.
    #[arg(long, short = 'w', value_name = "FILE")]
    pub write: PathBuf,
    /// Only this pod's or interface's packets.
    #[arg(long, value_name = "NAMESPACE/POD or INTERFACE")]
    pub endpoint: Option<String>,
    /// Only packets that go this way, as seen from the node.
    #[arg(long)]
    pub direction: Option<DirectionArg>,
    /// Only packets dropped for this reason (`xskiff drops` lists them).
    #[arg(long)]
    pub reason: Option<String>,
    /// End after so many packets; 0 for no bound.
    #[arg(long = "packets", short = 'c', default_value_t = 10_000, value_name = "COUNT")]
    pub packets_max: u64,
    /// End after so many bytes; 0 for no bound.
    #[arg(long = "bytes", default_value_t = 64 << 20, value_name = "BYTES")]
    pub bytes_max: u64,
}

/// Of `trace`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  xskiff trace --port veth1234 \
    \"02 00 00 00 00 01 02 00 00 00 00 02 08 00 45 00 ...\"")]
pub struct TraceArgs {
    /// The interface the packet pretends to enter by.
    #[arg(long, value_name = "INTERFACE")]
    pub port: String,
    /// The frame in hexadecimal, from the Ethernet header on; `-` reads standard input.
    #[arg(value_name = "HEX")]
    pub frame: String,
}

/// Of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file without touching anything.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print the configuration in force, every default filled in.
    Print,
    /// Say what a configuration file would change in the running node, and what that does.
    Diff {
        /// The file.
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests;
