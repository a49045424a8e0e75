//! A process that is killed at any of its writes, and what the next one finds.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;
use crate::memory::LINE_BYTES;
use crate::mortal::{interrupt_after, live_for};
use crate::sync::Ordering::Relaxed;
use crate::{Hashes, Sweep, Tag};

/// Found by word 0, and by word 1 unless that is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (0..2).any(|word| entry.words()[word].load(Relaxed) == self.0).then_some(())
    }
}

/// Few heads, so that buckets overflow.
fn hash(key: u64) -> u64 {
    crate::Hasher::new([7, 9]).hash(&[key % 8, 0]) ^ key << 28
}

fn keys(entry: &Entry<8>) -> Option<Keys<Tuple>> {
    let [original, alias] = [0, 1].map(|word| entry.words()[word].load(Relaxed));
    let with_hash = |key| (hash(key), Tuple(key));
    (original != 0).then(|| (with_hash(original), (alias != 0).then(|| with_hash(alias))))
}

fn alias_of(key: u64) -> Option<u64> {
    key.is_multiple_of(3).then_some(key + 1_000_000)
}

fn keys_of(key: u64) -> Keys<Tuple> {
    let with_hash = |key| (hash(key), Tuple(key));
    (with_hash(key), alias_of(key).map(with_hash))
}

fn hashes_of(key: u64) -> Hashes {
    Hashes { original: hash(key), alias: alias_of(key).map(hash) }
}

/// Memory that can be given to a table again and again.
struct Reused {
    start: *mut u8,
    bytes: usize,
}

impl Reused {
    fn new(bytes: usize) -> Self {
        let memory = Box::leak(vec![0u8; bytes + LINE_BYTES].into_boxed_slice());
        let skip = memory.as_ptr().align_offset(LINE_BYTES);
        Self { start: memory[skip..].as_mut_ptr(), bytes }
    }

    fn lend(&self) -> &'static mut [u8] {
        // SAFETY: leaked memory of this length. Each caller drops the table it has made of what it
        // was lent before, so nobody else has a reference into it.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

/// What a process does, and what it has done when it is killed.
struct Script {
    /// Keys that were inserted for good, with their handles.
    there: RefCell<BTreeMap<u64, Handle>>,
    /// A key whose insert or removal is under way.
    under_way: RefCell<Option<u64>>,
}

/// Segments of 8 entries.
const SHAPE: Shape =
    Shape { capacity: 128, committed: 450, capacity_max: 450, owners: 2, details: true };

impl Script {
    fn new() -> Self {
        Self { there: RefCell::default(), under_way: RefCell::default() }
    }

    fn insert(&self, owner: &mut Owner<8>, key: u64) {
        let (original, alias) = keys_of(key);
        let words = [key, alias_of(key).unwrap_or(0), 0, 0, 0, 0, 0, 0];
        *self.under_way.borrow_mut() = Some(key);
        if let Ok(handle) = owner.insert(original, alias, &words) {
            self.there.borrow_mut().insert(key, handle);
        }
        *self.under_way.borrow_mut() = None;
    }

    fn remove(&self, owner: &mut Owner<8>, key: u64) {
        let Some(handle) = self.there.borrow_mut().remove(&key) else { return };
        *self.under_way.borrow_mut() = Some(key);
        let removed = owner.remove(handle, hashes_of(key));
        assert_eq!(removed, Ok(()));
        *self.under_way.borrow_mut() = None;
    }

