//! `xskiff-perf ports`: what hundreds of pod ports cost on one worker, without the pipeline.
//!
//! All links are veth pairs of one queue in network namespaces of our own. The worker and its
//! control side run in one thread on one core, the source on another; a packet that is sent to a
//! pod is delivered, and thrown away for want of an address, by the worker's core.
//!
//! Reading order: [`network`] (namespaces and links), [`node`] (the worker), this file (cases).

pub(crate) mod network;
mod node;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pinning::CpuId;

use crate::figure::Figure;
use crate::packet;
use crate::report::Report;
use network::Network;
use node::{Added, Memory, Node};

const BENCH: &str = "ports";
/// Pods that a burst fans out to.
const FAN_OUT: u16 = 32;
/// Ports whose addition makes a figure: those before each of these numbers.
const ADD_AT: [u16; 5] = [1, 32, 100, 250, 500];
const ADD_WINDOW: usize = 10;
/// Files open beside those of the ports.
const FILES: u64 = 256;
/// A port's: the socket and the attachment.
const FILES_PER_PORT: u64 = 2;

/// Options of `ports`.
#[derive(Debug, Args)]
pub struct Options {
    /// Pods.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(32..=2000))]
    pods: u16,
    /// Frames of packet memory; the kernel keeps 128 bytes of each for every port.
    #[arg(long, default_value_t = 16_384)]
    frames: u32,
    /// Times every rate is measured; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Length of a run, in milliseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    millis: u64,
    /// CPU of the worker; the last one when not given.
    #[arg(long)]
    core: Option<u16>,
    /// CPU of the source; the first one when not given.
    #[arg(long)]
    source_core: Option<u16>,
    /// Few pods and short runs: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
}

struct Plan {
    pods: u16,
    frames: u32,
    runs: u32,
    run: Duration,
    core: CpuId,
    source_core: CpuId,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let allowed = pinning::apply::current_affinity().context("ask for this process's CPUs")?;
        let mut allowed = allowed.iter();
        let first = allowed.next().context("this process may run on no CPU")?;
        let last = allowed.last().unwrap_or(first);
        let (pods, frames, runs, millis) = match options.quick {
            true => (FAN_OUT + 8, 4096, 2, 50),
            false => (options.pods, options.frames, options.runs, options.millis),
        };
        Ok(Self {
            pods,
            frames,
            runs,
            run: Duration::from_millis(millis),
            core: options.core.map_or(last, CpuId),
            source_core: options.source_core.map_or(first, CpuId),
        })
    }
}

/// Runs the cases and reports.
///
/// # Errors
/// Not root, no such CPU, or the kernel refuses a namespace, a socket or the program.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    let plan = Plan::new(options)?;
    report.header(&[
        format!(
            "mode     veth of one queue, native XDP, copy; worker on CPU {}, source on CPU {}",
            plan.core, plan.source_core
        ),
        format!(
            "work     {} pods, {} frames of packet memory, 60-byte UDP, no pipeline",
            plan.pods, plan.frames
        ),
    ])?;
    pinning::apply::pin_current_thread(plan.core)?;
    raise_file_limit(plan.pods)?;
    report.progress(&format!("{} links", plan.pods));
    let network = Network::new(plan.pods)?;
    let mut node = Node::new(plan.frames)?;
    add(&plan, &mut node, report)?;
    idle(&plan, &mut node, report)?;
    fan_out(&plan, &network, &mut node, report)?;
    remove(&plan, &mut node, report)?;
    report.table(&[])?;
    Ok(())
}

fn raise_file_limit(pods: u16) -> Result<()> {
    let wanted = FILES + FILES_PER_PORT * u64::from(pods);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))
            .with_context(|| format!("allow {wanted} open files"))?;
    }
    Ok(())
}

