//! A table's memory as another process finds it: of other owners, capacity or version, truncated,
//! damaged at random, or of a process that was killed.
#![cfg(not(any(loom, shuttle)))]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use flow_table::{
    Entry, Handle, Hasher, Hashes, Key, Keys, Memory, Owner, Quiescence, SetupError, Shape, Sweep,
    Table, TakeOverError, TakenOver,
};
use proptest::prelude::*;

/// Found by word 0, and by word 1 unless that is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        (0..2).any(|word| entry.words()[word].load(Relaxed) == self.0).then_some(())
    }
}

fn hash(key: u64) -> u64 {
    Hasher::new([1, 2]).hash(&[key, 0])
}

fn alias_of(key: u64) -> Option<u64> {
    key.is_multiple_of(3).then_some(key.wrapping_add(1_000_000))
}

fn named(original: u64, alias: Option<u64>) -> Keys<Tuple> {
    let with_hash = |key| (hash(key), Tuple(key));
    (with_hash(original), alias.map(with_hash))
}

fn keys(entry: &Entry<8>) -> Option<Keys<Tuple>> {
    let [original, alias] = [0, 1].map(|word| entry.words()[word].load(Relaxed));
    (original != 0).then(|| named(original, (alias != 0).then_some(alias)))
}

fn insert(owner: &mut Owner<8>, key: u64) -> Option<Handle> {
    let (original, alias) = named(key, alias_of(key));
    owner.insert(original, alias, &[key, alias_of(key).unwrap_or(0), 0, 0, 0, 0, 0, key]).ok()
}

fn remove(owner: &mut Owner<8>, key: u64, handle: Handle) {
    let hashes = Hashes { original: hash(key), alias: alias_of(key).map(hash) };
    assert_eq!(owner.remove(handle, hashes), Ok(()));
}

/// Memory that nothing else points into, with these bytes.
fn leaked(bytes: &[u8]) -> &'static mut [u8] {
    let memory = Box::leak(vec![0; bytes.len() + 64].into_boxed_slice());
    let skip = memory.as_ptr().align_offset(64);
    let memory = &mut memory[skip..skip + bytes.len()];
    memory.copy_from_slice(bytes);
    memory
}

const SHAPE: Shape =
    Shape { capacity: 300, committed: 1000, capacity_max: 1000, owners: 2, details: false };

/// What a process leaves that has inserted keys 1 to `last`, removed every fifth, and closed the
/// table, or not.
fn left(shape: Shape, last: u64, closed: bool) -> Vec<u8> {
    let bytes = Table::<8>::memory_bytes(&shape).expect("a shape");
    let memory = leaked(&vec![0; bytes]);
    let start = memory.as_ptr();
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Mapped(memory), shape, quiescence).expect("set up");
    for key in 1..=last {
        let owner = &mut owners[key as usize % shape.owners];
        let handle = insert(owner, key).expect("room");
        if key.is_multiple_of(5) {
            remove(owner, key, handle);
        }
        owner.sweep(1, |_, _| Sweep::Keep);
    }
    table.set_tag(&[11, 12, 13, 14, 15, 16, 17, 18]);
    assert!(!closed || table.close(owners));
    // SAFETY: the memory is leaked and this long; the table, which nobody uses any more, is only
    // read here.
    unsafe { std::slice::from_raw_parts(start, bytes) }.to_vec()
}

fn taken_over(
    memory: &'static mut [u8],
    shape: Shape,
) -> Result<(Arc<Table<8>>, Vec<Owner<8>>, TakenOver), TakeOverError> {
    Table::take_over(memory, &shape, &Quiescence::new(1).expect("workers"), keys)
}

fn is_there(table: &Table<8>, key: u64) -> bool {
    let names = std::iter::once(key).chain(alias_of(key));
    let hits = names.map(|name| table.lookup(hash(name), &Tuple(name)).map(|hit| hit.handle));
    let hits: Vec<_> = hits.collect();
    assert!(hits.iter().all(|hit| *hit == hits[0]), "{key} is found under one name only");
    hits[0].is_some()
}

