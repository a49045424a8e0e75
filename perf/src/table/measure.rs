//! Rounds: every operation on every subject in turn, with the same keys, each answer checked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::flow::Tally;
use super::lineup::Boxed;
use super::population::Population;
use super::samples::Samples;
use super::setting::{Operation, Setting};
use super::subject::Timed;
use crate::interrupt;

/// Flows that are inserted or audited in one piece: all there are may not fit beside the tables.
pub const PIECE: usize = 1 << 20;
/// Every deadline is later.
const START: u64 = 1;

/// Tables of one setting with the same flows in them.
pub struct Round<'s, const K: usize> {
    setting: &'s Setting,
    subjects: Vec<Boxed<K>>,
    population: Population,
    now: u64,
}

impl<'s, const K: usize> Round<'s, K> {
    /// Fills the subjects, which are empty.
    ///
    /// # Errors
    /// One refuses a flow.
    pub fn filled(setting: &'s Setting, mut subjects: Vec<Boxed<K>>) -> Result<Self> {
        let mut population = Population::new(setting.kind.two_keys);
        for start in (0..setting.flows).step_by(PIECE) {
            let flows = population.arrive(PIECE.min(setting.flows - start));
            for subject in &mut subjects {
                interrupt::check()?;
                let inserted = subject.insert(&flows, START);
                inserted.with_context(|| format!("{}: first flows", subject.name()))?;
            }
        }
        population.shuffle();
        Ok(Self { setting, subjects, population, now: START })
    }

    /// One sample of every operation chosen. The subjects begin in turn.
    ///
    /// # Errors
    /// An answer is wrong, or the run was interrupted.
    pub fn run(&mut self, operations: &[Operation], samples: &mut Samples) -> Result<()> {
        for &operation in operations {
            interrupt::check()?;
            self.now += 1;
            self.measure(operation, samples).with_context(|| self.setting.case(operation))?;
        }
        self.subjects.rotate_left(1);
        Ok(())
    }

    fn measure(&mut self, operation: Operation, samples: &mut Samples) -> Result<()> {
        let case = self.setting.case(operation);
        let now = self.now;
        let Setting { lookups, moves, .. } = *self.setting;
        match operation {
            Operation::LookUpdate(spread) => {
                let batch = self.population.packets(spread, lookups);
                self.each(&case, samples, lookups, batch.expected, |subject| {
                    subject.look_up(&batch.keys, now)
                })
            }
            Operation::Miss => {
                let batch = self.population.absent(lookups);
                self.each(&case, samples, lookups, batch.expected, |subject| {
                    subject.look_up(&batch.keys, now)
                })
            }
            Operation::Move => self.move_flows(moves, samples),
            Operation::Sweep => {
                let expected = self.population.states();
                self.each(&case, samples, expected.found as usize, expected, |subject| {
                    subject.sweep(START)
                })
            }
        }
    }

    /// Some flows go and as many new ones come, as in a table whose connections live and end.
    fn move_flows(&mut self, moves: usize, samples: &mut Samples) -> Result<()> {
        let now = self.now;
        let leaving = self.population.leave(moves);
        let removed = Tally { found: moves as u64, ..Tally::default() };
        let case = self.setting.case_of("delete");
        self.each(&case, samples, moves, removed, |subject| subject.remove(&leaving.keys))?;
        for subject in &mut self.subjects {
            let found = subject.audit(&leaving.keys)?.found;
            ensure!(found == 0, "{}: {found} deleted flows are there", subject.name());
        }
        let flows = self.population.arrive(moves);
        let case = self.setting.case_of("insert");
        self.each(&case, samples, moves, Tally::default(), |subject| {
            Ok((subject.insert(&flows, now)?, Tally::default()))
        })
    }

    fn each(
        &mut self,
        case: &str,
        samples: &mut Samples,
        count: usize,
        expected: Tally,
        mut run: impl FnMut(&mut Boxed<K>) -> Result<Timed>,
    ) -> Result<()> {
        for subject in &mut self.subjects {
            let (time, tally) = run(subject).with_context(|| subject.name())?;
            ensure!(tally == expected, "{}: {tally:?} instead of {expected:?}", subject.name());
            samples.add(case, subject.name(), "ns/op", nanos_each(time, count));
        }
        Ok(())
    }

