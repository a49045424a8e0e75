//! The same job as rules of the kernel's: its DNAT, and the policy.
//!
//! A single service is one nftables rule with a hash of the client, the least that can be asked of the
//! kernel. Many are as kube-proxy lays them out: in its iptables mode a chain with a rule for each
//! service, one after the other, a chain for each service that chooses by chance, and one for each
//! endpoint; in its nftables mode a map of addresses and ports to the same chains. Services with equal
//! endpoints share a chain, and so do endpoints that are one pod, which kube-proxy does not do: with tens
//! of thousands of chains `nft` takes minutes for ten thousand, and more for the next. It is to the
//! kernel's advantage: the chains that it walks are as long, and stay in its caches.

use anyhow::{Context, Result};

use super::network::Links;
use super::service::{
    FRONTEND, Job, POD_PORT, PODS_BITS, PODS_NETWORK, clients_prefix, pod_address,
};
use crate::netns;

/// How the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// By a hash of the client: one service alone.
    Least,
    /// As kube-proxy's nftables mode.
    Nftables,
    /// As kube-proxy's iptables mode.
    Iptables,
}

impl Rules {
    /// Puts them in force in the node's namespace.
    pub fn load(self, links: &Links, job: &Job) -> Result<()> {
        let nft = |input: &str| {
            netns::run("ip", &["netns", "exec", &links.namespace, "nft", "-f", "-"], input)
                .context("`nft` is of the package nftables")
        };
        match self {
            Self::Least => {
                nft(&least(job))?;
                nft(&policy())
            }
            Self::Nftables => {
                nft(&nftables(job))?;
                nft(&policy())
            }
            Self::Iptables => {
                let restore = ["netns", "exec", &links.namespace, "iptables-legacy-restore"];
                netns::run("ip", &restore, &iptables(job))
                    .context("`iptables-legacy-restore` is of the package iptables")
            }
        }
    }
}

fn least(job: &Job) -> String {
    let backends: Vec<String> =
        job.pods().map(|number| format!("{} : {}", number - 1, pod_address(number))).collect();
    let (address, l4_port) = (FRONTEND.ip(), FRONTEND.port());
    format!(
        "table ip perf {{\n\
         chain services {{\n\
         type nat hook prerouting priority dstnat; policy accept;\n\
         ip daddr {address} udp dport {l4_port} dnat to jhash ip saddr . udp sport mod {} \
         map {{ {} }} : {POD_PORT}\n\
         }}\n\
         }}\n",
        job.pods,
        backends.join(", "),
    )
}

fn nftables(job: &Job) -> String {
    let mut script = String::from(
        "table ip perf {\n\
         chain mark-for-masquerade {\n\
         meta mark set meta mark or 0x4000\n\
         }\n\
         map service-ips {\n\
         type ipv4_addr . inet_proto . inet_service : verdict\n\
         }\n\
         chain services {\n\
         ip daddr . meta l4proto . th dport vmap @service-ips\n\
         }\n\
         chain nat-prerouting {\n\
         type nat hook prerouting priority dstnat; policy accept;\n\
         jump services\n\
         }\n",
    );
    for pod in job.pods() {
        let address = pod_address(pod);
        script += &format!(
            "chain endpoint-{pod} {{\n\
             ip saddr {address} jump mark-for-masquerade\n\
             meta l4proto udp dnat to {address}:{POD_PORT}\n\
             }}\n"
        );
    }
    for set in job.sets() {
        let endpoints = job.backends_of(set).enumerate();
        let ways: Vec<String> =
            endpoints.map(|(place, pod)| format!("{place} : goto endpoint-{pod}")).collect();
        script += &format!(
            "chain service-{set} {{\nnumgen random mod {} vmap {{ {} }}\n}}\n",
            job.backends,
            ways.join(", "),
        );
    }
    let elements: Vec<String> = (0..job.services)
        .map(|number| {
            let (address, l4_port) = (job.frontend(number), FRONTEND.port());
            format!("{address} . udp . {l4_port} : goto service-{}", job.set_of(number))
        })
        .collect();
    let elements = elements.join(",\n");
    script + &format!("}}\nadd element ip perf service-ips {{ {elements} }}\n")
}

fn policy() -> String {
    format!(
        "table ip perf {{\n\
         chain pods {{\n\
         type filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\n\
         ip saddr {} ip daddr {PODS_NETWORK}/{PODS_BITS} udp dport {POD_PORT} accept\n\
         }}\n\
         }}\n",
        clients_prefix(),
    )
}

fn iptables(job: &Job) -> String {
    let mut script = String::from(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    for pod in job.pods() {
        script += &format!(":KUBE-SEP-{pod} - [0:0]\n");
    }
    for set in job.sets() {
        script += &format!(":KUBE-SVC-{set} - [0:0]\n");
    }
    script += "-A PREROUTING -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n";
    for pod in job.pods() {
        let address = pod_address(pod);
        script += &format!(
            "-A KUBE-SEP-{pod} -s {address}/32 -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{pod} -p udp -m udp -j DNAT --to-destination {address}:{POD_PORT}\n"
        );
    }
    for number in 0..job.services {
        let (address, l4_port) = (job.frontend(number), FRONTEND.port());
        let set = job.set_of(number);
        script += &format!(
            "-A KUBE-SERVICES -d {address}/32 -p udp -m udp --dport {l4_port} -j KUBE-SVC-{set}\n"
        );
    }
    for set in job.sets() {
        for (place, pod) in job.backends_of(set).enumerate() {
            let left = usize::from(job.backends) - place;
            let chance = match left {
                1 => String::new(),
                left => {
                    let chance = 1.0 / left as f64;
                    format!("-m statistic --mode random --probability {chance:.11} ")
                }
            };
            script += &format!("-A KUBE-SVC-{set} {chance}-j KUBE-SEP-{pod}\n");
        }
    }
    let clients = clients_prefix();
    script
        + &format!(
            "COMMIT\n*filter\n:FORWARD DROP [0:0]\n\
             -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A FORWARD -s {clients} -d {PODS_NETWORK}/{PODS_BITS} -p udp -m udp \
             --dport {POD_PORT} -j ACCEPT\nCOMMIT\n"
        )
}
