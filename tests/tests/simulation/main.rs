//! A node under random traffic and faults, held to what its clients and servers are promised.
//!
//! A seed decides everything. A failure prints its seed; `XSKIFF_SIMULATION_SEED=N` repeats that
//! one run, `XSKIFF_SIMULATION_RUNS=N` makes more of them than a test needs.
#![forbid(unsafe_code)]

mod across_workers;
mod churn;
mod conversation;
mod forged;
mod overload;
mod panics;
mod pieces;
mod run;
mod segments;

use run::Run;

/// Runs without a wish: half of them on one worker, the others on two to eight.
const RUNS: u64 = 24;
/// Rounds of a run; a round is a handful of packets and a tick of every worker.
const ROUNDS: usize = 1500;

fn wish(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Prints how to repeat a run that fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat with: XSKIFF_SIMULATION_SEED={} cargo test --test simulation",
                self.0
            );
        }
    }
}

#[test]
fn node_keeps_its_promises_under_traffic_faults_and_changing_tables() {
    let seeds = match wish("XSKIFF_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..wish("XSKIFF_SIMULATION_RUNS").unwrap_or(RUNS),
    };
    let many = seeds.end - seeds.start > 1;
    let mut totals = run::Totals::default();
    for seed in seeds {
        let replay = Replay(seed);
        totals.add(&Run::new(seed).play(ROUNDS));
        drop(replay);
    }
    println!("{totals:?}");
    if many {
        totals.assert_everything_happened();
    }
}
