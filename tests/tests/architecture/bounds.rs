//! Every bound has a name that ends in `_MAX`, and every bounded table a row in `xskiff status`:
//! one that is added without saying how full it is fails here.

use std::collections::BTreeMap;
use std::fs;

use xskiff::node::usage::ROWS;

use crate::rust_source::{code_only, without_tests};
use crate::workspace::{assert_none, files, root, shown};

/// Where products keep their sources.
const SOURCES: [&str; 8] = [
    "control/cluster/src",
    "control/cni/src",
    "control/node/src",
    "control/src",
    "dataplane/flow-table/src",
    "dataplane/src",
    "pinning/src",
    "xdp-redirect/src",
];
/// Demo and laboratory: no part of a node.
const LEFT_OUT: [&str; 2] = ["control/node/src/demo", "control/node/src/lab"];

/// What a bound bounds.
enum Bounds {
    /// A table, by the names of its rows.
    Table(&'static [&'static str]),
    /// One message, name, file or answer, refused or cut when larger.
    Input,
    /// Work in one go: the rest comes in the next.
    Work,
    /// A setting: what it sizes has a row of its own, or is memory taken once.
    Setting,
    /// A part of something that has a row.
    Part(&'static str),
}

use Bounds::{Input, Part, Setting, Table, Work};

