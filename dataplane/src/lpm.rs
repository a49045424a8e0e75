//! Longest-prefix match over IPv4 and IPv6.
//!
//! One hash map per prefix length in use, probed from the longest: a node's tables use a handful
//! of lengths, so a miss costs a handful of probes, and building is a plain insert.

use std::hash::Hash;
use std::net::IpAddr;

use crate::shared_map::SharedMap;

/// An address prefix. Bits beyond `length` are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that contains `address`; `None` when `length` exceeds the
    /// family's 32 or 128 bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(address)).then(|| Self { address: masked(address, length), length })
    }

    /// The prefix that holds `address` alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }

    /// The first address of the prefix.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that count.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` lies within.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.length) == self.address
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[derive(Debug, Clone)]
struct Level<K, T> {
    length: u8,
    entries: SharedMap<K, T>,
}

/// A table from [`Prefix`] to `T`, both families.
#[derive(Debug, Clone)]
pub struct PrefixTable<T> {
    /// Longest first.
    v4: Vec<Level<u32, T>>,
    v6: Vec<Level<u128, T>>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T: Clone> PrefixTable<T> {
    /// Sets `prefix` to `value`; returns what it was before.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        match prefix.address {
            IpAddr::V4(a) => level(&mut self.v4, prefix.length).insert(a.to_bits(), value),
            IpAddr::V6(a) => level(&mut self.v6, prefix.length).insert(a.to_bits(), value),
        }
    }
}

impl<T> PrefixTable<T> {
    /// The value of the longest prefix that contains `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(a) => self.v4.iter().find_map(|level| {
                let mask = u32::MAX.checked_shl(32 - u32::from(level.length)).unwrap_or(0);
                level.entries.get(&(a.to_bits() & mask))
            }),
            IpAddr::V6(a) => self.v6.iter().find_map(|level| {
                let mask = u128::MAX.checked_shl(128 - u32::from(level.length)).unwrap_or(0);
                level.entries.get(&(a.to_bits() & mask))
            }),
        }
    }

    /// Every prefix with its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        let v4 = self.v4.iter().flat_map(|level| {
            level.entries.iter().map(move |(bits, value)| {
                (Prefix { address: IpAddr::V4((*bits).into()), length: level.length }, value)
            })
        });
        let v6 = self.v6.iter().flat_map(|level| {
            level.entries.iter().map(move |(bits, value)| {
                (Prefix { address: IpAddr::V6((*bits).into()), length: level.length }, value)
            })
        });
        v4.chain(v6)
    }

    /// Number of prefixes, both families.
    #[must_use]
    pub fn len(&self) -> usize {
        let v4: usize = self.v4.iter().map(|level| level.entries.len()).sum();
        v4 + self.v6.iter().map(|level| level.entries.len()).sum::<usize>()
    }

    /// Whether there is no prefix at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl<T: PartialEq> PartialEq for PrefixTable<T> {
    /// What is shared is not looked at.
    fn eq(&self, other: &Self) -> bool {
        same_levels(&self.v4, &other.v4) && same_levels(&self.v6, &other.v6)
    }
}

impl<T: Eq> Eq for PrefixTable<T> {}

fn same_levels<K: Eq + Hash, T: PartialEq>(one: &[Level<K, T>], other: &[Level<K, T>]) -> bool {
    let same = |(one, other): (&Level<K, T>, &Level<K, T>)| {
        one.length == other.length && one.entries == other.entries
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

impl<T: Clone> FromIterator<(Prefix, T)> for PrefixTable<T> {
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(pairs: I) -> Self {
        let mut table = Self::default();
        for (prefix, value) in pairs {
            table.insert(prefix, value);
        }
        table
    }
}

fn level<K, T>(levels: &mut Vec<Level<K, T>>, length: u8) -> &mut SharedMap<K, T> {
    let index = match levels.binary_search_by(|level| length.cmp(&level.length)) {
        Ok(index) => index,
        Err(index) => {
            levels.insert(index, Level { length, entries: SharedMap::default() });
            index
        }
    };
    &mut levels[index].entries
}
