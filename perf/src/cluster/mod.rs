//! `xskiff-perf cluster`: what it takes a node to follow a large cluster, without a server or a
//! packet: changes go in, tables come out.
//!
//! | case | what a sample is |
//! |---|---|
//! | `from-nothing/150k-pods` | compiling all objects of a cluster at once |
//! | `pod-event` | one pod that comes, goes, is relabelled or gets another's address |
//! | `policy-change/10k-pods` | a policy with a new selector, that every 15th pod is in, comes or goes |
//! | `audit/150k-pods` | a whole round of the audit: all objects beside all tables |
//! | `audit-step/150k-pods` | of that round, the longest step that is not broken off |
//! | `lookup/2000-policies` | a new flow of a local pod: both identities and the verdict, and each by itself |
//! | `quiet/1M-flows` | a packet of an established flow, alone and while others come and go ([`quiet`]) |
//! | `identities/flood-100k` | identities of pods with labels of their own under 200 policies |
//! | `memory/flood-100k` | what the process has grown by for each of them: objects and compiler |
//!
//! What was published before is kept while the next is compiled, as workers keep it, so that
//! nothing is changed in place that a node would have to copy. Cases are named by what they are
//! without `--quick`.
//!
//! Reading order: [`synthetic`] (the cluster), this file, [`quiet`] (flows meanwhile).

mod quiet;
mod synthetic;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use control::audit::{Auditor, Moment};
use control::compile::{Compiled, NodeView, Stage};
use control::model::{Kind, Object, ObjectKey, Pod};
use control::store::Change;
use dataplane::address::Protocol;
use dataplane::identity::{Identity, IdentityTable};
use dataplane::lb::ServiceTable;
use dataplane::policy::{Direction, Policy, Query};
use dataplane::table_map::TableMap;
use dataplane::tables::Tables;
use dataplane::worker::BURST;

use crate::choice::chosen;
use crate::figure::Figure;
use crate::machine::resident_bytes;
use crate::pipeline::pin;
use crate::report::Report;
use crate::spread::Random;
use synthetic::{Size, policy_of_a_wave, view};

const BENCH: &str = "cluster";
/// Cases, as `--cases` takes them.
const CASES: [&str; 7] =
    ["flood", "from-nothing", "pod-event", "policy-change", "audit", "lookup", "quiet"];
const LARGE: Size = Size { nodes: 5_000, pods: 150_000, policies: 2_000, services: 20_000 };
const FLOOD: Size = Size { nodes: 1_000, pods: 100_000, policies: 200, services: 0 };
/// Flows of one sample of `lookup`.
const FLOWS: usize = 1 << 16;
/// Part of the samples that take at most as long as the figure of the slow ones.
const SLOW: f64 = 0.99;
/// The same of the audit's steps, of which there are a million: the longest of them is the machine's.
const LONG: f64 = 0.9999;

