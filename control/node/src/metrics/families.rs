//! Every metric: its name, what it says, and where its value is.

use control::admin::Status;
use control::admin::status::{LimitInfo, PortStatus, WorkerStatus};
use dataplane::DropReason;

use crate::kube_proxy::Kind;

use super::{
    Family, Labels, Sample, Unit, arrivals, audit, cni, flow_tables, kubernetes, live_frames,
    reconciles, segments,
};

pub(super) fn families(status: &Status) -> Vec<Family> {
    let mut families = node(status);
    families.extend(tables(status));
    families.extend(flow_tables::families(status));
    families.extend(workers(status));
    families.push(handoffs(status));
    families.push(drops(status));
    families.extend(ports(status));
    families.extend(limits(status));
    families.extend(live_frames::families(status));
    families.extend(segments::families(status));
    families.push(xdp(status));
    families.extend(control(status));
    families.extend(reconciles::families(status));
    families.extend(audit::families(status));
    families.extend(arrivals::families(status));
    families.extend(cni::families(status));
    families.extend(manifests(status));
    families.extend(status.kubernetes.iter().flat_map(kubernetes::families));
    families
}

pub(super) fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: false, unit: Unit::One, samples }
}

pub(super) fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: true, unit: Unit::One, samples }
}

pub(super) fn one(value: u64) -> Vec<Sample> {
    vec![Sample { labels: Vec::new(), value }]
}

fn node(status: &Status) -> Vec<Family> {
    let build = vec![("version", status.version.clone()), ("node", status.node.clone())];
    vec![
        gauge(
            "xskiff_build_info",
            "Version and node name; always 1",
            vec![Sample { labels: build, value: 1 }],
        ),
        gauge("xskiff_uptime_seconds", "Seconds since start", one(status.uptime_seconds)),
        gauge(
            "xskiff_tables_generation",
            "Generation of the tables in force",
            one(u64::from(status.generation)),
        ),
        gauge(
            "xskiff_verdict",
            "How the node stands: 0 ok, 1 degraded, 2 failing",
            one(status.verdict.level as u64),
        ),
        gauge(
            "xskiff_settings_waiting_for_restart",
            "Fields of the configuration file that differ from what is in force until a restart",
            one(status.waiting_for_restart.len() as u64),
        ),
        gauge(
            "xskiff_kube_proxy_traces",
            "Things of a running or left-over kube-proxy on this node, by kind; legacy-tables may be anybody's",
            Kind::ALL.map(|kind| kube_proxy(status, kind)).to_vec(),
        ),
    ]
}

fn kube_proxy(status: &Status, kind: Kind) -> Sample {
    let label = kind.label();
    let found = status.kube_proxy.iter().filter(|trace| trace.kind == label).count();
    Sample { labels: vec![("kind", label.into())], value: found as u64 }
}

fn tables(status: &Status) -> Vec<Family> {
    let of = |value: fn(&control::admin::status::TableUsage) -> u64| {
        let sample = |table: &control::admin::status::TableUsage| Sample {
            labels: vec![("table", table.name.clone())],
            value: value(table),
        };
        status.tables.iter().map(sample).collect::<Vec<_>>()
    };
    vec![
        gauge("xskiff_table_used_entries", "Entries in a bounded table", of(|table| table.used)),
        gauge(
            "xskiff_table_capacity_entries",
            "Entries a bounded table takes at most",
            of(|table| table.capacity),
        ),
        gauge(
            "xskiff_table_high_water_entries",
            "Most entries a bounded table has held since start",
            of(|table| table.high_water),
        ),
    ]
}

pub(super) type Column<T> = (&'static str, &'static str, bool, fn(&T) -> u64);

pub(super) fn columns<T>(
    rows: &[T],
    labels: fn(&T) -> Labels,
    columns: &[Column<T>],
) -> Vec<Family> {
    let family = |(name, help, counter, value): &Column<T>| Family {
        name,
        help,
        counter: *counter,
        unit: Unit::One,
        samples: rows.iter().map(|row| Sample { labels: labels(row), value: value(row) }).collect(),
    };
    columns.iter().map(family).collect()
}

pub(super) fn worker_labels(worker: &WorkerStatus) -> Labels {
    vec![("worker", worker.worker.to_string())]
}

