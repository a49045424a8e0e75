//! The whole table under random schedules: threads change turns at every access to shared memory.
//! Every access is sequentially consistent here; what weaker ones may do is loom's part. Buckets have
//! two slots, groups four buckets, so that keys overflow, stray and find groups full.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test -p flow-table --release --test shuttle --target-dir
//! target/shuttle`. A failure prints its schedule; `shuttle::replay` runs that again.
#![cfg(shuttle)]

use std::collections::HashMap;
use std::sync::Arc;
// The test's own knowledge, which must cause no change of turns.
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use flow_table::{
    Entry, Handle, Hashes, InsertError, Key, Memory, Owner, Quiescence, RemoveError, Shape, Sweep,
    Table,
};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

#[derive(Clone, Copy, Debug)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (0..2).any(|word| entry.words()[word].load(Relaxed) == self.0).then_some(())
    }
}

/// Few heads, so that buckets overflow, spread over the whole range, so that groups differ.
fn hash(key: u64) -> u64 {
    (key % 5).wrapping_mul(0x3333_3333_3333_3333) ^ (key % 3) << 40
}

/// Every third flow has a second key.
fn alias_of(key: u64) -> Option<u64> {
    key.is_multiple_of(3).then_some(key + 1000)
}

/// The key, the alias or nothing, and the key again, so that a mixture of two flows is seen.
fn words(key: u64) -> [u64; 8] {
    [key, alias_of(key).unwrap_or(u64::MAX), !key, 0, 0, 0, 0, 0]
}

fn insert(owner: &mut Owner<8>, key: u64) -> Result<Handle, InsertError> {
    let alias = alias_of(key).map(|alias| (hash(alias), Tuple(alias)));
    owner.insert((hash(key), Tuple(key)), alias, &words(key))
}

fn hashes(key: u64) -> Hashes {
    Hashes { original: hash(key), alias: alias_of(key).map(hash) }
}

/// What must be found: for each key an odd number while it is there.
struct Known(Vec<AtomicU64>);

impl Known {
    fn new(keys: u64) -> Self {
        Self((0..keys).map(|_| AtomicU64::new(0)).collect())
    }

    fn toggle(&self, key: u64) {
        self.0[key as usize].fetch_add(1, Relaxed);
    }

    fn get(&self, key: u64) -> u64 {
        self.0[key as usize].load(Relaxed)
    }
}

/// Keys of each owner; those of both at once follow.
const OWN: u64 = 9;
const OWNERS: u64 = 2;
const KEYS: u64 = OWNERS * OWN;
const STEPS: usize = 24;

/// Inserts and removes keys of its own, sweeps, announces, sleeps.
fn own(number: u64, owner: &mut Owner<8>, known: &Known, quiescence: &Quiescence) {
    let mut handles = HashMap::new();
    let worker = number as usize;
    quiescence.go_online(worker);
    for _ in 0..STEPS {
        match thread_rng().gen_range(0..10) {
            0 => quiescence.announce(worker),
            1 => {
                quiescence.go_offline(worker);
                quiescence.go_online(worker);
            }
            2 => sweep(owner, known, &mut handles),
            _ => {
                let key = number * OWN + thread_rng().gen_range(0..OWN);
                match handles.remove(&key) {
                    None => insert_one(owner, known, &mut handles, key),
                    Some(handle) => {
                        known.toggle(key);
                        assert_eq!(owner.remove(handle, hashes(key)), Ok(()));
                    }
                }
            }
        }
        for (&key, &handle) in &handles {
            check(owner.table(), key, |found| assert_eq!(found, Some(handle), "key {key}"));
        }
    }
    quiescence.go_offline(worker);
}

fn insert_one(owner: &mut Owner<8>, known: &Known, handles: &mut HashMap<u64, Handle>, key: u64) {
    match insert(owner, key) {
        Ok(handle) => {
            known.toggle(key);
            handles.insert(key, handle);
        }
        Err(InsertError::SlabFull | InsertError::IndexFull) => {}
        // Of its own removal just before, while the index moves: see `Owner::remove`.
        Err(InsertError::Exists(removed) | InsertError::AliasExists(removed)) => {
            assert!(owner.table().snapshot(removed).is_none(), "nobody else inserts {key}");
        }
        Err(other) => panic!("{other}"),
    }
}

/// Removes one in three of what it visits.
fn sweep(owner: &mut Owner<8>, known: &Known, handles: &mut HashMap<u64, Handle>) {
    owner.sweep(4, |handle, entry| {
        let key = entry.words()[0].load(Relaxed);
        assert_eq!(handles.get(&key), Some(&handle), "key {key}");
        if thread_rng().gen_range(0..3) != 0 {
            return Sweep::Keep;
        }
        known.toggle(key);
        handles.remove(&key);
        Sweep::Remove(hashes(key))
    });
}

fn check(table: &Table<8>, key: u64, decide: impl Fn(Option<Handle>)) {
    for name in std::iter::once(key).chain(alias_of(key)) {
        decide(table.lookup(hash(name), &Tuple(name)).map(|hit| hit.handle));
    }
}

