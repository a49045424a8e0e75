//! NetworkPolicies to verdict tables, one per local subject and direction; equal ones stored once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Policy, PortRule, RuleId, VerdictTable};
use hashbrown::HashMap;

use super::identities::{Identities, Key, Kind};
use super::interner::Interner;
use super::selectors::{Selector, SelectorId};
use super::{NodeView, Warning};
use crate::model::{L4Ports, NetworkPolicy, ObjectName, PolicyRule, PortMatch};
use crate::store::ClusterState;

/// What a [`RuleId`] stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleName {
    /// No policy selects the pod in this direction.
    NotIsolated,
    /// Some policy selects the pod and no rule allows the packet.
    DefaultDeny,
    /// A pod's own node always reaches it.
    OwnNode,
    /// A rule of a NetworkPolicy.
    Rule {
        /// The policy.
        policy: ObjectName,
        /// Which of its lists.
        direction: Direction,
        /// Place in `spec.ingress` or `spec.egress`, from 0.
        index: usize,
    },
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated => f.write_str("no NetworkPolicy selects the pod"),
            Self::DefaultDeny => f.write_str("no rule allows it (default deny)"),
            Self::OwnNode => f.write_str("a pod's own node always reaches it"),
            Self::Rule { policy, direction, index } => {
                let list = direction_name(*direction);
                write!(f, "NetworkPolicy {policy}, spec.{list}[{index}]")
            }
        }
    }
}

/// `ingress` or `egress`.
#[must_use]
pub fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

type RuleKey = (ObjectName, Direction, usize);

/// The policies in force, and what each number in the tables stands for.
#[derive(Debug, Clone)]
pub struct Policies {
    rules: Interner<RuleKey>,
    names: HashMap<RuleId, RuleKey>,
    isolating: HashMap<(Identity, Direction), Vec<ObjectName>>,
    /// Those that would isolate if they were not under audit.
    audited: HashMap<(Identity, Direction), Vec<ObjectName>>,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            rules: Interner::starting_at(RuleId::FIRST_COMPILED),
            names: HashMap::new(),
            isolating: HashMap::new(),
            audited: HashMap::new(),
        }
    }
}

impl Policies {
    pub(super) fn rule_name(&self, rule: RuleId) -> Option<RuleName> {
        match rule {
            RuleId::NOT_ISOLATED => Some(RuleName::NotIsolated),
            RuleId::DEFAULT_DENY => Some(RuleName::DefaultDeny),
            RuleId::OWN_NODE => Some(RuleName::OwnNode),
            _ => self.names.get(&rule).map(|(policy, direction, index)| RuleName::Rule {
                policy: policy.clone(),
                direction: *direction,
                index: *index,
            }),
        }
    }

    pub(super) fn isolating(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.isolating.get(&(subject, direction)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn audited(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.audited.get(&(subject, direction)).map_or(&[], Vec::as_slice)
    }
}

/// A rule with its numbers.
struct NumberedRule<'a> {
    id: RuleId,
    /// Empty: every peer.
    peers: Vec<SelectorId>,
    ports: &'a [PortMatch],
}

/// A policy with its numbers, in one direction.
struct Side<'a> {
    policy: &'a NetworkPolicy,
    is_audited: bool,
    subject: SelectorId,
    rules: Vec<NumberedRule<'a>>,
}

/// A verdict table before it is hashed: ordered, so that equal ones have equal digests.
#[derive(Default, Hash)]
struct Draft {
    by_peer: BTreeMap<Identity, Vec<PortRule>>,
    any_peer: Vec<PortRule>,
}

