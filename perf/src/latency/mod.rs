//! `xskiff-perf latency`: a round trip through the whole node process, beside the kernel's routing,
//! and what the process takes while there is nothing to do.
//!
//! A client asks a service with one byte of UDP, the pod behind it answers, and the client asks
//! again. Each way a worker may wait has a node process of its own (`xskiff run`); the kernel's
//! routing with an nftables DNAT has nodes like theirs: one that does all on the sender's core, as
//! it comes, and one whose receive processing is on the worker's core. All stand at once and are measured in
//! turns; meanwhile the other processes are stopped (SIGSTOP), for a worker that spins takes all of
//! its core.
//!
//! Reading order: [`network`] (namespaces, the kernel's node), [`node`] (the process), [`echo`]
//! (client and server), this file (rounds, ratios).

mod echo;
mod network;
mod node;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use pinning::CpuId;

use crate::choice::chosen;
use crate::figure::{Figure, median};
use crate::interrupt;
use crate::machine::{TICKS, machine_seconds};
use crate::node_process::{Directory, Node, program};
use crate::report::Report;
use echo::{Client, RoundTrips, Server};
use network::{Network, Place};

const BENCH: &str = "latency";
/// Cases, and the client's pause before each request: without one an adaptive worker never sleeps.
const ROUND_TRIPS: [(&str, Duration); 2] =
    [("udp-rr", Duration::ZERO), ("udp-rr-paced", Duration::from_millis(1))];
/// A paced measurement has so many times fewer requests.
const PACED_SHARE: usize = 50;
const IDLE: &str = "idle";
const KERNEL: &str = "kernel";
/// The kernel with its receive processing where xskiff's worker is.
const KERNEL_THREADED: &str = "kernel-threaded";
/// The ways a worker may wait, as the configuration calls them, and the kernel.
const SUBJECTS: [&str; 5] = ["busy-poll", "adaptive", "spin", KERNEL, KERNEL_THREADED];
/// Requests before those that count: caches are warm, and a worker that was stopped works again.
const WARM_UP: usize = 500;
/// Between the last request and the time that counts as idle.
const SETTLE: Duration = Duration::from_millis(200);
/// What other processes may take of a core while round trips are measured.
const OTHERS_MAX: f64 = 0.05;

/// Options of `latency`.
#[derive(Debug, Args)]
pub struct Options {
    /// Subjects to run, such as adaptive,kernel; all when not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Rounds, in each of which every subject is measured once; the median counts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Round trips of a measurement; a fiftieth of that where the client pauses before each.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    requests: u32,
    /// How long a process is watched without traffic in each round, in milliseconds.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    idle_millis: u64,
    /// Times a measurement is tried while other processes take more than 5 % of a core.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tries: u32,
    /// CPU of the worker; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// CPU of client and server; the first one when not given.
    #[arg(long)]
    source_core: Option<u16>,
    /// The node's binary; the one beside this program when not given.
    #[arg(long, value_name = "PATH")]
    xskiff: Option<PathBuf>,
    /// Two short rounds: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Plan {
    rounds: u32,
    requests: usize,
    idle: Duration,
    tries: u32,
    core: CpuId,
    source_core: CpuId,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
        let first = allowed.iter().next().context("this process may run on no CPU")?;
        let last = allowed.iter().last().unwrap_or(first);
        let (rounds, requests, millis, tries) = match options.quick {
            true => (2, 200, 100, 1),
            false => (options.rounds, options.requests, options.idle_millis, options.tries),
        };
        Ok(Self {
            rounds,
            requests: usize::try_from(requests)?,
            idle: Duration::from_millis(millis),
            tries,
            core: options.core.map_or(last, CpuId),
            source_core: options.source_core.map_or(first, CpuId),
        })
    }
}

/// One way through a node, and what was measured of it.
struct Subject {
    name: &'static str,
    /// `None`: the kernel does it.
    node: Option<Node>,
    client: Client,
    _server: Server,
    /// Of each of [`ROUND_TRIPS`].
    round_trips: [Vec<RoundTrips>; 2],
    disturbed: [usize; 2],
    idle_percent: Vec<f64>,
    /// Processor time while idle, by thread, and how long that was.
    idle_threads: BTreeMap<String, Duration>,
    idle: Duration,
}

