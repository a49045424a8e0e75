//! Identities and policies: what is asked about them, and the answers.
//!
//! A cluster may have a hundred thousand identities and thousands of policies, and what objects say
//! in them may be long. So listings come in pages, every list within an answer is an [`Excerpt`]
//! that tells how much it leaves out, and texts of objects are cut.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::AdminError;
use super::status::Verdict;

/// Rows of one answer, at most: the next ones are asked for with what `next` says.
pub const ROWS_MAX: u32 = 1000;
/// Policies that are named where many share one effect, such as a default deny.
pub const POLICIES_NAMED_MAX: usize = 8;
/// Rules of one step of an explanation, at most; those that decide are always among them.
pub const EXAMINED_MAX: usize = 1000;
/// Longest text of a selector, a peer or a list of ports, in bytes.
pub const TEXT_BYTES_MAX: usize = 400;

/// The first of a list, and how many it leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt<T> {
    /// Those that are told.
    pub first: Vec<T>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<T> Default for Excerpt<T> {
    fn default() -> Self {
        Self { first: Vec::new(), left_out: 0 }
    }
}

impl<T> Excerpt<T> {
    /// The first `length_max` of `all`.
    pub fn of(all: impl IntoIterator<Item = T>, length_max: usize) -> Self {
        let mut all = all.into_iter();
        let first = all.by_ref().take(length_max).collect();
        Self { first, left_out: all.count() as u64 }
    }

    /// How many there are in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.first.len() as u64 + self.left_out
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: fmt::Display> Excerpt<T> {
    /// In one line, with `between` between two.
    #[must_use]
    pub fn joined(&self, between: &str) -> String {
        let mut parts: Vec<String> = self.first.iter().map(ToString::to_string).collect();
        if self.left_out > 0 {
            parts.push(format!("{} more", self.left_out));
        }
        parts.join(between)
    }
}

/// Which identities to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityPage {
    /// Rows, 1 to [`ROWS_MAX`].
    pub limit: u32,
    /// Only numbers above this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
}

/// Which identity is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityQuestion {
    /// A number, an address, or `namespace/pod`.
    pub what: String,
    /// Length of each list in the answer, 1 to [`ROWS_MAX`].
    pub limit: u32,
}

/// Which policies to list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyPage {
    /// Only those of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Rows, 1 to [`ROWS_MAX`].
    pub limit: u32,
    /// Only those that come after `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// How policy stands as a whole, in a namespace, or one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyStatusQuestion {
    /// `namespace/name`; absent: all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only those of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Length of each list in the answer, 1 to [`ROWS_MAX`].
    pub limit: u32,
}

/// Who may speak to whom?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyQuestion {
    /// `namespace/pod`, an address, `identity:NUMBER`, `host` or `world`.
    pub from: String,
    /// `namespace/pod`, an address, `identity:NUMBER`, `host` or `world`.
    pub to: String,
    /// Destination L4 port, after DNAT.
    pub l4_port: u16,
    /// `tcp`, `udp`, `sctp` or a protocol number.
    pub protocol: String,
}

pub(super) fn validate_limit(limit: u32) -> Result<(), AdminError> {
    if (1..=ROWS_MAX).contains(&limit) {
        return Ok(());
    }
    Err(AdminError::invalid("limit", format!("choose 1 to {ROWS_MAX}")))
}

/// Identities in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityListing {
    /// By number, the reserved ones first.
    pub rows: Vec<IdentityInfo>,
    /// How many there are in all.
    pub total: u64,
    /// Where the next page begins: `after` of the next question; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// An identity that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundIdentity {
    /// The addresses that were asked about and have it; none when its number was given.
    pub of: Vec<IpAddr>,
    /// The identity.
    pub identity: IdentityInfo,
}

