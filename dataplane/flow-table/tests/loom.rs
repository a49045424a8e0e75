//! Models of the table's concurrent steps, every interleaving of them within a bound. Buckets
//! have one slot here, so that keys overflow at once. `RUSTFLAGS="--cfg loom" cargo test
//! -p flow-table --release --test loom --target-dir target/loom`
#![cfg(loom)]

use std::sync::Arc;

use flow_table::{
    Entry, Handle, Hashes, InsertError, Key, Memory, Owner, Quiescence, Shape, Table,
};
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::thread;

#[derive(Clone, Copy, Debug)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (entry.words()[0].load(Relaxed) == self.0).then_some(())
    }
}

type Shared = (Arc<Table<8>>, Vec<Owner<8>>, Arc<Quiescence>);

fn table(capacity: usize, owners: usize, workers: usize) -> Shared {
    let quiescence = Quiescence::new(workers).expect("workers");
    let (table, owners) =
        Table::new(Memory::Heap, Shape::fixed(capacity, owners), quiescence.clone())
            .expect("set up");
    (table, owners, quiescence)
}

/// Word 1 tells the key again, so that a mixture of two flows is seen.
fn words(key: u64) -> [u64; 8] {
    [key, !key, 0, 0, 0, 0, 0, 0]
}

fn insert(owner: &mut Owner<8>, hash: u64, key: u64) -> Result<Handle, InsertError> {
    owner.insert((hash, Tuple(key)), None, &words(key))
}

fn only(hash: u64) -> Hashes {
    Hashes { original: hash, alias: None }
}

/// At most three preemptions, which finds all known kinds of mistakes in models of this size.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

const HASH: u64 = 0x1234_5678_9000_0000;

#[test]
fn a_published_entry_is_found_whole_and_is_found_once_its_insert_is_known() {
    check(|| {
        let (table, mut owners, _) = table(1, 1, 1);
        let known = Arc::new(AtomicBool::new(false));
        let writer = thread::spawn({
            let known = known.clone();
            move || {
                insert(&mut owners[0], HASH, 7).expect("room");
                known.store(true, Release);
            }
        });
        let must_find = known.load(Acquire);
        let mut hits = [None];
        table.lookup_burst(&[HASH], &[Tuple(7)], &mut hits);
        match hits[0] {
            Some(hit) => assert_eq!(hit.entry.words()[1].load(Relaxed), !7),
            None => assert!(!must_find),
        }
        writer.join().expect("writer");
    });
}

#[test]
fn an_overflowed_key_is_found_while_others_overflow_and_leave() {
    check(|| {
        let (table, mut owners, _) = table(4, 2, 1);
        let (mut other, mut first) = (owners.remove(1), owners.remove(0));
        let leaving = insert(&mut first, HASH, 1).expect("the primary slot");
        let overflowed = insert(&mut other, HASH, 2).expect("the alternate slot");
        let churn = thread::spawn(move || {
            first.remove(leaving, only(HASH)).expect("there");
            // Takes the primary slot again, or finds both full for a moment.
            let _ = insert(&mut first, HASH, 3);
        });
        for _ in 0..2 {
            let found = table.lookup(HASH, &Tuple(2)).map(|hit| hit.handle);
            assert_eq!(found, Some(overflowed));
        }
        churn.join().expect("churn");
    });
}

#[test]
fn the_filter_is_not_emptied_under_a_key_that_overflows_at_that_instant() {
    check(|| {
        let (table, mut owners, _) = table(6, 3, 1);
        let (mut third, mut second, mut first) =
            (owners.remove(2), owners.remove(1), owners.remove(0));
        insert(&mut first, HASH, 1).expect("the primary slot");
        let leaving = insert(&mut second, HASH, 2).expect("the alternate slot");
        let remover = thread::spawn(move || second.remove(leaving, only(HASH)).expect("there"));
        if insert(&mut third, HASH, 3).is_ok() {
            assert!(table.lookup(HASH, &Tuple(3)).is_some());
            remover.join().expect("remover");
            assert!(table.lookup(HASH, &Tuple(3)).is_some());
        } else {
            remover.join().expect("remover");
            assert!(insert(&mut third, HASH, 3).is_ok());
            assert!(table.lookup(HASH, &Tuple(3)).is_some());
        }
    });
}

