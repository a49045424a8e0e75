//! `xskiff-perf pipeline`: nanoseconds per packet in memory, all stages and each by itself.
//!
//! Every packet of a run is really decided: its action is compared with what the workload says must
//! become of it, and one in [`CHECK_EVERY`] is read back, checksums included. Packets lie in 512
//! buffers of the heap, a page-unaligned 2 KB apart, so that a burst spreads over the cache's sets
//! as it does in a ring; they are written before the clock starts and are found in the second level
//! of the cache, where a copy-mode receive leaves them too. Flow tables are on huge pages.
//!
//! Reading order: [`node`] (one worker's pipeline and its packets), [`stages`] (the stages apart),
//! [`limited`] (a whole worker, with bandwidth limits and without), this file (cases and runs).

mod limited;
pub mod node;
mod stages;

use anyhow::{Context, Result};
use clap::Args;
use pinning::CpuId;

use crate::choice::chosen;
use crate::figure::Figure;
use crate::report::Report;
use crate::spread::Spread;
use crate::workload::Cluster;
use node::{Node, Traffic};

const BENCH: &str = "pipeline";
const UNIT: &str = "ns/packet";
/// Packets written before the clock starts, and then handled.
const BATCH: usize = 512;
/// One of so many packets is read back.
const CHECK_EVERY: usize = 64;

/// Options of `pipeline`.
#[derive(Debug, Args)]
pub struct Options {
    /// Cases to run, such as established-1M,new; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Times every case is measured; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// CPU to run on; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// A few thousand packets: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Case {
    name: &'static str,
    traffic: Traffic,
    flows: u64,
    packets: u64,
}

impl Case {
    const fn established(name: &'static str, flows: u64, spread: Spread) -> Self {
        Self { name, traffic: Traffic::Established(spread), flows, packets: 2 << 20 }
    }

    const fn new(name: &'static str, traffic: Traffic) -> Self {
        Self { name, traffic, flows: 1 << 20, packets: 1 << 20 }
    }
}

const CASES: [Case; 8] = [
    Case::established("established-1k", 1_000, Spread::Uniform),
    Case::established("established-100k", 100_000, Spread::Uniform),
    Case::established("established-1M", 1_000_000, Spread::Uniform),
    Case::established("established-10M", 10_000_000, Spread::Uniform),
    Case::established("established-10M-zipf", 10_000_000, Spread::Zipf),
    Case::new("new", Traffic::NewBetweenPods),
    Case::new("new-service", Traffic::NewToService),
    Case::established(limited::NAME, 1_000, Spread::Uniform),
];
const QUICK_FLOWS_MAX: u64 = 4_000;
const QUICK_PACKETS: u64 = 8_192;

/// Runs the cases and reports.
///
/// # Errors
/// No such case or CPU, too little memory, or a packet that did not become what it must.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let cases = chosen(&options.cases, &CASES, |case| case.name)?;
    let core = pin(options.core)?;
    report.header(&[
        format!("mode     in memory, one worker on CPU {core}, bursts of 32, 60-byte UDP, IPv4"),
        "work     1,000 services on 100 pods, policy both ways, DNAT, TTL, conntrack and sweep;"
            .into(),
        "         established: requests and replies, flows in random order or by Zipf's law (0.99)"
            .into(),
        "limited: a whole worker, its packets under a limit of bandwidth that holds none, and under none"
            .into(),
    ])?;
    let cluster = Cluster::default();
    for case in cases {
        let is_small = case.flows <= QUICK_FLOWS_MAX || !case.traffic.is_established();
        if is_small || !options.quick {
            let case = if options.quick { quick(case) } else { Case { ..*case } };
            let measured = match case.name {
                limited::NAME => limited::measure(options.runs, &case, &cluster, report),
                _ => measure(&case, options.runs, &cluster, report),
            };
            measured.context(case.name)?;
        }
    }
    report.table(&[])?;
    Ok(())
}

fn quick(case: &Case) -> Case {
    let flows = case.flows.min(QUICK_FLOWS_MAX);
    let packets = if case.traffic.is_established() { QUICK_PACKETS } else { flows };
    Case { name: case.name, traffic: case.traffic, flows, packets }
}

/// Takes CPU `core`, or the last one that this process may use, for this thread.
///
/// # Errors
/// There is no such CPU.
pub fn pin(core: Option<u16>) -> Result<CpuId> {
    let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
    let last = allowed.iter().last().context("this process may run on no CPU")?;
    let core = core.map_or(last, CpuId);
    pinning::apply::pin_current_thread(core)?;
    Ok(core)
}

/// Measures whole and parts in turns, so that a slow moment of the machine hits both.
fn measure(case: &Case, runs: u32, cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.progress(&format!("{}: {} flows", case.name, case.flows));
    let mut node = Node::new(cluster, case.traffic, case.flows)?;
    let mut staged = stages::Staged::new(cluster, case.traffic, case.flows)?;
    let mut whole = Vec::new();
    let mut parts: Vec<(&'static str, Vec<f64>)> = Vec::new();
    for _ in 0..runs {
        whole.push(node.run(case.packets)?);
        for (stage, nanos) in staged.run(case.packets)? {
            match parts.iter_mut().find(|(name, _)| *name == stage) {
                Some((_, samples)) => samples.push(nanos),
                None => parts.push((stage, vec![nanos])),
            }
        }
    }
    report.add(Figure::of(BENCH, case.name, "pipeline", UNIT, &whole))?;
    for (stage, samples) in parts {
        report.add(Figure::of(BENCH, case.name, &format!("stage:{stage}"), UNIT, &samples))?;
    }
    Ok(())
}
