//! Why the policy in force decides as it does: every rule that was looked at, and what of it
//! matched. The decision itself is the tables'; this tells people how they came about.

use std::collections::BTreeSet;

use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query};

use super::identities::{Key, Kind, resolve};
use super::inventory::text;
use super::policies::{RuleName, is_audited, rules};
use super::selectors::Selector;
use super::{Compiled, NodeView};
use crate::config::UnknownPods;
use crate::model::{L4Ports, NetworkPolicy, ObjectName, PolicyRule, PortMatch};
use crate::store::ClusterState;

/// Whether one part of a rule matches, and what was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it does.
    pub matches: bool,
    /// What matched, or what none of did.
    pub why: String,
}

impl Finding {
    fn of(matches: bool, why: impl Into<String>) -> Self {
        Self { matches, why: text(&why.into()) }
    }
}

/// A rule of a policy that selects the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The policy.
    pub policy: ObjectName,
    /// Place in `spec.ingress` or `spec.egress`, from 0; `None` for a policy without any rule in
    /// the direction it isolates, or whose rules do not count.
    pub index: Option<usize>,
    /// Whether the policy is under audit: then it neither isolates nor allows.
    pub audited: bool,
    /// The other side, against the rule's `from` or `to`.
    pub peer: Finding,
    /// The protocol alone, against the rule's `ports`.
    pub protocol: Finding,
    /// Protocol and destination port, against the rule's `ports`.
    pub port: Finding,
}

impl Examined {
    /// Whether it allows what was asked.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.index.is_some() && self.peer.matches && self.port.matches
    }
}

/// What rules say together, by themselves: an answer without tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Whether policies that are enforced allow it.
    pub allowed: bool,
    /// By which rule, or why by none.
    pub rule: RuleName,
    /// Whether all together would allow it, if those under audit were enforced as well; `None`
    /// without any.
    pub would_allow: Option<bool>,
}

impl Reading {
    /// Of all the rules that were looked at.
    #[must_use]
    pub fn of(examined: &[Examined], direction: Direction) -> Self {
        let enforced = || examined.iter().filter(|one| !one.audited);
        let allowing = enforced().find(|one| one.allows());
        let rule = match allowing {
            Some(Examined { policy, index: Some(index), .. }) => {
                RuleName::Rule { policy: policy.clone(), direction, index: *index }
            }
            _ if enforced().next().is_none() => RuleName::NotIsolated,
            _ => RuleName::DefaultDeny,
        };
        let is_audited = examined.iter().any(|one| one.audited);
        let would_allow = is_audited.then(|| examined.iter().any(Examined::allows));
        Self { allowed: rule != RuleName::DefaultDeny, rule, would_allow }
    }
}

impl Compiled {
    /// Every rule that has a say about `query` on this node, in the order in which they are
    /// compiled: policies by name, then by the rule's place. `state` is what was compiled.
    #[must_use]
    pub fn examine(
        &self,
        state: &ClusterState,
        direction: Direction,
        query: &Query,
    ) -> Vec<Examined> {
        self.examine_at(&self.node.name, state, direction, query)
    }

    /// The same where the subject is a pod of the node of this name, whose annotation may put
    /// policies under audit.
    #[must_use]
    pub fn examine_at(
        &self,
        node: &str,
        state: &ClusterState,
        direction: Direction,
        query: &Query,
    ) -> Vec<Examined> {
        let key = |identity: Identity| self.known.key(identity).map(|key| &**key);
        let Some(subject) = key(query.subject) else { return Vec::new() };
        let sides = Sides { compiled: self, direction, query, subject, peer: key(query.peer) };
        let node = NodeView { name: node.to_owned(), ..NodeView::default() };
        let policies = state.network_policies.values();
        let examine = |policy: &NetworkPolicy| {
            let mut examined = sides.examine_policy(policy);
            if !examined.is_empty() && is_audited(policy, state, &node) {
                examined.iter_mut().for_each(|one| one.audited = true);
            }
            examined
        };
        policies.flat_map(examine).collect()
    }
}

/// Both ends of the question, with what policy can tell about them.
struct Sides<'a> {
    compiled: &'a Compiled,
    direction: Direction,
    query: &'a Query,
    subject: &'a Key,
    peer: Option<&'a Key>,
}

