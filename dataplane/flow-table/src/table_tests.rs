use super::*;
use crate::entry::CAPACITY_MAX;
use crate::sync::Ordering::Relaxed;
use crate::{Hashes, InsertError, RemoveError, Sweep};

/// A flow of two tuples, as words 0 and 1; matching tells which one it was.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = usize;

    fn matches(&self, entry: &Entry<8>) -> Option<usize> {
        (0..2).find(|side| entry.words()[*side].load(Relaxed) == self.0)
    }
}

const ONLINE: usize = 0;

fn table_on(path: Path, capacity: usize) -> (Arc<Table<8>>, Owner<8>, Arc<Quiescence>) {
    let quiescence = Quiescence::new(1).expect("one worker");
    quiescence.go_online(ONLINE);
    let (table, owners) =
        Table::with_path(Memory::Heap, Shape::fixed(capacity, 1), Arc::clone(&quiescence), path)
            .expect("set up");
    let owner = owners.into_iter().next().expect("one owner");
    (table, owner, quiescence)
}

fn table(capacity: usize) -> (Arc<Table<8>>, Owner<8>, Arc<Quiescence>) {
    table_on(Path::best(), capacity)
}

fn words(original: u64, reply: u64) -> [u64; 8] {
    [original, reply, 2, 3, 4, 5, 6, original ^ reply]
}

fn insert(owner: &mut Owner<8>, hash: u64, key: u64) -> Result<Handle, InsertError> {
    owner.insert((hash, Tuple(key)), None, &words(key, u64::MAX))
}

fn only(hash: u64) -> Hashes {
    Hashes { original: hash, alias: None }
}

/// Few distinct heads, so that buckets overflow and candidates of other flows are met.
fn crowded_hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15) & !((1 << 56) - 1)
}

#[test]
fn every_path_finds_in_bursts_what_single_lookups_find() {
    for path in Path::available() {
        let (table, mut owner, _) = table_on(path, 2000);
        let mut inserted = 0;
        for key in 0..2000 {
            inserted += u32::from(insert(&mut owner, crowded_hash(key), key).is_ok());
        }
        assert!(inserted > 1500, "{path:?}: {inserted}");
        let keys: Vec<_> = (0..4001).map(Tuple).collect();
        let hashes: Vec<_> = keys.iter().map(|key| crowded_hash(key.0)).collect();
        let mut hits = vec![None; keys.len()];
        table.lookup_burst(&hashes, &keys, &mut hits);
        for ((key, hash), hit) in keys.iter().zip(&hashes).zip(&hits) {
            let single = table.lookup(*hash, key);
            assert_eq!(hit.map(|hit| hit.handle), single.map(|hit| hit.handle), "{path:?} {key:?}");
        }
        let found = hits.iter().flatten().count();
        assert_eq!(found as u32, inserted, "{path:?}: every inserted key is found");
    }
}

#[test]
fn a_burst_ends_with_its_shortest_slice() {
    let (table, mut owner, _) = table(10);
    insert(&mut owner, 5, 5).expect("room");
    let mut hits = [None; 3];
    table.lookup_burst(&[5, 5, 5], &[Tuple(5), Tuple(5)], &mut hits);
    assert_eq!(hits.map(|hit| hit.is_some()), [true, true, false]);
}

#[test]
fn a_flow_is_found_under_both_its_hashes_and_tells_which() {
    let (table, mut owner, _) = table(10);
    let handle = owner
        .insert((111 << 40, Tuple(1)), Some((222 << 40, Tuple(2))), &words(1, 2))
        .expect("room");
    let found =
        |hash: u64, key| table.lookup(hash << 40, &Tuple(key)).map(|h| (h.handle, h.matched));
    assert_eq!(found(111, 1), Some((handle, 0)));
    assert_eq!(found(222, 2), Some((handle, 1)));
    assert_eq!(found(111, 3), None);
    owner.remove(handle, Hashes { original: 111 << 40, alias: Some(222 << 40) }).expect("there");
    assert_eq!((found(111, 1), found(222, 2)), (None, None));
}

#[test]
fn a_second_flow_of_the_same_key_or_alias_is_refused() {
    let (table, mut owner, _) = table(10);
    let first = owner.insert((10 << 40, Tuple(1)), Some((20 << 40, Tuple(2))), &words(1, 2));
    let first = first.expect("room");
    assert_eq!(insert(&mut owner, 10 << 40, 1), Err(InsertError::Exists(first)));
    let taken = owner.insert((30 << 40, Tuple(3)), Some((20 << 40, Tuple(2))), &words(3, 2));
    assert_eq!(taken, Err(InsertError::AliasExists(first)));
    assert!(table.lookup(30 << 40, &Tuple(3)).is_none());
    let statistics = table.statistics();
    assert_eq!((statistics.used, statistics.exists, statistics.retired_waiting), (1, 2, 0));
}

