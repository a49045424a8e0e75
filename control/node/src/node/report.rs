//! What clients are told: the node's state with names in place of numbers.

use std::net::IpAddr;

use control::admin::cni::CniStatus;
use control::admin::reply::{CtListing, Peer, TraceStage};
use control::admin::status::{
    ControlStatus, LiveFramesStatus, PortStatus, SegmentsStatus, SocketCounts, WorkerStatus,
    XdpCounts,
};
use control::admin::{CtEntry, DropCount, EndpointInfo, FlowRecord, ManifestsStatus, Status};
use control::config::UnknownPods;
use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::event::{EventKind, FlowEvent};
use dataplane::flow_key::FlowKey;
use dataplane::handoff::HandoffCause;
use dataplane::identity::Identity;
use dataplane::lb::ServiceId;
use dataplane::policy::{Direction, RuleId};
use dataplane::port::{PortId, PortKind};
use xdp_redirect::loader::RunningMode;
use xdp_redirect::segment_transmit::SegmentStatistics;

use super::endpoints::Endpoint;
use super::filter::{Matcher, verdict_label};
use super::flow_log::Logged;
use super::trace::stage;
use super::verdict::verdict;
use super::{Node, PortTable, explain};
use crate::live_ways;
use crate::workers::monotonic_now;

/// How packets leave by a port that is given TCP segments longer than its MTU.
const WHOLE_SEGMENTS: &str = "whole-segments, af-xdp";
/// Remarks of the compiler in one answer.
const WARNINGS_TOLD_MAX: usize = 64;

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(std::sync::atomic::Ordering::Relaxed)
}

fn kind_label(kind: PortKind) -> &'static str {
    match kind {
        PortKind::Pod => "pod",
        PortKind::Uplink => "uplink",
        PortKind::Host => "host",
    }
}