/// Everything that policy can tell about some addresses, and which those are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityInfo {
    /// Its number on this node.
    pub number: u32,
    /// `host`, `remote-node`, `world`, `pod` and so on.
    pub kind: String,
    /// Whether the number is the same on every node, always.
    pub reserved: bool,
    /// Addresses that have it by themselves. Of `world` these are few: it is everybody else.
    pub addresses: u64,
    /// Of those, addresses of pods on this node, whose policy is enforced here.
    pub addresses_here: u64,
    /// Some of the addresses, the lowest ones, with who has them.
    pub examples: Excerpt<AddressInfo>,
    /// Ranges whose other addresses have it, by `ipBlock`s.
    pub ranges: Excerpt<String>,
    /// The selectors of policies that match it: they make it what it is.
    pub selectors: Excerpt<SelectorInfo>,
    /// Ports that policies name, as its pods number them: `http 8080/tcp`.
    pub named_ports: Excerpt<String>,
    /// Policies that isolate it toward itself, under audit or not; of pods on this node.
    pub isolated_ingress: Excerpt<String>,
    /// Policies that isolate it from itself on, under audit or not; of pods on this node.
    pub isolated_egress: Excerpt<String>,
}

/// An address and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressInfo {
    /// The address.
    pub address: IpAddr,
    /// `namespace/pod`, or the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

impl fmt::Display for AddressInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.of {
            Some(name) => write!(f, "{} ({name})", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// A selector, and which policies use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectorInfo {
    /// `pods app=web of namespace shop`, `10.0.0.0/8 except 10.1.0.0/16`.
    pub selector: String,
    /// Where.
    pub used_by: Excerpt<SelectorUse>,
}

/// A place in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectorUse {
    /// `namespace/policy`.
    pub policy: String,
    /// `spec.podSelector`, `spec.ingress[0].from`.
    pub field: String,
}

impl fmt::Display for SelectorUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.policy, self.field)
    }
}

/// NetworkPolicies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyListing {
    /// By namespace and name.
    pub rows: Vec<PolicyInfo>,
    /// How many there are in all, or in the namespace that was asked for.
    pub total: u64,
    /// Where the next page begins: `after` of the next question; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// NetworkPolicies of which nothing is in force, with the reason.
    pub refused: Excerpt<PolicyProblem>,
}

/// A NetworkPolicy in one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// `namespace/name`.
    pub name: String,
    /// `spec.podSelector`, as read.
    pub selector: String,
    /// Pods on this node that it selects.
    pub pods_here: u64,
    /// Pods of the cluster that it selects, as far as they have addresses of their own.
    pub pods: u64,
    /// Rules toward the pods; absent where it does not isolate them in that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rules: Option<u64>,
    /// Rules from the pods on; absent where it does not isolate them in that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rules: Option<u64>,
    /// Whether what it refuses passes here and is reported.
    pub audited: bool,
    /// What says so: the annotation of `NetworkPolicy`, `Namespace` or `Node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited_by: Option<String>,
    /// In what it is not in force as it is written, or probably not as it was meant.
    pub problems: Excerpt<String>,
}

/// A policy that is not in force as it is written, or probably not as it was meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// `namespace/name`.
    pub policy: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How policy stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The verdict, first.
    pub verdict: Verdict,
    /// Policies in force.
    pub policies: u64,
    /// Of those, ones under audit here.
    pub policies_audited: u64,
    /// Their rules.
    pub rules: u64,
    /// Selectors that they use, each once.
    pub selectors: u64,
    /// Identities that the selectors make, reserved ones not counted.
    pub identities: u64,
    /// Pods on this node.
    pub endpoints: u64,
    /// Of those, ones isolated toward themselves.
    pub isolated_ingress: u64,
    /// Of those, ones isolated from themselves on.
    pub isolated_egress: u64,
    /// What is not in force as it is written.
    pub problems: Excerpt<PolicyProblem>,
    /// The policy that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyDetail>,
}

/// A NetworkPolicy in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDetail {
    /// In one line.
    pub info: PolicyInfo,
    /// Pods on this node that it isolates, or would if it were not under audit.
    pub endpoints: Excerpt<IsolatedEndpoint>,
    /// Its rules, as read.
    pub rules: Excerpt<RuleInfo>,
    /// Decisions among those that are kept by which a pod that it isolates was denied something.
    pub denied: u64,
    /// The same of what it would deny if it were not under audit.
    pub would_deny: u64,
}

/// A pod that a policy isolates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolatedEndpoint {
    /// `namespace/pod`.
    pub name: String,
    /// Its identity's number.
    pub identity: u32,
    /// Toward itself.
    pub ingress: bool,
    /// From itself on.
    pub egress: bool,
    /// Whether its labels are not known, so that it is isolated and no rule counts for it.
    #[serde(default)]
    pub unknown: bool,
}

