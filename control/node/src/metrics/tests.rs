use std::io::Write as _;
use std::process::{Command, Stdio};

use control::admin::cni::{ChainStatus, CniStatus};
use control::admin::kubernetes::{KindStatus, KubernetesStatus, ServerStatus};
use control::admin::reply::ManifestsStatus;
use control::admin::status::{
    FlowTableFill, FlowTableStatus, ObjectError, PortStatus, ReconcileStatus, TableUsage,
    WorkerStatus,
};
use dataplane::DropReason;

use super::*;

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        node: "node-\"a\"\\\n".into(),
        workers: vec![
            WorkerStatus {
                dropped: vec![("spoofed".into(), 7)],
                received: 12,
                handed_for: vec![("miss".into(), 5), ("holder".into(), 0)],
                foreign_hits: 8,
                evicted: vec![("half-open".into(), 3), ("closing".into(), 0)],
                ..WorkerStatus::default()
            },
            WorkerStatus { worker: 1, ..WorkerStatus::default() },
        ],
        ports: vec![PortStatus {
            interface: "veth1".into(),
            kind: "pod".into(),
            endpoint: Some("shop/cart-0".into()),
            ..PortStatus::default()
        }],
        tables: vec![TableUsage {
            name: "flows_ipv4".into(),
            used: 1,
            capacity: 2,
            high_water: 2,
            overwrites: false,
        }],
        flow_tables: vec![FlowTableStatus {
            table: "flows_ipv4".into(),
            outcome: "new".into(),
            fill: FlowTableFill {
                used: 5,
                capacity: 64,
                inserts_refused_full: 9,
                seconds_to_full: Some(77),
                ..FlowTableFill::default()
            },
            ..FlowTableStatus::default()
        }],
        reconciles: vec![
            ReconcileStatus {
                reconcile: "compile".into(),
                runs: 7,
                failures: 2,
                microseconds: Some(1_500_250),
                longest_microseconds: Some(700),
                last_error: Some(ObjectError { time_unix_ms: 5_000, ..ObjectError::default() }),
            },
            ReconcileStatus { reconcile: "source-Pod".into(), ..ReconcileStatus::default() },
        ],
        cni: CniStatus { adopted: 1, chain: Some(ChainStatus::default()), ..CniStatus::default() },
        manifests: ManifestsStatus {
            objects: vec![("Pod".into(), 3)],
            seconds_since_success: Some(1),
            ..ManifestsStatus::default()
        },
        kubernetes: Some(KubernetesStatus {
            kinds: vec![KindStatus {
                kind: "Pod".into(),
                failures: vec![("silent".into(), 4)],
                held: 6,
                seconds_since_sign_of_life: Some(2),
                ..KindStatus::default()
            }],
            servers: vec![ServerStatus {
                server: "https://10.0.0.1:6443".into(),
                received_bytes: 9,
                ..ServerStatus::default()
            }],
            ..KubernetesStatus::default()
        }),
        ..Status::default()
    }
}

#[test]
fn what_is_followed_says_how_it_fares() {
    let text = encode(&status()).unwrap();
    for line in [
        "xskiff_kubernetes_failures_total{kind=\"Pod\",reason=\"silent\"} 4\n",
        "xskiff_kubernetes_held_losses{kind=\"Pod\"} 6\n",
        "xskiff_kubernetes_last_sign_of_life_age_seconds{kind=\"Pod\"} 2\n",
        "xskiff_kubernetes_server_received_bytes_total{server=\"https://10.0.0.1:6443\"} 9\n",
        "xskiff_snapshot_failures_total{} 0\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn every_reconcile_says_how_often_it_ran_and_failed_and_how_long_it_took() {
    let text = encode(&status()).unwrap();
    for line in [
        "xskiff_reconcile_runs_total{reconcile=\"compile\"} 7\n",
        "xskiff_reconcile_runs_total{reconcile=\"source-Pod\"} 0\n",
        "xskiff_reconcile_failures_total{reconcile=\"compile\"} 2\n",
        "xskiff_reconcile_seconds_total{reconcile=\"compile\"} 1.50025\n",
        "xskiff_reconcile_longest_seconds{reconcile=\"compile\"} 0.0007\n",
        "xskiff_reconcile_last_error_timestamp_seconds{reconcile=\"compile\"} 5\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("seconds_total{reconcile=\"source-Pod\"}"), "not measured");
    assert!(!text.contains("timestamp_seconds{reconcile=\"source-Pod\"}"), "never failed");
}

#[test]
fn pods_that_come_say_how_long_it_took() {
    let mut status = status();
    status.arrivals.added = 2;
    for ms in [3, 40] {
        status.arrivals.made.note(std::time::Duration::from_millis(ms));
    }
    let text = encode(&status).unwrap();
    for line in [
        "xskiff_endpoint_adds_total{outcome=\"added\"} 2\n",
        "xskiff_endpoint_add_seconds_sum{phase=\"making\"} 0.043\n",
        "xskiff_endpoint_add_seconds_count{phase=\"making\"} 2\n",
        "xskiff_endpoint_add_seconds_bucket{le=\"0.005\",phase=\"making\"} 1\n",
        "xskiff_endpoint_add_seconds_bucket{le=\"+Inf\",phase=\"making\"} 2\n",
        "xskiff_endpoint_add_seconds_bucket{le=\"+Inf\",phase=\"adopting\"} 0\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package `prometheus`, is needed");
    let text = encode(&status()).unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn every_drop_reason_of_every_worker_is_there_also_those_that_never_happened() {
    let text = encode(&status()).unwrap();
    for reason in DropReason::ALL {
        for worker in 0..2 {
            let value = if (*reason, worker) == (DropReason::Spoofed, 0) { 7 } else { 0 };
            let line = format!(
                "xskiff_dropped_packets_total{{worker=\"{worker}\",reason=\"{}\"}} {value}\n",
                reason.label()
            );
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }
}

#[test]
fn every_table_says_how_full_it_is() {
    let text = encode(&status()).unwrap();
    for (metric, value) in [("used", 1), ("capacity", 2), ("high_water", 2)] {
        let line = format!("xskiff_table_{metric}_entries{{table=\"flows_ipv4\"}} {value}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[test]
fn flow_tables_say_how_they_fill_and_what_they_refused_and_gave_up() {
    let text = encode(&status()).unwrap();
    for line in [
        "xskiff_flow_table_used_flows{table=\"flows_ipv4\"} 5\n",
        "xskiff_flow_table_capacity_flows{table=\"flows_ipv4\"} 64\n",
        "xskiff_flow_table_time_to_full_seconds{table=\"flows_ipv4\"} 77\n",
        "xskiff_flow_table_inserts_refused_total{table=\"flows_ipv4\",cause=\"full\"} 9\n",
        "xskiff_worker_handoffs_packets_total{worker=\"0\",cause=\"miss\"} 5\n",
        "xskiff_worker_foreign_hits_packets_total{worker=\"0\"} 8\n",
        "xskiff_evictions_total{worker=\"0\",class=\"half-open\"} 3\n",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_name_is_used_once_and_every_metric_has_help() {
    let families = families::families(&status());
    for family in &families {
        let twins = families.iter().filter(|other| other.name == family.name).count();
        assert_eq!(twins, 1, "{} is used twice", family.name);
        assert!(!family.help.is_empty() && !family.name.ends_with("_total"));
    }
}
