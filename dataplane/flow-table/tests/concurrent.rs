//! Several threads at once: what was inserted is found, what is held stays, no key has two flows.
#![cfg(not(any(loom, shuttle)))]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use flow_table::{
    BURST, Entry, Handle, Hasher, Hashes, InsertError, Key, Memory, Owner, Quiescence, Shape,
    Sweep, Table,
};

#[derive(Clone, Copy, Debug)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (entry.words()[0].load(Ordering::Relaxed) == self.0).then_some(())
    }
}

/// Every word tells the key, so that a mixture of two flows is seen.
fn words(key: u64) -> [u64; 8] {
    std::array::from_fn(|word| key.wrapping_mul(word as u64 * 2 + 1))
}

fn is_whole(words: &[u64; 8]) -> bool {
    *words == self::words(words[0])
}

fn load(entry: &Entry<8>) -> [u64; 8] {
    std::array::from_fn(|word| entry.words()[word].load(Ordering::Relaxed))
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Keys that are inserted before the others start and never removed.
const STABLE: u64 = 2_000;
const WRITERS: usize = 3;
const READERS: usize = 2;
const ROUNDS: u64 = 200_000;
/// Keys that writers insert and remove, in blocks of their own.
const CHURNED: u64 = 700;

fn hash(hasher: &Hasher, key: u64) -> u64 {
    hasher.hash(&[key, 1])
}

fn insert(owner: &mut Owner<8>, hasher: &Hasher, key: u64) -> Result<Handle, InsertError> {
    owner.insert((hash(hasher, key), Tuple(key)), None, &words(key))
}

/// Inserts and removes keys of its own block, and checks each time that its inserts are found.
fn write(writer: usize, owner: &mut Owner<8>, hasher: &Hasher, quiescence: &Quiescence) {
    let first = STABLE + CHURNED * writer as u64 + 1;
    let mut handles = vec![None; CHURNED as usize];
    let mut state = writer as u64 + 1;
    let mut inserts = 0;
    quiescence.go_online(writer);
    for round in 0..ROUNDS {
        let number = random(&mut state) % CHURNED;
        let key = first + number;
        let handle = &mut handles[number as usize];
        match handle.take() {
            Some(inserted) => {
                let hashes = Hashes { original: hash(hasher, key), alias: None };
                let found =
                    owner.table().lookup(hashes.original, &Tuple(key)).map(|hit| hit.handle);
                assert_eq!(found, Some(inserted), "an inserted key is found");
                owner.remove(inserted, hashes).expect("it is there");
                assert!(owner.table().lookup(hashes.original, &Tuple(key)).is_none());
            }
            None => match insert(owner, hasher, key) {
                Ok(inserted) => {
                    *handle = Some(inserted);
                    inserts += 1;
                }
                // Others have not announced yet, perhaps for want of a core.
                Err(InsertError::SlabFull) => thread::yield_now(),
                Err(other) => panic!("insert: {other}"),
            },
        }
        if round % 8 == 0 {
            owner.sweep(4, |_, entry| {
                assert!(is_whole(&load(entry)));
                Sweep::Keep
            });
            quiescence.announce(writer);
        }
    }
    quiescence.go_offline(writer);
    assert!(inserts > CHURNED, "{inserts} inserts: handles were not used again");
}

/// Looks up stable keys, which must all be there, and churned ones, which must stay whole and the
/// same for as long as they are held.
fn read(
    worker: usize,
    table: &Table<8>,
    hasher: &Hasher,
    quiescence: &Quiescence,
    stop: &AtomicBool,
) {
    let mut state = worker as u64;
    let mut held = 0u64;
    quiescence.go_online(worker);
    while !stop.load(Ordering::Relaxed) {
        let keys: [_; BURST] = std::array::from_fn(|number| {
            let key = random(&mut state);
            let last = STABLE + CHURNED * WRITERS as u64;
            Tuple(if number % 2 == 0 { key % STABLE + 1 } else { key % last + 1 })
        });
        let hashes = keys.map(|key| hash(hasher, key.0));
        let mut hits = [None; BURST];
        table.lookup_burst(&hashes, &keys, &mut hits);
        for (key, hit) in keys.iter().zip(&hits) {
            assert!(hit.is_some() || key.0 > STABLE, "{key:?} was inserted and never removed");
        }
        for _ in 0..3 {
            for (key, hit) in keys.iter().zip(&hits) {
                let Some(hit) = hit else { continue };
                assert_eq!(load(hit.entry), words(key.0), "a held entry stays what it was");
                held += 1;
            }
            thread::yield_now();
        }
        quiescence.announce(worker);
    }
    quiescence.go_offline(worker);
    assert!(held > 0);
}

/// Copies entries without announcing anything.
fn dump(table: &Table<8>, stop: &AtomicBool) {
    let mut copies = 0u64;
    while !stop.load(Ordering::Relaxed) {
        table.for_each(table.handles(), |handle, words| {
            assert!(is_whole(&words), "{handle:?} is torn: {words:?}");
            copies += 1;
        });
    }
    assert!(copies >= STABLE);
}

#[test]
fn nothing_inserted_is_lost_and_nothing_held_changes_while_all_work() {
    let quiescence = Quiescence::new(WRITERS + READERS).expect("workers");
    // Tight: handles are used again all the time.
    let capacity = (STABLE as usize).div_ceil(WRITERS) + CHURNED as usize;
    let (table, mut owners) = Table::<8>::new(
        Memory::Heap,
        Shape::fixed(capacity * WRITERS, WRITERS),
        quiescence.clone(),
    )
    .expect("set up");
    let hasher = Hasher::new([3, 4]);
    for key in 1..=STABLE {
        insert(&mut owners[key as usize % WRITERS], &hasher, key).expect("room");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (table, hasher, quiescence, stop) = (&table, &hasher, &quiescence, &stop);
        for reader in 0..READERS {
            scope.spawn(move || read(WRITERS + reader, table, hasher, quiescence, stop));
        }
        scope.spawn(move || dump(table, stop));
        let writers: Vec<_> = owners
            .iter_mut()
            .enumerate()
            .map(|(writer, owner)| scope.spawn(move || write(writer, owner, hasher, quiescence)))
            .collect();
        let results: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.expect("a writer failed"));
    });
    let statistics = table.statistics();
    assert_eq!((statistics.index_full, statistics.slots_lost, statistics.exists), (0, 0, 0));
    assert!((1..=STABLE).all(|key| table.lookup(hash(&hasher, key), &Tuple(key)).is_some()));
}

