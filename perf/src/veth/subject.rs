//! A node under test with its client and server, and how several are measured in turns.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use pinning::CpuId;
use xdp_redirect::live_frames::Expected;

use super::kernel::KernelNode;
use super::network::Links;
use super::rules::Rules;
use super::service::{FRONTEND, Job, POD_PORT, PODS_BITS, PODS_NETWORK};
use super::source::{Path, Sample, Source};
use super::worker::{Work, WorkerNode};
use crate::packet;

/// Who does the node's work.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// A worker with AF_XDP sockets.
    Worker(Work),
    /// The kernel.
    Kernel(Rules),
}

enum Node {
    Worker(WorkerNode),
    Kernel(KernelNode),
}

/// What is measured.
pub struct Subject {
    /// Its name in the report.
    pub name: String,
    node: Node,
    path: Path,
    /// Of the case that was measured last.
    pub samples: Vec<Sample>,
}

/// How often and how long is measured.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    /// In each, every subject is measured once.
    pub rounds: u32,
    /// Length of each offer.
    pub run: Duration,
    /// Times a measurement is tried while it is disturbed.
    pub tries: u32,
}

/// Options of how long and how carefully.
#[derive(Debug, Args)]
pub struct Pace {
    /// Length of each of the three offers of a measurement, in milliseconds.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(5..=10_000))]
    millis: u64,
    /// Times a measurement is tried while other processes take more than 5 % of a core.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    tries: u32,
}

impl Pace {
    /// So many rounds of it, or a `quick` run: to see that it works, not to measure.
    pub fn turns(&self, rounds: u32, quick: bool) -> Turns {
        match quick {
            true => Turns { rounds: 2, run: Duration::from_millis(10), tries: 1 },
            false => Turns { rounds, run: Duration::from_millis(self.millis), tries: self.tries },
        }
    }
}

impl Subject {
    /// Starts the node on `core`, resting; the flag says whether receive processing is done there, too.
    pub fn new(
        name: &str,
        links: Links,
        task: Task,
        (core, is_onecore): (CpuId, bool),
        job: &Job,
    ) -> Result<Self> {
        let translated = Expected {
            destination: SocketAddrV4::new(PODS_NETWORK, POD_PORT),
            address_bits: PODS_BITS,
            ttl: packet::TTL - 1,
        };
        let unchanged = Expected { destination: FRONTEND, address_bits: 32, ttl: packet::TTL };
        let is_bare = matches!(task, Task::Worker(Work::Bare | Work::BareLive));
        let expected = if is_bare { unchanged } else { translated };
        let mut path = Path::new(&links, &expected, job)?;
        let node = match task {
            Task::Kernel(rules) => {
                let node = KernelNode::new(links, core, rules, job)?;
                path.subtract(node.spun_time());
                Node::Kernel(node)
            }
            Task::Worker(work) => Node::Worker(WorkerNode::new(links, work, is_onecore, core)?),
        };
        Ok(Self { name: name.to_owned(), node, path, samples: Vec::new() })
    }

    /// What the kernel says it runs for the worker's sockets.
    pub fn modes(&self) -> Option<&str> {
        match &self.node {
            Node::Worker(node) => Some(node.modes()),
            Node::Kernel(_) => None,
        }
    }

    fn set_active(&self, is_active: bool) {
        match &self.node {
            Node::Worker(node) => node.set_active(is_active),
            Node::Kernel(node) => node.set_active(is_active),
        }
    }

    fn flush(&self) -> Result<()> {
        match &self.node {
            Node::Worker(node) => node.flush(),
            Node::Kernel(node) => node.flush(),
        }
        .with_context(|| self.name.clone())
    }

    /// Does `work` while this subject alone is active.
    fn active<T>(&mut self, work: impl FnOnce(&mut Path) -> Result<T>) -> Result<T> {
        self.set_active(true);
        let result = work(&mut self.path);
        self.set_active(false);
        result.with_context(|| match &self.node {
            Node::Worker(node) => format!("{} (dropped: {})", self.name, node.drops()),
            Node::Kernel(_) => self.name.clone(),
        })
    }
}

/// Measures `subjects` in turns, with so many flows, or with every packet beginning one.
pub fn measure(
    flows: Option<u64>,
    Turns { rounds, run, tries }: Turns,
    source: &mut Source,
    subjects: &mut [Subject],
) -> Result<()> {
    for subject in &mut *subjects {
        subject.samples.clear();
        subject.path.begin_case();
        subject.flush()?;
        subject.active(|path| source.warm_up(path, flows, run))?;
    }
    for _ in 0..rounds {
        for subject in &mut *subjects {
            if flows.is_none() {
                subject.flush()?;
            }
            let sample = subject.active(|path| source.measure(path, flows, run, tries))?;
            subject.samples.push(sample);
        }
    }
    Ok(())
}
