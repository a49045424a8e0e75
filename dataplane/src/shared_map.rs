//! Maps of the published tables that grow with the cluster: a copy shares all shards but those that
//! are changed.
//!
//! A root of tables is replaced at every change, and most changes concern one address of a hundred
//! thousand. So entries lie in shards by their hash, some hundred in each, and a shard is copied
//! when it is written while another root has it. Within a shard the slots are probed one after the
//! other: a lookup reads the shard's place, then the slot, which is less than a general map needs.

use std::hash::{BuildHasher, BuildHasherDefault, Hash};
use std::sync::Arc;

use crate::table_map::TableHasher;

/// Entries of a shard, on average, beyond which there are twice as many shards: of 150,000 addresses a
/// change copies 4 KB, and a root's list of shards is 32 KB.
const ENTRIES_PER_SHARD: usize = 128;

/// Slots, a power of two of them; at most three quarters are used.
type Slots<K, V> = Arc<[Option<(K, V)>]>;

#[derive(Debug)]
struct Shard<K, V> {
    slots: Slots<K, V>,
    used: usize,
}

impl<K, V> Clone for Shard<K, V> {
    fn clone(&self) -> Self {
        Self { slots: Arc::clone(&self.slots), used: self.used }
    }
}

/// A map whose copies share what they have in common.
#[derive(Debug)]
pub struct SharedMap<K, V> {
    /// None, or a power of two.
    shards: Box<[Shard<K, V>]>,
    /// The power.
    bits: u32,
    len: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), bits: self.bits, len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { shards: Box::default(), bits: 0, len: 0 }
    }
}

/// How far somebody has come who goes through a [`SharedMap`] a little at a time; at first, at its
/// beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    shard: usize,
    slot: usize,
}

#[inline(always)]
fn hash(key: &impl Hash) -> u64 {
    BuildHasherDefault::<TableHasher>::default().hash_one(key)
}

/// Where a key with this hash begins to be looked for. The upper bits chose the shard.
#[inline(always)]
fn home(hash: u64, slots: usize) -> usize {
    usize::try_from(hash & (slots as u64).wrapping_sub(1)).unwrap_or(0)
}

impl<K: Eq + Hash, V> SharedMap<K, V> {
    /// What `key` maps to.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let hash = hash(key);
        let slots = &*self.shards.get(self.shard_of(hash))?.slots;
        let mut at = home(hash, slots.len());
        // One slot at least is free; the bound is for what cannot be.
        for _ in 0..slots.len() {
            match slots.get(at)? {
                Some((own, value)) if own == key => return Some(value),
                Some(_) => at = home(at as u64 + 1, slots.len()),
                None => return None,
            }
        }
        None
    }

    /// Asks for the lines of memory where `key` is looked for first, without waiting for them: one
    /// lookup of three goes beyond a line, by the slot's own length or by others in its way.
    #[inline(always)]
    pub fn prefetch(&self, key: &K) {
        let hash = hash(key);
        let Some(shard) = self.shards.get(self.shard_of(hash)) else { return };
        let first = home(hash, shard.slots.len());
        for slot in [first, first + 2] {
            shard.slots.get(slot).into_iter().for_each(flow_table::prefetch);
        }
    }

    /// Whether `key` maps to anything.
    #[inline(always)]
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The upper bits, which the place within a shard does not depend on.
    #[inline(always)]
    fn shard_of(&self, hash: u64) -> usize {
        usize::try_from(hash >> 1 >> (63 - self.bits)).unwrap_or(0)
    }
}

