//! The first two lines of `xskiff status`: how the node stands, and what to do next. Pure.

use control::admin::Status;
use control::admin::status::{Level, Verdict};

use crate::kube_proxy::Kind;

/// A table this full, in percent, is worth a word.
const NEARLY_FULL_PERCENT: u64 = 90;

/// The verdict over everything else in `status`: the worst finding, and its remedy.
#[must_use]
pub fn verdict(status: &Status) -> Verdict {
    let findings = [
        stalled_worker(status),
        no_tables(status),
        port_down(status),
        refused_manifests(status),
        refused_objects(status),
        held_losses(status),
        unfollowed(status),
        unwritten(status),
        kube_proxy(status),
        full_table(status),
        last_error(status),
    ];
    // The first of the worst: findings are in order of urgency within a level.
    let worst = findings.into_iter().flatten().rev().max_by_key(|finding| finding.level);
    worst.unwrap_or_else(|| all_well(status))
}

fn finding(level: Level, summary: String, next_step: &str) -> Option<Verdict> {
    Some(Verdict { level, summary, next_step: next_step.to_owned() })
}

fn all_well(status: &Status) -> Verdict {
    let pods = status.ports.iter().filter(|port| port.kind == "pod").count();
    let summary = format!(
        "{} worker{} serve{} {} port{}",
        status.workers.len(),
        if status.workers.len() == 1 { "" } else { "s" },
        if status.workers.len() == 1 { "s" } else { "" },
        status.ports.len(),
        if status.ports.len() == 1 { "" } else { "s" },
    );
    let next_step = match (status.ports.is_empty(), pods) {
        _ if !status.waiting_for_restart.is_empty() => {
            "start `xskiff run` again for what waits, or take it back in the file"
        }
        (true, _) => "configure an uplink, or add a pod by `xskiff endpoint add`",
        (false, 0) => "add pods by `xskiff endpoint add`",
        _ => "nothing; `xskiff flows --follow` shows decisions as they are made",
    };
    Verdict { level: Level::Ok, summary, next_step: next_step.into() }
}

fn stalled_worker(status: &Status) -> Option<Verdict> {
    let stalled: Vec<String> = status
        .workers
        .iter()
        .filter(|worker| !worker.alive)
        .map(|worker| worker.worker.to_string())
        .collect();
    if stalled.is_empty() {
        return None;
    }
    let summary = format!(
        "worker {} has stalled: what is ours on its queues is dropped until it is back",
        stalled.join(" and ")
    );
    finding(Level::Failing, summary, "see whether its core is starved (`top -H`), and the log")
}

fn no_tables(status: &Status) -> Option<Verdict> {
    if status.control.publishes > 0 {
        return None;
    }
    finding(Level::Failing, "no tables are in force yet".into(), "wait, or read the errors below")
}

fn kube_proxy(status: &Status) -> Option<Verdict> {
    let found = status.kube_proxy.iter();
    let certain = found.filter(|trace| Kind::is_labelled_certain(&trace.kind));
    let found: Vec<&str> = certain.map(|trace| trace.what.as_str()).collect();
    if found.is_empty() {
        return None;
    }
    let summary = format!("kube-proxy is in the way of services: {}", found.join(", "));
    let next_step = "end kube-proxy, then see `xskiff kube-proxy clean`";
    finding(Level::Degraded, summary, next_step)
}

fn port_down(status: &Status) -> Option<Verdict> {
    let port = status.ports.iter().find(|port| !port.up)?;
    let level = if port.kind == "pod" { Level::Degraded } else { Level::Failing };
    let summary = format!("{} {} is down", port.kind, port.interface);
    finding(level, summary, "bring the link up, or remove the port")
}

