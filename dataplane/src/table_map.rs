//! Maps of the published tables: from addresses, frontends and identities to what is known of them.
//!
//! A new flow asks a dozen of them, so their hash is one multiplication for all that IPv4 needs.
//! Their keys come from the cluster's objects, not from packets; what packets choose is looked up
//! here, and inserted only in the flow table, under a secret key.

use std::hash::{BuildHasherDefault, Hasher};

/// A map of the published tables.
pub type TableMap<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<TableHasher>>;

/// Gathers what a key writes in one word, and mixes it at the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct TableHasher(u64);

/// The odd numbers nearest to 2^64 divided by the golden ratio and by the square root of two.
const MULTIPLIERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xb504_f333_f9de_6485];

impl TableHasher {
    /// Rotates by more than any two fields of a key overlap in their lower bits.
    #[inline(always)]
    fn gather(&mut self, word: u64) {
        self.0 = self.0.rotate_left(21) ^ word;
    }
}

impl Hasher for TableHasher {
    #[inline(always)]
    fn finish(&self) -> u64 {
        fold(self.0 ^ MULTIPLIERS[1], MULTIPLIERS[0])
    }

    /// An address's octets: 4 or 16 of them.
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) {
        if let Some(address) = bytes.as_array::<4>() {
            self.gather(u32::from_ne_bytes(*address).into());
        } else {
            let (words, rest) = bytes.as_chunks::<8>();
            for word in words {
                self.mix(u64::from_ne_bytes(*word));
            }
            rest.iter().for_each(|byte| self.gather((*byte).into()));
        }
    }

    #[inline(always)]
    fn write_u8(&mut self, value: u8) {
        self.gather(value.into());
    }

    #[inline(always)]
    fn write_u16(&mut self, value: u16) {
        self.gather(value.into());
    }

    #[inline(always)]
    fn write_u32(&mut self, value: u32) {
        self.gather(value.into());
    }

    #[inline(always)]
    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    #[inline(always)]
    fn write_u128(&mut self, value: u128) {
        let (high, low) = crate::flow_key::halves(value);
        self.mix(high);
        self.mix(low);
    }

    /// Lengths of octets and numbers of variants: an address's family shows in its octets.
    #[inline(always)]
    fn write_usize(&mut self, _: usize) {}

    #[inline(always)]
    fn write_isize(&mut self, _: isize) {}
}

impl TableHasher {
    #[inline(always)]
    fn mix(&mut self, word: u64) {
        self.0 = fold(self.0.rotate_left(21) ^ word ^ MULTIPLIERS[1], MULTIPLIERS[0]);
    }
}

/// Both halves of the product: its upper bits depend on all of both factors, its lower ones do not.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let (high, low) = crate::flow_key::halves(u128::from(a) * u128::from(b));
    high ^ low
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, Hash};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::address::Protocol;
    use crate::lb::Frontend;

    fn hash(key: impl Hash) -> u64 {
        BuildHasherDefault::<TableHasher>::default().hash_one(key)
    }

    /// Keys of which so many buckets of a table twice their number hold any, in percent; random
    /// hashes leave 39 %.
    fn percent_of_buckets(hashes: &[u64]) -> usize {
        let buckets = (2 * hashes.len()).next_power_of_two();
        let mut used = vec![false; buckets];
        let last = buckets as u64 - 1;
        hashes.iter().for_each(|hash| used[usize::try_from(hash & last).expect("small")] = true);
        used.iter().filter(|used| **used).count() * 100 / buckets
    }

    #[test]
    fn addresses_and_frontends_of_a_cluster_are_spread() {
        let pods: Vec<_> = (0..1 << 15)
            .map(|pod| hash(IpAddr::from(Ipv4Addr::from_bits(0x0a01_0000 + pod))))
            .collect();
        let pods6: Vec<_> = (0..1u128 << 15)
            .map(|pod| hash(IpAddr::from(Ipv6Addr::from_bits((0xfd00 << 112) + (pod << 16) + 1))))
            .collect();
        let frontends: Vec<_> = (0..1 << 15)
            .map(|service| Frontend {
                address: Ipv4Addr::from_bits(0x0a60_0000 + service / 4).into(),
                protocol: if service & 1 == 0 { Protocol::TCP } else { Protocol::UDP },
                l4_port: if service & 2 == 0 { 80 } else { 443 },
            })
            .map(hash)
            .collect();
        let identities: Vec<_> = (256..256u32 + (1 << 15)).map(hash).collect();
        for (name, hashes) in
            [("pods", pods), ("pods6", pods6), ("frontends", frontends), ("numbers", identities)]
        {
            assert!(percent_of_buckets(&hashes) >= 37, "{name}");
            let mut tags = [0; 128];
            hashes.iter().for_each(|hash| tags[(hash >> 57) as usize] += 1);
            assert!(tags.iter().all(|count| (128..512).contains(count)), "{name}: {tags:?}");
        }
    }
}
