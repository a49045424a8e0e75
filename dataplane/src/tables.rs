//! Everything the control thread publishes, immutable, under one root.
//!
//! The control thread builds a new root that shares every unchanged chunk with the old one and
//! sends it to each worker; a worker adopts it between bursts and hands the old root back, so that
//! memory is freed elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

use crate::DropReason;
use crate::address::Protocol;
use crate::connections::Connections;
use crate::direct::Direct;
use crate::epochs::Epochs;
use crate::forwarding::Forwarding;
use crate::identity::IdentityTable;
use crate::lb::{ServiceRanges, ServiceTable};
use crate::nat::SourceNat;
use crate::pacing::Limits;
use crate::policy::Policy;
use crate::port::{Port, PortId, PortKind};
use crate::time::{Nanos, Seconds};

/// The root of what is in force.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Grows with every change that may alter a decision a flow has cached (policy, identity,
    /// next-hop numbering, ports). A flow decided under another generation is decided again, unless
    /// [`Self::epochs`] tell that no change since concerned it.
    pub generation: u32,
    /// When what concerns an address last changed; `None`: every change concerns every flow.
    pub epochs: Option<Arc<Epochs>>,
    /// By [`PortId`]; `None` where a port was removed.
    pub ports: Arc<[Option<Port>]>,
    /// Bandwidth limits of pods' ports; `None` where no pod has any.
    pub limits: Option<Arc<Limits>>,
    /// Next hops, endpoints, routes.
    pub forwarding: Arc<Forwarding>,
    /// Services and their backends.
    pub services: Arc<ServiceTable>,
    /// L4 ports of backends in this node's own network, and of those that connections are left to. What
    /// they answer comes by the host port, whoever asked, so that what is sent to them directly must have
    /// a flow as well.
    pub host_backends: Arc<hashbrown::HashSet<(Protocol, u16)>>,
    /// Where their addresses are.
    pub service_ranges: Arc<ServiceRanges>,
    /// What direct server return needs; `None` where no service in force has it.
    pub direct: Option<Arc<Direct>>,
    /// Address to identity.
    pub identities: Arc<IdentityTable>,
    /// Verdicts by identity.
    pub policy: Arc<Policy>,
    /// Source translation.
    pub source_nat: Arc<SourceNat>,
    /// Time-outs of flows.
    pub timeouts: Timeouts,
    /// What becomes of TCP segments outside of their windows, where flows have details
    /// ([`crate::flows::Capacities::details`]).
    pub tcp_windows: TcpWindows,
    /// Connections of backends, once a service chose by them; then for as long as the process lives,
    /// since flows are marked as counted.
    pub connections: Option<Arc<Connections>>,
    /// Flows that one local endpoint may have, of both families; 0: as many as the tables take. See
    /// [`crate::charge`].
    pub flows_per_endpoint_max: u32,
    /// Until when a TCP segment in mid-stream that policy denies may be the reply of a flow that
    /// was lost with the process before, and passes if the opposite direction may open one.
    /// [`Nanos`] 0: never. Anybody can send such a segment, so that the time must end.
    pub lost_replies_until: Nanos,
}

impl Tables {
    /// The port by id.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))?.as_ref()
    }

    /// Why a packet to `address` that addresses no frontend and came by a port of the kind `from` goes no
    /// further; `None` where the address is not a service's. One that a pod or the node has is theirs,
    /// whatever range it is in.
    ///
    /// An external address of a service is refused on its other ports to clients outside alone: it is ours
    /// on the uplink, and a router that sends its packets here would get them back. Pods and host processes
    /// reach by it whoever has it outside, as they would without the service.
    #[must_use]
    pub fn unserved(&self, from: PortKind, address: IpAddr) -> Option<DropReason> {
        let is_within = || self.service_ranges.whole.iter().any(|range| range.contains(address));
        let is_anothers = || {
            self.forwarding.endpoints.contains_key(&address)
                || self.forwarding.node_addresses.contains(&address)
        };
        if self.services.addresses.contains(&address) {
            let goes_on = self.services.external.contains(&address)
                && !is_within()
                && (from != PortKind::Uplink || is_anothers());
            return (!goes_on).then_some(DropReason::NoServicePort);
        }
        (is_within() && !is_anothers()).then_some(DropReason::NoService)
    }
}

/// What becomes of TCP segments outside of their connection's windows
/// ([`crate::conntrack::tcp_window`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpWindows {
    /// Nobody looks: a connection is reset by any reset, unless both ends go on speaking.
    #[default]
    Off,
    /// Resets are dropped, others pass and are counted
    /// ([`crate::counters::WorkerCounters::out_of_window_passed`]).
    Relaxed,
    /// They are dropped.
    Strict,
}

/// Idle times after which a flow expires. Names and defaults are Linux conntrack's
/// (`net.netfilter.nf_conntrack_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// SYN seen, no answer.
    pub tcp_syn_sent: Seconds,
    /// SYN and SYN-ACK seen.
    pub tcp_syn_recv: Seconds,
    /// Handshake complete. At least 2 h 4 min (RFC 5382, REQ-5).
    pub tcp_established: Seconds,
    /// A FIN was seen.
    pub tcp_fin_wait: Seconds,
    /// Both FINs seen.
    pub tcp_time_wait: Seconds,
    /// A reset was seen.
    pub tcp_close: Seconds,
    /// No reply seen yet. At least 30 s.
    pub udp: Seconds,
    /// Both directions seen. At least 120 s (RFC 4787, REQ-5).
    pub udp_stream: Seconds,
    /// ICMP query. At least 60 s when translated (RFC 5508, REQ-2); Linux keeps 30 s.
    pub icmp: Seconds,
    /// SCTP: ABORT or SHUTDOWN COMPLETE was seen.
    pub sctp_closed: Seconds,
    /// SCTP: INIT was seen, perhaps INIT ACK.
    pub sctp_cookie_wait: Seconds,
    /// SCTP: COOKIE ECHO was seen.
    pub sctp_cookie_echoed: Seconds,
    /// SCTP: the association stands. Heartbeats come every 30 s (RFC 9260, 16).
    pub sctp_established: Seconds,
    /// SCTP: who opened the association has sent SHUTDOWN.
    pub sctp_shutdown_sent: Seconds,
    /// SCTP: the other side has sent SHUTDOWN.
    pub sctp_shutdown_recd: Seconds,
    /// SCTP: SHUTDOWN ACK was seen.
    pub sctp_shutdown_ack_sent: Seconds,
    /// SCTP: one direction of an association whose beginning was not seen.
    pub sctp_heartbeat_sent: Seconds,
    /// Any other protocol: GRE, ESP and AH among them, by their pair of addresses.
    pub generic: Seconds,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: Seconds(120),
            tcp_syn_recv: Seconds(60),
            tcp_established: Seconds(432_000),
            tcp_fin_wait: Seconds(120),
            tcp_time_wait: Seconds(120),
            tcp_close: Seconds(10),
            udp: Seconds(30),
            udp_stream: Seconds(120),
            icmp: Seconds(60),
            sctp_closed: Seconds(10),
            sctp_cookie_wait: Seconds(3),
            sctp_cookie_echoed: Seconds(3),
            sctp_established: Seconds(210),
            sctp_shutdown_sent: Seconds(3),
            sctp_shutdown_recd: Seconds(3),
            sctp_shutdown_ack_sent: Seconds(3),
            sctp_heartbeat_sent: Seconds(30),
            generic: Seconds(600),
        }
    }
}
