//! The table against a map of the standard library, one thread, any sequence of operations.
#![cfg(not(any(loom, shuttle)))]

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use flow_table::{
    BURST, Entry, Handle, Hashes, InsertError, Key, Memory, Quiescence, Shape, Sweep, Table,
};
use proptest::prelude::*;

/// Small, so that the slab fills, buckets overflow and keys come again.
const CAPACITY: usize = 40;
const KEYS: u64 = 60;

#[derive(Clone, Copy, Debug)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = usize;

    fn matches(&self, entry: &Entry<8>) -> Option<usize> {
        (0..2).find(|side| entry.words()[*side].load(Relaxed) == self.0)
    }
}

/// 16 heads for 60 keys and their aliases.
fn hash(key: u64) -> u64 {
    (key % 16) << 60
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Insert { key: u64, alias: Option<u64> },
    Remove(u64),
    Look(u64),
    Sweep { entries: u32, modulus: u64 },
    Announce,
    Reclaim,
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..KEYS;
    prop_oneof![
        4 => (key.clone(), prop::option::of(KEYS..2 * KEYS))
            .prop_map(|(key, alias)| Operation::Insert { key, alias }),
        3 => key.clone().prop_map(Operation::Remove),
        3 => (0..2 * KEYS).prop_map(Operation::Look),
        1 => (0u32..20, 2u64..7).prop_map(|(entries, modulus)| Operation::Sweep { entries, modulus }),
        1 => Just(Operation::Announce),
        1 => Just(Operation::Reclaim),
    ]
}

/// Every key of a flow, with the flow's handle and both its keys.
type Model = HashMap<u64, (Handle, u64, Option<u64>)>;

fn hashes(key: u64, alias: Option<u64>) -> Hashes {
    Hashes { original: hash(key), alias: alias.map(hash) }
}

fn compare(table: &Table<8>, model: &Model) -> Result<(), TestCaseError> {
    let keys: Vec<_> = (0..2 * KEYS).map(Tuple).collect();
    let hashed: Vec<_> = keys.iter().map(|key| hash(key.0)).collect();
    let mut hits = vec![None; keys.len()];
    table.lookup_burst(&hashed, &keys, &mut hits);
    prop_assert!(hits.len() > 2 * BURST);
    for (key, hit) in keys.iter().zip(hits) {
        let expected = model
            .get(&key.0)
            .map(|(handle, original, _)| (*handle, usize::from(key.0 != *original)));
        prop_assert_eq!(hit.map(|hit| (hit.handle, hit.matched)), expected, "{:?}", key);
    }
    let used = model.values().map(|(handle, ..)| handle).collect::<std::collections::HashSet<_>>();
    prop_assert_eq!(table.statistics().used, used.len() as u64);
    let mut dumped = 0;
    table.for_each(table.handles(), |_, _| dumped += 1);
    prop_assert_eq!(dumped, used.len());
    Ok(())
}

proptest! {
    #[test]
    fn any_operations_leave_what_a_map_would_hold(
        operations in prop::collection::vec(operation(), 1..300),
    ) {
        let quiescence = Quiescence::new(2).expect("workers");
        quiescence.go_online(0);
        let (table, mut owners) =
            Table::<8>::new(Memory::Heap, Shape::fixed(CAPACITY, 1), quiescence.clone()).expect("set up");
        let owner = &mut owners[0];
        let mut model = Model::new();
        for operation in operations {
            match operation {
                Operation::Insert { key, alias } => {
                    let second = alias.unwrap_or(u64::MAX);
                    let alias_key = alias.map(|alias| (hash(alias), Tuple(alias)));
                    let inserted = owner.insert(
                        (hash(key), Tuple(key)), alias_key, &[key, second, 0, 0, 0, 0, 0, 0],
                    );
                    match inserted {
                        Ok(handle) => {
                            prop_assert!(!model.contains_key(&key));
                            prop_assert!(!model.values().any(|(other, ..)| *other == handle));
                            for name in std::iter::once(key).chain(alias) {
                                model.insert(name, (handle, key, alias));
                            }
                        }
                        Err(InsertError::Exists(other)) => {
                            prop_assert_eq!(model.get(&key).map(|flow| flow.0), Some(other));
                        }
                        Err(InsertError::AliasExists(other)) => {
                            let holder = alias.and_then(|alias| model.get(&alias));
                            prop_assert_eq!(holder.map(|flow| flow.0), Some(other));
                        }
                        Err(InsertError::SlabFull) => {
                            let statistics = table.statistics();
                            let held = statistics.used + statistics.retired_waiting;
                            prop_assert_eq!(held, statistics.capacity);
                        }
                        Err(other) => prop_assert_eq!(other, InsertError::IndexFull),
                    }
                }
                Operation::Remove(key) => {
                    if let Some((handle, key, alias)) = model.get(&key).copied() {
                        prop_assert_eq!(owner.remove(handle, hashes(key, alias)), Ok(()));
                        model.retain(|_, flow| flow.0 != handle);
                    }
                }
                Operation::Look(key) => {
                    let found = table.lookup(hash(key), &Tuple(key)).map(|hit| hit.handle);
                    prop_assert_eq!(found, model.get(&key).map(|flow| flow.0));
                }
                Operation::Sweep { entries, modulus } => {
                    owner.sweep(entries, |_, entry| {
                        let key = entry.words()[0].load(Relaxed);
                        let alias = entry.words()[1].load(Relaxed);
                        let alias = (alias != u64::MAX).then_some(alias);
                        if key % modulus != 0 {
                            return Sweep::Keep;
                        }
                        model.retain(|_, flow| flow.1 != key);
                        Sweep::Remove(hashes(key, alias))
                    });
                }
                Operation::Announce => quiescence.announce(0),
                Operation::Reclaim => owner.reclaim(),
            }
        }
        compare(&table, &model)?;
        prop_assert_eq!(table.statistics().slots_lost, 0);
    }
}