impl Subject {
    fn new(name: &'static str, node: Option<Node>, place: &Place, core: CpuId) -> Result<Self> {
        Ok(Self {
            name,
            node,
            client: Client::new(place)?,
            _server: Server::start(place, core)?,
            round_trips: [const { Vec::new() }; 2],
            disturbed: [0; 2],
            idle_percent: Vec::new(),
            idle_threads: BTreeMap::new(),
            idle: Duration::ZERO,
        })
    }

    /// Does `work` while this subject's process alone works.
    fn active<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(node) = &mut self.node {
            node.resume()?;
        }
        let result = work(self);
        if let Some(node) = &mut self.node {
            node.pause()?;
        }
        let log = || self.node.as_ref().map_or_else(String::new, Node::log_tail);
        result.with_context(|| format!("{}: {}", self.name, log()))
    }

    fn measure(&mut self, plan: &Plan) -> Result<()> {
        for (case, (_, pause)) in ROUND_TRIPS.iter().enumerate() {
            self.client.ask(WARM_UP, Duration::ZERO)?;
            self.measure_case(case, *pause, plan)?;
        }
        self.watch_idle(plan)
    }

    fn measure_case(&mut self, case: usize, pause: Duration, plan: &Plan) -> Result<()> {
        let share = if pause.is_zero() { 1 } else { PACED_SHARE };
        for attempt in 1..=plan.tries {
            let (begin, before) = (Instant::now(), self.others_seconds()?);
            let round_trips = self.client.ask((plan.requests / share).max(1), pause)?;
            let others = self.others_seconds()? - before;
            let is_disturbed = others > OTHERS_MAX * begin.elapsed().as_secs_f64() + 1.0 / TICKS;
            if !is_disturbed || attempt == plan.tries {
                self.round_trips[case].push(round_trips);
                self.disturbed[case] += usize::from(is_disturbed);
                break;
            }
        }
        Ok(())
    }

    /// What the process takes while nobody asks anything.
    fn watch_idle(&mut self, plan: &Plan) -> Result<()> {
        let Some(node) = &self.node else { return Ok(()) };
        thread::sleep(SETTLE);
        let (begin, before) = (Instant::now(), node.usage()?);
        thread::sleep(plan.idle);
        let (used, elapsed) = (node.usage()?.since(&before), begin.elapsed());
        let all: Duration = used.values().sum();
        self.idle_percent.push(percent(all, elapsed));
        for (thread, time) in used {
            *self.idle_threads.entry(thread).or_default() += time;
        }
        self.idle += elapsed;
        interrupt::check()
    }

    /// Processor time that others than this program and the node spent on themselves so far.
    fn others_seconds(&self) -> Result<f64> {
        let own = getrusage(UsageWho::RUSAGE_SELF)?.user_time();
        let own = own.tv_sec() as f64 + own.tv_usec() as f64 / 1e6;
        let node = self.node.as_ref().map_or(Ok(0.0), Node::user_seconds)?;
        // user nice
        Ok(machine_seconds(&[0, 1])? - own - node)
    }

    fn medians(&self, case: usize) -> Vec<f64> {
        self.round_trips[case].iter().map(|one| one.median_us).collect()
    }
}

/// Runs the rounds and reports.
///
/// # Errors
/// Not root, no `xskiff`, a missing tool, a node that does not start, or requests that nobody
/// answers.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let plan = Plan::new(options)?;
    let names = chosen(&options.subjects, &SUBJECTS, |name| name)?;
    let program = program(options.xskiff.as_deref())?;
    interrupt::watch()?;
    let mut network = Network::new()?;
    let directory = Directory::new()?;
    let mut subjects = Vec::new();
    for name in names {
        report.progress(&format!("starting {name}"));
        let place = network.add(name)?;
        let node = start(name, &program, &place, &directory, &plan)
            .with_context(|| format!("start {name}"))?;
        subjects.push(Subject::new(name, node, &place, plan.source_core)?);
    }
    header(report, &plan, &subjects)?;
    // After the processes were started, for they inherit the CPUs they may run on.
    pinning::apply::pin_current_thread(plan.source_core)?;
    for round in 1..=plan.rounds {
        report.progress(&format!("round {round} of {}", plan.rounds));
        for subject in &mut subjects {
            subject.active(|subject| subject.measure(&plan))?;
        }
    }
    figures(report, &subjects)?;
    Ok(report.table(&remarks(&subjects))?)
}

