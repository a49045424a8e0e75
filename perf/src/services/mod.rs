//! `xskiff-perf services`: what it costs that there are many services, beside the kernel's iptables and
//! nftables laid out as kube-proxy does.
//!
//! As in `veth`, client, node and server are linked by veth pairs, and what arrives is checked. Flows
//! go to all services evenly. For each number of services there are nodes of their own; those of one
//! number are measured in turns. The source's core also does xskiff's receive softirq; the kernel
//! receives in a thread on the node's core.
//!
//! | case | what a sample is |
//! |---|---|
//! | `established/N` | thousand packets a second of flows that stand |
//! | `new/N` | flows a second, each of one packet |
//! | `load/N` | the control thread's time for all objects at once ([`compiled`]) |
//! | `endpoint-change/N` | the same for one endpoint that is not ready any more |
//! | `memory/N` | objects, compiler and tables, for each service |

mod compiled;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pinning::CpuId;

use crate::choice::chosen;
use crate::figure::{Figure, median};
use crate::interrupt;
use crate::report::Report;
use crate::veth::kernel::Limits;
use crate::veth::network::Network;
use crate::veth::rules::Rules;
use crate::veth::service::Job;
use crate::veth::source::{Sample, Source};
use crate::veth::subject::{Pace, Subject, Task, measure};
use crate::veth::worker::Work;

const BENCH: &str = "services";
/// Pods, each behind many services.
const PODS: u8 = 250;
/// Pods behind each service: 250,000 endpoints of 50,000 services.
const BACKENDS: u8 = 5;
/// Flows of the established ones: two for each of the most services.
const ESTABLISHED: u64 = 100_000;
/// Room in xskiff's table: what a round of new flows begins.
const FLOWS: usize = 4 << 20;
const QUICK_FLOWS: usize = 1 << 16;
const QUICK_ESTABLISHED: u64 = 1 << 14;
/// Services of a quick run.
const QUICK: [u32; 2] = [10, 100];
/// Services at most: as many addresses as the range has that flows go to.
const SERVICES_MAX: u32 = 100_000;

/// Options of `services`.
#[derive(Debug, Args)]
pub struct Options {
    /// How many services there are, one after the other.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [10, 1000, 10_000, 50_000],
        value_parser = clap::value_parser!(u32).range(1..=i64::from(SERVICES_MAX))
    )]
    counts: Vec<u32>,
    /// Cases to run, of established, new and compiled; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Subjects to run, of xskiff, xskiff-af-xdp, iptables and nftables; all when not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Rounds, in each of which every subject is measured once; the median counts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    pace: Pace,
    /// A short run with few services: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Case {
    name: &'static str,
    /// `None`: every packet begins a flow.
    flows: Option<u64>,
    unit: &'static str,
    /// Of the unit in a thousand packets per second.
    scale: f64,
}

/// Case of what the control thread does.
const COMPILED: &str = "compiled";
/// Times that is measured: each run makes all objects anew.
const COMPILED_RUNS: u32 = 5;
const CASES: [Case; 3] = [
    Case { name: "established", flows: Some(ESTABLISHED), unit: "kpps", scale: 1.0 },
    Case { name: "new", flows: None, unit: "conn/s", scale: 1000.0 },
    Case { name: COMPILED, flows: None, unit: "", scale: 1.0 },
];
const SUBJECTS: [&str; 4] = ["xskiff", "xskiff-af-xdp", "iptables", "nftables"];

/// The rates of one subject at one number of services.
struct Rates {
    case: &'static str,
    services: u32,
    subject: String,
    kpps: Vec<f64>,
}

/// Runs the cases and reports.
///
/// # Errors
/// Not root, a missing tool, a kernel that refuses something, or packets that arrive wrong.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let cases = chosen(&options.cases, &CASES, |case| case.name)?;
    let names = chosen(&options.subjects, &SUBJECTS, |name| name)?;
    let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
    let source_core = allowed.iter().next().context("this process may run on no CPU")?;
    let core = allowed.iter().last().unwrap_or(source_core);
    interrupt::watch()?;
    let has_kernel = names.iter().any(|name| name.ends_with("tables"));
    let _limits = if has_kernel { Some(Limits::raise()?) } else { None };
    let counts = if options.quick { QUICK.to_vec() } else { options.counts.clone() };
    ensure!(counts.is_sorted(), "--counts: give the smaller numbers of services first");
    header(report, source_core, core)?;
    let (in_memory, cases): (Vec<&Case>, Vec<&Case>) =
        cases.into_iter().partition(|case| case.name == COMPILED);
    if !in_memory.is_empty() {
        for services in &counts {
            let runs = if options.quick { 1 } else { COMPILED_RUNS };
            compiled::measure(*services, runs, report)?;
        }
    }
    let mut all = Vec::new();
    for services in counts.into_iter().filter(|_| !cases.is_empty()) {
        let rates = at(services, &cases, &names, options, (source_core, core), report);
        all.extend(rates.with_context(|| format!("{services} services"))?);
    }
    Ok(report.table(&remarks(&all))?)
}