/// Compiles the policy of every local subject.
///
/// Policies under audit are left out of what is enforced. What all of them together would say stands
/// beside it, so that what only they refuse is seen.
pub(super) fn compile(
    state: &ClusterState,
    node: &NodeView,
    identities: &Identities,
    (old, previous): (&Arc<Policy>, &Policies),
    warnings: &mut BTreeSet<Warning>,
) -> (Arc<Policy>, Policies) {
    let mut memory = Policies { rules: Interner::after(&previous.rules), ..Policies::default() };
    let members = members(identities);
    let mut pool = Pool::of(old);
    let mut policy = Policy::default();
    warn_of_modes(state, node, warnings);
    for direction in [Direction::Ingress, Direction::Egress] {
        let sides = sides((state, node), direction, identities, &mut memory, previous);
        warn_of_unresolved_names(&sides, direction, identities, warnings);
        for subject in identities.local.keys() {
            let Some(key) = identities.by_number.get(subject) else { continue };
            let selecting = selecting(&sides, key);
            let (audited, isolating): (BTreeSet<_>, BTreeSet<_>) = selecting
                .iter()
                .copied()
                .chain(possibly_selecting(&sides, key))
                .map(|side| (side.is_audited, side.policy.name.clone()))
                .partition(|(is_audited, _)| *is_audited);
            let mut table = |selecting: &[&Side<'_>]| {
                pool.share(draft(direction, key, selecting, identities, &members))
            };
            let mut tables = SubjectTables::default();
            if !isolating.is_empty() {
                let enforced: Vec<_> =
                    selecting.iter().copied().filter(|side| !side.is_audited).collect();
                tables.enforced = Some(table(&enforced));
            }
            if !audited.is_empty() {
                tables.audit = Some(table(&selecting));
            }
            tables.put(&mut policy, *subject, direction);
            let names = |of: BTreeSet<(bool, ObjectName)>| of.into_iter().map(|(_, name)| name);
            for (of, memory) in [(isolating, &mut memory.isolating), (audited, &mut memory.audited)]
            {
                if !of.is_empty() {
                    memory.insert((*subject, direction), names(of).collect());
                }
            }
        }
    }
    memory.names = memory.rules.iter().map(|(key, id)| (RuleId(id), key.clone())).collect();
    if policy.subjects == old.subjects {
        return (Arc::clone(old), memory);
    }
    (Arc::new(policy), memory)
}

/// One subject's tables in one direction.
#[derive(Default)]
struct SubjectTables {
    enforced: Option<Arc<VerdictTable>>,
    audit: Option<Arc<VerdictTable>>,
}

impl SubjectTables {
    fn put(self, policy: &mut Policy, subject: Identity, direction: Direction) {
        if self.enforced.is_none() && self.audit.is_none() {
            return;
        }
        let tables = policy.subjects.entry(subject).or_default();
        let (enforced, audit) = match direction {
            Direction::Ingress => (&mut tables.ingress, &mut tables.ingress_audit),
            Direction::Egress => (&mut tables.egress, &mut tables.egress_audit),
        };
        (*enforced, *audit) = (self.enforced, self.audit);
    }
}

/// Whether what a policy refuses passes and is reported: by its own annotation, its namespace's or
/// this node's.
pub(crate) fn is_audited(policy: &NetworkPolicy, state: &ClusterState, node: &NodeView) -> bool {
    let namespace = state.namespaces.get(&policy.name.namespace);
    policy.mode.is_audit()
        || namespace.is_some_and(|namespace| namespace.mode.is_audit())
        || state.nodes.get(&node.name).is_some_and(|node| node.mode.is_audit())
}

/// An annotation that is no mode changes nothing, and is probably a slip.
fn warn_of_modes(state: &ClusterState, node: &NodeView, warnings: &mut BTreeSet<Warning>) {
    let policies = state.network_policies.values();
    let of_policies =
        policies.map(|policy| (format!("NetworkPolicy {}", policy.name), &policy.mode));
    let namespaces = state.namespaces.values();
    let of_namespaces = namespaces.map(|one| (format!("Namespace {}", one.name), &one.mode));
    let of_node = state.nodes.get(&node.name).map(|one| (format!("Node {}", one.name), &one.mode));
    for (object, mode) in of_policies.chain(of_namespaces).chain(of_node) {
        if let Some(message) = mode.complaint() {
            warnings.insert(Warning { object, message });
        }
    }
}

