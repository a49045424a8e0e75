//! Metrics of everything that brings one thing in step with another.

use control::admin::Status;
use control::admin::status::ReconcileStatus;

use super::families::{counter, gauge};
use super::{Family, Labels, Sample, Unit};

fn labels(row: &ReconcileStatus) -> Labels {
    vec![("reconcile", row.reconcile.clone())]
}

pub(super) fn families(status: &Status) -> Vec<Family> {
    let samples = |value: fn(&ReconcileStatus) -> Option<u64>| {
        let sample =
            |row: &ReconcileStatus| Some(Sample { labels: labels(row), value: value(row)? });
        status.reconciles.iter().filter_map(sample).collect::<Vec<_>>()
    };
    let failing = |row: &ReconcileStatus| row.last_error.as_ref().map(|e| e.time_unix_ms / 1000);
    let runs = counter(
        "xskiff_reconcile_runs",
        "Times that something was brought in step, failed ones among them",
        samples(|row| Some(row.runs)),
    );
    let failures = counter(
        "xskiff_reconcile_failures",
        "Times that it failed; each is in the log with its object",
        samples(|row| Some(row.failures)),
    );
    let seconds = counter(
        "xskiff_reconcile_seconds",
        "Time that all runs took together",
        samples(|row| row.microseconds),
    );
    let longest = gauge(
        "xskiff_reconcile_longest_seconds",
        "Time that the longest run took",
        samples(|row| row.longest_microseconds),
    );
    let last_error = gauge(
        "xskiff_reconcile_last_error_timestamp_seconds",
        "When it last failed, by the Unix clock; absent before the first time",
        samples(failing).into_iter().filter(|sample| sample.value > 0).collect(),
    );
    let of_time = |family| Family { unit: Unit::Microseconds, ..family };
    vec![runs, failures, of_time(seconds), of_time(longest), last_error]
}
