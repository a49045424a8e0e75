//! About which addresses a decision that a flow has cached may come out otherwise than before.
//!
//! A flow between two addresses is judged again only if one of them is affected: for every other
//! pair, both verdicts are what they were, and the rules that gave them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::identity::{Identity, IdentityTable};
use dataplane::policy::{Policy, SubjectPolicy, VerdictTable};

use super::identities::Identities;

/// Addresses that are told one by one; of more, [`Affected::Everything`] is told.
pub const AFFECTED_MAX: usize = 1024;

/// Whose flows must be judged again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Affected {
    /// Nobody's.
    #[default]
    Nothing,
    /// Those that one of these addresses is an end of: at least one and at most [`AFFECTED_MAX`].
    Addresses(BTreeSet<IpAddr>),
    /// All of them.
    Everything,
}

impl Affected {
    /// Adds what a further change affects.
    pub fn merge(&mut self, more: Self) {
        match more {
            Self::Nothing => {}
            Self::Addresses(more) => more.into_iter().for_each(|address| self.add(address)),
            Self::Everything => *self = Self::Everything,
        }
    }

    /// Adds an address; one too many makes it everything.
    pub fn add(&mut self, address: IpAddr) {
        match self {
            Self::Nothing => *self = Self::Addresses([address].into()),
            Self::Addresses(known) => {
                if known.insert(address) && known.len() > AFFECTED_MAX {
                    *self = Self::Everything;
                }
            }
            Self::Everything => {}
        }
    }

    /// Whether flows of `address` must be judged again.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Nothing => false,
            Self::Addresses(known) => known.contains(&address),
            Self::Everything => true,
        }
    }
}

/// What of one moment decides: the tables, and what their numbers stand for.
pub(super) struct Decides<'a> {
    pub(super) table: &'a IdentityTable,
    pub(super) identities: &'a Identities,
    pub(super) policy: &'a Policy,
}

impl Decides<'_> {
    /// Whether some address may have `identity`.
    fn uses(&self, identity: Identity) -> bool {
        identity.0 < Identity::FIRST_COMPILED || self.identities.by_number.contains_key(&identity)
    }

    fn subject(&self, identity: Identity) -> SubjectPolicy {
        self.policy.subjects.get(&identity).cloned().unwrap_or_default()
    }
}

/// What differs between two moments.
pub(super) fn between(old: &Decides<'_>, new: &Decides<'_>) -> Affected {
    // A range that means something else means it for more addresses than can be told.
    if old.identities.prefixes != new.identities.prefixes {
        return Affected::Everything;
    }
    let mut affected = Affected::default();
    for address in old.table.exact.keys().chain(new.table.exact.keys()) {
        if old.table.lookup(address) != new.table.lookup(address) {
            affected.add(address);
        }
    }
    let subjects: BTreeSet<Identity> =
        old.policy.subjects.keys().chain(new.policy.subjects.keys()).copied().collect();
    // Addresses whose number came or went are affected already, and nobody else is judged by it.
    let stays = &|identity: &Identity| old.uses(*identity) && new.uses(*identity);
    for identity in subjects.into_iter().filter(stays) {
        let (before, after) = (old.subject(identity), new.subject(identity));
        let pairs = [
            (&before.ingress, &after.ingress),
            (&before.egress, &after.egress),
            (&before.ingress_audit, &after.ingress_audit),
            (&before.egress_audit, &after.egress_audit),
        ];
        if !pairs.into_iter().all(|(before, after)| judge_alike(before, after, stays)) {
            let local = [old, new].map(|moment| moment.identities.local.get(&identity));
            local.into_iter().flatten().flatten().for_each(|address| affected.add(*address));
        }
    }
    affected
}

/// Whether both say the same about every peer whose number stays.
fn judge_alike(
    before: &Option<Arc<VerdictTable>>,
    after: &Option<Arc<VerdictTable>>,
    stays: impl Fn(&Identity) -> bool,
) -> bool {
    let (before, after) = match (before, after) {
        (None, None) => return true,
        (Some(before), Some(after)) => (before, after),
        _ => return false,
    };
    let alike = |peer: &Identity| before.by_peer.get(peer) == after.by_peer.get(peer);
    let mut peers = before.by_peer.keys().chain(after.by_peer.keys());
    before.any_peer == after.any_peer && peers.all(|peer| alike(peer) || !stays(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    #[test]
    fn one_address_too_many_makes_it_everything() {
        let mut affected = Affected::default();
        assert!(!affected.contains(address(0)));
        let most = u32::try_from(AFFECTED_MAX).expect("a small bound");
        (0..most).for_each(|number| affected.add(address(number)));
        affected.add(address(0));
        assert!(affected.contains(address(most - 1)) && !affected.contains(address(most)));
        affected.merge(Affected::Addresses([address(most)].into()));
        assert_eq!(affected, Affected::Everything);
        affected.merge(Affected::Nothing);
        assert!(affected.contains(address(most + 1)));
    }
}
