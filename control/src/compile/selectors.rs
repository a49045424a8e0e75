//! Every selector of every policy in force, interned, and matching them against pods and addresses.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::lpm::{Prefix, PrefixTable};
use hashbrown::HashMap;

use super::interner::Interner;
use crate::model::{LabelSelector, Labels, NetworkPolicy, Operator, Peer};
use crate::store::ClusterState;

/// Blocks at all cuts of the address space together, at most. Where blocks lie in each other their number
/// grows as the square of what is written: 15,000 times `0.0.0.0/0` with another `except` are less than
/// a megabyte in one policy, and 225 million here. Those that do not fit are left out and match nothing,
/// so that rules allow less by them, and are named.
pub const BLOCKS_AT_CUTS_MAX: usize = 4 << 20;
/// From so many on, an `except` is looked for in their order and not one after the other.
const EXCEPTS_IN_ORDER: usize = 64;

/// A number for a [`Selector`].
pub(super) type SelectorId = u32;

/// Which namespaces a selector looks into.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// The policy's own.
    Named(Arc<str>),
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
    pub(crate) fn peer(namespace: &Arc<str>, peer: &Peer) -> Self {
        match peer {
            Peer::Pods { namespaces, pods } => Self::Pods {
                scope: match namespaces {
                    Some(selector) => Scope::Labelled(selector.clone()),
                    None => Scope::Named(Arc::clone(namespace)),
                },
                pods: pods.clone(),
            },
            Peer::Block { cidr, except } => Self::Block { cidr: *cidr, except: except.clone() },
        }
    }
}

