//! Policies, for people.

use std::fmt::Write as _;

use control::admin::policy::{
    Excerpt, PolicyDetail, PolicyInfo, PolicyListing, PolicyProblem, PolicyStatus, RuleInfo,
};

use super::{or_none, verdict};
use crate::cli::table::{Table, grouped};

pub(super) fn listing(listing: &PolicyListing) -> String {
    let mut table = Table::new(&[
        "POLICY",
        "SELECTS",
        ">PODS HERE",
        ">PODS",
        ">INGRESS RULES",
        ">EGRESS RULES",
        "MODE",
        "PROBLEMS",
    ]);
    let rules = |number: Option<u64>| number.map_or_else(|| "-".into(), grouped);
    for row in &listing.rows {
        table.row([
            row.name.clone(),
            row.selector.clone(),
            grouped(row.pods_here),
            grouped(row.pods),
            rules(row.ingress_rules),
            rules(row.egress_rules),
            if row.audited { "audit" } else { "enforced" }.to_owned(),
            match row.problems.len() {
                0 => "none".to_owned(),
                problems => grouped(problems),
            },
        ]);
    }
    let mut text = or_none(table, "no NetworkPolicy is in force");
    for row in &listing.rows {
        for problem in &row.problems.first {
            let _ = writeln!(text, "problem: {}: {problem}", row.name);
        }
        if row.problems.left_out > 0 {
            let _ = writeln!(text, "problem: {}: and {} more", row.name, row.problems.left_out);
        }
    }
    problems(&mut text, "refused", &listing.refused);
    if let Some(next) = &listing.next {
        let shown = grouped(listing.rows.len() as u64);
        let total = grouped(listing.total);
        let _ = writeln!(text, "{shown} of {total} are shown; go on with --after {next}");
    }
    text
}

fn problems(text: &mut String, word: &str, all: &Excerpt<PolicyProblem>) {
    for one in &all.first {
        let _ = writeln!(text, "{word}: {}: {}", one.policy, one.message);
    }
    if all.left_out > 0 {
        let _ = writeln!(text, "{word}: and {} more (--limit)", grouped(all.left_out));
    }
}

pub(super) fn status(status: &PolicyStatus) -> String {
    let mut text = verdict(&status.verdict);
    text.push('\n');
    if let Some(detail) = &status.policy {
        text.push_str(&policy(detail));
        problems(&mut text, "problem", &status.problems);
        return text;
    }
    let _ = writeln!(
        text,
        "policies: {} in force, {} of them under audit; {} rules",
        grouped(status.policies),
        grouped(status.policies_audited),
        grouped(status.rules)
    );
    let _ = writeln!(
        text,
        "they make {} identities with {} selectors",
        grouped(status.identities),
        grouped(status.selectors)
    );
    let _ = writeln!(
        text,
        "pods here: {}, isolated toward themselves {}, from themselves on {}",
        grouped(status.endpoints),
        grouped(status.isolated_ingress),
        grouped(status.isolated_egress)
    );
    problems(&mut text, "problem", &status.problems);
    text
}

fn policy(detail: &PolicyDetail) -> String {
    let info = &detail.info;
    let mut text = format!("NetworkPolicy {}, {}\n", info.name, mode(info));
    let _ = writeln!(
        text,
        "selects {}: {} here, {} in the cluster",
        info.selector,
        pods(info.pods_here),
        pods(info.pods)
    );
    let isolates = match (info.ingress_rules, info.egress_rules) {
        (Some(_), Some(_)) => "both ways",
        (Some(_), None) => "toward them (ingress)",
        (None, Some(_)) => "from them on (egress)",
        (None, None) => "in no direction",
    };
    let _ = writeln!(text, "isolates them {isolates}");
    let _ = writeln!(
        text,
        "of the decisions that are kept, {} denied something to pods it isolates, {} would have \
         under audit",
        grouped(detail.denied),
        grouped(detail.would_deny)
    );
    let mut table = Table::new(&["POD HERE", ">IDENTITY", "INGRESS", "EGRESS", ""]);
    let word = |isolated: bool| match (isolated, info.audited) {
        (false, _) => "-",
        (true, false) => "isolated",
        (true, true) => "under audit",
    };
    for endpoint in &detail.endpoints.first {
        table.row([
            endpoint.name.clone(),
            endpoint.identity.to_string(),
            word(endpoint.ingress).to_owned(),
            word(endpoint.egress).to_owned(),
            if endpoint.unknown { "no Pod object: no rule counts" } else { "" }.to_owned(),
        ]);
    }
    let _ = write!(text, "\n{}", or_none(table, "no pod of this node"));
    more(&mut text, detail.endpoints.left_out);
    let _ = write!(text, "\n{}", rules(&detail.rules));
    more(&mut text, detail.rules.left_out);
    text
}

