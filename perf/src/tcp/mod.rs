//! `xskiff-perf tcp`: TCP between a node's pods, from the node itself, and from outside, through the whole node
//! process (`xskiff run`) and through the kernel: routing with conntrack, an nftables DNAT and a policy
//! (`nftables`), and a bridge of its own (`bridge`), which does neither. `-cut` are the same with segments no
//! longer than the MTU, since offloads are off in pods and toward them.
//!
//! All stand at once and are measured in turns; meanwhile the other processes are stopped (SIGSTOP). Every
//! byte of a stream is compared with what was sent. Clients and servers run where the scheduler puts them.
//!
//! Reading order: [`network`] (namespaces, the kernel's node), [`node`] (the process), [`traffic`] (client and
//! server), this file (cases, rounds, ratios).

mod network;
mod node;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use pinning::CpuId;

use crate::choice::chosen;
use crate::figure::{Figure, median};
use crate::interrupt;
use crate::node_process::{Directory, Node, program};
use crate::report::Report;
use network::{
    BALANCER, CLUSTER_IP, Network, Place, SERVER_POD, SERVER_PORT, SERVICE_PORT, socket,
};
use traffic::{Client, Direction, Server, Span};

const BENCH: &str = "tcp";
const NFTABLES: &str = "nftables";
const NFTABLES_CUT: &str = "nftables-cut";
const BRIDGE: &str = "bridge";
/// Who carries, and for node processes what their configuration says of segments.
const SUBJECTS: [(&str, Option<&str>); 5] = [
    ("xskiff", Some("whole")),
    ("xskiff-cut", Some("cut")),
    (NFTABLES, None),
    (NFTABLES_CUT, None),
    (BRIDGE, None),
];

/// Who asks whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    PodToPod,
    PodToService,
    HostToPod,
    OutsideToService,
}

/// What is done.
#[derive(Debug, Clone, Copy)]
enum Work {
    Stream(Direction, usize),
    RoundTrips,
    Connections,
}

/// A case: its name, who asks whom, by which family (0: IPv4), and what.
struct Case {
    name: &'static str,
    way: Way,
    family: usize,
    work: Work,
}

const UP: Work = Work::Stream(Direction::Upload, 1);
const DOWN: Work = Work::Stream(Direction::Download, 1);

const fn case(name: &'static str, way: Way, family: usize, work: Work) -> Case {
    Case { name, way, family, work }
}

const CASES: [Case; 16] = [
    case("stream/pod-pod/1500", Way::PodToPod, 0, UP),
    case("stream/pod-service/1500", Way::PodToService, 0, UP),
    case("stream/pod-service/1500/v6", Way::PodToService, 1, UP),
    case("stream-down/pod-service/1500", Way::PodToService, 0, DOWN),
    case("streams-4/pod-service/1500", Way::PodToService, 0, Work::Stream(Direction::Upload, 4)),
    case("stream/host-pod/1500", Way::HostToPod, 0, UP),
    case("stream-down/host-pod/1500", Way::HostToPod, 0, DOWN),
    case("stream/outside-service/1500", Way::OutsideToService, 0, UP),
    case("stream-down/outside-service/1500", Way::OutsideToService, 0, DOWN),
    case("rr/pod-pod", Way::PodToPod, 0, Work::RoundTrips),
    case("rr/pod-service", Way::PodToService, 0, Work::RoundTrips),
    case("rr/pod-service/v6", Way::PodToService, 1, Work::RoundTrips),
    case("rr/host-pod", Way::HostToPod, 0, Work::RoundTrips),
    case("crr/pod-service", Way::PodToService, 0, Work::Connections),
    case("crr/host-pod", Way::HostToPod, 0, Work::Connections),
    case("crr/outside-service", Way::OutsideToService, 0, Work::Connections),
];

/// Options of `tcp`.
#[derive(Debug, Args)]
pub struct Options {
    /// Cases to run, such as stream/pod-service/1500; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Subjects to run, such as xskiff,nftables; all when not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// Rounds, in each of which every subject is measured once in every case; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each measurement takes, in milliseconds, after a third of that to warm up.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    millis: u64,
    /// CPU of the worker; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// The node's binary; the one beside this program when not given.
    #[arg(long, value_name = "PATH")]
    xskiff: Option<PathBuf>,
    /// One short round: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Plan {
    rounds: u32,
    span: Span,
    core: CpuId,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
        let last = allowed.iter().last().context("this process may run on no CPU")?;
        let (rounds, millis) =
            if options.quick { (1, 30) } else { (options.rounds, options.millis) };
        let measured = Duration::from_millis(millis);
        let span = Span { warm_up: measured / 3, measured };
        Ok(Self { rounds, span, core: options.core.map_or(last, CpuId) })
    }
}

/// One way through a node, and what was measured of it, by case.
struct Subject {
    name: &'static str,
    place: Place,
    /// `None`: the kernel does it.
    node: Option<Node>,
    /// One of each family.
    servers: Vec<Server>,
    samples: Vec<Vec<(f64, Option<f64>)>>,
}

impl Subject {
    fn carries(&self, case: &Case) -> bool {
        // A bridge has neither services nor a way to the outside here.
        self.name != BRIDGE || matches!(case.way, Way::PodToPod | Way::HostToPod)
    }

    fn measure(&mut self, case: &Case, span: Span) -> Result<(f64, Option<f64>)> {
        if let Some(node) = &mut self.node {
            node.resume()?;
        }
        let result = self.ask(case, span);
        if let Some(node) = &mut self.node {
            node.pause()?;
        }
        let log = || self.node.as_ref().map_or_else(String::new, Node::log_tail);
        result.with_context(|| format!("{} of {}: {}", case.name, self.name, log()))
    }

