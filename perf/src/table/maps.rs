//! General-purpose hash maps as flow tables, with hashbrown's hash, which is the fastest that any of
//! them is used with.
//!
//! With one key a map holds what is left of the entry beside its key. With two keys both lead to
//! the number of an entry in an array of lines, as nothing else keeps one entry under two keys.
//!
//! Entries are changed in place through shared references, the way that costs each map least. None
//! offers a prefetch, so lookups of a burst overlap as far as the processor looks ahead.

use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Result, ensure};
use arrayvec::ArrayVec;
use flow_table::BURST;
use hashbrown::DefaultHashBuilder;

use super::flow::{Flow, Tail, Tuple};
use super::subject::FlowTable;

/// What is asked of a map.
pub trait Map<Q, V>: Sync + Sized {
    /// Whether one thread may insert while another looks up.
    const SHAREABLE: bool = true;

    /// An empty map with room for so many keys.
    fn with_room(keys: usize) -> Self;

    /// Adds pairs; how many keys were new.
    fn insert_all(&mut self, pairs: impl Iterator<Item = (Q, V)>) -> usize;

    /// Calls `visit` with every value found.
    fn visit(&self, keys: &[Q], visit: impl FnMut(&V));

    /// Removes keys, and calls `visit` with the value of each that was there.
    fn remove_all(&mut self, keys: &[Q], visit: impl FnMut(&V));

    /// Calls `visit` with every value.
    fn for_each(&self, visit: impl FnMut(&V));
}

/// hashbrown's map.
pub type Hashbrown<Q, V> = hashbrown::HashMap<Q, V>;
/// papaya's map.
pub type Papaya<Q, V> = papaya::HashMap<Q, V, DefaultHashBuilder>;
/// dashmap's map.
pub type Dashmap<Q, V> = dashmap::DashMap<Q, V, DefaultHashBuilder>;
/// scc's map. Its `HashIndex`, whose readers take no lock, copies entries as it grows, and would
/// lose what packets write meanwhile.
pub type Scc<Q, V> = scc::HashMap<Q, V, DefaultHashBuilder>;

impl<Q: Hash + Eq + Sync, V: Sync> Map<Q, V> for Hashbrown<Q, V> {
    const SHAREABLE: bool = false;

    fn with_room(keys: usize) -> Self {
        Self::with_capacity(keys)
    }

    fn insert_all(&mut self, pairs: impl Iterator<Item = (Q, V)>) -> usize {
        pairs.filter_map(|(key, value)| self.insert(key, value).is_none().then_some(())).count()
    }

    #[inline(always)]
    fn visit(&self, keys: &[Q], visit: impl FnMut(&V)) {
        keys.iter().filter_map(|key| self.get(key)).for_each(visit);
    }

    fn remove_all(&mut self, keys: &[Q], mut visit: impl FnMut(&V)) {
        keys.iter().filter_map(|key| self.remove(key)).for_each(|value| visit(&value));
    }

    fn for_each(&self, visit: impl FnMut(&V)) {
        self.values().for_each(visit);
    }
}

impl<Q: Hash + Eq + Send + Sync, V: Send + Sync> Map<Q, V> for Papaya<Q, V> {
    fn with_room(keys: usize) -> Self {
        Self::with_capacity_and_hasher(keys, DefaultHashBuilder::default())
    }

    fn insert_all(&mut self, pairs: impl Iterator<Item = (Q, V)>) -> usize {
        let map = self.pin();
        pairs.filter_map(|(key, value)| map.insert(key, value).is_none().then_some(())).count()
    }

    #[inline(always)]
    fn visit(&self, keys: &[Q], visit: impl FnMut(&V)) {
        let map = self.pin();
        keys.iter().filter_map(|key| map.get(key)).for_each(visit);
    }

    fn remove_all(&mut self, keys: &[Q], visit: impl FnMut(&V)) {
        let map = self.pin();
        keys.iter().filter_map(|key| map.remove(key)).for_each(visit);
    }

    fn for_each(&self, visit: impl FnMut(&V)) {
        self.pin().values().for_each(visit);
    }
}

impl<Q: Hash + Eq + Send + Sync, V: Send + Sync> Map<Q, V> for Dashmap<Q, V> {
    fn with_room(keys: usize) -> Self {
        Self::with_capacity_and_hasher(keys, DefaultHashBuilder::default())
    }

    fn insert_all(&mut self, pairs: impl Iterator<Item = (Q, V)>) -> usize {
        let map = &*self;
        pairs.filter_map(|(key, value)| map.insert(key, value).is_none().then_some(())).count()
    }

    #[inline(always)]
    fn visit(&self, keys: &[Q], mut visit: impl FnMut(&V)) {
        keys.iter().filter_map(|key| self.get(key)).for_each(|value| visit(&value));
    }

    fn remove_all(&mut self, keys: &[Q], mut visit: impl FnMut(&V)) {
        let map = &*self;
        keys.iter().filter_map(|key| map.remove(key)).for_each(|(_, value)| visit(&value));
    }

    fn for_each(&self, mut visit: impl FnMut(&V)) {
        self.iter().for_each(|value| visit(&value));
    }
}

impl<Q: Hash + Eq + Send + Sync, V: Send + Sync> Map<Q, V> for Scc<Q, V> {
    fn with_room(keys: usize) -> Self {
        Self::with_capacity_and_hasher(keys, DefaultHashBuilder::default())
    }

    fn insert_all(&mut self, pairs: impl Iterator<Item = (Q, V)>) -> usize {
        pairs.filter_map(|(key, value)| self.insert_sync(key, value).ok()).count()
    }

    #[inline(always)]
    fn visit(&self, keys: &[Q], mut visit: impl FnMut(&V)) {
        for key in keys {
            self.read_sync(key, |_, value| visit(value));
        }
    }

