use dataplane::flows::{Capacities, Capacity, FlowTables};
use flow_table::{Entry, Hashes, Key, Memory, Owner, Sweep};
use pinning::growing::map_growing;

use super::super::capacity::FlowCapacities;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const RANGE: usize = 200_000;

#[derive(Clone, Copy)]
struct Tuple(u64);

impl Key<8> for Tuple {
    type Match = ();

    fn matches(&self, entry: &Entry<8>) -> Option<()> {
        let word = entry.words()[0].load(std::sync::atomic::Ordering::Relaxed);
        (word == self.0).then_some(())
    }
}

fn hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Tables in memory that is taken as they grow, and the IPv4 table's owner.
struct Scene {
    growth: FlowGrowth,
    flows: FlowTables,
    owner: Owner<8>,
}

fn scene(initial: usize, max: usize) -> Scene {
    let family = FamilyCapacity { initial, max, range: RANGE, is_derived: false };
    let capacities =
        FlowCapacities { v4: family, v6: family, per_endpoint: 0, memory_bytes: 0, details: false };
    let committed = (2 * initial).min(max);
    let capacity = Capacity { now: initial, committed, max: RANGE };
    let both = Capacities { v4: capacity, v6: capacity, details: false };
    let (v4, v6) = both.shapes(1);
    let (memory4, growing4) = map_growing(Table::<8>::memory_bytes(&v4).unwrap()).unwrap();
    let (memory6, growing6) = map_growing(Table::<16>::memory_bytes(&v6).unwrap()).unwrap();
    growing4.take(&Table::<8>::regions(&v4, committed).unwrap()).unwrap();
    growing6.take(&Table::<16>::regions(&v6, committed).unwrap()).unwrap();
    let memory = (Memory::Mapped(memory4), Memory::Mapped(memory6));
    let (flows, mut holds) = FlowTables::new(both, memory, 1, [1, 2]).unwrap();
    let growing = [Arc::new(growing4), Arc::new(growing6)];
    let growth = FlowGrowth::new(&flows, &growing, &capacities);
    Scene { growth, flows, owner: holds.pop().unwrap().v4.owner }
}

impl Scene {
    /// Inserts until no more fit, as a node does that looks after its tables meanwhile.
    fn fill(&mut self, from: u64, most: u64) -> u64 {
        for key in from..from + most {
            let words = [key, 0, 0, 0, 0, 0, 0, 0];
            if self.owner.insert((hash(key), Tuple(key)), None, &words).is_err() {
                return key - from;
            }
            self.settle();
        }
        most
    }

    /// Waits until all memory that is wanted has been taken.
    fn settle(&mut self) {
        self.growth.tend();
        let until = Instant::now() + PATIENCE;
        while self.growth.v4.is_taking() || self.growth.v6.is_taking() {
            assert!(Instant::now() < until);
            std::thread::yield_now();
            self.growth.tend();
        }
    }

