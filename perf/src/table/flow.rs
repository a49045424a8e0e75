//! The flows: numbers, made into tuples by arithmetic, so that every subject gets the same ones and
//! every answer can be checked.
//!
//! An entry is the key, the tuple of the other direction, and four words that [`Tail`] names; with
//! padding 64 bytes for IPv4 and 128 for IPv6. A subject that keeps keys apart keeps the rest.

use crate::spread::splitmix;
use std::hash::{Hash, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Words of an IPv4 tuple: addresses; ports and protocol.
pub const V4: usize = 2;
/// Words of an IPv6 tuple: source, destination; ports and protocol.
pub const V6: usize = 5;
/// Words of an IPv4 entry, of which the key is [`V4`].
pub const V4_ENTRY: usize = 8;
/// Words of an IPv6 entry, of which the key is [`V6`].
pub const V6_ENTRY: usize = 16;
/// What a packet adds to the bytes of its flow.
const FRAME_BYTES: u64 = 60;

/// Addresses, ports and protocol, in `K` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<const K: usize>(pub [u64; K]);

/// Word for word: a derived hash would also feed the length, which is always the same.
impl<const K: usize> Hash for Tuple<K> {
    #[inline(always)]
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.iter().for_each(|word| hasher.write_u64(*word));
    }
}

impl<const K: usize> Tuple<K> {
    /// The tuple of flow `number` as its client sends it: one of 65,536 clients to one of 4,096
    /// services. No two numbers have the same.
    pub fn original(number: u32) -> Self {
        let ends = Ends::of(number);
        Self::pack((CLIENTS | ends.client, ends.client_port), (SERVICES | ends.service, ends.port))
    }

    /// The tuple of its replies: from a pod to a translated client. None is an original one.
    pub fn alias(number: u32) -> Self {
        let ends = Ends::of(number);
        let client = (TRANSLATED | ends.client, ends.client_port);
        Self::pack((PODS | ends.service, ends.port), client)
    }

    /// A tuple that no flow has: from the same client to a port where nothing listens.
    pub fn absent(number: u32) -> Self {
        let ends = Ends::of(number);
        let service = (SERVICES | ends.service, NOBODYS_PORT);
        Self::pack((CLIENTS | ends.client, ends.client_port), service)
    }

    fn pack(source: (u32, u16), destination: (u32, u16)) -> Self {
        let mut words = [0; K];
        let (from, to) = (u64::from(source.0), u64::from(destination.0));
        match &mut words[..K - 1] {
            [addresses] => *addresses = from << 32 | to,
            addresses => {
                for (word, value) in addresses.iter_mut().zip([PREFIX, from, PREFIX, to]) {
                    *word = value;
                }
            }
        }
        words[K - 1] = u64::from(source.1) << 48 | u64::from(destination.1) << 32 | TCP;
        Self(words)
    }
}

const CLIENTS: u32 = 0x0a00_0000;
const SERVICES: u32 = 0x0a60_0000;
const PODS: u32 = 0x0a80_0000;
const TRANSLATED: u32 = 0x6440_0000;
const PREFIX: u64 = 0xfd00_0000_0000_0001;
const TCP: u64 = 6;
const SERVICE_PORTS: [u16; 8] = [80, 443, 8080, 53, 5432, 6379, 9092, 3306];
const NOBODYS_PORT: u16 = 9;

struct Ends {
    client: u32,
    client_port: u16,
    service: u32,
    port: u16,
}

impl Ends {
    fn of(number: u32) -> Self {
        let client = scattered(number);
        let service = splitmix(number.into());
        Self {
            client: client & 0xffff,
            client_port: (client >> 16) as u16,
            service: (service & 0xfff) as u32,
            port: SERVICE_PORTS[(service >> 12 & 7) as usize],
        }
    }
}

/// A permutation of the 32-bit numbers (MurmurHash3's finaliser).
fn scattered(number: u32) -> u32 {
    let number = (number ^ (number >> 16)).wrapping_mul(0x85eb_ca6b);
    let number = (number ^ (number >> 13)).wrapping_mul(0xc2b2_ae35);
    number ^ (number >> 16)
}

