//! Two threads that look up and update at once, in one table or each in one of its own.

use anyhow::{Context, Result, ensure};
use pinning::CpuId;

use super::flow::{Flow, Tally, Tuple};
use super::lineup::{Boxed, SHARDED};
use super::population::{Batch, Population, Shard};
use super::samples::Samples;
use super::setting::{Setting, short};
use super::subject::{FlowTable, Timed, WORKERS, in_parallel};
use super::xskiff::{Room, Xskiff};
use crate::interrupt;
use crate::spread::Spread;

const UNIT: &str = "Mops";

/// Two tables with half of the flows each.
#[derive(Debug)]
pub struct Sharded<const K: usize, const W: usize>([Xskiff<W>; WORKERS]);

impl<const K: usize, const W: usize> Sharded<K, W> {
    /// The population's flows, by shard.
    ///
    /// # Errors
    /// There is not that much memory.
    pub fn filled(population: &Population, two_keys: bool) -> Result<Self> {
        let shard = |number| {
            let flows: Vec<Flow<K>> = population.flows_of_shard(Shard(number));
            let mut table = Xskiff::new(Room::fixed(flows.len()), two_keys, false)?;
            FlowTable::<K>::insert(&mut table, &flows, 1)?;
            anyhow::Ok(table)
        };
        Ok(Self([shard(0)?, shard(1)?]))
    }

    fn share(
        &self,
        keys: [&[Tuple<K>]; WORKERS],
        cores: [CpuId; WORKERS],
        now: u64,
    ) -> Result<Timed> {
        in_parallel(self.0.each_ref(), keys, cores, now)
    }
}

/// Samples of every subject that threads can share, and of `sharded`.
///
/// # Errors
/// An answer is wrong, or the run was interrupted.
pub fn measure<const K: usize, const W: usize>(
    setting: &Setting,
    (subjects, sharded): (&mut [Boxed<K>], Option<&Sharded<K, W>>),
    population: &mut Population,
    (cores, runs): ([CpuId; WORKERS], u32),
    samples: &mut Samples,
) -> Result<()> {
    let case = format!("share/{WORKERS}-workers/{}", short(setting.flows));
    for run in 0..runs {
        let now = u64::from(run) + 1000;
        let batches = [(); WORKERS].map(|()| population.packets(Spread::Uniform, setting.lookups));
        for subject in &mut *subjects {
            interrupt::check()?;
            let shared = subject.share(batches.each_ref().map(keys), cores, now);
            let shared = shared.with_context(|| subject.name())?;
            if let Some(timed) = shared {
                samples.add(&case, subject.name(), UNIT, rate(subject.name(), &batches, timed)?);
            }
        }
        if let Some(sharded) = sharded {
            interrupt::check()?;
            let batches = [Shard(0), Shard(1)]
                .map(|shard| population.packets_of_shard(shard, setting.lookups));
            let timed = sharded.share(batches.each_ref().map(keys), cores, now)?;
            samples.add(&case, SHARDED, UNIT, rate(SHARDED, &batches, timed)?);
        }
    }
    Ok(())
}

fn keys<const K: usize>(batch: &Batch<K>) -> &[Tuple<K>] {
    &batch.keys
}

/// Million lookups per second of all workers, if they found what they must.
fn rate<const K: usize>(
    name: &str,
    batches: &[Batch<K>; WORKERS],
    (time, tally): Timed,
) -> Result<f64> {
    let mut expected = Tally::default();
    for batch in batches {
        expected.found += batch.expected.found;
        expected.states = expected.states.wrapping_add(batch.expected.states);
    }
    ensure!(tally == expected, "{name}: {tally:?} instead of {expected:?}");
    Ok(expected.found as f64 / time.as_secs_f64() / 1e6)
}
