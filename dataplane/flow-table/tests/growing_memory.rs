//! What of a table's memory is touched: only what was committed, also while it grows, is left behind
//! and taken over.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use flow_table::{Entry, Hasher, Hashes, Key, Memory, Owner, Quiescence, Shape, Table};

const POISON: u8 = 0xa5;
const SHAPE: Shape =
    Shape { capacity: 500, committed: 1000, capacity_max: 40_000, owners: 2, details: true };

#[derive(Clone, Copy)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (entry.words()[0].load(Relaxed) == self.0).then_some(())
    }
}

fn hash(key: u64) -> u64 {
    Hasher::new([1, 2]).hash(&[key, 0])
}

/// Memory of which only `regions` are there; whoever touches the rest is seen. The table has it for
/// the rest of the test's process.
#[derive(Clone, Copy)]
struct Poisoned {
    start: usize,
    bytes: usize,
}

impl Poisoned {
    fn new(bytes: usize) -> Self {
        let memory = Box::leak(vec![POISON; bytes + 64].into_boxed_slice());
        let skip = memory.as_ptr().align_offset(64);
        let memory = &mut memory[skip..skip + bytes];
        Self { start: memory.as_mut_ptr().expose_provenance(), bytes }
    }

    fn lend(self) -> &'static mut [u8] {
        let start = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: leaked memory of this length; a test uses one borrow after the other.
        unsafe { std::slice::from_raw_parts_mut(start, self.bytes) }
    }

    fn provide(self, regions: &[Range<usize>], before: &[Range<usize>]) {
        let memory = self.lend();
        for (region, before) in regions.iter().zip(before) {
            assert_eq!(region.start, before.start);
            memory[before.end..region.end].fill(0);
        }
    }

    fn assert_untouched_beside(self, regions: &[Range<usize>]) {
        let memory = self.lend();
        let ends = regions.iter().skip(1).map(|region| region.start).chain([memory.len()]);
        for (region, end) in regions.iter().zip(ends) {
            let beside = &memory[region.end..end];
            let touched = beside.iter().position(|byte| *byte != POISON);
            assert_eq!(touched, None, "behind {region:?}");
        }
    }
}

/// Inserts flows of two keys until no more fit; says how many did.
fn fill(owners: &mut [Owner<8>], from: u64) -> u64 {
    let mut key = from;
    loop {
        let owner = &mut owners[usize::from(key.is_multiple_of(3))];
        let words = [key, 0, 0, 0, 0, 0, 0, 0];
        let alias = (hash(key ^ 1 << 60), Tuple(key));
        if owner.insert((hash(key), Tuple(key)), Some(alias), &words).is_err() {
            return key - from;
        }
        owner.sweep(1, |_, _| flow_table::Sweep::Keep);
        key += 1;
    }
}

fn nothing() -> Vec<Range<usize>> {
    let regions = Table::<8>::regions(&SHAPE, 1).expect("a shape");
    regions.iter().map(|region| region.start..region.start).collect()
}

#[test]
fn a_table_touches_nothing_but_what_was_committed_and_grows_when_more_is() {
    let memory = Poisoned::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
    let mut there = Table::<8>::regions(&SHAPE, SHAPE.committed).expect("a shape");
    memory.provide(&there, &nothing());
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Mapped(memory.lend()), SHAPE, quiescence).expect("a table");
    let mut inserted = 0;
    for committed in [1000, 3000, 20_000, 40_000] {
        let more = table.regions_of(committed);
        memory.provide(&more, &there);
        there = more;
        let capacity = u64::from(table.commit(committed));
        inserted += fill(&mut owners, inserted);
        assert!(inserted <= capacity && inserted * 100 >= capacity * 95, "{inserted} {capacity}");
        assert_eq!(table.statistics().index_full, 0);
        memory.assert_untouched_beside(&there);
        let is_there = |key: u64| table.lookup(hash(key), &Tuple(key)).is_some();
        assert!((0..inserted).all(is_there));
    }
}

