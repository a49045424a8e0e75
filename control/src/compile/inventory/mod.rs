//! What there is, for people: identities with the selectors that make them, policies with whom they
//! select, services with what is behind them. Everything is read off what is compiled, at the moment it is asked for.
//!
//! Bounded in every direction, since a cluster may have many of each: pages of a listing, excerpts
//! of lists, texts cut. What it costs is a look at every address and every policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::identity::Identity;
use hashbrown::HashMap;

use super::Compiled;
use super::claims::Claim;
use super::identities::Kind;
use super::selectors::SelectorId;
use crate::admin::policy::{AddressInfo, Excerpt, TEXT_BYTES_MAX};
use crate::model::ObjectName;
use crate::shown::cut;

mod identities;
mod policies;
mod services;

pub use policies::Problems;
pub use services::policy_name;

/// What an object says, cut where it is long.
pub(super) fn text(shown: &impl ToString) -> String {
    cut(&shown.to_string(), TEXT_BYTES_MAX)
}

/// Addresses of some identities: how many, and the lowest of them.
struct Census {
    by_identity: HashMap<Identity, (u64, BTreeSet<IpAddr>)>,
}

impl Census {
    /// Looks at every address that is somebody's.
    fn of(compiled: &Compiled, wanted: &BTreeSet<Identity>, examples: usize) -> Self {
        let mut by_identity: HashMap<Identity, (u64, BTreeSet<IpAddr>)> =
            wanted.iter().map(|identity| (*identity, (0, BTreeSet::new()))).collect();
        for (address, holder) in compiled.identities.exact.iter() {
            let Some((count, lowest)) = by_identity.get_mut(&holder.identity) else { continue };
            *count += 1;
            let is_low = lowest.len() < examples || lowest.last().is_some_and(|l| address < *l);
            if is_low && lowest.insert(address) && lowest.len() > examples {
                lowest.pop_last();
            }
        }
        Self { by_identity }
    }

    fn count(&self, identity: Identity) -> u64 {
        self.by_identity.get(&identity).map_or(0, |(count, _)| *count)
    }

    fn examples(&self, compiled: &Compiled, identity: Identity) -> Excerpt<AddressInfo> {
        let Some((count, lowest)) = self.by_identity.get(&identity) else {
            return Excerpt::default();
        };
        let first: Vec<_> = lowest.iter().map(|address| compiled.address_info(*address)).collect();
        let left_out = count.saturating_sub(first.len() as u64);
        Excerpt { first, left_out }
    }
}

/// How many pods have each identity, by their first address.
fn pods_by_identity(compiled: &Compiled) -> HashMap<Identity, u64> {
    let mut pods: HashMap<Identity, u64> = HashMap::new();
    for (name, pod) in &compiled.state.pods {
        let (Some(claim), Some(address)) = (Claim::of(pod), pod.addresses.first()) else {
            continue;
        };
        // Of one that is ending the address may be another's already.
        let is_its_own = claim != Claim::Ending || compiled.holder(*address) == Some(name);
        if is_its_own {
            *pods.entry(compiled.identities.lookup(*address)).or_default() += 1;
        }
    }
    pods
}

/// How many of those pods `selector` selects.
fn pods_with(compiled: &Compiled, pods: &HashMap<Identity, u64>, selector: SelectorId) -> u64 {
    let members = compiled.known.members(selector);
    members.filter_map(|identity| pods.get(&identity)).sum()
}

impl Compiled {
    /// What an identity stands for, cut where selectors are long.
    #[must_use]
    pub fn identity_title(&self, identity: Identity) -> String {
        text(&self.identity_name(identity))
    }

    /// The pod that has `address`; `None` for a node's, and for nobody's.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&ObjectName> {
        match self.node_kind(address) {
            Some(_) => None,
            None => self.claims.holder(address, &mut BTreeSet::new()),
        }
    }

    /// The node that has `address`.
    #[must_use]
    pub fn node_of(&self, address: IpAddr) -> Option<&str> {
        match self.node_kind(address)? {
            Kind::Host => Some(&self.node.name),
            _ => self.node_addresses.holder(address),
        }
    }

    fn address_info(&self, address: IpAddr) -> AddressInfo {
        let node = || self.node_of(address).map(|name| format!("node {name}"));
        AddressInfo { address, of: self.holder(address).map(ToString::to_string).or_else(node) }
    }

    /// Pods of this node with `identity`, each with its first address that has it.
    fn pods_here(&self, identity: Identity) -> BTreeMap<&ObjectName, IpAddr> {
        let addresses = self.known.local.get(&identity).into_iter().flatten().rev();
        addresses.filter_map(|address| Some((self.holder(*address)?, *address))).collect()
    }
}