fn add(plan: &Plan, node: &mut Node, report: &mut Report) -> Result<()> {
    report.progress("adding ports");
    let before = Memory::now()?;
    let added = (1..=plan.pods).map(|pod| node.add_pod(pod)).collect::<Result<Vec<Added>>>()?;
    let after = Memory::now()?;
    for at in ADD_AT.iter().filter(|at| **at <= plan.pods) {
        let end = usize::from(*at);
        let window = &added[end.saturating_sub(ADD_WINDOW)..end];
        let case = format!("add-{at}");
        let total: fn(&Added) -> Duration = Added::total;
        let parts = [
            ("total", total),
            ("bind", |added| added.bind),
            ("enter", |added| added.enter),
            ("attach", |added| added.attach),
        ];
        for (subject, part) in parts {
            let samples: Vec<f64> = window.iter().map(|one| micros(part(one))).collect();
            report.add(Figure::of(BENCH, &case, subject, "us/port", &samples))?;
        }
    }
    let case = format!("memory-{}", plan.pods);
    for (subject, kilobytes) in
        [("kernel", after.kernel - before.kernel), ("process", after.process - before.process)]
    {
        let sample = kilobytes / f64::from(plan.pods);
        report.add(Figure::of(BENCH, &case, subject, "kB/port", &[sample]))?;
    }
    Ok(())
}

fn idle(plan: &Plan, node: &mut Node, report: &mut Report) -> Result<()> {
    report.progress("idle ports");
    let case = format!("idle-{}", plan.pods);
    // A pass over all rings takes about 4 ns a ring.
    let passes = u32::try_from(plan.run.as_nanos() / 10).unwrap_or(u32::MAX) / u32::from(plan.pods);
    let (mut flags, mut all) = (Vec::new(), Vec::new());
    let (mut spinning, mut sleeping) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        flags.push(node.empty_pass(true, passes)?);
        all.push(node.empty_pass(false, passes)?);
        spinning.push(node.idle_percent(false, plan.run)?);
        sleeping.push(node.idle_percent(true, plan.run)?);
    }
    report.add(Figure::of(BENCH, &case, "flags", "ns/pass", &flags))?;
    report.add(Figure::of(BENCH, &case, "all-rings", "ns/pass", &all))?;
    report.add(Figure::of(BENCH, &case, "spinning", "cpu-percent", &spinning))?;
    report.add(Figure::of(BENCH, &case, "sleeping", "cpu-percent", &sleeping))?;
    Ok(())
}

fn fan_out(plan: &Plan, network: &Network, node: &mut Node, report: &mut Report) -> Result<()> {
    report.progress("fan-out");
    let (from, to) = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2));
    let packet = packet::udp(SocketAddrV4::new(from, 1024), SocketAddrV4::new(to, 9));
    let stop = AtomicBool::new(false);
    let (mut one, mut many) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let source =
            scope.spawn(|| network.within("far", || node::send(&packet, plan.source_core, &stop)));
        let measured = (0..plan.runs).try_for_each(|_| -> Result<()> {
            one.push(node.fan_out(network, 1, plan.run)?);
            many.push(node.fan_out(network, FAN_OUT, plan.run)?);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let sent = source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Why the source failed says more than that nothing arrived.
        sent??;
        measured
    })?;
    let case = format!("fanout-{FAN_OUT}");
    report.add(Figure::of(BENCH, &case, &format!("ports-{FAN_OUT}"), "kpps", &many))?;
    report.add(Figure::of(BENCH, &case, "ports-1", "kpps", &one))?;
    Ok(())
}

fn remove(plan: &Plan, node: &mut Node, report: &mut Report) -> Result<()> {
    report.progress("removing ports");
    let first = plan.pods.saturating_sub(u16::try_from(ADD_WINDOW).unwrap_or(0)) + 1;
    let mut samples = Vec::new();
    for pod in first..=plan.pods {
        samples.push(micros(node.remove_pod(pod)?));
    }
    let case = format!("remove-{}", plan.pods);
    Ok(report.add(Figure::of(BENCH, &case, "total", "us/port", &samples))?)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