/// What forwards in `place`; a process rests from now on.
fn start(
    name: &str,
    program: &Path,
    place: &Place,
    directory: &Directory,
    plan: &Plan,
) -> Result<Option<Node>> {
    match name {
        KERNEL => place.route_in_kernel().map(|()| None),
        KERNEL_THREADED => {
            place.route_in_kernel()?;
            place.receive_on(plan.core).map(|()| None)
        }
        idle => {
            let mut node = node::start(program, place, directory, idle, plan.core)?;
            node.pause()?;
            Ok(Some(node))
        }
    }
}

fn header(report: &Report, plan: &Plan, subjects: &[Subject]) -> std::io::Result<()> {
    let mut modes: Vec<&str> =
        subjects.iter().filter_map(|subject| Some(subject.node.as_ref()?.modes())).collect();
    modes.dedup();
    let modes = if modes.is_empty() { "not used".into() } else { modes.join("; ") };
    let source = plan.source_core;
    report.header(&[
        format!("mode     veth of one queue, XDP and AF_XDP {modes}; xskiff run, one worker"),
        format!("cores    client and server {source}, xskiff's worker {}", plan.core),
        format!(
            "         kernel: all on {source}; kernel-threaded: its threaded NAPI on {}",
            plan.core
        ),
        "work     1 byte of UDP to a service, DNAT to its pod, and back; one request at a time"
            .into(),
        format!(
            "         a round: {} at once after each other; paced, {} after a pause of 1 ms each; \
             idle for {} ms",
            plan.requests,
            plan.requests / PACED_SHARE,
            plan.idle.as_millis()
        ),
    ])
}

fn figures(report: &mut Report, subjects: &[Subject]) -> Result<()> {
    for (case, (name, _)) in ROUND_TRIPS.iter().enumerate() {
        for subject in subjects {
            let p99: Vec<f64> = subject.round_trips[case].iter().map(|one| one.p99_us).collect();
            report.add(Figure::of(BENCH, name, subject.name, "us", &subject.medians(case)))?;
            report.add(Figure::of(BENCH, name, subject.name, "us-p99", &p99))?;
        }
    }
    for subject in subjects {
        let unit = "percent-of-core";
        report.add(Figure::of(BENCH, IDLE, subject.name, unit, &subject.idle_percent))?;
    }
    Ok(())
}

fn remarks(subjects: &[Subject]) -> Vec<String> {
    let cases = ROUND_TRIPS.iter().enumerate();
    let mut lines: Vec<String> =
        cases.flat_map(|(case, (name, _))| compared(case, name, subjects)).collect();
    for subject in subjects {
        let threads = subject.idle_threads.iter();
        let threads: Vec<String> = threads
            .map(|(thread, time)| format!("{thread} {:.2} %", percent(*time, subject.idle)))
            .collect();
        if !threads.is_empty() {
            lines.push(format!("{IDLE}: {}, by thread: {}", subject.name, threads.join(", ")));
        }
    }
    lines
}

/// What people compare, from pairs of the same round, and what was lost or disturbed.
fn compared(case: usize, name: &str, subjects: &[Subject]) -> Vec<String> {
    let mut lines = Vec::new();
    let (nodes, kernels): (Vec<_>, Vec<_>) =
        subjects.iter().partition(|subject| subject.node.is_some());
    for (node, kernel) in nodes.iter().flat_map(|node| kernels.iter().map(move |k| (node, k))) {
        let pairs = || node.medians(case).into_iter().zip(kernel.medians(case));
        let ratio = median(&pairs().map(|(own, kernel)| own / kernel).collect::<Vec<_>>());
        let difference = median(&pairs().map(|(own, kernel)| own - kernel).collect::<Vec<_>>());
        if let Some((ratio, difference)) = ratio.zip(difference) {
            let (own, kernel) = (node.name, kernel.name);
            lines.push(format!("{name}: {own} is {ratio:.2} of {kernel}, {difference:+.1} us"));
        }
    }
    for subject in subjects {
        let lost: u32 = subject.round_trips[case].iter().map(|one| one.lost).sum();
        if lost > 0 {
            lines.push(format!("{name}: {} lost {lost} requests", subject.name));
        }
        let (disturbed, all) = (subject.disturbed[case], subject.round_trips[case].len());
        if disturbed > 0 {
            lines
                .push(format!("{name}: others disturbed {disturbed} of {all} of {}", subject.name));
        }
    }
    lines
}

fn percent(part: Duration, of: Duration) -> f64 {
    100.0 * part.as_secs_f64() / of.as_secs_f64()
}