impl Sides<'_> {
    fn examine_policy(&self, policy: &NetworkPolicy) -> Vec<Examined> {
        let Some(rules) = rules(policy, self.direction) else { return Vec::new() };
        let nothing = |why: &str| Examined {
            policy: policy.name.clone(),
            index: None,
            audited: false,
            peer: Finding::of(false, why),
            protocol: Finding::of(false, "-"),
            port: Finding::of(false, "-"),
        };
        let is_unknown = matches!(&self.subject.kind, Kind::UnknownPod { namespace }
            if *namespace == policy.name.namespace);
        let by_namespace = self.compiled.node.unknown_pods == UnknownPods::ByNamespace;
        if is_unknown && !by_namespace {
            return vec![nothing("the pod's labels are unknown: policy.unknown_pods decides")];
        }
        if !self.has(self.subject, &Selector::subject(policy)) {
            let why = "the pod's labels are unknown: isolated, and no rule counts";
            return if is_unknown { vec![nothing(why)] } else { Vec::new() };
        }
        if rules.is_empty() {
            return vec![nothing("the policy has no rule: it isolates only")];
        }
        let examined = rules.iter().enumerate().map(|(index, rule)| Examined {
            policy: policy.name.clone(),
            index: Some(index),
            audited: false,
            peer: self.peer_finding(policy, rule),
            protocol: self.protocol_finding(rule),
            port: self.port_finding(rule),
        });
        examined.collect()
    }

    fn has(&self, key: &Key, selector: &Selector) -> bool {
        let number = self.compiled.selectors.get(selector);
        number.is_some_and(|number| key.has(number))
    }

    fn peer_finding(&self, policy: &NetworkPolicy, rule: &PolicyRule) -> Finding {
        if rule.peers.is_empty() {
            return Finding::of(true, "everybody");
        }
        let selectors: Vec<Selector> =
            rule.peers.iter().map(|peer| Selector::peer(&policy.name.namespace, peer)).collect();
        let matching = selectors
            .iter()
            .find(|selector| self.peer.is_some_and(|peer| self.has(peer, selector)));
        match matching {
            Some(selector) => Finding::of(true, selector.to_string()),
            None => {
                let all: Vec<String> = selectors.iter().map(ToString::to_string).collect();
                Finding::of(false, all.join(" or "))
            }
        }
    }

    fn protocol_finding(&self, rule: &PolicyRule) -> Finding {
        if rule.ports.is_empty() {
            return Finding::of(true, "every protocol");
        }
        let protocols: BTreeSet<_> = rule.ports.iter().map(|port| port.protocol).collect();
        let shown: Vec<String> = protocols.iter().map(ToString::to_string).collect();
        Finding::of(protocols.contains(&self.query.protocol), shown.join(" or "))
    }

    fn port_finding(&self, rule: &PolicyRule) -> Finding {
        if rule.ports.is_empty() {
            return Finding::of(true, "every port");
        }
        match rule.ports.iter().find(|port| self.port_matches(port)) {
            Some(port) => Finding::of(true, self.shown(port)),
            None => {
                let all: Vec<String> = rule.ports.iter().map(|port| self.shown(port)).collect();
                Finding::of(false, all.join(" or "))
            }
        }
    }

    fn port_matches(&self, port: &PortMatch) -> bool {
        port.protocol == self.query.protocol
            && match &port.l4_ports {
                L4Ports::All => true,
                L4Ports::Range(range) => range.contains(&self.query.l4_port),
                L4Ports::Named(name) => {
                    self.number_of(name, port).is_some_and(|number| number == self.query.l4_port)
                }
            }
    }

    /// What the destination pod means by a port's name.
    fn number_of(&self, name: &str, port: &PortMatch) -> Option<u16> {
        let destination = match self.direction {
            Direction::Ingress => Some(self.subject),
            Direction::Egress => self.peer,
        };
        resolve(destination?, name, port.protocol)
    }

    fn shown(&self, port: &PortMatch) -> String {
        let protocol = port.protocol;
        match &port.l4_ports {
            L4Ports::All => format!("{protocol}, every port"),
            L4Ports::Range(range) if range.start() == range.end() => {
                format!("{protocol} {}", range.start())
            }
            L4Ports::Range(range) => format!("{protocol} {} to {}", range.start(), range.end()),
            L4Ports::Named(name) => match self.number_of(name, port) {
                Some(number) => format!("{protocol} {name:?} ({number} there)"),
                None => format!("{protocol} {name:?} (no such port there)"),
            },
        }
    }
}
