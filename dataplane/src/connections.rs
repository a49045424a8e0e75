//! How many connections each backend has, of services that choose by it
//! ([`crate::lb::Choice::LeastConnections`]).
//!
//! A flow to such a service is counted where it is inserted, and bears a mark that says so and by which
//! process. Its entry's owner removes it, for whatever reason, and gives back what the mark says; the
//! owner's sweep does so before, once the flow is over and only waits for stray packets. What the process
//! before has marked is counted again by the sweep, within a round of it. So a count is that of the marked
//! entries there are, and needs no list of backends: none is forgotten that left its service and comes back.
//!
//! Nobody but the owner changes a mark. It stands in the word of [`crate::conntrack::Life`], which everybody
//! replaces by comparison only, so that no packet undoes it.
//!
//! Each worker counts in a row of its own, which no other writes, and whoever chooses adds the rows up. A
//! backend has two cells in a row, by two hashes of its address and L4 port, and its count is the lesser
//! of the two sums (a count-min sketch): another backend's connections are taken for its own only where
//! others share both its cells. Of 1,000 counted backends that happens to one in 4,000.
//!
//! There are no rows while no service asks for them: it is the control thread that makes them.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::conntrack::FlowDirection;
use crate::flow::{FlowFamily, FlowView};
use crate::flow_key::{halves, mix};
use crate::lb::{Backend, BackendSet};

/// Cells of a row: half a MiB for each worker.
const CELLS: usize = 1 << 17;
/// Processes that are told apart: so many restarts later a flow that was never counted again would be
/// taken for one that was.
const PROCESSES: u16 = 6;

/// Whether a flow is counted, and by which process, as it stands in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counted(u8);

impl Counted {
    /// It is not, and never will be.
    pub(crate) const NOT: Self = Self(0);
    /// It was, and is over. A reset may turn out to be none: then it is counted again.
    const OVER: Self = Self(7);

    /// What stands in the lowest three bits.
    #[inline(always)]
    pub(crate) fn of(bits: u8) -> Self {
        Self(bits & 7)
    }

    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

/// Where backends are counted: by address and L4 port.
type At = (IpAddr, u16);

/// Connections of all backends, by each worker.
#[derive(Debug)]
pub struct Connections {
    mark: Counted,
    rows: Box<[Box<[AtomicI32]>]>,
}

impl Connections {
    /// Counts of a process with this number ([`crate::charge::Charges::process_after`]), none so far.
    #[must_use]
    pub fn new(process: u16, workers: usize) -> Self {
        let number = 1 + process % PROCESSES;
        let row = || (0..CELLS).map(|_| AtomicI32::new(0)).collect();
        let rows = (0..workers).map(|_| row()).collect();
        Self { mark: Counted(u8::try_from(number).unwrap_or(1)), rows }
    }

    /// The mark of what this process counts.
    pub(crate) fn mark(&self) -> Counted {
        self.mark
    }

    /// Connections of the backend at this address and L4 port.
    #[must_use]
    pub fn of(&self, backend: At) -> u32 {
        let sum = |cell: usize| -> i64 {
            let counts = self.rows.iter().filter_map(|row| row.get(cell));
            counts.map(|count| i64::from(count.load(Ordering::Relaxed))).sum()
        };
        let least = cells(backend).map(sum).into_iter().min().unwrap_or(0);
        u32::try_from(least.max(0)).unwrap_or(u32::MAX)
    }