    fn resize(&mut self, v4: Option<usize>, v6: Option<usize>) -> Result<(), ResizeError> {
        if self.growth.resize(Resize::to(v4, v6))? {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.growth.tend() {
                return ended;
            }
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    }

    fn is_there(&self, key: u64) -> bool {
        self.flows.v4.lookup(hash(key), &Tuple(key)).is_some()
    }

    fn remove(&mut self, goes: impl Fn(u64) -> bool) {
        for _ in 0..1500 {
            self.owner.sweep(400, |_, entry| {
                let key = entry.words()[0].load(std::sync::atomic::Ordering::Relaxed);
                let hashes = Hashes { original: hash(key), alias: None };
                if goes(key) { Sweep::Remove(hashes) } else { Sweep::Keep }
            });
        }
    }
}

#[test]
fn a_table_grows_to_its_maximum_before_anything_is_refused() {
    let mut scene = scene(1024, 20_480);
    let before = scene.growth.v4.memory_bytes();
    assert_eq!(scene.fill(0, 30_000), 20_480);
    assert!((0..20_480).all(|key| scene.is_there(key)));
    let (growth, table) = (&scene.growth.v4, &scene.flows.v4);
    assert_eq!((table.capacity(), growth.committed(), growth.max()), (20_480, 20_480, 20_480));
    assert!(growth.counts().grown >= 4 && growth.counts().refused == 0, "{:?}", growth.counts());
    assert!(growth.memory_bytes() > 8 * before);
    assert_eq!(scene.growth.v6.counts(), &GrowthCounts::default(), "nothing has filled that");
}

#[test]
fn a_resize_is_in_force_at_once_or_when_its_memory_is_there_and_loses_nothing() {
    let mut scene = scene(1024, 1024);
    assert_eq!(scene.fill(0, 900), 900);
    scene.resize(Some(50_000), Some(3000)).unwrap();
    assert!((50_000..51_000).contains(&scene.flows.v4.capacity()));
    assert!((3000..4000).contains(&scene.flows.v6.capacity()));
    assert!(scene.fill(900, 60_000) >= 49_100);
    assert!((0..50_000).all(|key| scene.is_there(key)));
    scene.remove(|key| key >= 500);
    let full = scene.growth.v4.memory_bytes();
    scene.resize(Some(600), None).unwrap();
    scene.remove(|_| false);
    assert_eq!(scene.growth.v4.max(), 600);
    assert!((0..500).all(|key| scene.is_there(key)));
    scene.settle();
    let left = scene.growth.v4.memory_bytes();
    assert!(left * 2 < full, "memory above is given back: {left} of {full}");
    let capacity = u64::from(scene.flows.v4.capacity());
    assert!((600..1000).contains(&capacity));
    assert_eq!(scene.fill(100_000, 1000), capacity - 500);
    assert!((0..500).all(|key| scene.is_there(key)));
    // And what was given back is taken again.
    scene.resize(Some(20_000), None).unwrap();
    assert!(scene.fill(200_000, 30_000) >= 20_000 - capacity);
    assert!((0..500).all(|key| scene.is_there(key)));
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_both_tables_as_they_are() {
    let mut scene = scene(1024, 4096);
    assert_eq!(scene.fill(0, 1500), 1500);
    let before = (scene.flows.v4.capacity(), scene.flows.v6.capacity());
    for (v4, v6, said) in [
        (Some(0), None, "flows_ipv4: 0 flows cannot be: ask for at least 64"),
        (Some(1499), None, "flows_ipv4: 1500 flows are in use, which do not fit into 1499"),
        (Some(RANGE + 1), None, "start it again with flow_table.ipv4_flows_max: 200001"),
        (Some(5000), Some(1), "flows_ipv6: 1 flows cannot be"),
    ] {
        let error = scene.resize(v4, v6).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        let now = (scene.flows.v4.capacity(), scene.flows.v6.capacity());
        assert_eq!((now, scene.growth.v4.max()), (before, 4096));
    }
}

/// Not by the machine's memory, which a test must not use up, but by a mapping's end.
#[test]
fn memory_that_is_not_to_be_had_leaves_the_table_as_it_is_and_is_counted() {
    let mut scene = scene(1024, 20_480);
    let (_, nothing) = map_growing(4096).unwrap();
    let own = std::mem::replace(&mut scene.growth.v4.growing, Arc::new(nothing));
    let filled = scene.fill(0, 30_000);
    assert_eq!(filled, 2048, "what there was memory for");
    let counts = scene.growth.v4.counts().clone();
    assert_eq!(counts.refused, 1, "it is asked again after a while only");
    assert!(counts.last_refusal.unwrap().contains("there is no room for"));
    let error = scene.resize(Some(10_000), Some(3000)).unwrap_err().to_string();
    assert!(error.contains("flows_ipv4: ") && error.contains("stays as it is"), "{error}");
    assert_eq!((scene.flows.v4.capacity(), scene.flows.v6.capacity()), (2048, 1024));
    scene.growth.v4.growing = own;
    scene.growth.v4.ask_again = None;
    scene.settle();
    assert!(scene.fill(2048, 30_000) == 20_480 - 2048, "there is memory again");
    assert_eq!(scene.growth.v4.counts().last_refusal, None);
}