    /// Looks that every subject has every flow, and counted every packet of it.
    ///
    /// # Errors
    /// One has not.
    pub fn audit(&mut self) -> Result<()> {
        for start in (0..self.population.len()).step_by(PIECE) {
            let batch = self.population.piece(start, PIECE);
            for subject in &mut self.subjects {
                interrupt::check()?;
                let tally = subject.audit(&batch.keys)?;
                let name = subject.name();
                ensure!(tally == batch.expected, "{name}: {tally:?} instead of {batch:?}");
            }
        }
        Ok(())
    }

    /// The subjects, and the flows in them.
    pub fn into_parts(self) -> (Vec<Boxed<K>>, Population) {
        (self.subjects, self.population)
    }
}

/// Nanoseconds of each of `count` operations.
pub fn nanos_each(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::{Operation, Round, Samples};
    use crate::spread::Spread;
    use crate::table::flow::{Flow, Tail, Tuple, V4, V4_ENTRY};
    use crate::table::maps::{Hashbrown, OneKey, Rest};
    use crate::table::setting::{KINDS, Setting};
    use crate::table::subject::{FlowTable, Here};

    const REST: usize = V4_ENTRY - V4;
    type Honest = OneKey<Hashbrown<Tuple<V4>, Rest<REST>>, REST>;
    const FLOWS: usize = 500;

    /// What a table does wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        InsertsNothing,
        UpdatesNothing,
        FindsTheSame,
        RemovesNothing,
    }

    struct Table(Honest, Fault);

    impl FlowTable<V4> for Table {
        fn insert(&mut self, flows: &[Flow<V4>], now: u64) -> Result<()> {
            let kept = if self.1 == Fault::InsertsNothing { flows.len() - 1 } else { flows.len() };
            self.0.insert(&flows[..kept], now)
        }

        fn look_up(&self, worker: usize, keys: &[Tuple<V4>], mut visit: impl FnMut(Tail<'_>)) {
            for key in keys {
                let key = if self.1 == Fault::FindsTheSame { &keys[0] } else { key };
                self.0.look_up(worker, std::slice::from_ref(key), |tail| match self.1 {
                    Fault::UpdatesNothing => {
                        let words = [tail.deadline(), tail.state(), 0, 0].map(Into::into);
                        Tail::of::<V4>(&words, 2 * V4).into_iter().for_each(&mut visit);
                    }
                    _ => visit(tail),
                });
            }
        }

        fn remove(&mut self, keys: &[Tuple<V4>]) -> u64 {
            if self.1 == Fault::RemovesNothing { keys.len() as u64 } else { self.0.remove(keys) }
        }

        fn sweep(&mut self, visit: impl FnMut(Tail<'_>)) {
            FlowTable::<V4>::sweep(&mut self.0, visit);
        }
    }

    fn run(fault: Fault, operation: Operation) -> Result<()> {
        let setting = Setting { flows: FLOWS, kind: KINDS[0], lookups: 1000, moves: 100 };
        let table = Table(OneKey::new::<V4>(FLOWS), fault);
        let mut round = Round::filled(&setting, vec![Box::new(Here::new("table", table))])?;
        round.run(&[operation], &mut Samples::default())?;
        round.audit()
    }

    #[test]
    fn a_table_that_skips_work_is_found_out() {
        let look_up = Operation::LookUpdate(Spread::Uniform);
        for (fault, operation) in [
            (Fault::InsertsNothing, look_up),
            (Fault::InsertsNothing, Operation::Sweep),
            (Fault::UpdatesNothing, look_up),
            (Fault::FindsTheSame, look_up),
            (Fault::RemovesNothing, Operation::Move),
        ] {
            run(Fault::None, operation).expect("an honest table passes");
            assert!(run(fault, operation).is_err(), "{fault:?}");
        }
    }
}
