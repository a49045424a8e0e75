//! The node's state in full. `xskiff status`, its `--json`, and `/metrics` are all made from this
//! one value, so that they cannot disagree.
//!
//! What is not told has its default: a process that takes over asks the one before it, which may be of an
//! earlier version.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::arrivals::{ArrivalsStatus, RunningPodsStatus};
use super::cni::CniStatus;
use super::kubernetes::KubernetesStatus;
use super::reply::{DropCount, ManifestsStatus};

/// Everything the node says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The verdict, first.
    pub verdict: Verdict,
    /// Version of the running binary.
    pub version: String,
    /// This node's name in the manifests.
    pub node: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Generation of the tables in force.
    pub generation: u32,
    /// Interfaces of ours.
    pub ports: Vec<PortStatus>,
    /// Worker threads.
    pub workers: Vec<WorkerStatus>,
    /// What left as live XDP frames.
    pub live_frames: LiveFramesStatus,
    /// What became of TCP segments longer than the MTU.
    pub segments: SegmentsStatus,
    /// What became of the sockets of the process that this one took over from; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handed_on: Option<HandedOn>,
    /// Where metrics and probes are answered; absent where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_listen: Option<SocketAddr>,
    /// Every bounded table.
    pub tables: Vec<TableUsage>,
    /// How the flow tables began, and where they lie.
    pub flow_tables: Vec<FlowTableStatus>,
    /// Packets dropped by reason, all workers; every reason, also those with 0.
    pub drops: Vec<DropCount>,
    /// What the XDP program did.
    pub xdp: XdpCounts,
    /// What control does.
    pub control: ControlStatus,
    /// Everything that brings one thing in step with another.
    pub reconciles: Vec<ReconcileStatus>,
    /// The audit of what is in force.
    pub audit: AuditStatus,
    /// How pods' ports come and go.
    pub arrivals: ArrivalsStatus,
    /// Pods that ran before the node process was installed.
    pub running_pods: RunningPodsStatus,
    /// Pods of the CNI plugin, and its place in the runtime's configuration.
    pub cni: CniStatus,
    /// The manifests folder.
    pub manifests: ManifestsStatus,
    /// The API servers, where they are followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesStatus>,
    /// What shows of kube-proxy on this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kube_proxy: Vec<TraceStatus>,
    /// Rules of iptables of others that packets pass by once they are redirected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bypassed_chains: Vec<BypassedChains>,
    /// Fields of the configuration file that differ from what is in force, and will until the
    /// process is started again.
    pub waiting_for_restart: Vec<String>,
    /// Last errors, newest first, at most [`ERRORS_MAX`].
    pub errors: Vec<ObjectError>,
}

/// Sockets that go from one process to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandedOn {
    /// Sockets that this process uses as it was given them, with their packet memory.
    pub sockets: u32,
    /// Sockets that it was given, could not use, and closed: their ports have bound new ones.
    pub bound_anew: u32,
    /// Why it was given none, or could use none of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What all workers did with live XDP frames, the second way out of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveFramesStatus {
    /// Why this kernel does not send them for the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// Calls into the kernel.
    pub calls: u64,
    /// Calls it refused for want of a number for one more page pool.
    pub refused_no_space: u64,
    /// Calls it refused for want of memory.
    pub refused_no_memory: u64,
    /// Calls it refused otherwise.
    pub refused_otherwise: u64,
    /// Packets that a call did not take, or that had no interface, and which AF_XDP was given.
    pub returned_packets: u64,
    /// Packets lost while they waited, since their port was removed or its link went down.
    pub abandoned_packets: u64,
}

/// What became of TCP segments longer than the MTU, by all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegmentsStatus {
    /// Those that left as they came.
    pub whole_packets: u64,
    /// Segments that were made of packets of one stream, and left the same way.
    pub joined_segments: u64,
    /// The packets that they were made of.
    pub joined_packets: u64,
    /// Other packets of links that left the same way, since they followed one or might have been joined.
    pub following_packets: u64,
    /// Calls into the kernel that sent both.
    pub calls: u64,
    /// Packets of both that the kernel refused for their header.
    pub refused_header_packets: u64,
    /// Packets of both that it refused for want of memory, or since too many wait at their receivers.
    pub refused_memory_packets: u64,
    /// Packets of both that were lost with their port, or since its link was down.
    pub abandoned_packets: u64,
    /// Those that were cut here.
    pub cut_packets: u64,
    /// Packets that they were cut into and that left.
    pub cut_pieces: u64,
    /// Pieces that were lost for want of packet memory or of room to transmit.
    pub lost_pieces: u64,
}