impl Selector {
    pub(super) fn is_block(&self) -> bool {
        matches!(self, Self::Block { .. })
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

/// Selectors by a label without which they match nothing: few are looked at for each pod.
#[derive(Debug, Clone, Default)]
struct LabelIndex {
    by_key: HashMap<String, Anchored>,
    /// Those that no label is needed for.
    others: Vec<Filed>,
}

#[derive(Debug, Clone, Default)]
struct Anchored {
    by_value: HashMap<String, Vec<Filed>>,
    any_value: Vec<Filed>,
}

type Filed = (SelectorId, Arc<Selector>);

impl LabelIndex {
    fn file(&mut self, anchor: &LabelSelector, filed: &Filed) {
        self.places(anchor, |place| place.push(filed.clone()));
    }

    fn take_out(&mut self, anchor: &LabelSelector, id: SelectorId) {
        self.places(anchor, |place| place.retain(|(own, _)| *own != id));
        // What no selector is under any more is no longer kept.
        for key in anchor.requirements().map(|requirement| &requirement.key) {
            if let Some(anchored) = self.by_key.get_mut(key) {
                anchored.by_value.retain(|_, filed| !filed.is_empty());
                if anchored.by_value.is_empty() && anchored.any_value.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }

    /// Where a selector is filed: under each value of its narrowest list, or else under a key that
    /// must be there.
    fn places(&mut self, anchor: &LabelSelector, mut visit: impl FnMut(&mut Vec<Filed>)) {
        let wanted = anchor.requirements().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((values.len(), &requirement.key, Some(values))),
            Operator::Exists => Some((usize::MAX, &requirement.key, None)),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
        match wanted.min_by_key(|(width, ..)| *width) {
            None => visit(&mut self.others),
            Some((_, key, None)) => {
                visit(&mut self.by_key.entry_ref(key).or_default().any_value);
            }
            Some((_, key, Some(values))) => {
                let anchored = self.by_key.entry_ref(key).or_default();
                for value in values {
                    visit(anchored.by_value.entry_ref(value).or_default());
                }
            }
        }
    }

    /// Those that may match `labels`, each once.
    fn candidates(&self, labels: &Labels) -> impl Iterator<Item = &Filed> {
        let anchored = labels.iter().filter_map(|(key, value)| {
            let anchored = self.by_key.get(key)?;
            Some(anchored.by_value.get(value).into_iter().flatten().chain(&anchored.any_value))
        });
        anchored.flatten().chain(&self.others)
    }
}

/// The selectors in force, ready to be matched.
#[derive(Debug, Clone)]
pub(super) struct Selectors {
    interner: Interner<Selector>,
    /// Those that look into a namespace by its name.
    named: HashMap<Arc<str>, LabelIndex>,
    /// Those that look by namespaces' labels, under a label of pods...
    by_pod: LabelIndex,
    /// ... or, where none is needed, under one of namespaces.
    by_namespace: LabelIndex,
    /// How many requirements on pods there are about each label's key.
    asked_about: HashMap<String, usize>,
    blocks: BTreeMap<SelectorId, Arc<Selector>>,
    /// For each boundary among the blocks, which blocks contain what lies there.
    boundaries: PrefixTable<Vec<SelectorId>>,
    /// How many that are, of all boundaries together.
    at_boundaries: usize,
    /// Those of the blocks that found no room there.
    left_out: BTreeSet<SelectorId>,
}

/// Blocks that found no room among the boundaries, or room again.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) in_again: Vec<(SelectorId, Arc<Selector>)>,
    pub(super) left_out: Vec<(SelectorId, Arc<Selector>)>,
}

impl Default for Selectors {
    fn default() -> Self {
        Self {
            interner: Interner::starting_at(0),
            named: HashMap::new(),
            by_pod: LabelIndex::default(),
            by_namespace: LabelIndex::default(),
            asked_about: HashMap::new(),
            blocks: BTreeMap::new(),
            boundaries: PrefixTable::default(),
            at_boundaries: 0,
            left_out: BTreeSet::new(),
        }
    }
}

impl Selectors {
    /// One more user of `selector`; with the selector where it is a new one.
    pub(super) fn acquire(&mut self, selector: Selector) -> (SelectorId, Option<Arc<Selector>>) {
        let (id, is_new) = self.interner.acquire(selector);
        let added = self.interner.key(id).filter(|_| is_new).cloned();
        if let Some(selector) = &added {
            let filed = (id, Arc::clone(selector));
            match &**selector {
                Selector::Block { .. } => {
                    self.blocks.insert(id, Arc::clone(selector));
                }
                Selector::Pods { scope, pods } => {
                    for requirement in pods.requirements() {
                        *self.asked_about.entry_ref(&*requirement.key).or_default() += 1;
                    }
                    let (index, anchor) = self.index(scope, pods);
                    index.file(anchor, &filed);
                }
            }
        }
        (id, added)
    }

    /// One user less; the selector when that was the last.
    pub(super) fn release(&mut self, id: SelectorId) -> Option<Arc<Selector>> {
        let gone = self.interner.release(id)?;
        match &*gone {
            Selector::Block { .. } => {
                self.blocks.remove(&id);
            }
            Selector::Pods { scope, pods } => {
                for requirement in pods.requirements() {
                    if let Some(requirements) = self.asked_about.get_mut(&requirement.key) {
                        *requirements -= 1;
                        if *requirements == 0 {
                            self.asked_about.remove(&requirement.key);
                        }
                    }
                }
                let (index, anchor) = self.index(scope, pods);
                index.take_out(anchor, id);
                if let Scope::Named(namespace) = scope
                    && index.by_key.is_empty()
                    && index.others.is_empty()
                {
                    self.named.remove(namespace);
                }
            }
        }
        Some(gone)
    }

    fn index<'s>(
        &mut self,
        scope: &'s Scope,
        pods: &'s LabelSelector,
    ) -> (&mut LabelIndex, &'s LabelSelector) {
        match scope {
            Scope::Named(name) => (self.named.entry(Arc::clone(name)).or_default(), pods),
            Scope::Labelled(_) if wants_a_label(pods) => (&mut self.by_pod, pods),
            Scope::Labelled(namespaces) => (&mut self.by_namespace, namespaces),
        }
    }

    /// Whether some selector asks about pods' labels of this key: pods that differ in others alone are
    /// selected alike.
    pub(super) fn asks_about(&self, key: &str) -> bool {
        self.asked_about.contains_key(key)
    }

    pub(super) fn get(&self, selector: &Selector) -> Option<SelectorId> {
        self.interner.get(selector)
    }

    /// How many there are, each once.
    pub(super) fn len(&self) -> usize {
        self.interner.len()
    }

    pub(super) fn selector(&self, id: SelectorId) -> Option<&Arc<Selector>> {
        self.interner.key(id)
    }

    /// To be called once blocks came or went. Those that found no room go first by their numbers, so
    /// that what was there before a flood of them stays.
    pub(super) fn cut_address_space(&mut self) -> Moved {
        let blocks = self.blocks.iter().filter_map(|(id, selector)| match &**selector {
            Selector::Block { cidr, except } => Some((*id, *cidr, except.as_slice())),
            Selector::Pods { .. } => None,
        });
        let blocks: Vec<_> = blocks.collect();
        // How many of the first blocks fit, and what they make at the cuts.
        let (mut fitting, mut made) = (blocks.len(), at_boundaries(&blocks));
        if made > BLOCKS_AT_CUTS_MAX {
            let mut too_many = fitting;
            (fitting, made) = (0, 0);
            while too_many - fitting > 1 {
                let middle = fitting.midpoint(too_many);
                match at_boundaries(&blocks[..middle]) {
                    all if all > BLOCKS_AT_CUTS_MAX => too_many = middle,
                    all => (fitting, made) = (middle, all),
                }
            }
        }
        let (within, beyond) = blocks.split_at(fitting);
        self.boundaries = boundaries(within);
        self.at_boundaries = made;
        let left_out: BTreeSet<SelectorId> = beyond.iter().map(|(id, ..)| *id).collect();
        let before = std::mem::replace(&mut self.left_out, left_out);
        let named = |id: &SelectorId| Some((*id, Arc::clone(self.blocks.get(id)?)));
        Moved {
            in_again: before.difference(&self.left_out).filter_map(named).collect(),
            left_out: self.left_out.difference(&before).filter_map(named).collect(),
        }
    }

    /// How many blocks there are at all cuts of the address space together.
    pub(super) fn at_boundaries(&self) -> usize {
        self.at_boundaries
    }

    /// Blocks that match nothing for want of room.
    pub(super) fn left_out(&self) -> &BTreeSet<SelectorId> {
        &self.left_out
    }

    /// The pod selectors that match a pod with `labels` in a namespace with its own labels, in
    /// ascending order.
    pub(super) fn of_pod(
        &self,
        (namespace, of_namespace): (&str, &NamespaceLabels<'_>),
        labels: &Labels,
    ) -> Vec<SelectorId> {
        let named = self.named.get(namespace).into_iter();
        let candidates = named
            .flat_map(|index| index.candidates(labels))
            .chain(self.by_pod.candidates(labels))
            .chain(self.by_namespace.candidates(&of_namespace.labels));
        let matches = |(_, selector): &&Filed| match &**selector {
            Selector::Pods { scope: Scope::Named(_), pods } => pods.matches(labels),
            Selector::Pods { scope: Scope::Labelled(namespaces), pods } => {
                pods.matches(labels) && of_namespace.fulfil(namespaces)
            }
            Selector::Block { .. } => false,
        };
        let mut matching: Vec<_> = candidates.filter(matches).map(|(id, _)| *id).collect();
        matching.sort_unstable();
        matching
    }

    /// The pod selectors that match whatever a pod in the namespace has for labels.
    pub(super) fn of_any_pod(
        &self,
        (namespace, of_namespace): (&str, &NamespaceLabels<'_>),
    ) -> Vec<SelectorId> {
        let named = self.named.get(namespace).into_iter().flat_map(|index| &index.others);
        let labelled = self.by_namespace.candidates(&of_namespace.labels);
        let matches = |(_, selector): &&Filed| match &**selector {
            Selector::Pods { scope: Scope::Named(_), pods } => pods.is_empty(),
            Selector::Pods { scope: Scope::Labelled(namespaces), pods } => {
                pods.is_empty() && of_namespace.fulfil(namespaces)
            }
            Selector::Block { .. } => false,
        };
        let matching = named.chain(labelled).filter(matches);
        let mut matching: Vec<_> = matching.map(|(id, _)| *id).collect();
        matching.sort_unstable();
        matching
    }

    /// The blocks that contain `address`, in ascending order.
    pub(super) fn of_address(&self, address: IpAddr) -> &[SelectorId] {
        self.boundaries.lookup(address).map_or(&[], Vec::as_slice)
    }

    /// Every boundary among the blocks, with the blocks that contain what lies there.
    pub(super) fn boundaries(&self) -> impl Iterator<Item = (Prefix, &[SelectorId])> {
        self.boundaries.iter().map(|(prefix, ids)| (prefix, ids.as_slice()))
    }
}

/// Whether it matches no pod without labels.
fn wants_a_label(selector: &LabelSelector) -> bool {
    let mut requirements = selector.requirements();
    requirements.any(|one| matches!(one.operator, Operator::In(_) | Operator::Exists))
}

/// What is known of a namespace's labels.
pub(crate) struct NamespaceLabels<'a> {
    labels: Cow<'a, Labels>,
    /// Of one whose object is not known only the label that every namespace has is.
    are_all: bool,
}

impl NamespaceLabels<'_> {
    /// Whether `selector` picks the namespace. What it must not have nobody knows that it has not, where
    /// its object is not known: a rule allows nothing by that.
    pub(crate) fn fulfil(&self, selector: &LabelSelector) -> bool {
        match self.are_all {
            true => selector.matches(&self.labels),
            false => selector.surely_matches(&self.labels),
        }
    }
}

/// The labels of a namespace.
pub(crate) fn namespace_labels<'a>(
    state: &'a ClusterState,
    namespace: &str,
) -> NamespaceLabels<'a> {
    let known = state.namespaces.get(namespace);
    NamespaceLabels {
        labels: match known {
            Some(object) => Cow::Borrowed(&object.labels),
            None => Cow::Owned(Labels::from([("kubernetes.io/metadata.name", namespace)])),
        },
        are_all: known.is_some(),
    }
}

