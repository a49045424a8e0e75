//! The worst burst of 32 inserts while a table grows to ten times what it was made for.
//!
//! New pages are the table's cost, so the kernel's time for them counts for whoever inserts; this
//! project's table is supplied by a thread of its own, as in the node: see [`super::supply`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::flow::Tally;
use super::lineup::{Boxed, Make};
use super::measure::PIECE;
use super::population::Population;
use super::samples::{Samples, WORST};
use super::setting::short;
use crate::interrupt;
use flow_table::BURST;

/// How many times as many flows there are at the end.
pub const TIMES: usize = 10;

/// One sample of a subject.
///
/// # Errors
/// A flow is refused, or is not there afterwards.
pub fn measure<const K: usize, const W: usize, const R: usize>(
    name: &'static str,
    make: &Make,
    samples: &mut Samples,
) -> Result<()> {
    let (from, to) = (make.room.flows, make.room.flows_max);
    let case = format!("growth-burst/{}-{}", short(from), short(to));
    let mut subject = make.subject::<K, W, R>(name)?;
    let worst = grow(&mut subject, from, to).with_context(|| format!("{case}: {name}"))?;
    samples.add(&case, name, WORST, worst);
    Ok(())
}

fn grow<const K: usize>(subject: &mut Boxed<K>, from: usize, to: usize) -> Result<f64> {
    let mut population = Population::new(false);
    let (mut inserted, mut worst) = (0, Duration::ZERO);
    while inserted < to {
        interrupt::check()?;
        let until = if inserted < from { from } else { to };
        let flows = population.arrive::<K>(PIECE.min(until - inserted));
        for burst in flows.chunks(BURST) {
            let time = subject.insert(burst, 1)?;
            if inserted >= from {
                worst = worst.max(time);
            }
        }
        inserted += flows.len();
    }
    let mut tally = Tally::default();
    for start in (0..to).step_by(PIECE) {
        let piece = population.piece(start, PIECE);
        let found = subject.audit(&piece.keys)?;
        ensure!(found == piece.expected, "{found:?} instead of {:?}", piece.expected);
        tally.found += found.found;
    }
    ensure!(tally.found == to as u64, "{} of {to} flows are there", tally.found);
    Ok(worst.as_secs_f64() * 1e6)
}
