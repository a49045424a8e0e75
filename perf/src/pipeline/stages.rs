//! The stages apart: each public function of the dataplane over a whole batch, then the next.
//!
//! The parts add up to a little more or less than the whole: apart, a stage writes its results to
//! memory and the next one reads them; together, the processor overlaps them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use arrayvec::ArrayVec;
use dataplane::DropReason;
use dataplane::buffer::Buffer;
use dataplane::charge::Charge;
use dataplane::conntrack::{Life, Seen};
use dataplane::decision::{Admission, Decision, NewPacket, decide};
use dataplane::flow::{FlowRoute, FlowView, Origin};
use dataplane::flow_key::{FlowKey, FlowKey4};
use dataplane::flows::{
    FlowTables, Found, Located, Lookups, NewFlow, WorkerFlows, hashes_of, hashes_of_flow,
};
use dataplane::packet::Packet;
use dataplane::rewrite::{self, Rewrite};
use dataplane::tables::Tables;
use dataplane::time::Nanos;
use dataplane::worker::BURST;
use flow_table::{Handle, Sweep};

use super::node::{Clock, Node, Ring, Sequence, Traffic, flow_tables};
use super::{BATCH, CHECK_EVERY};
use crate::figure::median;
use crate::workload::Cluster;

/// Nanoseconds per packet of each stage, in their order.
pub type Shares = Vec<(&'static str, f64)>;

const BURSTS: usize = BATCH / BURST;
type Parsed = ArrayVec<Result<Packet, DropReason>, BURST>;
type FoundBurst = ArrayVec<Option<Found>, BURST>;
type Admitted = ArrayVec<Admission, BURST>;
type Changes = ArrayVec<Rewrite, BURST>;

/// What each stage leaves to the next, by burst.
#[derive(Default)]
struct Results {
    parsed: Vec<Parsed>,
    found: Vec<FoundBurst>,
    admitted: Vec<Admitted>,
    changes: Vec<Changes>,
}

impl Results {
    fn clear(&mut self) {
        fn empty<T>(results: &mut Vec<ArrayVec<T, BURST>>) {
            results.resize_with(BURSTS, ArrayVec::new);
            results.iter_mut().for_each(ArrayVec::clear);
        }
        empty(&mut self.parsed);
        empty(&mut self.found);
        empty(&mut self.admitted);
        empty(&mut self.changes);
    }
}

/// The stages over tables of their own.
pub struct Staged {
    cluster: Cluster,
    tables: FlowTables,
    /// Gone into the node that opened the flows, for established traffic.
    hold: Option<WorkerFlows>,
    opener: Option<Node>,
    sequence: Sequence,
    ring: Ring,
    results: Results,
    clock: Clock,
}

impl Staged {
    /// With every flow of established traffic opened and answered.
    pub fn new(cluster: &Cluster, traffic: Traffic, flows: u64) -> Result<Self> {
        let (tables, hold) = flow_tables(flows)?;
        let (hold, opener) = if traffic.is_established() {
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
            results: Results::default(),
            clock: Clock::new(),
        })
    }

    /// Sends at least `packets` packets through the stages; of each, the median of the batches.
    pub fn run(&mut self, packets: u64) -> Result<Shares> {
        let batches = packets.div_ceil(BATCH as u64);
        let mut spent: Vec<(&'static str, Vec<f64>)> = Vec::new();
        for _ in 0..batches {
            self.sequence.fill(&mut self.ring);
            self.results.clear();
            let mut lap = |stage, time: Duration| {
                let nanos = time.as_secs_f64() * 1e9 / BATCH as f64;
                match spent.iter_mut().find(|(name, _)| *name == stage) {
                    Some((_, samples)) => samples.push(nanos),
                    None => spent.push((stage, vec![nanos])),
                }
            };
            self.batch(&mut lap)?;
        }
        let shares = spent.iter().filter_map(|(stage, nanos)| Some((*stage, median(nanos)?)));
        let mut shares: Shares = shares.collect();
        if let Some(hold) = &mut self.hold {
            self.clock.skip_time_outs();
            let sent = batches * BATCH as u64;
            let time = expire(hold, self.clock.now(), sent)?;
            shares.push(("expire", time.as_secs_f64() * 1e9 / sent as f64));
        }
        Ok(shares)
    }

    fn batch(&mut self, lap: &mut impl FnMut(&'static str, Duration)) -> Result<()> {
        let Results { parsed, found, admitted, changes } = &mut self.results;
        self.clock.start();
        let started = Instant::now();
        parse(&self.ring, parsed);
        lap("parse", started.elapsed());
        let sound: usize = parsed.iter().map(|burst| burst.iter().flatten().count()).sum();
        ensure!(sound == BATCH, "{sound} of {BATCH} packets were parsed");

        let started = Instant::now();
        look_up(&self.tables, parsed, found);
        lap("lookup", started.elapsed());

        let now = self.clock.now();
        let tables = &**self.cluster.tables();
        if let Some(hold) = &mut self.hold {
            let started = Instant::now();
            admit(tables, now, &self.ring, parsed, admitted);
            lap("decide", started.elapsed());
            let started = Instant::now();
            insert(hold, tables, now, admitted, found);
            lap("insert", started.elapsed());
        }
        ensure!(found.iter().flatten().all(Option::is_some), "a flow is not in the table");

        let started = Instant::now();
        advance(&self.tables, tables, now, (parsed, found), changes);
        lap("advance", started.elapsed());

        let started = Instant::now();
        apply(&mut self.ring, parsed, changes)?;
        lap("rewrite", started.elapsed());
        if let Some(node) = &mut self.opener {
            let started = Instant::now();
            (0..BURSTS).for_each(|_| node.sweep(self.clock.now()));
            lap("sweep", started.elapsed());
        }
        self.clock.stop();
        (0..BATCH).step_by(CHECK_EVERY + 1).try_for_each(|place| self.ring.check(place))
    }
}

fn parse(ring: &Ring, parsed: &mut [Parsed]) {
    for (burst, parsed) in ring.packets.chunks(BURST).zip(parsed) {
        for received in burst {
            Packet::parse_onto(received.buffer.bytes(), received.buffer.len(), parsed);
        }
    }
}

fn look_up(tables: &FlowTables, parsed: &[Parsed], found: &mut [FoundBurst]) {
    for (parsed, found) in parsed.iter().zip(found) {
        let mut lookups = Lookups::<FlowKey4, 8>::default();
        let mut located = [Located::default(); BURST];
        for (place, packet) in parsed.iter().flatten().enumerate() {
            if let FlowKey::V4(key) = packet.flow_key() {
                lookups.push(place, &key);
            }
        }
        lookups.fetch(&tables.hasher, &tables.v4);
        lookups.locate(&tables.v4, &mut located);
        for (packet, located) in parsed.iter().flatten().zip(&located) {
            found.push(match packet.flow_key() {
                FlowKey::V4(key) => located.find(&tables.v4, &key),
                FlowKey::V6(_) => None,
            });
        }
    }
}

fn admit(tables: &Tables, now: Nanos, ring: &Ring, parsed: &[Parsed], admitted: &mut [Admitted]) {
    let bursts = ring.packets.chunks(BURST).zip(parsed);
    for ((burst, parsed), admitted) in bursts.zip(admitted) {
        for (received, packet) in burst.iter().zip(parsed.iter().flatten()) {
            let new = NewPacket::of(packet, now, tables);
            if let Ok(Decision::Admit(admission)) = decide(tables, received.port, &new) {
                admitted.push(admission);
            }
        }
    }
}

fn insert(
    hold: &mut WorkerFlows,
    tables: &Tables,
    now: Nanos,
    admitted: &[Admitted],
    found: &mut [FoundBurst],
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
                pod: dataplane::identity::PodTag::Unknown,
                charge: Charge::NOBODY,
            };
            let hashes = hashes_of(&hold.hasher, &original, &reply);
            let inserted = hold.v4.insert(&flow, hashes);
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
    (parsed, found): (&[Parsed], &[FoundBurst]),
    changes: &mut [Changes],
) {
    for ((parsed, found), changes) in parsed.iter().zip(found).zip(changes) {
        for (packet, found) in parsed.iter().flatten().zip(found) {
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
            if let Some((hop, destination_mac)) = hop.and_then(|hop| Some((hop, hop.destination?)))
            {
                changes.push(Rewrite {
                    tuple: FlowKey::V4(view.tuple(direction.reversed()).reversed()),
                    source_mac: hop.source,
                    destination_mac,
                    decrement_ttl: true,
                });
            }
        }
    }
}

fn apply(ring: &mut Ring, parsed: &[Parsed], changes: &[Changes]) -> Result<()> {
    let bursts = ring.packets.chunks_mut(BURST).zip(parsed).zip(changes);
    for ((burst, parsed), changes) in bursts {
        ensure!(changes.len() == BURST, "only {} of {BURST} flows advanced", changes.len());
        for ((received, packet), change) in
            burst.iter_mut().zip(parsed.iter().flatten()).zip(changes)
        {
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
