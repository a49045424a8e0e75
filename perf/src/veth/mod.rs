//! `xskiff-perf veth`: bare AF_XDP forwarding, xskiff, and the kernel's nftables, side by side.
//!
//! Client, node and server are linked by veth pairs of one queue. The client sends 60-byte UDP to
//! a service; the server counts what arrives translated as it must. Every subject has a node of its
//! own, all stand at once, and are measured in turns, so that a slow moment hits all of them.
//!
//! Where the work is done: the source sends on one core. In the first placement that core also
//! does the node's receive softirq, and the node's core the rest. In the second (`-onecore`) the
//! node's core does all of the node's work: receive in a kernel thread, to which the worker yields
//! when it has no packet. Busy polling would spare the switches, but since Linux 6.13 the kernel
//! knows no NAPI of a veth's AF_XDP socket to poll. The kernel's node has its receive thread on the
//! node's core in both, which is kept awake for it. The server's counting runs where the node
//! transmits.
//!
//! Ways out of a port are told apart, so that a comparison is of equals. `xskiff` does what a node does by
//! default: live XDP frames for 32 packets and more, since the server's end here can take them, and
//! copy-mode AF_XDP for fewer; `bare-live` forwards by the same. `xskiff-af-xdp` and `bare` have AF_XDP alone.
//!
//! Reading order: [`service`] (the job), [`network`] (links), [`worker`], [`kernel`] and [`rules`] (nodes),
//! [`source`] (how a rate is measured), [`subject`] (rounds), this file (cases, ratios).

mod awake;
pub mod kernel;
pub mod network;
pub mod rules;
pub mod service;
pub mod source;
pub mod subject;
pub mod worker;

use anyhow::{Context, Result};
use clap::Args;
use pinning::CpuId;

use crate::choice::chosen;
use crate::figure::{Figure, median};
use crate::interrupt;
use crate::report::Report;
use kernel::Limits;
use network::Network;
use rules::Rules;
use service::Job;
use source::{Sample, Source};
use subject::{Pace, Subject, Task};
use worker::Work;

const BENCH: &str = "veth";
const RATE: &str = "kpps";
const EFFICIENCY: &str = "kpkt/cpu-s";
/// Room in xskiff's table: a million flows, or what a round of new ones begins.
const FLOWS: usize = 4 << 20;
const QUICK_FLOWS: usize = 1 << 16;

/// Options of `veth`.
#[derive(Debug, Args)]
pub struct Options {
    /// Cases to run, of 1, 10k, 1M and new; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Subjects to run, such as bare,xskiff,nftables-onecore; all when not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Rounds, in each of which every subject is measured once; the median counts.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    pace: Pace,
    /// CPU of the node; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// CPU of the source; the first one when not given.
    #[arg(long)]
    source_core: Option<u16>,
    /// Two short rounds: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Case {
    name: &'static str,
    /// `None`: every packet begins a flow.
    flows: Option<u64>,
}

const CASES: [Case; 4] = [
    Case { name: "1", flows: Some(1) },
    Case { name: "10k", flows: Some(10_000) },
    Case { name: "1M", flows: Some(1_000_000) },
    Case { name: "new", flows: None },
];
const SUBJECTS: [&str; 5] = ["bare", "xskiff", "nftables", "bare-live", "xskiff-af-xdp"];
const PLACEMENTS: [&str; 2] = ["", "-onecore"];
/// Each with what it is compared with beside the kernel: first what forwards by the same ways out.
const COMPARED: [(&str, &[&str]); 2] =
    [("xskiff", &["bare-live", "bare"]), ("xskiff-af-xdp", &["bare"])];

/// Runs the cases and reports.
///
/// # Errors
/// Not root, a missing tool, a kernel that refuses something, or packets that arrive wrong.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let cases = chosen(&options.cases, &CASES, |case| case.name)?;
    let names: Vec<String> = PLACEMENTS
        .iter()
        .flat_map(|placement| SUBJECTS.iter().map(move |name| format!("{name}{placement}")))
        .collect();
    let names = chosen(&options.subjects, &names, |name| name)?;
    let (source_core, core) = cores(options)?;
    interrupt::watch()?;
    let has_kernel = names.iter().any(|name| name.starts_with(SUBJECTS[2]));
    let _limits = if has_kernel { Some(Limits::raise()?) } else { None };
    let mut network = Network::new()?;
    pinning::apply::pin_current_thread(source_core)?;
    let flows = if options.quick { QUICK_FLOWS } else { FLOWS };
    let subjects = names.iter().zip(0..).map(|(name, number)| {
        let (kind, is_onecore) = match name.strip_suffix(PLACEMENTS[1]) {
            Some(kind) => (kind, true),
            None => (name.as_str(), false),
        };
        let links = network.add_node(number)?;
        let (live, job) = (kind == "xskiff", Job::ONE_SERVICE);
        let work = match kind {
            "nftables" => Task::Kernel(Rules::Least),
            "bare" => Task::Worker(Work::Bare),
            "bare-live" => Task::Worker(Work::BareLive),
            _ => Task::Worker(Work::Xskiff { flows, live, job }),
        };
        Subject::new(name, links, work, (core, is_onecore), &job).with_context(|| (*name).clone())
    });
    let mut subjects = subjects.collect::<Result<Vec<Subject>>>()?;
    header(report, &subjects, source_core, core)?;
    let mut source = Source::new("spare")?;
    let mut remarks = Vec::new();
    for case in cases {
        if options.quick && case.flows.is_some_and(|flows| flows > QUICK_FLOWS as u64) {
            continue;
        }
        measure(case, options, &mut source, &mut subjects, report).context(case.name)?;
        remarks.extend(ratios(case, &subjects));
    }
    Ok(report.table(&remarks)?)
}

