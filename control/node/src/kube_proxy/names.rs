//! Names that kube-proxy gives to chains, tables and interfaces (pkg/proxy of Kubernetes 1.20 to
//! 1.36), and those of others that only look alike. Pure.

/// kube-proxy's own table in nftables mode.
pub const NFTABLES_TABLE: &str = "kube-proxy";

/// Chains by their whole name.
const CHAINS: [&str; 15] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // Of IPVS mode.
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-SOURCE-RANGES",
    "KUBE-LOAD-BALANCER-FW",
];

/// Chains of one service or endpoint: the prefix, then a hash of 16 characters.
const PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-"];

/// Whether a chain is kube-proxy's. The kubelet's (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`,
/// `KUBE-IPTABLES-HINT`, `KUBE-MARK-DROP`) are not: the first keeps others from speaking to the node's
/// loopback. Nor are those of policy engines (`KUBE-NWPLCY-`, `KUBE-POD-FW-`, `KUBE-ROUTER-`).
#[must_use]
pub fn is_kube_proxys(chain: &str) -> bool {
    let of_one = |prefix: &&str| {
        chain.strip_prefix(*prefix).is_some_and(|hash| {
            hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        })
    };
    CHAINS.contains(&chain) || PREFIXES.iter().any(of_one)
}

/// Whose rules a chain holds that packets pass by now, for whom that matters.
#[must_use]
pub fn owner(chain: &str) -> Option<&'static str> {
    const OWNERS: [(&str, &str); 9] = [
        ("cali-", "Calico"),
        ("CNI-HOSTPORT", "portmap (CNI)"),
        ("CNI-DN-", "portmap (CNI)"),
        ("CNI-", "a CNI plugin's masquerade"),
        ("CILIUM_", "Cilium"),
        ("OLD_CILIUM_", "Cilium"),
        ("FLANNEL-", "Flannel's masquerade"),
        ("KUBE-NWPLCY-", "kube-router"),
        ("WEAVE-", "Weave Net"),
    ];
    let owner = OWNERS.iter().find(|(prefix, _)| chain.starts_with(prefix));
    owner.map(|(_, owner)| *owner).or_else(|| is_kube_proxys(chain).then_some("kube-proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_chains_are_told_from_the_kubelets_and_from_policy_engines() {
        for own in [
            "KUBE-SERVICES",
            "KUBE-SVC-TCOU7JCQXEZGVUNU",
            "KUBE-SEP-2B2WXQZGHGRVOC2X",
            "KUBE-FORWARD",
        ] {
            assert!(is_kube_proxys(own), "{own}");
            assert_eq!(owner(own), Some("kube-proxy"));
        }
        for other in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-NWPLCY-2B2WXQZGHGRVOC2X",
            "KUBE-SVC-short",
            "KUBE-SVC-tcou7jcqxezgvunu",
            "INPUT",
            "kube-services",
        ] {
            assert!(!is_kube_proxys(other), "{other}");
        }
        assert_eq!(owner("cali-FORWARD"), Some("Calico"));
        assert_eq!(owner("CNI-DN-0123456789abcdef01234"), Some("portmap (CNI)"));
        assert_eq!(owner("INPUT"), None);
    }
}
