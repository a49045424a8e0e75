//! Which rule decides: the tables in force, asked as a worker asks them.

use std::net::IpAddr;

use control::admin::{
    AdminError, ExaminedRule, ExplainedStep, PolicyExplanation, PolicyQuestion, parse_protocol,
};
use control::compile::{Compiled, Examined, RuleName, direction_name};
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query, RuleId};

use super::Node;

/// One side of the question.
struct Side {
    shown: String,
    identity: Identity,
    /// Whether policy is enforced for it here: a pod of this node.
    is_here: bool,
    /// Its addresses, as far as the question tells them.
    addresses: Vec<IpAddr>,
}

impl Node {
    /// Answers who may speak to whom, and by which rule.
    ///
    /// # Errors
    /// [`AdminError`] for a pod that is not known, or a word that is none.
    pub(super) fn explain(
        &self,
        question: &PolicyQuestion,
    ) -> Result<PolicyExplanation, AdminError> {
        let protocol = parse_protocol(&question.protocol)?;
        let from = self.side("from", &question.from)?;
        let to = self.side("to", &question.to)?;
        let ask = |direction, subject: &Side, peer: &Side| {
            let query = Query {
                subject: subject.identity,
                peer: peer.identity,
                protocol,
                l4_port: question.l4_port,
            };
            self.step(direction, subject, &query)
        };
        let mut steps = Vec::new();
        if from.is_here {
            steps.push(ask(Direction::Egress, &from, &to));
        }
        if to.is_here {
            steps.push(ask(Direction::Ingress, &to, &from));
        }
        let allowed = steps.iter().all(|step| step.allowed);
        let summary = match steps.iter().find(|step| !step.allowed) {
            _ if steps.is_empty() => {
                "neither side is a pod of this node: nothing is enforced here".into()
            }
            Some(step) => format!("{} of {} refuses: {}", step.direction, step.subject, step.rule),
            None => format!(
                "{} may speak to {} on {}/{}",
                from.shown, to.shown, question.protocol, question.l4_port
            ),
        };
        let outside = to.addresses.first().filter(|_| from.is_here && !to.is_here);
        let source_nat = outside.and_then(|to| self.seen_outside(&from.addresses, *to));
        Ok(PolicyExplanation { allowed, summary, steps, source_nat })
    }

    fn step(&self, direction: Direction, subject: &Side, query: &Query) -> ExplainedStep {
        let compiled = self.publisher.compiled();
        let verdict = compiled.policy.judge(direction, query);
        let rule = rule_text(compiled, verdict.rule, Some(query.subject), direction);
        let examined = compiled.examine(self.publisher.cluster(), direction, query);
        let deciding = compiled.rule_name(verdict.rule);
        ExplainedStep {
            direction: direction_name(direction).into(),
            subject: subject.shown.clone(),
            allowed: verdict.allowed,
            rule,
            examined: examined.into_iter().map(|one| told(one, deciding.as_ref())).collect(),
        }
    }

    fn side(&self, field: &str, text: &str) -> Result<Side, AdminError> {
        let compiled = self.publisher.compiled();
        let reserved = match text {
            "host" => Some(Identity::HOST),
            "world" => Some(Identity::WORLD),
            _ => None,
        };
        if let Some(identity) = reserved {
            let addresses = Vec::new();
            return Ok(Side { shown: text.into(), identity, is_here: false, addresses });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let here = self.endpoints.by_address(address);
            let shown = here.map_or_else(|| text.to_owned(), |name| format!("{text} ({name})"));
            let identity = compiled.identities.lookup(address);
            let addresses = vec![address];
            return Ok(Side { shown, identity, is_here: here.is_some(), addresses });
        }
        let name = text.parse().map_err(|_| {
            AdminError::invalid(
                field,
                format!("{text:?}: write namespace/pod, an address, host or world"),
            )
        })?;
        let endpoint = self.endpoints.get(&name).map(|endpoint| &*endpoint.spec.addresses);
        let pod = self.publisher.cluster().pods.get(&name).map(|pod| &*pod.addresses);
        let addresses = endpoint.or(pod).filter(|addresses| !addresses.is_empty());
        let addresses = addresses.ok_or_else(|| AdminError::NotFound {
            what: "pod with an address".into(),
            name: text.into(),
            list_command: "xskiff endpoint list".into(),
        })?;
        let identity = compiled.endpoint_identity(addresses);
        let is_here = endpoint.is_some();
        Ok(Side { shown: text.into(), identity, is_here, addresses: addresses.to_vec() })
    }
}

fn told(examined: Examined, deciding: Option<&RuleName>) -> ExaminedRule {
    let decides = match deciding {
        Some(RuleName::Rule { policy, index, .. }) => {
            *policy == examined.policy && Some(*index) == examined.index
        }
        _ => false,
    };
    ExaminedRule {
        policy: examined.policy.to_string(),
        index: examined.index.map(|index| u32::try_from(index).unwrap_or(u32::MAX)),
        peer_matches: examined.peer.matches,
        peer: examined.peer.why,
        port_matches: examined.port.matches,
        port: examined.port.why,
        decides,
    }
}

/// What policies under audit would have refused, for people.
pub(super) fn audit_text(
    compiled: &Compiled,
    subject: Option<Identity>,
    direction: Direction,
) -> String {
    let audited = subject.map_or(&[][..], |subject| compiled.audited(subject, direction));
    let names: Vec<String> = audited.iter().map(ToString::to_string).collect();
    let list = direction_name(direction);
    match names.as_slice() {
        [] => format!("{list} would be denied by a policy under audit"),
        names => format!(
            "{list} would be denied: no rule allows it; under audit: NetworkPolicy {}",
            names.join(", ")
        ),
    }
}

/// A rule for people; a default deny with the policies that isolate `subject`, since no rule of
/// theirs is to be named.
pub(super) fn rule_text(
    compiled: &Compiled,
    rule: RuleId,
    subject: Option<Identity>,
    direction: Direction,
) -> String {
    let known = compiled.rule_name(rule);
    let text = known.map_or_else(|| "a rule no longer in force".into(), |name| name.to_string());
    let isolating = subject.map_or(&[][..], |subject| compiled.isolating(subject, direction));
    if rule != RuleId::DEFAULT_DENY || isolating.is_empty() {
        return text;
    }
    let names: Vec<String> = isolating.iter().map(ToString::to_string).collect();
    format!("{text}; isolated by NetworkPolicy {}", names.join(", "))
}
