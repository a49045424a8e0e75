//! Rules of the host that packets pass by once they are redirected, by whose they are.

use std::collections::BTreeMap;

use super::finding::Finding;
use crate::kube_proxy::command::output;
use crate::kube_proxy::{legacy_tables, names, nftables, saved};

/// What iptables' older interface lists; the newer one's chains are the kernel's.
const LEGACY: [&str; 2] = ["iptables-legacy-save", "ip6tables-legacy-save"];

/// Checks the host's rules.
#[must_use]
pub fn check(may_ask: bool) -> Vec<Finding> {
    let name = "host-rules";
    if !may_ask {
        return vec![Finding::skipped(name, "needs the privileges above", "")];
    }
    let mut found: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut note = |chain: &str| {
        if let Some(owner) = names::owner(chain) {
            *found.entry(owner).or_default() += 1;
        }
    };
    match nftables::chains() {
        Ok(chains) => {
            for chain in chains {
                let is_own = chain.table == names::NFTABLES_TABLE;
                note(if is_own { "KUBE-SERVICES" } else { &chain.name });
            }
        }
        Err(error) => return vec![Finding::warn(name, error.to_string(), "")],
    }
    let mut missing = Vec::new();
    for tool in LEGACY {
        match output(tool) {
            Ok(Some(saved)) => saved::chains(&saved).for_each(&mut note),
            Ok(None) => missing.push(tool),
            Err(error) => return vec![Finding::warn(name, error.to_string(), "")],
        }
    }
    let mut findings: Vec<Finding> =
        found.iter().map(|(owner, chains)| of(owner, *chains)).collect();
    if findings.is_empty() {
        findings.push(Finding::pass(name, "none of Calico, portmap, kube-proxy or the like"));
    }
    if !legacy_tables().is_empty() && !missing.is_empty() {
        let remedy = "install iptables to have them named";
        findings.push(Finding::warn(name, "rules of iptables-legacy are there, unnamed", remedy));
    }
    findings
}

fn of(owner: &str, chains: usize) -> Finding {
    let remedy = match owner {
        "kube-proxy" => "end kube-proxy, then `xskiff kube-proxy clean`",
        "portmap (CNI)" => {
            "its port mappings are not asked for redirected packets: hostPorts are served by the node itself"
        }
        "Calico" => {
            "its policies do not see redirected packets: NetworkPolicy is enforced here; its own \
             kinds of policy are not"
        }
        _ => "packets of pods and services pass them by once they are redirected",
    };
    let found = format!("{chains} chains of {owner}: bypassed by what is redirected");
    Finding::warn("host-rules", found, remedy)
}