/// Options of `cluster`.
#[derive(Debug, Args)]
pub struct Options {
    /// Cases to run, such as quiet,lookup; all when not given.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Times every case is measured; events a hundred times as often. The median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// What the cluster is made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPU to run on; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// A hundredth of the cluster: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

/// Runs the cases and reports.
///
/// # Errors
/// No such CPU, or a table that is not what the objects make it.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let cases = chosen(&options.cases, &CASES, |name| name)?;
    let has = |case: &str| cases.iter().any(|chosen| **chosen == case);
    let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
    let core = pin(options.core)?;
    // Or the same where there is no other.
    let other = allowed.iter().find(|other| *other != core).unwrap_or(core);
    let part = if options.quick { 100 } else { 1 };
    let of = |size: Size| Size {
        nodes: size.nodes / part,
        pods: size.pods / part,
        policies: size.policies / part,
        services: size.services / part,
    };
    let (large, flood) = (of(LARGE), of(FLOOD));
    report.header(&[format!(
        "cluster  {} nodes, {} pods, {} policies, {} services, seed {}; one thread on CPU {core}",
        large.nodes, large.pods, large.policies, large.services, options.seed
    )])?;
    // First, while nothing that others left in the heap is used again.
    if has("flood") {
        measure_flood(flood, options, report)?;
    }
    let mut random = Random::new(options.seed);
    let node = view(large, &mut random);
    let mut compiled = if has("from-nothing") {
        measure_from_nothing(large, &node, options, report)?
    } else {
        compile(large, &node, options)
    };
    if has("pod-event") {
        measure_events(large, &node, &mut compiled, options, report)?;
    }
    if has("policy-change") {
        measure_policy(&node, &mut compiled, options, report)?;
    }
    if has("audit") {
        measure_audit(&compiled, options, report)?;
    }
    if has("lookup") {
        measure_lookup("2000", &node, &compiled, options, report)?;
        for (name, policies) in [("200", large.policies / 10), ("20", large.policies / 100)] {
            let size = Size { policies: policies.max(4), services: 0, ..large };
            measure_lookup(name, &node, &compile(size, &node, options), options, report)?;
        }
    }
    if has("quiet") {
        let load = match options.quick {
            true => quiet::Load { flows: 4_000, packets: 16_384, runs: 1 },
            false => quiet::Load { flows: 1_000_000, packets: 16 << 20, runs: options.runs },
        };
        quiet::measure(BENCH, (large, &node, &mut compiled), load, other, report)?;
    }
    report.table(&[])?;
    Ok(())
}

/// A cluster of this size, compiled from nothing.
fn compile(size: Size, node: &NodeView, options: &Options) -> Compiled {
    let objects = size.objects(&mut Random::new(options.seed));
    let mut compiled = Compiled::default();
    objects.into_iter().for_each(|change| compiled.take(change));
    compiled.compile(node);
    compiled
}