    /// One more of them, or one less, by this worker.
    fn change(&self, worker: usize, backend: At, by: i32) {
        let Some(row) = self.rows.get(worker) else { return };
        for count in cells(backend).into_iter().filter_map(|cell| row.get(cell)) {
            // Nobody else writes here.
            count.store(count.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }

    /// A flow with this mark has begun.
    pub(crate) fn take<K: FlowFamily>(&self, worker: usize, mark: Counted, reply: &K) {
        if mark == self.mark {
            let reply = reply.generic().canonical();
            self.change(worker, (reply.source(), reply.source_port()), 1);
        }
    }

    /// A flow with this mark is over. One that the process before counted, and this one has not again, is
    /// in no count.
    pub(crate) fn give_back<K: FlowFamily>(&self, worker: usize, mark: Counted, reply: &K) {
        if mark == self.mark {
            let reply = reply.generic().canonical();
            self.change(worker, (reply.source(), reply.source_port()), -1);
        }
    }

    /// The less loaded of two backends that chance draws from the slots of `set`, in which each has its
    /// share by weight: the power of two choices (Mitzenmacher 1996). It looks at two, however many there
    /// are, and does not send a whole burst, decided about before its first flow is counted, nor what all
    /// workers decide about at once, to the one that is least loaded for everybody. Where both draws are
    /// one backend, that is it.
    pub(crate) fn place(&self, set: &BackendSet, random: u64) -> Option<usize> {
        let (one, other) = (set.place(random)?, set.place(random.rotate_left(32))?);
        if one == other {
            return Some(one);
        }
        let of =
            |place: usize| set.backends.get(place).map(|backend| (self.load(backend), backend));
        let ((own, first), (others, second)) = (of(one)?, of(other)?);
        // Which is the less loaded for its weight, with the connection that is to come.
        let [own, others] = [own * u64::from(second.weight), others * u64::from(first.weight)];
        Some(if own <= others { one } else { other })
    }

    fn load(&self, backend: &Backend) -> u64 {
        1 + u64::from(self.of((backend.address, backend.l4_port)))
    }
}

/// What the sweep does for a flow that bears a mark. Marks of another process stand while nothing is
/// counted: so it is until the first tables are in force.
#[cold]
pub(crate) fn tend<K: FlowFamily>(
    connections: Option<&Connections>,
    worker: usize,
    flow: &FlowView<'_, K>,
) {
    let Some(connections) = connections else { return };
    let life = flow.life();
    let (mark, own) = (life.counted(), connections.mark);
    let next = if life.is_over() || life.is_denied() { Counted::OVER } else { own };
    // Where a packet came in between, the next round does it.
    if mark != next && flow.replace_life(life, life.with_counted(next)) {
        let reply = flow.tuple(FlowDirection::Reply);
        connections.give_back(worker, mark, &reply);
        connections.take(worker, next, &reply);
    }
}

/// The two cells of a backend. No outsider chooses backends' addresses, so that the hash needs no key.
fn cells((address, l4_port): At) -> [usize; 2] {
    let (high, low) = match address {
        IpAddr::V4(v4) => (4, u64::from(v4.to_bits())),
        IpAddr::V6(v6) => halves(v6.to_bits()),
    };
    let hash = mix(mix(mix(high) ^ low) ^ u64::from(l4_port));
    let cell = |bits: u64| usize::try_from(bits).unwrap_or(0) % CELLS;
    [cell(hash), cell(hash >> 32)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Protocol;
    use crate::flow_key::FlowKey4;

    fn at(number: u32) -> At {
        (IpAddr::V4((0x0a01_0000 + number).into()), 8080)
    }

    fn reply(number: u32) -> FlowKey4 {
        FlowKey4::new(Protocol::TCP, (0x0a01_0000 + number, 8080), (0xc000_0207, 1000))
    }

    fn set(weights: &[u16]) -> BackendSet {
        let backend = |(number, weight): (u32, &u16)| {
            let (address, l4_port) = at(number);
            Backend { address, l4_port, local: true, weight: *weight }
        };
        let backends: Vec<Backend> = (0..).zip(weights).map(backend).collect();
        let slots = (0u16..)
            .zip(weights)
            .flat_map(|(place, weight)| std::iter::repeat_n(place, usize::from(*weight)));
        BackendSet { backends: backends.into(), maglev: slots.collect() }
    }

    #[test]
    fn counts_are_of_all_workers_and_of_this_process() {
        let connections = Connections::new(9, 3);
        let own = connections.mark();
        for worker in [0, 1, 1, 2] {
            connections.take(worker, own, &reply(1));
        }
        // By another worker than the one that counted it.
        connections.give_back(0, own, &reply(1));
        connections.give_back(0, own, &reply(1));
        assert_eq!((connections.of(at(1)), connections.of(at(2))), (2, 0));
        for foreign in [Counted::NOT, Connections::new(10, 1).mark()] {
            connections.take(0, foreign, &reply(1));
            connections.give_back(0, foreign, &reply(2));
        }
        assert_eq!((connections.of(at(1)), connections.of(at(2))), (2, 0));
        for process in 1..=63 {
            let [this, next] = [process, crate::charge::Charges::process_after(process)]
                .map(|process| 1 + process % PROCESSES);
            assert_ne!(this, next, "{process}");
            assert!((1..7).contains(&this), "neither NOT nor OVER");
        }
    }

    #[test]
    fn few_of_a_thousand_backends_are_taken_for_more_loaded_than_they_are() {
        let connections = Connections::new(1, 1);
        let own = connections.mark();
        for number in 0..1000 {
            (0..number % 10).for_each(|_| connections.take(0, own, &reply(number)));
        }
        let wrong = (0..1000).filter(|number| connections.of(at(*number)) != number % 10).count();
        assert!(wrong <= 2, "{wrong}");
    }

    #[test]
    fn connections_even_out_by_weight_whatever_was_there_before() {
        let mut random = 0x9e37_79b9_u64;
        let mut next = || {
            random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            random
        };
        let connections = Connections::new(1, 2);
        let (own, set) = (connections.mark(), set(&[100, 100, 100, 300]));
        // The first has more than its share before.
        (0..3000).for_each(|_| connections.take(1, own, &reply(0)));
        for _ in 0..12_000 {
            let place = connections.place(&set, next()).expect("a backend");
            connections.take(0, own, &reply(u32::try_from(place).expect("few")));
        }
        let counts: Vec<u32> = (0..4).map(|number| connections.of(at(number))).collect();
        // 15,000 in all: 2,500 for each hundred of weight, but for those that the first has too many.
        assert!(counts[0] < 3900, "{counts:?}");
        assert!(counts[1..3].iter().all(|count| (2150..2550).contains(count)), "{counts:?}");
        assert!((6400..7500).contains(&counts[3]), "{counts:?}");
    }
}