#[test]
fn what_was_left_is_there_whatever_owners_and_capacity_the_next_process_has() {
    for closed in [false, true] {
        let memory = left(SHAPE, 290, closed);
        for (owners, capacity) in [(1, 300), (2, 300), (2, 1000), (2, 10), (7, 500)] {
            let shape = Shape { owners, capacity, ..SHAPE };
            let (table, mut holders, taken) = taken_over(leaked(&memory), shape).expect("a table");
            let rebuilt = !closed || owners != 2;
            assert_eq!(taken, TakenOver { rebuilt, entries: 232, given_up: 0 });
            assert!((1..=290).all(|key| is_there(&table, key) != key.is_multiple_of(5)));
            assert_eq!(table.statistics().used, 232);
            let part = |owner| table.statistics_of(owner).expect("an owner").used;
            let most = (0..owners).map(part).max().expect("owners");
            assert!(most <= 232 / owners as u64 + 40, "{most} of 232 have one of {owners} owners");
            // A table that is too full takes what is new as soon as there is room for it.
            let room = u64::from(table.capacity()).saturating_sub(232);
            let fitting = (1001..).take_while(|key| insert(&mut holders[0], *key).is_some());
            assert!(fitting.count() as u64 >= room / 2, "{capacity}");
        }
    }
}

#[test]
fn a_table_of_another_shape_is_named_and_its_flows_can_be_moved() {
    let memory = left(SHAPE, 290, false);
    for shape in [Shape { capacity_max: 2000, ..SHAPE }, Shape { details: true, ..SHAPE }] {
        let error = taken_over(leaked(&memory), shape).err();
        assert_eq!(error, Some(TakeOverError::Shape { capacity_max: 1000, details: false }));
        let quiescence = Quiescence::new(1).expect("workers");
        let (table, mut owners) = Table::<8>::new(Memory::Heap, shape, quiescence).expect("set up");
        let moved = Table::<8>::salvage(leaked(&memory), |words| {
            insert(&mut owners[0], words[0]).expect("room");
        });
        assert_eq!(moved, Ok(232));
        assert!((1..=290).all(|key| is_there(&table, key) != key.is_multiple_of(5)));
    }
}

#[test]
fn memory_without_a_table_of_this_version_is_named_and_stays_as_it_was() {
    let memory = left(SHAPE, 100, true);
    let with_word = |word: usize, value: u64| {
        let mut memory = memory.clone();
        memory[word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
        memory
    };
    let cut = |bytes: usize| memory[..bytes].to_vec();
    let damaged = |what| TakeOverError::Damaged { what };
    let small = |given_bytes| {
        let needed_bytes = memory.len();
        TakeOverError::Setup(SetupError::MemoryTooSmall { given_bytes, needed_bytes })
    };
    for (left, named) in [
        (vec![0; memory.len()], TakeOverError::NoTable),
        (with_word(0, 1), TakeOverError::NoTable),
        (with_word(1, 77), TakeOverError::Version { found: 77, known: 2 }),
        (with_word(2, 16), TakeOverError::Words { found: 16, wanted: 8 }),
        (with_word(3, 0), damaged("its capacity is impossible")),
        (with_word(3, 1 << 28), damaged("its capacity is impossible")),
        (with_word(5, 13), damaged("its segments are impossible")),
        (with_word(6, 0), damaged("its number of owners is impossible")),
        (with_word(6, 257), damaged("its number of owners is impossible")),
        (cut(memory.len() - 64), small(memory.len() - 64)),
        (cut(8192), small(8192)),
    ] {
        let given = leaked(&left);
        let (start, bytes) = (given.as_ptr(), given.len());
        assert_eq!(Table::<8>::inspect(given), Err(named));
        assert_eq!(Table::<8>::salvage(leaked(&left), |_| ()), Err(named));
        assert_eq!(taken_over(given, SHAPE).err(), Some(named));
        // SAFETY: leaked memory of this length that nothing points into any more.
        assert!(unsafe { std::slice::from_raw_parts(start, bytes) } == left);
    }
    for bytes in [0, 8, 4095] {
        assert!(Table::<8>::inspect(&cut(bytes)).is_err());
        assert!(taken_over(leaked(&cut(bytes)), SHAPE).is_err());
    }
    let inspected = Table::<8>::inspect(&memory).expect("a table");
    assert_eq!((inspected.tag[0], inspected.tag[7], inspected.is_clean()), (11, 18, true));
}

#[test]
fn a_table_is_closed_only_by_all_its_owners_and_when_no_worker_is_online() {
    let quiescence = Quiescence::new(1).expect("workers");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, SHAPE, Arc::clone(&quiescence)).expect("set up");
    quiescence.go_online(0);
    let handle = insert(&mut owners[0], 1).expect("room");
    remove(&mut owners[0], 1, handle);
    assert!(!table.close(owners), "the worker may hold the entry");
    let (table, mut owners) =
        Table::<8>::new(Memory::Heap, SHAPE, Arc::clone(&quiescence)).expect("set up");
    owners.truncate(1);
    assert!(!table.close(owners), "one is missing");
    let (other, others) = Table::<8>::new(Memory::Heap, SHAPE, quiescence).expect("set up");
    assert!(!table.close(others), "those of another table");
    drop(other);
}