#[test]
fn of_inserts_of_one_key_at_once_at_most_one_stays() {
    const KEYS: u64 = 20_000;
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(4 * KEYS as usize, 2), quiescence)
            .expect("set up");
    let hasher = Arc::new(Hasher::new([5, 6]));
    let (turn, won) = (Barrier::new(2), AtomicU64::new(0));
    thread::scope(|scope| {
        for mut owner in owners {
            let (hasher, turn, won) = (hasher.clone(), &turn, &won);
            scope.spawn(move || {
                for key in 0..KEYS {
                    if key % 64 == 0 {
                        turn.wait();
                    }
                    if insert(&mut owner, &hasher, key).is_ok() {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut dumped = Vec::new();
    table.for_each(table.handles(), |_, words| dumped.push(words[0]));
    let flows = dumped.len();
    dumped.sort_unstable();
    dumped.dedup();
    assert_eq!(dumped.len(), flows, "no key has two flows");
    assert_eq!(won.load(Ordering::Relaxed), flows as u64);
    assert!(flows as u64 > KEYS / 2);
}

#[test]
fn removed_entries_wait_for_a_worker_that_has_not_announced() {
    let quiescence = Quiescence::new(2).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(1, 1), quiescence.clone()).expect("set up");
    let hasher = Hasher::new([7, 8]);
    let owner = &mut owners[0];
    quiescence.go_online(0);
    quiescence.go_online(1);
    let handle = insert(owner, &hasher, 9).expect("room");
    let hit = table.lookup(hash(&hasher, 9), &Tuple(9)).expect("inserted");
    owner.remove(handle, Hashes { original: hash(&hasher, 9), alias: None }).expect("there");
    for _ in 0..100 {
        quiescence.announce(0);
        assert_eq!(insert(owner, &hasher, 10), Err(InsertError::SlabFull));
        assert_eq!(load(hit.entry), words(9));
    }
    quiescence.go_offline(1);
    assert_eq!(insert(owner, &hasher, 10), Err(InsertError::SlabFull), "worker 0 is online");
    quiescence.announce(0);
    assert_eq!(insert(owner, &hasher, 10), Ok(handle));
}
