//! The plan: which worker runs on which CPU, where everything else runs, and why.
//!
//! Pure: topology and request in, plan out. A plan never asks for a CPU the process may not use,
//! never puts two workers on one CPU, and says in words what is not as good as it could be.

use std::fmt;

use crate::cpu_set::{CpuId, CpuSet};
use crate::topology::{Cpu, NumaNode, Topology, Usability};

/// How the workers' CPUs are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workers {
    /// This many, on the CPUs that suit best.
    Count(u16),
    /// One on each of these, in this order.
    Cores(Vec<CpuId>),
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The workers.
    pub workers: Workers,
    /// Keep the control threads off the workers' CPUs where there are CPUs enough. A worker that
    /// spins needs it; workers that sleep when idle may do without.
    pub reserve_control: bool,
    /// The NUMA node of the interface that carries most traffic, if known.
    pub nic_node: Option<NumaNode>,
}

/// Where one worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Its CPU, for it alone among workers.
    pub cpu: CpuId,
    /// The CPU's NUMA node; a worker's memory belongs there.
    pub node: NumaNode,
}

/// The outcome: by worker index, and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Placement of each worker, by worker index.
    pub workers: Vec<Placement>,
    /// Where control threads may run; never empty.
    pub control: CpuSet,
    /// What was decided and what is worse than it could be.
    pub notes: Vec<Note>,
}

/// One remark on a plan, printable as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Control has CPUs of its own.
    ControlReserved(CpuSet),
    /// There are no CPUs left for control: it runs beside the workers.
    ControlShares(CpuSet),
    /// Two workers run on one physical core and halve each other's speed.
    SharedCore(CpuId, CpuId),
    /// A worker's memory is near, the interface is not.
    RemoteNode {
        /// The worker's CPU.
        cpu: CpuId,
        /// Its node.
        node: NumaNode,
        /// The interface's node.
        nic_node: NumaNode,
    },
    /// A worker sits on a CPU that the boot parameter `isolcpus` keeps free.
    OnIsolated(CpuId),
    /// Isolated CPUs exist, but this worker had to run on an ordinary one.
    NotIsolated(CpuId),
}

impl Note {
    /// Whether an operator should do something about it.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        !matches!(self, Self::ControlReserved(_) | Self::OnIsolated(_))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlReserved(cpus) => {
                write!(formatter, "control threads run on CPU {cpus}, apart from the workers")
            }
            Self::ControlShares(cpus) => write!(
                formatter,
                "no CPU is left for control: its threads share CPU {cpus} with workers; \
                 use adaptive workers or one worker less"
            ),
            Self::SharedCore(first, second) => write!(
                formatter,
                "workers on CPU {first} and {second} share a physical core and slow each other"
            ),
            Self::RemoteNode { cpu, node, nic_node } => write!(
                formatter,
                "the worker on CPU {cpu} is on NUMA node {}, the interface on node {}",
                node.0, nic_node.0
            ),
            Self::OnIsolated(cpu) => {
                write!(formatter, "the worker on CPU {cpu} has an isolated CPU (isolcpus)")
            }
            Self::NotIsolated(cpu) => write!(
                formatter,
                "the worker on CPU {cpu} is not on an isolated CPU: there are fewer isolated CPUs \
                 than workers, or the CPUs were named by hand"
            ),
        }
    }
}

/// The request cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Zero workers were asked for.
    #[error("no worker was asked for; a node needs at least one")]
    NoWorkers,
    /// A named CPU does not exist.
    #[error("CPU {cpu} does not exist; this machine has CPU {present}")]
    Absent {
        /// The CPU that was named.
        cpu: CpuId,
        /// What there is.
        present: CpuSet,
    },
    /// A named CPU is switched off.
    #[error("CPU {cpu} is offline; switch it on by /sys/devices/system/cpu/cpu{cpu}/online")]
    Offline {
        /// The CPU that was named.
        cpu: CpuId,
    },
    /// A named CPU is outside of the cgroup's cpuset.
    #[error("CPU {cpu} is outside of this cgroup's cpuset; usable are CPU {usable}")]
    OutsideCpuset {
        /// The CPU that was named.
        cpu: CpuId,
        /// What may be used.
        usable: CpuSet,
    },
    /// A named CPU is outside of the affinity the process was started with.
    #[error(
        "CPU {cpu} is outside of the affinity this process was started with \
         (taskset, CPUAffinity=); usable are CPU {usable}"
    )]
    OutsideAffinity {
        /// The CPU that was named.
        cpu: CpuId,
        /// What may be used.
        usable: CpuSet,
    },
    /// A CPU was named twice.
    #[error("CPU {cpu} is named for two workers; each worker needs its own")]
    Twice {
        /// The CPU that was named.
        cpu: CpuId,
    },
    /// More workers than usable CPUs.
    #[error("{asked} workers were asked for, and this process may use {} CPUs ({usable})", usable.len())]
    TooManyWorkers {
        /// Workers asked for.
        asked: usize,
        /// What may be used.
        usable: CpuSet,
    },
    /// The interface's NUMA node has no CPU.
    #[error("NUMA node {} has no CPU on this machine", node.0)]
    NodeAbsent {
        /// The node that was named.
        node: NumaNode,
    },
}

