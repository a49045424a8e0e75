//! About which addresses a decision that a flow has cached may come out otherwise than before.
//!
//! A flow between two addresses is judged again only if one of them is affected: for every other
//! pair, both verdicts are what they were, and the rules that gave them.

use std::collections::BTreeSet;
use std::net::IpAddr;

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
