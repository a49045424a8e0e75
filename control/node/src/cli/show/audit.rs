//! What the audit found, for people.

use std::fmt::Write as _;

use control::admin::reply::AuditReport;
use control::admin::status::AuditStatus;

use crate::cli::table::{Table, grouped};

pub(super) fn report(report: &AuditReport) -> String {
    let checked = grouped(report.checked);
    if report.found == 0 {
        return format!("OK: {checked} things compared, none differs\n");
    }
    let found = grouped(report.found);
    let mut text = format!("DIFFERENT: {found} of {checked} things compared\n\n");
    let mut table = Table::new(&["WHERE", "OBJECT", "WHAT"]);
    for one in &report.differences {
        table.row([one.audited.clone(), one.object.clone(), one.detail.clone()]);
    }
    text.push_str(&table.to_string());
    let more = report.found.saturating_sub(report.differences.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "and {} more", grouped(more));
    }
    text
}

pub(super) fn line(status: &AuditStatus) -> String {
    let Some(since) = status.seconds_since else {
        return "audit: the first round is not over yet\n".into();
    };
    format!(
        "audit: {} rounds, the last {since} s ago: {} things compared, {} differ; repaired {} times\n",
        grouped(status.rounds),
        grouped(status.checked),
        grouped(status.found),
        grouped(status.repairs)
    )
}

#[cfg(test)]
mod tests {
    use control::admin::reply::AuditDifference;

    use super::*;

    #[test]
    fn differences_are_named_and_what_is_left_out_is_counted() {
        let clean = AuditReport { checked: 1200, ..AuditReport::default() };
        assert_eq!(report(&clean), "OK: 1 200 things compared, none differs\n");
        let one = AuditDifference {
            audited: "policy".into(),
            object: "Pod shop/web".into(),
            detail: "should be denied".into(),
        };
        let text = report(&AuditReport { checked: 5, found: 3, differences: vec![one] });
        assert!(text.starts_with("DIFFERENT: 3 of 5"), "{text}");
        assert!(text.contains("Pod shop/web") && text.ends_with("and 2 more\n"), "{text}");
    }
}
