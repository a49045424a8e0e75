//! Models of the table's concurrent steps, every interleaving of them within a bound. Buckets
//! have one slot here, so that keys overflow at once. `RUSTFLAGS="--cfg loom" cargo test
//! -p flow-table --release --test loom --target-dir target/loom`
#![cfg(loom)]

use std::sync::Arc;

use flow_table::{
    Entry, Handle, Hashes, InsertError, Key, Memory, Owner, Quiescence, Shape, Sweep, Table,
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
    check_within(3, model);
}

fn check_within(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs both at once, each in a thread of its own: a thread that has just started another one is
/// hardly interleaved with it before it waits for it.
fn both<A: 'static, B: 'static>(
    first: impl FnOnce() -> A + 'static,
    second: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let (first, second) = (thread::spawn(first), thread::spawn(second));
    (first.join().expect("the first thread"), second.join().expect("the second thread"))
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
        let churn = move || {
            first.remove(leaving, only(HASH)).expect("there");
            // Takes the primary slot again, or finds both full for a moment.
            let _ = insert(&mut first, HASH, 3);
        };
        both(churn, move || {
            for _ in 0..2 {
                let found = table.lookup(HASH, &Tuple(2)).map(|hit| hit.handle);
                assert_eq!(found, Some(overflowed));
            }
        });
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
        let remove = move || second.remove(leaving, only(HASH)).expect("there");
        let ((), (mut third, inserted)) = both(remove, {
            let table = table.clone();
            move || {
                let inserted = insert(&mut third, HASH, 3).is_ok();
                assert!(!inserted || table.lookup(HASH, &Tuple(3)).is_some());
                (third, inserted)
            }
        });
        assert!(inserted || insert(&mut third, HASH, 3).is_ok());
        assert!(table.lookup(HASH, &Tuple(3)).is_some());
    });
}

#[test]
fn of_two_inserts_of_one_key_at_most_one_stays() {
    check(|| {
        let (table, mut owners, _) = table(2, 2, 1);
        let (mut second, mut first) = (owners.remove(1), owners.remove(0));
        let (mine, theirs) =
            both(move || insert(&mut first, HASH, 5), move || insert(&mut second, HASH, 5));
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
        let replace = move || {
            first.remove(leaving, only(HASH)).expect("there");
            insert(&mut first, HASH, 5)
        };
        let (mine, theirs) = both(replace, move || insert(&mut second, HASH, 5));
        assert!(mine.is_err() || theirs.is_err(), "one key has two flows");
        let expected = mine.or(theirs).ok();
        assert_eq!(table.lookup(HASH, &Tuple(5)).map(|hit| hit.handle), expected);
    });
}

#[test]
fn an_entry_that_a_worker_holds_is_not_used_again_until_it_announces() {
    check(|| {
        let (table, mut owners, quiescence) = table(1, 1, 1);
        let mut owner = owners.remove(0);
        let handle = insert(&mut owner, HASH, 1).expect("room");
        let read = move || {
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
        };
        both(read, move || {
            owner.remove(handle, only(HASH)).expect("there");
            let _ = (0..3).find(|_| insert(&mut owner, HASH, 2).is_ok());
        });
    });
}

#[test]
fn a_snapshot_is_of_one_flow() {
    check(|| {
        let (table, mut owners, _) = table(1, 1, 1);
        let mut owner = owners.remove(0);
        let handle = insert(&mut owner, HASH, 1).expect("room");
        let dump = move || {
            if let Some(words) = table.snapshot(handle) {
                assert_eq!(words[1], !words[0]);
            }
        };
        both(dump, move || {
            owner.remove(handle, only(HASH)).expect("there");
            // The only worker is offline: the handle is free at once.
            insert(&mut owner, HASH, 2).expect("room");
        });
    });
}

#[test]
fn a_snapshot_is_of_one_flow_also_where_an_insert_found_the_index_full() {
    check(|| {
        let (table, mut owners, _) = table(4, 2, 1);
        for key in 1..=2 {
            insert(&mut owners[1], HASH, key).expect("room");
        }
        let handle = Handle::new(3).expect("a handle");
        let dump = move || {
            if let Some(words) = table.snapshot(handle) {
                assert_eq!(words[1], !words[0]);
            }
        };
        both(dump, move || {
            assert_eq!(insert(&mut owners[0], HASH, 3), Err(InsertError::IndexFull));
            // The same handle, which nobody could find and nobody is waited for.
            assert_eq!(insert(&mut owners[0], !HASH, 4), Ok(handle));
        });
    });
}

/// Moves every group there is, as a worker that announces between two of them.
fn move_all(worker: usize, owner: &mut Owner<8>, quiescence: &Quiescence) {
    quiescence.go_online(worker);
    while owner.table().is_resizing() {
        owner.sweep(0, |_, _| Sweep::Keep);
        quiescence.announce(worker);
    }
    quiescence.go_offline(worker);
}

