//! Identities, for people.

use std::fmt::Write as _;

use control::admin::policy::{Excerpt, FoundIdentity, IdentityInfo, IdentityListing, SelectorInfo};

use crate::cli::table::{Table, grouped};

pub(super) fn listing(listing: &IdentityListing) -> String {
    let mut table =
        Table::new(&[">IDENTITY", "KIND", ">ADDRESSES", ">HERE", "FOR EXAMPLE", "SELECTED AS"]);
    for row in &listing.rows {
        let selectors = row.selectors.first.iter().map(|one| one.selector.clone());
        let selectors =
            Excerpt { first: selectors.collect::<Vec<String>>(), left_out: row.selectors.left_out };
        table.row([
            row.number.to_string(),
            row.kind.clone(),
            grouped(row.addresses),
            grouped(row.addresses_here),
            example(row),
            if selectors.is_empty() { "-".to_owned() } else { selectors.joined("; ") },
        ]);
    }
    let mut text = table.to_string();
    let shown = listing.rows.len() as u64;
    match listing.next {
        Some(next) => {
            let _ = writeln!(
                text,
                "{} of {} are shown; go on with --after {next}",
                grouped(shown),
                grouped(listing.total)
            );
        }
        None => {
            let _ = writeln!(text, "{} identities in all", grouped(listing.total));
        }
    }
    text
}

/// Whoever has it, in a few words.
fn example(row: &IdentityInfo) -> String {
    match (row.examples.first.first(), row.ranges.first.first()) {
        (Some(first), _) if row.addresses > 1 => format!("{first}, ..."),
        (Some(first), _) => first.to_string(),
        (None, Some(range)) => format!("others in {range}"),
        (None, None) if row.kind == "world" => "everybody else".to_owned(),
        (None, None) => "nobody now".to_owned(),
    }
}

pub(super) fn found(found: &[FoundIdentity]) -> String {
    let each = found.iter().map(|one| {
        let of: Vec<String> = one.of.iter().map(ToString::to_string).collect();
        let of = if of.is_empty() { String::new() } else { format!("{} is ", of.join(" and ")) };
        format!("{of}{}", identity(&one.identity))
    });
    each.collect::<Vec<_>>().join("\n")
}

fn identity(info: &IdentityInfo) -> String {
    let reserved = if info.reserved { ", reserved" } else { "" };
    let mut text = format!("identity {}: {}{reserved}\n", info.number, info.kind);
    let _ = match info.addresses {
        1 => writeln!(text, "addresses: 1, {} on this node", info.addresses_here),
        count => {
            writeln!(text, "addresses: {}, {} on this node", grouped(count), info.addresses_here)
        }
    };
    for address in &info.examples.first {
        let _ = writeln!(text, "  {address}");
    }
    left_out(&mut text, info.examples.left_out);
    if info.kind == "world" {
        text.push_str("and every other address that nothing else names\n");
    }
    lines(&mut text, "ranges, but for addresses with identities of their own:", &info.ranges);
    if info.selectors.is_empty() {
        text.push_str("no selector of any policy matches it\n");
    } else {
        let _ = writeln!(text, "selectors that match it: {}", info.selectors.len());
        for one in &info.selectors.first {
            selector(&mut text, one);
        }
        left_out(&mut text, info.selectors.left_out);
    }
    lines(&mut text, "ports that policies name, as it numbers them:", &info.named_ports);
    lines(&mut text, "isolated toward itself (ingress) by:", &info.isolated_ingress);
    lines(&mut text, "isolated from itself on (egress) by:", &info.isolated_egress);
    text
}

fn selector(text: &mut String, one: &SelectorInfo) {
    let _ = writeln!(text, "  {}", one.selector);
    for used in &one.used_by.first {
        let _ = writeln!(text, "    used by NetworkPolicy {}, {}", used.policy, used.field);
    }
    if one.used_by.left_out > 0 {
        let _ = writeln!(text, "    and {} times more", grouped(one.used_by.left_out));
    }
}

fn lines(text: &mut String, heading: &str, all: &Excerpt<String>) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text, "{heading}");
    for line in &all.first {
        let _ = writeln!(text, "  {line}");
    }
    left_out(text, all.left_out);
}

fn left_out(text: &mut String, number: u64) {
    if number > 0 {
        let _ = writeln!(text, "  and {} more (--limit)", grouped(number));
    }
}

#[cfg(test)]
mod tests {
    use control::admin::policy::{AddressInfo, SelectorUse};

    use super::*;

    fn info() -> IdentityInfo {
        let address = |last: u8| AddressInfo {
            address: [10, 1, 0, last].into(),
            of: Some(format!("shop/web-{last}")),
        };
        let used = SelectorUse { policy: "shop/web".into(), field: "spec.podSelector".into() };
        let selector = SelectorInfo {
            selector: "pods app=web of namespace shop".into(),
            used_by: Excerpt { first: vec![used], left_out: 3 },
        };
        IdentityInfo {
            number: 300,
            kind: "pod".into(),
            addresses: 12,
            addresses_here: 1,
            examples: Excerpt { first: vec![address(1), address(2)], left_out: 10 },
            selectors: Excerpt { first: vec![selector], left_out: 0 },
            ..IdentityInfo::default()
        }
    }

    #[test]
    fn a_page_says_what_it_left_out_and_how_to_go_on() {
        let page = IdentityListing { rows: vec![info()], total: 1234, next: Some(300) };
        let text = listing(&page);
        assert!(text.contains("10.1.0.1 (shop/web-1), ..."), "{text}");
        assert!(text.ends_with("1 of 1 234 are shown; go on with --after 300\n"), "{text}");
        let last = IdentityListing { next: None, ..page };
        assert!(listing(&last).ends_with("1 234 identities in all\n"));
    }

    #[test]
    fn an_identity_names_its_selectors_and_the_policies_that_use_them() {
        let of = vec!["10.1.0.1".parse().unwrap()];
        let text = found(&[FoundIdentity { of, identity: info() }]);
        assert!(text.starts_with("10.1.0.1 is identity 300: pod\naddresses: 12, 1 on this node\n"));
        for line in [
            "  10.1.0.2 (shop/web-2)\n  and 10 more (--limit)\n",
            "  pods app=web of namespace shop\n    used by NetworkPolicy shop/web, spec.podSelector\n    \
             and 3 times more\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