const WORKER_COLUMNS: &[Column<WorkerStatus>] = &[
    ("xskiff_worker_alive", "1 while the worker ticks or announced its sleep", false, |w| {
        u64::from(w.alive)
    }),
    ("xskiff_worker_restarts", "Times the worker went on after a panic", true, |w| w.restarts),
    ("xskiff_worker_stalls", "Times the worker stood still for stall.after_ms", true, |w| w.stalls),
    (
        "xskiff_worker_pressed_bursts",
        "Bursts taken in while the worker had more to do than it can: new flows were shed",
        true,
        |w| w.pressed_bursts,
    ),
    ("xskiff_worker_tables_adopted", "Published tables the worker has adopted", true, |w| {
        w.tables_adopted
    }),
    ("xskiff_worker_bursts", "Bursts handled, also empty ones", true, |w| w.ticks),
    ("xskiff_worker_received_packets", "Packets taken from receive rings", true, |w| w.received),
    ("xskiff_worker_handed_in_packets", "Packets taken from other workers", true, |w| w.handed_in),
    ("xskiff_worker_handed_out_packets", "Packets given to other workers", true, |w| w.handed_out),
    (
        "xskiff_worker_foreign_hits_packets",
        "Packets finished by a flow whose entry another worker has; under full load an estimate",
        true,
        |w| w.foreign_hits,
    ),
    (
        "xskiff_flows_opened_for_others",
        "Flows inserted by a worker that is not their hash's owner: mapped ones at their source's \
         home, and those that began in fragments",
        true,
        |w| w.flows_opened_for_others,
    ),
    (
        "xskiff_flows_with_alias_elsewhere",
        "Flows inserted whose replies' hash is another worker's: translated ones",
        true,
        |w| w.flows_with_alias_elsewhere,
    ),
    (
        "xskiff_worker_originated_packets",
        "Packets the worker made itself (ICMP errors)",
        true,
        |w| w.originated,
    ),
    ("xskiff_worker_transmitted_packets", "Packets queued on a transmit path", true, |w| {
        w.transmitted
    }),
    (
        "xskiff_worker_held_packets",
        "Packets that wait for a neighbour, for their first fragment or for their time now",
        false,
        |w| w.held,
    ),
    (
        "xskiff_worker_paced_packets",
        "Packets that waited for their time at a bandwidth limit",
        true,
        |w| w.paced_packets,
    ),
    (
        "xskiff_worker_paced_bytes",
        "Bytes of packets that waited for their time at a bandwidth limit",
        true,
        |w| w.paced_bytes,
    ),
    ("xskiff_flows_created", "Flows inserted", true, |w| w.flows_created),
    ("xskiff_flows_masqueraded", "Flows inserted whose source is masqueraded", true, |w| {
        w.flows_masqueraded
    }),
    (
        "xskiff_flows_translated_by_rule",
        "Flows inserted whose source a rule of nat.snat translates",
        true,
        |w| w.flows_translated_by_rule,
    ),
    ("xskiff_flows_expired", "Flows ended by their time-out", true, |w| w.flows_expired),
    ("xskiff_flows_deleted", "Flows ended by request", true, |w| w.flows_deleted),
    ("xskiff_flows_evicted", "Flows given up to make room", true, |w| w.flows_evicted),
    ("xskiff_flows_audited", "Flows that stand only because a policy is under audit", true, |w| {
        w.flows_audited
    }),
    ("xskiff_flows_rejudged", "Flows judged again because tables changed", true, |w| {
        w.flows_rejudged
    }),
    ("xskiff_flows_reset", "TCP connections reset because their backend is gone", true, |w| {
        w.flows_reset
    }),
    (
        "xskiff_flows_chosen_anew",
        "Flows that ended to be given another backend, since theirs serves no longer",
        true,
        |w| w.flows_chosen_anew,
    ),
    (
        "xskiff_affinities_created",
        "Clients whose backend was remembered for session affinity",
        true,
        |w| w.affinities_created,
    ),
    (
        "xskiff_affinities_refused",
        "Clients whose backend was not remembered: the flow table had no room",
        true,
        |w| w.affinities_refused,
    ),
    (
        "xskiff_lost_replies",
        "Flows opened after a start by segments that policy denies, as replies of lost flows",
        true,
        |w| w.lost_replies,
    ),
    (
        "xskiff_unknown_pod_dropped_packets",
        "Packets dropped by policy since no Pod object of their sender or receiver is known",
        true,
        |w| w.unknown_pod_drops,
    ),
    (
        "xskiff_unknown_pod_flows",
        "Flows admitted since no Pod object of their sender or receiver is known",
        true,
        |w| w.unknown_pod_flows,
    ),
    (
        "xskiff_tcp_out_of_window_passed",
        "TCP segments outside of their windows that passed because windows are relaxed",
        true,
        |w| w.out_of_window_passed,
    ),
    (
        "xskiff_tcp_resets_challenged",
        "TCP resets that passed and ended nothing, being not what was expected next",
        true,
        |w| w.resets_challenged,
    ),
    (
        "xskiff_packets_between_families",
        "Packets translated between IPv4 and IPv6, ICMP errors included",
        true,
        |w| w.between_families,
    ),
    (
        "xskiff_packets_dispatched",
        "Packets sent on to the node of their backend, which answers their clients (direct server return)",
        true,
        |w| w.dispatched,
    ),
    (
        "xskiff_packets_dispatched_without_flow",
        "Packets to stateless services sent on to the node of their backend: no flow is kept of them",
        true,
        |w| w.dispatched_without_flow,
    ),
    (
        "xskiff_packets_directed",
        "Packets of clients that another node has chosen the backend of (direct server return)",
        true,
        |w| w.directed,
    ),
    ("xskiff_flow_events_lost", "Flow events lost to a full ring or a spent budget", true, |w| {
        w.events_lost
    }),
    ("xskiff_captured_packets_lost", "Captured packets lost to a full ring", true, |w| {
        w.captures_lost
    }),
    (
        "xskiff_replies_suppressed",
        "ICMP errors and TCP resets not sent: rate limit, or no address known",
        true,
        |w| w.replies_suppressed,
    ),
];