const BOUNDS: &[(&str, Bounds)] = &[
    ("control/cluster/src/relay/access.rs TOKENS_BYTES_MAX", Input),
    ("control/cluster/src/relay/standing.rs ERROR_BYTES_MAX", Input),
    ("control/cluster/src/relay/writes/event.rs INSTANCE_BYTES_MAX", Input),
    ("control/cluster/src/relay/writes/event.rs NOTE_BYTES_MAX", Input),
    // The relay is no node, and has no `xskiff status`: its own pages tell how full they are.
    ("control/cluster/src/relay/writes/ledger.rs FINDINGS_MAX", Setting),
    ("control/cluster/src/relay/writes/ledger.rs OBJECTS_MAX", Setting),
    ("control/cluster/src/client/servers.rs REFUSAL_BYTES_MAX", Input),
    ("control/cluster/src/decode.rs LABELS_MAX", Input),
    ("control/cluster/src/decode.rs OBJECT_BYTES_MAX", Input),
    // Forgets its oldest for a new one.
    ("control/cluster/src/hold.rs GAINED_MAX", Part("kubernetes_objects")),
    ("control/cluster/src/client/servers.rs ANSWER_BYTES_MAX", Input),
    // Beyond it, addresses that names resolve to are not kept free of Services.
    ("control/cluster/src/client/servers.rs SERVER_ADDRESSES_MAX", Part("kubernetes_objects")),
    ("control/cluster/src/list_watch/lines.rs LINE_BYTES_MAX", Input),
    ("control/cluster/src/list_watch/wire.rs BYTES_MAX", Input),
    ("control/cluster/src/list_watch/wire.rs PAGE_BYTES_MAX", Input),
    ("control/cluster/src/follow/whole.rs OBJECTS_MAX", Table(&["kubernetes_objects"])),
    ("control/cluster/src/follow/whole.rs REFUSED_MAX", Table(&["kubernetes_refused_objects"])),
    ("control/cluster/src/serve/list.rs LOOKED_AT_MAX", Work),
    ("control/cluster/src/serve/selector.rs SELECTOR_BYTES_MAX", Input),
    ("control/cluster/src/serve/server.rs BODY_BYTES_MAX", Input),
    ("control/cluster/src/serve/server.rs HEADERS_MAX", Input),
    ("control/cluster/src/serve/server.rs HEAD_BYTES_MAX", Input),
    ("control/cluster/src/serve/watch.rs EVENTS_MAX", Work),
    ("control/cluster/src/serve/watch.rs LOOKED_AT_MAX", Work),
    ("control/cluster/src/snapshot/file.rs FILE_BYTES_MAX", Input),
    ("control/src/compile/selectors.rs BLOCKS_AT_CUTS_MAX", Table(&["policy_blocks_at_cuts"])),
    ("control/src/config/kubernetes.rs SERVERS_MAX", Input),
    ("control/cni/src/configuration.rs CONFIGURATION_BYTES_MAX", Input),
    ("control/cni/src/configuration.rs SECONDS_MAX", Setting),
    ("control/cni/src/configuration.rs SHOWN_BYTES_MAX", Input),
    ("control/cni/src/environment.rs ARGUMENTS_MAX", Input),
    ("control/cni/src/environment.rs VALUE_BYTES_MAX", Input),
    ("control/cni/src/error.rs TEXT_BYTES_MAX", Input),
    ("control/cni/src/log.rs FILE_BYTES_MAX", Setting),
    ("control/cni/src/node.rs REPLY_BYTES_MAX", Input),
    ("control/node/src/cni/files.rs CONFLIST_BYTES_MAX", Input),
    ("control/node/src/live_ways.rs TRIALS_MAX", Work),
    ("control/node/src/node/admitted.rs ADMITTED_MAX", Work),
    ("control/node/src/admin_server.rs CALLS_MAX", Table(&["admin_calls"])),
    ("control/node/src/admin_server.rs CONNECTIONS_MAX", Table(&["admin_connections"])),
    ("control/node/src/node/arrivals.rs ARRIVALS_MAX", Table(&["endpoint_arrivals"])),
    ("control/node/src/node/arrivals.rs UNDER_WAY_MAX", Part("endpoint_arrivals")),
    ("control/node/src/admin_server.rs CLIENTS_MAX", Table(&["admin_clients"])),
    ("control/node/src/admin_server.rs REPLIES_MAX", Part("admin_clients")),
    ("control/node/src/cli/client.rs REPLY_BYTES_MAX", Input),
    ("control/node/src/forwarding_view.rs NEXT_HOPS_MAX", Table(&["next_hops"])),
    ("control/node/src/forwarding_view.rs NEXT_HOPS_OF_GONE_PODS_MAX", Part("next_hops")),
    ("control/node/src/health_checks.rs CHECKS_MAX", Table(&["health_checks"])),
    ("control/node/src/health_checks.rs CONNECTIONS_MAX", Table(&["health_connections"])),
    ("control/node/src/http.rs CONNECTIONS_MAX", Table(&["http_connections"])),
    ("control/node/src/http.rs REQUEST_BYTES_MAX", Input),
    ("control/node/src/kube_proxy/process.rs ANSWER_BYTES_MAX", Input),
    ("control/node/src/preflight/trial.rs QUEUES_TRIED_MAX", Work),
    ("control/node/src/netlink/follow.rs COMMANDS_MAX", Table(&["kernel_requests"])),
    ("control/node/src/netlink/neighbours.rs ASKED_MAX", Table(&["asked_neighbours"])),
    ("control/node/src/netlink/view.rs LINKS_MAX", Table(&["links"])),
    ("control/node/src/netlink/view.rs NEIGHBOURS_MAX", Table(&["kernel_neighbours"])),
    ("control/node/src/netlink/view.rs ROUTES_MAX", Table(&["routes"])),
    ("control/node/src/node/audit.rs WAITING_MAX", Part("admin_clients")),
    ("control/node/src/node/capacity.rs FRAMES_CHOSEN_MAX", Setting),
    ("control/node/src/node/flow_log.rs FLOWS_KEPT_MAX", Table(&["recent_flow_events"])),
    ("control/node/src/node/flow_log.rs FOLLOWERS_MAX", Table(&["flow_followers"])),
    ("control/node/src/node/endpoint_record.rs BYTES_MAX", Input),
    ("control/node/src/node/launch.rs CONFIG_BYTES_MAX", Input),
    ("control/node/src/node/manifests.rs ERRORS_TOLD_MAX", Input),
    ("control/node/src/node/host_way.rs HOST_MTU_MAX", Setting),
    ("control/node/src/node/mod.rs STATUS_REQUESTS_MAX", Table(&["status_requests"])),
    ("control/node/src/node/report.rs WARNINGS_TOLD_MAX", Input),
    ("control/node/src/node/requests.rs RECENT_MAX", Input),
    ("control/node/src/node/trace.rs FLOWS_MAX", Work),
    ("control/node/src/node/socket_audit.rs NAMED_MAX", Input),
    ("control/node/src/workers/thread.rs SLEEP_MAX", Setting),
    ("control/node/src/ours.rs TOLD_MAX", Input),
    ("control/src/admin/mod.rs CT_LIST_MAX", Input),
    ("control/src/admin/mod.rs DETAIL_BYTES_MAX", Input),
    ("control/src/admin/endpoint.rs ADMITTED_BYTES_MAX", Input),
    ("control/src/admin/endpoint.rs ATTACHMENTS_MAX", Input),
    ("control/src/admin/endpoint.rs CONTAINER_ID_BYTES_MAX", Input),
    ("control/src/admin/endpoint.rs ENDPOINT_ADDRESSES_MAX", Input),
    ("control/src/admin/endpoint.rs NETWORK_BYTES_MAX", Input),
    ("control/src/admin/endpoint.rs POD_UID_BYTES_MAX", Input),
    ("control/src/admin/mod.rs INTERFACE_NAME_BYTES_MAX", Input),
    ("control/src/admin/mod.rs PATH_BYTES_MAX", Input),
    ("control/src/admin/mod.rs REQUEST_BYTES_MAX", Input),
    ("control/src/admin/mod.rs TRACE_BYTES_MAX", Input),
    ("control/src/admin/policy.rs EXAMINED_MAX", Input),
    ("control/src/admin/policy.rs POLICIES_NAMED_MAX", Input),
    ("control/src/admin/policy.rs ROWS_MAX", Input),
    ("control/src/admin/policy.rs TEXT_BYTES_MAX", Input),
    ("control/src/admin/service.rs BACKENDS_TOLD_MAX", Input),
    ("control/src/admin/status.rs ERRORS_MAX", Table(&["recent_errors"])),
    ("control/src/audit/mod.rs CHANGES_MAX", Work),
    ("control/src/audit/mod.rs DIFFERENCES_MAX", Input),
    ("control/src/audit/targets.rs SLICES_NAMED_MAX", Input),
    ("control/src/audit/policies.rs PORTS_MAX", Work),
    ("control/src/compile/affected.rs AFFECTED_MAX", Input),
    ("control/src/compile/maglev.rs BACKENDS_MAX", Input),
    ("control/src/compile/warnings.rs FRESH_MAX", Input),
    ("control/src/config/snat.rs CONFIGURED_MAX", Part("snat_addresses")),
    ("control/src/config/validate.rs FILL_FRAMES_MAX", Setting),
    ("control/node/src/node/flow_watch.rs WATCHED_MAX", Table(&["watched_flows"])),
    ("control/node/src/workers/capacity.rs FLOWS_MAX", Setting),
    ("control/src/config/validate.rs FLOWS_MAX", Setting),
    ("control/src/config/validate.rs FRAMES_MAX", Setting),
    ("control/src/manifests/folder.rs FILES_MAX", Input),
    ("control/src/manifests/folder.rs FILE_BYTES_MAX", Input),
    ("control/src/manifests/mod.rs OBJECTS_MAX", Table(&["manifest_objects"])),
    ("control/src/manifests/mod.rs READS_MAX", Work),
    ("control/src/model/convert.rs NAME_BYTES_MAX", Input),
    ("control/src/model/convert_service.rs ENDPOINTS_MAX", Input),
    ("control/src/model/convert_policy.rs PORT_NAME_BYTES_MAX", Input),
    ("control/src/model/labels.rs BYTES_MAX", Input),
    ("control/src/model/labels.rs PREFIX_BYTES_MAX", Input),
    ("control/src/shown.rs NAME_BYTES_MAX", Input),
    ("control/src/yaml.rs DOCUMENTS_MAX", Input),
    ("control/src/yaml.rs NODES_MAX", Input),
    ("control/src/yaml.rs REPEATED_BYTES_MAX", Input),
    ("dataplane/flow-table/src/entry.rs CAPACITY_MAX", Setting),
    ("dataplane/flow-table/src/header.rs OWNERS_MAX", Setting),
    ("dataplane/flow-table/src/hasher.rs INPUT_WORDS_MAX", Input),
    ("dataplane/flow-table/src/geometry.rs SEGMENT_BITS_MAX", Part("flows_ipv4")),
    ("dataplane/src/capture.rs CAPTURE_PACKETS_MAX", Table(&["captured_packets"])),
    ("dataplane/src/conntrack/sctp.rs CHUNKS_MAX", Input),
    ("dataplane/src/counters.rs PORTS_MAX", Table(&["ports", "endpoints"])),
    ("dataplane/src/direct/option.rs IPV4_HEADER_MAX", Input),
    ("dataplane/src/event.rs EVENTS_MAX", Table(&["flow_events"])),
    ("dataplane/src/event.rs NEIGHBOUR_REQUESTS_MAX", Table(&["neighbour_requests"])),
    ("dataplane/src/eviction.rs ENTRIES_MAX", Work),
    ("dataplane/src/expiry.rs ENTRIES_MAX", Work),
    ("dataplane/src/expiry.rs FLUSHES_MAX", Table(&["flushes"])),
    ("dataplane/src/fragment.rs FRAGMENTED_PACKETS_MAX", Table(&["fragments"])),
    ("dataplane/src/fragment.rs GROUP_MAX", Part("fragments")),
    ("dataplane/src/flow_ends/mod.rs FILTER_BITS_MAX", Table(&["flow_ends"])),
    ("dataplane/src/flow_ends/census.rs WAITING_MAX", Part("flow_ends")),
    ("dataplane/src/handoff.rs VECTORS_MAX", Table(&["handoff_vectors"])),
    ("dataplane/src/handoff.rs WORKERS_MAX", Setting),
    ("dataplane/src/icmp.rs ERROR_FRAME_MAX", Input),
    ("dataplane/src/reset.rs RESET_FRAME_MAX", Input),
    ("dataplane/src/icmp.rs IPV4_ERROR_MAX", Input),
    ("dataplane/src/icmp.rs IPV6_ERROR_MAX", Input),
    ("dataplane/src/lb.rs SERVICE_RANGES_MAX", Input),
    ("dataplane/src/mailbox.rs COMMANDS_MAX", Table(&["worker_commands"])),
    ("dataplane/src/mailbox.rs RETIRED_MAX", Table(&["retired_objects"])),
    ("dataplane/src/fragment/waiting.rs WAITING_BYTES_MAX", Part("waiting_fragments")),
    ("dataplane/src/fragment/waiting.rs WAITING_BYTES_OF_SOURCE_MAX", Part("waiting_fragments")),
    ("dataplane/src/fragment/waiting.rs WAITING_MAX", Table(&["waiting_fragments"])),
    ("dataplane/src/fragment/waiting.rs WAITING_OF_PORT_MAX", Part("waiting_fragments")),
    ("dataplane/src/fragment/waiting.rs WAITING_OF_SOURCE_MAX", Part("waiting_fragments")),
    ("dataplane/src/nat/ports.rs CROWDED_MAX", Part("snat_l4_ports")),
    ("dataplane/src/nat/ports.rs EXAMINED_MAX", Work),
    ("dataplane/src/nat/ports.rs LOOKUPS_MAX", Work),
    ("dataplane/src/nat/rules.rs SNAT_ADDRESSES_MAX", Table(&["snat_addresses"])),
    ("dataplane/src/nat/rules.rs SNAT_LIST_MAX", Input),
    ("dataplane/src/nat/rules.rs SNAT_RULES_MAX", Input),
    ("dataplane/src/pacing/mod.rs BURST_BITS_MAX", Input),
    ("dataplane/src/pacing/mod.rs RATE_BITS_MAX", Input),
    ("dataplane/src/pacing/mod.rs WAIT_MAX", Setting),
    ("dataplane/src/pacing/queue.rs PACED_MAX", Table(&["paced_frames"])),
    ("dataplane/src/pacing/queue.rs QUEUES_MAX", Part("paced_frames")),
    ("dataplane/src/wire/mod.rs EXTENSIONS_MAX", Input),
    ("dataplane/src/segments/join.rs PAYLOAD_MAX", Input),
    ("dataplane/src/worker.rs HELD_MAX", Table(&["held_packets"])),
    ("pinning/src/cpu_set.rs CPUS_MAX", Setting),
    ("xdp-redirect/src/frame.rs CHUNKS_MAX", Input),
    // More than the ports there may be: never the bound that is met.
    ("xdp-redirect/src/hand_over/message.rs BODY_BYTES_MAX", Input),
    ("xdp-redirect/src/hand_over/message.rs RING_ENTRIES_MAX", Input),
    ("xdp-redirect/src/limits.rs INTERFACES_MAX", Part("ports")),
    (
        "xdp-redirect/src/limits.rs NODE_ADDRESSES_MAX",
        Table(&["xdp_node_addresses_ipv4", "xdp_node_addresses_ipv6"]),
    ),
    (
        "xdp-redirect/src/limits.rs POD_ADDRESSES_MAX",
        Table(&["xdp_pod_addresses_ipv4", "xdp_pod_addresses_ipv6"]),
    ),
    ("xdp-redirect/src/limits.rs PORTS_MAX", Part("ports")),
    ("xdp-redirect/src/limits.rs PREFIXES_MAX", Table(&["xdp_prefixes_ipv4", "xdp_prefixes_ipv6"])),
    ("xdp-redirect/src/limits.rs QUEUES_MAX", Setting),
    ("xdp-redirect/src/limits.rs WORKERS_MAX", Setting),
    ("xdp-redirect/src/netlink.rs ANSWER_MAX", Input),
    ("xdp-redirect/src/live_transmit/delivery.rs STATISTICS_MAX", Input),
    ("xdp-redirect/src/live_transmit/gather.rs LEAVING_PACKETS_MAX", Work),
    ("xdp-redirect/src/live_transmit/gather.rs SMALL_CALLS_MAX", Work),
    ("xdp-redirect/src/live_transmit/mod.rs SENDERS_MAX", Setting),
    ("xdp-redirect/src/pool.rs KEPT_BATCHES_MAX", Part("packet_frames")),
    ("xdp-redirect/src/ports.rs COMMANDS_MAX", Table(&["socket_commands"])),
    ("xdp-redirect/src/ports.rs WORKER_SOCKETS_MAX", Table(&["worker_sockets"])),
    ("xdp-redirect/src/regions.rs REGIONS_MAX", Part("pod_packet_frames")),
    ("xdp-redirect/src/socket.rs TRANSMIT_CHUNKS_MAX", Input),
    ("xdp-redirect/src/turns.rs ALL_LOOKED_AT_MAX", Work),
    ("xdp-redirect/src/turns.rs VAIN_LOOKS_MAX", Work),
    ("xdp-redirect/src/umem_config.rs FRAMES_MAX", Setting),
    ("xdp-redirect/src/umem.rs SOCKETS_MAX", Table(&["packet_memory_sockets"])),
];