    fn ask(&self, case: &Case, span: Span) -> Result<(f64, Option<f64>)> {
        let (namespace, target) = match case.way {
            Way::PodToPod => (&self.place.client, socket(SERVER_POD[case.family], SERVER_PORT)),
            Way::PodToService => {
                (&self.place.client, socket(CLUSTER_IP[case.family], SERVICE_PORT))
            }
            Way::HostToPod => (&self.place.node, socket(SERVER_POD[case.family], SERVER_PORT)),
            Way::OutsideToService => {
                (&self.place.outside, socket(BALANCER[case.family], SERVICE_PORT))
            }
        };
        let (target, server) = (target.parse()?, &self.servers[case.family]);
        let client = Client { namespace, target, server };
        Ok(match case.work {
            Work::Stream(direction, streams) => (client.stream(direction, streams, span)?, None),
            Work::RoundTrips => {
                let (median, late) = client.round_trips(span)?;
                (median, Some(late))
            }
            Work::Connections => (client.connections(span)?, None),
        })
    }
}

/// Runs the rounds and reports.
///
/// # Errors
/// Not root, no `xskiff`, a missing tool, a node that does not start, or a stream that comes otherwise than
/// it was sent.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let plan = Plan::new(options)?;
    let cases = chosen(&options.cases, &CASES, |case| case.name)?;
    let names = chosen(&options.subjects, &SUBJECTS, |(name, _)| name)?;
    let program = program(options.xskiff.as_deref())?;
    interrupt::watch()?;
    let mut network = Network::new()?;
    let directory = Directory::new()?;
    let mut subjects = Vec::new();
    for (name, segments) in names {
        report.progress(&format!("starting {name}"));
        let place = network.add(name)?;
        let node = match segments {
            Some(segments) => {
                place.route_pods()?;
                let node = node::start(&program, &place, &directory, (name, segments), plan.core);
                let mut node = node.with_context(|| format!("start {name}"))?;
                node.pause()?;
                Some(node)
            }
            None => set_up_kernel(name, &place).map(|()| None)?,
        };
        let server = |address| Server::start(&place.server, &socket(address, SERVER_PORT));
        let servers = SERVER_POD.into_iter().map(server).collect::<Result<_>>()?;
        let samples = vec![Vec::new(); cases.len()];
        subjects.push(Subject { name, place, node, servers, samples });
    }
    header(report, &plan, &subjects)?;
    for round in 1..=plan.rounds {
        report.progress(&format!("round {round} of {}", plan.rounds));
        for (index, case) in cases.iter().enumerate() {
            for subject in subjects.iter_mut().filter(|subject| subject.carries(case)) {
                let sample = subject.measure(case, plan.span)?;
                subject.samples[index].push(sample);
                interrupt::check()?;
            }
        }
    }
    figures(report, &cases, &subjects)?;
    Ok(report.table(&remarks(&cases, &subjects))?)
}

fn set_up_kernel(name: &str, place: &Place) -> Result<()> {
    if name == BRIDGE {
        return place.bridge_pods();
    }
    place.route_pods()?;
    place.route_in_kernel()?;
    if name == NFTABLES_CUT { place.cut() } else { Ok(()) }
}

fn header(report: &Report, plan: &Plan, subjects: &[Subject]) -> std::io::Result<()> {
    let modes = subjects
        .iter()
        .filter_map(|subject| Some(format!("{} {}", subject.name, subject.node.as_ref()?.modes())));
    let modes: Vec<String> = modes.collect();
    report.header(&[
        format!("mode     veth of one queue, MTU 1500; {}; xskiff run, one worker", modes.join("; ")),
        format!("cores    xskiff's worker {}; all else where the scheduler puts it", plan.core),
        "work     one node, two pods with policy, a service with DNAT; every byte of a stream compared"
            .into(),
        format!(
            "         {} ms each after {} ms",
            plan.span.measured.as_millis(),
            plan.span.warm_up.as_millis()
        ),
    ])
}

fn figures(report: &mut Report, cases: &[&Case], subjects: &[Subject]) -> Result<()> {
    for (index, case) in cases.iter().enumerate() {
        for subject in subjects {
            let samples = &subject.samples[index];
            let of =
                |unit, values: &[f64]| Figure::of(BENCH, case.name, subject.name, unit, values);
            let first: Vec<f64> = samples.iter().map(|(first, _)| *first).collect();
            let late: Vec<f64> = samples.iter().filter_map(|(_, late)| *late).collect();
            match case.work {
                Work::Stream(..) => report.add(of("Gbit/s", &first))?,
                Work::Connections => report.add(of("conn/s", &first))?,
                Work::RoundTrips => {
                    report.add(of("us-p50", &first))?;
                    report.add(of("us-p99", &late))?;
                }
            }
        }
    }
    Ok(())
}

/// What people compare: every subject with the first one, by pairs of the same round.
fn remarks(cases: &[&Case], subjects: &[Subject]) -> Vec<String> {
    let mut lines = Vec::new();
    let Some((own, others)) = subjects.split_first() else { return lines };
    for (index, case) in cases.iter().enumerate() {
        let ratios = others.iter().filter_map(|other| {
            let pairs = own.samples[index].iter().zip(&other.samples[index]);
            let ratios: Vec<f64> = pairs.map(|((own, _), (other, _))| own / other).collect();
            Some(format!("{:.2} of {}", median(&ratios)?, other.name))
        });
        let ratios: Vec<String> = ratios.collect();
        if !ratios.is_empty() {
            lines.push(format!("{}: {} is {}", case.name, own.name, ratios.join(", ")));
        }
    }
    lines
}