/// A rule of a policy, as read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// `ingress` or `egress`.
    pub direction: String,
    /// Place in `spec.ingress` or `spec.egress`, from 0.
    pub index: u32,
    /// Its `from` or `to`; empty: everybody.
    pub peers: Excerpt<PeerInfo>,
    /// Its `ports`, named ones with the numbers that they have now; empty: every port.
    pub ports: Excerpt<String>,
    /// Flows that stand now because of it.
    #[serde(default)]
    pub flows: u64,
}

/// One entry of a rule's `from` or `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// `pods app=web of namespace shop`, `10.0.0.0/8 except 10.1.0.0/16`.
    pub peer: String,
    /// Pods that it selects now, as far as they have addresses of their own.
    pub pods: u64,
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pods {
            1 => write!(f, "{} (1 pod)", self.peer),
            pods => write!(f, "{} ({pods} pods)", self.peer),
        }
    }
}

/// Which rule decides, in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyExplanation {
    /// Both directions allow it.
    pub allowed: bool,
    /// One sentence.
    pub summary: String,
    /// Who speaks, as policy sees it.
    #[serde(default)]
    pub from: String,
    /// Who is spoken to, as policy sees it.
    #[serde(default)]
    pub to: String,
    /// The sender's egress, then the receiver's ingress; absent where the side is no pod.
    pub steps: Vec<ExplainedStep>,
    /// As what a pod of this node is seen at an address outside, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_nat: Option<String>,
}

/// The decision in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Whose policy is asked.
    pub subject: String,
    /// Whether it allows.
    pub allowed: bool,
    /// `namespace/policy`, the rule's place in it, or why there is none.
    pub rule: String,
    /// Where another node decides: its name, or that it is another one. The verdict is then what
    /// the objects say that this node knows, and no table's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// What would become of it if the policies under audit were enforced as well; absent without
    /// any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_allow: Option<bool>,
    /// Every rule that was looked at, in order; at most [`EXAMINED_MAX`].
    #[serde(default)]
    pub examined: Vec<ExaminedRule>,
    /// Rules that were looked at and are not told, for there are too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub examined_left_out: u64,
}

/// One rule that was looked at. It allows when peer and port both match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExaminedRule {
    /// `namespace/policy`.
    pub policy: String,
    /// Place in `spec.ingress` or `spec.egress`, from 0; absent where the policy has none that
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Whether the policy is under audit, so that it neither isolates nor allows.
    #[serde(default)]
    pub audited: bool,
    /// Whether the other side is in the rule's `from` or `to`.
    pub peer_matches: bool,
    /// What matched, or what none of did.
    pub peer: String,
    /// Whether the protocol is in the rule's `ports`.
    #[serde(default)]
    pub protocol_matches: bool,
    /// The protocols of the rule's `ports`.
    #[serde(default)]
    pub protocol: String,
    /// Whether protocol and port are in the rule's `ports`.
    pub port_matches: bool,
    /// What matched, or what none of did.
    pub port: String,
    /// Whether this is the rule that is reported as deciding.
    pub decides: bool,
}

/// Who caused drops.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DropCause {
    /// The rule, or the default deny and the policies that isolate the pod.
    pub rule: String,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Decisions among those that are kept.
    pub decisions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_says_how_much_it_leaves_out() {
        let excerpt = Excerpt::of(["a", "b", "c", "d"], 2);
        assert_eq!((excerpt.first.len(), excerpt.left_out, excerpt.len()), (2, 2, 4));
        assert_eq!(excerpt.joined(", "), "a, b, 2 more");
        assert_eq!(Excerpt::of(["a"], 2).joined(", "), "a");
        assert!(Excerpt::<u8>::default().is_empty());
        let json = serde_json::to_value(&excerpt).unwrap();
        assert_eq!(json, serde_json::json!({"first": ["a", "b"], "left_out": 2}));
    }

    #[test]
    fn a_page_has_one_row_at_least_and_a_thousand_at_most() {
        assert!(validate_limit(1).is_ok() && validate_limit(ROWS_MAX).is_ok());
        for limit in [0, ROWS_MAX + 1] {
            let error = validate_limit(limit).unwrap_err().to_string();
            assert!(error.contains("1 to 1000"), "{error}");
        }
    }
}
