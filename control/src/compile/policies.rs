//! NetworkPolicies in force, with the numbers of their rules and selectors, and who is selected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::policy::{Direction, RuleId};
use hashbrown::{Equivalent, HashMap};

use super::NodeView;
use super::identities::{Identities, Key, Kind};
use super::interner::Interner;
use super::selectors::{BLOCKS_AT_CUTS_MAX, Selector, SelectorId, Selectors};
use super::warnings::Warning;
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
    /// No Pod object of the pod is known: `policy.unknown_pods` decides.
    UnknownPod,
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
            Self::UnknownPod => f.write_str(
                "its identity is not known yet: no Pod object has come \
                             (policy.unknown_pods)",
            ),
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

/// Both, in the order of everything that is kept for each.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Which policies a table is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Those that are enforced.
    Enforced,
    /// All of them, where one is under audit.
    Audit,
}

/// Whose annotation puts a policy under audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuditedBy {
    /// Its own.
    Policy,
    /// Its namespace's.
    Namespace,
    /// This node's.
    Node,
}

/// By which annotation what a policy refuses passes and is reported; of several the nearest.
pub(crate) fn audited_by(
    policy: &NetworkPolicy,
    state: &ClusterState,
    node: &NodeView,
) -> Option<AuditedBy> {
    let namespace = || state.namespaces.get(&*policy.name.namespace);
    if policy.mode.is_audit() {
        Some(AuditedBy::Policy)
    } else if namespace().is_some_and(|namespace| namespace.mode.is_audit()) {
        Some(AuditedBy::Namespace)
    } else {
        let node = state.nodes.get(&*node.name);
        node.is_some_and(|node| node.mode.is_audit()).then_some(AuditedBy::Node)
    }
}

/// Whether what a policy refuses passes and is reported.
pub(crate) fn is_audited(policy: &NetworkPolicy, state: &ClusterState, node: &NodeView) -> bool {
    audited_by(policy, state, node).is_some()
}

type RuleKey = (ObjectName, Direction, usize);
/// A port as policies name it.
pub(super) type PortName = (String, Protocol);

/// A [`PortName`] to look for, whose text is another's.
#[derive(Hash)]
struct Asked<'a>(&'a str, Protocol);

impl Equivalent<PortName> for Asked<'_> {
    fn equivalent(&self, (name, protocol): &PortName) -> bool {
        self.0 == name && self.1 == *protocol
    }
}

/// A rule with its numbers.
#[derive(Debug)]
pub(super) struct NumberedRule {
    pub(super) id: RuleId,
    /// Empty: every peer.
    pub(super) peers: Vec<SelectorId>,
    /// Empty: every port.
    pub(super) ports: Vec<PortMatch>,
}

/// A policy with its numbers.
#[derive(Debug, Clone)]
struct Numbered {
    subject: SelectorId,
    is_audited: bool,
    /// By direction; `None` where it does not isolate.
    sides: [Option<Arc<[NumberedRule]>>; 2],
}

/// What a change of policies changed of what they use.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub(super) added: Vec<(SelectorId, Arc<Selector>)>,
    pub(super) dropped: Vec<(SelectorId, Arc<Selector>)>,
    /// Names that began or ceased to be used.
    pub(super) names: BTreeSet<PortName>,
    /// Subjects of the policies that changed, before and after.
    pub(super) subjects: BTreeSet<SelectorId>,
    /// Their namespaces.
    pub(super) namespaces: BTreeSet<Arc<str>>,
}

/// The policies in force, and what each number in the tables stands for.
#[derive(Debug, Clone)]
pub(super) struct Policies {
    rules: Interner<RuleKey>,
    numbered: BTreeMap<ObjectName, Numbered>,
    by_subject: HashMap<SelectorId, BTreeSet<ObjectName>>,
    /// The policies that use a port's name.
    port_names: HashMap<PortName, BTreeSet<ObjectName>>,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            rules: Interner::starting_at(RuleId::FIRST_COMPILED),
            numbered: BTreeMap::new(),
            by_subject: HashMap::new(),
            port_names: HashMap::new(),
        }
    }
}

impl Policies {
    pub(super) fn rule_name(&self, rule: RuleId) -> Option<RuleName> {
        match rule {
            RuleId::NOT_ISOLATED => Some(RuleName::NotIsolated),
            RuleId::DEFAULT_DENY => Some(RuleName::DefaultDeny),
            RuleId::OWN_NODE => Some(RuleName::OwnNode),
            RuleId::UNKNOWN_POD => Some(RuleName::UnknownPod),
            _ => {
                let (policy, direction, index) = &**self.rules.key(rule.0)?;
                let (policy, direction, index) = (policy.clone(), *direction, *index);
                Some(RuleName::Rule { policy, direction, index })
            }
        }
    }

