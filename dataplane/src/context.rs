//! What every stage needs besides its family's flows, and how a packet is stopped.

use std::net::IpAddr;
use std::sync::Arc;

use flow_table::{Handle, Hasher, Table};

use crate::DropReason;
use crate::buffer::Buffer;
use crate::counters::WorkerCounters;
use crate::event::{Budget, EventKind, FlowEvent, NeighbourRequest, Reporter, Reports};
use crate::flows::{self, WorkerFlows};
use crate::forwarding::NextHopId;
use crate::fragment::FragmentTable;
use crate::handoff::HandoffCause;
use crate::icmp::{self, IcmpErrorKind};
use crate::nat::ports::NatPorts;
use crate::nat::{self, Mapping};
use crate::nat64::Identification;
use crate::packet::Packet;
use crate::pipeline::Action;
use crate::reset::{RESET_FRAME_MAX, build_reset};
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::Received;

/// ICMP errors a worker sends per second (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
pub const ANSWERS_PER_SECOND: u32 = 1000;

/// TCP resets a worker sends per second. More than errors, since each ends a connection: ten thousand
/// of them to one backend take a second or two, and are retransmitted until then.
pub const RESETS_PER_SECOND: u32 = 10_000;

/// Why a packet goes no further, and what its sender must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// What to count.
    pub reason: DropReason,
    /// The MTU to tell, for [`DropReason::TooBig`].
    pub mtu: u16,
    /// Whether the event was reported already, with more than is known here.
    pub reported: bool,
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self { reason, mtu: 0, reported: false }
    }
}

/// One worker's state outside the flow tables.
#[derive(Debug)]
pub struct Context {
    pub(crate) worker: usize,
    pub(crate) workers: usize,
    pub(crate) tables: Arc<Tables>,
    pub(crate) hasher: Hasher,
    /// Both families', to look into from the other one's side.
    pub(crate) flow_tables: (Arc<Table<8>>, Arc<Table<16>>),
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) reporter: Reporter,
    pub(crate) fragments: FragmentTable,
    /// This worker's part of the L4 ports that sources are translated to.
    pub(crate) nat: NatPorts,
    /// Whether flows that change family may be in the table: once there was a service that does it,
    /// its connections go on.
    pub(crate) may_change_family: bool,
    /// The generation that this process began with, which none before has had: tells what it has
    /// noted of flows from what those before did.
    pub(crate) run: u32,
    /// Of IPv4 packets that this worker makes of IPv6 ones.
    pub(crate) identification: Identification,
    answers: Budget,
    resets: Budget,
}

impl Context {
    pub(crate) fn new(
        worker: usize,
        workers: usize,
        tables: Arc<Tables>,
        flows: &WorkerFlows,
        counters: Arc<WorkerCounters>,
        reports: Arc<Reports>,
    ) -> Self {
        let share = nat::share(&tables.source_nat.l4_ports, worker, workers);
        let mut nat = NatPorts::new(share);
        // A table that was taken over may hold mappings, and flows that change family, whatever is
        // configured now.
        nat.has_mappings = tables.source_nat.mapping == Mapping::EndpointIndependent
            || flows.v4.owner.known() + flows.v6.owner.known() > 0;
        let may_change_family =
            tables.services.change_family || flows.v6.table.statistics().used > 0;
        Self {
            worker,
            workers,
            may_change_family,
            identification: Identification::of_worker(worker, workers),
            run: tables.generation,
            tables,
            hasher: flows.hasher.clone(),
            flow_tables: (Arc::clone(&flows.v4.table), Arc::clone(&flows.v6.table)),
            counters,
            reporter: Reporter::new(reports),
            fragments: FragmentTable::default(),
            nat,
            answers: Budget::new(ANSWERS_PER_SECOND),
            resets: Budget::new(RESETS_PER_SECOND),
        }
    }

    /// Begins anew with what is in force: of what a panic has cut short nothing is to be trusted.
    pub(crate) fn begin_anew(&mut self, flows: &WorkerFlows) {
        let tables = Arc::clone(&self.tables);
        let (counters, reports) = (Arc::clone(&self.counters), self.reporter.reports());
        let new = Self::new(self.worker, self.workers, tables, flows, counters, reports);
        // What this process has noted of flows stands.
        *self = Self { run: self.run, ..new };
    }

    pub(crate) fn adopt(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        let share = nat::share(&tables.source_nat.l4_ports, self.worker, self.workers);
        self.nat.has_mappings |= tables.source_nat.mapping == Mapping::EndpointIndependent;
        if share.as_ref() != self.nat.share() {
            // Allocates; the range of a running node stays as it is.
            let has_mappings = self.nat.has_mappings;
            self.nat = NatPorts::new(share);
            self.nat.has_mappings = has_mappings;
        }
        self.may_change_family |= tables.services.change_family;
        std::mem::replace(&mut self.tables, tables)
    }

