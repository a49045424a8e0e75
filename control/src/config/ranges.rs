//! Address ranges that must not overlap.
//!
//! Service addresses are nobody's: one that a pod or a node has as well would be translated away
//! from it. Pods and nodes may share a range, as in networks where both have addresses of one
//! subnet, and a range of node addresses may be wide: it only says which of the node's own
//! addresses serve node ports.

use std::net::IpAddr;

use dataplane::lb::SERVICE_RANGES_MAX;
use ipnet::IpNet;

use super::Config;
use super::validate::Findings;

pub(super) fn check(config: &Config, findings: &mut Findings) {
    let ranges = config.cluster.service_cidrs.len();
    findings.check(
        ranges <= SERVICE_RANGES_MAX,
        "cluster.service_cidrs",
        format!("a list of {ranges}"),
        &format!("at most {SERVICE_RANGES_MAX} ranges"),
    );
    for (at, service) in config.cluster.service_cidrs.iter().enumerate() {
        let setting = format!("cluster.service_cidrs[{at}]");
        for (other, pods) in config.cluster.pod_cidrs.iter().enumerate() {
            let apart = !service.contains(pods) && !pods.contains(service);
            let wanted = format!(
                "it overlaps cluster.pod_cidrs[{other}] ({pods}): services and pods need ranges \
                 of their own"
            );
            findings.check(apart, &setting, service, &wanted);
        }
        for (other, nodes) in config.node_ports.address_cidrs.iter().enumerate() {
            let wanted = format!(
                "it contains node_ports.address_cidrs[{other}] ({nodes}), which no node's address \
                 can then be in: services need ranges of their own"
            );
            findings.check(!service.contains(nodes), &setting, service, &wanted);
        }
        for (field, address) in sources(config) {
            let wanted = format!(
                "it contains {field} ({address}): replies to it would be taken for a service's"
            );
            findings.check(!service.contains(&address), &setting, service, &wanted);
        }
    }
    for (field, address) in sources(config) {
        findings.check(
            !address.is_unspecified() && !address.is_multicast() && !address.is_loopback(),
            field,
            address,
            "an address of this node that the outside can answer to",
        );
    }
    for (field, ranges) in [
        ("cluster.pod_cidrs", &config.cluster.pod_cidrs),
        ("cluster.service_cidrs", &config.cluster.service_cidrs),
    ] {
        for (at, range) in ranges.iter().enumerate() {
            let wanted = "a range of its own: this one holds every address there is";
            findings.check(range.prefix_len() > 0, format!("{field}[{at}]"), range, wanted);
        }
    }
    nested("cluster.pod_cidrs", &config.cluster.pod_cidrs, findings);
    nested("cluster.service_cidrs", &config.cluster.service_cidrs, findings);
}

fn sources(config: &Config) -> impl Iterator<Item = (&'static str, IpAddr)> {
    let v4 = config.nat.ipv4_source.map(|address| ("nat.ipv4_source", IpAddr::V4(address)));
    let v6 = config.nat.ipv6_source.map(|address| ("nat.ipv6_source", IpAddr::V6(address)));
    v4.into_iter().chain(v6)
}

/// One range within another of its own list says nothing, and is probably a slip in its length.
pub(super) fn nested(field: &str, ranges: &[IpNet], findings: &mut Findings) {
    for (at, range) in ranges.iter().enumerate() {
        let earlier = ranges[..at].iter().position(|o| o.contains(range) || range.contains(o));
        let Some(other) = earlier else { continue };
        let wanted = format!("it overlaps {field}[{other}] ({}): keep one", ranges[other]);
        findings.check(false, format!("{field}[{at}]"), range, &wanted);
    }
}
