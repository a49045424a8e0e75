//! Any history of a table against a map of the standard library: two owners, keys that come again
//! and share few hashes, aliases, sweeps, growth and shrinking, and processes that end in order or
//! are killed between any two operations, after which the next one has other owners.
//!
//! Inputs are bolero's; `make fuzz` runs it for longer. Kills within an operation, at every write, are
//! in `src/take_over_tests.rs`.
#![cfg(not(any(loom, shuttle)))]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use flow_table::{
    Entry, Handle, Hashes, InsertError, Key, Keys, Memory, Owner, Quiescence, Shape, Sweep, Table,
    TakenOver,
};

#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (0..2).any(|word| entry.words()[word].load(Relaxed) == self.0).then_some(())
    }
}

/// Keys are from 1 on; an alias is anybody's.
const KEYS: u64 = 1200;

/// A bucket of its own for some, one of 13 for others, so that buckets overflow.
fn hash(key: u64) -> u64 {
    let spread = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    if key.is_multiple_of(3) { (key % 13).wrapping_mul(0x0fed_cba9_8765_4321) } else { spread }
}

fn with_hash(key: u64) -> (u64, Tuple) {
    (hash(key), Tuple(key))
}

fn keys(entry: &Entry<8>) -> Option<Keys<Tuple>> {
    let [original, alias] = [0, 1].map(|word| entry.words()[word].load(Relaxed));
    (original != 0).then(|| (with_hash(original), (alias != 0).then(|| with_hash(alias))))
}

fn hashes(key: u64, alias: Option<u64>) -> Hashes {
    Hashes { original: hash(key), alias: alias.map(hash) }
}

const CAPACITY_MAX: usize = 2000;

fn shape(owners: usize) -> Shape {
    let (capacity, capacity_max) = (60, CAPACITY_MAX);
    Shape { capacity, committed: capacity_max, capacity_max, owners, details: false }
}

/// One process, and what it knows of its flows.
struct Process {
    /// Of the memory, which outlives it.
    start: *mut u8,
    bytes: usize,
    table: Arc<Table<8>>,
    owners: Vec<Owner<8>>,
    quiescence: Arc<Quiescence>,
    /// Handle and alias of each flow, by its key.
    flows: HashMap<u64, (Handle, Option<u64>)>,
    /// The flow of each key and alias.
    names: HashMap<u64, u64>,
}

impl Process {
    fn first(memory: &'static mut [u8]) -> Self {
        let (start, bytes) = (memory.as_mut_ptr(), memory.len());
        let quiescence = Quiescence::new(1).expect("workers");
        let (table, owners) =
            Table::new(Memory::Mapped(memory), shape(2), quiescence.clone()).expect("set up");
        let (flows, names) = Default::default();
        Self { start, bytes, table, owners, quiescence, flows, names }
    }

    /// Ends, in order or not; the next process.
    fn next(self, is_closed: bool, owners: usize) -> Self {
        let Self { start, bytes, table, owners: before, flows, names, quiescence } = self;
        let same = before.len() == owners;
        quiescence.go_offline(0);
        if is_closed {
            assert!(table.close(before), "no worker is online");
        } else {
            drop(before);
        }
        drop(table);
        // SAFETY: the memory of `first`, which is leaked and this long; the table and its owners, the
        // only ones to point into it, are dropped.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        let quiescence = Quiescence::new(1).expect("workers");
        let (table, owners, taken) =
            Table::take_over(memory, &shape(owners), &quiescence, keys).expect("a table");
        let rebuilt = !(is_closed && same);
        assert_eq!(taken, TakenOver { rebuilt, entries: flows.len() as u64, given_up: 0 });
        Self { start, bytes, table, owners, quiescence, flows, names }
    }

