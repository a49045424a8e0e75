use flow_table::Memory;

use super::*;
use crate::address::Protocol;
use crate::charge::Charge;
use crate::conntrack::{Life, Seen};
use crate::epochs::Epochs;
use crate::flow::{FlowRoute, Origin};
use crate::flow_key::FlowKey4;
use crate::flows::{Capacities, FlowTables, NewFlow, WorkerFlows, hashes_of};
use crate::policy::RuleId;
use crate::tables::{Tables, Timeouts};
use crate::time::Nanos;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 2;
const ENTRIES: u32 = 1 << 10;
const START: Nanos = Nanos(1);
/// After which a filter is made anew.
const LATER: Duration = Duration::from_secs(301);

/// Two workers' flows, and the control thread's view of their ends.
struct World {
    tables: FlowTables,
    holds: Vec<WorkerFlows>,
    census: Census,
    now: Nanos,
    given: u64,
    adopted: u64,
}

impl World {
    fn new() -> Self {
        let (memory, capacities) = ((Memory::Heap, Memory::Heap), Capacities::fixed(4096, 64));
        let made = FlowTables::new(capacities, memory, WORKERS, [1, 2]);
        let (tables, holds) = made.expect("tables");
        (0..WORKERS).for_each(|worker| tables.quiescence.go_online(worker));
        let census = Census::of(&tables, START);
        Self { tables, holds, census, now: START, given: 0, adopted: 0 }
    }

    /// A worker opens a flow between two addresses.
    fn open(&mut self, worker: usize, ends: [IpAddr; 2]) -> flow_table::Handle {
        let [source, destination] = ends.map(|end| match end {
            IpAddr::V4(end) => end.to_bits(),
            IpAddr::V6(_) => 0,
        });
        let original = FlowKey4::new(Protocol::UDP, (source, 1000), (destination, 53));
        let reply = original.reversed();
        let none = FlowRoute::UNRESOLVED;
        let flow = NewFlow {
            original,
            reply,
            life: Life::opened(Protocol::UDP, Seen::default(), self.now, &Timeouts::default()),
            route: FlowRoute { generation: 1, hop: none, reverse_hop: none },
            origin: Origin { service: None, rule: RuleId(1) },
            pod: crate::identity::PodTag::Unknown,
            charge: Charge::NOBODY,
        };
        let hashes = hashes_of(&self.tables.hasher, &original, &reply);
        self.holds[worker].v4.insert(&flow, hashes).expect("room")
    }

    fn end(&mut self, worker: usize, flow: flow_table::Handle) {
        let hasher = self.tables.hasher.clone();
        assert!(self.holds[worker].v4.remove::<FlowKey4>(&hasher, flow));
    }

    fn announce(&self) {
        (0..WORKERS).for_each(|worker| self.tables.quiescence.announce(worker));
    }

    /// The control thread's turn; it has published once more before it.
    fn tend(&mut self, have_adopted: bool) -> BTreeSet<IpAddr> {
        if have_adopted {
            self.adopted = self.given;
        }
        self.given += 1;
        let worker = Adoption { given: self.given, adopted: self.adopted };
        self.census.tend(self.now, ENTRIES, &[worker; WORKERS])
    }

    /// Turns enough to make a filter anew.
    fn make_anew(&mut self) {
        self.now = self.now.after(LATER);
        for _ in 0..64 {
            self.announce();
            assert!(self.tend(true).is_empty());
        }
    }
}

