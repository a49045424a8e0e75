//! Which rule decides, for people.

use std::fmt::Write as _;

use control::admin::{ExplainedStep, PolicyExplanation};

use crate::cli::table::{Table, grouped};

pub(super) fn policy(explanation: &PolicyExplanation) -> String {
    let mut text = format!(
        "{}: {}\n",
        if explanation.allowed { "ALLOWED" } else { "DENIED" },
        explanation.summary
    );
    for (word, side) in [("from", &explanation.from), ("to", &explanation.to)] {
        if !side.is_empty() {
            let _ = writeln!(text, "{word}: {side}");
        }
    }
    for step in &explanation.steps {
        let verdict = if step.allowed { "allowed" } else { "denied" };
        let _ =
            writeln!(text, "\n{} of {}: {verdict} by {}", step.direction, step.subject, step.rule);
        if let Some(node) = &step.elsewhere {
            let _ = writeln!(text, "enforced on {node}; this is what the objects say");
        }
        if let Some(would) = step.would_allow {
            let _ = writeln!(
                text,
                "with the policies under audit enforced: {}",
                match would {
                    true => "allowed",
                    false => "denied",
                }
            );
        }
        if step.examined.is_empty() {
            text.push_str("no rule was looked at\n");
        } else {
            text.push_str(&examined(step));
        }
        if step.examined_left_out > 0 {
            let more = grouped(step.examined_left_out);
            let _ = writeln!(text, "and {more} more that were looked at");
        }
    }
    if let Some(seen) = &explanation.source_nat {
        let _ = writeln!(text, "\n{seen}");
    }
    text
}

/// Every rule that was looked at; the one that decides is marked.
fn examined(step: &ExplainedStep) -> String {
    let peer = if step.direction == "egress" { "TO" } else { "FROM" };
    let mut table = Table::new(&["", "POLICY", "RULE", peer, "PROTOCOL", "PORT"]);
    let finding =
        |matches: bool, why: &str| format!("{} {why}", if matches { "yes:" } else { "no:" });
    for rule in &step.examined {
        let audited = if rule.audited { " (under audit)" } else { "" };
        table.row([
            if rule.decides { "=>".to_owned() } else { String::new() },
            format!("{}{audited}", rule.policy),
            rule.index.map_or_else(|| "-".into(), |at| format!("spec.{}[{at}]", step.direction)),
            finding(rule.peer_matches, &rule.peer),
            finding(rule.protocol_matches, &rule.protocol),
            finding(rule.port_matches, &rule.port),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use control::admin::ExaminedRule;

    use super::*;

    #[test]
    fn every_rule_is_shown_with_why_and_what_the_audit_would_say() {
        let rule = ExaminedRule {
            policy: "shop/db".into(),
            index: Some(2),
            audited: true,
            peer_matches: false,
            peer: "pods app=web of namespace shop".into(),
            protocol_matches: true,
            protocol: "tcp".into(),
            port_matches: false,
            port: "tcp 5432".into(),
            decides: false,
        };
        let step = ExplainedStep {
            direction: "ingress".into(),
            subject: "shop/db-0".into(),
            allowed: true,
            rule: "no NetworkPolicy selects the pod".into(),
            elsewhere: Some("node-b".into()),
            would_allow: Some(false),
            examined: vec![rule],
            examined_left_out: 1500,
        };
        let text = policy(&PolicyExplanation {
            allowed: true,
            summary: "a may speak to b".into(),
            from: "a is identity 300".into(),
            to: String::new(),
            steps: vec![step],
            source_nat: None,
        });
        for part in [
            "ALLOWED: a may speak to b\nfrom: a is identity 300\n\ningress of shop/db-0: allowed by no",
            "enforced on node-b; this is what the objects say\n",
            "with the policies under audit enforced: denied\n",
            "shop/db (under audit)  spec.ingress[2]  no: pods app=web of namespace shop  yes: tcp",
            "and 1 500 more that were looked at\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }
}
