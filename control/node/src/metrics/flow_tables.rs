//! Metrics of the flow tables: how they began, how they fill and grow, what they refused and gave up.

use control::admin::Status;
use control::admin::status::{FlowTableStatus, WorkerStatus};

use super::families::{Column, columns, counter, gauge, worker_labels};
use super::{Family, Labels, Sample};

fn table(table: &FlowTableStatus) -> Labels {
    vec![("table", table.table.clone())]
}

const BEGAN: &[Column<FlowTableStatus>] = &[
    (
        "xskiff_flow_table_taken_over_flows",
        "Flows of the process before that a flow table began with",
        false,
        |table| table.flows,
    ),
    (
        "xskiff_flow_table_lost_flows",
        "Flows of the process before that found no room",
        false,
        |table| table.lost,
    ),
    (
        "xskiff_flow_table_not_taken_over",
        "1 where flows of the process before could not be taken, or will end with this one",
        false,
        |table| u64::from(table.reason.is_some()),
    ),
    (
        "xskiff_flow_table_outlives_process",
        "1 for a flow table that the next process can take over",
        false,
        |table| u64::from(table.file.is_some()),
    ),
];

const FILLS: &[Column<FlowTableStatus>] = &[
    ("xskiff_flow_table_used_flows", "Flows now", false, |t| t.fill.used),
    (
        "xskiff_flow_table_high_water_flows",
        "Most flows of each worker at once, summed",
        false,
        |t| t.fill.high_water,
    ),
    (
        "xskiff_flow_table_waiting_flows",
        "Ended flows whose entries wait until every worker has let go of them",
        false,
        |t| t.fill.waiting,
    ),
    ("xskiff_flow_table_capacity_flows", "Flows there is room for now", false, |t| t.fill.capacity),
    ("xskiff_flow_table_capacity_max_flows", "Flows that it grows to by itself", false, |t| {
        t.fill.capacity_max
    }),
    ("xskiff_flow_table_committed_flows", "Flows there is memory for", false, |t| t.fill.committed),
    ("xskiff_flow_table_memory_bytes", "Memory that it has", false, |t| t.fill.memory_bytes),
    ("xskiff_flow_table_index_moving", "1 while its index is moved to another size", false, |t| {
        u64::from(t.fill.index_moving)
    }),
    ("xskiff_flow_table_growths", "Times its capacity rose by itself", true, |t| t.fill.grown),
    ("xskiff_flow_table_resizes", "Times it was resized on request", true, |t| t.fill.resized),
    (
        "xskiff_flow_table_growths_refused",
        "Times the memory for more flows was not to be had",
        true,
        |t| t.fill.growth_refused,
    ),
];

pub(super) fn families(status: &Status) -> Vec<Family> {
    let began: fn(&FlowTableStatus) -> Labels =
        |table| vec![("table", table.table.clone()), ("outcome", table.outcome.clone())];
    let mut families = columns(&status.flow_tables, began, BEGAN);
    families.extend(columns(&status.flow_tables, table, FILLS));
    families.push(inserts_refused(status));
    families.push(seconds_to_full(status));
    families.push(evicted(status));
    families
}

fn inserts_refused(status: &Status) -> Family {
    let of = |row: &FlowTableStatus| {
        let fill = &row.fill;
        let causes = [("full", fill.inserts_refused_full), ("index", fill.inserts_refused_index)];
        causes.map(|(cause, value)| {
            let labels = [table(row), vec![("cause", cause.to_owned())]].concat();
            Sample { labels, value }
        })
    };
    let samples = status.flow_tables.iter().flat_map(of).collect();
    counter("xskiff_flow_table_inserts_refused", "Flows not inserted, by cause", samples)
}

/// Only of tables that fill.
fn seconds_to_full(status: &Status) -> Family {
    let of = |row: &FlowTableStatus| {
        Some(Sample { labels: table(row), value: row.fill.seconds_to_full? })
    };
    let samples = status.flow_tables.iter().filter_map(of).collect();
    let help = "Seconds until it holds as many flows as it may, at the pace of the last minute";
    gauge("xskiff_flow_table_time_to_full_seconds", help, samples)
}

fn evicted(status: &Status) -> Family {
    let of = |worker: &WorkerStatus| {
        let labels = worker_labels(worker);
        let class = move |(class, value): &(String, u64)| Sample {
            labels: [labels.clone(), vec![("class", class.clone())]].concat(),
            value: *value,
        };
        worker.evicted.iter().map(class).collect::<Vec<_>>()
    };
    let samples = status.workers.iter().flat_map(of).collect();
    counter("xskiff_evictions", "Flows given up to make room, by class", samples)
}
