//! From the cluster's state to the tables the workers read. Pure: the same state, node and
//! predecessor give the same result on any machine.
//!
//! Everything that did not change keeps its [`Arc`], so that publishing a small change shares all
//! the rest with the tables in force. Numbers (identities, rules, services) stay with what they
//! name for as long as it is there.
//!
//! Reading order: this file, [`identities`] (who an address is), [`policies`] (who may speak to
//! whom), [`affected`] (whose flows that changes), [`services`] and [`maglev`] (which backend a flow
//! goes to), [`explain`] (why).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::identity::{Identity, IdentityTable};
use dataplane::lb::ServiceTable;
use dataplane::policy::{Direction, Policy, RuleId};

use crate::model::ObjectName;
use crate::store::ClusterState;

pub mod affected;
pub mod explain;
pub mod identities;
mod interner;
pub mod maglev;
pub mod policies;
pub(crate) mod selectors;
pub mod services;

use affected::Decides;
use identities::Identities;
use policies::Policies;
use services::Services;

pub use affected::Affected;
pub use explain::{Examined, Finding};
pub use policies::RuleName;

/// What the node itself contributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The node's name, as Pods and EndpointSlices spell it.
    pub name: String,
    /// All its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of `addresses` that serve node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Node ports that the node redirects; a Service that asks for another is warned about.
    pub node_port_range: RangeInclusive<u16>,
    /// Local endpoints with their addresses. An endpoint is the truth about who has an address
    /// here; its Pod object, found by name, says what labels it has.
    pub endpoints: BTreeMap<ObjectName, BTreeSet<IpAddr>>,
}

impl Default for NodeView {
    fn default() -> Self {
        Self {
            name: String::new(),
            addresses: BTreeSet::new(),
            node_port_addresses: BTreeSet::new(),
            node_port_range: crate::config::NODE_PORTS_DEFAULT,
            endpoints: BTreeMap::new(),
        }
    }
}

/// Something that is in force otherwise than it was probably meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Kind, namespace and name.
    pub object: String,
    /// What, and what to do.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// The compiled state, and what the next compilation must remember of it.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// Address to identity.
    pub identities: Arc<IdentityTable>,
    /// Verdicts by identity.
    pub policy: Arc<Policy>,
    /// Frontends and backends.
    pub services: Arc<ServiceTable>,
    /// Whose flows' cached decisions may come out otherwise than with the state that this one was
    /// compiled after. Services are no part of it: they choose backends for new flows only.
    pub affected: Affected,
    /// What is in force otherwise than it was probably meant; sorted.
    pub warnings: Vec<Warning>,
    identity_memory: Identities,
    policy_memory: Policies,
    service_memory: Services,
}

impl Compiled {
    /// Whether every decision about a flow comes out as with `other`, so that cached ones stand:
    /// the tables' generation need not grow. (Services choose backends for new flows only.)
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identities, &other.identities) && Arc::ptr_eq(&self.policy, &other.policy)
    }

    /// The identity to give a local endpoint's port: that of its first address. The addresses of
    /// one endpoint differ in identity only where an `ipBlock` contains one and not the other.
    #[must_use]
    pub fn endpoint_identity(&self, addresses: &[IpAddr]) -> Identity {
        addresses.first().map_or(Identity::WORLD, |address| self.identities.lookup(*address))
    }

    /// The rule behind a number; `None` for one that is not, or no longer, in force.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> Option<RuleName> {
        self.policy_memory.rule_name(rule)
    }

    /// The policies that isolate `subject` in `direction`: the cause of a default deny. Empty for
    /// identities without a local pod.
    #[must_use]
    pub fn isolating(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.policy_memory.isolating(subject, direction)
    }

    /// The policies that would isolate `subject` in `direction` if they were not under audit.
    #[must_use]
    pub fn audited(&self, subject: Identity, direction: Direction) -> &[ObjectName] {
        self.policy_memory.audited(subject, direction)
    }

    /// What an identity stands for, for people: `host`, `world`, or the selectors that match.
    #[must_use]
    pub fn identity_name(&self, identity: Identity) -> String {
        self.identity_memory.name(identity)
    }

    /// Number of identities in force, reserved ones not counted.
    #[must_use]
    pub fn identity_count(&self) -> usize {
        self.identity_memory.len()
    }
}

/// Compiles `state` as seen from `node`, keeping what `previous` has in common with it.
#[must_use]
pub fn compile(state: &ClusterState, node: &NodeView, previous: &Compiled) -> Compiled {
    let mut warnings = BTreeSet::new();
    let (identities, identity_memory) = identities::compile(
        state,
        node,
        (&previous.identities, &previous.identity_memory),
        &mut warnings,
    );
    let (policy, policy_memory) = policies::compile(
        state,
        node,
        &identity_memory,
        (&previous.policy, &previous.policy_memory),
        &mut warnings,
    );
    let (services, service_memory) = services::compile(
        state,
        node,
        (&previous.services, &previous.service_memory),
        &mut warnings,
    );
    let before = Decides {
        table: &previous.identities,
        identities: &previous.identity_memory,
        policy: &previous.policy,
    };
    let now = Decides { table: &identities, identities: &identity_memory, policy: &policy };
    let affected = affected::between(&before, &now);
    Compiled {
        identities,
        policy,
        services,
        affected,
        warnings: warnings.into_iter().collect(),
        identity_memory,
        policy_memory,
        service_memory,
    }
}
