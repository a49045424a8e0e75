//! Nanoseconds per lookup that reads and changes the entry, in bursts of 32, and per insert,
//! sweep and removal. `cargo run --release -p flow-table --example lookup [entries]`
//!
//! Memory is mapped and huge pages are asked for, as a node does it.

use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use flow_table::{BURST, Entry, Hasher, Hashes, Key, Memory, Quiescence, Shape, Sweep, Table};

const RUNS: usize = 5;
const LOOKUPS: usize = 1 << 22;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Addresses; L4 ports and protocol.
#[derive(Clone, Copy)]
struct Tuple([u64; 2]);

impl Tuple {
    fn new(number: u64) -> Self {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self([0x0a00_0000_0a60_0000 | (mixed >> 40 << 32), (number << 16) | 6])
    }
}

impl Key<8> for Tuple {
    type Match = ();

    #[inline(always)]
    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        let words = entry.words();
        let equal = words[0].load(Relaxed) == self.0[0] && words[1].load(Relaxed) == self.0[1];
        equal.then_some(())
    }
}

fn map(bytes: usize) -> &'static mut [u8] {
    let length = bytes.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES;
    // SAFETY: a new anonymous mapping that is never unmapped; the slice lies within it, at the
    // first multiple of a huge page, and is handed out once.
    unsafe {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let start = libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0);
        assert_ne!(start, libc::MAP_FAILED, "mmap of {length} bytes");
        libc::madvise(start, length, libc::MADV_HUGEPAGE);
        let start = start.cast::<u8>();
        std::slice::from_raw_parts_mut(start.add(start.align_offset(HUGE_PAGE_BYTES)), bytes)
    }
}

/// The best of some runs, in nanoseconds per operation.
fn best(operations: usize, mut run: impl FnMut()) -> f64 {
    let nanos = (0..RUNS).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e9 / operations as f64
    });
    nanos.fold(f64::MAX, f64::min)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let entries: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let hasher = Hasher::new([0x243F_6A88_85A3_08D3, 0x1319_8A2E_0370_7344]);
    let shape = Shape::fixed(entries, 1);
    let memory = Memory::Mapped(map(Table::<8>::memory_bytes(&shape)?));
    let quiescence = Quiescence::new(1)?;
    let (table, mut owners) = Table::<8>::new(memory, shape, quiescence.clone())?;
    let owner = &mut owners[0];
    quiescence.go_online(0);

    let all: Vec<_> = (0..entries as u64).map(Tuple::new).collect();
    let start = Instant::now();
    for tuples in all.chunks(BURST) {
        let hashes = hashes(&hasher, tuples);
        let mut hits = [None; BURST];
        table.lookup_burst(&hashes, tuples, &mut hits);
        for ((tuple, hash), hit) in tuples.iter().zip(hashes).zip(hits) {
            let [addresses, ports] = tuple.0;
            if hit.is_none() {
                owner.insert((hash, *tuple), None, &[addresses, ports, 0, 0, 0, 0, 0, 0])?;
            }
        }
    }
    let insert = start.elapsed().as_secs_f64() * 1e9 / entries as f64;
    println!("{entries} entries; miss and insert: {insert:.1} ns");

    let random = |seed: u64| {
        let mut state = seed;
        let present = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((u128::from(state) * entries as u128) >> 64) as u64
        };
        std::iter::repeat_with(present)
    };
    for (what, first) in [("hit and touch", 0), ("miss", entries as u64)] {
        let tuples: Vec<_> = random(7).take(LOOKUPS).map(|n| Tuple::new(n + first)).collect();
        let nanos = best(LOOKUPS, || lookups(&table, &hasher, &tuples));
        println!("{what}: {nanos:.1} ns");
        let nanos = best(LOOKUPS, || lookups_ahead(&table, &hasher, &tuples));
        println!("{what}, index lines asked for a burst ahead: {nanos:.1} ns");
    }
    let tuples: Vec<_> = random(8).take(LOOKUPS).map(Tuple::new).collect();
    let nanos = best(LOOKUPS, || {
        tuples.chunks(BURST).for_each(|tuples| {
            black_box(hashes(&hasher, tuples));
        });
    });
    println!("of which reading tuples and hashing them: {nanos:.1} ns");

    let nanos = best(entries, || {
        for _ in 0..entries / BURST {
            owner.sweep(32, |_, entry| {
                black_box(entry.words()[4].load(Relaxed));
                Sweep::Keep
            });
        }
    });
    println!("sweep: {nanos:.1} ns");

    let start = Instant::now();
    for _ in 0..=entries / BURST {
        owner.sweep(32, |_, entry| {
            let words = entry.words();
            let input = [words[0].load(Relaxed), words[1].load(Relaxed)];
            Sweep::Remove(Hashes { original: hasher.hash(&input), alias: None })
        });
        quiescence.announce(0);
    }
    let removal = start.elapsed().as_secs_f64() * 1e9 / entries as f64;
    println!("sweep and remove: {removal:.1} ns; {:?}", table.statistics());
    Ok(())
}

fn hashes(hasher: &Hasher, tuples: &[Tuple]) -> [u64; BURST] {
    let mut inputs = [[0; 2]; BURST];
    for (input, tuple) in inputs.iter_mut().zip(tuples) {
        *input = tuple.0;
    }
    let mut hashes = [0; BURST];
    hasher.hash_burst(&inputs, &mut hashes);
    hashes
}

fn lookups(table: &Table<8>, hasher: &Hasher, tuples: &[Tuple]) {
    let mut found = 0u64;
    for tuples in tuples.chunks_exact(BURST) {
        let hashes = hashes(hasher, tuples);
        let mut hits = [None; BURST];
        table.lookup_burst(&hashes, tuples, &mut hits);
        for hit in hits.iter().flatten() {
            let words = hit.entry.words();
            words[4].store(77, Relaxed);
            words[6].store(words[6].load(Relaxed) + 1, Relaxed);
            found += 1;
        }
    }
    black_box(found);
}

/// As [`lookups`], asking for the index lines of a burst while the burst before it is worked on.
fn lookups_ahead(table: &Table<8>, hasher: &Hasher, tuples: &[Tuple]) {
    let mut found = 0u64;
    let mut bursts = tuples.chunks_exact(BURST);
    let Some(mut now) = bursts.next() else { return };
    let mut now_hashes = hashes(hasher, now);
    for next in bursts {
        let next_hashes = hashes(hasher, next);
        next_hashes.iter().for_each(|hash| table.prefetch(*hash));
        let mut hits = [None; BURST];
        table.lookup_burst(&now_hashes, now, &mut hits);
        for hit in hits.iter().flatten() {
            let words = hit.entry.words();
            words[4].store(77, Relaxed);
            words[6].store(words[6].load(Relaxed) + 1, Relaxed);
            found += 1;
        }
        (now, now_hashes) = (next, next_hashes);
    }
    black_box(found);
}
