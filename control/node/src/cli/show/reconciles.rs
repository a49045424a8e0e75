//! What brings one thing in step with another, for people.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use control::admin::status::ReconcileStatus;

use super::duration;
use crate::cli::table::{Table, grouped};

pub(super) fn table(rows: &[ReconcileStatus]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    at(rows, since.as_secs())
}

fn at(rows: &[ReconcileStatus], now_unix_seconds: u64) -> String {
    let mut table =
        Table::new(&["RECONCILE", ">RUNS", ">FAILURES", ">MEAN", ">LONGEST", "LAST ERROR"]);
    for row in rows.iter().filter(|row| row.runs > 0 || row.failures > 0) {
        let mean = row.microseconds.and_then(|all| all.checked_div(row.runs));
        let time = |time: Option<u64>| time.map_or_else(|| "-".into(), milliseconds);
        let error = row.last_error.as_ref().map_or_else(String::new, |error| {
            let mut text = format!("{}: {}", error.object, error.message);
            if error.time_unix_ms > 0 {
                let ago = now_unix_seconds.saturating_sub(error.time_unix_ms / 1000);
                let _ = write!(text, " ({} ago)", duration(ago));
            }
            text
        });
        table.row([
            row.reconcile.clone(),
            grouped(row.runs),
            grouped(row.failures),
            time(mean),
            time(row.longest_microseconds),
            error,
        ]);
    }
    format!("\n{table}")
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", grouped(microseconds / 1000), microseconds % 1000)
}

#[cfg(test)]
mod tests {
    use control::admin::status::ObjectError;

    use super::*;

    #[test]
    fn those_that_ran_are_shown_with_their_last_error_and_its_object() {
        let error = ObjectError {
            object: "XDP rules".into(),
            message: "no room".into(),
            time_unix_ms: 1_000_000,
            count: 1,
        };
        let ran = ReconcileStatus {
            reconcile: "xdp-maps".into(),
            runs: 4,
            failures: 1,
            microseconds: Some(10_000),
            longest_microseconds: Some(1_234_567),
            last_error: Some(error),
        };
        let idle = ReconcileStatus { reconcile: "audit".into(), ..ReconcileStatus::default() };
        let text = at(&[ran.clone(), idle], 1061);
        let row = "xdp-maps      4         1  2.500 ms  1 234.567 ms  XDP rules: no room (1 min 1 s ago)\n";
        assert!(text.ends_with(row) && !text.contains("audit"), "{text}");
        assert_eq!(table(&[]), "");
        // The clock was set back meanwhile.
        assert!(at(&[ran], 500).ends_with("XDP rules: no room (0 s ago)\n"));
    }
}
