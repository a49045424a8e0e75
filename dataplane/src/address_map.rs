//! Maps from addresses, with a part for each family.
//!
//! Asked with an [`IpAddr`], but kept by number: an `IpAddr` lies in memory as a tag and octets, and
//! to read it as a whole right after it was put together waits for the processor's store buffer,
//! which is longer than the look into the table. An IPv6 address is kept as two halves, since a slot
//! with a number of 16 octets would be aligned to as many, and a third of it empty.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::flow_key::halves;
use crate::shared_map::{self, SharedMap};

/// A map from addresses, whose copies share what they have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressMap<T> {
    v4: SharedMap<u32, T>,
    v6: SharedMap<Halves, T>,
}

/// The bits of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Halves {
    high: u64,
    low: u64,
}

impl From<Ipv6Addr> for Halves {
    #[inline(always)]
    fn from(address: Ipv6Addr) -> Self {
        let (high, low) = halves(address.to_bits());
        Self { high, low }
    }
}

impl From<Halves> for IpAddr {
    fn from(Halves { high, low }: Halves) -> Self {
        Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
    }
}

/// A set of addresses.
pub type AddressSet = AddressMap<()>;

/// How far somebody has come who goes through an [`AddressMap`] a little at a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    v4: shared_map::Place,
    v6: shared_map::Place,
}

impl<T> Default for AddressMap<T> {
    fn default() -> Self {
        Self { v4: SharedMap::default(), v6: SharedMap::default() }
    }
}

impl<T> AddressMap<T> {
    /// What `address` maps to.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, address: &IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address.to_bits()),
            IpAddr::V6(address) => self.v6.get(&Halves::from(*address)),
        }
    }

    /// Asks for the line of memory where `address` is looked for first.
    #[inline(always)]
    pub fn prefetch(&self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4.prefetch(&address.to_bits()),
            IpAddr::V6(address) => self.v6.prefetch(&address.into()),
        }
    }

    /// Whether `address` maps to anything.
    #[inline(always)]
    #[must_use]
    pub fn contains_key(&self, address: &IpAddr) -> bool {
        self.get(address).is_some()
    }

    /// Every address with what it maps to, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &T)> {
        let v4 = self.v4.iter().map(|(bits, value)| (Ipv4Addr::from_bits(*bits).into(), value));
        let v6 = self.v6.iter().map(|(bits, value)| (IpAddr::from(*bits), value));
        v4.chain(v6)
    }

    /// The same as [`SharedMap::next_from`].
    pub fn next_from(&self, place: &mut Place) -> Option<(IpAddr, &T)> {
        let v4 = self.v4.next_from(&mut place.v4);
        let v4 = v4.map(|(bits, value)| (Ipv4Addr::from_bits(*bits).into(), value));
        v4.or_else(|| {
            let v6 = self.v6.next_from(&mut place.v6);
            v6.map(|(bits, value)| (IpAddr::from(*bits), value))
        })
    }

    /// Every address, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = IpAddr> {
        self.iter().map(|(address, _)| address)
    }

    /// Addresses in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Addresses that `other` has not, in no particular order. What both share is not looked at.
    pub fn keys_apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = IpAddr> + 'a {
        let v4 = self.v4.keys_apart(&other.v4).map(|bits| Ipv4Addr::from_bits(*bits).into());
        let v6 = self.v6.keys_apart(&other.v6).map(|bits| IpAddr::from(*bits));
        v4.chain(v6)
    }

    /// Shards that `other` does not share: what a change has copied.
    #[must_use]
    pub fn shards_of_its_own(&self, other: &Self) -> usize {
        self.v4.shards_of_its_own(&other.v4) + self.v6.shards_of_its_own(&other.v6)
    }
}

impl<T: Clone> AddressMap<T> {
    /// An empty map with room for so many addresses of each family, IPv4 first.
    #[must_use]
    pub fn with_capacity([v4, v6]: [usize; 2]) -> Self {
        Self { v4: SharedMap::with_capacity(v4), v6: SharedMap::with_capacity(v6) }
    }

    /// Sets what `address` maps to; returns what it was before.
    pub fn insert(&mut self, address: IpAddr, value: T) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.insert(address.to_bits(), value),
            IpAddr::V6(address) => self.v6.insert(address.into(), value),
        }
    }

    /// Takes `address` out.
    pub fn remove(&mut self, address: &IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => self.v4.remove(&address.to_bits()),
            IpAddr::V6(address) => self.v6.remove(&Halves::from(*address)),
        }
    }

    /// Everything that an address maps to, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.v4.values_mut().chain(self.v6.values_mut())
    }
}

impl AddressSet {
    /// Whether `address` is one of them.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.contains_key(address)
    }
}

impl<T: Clone> Extend<(IpAddr, T)> for AddressMap<T> {
    fn extend<I: IntoIterator<Item = (IpAddr, T)>>(&mut self, entries: I) {
        for (address, value) in entries {
            self.insert(address, value);
        }
    }
}

impl<T: Clone> FromIterator<(IpAddr, T)> for AddressMap<T> {
    fn from_iter<I: IntoIterator<Item = (IpAddr, T)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        addresses.into_iter().map(|address| (address, ())).collect()
    }
}

impl<const N: usize> From<[IpAddr; N]> for AddressSet {
    fn from(addresses: [IpAddr; N]) -> Self {
        addresses.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_kept_apart_and_listed_together() {
        let four: IpAddr = "10.0.0.1".parse().expect("an address");
        let six: IpAddr = "::a00:1".parse().expect("an address");
        let mut map: AddressMap<u8> = [(four, 4)].into_iter().collect();
        assert_eq!((map.get(&four), map.get(&six)), (Some(&4), None));
        assert_eq!(map.insert(six, 6), None);
        assert_eq!(map.insert(four, 5), Some(4));
        let mut all: Vec<_> = map.iter().map(|(address, value)| (address, *value)).collect();
        all.sort();
        assert_eq!(all, [(four, 5), (six, 6)]);
        let mut place = Place::default();
        let walked: Vec<_> = std::iter::from_fn(|| map.next_from(&mut place)).collect();
        assert_eq!(walked, [(four, &5), (six, &6)]);
        assert_eq!((map.remove(&four), map.len()), (Some(5), 1));
        let set = AddressSet::from([six]);
        assert!(set.contains(&six) && !set.contains(&four));
    }
}
