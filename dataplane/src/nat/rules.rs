//! Explicit source translation: chosen pods leave with a chosen address.
//!
//! A rule outranks masquerade, the first that matches decides, and it concerns only what leaves the
//! cluster: toward pods, services and nodes a pod has its own address, whatever rules say, since
//! policy elsewhere goes by it.

use std::net::IpAddr;

use crate::flow_key::{halves, mix};
use crate::lpm::Prefix;

/// Rules there may be. A new flow of a pod to the outside looks through them in order.
pub const SNAT_RULES_MAX: usize = 64;
/// Entries of each list of a rule.
pub const SNAT_LIST_MAX: usize = 16;
/// Addresses that rules may translate to, those that they did since the process began included:
/// flows go on by these.
pub const SNAT_ADDRESSES_MAX: usize = 256;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnatRule {
    /// Pods by their addresses.
    pub sources: Box<[Prefix]>,
    /// Where they speak to; empty: wherever they would be masqueraded.
    pub destinations: Box<[Prefix]>,
    /// Addresses to translate to, of either family. Of several, a pod has one toward everybody (RFC
    /// 4787, REQ-2). With none of a family, what matches is dropped: with another address it would
    /// be taken for somebody else.
    pub to: Box<[IpAddr]>,
}

impl SnatRule {
    /// Whether it is for what `source` sends to `destination`, which `is_masqueraded` unless a rule
    /// says otherwise.
    pub(super) fn matches(
        &self,
        source: IpAddr,
        destination: IpAddr,
        is_masqueraded: bool,
    ) -> bool {
        let within = |ranges: &[Prefix], address| ranges.iter().any(|one| one.contains(address));
        let is_meant = match &*self.destinations {
            [] => is_masqueraded,
            ranges => within(ranges, destination),
        };
        is_meant && within(&self.sources, source)
    }

    /// The address that `source` has toward `destination`'s family: always the same one, and when
    /// addresses come or go, those of few sources change (rendezvous hashing).
    pub(super) fn address_for(&self, source: IpAddr, destination: IpAddr) -> Option<IpAddr> {
        let of_family = |to: &&IpAddr| to.is_ipv4() == destination.is_ipv4();
        let weight = |to: &&IpAddr| mix(folded(source).rotate_left(23) ^ folded(**to));
        self.to.iter().filter(of_family).max_by_key(weight).copied()
    }
}

fn folded(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => mix(u64::from(v4.to_bits())),
        IpAddr::V6(v6) => {
            let (high, low) = halves(v6.to_bits());
            mix(mix(high).rotate_left(23) ^ low)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn rule(to: &[&str]) -> SnatRule {
        SnatRule { to: to.iter().map(|text| address(text)).collect(), ..SnatRule::default() }
    }

    #[test]
    fn source_has_one_address_of_each_family_and_few_change_when_one_is_added() {
        let three = rule(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.3"]);
        let four = rule(&["192.0.2.3", "192.0.2.4", "192.0.2.2", "192.0.2.1"]);
        let (outside, outside6) = (address("198.51.100.1"), address("2001:db8:1::1"));
        let (mut changed, mut used) = (0, std::collections::BTreeMap::new());
        for low in 0..=255u8 {
            let source = IpAddr::from([10, 1, 0, low]);
            let own = three.address_for(source, outside).expect("there is one");
            *used.entry(own).or_insert(0) += 1;
            assert_eq!(three.address_for(source, outside6), Some(address("2001:db8::1")));
            let then = four.address_for(source, outside);
            changed += u32::from(then != Some(own));
            assert!(then == Some(own) || then == Some(address("192.0.2.4")));
        }
        assert!(used.len() == 3 && used.values().all(|sources| *sources > 50), "{used:?}");
        assert!((30..100).contains(&changed), "{changed} of 256 changed");
        assert_eq!(rule(&["192.0.2.1"]).address_for(address("fd00::1"), outside6), None);
    }
}