#[test]
fn of_two_inserts_of_one_key_at_most_one_stays() {
    check(|| {
        let (table, mut owners, _) = table(2, 2, 1);
        let (mut second, mut first) = (owners.remove(1), owners.remove(0));
        let racer = thread::spawn(move || insert(&mut second, HASH, 5));
        let mine = insert(&mut first, HASH, 5);
        let theirs = racer.join().expect("racer");
        let expected = match (mine, theirs) {
            (Ok(_), Ok(_)) => panic!("one key has two flows"),
            (Ok(handle), Err(_)) | (Err(_), Ok(handle)) => Some(handle),
            (Err(_), Err(_)) => None,
        };
        assert_eq!(table.lookup(HASH, &Tuple(5)).map(|hit| hit.handle), expected);
    });
}

#[test]
fn of_two_inserts_of_one_key_into_different_buckets_at_most_one_stays() {
    check(|| {
        let (table, mut owners, _) = table(3, 2, 1);
        let (mut second, mut first) = (owners.remove(1), owners.remove(0));
        let leaving = insert(&mut first, HASH, 1).expect("the primary slot");
        let racer = thread::spawn(move || insert(&mut second, HASH, 5));
        first.remove(leaving, only(HASH)).expect("there");
        let mine = insert(&mut first, HASH, 5);
        let theirs = racer.join().expect("racer");
        assert!(mine.is_err() || theirs.is_err(), "one key has two flows");
        let expected = mine.or(theirs).ok();
        assert_eq!(table.lookup(HASH, &Tuple(5)).map(|hit| hit.handle), expected);
    });
}

#[test]
fn an_entry_that_a_worker_holds_is_not_used_again_until_it_announces() {
    check(|| {
        let (table, mut owners, quiescence) = table(1, 1, 1);
        let owner = &mut owners[0];
        let handle = insert(owner, HASH, 1).expect("room");
        let reader = thread::spawn({
            let quiescence = quiescence.clone();
            move || {
                quiescence.go_online(0);
                if let Some(hit) = table.lookup(HASH, &Tuple(1)) {
                    for _ in 0..2 {
                        assert_eq!(hit.entry.words()[1].load(Relaxed), !1);
                    }
                }
                quiescence.announce(0);
                if let Some(hit) = table.lookup(HASH, &Tuple(1)) {
                    assert_eq!(hit.entry.words()[1].load(Relaxed), !1);
                }
                quiescence.go_offline(0);
            }
        });
        owner.remove(handle, only(HASH)).expect("there");
        for _ in 0..2 {
            if insert(owner, HASH, 2).is_ok() {
                break;
            }
        }
        reader.join().expect("reader");
    });
}

#[test]
fn a_snapshot_is_of_one_flow() {
    check(|| {
        let (table, mut owners, _) = table(1, 1, 1);
        let owner = &mut owners[0];
        let handle = insert(owner, HASH, 1).expect("room");
        let dumper = thread::spawn(move || {
            if let Some(words) = table.snapshot(handle) {
                assert_eq!(words[1], !words[0]);
            }
        });
        owner.remove(handle, only(HASH)).expect("there");
        // The only worker is offline: the handle is free at once.
        insert(owner, HASH, 2).expect("room");
        dumper.join().expect("dumper");
    });
}

#[test]
fn a_snapshot_is_of_one_flow_also_where_an_insert_found_the_index_full() {
    check(|| {
        let (table, mut owners, _) = table(4, 2, 1);
        for key in 1..=2 {
            insert(&mut owners[1], HASH, key).expect("room");
        }
        let dumper = thread::spawn({
            let handle = Handle::new(4).expect("a handle");
            move || {
                if let Some(words) = table.snapshot(handle) {
                    assert_eq!(words[1], !words[0]);
                }
            }
        });
        assert_eq!(insert(&mut owners[0], HASH, 3), Err(InsertError::IndexFull));
        // The same handle, which nobody could find and nobody is waited for.
        assert!(insert(&mut owners[0], !HASH, 4).is_ok());
        dumper.join().expect("dumper");
    });
}