fn mode(info: &PolicyInfo) -> String {
    match (&info.audited_by, info.audited) {
        (Some(by), _) => format!("under audit by the annotation of {by}"),
        (None, true) => "under audit".to_owned(),
        (None, false) => "enforced".to_owned(),
    }
}

fn pods(number: u64) -> String {
    if number == 1 { "1 pod".to_owned() } else { format!("{} pods", grouped(number)) }
}

fn rules(all: &Excerpt<RuleInfo>) -> String {
    let mut table = Table::new(&["RULE", "FROM OR TO", "PORTS", ">FLOWS"]);
    for rule in &all.first {
        let everybody = |text: String, none: &str| if text.is_empty() { none.into() } else { text };
        table.row([
            format!("spec.{}[{}]", rule.direction, rule.index),
            everybody(rule.peers.joined(" or "), "everybody"),
            everybody(rule.ports.joined(" or "), "every port"),
            grouped(rule.flows),
        ]);
    }
    or_none(table, "no rule: it isolates only")
}

fn more(text: &mut String, number: u64) {
    if number > 0 {
        let _ = writeln!(text, "and {} more (--limit)", grouped(number));
    }
}

#[cfg(test)]
mod tests {
    use control::admin::policy::{IsolatedEndpoint, PeerInfo};
    use control::admin::status::{Level, Verdict};

    use super::*;

    fn info() -> PolicyInfo {
        PolicyInfo {
            name: "shop/web".into(),
            selector: "app=web".into(),
            pods_here: 1,
            pods: 1200,
            ingress_rules: Some(1),
            ..PolicyInfo::default()
        }
    }

    #[test]
    fn a_page_names_problems_and_what_is_refused_and_says_how_to_go_on() {
        let problems = Excerpt { first: vec!["unknown field spec.x".to_owned()], left_out: 2 };
        let refused = PolicyProblem { policy: "shop/odd".into(), message: "no name".into() };
        let page = PolicyListing {
            rows: vec![PolicyInfo { problems, ..info() }],
            total: 2000,
            next: Some("shop/web".into()),
            refused: Excerpt { first: vec![refused], left_out: 0 },
        };
        let text = listing(&page);
        for line in [
            "problem: shop/web: unknown field spec.x\nproblem: shop/web: and 2 more\n",
            "refused: shop/odd: no name\n1 of 2 000 are shown; go on with --after shop/web\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("enforced") && text.contains("1 200"), "{text}");
        assert_eq!(listing(&PolicyListing::default()), "no NetworkPolicy is in force\n");
    }

    #[test]
    fn a_status_opens_with_the_verdict_and_shows_rules_as_they_were_read() {
        let rule = RuleInfo {
            direction: "ingress".into(),
            index: 0,
            peers: Excerpt {
                first: vec![PeerInfo { peer: "pods (all) of namespace shop".into(), pods: 7 }],
                left_out: 0,
            },
            ports: Excerpt { first: vec!["tcp \"http\" (8080 there)".into()], left_out: 0 },
            flows: 31,
        };
        let endpoint = IsolatedEndpoint {
            name: "shop/web-1".into(),
            identity: 300,
            ingress: true,
            egress: false,
            unknown: false,
        };
        let detail = PolicyDetail {
            info: info(),
            endpoints: Excerpt { first: vec![endpoint], left_out: 0 },
            rules: Excerpt { first: vec![rule], left_out: 4 },
            denied: 9,
            would_deny: 0,
        };
        let status = PolicyStatus {
            verdict: Verdict {
                level: Level::Degraded,
                summary: "unknown field".into(),
                next_step: "mend it".into(),
            },
            policy: Some(detail),
            ..PolicyStatus::default()
        };
        let text = super::status(&status);
        assert!(text.starts_with("DEGRADED: unknown field\nnext: mend it\n"), "{text}");
        for part in [
            "selects app=web: 1 pod here, 1 200 pods in the cluster\n",
            "pods (all) of namespace shop (7 pods)  tcp \"http\" (8080 there)     31\n",
            "and 4 more (--limit)\n",
            "9 denied something",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.contains("isolated  -"), "{text}");
    }
}