/// Looks up anything, alone and in bursts: what is there from before to after must be found, and what
/// is found stays whole until the next announcement.
fn read(worker: usize, table: &Table<8>, known: &Known, quiescence: &Quiescence) {
    quiescence.go_online(worker);
    for _ in 0..STEPS {
        let keys: [u64; 3] = std::array::from_fn(|_| thread_rng().gen_range(0..KEYS));
        let before = keys.map(|key| known.get(key));
        let tuples = keys.map(|key| {
            let alias = alias_of(key).filter(|_| thread_rng().gen_range(0..2) == 0);
            Tuple(alias.unwrap_or(key))
        });
        let hashed = tuples.map(|tuple| hash(tuple.0));
        let mut hits = [None; 3];
        if thread_rng().gen_range(0..2) == 0 {
            table.lookup_burst(&hashed, &tuples, &mut hits);
        } else {
            hits = std::array::from_fn(|at| table.lookup(hashed[at], &tuples[at]));
        }
        for ((key, before), hit) in keys.iter().zip(before).zip(&hits) {
            let stayed = before % 2 == 1 && known.get(*key) == before;
            assert!(hit.is_some() || !stayed, "key {key} is there and not found");
        }
        for (key, hit) in keys.iter().zip(&hits) {
            let Some(hit) = hit else { continue };
            let held: [u64; 8] = std::array::from_fn(|word| hit.entry.words()[word].load(Relaxed));
            assert_eq!(held, words(*key), "what is held stays what it was");
            if let Some(copy) = table.snapshot(hit.handle) {
                assert_eq!(copy[2], !copy[0], "a copy is of one flow");
            }
        }
        quiescence.announce(worker);
    }
    quiescence.go_offline(worker);
}

/// Two owners and a reader; the table is made for less than comes, so it grows meanwhile, and
/// entries are used again.
fn churn() {
    let workers = OWNERS as usize + 1;
    let quiescence = Quiescence::new(workers).expect("workers");
    let (capacity, capacity_max, owners) = (4, 14, OWNERS as usize);
    let shape = Shape { capacity, committed: capacity_max, capacity_max, owners, details: false };
    let (table, owners) = Table::<8>::new(Memory::Heap, shape, quiescence.clone()).expect("set up");
    let known = Arc::new(Known::new(KEYS));
    let mut threads: Vec<_> = (0..OWNERS)
        .zip(owners)
        .map(|(number, mut owner)| {
            let (known, quiescence) = (known.clone(), quiescence.clone());
            thread::spawn(move || own(number, &mut owner, &known, &quiescence))
        })
        .collect();
    threads.push(thread::spawn({
        let (table, known, quiescence) = (table.clone(), known.clone(), quiescence.clone());
        move || read(OWNERS as usize, &table, &known, &quiescence)
    }));
    for thread in threads {
        thread.join().expect("a thread failed");
    }
    let there = (0..KEYS).filter(|key| known.get(*key) % 2 == 1);
    let mut count = 0;
    for key in there {
        check(&table, key, |found| assert!(found.is_some(), "key {key}"));
        count += 1;
    }
    let statistics = table.statistics();
    assert_eq!((statistics.used, statistics.slots_lost), (count, 0));
}

/// Both owners insert and remove the same keys while the index moves: of one key there is at most one
/// flow at any time, and who has it finds it.
fn contest() {
    let quiescence = Quiescence::new(2).expect("workers");
    let (table, owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(16, 2), quiescence.clone()).expect("set up");
    assert!(table.begin_resize(3));
    let holders = Arc::new(Known::new(4));
    let threads: Vec<_> = owners
        .into_iter()
        .enumerate()
        .map(|(worker, mut owner)| {
            let (holders, quiescence) = (holders.clone(), quiescence.clone());
            thread::spawn(move || {
                quiescence.go_online(worker);
                for _ in 0..STEPS / 2 {
                    let key = thread_rng().gen_range(0..4);
                    if let Ok(handle) = insert(&mut owner, key) {
                        let others = holders.0[key as usize].fetch_add(1, Relaxed);
                        assert_eq!(others, 0, "key {key} has two flows");
                        check(owner.table(), key, |found| assert_eq!(found, Some(handle)));
                        holders.0[key as usize].fetch_sub(1, Relaxed);
                        let removed: Result<(), RemoveError> = owner.remove(handle, hashes(key));
                        assert_eq!(removed, Ok(()));
                    }
                    owner.sweep(1, |_, _| Sweep::Keep);
                    quiescence.announce(worker);
                }
                quiescence.go_offline(worker);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a thread failed");
    }
    assert_eq!((table.statistics().used, table.statistics().slots_lost), (0, 0));
}

/// Runs `test` under one schedule after the other, for a time, since machines differ.
fn run(scheduler: impl Scheduler + 'static, test: fn()) {
    let mut config = Config::new();
    // Bursts of lookups lie on the stack.
    config.stack_size = 1 << 18;
    let seconds = std::env::var("XSKIFF_SHUTTLE_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(5);
    config.max_time = Some(Duration::from_secs(seconds));
    let schedules = Runner::new(scheduler, config).run(test);
    println!("{schedules} schedules");
    assert!(schedules > 10, "{schedules} schedules tell nothing");
}

const SCHEDULES_MAX: usize = 10_000_000;

#[test]
fn what_is_inserted_is_found_under_random_schedules() {
    run(RandomScheduler::new(SCHEDULES_MAX), churn);
}

/// Few changes of turns at chosen points find what many at any points do not (Burckhardt et al. 2010).
#[test]
fn what_is_inserted_is_found_under_schedules_of_few_preemptions() {
    run(PctScheduler::new(3, SCHEDULES_MAX), churn);
}

#[test]
fn one_key_has_one_flow_under_random_schedules() {
    run(RandomScheduler::new(SCHEDULES_MAX), contest);
}

#[test]
fn one_key_has_one_flow_under_schedules_of_few_preemptions() {
    run(PctScheduler::new(3, SCHEDULES_MAX), contest);
}
