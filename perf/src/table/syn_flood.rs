//! A SYN flood at a table that is full of established connections, through the node's own pipeline:
//! parsing, lookup, service, policy, the attempt to insert, and the sweep that looks for something to
//! give up. Clients connect to services, so every connection has two keys.
//!
//! `syn-flood/10M` leaves no entry free, so that every SYN is refused; `syn-flood/10M/room` leaves a
//! sixteenth, which half-open connections fill and are evicted from. In either, every connection that
//! was established must be so afterwards.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use arrayvec::ArrayVec;
use dataplane::DropReason;
use dataplane::address::Protocol;
use dataplane::conntrack::{FlowState, Seen};
use dataplane::counters::WorkerCounters;
use dataplane::event::Reports;
use dataplane::flows::{Capacities, FlowTables};
use dataplane::memory::HeapBuffer;
use dataplane::pipeline::{Action, Pipeline};
use dataplane::time::Nanos;
use dataplane::worker::{BURST, Received};
use flow_table::Memory;

use super::lineup::XSKIFF;
use super::measure::nanos_each;
use super::samples::Samples;
use super::setting::short;
use super::subject::own_time;
use crate::interrupt;
use crate::packet;
use crate::workload::{Cluster, Packet, UPLINK};

/// Packets written before the clock starts, and then handled.
const BATCH: usize = 512;
/// Any key: what is measured does not depend on it.
const HASH_KEY: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344];
/// No deadline is zero then.
const START: Duration = Duration::from_secs(86_400);
/// One of so many entries is left free in the second case.
const ROOM_PART: usize = 16;

/// Adds the figures of a table of `flows` connections and `syns` SYNs, in `runs` samples.
///
/// # Errors
/// A connection is lost, or a packet did not become what it must.
pub fn measure(flows: usize, syns: usize, runs: u32, samples: &mut Samples) -> Result<()> {
    let each = (syns / runs as usize).next_multiple_of(BATCH).max(BATCH);
    for (suffix, room) in [("", 0), ("/room", flows / ROOM_PART)] {
        let case = format!("syn-flood/{}{suffix}", short(flows));
        let mut victim = Victim::new(flows, room)?;
        for _ in 0..runs {
            let (spent, admitted) = victim.flood(each)?;
            ensure!(
                room > 0 || admitted == 0,
                "{case}: {admitted} SYNs found room in a full table"
            );
            samples.add(&case, XSKIFF, "ns/op", nanos_each(spent, each));
            if room > 0 {
                let case = format!("{case}/admitted");
                samples.add(&case, XSKIFF, "%", admitted as f64 * 100.0 / each as f64);
            }
        }
        let left = victim.established();
        ensure!(left == flows, "{case}: {} established connections are lost", flows - left);
    }
    Ok(())
}

/// A worker without ports, whose table is full.
struct Victim {
    pipeline: Pipeline,
    tables: FlowTables,
    cluster: Cluster,
    ring: Vec<Received<HeapBuffer>>,
    /// The number of the next flow that nobody has opened.
    next: u64,
    /// What a burst takes of the time that the worker knows.
    burst_time: Duration,
    passed: Duration,
}

impl Victim {
    /// With so many connections established, and `room` more entries.
    fn new(flows: usize, room: usize) -> Result<Self> {
        let cluster = Cluster::of(Protocol::TCP);
        // The heap, which is given back.
        let capacities = Capacities::fixed(flows + room, BURST);
        let memory = (Memory::Heap, Memory::Heap);
        let (tables, mut holds) = FlowTables::new(capacities, memory, 1, HASH_KEY)?;
        let counters = Arc::new(WorkerCounters::default());
        let pipeline = Pipeline::new(
            0,
            1,
            Arc::clone(cluster.tables()),
            holds.swap_remove(0),
            counters,
            Arc::new(Reports::default()),
        );
        let frame = [0; packet::FRAME_BYTES];
        let received = || Received { port: UPLINK, buffer: HeapBuffer::new(&frame) };
        let ring = (0..BATCH).map(|_| received()).collect();
        let mut victim = Self {
            pipeline,
            tables,
            cluster,
            ring,
            next: 0,
            burst_time: Duration::ZERO,
            passed: START,
        };
        victim.establish(flows)?;
        Ok(victim)
    }

    /// Three packets each: SYN, SYN and ACK, ACK.
    fn establish(&mut self, flows: usize) -> Result<()> {
        for first in (0..flows).step_by(BATCH) {
            interrupt::check()?;
            let count = BATCH.min(flows - first);
            for (packet, flags) in [
                (Cluster::request as fn(&Cluster, u64) -> Packet, Seen::SYN),
                (Cluster::reply, Seen::SYN | Seen::ACK),
                (Cluster::request, Seen::ACK),
            ] {
                let numbers = self.next..self.next + count as u64;
                let packets: Vec<Packet> =
                    numbers.map(|flow| packet(&self.cluster, flow)).collect();
                let (_, admitted) = self.batch(&packets, flags)?;
                ensure!(admitted == count, "{admitted} of {count} connections were admitted");
            }
            self.next += count as u64;
        }
        let established = self.established();
        ensure!(established == flows, "{established} of {flows} connections are established");
        Ok(())
    }

    /// At least so many SYNs; the time they took, and how many were let in.
    fn flood(&mut self, syns: usize) -> Result<(Duration, usize)> {
        interrupt::check()?;
        let (mut spent, mut admitted) = (Duration::ZERO, 0);
        for _ in (0..syns).step_by(BATCH) {
            let numbers = self.next..self.next + BATCH as u64;
            self.next = numbers.end;
            let packets: Vec<Packet> = numbers.map(|flow| self.cluster.request(flow)).collect();
            let (time, let_in) = self.batch(&packets, Seen::SYN)?;
            spent += time;
            admitted += let_in;
        }
        Ok((spent, admitted))
    }

    /// One batch, in bursts as ticks handle them. Time goes on as fast as it did in the batch before.
    fn batch(&mut self, packets: &[Packet], flags: u8) -> Result<(Duration, usize)> {
        for (received, packet) in self.ring.iter_mut().zip(packets) {
            received.port = packet.ingress;
            received.buffer.refill(&packet::tcp(packet.source, packet.destination, flags));
        }
        let mut decided = [const { ArrayVec::<Action, BURST>::new_const() }; BATCH / BURST];
        let ring = &mut self.ring[..packets.len()];
        let started = own_time()?;
        for (burst, actions) in ring.chunks_mut(BURST).zip(&mut decided) {
            let now = Nanos(0).after(self.passed);
            self.pipeline.process(now, burst, actions);
            self.pipeline.sweep(now);
            self.passed += self.burst_time;
        }
        let spent = own_time()?.saturating_sub(started);
        self.burst_time = spent / (BATCH / BURST) as u32;
        let mut admitted = 0;
        for (action, packet) in decided.iter().flatten().zip(packets) {
            match action {
                Action::Transmit(port) if *port == packet.egress => admitted += 1,
                Action::Drop(DropReason::TableFull) => {}
                other => bail!("{other:?} of {packet:?}"),
            }
        }
        let count: usize = decided.iter().map(|actions| actions.len()).sum();
        ensure!(count == packets.len(), "{count} of {} packets were decided", packets.len());
        Ok((spent, admitted))
    }

    /// Connections that are established.
    fn established(&self) -> usize {
        let mut count = 0;
        self.tables.for_each(Nanos(0).after(self.passed), |flow| {
            count += usize::from(flow.life.state() == FlowState::Established);
        });
        count
    }
}
