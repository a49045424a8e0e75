//! Maglev's lookup tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! Every backend is given the slots of a table in a pseudo-random order of its own; in turns, each
//! takes its next free one. Shares are even, and when a backend leaves, few slots change hands
//! among those that stay. Turns go in proportion to weights. The order depends on the backend and a fixed key alone, so that every
//! node of every release builds the same table and a flow that moves to another node stays with
//! its backend.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dataplane::lb::Backend;

/// Table sizes: primes, so that every stride visits every slot. The first with at least
/// [`SLOTS_PER_BACKEND`] slots for each backend is taken, or else the last.
pub const SIZES: [usize; 10] =
    [251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_537, 131_071];

/// Slots per backend that keep shares within 1 % of each other.
pub const SLOTS_PER_BACKEND: usize = 100;

/// Largest number of backends in one set. The paper's bound on imbalance needs far fewer than
/// slots; at this many, shares still differ by less than a tenth.
pub const BACKENDS_MAX: usize = 10_000;

/// Key of the hash. Part of the protocol between nodes: never change it.
const KEY: [u64; 2] = [0x7873_6b69_6666_2e6d, 0x6167_6c65_762e_7631];

const EMPTY: u16 = u16::MAX;

/// The table for `backends`, which must be in the order the table's indices refer to and must not
/// repeat. Empty for at most one backend, where there is nothing to choose. Of more than
/// [`BACKENDS_MAX`] backends, only the first that many get slots.
#[must_use]
pub fn build(backends: &[Backend]) -> Box<[u16]> {
    let backends = &backends[..backends.len().min(BACKENDS_MAX)];
    if backends.len() <= 1 {
        return Box::default();
    }
    build_with(backends, size(backends.len()))
}

/// The same with so many slots, a prime.
fn build_with(backends: &[Backend], slots: usize) -> Box<[u16]> {
    let mut walks: Vec<Walk> = backends.iter().map(|backend| Walk::new(backend, slots)).collect();
    let mut table = vec![EMPTY; slots].into_boxed_slice();
    let mut free = slots;
    let mut take = |index: usize, walk: &mut Walk| {
        let slot = walk.next_free(&table);
        table[slot] = u16::try_from(index).unwrap_or(EMPTY);
        free -= 1;
        free > 0
    };
    if backends.iter().all(|backend| backend.weight == backends[0].weight) {
        while walks.iter_mut().enumerate().all(|(index, walk)| take(index, walk)) {}
        return table;
    }
    // All have a turn at first, so that nobody is left out; then each one's come as far apart as its
    // weight says, in whole numbers, so that every
    // machine puts them in one order; at one moment, the first by address has its turn first.
    let pause = |index: usize| PAUSE / u64::from(backends[index].weight.max(1));
    let mut turns: BinaryHeap<Reverse<(u64, usize)>> =
        (0..backends.len()).map(|index| Reverse((0, index))).collect();
    while let Some(Reverse((moment, index))) = turns.pop() {
        if !take(index, &mut walks[index]) {
            break;
        }
        turns.push(Reverse((moment + pause(index), index)));
    }
    table
}

/// Between turns of a backend of weight 1. Its 131,071st is far below 2^64, and a weight of 1000
/// differs from one of 999 in more than nine digits.
const PAUSE: u64 = 1 << 40;