    fn remove_all(&mut self, keys: &[Q], mut visit: impl FnMut(&V)) {
        keys.iter().filter_map(|key| self.remove_sync(key)).for_each(|(_, value)| visit(&value));
    }

    fn for_each(&self, mut visit: impl FnMut(&V)) {
        self.iter_sync(|_, value| {
            visit(value);
            true
        });
    }
}

/// A map to entries: one key. `R` are the words of an entry without its key.
#[derive(Debug)]
pub struct OneKey<M, const R: usize>(M);

/// Values of [`OneKey`].
pub type Rest<const R: usize> = [AtomicU64; R];

impl<M, const R: usize> OneKey<M, R> {
    /// Room for so many flows.
    pub fn new<const K: usize>(flows: usize) -> Self
    where
        M: Map<Tuple<K>, Rest<R>>,
    {
        Self(M::with_room(flows))
    }
}

impl<const K: usize, const R: usize, M: Map<Tuple<K>, Rest<R>>> FlowTable<K> for OneKey<M, R> {
    const SHAREABLE: bool = M::SHAREABLE;

    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<()> {
        for flows in flows.chunks(BURST) {
            let rest = |flow: &Flow<K>| flow.words::<R, K>(now).map(AtomicU64::new);
            let added = self.0.insert_all(flows.iter().map(|flow| (flow.key, rest(flow))));
            ensure!(added == flows.len(), "a new flow was there already");
        }
        Ok(())
    }

    fn look_up(&self, _worker: usize, keys: &[Tuple<K>], mut visit: impl FnMut(Tail<'_>)) {
        for keys in keys.chunks(BURST) {
            self.0.visit(keys, |rest| Tail::of::<K>(rest, K).into_iter().for_each(&mut visit));
        }
    }

    fn remove(&mut self, keys: &[Tuple<K>]) -> u64 {
        let mut removed = 0;
        keys.chunks(BURST).for_each(|keys| self.0.remove_all(keys, |_| removed += 1));
        removed
    }

    fn sweep(&mut self, mut visit: impl FnMut(Tail<'_>)) {
        self.0.for_each(|rest| Tail::of::<K>(rest, K).into_iter().for_each(&mut visit));
    }
}

/// An entry of [`TwoKeys`], on lines of its own.
#[repr(align(64))]
#[derive(Debug)]
struct Line<const W: usize>([AtomicU64; W]);

/// A map to the numbers of entries: two keys.
#[derive(Debug)]
pub struct TwoKeys<M, const W: usize> {
    map: M,
    entries: Vec<Line<W>>,
    unused: Vec<u32>,
}

impl<M, const W: usize> TwoKeys<M, W> {
    /// Room for so many flows.
    pub fn new<const K: usize>(flows: usize) -> Self
    where
        M: Map<Tuple<K>, u32>,
    {
        let map = M::with_room(2 * flows);
        Self { map, entries: Vec::with_capacity(flows), unused: Vec::new() }
    }

    /// Writes an entry; its number.
    fn put(&mut self, words: [u64; W]) -> u32 {
        if let Some(number) = self.unused.pop() {
            let entry = &self.entries[number as usize].0;
            entry.iter().zip(words).for_each(|(word, value)| word.store(value, Relaxed));
            return number;
        }
        self.entries.push(Line(words.map(AtomicU64::new)));
        self.entries.len() as u32 - 1
    }

    /// Gives an entry back, once its first key is removed; its second one.
    fn take<const K: usize>(&mut self, number: u32) -> Tuple<K> {
        let words = &self.entries[number as usize].0;
        if let Some(deadline) = words.get(2 * K) {
            deadline.store(0, Relaxed);
        }
        self.unused.push(number);
        Tuple(std::array::from_fn(|place| words[K + place].load(Relaxed)))
    }
}

impl<const K: usize, const W: usize, M: Map<Tuple<K>, u32>> FlowTable<K> for TwoKeys<M, W> {
    const SHAREABLE: bool = M::SHAREABLE;

    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<()> {
        for flows in flows.chunks(BURST) {
            let pairs: ArrayVec<_, BURST> =
                flows.iter().map(|flow| (flow, self.put(flow.words::<W, 0>(now)))).collect();
            let both = pairs.iter().flat_map(|(flow, n)| [(flow.key, *n), (flow.alias, *n)]);
            let added = self.map.insert_all(both);
            ensure!(added == 2 * flows.len(), "a new flow was there already");
        }
        Ok(())
    }

    fn look_up(&self, _worker: usize, keys: &[Tuple<K>], mut visit: impl FnMut(Tail<'_>)) {
        for keys in keys.chunks(BURST) {
            let mut found: ArrayVec<u32, BURST> = ArrayVec::new();
            self.map.visit(keys, |number| found.push(*number));
            for number in found {
                let words = &self.entries[number as usize].0;
                Tail::of::<K>(words, 0).into_iter().for_each(&mut visit);
            }
        }
    }

    fn remove(&mut self, keys: &[Tuple<K>]) -> u64 {
        let mut removed = 0;
        for keys in keys.chunks(BURST) {
            let mut found: ArrayVec<u32, BURST> = ArrayVec::new();
            self.map.remove_all(keys, |number| found.push(*number));
            let aliases: ArrayVec<Tuple<K>, BURST> =
                found.into_iter().map(|number| self.take(number)).collect();
            self.map.remove_all(&aliases, |_| removed += 1);
        }
        removed
    }

    fn sweep(&mut self, mut visit: impl FnMut(Tail<'_>)) {
        for entry in &self.entries {
            let tail = Tail::of::<K>(&entry.0, 0).filter(|tail| tail.deadline() != 0);
            tail.into_iter().for_each(&mut visit);
        }
    }
}
