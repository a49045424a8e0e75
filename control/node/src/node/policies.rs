//! What clients are told of identities and policies: what is compiled, with what sources refuse of
//! it, what flows stand by it, and what was lately decided by it.

use std::net::IpAddr;

use control::admin::AdminError;
use control::admin::policy::{
    Excerpt, FoundIdentity, IdentityListing, IdentityPage, IdentityQuestion, PolicyDetail,
    PolicyListing, PolicyPage, PolicyProblem, PolicyStatus, PolicyStatusQuestion,
};
use control::admin::status::{Level, ObjectError, Verdict};
use control::compile::inventory::Problems;
use control::compile::{RuleName, direction_name};
use control::model::ObjectName;
use dataplane::identity::Identity;
use dataplane::policy::RuleId;

use super::Node;
use super::explain::sides::no_identity;
use crate::workers::monotonic_now;

/// What errors about policies begin with.
const KIND: &str = "NetworkPolicy ";

fn size(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn parse(field: &str, name: &str) -> Result<ObjectName, AdminError> {
    name.parse().map_err(|error: control::model::ObjectNameError| {
        AdminError::invalid(field, error.to_string())
    })
}

impl Node {
    pub(super) fn identity_list(&self, page: &IdentityPage) -> IdentityListing {
        self.publisher.compiled().list_identities(size(page.limit), page.after)
    }

    /// The identity of a number or an address, or those that a pod's addresses have.
    pub(super) fn identity_get(
        &self,
        question: &IdentityQuestion,
    ) -> Result<Vec<FoundIdentity>, AdminError> {
        let compiled = self.publisher.compiled();
        let describe = |identity: Identity, of: Vec<IpAddr>| {
            let described = compiled.describe_identity(identity, size(question.limit));
            let identity = described.ok_or_else(|| no_identity(identity.0))?;
            Ok(FoundIdentity { of, identity })
        };
        if let Ok(number) = question.what.parse::<u32>() {
            return Ok(vec![describe(Identity(number), Vec::new())?]);
        }
        let addresses = match question.what.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let name = question.what.parse::<ObjectName>().map_err(|_| {
                    let words = "write a number, an address, or namespace/pod";
                    AdminError::invalid("what", format!("{:?}: {words}", question.what))
                })?;
                self.addresses_of_pod(&name)?
            }
        };
        let mut found: Vec<(Identity, Vec<IpAddr>)> = Vec::new();
        for address in addresses {
            let identity = compiled.identities.lookup(address);
            match found.iter_mut().find(|(known, _)| *known == identity) {
                Some((_, of)) => of.push(address),
                None => found.push((identity, vec![address])),
            }
        }
        found.into_iter().map(|(identity, of)| describe(identity, of)).collect()
    }

    pub(super) fn policy_list(&self, page: &PolicyPage) -> Result<PolicyListing, AdminError> {
        let after = page.after.as_deref().map(|name| parse("after", name)).transpose()?;
        let part = (size(page.limit), after.as_ref());
        let refused = self.refused_policies();
        Ok(self.publisher.compiled().list_policies(page.namespace.as_deref(), part, &refused))
    }

    /// How policy stands as a whole, or one policy.
    pub(super) fn policy_status(
        &mut self,
        question: &PolicyStatusQuestion,
    ) -> Result<PolicyStatus, AdminError> {
        self.log_events();
        let refused = self.refused_policies();
        let limit = size(question.limit);
        let name = question.name.as_deref().map(|name| parse("name", name)).transpose()?;
        let mut status = self.policy_totals(question.namespace.as_deref(), &refused, limit);
        let Some(name) = name else {
            status.verdict = verdict_of_all(&status);
            return Ok(status);
        };
        let compiled = self.publisher.compiled();
        let Some(mut detail) = compiled.policy_detail(&name, limit, &refused) else {
            let Some(messages) = refused.get(&name) else {
                return Err(AdminError::NotFound {
                    what: "NetworkPolicy".into(),
                    name: name.to_string(),
                    list_command: "xskiff policy list".into(),
                });
            };
            let why = messages.join("; ");
            let summary = format!("nothing of NetworkPolicy {name} is in force: {why}");
            let next_step = "mend the object; it is read again by itself".into();
            status.verdict = Verdict { level: Level::Degraded, summary, next_step };
            return Ok(status);
        };
        self.count_flows(&name, &mut detail);
        let shown = name.to_string();
        detail.denied = self.flows.decided_by(&shown, "dropped");
        detail.would_deny = self.flows.decided_by(&shown, "audited");
        let problems = detail.info.problems.first.iter();
        status.problems = Excerpt {
            first: problems
                .map(|message| PolicyProblem { policy: shown.clone(), message: message.clone() })
                .collect(),
            left_out: detail.info.problems.left_out,
        };
        status.verdict = verdict_of_one(&detail);
        status.policy = Some(detail);
        Ok(status)
    }

    fn policy_totals(
        &self,
        namespace: Option<&str>,
        refused: &Problems,
        limit: usize,
    ) -> PolicyStatus {
        let compiled = self.publisher.compiled();
        let rules = |rules: &Option<Vec<_>>| rules.as_ref().map_or(0, Vec::len) as u64;
        let audited = |policy: &control::model::NetworkPolicy| compiled.is_under_audit(policy);
        let tables = &self.publisher.tables().policy.subjects;
        let isolated: Vec<(bool, bool)> = self
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let identity = compiled.endpoint_identity(&endpoint.spec.addresses);
                let policy = tables.get(&identity)?;
                Some((policy.ingress.is_some(), policy.egress.is_some()))
            })
            .collect();
        let count = |side: fn(&(bool, bool)) -> bool| {
            isolated.iter().filter(|one| side(one)).count() as u64
        };
        PolicyStatus {
            policies: compiled.policies_of(namespace).count() as u64,
            policies_audited: compiled.policies_of(namespace).filter(|one| audited(one)).count()
                as u64,
            rules: compiled
                .policies_of(namespace)
                .map(|policy| rules(&policy.ingress) + rules(&policy.egress))
                .sum(),
            selectors: compiled.selector_count() as u64,
            identities: compiled.identity_count() as u64,
            endpoints: self.endpoints.len() as u64,
            isolated_ingress: count(|one| one.0),
            isolated_egress: count(|one| one.1),
            problems: compiled.policy_problems(namespace, refused, limit),
            ..PolicyStatus::default()
        }
    }

    /// Flows that stand by each rule of the policy. Of a flow that two rules let pass, one is known.
    fn count_flows(&self, name: &ObjectName, detail: &mut PolicyDetail) {
        let mut flows: std::collections::BTreeMap<RuleId, u64> = std::collections::BTreeMap::new();
        self.workers.flows().for_each(monotonic_now(), |flow| {
            *flows.entry(flow.origin.rule).or_default() += 1;
        });
        for (rule, count) in flows {
            let known = self.publisher.compiled().rule_name(rule);
            let Some(RuleName::Rule { policy, direction, index }) = known else { continue };
            if policy != *name {
                continue;
            }
            let mut rules = detail.rules.first.iter_mut();
            let own = rules.find(|own| {
                own.direction == direction_name(direction)
                    && usize::try_from(own.index).is_ok_and(|own| own == index)
            });
            if let Some(own) = own {
                own.flows += count;
            }
        }
    }

    /// What sources do not take of policies as they are written.
    fn refused_policies(&self) -> Problems {
        let report = self.cluster.report();
        let kubernetes = report.kubernetes.map(|reporter| reporter.status().refused);
        let mut problems = Problems::new();
        let all = report.manifests.errors.into_iter().chain(kubernetes.into_iter().flatten());
        for ObjectError { object, message, .. } in all {
            let name = object.strip_prefix(KIND).and_then(|name| name.parse().ok());
            if let Some(name) = name {
                problems.entry(name).or_default().push(message);
            }
        }
        problems
    }
}