fn size(backends: usize) -> usize {
    let wanted = backends * SLOTS_PER_BACKEND;
    SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

/// A backend's own order of the slots. Every other one of it is a walk of its own, in twice the
/// stride, so that a step need not wait for the one before.
struct Walk {
    next: usize,
    after_next: usize,
    stride_of_two: usize,
    slots: usize,
}

impl Walk {
    fn new(backend: &Backend, slots: usize) -> Self {
        let offset = hash(backend, KEY[0]);
        let stride = hash(backend, KEY[1]);
        let within = |value: u64, bound: usize| {
            // Multiply-shift, since `bound` is no power of two; below 2^17, so the cast is exact.
            ((u128::from(value) * bound as u128) >> 64) as usize
        };
        let (next, stride) = (within(offset, slots), 1 + within(stride, slots - 1));
        let (after_next, stride_of_two) = (step(next, stride, slots), step(stride, stride, slots));
        Self { next, after_next, stride_of_two, slots }
    }

    /// Takes the next slot that is free. There is one: the caller stops when there is none, and a
    /// stride prime to the size reaches all.
    fn next_free(&mut self, table: &[u16]) -> usize {
        loop {
            let slot = self.next;
            self.next = self.after_next;
            self.after_next = step(slot, self.stride_of_two, self.slots);
            if table[slot] == EMPTY {
                return slot;
            }
        }
    }
}

/// The slot that lies `stride` behind this one, both less than `slots`: a division costs more than all
/// the rest.
fn step(slot: usize, stride: usize, slots: usize) -> usize {
    slot.checked_sub(slots - stride).unwrap_or(slot + stride)
}

/// A 64-bit hash of the backend's address and L4 port under `key`: SplitMix64's finaliser (Steele,
/// Lea, Flood, OOPSLA 2014) over three words. Written out here because the standard library's
/// hasher may change between releases, and nodes must agree.
fn hash(backend: &Backend, key: u64) -> u64 {
    let [high, low] = match backend.address {
        std::net::IpAddr::V4(v4) => [4, u64::from(v4.to_bits())],
        std::net::IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    };
    [high, low, u64::from(backend.l4_port)].into_iter().fold(key, |state, word| mix(state ^ word))
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(seed: u32, count: u32) -> Vec<Backend> {
        (0..count)
            .map(|index| Backend {
                address: std::net::Ipv4Addr::from(0x0a00_0000 + seed * 7 + index * 3).into(),
                l4_port: 8080,
                local: index % 2 == 0,
                weight: 100,
            })
            .collect()
    }

    fn shares(table: &[u16], count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        for slot in table {
            shares[usize::from(*slot)] += 1;
        }
        shares
    }

    #[test]
    fn nothing_and_a_single_backend_need_no_table() {
        assert!(build(&[]).is_empty());
        assert!(build(&backends(0, 1)).is_empty());
    }

    #[test]
    fn sizes_are_primes_that_an_index_can_address() {
        for size in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        const { assert!(BACKENDS_MAX < EMPTY as usize) };
        assert_eq!((size(2), size(3), size(600), size(5_000)), (251, 509, 65_537, 131_071));
    }

    #[test]
    fn the_table_is_the_same_on_every_node_and_release() {
        let table = build(&backends(0, 3));
        let folded = table.iter().fold(0u64, |state, slot| mix(state ^ u64::from(*slot)));
        assert_eq!(folded, FOLDED_THREE, "nodes of different releases would disagree");
        let mut elsewhere = backends(0, 3);
        for backend in &mut elsewhere {
            backend.local = !backend.local;
        }
        assert_eq!(build(&elsewhere), table);
    }

    const FOLDED_THREE: u64 = 5_459_736_284_766_118_764;

    /// The slots of survivors that change hands when one backend leaves, of a thousand.
    fn moved(before: &[Backend], gone: usize, slots: usize) -> f64 {
        let mut after = before.to_vec();
        after.remove(gone);
        let (old, new) = (build_with(before, slots), build_with(&after, slots));
        let stay = old.iter().zip(&new).filter(|(old, _)| usize::from(**old) != gone);
        let (mut all, mut moved) = (0.0, 0.0);
        for (old, new) in stay {
            all += 1.0;
            moved += f64::from(u8::from(before[usize::from(*old)] != after[usize::from(*new)]));
        }
        moved / all * 1000.0
    }

    #[test]
    fn of_65537_slots_at_most_one_in_a_hundred_of_survivors_moves() {
        let mut most = 0.0_f64;
        for seed in 0..12 {
            let gone = (mix(u64::from(seed)) % 100) as usize;
            most = most.max(moved(&backends(seed * 7919, 100), gone, 65_537));
        }
        // Of 120 such sets 5.7 in a thousand moved in the middle one, and 6.4 at most.
        assert!(most <= 10.0, "{most} in a thousand");
    }

    #[test]
    fn shares_are_in_proportion_to_weights() {
        let weights = [100, 100, 50, 10, 300, 1, 1000];
        let mut backends = backends(5, 7);
        for (backend, weight) in backends.iter_mut().zip(weights) {
            backend.weight = weight;
        }
        let table = build_with(&backends, 65_537);
        let sum: u16 = weights.iter().sum();
        for (share, weight) in shares(&table, 7).into_iter().zip(weights) {
            let due = 65_537.0 * f64::from(weight) / f64::from(sum);
            // Everybody's first turn is nobody's weight's.
            assert!((share as f64 - due).abs() <= 7.0, "{share} slots of {due} by weight {weight}");
        }
        // Weights that are alike are none.
        let mut doubled = backends.clone();
        doubled.iter_mut().for_each(|backend| backend.weight = 7);
        let plain = self::backends(5, 7);
        assert_eq!(build(&doubled), build(&plain));
    }

    #[test]
    fn one_weighted_backend_that_leaves_moves_few_flows_of_the_others() {
        let mut backends = backends(3, 100);
        for (index, backend) in backends.iter_mut().enumerate() {
            backend.weight = [100, 50, 200][index % 3];
        }
        for gone in [0, 1, 2] {
            let moved = moved(&backends, gone, 65_537);
            assert!(moved <= 15.0, "{moved} in a thousand when {gone} leaves");
        }
    }

    #[test]
    fn a_cluster_of_fifty_thousand_services_fits_into_256_mebibytes() {
        let bytes = |backends: u32, services: usize| {
            let set = self::backends(1, backends);
            let table = build(&set);
            // For all backends and for those of this node, at worst as many again.
            2 * services * (size_of_val(&*table) + size_of_val(&*set))
        };
        let mib = |bytes: usize| bytes >> 20;
        assert!(mib(bytes(5, 50_000)) <= 256, "{} MiB of small ones", mib(bytes(5, 50_000)));
        let mixed = bytes(1, 40_000) + bytes(20, 9_500) + bytes(40, 500);
        assert!(mib(mixed) <= 256, "{} MiB of mixed ones", mib(mixed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn shares_differ_by_a_few_percent_at_most(seed in 0u32..1_000_000, count in 2u32..160) {
            let table = build(&backends(seed, count));
            let shares = shares(&table, count as usize);
            let even = table.len() / count as usize;
            for share in shares {
                // Turns give everybody the same but for the last, unfinished one.
                prop_assert!(share.abs_diff(even) <= 1, "{share} of {even}");
            }
        }

        #[test]
        fn one_of_a_hundred_that_leaves_moves_few_flows_of_the_others(
            seed in 0u32..1_000_000,
            gone in 0usize..100,
        ) {
            let before = backends(seed, 100);
            let mut after = before.clone();
            after.remove(gone);
            let (old, new) = (build(&before), build(&after));
            prop_assert_eq!(old.len(), new.len());
            let survivors = old.iter().filter(|slot| usize::from(**slot) != gone).count();
            let moved = old
                .iter()
                .zip(&new)
                .filter(|(old, _)| usize::from(**old) != gone)
                .filter(|(old, new)| before[usize::from(**old)] != after[usize::from(**new)])
                .count();
            // Of 4,000 such sets 1.3 % moved in the middle one, and 2.4 % at most.
            prop_assert!(moved * 25 <= survivors, "{moved} of {survivors} slots moved");
        }
    }
}
