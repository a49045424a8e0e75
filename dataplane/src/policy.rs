//! Verdicts: may this source speak to this destination on this protocol and L4 port?
//!
//! Policy sees the source before SNAT and the backend and port after DNAT. Tables are compiled per
//! (subject identity, direction); equal tables are stored once and shared.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::address::Protocol;
use crate::identity::Identity;
use crate::shared_map::SharedMap;
use crate::table_map::TableMap;

/// Names the rule that decided; the control thread knows its object, namespace and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

impl RuleId {
    /// No policy selects the subject in this direction.
    pub const NOT_ISOLATED: Self = Self(0);
    /// The subject is isolated and no rule allows it.
    pub const DEFAULT_DENY: Self = Self(1);
    /// A pod's own node always reaches it (kubelet probes).
    pub const OWN_NODE: Self = Self(2);
    /// Nobody has told yet which pod the subject is (`policy.unknown_pods`).
    pub const UNKNOWN_POD: Self = Self(3);
    /// The first number the compiler may hand out.
    pub const FIRST_COMPILED: u32 = 16;
}

/// Which of the subject's two tables is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Toward the subject.
    Ingress,
    /// From the subject.
    Egress,
}

/// The answer, and the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Whether the packet may pass.
    pub allowed: bool,
    /// The rule that decided.
    pub rule: RuleId,
    /// It may pass only because a policy that would refuse it is under audit.
    pub audited: bool,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Query {
    /// Whose table is asked.
    pub subject: Identity,
    /// The other side.
    pub peer: Identity,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination L4 port, after DNAT; 0 for protocols without ports.
    pub l4_port: u16,
}

/// One allowance of a [`VerdictTable`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortRule {
    /// `None`: every protocol.
    pub protocol: Option<Protocol>,
    /// Destination L4 ports; the full range when the rule names none.
    pub l4_ports: RangeInclusive<u16>,
    /// What to report.
    pub rule: RuleId,
}

impl PortRule {
    fn matches(&self, protocol: Protocol, l4_port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol) && self.l4_ports.contains(&l4_port)
    }
}

/// Everything one subject allows in one direction. What it does not list is denied, by
/// [`RuleId::DEFAULT_DENY`] or, of an unknown pod, by [`RuleId::UNKNOWN_POD`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerdictTable {
    /// Allowances for particular peers.
    pub by_peer: SharedMap<Identity, Arc<[PortRule]>>,
    /// Allowances for every peer.
    pub any_peer: Box<[PortRule]>,
    /// Whether the subject is a pod that nobody has told of yet: its flows that stand go on
    /// ([`crate::decision::rejudge`]).
    pub unknown_pod: bool,
}

impl VerdictTable {
    fn judge(&self, query: &Query) -> Verdict {
        let own = self.by_peer.get(&query.peer).map_or(&[][..], |rules| rules);
        let allowing = own
            .iter()
            .chain(self.any_peer.iter())
            .find(|rule| rule.matches(query.protocol, query.l4_port));
        match allowing {
            Some(rule) => Verdict { allowed: true, rule: rule.rule, audited: false },
            None => {
                let unknown = self.unknown_pod;
                let rule = if unknown { RuleId::UNKNOWN_POD } else { RuleId::DEFAULT_DENY };
                Verdict { allowed: false, rule, audited: false }
            }
        }
    }
}

/// The tables of one subject; `None` where no policy isolates it in that direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectPolicy {
    /// Toward the subject.
    pub ingress: Option<Arc<VerdictTable>>,
    /// From the subject.
    pub egress: Option<Arc<VerdictTable>>,
    /// Toward the subject, if policies under audit were in force as well; `None` where there is
    /// none. What this alone refuses passes, and is reported.
    pub ingress_audit: Option<Arc<VerdictTable>>,
    /// From the subject, likewise.
    pub egress_audit: Option<Arc<VerdictTable>>,
}

impl SubjectPolicy {
    /// All its tables.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<VerdictTable>> {
        let enforced = self.ingress.iter().chain(&self.egress);
        enforced.chain(&self.ingress_audit).chain(&self.egress_audit)
    }
}

/// All policy in force on the node.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Subjects that some policy isolates; all others allow everything.
    pub subjects: TableMap<Identity, SubjectPolicy>,
}

impl Policy {
    /// Judges `query` for the subject's `direction`.
    #[must_use]
    pub fn judge(&self, direction: Direction, query: &Query) -> Verdict {
        let open = Verdict { allowed: true, rule: RuleId::NOT_ISOLATED, audited: false };
        if direction == Direction::Ingress && query.peer == Identity::HOST {
            return Verdict { rule: RuleId::OWN_NODE, ..open };
        }
        let Some(subject) = self.subjects.get(&query.subject) else { return open };
        let (table, audit) = match direction {
            Direction::Ingress => (&subject.ingress, &subject.ingress_audit),
            Direction::Egress => (&subject.egress, &subject.egress_audit),
        };
        let verdict = table.as_ref().map_or(open, |table| table.judge(query));
        match audit {
            Some(audit) => {
                Verdict { audited: verdict.allowed && !audit.judge(query).allowed, ..verdict }
            }
            None => verdict,
        }
    }
}