impl Node {
    /// The node's state in full.
    pub(super) fn status(&mut self) -> Status {
        let workers = self.worker_statuses();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.settings.node_name.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: self.publisher.tables().generation,
            ports: self.port_statuses(),
            drops: drop_counts(&workers),
            workers,
            handed_on: self.handed_on.clone(),
            http_listen: self.http.as_ref().map(|server| server.address),
            tables: self.table_usages(),
            live_frames: self.live_frames_status(),
            segments: self.segments_status(),
            flow_tables: self.flow_table_statuses(),
            xdp: self.xdp_counts(),
            control: self.control_status(),
            reconciles: self.reconcile_statuses(),
            audit: self.audit_status(),
            arrivals: self.arrivals_status(),
            running_pods: self.running_pods_status(),
            cni: self.cni_status(),
            manifests: self.manifests_status(),
            kubernetes: self.cluster.report().kubernetes.map(|reporter| reporter.status()),
            kube_proxy: self.kube_proxy_traces(),
            bypassed_chains: self.bypassed_chains(),
            waiting_for_restart: self
                .in_force
                .as_ref()
                .map_or_else(Vec::new, |in_force| in_force.waiting().to_vec()),
            errors: self.errors.entries(),
            ..Status::default()
        };
        status.verdict = verdict(&status);
        status
    }

    pub(super) fn manifests_status(&self) -> ManifestsStatus {
        let cluster::feed::Report { manifests, last_success, .. } = self.cluster.report();
        let since = last_success.map(|at| at.elapsed().as_secs());
        let mut status = ManifestsStatus { seconds_since_success: since, ..manifests };
        let warnings = &self.publisher.compiled().warnings;
        status.warnings =
            warnings.iter().take(WARNINGS_TOLD_MAX).map(ToString::to_string).collect();
        status
    }

    pub(super) fn worker_statuses(&self) -> Vec<WorkerStatus> {
        let limit = self.settings.stall_after;
        let one = |number: usize| {
            let counters = self.workers.counters(number)?;
            let dropped = DropReason::ALL
                .iter()
                .map(|reason| (reason.label().to_owned(), counters.dropped(*reason)))
                .filter(|(_, packets)| *packets > 0)
                .collect();
            Some(WorkerStatus {
                worker: u16::try_from(number).unwrap_or(u16::MAX),
                core: self.workers.core(number).map(|core| u32::from(core.0)),
                mode: self.workers.idle().label().into(),
                alive: self.workers.is_alive(number, limit),
                restarts: counters.restarts.get(),
                stalls: self.worker_health.stalls(number),
                pressed_bursts: counters.pressed_bursts.get(),
                tables_adopted: counters.tables_adopted.get(),
                received: counters.received.get(),
                handed_in: counters.handed_in.get(),
                originated: counters.originated.get(),
                transmitted: counters.transmitted.get(),
                handed_out: counters.handed_out.get(),
                handed_for: HandoffCause::ALL
                    .map(|cause| (cause.label().to_owned(), counters.handed_for(cause)))
                    .into(),
                foreign_hits: counters.foreign_hits.get(),
                flows_opened_for_others: counters.flows_opened_for_others.get(),
                flows_with_alias_elsewhere: counters.flows_with_alias_elsewhere.get(),
                held: counters.held.get(),
                paced_packets: counters.paced_packets.get(),
                paced_bytes: counters.paced_bytes.get(),
                dropped,
                flows_created: counters.flows_created.get(),
                flows_masqueraded: counters.flows_masqueraded.get(),
                flows_translated_by_rule: counters.flows_translated_by_rule.get(),
                flows_expired: counters.flows_expired.get(),
                flows_deleted: counters.flows_deleted.get(),
                flows_evicted: counters.flows_evicted.get(),
                evicted: [
                    ("half-open", &counters.evicted_half_open),
                    ("closing", &counters.evicted_closing),
                    ("short-lived", &counters.evicted_short_lived),
                ]
                .map(|(class, flows)| (class.to_owned(), flows.get()))
                .into(),
                flows_rejudged: counters.flows_rejudged.get(),
                flows_reset: counters.flows_reset.get(),
                flows_chosen_anew: counters.flows_chosen_anew.get(),
                affinities_created: counters.affinities_created.get(),
                affinities_refused: counters.affinities_refused.get(),
                flows_audited: counters.flows_audited.get(),
                lost_replies: counters.lost_replies.get(),
                unknown_pod_drops: counters.unknown_pod_drops.get(),
                unknown_pod_flows: counters.unknown_pod_flows.get(),
                out_of_window_passed: counters.out_of_window_passed.get(),
                resets_challenged: counters.resets_challenged.get(),
                between_families: counters.between_families.get(),
                dispatched: counters.dispatched.get(),
                dispatched_without_flow: counters.dispatched_without_flow.get(),
                directed: counters.directed.get(),
                events_lost: counters.events_lost.get(),
                captures_lost: counters.captures_lost.get(),
                replies_suppressed: counters.replies_suppressed.get(),
                ticks: counters.ticks.get(),
            })
        };
        (0..self.workers.count()).filter_map(one).collect()
    }

    fn port_statuses(&self) -> Vec<PortStatus> {
        let view = self.follower.view();
        self.ports
            .iter()
            .map(|port| {
                let link = view.links.get(&port.attachment.ifindex);
                let kernel = port.kernel_statistics();
                let endpoint = self.endpoints.by_port(port.port);
                let mut status = PortStatus {
                    port: port.port.0,
                    interface: port.interface.clone(),
                    kind: kind_label(port.kind).into(),
                    endpoint: endpoint.map(|endpoint| endpoint.spec.name.to_string()),
                    up: link.is_some_and(|link| link.up),
                    mtu: link.and_then(|l| u16::try_from(l.mtu).ok()).unwrap_or(port.mtu),
                    xdp_mode: mode_label(port.attachment.mode).into(),
                    socket_mode: if port.zero_copy { "zero-copy" } else { "copy" }.into(),
                    queues: port.queues,
                    transmit: match self.ports.is_given_whole(port) {
                        true => WHOLE_SEGMENTS.into(),
                        false => self.ports.live().way(port.port).to_string(),
                    },
                    live_packets: live_ways::sent(&self.workers, port.port),
                    live_refused_packets: self.ports.live().lost(port.port).refused,
                    live_vanished_packets: self.ports.live().lost(port.port).vanished,
                    flows: self.workers.flows().charges.flows(port.port).into(),
                    limits: self.limit_infos(port.port),
                    sockets: SocketCounts {
                        rx_dropped: kernel.rx_dropped,
                        rx_invalid_descriptors: kernel.rx_invalid_descs,
                        tx_invalid_descriptors: kernel.tx_invalid_descs,
                        rx_ring_full: kernel.rx_ring_full,
                        rx_fill_ring_empty: kernel.rx_fill_ring_empty,
                        tx_ring_empty: kernel.tx_ring_empty,
                    },
                    ..PortStatus::default()
                };
                self.add_port_counters(port.port, &mut status);
                status
            })
            .collect()
    }

    fn live_frames_status(&self) -> LiveFramesStatus {
        let all = live_ways::statistics(&self.workers);
        LiveFramesStatus {
            unavailable: self.ports.live().refusal().map(str::to_owned),
            calls: all.calls,
            refused_no_space: all.refused_no_space,
            refused_no_memory: all.refused_no_memory,
            refused_otherwise: all.refused_otherwise,
            returned_packets: all.returned_packets + all.no_interface_packets,
            abandoned_packets: all.abandoned_packets,
        }
    }

    fn segments_status(&self) -> SegmentsStatus {
        let counters = (0..self.workers.count()).filter_map(|worker| self.workers.ports(worker));
        let none = SegmentStatistics::default();
        let all = counters.fold(none, |sum, one| sum.plus(&one.segment_counters().read()));
        SegmentsStatus {
            whole_packets: all.whole_packets,
            joined_segments: all.joined_segments,
            joined_packets: all.joined_packets,
            following_packets: all.following_packets,
            calls: all.calls,
            refused_header_packets: all.refused_header_packets,
            refused_memory_packets: all.refused_memory_packets,
            abandoned_packets: all.abandoned_packets,
            cut_packets: all.cut_packets,
            cut_pieces: all.cut_pieces,
            lost_pieces: all.lost_pieces,
        }
    }

    fn add_port_counters(&self, port: PortId, status: &mut PortStatus) {
        for counters in (0..self.workers.count()).filter_map(|n| self.workers.counters(n)) {
            let Some(counters) = counters.port(port) else { continue };
            status.received_packets += counters.received_packets.get();
            status.received_bytes += counters.received_bytes.get();
            status.transmitted_packets += counters.transmitted_packets.get();
            status.transmitted_bytes += counters.transmitted_bytes.get();
        }
    }

    fn xdp_counts(&mut self) -> XdpCounts {
        match self.ports.redirect().counters() {
            Ok(counts) => XdpCounts {
                redirected: counts.redirected,
                passed: counts.passed,
                no_socket: counts.no_socket,
                stalled: counts.stalled,
                not_ip: counts.not_ip,
                malformed: counts.malformed,
                unknown_interface: counts.unknown_interface,
                passed_on_stall: counts.passed_on_stall,
                tagged: counts.tagged,
                late: counts.late,
            },
            Err(error) => {
                self.errors.note("XDP counters", error);
                XdpCounts::default()
            }
        }
    }

    fn control_status(&self) -> ControlStatus {
        let (follow, admin) = (self.follower.counts(), self.admin.counts());
        ControlStatus {
            publishes: self.publisher.publishes(),
            netlink_resyncs: load(&follow.resyncs),
            netlink_overruns: load(&follow.overruns),
            neighbour_requests: load(&follow.neighbour_requests),
            neighbour_requests_refused: load(&follow.neighbour_requests_refused),
            admin_clients: load(&admin.clients),
            admin_refusals: load(&admin.refusals),
            reconcile_failures: self.errors.failures() + load(&follow.failures),
            restarts: self.control_restarts.count,
        }
    }

    fn cni_status(&self) -> CniStatus {
        let chain = self.chain.as_ref().map(|chain| chain.borrow().clone());
        CniStatus { chain, ..self.attached.clone() }
    }

    pub(super) fn endpoint_info(&self, endpoint: &Endpoint) -> EndpointInfo {
        let tables = self.publisher.tables();
        let port = tables.port(endpoint.port);
        let identity = self.publisher.compiled().endpoint_identity(&endpoint.spec.addresses);
        let policy = tables.policy.subjects.get(&identity);
        let known = self.publisher.cluster().pods.contains_key(&endpoint.spec.name);
        let first = endpoint.spec.addresses.first();
        let next_hop = first.and_then(|address| tables.forwarding.endpoints.get(address));
        let mac = next_hop.and_then(|id| tables.forwarding.next_hop(*id)?.destination);
        let (state, state_reason) = self.endpoint_state(endpoint);
        let may_all = !known && self.settings.unknown_pods == UnknownPods::Allow;
        let policy = policy.filter(|_| !may_all);
        let mtu = port.map_or(0, |port| port.mtu);
        EndpointInfo {
            name: endpoint.spec.name.to_string(),
            state: state.into(),
            state_reason,
            interface: endpoint.spec.interface.clone(),
            port: endpoint.port.0,
            addresses: endpoint.spec.addresses.clone(),
            mac: mac.map(|mac| mac.to_string()),
            mtu,
            pod_mtu: endpoint.mtu.filter(|others| port.is_some() && *others > mtu),
            identity: known.then_some(identity.0),
            isolated_ingress: policy.is_some_and(|policy| policy.ingress.is_some()),
            isolated_egress: policy.is_some_and(|policy| policy.egress.is_some()),
            attachment: endpoint.spec.attachment.clone(),
            pod_uid: endpoint.spec.pod_uid.clone(),
            limits: self.limit_infos(endpoint.port),
            bypassed: self.bypassed_rules(endpoint),
        }
    }

    /// Packets dropped by reason; those that policy dropped with who caused it.
    pub(super) fn drops(&mut self) -> Vec<DropCount> {
        self.log_events();
        let mut drops = drop_counts(&self.worker_statuses());
        for drop in &mut drops {
            let mut by_policy = DropReason::ALL.iter().filter(|reason| reason.is_by_policy());
            let is_by_policy = by_policy.any(|reason| reason.label() == drop.reason);
            if is_by_policy {
                drop.causes = self.flows.causes(&drop.reason);
            }
        }
        drops
    }

    pub(super) fn ct_list(&self, matcher: &Matcher, limit: u32) -> CtListing {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut listing = CtListing { entries: Vec::new(), truncated: false };
        let now = monotonic_now();
        self.workers.flows().for_each(now, |flow| {
            let service = flow.origin.service.and_then(|id| self.service_name(id));
            if !matcher.matches_flow(&flow.original, &flow.reply, service.as_deref()) {
                return;
            }
            if listing.entries.len() == limit {
                listing.truncated = true;
                return;
            }
            let (original, reply) = (&flow.original, &flow.reply);
            let expires = u64::from(flow.life.deadline_seconds());
            listing.entries.push(CtEntry {
                protocol: original.protocol().to_string(),
                source: source_of(original),
                destination: destination_of(original),
                backend: source_of(reply),
                translated_source: destination_of(reply),
                state: flow.life.state().label().into(),
                expires_in_seconds: expires.saturating_sub(now.0 / 1_000_000_000),
                packets: flow.packets,
                bytes: flow.bytes,
                service,
                rule: Some(self.rule_name(flow.origin.rule)),
            });
        });
        listing
    }

    pub(super) fn ct_count(&self, matcher: &Matcher) -> u64 {
        let mut count = 0;
        self.workers.flows().for_each(monotonic_now(), |flow| {
            let service = flow.origin.service.and_then(|id| self.service_name(id));
            count +=
                u64::from(matcher.matches_flow(&flow.original, &flow.reply, service.as_deref()));
        });
        count
    }

    pub(super) fn service_name(&self, id: ServiceId) -> Option<String> {
        self.publisher.tables().services.get(id).map(|service| service.name.to_string())
    }

    fn rule_name(&self, rule: RuleId) -> String {
        let known = self.publisher.compiled().rule_name(rule);
        known.map_or_else(|| "a rule no longer in force".into(), |name| name.to_string())
    }

    /// The name of a port's interface.
    pub(super) fn interface_name(&self, port: PortId) -> String {
        interface_name(&self.ports, port)
    }

    /// Takes in what workers report.
    pub(super) fn log_events(&mut self) {
        // As many as workers may have under way, so that a flood cannot keep the loop here.
        for _ in 0..dataplane::event::EVENTS_MAX {
            let Some((_, event)) = self.workers.next_event() else { break };
            let record = self.flow_record(&event);
            if self.flows.is_watched() {
                self.watch.note(&event);
            }
            self.flows.push(Logged { event, record });
        }
    }

    pub(super) fn flow_record(&self, event: &FlowEvent) -> FlowRecord {
        let endpoint =
            |address: IpAddr| self.endpoints.by_address(address).map(ToString::to_string);
        let source = event.key.as_ref().map(source_of);
        let destination = event.key.as_ref().map(destination_of);
        let backend = event.backend.map(|(address, l4_port)| Peer { address, l4_port });
        FlowRecord {
            time_unix_ms: Self::unix_ns(event.time) / 1_000_000,
            verdict: verdict_label(event.kind).into(),
            reason: match event.kind {
                EventKind::Dropped(reason) => Some(reason.label().into()),
                _ => None,
            },
            interface: match event.port {
                FlowEvent::NO_PORT => "-".into(),
                port => self.interface_name(port),
            },
            protocol: event
                .key
                .map(|key| key.protocol())
                .filter(|protocol| *protocol != Protocol::NONE)
                .map(|protocol| protocol.to_string()),
            source_endpoint: source.and_then(|peer| endpoint(peer.address)),
            destination_endpoint: backend.or(destination).and_then(|peer| endpoint(peer.address)),
            source,
            destination,
            backend,
            service: event.service.and_then(|id| self.service_name(id)),
            rule: self.deciding_rule(event),
            policies: self.policies_of(event),
            state: None,
        }
    }

    /// Whose policy decided, and in which direction.
    fn subject_of(event: &FlowEvent) -> (Option<Identity>, Direction) {
        match event.kind {
            EventKind::Dropped(DropReason::PolicyEgress)
            | EventKind::Audited(Direction::Egress) => (event.source, Direction::Egress),
            _ => (event.destination, Direction::Ingress),
        }
    }

    fn policies_of(&self, event: &FlowEvent) -> Vec<String> {
        let (subject, direction) = Self::subject_of(event);
        let compiled = self.publisher.compiled();
        match (event.kind, event.rule) {
            (EventKind::Audited(_), _) => {
                let audited = subject.map(|subject| compiled.audited(subject, direction));
                explain::names(audited.unwrap_or_default())
            }
            (_, Some(rule)) => explain::policies_behind(compiled, rule, subject, direction),
            (_, None) => Vec::new(),
        }
    }

    /// The rule that decided, with the policies behind a default deny.
    fn deciding_rule(&self, event: &FlowEvent) -> Option<String> {
        let (subject, direction) = Self::subject_of(event);
        let compiled = self.publisher.compiled();
        if let EventKind::Audited(_) = event.kind {
            return Some(explain::audit_text(compiled, subject, direction));
        }
        event.rule.map(|rule| explain::rule_text(compiled, rule, subject, direction))
    }

    /// What a decision found, for a trace.
    pub(super) fn decision_stages(&self, event: &FlowEvent) -> Vec<TraceStage> {
        let compiled = self.publisher.compiled();
        let mut stages = Vec::new();
        if let Some(service) = event.service.and_then(|id| self.service_name(id)) {
            stages.push(stage("service", service));
        }
        if let Some((address, l4_port)) = event.backend {
            stages.push(stage("backend", Peer { address, l4_port }.to_string()));
        }
        for (word, identity) in [("source", event.source), ("destination", event.destination)] {
            if let Some(identity) = identity {
                let name = compiled.identity_name(identity);
                stages.push(stage("identity", format!("{word}: {name}")));
            }
        }
        if let Some(rule) = self.deciding_rule(event) {
            stages.push(stage("policy", rule));
        }
        stages
    }
}

fn interface_name(ports: &PortTable, port: PortId) -> String {
    match ports.get(port) {
        Some(port) => port.interface.clone(),
        None => format!("port {} (gone)", port.0),
    }
}

fn source_of(key: &FlowKey) -> Peer {
    Peer { address: key.source(), l4_port: key.source_port() }
}

fn destination_of(key: &FlowKey) -> Peer {
    Peer { address: key.destination(), l4_port: key.destination_port() }
}

fn mode_label(mode: RunningMode) -> &'static str {
    match mode {
        RunningMode::Native => "native",
        RunningMode::Generic => "generic",
        RunningMode::Hardware => "hardware",
    }
}

fn drop_counts(workers: &[WorkerStatus]) -> Vec<DropCount> {
    let of = |reason: &DropReason| {
        let counted = workers.iter().flat_map(|worker| &worker.dropped);
        DropCount {
            reason: reason.label().into(),
            explanation: reason.explanation().trim().into(),
            packets: counted
                .filter(|(label, _)| label == reason.label())
                .map(|(_, packets)| packets)
                .sum(),
            causes: Vec::new(),
        }
    };
    DropReason::ALL.iter().map(of).collect()
}
