use super::*;
use crate::memory::Memory;

fn index(keys: usize) -> Index {
    let quiescence = Quiescence::new(1).expect("one worker");
    let mut carver = Carver::new(Memory::Heap, 0).expect("heap");
    let groups = Index::groups_for(keys);
    Index::new(&mut carver, groups, 16 * groups, quiescence).expect("heap")
}

fn handle(number: u32) -> Handle {
    Handle::new(number).expect("28 bits")
}

fn found(index: &Index, hash: u64, wanted: Handle) -> bool {
    index.find(Path::Portable, hash, |handle| (handle == wanted).then_some(())).is_some()
}

fn hash_of(number: u32) -> u64 {
    crate::Hasher::new([1, 2]).hash(&[u64::from(number), 7])
}

fn is_empty(index: &Index, half: usize) -> bool {
    index.halves[half].iter().all(|bucket| bucket.used() == 0 && bucket.overflow(0).is_none())
}

#[test]
fn the_two_buckets_of_any_hash_are_different_and_of_its_group() {
    for number in 0..100_000u64 {
        let (primary, alternate) = buckets_of(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        assert!(primary != alternate && primary < GROUP_BUCKETS && alternate < GROUP_BUCKETS);
    }
    let (primary, alternate) = buckets_of(u64::MAX);
    assert!(primary != alternate && primary < GROUP_BUCKETS && alternate < GROUP_BUCKETS);
}

#[test]
fn one_hash_fills_its_group_and_then_the_group_is_full() {
    let index = index(100);
    let hash = 0x1234_5678_9abc_def0;
    let handles: Vec<_> = (1..=GROUP_SLOTS as u32).map(handle).collect();
    for &handle in &handles {
        assert_eq!(index.publish(hash, handle), Ok(()));
    }
    let more = handle(GROUP_SLOTS as u32 + 1);
    assert_eq!(index.publish(hash, more), Err(IndexFull));
    assert!(handles.iter().all(|handle| found(&index, hash, *handle)));
    for (number, &gone) in handles.iter().enumerate() {
        assert!(index.withdraw(hash, gone));
        assert!(handles[number + 1..].iter().all(|handle| found(&index, hash, *handle)));
    }
    assert!(!index.withdraw(hash, handles[0]));
    assert!(is_empty(&index, 0), "the filter is empty again");
}

#[test]
fn the_index_holds_the_keys_it_is_made_for() {
    const KEYS: u32 = 200_000;
    let index = index(KEYS as usize);
    for number in 1..=KEYS {
        assert_eq!(index.publish(hash_of(number), handle(number)), Ok(()));
    }
    let strays = (1..=KEYS)
        .filter(|number| {
            let hash = hash_of(*number);
            index.moving(index.view()).primary(hash).overflow(hash) == Some(Overflow::Stray)
        })
        .count();
    assert!(strays < KEYS as usize / 100, "{strays} lookups read a whole group");
}

/// Runs a resize to its end.
fn finish(index: &Index) {
    while index.step() != Step::Finished {
        assert!(index.resizes());
    }
}

#[test]
fn keys_are_found_at_every_step_of_growth_and_of_shrinking() {
    const KEYS: u32 = 5_000;
    let index = index(KEYS as usize);
    for number in 1..=KEYS {
        index.publish(hash_of(number), handle(number)).expect("room");
    }
    for groups in [17, 40, 16] {
        let before = index.view();
        assert!(index.begin_resize(groups, |_, _| ()));
        assert!(!index.begin_resize(groups, |_, _| ()), "one at a time");
        while index.step() != Step::Finished {
            for number in 1..=KEYS {
                assert!(found(&index, hash_of(number), handle(number)));
            }
        }
        assert_eq!(index.view().groups(), groups);
        assert!(is_empty(&index, before.layout.half()));
        assert!((1..=KEYS).all(|number| found(&index, hash_of(number), handle(number))));
    }
}

#[test]
fn keys_come_and_go_while_the_index_moves() {
    const KEYS: u32 = 4_000;
    let index = index(KEYS as usize);
    let there = |number: u32| found(&index, hash_of(number), handle(number));
    for number in 1..=KEYS {
        index.publish(hash_of(number), handle(number)).expect("room");
    }
    assert!(index.begin_resize(30, |_, _| ()));
    let mut next = KEYS;
    let mut oldest = 1;
    while index.step() != Step::Finished {
        for _ in 0..50 {
            next += 1;
            index.publish(hash_of(next), handle(next)).expect("room");
            assert!(index.withdraw(hash_of(oldest), handle(oldest)));
            assert!(there(next) && !there(oldest));
            oldest += 1;
        }
    }
    assert!((oldest..=next).all(there));
    for number in oldest..=next {
        assert!(index.withdraw(hash_of(number), handle(number)));
    }
    assert!(is_empty(&index, 0) && is_empty(&index, 1));
}

#[test]
fn a_group_without_room_is_half_moved_until_there_is_some() {
    let index = index(2_000);
    for number in 1..=1_500 {
        index.publish(hash_of(number), handle(number)).expect("room");
    }
    assert!(index.begin_resize(1, |_, _| ()));
    while index.step() == Step::Moved {}
    assert_eq!(index.step(), Step::NoRoom);
    let there = |number: u32| found(&index, hash_of(number), handle(number));
    assert!((1..=1_500).all(there));
    for number in 1..=1_200 {
        assert!(index.withdraw(hash_of(number), handle(number)));
        assert!(!there(number) && (number + 1..=1_500).all(there));
    }
    finish(&index);
    assert!((1_201..=1_500).all(there));
}

#[test]
fn a_half_is_used_again_only_when_the_workers_have_let_go_of_it() {
    let quiescence = Quiescence::new(1).expect("one worker");
    quiescence.go_online(0);
    let mut carver = Carver::new(Memory::Heap, 0).expect("heap");
    let index = Index::new(&mut carver, 2, 4, quiescence.clone()).expect("heap");
    assert!(index.begin_resize(4, |_, _| ()));
    finish(&index);
    assert!(!index.begin_resize(2, |_, _| ()));
    quiescence.announce(0);
    assert!(index.begin_resize(2, |_, _| ()));
}
