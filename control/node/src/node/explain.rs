//! Which rule decides: the tables in force, asked as a worker asks them. For pods of other nodes,
//! whose tables are there, the objects are read instead.

use std::net::IpAddr;

use control::admin::policy::{EXAMINED_MAX, Excerpt, POLICIES_NAMED_MAX};
use control::admin::{
    AdminError, ExaminedRule, ExplainedStep, PolicyExplanation, PolicyQuestion, parse_protocol,
};
use control::compile::{Compiled, Examined, Reading, RuleName, direction_name};
use control::model::ObjectName;
use dataplane::identity::Identity;
use dataplane::lb::{Frontend, FrontendKind, TrafficPolicy};
use dataplane::policy::{Direction, Query, RuleId};

use super::Node;

/// Of several that a word stands for, so many are asked about.
const TARGETS_ASKED: usize = 100;
/// Before the number of an identity.
const IDENTITY: &str = "identity:";
/// What a node is called whose name is not known.
const ANOTHER_NODE: &str = "another node";

/// Where policy is enforced for one side of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Enforced {
    /// By the tables of this node.
    Here,
    /// On the node of this name.
    On(String),
    /// Nowhere: it is no pod.
    Nowhere,
}

/// One side of the question.
struct Side {
    shown: String,
    identity: Identity,
    enforced: Enforced,
    /// Its addresses, as far as the question tells them.
    addresses: Vec<IpAddr>,
}

/// What the target of a question stands for: addresses with their L4 ports.
struct Several {
    title: String,
    targets: Vec<(IpAddr, u16)>,
}

impl Node {
    /// Answers who may speak to whom, and by which rule. Through a service it is its backends that are
    /// spoken to, and the node at each of its addresses, which `ipBlock`s may tell apart.
    ///
    /// # Errors
    /// [`AdminError`] for a pod or identity that is not known, or a word that is none.
    pub(super) fn explain(
        &self,
        question: &PolicyQuestion,
    ) -> Result<PolicyExplanation, AdminError> {
        let from = self.side("from", &question.from)?;
        let asked = match question.to.as_str() {
            "host" => self.own_addresses(&from, question.l4_port),
            _ => self.backends(question, &from)?,
        };
        let Some(Several { title, targets }) = asked else { return self.explain_one(question) };
        let (all, mut refused) = (targets.len(), 0);
        let mut told: Option<PolicyExplanation> = None;
        for (to, l4_port) in targets.into_iter().take(TARGETS_ASKED) {
            let to = to.to_string();
            let one = self.explain_one(&PolicyQuestion { to, l4_port, ..question.clone() })?;
            refused += usize::from(!one.allowed);
            // The first that is refused tells more than those that are not.
            if told.as_ref().is_none_or(|told| told.allowed && !one.allowed) {
                told = Some(one);
            }
        }
        let count = match (all, all.min(TARGETS_ASKED)) {
            (1, _) => String::new(),
            (all, asked) => format!("{refused} of {asked} asked of {all} are refused; "),
        };
        Ok(match told {
            Some(told) => {
                let summary = format!("{title}; {count}{}", told.summary);
                PolicyExplanation { summary, ..told }
            }
            None => PolicyExplanation {
                allowed: false,
                summary: format!("{title}: there is none for this client"),
                from: self.described(&from),
                to: title,
                steps: Vec::new(),
                source_nat: None,
            },
        })
    }

    /// The backends that a client at `from` may get of the service that the question is about.
    fn backends(
        &self,
        question: &PolicyQuestion,
        from: &Side,
    ) -> Result<Option<Several>, AdminError> {
        let Ok(address) = question.to.parse::<IpAddr>() else { return Ok(None) };
        let (protocol, l4_port) = (parse_protocol(&question.protocol)?, question.l4_port);
        let services = &self.publisher.tables().services;
        let at = Frontend { address, protocol, l4_port };
        let Some((id, kind)) = services.frontends.get(&at) else { return Ok(None) };
        let Some(service) = services.get(*id) else { return Ok(None) };
        let policy = match (kind, &from.enforced) {
            (FrontendKind::ClusterIp, _) => service.internal_policy,
            (_, Enforced::Nowhere) => service.external_policy,
            _ => TrafficPolicy::Cluster,
        };
        let set = match policy {
            TrafficPolicy::Cluster => &service.cluster,
            TrafficPolicy::Local => &service.local,
        };
        let title = format!("{address} port {l4_port} is Service {}, its backends", service.name);
        let targets = set.backends.iter().map(|one| (one.address, one.l4_port)).collect();
        Ok(Some(Several { title, targets }))
    }

    /// The node's own addresses, of the families that `from` has.
    fn own_addresses(&self, from: &Side, l4_port: u16) -> Option<Several> {
        let is_asked = |own: &IpAddr| {
            from.addresses.is_empty()
                || from.addresses.iter().any(|one| one.is_ipv4() == own.is_ipv4())
        };
        let own = self.publisher.tables().forwarding.node_addresses.keys().filter(is_asked);
        let mut targets: Vec<(IpAddr, u16)> = own.map(|address| (address, l4_port)).collect();
        targets.sort_unstable();
        let title = "host is this node, its addresses".to_owned();
        (!targets.is_empty()).then_some(Several { title, targets })
    }

