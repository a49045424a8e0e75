//! kube-proxy beside us: a running one, or what an earlier one has left. Both translate what the node's
//! own processes send to services before it reaches us, by backends of their own choice, and a
//! left-over one by backends that are long gone.
//!
//! Reading order: [`names`] (what is kube-proxy's and what only looks like it), [`process`] (does it
//! run), [`nftables`] (asks the kernel, without a tool: what a node does while it serves), [`saved`]
//! (pure: what iptables-save says becomes what to remove) and [`command`] (`xskiff kube-proxy`, which
//! runs the tools that own the rules).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub mod command;
pub mod names;
pub mod nftables;
pub mod process;
pub mod saved;

/// The interface of kube-proxy's IPVS mode, which has every service's address.
pub const IPVS_INTERFACE: &str = "kube-ipvs0";

/// How kube-proxy shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It answers at its own port.
    Process,
    /// Its table of nftables.
    Nftables,
    /// Its chains of iptables.
    Iptables,
    /// Its interface for IPVS.
    Ipvs,
    /// Tables of iptables' older interface, in which its chains may be, or anybody's.
    LegacyTables,
}

impl Kind {
    /// Every kind, as metrics count them.
    pub const ALL: [Self; 5] =
        [Self::Process, Self::Nftables, Self::Iptables, Self::Ipvs, Self::LegacyTables];

    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::LegacyTables => "legacy-tables",
        }
    }

    /// Whether it is kube-proxy's for sure. What is not is named, and nothing is wrong because of it.
    #[must_use]
    pub fn is_certain(self) -> bool {
        self != Self::LegacyTables
    }

    /// The same by its label; what is not known here is certain.
    #[must_use]
    pub fn is_labelled_certain(label: &str) -> bool {
        Self::ALL.iter().all(|kind| kind.label() != label || kind.is_certain())
    }
}

/// A trace of kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    /// Where it was found.
    pub kind: Kind,
    /// What it is, for people.
    pub what: String,
}

impl fmt::Display for Trace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.what)
    }
}

/// What a look at the host's rules brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// What shows of kube-proxy.
    pub traces: Vec<Trace>,
    /// Chains of iptables (nftables interface) of others that packets pass by once they are redirected, by
    /// whose they are.
    pub bypassed: BTreeMap<&'static str, u64>,
}

/// What shows of kube-proxy in the network namespace of the caller, and of others whose rules packets pass
/// by, found without running anything.
/// Of iptables' older interface (`iptables-legacy`) the tables are told, whoever uses them: chains are
/// named to the tool itself alone. Takes a second at most.
///
/// # Errors
/// The kernel does not list nftables; needs `CAP_NET_ADMIN`.
pub fn look() -> std::io::Result<Looked> {
    let mut found = Vec::new();
    if let Some(mode) = process::mode() {
        let what = format!("kube-proxy runs (mode {mode})");
        found.push(Trace { kind: Kind::Process, what });
    }
    let (mut tables, mut bypassed) = (BTreeSet::new(), BTreeMap::new());
    let mut chains = 0;
    for chain in nftables::chains()? {
        if chain.table == names::NFTABLES_TABLE {
            tables.insert(chain.family);
        } else if names::is_kube_proxys(&chain.name) {
            chains += 1;
        } else if let Some(owner) = names::owner(&chain.name) {
            *bypassed.entry(owner).or_default() += 1;
        }
    }
    for family in tables {
        let what = format!("nftables table {family} {}", names::NFTABLES_TABLE);
        found.push(Trace { kind: Kind::Nftables, what });
    }
    if chains > 0 {
        let what = format!("{chains} chains of iptables (nftables interface)");
        found.push(Trace { kind: Kind::Iptables, what });
    }
    if has_interface(IPVS_INTERFACE) {
        let what = format!("interface {IPVS_INTERFACE}");
        found.push(Trace { kind: Kind::Ipvs, what });
    }
    let tables = legacy_tables();
    if !tables.is_empty() {
        let tables = tables.join(", ");
        let what = format!(
            "iptables-legacy has tables ({tables}): `xskiff kube-proxy status` tells whether anything of \
             kube-proxy is in them"
        );
        found.push(Trace { kind: Kind::LegacyTables, what });
    }
    Ok(Looked { traces: found, bypassed })
}

/// Tables of iptables' older interface in the caller's network namespace, which has none until they are
/// used: `ip nat` and the like.
#[must_use]
pub fn legacy_tables() -> Vec<String> {
    let of = |family: &str| {
        let list = format!("/proc/thread-self/net/{family}_tables_names");
        // Without the kernel's module there is none.
        let list = std::fs::read_to_string(list).unwrap_or_default();
        let mut names: Vec<&str> = list.split_whitespace().collect();
        names.sort_unstable();
        names.into_iter().map(|name| format!("{family} {name}")).collect::<Vec<_>>()
    };
    [of("ip"), of("ip6")].concat()
}

/// By the kernel's list for the caller's network namespace; `/sys` may be of another one.
fn has_interface(name: &str) -> bool {
    let list = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    list.lines().any(|line| line.split(':').next().is_some_and(|own| own.trim() == name))
}