#[test]
fn a_full_slab_refuses_until_an_entry_is_removed_and_let_go_of() {
    let (table, mut owner, quiescence) = table(3);
    let handles: Vec<_> =
        (1..=3).map(|key| insert(&mut owner, key << 40, key).expect("room")).collect();
    assert_eq!(insert(&mut owner, 4 << 40, 4), Err(InsertError::SlabFull));
    owner.remove(handles[0], only(1 << 40)).expect("there");
    assert_eq!(insert(&mut owner, 4 << 40, 4), Err(InsertError::SlabFull), "a worker may hold it");
    assert_eq!(table.statistics().retired_waiting, 1);
    let kept: Vec<_> = table.entry(handles[0]).expect("handle").words().iter().collect();
    assert_eq!(kept[0].load(Relaxed), 1, "its words are as they were");
    quiescence.announce(ONLINE);
    assert_eq!(insert(&mut owner, 4 << 40, 4), Err(InsertError::SlabFull), "one of two periods");
    quiescence.announce(ONLINE);
    assert_eq!(insert(&mut owner, 4 << 40, 4), Ok(handles[0]));
    let expected = Statistics {
        capacity: 3,
        used: 3,
        used_high_water: 3,
        slab_full: 3,
        keys: 3,
        ..Statistics::default()
    };
    assert_eq!(table.statistics(), expected);
}

#[test]
fn one_hash_for_too_many_flows_fills_its_group_and_nothing_else_is_harmed() {
    let (table, mut owner, _) = table(2 * GROUP_SLOTS);
    let hash = 77 << 40;
    let full = GROUP_SLOTS as u64;
    assert!((1..=full).all(|key| insert(&mut owner, hash, key).is_ok()));
    assert_eq!(insert(&mut owner, hash, full + 1), Err(InsertError::IndexFull));
    let elsewhere = !0 << 40;
    let pair = ((elsewhere, Tuple(0)), Some((hash, Tuple(full + 2))));
    assert_eq!(owner.insert(pair.0, pair.1, &words(0, full + 2)), Err(InsertError::IndexFull));
    assert!(table.lookup(elsewhere, &Tuple(0)).is_none(), "the first key is withdrawn");
    assert!((1..=full).all(|key| table.lookup(hash, &Tuple(key)).is_some()));
    let mut hits = vec![None; GROUP_SLOTS];
    let keys: Vec<_> = (1..=full).map(Tuple).collect();
    table.lookup_burst(&vec![hash; GROUP_SLOTS], &keys, &mut hits);
    assert!(hits.iter().all(Option::is_some));
    let statistics = table.statistics();
    assert_eq!((statistics.used, statistics.keys, statistics.index_full), (full, full, 2));
}

#[test]
fn wrong_removals_are_named_and_a_wrong_hash_is_counted() {
    let quiescence = Quiescence::new(1).expect("one worker");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(10, 2), quiescence).expect("set up");
    let handle = insert(&mut owners[0], 1 << 40, 1).expect("room");
    assert_eq!(owners[1].remove(handle, only(1 << 40)), Err(RemoveError::NotOwned));
    assert_eq!(owners[0].remove(handle, only(2 << 40)), Err(RemoveError::WrongHash));
    assert_eq!(owners[0].remove(handle, only(1 << 40)), Err(RemoveError::NotInUse));
    assert_eq!(table.statistics().slots_lost, 1);
    assert_eq!(table.statistics_of(0).map(|part| part.used), Some(0));
    assert_eq!(table.statistics_of(2), None);
}

#[test]
fn a_sweep_visits_every_entry_once_a_round_and_removes_what_it_is_told() {
    let (table, mut owner, quiescence) = table(100);
    for key in 0..50 {
        insert(&mut owner, key << 40, key).expect("room");
    }
    let mut seen = Vec::new();
    let mut removed = 0;
    loop {
        let swept = owner.sweep(5, |_, entry| {
            let key = entry.words()[0].load(Relaxed);
            seen.push(key);
            if key % 2 == 0 { Sweep::Remove(only(key << 40)) } else { Sweep::Keep }
        });
        removed += swept.removed;
        if swept.wrapped {
            break;
        }
    }
    assert_eq!(removed, 25);
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert!((0..50).all(|key| table.lookup(key << 40, &Tuple(key)).is_some() == (key % 2 == 1)));
    for _ in 0..4 {
        quiescence.announce(ONLINE);
        owner.sweep(0, |_, _| Sweep::Keep);
    }
    let statistics = table.statistics();
    assert_eq!((statistics.used, statistics.retired_waiting), (25, 0));
    assert_eq!(statistics.used_high_water, 50);
}

