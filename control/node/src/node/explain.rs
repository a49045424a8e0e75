//! Which rule decides: the tables in force, asked as a worker asks them. For pods of other nodes,
//! whose tables are there, the objects are read instead.

use std::net::IpAddr;

use control::admin::policy::{EXAMINED_MAX, Excerpt, POLICIES_NAMED_MAX};
use control::admin::{
    AdminError, ExaminedRule, ExplainedStep, PolicyExplanation, PolicyQuestion, parse_protocol,
};
use control::compile::{Compiled, Examined, Reading, RuleName, direction_name};
use control::model::ObjectName;
use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::lb::{Frontend, FrontendKind, TrafficPolicy};
use dataplane::policy::{Direction, Query, RuleId};

use super::Node;
use sides::{Enforced, Side};

pub(super) mod sides;

/// Of several that a question stands for, so many are asked about.
const PAIRS_ASKED: usize = 100;

/// One way in which what is asked may happen: each side at one address, where it has any.
struct Pair {
    from: Side,
    to: Side,
    l4_port: u16,
}

/// What a question stands for.
struct Asked {
    /// What the word for the target means; `None` where it says so itself.
    title: Option<String>,
    /// None where no address of the one side reaches any of the other.
    pairs: Vec<Pair>,
}

impl Node {
    /// Answers who may speak to whom, and by which rule. Policy judges packets, so that a side of several
    /// addresses is asked about at each, with those of the same family. Through a service it is its
    /// backends that are spoken to, and the node at each of its addresses: `ipBlock`s may tell apart any two.
    ///
    /// # Errors
    /// [`AdminError`] for a pod or identity that is not known, or a word that is none.
    pub(super) fn explain(
        &self,
        question: &PolicyQuestion,
    ) -> Result<PolicyExplanation, AdminError> {
        let protocol = parse_protocol(&question.protocol)?;
        let from = self.side("from", &question.from)?;
        let Asked { title, pairs } = self.asked(question, &from, protocol)?;
        let (all, asked) = (pairs.len(), pairs.len().min(PAIRS_ASKED));
        let mut refused = 0;
        let mut told: Option<PolicyExplanation> = None;
        for pair in pairs.iter().take(PAIRS_ASKED) {
            let one = self.explain_pair(question, protocol, pair);
            refused += usize::from(!one.allowed);
            // The first that is refused tells more than those that are not.
            if told.as_ref().is_none_or(|told| told.allowed && !one.allowed) {
                told = Some(one);
            }
        }
        let Some(told) = told else {
            let to = title.unwrap_or_else(|| question.to.clone());
            return Ok(PolicyExplanation {
                allowed: false,
                summary: format!("{to}: there is none for {}, or none of its family", from.shown),
                from: self.described(&from),
                to,
                steps: Vec::new(),
                source_nat: None,
            });
        };
        // Where there is one answer to all, the sides' own words are enough.
        let is_one = all == 1 || title.is_none() && (refused == 0 || refused == asked);
        let count = (!is_one).then(|| format!("{refused} of {asked} asked of {all} are refused"));
        let summary = [title, count, Some(told.summary)].into_iter().flatten();
        Ok(PolicyExplanation { summary: summary.collect::<Vec<_>>().join("; "), ..told })
    }

    /// What the question stands for.
    fn asked(
        &self,
        question: &PolicyQuestion,
        from: &Side,
        protocol: Protocol,
    ) -> Result<Asked, AdminError> {
        let (to, l4_port) = (&question.to, question.l4_port);
        if to == "host" {
            let own = self.own_addresses();
            if !own.is_empty() {
                let own = own.into_iter().map(|one| self.side_of_address(&one.to_string(), one));
                let pairs = own.flat_map(|to| self.pairs(from, &to, l4_port)).collect();
                let title = Some("host is this node, its addresses".to_owned());
                return Ok(Asked { title, pairs });
            }
        }
        if let Ok(address) = to.parse::<IpAddr>()
            && let Some(asked) = self.through_service(from, Frontend { address, protocol, l4_port })
        {
            return Ok(asked);
        }
        let pairs = self.pairs(from, &self.side("to", to)?, l4_port);
        Ok(Asked { title: None, pairs })
    }

    /// Both at addresses of one family.
    fn pairs(&self, from: &Side, to: &Side, l4_port: u16) -> Vec<Pair> {
        let to = self.faces(to, None);
        let pairs = to.into_iter().flat_map(|to| {
            let from = self.faces(from, to.addresses.first().map(IpAddr::is_ipv4));
            from.into_iter().map(move |from| Pair { from, to: to.clone(), l4_port })
        });
        pairs.collect()
    }