/// Uses a table as far as it goes, whatever it is.
fn use_it(table: &Table<8>, owners: &mut [Owner<8>]) {
    for key in 1..=400 {
        let _ = table.lookup(hash(key), &Tuple(key));
    }
    let holders: Vec<_> = table.handles().filter_map(Handle::new).collect();
    for handle in holders {
        let _ = (table.snapshot(handle), table.entry(handle), table.holder(handle));
    }
    let _ = (table.statistics(), table.capacity(), table.index_slots());
    for owner in owners {
        for round in 0..3u64 {
            for key in 3000 * (round + 1)..3000 * (round + 1) + 400 {
                let _ = insert(owner, key);
            }
            owner.sweep(500, |handle, entry| {
                let key = entry.words()[0].load(Relaxed);
                if handle.number() % 2 == round as u32 % 2 {
                    return Sweep::Keep;
                }
                Sweep::Remove(Hashes { original: hash(key), alias: alias_of(key).map(hash) })
            });
        }
    }
}

/// Where a damage is likely to meet something: header, segments, states, anywhere.
fn place(bytes: usize) -> impl Strategy<Value = usize> {
    prop_oneof![0..16usize * 8, 0..4096usize, 4096..12_288usize, 0..bytes]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_memory_gives_a_table_or_a_name_and_never_a_panic(
        (last, closed) in (0u64..290, any::<bool>()),
        damages in prop::collection::vec(
            (place(100_000), prop_oneof![any::<u64>(), 0u64..300, Just(u64::MAX)], 1usize..9),
            1..40,
        ),
        owners in 1usize..4,
    ) {
        let mut memory = left(SHAPE, last, closed);
        for (at, value, length) in damages {
            let at = at % (memory.len() - 8);
            memory[at..at + length.min(8)].copy_from_slice(&value.to_ne_bytes()[..length.min(8)]);
        }
        let _ = Table::<8>::salvage(leaked(&memory), |_| ());
        if let Ok((table, mut owners, taken)) =
            taken_over(leaked(&memory), Shape { owners, ..SHAPE })
        {
            prop_assert!(taken.entries <= 1000);
            use_it(&table, &mut owners);
            let _ = table.close(owners);
        }
    }

    #[test]
    fn any_bytes_give_a_table_or_a_name_and_never_a_panic(
        seed in any::<u64>(),
        header in prop::option::of(1usize..=32),
    ) {
        let whole = left(SHAPE, 10, true);
        let noise = Hasher::new([seed, 0]);
        let mut memory: Vec<u8> = (0..whole.len() as u64 / 8)
            .flat_map(|word| noise.hash(&[word, 0]).to_ne_bytes())
            .collect();
        if let Some(words) = header {
            memory[..8 * words].copy_from_slice(&whole[..8 * words]);
        }
        if let Ok((table, mut owners, _)) = taken_over(leaked(&memory), SHAPE) {
            use_it(&table, &mut owners);
        }
    }
}