#[test]
fn a_dump_sees_what_is_in_use_and_only_within_its_range() {
    let (table, mut owner, _) = table(100);
    let handles: Vec<_> =
        (0..10).map(|key| insert(&mut owner, key << 40, key).expect("room")).collect();
    owner.remove(handles[3], only(3 << 40)).expect("there");
    assert_eq!(table.snapshot(handles[3]), None);
    assert_eq!(table.snapshot(handles[4]), Some(words(4, u64::MAX)));
    let dump = |range| {
        let mut keys = Vec::new();
        table.for_each(range, |_, words| keys.push(words[0]));
        keys
    };
    assert_eq!(dump(0..u32::MAX), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    assert_eq!(dump(handles[8].number()..table.handles().end), [8, 9]);
    assert_eq!(Handle::new(101).and_then(|handle| table.snapshot(handle)), None);
}

#[test]
fn setups_that_cannot_be_are_refused_by_name() {
    let quiescence = Quiescence::new(1).expect("one worker");
    let refused = |memory, capacity, owners| {
        Table::<8>::new(memory, Shape::fixed(capacity, owners), Arc::clone(&quiescence)).err()
    };
    assert_eq!(refused(Memory::Heap, 0, 1), Some(SetupError::ZeroCapacity));
    let most = CAPACITY_MAX;
    let large = SetupError::CapacityTooLarge { capacity: 1 << 28, most };
    assert_eq!(refused(Memory::Heap, 1 << 28, 1), Some(large));
    assert_eq!(
        refused(Memory::Heap, 2, 0),
        Some(SetupError::Owners { capacity: 2, owners: 0, most: 2 })
    );
    assert_eq!(
        refused(Memory::Heap, 2, 3),
        Some(SetupError::Owners { capacity: 2, owners: 3, most: 2 })
    );
    let needed_bytes = Table::<8>::memory_bytes(&Shape::fixed(100, 1)).expect("a capacity");
    let bytes = Box::leak(vec![1u8; needed_bytes + 63].into_boxed_slice());
    let (given_bytes, skip) = (needed_bytes - 1, bytes.as_ptr().align_offset(64));
    let small = SetupError::MemoryTooSmall { given_bytes, needed_bytes };
    let bytes = &mut bytes[skip..skip + given_bytes];
    assert_eq!(refused(Memory::Mapped(bytes), 100, 1), Some(small));
    let bytes = Box::leak(vec![1u8; 128].into_boxed_slice());
    let skip = bytes.as_ptr().align_offset(64) + 1;
    let misaligned = refused(Memory::Mapped(&mut bytes[skip..]), 1, 1);
    assert!(matches!(misaligned, Some(SetupError::Misaligned { .. })), "{misaligned:?}");
}

#[test]
fn mapped_memory_serves_as_the_heap_does() {
    let needed_bytes = Table::<16>::memory_bytes(&Shape::fixed(1000, 3)).expect("a capacity");
    let bytes = Box::leak(vec![0xaau8; needed_bytes + 64].into_boxed_slice());
    let skip = bytes.as_ptr().align_offset(64);
    let quiescence = Quiescence::new(1).expect("one worker");
    let memory = Memory::Mapped(&mut bytes[skip..skip + needed_bytes]);
    let (table, mut owners) =
        Table::<16>::new(memory, Shape::fixed(1000, 3), quiescence).expect("set up");

    #[derive(Clone, Copy)]
    struct Wide(u64);
    impl Key<16> for Wide {
        type Match = ();
        fn matches(&self, entry: &Entry<16>) -> Option<()> {
            (entry.words()[15].load(Relaxed) == self.0).then_some(())
        }
    }
    let hasher = crate::Hasher::new([1, 2]);
    let hash = |key| hasher.hash(&[key, 0]);
    for key in 0..1000u64 {
        // What one owner did not claim, another can have: all entries are used in the end.
        let inserted = (0..3).find_map(|turn| {
            let owner = &mut owners[(key as usize + turn) % 3];
            owner.insert((hash(key), Wide(key)), None, &[key; 16]).ok()
        });
        assert!(inserted.is_some(), "key {key}");
    }
    let refused = owners[0].insert((hash(1000), Wide(1000)), None, &[1000; 16]);
    assert_eq!(refused, Err(InsertError::SlabFull));
    assert!((0..1000).all(|key| table.lookup(hash(key), &Wide(key)).is_some()));
}

#[test]
fn details_are_one_line_for_each_entry_and_zero_when_it_is_inserted() {
    let quiescence = Quiescence::new(1).expect("one worker");
    let shape = Shape { details: true, ..Shape::fixed(1, 1) };
    let (table, mut owners) = Table::<8>::new(Memory::Heap, shape, quiescence).expect("set up");
    let handle = insert(&mut owners[0], 1 << 40, 1).expect("room");
    let details = || table.details(handle).expect("this table has them");
    details()[7].store(9, Relaxed);
    owners[0].remove(handle, only(1 << 40)).expect("there");
    owners[0].reclaim();
    assert_eq!(insert(&mut owners[0], 2 << 40, 2), Ok(handle), "nobody is online");
    assert_eq!(details()[7].load(Relaxed), 0);
    let (plain, _, _) = self::table(10);
    assert!(plain.details(handle).is_none());
}

/// Inserts keys from `first` on until the table is full.
fn fill(owner: &mut Owner<8>, first: u64) -> u64 {
    let hasher = crate::Hasher::new([1, 2]);
    let is_inserted =
        |key: &u64, owner: &mut Owner<8>| insert(owner, hasher.hash(&[*key, 0]), *key).is_ok();
    (first..).take_while(|key| is_inserted(key, owner)).count() as u64
}

#[test]
fn a_table_grows_within_what_is_committed_and_loses_nothing() {
    let quiescence = Quiescence::new(1).expect("one worker");
    let shape = Shape {
        capacity: 1000,
        committed: 20_000,
        capacity_max: 20_000,
        owners: 1,
        details: false,
    };
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, shape, quiescence.clone()).expect("set up");
    let owner = &mut owners[0];
    let hasher = crate::Hasher::new([1, 2]);
    let mut inserted = 0;
    for (committed, capacity) in [(1000, 1000..1100), (5000, 5000..5100), (20_000, 20_000..20_001)]
    {
        table.set_capacity(table.capacity() as usize, committed);
        inserted += fill(owner, inserted);
        assert!(capacity.contains(&inserted), "{inserted} of {committed}");
        assert_eq!(u64::from(table.capacity()), inserted);
        let there = |key: u64| table.lookup(hasher.hash(&[key, 0]), &Tuple(key)).is_some();
        assert!((0..inserted).all(there));
        quiescence.announce(ONLINE);
    }
    assert!(table.index_slots() > 20_000 && table.statistics().index_full == 0);
}