fn refused_manifests(status: &Status) -> Option<Verdict> {
    let errors = &status.manifests.errors;
    let first = errors.first()?;
    let summary = format!(
        "{} manifest{} refused, the last good state stays in force: {}: {}",
        errors.len(),
        if errors.len() == 1 { " is" } else { "s are" },
        first.object,
        first.message
    );
    finding(Level::Degraded, summary, "mend the manifest; it is read again by itself")
}

fn refused_objects(status: &Status) -> Option<Verdict> {
    let kubernetes = status.kubernetes.as_ref()?;
    let first = kubernetes.refused.first()?;
    let number: u64 = kubernetes.kinds.iter().map(|kind| kind.refused).sum();
    let summary = format!(
        "{number} object{} not in force as written: {}: {}",
        if number == 1 { " is" } else { "s are" },
        first.object,
        first.message
    );
    finding(Level::Degraded, summary, "mend the object; it is read again by itself")
}

fn held_losses(status: &Status) -> Option<Verdict> {
    let kinds = &status.kubernetes.as_ref()?.kinds;
    let kind = kinds.iter().find(|kind| kind.held > 0)?;
    let summary = format!("a list has lost {} of {}, which stay in force", kind.held, kind.kind);
    let next = "wait for the second list; see whether the API server lost its store";
    finding(Level::Degraded, summary, next)
}

fn unfollowed(status: &Status) -> Option<Verdict> {
    let kinds = &status.kubernetes.as_ref()?.kinds;
    let kind = kinds.iter().find(|kind| !kind.absent && kind.last_error.is_some())?;
    let error = kind.last_error.as_ref()?;
    let summary =
        format!("{} cannot be followed, what is in force stays: {}", kind.kind, error.message);
    finding(Level::Degraded, summary, "see to the API servers, their addresses or our access")
}

fn unwritten(status: &Status) -> Option<Verdict> {
    let error = status.kubernetes.as_ref()?.snapshot.last_error.as_ref()?;
    let summary = format!("the cluster is not written to disk: {error}");
    let next = "make room or mend the disk: a start without API servers would serve what is old";
    finding(Level::Degraded, summary, next)
}

fn full_table(status: &Status) -> Option<Verdict> {
    let full = status.tables.iter().find(|table| {
        !table.overwrites
            && table.capacity > 0
            && table.used * 100 >= table.capacity * NEARLY_FULL_PERCENT
    })?;
    let summary = format!("table {} holds {} of {}", full.name, full.used, full.capacity);
    let next_step = match full.name.as_str() {
        "flows_per_endpoint" => {
            "see which pod (`xskiff ct top --by pod`), or raise flow_table.flows_per_endpoint_max"
        }
        name if name.starts_with("flows_") => {
            "see what fills it (`xskiff ct list`), or let it be larger (`xskiff ct resize`, flow_table)"
        }
        "paced_frames" => {
            "see whose (`xskiff endpoint list`, xskiff_bandwidth_delayed_packets_total), or give \
             packet memory more frames (packet_memory.frames)"
        }
        "pod_packet_frames" => {
            "further pods will be refused: raise packet_memory.pod_frames, or move pods elsewhere"
        }
        "packet_frames" => "give packet memory more frames (packet_memory.frames)",
        _ => "see what fills it; its bound is fixed, what finds no room is refused and counted",
    };
    finding(Level::Degraded, summary, next_step)
}

fn last_error(status: &Status) -> Option<Verdict> {
    let error = status.errors.first()?;
    let summary = format!("{}: {}", error.object, error.message);
    finding(Level::Degraded, summary, "mend what the last errors below name")
}

#[cfg(test)]
mod tests {
    use control::admin::kubernetes::{KindStatus, KubernetesStatus};
    use control::admin::status::{
        ControlStatus, ObjectError, PortStatus, TableUsage, WorkerStatus,
    };

    use super::*;

    fn healthy() -> Status {
        Status {
            workers: vec![WorkerStatus { alive: true, ..WorkerStatus::default() }],
            ports: vec![PortStatus { up: true, kind: "uplink".into(), ..PortStatus::default() }],
            control: ControlStatus { publishes: 1, ..ControlStatus::default() },
            ..Status::default()
        }
    }