/// Rows whose capacity is a setting of the node's and no constant.
const BY_SETTING: [&str; 6] = [
    "flows_ipv4",
    "flows_ipv6",
    "flows_per_endpoint",
    "packet_frames",
    "pod_packet_frames",
    "snat_l4_ports",
];

/// Constants that end in `_MAX`, by file and name.
fn bounds_in_sources() -> Vec<String> {
    let mut found = Vec::new();
    for path in SOURCES.iter().flat_map(|folder| files(&root().join(folder), &[".rs"])) {
        let name = shown(&path);
        let is_test = name.ends_with("tests.rs");
        if is_test || LEFT_OUT.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let code = code_only(&source);
        for line in without_tests(&code).lines() {
            let declared = line.split_once("const ").and_then(|(_, rest)| rest.split_once(':'));
            if let Some((constant, _)) = declared.filter(|(constant, _)| constant.ends_with("_MAX"))
            {
                found.push(format!("{name} {constant}"));
            }
        }
    }
    found
}

#[test]
fn every_bound_is_a_row_of_status_or_bounds_no_table() {
    let known: BTreeMap<_, _> = BOUNDS.iter().map(|(name, bounds)| (*name, bounds)).collect();
    let found = bounds_in_sources();
    assert!(found.len() > 50, "the sources were not found: {found:?}");
    let unknown: Vec<_> = found.iter().filter(|name| !known.contains_key(name.as_str())).collect();
    assert_none(
        &unknown.into_iter().cloned().collect::<Vec<_>>(),
        "bounds without a row or reason",
    );
    let gone = known.keys().filter(|name| !found.iter().any(|other| other == *name));
    assert_none(&gone.map(ToString::to_string).collect::<Vec<_>>(), "bounds that are no more");
    let mut rows: Vec<&str> = BY_SETTING.to_vec();
    for bounds in known.values() {
        match bounds {
            Table(names) => rows.extend(*names),
            Part(row) => assert!(ROWS.contains(row), "{row} is no row"),
            Input | Work | Setting => {}
        }
    }
    let missing: Vec<String> =
        rows.iter().filter(|row| !ROWS.contains(row)).map(ToString::to_string).collect();
    assert_none(&missing, "bounded tables without a row");
    let idle: Vec<String> =
        ROWS.iter().filter(|row| !rows.contains(row)).map(ToString::to_string).collect();
    assert_none(&idle, "rows without a bound");
}
