//! One worker's pipeline in memory, the packets it is given, and the proof that it did its work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use arrayvec::ArrayVec;
use dataplane::buffer::Buffer;
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flows::{Capacities, FlowTables, WorkerFlows};
use dataplane::memory::HeapBuffer;
use dataplane::pipeline::{Action, Pipeline};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::{BURST, Received};

use super::{BATCH, CHECK_EVERY};
use crate::figure::median;
use crate::flow_memory;
use crate::packet;
use crate::spread::{Random, Spread, Zipf};
use crate::workload::{Cluster, Packet, UPLINK};

/// Longer than any time-out of the tables.
const DAY: Duration = Duration::from_secs(86_400);
/// Room beyond the flows that are meant to be there, as a part of them: eviction looks for what to
/// give up from 7/8 on, and is not what is measured.
const SPARE: u64 = 4;

/// A prime, by whose multiples ranks of flows are scattered.
const SCATTER: u64 = 2_654_435_761;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Packets of flows that are there, both ways, in random order.
    Established(Spread),
    /// Every packet opens a flow from a pod to a pod.
    NewBetweenPods,
    /// Every packet opens a flow from a client to a service.
    NewToService,
}

impl Traffic {
    /// Whether it opens no flow.
    pub fn is_established(self) -> bool {
        matches!(self, Self::Established(_))
    }
}

/// Flow tables with room for `flows` and some more, with one worker's hold.
pub fn flow_tables(flows: u64) -> Result<(FlowTables, WorkerFlows)> {
    let v4 = usize::try_from(flows + flows / SPARE + BATCH as u64)?;
    let capacities = Capacities::fixed(v4, BURST);
    flow_memory::flow_tables(capacities)
}

/// A ring of packets, and what must become of each.
#[derive(Debug)]
pub struct Ring {
    /// The packets.
    pub packets: Vec<Received<HeapBuffer>>,
    /// Parallel to them.
    pub expected: Vec<Packet>,
}

impl Ring {
    /// Room for a batch.
    pub fn new(cluster: &Cluster) -> Self {
        let any = cluster.request(0);
        let frame = packet::udp(any.source, any.destination);
        let received = || Received { port: UPLINK, buffer: HeapBuffer::new(&frame) };
        Self { packets: (0..BATCH).map(|_| received()).collect(), expected: vec![any; BATCH] }
    }

    /// Writes the packet at `place`.
    pub fn write(&mut self, place: usize, packet: Packet) {
        let frame = packet::udp(packet.source, packet.destination);
        self.packets[place].port = packet.ingress;
        self.packets[place].buffer.refill(&frame);
        self.expected[place] = packet;
    }

    /// Checks that the packet at `place` was rewritten as it must be.
    pub fn check(&self, place: usize) -> Result<()> {
        let expected = &self.expected[place];
        let seen = packet::read(self.packets[place].buffer.bytes())
            .map_err(|reason| anyhow::anyhow!("a frame left damaged: {reason}; {expected:?}"))?;
        ensure!(
            seen.source == expected.source_after
                && seen.destination == expected.destination_after
                && seen.ttl == packet::TTL - 1,
            "a frame left as {seen:?} instead of {expected:?}"
        );
        Ok(())
    }
}

/// Which flow comes next.
#[derive(Debug)]
pub struct Sequence {
    cluster: Cluster,
    traffic: Traffic,
    flows: u64,
    random: Random,
    zipf: Zipf,
    next: u64,
}

impl Sequence {
    /// Of `traffic` over so many flows.
    pub fn new(cluster: &Cluster, traffic: Traffic, flows: u64) -> Self {
        let (cluster, random) = (cluster.clone(), Random::new(0x9e37_79b9_7f4a_7c15));
        let zipf = Zipf::new(usize::try_from(flows).unwrap_or(usize::MAX));
        Self { cluster, traffic, flows, random, zipf, next: 0 }
    }

    /// Fills the ring: bursts of established traffic come in turns from the clients and the pods.
    pub fn fill(&mut self, ring: &mut Ring) {
        for place in 0..BATCH {
            let packet = match self.traffic {
                Traffic::Established(spread) => {
                    let flow = self.flow_by(spread);
                    if (place / BURST).is_multiple_of(2) {
                        self.cluster.request(flow)
                    } else {
                        self.cluster.reply(flow)
                    }
                }
                Traffic::NewBetweenPods => {
                    let flow = self.take_next();
                    self.cluster.between_pods(flow)
                }
                Traffic::NewToService => {
                    let flow = self.take_next();
                    self.cluster.request(flow)
                }
            };
            ring.write(place, packet);
        }
    }

    fn take_next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Flows of neighbouring ranks are no neighbours in memory.
    fn flow_by(&mut self, spread: Spread) -> u64 {
        let flows = usize::try_from(self.flows).unwrap_or(usize::MAX);
        match spread {
            Spread::Uniform => self.random.below(flows) as u64,
            Spread::Zipf => {
                let rank = self.zipf.rank(&mut self.random) as u64;
                rank.wrapping_mul(SCATTER) % self.flows
            }
        }
    }
}

/// Time as a worker passes it: read once per burst, and standing still while packets are made and
/// checked, which is nothing that a worker does.
#[derive(Debug)]
pub struct Clock {
    running_since: Option<Instant>,
    passed: Duration,
}