fn header(report: &Report, source_core: CpuId, core: CpuId) -> std::io::Result<()> {
    report.header(&[
        "mode     veth of one queue; 60-byte UDP, bursts of 64".into(),
        "         xskiff: 32 packets and more leave as live XDP frames, fewer by copy-mode AF_XDP, as".into(),
        "         a node does by default; xskiff-af-xdp: all by AF_XDP".into(),
        format!("cores    source and xskiff's receive softirq {source_core}, node {core}"),
        format!(
            "work     services of {BACKENDS} of {PODS} pods, DNAT, policy, conntrack; all checked"
        ),
        "         iptables (legacy), nftables: kube-proxy's chains and map; threaded NAPI".into(),
    ])
}

fn at(
    services: u32,
    cases: &[&Case],
    names: &[&&str],
    options: &Options,
    (source_core, core): (CpuId, CpuId),
    report: &mut Report,
) -> Result<Vec<Rates>> {
    report.progress(&format!("{services} services: setting up"));
    let mut network = Network::new()?;
    pinning::apply::pin_current_thread(source_core)?;
    let job = Job { services, pods: PODS, backends: BACKENDS };
    let flows = if options.quick { QUICK_FLOWS } else { FLOWS };
    let subjects = names.iter().zip(0..).map(|(name, number)| {
        let task = match **name {
            "iptables" => Task::Kernel(Rules::Iptables),
            "nftables" => Task::Kernel(Rules::Nftables),
            other => Task::Worker(Work::Xskiff { flows, live: other == "xskiff", job }),
        };
        let links = network.add_node(number)?;
        Subject::new(name, links, task, (core, false), &job).with_context(|| (**name).to_owned())
    });
    let mut subjects = subjects.collect::<Result<Vec<Subject>>>()?;
    let mut source = Source::new("spare")?;
    let turns = options.pace.turns(options.rounds, options.quick);
    let mut all = Vec::new();
    for case in cases {
        report.progress(&format!("{services} services: {}", case.name));
        // A quick run's table has no room for more.
        let flows = case.flows.map(|all| if options.quick { QUICK_ESTABLISHED } else { all });
        measure(flows, turns, &mut source, &mut subjects).context(case.name)?;
        for subject in &subjects {
            let kpps: Vec<f64> = subject.samples.iter().map(|Sample { kpps, .. }| *kpps).collect();
            let scaled: Vec<f64> = kpps.iter().map(|kpps| kpps * case.scale).collect();
            let name = format!("{}/{services}", case.name);
            report.add(Figure::of(BENCH, &name, &subject.name, case.unit, &scaled))?;
            all.push(Rates { case: case.name, services, subject: subject.name.clone(), kpps });
        }
    }
    Ok(all)
}

/// What people compare: with each peer at the same number, and with the fewest services.
fn remarks(all: &[Rates]) -> Vec<String> {
    let mut lines = Vec::new();
    for own in all.iter().filter(|own| own.subject.starts_with("xskiff")) {
        let Some(rate) = median(&own.kpps) else { continue };
        let name = format!("{}/{}: {}", own.case, own.services, own.subject);
        let of_case = || all.iter().filter(|other| other.case == own.case);
        let same = of_case().filter(|other| other.services == own.services);
        for peer in same.filter(|other| other.subject.ends_with("tables")) {
            let pairs: Vec<f64> =
                own.kpps.iter().zip(&peer.kpps).map(|(own, peer)| own / peer).collect();
            if let Some(ratio) = median(&pairs) {
                lines.push(format!("{name} is {ratio:.2} of {}", peer.subject));
            }
        }
        let first = of_case().find(|other| other.subject == own.subject);
        if let Some(first) = first.filter(|first| first.services != own.services)
            && let Some(fewest) = median(&first.kpps)
        {
            let ratio = rate / fewest;
            lines.push(format!("{name} is {ratio:.2} of itself with {}", first.services));
        }
    }
    lines
}
