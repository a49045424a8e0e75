//! This project's table.
//!
//! Used as a worker uses it: bursts are hashed eight keys at a time, looked up in two steps and updated,
//! and quiescence is announced after each; who inserts or removes has asked for the lines of the whole
//! burst before.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use arrayvec::ArrayVec;
use flow_table::{
    BURST, Entry, Hasher, Hashes, Key, Memory, Owner, Quiescence, Shape, Sweep, Table,
};

use super::flow::{Flow, Tail, Tuple};
use super::subject::{FlowTable, WORKERS};
use super::supply::{self, Supply};

/// Any key: what is measured does not depend on it.
pub const HASH_KEY: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];

impl<const K: usize, const W: usize> Key<W> for Tuple<K> {
    type Match = ();

    #[inline(always)]
    fn matches(&self, entry: &Entry<W>) -> Option<()> {
        let words = entry.words();
        let is = |from: usize| {
            self.0.iter().zip(&words[from..]).all(|(own, word)| *own == word.load(Relaxed))
        };
        (is(0) || is(K)).then_some(())
    }
}

/// Entries beyond the flows: some of those just deleted wait until the worker has announced.
pub const SPARE: usize = 4 * BURST;

/// Keys hashed before their index lines are asked for.
const FETCH: usize = 8;

/// How many flows there can be.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// At first.
    pub flows: usize,
    /// After growth.
    pub flows_max: usize,
}

impl Room {
    /// For so many flows from the start.
    pub fn fixed(flows: usize) -> Self {
        Self { flows, flows_max: flows }
    }
}

/// The table with its one owner.
#[derive(Debug)]
pub struct Xskiff<const W: usize> {
    table: Arc<Table<W>>,
    owner: Owner<W>,
    quiescence: Arc<Quiescence>,
    hasher: Hasher,
    two_keys: bool,
    /// The last to go.
    _supply: Option<Supply>,
}

impl<const W: usize> Xskiff<W> {
    /// An empty table. `details` gives every entry a second line.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn new(room: Room, two_keys: bool, details: bool) -> Result<Self> {
        let (capacity, capacity_max) = (room.flows + SPARE, room.flows_max + SPARE);
        let shape = Shape { capacity, committed: capacity_max, capacity_max, owners: 1, details };
        let quiescence = Quiescence::new(WORKERS)?;
        if capacity < capacity_max {
            let (made, supply) = supply::table(shape, Arc::clone(&quiescence))?;
            let this = Self::of(made, quiescence, two_keys)?;
            return Ok(Self { _supply: Some(supply), ..this });
        }
        // The heap, which is given back: tables of many sizes follow each other.
        let made = Table::new(Memory::Heap, shape, Arc::clone(&quiescence))?;
        Self::of(made, quiescence, two_keys)
    }

    /// A table that is there, with its one owner.
    ///
    /// # Errors
    /// It has no owner.
    pub fn of(
        (table, mut owners): (Arc<Table<W>>, Vec<Owner<W>>),
        quiescence: Arc<Quiescence>,
        two_keys: bool,
    ) -> Result<Self> {
        quiescence.go_online(0);
        let owner = owners.pop().context("a table has an owner")?;
        Ok(Self {
            table,
            owner,
            quiescence,
            hasher: Hasher::new(HASH_KEY),
            two_keys,
            _supply: None,
        })
    }

    /// Ends in order; whether the table can be gone on with as it is.
    pub fn close(self) -> bool {
        self.quiescence.go_offline(0);
        self.table.close(vec![self.owner])
    }

    #[inline(always)]
    fn hashes<const K: usize>(&self, tuples: impl Iterator<Item = Tuple<K>>) -> [u64; BURST] {
        let inputs: ArrayVec<[u64; K], BURST> = tuples.map(|tuple| tuple.0).collect();
        let mut hashes = [0; BURST];
        self.hasher.hash_burst(&inputs, &mut hashes);
        hashes
    }

    fn alias_of<const K: usize>(words: &[AtomicU64; W]) -> Tuple<K> {
        Tuple(std::array::from_fn(|place| words[K + place].load(Relaxed)))
    }
}