/// What workers hold while the next tables are compiled.
struct Published(#[expect(dead_code)] (Arc<IdentityTable>, Arc<Policy>, Arc<ServiceTable>));

impl Published {
    fn of(compiled: &Compiled) -> Self {
        Self((
            Arc::clone(&compiled.identities),
            Arc::clone(&compiled.policy),
            Arc::clone(&compiled.services),
        ))
    }
}

fn measure_flood(size: Size, options: &Options, report: &mut Report) -> Result<()> {
    report.progress(&format!("flood: {} pods with labels of their own", size.pods));
    let mut random = Random::new(options.seed);
    let node = view(size, &mut random);
    let mut compiled = Compiled::default();
    let without_pods = Size { pods: 0, ..size };
    without_pods.objects(&mut random).into_iter().for_each(|change| compiled.take(change));
    compiled.compile(&node);
    let before = resident_bytes()?;
    for number in 0..size.pods {
        let pod = size.unique_pod(number, &mut random);
        compiled.take(Change::Set(Object::from(pod)));
        if number % 1024 == 0 {
            compiled.compile(&node);
        }
    }
    compiled.compile(&node);
    let grown = resident_bytes()? - before;
    let identities = compiled.identity_count();
    ensure!(compiled.identities.exact.len() >= size.pods, "pods without identity");
    let case = |name: &str| format!("{name}/flood-100k");
    let count = [identities as f64];
    report.add(Figure::of(BENCH, &case("identities"), "xskiff", "count", &count))?;
    let bytes = [grown / size.pods as f64];
    report.add(Figure::of(BENCH, &case("memory"), "xskiff", "bytes/pod", &bytes))?;
    Ok(())
}

fn measure_from_nothing(
    size: Size,
    node: &NodeView,
    options: &Options,
    report: &mut Report,
) -> Result<Compiled> {
    let mut samples = Vec::new();
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut last = Compiled::default();
    for run in 0..options.runs {
        report.progress(&format!("from nothing, {} of {}", run + 1, options.runs));
        let objects = size.objects(&mut Random::new(options.seed));
        let mut compiled = Compiled::default();
        let began = Instant::now();
        let mut since = began;
        let mut ended = |part| {
            let now = Instant::now();
            parts.entry(part).or_default().push((now - since).as_secs_f64() * 1e3);
            since = now;
        };
        objects.into_iter().for_each(|change| compiled.take(change));
        ended("xskiff:take");
        compiled.compile_by_stages(node, |stage| {
            ended(match stage {
                Stage::Identities => "xskiff:identities",
                Stage::Policy => "xskiff:policy",
                Stage::Services => "xskiff:services",
            });
        });
        samples.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(compiled.identities.exact.len() >= size.pods, "pods without identity");
        ensure!(compiled.services.frontends.len() == size.services, "services without frontend");
        last = compiled;
    }
    for (part, samples) in &parts {
        report.add(Figure::of(BENCH, "from-nothing/150k-pods", part, "ms", samples))?;
    }
    report.add(Figure::of(BENCH, "from-nothing/150k-pods", "xskiff", "ms", &samples))?;
    let known = [last.identity_count() as f64];
    report.add(Figure::of(BENCH, "from-nothing/150k-pods", "identities", "count", &known))?;
    Ok(last)
}

fn measure_events(
    size: Size,
    node: &NodeView,
    compiled: &mut Compiled,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    report.progress("one pod at a time");
    let mut random = Random::new(options.seed.wrapping_add(1));
    let mut samples = Vec::new();
    for _ in 0..options.runs * 100 {
        let pod = size.pod(random.below(size.pods), &mut random);
        let changes = event(pod, size, &mut random);
        let published = Published::of(compiled);
        let began = Instant::now();
        changes.into_iter().for_each(|change| compiled.take(change));
        compiled.compile(node);
        samples.push(began.elapsed().as_secs_f64() * 1e6);
        drop(published);
    }
    report.add(Figure::of(BENCH, "pod-event", "xskiff", "us", &samples))?;
    samples.sort_by(f64::total_cmp);
    let slow = samples.get((samples.len() as f64 * SLOW) as usize).copied();
    report.add(Figure::of(BENCH, "pod-event", "xskiff:p99", "us", slow.as_slice()))?;
    Ok(())
}

/// Something that happens to a pod.
fn event(mut pod: Pod, size: Size, random: &mut Random) -> Vec<Change> {
    let gone = |pod: &Pod| Change::Gone(ObjectKey::new(Kind::Pod, pod.name.clone()));
    match random.below(4) {
        0 => vec![gone(&pod)],
        1 => {
            pod.labels.insert("tier", "web");
            vec![Change::Set(Object::from(pod))]
        }
        2 => {
            pod.terminating = true;
            let mut next = size.unique_pod(random.below(size.pods), random);
            next.addresses.clone_from(&pod.addresses);
            [pod, next].map(|pod| Change::Set(Object::from(pod))).into()
        }
        _ => vec![Change::Set(Object::from(pod))],
    }
}

fn measure_policy(
    node: &NodeView,
    compiled: &mut Compiled,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    report.progress("a policy that concerns many pods");
    let policy = policy_of_a_wave();
    let gone = Change::Gone(ObjectKey::new(Kind::NetworkPolicy, policy.name.clone()));
    let comes = Change::Set(Object::from(policy));
    let mut samples = Vec::new();
    for _ in 0..options.runs {
        for change in [comes.clone(), gone.clone()] {
            let published = Published::of(compiled);
            let began = Instant::now();
            compiled.take(change);
            compiled.compile(node);
            samples.push(began.elapsed().as_secs_f64() * 1e3);
            drop(published);
        }
    }
    report.add(Figure::of(BENCH, "policy-change/10k-pods", "xskiff", "ms", &samples))?;
    Ok(())
}

/// All at once, while a node does a hundredth of the time's worth in each turn.
fn measure_audit(compiled: &Compiled, options: &Options, report: &mut Report) -> Result<()> {
    report.progress("a round of the audit");
    let tables = Tables {
        identities: Arc::clone(&compiled.identities),
        policy: Arc::clone(&compiled.policy),
        services: Arc::clone(&compiled.services),
        ..Tables::default()
    };
    let (state, node) = (compiled.state(), compiled.node());
    let moment = Moment { state, node, compiled, tables: &tables };
    let [mut samples, mut longest, mut long] = [(); 3].map(|()| Vec::new());
    for _ in 0..options.runs {
        let (mut auditor, mut steps) = (Auditor::default(), Vec::new());
        let began = Instant::now();
        let round = loop {
            let step = Instant::now();
            let over = auditor.step(&moment, || true);
            steps.push(step.elapsed().as_secs_f64() * 1e6);
            if let Some(round) = over {
                break round;
            }
        };
        samples.push(began.elapsed().as_secs_f64() * 1e3);
        steps.sort_by(f64::total_cmp);
        longest.extend(steps.last());
        long.extend(steps.get((steps.len() as f64 * LONG) as usize));
        ensure!(round.found == 0, "{:?}", round.differences);
        ensure!(round.checked >= compiled.identities.exact.len() as u64, "not all was looked at");
    }
    report.add(Figure::of(BENCH, "audit/150k-pods", "xskiff", "ms", &samples))?;
    report.add(Figure::of(BENCH, "audit-step/150k-pods", "xskiff:longest", "us", &longest))?;
    report.add(Figure::of(BENCH, "audit-step/150k-pods", "xskiff:p99.99", "us", &long))?;
    Ok(())
}

fn measure_lookup(
    policies: &str,
    node: &NodeView,
    compiled: &Compiled,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let case = format!("lookup/{policies}-policies");
    report.progress(&format!("looking up new flows, {policies} policies"));
    let pods: Vec<IpAddr> = compiled.identities.exact.keys().collect();
    let own: Vec<IpAddr> = node.endpoints.values().flatten().copied().collect();
    ensure!(!own.is_empty(), "the node has no pod");
    let general: TableMap<IpAddr, Identity> =
        compiled.identities.exact.iter().map(|(address, own)| (address, own.identity)).collect();
    let mut random = Random::new(options.seed);
    let [mut both, mut known, mut verdicts, mut others] = [(); 4].map(|()| Vec::new());
    let per_flow = |began: Instant| began.elapsed().as_nanos() as f64 / FLOWS as f64;
    for _ in 0..options.runs {
        let flows: Vec<(IpAddr, IpAddr)> = (0..FLOWS)
            .map(|_| (own[random.below(own.len())], pods[random.below(pods.len())]))
            .collect();
        let who = |(subject, peer): &(IpAddr, IpAddr)| {
            (compiled.identities.lookup(*subject), compiled.identities.lookup(*peer))
        };
        let may = |(subject, peer): (Identity, Identity)| {
            let query = Query { subject, peer, protocol: Protocol::TCP, l4_port: 8080 };
            usize::from(compiled.policy.judge(Direction::Ingress, &query).allowed)
        };
        // As workers do it: a burst's lines are asked for before the first is read.
        let burst = |burst: &[(IpAddr, IpAddr)]| -> usize {
            burst.iter().for_each(|(_, peer)| compiled.identities.prefetch(*peer));
            burst.iter().map(|flow| may(who(flow))).sum()
        };
        let began = Instant::now();
        let allowed: usize = flows.chunks(BURST).map(burst).sum();
        both.push(per_flow(began));
        ensure!(allowed < FLOWS, "policy denies nothing");
        let began = Instant::now();
        let pairs: Vec<_> = flows.iter().map(who).collect();
        known.push(per_flow(began));
        let began = Instant::now();
        black_box(pairs.into_iter().map(may).sum::<usize>());
        verdicts.push(per_flow(began));
        let began = Instant::now();
        let found = flows.iter().filter(|(subject, peer)| {
            let both = (general.get(subject), general.get(peer));
            black_box(both) != (None, None)
        });
        black_box(found.count());
        others.push(per_flow(began));
    }
    for (subject, samples) in
        [("xskiff", both), ("xskiff:identities", known), ("xskiff:verdict", verdicts)]
    {
        report.add(Figure::of(BENCH, &case, subject, "ns/flow", &samples))?;
    }
    report.add(Figure::of(BENCH, &case, "hashbrown:identities", "ns/flow", &others))?;
    Ok(())
}