fn at(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

fn in_force() -> Tables {
    let epochs = Some(Arc::new(Epochs::beginning_at(1)));
    Tables { generation: 1, epochs, ..Tables::default() }
}

#[test]
fn a_change_of_an_address_that_no_flow_has_needs_no_generation() {
    let mut world = World::new();
    world.open(0, [at(1), at(2)]);
    world.open(1, [at(3), at(4)]);
    let old = in_force();
    let (generation, epochs) = world.census.next(&old, [at(5), at(6)].into());
    assert_eq!(generation, 1);
    assert!(epochs.hold_since(1, [at(5).into(), at(6).into()]));
    for end in [at(1), at(2), at(3), at(4)] {
        let (generation, epochs) = world.census.next(&old, [at(5), end].into());
        assert_eq!(generation, 2, "{end}");
        assert!(!epochs.hold_since(1, [end.into(), at(9).into()]));
        assert!(!epochs.hold_since(1, [at(5).into(), at(9).into()]), "who comes with it, too");
    }
}

#[test]
fn a_flow_that_begins_while_a_change_is_on_its_way_is_told_when_all_have_adopted_it() {
    let mut world = World::new();
    assert_eq!(world.census.next(&in_force(), [at(1), at(2)].into()).0, 1);
    assert!(world.tend(false).is_empty());
    world.announce();
    assert!(world.tend(false).is_empty(), "somebody still judges by the tables before");
    world.open(1, [at(2), at(7)]);
    assert!(world.tend(true).is_empty(), "what workers noted before may not be seen yet");
    assert!(world.tend(true).is_empty());
    world.announce();
    assert_eq!(world.tend(true), [at(2)].into());
    world.announce();
    assert!(world.tend(true).is_empty(), "it is told once");
}

#[test]
fn changes_that_come_while_others_are_asked_for_are_asked_for_after_them() {
    let mut world = World::new();
    let mut told = Vec::new();
    world.census.next(&in_force(), [at(1)].into());
    assert!(world.tend(true).is_empty());
    world.census.next(&in_force(), [at(2)].into());
    world.open(0, [at(1), at(9)]);
    world.open(0, [at(2), at(9)]);
    for _ in 0..8 {
        world.announce();
        told.extend(world.tend(true));
    }
    assert_eq!(told, [at(1), at(2)]);
}

/// Something is always on its way to some worker.
#[test]
fn changes_without_end_are_asked_for_all_the_same() {
    let mut world = World::new();
    for number in 0..10_000 {
        let (generation, _) = world.census.next(&in_force(), [at(number)].into());
        assert_eq!(generation, 1, "after {number} changes there was no room");
        // What was published last has never been adopted yet.
        world.given += 1;
        let worker = Adoption { given: world.given, adopted: world.given - 1 };
        world.announce();
        assert!(world.census.tend(world.now, ENTRIES, &[worker; WORKERS]).is_empty());
    }
}

#[test]
fn more_addresses_than_may_wait_concern_everybody_at_once() {
    let mut world = World::new();
    let most = u32::try_from(census::WAITING_MAX).expect("a small bound");
    assert_eq!(world.census.next(&in_force(), (0..most).map(at).collect()).0, 1);
    assert_eq!(world.census.next(&in_force(), [at(most)].into()).0, 2);
    assert!(world.tend(true).is_empty());
    assert_eq!(world.census.next(&in_force(), [at(most)].into()).0, 1, "there is room again");
}

#[test]
fn ends_of_flows_that_are_over_are_forgotten_and_no_other() {
    let mut world = World::new();
    let over = world.open(0, [at(1), at(2)]);
    world.open(1, [at(3), at(4)]);
    world.end(0, over);
    assert!(world.census.may_be_end(at(1)));
    world.make_anew();
    assert!(!world.census.may_be_end(at(1)) && !world.census.may_be_end(at(2)));
    assert!(world.census.may_be_end(at(3)) && world.census.may_be_end(at(4)));
    let few = world.census.usage().0;
    assert!((3..=8).contains(&few), "{few} bits for two addresses");
    world.open(0, [at(5), at(6)]);
    let (more, most) = world.census.usage();
    assert!(more > few && most == more, "{few}, then {more}, at most {most}");
}

#[test]
fn flows_of_the_process_before_concern_everybody_until_all_were_looked_at() {
    let mut world = World::new();
    world.open(0, [at(1), at(2)]);
    world.tables.ends = Arc::new(FlowEnds::default());
    world.census = Census::of(&world.tables, START);
    assert!(world.census.may_be_end(at(77)), "nothing is known yet");
    for _ in 0..64 {
        world.tend(true);
    }
    assert!(world.census.may_be_end(at(1)) && world.census.may_be_end(at(2)));
    assert!(!world.census.may_be_end(at(77)));
}

#[test]
fn a_filter_errs_as_seldom_as_it_says() {
    for (addresses, errors_max) in [(100_000, 200), (1_000_000, 20_000)] {
        let filter = Filter::new();
        let is_v6 = |number: u32| number % 2 == 1;
        let of = |number: u32| match is_v6(number) {
            true => AddressHash::of_v6(0xfd00 << 48, number.into()),
            false => AddressHash::of_v4(0x0a00_0000 + number),
        };
        (0..addresses).for_each(|number| filter.set(of(number)));
        assert!((0..addresses).all(|number| filter.has(of(number))));
        let errors = (addresses..addresses + 100_000).filter(|number| filter.has(of(*number)));
        let errors = errors.count();
        assert!(errors <= errors_max, "{errors} of 100,000 beside {addresses}");
    }
}

/// At every moment, whatever comes between the control thread's turns, each flow's ends are known.
#[test]
fn no_living_flows_end_is_ever_missing() {
    for seed in 0..32_u64 {
        let mut world = World::new();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut living: Vec<(usize, flow_table::Handle, [IpAddr; 2])> = Vec::new();
        let mut made_anew = false;
        for _ in 0..2_000 {
            let worker = random.usize(..WORKERS);
            match random.u32(..8) {
                0..3 if living.len() < 2_000 => {
                    let ends = [at(random.u32(..1 << 22)), at(random.u32(..1 << 22))];
                    if ends[0] != ends[1] {
                        living.push((worker, world.open(worker, ends), ends));
                    }
                }
                3 if !living.is_empty() => {
                    let (worker, flow, _) = living.swap_remove(random.usize(..living.len()));
                    world.end(worker, flow);
                }
                4 | 5 => world.tables.quiescence.announce(worker),
                6 => {
                    world.tend(random.bool());
                    made_anew |= world.tables.ends.noted_in.load(Ordering::Relaxed) == 0b10;
                }
                _ => world.now = world.now.after(LATER / 20),
            }
            for (_, _, ends) in &living {
                assert!(ends.iter().all(|end| world.census.may_be_end(*end)), "seed {seed}");
            }
        }
        assert!(made_anew, "seed {seed}: no filter was made anew");
    }
}