fn sides<'a>(
    (state, node): (&'a ClusterState, &NodeView),
    direction: Direction,
    identities: &Identities,
    memory: &mut Policies,
    previous: &Policies,
) -> Vec<Side<'a>> {
    let selector = |selector: Selector| identities.selectors.get(&selector);
    let mut sides = Vec::new();
    for policy in state.network_policies.values() {
        let Some(rules) = rules(policy, direction) else { continue };
        let Some(subject) = selector(Selector::subject(policy)) else { continue };
        let rules = rules.iter().enumerate().map(|(index, rule)| {
            let key = (policy.name.clone(), direction, index);
            NumberedRule {
                id: RuleId(memory.rules.intern(key, &previous.rules)),
                peers: rule
                    .peers
                    .iter()
                    .filter_map(|peer| selector(Selector::peer(&policy.name.namespace, peer)))
                    .collect(),
                ports: &rule.ports,
            }
        });
        let is_audited = is_audited(policy, state, node);
        sides.push(Side { policy, is_audited, subject, rules: rules.collect() });
    }
    sides
}

/// The rules of `policy` in `direction`; `None` when it does not isolate there.
pub(crate) fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// The identities that each selector picks out.
fn members(identities: &Identities) -> HashMap<SelectorId, Vec<Identity>> {
    let mut members: HashMap<SelectorId, Vec<Identity>> = HashMap::new();
    for (identity, key) in &identities.by_number {
        for selector in &key.selectors {
            members.entry(*selector).or_default().push(*identity);
        }
    }
    members
}

fn selecting<'s, 'a>(sides: &'s [Side<'a>], key: &Key) -> Vec<&'s Side<'a>> {
    sides.iter().filter(|side| key.selectors.binary_search(&side.subject).is_ok()).collect()
}

/// Policies that may select an endpoint whose labels are not known: they isolate it, and their
/// rules do not count for it.
fn possibly_selecting<'s, 'a>(
    sides: &'s [Side<'a>],
    key: &Key,
) -> impl Iterator<Item = &'s Side<'a>> {
    let namespace = match &key.kind {
        Kind::UnknownPod { namespace } => Some(namespace.clone()),
        _ => None,
    };
    sides.iter().filter(move |side| {
        namespace.as_ref().is_some_and(|own| *own == side.policy.name.namespace)
    })
}