    fn error(object: &str) -> ObjectError {
        ObjectError { object: object.into(), message: "bad".into(), time_unix_ms: 0, count: 1 }
    }

    #[test]
    fn a_healthy_node_without_pods_says_how_to_add_some() {
        let verdict = verdict(&healthy());
        assert_eq!(verdict.level, Level::Ok);
        assert_eq!(verdict.summary, "1 worker serves 1 port");
        assert!(verdict.next_step.contains("endpoint add"));
    }

    #[test]
    fn a_node_whose_file_differs_is_well_and_says_how_to_bring_it_into_force() {
        let status = Status { waiting_for_restart: vec!["workers.count".into()], ..healthy() };
        let verdict = verdict(&status);
        assert_eq!(verdict.level, Level::Ok);
        assert!(verdict.next_step.contains("again"), "{}", verdict.next_step);
    }

    #[test]
    fn a_stalled_worker_outranks_everything() {
        let mut status = healthy();
        status.workers[0].alive = false;
        status.ports[0].up = false;
        status.manifests.errors.push(error("Service a/b"));
        let verdict = verdict(&status);
        assert_eq!(verdict.level, Level::Failing);
        assert!(verdict.summary.starts_with("worker 0 has stalled"));
    }

    #[test]
    fn a_refused_manifest_degrades_and_is_named() {
        let mut status = healthy();
        status.manifests.errors.push(error("NetworkPolicy a/deny"));
        status.errors.push(error("something else"));
        let verdict = verdict(&status);
        assert_eq!(verdict.level, Level::Degraded);
        assert!(verdict.summary.contains("NetworkPolicy a/deny: bad"), "{}", verdict.summary);
    }

    #[test]
    fn what_is_not_followed_held_or_refused_is_told() {
        let kind = |change: fn(&mut KindStatus)| {
            let mut kind = KindStatus { kind: "Pod".into(), ..KindStatus::default() };
            change(&mut kind);
            let kubernetes = KubernetesStatus { kinds: vec![kind], ..KubernetesStatus::default() };
            verdict(&Status { kubernetes: Some(kubernetes), ..healthy() })
        };
        assert_eq!(kind(|_| {}).level, Level::Ok);
        let failing = kind(|kind| kind.last_error = Some(error("Pod")));
        assert_eq!(failing.level, Level::Degraded);
        assert!(failing.summary.starts_with("Pod cannot be followed"), "{}", failing.summary);
        assert!(kind(|kind| kind.held = 12).summary.contains("lost 12 of Pod"));
    }

    #[test]
    fn a_table_of_nine_tenths_is_named_with_its_numbers() {
        let mut status = healthy();
        status.tables.push(TableUsage {
            name: "flows_ipv4".into(),
            used: 90,
            capacity: 100,
            high_water: 95,
            ..TableUsage::default()
        });
        assert_eq!(verdict(&status).summary, "table flows_ipv4 holds 90 of 100");
    }

    /// Every node was DEGRADED for ever after its first 7,373 flows.
    #[test]
    fn a_ring_that_forgets_its_oldest_entry_is_full_in_good_health() {
        let mut status = healthy();
        status.tables.push(TableUsage {
            name: "recent_flow_events".into(),
            used: 8192,
            capacity: 8192,
            high_water: 8192,
            overwrites: true,
        });
        assert_eq!(verdict(&status).level, Level::Ok);
    }

    #[test]
    fn a_pod_that_is_down_degrades_and_an_uplink_that_is_down_fails() {
        let mut status = healthy();
        status.ports[0].up = false;
        assert_eq!(verdict(&status).level, Level::Failing);
        status.ports[0].kind = "pod".into();
        assert_eq!(verdict(&status).level, Level::Degraded);
    }
}