#[test]
fn a_key_is_found_while_the_index_moves() {
    check(|| {
        let (table, mut owners, quiescence) = table(1, 1, 1);
        let handle = insert(&mut owners[0], HASH, 1).expect("room");
        assert!(table.begin_resize(2));
        let look = move || {
            let mut hits = [None];
            table.lookup_burst(&[HASH], &[Tuple(1)], &mut hits);
            assert_eq!(hits[0].map(|hit| hit.handle), Some(handle));
            let single = table.lookup(HASH, &Tuple(1)).map(|hit| hit.handle);
            assert_eq!(single, Some(handle));
        };
        both(move || move_all(0, &mut owners[0], &quiescence), look);
    });
}

#[test]
fn an_overflowed_key_is_found_while_the_index_moves() {
    check(|| {
        let (table, mut owners, quiescence) = table(2, 1, 1);
        insert(&mut owners[0], HASH, 1).expect("the primary slot");
        let handle = insert(&mut owners[0], HASH, 2).expect("the alternate slot");
        assert!(table.begin_resize(1));
        let look = move || {
            let mut hits = [None];
            table.lookup_burst(&[HASH], &[Tuple(2)], &mut hits);
            assert_eq!(hits[0].map(|hit| hit.handle), Some(handle));
        };
        both(move || move_all(0, &mut owners[0], &quiescence), look);
    });
}

#[test]
fn a_key_inserted_while_the_index_moves_is_found_from_then_on() {
    check(|| {
        let (table, mut owners, quiescence) = table(2, 2, 1);
        let (mut other, mut moving) = (owners.remove(1), owners.remove(0));
        assert!(table.begin_resize(2));
        let insert_and_find = {
            let table = table.clone();
            move || {
                let handle = insert(&mut other, HASH, 1).expect("room");
                let found = table.lookup(HASH, &Tuple(1)).map(|hit| hit.handle);
                assert_eq!(found, Some(handle));
                (other, handle)
            }
        };
        let ((mut other, handle), ()) =
            both(insert_and_find, move || move_all(0, &mut moving, &quiescence));
        let found = || table.lookup(HASH, &Tuple(1)).map(|hit| hit.handle);
        assert_eq!(found(), Some(handle));
        other.remove(handle, only(HASH)).expect("there");
        assert_eq!(found(), None, "there is one slot of it only");
    });
}

#[test]
fn of_two_inserts_of_one_key_while_the_index_moves_at_most_one_stays() {
    // Three threads: two preemptions keep it to seconds.
    check_within(2, || {
        let (table, mut owners, quiescence) = table(3, 3, 1);
        let (mut third, mut second, mut moving) =
            (owners.remove(2), owners.remove(1), owners.remove(0));
        assert!(table.begin_resize(1));
        let mover = thread::spawn(move || move_all(0, &mut moving, &quiescence));
        let (mine, theirs) =
            both(move || insert(&mut third, HASH, 5), move || insert(&mut second, HASH, 5));
        mover.join().expect("mover");
        assert!(mine.is_err() || theirs.is_err(), "one key has two flows");
        let expected = mine.or(theirs).ok();
        assert_eq!(table.lookup(HASH, &Tuple(5)).map(|hit| hit.handle), expected);
    });
}

#[test]
fn a_key_removed_while_the_index_moves_is_gone_and_leaves_no_slot() {
    check(|| {
        let (table, mut owners, quiescence) = table(2, 2, 1);
        let (mut other, mut moving) = (owners.remove(1), owners.remove(0));
        let handle = insert(&mut other, HASH, 1).expect("room");
        assert!(table.begin_resize(2));
        let remove = move || {
            other.remove(handle, only(HASH)).expect("there");
            other
        };
        let (mut other, ()) = both(remove, move || move_all(0, &mut moving, &quiescence));
        assert!(table.lookup(HASH, &Tuple(1)).is_none());
        // The same handle under another key: a slot that was left would find it.
        other.reclaim();
        let again: Vec<_> = (2..=3).filter_map(|key| insert(&mut other, !HASH, key).ok()).collect();
        assert!(again.contains(&handle));
        let stale = (2..=3).any(|key| table.lookup(HASH, &Tuple(key)).is_some());
        assert!(!stale, "a slot under the old hash is left");
    });
}

#[test]
fn an_entry_found_in_the_copy_of_a_removed_slot_is_not_used_again_while_held() {
    check(|| {
        let (table, mut owners, quiescence) = table(2, 2, 2);
        let (mut other, mut moving) = (owners.remove(1), owners.remove(0));
        let handle = insert(&mut other, HASH, 1).expect("room");
        assert!(table.begin_resize(1));
        quiescence.go_online(0);
        quiescence.go_online(1);
        let mover = thread::spawn({
            let quiescence = quiescence.clone();
            move || {
                moving.sweep(0, |_, _| Sweep::Keep);
                quiescence.go_offline(0);
            }
        });
        let reader = thread::spawn({
            let (quiescence, table) = (quiescence.clone(), table.clone());
            move || {
                quiescence.announce(1);
                if let Some(hit) = table.lookup(HASH, &Tuple(1)) {
                    assert_eq!(hit.entry.words()[1].load(Relaxed), !1);
                }
                quiescence.go_offline(1);
            }
        });
        let remover = thread::spawn(move || {
            other.remove(handle, only(HASH)).expect("there");
            other.reclaim();
            other.reclaim();
            let _ = insert(&mut other, !HASH, 2);
        });
        for thread in [mover, reader, remover] {
            thread.join().expect("a thread failed");
        }
    });
}