    pub(crate) fn neighbour_known(&self, request: &NeighbourRequest) -> bool {
        let forwarding = &self.tables.forwarding;
        forwarding
            .neighbours
            .get(&(request.port, request.address))
            .and_then(|id| forwarding.next_hop(*id))
            .or_else(|| {
                forwarding
                    .next_hops
                    .iter()
                    .find(|hop| hop.port == request.port && hop.neighbour == request.address)
            })
            .is_some_and(|hop| hop.destination.is_some())
    }

    /// Asks for a neighbour; the packet waits for it.
    pub(crate) fn hold(&self, request: NeighbourRequest) -> Action {
        self.reporter.neighbour(request);
        Action::Hold(request)
    }

    /// The worker whose flow it is.
    pub(crate) fn owner_of(&self, hash: u64) -> usize {
        flows::owner_of(hash, self.workers)
    }

    /// Sends the packet to another worker.
    pub(crate) fn hand_to(&self, worker: usize, cause: HandoffCause) -> Action {
        self.counters.hand_for(cause);
        Action::Handoff(worker)
    }

    /// Whether another worker has this entry. Always false, and nothing looked at, where there is
    /// none.
    #[inline(always)]
    pub(crate) fn is_foreign<const W: usize>(&self, table: &Table<W>, handle: Handle) -> bool {
        self.workers > 1 && !table.is_held_by(handle, self.worker)
    }

    /// Counts a packet that is finished here by this entry, if another worker has it.
    pub(crate) fn note_hit<const W: usize>(&self, table: &Table<W>, handle: Handle) {
        if self.is_foreign(table, handle) {
            self.counters.foreign_hits.add(1);
        }
    }

    /// Leaves toward the node's own stack, layer 3 unchanged.
    pub(crate) fn to_host(&self, bytes: &mut [u8], host: NextHopId) -> Result<Action, Stop> {
        let hop = self.tables.forwarding.next_hop(host).ok_or(DropReason::PortGone)?;
        let Some(destination) = hop.destination else {
            return Err(DropReason::Unresolved.into());
        };
        crate::rewrite::set_link_addresses(bytes, hop.source, destination);
        Ok(Action::Transmit(hop.port))
    }

    /// Ends a packet: reports it, and turns it into the answer its sender is owed, if any.
    pub(crate) fn stop<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        packet: Option<&Packet>,
        stop: Stop,
    ) -> Action {
        if !stop.reported {
            let mut event = FlowEvent::new(now, EventKind::Dropped(stop.reason), received.port);
            event.key = packet.map(Packet::flow_key);
            self.reporter.event(event, &self.counters);
        }
        if stop.reason == DropReason::BackendGone {
            return match packet {
                Some(packet) if self.reset(now, received, packet) => Action::Answer(stop.reason),
                _ => Action::Drop(stop.reason),
            };
        }
        let answer = match stop.reason {
            DropReason::TtlExceeded => IcmpErrorKind::TimeExceeded,
            DropReason::TooBig => IcmpErrorKind::TooBig { mtu: stop.mtu },
            DropReason::NoRoute => IcmpErrorKind::NetUnreachable,
            DropReason::NoBackend => IcmpErrorKind::PortUnreachable,
            _ => return Action::Drop(stop.reason),
        };
        match packet {
            Some(packet) if self.answer(now, received, packet, answer) => {
                Action::Answer(stop.reason)
            }
            _ => {
                self.counters.replies_suppressed.add(1);
                Action::Drop(stop.reason)
            }
        }
    }

    /// Replaces the packet by an ICMP error to its sender; `false` when none may be sent.
    fn answer<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        packet: &Packet,
        kind: IcmpErrorKind,
    ) -> bool {
        let to = packet.flow_key().source();
        let Some(from) = self.own_address_toward(to) else { return false };
        if !self.answers.take(now) {
            return false;
        }
        let mut scratch = [0u8; icmp::ERROR_FRAME_MAX];
        let built = icmp::build_error(kind, packet, received.buffer.bytes(), from, &mut scratch);
        built.is_ok_and(|len| replace(&mut received.buffer, scratch.get(..len)))
    }

    /// Replaces a TCP segment by a reset to its sender; `false` when none may be sent.
    fn reset<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        packet: &Packet,
    ) -> bool {
        let mut scratch = [0u8; RESET_FRAME_MAX];
        let built = build_reset(packet, received.buffer.bytes(), &mut scratch);
        let Some(len) = built else { return false };
        if !self.resets.take(now) {
            self.counters.replies_suppressed.add(1);
            return false;
        }
        replace(&mut received.buffer, scratch.get(..len))
    }

    /// The address this node speaks from toward `to`'s family.
    pub(crate) fn own_address_toward(&self, to: IpAddr) -> Option<IpAddr> {
        self.tables.source_nat.address_for(to)
    }
}

/// Puts `frame` in the place of what `buffer` holds.
fn replace<B: Buffer>(buffer: &mut B, frame: Option<&[u8]>) -> bool {
    let Some(frame) = frame.filter(|frame| buffer.set_len(frame.len()).is_ok()) else {
        return false;
    };
    match buffer.bytes_mut().get_mut(..frame.len()) {
        Some(into) => {
            into.copy_from_slice(frame);
            true
        }
        None => false,
    }
}
