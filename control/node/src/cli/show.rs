//! The node's answers, for people.

use std::fmt::Write;

use control::admin::cni::CniStatus;
use control::admin::reply::Peer;
use control::admin::status::{
    BypassedChains, HandedOn, Level, LimitInfo, TableUsage, Verdict, WorkerStatus,
};
use control::admin::{
    ConfigDiff, DropCount, EndpointInfo, FlowRecord, ManifestsStatus, Reply, Status, TraceReport,
};
use control::model::rate_text;

use super::table::{Table, grouped};
use crate::kube_proxy::Kind;
use connections::{ct, ct_counts, ct_top, flow_table};
use policy::policy;

mod arrivals;
mod audit;
mod connections;
mod identities;
mod kubernetes;
mod policies;
mod policy;
mod reconciles;
mod services;

/// The answer as text; ends with a newline unless empty.
#[must_use]
pub fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => show_status(status),
        Reply::Endpoint(endpoint) => endpoints(std::slice::from_ref(endpoint)),
        Reply::Removed(true) => "removed\n".into(),
        Reply::Removed(false) => "there was none\n".into(),
        Reply::HandingOver { pid } => format!("process {pid} ends\n"),
        Reply::Injected => "done; `xskiff status` tells how the node takes it\n".into(),
        Reply::RemovedEndpoints(names) => format!("{} removed\n", names.len()),
        Reply::Endpoints(list) => endpoints(list),
        Reply::Services(list) => services::services(list),
        Reply::Service(detail) => services::service(detail),
        Reply::ServiceTraced(report) => services::traced(report),
        Reply::Ct(listing) => ct(listing),
        Reply::Count(count) => format!("{}\n", grouped(*count)),
        Reply::CtTop(rows) => ct_top(rows),
        Reply::CtCounts(counts) => ct_counts(counts),
        Reply::CtTables(tables) => {
            tables.iter().fold(String::new(), |text, table| text + &flow_table(table) + "\n")
        }
        Reply::Audit(report) => audit::report(report),
        Reply::Identities(listing) => identities::listing(listing),
        Reply::Identity(found) => identities::found(found),
        Reply::Policies(listing) => policies::listing(listing),
        Reply::PolicyStatus(status) => policies::status(status),
        Reply::Policy(explanation) => policy(explanation),
        Reply::Drops(drops) => show_drops(drops),
        Reply::Trace(report) => trace(report),
        Reply::Config(text) => text.clone(),
        Reply::ConfigDiff(changes) => config_diff(changes),
        Reply::Manifests(manifests) => show_manifests(manifests),
        Reply::Item(_) | Reply::End { .. } => String::new(),
        Reply::Error(error) => format!("{error}\n"),
    }
}

