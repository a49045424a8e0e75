//! What bandwidth limits cost packets that they never hold back: a whole worker between ports in memory,
//! with limits of all pods that nobody reaches, beside the same without any. Every packet passes one.

use std::sync::Arc;

use anyhow::{Result, ensure};
use dataplane::DropReason;
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::handoff::{Handoff, Inboxes};
use dataplane::mailbox::Mailbox;
use dataplane::memory::HeapBuffer;
use dataplane::pacing::{Limit, Limits, PortLimits, RATE_BITS_MAX, Rate};
use dataplane::pipeline::Pipeline;
use dataplane::port::{PortId, Ports};
use dataplane::tables::Tables;
use dataplane::worker::{Received, RxBurst, Worker};

use super::node::{Clock, Ring, Sequence, Traffic, flow_tables};
use super::{BATCH, BENCH, Case, UNIT};
use crate::figure::{Figure, median};
use crate::report::Report;
use crate::spread::Spread;
use crate::workload::{Cluster, PODS, UPLINK};

/// Its name among the cases.
pub(super) const NAME: &str = "limited-1k";

/// Ports that are a batch of packets: what is received of it comes back when it is transmitted.
#[derive(Default)]
struct Batch {
    /// To be received, the next one last.
    waiting: Vec<Received<HeapBuffer>>,
    sent: Vec<(PortId, HeapBuffer)>,
}

impl Ports for Batch {
    type Buffer = HeapBuffer;

    fn receive(&mut self, burst: &mut RxBurst<HeapBuffer>) {
        while burst.remaining_capacity() > 0
            && let Some(packet) = self.waiting.pop()
        {
            burst.push(packet);
        }
    }

    fn transmit(
        &mut self,
        port: PortId,
        buffer: HeapBuffer,
    ) -> Result<(), (DropReason, HeapBuffer)> {
        self.sent.push((port, buffer));
        Ok(())
    }

    fn flush(&mut self) {}

    fn release(&mut self, _buffer: HeapBuffer) {}
}

/// One worker and its packets.
struct Side {
    worker: Worker<Batch>,
    counters: Arc<WorkerCounters>,
    sequence: Sequence,
    ring: Ring,
    clock: Clock,
}

impl Side {
    fn new(cluster: &Cluster, flows: u64, tables: Arc<Tables>) -> Result<Self> {
        let (_, hold) = flow_tables(flows)?;
        let counters = Arc::new(WorkerCounters::default());
        let reports = Arc::new(Reports::default());
        let pipeline = Pipeline::new(0, 1, tables, hold, Arc::clone(&counters), reports);
        let handoff = Handoff::new(Inboxes::new(1), 0);
        let worker = Worker::new(Batch::default(), pipeline, Arc::new(Mailbox::default()), handoff);
        let sequence = Sequence::new(cluster, Traffic::Established(Spread::Uniform), flows);
        let (ring, clock) = (Ring::new(cluster), Clock::new());
        let mut side = Self { worker, counters, sequence, ring, clock };
        for first in (0..flows).step_by(BATCH) {
            for packet in [Cluster::request, Cluster::reply] {
                for place in 0..BATCH {
                    side.ring.write(place, packet(cluster, (first + place as u64).min(flows - 1)));
                }
                side.batch()?;
            }
        }
        Ok(side)
    }

    /// Nanoseconds per packet, the median of the batches.
    fn run(&mut self, packets: u64) -> Result<f64> {
        let mut spent = Vec::new();
        for _ in 0..packets.div_ceil(BATCH as u64) {
            self.sequence.fill(&mut self.ring);
            spent.push(self.batch()?);
        }
        Ok(median(&spent).unwrap_or(f64::NAN))
    }

    fn batch(&mut self) -> Result<f64> {
        let ports = self.worker.ports_mut();
        ports.waiting.extend(self.ring.packets.drain(..).rev());
        self.clock.start();
        while !self.worker.ports().waiting.is_empty() {
            let now = self.clock.now();
            self.worker.tick(now);
        }
        let spent = self.clock.stop();
        let sent = std::mem::take(&mut self.worker.ports_mut().sent);
        ensure!(sent.len() == BATCH, "{} of {BATCH} packets left", sent.len());
        for ((port, buffer), expected) in sent.into_iter().zip(&self.ring.expected) {
            ensure!(port == expected.egress, "{port:?} instead of {expected:?}");
            self.ring.packets.push(Received { port, buffer });
        }
        let paced = self.counters.paced_packets.get();
        ensure!(paced == 0, "{paced} packets waited for their time");
        Ok(spent.as_secs_f64() * 1e9 / BATCH as f64)
    }
}

/// The cluster's tables, with a limit of every pod each way that no rate here reaches.
fn limited(cluster: &Cluster) -> Arc<Tables> {
    let limit = || Some(Arc::new(Limit::new(Rate::of(RATE_BITS_MAX))));
    let first = UPLINK.0 + 1;
    let pods =
        (0..PODS).filter_map(|pod| Some(PortId(first.checked_add(u16::try_from(pod).ok()?)?)));
    let limits =
        Limits::of(pods.map(|pod| (pod, PortLimits { ingress: limit(), egress: limit() })));
    Arc::new(Tables { limits: limits.map(Arc::new), ..Tables::clone(cluster.tables()) })
}

/// Measures both in turns.
///
/// # Errors
/// Too little memory, or a packet that did not become what it must.
pub(super) fn measure(
    runs: u32,
    case: &Case,
    cluster: &Cluster,
    report: &mut Report,
) -> Result<()> {
    report.progress(&format!("{NAME}: {} flows, with limits and without", case.flows));
    let mut sides = [
        ("worker", Side::new(cluster, case.flows, Arc::clone(cluster.tables()))?, Vec::new()),
        ("worker-limited", Side::new(cluster, case.flows, limited(cluster))?, Vec::new()),
    ];
    for _ in 0..runs {
        for (_, side, samples) in &mut sides {
            samples.push(side.run(case.packets)?);
        }
    }
    for (subject, _, samples) in &sides {
        report.add(Figure::of(BENCH, NAME, subject, UNIT, samples))?;
    }
    Ok(())
}