fn draft(
    direction: Direction,
    subject: &Key,
    selecting: &[&Side<'_>],
    identities: &Identities,
    members: &HashMap<SelectorId, Vec<Identity>>,
) -> Draft {
    let mut draft = Draft::default();
    if direction == Direction::Ingress {
        // The pipeline admits the node itself by `Identity::HOST`; its addresses that some ipBlock
        // contains have an identity of their own.
        for (identity, key) in &identities.by_number {
            if key.kind == Kind::Host && *identity != Identity::HOST {
                push(draft.by_peer.entry(*identity).or_default(), everything(RuleId::OWN_NODE));
            }
        }
    }
    for rule in selecting.iter().flat_map(|side| &side.rules) {
        let peers: Option<BTreeSet<Identity>> = (!rule.peers.is_empty()).then(|| {
            rule.peers.iter().filter_map(|id| members.get(id)).flatten().copied().collect()
        });
        if rule.ports.is_empty() {
            allow(&mut draft, peers.as_ref(), &everything(rule.id));
        }
        for port in rule.ports {
            allow_port(&mut draft, direction, subject, rule.id, port, peers.as_ref(), identities);
        }
    }
    draft
}

fn allow_port(
    draft: &mut Draft,
    direction: Direction,
    subject: &Key,
    rule: RuleId,
    port: &PortMatch,
    peers: Option<&BTreeSet<Identity>>,
    identities: &Identities,
) {
    let allowance = |l4_ports| PortRule { protocol: Some(port.protocol), l4_ports, rule };
    match (&port.l4_ports, direction) {
        (L4Ports::All, _) => allow(draft, peers, &allowance(0..=u16::MAX)),
        (L4Ports::Range(range), _) => allow(draft, peers, &allowance(range.clone())),
        // A name means what the destination pod means by it: toward the subject, the subject...
        (L4Ports::Named(name), Direction::Ingress) => {
            if let Some(number) = resolve(subject, name, port.protocol) {
                allow(draft, peers, &allowance(number..=number));
            }
        }
        // ... and from it, each peer.
        (L4Ports::Named(name), Direction::Egress) => {
            for (identity, key) in &identities.by_number {
                if peers.is_some_and(|peers| !peers.contains(identity)) {
                    continue;
                }
                if let Some(number) = resolve(key, name, port.protocol) {
                    push(draft.by_peer.entry(*identity).or_default(), allowance(number..=number));
                }
            }
        }
    }
}

pub(super) fn resolve(key: &Key, name: &str, protocol: Protocol) -> Option<u16> {
    key.named_ports
        .iter()
        .find(|port| port.name == name && port.protocol == protocol)
        .map(|port| port.l4_port)
}

fn everything(rule: RuleId) -> PortRule {
    PortRule { protocol: None, l4_ports: 0..=u16::MAX, rule }
}

fn allow(draft: &mut Draft, peers: Option<&BTreeSet<Identity>>, allowance: &PortRule) {
    match peers {
        None => push(&mut draft.any_peer, allowance.clone()),
        Some(peers) => {
            for peer in peers {
                push(draft.by_peer.entry(*peer).or_default(), allowance.clone());
            }
        }
    }
}

/// Appends what an earlier allowance of the same extent does not already say.
fn push(rules: &mut Vec<PortRule>, rule: PortRule) {
    let said = rules
        .iter()
        .any(|earlier| earlier.protocol == rule.protocol && earlier.l4_ports == rule.l4_ports);
    if !said {
        rules.push(rule);
    }
}

/// Verdict tables by digest, so that equal ones are one, in this compilation and the one before.
struct Pool {
    tables: HashMap<u64, Vec<Arc<VerdictTable>>>,
}

impl Pool {
    fn of(policy: &Policy) -> Self {
        let mut pool = Self { tables: HashMap::new() };
        for subject in policy.subjects.values() {
            for table in subject.tables() {
                let draft = Draft {
                    by_peer: table
                        .by_peer
                        .iter()
                        .map(|(peer, rules)| (*peer, rules.to_vec()))
                        .collect(),
                    any_peer: table.any_peer.to_vec(),
                };
                let same = pool.tables.entry(digest(&draft)).or_default();
                if !same.iter().any(|known| Arc::ptr_eq(known, table)) {
                    same.push(Arc::clone(table));
                }
            }
        }
        pool
    }

    fn share(&mut self, draft: Draft) -> Arc<VerdictTable> {
        let same = self.tables.entry(digest(&draft)).or_default();
        let table = VerdictTable {
            by_peer: draft
                .by_peer
                .into_iter()
                .map(|(peer, rules)| (peer, rules.into_boxed_slice()))
                .collect(),
            any_peer: draft.any_peer.into_boxed_slice(),
        };
        if let Some(known) = same.iter().find(|known| ***known == table) {
            return Arc::clone(known);
        }
        let table = Arc::new(table);
        same.push(Arc::clone(&table));
        table
    }
}

fn digest(draft: &Draft) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(draft)
}

/// A port name that no pod has allows nothing: probably a misspelling.
fn warn_of_unresolved_names(
    sides: &[Side<'_>],
    direction: Direction,
    identities: &Identities,
    warnings: &mut BTreeSet<Warning>,
) {
    let known: BTreeSet<(&str, Protocol)> = identities
        .by_number
        .values()
        .flat_map(|key| &key.named_ports)
        .map(|port| (port.name.as_str(), port.protocol))
        .collect();
    for side in sides {
        for (index, rule) in side.rules.iter().enumerate() {
            for port in rule.ports {
                let L4Ports::Named(name) = &port.l4_ports else { continue };
                if known.contains(&(name.as_str(), port.protocol)) {
                    continue;
                }
                warnings.insert(Warning {
                    object: format!("NetworkPolicy {}", side.policy.name),
                    message: format!(
                        "spec.{}[{index}]: no pod has a {} port named {name:?}, so the rule \
                         allows nothing by it",
                        direction_name(direction),
                        port.protocol,
                    ),
                });
            }
        }
    }
}