type Block<'a> = (SelectorId, Prefix, &'a [Prefix]);

/// How many blocks [`boundaries`] has at most: some of them have their `except` there. Counted no further
/// than there may be.
fn at_boundaries(blocks: &[Block<'_>]) -> usize {
    let mut at: HashMap<Prefix, usize> = HashMap::new();
    let mut lengths = BTreeSet::new();
    let mut cuts: BTreeSet<Prefix> = BTreeSet::new();
    for (_, cidr, except) in blocks {
        *at.entry(*cidr).or_default() += 1;
        lengths.insert(cidr.length());
        cuts.insert(*cidr);
        cuts.extend(except.iter().copied());
    }
    let mut all = 0;
    for cut in cuts {
        let lengths = lengths.iter().copied().take_while(|length| *length <= cut.length());
        let around = lengths.filter_map(|length| at.get(&Prefix::new(cut.address(), length)?));
        all += around.sum::<usize>();
        if all > BLOCKS_AT_CUTS_MAX {
            break;
        }
    }
    all
}

/// Cuts the address space at every `cidr` and `except`: between two boundaries the set of blocks
/// that contain an address is constant, so a longest-prefix match finds it.
fn boundaries(blocks: &[Block<'_>]) -> PrefixTable<Vec<SelectorId>> {
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
            .filter(|index| !is_excepted(blocks[**index].2, &cut))
            .map(|index| blocks[*index].0)
            .collect();
        ids.sort_unstable();
        table.insert(cut, ids);
    }
    table
}

/// Whether one of `except`, which ascend, has all of `cut`.
fn is_excepted(except: &[Prefix], cut: &Prefix) -> bool {
    if except.len() < EXCEPTS_IN_ORDER {
        return except.iter().any(|range| covers(range, cut));
    }
    let mut around = (0..=cut.length()).filter_map(|length| Prefix::new(cut.address(), length));
    around.any(|range| except.binary_search(&range).is_ok())
}

fn covers(range: &Prefix, other: &Prefix) -> bool {
    range.length() <= other.length() && range.contains(other.address())
}