impl<K, V> SharedMap<K, V> {
    /// Every entry, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let slots = self.shards.iter().flat_map(|shard| shard.slots.iter());
        slots.flatten().map(|(key, value)| (key, value))
    }

    /// The entry at `place` or the next behind it; `place` is behind that then. Of a map that is changed
    /// between two calls some entries may be met twice, or not at all.
    pub fn next_from(&self, place: &mut Place) -> Option<(&K, &V)> {
        while let Some(shard) = self.shards.get(place.shard) {
            while let Some(slot) = shard.slots.get(place.slot) {
                place.slot += 1;
                if let Some((key, value)) = slot {
                    return Some((key, value));
                }
            }
            *place = Place { shard: place.shard + 1, slot: 0 };
        }
        None
    }

    /// Every key, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Shards with entries that `other` may not have.
    fn shards_apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Shard<K, V>> {
        let is_shared = |place: usize, shard: &Shard<K, V>| {
            let other = other.shards.get(place).filter(|_| self.bits == other.bits);
            other.is_some_and(|other| Arc::ptr_eq(&shard.slots, &other.slots))
        };
        let all = self.shards.iter().enumerate();
        all.filter(move |(place, shard)| !is_shared(*place, shard)).map(|(_, shard)| shard)
    }

    /// Every value, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Entries in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Shards that `other` does not share: what a change has copied.
    #[must_use]
    pub fn shards_of_its_own(&self, other: &Self) -> usize {
        let same = |place: usize, shard: &Shard<K, V>| {
            other.shards.get(place).is_some_and(|other| Arc::ptr_eq(&shard.slots, &other.slots))
        };
        self.shards.iter().enumerate().filter(|(place, shard)| !same(*place, shard)).count()
    }
}

impl<K: Eq + Hash + Clone, V: Clone> SharedMap<K, V> {
    /// An empty map with room for `entries`, in as many shards as they would come to lie in.
    #[must_use]
    pub fn with_capacity(entries: usize) -> Self {
        if entries == 0 {
            return Self::default();
        }
        let count = entries.div_ceil(ENTRIES_PER_SHARD).next_power_of_two();
        let shard = || Shard { slots: filled(std::iter::empty(), entries / count), used: 0 };
        let shards = std::iter::repeat_with(shard).take(count).collect();
        Self { shards, bits: count.ilog2(), len: 0 }
    }

    /// Sets what `key` maps to; returns what it was before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(std::mem::replace(known, value));
        }
        if self.len >= self.shards.len() * ENTRIES_PER_SHARD {
            self.split();
        }
        let hash = hash(&key);
        let place = self.shard_of(hash);
        if let Some(shard) = self.shards.get_mut(place) {
            shard.make_room();
            if let Some(slots) = Arc::get_mut(&mut shard.slots) {
                put(slots, hash, (key, value));
            } else {
                put(Arc::make_mut(&mut shard.slots), hash, (key, value));
            }
            shard.used += 1;
            self.len += 1;
        }
        None
    }

    /// What `key` maps to, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        // Nothing is copied where there is nothing to be changed.
        self.get(key)?;
        let hash = hash(key);
        let place = self.shard_of(hash);
        let slots = Arc::make_mut(&mut self.shards.get_mut(place)?.slots);
        let (start, length) = (home(hash, slots.len()), slots.len());
        let place = (0..length)
            .map(|step| home((start + step) as u64, length))
            .find(|at| slots[*at].as_ref().is_none_or(|(own, _)| own == key))?;
        slots[place].as_mut().map(|(_, value)| value)
    }

    /// Takes `key` out. The rest of its shard is put anew, so that no gap hides what lies behind.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let removed = self.get(key)?.clone();
        let place = self.shard_of(hash(key));
        let shard = self.shards.get_mut(place)?;
        let others = shard.slots.iter().flatten().filter(|(own, _)| own != key);
        let used = shard.used - 1;
        *shard = Shard { slots: filled(others.cloned(), used), used };
        self.len -= 1;
        Some(removed)
    }

    /// Everything that a key maps to, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let slots =
            self.shards.iter_mut().flat_map(|shard| Arc::make_mut(&mut shard.slots).iter_mut());
        slots.flatten().map(|(_, value)| value)
    }

    /// Twice as many shards.
    fn split(&mut self) {
        let bits = if self.shards.is_empty() { 0 } else { self.bits + 1 };
        let mut drafts: Vec<Vec<(K, V)>> = vec![Vec::new(); 1 << bits];
        let empty = Self { bits, ..Self::default() };
        for (key, value) in self.iter() {
            drafts[empty.shard_of(hash(key))].push((key.clone(), value.clone()));
        }
        let shards = drafts.into_iter().map(|entries| {
            let used = entries.len();
            Shard { slots: filled(entries.into_iter(), used), used }
        });
        *self = Self { shards: shards.collect(), bits, len: self.len };
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Shard<K, V> {
    /// Makes sure that one more entry leaves enough slots free.
    fn make_room(&mut self) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            self.slots = filled(self.slots.iter().flatten().cloned(), self.used + 1);
        }
    }
}