    /// The backends that a client at `from` may get of the service that listens there; `None` where none
    /// does. The client speaks by the frontend's family, whatever the backend's is.
    fn through_service(&self, from: &Side, at: Frontend) -> Option<Asked> {
        let services = &self.publisher.tables().services;
        let (id, kind) = services.frontends.get(&at)?;
        let service = services.get(*id)?;
        let policy = match (kind, &from.enforced) {
            (FrontendKind::ClusterIp, _) => service.internal_policy,
            (_, Enforced::Nowhere) => service.external_policy,
            _ => TrafficPolicy::Cluster,
        };
        let set = match policy {
            TrafficPolicy::Cluster => &service.cluster,
            TrafficPolicy::Local => &service.local,
        };
        let Frontend { address, l4_port, .. } = at;
        let title = format!("{address} port {l4_port} is Service {}, its backends", service.name);
        let from = self.faces(from, Some(address.is_ipv4()));
        let pairs = set.backends.iter().flat_map(|backend| {
            let to = self.side_of_address(&backend.address.to_string(), backend.address);
            let l4_port = backend.l4_port;
            from.iter().cloned().map(move |from| Pair { from, to: to.clone(), l4_port })
        });
        Some(Asked { title: Some(title), pairs: pairs.collect() })
    }

    fn own_addresses(&self) -> Vec<IpAddr> {
        let forwarding = &self.publisher.tables().forwarding;
        let mut own: Vec<IpAddr> = forwarding.node_addresses.keys().collect();
        own.sort_unstable();
        own
    }

    fn explain_pair(
        &self,
        question: &PolicyQuestion,
        protocol: Protocol,
        Pair { from, to, l4_port }: &Pair,
    ) -> PolicyExplanation {
        let is_itself = from.pod.is_some() && from.pod == to.pod;
        let ask = |direction, subject: &Side, peer: &Side| {
            let query = Query {
                subject: subject.identity,
                peer: peer.identity,
                protocol,
                l4_port: *l4_port,
            };
            match &subject.enforced {
                _ if is_itself => None,
                Enforced::Here => Some(self.step(direction, subject, &query)),
                Enforced::On(node) => {
                    Some(self.step_elsewhere(node, direction, (subject, peer), &query))
                }
                Enforced::Nowhere => None,
            }
        };
        let egress = ask(Direction::Egress, from, to);
        let ingress = ask(Direction::Ingress, to, from);
        let steps: Vec<ExplainedStep> = egress.into_iter().chain(ingress).collect();
        let allowed = steps.iter().all(|step| step.allowed);
        let on = format!("{}/{l4_port}", question.protocol);
        let outside = to
            .addresses
            .first()
            .filter(|_| from.enforced == Enforced::Here && to.enforced == Enforced::Nowhere);
        let source_nat = outside.and_then(|to| self.seen_outside(&from.addresses, *to));
        let summary = match is_itself {
            true => format!("{} speaks to itself: no policy forbids that", from.shown),
            false => summary(&from.shown, &to.shown, &on, &steps),
        };
        let (from, to) = (self.described(from), self.described(to));
        PolicyExplanation { allowed, summary, from, to, steps, source_nat }
    }

    fn described(&self, side: &Side) -> String {
        let name = self.publisher.compiled().identity_title(side.identity);
        let at = match side.addresses[..] {
            [one] if !side.shown.contains(&one.to_string()) => format!(" at {one}"),
            _ => String::new(),
        };
        format!("{}{at} is identity {}: {name}", side.shown, side.identity.0)
    }

    fn step(&self, direction: Direction, subject: &Side, query: &Query) -> ExplainedStep {
        let compiled = self.publisher.compiled();
        let verdict = compiled.policy.judge(direction, query);
        let examined = compiled.examine(self.publisher.cluster(), direction, query);
        let reading = Reading::of(&examined, direction);
        // Toward itself the node always may.
        let always = verdict.rule == RuleId::OWN_NODE;
        let would_allow = reading.would_allow.map(|all| always || !verdict.audited && all);
        let rule = rule_text(compiled, verdict.rule, Some(query.subject), direction);
        let deciding = compiled.rule_name(verdict.rule);
        let step = ExplainedStep {
            direction: direction_name(direction).into(),
            subject: subject.shown.clone(),
            allowed: verdict.allowed,
            rule,
            elsewhere: None,
            would_allow,
            examined: Vec::new(),
            examined_left_out: 0,
        };
        with_examined(step, examined, deciding.as_ref())
    }

