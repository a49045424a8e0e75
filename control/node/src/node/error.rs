//! Why a node process does not start, or ends.

use crate::admin_server::AdminSocketError;
use crate::host_port::HostPortError;
use crate::http::HttpError;
use crate::netlink::NetlinkError;
use crate::ports::PortError;
use crate::workers::{WorkerGone, WorkersError};

/// The node process could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Not root.
    #[error("the node process must run as root: it loads an XDP program and opens AF_XDP sockets")]
    NotRoot,
    /// Root without a capability.
    #[error(
        "the node process lacks {name}, for {why}: run it as root with CAP_NET_ADMIN, CAP_NET_RAW, \
         CAP_BPF and CAP_PERFMON (a container needs them listed)"
    )]
    Capability {
        /// The missing one.
        name: String,
        /// What it is for.
        why: &'static str,
    },
    /// Another node process serves this network namespace.
    #[error(
        "another node process{} runs in this network namespace and holds its interfaces: stop it \
         first", process(*pid)
    )]
    SecondProcess {
        /// Its process id; 0 when that is not known.
        pid: i32,
    },
    /// The run directory or the admin socket.
    #[error(transparent)]
    Admin(#[from] AdminSocketError),
    /// The kernel cannot be followed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// An uplink cannot be what it is configured to be.
    #[error("uplink {interface}: {detail}")]
    Uplink {
        /// The interface.
        interface: String,
        /// What is wrong and the way out.
        detail: String,
    },
    /// The L4 ports to translate to are among those the node's own connections have.
    #[error(
        "nat.l4_port_first: {ports} cannot be used: {taken} of it lie in {range} \
         (net.ipv4.ip_local_port_range), so connections of this node's own may have them and would \
         lose their replies: choose other ports, or keep the kernel from these \
         (`sysctl -w net.ipv4.ip_local_port_range`, or net.ipv4.ip_local_reserved_ports)"
    )]
    NatPorts {
        /// The range asked for.
        ports: String,
        /// What of it the kernel may give.
        taken: String,
        /// The kernel's range.
        range: String,
    },
    /// The process before does not hand over.
    #[error("taking over: {0}")]
    HandOver(crate::cli::client::ClientError),
    /// The host port.
    #[error("host port: {0}")]
    HostPort(#[from] HostPortError),
    /// XDP or packet memory.
    #[error(transparent)]
    Redirect(#[from] xdp_redirect::Error),
    /// The record of endpoints cannot be used.
    #[error(transparent)]
    Record(#[from] super::endpoint_record::RecordError),
    /// A port.
    #[error("port {interface}: {source}")]
    Port {
        /// The interface.
        interface: String,
        /// Why it cannot be one.
        source: PortError,
    },
    /// The workers.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// A worker is no more.
    #[error(transparent)]
    WorkerGone(#[from] WorkerGone),
    /// A worker stands still, and nobody else can do its work.
    #[error(
        "worker {worker} on CPU {} has not ticked for {seconds} seconds: the node ends, so that its \
         supervisor starts it again and what is ours goes on; if its core is starved (`top -H`), give \
         it one of its own (workers.cores), or raise stall.restart_after_ms",
        core.map_or_else(|| "?".into(), |core| core.to_string())
    )]
    WorkerStalled {
        /// The worker.
        worker: usize,
        /// Its core.
        core: Option<pinning::CpuId>,
        /// For how long.
        seconds: u64,
    },
    /// The control thread does not come to rest.
    #[error("the control thread panicked too often: {0}")]
    ControlPanicked(super::caught::Panicked),
    /// Metrics and probes.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The runtime or a signal handler.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// ` (process 12)`, or nothing for 0.
fn process(pid: i32) -> String {
    if pid == 0 { String::new() } else { format!(" (process {pid})") }
}
