//! Which flows there are, which ones come and go, and which ones packets belong to.

use super::flow::{Flow, Tally, Tuple, state_of};
use crate::spread::{Random, Spread, Zipf};

/// Every run has the same flows and packets.
const SEED: u64 = 0x243f_6a88_85a3_08d3;

/// Keys to look up or remove, and what must be found under them.
#[derive(Debug)]
pub struct Batch<const K: usize> {
    /// The keys.
    pub keys: Vec<Tuple<K>>,
    /// What they lead to; packets are not foretold.
    pub expected: Tally,
}

/// The flows in the tables.
#[derive(Debug)]
pub struct Population {
    /// By rank.
    live: Vec<u32>,
    /// The first number that was never used.
    next: u32,
    /// Packets of each flow, by number.
    packets: Vec<u32>,
    zipf: Zipf,
    random: Random,
    two_keys: bool,
}

impl Population {
    /// No flows; packets will come under either key when there are two.
    pub fn new(two_keys: bool) -> Self {
        Self {
            live: Vec::new(),
            next: 0,
            packets: Vec::new(),
            zipf: Zipf::new(1),
            random: Random::new(SEED),
            two_keys,
        }
    }

    /// Gives the flows new ranks, which do not follow the order they came in: hot entries would be
    /// neighbours in memory.
    pub fn shuffle(&mut self) {
        for last in (1..self.live.len()).rev() {
            self.live.swap(last, self.random.below(last + 1));
        }
        self.zipf = Zipf::new(self.live.len());
    }

    /// Keys of packets, each of which is counted for its flow.
    pub fn packets<const K: usize>(&mut self, spread: Spread, count: usize) -> Batch<K> {
        let mut batch = Batch { keys: Vec::with_capacity(count), expected: Tally::default() };
        for _ in 0..count {
            let rank = match spread {
                Spread::Uniform => self.random.below(self.live.len()),
                Spread::Zipf => self.zipf.rank(&mut self.random),
            };
            let number = self.live[rank];
            batch.keys.push(self.key_of(number));
            batch.expected.add(state_of(number), 0);
            self.packets[number as usize] += 1;
        }
        batch
    }

    /// Uniform packets of one shard's flows, which are not counted.
    pub fn packets_of_shard<const K: usize>(&mut self, shard: Shard, count: usize) -> Batch<K> {
        let mut batch = Batch { keys: Vec::with_capacity(count), expected: Tally::default() };
        while batch.keys.len() < count {
            let number = self.live[self.random.below(self.live.len())];
            if shard.has(number) {
                batch.keys.push(self.key_of(number));
                batch.expected.add(state_of(number), 0);
            }
        }
        batch
    }

    fn key_of<const K: usize>(&mut self, number: u32) -> Tuple<K> {
        let is_reply = self.two_keys && self.random.next() & 1 == 1;
        if is_reply { Tuple::alias(number) } else { Tuple::original(number) }
    }

    /// Keys that no flow has.
    pub fn absent<const K: usize>(&mut self, count: usize) -> Batch<K> {
        let keys = (0..count).map(|_| Tuple::absent(self.live[self.random.below(self.live.len())]));
        Batch { keys: keys.collect(), expected: Tally::default() }
    }

    /// `count` flows that are in no table yet, and are packets' from now on.
    pub fn arrive<const K: usize>(&mut self, count: usize) -> Vec<Flow<K>> {
        self.live.extend(self.next..self.next + count as u32);
        self.packets.resize(self.next as usize + count, 0);
        self.newcomers(count)
    }

    /// `count` flows that are in no table yet and that nobody remembers.
    pub fn newcomers<const K: usize>(&mut self, count: usize) -> Vec<Flow<K>> {
        let numbers = self.next..self.next + count as u32;
        self.next = numbers.end;
        numbers.map(Flow::new).collect()
    }

    /// `count` flows, chosen at random, that must go now.
    pub fn leave<const K: usize>(&mut self, count: usize) -> Batch<K> {
        let mut batch = Batch { keys: Vec::with_capacity(count), expected: Tally::default() };
        for _ in 0..count.min(self.live.len()) {
            let place = self.random.below(self.live.len());
            let number = self.live.swap_remove(place);
            batch.keys.push(Tuple::original(number));
            batch.expected.add(state_of(number), 0);
        }
        batch
    }

    /// At most `count` flows from a rank on, under their first keys, with the packets they had.
    pub fn piece<const K: usize>(&self, start: usize, count: usize) -> Batch<K> {
        let piece = self.live.iter().skip(start).take(count);
        let mut batch = Batch { keys: Vec::with_capacity(count), expected: Tally::default() };
        for &number in piece {
            batch.keys.push(Tuple::original(number));
            batch.expected.add(state_of(number), self.packets[number as usize].into());
        }
        batch
    }

    /// What all of them hold, but for packets.
    pub fn states(&self) -> Tally {
        let mut tally = Tally::default();
        self.live.iter().for_each(|number| tally.add(state_of(*number), 0));
        tally
    }

    /// The flows of one shard, to be inserted.
    pub fn flows_of_shard<const K: usize>(&self, shard: Shard) -> Vec<Flow<K>> {
        self.live.iter().filter(|number| shard.has(**number)).map(|n| Flow::new(*n)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }
}

/// One of two halves of the flows.
#[derive(Debug, Clone, Copy)]
pub struct Shard(pub u32);

impl Shard {
    fn has(self, number: u32) -> bool {
        number & 1 == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Population, Shard, Spread, Tally};
    use crate::table::flow::{Tuple, V4, state_of};

    fn filled(flows: usize, two_keys: bool) -> Population {
        let mut population = Population::new(two_keys);
        population.arrive::<V4>(flows);
        population.shuffle();
        population
    }

    #[test]
    fn who_left_is_not_asked_for_and_who_came_is() {
        let mut population = filled(1000, false);
        let gone = population.leave::<V4>(999);
        assert_eq!((gone.keys.len(), population.len()), (999, 1));
        let came = population.arrive::<V4>(1);
        assert_eq!(came[0].key, Tuple::original(1000));
        let batch = population.packets::<V4>(Spread::Uniform, 100);
        assert!(batch.keys.iter().all(|key| !gone.keys.contains(key)));
        assert!(batch.keys.contains(&came[0].key));
        let all = population.piece::<V4>(0, 9).expected;
        assert_eq!((all.found, all.packets), (2, 100));
        assert_eq!(population.states(), Tally { packets: 0, ..all });
    }

    #[test]
    fn what_is_expected_is_what_the_keys_flows_hold() {
        let mut population = filled(50, true);
        let batch = population.packets::<V4>(Spread::Zipf, 1000);
        let mut tally = Tally::default();
        for key in &batch.keys {
            let number = (0..50).find(|n| [Tuple::original(*n), Tuple::alias(*n)].contains(key));
            tally.add(state_of(number.expect("a flow's key")), 0);
        }
        assert_eq!(tally, batch.expected);
        assert!(batch.keys.iter().any(|key| (0..50).any(|n| *key == Tuple::alias(n))));
    }

    #[test]
    fn a_shard_is_asked_for_its_own_flows_only() {
        let mut population = filled(100, false);
        let flows = population.flows_of_shard::<V4>(Shard(1));
        assert_eq!(flows.len(), 50);
        let batch = population.packets_of_shard::<V4>(Shard(1), 200);
        assert!(batch.keys.iter().all(|key| flows.iter().any(|flow| flow.key == *key)));
    }
}
