//! Why the policy in force decides as it does: every rule that was looked at, and what of it
//! matched. The decision itself is the tables'; this tells people how they came about.

use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query};

use super::Compiled;
use super::identities::{Key, Kind, resolve};
use super::policies::rules;
use super::selectors::Selector;
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
        Self { matches, why: why.into() }
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
    /// The other side, against the rule's `from` or `to`.
    pub peer: Finding,
    /// Protocol and destination port, against the rule's `ports`.
    pub port: Finding,
}

impl Compiled {
    /// Every rule that has a say about `query`, in the order in which they are compiled: policies
    /// by name, then by the rule's place. `state` is what was compiled.
    #[must_use]
    pub fn examine(
        &self,
        state: &ClusterState,
        direction: Direction,
        query: &Query,
    ) -> Vec<Examined> {
        let key = |identity: Identity| self.known.key(identity).map(|key| &**key);
        let Some(subject) = key(query.subject) else { return Vec::new() };
        let sides = Sides { compiled: self, direction, query, subject, peer: key(query.peer) };
        let policies = state.network_policies.values();
        policies.flat_map(|policy| sides.examine_policy(policy)).collect()
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
            peer: Finding::of(false, why),
            port: Finding::of(false, why),
        };
        if !self.has(self.subject, &Selector::subject(policy)) {
            return match &self.subject.kind {
                Kind::UnknownPod { namespace } if *namespace == policy.name.namespace => {
                    vec![nothing("the pod's labels are unknown: isolated, and no rule counts")]
                }
                _ => Vec::new(),
            };
        }
        if rules.is_empty() {
            return vec![nothing("the policy has no rule: it isolates only")];
        }
        let examined = rules.iter().enumerate().map(|(index, rule)| Examined {
            policy: policy.name.clone(),
            index: Some(index),
            peer: self.peer_finding(policy, rule),
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