    fn step_elsewhere(
        &self,
        node: &str,
        direction: Direction,
        (subject, peer): (&Side, &Side),
        query: &Query,
    ) -> ExplainedStep {
        let compiled = self.publisher.compiled();
        let examined = compiled.examine_at(node, self.publisher.cluster(), direction, query);
        let mut reading = Reading::of(&examined, direction);
        let is_own_node = direction == Direction::Ingress
            && peer.addresses.iter().any(|address| compiled.node_of(*address) == Some(node));
        if is_own_node {
            let would_allow = reading.would_allow.map(|_| true);
            reading = Reading { allowed: true, rule: RuleName::OwnNode, would_allow };
        }
        let mut rule = reading.rule.to_string();
        if reading.rule == RuleName::DefaultDeny {
            let mut isolating: Vec<&ObjectName> =
                examined.iter().filter(|one| !one.audited).map(|one| &one.policy).collect();
            isolating.dedup();
            rule = isolated(&rule, isolating);
        }
        let step = ExplainedStep {
            direction: direction_name(direction).into(),
            subject: subject.shown.clone(),
            allowed: reading.allowed,
            rule,
            elsewhere: Some(node.to_owned()),
            would_allow: reading.would_allow,
            examined: Vec::new(),
            examined_left_out: 0,
        };
        with_examined(step, examined, Some(&reading.rule))
    }
}

fn summary(from: &str, to: &str, on: &str, steps: &[ExplainedStep]) -> String {
    if steps.is_empty() {
        return "neither side is a pod: nothing is enforced".into();
    }
    let mut text = match steps.iter().find(|step| !step.allowed) {
        Some(step) => format!("{} of {} refuses: {}", step.direction, step.subject, step.rule),
        None => format!("{from} may speak to {to} on {on}"),
    };
    if steps.iter().all(|step| step.allowed)
        && let Some(step) = steps.iter().find(|step| step.would_allow == Some(false))
    {
        text += &format!(
            "; under audit: {} of {} would be denied if it were enforced",
            step.direction, step.subject
        );
    }
    text
}

/// The step with the rules that were looked at: of many the first, and the one that decides.
fn with_examined(
    mut step: ExplainedStep,
    examined: Vec<Examined>,
    deciding: Option<&RuleName>,
) -> ExplainedStep {
    for one in examined {
        let rule = told(one, deciding);
        if step.examined.len() < EXAMINED_MAX || rule.decides {
            step.examined.push(rule);
        } else {
            step.examined_left_out += 1;
        }
    }
    step
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
        audited: examined.audited,
        peer_matches: examined.peer.matches,
        peer: examined.peer.why,
        protocol_matches: examined.protocol.matches,
        protocol: examined.protocol.why,
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
    let list = direction_name(direction);
    if audited.is_empty() {
        return format!("{list} would be denied by a policy under audit");
    }
    let names = Excerpt::of(audited, POLICIES_NAMED_MAX).joined(", ");
    format!("{list} would be denied: no rule allows it; under audit: NetworkPolicy {names}")
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
    match (rule, subject) {
        (RuleId::DEFAULT_DENY | RuleId::UNKNOWN_POD, Some(subject)) => {
            isolated(&text, compiled.isolating(subject, direction))
        }
        _ => text,
    }
}

/// A default deny and who caused it. Of a thousand policies not each is named, in every decision.
fn isolated<'a>(text: &str, by: impl IntoIterator<Item = &'a ObjectName>) -> String {
    let names = Excerpt::of(by, POLICIES_NAMED_MAX);
    if names.is_empty() {
        return text.to_owned();
    }
    format!("{text}; isolated by NetworkPolicy {}", names.joined(", "))
}

/// The policies behind a decision: the rule's, or those that isolate `subject`.
pub(super) fn policies_behind(
    compiled: &Compiled,
    rule: RuleId,
    subject: Option<Identity>,
    direction: Direction,
) -> Vec<String> {
    if let Some(RuleName::Rule { policy, .. }) = compiled.rule_name(rule) {
        return vec![policy.to_string()];
    }
    match (rule, subject) {
        (RuleId::DEFAULT_DENY | RuleId::UNKNOWN_POD, Some(subject)) => {
            names(compiled.isolating(subject, direction))
        }
        _ => Vec::new(),
    }
}

/// As many as one decision keeps.
pub(super) fn names(policies: &[ObjectName]) -> Vec<String> {
    policies.iter().take(POLICIES_NAMED_MAX).map(ToString::to_string).collect()
}
