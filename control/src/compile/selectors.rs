//! Every selector of every policy in force, interned, and matching them against pods and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use dataplane::lpm::{Prefix, PrefixTable};
use hashbrown::HashMap;

use super::interner::Interner;
use crate::model::{LabelSelector, Labels, NetworkPolicy, Peer};
use crate::store::ClusterState;

/// A number for a [`Selector`].
pub(super) type SelectorId = u32;

/// Which namespaces a selector looks into.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The policy's own.
    Named(String),
    /// Those whose labels match.
    Labelled(LabelSelector),
}

/// One way in which policies pick out pods or addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Selector {
    Pods { scope: Scope, pods: LabelSelector },
    Block { cidr: Prefix, except: Vec<Prefix> },
}

impl Selector {
    /// What `policy` applies to.
    pub(crate) fn subject(policy: &NetworkPolicy) -> Self {
        Self::Pods {
            scope: Scope::Named(policy.name.namespace.clone()),
            pods: policy.subject.clone(),
        }
    }

    /// What `peer` in a rule of a policy in `namespace` means.
    pub(crate) fn peer(namespace: &str, peer: &Peer) -> Self {
        match peer {
            Peer::Pods { namespaces, pods } => Self::Pods {
                scope: match namespaces {
                    Some(selector) => Scope::Labelled(selector.clone()),
                    None => Scope::Named(namespace.to_owned()),
                },
                pods: pods.clone(),
            },
            Peer::Block { cidr, except } => Self::Block { cidr: *cidr, except: except.clone() },
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods { scope: Scope::Named(namespace), pods } => {
                write!(f, "pods {pods} of namespace {namespace}")
            }
            Self::Pods { scope: Scope::Labelled(namespaces), pods } => {
                write!(f, "pods {pods} of namespaces {namespaces}")
            }
            Self::Block { cidr, except } => {
                write!(f, "{cidr}")?;
                for range in except {
                    write!(f, " except {range}")?;
                }
                Ok(())
            }
        }
    }
}

/// The selectors in force, ready to be matched.
#[derive(Debug)]
pub(super) struct Matcher<'a> {
    state: &'a ClusterState,
    /// Pod selectors by namespace, filled on demand, since most namespaces see few of them.
    by_namespace: HashMap<String, Vec<(SelectorId, &'a LabelSelector)>>,
    pod_selectors: Vec<(SelectorId, &'a Selector)>,
    /// For each boundary among the blocks, which blocks contain what lies there.
    blocks: PrefixTable<Vec<SelectorId>>,
}

/// Interns the selectors of all policies.
pub(super) fn intern(state: &ClusterState, previous: &Interner<Selector>) -> Interner<Selector> {
    let mut interner = Interner::after(previous);
    for policy in state.network_policies.values() {
        interner.intern(Selector::subject(policy), previous);
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            for peer in &rule.peers {
                interner.intern(Selector::peer(&policy.name.namespace, peer), previous);
            }
        }
    }
    interner
}

impl<'a> Matcher<'a> {
    pub(super) fn new(state: &'a ClusterState, interner: &'a Interner<Selector>) -> Self {
        let mut pod_selectors = Vec::new();
        let mut blocks = Vec::new();
        for (selector, id) in interner.iter() {
            match selector {
                Selector::Pods { .. } => pod_selectors.push((id, selector)),
                Selector::Block { cidr, except } => blocks.push((id, *cidr, except.as_slice())),
            }
        }
        pod_selectors.sort_unstable_by_key(|(id, _)| *id);
        blocks.sort_unstable_by_key(|(id, ..)| *id);
        Self { state, by_namespace: HashMap::new(), pod_selectors, blocks: boundaries(&blocks) }
    }

    /// The pod selectors that match a pod with `labels` in `namespace`, in ascending order.
    pub(super) fn pod(&mut self, namespace: &str, labels: &Labels) -> Vec<SelectorId> {
        self.candidates(namespace)
            .iter()
            .filter(|(_, selector)| selector.matches(labels))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The pod selectors that match whatever a pod in `namespace` has for labels.
    pub(super) fn any_pod(&mut self, namespace: &str) -> Vec<SelectorId> {
        self.candidates(namespace)
            .iter()
            .filter(|(_, selector)| selector.is_empty())
            .map(|(id, _)| *id)
            .collect()
    }

    /// The blocks that contain `address`, in ascending order.
    pub(super) fn address(&self, address: IpAddr) -> &[SelectorId] {
        self.blocks.lookup(address).map_or(&[], Vec::as_slice)
    }

    /// Every boundary among the blocks, with the blocks that contain what lies there.
    pub(super) fn boundaries(&self) -> impl Iterator<Item = (Prefix, &[SelectorId])> {
        self.blocks.iter().map(|(prefix, ids)| (prefix, ids.as_slice()))
    }

    fn candidates(&mut self, namespace: &str) -> &[(SelectorId, &'a LabelSelector)] {
        let (state, selectors) = (self.state, &self.pod_selectors);
        self.by_namespace.entry_ref(namespace).or_insert_with(|| {
            let labels = namespace_labels(state, namespace);
            let looks_here = |scope: &Scope| match scope {
                Scope::Named(name) => name == namespace,
                Scope::Labelled(selector) => selector.matches(&labels),
            };
            let here = selectors.iter().filter_map(|(id, selector)| match selector {
                Selector::Pods { scope, pods } if looks_here(scope) => Some((*id, pods)),
                _ => None,
            });
            here.collect()
        })
    }
}

/// A namespace's labels; one whose object is not known has only the label every namespace has.
pub(crate) fn namespace_labels(state: &ClusterState, namespace: &str) -> Labels {
    match state.namespaces.get(namespace) {
        Some(object) => object.labels.clone(),
        None => {
            [("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into_iter().collect()
        }
    }
}

/// Cuts the address space at every `cidr` and `except`: between two boundaries the set of blocks
/// that contain an address is constant, so a longest-prefix match finds it.
fn boundaries(blocks: &[(SelectorId, Prefix, &[Prefix])]) -> PrefixTable<Vec<SelectorId>> {
    let mut at: BTreeMap<Prefix, Vec<usize>> = BTreeMap::new();
    let mut cuts: BTreeSet<Prefix> = BTreeSet::new();
    for (index, (_, cidr, except)) in blocks.iter().enumerate() {
        at.entry(*cidr).or_default().push(index);
        cuts.insert(*cidr);
        cuts.extend(except.iter().copied());
    }
    let mut table = PrefixTable::default();
    for cut in cuts {
        let mut ids: Vec<SelectorId> = (0..=cut.length())
            .filter_map(|length| at.get(&Prefix::new(cut.address(), length)?))
            .flatten()
            .filter(|index| !blocks[**index].2.iter().any(|range| covers(range, &cut)))
            .map(|index| blocks[*index].0)
            .collect();
        ids.sort_unstable();
        table.insert(cut, ids);
    }
    table
}

fn covers(range: &Prefix, other: &Prefix) -> bool {
    range.length() <= other.length() && range.contains(other.address())
}