/// Plans `request` on `topology`.
///
/// By count, CPUs are preferred in this order: isolated ones; one thread of each physical core
/// before second threads; the interface's NUMA node; the first usable core last, since interrupts
/// and the system's own work gather there.
///
/// # Errors
/// [`PlanError`] names the CPU and what there is instead.
pub fn plan(topology: &Topology, request: &Request) -> Result<Plan, PlanError> {
    if let Some(node) = request.nic_node.filter(|node| !topology.has_node(*node)) {
        return Err(PlanError::NodeAbsent { node });
    }
    let workers = match &request.workers {
        Workers::Count(count) => choose(topology, usize::from(*count), request.nic_node)?,
        Workers::Cores(cores) => check(topology, cores)?,
    };
    if workers.is_empty() {
        return Err(PlanError::NoWorkers);
    }
    let (control, control_note) = place_control(topology, &workers, request.reserve_control);
    let mut notes = worker_notes(topology, &workers, request.nic_node);
    notes.extend(control_note);
    let workers = workers.iter().map(|cpu| Placement { cpu: cpu.id, node: cpu.node }).collect();
    Ok(Plan { workers, control, notes })
}

/// The CPUs that were named, each checked.
fn check<'a>(topology: &'a Topology, cores: &[CpuId]) -> Result<Vec<&'a Cpu>, PlanError> {
    let mut workers: Vec<&Cpu> = Vec::with_capacity(cores.len());
    for &id in cores {
        let Some(cpu) = topology.cpu(id) else {
            return Err(PlanError::Absent { cpu: id, present: topology.present() });
        };
        let usable = || topology.usable();
        match cpu.usability {
            Usability::Usable => {}
            Usability::Offline => return Err(PlanError::Offline { cpu: id }),
            Usability::OutsideCpuset => {
                return Err(PlanError::OutsideCpuset { cpu: id, usable: usable() });
            }
            Usability::OutsideAffinity => {
                return Err(PlanError::OutsideAffinity { cpu: id, usable: usable() });
            }
        }
        if workers.iter().any(|other| other.id == id) {
            return Err(PlanError::Twice { cpu: id });
        }
        workers.push(cpu);
    }
    Ok(workers)
}

/// The `count` usable CPUs that suit best.
fn choose(
    topology: &Topology,
    count: usize,
    nic_node: Option<NumaNode>,
) -> Result<Vec<&Cpu>, PlanError> {
    let usable = topology.usable();
    if count > usable.len() {
        return Err(PlanError::TooManyWorkers { asked: count, usable });
    }
    let is_usable = |cpu: &&Cpu| cpu.usability == Usability::Usable;
    let mut candidates: Vec<&Cpu> = topology.cpus().iter().filter(is_usable).collect();
    candidates.sort_by_key(|cpu| {
        let same_kind = |id: &CpuId| {
            usable.contains(*id)
                && topology.cpu(*id).is_some_and(|other| other.isolated == cpu.isolated)
        };
        let thread = cpu.siblings.iter().filter(same_kind).filter(|id| *id < cpu.id).count();
        let off_node = nic_node.is_some_and(|node| cpu.node != node);
        let on_first_core = usable.iter().next().is_some_and(|first| cpu.siblings.contains(first));
        (!cpu.isolated, thread, off_node, on_first_core, cpu.id)
    });
    candidates.truncate(count);
    candidates.sort_by_key(|cpu| cpu.id);
    Ok(candidates)
}

/// Where control runs, and what to say about it.
fn place_control(topology: &Topology, workers: &[&Cpu], reserve: bool) -> (CpuSet, Option<Note>) {
    let usable = topology.usable();
    let is_worker = |id: &CpuId| workers.iter().any(|worker| worker.id == *id);
    let is_isolated = |id: &CpuId| topology.cpu(*id).is_some_and(|cpu| cpu.isolated);
    let beside_worker = |id: &CpuId| workers.iter().any(|worker| worker.siblings.contains(*id));

    // Isolated CPUs are out of the scheduler's balancing: threads would pile up on one of them.
    let ordinary: CpuSet = usable.iter().filter(|id| !is_isolated(id)).collect();
    let ordinary = if ordinary.is_empty() { usable } else { ordinary };
    let free: CpuSet = ordinary.iter().filter(|id| !is_worker(id)).collect();
    if free.is_empty() {
        return (ordinary.clone(), Some(Note::ControlShares(ordinary)));
    }
    if !reserve {
        return (ordinary, None);
    }
    let apart: CpuSet = free.iter().filter(|id| !beside_worker(id)).collect();
    let reserved = if apart.is_empty() { free } else { apart };
    (reserved.clone(), Some(Note::ControlReserved(reserved)))
}

fn worker_notes(topology: &Topology, workers: &[&Cpu], nic_node: Option<NumaNode>) -> Vec<Note> {
    let isolation = topology.cpus().iter().any(|cpu| cpu.isolated);
    let mut notes = Vec::new();
    for (index, worker) in workers.iter().enumerate() {
        if isolation {
            let note = if worker.isolated { Note::OnIsolated } else { Note::NotIsolated };
            notes.push(note(worker.id));
        }
        if let Some(nic_node) = nic_node.filter(|node| *node != worker.node) {
            notes.push(Note::RemoteNode { cpu: worker.id, node: worker.node, nic_node });
        }
        let later = workers.iter().skip(index + 1);
        let siblings = later.filter(|other| worker.siblings.contains(other.id));
        notes.extend(siblings.map(|other| Note::SharedCore(worker.id, other.id)));
    }
    notes
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
