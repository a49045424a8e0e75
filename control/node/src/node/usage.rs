//! Every bounded table: how full it is, and the most it has held.
//!
//! Whoever fills a table notes its peak: workers and servers by a [`Level`], and what the control
//! thread fills by itself is noted here whenever it may have changed. Between two looks nothing is
//! missed.
//!
//! [`Level`]: dataplane::counters::Level

use std::net::IpAddr;

use cluster::follow::whole::{OBJECTS_MAX as KUBERNETES_OBJECTS_MAX, REFUSED_MAX};
use control::admin::status::{ERRORS_MAX, TableUsage};
use control::compile::BLOCKS_AT_CUTS_MAX;
use control::manifests::OBJECTS_MAX;
use dataplane::capture::CAPTURE_PACKETS_MAX;
use dataplane::counters::PORTS_MAX;
use dataplane::flow_ends::FILTER_BITS_MAX;
use dataplane::nat::rules::SNAT_ADDRESSES_MAX;
use xdp_redirect::limits::{NODE_ADDRESSES_MAX, POD_ADDRESSES_MAX, PREFIXES_MAX};
use xdp_redirect::umem::SOCKETS_MAX;

use super::flow_log::{FLOWS_KEPT_MAX, FOLLOWERS_MAX};
use super::flow_watch::WATCHED_MAX;
use super::{ARRIVALS_MAX, Node, STATUS_REQUESTS_MAX};
use crate::admin_server::{CALLS_MAX, CLIENTS_MAX, CONNECTIONS_MAX as ADMIN_CONNECTIONS_MAX};
use crate::forwarding_view::NEXT_HOPS_MAX;
use crate::health_checks::{CHECKS_MAX, CONNECTIONS_MAX as HEALTH_CONNECTIONS_MAX};
use crate::http::CONNECTIONS_MAX;
use crate::netlink::follow::COMMANDS_MAX as KERNEL_REQUESTS_MAX;
use crate::netlink::neighbours::ASKED_MAX;
use crate::netlink::view::{LINKS_MAX, NEIGHBOURS_MAX, ROUTES_MAX};

/// Every row of `tables` in a status, in order.
pub const ROWS: [&str; 52] = [
    "flows_ipv4",
    "flows_ipv6",
    "flows_per_endpoint",
    "flow_ends",
    "held_packets",
    "waiting_fragments",
    "paced_frames",
    "fragments",
    "snat_l4_ports",
    "flushes",
    "worker_sockets",
    "handoff_vectors",
    "worker_commands",
    "retired_objects",
    "flow_events",
    "neighbour_requests",
    "socket_commands",
    "captured_packets",
    "packet_frames",
    "packet_memory_sockets",
    "pod_packet_frames",
    "admin_connections",
    "admin_clients",
    "admin_calls",
    "http_connections",
    "health_connections",
    "health_checks",
    "status_requests",
    "kernel_requests",
    "ports",
    "endpoints",
    "endpoint_arrivals",
    "next_hops",
    "links",
    "routes",
    "kernel_neighbours",
    "asked_neighbours",
    "manifest_objects",
    "kubernetes_objects",
    "kubernetes_refused_objects",
    "policy_blocks_at_cuts",
    "flow_followers",
    "watched_flows",
    "snat_addresses",
    RECENT_FLOW_EVENTS,
    RECENT_ERRORS,
    "xdp_prefixes_ipv4",
    "xdp_prefixes_ipv6",
    "xdp_node_addresses_ipv4",
    "xdp_node_addresses_ipv6",
    "xdp_pod_addresses_ipv4",
    "xdp_pod_addresses_ipv6",
];

const RECENT_FLOW_EVENTS: &str = "recent_flow_events";
const RECENT_ERRORS: &str = "recent_errors";
/// Tables that refuse nothing when they are full: they forget their oldest entry for a new one, or,
/// as [`dataplane::flow_ends`], tell less.
const OVERWRITING: [&str; 4] = ["fragments", "flow_ends", RECENT_FLOW_EVENTS, RECENT_ERRORS];

/// One table: entries now, the most its owner has noted, entries at most.
struct Row {
    name: &'static str,
    used: u64,
    most: u64,
    capacity: u64,
}