fn show_status(status: &Status) -> String {
    let mut out = verdict(&status.verdict);
    let _ = writeln!(
        out,
        "node {}, xskiff {}, pid {}, up {}, tables of generation {}\n",
        status.node,
        status.version,
        status.pid,
        duration(status.uptime_seconds),
        status.generation
    );
    if let Some(HandedOn { sockets, bound_anew, reason }) = &status.handed_on {
        let _ = write!(out, "taken over: {sockets} sockets as they were, {bound_anew} bound anew");
        let reason = reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let _ = writeln!(out, "{reason}\n");
    }
    if !status.waiting_for_restart.is_empty() {
        // Above the tables, since all that follows is by what is in force.
        let fields = status.waiting_for_restart.join(", ");
        let _ = writeln!(out, "waits for restart: {fields}\n");
    }
    let _ = writeln!(out, "{}", ports(status));
    let _ = writeln!(out, "{}", workers(&status.workers));
    let _ = writeln!(out, "{}", tables(&status.tables));
    for table in &status.flow_tables {
        let _ = writeln!(out, "{}", flow_table(table));
    }
    if !status.flow_tables.is_empty() {
        out.push('\n');
    }
    let xdp = &status.xdp;
    let lost = xdp.no_socket + xdp.stalled + xdp.malformed + xdp.not_ip + xdp.tagged + xdp.late;
    let _ = writeln!(
        out,
        "XDP: {} redirected, {} passed to the kernel, {} dropped (no socket {}, stalled worker {}, late \
         worker {}, malformed {}, not IP {}, tagged {})\n",
        grouped(xdp.redirected),
        grouped(xdp.passed + xdp.unknown_interface + xdp.passed_on_stall),
        grouped(lost),
        grouped(xdp.no_socket),
        grouped(xdp.stalled),
        grouped(xdp.late),
        grouped(xdp.malformed),
        grouped(xdp.not_ip),
        grouped(xdp.tagged)
    );
    out.push_str(&audit::line(&status.audit));
    out.push_str(&reconciles::table(&status.reconciles));
    let dropped: u64 = status.drops.iter().map(|drop| drop.packets).sum();
    if dropped > 0 {
        let _ = writeln!(out, "{}", show_drops(&status.drops));
    }
    out += &arrivals::arrivals(&status.arrivals);
    out += &arrivals::running_pods(&status.running_pods);
    out += &show_cni(&status.cni);
    for trace in status.kube_proxy.iter().filter(|trace| !Kind::is_labelled_certain(&trace.kind)) {
        let _ = writeln!(out, "{}", trace.what);
    }
    for BypassedChains { owner, chains } in &status.bypassed_chains {
        let _ = writeln!(out, "host rules that packets go past: {chains} chains of {owner}");
    }
    if status.manifests.folder.is_some() {
        let _ = writeln!(out, "{}", show_manifests(&status.manifests));
    }
    if let Some(followed) = &status.kubernetes {
        let _ = writeln!(out, "{}", kubernetes::kubernetes(followed));
        for remark in &status.manifests.warnings {
            let _ = writeln!(out, "  remark: {remark}");
        }
    }
    if !status.errors.is_empty() {
        out.push_str("LAST ERRORS\n");
        for error in &status.errors {
            let times =
                if error.count > 1 { format!(" ({} times)", error.count) } else { String::new() };
            let _ = writeln!(out, "  {}: {}{times}", error.object, error.message);
        }
    }
    format!("{}\n", out.trim_end())
}