fn cores(options: &Options) -> Result<(CpuId, CpuId)> {
    let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
    let first = allowed.iter().next().context("this process may run on no CPU")?;
    let last = allowed.iter().last().unwrap_or(first);
    Ok((options.source_core.map_or(first, CpuId), options.core.map_or(last, CpuId)))
}

fn header(
    report: &Report,
    subjects: &[Subject],
    source_core: CpuId,
    core: CpuId,
) -> std::io::Result<()> {
    let modes = subjects.iter().find_map(Subject::modes);
    report.header(&[
        format!(
            "mode     veth of one queue, XDP and AF_XDP {}; 60-byte UDP, bursts of 64",
            modes.unwrap_or("not used")
        ),
        format!("cores    source {source_core}, node {core}"),
        "         bare, xskiff: receive softirq on the source's core, the rest on the node's"
            .into(),
        "         -onecore: all of the node's work on its core: receive in a kernel thread, to which"
            .into(),
        "         the worker yields when it has no packet (veth's NAPI cannot be busy polled)".into(),
        "         xskiff, bare-live: 32 packets and more leave as live XDP frames, fewer by AF_XDP".into(),
        "         xskiff-af-xdp, bare: all leave by AF_XDP".into(),
        "         nftables: threaded NAPI on the node's core, kept awake, in both".into(),
        "work     DNAT to one of 10 pods, policy, conntrack; bare forwards unchanged; the server \
         checks all"
            .into(),
    ])
}

fn measure(
    case: &Case,
    options: &Options,
    source: &mut Source,
    subjects: &mut [Subject],
    report: &mut Report,
) -> Result<()> {
    report.progress(&format!("case {}", case.name));
    let turns = options.pace.turns(options.rounds, options.quick);
    subject::measure(case.flows, turns, source, subjects)?;
    for subject in &*subjects {
        let of = |value: fn(&Sample) -> f64| subject.samples.iter().map(value).collect::<Vec<_>>();
        let rates = of(|sample| sample.kpps);
        report.add(Figure::of(BENCH, case.name, &subject.name, RATE, &rates))?;
        let efficiencies = of(|sample| sample.kpkt_per_cpu_second);
        report.add(Figure::of(BENCH, case.name, &subject.name, EFFICIENCY, &efficiencies))?;
    }
    Ok(())
}

/// What people compare, from pairs of the same round.
fn ratios(case: &Case, subjects: &[Subject]) -> Vec<String> {
    let rates = |name: String| -> Option<Vec<f64>> {
        let subject = subjects.iter().find(|subject| subject.name == name)?;
        Some(subject.samples.iter().map(|sample| sample.kpps).collect())
    };
    let mut lines = Vec::new();
    let samples = subjects.iter().flat_map(|subject| &subject.samples);
    let disturbed = samples.clone().filter(|sample| sample.is_disturbed).count();
    if disturbed > 0 {
        let all = samples.count();
        lines.push(format!("case {}: other processes disturbed {disturbed} of {all}", case.name));
    }
    let compared = COMPARED.iter();
    for ((own, others), placement) in
        compared.flat_map(|pair| PLACEMENTS.map(|placement| (pair, placement)))
    {
        let Some(xskiff) = rates(format!("{own}{placement}")) else { continue };
        let with = |other: &str, of: fn(f64, f64) -> f64| -> Option<f64> {
            let other = rates(format!("{other}{placement}"))?;
            let pairs: Vec<f64> =
                xskiff.iter().zip(other).map(|(own, other)| of(*own, other)).collect();
            median(&pairs)
        };
        let name = format!("case {}: {own}{placement}", case.name);
        // Thousand packets per second to nanoseconds per packet.
        for bare in *others {
            if let Some(nanos) = with(bare, |own, bare| 1e6 / own - 1e6 / bare) {
                lines
                    .push(format!("{name} costs {nanos:+.0} ns per packet over {bare}{placement}"));
            }
        }
        if let Some(ratio) = with("nftables", |own, kernel| own / kernel) {
            lines.push(format!("{name} is {ratio:.2} of nftables{placement}"));
        }
    }
    lines
}