/// Keys that each of the victim's threads inserts and removes, and such as both try to insert.
const OWN_KEYS: u64 = 400;
const SHARED_KEYS: u64 = 20;
const THREADS: usize = 2;
const KILLED_SHAPE: Shape =
    Shape { capacity: 300, committed: 1200, capacity_max: 1200, owners: THREADS, details: false };

/// What a thread has begun (odd) or done (even) with each of its keys.
const INSERTS: u64 = 1;
const INSERTED: u64 = 2;
const REMOVES: u64 = 3;

/// A file that the victim and we map: the table, then the journal.
struct Shared {
    start: *mut u8,
    table_bytes: usize,
}

impl Shared {
    fn map(file: &File) -> Self {
        let table_bytes = Table::<8>::memory_bytes(&KILLED_SHAPE).expect("a shape");
        let journal_bytes = 8 * (OWN_KEYS as usize * THREADS + 1);
        let bytes = table_bytes.next_multiple_of(4096) + journal_bytes;
        file.set_len(bytes as u64).expect("space");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping of a file of this length, at an address the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), table_bytes }
    }

    /// For one table at a time.
    fn table(&self) -> &'static mut [u8] {
        // SAFETY: the mapping stays; each process makes one table at a time of it, and looks at a
        // victim's when that is dead.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.table_bytes) }
    }

    fn journal(&self) -> &'static [AtomicU64] {
        let offset = self.table_bytes.next_multiple_of(4096);
        let length = OWN_KEYS as usize * THREADS + 1;
        // SAFETY: words of the mapping behind the table, which stays; any bytes are valid atomics.
        unsafe { std::slice::from_raw_parts(self.start.add(offset).cast::<AtomicU64>(), length) }
    }
}

fn own_key(thread: usize, number: u64) -> u64 {
    1 + thread as u64 * OWN_KEYS + number
}

/// Takes the table over or makes it, then inserts, removes and resizes until it is killed.
#[test]
fn victim() {
    // Only in a process that another test has started, and kills.
    let Some(path) = std::env::var_os("FLOW_TABLE_VICTIM") else { return };
    let shared = Shared::map(&OpenOptions::new().read(true).write(true).open(path).expect("file"));
    let quiescence = Quiescence::new(THREADS).expect("workers");
    let (table, owners) = match Table::<8>::inspect(shared.table()) {
        Ok(_) => {
            let (table, owners, _) =
                Table::take_over(shared.table(), &KILLED_SHAPE, &quiescence, keys).expect("table");
            (table, owners)
        }
        Err(_) => {
            let memory = Memory::Mapped(shared.table());
            Table::new(memory, KILLED_SHAPE, Arc::clone(&quiescence)).expect("table")
        }
    };
    let handles: BTreeMap<u64, Handle> = {
        let mut handles = BTreeMap::new();
        table.for_each(table.handles(), |handle, words| {
            handles.insert(words[0], handle);
        });
        handles
    };
    let progress = &shared.journal()[OWN_KEYS as usize * THREADS];
    std::thread::scope(|scope| {
        for (thread, mut owner) in owners.into_iter().enumerate() {
            let (quiescence, handles, journal) = (&quiescence, handles.clone(), shared.journal());
            scope.spawn(move || churn(thread, &mut owner, quiescence, handles, journal, progress));
        }
    });
}

/// Whether an entry is this thread's and has this key.
fn has(owner: &Owner<8>, thread: usize, handle: Handle, key: u64) -> bool {
    let table = owner.table();
    table.holder(handle) == Some(thread)
        && table.snapshot(handle).is_some_and(|words| words[0] == key)
}

