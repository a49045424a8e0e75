//! Policies, with whom they select here and in the cluster, their rules as read, and what is wrong
//! with them.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::identity::Identity;
use dataplane::policy::Direction;
use hashbrown::HashMap;

use super::{pods_by_identity, pods_with, text};
use crate::admin::policy::{
    Excerpt, IsolatedEndpoint, PeerInfo, PolicyDetail, PolicyInfo, PolicyListing, PolicyProblem,
    RuleInfo,
};
use crate::compile::Compiled;
use crate::compile::identities::{Kind, resolve};
use crate::compile::policies::{
    AuditedBy, DIRECTIONS, audited_by, direction_name, is_audited, rules,
};
use crate::compile::selectors::Selector;
use crate::compile::warnings::Source;
use crate::model::{L4Ports, NetworkPolicy, ObjectName, PolicyRule, PortMatch};

/// Problems of one policy in a row, and entries of one rule.
const IN_ROW: usize = 8;
/// Different numbers that pods give one name, told at most.
const NUMBERS: usize = 8;

/// What sources of objects refuse of policies, in whole or in part: messages by `namespace/name`.
pub type Problems = BTreeMap<ObjectName, Vec<String>>;

impl Compiled {
    /// How many selectors policies use, each counted once.
    #[must_use]
    pub fn selector_count(&self) -> usize {
        self.selectors.len()
    }

    /// Policies by name, of one namespace or of all: `limit` of those after `after`. `refused` is
    /// what sources say of policies that they do not take as they are written.
    #[must_use]
    pub fn list_policies(
        &self,
        namespace: Option<&str>,
        (limit, after): (usize, Option<&ObjectName>),
        refused: &Problems,
    ) -> PolicyListing {
        let all = || self.policies_of(namespace);
        let mut rest = all().filter(|policy| after.is_none_or(|after| policy.name > *after));
        let page: Vec<&NetworkPolicy> = rest.by_ref().take(limit).collect();
        let is_cut = rest.next().is_some();
        let pods = pods_by_identity(self);
        let next = page.last().filter(|_| is_cut).map(|policy| policy.name.to_string());
        let absent = self.absent(namespace, refused);
        PolicyListing {
            rows: page.iter().map(|policy| self.policy_info(policy, &pods, refused)).collect(),
            total: all().count() as u64,
            next,
            refused: Excerpt::of(absent, limit),
        }
    }

    /// Whether what a policy refuses passes here and is reported.
    #[must_use]
    pub fn is_under_audit(&self, policy: &NetworkPolicy) -> bool {
        is_audited(policy, &self.state, &self.node)
    }

    /// The policies of a namespace, or all, by name.
    pub fn policies_of(&self, namespace: Option<&str>) -> impl Iterator<Item = &NetworkPolicy> {
        let all = self.state.network_policies.values();
        let wanted = namespace.map(str::to_owned);
        all.filter(move |policy| wanted.as_deref().is_none_or(|own| *own == *policy.name.namespace))
    }