    fn explain_one(&self, question: &PolicyQuestion) -> Result<PolicyExplanation, AdminError> {
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
            match &subject.enforced {
                Enforced::Here => Some(self.step(direction, subject, &query)),
                Enforced::On(node) => {
                    Some(self.step_elsewhere(node, direction, (subject, peer), &query))
                }
                Enforced::Nowhere => None,
            }
        };
        let egress = ask(Direction::Egress, &from, &to);
        let ingress = ask(Direction::Ingress, &to, &from);
        let steps: Vec<ExplainedStep> = egress.into_iter().chain(ingress).collect();
        let allowed = steps.iter().all(|step| step.allowed);
        let on = format!("{}/{}", question.protocol, question.l4_port);
        let outside = to
            .addresses
            .first()
            .filter(|_| from.enforced == Enforced::Here && to.enforced == Enforced::Nowhere);
        let source_nat = outside.and_then(|to| self.seen_outside(&from.addresses, *to));
        Ok(PolicyExplanation {
            allowed,
            summary: summary(&from.shown, &to.shown, &on, &steps),
            from: self.described(&from),
            to: self.described(&to),
            steps,
            source_nat,
        })
    }

    fn described(&self, side: &Side) -> String {
        let name = self.publisher.compiled().identity_title(side.identity);
        format!("{} is identity {}: {name}", side.shown, side.identity.0)
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

    fn side(&self, field: &str, text: &str) -> Result<Side, AdminError> {
        if let Some(identity) = self.reserved(field, text)? {
            let (enforced, addresses) = (Enforced::Nowhere, Vec::new());
            return Ok(Side { shown: text.into(), identity, enforced, addresses });
        }
        if let Some(number) = text.strip_prefix(IDENTITY) {
            return self.side_of_identity(field, text, number);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.side_of_address(text, address));
        }
        let name: ObjectName = text.parse().map_err(|_| {
            let words = "write namespace/pod, an address, identity:NUMBER, host or world";
            AdminError::invalid(field, format!("{text:?}: {words}"))
        })?;
        let addresses = self.addresses_of_pod(&name)?;
        let compiled = self.publisher.compiled();
        let identity = compiled.endpoint_identity(&addresses);
        let enforced = match addresses.first() {
            Some(first) => self.enforced(*first),
            None => Enforced::Nowhere,
        };
        Ok(Side { shown: text.into(), identity, enforced, addresses })
    }

    /// The identity of what has no name of an object; `None` for other words.
    fn reserved(&self, field: &str, text: &str) -> Result<Option<Identity>, AdminError> {
        match text {
            "world" if self.publisher.compiled().names_every_address() => {
                let words = "\"world\": ipBlocks name every address: write the one that is meant";
                Err(AdminError::invalid(field, words))
            }
            "world" => Ok(Some(Identity::WORLD)),
            "host" => Ok(Some(Identity::HOST)),
            _ => Ok(None),
        }
    }

    fn side_of_identity(&self, field: &str, text: &str, number: &str) -> Result<Side, AdminError> {
        let number = number.parse().map_err(|_| {
            AdminError::invalid(field, format!("{text:?}: write a number after {IDENTITY}"))
        })?;
        let (identity, compiled) = (Identity(number), self.publisher.compiled());
        if compiled.describe_identity(identity, 1).is_none() {
            return Err(no_identity(number));
        }
        let enforced = match (compiled.is_enforced_here(identity), compiled.is_of_pods(identity)) {
            (true, _) => Enforced::Here,
            (false, true) => Enforced::On(ANOTHER_NODE.into()),
            (false, false) => Enforced::Nowhere,
        };
        Ok(Side { shown: text.into(), identity, enforced, addresses: Vec::new() })
    }

    fn side_of_address(&self, text: &str, address: IpAddr) -> Side {
        let compiled = self.publisher.compiled();
        let holder = self.endpoints.by_address(address).or_else(|| compiled.holder(address));
        let shown = match (holder, compiled.node_of(address)) {
            (Some(pod), _) => format!("{text} ({pod})"),
            (None, Some(node)) => format!("{text} (node {node})"),
            (None, None) => text.to_owned(),
        };
        let identity = compiled.identities.lookup(address);
        Side { shown, identity, enforced: self.enforced(address), addresses: vec![address] }
    }

    fn enforced(&self, address: IpAddr) -> Enforced {
        let compiled = self.publisher.compiled();
        if self.endpoints.by_address(address).is_some() || compiled.is_local_address(address) {
            return Enforced::Here;
        }
        match compiled.holder(address) {
            Some(pod) => {
                let pod = self.publisher.cluster().pods.get(pod);
                let node = pod.and_then(|pod| pod.node.as_deref());
                Enforced::On(node.unwrap_or(ANOTHER_NODE).to_owned())
            }
            None => Enforced::Nowhere,
        }
    }

    /// The addresses of a pod, here or elsewhere.
    pub(super) fn addresses_of_pod(&self, name: &ObjectName) -> Result<Vec<IpAddr>, AdminError> {
        let endpoint = self.endpoints.get(name).map(|endpoint| &*endpoint.spec.addresses);
        let pod = self.publisher.cluster().pods.get(name).map(|pod| &*pod.addresses);
        let addresses = endpoint.or(pod).filter(|addresses| !addresses.is_empty());
        addresses.map(<[IpAddr]>::to_vec).ok_or_else(|| AdminError::NotFound {
            what: "pod with an address".into(),
            name: name.to_string(),
            list_command: "xskiff endpoint list".into(),
        })
    }
}

pub(super) fn no_identity(number: u32) -> AdminError {
    AdminError::NotFound {
        what: "identity".into(),
        name: number.to_string(),
        list_command: "xskiff identity list".into(),
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