#[test]
fn what_was_left_by_a_table_that_grew_is_taken_over_without_touching_more() {
    for closed in [false, true] {
        let memory = Poisoned::new(Table::<8>::memory_bytes(&SHAPE).expect("a shape"));
        let there = Table::<8>::regions(&SHAPE, 4000).expect("a shape");
        memory.provide(&there, &nothing());
        let shape = Shape { committed: 4000, ..SHAPE };
        let quiescence = Quiescence::new(1).expect("workers");
        let (table, mut owners) =
            Table::<8>::new(Memory::Mapped(memory.lend()), shape, quiescence).expect("a table");
        let inserted = fill(&mut owners, 0);
        table.note_capacity();
        if closed {
            assert!(table.close(owners));
        }
        let inspected = Table::<8>::inspect(memory.lend()).expect("a table");
        assert_eq!(inspected.capacity, table.capacity() as usize);
        assert!(inspected.committed >= 4000 && inspected.capacity_max == 40_000);
        assert_eq!(inspected.regions::<8>(inspected.committed), there);
        let next = Shape { capacity: 600, committed: 700, ..SHAPE };
        let keys = |entry: &Entry<8>| {
            let key = entry.words()[0].load(Relaxed);
            Some(((hash(key), Tuple(key)), Some((hash(key ^ 1 << 60), Tuple(key)))))
        };
        let quiescence = Quiescence::new(1).expect("workers");
        let (table, _owners, taken) =
            Table::take_over(memory.lend(), &next, &quiescence, keys).expect("a table");
        assert_eq!((taken.rebuilt, taken.entries, taken.given_up), (!closed, inserted, 0));
        assert!((0..inserted).all(|key| table.lookup(hash(key), &Tuple(key)).is_some()));
        memory.assert_untouched_beside(&there);
        // It remembers how far its memory goes, whatever it may use of it now.
        let again = Table::<8>::inspect(memory.lend()).expect("a table");
        assert_eq!(again.committed, inspected.committed);
        assert!(again.capacity < 1000);
    }
}

#[test]
fn memory_above_a_lower_capacity_is_free_once_the_last_entry_there_has_ended() {
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(4000, 1), Arc::clone(&quiescence))
            .expect("a table");
    let owner = &mut owners[0];
    for key in 0..4000 {
        owner.insert((hash(key), Tuple(key)), None, &[key, 0, 0, 0, 0, 0, 0, 0]).expect("room");
    }
    table.set_capacity(500, 500);
    assert!(!table.is_free_above_capacity());
    for _ in 0..100 {
        owner.sweep(400, |_, entry| {
            let key = entry.words()[0].load(Relaxed);
            flow_table::Sweep::Remove(Hashes { original: hash(key), alias: None })
        });
    }
    assert!(table.is_free_above_capacity(), "{:?}", table.statistics());
}

/// What was claimed above a lower capacity counted as if it were below: nobody could claim there.
#[test]
fn a_table_that_shrinks_takes_new_entries_while_old_ones_are_above_its_capacity() {
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(4000, 1), Arc::clone(&quiescence))
            .expect("a table");
    let owner = &mut owners[0];
    let insert = |owner: &mut Owner<8>, key: u64| {
        owner.insert((hash(key), Tuple(key)), None, &[key, 0, 0, 0, 0, 0, 0, 0]).is_ok()
    };
    assert!((0..4000).all(|key| insert(owner, key)));
    // All that is left has been inserted last, and lies above.
    for _ in 0..100 {
        owner.sweep(400, |_, entry| {
            let key = entry.words()[0].load(Relaxed);
            let hashes = Hashes { original: hash(key), alias: None };
            if key < 3700 { flow_table::Sweep::Remove(hashes) } else { flow_table::Sweep::Keep }
        });
    }
    let capacity = u64::from(table.set_capacity(1000, 1000));
    assert!(!table.is_free_above_capacity());
    let more = (5000..).take_while(|key| insert(owner, *key)).count() as u64;
    assert!((capacity - 300..=capacity).contains(&more), "{more} of {capacity}");
}