#[test]
fn a_table_that_shrinks_keeps_what_is_in_it_and_gives_back_the_rest() {
    let quiescence = Quiescence::new(1).expect("one worker");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, Shape::fixed(8000, 1), quiescence).expect("set up");
    let owner = &mut owners[0];
    let hasher = crate::Hasher::new([1, 2]);
    assert_eq!(fill(owner, 0), 8000);
    let slots = table.index_slots();
    let capacity = table.set_capacity(1000, 1000);
    assert!((1000..2000).contains(&capacity), "rounded up to whole segments");
    assert_eq!(table.statistics().used, 8000, "nothing is removed");
    let hash = |entry: &Entry<8>| hasher.hash(&[entry.words()[0].load(Relaxed), 0]);
    for _ in 0..1000 {
        owner.sweep(100, |_, entry| {
            let goes = entry.words()[0].load(Relaxed) % 100 != 0;
            if goes { Sweep::Remove(only(hash(entry))) } else { Sweep::Keep }
        });
    }
    let statistics = table.statistics();
    assert_eq!((statistics.used, statistics.capacity), (80, capacity.into()));
    let there = |key: u64| table.lookup(hasher.hash(&[key, 0]), &Tuple(key)).is_some();
    assert!((0..8000).all(|key| there(key) == (key % 100 == 0)));
    assert!(table.index_slots() * 4 < slots && !table.is_resizing());
    let (more, capacity) = (fill(owner, 8000), u64::from(capacity));
    assert!((capacity - 80..=capacity).contains(&more), "{more} fit into what the table is now");
}

/// A flow of two keys counted as one: the index moved half as fast as it filled, and in a large table
/// one of its groups was full before its turn.
#[test]
fn the_index_moves_a_group_for_every_32_keys_inserted_also_where_flows_have_two() {
    const KEYS_FOR_A_GROUP: usize = 32;
    let (table, mut owner, _) = table(100_000);
    let hash = |key: u64| key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut flows = (1..200_000).step_by(2).map(|key: u64| {
        let (original, reply) = ((hash(key), Tuple(key)), (hash(key + 1), Tuple(key + 1)));
        owner.insert(original, Some(reply), &words(key, key + 1)).expect("room");
    });
    assert!(flows.by_ref().any(|()| table.is_resizing()), "two keys each fill it");
    let groups = table.index_slots() / GROUP_SLOTS;
    let keys = 2 * flows.take_while(|()| table.is_resizing()).count();
    assert!(!table.is_resizing() && keys > 0);
    assert!(keys <= (groups + 1) * KEYS_FOR_A_GROUP, "{keys} keys for {groups} groups");
}