impl Row {
    fn new(name: &'static str, used: u64, most: u64, capacity: usize) -> Self {
        Self { name, used, most: most.max(used), capacity: capacity as u64 }
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Node {
    pub(super) fn table_usages(&mut self) -> Vec<TableUsage> {
        self.note_control_tables();
        let (flows, growth) = (self.workers.flows(), self.workers.growth());
        let flows = [
            ("flows_ipv4", flows.v4.statistics(), growth.v4.max()),
            ("flows_ipv6", flows.v6.statistics(), growth.v6.max()),
        ];
        let mut rows: Vec<Row> = flows
            .into_iter()
            .map(|(name, flows, max)| Row {
                name,
                used: flows.used,
                most: flows.used_high_water,
                // What it grows to by itself.
                capacity: flows.capacity.max(max as u64),
            })
            .collect();
        rows.push(self.fullest_endpoint());
        let (ends, ends_most) = self.workers.census().usage();
        rows.push(Row::new("flow_ends", ends, ends_most, FILTER_BITS_MAX));
        let workers = self.workers.fullest();
        rows.extend(workers.iter().map(|row| Row::new(row.name, row.used, row.most, row.capacity)));
        rows.push(self.captured_packets());
        rows.extend(self.packet_memory());
        rows.extend(self.queues());
        rows.extend(self.control_tables());
        let told = rows.into_iter().map(|row| TableUsage {
            name: row.name.into(),
            used: row.used,
            capacity: row.capacity,
            high_water: row.most.max(self.high_water.get(row.name).copied().unwrap_or(0)),
            overwrites: OVERWRITING.contains(&row.name),
        });
        told.collect()
    }

    /// Remembers the most that each table of the control thread's own has held. To be called when
    /// one of them may have grown.
    pub(super) fn note_control_tables(&mut self) {
        // The ring of a capture ends with it.
        let captured = self.captured_packets();
        for row in self.control_tables().into_iter().chain([captured]) {
            let most = self.high_water.entry(row.name).or_default();
            *most = (*most).max(row.most);
        }
    }

    /// The local endpoint that has most flows.
    fn fullest_endpoint(&self) -> Row {
        let charges = &self.workers.flows().charges;
        let flows = self.endpoints.iter().map(|endpoint| charges.flows(endpoint.port));
        let capacities = self.settings.workers.capacities;
        let most = match capacities.per_endpoint {
            // Without a bound of its own it can have all there is.
            0 => capacities.v4.max + capacities.v6.max,
            most => size(most),
        };
        Row::new("flows_per_endpoint", flows.max().unwrap_or(0).into(), charges.most(), most)
    }

    fn captured_packets(&self) -> Row {
        let ring = self.capture.as_ref().map(|(capture, _)| &capture.ring);
        let (used, most) =
            ring.map_or((0, 0), |ring| (ring.packets.len() as u64, ring.level.most()));
        Row::new("captured_packets", used, most, CAPTURE_PACKETS_MAX)
    }

    fn packet_memory(&self) -> [Row; 3] {
        let umem = self.ports.regions().large();
        let pods = self.ports.regions().usage();
        let census = umem.census();
        let used = census.total - census.free.min(census.total);
        let (sockets, sockets_most) = umem.sockets();
        let frames = size(census.total);
        [
            Row::new("packet_frames", used.into(), umem.taken_most().into(), frames),
            Row::new("packet_memory_sockets", sockets.into(), sockets_most.into(), SOCKETS_MAX),
            Row::new(
                "pod_packet_frames",
                pods.used.into(),
                pods.used_most.into(),
                size(pods.capacity),
            ),
        ]
    }

    /// Places and queues of those who ask.
    fn queues(&self) -> [Row; 8] {
        let (admin, follow) = (self.admin.counts(), self.follower.counts());
        let http = self.http.as_ref().map(|http| http.levels());
        let (connections, connections_most) =
            http.map_or((0, 0), |http| (http.connections.get(), http.connections.most()));
        let health = self.health.server();
        let asked_most = http.map_or(0, |http| http.status_requests.most());
        let (served, calls) = (&admin.served, self.calls.len() as u64);
        let (asked, requests) =
            (self.status_requests.len() as u64, self.follower.requests_waiting() as u64);
        [
            Row::new(
                "admin_connections",
                admin.connections.get(),
                admin.connections.most(),
                ADMIN_CONNECTIONS_MAX,
            ),
            Row::new("admin_clients", served.get(), served.most(), CLIENTS_MAX),
            Row::new("admin_calls", calls, admin.calls.most(), CALLS_MAX),
            Row::new("http_connections", connections, connections_most, CONNECTIONS_MAX),
            Row::new(
                "health_connections",
                health.levels().connections.get(),
                health.levels().connections.most(),
                HEALTH_CONNECTIONS_MAX,
            ),
            Row::new("health_checks", health.sockets() as u64, 0, CHECKS_MAX),
            Row::new("status_requests", asked, asked_most, STATUS_REQUESTS_MAX),
            Row::new("kernel_requests", requests, follow.requests.most(), KERNEL_REQUESTS_MAX),
        ]
    }

    /// What the control thread alone fills.
    fn control_tables(&self) -> Vec<Row> {
        let view = self.follower.view();
        let objects: u64 =
            self.publisher.cluster().counts().iter().map(|(_, number)| *number as u64).sum();
        let (from_folder, from_servers, refused) = match self.cluster.report().kubernetes {
            Some(reporter) => (0, reporter.objects(), reporter.refused()),
            None => (objects, 0, 0),
        };
        let of = |name, used: usize, capacity| Row::new(name, used as u64, 0, capacity);
        let families = |is_v4: bool| move |address: IpAddr| address.is_ipv4() == is_v4;
        let (v4, v6) = (
            self.ours.certain().counts(families(true)),
            self.ours.certain().counts(families(false)),
        );
        vec![
            of("ports", self.ports.iter().count(), PORTS_MAX),
            of("endpoints", self.endpoints.len(), PORTS_MAX),
            Row::new(
                "endpoint_arrivals",
                self.arrivals.lengths().0 as u64,
                self.arrivals.counts.waiting_most,
                ARRIVALS_MAX,
            ),
            of("next_hops", self.publisher.next_hops_used(), NEXT_HOPS_MAX),
            of("links", view.links.len(), LINKS_MAX),
            of("routes", view.routes.len(), ROUTES_MAX),
            of("kernel_neighbours", view.neighbours.len(), NEIGHBOURS_MAX),
            of("asked_neighbours", self.asked.len(), ASKED_MAX),
            Row::new("manifest_objects", from_folder, 0, OBJECTS_MAX),
            Row::new("kubernetes_objects", from_servers, 0, KUBERNETES_OBJECTS_MAX),
            Row::new("kubernetes_refused_objects", refused, 0, REFUSED_MAX),
            of(
                "policy_blocks_at_cuts",
                self.publisher.compiled().blocks_at_cuts(),
                BLOCKS_AT_CUTS_MAX,
            ),
            of("flow_followers", self.flows.followers(), FOLLOWERS_MAX),
            of("watched_flows", self.watch.len(), WATCHED_MAX),
            of("snat_addresses", self.rule_addresses.known().len(), SNAT_ADDRESSES_MAX),
            of(RECENT_FLOW_EVENTS, self.flows.kept(), FLOWS_KEPT_MAX),
            of(RECENT_ERRORS, self.errors.len(), ERRORS_MAX),
            of("xdp_prefixes_ipv4", v4.prefixes, size(PREFIXES_MAX)),
            of("xdp_prefixes_ipv6", v6.prefixes, size(PREFIXES_MAX)),
            of("xdp_node_addresses_ipv4", v4.node_addresses, size(NODE_ADDRESSES_MAX)),
            of("xdp_node_addresses_ipv6", v6.node_addresses, size(NODE_ADDRESSES_MAX)),
            of("xdp_pod_addresses_ipv4", v4.pod_addresses, size(POD_ADDRESSES_MAX)),
            of("xdp_pod_addresses_ipv6", v6.pod_addresses, size(POD_ADDRESSES_MAX)),
        ]
    }
}