/// Something of kube-proxy's on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceStatus {
    /// `process`, `nftables`, `iptables`, `ipvs`; or `legacy-tables`, which may be anybody's.
    pub kind: String,
    /// What it is.
    pub what: String,
}

/// Chains that packets pass by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BypassedChains {
    /// Whose they are, as their names say.
    pub owner: String,
    /// How many.
    pub chains: u64,
}

/// How the audit stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditStatus {
    /// Rounds since the process began.
    pub rounds: u64,
    /// Rounds after which everything was made anew.
    pub repairs: u64,
    /// Things that the last round compared.
    pub checked: u64,
    /// Differences that the last round found.
    pub found: u64,
    /// Seconds that the last round took.
    pub seconds: f64,
    /// Seconds since it ended; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_since: Option<u64>,
    /// Differences since the process began, by what differed.
    pub differences: Vec<(String, u64)>,
}

/// How something fares that brings one thing in step with another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReconcileStatus {
    /// `compile`, `policy`, `xdp-maps`, `source-Pod` and so on.
    pub reconcile: String,
    /// Runs since start, failed ones among them.
    pub runs: u64,
    /// Failures since start. Of a table that is compiled: differences that the audit found in it.
    pub failures: u64,
    /// Time of all runs together; absent where it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub microseconds: Option<u64>,
    /// Time of the longest; absent where it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_microseconds: Option<u64>,
    /// The last failure, also when it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ObjectError>,
}

/// Errors kept for `status`, at most.
pub const ERRORS_MAX: usize = 32;

/// The first line of `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// How it stands.
    pub level: Level,
    /// One sentence.
    pub summary: String,
    /// What to do next.
    pub next_step: String,
}

/// How the node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    #[default]
    Ok,
    /// Traffic passes, but something is wrong.
    Degraded,
    /// Traffic of some port or worker does not pass.
    Failing,
}

/// A later version's word for something between the first and the last is read as what is between them here.
impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match &*String::deserialize(deserializer)? {
            "ok" => Self::Ok,
            "failing" => Self::Failing,
            _ => Self::Degraded,
        })
    }
}

/// A bandwidth limit in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitInfo {
    /// `ingress` (to the pod) or `egress` (from it).
    pub direction: String,
    /// Bits a second.
    pub bits_per_second: u64,
    /// Bits that may go at once after a pause, where the runtime told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_bits: Option<u64>,
    /// Packets that waited for their time.
    pub delayed_packets: u64,
    /// Packets that were dropped, because they would have waited too long or found no room.
    pub dropped_packets: u64,
}

/// One interface of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortStatus {
    /// Index in the tables.
    pub port: u16,
    /// Kernel name.
    pub interface: String,
    /// `pod`, `uplink` or `host`.
    pub kind: String,
    /// `namespace/pod` for pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the link is up with a carrier.
    pub up: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// `native` or `generic`, as the kernel reports it.
    pub xdp_mode: String,
    /// `copy` or `zero-copy`, as the kernel reports it.
    pub socket_mode: String,
    /// Queues with a socket.
    pub queues: u32,
    /// How packets leave: `live-frames` (when there are many at once), or `af-xdp` and why.
    pub transmit: String,
    /// Packets of those transmitted that left as live frames, under any port of this number.
    pub live_packets: u64,
    /// Of those, packets that a full ring at the other end refused.
    pub live_refused_packets: u64,
    /// Of those, packets that vanished since the other end polls nothing.
    pub live_vanished_packets: u64,
    /// Packets received from the port.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets queued for transmission.
    pub transmitted_packets: u64,
    /// Bytes queued for transmission.
    pub transmitted_bytes: u64,
    /// Flows charged to its pod.
    pub flows: u64,
    /// Bandwidth limits of its pod in force, ingress first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitInfo>,
    /// Counters of its sockets, all queues.
    pub sockets: SocketCounts,
}

/// How a flow table began, where it lies, and how it fills.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowTableStatus {
    /// Its name among the tables.
    pub table: String,
    /// Its file, in which the next process finds it; absent: its flows end with this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// `new`, or what became of the flows of the process before: `taken-over` as they were left,
    /// `rebuilt` after a kill or for other workers, `moved` to a table of another size.
    pub outcome: String,
    /// Flows that it began with.
    pub flows: u64,
    /// Flows of the process before that found no room.
    pub lost: u64,
    /// Why flows were not taken, or why there is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it fills.
    pub fill: FlowTableFill,
}