/// Slots for `used` entries, about half of them free, with `entries` in them.
fn filled<K: Hash + Clone, V: Clone>(
    entries: impl Iterator<Item = (K, V)>,
    used: usize,
) -> Slots<K, V> {
    let mut slots = vec![None; (used * 3 / 2 + 1).next_power_of_two()];
    for entry in entries {
        let hash = hash(&entry.0);
        put(&mut slots, hash, entry);
    }
    slots.into()
}

/// Puts an entry whose key is not there yet into the next free slot; there is one.
fn put<K, V>(slots: &mut [Option<(K, V)>], hash: u64, entry: (K, V)) {
    let (start, length) = (home(hash, slots.len()), slots.len());
    let mut places = (0..length).map(|step| home((start + step) as u64, length));
    if let Some(free) = places.find(|at| slots[*at].is_none()) {
        slots[free] = Some(entry);
    }
}

impl<K: Eq + Hash, V> SharedMap<K, V> {
    /// Keys that `other` has not, in no particular order. What is shared is not looked at.
    pub fn keys_apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a K> {
        let entries = self.shards_apart(other).flat_map(|shard| shard.slots.iter().flatten());
        entries.map(|(key, _)| key).filter(|key| !other.contains_key(key))
    }
}

impl<K: Eq + Hash, V: PartialEq> PartialEq for SharedMap<K, V> {
    /// What is shared is not looked at.
    fn eq(&self, other: &Self) -> bool {
        let own = self.shards_apart(other);
        let mut entries = own.flat_map(|shard| shard.slots.iter().flatten());
        self.len == other.len && entries.all(|(key, value)| other.get(key) == Some(value))
    }
}

impl<K: Eq + Hash, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Eq + Hash + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn sorted(map: &SharedMap<u32, u32>) -> Vec<(u32, u32)> {
        let mut all: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn it_is_the_map_that_an_ordered_one_is_and_copies_stay_as_they_were(
            steps in prop::collection::vec((0u32..600, 0u8..4), 1..2000),
        ) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let mut before = (map.clone(), Vec::new());
            for (number, (key, what)) in (0u32..).zip(steps) {
                match what {
                    0 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    1 => {
                        let (one, other) = (map.get_mut(&key), model.get_mut(&key));
                        prop_assert_eq!(&one, &other);
                        if let (Some(one), Some(other)) = (one, other) {
                            (*one, *other) = (number, number);
                        }
                    }
                    _ => prop_assert_eq!(map.insert(key, number), model.insert(key, number)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.len(), model.len());
                if number % 64 == 0 {
                    prop_assert_eq!(sorted(&before.0), before.1);
                    before = (map.clone(), sorted(&map));
                    prop_assert!(before.0 == map);
                }
            }
            prop_assert_eq!(sorted(&map), model.clone().into_iter().collect::<Vec<_>>());
            let mut place = Place::default();
            let walked = std::iter::from_fn(|| map.next_from(&mut place));
            prop_assert!(walked.eq(map.iter()));
            prop_assert!(map == model.into_iter().rev().collect());
        }
    }

    #[test]
    fn a_change_copies_one_shard_and_leaves_the_copy_of_before_alone() {
        let before: SharedMap<u32, u32> = (0..150_000).map(|key| (key, key)).collect();
        let shards = before.shards.len();
        assert!((1024..=2048).contains(&shards), "{shards}");
        let fullest = before.shards.iter().map(|shard| shard.used).max();
        assert!(fullest < Some(2 * ENTRIES_PER_SHARD), "keys are spread: {fullest:?}");
        let mut after = before.clone();
        assert_eq!(after.shards_of_its_own(&before), 0);
        after.insert(7, 8);
        assert_eq!(after.shards_of_its_own(&before), 1);
        assert_eq!((before.get(&7), after.get(&7)), (Some(&7), Some(&8)));
        after.remove(&7);
        assert_eq!(after.shards_of_its_own(&before), 1);
        assert_eq!((before.get(&7), after.get(&7)), (Some(&7), None));
        assert!(before != after);
    }
}
