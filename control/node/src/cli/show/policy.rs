//! Which rule decides, for people.

use std::fmt::Write as _;

use control::admin::{ExplainedStep, PolicyExplanation};

use crate::cli::table::Table;

pub(super) fn policy(explanation: &PolicyExplanation) -> String {
    let mut text = format!(
        "{}: {}\n",
        if explanation.allowed { "ALLOWED" } else { "DENIED" },
        explanation.summary
    );
    for step in &explanation.steps {
        let verdict = if step.allowed { "allowed" } else { "denied" };
        let _ =
            writeln!(text, "\n{} of {}: {verdict} by {}", step.direction, step.subject, step.rule);
        if !step.examined.is_empty() {
            text.push_str(&examined(step));
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
    let mut table = Table::new(&["", "POLICY", "RULE", peer, "PORT"]);
    let finding =
        |matches: bool, why: &str| format!("{} {why}", if matches { "yes:" } else { "no:" });
    for rule in &step.examined {
        table.row([
            if rule.decides { "=>".to_owned() } else { String::new() },
            rule.policy.clone(),
            rule.index.map_or_else(|| "-".into(), |at| format!("spec.{}[{at}]", step.direction)),
            finding(rule.peer_matches, &rule.peer),
            finding(rule.port_matches, &rule.port),
        ]);
    }
    table.to_string()
}