    /// Whether some policy uses the name.
    pub(super) fn uses_port_name(&self, name: &str, protocol: Protocol) -> bool {
        self.port_names.contains_key(&Asked(name, protocol))
    }

    /// The policies that use it.
    pub(super) fn users_of_port_name(&self, name: &PortName) -> impl Iterator<Item = &ObjectName> {
        self.port_names.get(name).into_iter().flatten()
    }

    /// Takes over the policies of these names, as they are now, with whether they are under audit.
    /// What stays in use keeps its number:
    /// everything new is numbered before anything old is let go.
    pub(super) fn follow<'a>(
        &mut self,
        changed: impl Iterator<Item = (&'a ObjectName, Option<(&'a NetworkPolicy, bool)>)>,
        selectors: &mut Selectors,
    ) -> Uses {
        let mut uses = Uses::default();
        let mut replaced = Vec::new();
        for (name, policy) in changed {
            let numbered = policy.map(|policy| self.number(policy, selectors, &mut uses));
            replaced.extend(self.numbered.remove(name).map(|old| (name, old)));
            uses.namespaces.insert(Arc::clone(&name.namespace));
            if let Some(numbered) = numbered {
                uses.subjects.insert(numbered.subject);
                self.numbered.insert(name.clone(), numbered);
            }
        }
        for (name, old) in replaced {
            uses.subjects.insert(old.subject);
            self.let_go(name, &old, selectors, &mut uses);
        }
        // Those that a policy ceased and another began to use in one go are what they were.
        uses
    }

    fn number(
        &mut self,
        (policy, is_audited): (&NetworkPolicy, bool),
        selectors: &mut Selectors,
        uses: &mut Uses,
    ) -> Numbered {
        let mut acquire = |selector: Selector| {
            let (id, added) = selectors.acquire(selector);
            uses.added.extend(added.map(|selector| (id, selector)));
            id
        };
        let subject = acquire(Selector::subject(policy));
        let name = &policy.name;
        let sides = DIRECTIONS.map(|direction| {
            let rules = rules(policy, direction)?.iter().enumerate().map(|(index, rule)| {
                let peers = rule.peers.iter().map(|peer| Selector::peer(&name.namespace, peer));
                let (id, _) = self.rules.acquire((name.clone(), direction, index));
                NumberedRule {
                    id: RuleId(id),
                    peers: peers.map(&mut acquire).collect(),
                    ports: rule.ports.clone(),
                }
            });
            Some(rules.collect())
        });
        let numbered = Numbered { subject, is_audited, sides };
        self.by_subject.entry(subject).or_default().insert(name.clone());
        for port in numbered.port_names() {
            let users = self.port_names.entry(port.clone()).or_default();
            if users.is_empty() {
                uses.names.insert(port);
            }
            users.insert(name.clone());
        }
        numbered
    }

    fn let_go(
        &mut self,
        name: &ObjectName,
        old: &Numbered,
        selectors: &mut Selectors,
        uses: &mut Uses,
    ) {
        let stays = self.numbered.get(name);
        if stays.is_none_or(|now| now.subject != old.subject)
            && let Some(policies) = self.by_subject.get_mut(&old.subject)
        {
            policies.remove(name);
            if policies.is_empty() {
                self.by_subject.remove(&old.subject);
            }
        }
        let names: BTreeSet<PortName> = stays.iter().flat_map(|now| now.port_names()).collect();
        for port in old.port_names().filter(|port| !names.contains(port)) {
            if let Some(users) = self.port_names.get_mut(&port) {
                users.remove(name);
                if users.is_empty() {
                    self.port_names.remove(&port);
                    uses.names.insert(port);
                }
            }
        }
        let rules = old.sides.iter().flatten().flat_map(|rules| rules.iter());
        let mut used = vec![old.subject];
        for rule in rules {
            self.rules.release(rule.id.0);
            used.extend(&rule.peers);
        }
        for id in used {
            uses.dropped.extend(selectors.release(id).map(|selector| (id, selector)));
        }
    }

    /// The policies that isolate who has `key` in a direction, by name, and the rules of those whose
    /// rules count: a policy that may select an endpoint whose labels are not known isolates it,
    /// and its rules do not count for it.
    ///
    /// What is enforced leaves out policies under audit. The other layer is what all together would
    /// say, named after those under audit, and is nothing where there is none.
    pub(super) fn isolating(
        &self,
        key: &Key,
        (direction, layer): (Direction, Layer),
    ) -> (Vec<ObjectName>, Vec<Arc<[NumberedRule]>>) {
        let selecting = key.selectors.iter().filter_map(|id| self.by_subject.get(id)).flatten();
        let mut all: BTreeMap<&ObjectName, bool> = selecting.map(|name| (name, true)).collect();
        if let Kind::UnknownPod { namespace } = &key.kind {
            for name in self.in_namespace(namespace) {
                all.entry(name).or_insert(false);
            }
        }
        let (mut names, mut rules) = (Vec::new(), Vec::new());
        for (name, counts) in all {
            let Some(numbered) = self.numbered.get(name) else { continue };
            let Some(side) = numbered.side(direction) else { continue };
            if layer == Layer::Enforced && numbered.is_audited {
                continue;
            }
            if layer == Layer::Enforced || numbered.is_audited {
                names.push(name.clone());
            }
            rules.extend(counts.then(|| Arc::clone(side)));
        }
        (names, rules)
    }

    fn in_namespace(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ObjectName> {
        let first = ObjectName::new(Arc::clone(namespace), "");
        let names = self.numbered.range(first..).map(|(name, _)| name);
        names.take_while(move |name| name.namespace == *namespace)
    }

    /// A block that found no room matches nothing.
    pub(super) fn without_room(
        &self,
        name: &ObjectName,
        selectors: &Selectors,
    ) -> BTreeSet<Warning> {
        let mut warnings = BTreeSet::new();
        let left_out = selectors.left_out();
        let Some(policy) = self.numbered.get(name).filter(|_| !left_out.is_empty()) else {
            return warnings;
        };
        for direction in DIRECTIONS {
            let rules = policy.side(direction).into_iter().flat_map(|rules| rules.iter());
            for (index, rule) in rules.enumerate() {
                let without = rule.peers.iter().filter(|peer| left_out.contains(*peer)).count();
                if without == 0 {
                    continue;
                }
                let message = format!(
                    "spec.{}[{index}]: {without} ipBlocks allow nothing: the blocks of all policies \
                     lie in each other more than {BLOCKS_AT_CUTS_MAX} times; make fewer of them, or \
                     narrower ones",
                    direction_name(direction),
                );
                warnings.insert(Warning::new(format!("NetworkPolicy {name}"), message));
            }
        }
        warnings
    }

    /// A port name that no pod has allows nothing: probably a misspelling.
    pub(super) fn unresolved_names(
        &self,
        name: &ObjectName,
        identities: &Identities,
    ) -> BTreeSet<Warning> {
        let mut warnings = BTreeSet::new();
        let Some(policy) = self.numbered.get(name) else { return warnings };
        for direction in DIRECTIONS {
            let rules = policy.side(direction).into_iter().flat_map(|rules| rules.iter());
            for (index, rule) in rules.enumerate() {
                for port in &rule.ports {
                    let L4Ports::Named(port_name) = &port.l4_ports else { continue };
                    if identities.has_port_name(&(port_name.clone(), port.protocol)) {
                        continue;
                    }
                    let message = format!(
                        "spec.{}[{index}]: no pod has a {} port named {port_name:?}, so the rule \
                         allows nothing by it",
                        direction_name(direction),
                        port.protocol,
                    );
                    warnings.insert(Warning::new(format!("NetworkPolicy {name}"), message));
                }
            }
        }
        warnings
    }
}

impl Numbered {
    fn side(&self, direction: Direction) -> Option<&Arc<[NumberedRule]>> {
        let [ingress, egress] = &self.sides;
        match direction {
            Direction::Ingress => ingress.as_ref(),
            Direction::Egress => egress.as_ref(),
        }
    }

    fn port_names(&self) -> impl Iterator<Item = PortName> {
        let rules = self.sides.iter().flatten().flat_map(|rules| rules.iter());
        rules.flat_map(|rule| &rule.ports).filter_map(|port| match &port.l4_ports {
            L4Ports::Named(name) => Some((name.clone(), port.protocol)),
            L4Ports::All | L4Ports::Range(_) => None,
        })
    }
}

/// The rules of `policy` in `direction`; `None` when it does not isolate there.
pub(crate) fn rules(policy: &NetworkPolicy, direction: Direction) -> Option<&[PolicyRule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}
