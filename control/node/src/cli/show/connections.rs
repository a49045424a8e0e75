//! Connections, and the tables that hold them.

use std::fmt::Write;

use control::admin::reply::{CtCounts, CtListing, CtTopRow, Peer};
use control::admin::status::FlowTableStatus;

use super::{duration, or_none};
use crate::cli::table::{Table, grouped};

pub(super) fn ct(listing: &CtListing) -> String {
    // All flows of a node have details, or none has.
    let has_bytes = listing.entries.iter().any(|entry| entry.bytes.is_some());
    let of_bytes: &[&str] = if has_bytes { &[">BYTES", ">BACK"] } else { &[] };
    let first: &[&str] = &["PROTO", "STATE", "SOURCE", "DESTINATION", "BACKEND", "SOURCE AS SEEN"];
    let counts: &[&str] = &[">EXPIRES S", ">PACKETS", ">BACK"];
    let mut table = Table::new(&[first, counts, of_bytes, &["SERVICE", "RULE"]].concat());
    for entry in &listing.entries {
        let unless = |same: bool, peer: Peer| if same { "-".into() } else { peer.to_string() };
        let mut row = vec![
            entry.protocol.clone(),
            entry.state.clone(),
            entry.source.to_string(),
            entry.destination.to_string(),
            unless(entry.backend == entry.destination, entry.backend),
            unless(entry.translated_source == entry.source, entry.translated_source),
            entry.expires_in_seconds.to_string(),
            grouped(entry.packets.0),
            grouped(entry.packets.1),
        ];
        if has_bytes {
            let (onward, back) = entry.bytes.unwrap_or_default();
            row.extend([grouped(onward), grouped(back)]);
        }
        row.extend([entry.service.clone(), entry.rule.clone()].map(Option::unwrap_or_default));
        table.row(row);
    }
    let mut text = or_none(table, "no connections match");
    if listing.truncated {
        let _ = writeln!(text, "there are more: raise --limit, or filter");
    }
    text
}

pub(super) fn ct_counts(counts: &CtCounts) -> String {
    let mut text = format!("{} flows\n", grouped(counts.flows));
    for table in &counts.tables {
        let fill = &table.fill;
        let _ = writeln!(text, "{}", flow_table(table));
        let _ = writeln!(
            text,
            "  at most {}; grown {} times, resized {}, growth refused {}; not inserted: {} for want of \
             room, {} by the index",
            grouped(fill.high_water),
            grouped(fill.grown),
            grouped(fill.resized),
            grouped(fill.growth_refused),
            grouped(fill.inserts_refused_full),
            grouped(fill.inserts_refused_index)
        );
    }
    let evicted: Vec<String> = counts
        .evicted
        .iter()
        .map(|(class, flows)| format!("{class} {}", grouped(*flows)))
        .collect();
    let refused = grouped(counts.refused_for_endpoint);
    let _ = writeln!(text, "evicted: {}; refused for their pod: {refused}", evicted.join(", "));
    text
}

pub(super) fn ct_top(rows: &[CtTopRow]) -> String {
    let mut table = Table::new(&["WHOSE", ">FLOWS", ">HALF-OPEN", ">PACKETS", ">AT MOST"]);
    for row in rows {
        table.row([
            row.name.clone().unwrap_or_else(|| "nobody here".into()),
            grouped(row.flows),
            grouped(row.half_open),
            grouped(row.packets),
            row.flows_max.map_or_else(|| "-".into(), grouped),
        ]);
    }
    or_none(table, "no connections")
}

/// How a flow table stands, where it came from, and whether the next process finds it.
pub(super) fn flow_table(table: &FlowTableStatus) -> String {
    let fill = &table.fill;
    let mut line =
        format!("{}: {} of {} flows", table.table, grouped(fill.used), grouped(fill.capacity));
    if fill.capacity_max > fill.capacity {
        let _ = write!(line, ", grows to {}", grouped(fill.capacity_max));
    }
    if fill.derived {
        line.push_str(" (by the machine's memory)");
    }
    let _ = write!(line, ", {} MB", grouped(fill.memory_bytes.div_ceil(1_000_000)));
    if fill.taking_memory {
        line.push_str(", more is being taken");
    }
    if fill.index_moving {
        line.push_str(", its index moves");
    }
    if let Some(seconds) = fill.seconds_to_full {
        let _ = write!(line, ", full in {}", duration(seconds));
    }
    if let Some(why) = &fill.growth_refusal {
        let _ = write!(line, "; it cannot grow: {why}");
    }
    match table.outcome.as_str() {
        "new" => line.push_str("; began empty"),
        outcome => {
            let flows = grouped(table.flows);
            let _ = write!(line, "; {flows} flows of the process before, {outcome}");
        }
    }
    if table.lost > 0 {
        let _ = write!(line, ", {} found no room", grouped(table.lost));
    }
    match &table.file {
        Some(file) => drop(write!(line, ", in {file}")),
        None => line.push_str(", in memory that ends with this process"),
    }
    if let Some(reason) = &table.reason {
        let _ = write!(line, " ({reason})");
    }
    line
}