impl<const K: usize, const W: usize> FlowTable<K> for Xskiff<W> {
    fn insert(&mut self, flows: &[Flow<K>], now: u64) -> Result<()> {
        for flows in flows.chunks(BURST) {
            let hashes = self.hashes(flows.iter().map(|flow| flow.key));
            self.table.prefetch_burst(&hashes[..flows.len()]);
            let mut aliases = [0; BURST];
            if self.two_keys {
                aliases = self.hashes(flows.iter().map(|flow| flow.alias));
                self.table.prefetch_burst(&aliases[..flows.len()]);
            }
            hashes[..flows.len()].iter().for_each(|hash| self.table.prefetch_for_insert(*hash));
            if self.two_keys {
                aliases[..flows.len()]
                    .iter()
                    .for_each(|hash| self.table.prefetch_for_insert(*hash));
            }
            for ((flow, hash), alias) in flows.iter().zip(hashes).zip(aliases) {
                let alias = self.two_keys.then_some((alias, flow.alias));
                self.owner.insert((hash, flow.key), alias, &flow.words::<W, 0>(now))?;
            }
            self.quiescence.announce(0);
        }
        Ok(())
    }

    fn look_up(&self, worker: usize, keys: &[Tuple<K>], mut visit: impl FnMut(Tail<'_>)) {
        for keys in keys.chunks(BURST) {
            let mut hashes = [0; BURST];
            // The first lines are under way while the later keys are hashed.
            for (keys, hashes) in keys.chunks(FETCH).zip(hashes.chunks_mut(FETCH)) {
                let inputs: ArrayVec<[u64; K], FETCH> = keys.iter().map(|key| key.0).collect();
                self.hasher.hash_burst(&inputs, hashes);
                self.table.prefetch_burst(&hashes[..keys.len()]);
            }
            let mut candidates = [None; BURST];
            self.table.candidates(&hashes[..keys.len()], &mut candidates);
            for ((key, hash), candidate) in keys.iter().zip(hashes).zip(candidates) {
                if let Some(hit) = self.table.confirm(hash, key, candidate) {
                    Tail::of::<K>(hit.entry.words(), 0).into_iter().for_each(&mut visit);
                }
            }
            self.quiescence.announce(worker);
        }
    }

    fn remove(&mut self, keys: &[Tuple<K>]) -> u64 {
        let mut removed = 0;
        for keys in keys.chunks(BURST) {
            let hashes = self.hashes(keys.iter().copied());
            let mut hits = [None; BURST];
            self.table.lookup_burst(&hashes, keys, &mut hits);
            let mut found: ArrayVec<_, BURST> = ArrayVec::new();
            for (hit, original) in hits.iter().zip(hashes) {
                let Some(hit) = hit else { continue };
                self.table.prefetch_for_remove(hit.handle);
                let alias = self.two_keys.then(|| {
                    let hash = self.hasher.hash(&Self::alias_of::<K>(hit.entry.words()).0);
                    self.table.prefetch(hash);
                    hash
                });
                found.push((hit.handle, Hashes { original, alias }));
            }
            for (handle, hashes) in found {
                removed += u64::from(self.owner.remove(handle, hashes).is_ok());
            }
            self.quiescence.announce(0);
            self.owner.reclaim();
        }
        removed
    }

    fn sweep(&mut self, mut visit: impl FnMut(Tail<'_>)) {
        loop {
            let swept = self.owner.sweep(BURST as u32, |_, entry| {
                Tail::of::<K>(entry.words(), 0).into_iter().for_each(&mut visit);
                Sweep::Keep
            });
            self.quiescence.announce(0);
            if swept.wrapped {
                break;
            }
        }
    }

    fn go_online(&self, worker: usize) {
        self.quiescence.go_online(worker);
    }

    fn go_offline(&self, worker: usize) {
        self.quiescence.go_offline(worker);
    }
}
