//! Services, for people.

use std::fmt::Write as _;

use control::admin::reply::{BackendInfo, FrontendInfo, Peer, ServiceInfo};
use control::admin::service::{ServiceDetail, ServiceTraceReport};
use control::model::WEIGHT_DEFAULT;

use super::or_none;
use crate::cli::table::{Table, grouped};

pub(super) fn services(list: &[ServiceInfo]) -> String {
    let mut table = Table::new(&["SERVICE", "KIND", "FRONTEND", "CHOICE", "WAY BACK", "BACKENDS"]);
    for service in list {
        let backend = |backend: &BackendInfo| {
            let mut text = Peer { address: backend.address, l4_port: backend.l4_port }.to_string();
            if backend.weight != WEIGHT_DEFAULT {
                let _ = write!(text, " weight {}", backend.weight);
            }
            if backend.local {
                text += " (here)";
            }
            text
        };
        let backends: Vec<String> = service.backends.iter().map(backend).collect();
        let backends = if backends.is_empty() { "none usable".into() } else { backends.join(", ") };
        for (index, frontend) in service.frontends.iter().enumerate() {
            // What holds for all of them once, beside the first.
            let once = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
            table.row([
                once(&service.name),
                frontend.kind.clone(),
                address(frontend),
                once(&service.choice),
                once(&service.way_back),
                once(&backends),
            ]);
        }
    }
    or_none(table, "no services in force")
}

fn address(frontend: &FrontendInfo) -> String {
    let at = match frontend.address {
        Some(address) => Peer { address, l4_port: frontend.l4_port }.to_string(),
        None => format!("node port {}", frontend.l4_port),
    };
    format!("{}/{at}", frontend.protocol)
}

pub(super) fn service(detail: &ServiceDetail) -> String {
    let mut text = format!(
        "{}: internalTrafficPolicy {}, externalTrafficPolicy {}\n",
        detail.name, detail.internal_policy, detail.external_policy
    );
    if !detail.source_ranges.is_empty() {
        let ranges = detail.source_ranges.join(", ");
        let _ = writeln!(text, "load balancer addresses are for {ranges} alone");
    }
    if let Some(check) = &detail.health_check {
        let _ = write!(
            text,
            "health check on port {}: {} local endpoints",
            check.l4_port, check.local_endpoints
        );
        let _ = match &check.failure {
            Some(failure) => writeln!(text, "; not answered: {failure}"),
            None => writeln!(text),
        };
    }
    for port in &detail.ports {
        let frontends: Vec<String> = port
            .frontends
            .iter()
            .map(|frontend| format!("{} {}", frontend.kind, address(frontend)))
            .collect();
        let listens = match frontends.is_empty() {
            true => "listens nowhere".to_owned(),
            false => frontends.join(", "),
        };
        let _ = writeln!(text, "\nport {} ({}): {listens}", port.name, port.family);
        if !port.choice.is_empty() {
            let _ = writeln!(text, "choice: {}; way back: {}", port.choice, port.way_back);
        }
        let _ = writeln!(text, "topology: {}", port.topology);
        let mut table = Table::new(&[
            "BACKEND",
            "NODE",
            "STATE",
            ">WEIGHT",
            "USED BY",
            ">CONNECTIONS",
            ">BYTES",
            "WHY NOT",
        ]);
        for backend in &port.backends {
            let used = match (backend.in_cluster, backend.in_local) {
                (true, true) => "Cluster, Local",
                (true, false) => "Cluster",
                (false, true) => "Local",
                (false, false) => "none",
            };
            let node = backend.node.clone().unwrap_or_else(|| "-".into());
            table.row([
                Peer { address: backend.address, l4_port: backend.l4_port }.to_string(),
                if backend.local { format!("{node} (here)") } else { node },
                backend.state.clone(),
                backend.weight.to_string(),
                used.into(),
                grouped(backend.connections),
                backend.bytes.map_or_else(|| "-".into(), grouped),
                backend.why_not.clone().unwrap_or_default(),
            ]);
        }
        text += &or_none(table, "no endpoints");
        if port.left_out > 0 {
            let _ = writeln!(text, "and {} more", grouped(port.left_out));
        }
    }
    for warning in &detail.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

pub(super) fn traced(report: &ServiceTraceReport) -> String {
    let mut table = Table::new(&["STAGE", "FINDING"]);
    for stage in &report.stages {
        table.row([stage.stage.clone(), stage.finding.clone()]);
    }
    format!("{table}=> {}\n", report.outcome)
}
