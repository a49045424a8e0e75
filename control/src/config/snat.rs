//! Explicit source translation: which pods leave with which address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::nat::rules::{SNAT_ADDRESSES_MAX, SNAT_LIST_MAX, SNAT_RULES_MAX};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Config;
use super::ranges::nested;
use super::validate::Findings;

/// One rule. The first that matches decides, before masquerade.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snat {
    /// Pods, by their addresses.
    pub sources: Vec<IpNet>,
    /// Destinations, those of `non_masquerade_cidrs` among them; empty: wherever the pods would be
    /// masqueraded. Pods, services and nodes of the cluster never are.
    pub destinations: Vec<IpNet>,
    /// Addresses to leave with, of the families of `sources`; of several, each pod has one.
    pub to: Vec<IpAddr>,
}

/// Addresses that may be configured: as many were perhaps in use before a change.
const CONFIGURED_MAX: usize = SNAT_ADDRESSES_MAX / 2;

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let rules = &config.nat.snat;
    findings.check(
        rules.len() <= SNAT_RULES_MAX,
        "nat.snat",
        format!("a list of {}", rules.len()),
        &format!("at most {SNAT_RULES_MAX} rules"),
    );
    let addresses: BTreeSet<IpAddr> = rules.iter().flat_map(|rule| &rule.to).copied().collect();
    findings.check(
        addresses.len() <= CONFIGURED_MAX,
        "nat.snat",
        format!("{} addresses", addresses.len()),
        &format!("at most {CONFIGURED_MAX} addresses to translate to"),
    );
    for (at, rule) in rules.iter().take(SNAT_RULES_MAX).enumerate() {
        let field = format!("nat.snat[{at}]");
        lists(&field, rule, findings);
        for (place, to) in rule.to.iter().enumerate() {
            address(config, &format!("{field}.to[{place}]"), *to, findings);
        }
        families(&field, rule, findings);
        let same = |other: &&Snat| {
            let of = |nets: &[IpNet]| nets.iter().copied().collect::<BTreeSet<_>>();
            of(&other.sources) == of(&rule.sources)
                && of(&other.destinations) == of(&rule.destinations)
        };
        let earlier = rules[..at].iter().position(|other| same(&other));
        findings.check(
            earlier.is_none(),
            &field,
            format!("{} ranges of sources", rule.sources.len()),
            &format!(
                "nat.snat[{}] has the same sources and destinations and always comes first: keep one",
                earlier.unwrap_or_default()
            ),
        );
    }
}

fn lists(field: &str, rule: &Snat, findings: &mut Findings) {
    for (name, len) in [
        ("sources", rule.sources.len()),
        ("destinations", rule.destinations.len()),
        ("to", rule.to.len()),
    ] {
        let list = format!("a list of {len}");
        let wanted = format!("at most {SNAT_LIST_MAX} entries: write another rule for the rest");
        findings.check(len <= SNAT_LIST_MAX, format!("{field}.{name}"), list, &wanted);
    }
    findings.check(
        !rule.sources.is_empty(),
        format!("{field}.sources"),
        "an empty list",
        "ranges of pods' addresses, such as 10.244.3.0/24, or one pod's, such as 10.244.3.7/32",
    );
    findings.check(
        !rule.to.is_empty(),
        format!("{field}.to"),
        "an empty list",
        "addresses that the outside answers to by this node",
    );
    nested(&format!("{field}.sources"), &rule.sources, findings);
    nested(&format!("{field}.destinations"), &rule.destinations, findings);
    for (place, to) in rule.to.iter().enumerate() {
        findings.check(
            !rule.to[..place].contains(to),
            format!("{field}.to[{place}]"),
            to,
            "it is listed twice: keep one",
        );
    }
}

/// What the outside can answer to, and nobody else has.
fn address(config: &Config, field: &str, to: IpAddr, findings: &mut Findings) {
    let is_link_local = match to {
        IpAddr::V4(to) => to.is_link_local() || to.is_broadcast(),
        IpAddr::V6(to) => to.is_unicast_link_local() || to.to_ipv4_mapped().is_some(),
    };
    findings.check(
        !(to.is_unspecified() || to.is_multicast() || to.is_loopback() || is_link_local),
        field,
        to,
        "an address that the outside can answer to",
    );
    let cluster = &config.cluster;
    for (setting, whose, ranges) in [
        ("cluster.pod_cidrs", "a pod's", &cluster.pod_cidrs),
        ("cluster.service_cidrs", "a service's", &cluster.service_cidrs),
    ] {
        let within = ranges.iter().position(|range| range.contains(&to));
        let wanted = format!(
            "it is in {setting}[{}]: replies would be taken for {whose}",
            within.unwrap_or_default()
        );
        findings.check(within.is_none(), field, to, &wanted);
    }
}

/// Each family that pods have has an address to leave with, and what is listed can be used.
fn families(field: &str, rule: &Snat, findings: &mut Findings) {
    for (name, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let of = |nets: &[IpNet]| nets.iter().any(|net| net.addr().is_ipv4() == is_v4);
        let (from, there) = (of(&rule.sources), of(&rule.destinations));
        let to = rule.to.iter().find(|to| to.is_ipv4() == is_v4);
        if rule.sources.is_empty() || rule.to.is_empty() {
            continue;
        }
        findings.check(
            to.is_some() || !from,
            format!("{field}.to"),
            format!("no {name} address"),
            &format!(
                "its sources have {name} ranges, which could not leave: add one, or take them out"
            ),
        );
        findings.check(
            from || to.is_none(),
            format!("{field}.to"),
            to.map(ToString::to_string).unwrap_or_default(),
            &format!("its sources have no {name} range that would leave with it"),
        );
        findings.check(
            from || !there,
            format!("{field}.destinations"),
            format!("an {name} range"),
            &format!("its sources have no {name} range that could speak to it"),
        );
        findings.check(
            rule.destinations.is_empty() || there || !from,
            format!("{field}.sources"),
            format!("an {name} range"),
            &format!("its destinations have no {name} range that it could speak to"),
        );
    }
}