/// How it stands, and the next step.
fn verdict(verdict: &Verdict) -> String {
    let level = match verdict.level {
        Level::Ok => "OK",
        Level::Degraded => "DEGRADED",
        Level::Failing => "FAILING",
    };
    let mut text = format!("{level}: {}\n", verdict.summary);
    if !verdict.next_step.is_empty() {
        let _ = writeln!(text, "next: {}", verdict.next_step);
    }
    text
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn ports(status: &Status) -> String {
    let mut table = Table::new(&[
        "PORT",
        "KIND",
        "LINK",
        ">MTU",
        "XDP",
        "SOCKETS",
        ">RX PACKETS",
        ">TX PACKETS",
        ">LOST",
        "OUT BY",
        "ENDPOINT",
    ]);
    for port in &status.ports {
        let lost = port.sockets.rx_dropped
            + port.sockets.rx_ring_full
            + port.sockets.tx_invalid_descriptors
            + port.live_refused_packets
            + port.live_vanished_packets;
        table.row([
            port.interface.clone(),
            port.kind.clone(),
            if port.up { "up".into() } else { "DOWN".into() },
            port.mtu.to_string(),
            port.xdp_mode.clone(),
            format!("{} {}", port.queues, port.socket_mode),
            grouped(port.received_packets),
            grouped(port.transmitted_packets),
            grouped(lost),
            port.transmit.clone(),
            port.endpoint.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn workers(workers: &[WorkerStatus]) -> String {
    let mut table = Table::new(&[
        "WORKER",
        ">CORE",
        "MODE",
        "STATE",
        ">RECEIVED",
        ">TRANSMITTED",
        ">HANDED OUT",
        ">FOREIGN HITS",
        ">DROPPED",
        ">HELD",
        ">FLOWS OPENED",
    ]);
    for worker in workers {
        let dropped: u64 = worker.dropped.iter().map(|(_, packets)| packets).sum();
        table.row([
            worker.worker.to_string(),
            worker.core.map_or_else(|| "-".into(), |core| core.to_string()),
            worker.mode.clone(),
            if worker.alive { "alive".into() } else { "STALLED".into() },
            grouped(worker.received),
            grouped(worker.transmitted),
            grouped(worker.handed_out),
            grouped(worker.foreign_hits),
            grouped(dropped),
            grouped(worker.held),
            grouped(worker.flows_created),
        ]);
    }
    let mut text = table.to_string();
    let mut by_cause = std::collections::BTreeMap::<&str, u64>::new();
    for (cause, packets) in workers.iter().flat_map(|worker| &worker.handed_for) {
        *by_cause.entry(cause).or_default() += packets;
    }
    by_cause.retain(|_, packets| *packets > 0);
    if !by_cause.is_empty() {
        let causes =
            by_cause.iter().map(|(cause, packets)| format!("{cause} {}", grouped(*packets)));
        let _ = writeln!(text, "handed out for: {}", causes.collect::<Vec<_>>().join(", "));
    }
    text
}

/// Tables that have ever held something; the others say nothing yet.
fn tables(tables: &[TableUsage]) -> String {
    let mut table = Table::new(&["TABLE", ">USED", ">CAPACITY", ">FULL %", ">HIGH WATER"]);
    for usage in tables.iter().filter(|usage| usage.high_water > 0) {
        let full = match usage.overwrites {
            true => "-".to_owned(),
            false => (usage.used * 100).checked_div(usage.capacity).unwrap_or(0).to_string(),
        };
        table.row([
            usage.name.clone(),
            grouped(usage.used),
            grouped(usage.capacity),
            full,
            grouped(usage.high_water),
        ]);
    }
    let unused = tables.iter().filter(|usage| usage.high_water == 0).count();
    let mut text = table.to_string();
    if unused > 0 {
        let _ = writeln!(text, "and {unused} that never held anything (all of them: --json)");
    }
    text
}

fn endpoints(list: &[EndpointInfo]) -> String {
    let mut table = Table::new(&[
        "ENDPOINT",
        "STATE",
        "INTERFACE",
        "ADDRESSES",
        "MAC",
        ">MTU",
        ">IDENTITY",
        "ISOLATED",
        "BANDWIDTH",
    ]);
    for endpoint in list {
        let isolated = match (endpoint.isolated_ingress, endpoint.isolated_egress) {
            (true, true) => "both ways",
            (true, false) => "ingress",
            (false, true) => "egress",
            (false, false) => "no",
        };
        let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
        table.row([
            endpoint.name.clone(),
            endpoint.state.clone(),
            endpoint.interface.clone(),
            addresses.join(" "),
            endpoint.mac.clone().unwrap_or_else(|| "not known yet".into()),
            endpoint.mtu.to_string(),
            endpoint.identity.map_or_else(|| "no Pod yet".into(), |number| number.to_string()),
            isolated.into(),
            limits(&endpoint.limits),
        ]);
    }
    let mut out = or_none(table, "no endpoints: `xskiff endpoint add` adds one");
    for endpoint in list {
        if let Some(reason) = &endpoint.state_reason {
            let _ = writeln!(out, "{}: {}: {reason}", endpoint.name, endpoint.state);
        }
        if let Some(pod) = endpoint.pod_mtu {
            let (name, mtu) = (&endpoint.name, endpoint.mtu);
            let _ = writeln!(
                out,
                "{name}: its end has an MTU of {pod}: what it sends above {mtu} is lost"
            );
        }
        for rule in &endpoint.bypassed {
            let _ = writeln!(out, "{}: goes past {rule}", endpoint.name);
        }
    }
    out
}

/// `ingress 10M, egress 100M`.
fn limits(limits: &[LimitInfo]) -> String {
    let of =
        |limit: &LimitInfo| format!("{} {}", limit.direction, rate_text(limit.bits_per_second));
    let all: Vec<String> = limits.iter().map(of).collect();
    if all.is_empty() { "no limit".into() } else { all.join(", ") }
}

fn show_drops(drops: &[DropCount]) -> String {
    let mut table = Table::new(&["REASON", ">PACKETS", "MEANING"]);
    let mut happened: Vec<&DropCount> = drops.iter().filter(|drop| drop.packets > 0).collect();
    happened.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    for drop in happened {
        table.row([drop.reason.clone(), grouped(drop.packets), drop.explanation.trim().to_owned()]);
    }
    let mut text = or_none(table, "nothing was dropped");
    for drop in drops.iter().filter(|drop| !drop.causes.is_empty()) {
        let mut table = Table::new(&[">DECISIONS", "POD", "CAUSE"]);
        for cause in &drop.causes {
            let pod = cause.endpoint.clone().unwrap_or_else(|| "-".into());
            table.row([grouped(cause.decisions), pod, cause.rule.clone()]);
        }
        let _ = write!(text, "\n{} lately, of the decisions that are kept:\n{table}", drop.reason);
    }
    text
}

fn trace(report: &TraceReport) -> String {
    let mut table = Table::new(&["STAGE", "FINDING"]);
    for stage in &report.stages {
        table.row([stage.stage.clone(), stage.finding.clone()]);
    }
    let mut text = format!("{table}=> {}\n", report.outcome);
    if let Some(frame) = &report.frame {
        let _ = writeln!(text, "{frame}");
    }
    text
}

fn config_diff(changes: &[ConfigDiff]) -> String {
    let mut table = Table::new(&["SETTING", "IN FORCE", "CANDIDATE", "EFFECT"]);
    for change in changes {
        table.row([&change.setting, &change.from, &change.to, &change.effect].map(String::clone));
    }
    or_none(table, "no difference")
}

/// Nothing where no plugin is used.
fn show_cni(cni: &CniStatus) -> String {
    let mut out = String::new();
    if let Some(chain) = &cni.chain {
        let file = chain.file.as_deref().unwrap_or(&chain.directory);
        let stands = match (&chain.error, chain.chained) {
            (Some(error), _) => error.clone(),
            (None, true) => "xskiff-cni is in the chain".to_owned(),
            (None, false) => "not looked at yet".to_owned(),
        };
        let again = chain.rechains;
        let _ = writeln!(out, "CNI configuration {file}: {stands}; put back {again} times");
        for caution in &chain.cautions {
            let _ = writeln!(out, "  caution: {caution}");
        }
        out.push('\n');
    }
    if *cni != (CniStatus { chain: cni.chain.clone(), ..CniStatus::default() }) {
        let CniStatus { adopted, outlived, collected, .. } = cni;
        let _ = writeln!(
            out,
            "CNI endpoints: {adopted} adopted, {outlived} outlived, {collected} collected\n"
        );
    }
    out
}

fn show_manifests(manifests: &ManifestsStatus) -> String {
    let objects: Vec<String> =
        manifests.objects.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let age = match manifests.seconds_since_success {
        Some(seconds) => format!("read {} ago", duration(seconds)),
        None => "never read".into(),
    };
    let mut text = format!(
        "manifests of {}: {age}; in force: {}\n",
        manifests.folder.as_deref().unwrap_or("no folder"),
        if objects.is_empty() { "nothing".into() } else { objects.join(", ") }
    );
    for error in &manifests.errors {
        let _ = writeln!(text, "  refused: {}: {}", error.object, error.message);
    }
    for warning in &manifests.warnings {
        let _ = writeln!(text, "  remark: {warning}");
    }
    text
}

/// One decision on one line.
#[must_use]
pub fn flow(record: &FlowRecord) -> String {
    let seconds = record.time_unix_ms / 1000 % 86_400;
    let mut line = format!(
        "{:02}:{:02}:{:02}.{:03}Z {:7} {}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        record.time_unix_ms % 1000,
        record.verdict,
        record.protocol.as_deref().unwrap_or("-"),
    );
    let end = |peer: Option<Peer>, endpoint: Option<&String>| match (peer, endpoint) {
        (Some(peer), Some(name)) => format!("{peer} ({name})"),
        (Some(peer), None) => peer.to_string(),
        (None, _) => "?".into(),
    };
    let _ = write!(
        line,
        " {} -> {}",
        end(record.source, record.source_endpoint.as_ref()),
        end(record.destination, record.destination_endpoint.as_ref())
    );
    if let Some(backend) = record.backend {
        let _ = write!(line, " => {backend}");
    }
    for (word, value) in [
        ("is", &record.state),
        ("service", &record.service),
        ("reason", &record.reason),
        ("rule", &record.rule),
    ] {
        if let Some(value) = value {
            let _ = write!(line, " {word} {value}");
        }
    }
    let _ = writeln!(line, " on {}", record.interface);
    line
}

fn or_none(table: Table, none: &str) -> String {
    if table.is_empty() { format!("{none}\n") } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use control::admin::reply::{CtEntry, CtListing};
    use control::admin::status::ObjectError;

    use super::*;

    #[test]
    fn status_opens_with_the_verdict_and_the_next_step() {
        let status = Status {
            verdict: Verdict {
                level: Level::Failing,
                summary: "worker 1 has stalled".into(),
                next_step: "look at its core".into(),
            },
            errors: vec![ObjectError {
                object: "NetworkPolicy shop/deny".into(),
                message: "unknown field `podSelecter`".into(),
                time_unix_ms: 0,
                count: 3,
            }],
            ..Status::default()
        };
        let text = show_status(&status);
        assert!(text.starts_with("FAILING: worker 1 has stalled\nnext: look at its core\n"));
        assert!(text.ends_with("NetworkPolicy shop/deny: unknown field `podSelecter` (3 times)\n"));
    }

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let waiting_for_restart = vec!["workers.count".into(), "http.listen".into()];
        let status = Status { waiting_for_restart, ..Status::default() };
        let text = show_status(&status);
        assert!(text.contains("\nwaits for restart: workers.count, http.listen\n"), "{text}");
        assert!(!show_status(&Status::default()).contains("waits for restart"));
    }

    #[test]
    fn only_drops_that_happened_are_shown_the_most_frequent_first() {
        let drops: Vec<DropCount> = [("a", 0), ("b", 2), ("c", 1000)]
            .map(|(reason, packets)| DropCount {
                reason: reason.into(),
                explanation: " Why.".into(),
                packets,
                causes: Vec::new(),
            })
            .into();
        let text = show_drops(&drops);
        assert_eq!(
            text,
            "REASON  PACKETS  MEANING\nc         1 000  Why.\nb             2  Why.\n"
        );
    }

    #[test]
    fn bytes_of_connections_are_shown_where_they_are_counted() {
        let peer = Peer { address: "10.1.0.1".parse().unwrap(), l4_port: 80 };
        let entry = |bytes| CtEntry {
            protocol: "tcp".into(),
            source: peer,
            destination: peer,
            backend: peer,
            translated_source: peer,
            state: "established".into(),
            expires_in_seconds: 9,
            packets: (3, 2),
            bytes,
            service: None,
            rule: None,
        };
        let shown = |bytes| ct(&CtListing { entries: vec![entry(bytes)], truncated: false });
        assert!(!shown(None).contains("BYTES"));
        let counted = shown(Some((1_234, 567)));
        assert!(counted.contains("BYTES") && counted.contains("1 234   567"), "{counted}");
        let json = serde_json::to_value(entry(Some((1, 2)))).unwrap();
        assert_eq!(json["bytes"], serde_json::json!([1, 2]));
    }

    #[test]
    fn tables_that_never_held_anything_are_only_counted() {
        let usage = |name: &str, used, high_water| TableUsage {
            name: name.into(),
            used,
            capacity: 100,
            high_water,
            ..TableUsage::default()
        };
        let shown = tables(&[usage("ports", 0, 3), usage("routes", 7, 7), usage("flushes", 0, 0)]);
        assert!(shown.contains("ports") && shown.contains("routes"), "{shown}");
        assert!(!shown.contains("flushes") && shown.contains("and 1 that never"), "{shown}");
    }

    #[test]
    fn an_ipv6_peer_is_bracketed_so_that_its_port_can_be_told() {
        let peer = Peer { address: "2001:db8::1".parse().unwrap(), l4_port: 80 };
        assert_eq!(peer.to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn an_uptime_is_told_in_two_units() {
        let told = [59, 61, 3_700, 90_000].map(duration);
        assert_eq!(told, ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