/// How a flow table fills and grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowTableFill {
    /// Flows now, each exactly once; those included that are over and not swept yet.
    pub used: u64,
    /// Most flows of each worker at once, summed: at least the most there were.
    pub high_water: u64,
    /// Ended flows whose entries wait until every worker has let go of them.
    pub waiting: u64,
    /// Flows there is room for now.
    pub capacity: u64,
    /// Flows that it grows to by itself.
    pub capacity_max: u64,
    /// Whether that is a part of the machine's memory, since no setting says otherwise.
    pub derived: bool,
    /// Flows there is memory for already.
    pub committed: u64,
    /// Memory that it has, in bytes.
    pub memory_bytes: u64,
    /// Whether memory is being taken for more flows at this moment.
    pub taking_memory: bool,
    /// Whether its index is being moved, to grow or to shrink.
    pub index_moving: bool,
    /// Times its capacity rose by itself.
    pub grown: u64,
    /// Times it was resized on request.
    pub resized: u64,
    /// Times the memory for more flows was not to be had.
    pub growth_refused: u64,
    /// Why, the last time, until it is to be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth_refusal: Option<String>,
    /// Seconds until it holds `capacity_max` flows, at the pace of the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_to_full: Option<u64>,
    /// Flows not inserted because no entry was free.
    pub inserts_refused_full: u64,
    /// Flows not inserted because the index had no room for their hash.
    pub inserts_refused_index: u64,
}

/// What the XDP program did with frames, all interfaces together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct XdpCounts {
    /// Ours, handed to a socket.
    pub redirected: u64,
    /// Not ours, left to the node's own stack.
    pub passed: u64,
    /// Ours, dropped: no socket serves the queue.
    pub no_socket: u64,
    /// Ours, dropped: the worker that serves the queue does not tick.
    pub stalled: u64,
    /// Neither IP nor ARP, from a pod or the host's stack, dropped.
    pub not_ip: u64,
    /// Dropped: the frame ends before the headers it announces.
    pub malformed: u64,
    /// From an interface in no table, left to the kernel.
    pub unknown_interface: u64,
    /// Ours without a live worker, left to the kernel as configured.
    pub passed_on_stall: u64,
    /// Ours behind a priority tag on an uplink, dropped. 0 of a node before it was counted.
    pub tagged: u64,
    /// Ours and the first of a TCP connection, dropped: the worker that serves the queue is late with its
    /// tick. 0 of a node before it was counted.
    pub late: u64,
}

/// XDP_STATISTICS (include/uapi/linux/if_xdp.h), summed over a port's queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketCounts {
    /// Frames dropped for other reasons, such as being larger than the buffer.
    pub rx_dropped: u64,
    /// Receive descriptors that were invalid.
    pub rx_invalid_descriptors: u64,
    /// Transmit descriptors that were invalid.
    pub tx_invalid_descriptors: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was empty.
    pub rx_fill_ring_empty: u64,
    /// Times the transmit ring was empty when the kernel looked.
    pub tx_ring_empty: u64,
}