fn verdict_of_all(status: &PolicyStatus) -> Verdict {
    let problems = status.problems.len();
    if let Some(first) = status.problems.first.first() {
        return Verdict {
            level: Level::Degraded,
            summary: format!(
                "{problems} {} with policies, the first of NetworkPolicy {}: {}",
                if problems == 1 { "problem" } else { "problems" },
                first.policy,
                first.message
            ),
            next_step: "mend what is named below; it is read again by itself".into(),
        };
    }
    let (summary, next_step) = match status.policies {
        0 => (
            "no NetworkPolicy is in force: every pod may speak to everybody".to_owned(),
            "nothing, unless you expected one: `kubectl get networkpolicies -A`",
        ),
        policies => (
            format!(
                "{policies} {} in force; of {} pods here {} are isolated toward themselves, {} from \
                 themselves on",
                if policies == 1 { "policy is" } else { "policies are" },
                status.endpoints,
                status.isolated_ingress,
                status.isolated_egress
            ),
            "nothing; `xskiff policy list` names them, `xskiff flows --verdict dropped` what they \
             drop",
        ),
    };
    Verdict { level: Level::Ok, summary, next_step: next_step.into() }
}

fn verdict_of_one(detail: &PolicyDetail) -> Verdict {
    let info = &detail.info;
    if let Some(first) = info.problems.first.first() {
        return Verdict {
            level: Level::Degraded,
            summary: format!("NetworkPolicy {}: {first}", info.name),
            next_step: "mend the object; it is read again by itself".into(),
        };
    }
    let (namespace, _) = info.name.split_once('/').unwrap_or_default();
    let here = detail.endpoints.len();
    let (summary, next_step) = if info.audited {
        (
            format!("it is under audit: it isolates nobody, and would isolate {here} pods here"),
            "see what it would refuse (`xskiff flows --verdict audited`), then take the annotation \
             xskiff.io/policy-mode away"
                .to_owned(),
        )
    } else if here > 0 {
        (
            format!("it isolates {here} {} here", if here == 1 { "pod" } else { "pods" }),
            format!(
                "nothing; `xskiff policy explain --from POD --to {} --port PORT` tells who may \
                 speak to it",
                detail.endpoints.first.first().map_or("POD", |endpoint| &endpoint.name)
            ),
        )
    } else if info.pods > 0 {
        (
            format!("it selects no pod of this node, and {} of the cluster", info.pods),
            "ask a node that has one of them".to_owned(),
        )
    } else {
        (
            "it selects no pod".to_owned(),
            format!(
                "compare its spec.podSelector with the labels of the pods: `kubectl get pods \
                 --show-labels -n {namespace}`"
            ),
        )
    };
    Verdict { level: Level::Ok, summary, next_step }
}