    /// Policies that are refused and of which nothing is in force.
    fn absent<'a>(
        &'a self,
        namespace: Option<&'a str>,
        refused: &'a Problems,
    ) -> impl Iterator<Item = PolicyProblem> + 'a {
        let absent = refused
            .iter()
            .filter(move |(name, _)| namespace.is_none_or(|own| *own == *name.namespace))
            .filter(|(name, _)| !self.state.network_policies.contains_key(*name));
        absent.flat_map(|(name, messages)| {
            let of = |message: &String| PolicyProblem {
                policy: name.to_string(),
                message: format!("nothing of it is in force: {message}"),
            };
            messages.iter().map(of)
        })
    }

    /// Everything that is wrong with policies of a namespace, or with any.
    #[must_use]
    pub fn policy_problems(
        &self,
        namespace: Option<&str>,
        refused: &Problems,
        limit: usize,
    ) -> Excerpt<PolicyProblem> {
        let of_policy = |policy: &NetworkPolicy| {
            let name = policy.name.to_string();
            let problems = self.problems_of(&policy.name, refused);
            problems.into_iter().map(move |message| PolicyProblem { policy: name.clone(), message })
        };
        let in_force = self.policies_of(namespace).flat_map(of_policy);
        Excerpt::of(self.absent(namespace, refused).chain(in_force), limit)
    }

    fn problems_of(&self, name: &ObjectName, refused: &Problems) -> Vec<String> {
        let refused = refused.get(name).into_iter().flatten().cloned();
        let warned = self.warnings.of(&Source::Policy(name.clone()));
        refused.chain(warned.map(|warning| text(&warning.message))).collect()
    }

    fn policy_info(
        &self,
        policy: &NetworkPolicy,
        pods: &HashMap<Identity, u64>,
        refused: &Problems,
    ) -> PolicyInfo {
        let subject = self.selectors.get(&Selector::subject(policy));
        let count = |direction| rules(policy, direction).map(|rules| rules.len() as u64);
        let here: BTreeSet<&ObjectName> = subject
            .into_iter()
            .flat_map(|subject| self.known.members(subject))
            .flat_map(|identity| self.pods_here(identity).into_keys())
            .collect();
        PolicyInfo {
            name: policy.name.to_string(),
            selector: text(&policy.subject),
            pods_here: here.len() as u64,
            pods: subject.map_or(0, |subject| pods_with(self, pods, subject)),
            ingress_rules: count(Direction::Ingress),
            egress_rules: count(Direction::Egress),
            audited: self.is_under_audit(policy),
            audited_by: self.audited_by(policy),
            problems: Excerpt::of(self.problems_of(&policy.name, refused), IN_ROW),
        }
    }

    /// The object whose annotation puts a policy under audit.
    fn audited_by(&self, policy: &NetworkPolicy) -> Option<String> {
        Some(match audited_by(policy, &self.state, &self.node)? {
            AuditedBy::Policy => format!("NetworkPolicy {}", policy.name),
            AuditedBy::Namespace => format!("Namespace {}", policy.name.namespace),
            AuditedBy::Node => format!("Node {}", self.node.name),
        })
    }

    /// One policy in detail, its lists up to `limit`; `None` for one that is not in force. Flows and
    /// decisions are left to whoever counts them.
    #[must_use]
    pub fn policy_detail(
        &self,
        name: &ObjectName,
        limit: usize,
        refused: &Problems,
    ) -> Option<PolicyDetail> {
        let policy = self.state.network_policies.get(name)?;
        let pods = pods_by_identity(self);
        let all = DIRECTIONS.into_iter().flat_map(|direction| {
            let numbered = rules(policy, direction).unwrap_or_default().iter().enumerate();
            numbered.map(move |(index, rule)| (direction, index, rule))
        });
        let count = all.clone().count();
        let told = all.take(limit).map(|(direction, index, rule)| {
            self.rule_info(policy, (direction, index, rule), &pods)
        });
        let first: Vec<RuleInfo> = told.collect();
        let left_out = (count - first.len()) as u64;
        Some(PolicyDetail {
            info: self.policy_info(policy, &pods, refused),
            endpoints: Excerpt::of(self.isolated(name), limit),
            rules: Excerpt { first, left_out },
            denied: 0,
            would_deny: 0,
        })
    }

    /// Pods of this node that a policy isolates, or would if it were not under audit.
    fn isolated(&self, policy: &ObjectName) -> Vec<IsolatedEndpoint> {
        let mut isolated: BTreeMap<&ObjectName, IsolatedEndpoint> = BTreeMap::new();
        for identity in self.known.local.keys() {
            let by = |direction| {
                self.isolating(*identity, direction).contains(policy)
                    || self.audited(*identity, direction).contains(policy)
            };
            let (ingress, egress) = (by(Direction::Ingress), by(Direction::Egress));
            if !ingress && !egress {
                continue;
            }
            let key = self.known.key(*identity);
            let unknown = key.is_some_and(|key| matches!(key.kind, Kind::UnknownPod { .. }));
            for pod in self.pods_here(*identity).into_keys() {
                isolated.entry(pod).or_insert_with(|| IsolatedEndpoint {
                    name: pod.to_string(),
                    identity: identity.0,
                    ingress,
                    egress,
                    unknown,
                });
            }
        }
        isolated.into_values().collect()
    }

    fn rule_info(
        &self,
        policy: &NetworkPolicy,
        (direction, index, rule): (Direction, usize, &PolicyRule),
        pods: &HashMap<Identity, u64>,
    ) -> RuleInfo {
        let peers = rule.peers.iter().map(|peer| {
            let selector = Selector::peer(&policy.name.namespace, peer);
            let number = self.selectors.get(&selector);
            PeerInfo {
                peer: text(&selector),
                pods: number.map_or(0, |number| pods_with(self, pods, number)),
            }
        });
        let ports = rule.ports.iter().map(|port| self.port_info(policy, direction, rule, port));
        RuleInfo {
            direction: direction_name(direction).to_owned(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            peers: Excerpt::of(peers, IN_ROW),
            ports: Excerpt::of(ports, IN_ROW),
            flows: 0,
        }
    }

    /// A port; one that is named with the numbers that the pods mean by it whom packets go to.
    fn port_info(
        &self,
        policy: &NetworkPolicy,
        direction: Direction,
        rule: &PolicyRule,
        port: &PortMatch,
    ) -> String {
        let protocol = port.protocol;
        let name = match &port.l4_ports {
            L4Ports::All => return format!("{protocol}, every port"),
            L4Ports::Range(range) if range.start() == range.end() => {
                return format!("{protocol} {}", range.start());
            }
            L4Ports::Range(range) => {
                return format!("{protocol} {} to {}", range.start(), range.end());
            }
            L4Ports::Named(name) => name,
        };
        let selectors: Vec<Selector> = match direction {
            Direction::Ingress => vec![Selector::subject(policy)],
            Direction::Egress => {
                rule.peers.iter().map(|peer| Selector::peer(&policy.name.namespace, peer)).collect()
            }
        };
        let numbers: Vec<_> = selectors.iter().filter_map(|one| self.selectors.get(one)).collect();
        let is_meant = |identity: &Identity| {
            let key = self.known.key(*identity);
            selectors.is_empty()
                || key.is_some_and(|key| numbers.iter().any(|number| key.has(*number)))
        };
        let meant = self.known.with_named_ports.iter().filter(|identity| is_meant(identity));
        let resolved: BTreeSet<u16> = meant
            .filter_map(|identity| resolve(self.known.key(*identity)?, name, protocol))
            .collect();
        if resolved.is_empty() {
            return format!("{protocol} {name:?} (no such port there)");
        }
        let resolved = Excerpt::of(resolved, NUMBERS);
        format!("{protocol} {name:?} ({} there)", resolved.joined(" or "))
    }
}