    /// Fills a table that grows, meets keys that are there, removes most, shrinks, and closes.
    fn run(&self, memory: &'static mut [u8]) {
        let quiescence = Quiescence::new(1).expect("workers");
        let memory = Memory::Mapped(memory);
        let (table, mut owners) = Table::<8>::new(memory, SHAPE, quiescence).expect("set up");
        table.set_tag(&TAG);
        let owner_of = |key: u64| (key % 2) as usize;
        for key in 1..=200 {
            self.insert(&mut owners[owner_of(key)], key);
            if key % 10 == 0 {
                // The same, and one whose alias is taken.
                self.insert_again(&mut owners[1], key);
            }
            if key % 4 == 0 {
                self.remove(&mut owners[owner_of(key - 3)], key - 3);
            }
            owners[owner_of(key)].sweep(2, |_, _| Sweep::Keep);
        }
        self.resize(&table, &mut owners[0], 3);
        for key in 1..=190 {
            self.remove(&mut owners[owner_of(key)], key);
            owners[owner_of(key)].sweep(2, |_, _| Sweep::Keep);
        }
        table.set_capacity(128, 128);
        self.resize(&table, &mut owners[1], 1);
        for key in 301..310 {
            self.insert(&mut owners[owner_of(key)], key);
        }
        assert!(table.close(owners));
    }

    fn insert_again(&self, owner: &mut Owner<8>, key: u64) {
        let words = [key, 0, 0, 0, 0, 0, 0, 0];
        assert!(owner.insert((hash(key), Tuple(key)), None, &words).is_err());
        let words = [key + 500, key, 0, 0, 0, 0, 0, 0];
        let alias = Some((hash(key), Tuple(key)));
        assert!(owner.insert((hash(key + 500), Tuple(key + 500)), alias, &words).is_err());
    }