/// A flow to insert.
#[derive(Debug, Clone, Copy)]
pub struct Flow<const K: usize> {
    /// What it is found under.
    pub key: Tuple<K>,
    /// The other direction's tuple, which it is found under as well when there are two keys.
    pub alias: Tuple<K>,
    /// What tells it from all others: [`state_of`] its number.
    pub state: u64,
}

impl<const K: usize> Flow<K> {
    /// Flow `number`.
    pub fn new(number: u32) -> Self {
        let (key, alias) = (Tuple::original(number), Tuple::alias(number));
        Self { key, alias, state: state_of(number) }
    }

    /// All of its entry but the first `SKIPPED` words, in `W` words.
    pub fn words<const W: usize, const SKIPPED: usize>(&self, now: u64) -> [u64; W] {
        let tail = [now, self.state, 0, 0];
        let all = self.key.0.iter().chain(&self.alias.0).chain(&tail).skip(SKIPPED);
        let mut words = [0; W];
        words.iter_mut().zip(all).for_each(|(word, value)| *word = *value);
        words
    }
}

/// What the entry of flow `number` holds to be known by.
pub fn state_of(number: u32) -> u64 {
    splitmix(u64::from(number) ^ 0x5851_f42d_4c95_7f2d)
}

/// The words of an entry that change, and its state.
#[derive(Debug, Clone, Copy)]
pub struct Tail<'t>(&'t [AtomicU64; 4]);

impl<'t> Tail<'t> {
    /// The tail of an entry of which `words` are all but the first `skipped` ones.
    #[inline(always)]
    pub fn of<const K: usize>(words: &'t [AtomicU64], skipped: usize) -> Option<Self> {
        words.get(2 * K - skipped..)?.first_chunk().map(Self)
    }

    /// When it ends.
    #[inline(always)]
    pub fn deadline(self) -> u64 {
        self.0[0].load(Relaxed)
    }

    /// What it is known by.
    #[inline(always)]
    pub fn state(self) -> u64 {
        self.0[1].load(Relaxed)
    }

    /// Its packets.
    pub fn packets(self) -> u64 {
        self.0[2].load(Relaxed)
    }

    /// What a packet changes. Two workers that do it at once may lose one's packet.
    #[inline(always)]
    pub fn update(self, now: u64) {
        let [deadline, _, packets, bytes] = self.0;
        deadline.store(now, Relaxed);
        packets.store(packets.load(Relaxed) + 1, Relaxed);
        bytes.store(bytes.load(Relaxed) + FRAME_BYTES, Relaxed);
    }
}

/// What lookups found: to be compared with what they must.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries.
    pub found: u64,
    /// The sum of their states, modulo 2^64.
    pub states: u64,
    /// The sum of their packets.
    pub packets: u64,
}

impl Tally {
    /// Counts an entry.
    #[inline(always)]
    pub fn add(&mut self, state: u64, packets: u64) {
        self.found += 1;
        self.states = self.states.wrapping_add(state);
        self.packets += packets;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Flow, Tuple, V4, V4_ENTRY, V6};

    #[test]
    fn no_two_tuples_are_the_same() {
        fn check<const K: usize>() {
            let numbers = 0..100_000;
            let all = numbers.clone().flat_map(|number| {
                [Tuple::<K>::original(number), Tuple::alias(number), Tuple::absent(number)]
            });
            assert_eq!(all.collect::<HashSet<_>>().len(), 300_000);
        }
        check::<V4>();
        check::<V6>();
    }

    #[test]
    fn an_entry_without_its_key_is_its_rest() {
        let flow = Flow::<V4>::new(7);
        let whole: [u64; V4_ENTRY] = flow.words::<V4_ENTRY, 0>(9);
        let rest: [u64; V4_ENTRY - V4] = flow.words::<{ V4_ENTRY - V4 }, V4>(9);
        assert_eq!(whole[V4..], rest);
        assert_eq!(whole[4..6], [9, flow.state]);
    }
}
