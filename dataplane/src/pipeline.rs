//! The order of the stages, for a burst at a time.
//!
//! ```text
//! parse -> finish checksum -> hash, prefetch -> lookup -+-> hit:  known::forward
//!                                                       +-> miss: opening::open (or its owner)
//!                             fragments, ICMP errors ---+-> related::*
//! ```
//! Every packet leaves with exactly one [`Action`]; the worker carries it out.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::DropReason;
use crate::buffer::Buffer;
use crate::context::{Context, Stop};
use crate::counters::WorkerCounters;
use crate::event::{NeighbourRequest, Reports};
use crate::expiry::{Flush, Flushes};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::flows::{Found, Lookups, WorkerFlows};
use crate::mailbox::FlushFilter;
use crate::packet::{Packet, PacketKind};
use crate::port::{Checksums, PortId};
use crate::rewrite::finish_checksum;
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::{BURST, Received};
use crate::{expiry, known, opening, related};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Leave by this port; every rewrite is done.
    Transmit(PortId),
    /// Another worker owns the flow.
    Handoff(usize),
    /// Wait for a neighbour.
    Hold(NeighbourRequest),
    /// End here.
    Drop(DropReason),
    /// End here; the buffer now holds an answer that leaves by the port the packet came in by.
    Answer(DropReason),
}

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    context: Context,
    flows: WorkerFlows,
    flushes: Flushes,
}

/// A parsed packet, or why it ends at once.
type Parsed = Result<Packet, DropReason>;

impl Pipeline {
    /// The pipeline of `worker` out of `workers`.
    #[must_use]
    pub fn new(
        worker: usize,
        workers: usize,
        tables: Arc<Tables>,
        flows: WorkerFlows,
        counters: Arc<WorkerCounters>,
        reports: Arc<Reports>,
    ) -> Self {
        let context =
            Context::new(worker, workers, tables, flows.hasher.clone(), counters, reports);
        flows.quiescence.go_online(worker);
        Self { context, flows, flushes: Flushes::new() }
    }

    /// Decides about every packet of `burst`, rewriting in place; `actions` runs parallel to it.
    pub fn process<B: Buffer>(
        &mut self,
        now: Nanos,
        burst: &mut [Received<B>],
        actions: &mut ArrayVec<Action, BURST>,
    ) {
        let parsed: ArrayVec<Parsed, BURST> =
            burst.iter_mut().take(BURST).map(|received| self.parse(received)).collect();
        let found = self.look_up(&parsed);
        for ((received, parsed), found) in burst.iter_mut().zip(&parsed).zip(&found) {
            let outcome = match parsed {
                Ok(packet) => self.decide(now, received, packet, *found),
                Err(reason) => Err(Stop::from(*reason)),
            };
            actions.push(match outcome {
                Ok(action) => action,
                Err(stop) => self.context.stop(now, received, parsed.as_ref().ok(), stop),
            });
        }
        self.flows.quiescence.announce(self.context.worker);
    }

    fn parse<B: Buffer>(&self, received: &mut Received<B>) -> Parsed {
        let port = self.context.tables.port(received.port).ok_or(DropReason::UnknownPort)?;
        let packet = Packet::parse(received.buffer.bytes(), received.buffer.len())?;
        if port.checksums == Checksums::Unknown {
            finish_checksum(&packet, &mut received.buffer);
        }
        Ok(packet)
    }

    /// Looks all packets with a whole tuple up at once, so that their memory is fetched together.
    fn look_up(&self, parsed: &ArrayVec<Parsed, BURST>) -> ArrayVec<Option<Found>, BURST> {
        let mut v4 = Lookups::<FlowKey4, 8>::default();
        let mut v6 = Lookups::<FlowKey6, 16>::default();
        for (index, packet) in parsed.iter().enumerate() {
            match packet {
                Ok(packet) if packet.kind.has_tuple() => match packet.flow_key() {
                    FlowKey::V4(key) => v4.push(index, key),
                    FlowKey::V6(key) => v6.push(index, key),
                },
                _ => {}
            }
        }
        let mut found: ArrayVec<Option<Found>, BURST> = parsed.iter().map(|_| None).collect();
        v4.run(&self.flows.hasher, &self.flows.v4.table, &mut found);
        v6.run(&self.flows.hasher, &self.flows.v6.table, &mut found);
        found
    }

    fn decide<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        packet: &Packet,
        found: Option<Found>,
    ) -> Result<Action, Stop> {
        let Self { context, flows, .. } = self;
        match packet.kind {
            PacketKind::LaterFragment { .. } => {
                related::later_fragment(context, flows, now, received, packet)
            }
            PacketKind::IcmpError => related::icmp_error(context, flows, now, received, packet),
            PacketKind::RouterAdvertisement => Err(DropReason::RouterAdvertisement.into()),
            PacketKind::NeighbourDiscovery => Err(DropReason::Multicast.into()),
            _ => {
                if let Some(owner) = related::fragment_owner(context, packet) {
                    return Ok(Action::Handoff(owner));
                }
                let action = match packet.flow_key() {
                    FlowKey::V4(key) => {
                        one(context, &mut flows.v4, now, received, packet, key, found)
                    }
                    FlowKey::V6(key) => {
                        one(context, &mut flows.v6, now, received, packet, key, found)
                    }
                }?;
                related::remember_fragment(context, now, packet)?;
                Ok(action)
            }
        }
    }

    /// What is in force.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.context.tables
    }

    /// What this worker counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.context.counters
    }

    /// Puts `tables` in force; gives the old root back.
    pub fn adopt(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        self.context.adopt(tables)
    }

    /// Whether the link address of `request` is known now.
    #[must_use]
    pub fn neighbour_known(&self, request: &NeighbourRequest) -> bool {
        self.context.neighbour_known(request)
    }

    /// Whether another [`flush`](Self::flush) can begin now: 64 may be under way.
    #[must_use]
    pub fn may_flush(&self) -> bool {
        !self.flushes.is_full()
    }

    /// Ends, over the next sweeps, every flow of this worker that matches.
    ///
    /// # Errors
    /// The filter, when no more can be under way: to be tried again after some sweeps.
    pub fn flush(&mut self, filter: FlushFilter) -> Result<(), FlushFilter> {
        if !self.may_flush() {
            return Err(filter);
        }
        self.flushes.push(Flush::new(filter));
        Ok(())
    }

    /// Looks at the next `entries` of each family for what has expired or is to be flushed.
    pub fn sweep(&mut self, now: Nanos, entries: u32) {
        expiry::sweep(&mut self.context, &mut self.flows, &mut self.flushes, now, entries);
        self.flows.quiescence.announce(self.context.worker);
    }

    /// Announces that the worker sleeps and holds no flow entry, or is back.
    pub fn set_online(&mut self, online: bool) {
        if online {
            self.flows.quiescence.go_online(self.context.worker);
        } else {
            self.flows.quiescence.go_offline(self.context.worker);
        }
    }
}

/// A packet with a whole tuple: forward along its flow, or open one.
fn one<K, B, const W: usize>(
    context: &mut Context,
    flows: &mut crate::flows::Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    key: K,
    found: Option<Found>,
) -> Result<Action, Stop>
where
    K: crate::flows::TableKey<W>,
    B: Buffer,
{
    match found {
        Some(found) if known::serves::<K, W>(flows, found, now, packet) => {
            known::forward::<K, B, W>(context, flows, now, received, packet, found)
        }
        _ => opening::open(context, flows, now, received, packet, key),
    }
}