fn churn(
    thread: usize,
    owner: &mut Owner<8>,
    quiescence: &Quiescence,
    mut handles: BTreeMap<u64, Handle>,
    journal: &[AtomicU64],
    progress: &AtomicU64,
) {
    quiescence.go_online(thread);
    let mut state = u64::from(std::process::id()) << 8 | thread as u64;
    let mut random = move |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    loop {
        let key = own_key(thread, random(OWN_KEYS));
        let word = &journal[key as usize - 1];
        if let Some(handle) = handles.remove(&key) {
            word.store(REMOVES, SeqCst);
            remove(owner, key, handle);
            word.store(0, SeqCst);
        } else {
            word.store(INSERTS, SeqCst);
            if let Some(handle) = insert(owner, key) {
                handles.insert(key, handle);
                word.store(INSERTED, SeqCst);
            }
        }
        let key = own_key(THREADS, random(SHARED_KEYS));
        match handles.remove(&key) {
            // What the other thread had before the last kill may be ours or its now; and its segment
            // may have come to us since, with another key in the entry.
            Some(handle) if has(owner, thread, handle, key) => {
                let hashes = Hashes { original: hash(key), alias: alias_of(key).map(hash) };
                let _ = owner.remove(handle, hashes);
            }
            _ => {
                let inserted = insert(owner, key);
                inserted.into_iter().for_each(|handle| {
                    handles.insert(key, handle);
                });
            }
        }
        owner.sweep(2, |_, _| Sweep::Keep);
        quiescence.announce(thread);
        progress.fetch_add(1, Relaxed);
    }
}

/// Compares what a victim has left with what it said it did.
fn compare(shared: &Shared) {
    let copy = shared.table().to_vec();
    let (table, _, taken) = taken_over(leaked(&copy), KILLED_SHAPE).expect("a table");
    assert_eq!((taken.rebuilt, taken.given_up), (true, 0));
    let mut found = BTreeMap::new();
    table.for_each(table.handles(), |handle, words| {
        assert_eq!(words[7], words[0], "torn");
        assert_eq!(found.insert(words[0], handle), None, "two entries have one key");
    });
    for (key, word) in (1..).zip(&shared.journal()[..OWN_KEYS as usize * THREADS]) {
        match word.load(SeqCst) {
            INSERTED => assert!(is_there(&table, key), "{key} was inserted and not removed"),
            0 => assert!(!is_there(&table, key) && !found.contains_key(&key), "{key} was removed"),
            _ => assert_eq!(is_there(&table, key), found.contains_key(&key)),
        }
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_all_it_inserted_and_did_not_remove() {
    const KILLS: u64 = 25;
    let path = std::env::temp_dir().join(format!("flow-table-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).read(true).write(true);
    let shared = Shared::map(&options.open(&path).expect("a file"));
    let progress = &shared.journal()[OWN_KEYS as usize * THREADS];
    for kill in 0..KILLS {
        let seen = progress.load(Relaxed);
        let mut victim = start_victim(&path);
        let started = std::time::Instant::now();
        while progress.load(Relaxed) < seen + 500 {
            assert!(started.elapsed() < Duration::from_secs(60), "the victim does nothing");
            assert!(victim.try_wait().expect("a child").is_none(), "the victim ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(kill * 397 % 5000));
        victim.kill().expect("killed");
        victim.wait().expect("a child");
        compare(&shared);
    }
    std::fs::remove_file(&path).expect("removed");
}

fn start_victim(path: &Path) -> std::process::Child {
    let arguments = ["--exact", "victim", "--nocapture"];
    let program = std::env::current_exe().expect("this test");
    let mut command = Command::new(program);
    command.args(arguments).env("FLOW_TABLE_VICTIM", path);
    command.stdout(std::process::Stdio::null()).spawn().expect("started")
}
