//! The stages apart: each public function of the dataplane over a whole batch, then the next.
//!
//! The parts add up to a little more or less than the whole: apart, a stage writes its results to
//! memory and the next one reads them; together, the processor overlaps them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use arrayvec::ArrayVec;
use dataplane::buffer::Buffer;
use dataplane::conntrack::{Life, Seen};
use dataplane::decision::{Admission, Decision, NewPacket, decide};
use dataplane::flow::{FlowRoute, FlowView, Origin};
use dataplane::flow_key::{FlowKey, FlowKey4};
use dataplane::flows::{FlowTables, Found, Lookups, NewFlow, WorkerFlows, hashes_of_flow};
use dataplane::packet::Packet;
use dataplane::rewrite::{self, Rewrite};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::BURST;
use flow_table::{Handle, Sweep};

use super::node::{Clock, Node, Ring, SWEEP_ENTRIES, Sequence, Traffic, flow_tables};
use super::{BATCH, CHECK_EVERY};
use crate::workload::Cluster;

/// Nanoseconds per packet of each stage, in their order.
pub type Shares = Vec<(&'static str, f64)>;

const BURSTS: usize = BATCH / BURST;
type PerBurst<T> = [ArrayVec<T, BURST>; BURSTS];

/// The stages over tables of their own.
pub struct Staged {
    cluster: Cluster,
    tables: FlowTables,
    /// Gone into the node that opened the flows, for established traffic.
    hold: Option<WorkerFlows>,
    opener: Option<Node>,
    sequence: Sequence,
    ring: Ring,
    clock: Clock,
}

impl Staged {
    /// With every flow of established traffic opened and answered.
    pub fn new(cluster: &Cluster, traffic: Traffic, flows: u64) -> Result<Self> {
        let (tables, hold) = flow_tables(flows)?;
        let (hold, opener) = if traffic == Traffic::Established {
            let mut node = Node::with_flows(cluster, traffic, flows, hold);
            node.establish(cluster, flows)?;
            (None, Some(node))
        } else {
            hold.quiescence.go_online(0);
            (Some(hold), None)
        };
        Ok(Self {
            cluster: cluster.clone(),
            tables,
            hold,
            opener,
            sequence: Sequence::new(cluster, traffic, flows),
            ring: Ring::new(cluster),
            clock: Clock::new(),
        })
    }

    /// Sends at least `packets` packets through the stages.
    pub fn run(&mut self, packets: u64) -> Result<Shares> {
        let batches = packets.div_ceil(BATCH as u64);
        let mut spent: Vec<(&'static str, Duration)> = Vec::new();
        for _ in 0..batches {
            self.sequence.fill(&mut self.ring);
            let mut lap =
                |stage, time: Duration| match spent.iter_mut().find(|(name, _)| *name == stage) {
                    Some((_, sum)) => *sum += time,
                    None => spent.push((stage, time)),
                };
            self.batch(&mut lap)?;
        }
        let sent = batches * BATCH as u64;
        if let Some(hold) = &mut self.hold {
            self.clock.skip_time_outs();
            let time = expire(hold, self.clock.now(), sent)?;
            spent.push(("expire", time));
        }
        Ok(spent
            .into_iter()
            .map(|(stage, time)| (stage, time.as_secs_f64() * 1e9 / sent as f64))
            .collect())
    }

    fn batch(&mut self, lap: &mut impl FnMut(&'static str, Duration)) -> Result<()> {
        let started = Instant::now();
        let parsed = parse(&self.ring);
        lap("parse", started.elapsed());
        ensure!(parsed.iter().map(|burst| burst.len()).sum::<usize>() == BATCH, "not all parsed");

        let started = Instant::now();
        let mut found = look_up(&self.tables, &parsed);
        lap("lookup", started.elapsed());

        let now = self.clock.now();
        let tables = &**self.cluster.tables();
        if let Some(hold) = &mut self.hold {
            let started = Instant::now();
            let admitted = admit(tables, &self.ring, &parsed);
            lap("decide", started.elapsed());
            let started = Instant::now();
            insert(hold, tables, now, &admitted, &mut found);
            lap("insert", started.elapsed());
        }
        ensure!(found.iter().flatten().all(Option::is_some), "a flow is not in the table");

        let started = Instant::now();
        let changes = advance(&self.tables, tables, now, &parsed, &found);
        lap("advance", started.elapsed());

        let started = Instant::now();
        apply(&mut self.ring, &parsed, &changes)?;
        lap("rewrite", started.elapsed());
        if let Some(node) = &mut self.opener {
            let started = Instant::now();
            (0..BURSTS).for_each(|_| node.sweep(now, SWEEP_ENTRIES));
            lap("sweep", started.elapsed());
        }
        (0..BATCH).step_by(CHECK_EVERY + 1).try_for_each(|place| self.ring.check(place))
    }
}

fn empty<T>() -> PerBurst<T> {
    [const { ArrayVec::new_const() }; BURSTS]
}

fn parse(ring: &Ring) -> PerBurst<Packet> {
    let mut parsed = empty();
    for (burst, parsed) in ring.packets.chunks(BURST).zip(&mut parsed) {
        for received in burst {
            if let Ok(packet) = Packet::parse(received.buffer.bytes(), received.buffer.len()) {
                parsed.push(packet);
            }
        }
    }
    parsed
}

fn look_up(tables: &FlowTables, parsed: &PerBurst<Packet>) -> PerBurst<Option<Found>> {
    let mut all = empty();
    for (parsed, found) in parsed.iter().zip(&mut all) {
        let mut lookups = Lookups::<FlowKey4, 8>::default();
        for (place, packet) in parsed.iter().enumerate() {
            if let FlowKey::V4(key) = packet.flow_key() {
                lookups.push(place, key);
            }
        }
        found.extend(parsed.iter().map(|_| None));
        lookups.run(&tables.hasher, &tables.v4, found);
    }
    all
}

fn admit(tables: &Tables, ring: &Ring, parsed: &PerBurst<Packet>) -> PerBurst<Admission> {
    let mut all = empty();
    let bursts = ring.packets.chunks(BURST).zip(parsed);
    for ((burst, parsed), admitted) in bursts.zip(&mut all) {
        for (received, packet) in burst.iter().zip(parsed) {
            let new = NewPacket {
                key: packet.flow_key(),
                tcp_flags: packet.tcp_flags,
                may_begin: packet.may_begin_flow(),
            };
            if let Ok(Decision::Admit(admission)) = decide(tables, received.port, &new) {
                admitted.push(admission);
            }
        }
    }
    all
}

fn insert(
    hold: &mut WorkerFlows,
    tables: &Tables,
    now: Nanos,
    admitted: &PerBurst<Admission>,
    found: &mut PerBurst<Option<Found>>,
) {
    for (admitted, found) in admitted.iter().zip(found) {
        for (admission, found) in admitted.iter().zip(found) {
            let (FlowKey::V4(original), FlowKey::V4(reply)) =
                (admission.original, admission.translated.reversed())
            else {
                continue;
            };
            let flow = NewFlow {
                original,
                reply,
                life: Life::opened(original.protocol, Seen::of(0), now, &tables.timeouts),
                route: FlowRoute {
                    generation: tables.generation,
                    hop: admission.hop,
                    reverse_hop: admission.reverse_hop.unwrap_or(FlowRoute::UNRESOLVED),
                },
                origin: Origin {
                    service: admission.findings.service,
                    rule: admission.findings.rule,
                },
            };
            let inserted = hold.v4.insert(&hold.hasher, &flow);
            let direction = admission.direction;
            *found = inserted.ok().map(|handle: Handle| Found { handle, direction });
        }
        hold.quiescence.announce(0);
    }
}

/// As the fast path does: deadline, state, next hop, and the change as a value.
fn advance(
    flows: &FlowTables,
    tables: &Tables,
    now: Nanos,
    parsed: &PerBurst<Packet>,
    found: &PerBurst<Option<Found>>,
) -> PerBurst<Rewrite> {
    let mut all = empty();
    for ((parsed, found), changes) in parsed.iter().zip(found).zip(&mut all) {
        for (packet, found) in parsed.iter().zip(found) {
            let Some((entry, direction)) =
                found.and_then(|found| Some((flows.v4.entry(found.handle)?, found.direction)))
            else {
                continue;
            };
            let view = FlowView::<FlowKey4>::new(entry.words());
            if view.life().expired(now) {
                continue;
            }
            view.advance(direction, Seen::of(packet.tcp_flags), now, &tables.timeouts);
            let hop = tables.forwarding.next_hop(view.route().hop_of(direction));
            if let Some((hop, destination)) = hop.and_then(|hop| Some((hop, hop.destination?))) {
                changes.push(Rewrite {
                    tuple: FlowKey::V4(view.tuple(direction.reversed()).reversed()),
                    source_mac: hop.source,
                    destination_mac: destination,
                    decrement_ttl: true,
                });
            }
        }
    }
    all
}

fn apply(ring: &mut Ring, parsed: &PerBurst<Packet>, changes: &PerBurst<Rewrite>) -> Result<()> {
    let bursts = ring.packets.chunks_mut(BURST).zip(parsed).zip(changes);
    for ((burst, parsed), changes) in bursts {
        ensure!(changes.len() == BURST, "only {} of {BURST} flows advanced", changes.len());
        for ((received, packet), change) in burst.iter_mut().zip(parsed).zip(changes) {
            if let Err(reason) = rewrite::apply(change, packet, received.buffer.bytes_mut()) {
                bail!("a packet could not be rewritten: {}", reason.label());
            }
        }
    }
    Ok(())
}

/// Removes every flow; the time that took.
fn expire(hold: &mut WorkerFlows, now: Nanos, flows: u64) -> Result<Duration> {
    let WorkerFlows { v4, hasher, quiescence, .. } = hold;
    let mut removed = 0;
    let started = Instant::now();
    let swept = v4.owner.sweep(u32::MAX, |_, entry| {
        let view = FlowView::<FlowKey4>::new(entry.words());
        if !view.life().expired(now) {
            return Sweep::Keep;
        }
        removed += 1;
        Sweep::Remove(hashes_of_flow(hasher, &view))
    });
    let spent = started.elapsed();
    ensure!(removed == flows, "{removed} of {flows} flows expired; {swept:?}");
    quiescence.announce(0);
    v4.owner.reclaim();
    Ok(spent)
}