/// One worker thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Number, from 0.
    pub worker: u16,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// `spin`, `adaptive` or `busy-poll`.
    pub mode: String,
    /// Whether it has ticked, or announced its sleep, within the stall limit.
    pub alive: bool,
    /// How often it has gone on after a panic.
    pub restarts: u64,
    /// How often it has stalled: what is ours on its queues was dropped until it was back.
    pub stalls: u64,
    /// Bursts taken in while it had more to do than it can: new flows were shed.
    pub pressed_bursts: u64,
    /// Published tables it has adopted since start.
    pub tables_adopted: u64,
    /// Packets taken from receive rings.
    pub received: u64,
    /// Packets taken from other workers.
    pub handed_in: u64,
    /// Packets it made itself.
    pub originated: u64,
    /// Packets queued on a transmit path.
    pub transmitted: u64,
    /// Packets given to other workers.
    pub handed_out: u64,
    /// The same by cause, those included that found an inbox full: `miss`, `mapping`, `holder`,
    /// `fragment`.
    pub handed_for: Vec<(String, u64)>,
    /// Packets finished by a flow whose entry another worker has; of full bursts an estimate.
    pub foreign_hits: u64,
    /// Flows opened though another worker is their hash's owner.
    pub flows_opened_for_others: u64,
    /// Flows opened of whose replies another worker is the hash's owner.
    pub flows_with_alias_elsewhere: u64,
    /// Packets that wait for a neighbour, for their first fragment or for their time now.
    pub held: u64,
    /// Packets that waited for their time at a bandwidth limit.
    pub paced_packets: u64,
    /// Their bytes.
    pub paced_bytes: u64,
    /// Packets dropped, by reason's label; reasons with 0 are left out.
    pub dropped: Vec<(String, u64)>,
    /// Flows inserted.
    pub flows_created: u64,
    /// Of those, ones whose source is masqueraded.
    pub flows_masqueraded: u64,
    /// Of those, ones whose source a rule of `nat.snat` translates.
    pub flows_translated_by_rule: u64,
    /// Flows ended by time-out.
    pub flows_expired: u64,
    /// Flows ended by request.
    pub flows_deleted: u64,
    /// Flows given up to make room.
    pub flows_evicted: u64,
    /// The same by class: `half-open`, `closing`, `short-lived`.
    pub evicted: Vec<(String, u64)>,

    /// Flows judged again because tables changed.
    pub flows_rejudged: u64,
    /// TCP connections reset because their backend is gone.
    pub flows_reset: u64,
    /// Flows that ended to be decided about anew: UDP whose backend serves no longer, mostly.
    pub flows_chosen_anew: u64,
    /// Clients whose backend was remembered for session affinity.
    pub affinities_created: u64,
    /// Those for whom the flow table had no room.
    pub affinities_refused: u64,
    /// Flows that stand only because a policy that would refuse them is under audit.
    pub flows_audited: u64,
    /// Flows opened by what policy denies, taken for a lost flow's reply.
    pub lost_replies: u64,
    /// Packets dropped, of those that policy dropped, since no Pod object of their sender or receiver
    /// is known.
    pub unknown_pod_drops: u64,
    /// Flows admitted for that reason.
    pub unknown_pod_flows: u64,
    /// TCP segments outside of their windows that passed.
    pub out_of_window_passed: u64,
    /// TCP resets that passed and ended nothing, being not what was expected next.
    pub resets_challenged: u64,
    /// Packets translated between IPv4 and IPv6.
    pub between_families: u64,
    /// Packets sent on to the node of their backend, which answers their clients.
    pub dispatched: u64,
    /// Those of them that no flow is kept of.
    pub dispatched_without_flow: u64,
    /// Packets of clients that another node has chosen the backend of.
    pub directed: u64,
    /// Events lost because a ring was full or the budget spent.
    pub events_lost: u64,
    /// Captured packets lost because the ring was full.
    pub captures_lost: u64,
    /// ICMP errors and TCP resets not sent.
    pub replies_suppressed: u64,
    /// Bursts handled, also empty ones.
    pub ticks: u64,
}

/// How full a bounded table is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableUsage {
    /// `flows_ipv4`, `fragments`, `ports`, `services`, `next_hops` and so on.
    pub name: String,
    /// Entries now.
    pub used: u64,
    /// Entries at most.
    pub capacity: u64,
    /// Most entries since start.
    pub high_water: u64,
    /// Whether it refuses nothing when it is full, by design: it forgets its oldest entry for a new
    /// one, or tells less.
    pub overwrites: bool,
}

/// What the control thread has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlStatus {
    /// Tables published.
    pub publishes: u64,
    /// Full readings of the kernel's links, addresses, routes and neighbours.
    pub netlink_resyncs: u64,
    /// Times the kernel dropped notifications because we read too slowly.
    pub netlink_overruns: u64,
    /// Neighbours asked for.
    pub neighbour_requests: u64,
    /// Neighbour requests refused because too many are tracked.
    pub neighbour_requests_refused: u64,
    /// Admin clients served.
    pub admin_clients: u64,
    /// Admin clients turned away or cut off (bound, time-out, oversize).
    pub admin_refusals: u64,
    /// Failed reconciles of any kind.
    pub reconcile_failures: u64,
    /// How often the control thread has begun anew after a panic.
    pub restarts: u64,
}

/// A failure, with the object it concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectError {
    /// `NetworkPolicy shop/deny-all`, `interface eth0`, a file's path.
    pub object: String,
    /// What went wrong and the way out.
    pub message: String,
    /// Milliseconds since the Unix epoch, of the last time.
    pub time_unix_ms: u64,
    /// Times in a row.
    pub count: u64,
}