fn workers(status: &Status) -> Vec<Family> {
    columns(&status.workers, worker_labels, WORKER_COLUMNS)
}

fn handoffs(status: &Status) -> Family {
    let of = |worker: &WorkerStatus| {
        let labels = worker_labels(worker);
        let cause = move |(cause, value): &(String, u64)| Sample {
            labels: [labels.clone(), vec![("cause", cause.clone())]].concat(),
            value: *value,
        };
        worker.handed_for.iter().map(cause).collect::<Vec<_>>()
    };
    let help = "Packets meant for another worker, by cause: miss (only its hash's owner opens a flow), \
                mapping (its source's home does), holder (it removes a flow that is over), fragment \
                (where its packet meets); what found an inbox full is dropped as handoff-full";
    counter("xskiff_worker_handoffs_packets", help, status.workers.iter().flat_map(of).collect())
}

/// Every reason for every worker, so that a rate is there before the first drop.
fn drops(status: &Status) -> Family {
    let sample = |worker: &WorkerStatus, reason: DropReason| {
        let counted = worker.dropped.iter().find(|(label, _)| label == reason.label());
        let mut labels = worker_labels(worker);
        labels.push(("reason", reason.label().to_owned()));
        Sample { labels, value: counted.map_or(0, |(_, packets)| *packets) }
    };
    let samples = status
        .workers
        .iter()
        .flat_map(|worker| DropReason::ALL.iter().map(move |reason| sample(worker, *reason)))
        .collect();
    counter("xskiff_dropped_packets", "Packets dropped, by reason", samples)
}

fn port_labels(port: &PortStatus) -> Labels {
    vec![
        ("interface", port.interface.clone()),
        ("kind", port.kind.clone()),
        ("endpoint", port.endpoint.clone().unwrap_or_default()),
    ]
}

const PORT_COLUMNS: &[Column<PortStatus>] = &[
    ("xskiff_port_up", "1 while the link is up with a carrier", false, |p| u64::from(p.up)),
    ("xskiff_port_mtu_bytes", "Largest IP packet on the link", false, |p| u64::from(p.mtu)),
    ("xskiff_port_queues", "Queues with a socket", false, |p| u64::from(p.queues)),
    ("xskiff_port_flows", "Flows charged to the port's pod", false, |p| p.flows),
    ("xskiff_port_received_packets", "Packets received from the port", true, |p| {
        p.received_packets
    }),
    ("xskiff_port_received_bytes", "Bytes received from the port", true, |p| p.received_bytes),
    ("xskiff_port_transmitted_packets", "Packets queued for transmission", true, |p| {
        p.transmitted_packets
    }),
    ("xskiff_port_transmitted_bytes", "Bytes queued for transmission", true, |p| {
        p.transmitted_bytes
    }),
    (
        "xskiff_xsk_rx_dropped_packets",
        "XDP_STATISTICS rx_dropped: frames that do not fit their buffer, among others",
        true,
        |p| p.sockets.rx_dropped,
    ),
    (
        "xskiff_xsk_rx_invalid_descriptors",
        "XDP_STATISTICS rx_invalid_descs: invalid fill ring descriptors",
        true,
        |p| p.sockets.rx_invalid_descriptors,
    ),
    (
        "xskiff_xsk_tx_invalid_descriptors",
        "XDP_STATISTICS tx_invalid_descs: invalid transmit descriptors",
        true,
        |p| p.sockets.tx_invalid_descriptors,
    ),
    (
        "xskiff_xsk_rx_ring_full_packets",
        "XDP_STATISTICS rx_ring_full: frames dropped because the worker reads too slowly",
        true,
        |p| p.sockets.rx_ring_full,
    ),
    (
        "xskiff_xsk_rx_fill_ring_empty",
        "XDP_STATISTICS rx_fill_ring_empty_descs: times no buffer was there to receive into",
        true,
        |p| p.sockets.rx_fill_ring_empty,
    ),
    (
        "xskiff_xsk_tx_ring_empty",
        "XDP_STATISTICS tx_ring_empty_descs: times the kernel found nothing to send",
        true,
        |p| p.sockets.tx_ring_empty,
    ),
];