impl Clock {
    /// Stands where no deadline is zero.
    pub fn new() -> Self {
        Self { running_since: None, passed: DAY }
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        Nanos(0).after(self.passed + self.running_since.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    /// Lets time pass.
    pub fn start(&mut self) {
        self.running_since = Some(Instant::now());
    }

    /// Stands still; how long it ran.
    pub fn stop(&mut self) -> Duration {
        let ran = self.running_since.take().map_or(Duration::ZERO, |at| at.elapsed());
        self.passed += ran;
        ran
    }

    /// Lets every flow's time-out pass.
    pub fn skip_time_outs(&mut self) {
        // Established TCP is kept for five days; the workload is UDP.
        self.passed += DAY;
    }
}

/// A worker without ports.
pub struct Node {
    pipeline: Pipeline,
    counters: Arc<WorkerCounters>,
    ring: Ring,
    sequence: Sequence,
    clock: Clock,
}

impl Node {
    /// With every flow of established traffic opened and answered.
    pub fn new(cluster: &Cluster, traffic: Traffic, flows: u64) -> Result<Self> {
        let (_, hold) = flow_tables(flows)?;
        let mut node = Self::with_flows(cluster, traffic, flows, hold);
        if traffic.is_established() {
            node.establish(cluster, flows)?;
        }
        Ok(node)
    }

    /// Over flow tables that exist.
    pub fn with_flows(cluster: &Cluster, traffic: Traffic, flows: u64, hold: WorkerFlows) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let pipeline = Pipeline::new(
            0,
            1,
            Arc::clone(cluster.tables()),
            hold,
            Arc::clone(&counters),
            Arc::new(Reports::default()),
        );
        Self {
            pipeline,
            counters,
            ring: Ring::new(cluster),
            sequence: Sequence::new(cluster, traffic, flows),
            clock: Clock::new(),
        }
    }

    /// Opens `flows` flows through the pipeline, and has each answered.
    pub fn establish(&mut self, cluster: &Cluster, flows: u64) -> Result<()> {
        for first in (0..flows).step_by(BATCH) {
            for packet in [Cluster::request, Cluster::reply] {
                for place in 0..BATCH {
                    let flow = (first + place as u64).min(flows - 1);
                    self.ring.write(place, packet(cluster, flow));
                }
                self.batch()?;
            }
        }
        let created = self.counters.flows_created.get();
        ensure!(created == flows, "{created} flows were opened instead of {flows}");
        Ok(())
    }

    /// Sends at least `packets` packets; answers the nanoseconds each took: the median of the
    /// batches, so that a process that takes the CPU for a moment does not count.
    pub fn run(&mut self, packets: u64) -> Result<f64> {
        Ok(median(&self.run_each(packets, |_| {})?).unwrap_or(f64::NAN))
    }

    /// The same, batch by batch, with `before` each of them what counts as a part of it.
    pub fn run_each(
        &mut self,
        packets: u64,
        mut before: impl FnMut(&mut Self),
    ) -> Result<Vec<f64>> {
        let batches = packets.div_ceil(BATCH as u64);
        let created = self.counters.flows_created.get();
        let mut spent = Vec::new();
        for _ in 0..batches {
            self.sequence.fill(&mut self.ring);
            let began = Instant::now();
            before(self);
            let between = began.elapsed();
            spent.push((between + self.batch()?).as_secs_f64() * 1e9 / BATCH as f64);
        }
        let sent = batches * BATCH as u64;
        let created = self.counters.flows_created.get() - created;
        let wanted = if self.sequence.traffic.is_established() { 0 } else { sent };
        ensure!(created == wanted, "{created} flows were opened instead of {wanted}");
        if wanted > 0 {
            self.expire(wanted)?;
        }
        Ok(spent)
    }

    /// Puts other tables in force; gives back those that were.
    pub fn adopt(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        self.pipeline.adopt(tables)
    }

    /// What a tick does beside its burst.
    pub fn sweep(&mut self, now: Nanos) {
        self.pipeline.sweep(now);
    }

    /// One batch, in bursts as ticks handle them; the time that took.
    fn batch(&mut self) -> Result<Duration> {
        let mut decided = [const { ArrayVec::<Action, BURST>::new_const() }; BATCH / BURST];
        self.clock.start();
        for (burst, actions) in self.ring.packets.chunks_mut(BURST).zip(&mut decided) {
            let now = self.clock.now();
            self.pipeline.process(now, burst, actions);
            self.pipeline.sweep(now);
        }
        let spent = self.clock.stop();
        let actions = decided.iter().flatten();
        for (action, expected) in actions.zip(&self.ring.expected) {
            if *action != Action::Transmit(expected.egress) {
                bail!("{action:?} instead of transmission: {expected:?}");
            }
        }
        let count: usize = decided.iter().map(|actions| actions.len()).sum();
        ensure!(count == BATCH, "{count} of {BATCH} packets were decided");
        (0..BATCH).step_by(CHECK_EVERY + 1).try_for_each(|place| self.ring.check(place))?;
        Ok(spent)
    }

    /// Lets all flows expire, so that there is room again.
    fn expire(&mut self, flows: u64) -> Result<()> {
        self.clock.skip_time_outs();
        let before = self.counters.flows_expired.get();
        let now = self.clock.now();
        // The second round only gives the entries back.
        for _ in 0..2 {
            self.pipeline.sweep_entries(now, u32::MAX);
        }
        let expired = self.counters.flows_expired.get() - before;
        ensure!(expired == flows, "{expired} of {flows} flows expired");
        Ok(())
    }
}
