//! Metrics of the audit.

use control::admin::Status;

use super::families::{counter, gauge, one};
use super::{Family, Sample};

pub(super) fn families(status: &Status) -> Vec<Family> {
    let audit = &status.audit;
    let found = audit.differences.iter();
    let found = found
        .map(|(audited, value)| Sample {
            labels: vec![("audited", audited.clone())],
            value: *value,
        })
        .collect();
    let mut families = vec![
        counter("xskiff_audit_rounds", "Rounds of the audit", one(audit.rounds)),
        counter(
            "xskiff_audit_repairs",
            "Rounds after which everything was made anew",
            one(audit.repairs),
        ),
        counter("xskiff_audit_differences", "Differences found, by what differed", found),
        gauge("xskiff_audit_checked", "Things that the last round compared", one(audit.checked)),
        gauge("xskiff_audit_found", "Differences that the last round found", one(audit.found)),
    ];
    if let Some(seconds) = audit.seconds_since {
        let help = "Seconds since the last round of the audit ended";
        families.push(gauge("xskiff_audit_last_round_age_seconds", help, one(seconds)));
    }
    families
}