    /// Moves the index to so many groups.
    fn resize(&self, table: &Table<8>, owner: &mut Owner<8>, groups: usize) {
        let note = |half, groups| table.header[0].note_groups(half, groups);
        assert!(table.index.begin_resize(groups, note));
        while table.index.resizes() {
            owner.sweep(0, |_, _| Sweep::Keep);
        }
    }
}

const TAG: Tag = [1, 2, 3, 4, 5, 6, 7, 8];

/// Takes the memory over and compares it with what the script has done. Says whether the index had
/// to be rebuilt.
fn take_over_and_compare(memory: &Reused, script: &Script, owners: usize) -> bool {
    let quiescence = Quiescence::new(1).expect("workers");
    let shape = Shape { owners, ..SHAPE };
    let taken = Table::<8>::take_over(memory.lend(), &shape, &quiescence, keys);
    let (table, mut owners, taken) = taken.expect("a table");
    assert_eq!(taken.given_up, 0);
    let there = script.there.borrow();
    let mut found = BTreeMap::new();
    table.for_each(table.handles(), |handle, words| {
        assert_eq!(found.insert(words[0], handle), None, "two entries of one key");
    });
    for (key, handle) in there.iter() {
        let (original, alias) = keys_of(*key);
        for (hash, name) in std::iter::once(original).chain(alias) {
            let hit = table.lookup(hash, &name).map(|hit| hit.handle);
            assert_eq!(hit, Some(*handle), "{name:?} was inserted and not removed");
        }
    }
    found.retain(|key, _| !there.contains_key(key));
    let under_way = *script.under_way.borrow();
    assert!(found.keys().all(|key| Some(*key) == under_way), "{found:?} beside {under_way:?}");
    let entries = (there.len() + found.len()) as u64;
    assert_eq!((taken.entries, table.statistics().used), (entries, entries));
    found.extend(there.iter());
    use_up(&table, &mut owners, found);
    taken.rebuilt
}

/// Removes all there is, each by its holder, and fills the table to its last entry.
fn use_up(table: &Table<8>, owners: &mut [Owner<8>], entries: BTreeMap<u64, Handle>) {
    for (key, handle) in entries {
        let holder = table.holder(handle).expect("somebody has it");
        assert_eq!(owners[holder].remove(handle, hashes_of(key)), Ok(()));
        assert!(table.lookup(hash(key), &Tuple(key)).is_none());
        owners[holder].reclaim();
    }
    assert_eq!((table.statistics().keys, table.statistics().slots_lost), (0, 0));
    assert!(table.index.is_empty());
    let words = |key| [key, 0, 0, 0, 0, 0, 0, 0];
    let mut next = 2_000..;
    let mut inserted = 0;
    for owner in owners {
        for key in next.by_ref() {
            if owner.insert((hash(key), Tuple(key)), None, &words(key)).is_err() {
                break;
            }
            inserted += 1;
        }
    }
    assert_eq!(inserted, table.capacity(), "no entry is lost to the table");
}

#[test]
fn whatever_write_a_process_is_killed_at_the_next_one_finds_what_was_inserted_and_not_removed() {
    let memory = Reused::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
    let mut kills = 0;
    for writes in 0.. {
        let script = Script::new();
        memory.lend().fill(0);
        let ended = live_for(writes, || script.run(memory.lend()));
        match Table::<8>::inspect(memory.lend()) {
            Ok(inspected) => {
                assert_eq!(inspected.is_clean(), ended);
                kills += 1;
                let rebuilt = take_over_and_compare(&memory, &script, 1 + writes as usize % 3);
                assert!(rebuilt || ended);
            }
            // It had not yet begun.
            Err(error) => assert!(error == TakeOverError::NoTable && !ended && writes < 1_000),
        }
        if ended {
            break;
        }
    }
    assert!(kills > 2_000, "{kills} kills");
}

#[test]
fn a_process_that_is_killed_while_it_takes_over_leaves_all_to_the_next() {
    let memory = Reused::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
    let script = Script::new();
    // In the middle of the script.
    assert!(!live_for(2_000, || script.run(memory.lend())));
    let killed = memory.lend().to_vec();
    for writes in (0..).step_by(3) {
        memory.lend().copy_from_slice(&killed);
        let ended = live_for(writes, || {
            let quiescence = Quiescence::new(1).expect("workers");
            Table::<8>::take_over(memory.lend(), &SHAPE, &quiescence, keys).expect("a table");
        });
        assert!(take_over_and_compare(&memory, &script, 2));
        if ended {
            assert!(writes > 100);
            break;
        }
    }
}

#[test]
fn a_closed_table_is_gone_on_with_as_it_is_unless_its_owners_are_others() {
    let memory = Reused::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
    for owners in 1..4 {
        let script = Script::new();
        memory.lend().fill(0);
        script.run(memory.lend());
        let inspected = Table::<8>::inspect(memory.lend()).expect("a table");
        assert_eq!((inspected.tag, inspected.owners, inspected.unclosed), (TAG, 2, 0));
        assert_eq!(take_over_and_compare(&memory, &script, owners), owners != 2);
    }
}

#[test]
fn of_two_that_insert_one_flow_the_one_that_stays_outlives_the_kill_of_the_other() {
    let memory = Reused::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
    let (mut stayed, mut kills) = (0, 0);
    for (interrupted, key) in (0..20).flat_map(|writes| [(writes, 4), (writes, 3)]) {
        for writes in 0..60 {
            memory.lend().fill(0);
            let script = std::rc::Rc::new(Script::new());
            let quiescence = Quiescence::new(1).expect("workers");
            let lent = Memory::Mapped(memory.lend());
            let (table, mut owners) = Table::<8>::new(lent, SHAPE, quiescence).expect("set up");
            let mut other = owners.pop().expect("two owners");
            let (original, alias) = keys_of(key);
            let words = [key, alias_of(key).unwrap_or(0), 0, 0, 0, 0, 0, 0];
            let inserts = script.clone();
            interrupt_after(interrupted, move || inserts.insert(&mut other, key));
            let mut inserted = None;
            let ended = live_for(writes, || {
                inserted = owners[0].insert(original, alias, &words).ok();
            });
            interrupt_after(u64::MAX, || ());
            if let Some(handle) = inserted {
                assert!(script.there.borrow_mut().insert(key, handle).is_none(), "both stay");
            } else if script.there.borrow().is_empty() {
                *script.under_way.borrow_mut() = Some(key);
            }
            stayed += u64::from(!ended && !script.there.borrow().is_empty());
            kills += u64::from(!ended);
            drop((table, owners));
            assert!(take_over_and_compare(&memory, &script, 2));
        }
    }
    assert!(stayed > 100 && kills > stayed, "{stayed} of {kills}");
}