fn ports(status: &Status) -> Vec<Family> {
    columns(&status.ports, port_labels, PORT_COLUMNS)
}

/// Of ports that have a bandwidth limit.
fn limits(status: &Status) -> Vec<Family> {
    let of = |value: fn(&LimitInfo) -> u64| {
        let of_port = |port: &PortStatus| {
            let labels = port_labels(port);
            let sample = move |limit: &LimitInfo| {
                let direction = ("direction", limit.direction.clone());
                Sample { labels: [labels.clone(), vec![direction]].concat(), value: value(limit) }
            };
            port.limits.iter().map(sample).collect::<Vec<_>>()
        };
        status.ports.iter().flat_map(of_port).collect::<Vec<_>>()
    };
    vec![
        gauge(
            "xskiff_bandwidth_limit_bytes_per_second",
            "A pod's bandwidth limit in force",
            of(|limit| limit.bits_per_second / 8),
        ),
        counter(
            "xskiff_bandwidth_delayed_packets",
            "Packets that waited for their time at a pod's bandwidth limit",
            of(|limit| limit.delayed_packets),
        ),
        counter(
            "xskiff_bandwidth_dropped_packets",
            "Packets that a pod's bandwidth limit dropped, since they would have waited too long",
            of(|limit| limit.dropped_packets),
        ),
    ]
}

/// What became of a frame at the XDP program; the first two are its work, the rest are losses but
/// for those left to the kernel.
fn xdp(status: &Status) -> Family {
    let xdp = &status.xdp;
    let samples = [
        ("redirected", xdp.redirected),
        ("passed", xdp.passed),
        ("no-socket", xdp.no_socket),
        ("stalled", xdp.stalled),
        ("not-ip", xdp.not_ip),
        ("malformed", xdp.malformed),
        ("unknown-interface", xdp.unknown_interface),
        ("passed-on-stall", xdp.passed_on_stall),
        ("tagged", xdp.tagged),
        ("late", xdp.late),
    ]
    .map(|(outcome, value)| Sample { labels: vec![("outcome", outcome.into())], value });
    let help = "Frames by what the XDP program did with them, all interfaces together";
    counter("xskiff_xdp_packets", help, samples.into())
}

fn control(status: &Status) -> Vec<Family> {
    let counts = &status.control;
    [
        ("xskiff_publishes", "Tables published to the workers", counts.publishes),
        (
            "xskiff_netlink_resyncs",
            "Full readings of the kernel's links, addresses, routes and neighbours",
            counts.netlink_resyncs,
        ),
        (
            "xskiff_netlink_overruns",
            "Times the kernel dropped notifications because they were read too slowly",
            counts.netlink_overruns,
        ),
        ("xskiff_neighbour_requests", "Neighbours asked for", counts.neighbour_requests),
        (
            "xskiff_neighbour_requests_refused",
            "Neighbour requests refused because too many are tracked",
            counts.neighbour_requests_refused,
        ),
        ("xskiff_admin_clients", "Admin clients served", counts.admin_clients),
        (
            "xskiff_admin_refusals",
            "Admin clients turned away or cut off (bound, time-out, oversize)",
            counts.admin_refusals,
        ),
        (
            "xskiff_control_restarts",
            "Times the control thread began anew after a panic",
            counts.restarts,
        ),
    ]
    .map(|(name, help, value)| counter(name, help, one(value)))
    .into()
}

fn manifests(status: &Status) -> Vec<Family> {
    let manifests = &status.manifests;
    let objects = manifests
        .objects
        .iter()
        .map(|(kind, value)| Sample { labels: vec![("kind", kind.clone())], value: *value })
        .collect();
    let mut families = vec![
        gauge("xskiff_manifests_objects", "Objects in force, by kind", objects),
        counter("xskiff_manifests_reads", "Readings of the manifests", one(manifests.reads)),
        counter(
            "xskiff_manifests_failures",
            "Readings refused whole or in part; the last good state stayed in force",
            one(manifests.failures),
        ),
        gauge(
            "xskiff_manifests_refused_objects",
            "Objects or files refused now",
            one(manifests.errors.len() as u64),
        ),
    ];
    if let Some(seconds) = manifests.seconds_since_success {
        families.push(gauge(
            "xskiff_manifests_last_success_age_seconds",
            "Seconds since the last reading that succeeded",
            one(seconds),
        ));
    }
    families
}