    fn insert(&mut self, owner: usize, key: u64, alias: Option<u64>) {
        let words = [key, alias.unwrap_or(0), 0, 0, 0, 0, 0, key];
        let owners = self.owners.len();
        let owner = &mut self.owners[owner % owners];
        let conflict = |name: &u64| self.names.get(name).map(|flow| self.flows[flow].0);
        let (first, second) = (conflict(&key), alias.as_ref().and_then(conflict));
        match owner.insert(with_hash(key), alias.map(with_hash), &words) {
            Ok(handle) => {
                assert_eq!((first, second), (None, None), "key {key}, alias {alias:?}");
                assert!(self.flows.values().all(|(other, _)| *other != handle));
                self.flows.insert(key, (handle, alias));
                self.names.extend(std::iter::once(key).chain(alias).map(|name| (name, key)));
            }
            Err(InsertError::Exists(other)) => assert_eq!(first, Some(other)),
            Err(InsertError::AliasExists(other)) => assert_eq!(second, Some(other)),
            Err(InsertError::SlabFull | InsertError::IndexFull) => {
                assert_eq!((first, second), (None, None));
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn remove(&mut self, key: u64) {
        let Some((handle, alias)) = self.flows.remove(&key) else { return };
        self.names.retain(|_, flow| *flow != key);
        let holder = self.table.holder(handle).expect("somebody's");
        assert_eq!(self.owners[holder].remove(handle, hashes(key, alias)), Ok(()));
    }

    fn sweep(&mut self, entries: u32, modulus: u64) {
        let (flows, names) = (&mut self.flows, &mut self.names);
        for owner in &mut self.owners {
            owner.sweep(entries, |handle, entry| {
                let key = entry.words()[0].load(Relaxed);
                let (known, alias) = flows[&key];
                assert_eq!(known, handle, "key {key}");
                if !key.is_multiple_of(modulus) {
                    return Sweep::Keep;
                }
                flows.remove(&key);
                names.retain(|_, flow| *flow != key);
                Sweep::Remove(hashes(key, alias))
            });
        }
    }

    /// What the map has is found, and nothing else.
    fn compare(&self) {
        let tuples: Vec<_> = (1..=2 * KEYS).map(Tuple).collect();
        let hashed: Vec<_> = tuples.iter().map(|tuple| hash(tuple.0)).collect();
        let mut hits = vec![None; tuples.len()];
        self.table.lookup_burst(&hashed, &tuples, &mut hits);
        for (tuple, hit) in tuples.iter().zip(hits) {
            let known = self.names.get(&tuple.0).map(|flow| self.flows[flow].0);
            assert_eq!(hit.map(|hit| hit.handle), known, "{tuple:?}");
        }
        let statistics = self.table.statistics();
        assert_eq!((statistics.used, statistics.slots_lost), (self.flows.len() as u64, 0));
        assert_eq!(statistics.keys, self.names.len() as u64);
    }

    fn apply(mut self, (what, number): (u8, u16)) -> Self {
        let key = u64::from(number) % KEYS + 1;
        match what % 32 {
            0..12 => self.insert(what.into(), key, None),
            12..20 => self.insert(what.into(), key, Some(key / 2 + KEYS)),
            20..24 => self.remove(key),
            24 => self.quiescence.announce(0),
            25 => self.quiescence.go_online(0),
            26 => self.quiescence.go_offline(0),
            27 => self.sweep(u32::from(number) % 300, 2 + key % 5),
            28 => {
                // Growth to what comes: runs of keys.
                (key..=KEYS.min(key + 100)).for_each(|key| self.insert(0, key, None));
            }
            29 => {
                let capacity = usize::from(number) % CAPACITY_MAX + 1;
                self.table.set_capacity(capacity, CAPACITY_MAX.min(2 * capacity));
            }
            last => return self.next(last == 30, 1 + usize::from(number) % 3),
        }
        self
    }
}

#[test]
fn fuzzed_histories_leave_what_a_map_would_hold() {
    // The largest shape; owners do not count.
    let bytes = Table::<8>::memory_bytes(&shape(2)).expect("a shape");
    let memory: &'static mut [u8] = Box::leak(vec![0; bytes + 64].into_boxed_slice());
    let skip = memory.as_ptr().align_offset(64);
    let (start, bytes) = (memory[skip..].as_mut_ptr().expose_provenance(), bytes);
    bolero::check!().with_type::<Vec<(u8, u16)>>().for_each(|history: &Vec<(u8, u16)>| {
        // SAFETY: leaked memory of this length; the history before dropped all that pointed to it.
        let memory = unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(start), bytes)
        };
        memory.fill(0);
        let mut process = Process::first(memory);
        for (step, operation) in history.iter().enumerate() {
            process = process.apply(*operation);
            if step % 8 == 0 {
                process.compare();
            }
        }
        process.compare();
    });
}
