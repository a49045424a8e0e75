//! The order of the stages, for a burst at a time.
//!
//! ```text
//! parse -> finish checksum -> hash, prefetch -> lookup -+-> hit:  known::forward
//!                                                       +-> miss: anticipation, opening::open
//!                                                       |         (or its owner)
//!                             fragments, ICMP errors ---+-> related::*
//! ```
//! Every packet leaves with exactly one [`Action`]; the worker carries it out.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::DropReason;
use crate::anticipation::{Anticipated, Beginnings, Early};
use crate::buffer::{self, Buffer};
use crate::context::{Context, Stop};
use crate::counters::WorkerCounters;
use crate::direct::Directed;
use crate::direct::arrival::{Arrival, Arrived, arrive};
use crate::direct::stateless;
use crate::event::{NeighbourRequest, Reports};
use crate::expiry::{Flush, Flushes};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::flows::{Found, Located, Lookups, WorkerFlows};
use crate::fragment::FragmentKey;
use crate::handoff::HandoffCause;
use crate::known::Straight;
use crate::mailbox::FlushFilter;
use crate::packet::{Packet, PacketKind};
use crate::port::{Checksums, Port, PortId};
use crate::rewrite::finish_checksum;
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::{BURST, Received};
use crate::{claims, expiry, fate, known, nat64, opening, related};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Leave by this port; every rewrite is done.
    Transmit(PortId),
    /// Another worker owns the flow.
    Handoff(usize),
    /// Wait for a neighbour.
    Hold(NeighbourRequest),
    /// Wait for the first fragment of its packet ([`Pipeline::fragment_of`]).
    AwaitFirst,
    /// End here.
    Drop(DropReason),
    /// End here; the buffer now holds an answer that leaves by the port the packet came in by.
    Answer(DropReason),
}

/// Packets parsed before their index lines are asked for.
const FETCH: usize = 16;

/// Whose entries a full burst finds is looked at in one of so many, which counts for all of them: to
/// look at each costs 2 to 5 ns per packet. No multiple of a tick's bursts, so that the first and the
/// last of a tick have their turn alike. Bursts that are not full are all looked at: a worker that
/// has them has time.
const FULL_BURSTS_LOOKED_AT: u64 = 17;

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    context: Context,
    flows: WorkerFlows,
    flushes: Flushes,
    full_bursts: u64,
    is_pressed: bool,
}

/// A packet that does not go straight.
struct Other {
    /// Where in the burst it is.
    place: usize,
    /// Its flow, if it has one.
    found: Option<Found>,
    /// Whether it is an IPv4 packet whose flow lies, or will, in the IPv6 table.
    changes_family: bool,
    /// What another node has chosen for it: then it is not the packet that flows were looked up for.
    directed: Option<Directed>,
}

/// Stands where an action is yet to be decided.
const UNDECIDED: Action = Action::Drop(DropReason::Malformed);

/// Packets of a burst that may begin flows under pressure: so many new connections are made even then,
/// at a twelfth of what the burst costs.
const ADMITTED_UNDER_PRESSURE: usize = 1;

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
        let context = Context::new(worker, workers, tables, &flows, counters, reports);
        flows.quiescence.go_online(worker);
        Self { context, flows, flushes: Flushes::new(), full_bursts: 0, is_pressed: false }
    }

    /// Decides about every packet of `burst`, rewriting in place; `actions` runs parallel to it.
    ///
    /// What goes straight along a known flow does so before anything else of the burst is decided:
    /// in order among themselves, and in order of arrival when they leave.
    pub fn process<B: Buffer>(
        &mut self,
        now: Nanos,
        burst: &mut [Received<B>],
        actions: &mut ArrayVec<Action, BURST>,
    ) {
        let mut parsed = ArrayVec::<Parsed, BURST>::new();
        let located = self.parse_and_locate(burst, &mut parsed);
        let weight = self.weight(burst.len());
        let mut others = self.forward_straight(now, burst, (&parsed, &located), actions, weight);
        if !others.is_empty() {
            self.decide_others(now, burst, (&mut parsed, &located), &mut others, actions);
        }
    }

    /// Parses a packet, finishes its checksum where its port may leave that to us, and answers the
    /// tuple that names its flow.
    #[inline(always)]
    fn parse<B: Buffer>(
        port: Option<&Port>,
        received: &mut Received<B>,
        parsed: &mut ArrayVec<Parsed, BURST>,
    ) -> Option<FlowKey> {
        let Some(port) = port else {
            parsed.push(Err(DropReason::UnknownPort));
            return None;
        };
        let (key, cut) = Packet::parse_onto(received.buffer.bytes(), received.buffer.len(), parsed);
        if let Some(len) = cut
            && let Err(reason) = buffer::cut(&mut received.buffer, len)
        {
            parsed.pop();
            parsed.push(Err(reason));
            return None;
        }
        if port.checksums == Checksums::Unknown
            && let Some(Ok(packet)) = parsed.last_mut()
        {
            packet.came_by_link_of(port.mtu);
            if !packet.is_long {
                finish_checksum(packet, &mut received.buffer);
            }
        }
        key
    }

    /// Parses a burst, and finds the flows of all packets with a whole tuple together, so that
    /// their memory comes together, and while others are parsed.
    #[inline(always)]
    fn parse_and_locate<B: Buffer>(
        &self,
        burst: &mut [Received<B>],
        parsed: &mut ArrayVec<Parsed, BURST>,
    ) -> [Located; BURST] {
        let WorkerFlows { v4, v6, hasher, .. } = &self.flows;
        let tables = &*self.context.tables;
        let mut lookups4 = Lookups::<FlowKey4, 8>::default();
        let mut lookups6 = Lookups::<FlowKey6, 16>::default();
        let room = burst.len().min(BURST);
        for group in burst[..room].chunks_mut(FETCH) {
            for received in group {
                let place = parsed.len();
                match Self::parse(tables.port(received.port), received, parsed) {
                    Some(FlowKey::V4(key)) => lookups4.push(place, &key),
                    Some(FlowKey::V6(key)) => lookups6.push(place, &key),
                    None => {}
                }
            }
            lookups4.fetch(hasher, &v4.table);
            lookups6.fetch(hasher, &v6.table);
        }
        let mut located = [Located::default(); BURST];
        lookups4.locate(&v4.table, &mut located);
        lookups6.locate(&v6.table, &mut located);
        located
    }

    /// The fast path: the whole packets of flows for which nothing has changed since they were
    /// decided, in two rounds. Answers the others; what is in `actions` for those counts for
    /// nothing yet.
    #[inline(always)]
    fn forward_straight<B: Buffer>(
        &self,
        now: Nanos,
        burst: &mut [Received<B>],
        (parsed, located): (&[Parsed], &[Located; BURST]),
        actions: &mut ArrayVec<Action, BURST>,
        weight: u64,
    ) -> ArrayVec<Other, BURST> {
        let mut ways = ArrayVec::<_, BURST>::new();
        for ((received, parsed), located) in burst.iter().zip(parsed).zip(located) {
            ways.push(self.straight_way(now, received.port, parsed, located));
        }
        let mut others = ArrayVec::new();
        let timeouts = &self.context.tables.timeouts;
        for (place, ((received, parsed), way)) in
            burst.iter_mut().zip(parsed).zip(&ways).enumerate()
        {
            let bytes = received.buffer.bytes_mut();
            let port = match (way, parsed) {
                (Ok(way), Ok(packet)) => way.forward(timeouts, now, packet, bytes),
                _ => None,
            };
            let found = way.as_ref().map_or_else(|found| *found, |way| Some(way.found()));
            match port {
                Some(port) => actions.push(Action::Transmit(port)),
                None => {
                    actions.push(UNDECIDED);
                    others.push(Other { place, found, changes_family: false, directed: None });
                }
            }
        }
        if weight > 0 {
            self.count_foreign(parsed, &ways, actions, weight);
        }
        others
    }

    /// For how many bursts what this one finds stands; 0: nobody looks.
    #[inline(always)]
    fn weight(&mut self, packets: usize) -> u64 {
        if self.context.workers == 1 {
            return 0;
        }
        if packets < BURST {
            return 1;
        }
        self.full_bursts = self.full_bursts.wrapping_add(1);
        let is_looked_at = self.full_bursts.is_multiple_of(FULL_BURSTS_LOOKED_AT);
        if is_looked_at { FULL_BURSTS_LOOKED_AT } else { 0 }
    }

    /// Counts those of a burst's straight packets whose entries are other workers'. After the
    /// burst, where no packet waits for it.
    #[inline(never)]
    fn count_foreign(
        &self,
        parsed: &[Parsed],
        ways: &[Result<Straight<'_>, Option<Found>>],
        actions: &[Action],
        weight: u64,
    ) {
        let WorkerFlows { v4, v6, .. } = &self.flows;
        let mut foreign = 0;
        for ((parsed, way), action) in parsed.iter().zip(ways).zip(actions) {
            let (Ok(packet), Ok(way), Action::Transmit(_)) = (parsed, way, action) else {
                continue;
            };
            let handle = way.found().handle;
            foreign += u64::from(match packet.key() {
                FlowKey::V4(_) => self.context.is_foreign(&v4.table, handle),
                FlowKey::V6(_) => self.context.is_foreign(&v6.table, handle),
            });
        }
        self.context.counters.foreign_hits.add(foreign * weight);
    }

    #[inline(always)]
    fn straight_way(
        &self,
        now: Nanos,
        ingress: PortId,
        parsed: &Parsed,
        located: &Located,
    ) -> Result<Straight<'_>, Option<Found>> {
        let packet = parsed.as_ref().map_err(|_| None)?;
        let WorkerFlows { v4, v6, .. } = &self.flows;
        let tables = &*self.context.tables;
        match packet.key() {
            FlowKey::V4(key) => known::straight(tables, v4, now, ingress, packet, (key, located)),
            FlowKey::V6(key) => known::straight(tables, v6, now, ingress, packet, (key, located)),
        }
    }

    /// Takes packets that would begin flows out of `others`, all but a few: opening one costs as much as
    /// several packets of flows that are known.
    #[cold]
    fn shed<B: Buffer>(
        &mut self,
        now: Nanos,
        burst: &mut [Received<B>],
        (parsed, located): (&[Parsed], &[Located; BURST]),
        others: &mut ArrayVec<Other, BURST>,
        actions: &mut ArrayVec<Action, BURST>,
    ) {
        let mut admitted = 0;
        others.retain(|other| {
            let Ok(packet) = &parsed[other.place] else { return true };
            let is_unknown = match other.changes_family || other.directed.is_some() {
                true => other.found.is_none(),
                false => located[other.place].missed().is_some(),
            };
            let begins = packet.kind.has_tuple()
                && is_unknown
                && !(other.directed.is_none()
                    && stateless::needs_no_flow(&self.context.tables, packet));
            if begins {
                admitted += 1;
            }
            if !begins || admitted <= ADMITTED_UNDER_PRESSURE {
                return true;
            }
            let stop = Stop::from(DropReason::Overload);
            let received = &mut burst[other.place];
            actions[other.place] = self.context.stop(now, received, Some(packet), stop);
            false
        });
    }

    /// Everything that did not go straight: early about what begins a flow (see
    /// [`crate::anticipation`]), then packet by packet.
    #[inline(never)]
    fn decide_others<B: Buffer>(
        &mut self,
        now: Nanos,
        burst: &mut [Received<B>],
        (parsed, located): (&mut [Parsed], &[Located; BURST]),
        others: &mut ArrayVec<Other, BURST>,
        actions: &mut ArrayVec<Action, BURST>,
    ) {
        if self.context.tables.direct.is_some() {
            self.take_in_directed(now, burst, parsed, others, actions);
        }
        if self.context.may_change_family {
            self.find_between_families(now, parsed, others);
        }
        // After that: a flow that changes family lies in the other table.
        if self.is_pressed {
            self.shed(now, burst, (parsed, located), others, actions);
        }
        let mut beginnings = Beginnings::default();
        let is_as_it_came = |other: &&Other| !other.changes_family && other.directed.is_none();
        for Other { place, .. } in others.iter().filter(is_as_it_came) {
            if let (Ok(packet), Some(hash)) = (&parsed[*place], located[*place].missed()) {
                let begins = (packet, hash);
                let port = burst[*place].port;
                beginnings.add((&self.context, now), &self.flows, *place, port, begins);
            }
        }
        let mut anticipated = Anticipated::decide(&self.context.tables, &self.flows, &beginnings);
        for other in others.iter() {
            let early = anticipated.take(other.place);
            let (received, parsed) = (&mut burst[other.place], &parsed[other.place]);
            actions[other.place] = self.decide(now, received, parsed, other, early);
        }
    }

    /// Makes of packets whose backend another node has chosen what their clients sent.
    #[cold]
    fn take_in_directed<B: Buffer>(
        &mut self,
        now: Nanos,
        burst: &mut [Received<B>],
        parsed: &mut [Parsed],
        others: &mut ArrayVec<Other, BURST>,
        actions: &mut ArrayVec<Action, BURST>,
    ) {
        let Self { context, flows, .. } = self;
        others.retain(|other| {
            let (received, place) = (&mut burst[other.place], other.place);
            let Ok(packet) = parsed[place] else { return true };
            match arrive(context, flows, now, received, &packet) {
                Ok(None) => return true,
                Ok(Some(Arrival::Here(Arrived { packet, found, directed }))) => {
                    parsed[place] = Ok(packet);
                    (other.found, other.directed) = (found, Some(directed));
                    return true;
                }
                Ok(Some(Arrival::Elsewhere(worker, cause))) => {
                    actions[place] = context.hand_to(worker, cause);
                }
                Err(reason) => {
                    let stop = Stop::from(reason);
                    actions[place] = context.stop(now, received, Some(&packet), stop);
                }
            }
            false
        });
    }

    /// Looks in the IPv6 table for IPv4 packets that the IPv4 table knows no living flow of.
    #[cold]
    fn find_between_families(&self, now: Nanos, parsed: &[Parsed], others: &mut [Other]) {
        for other in others.iter_mut().filter(|other| other.directed.is_none()) {
            let Ok(packet) = &parsed[other.place] else { continue };
            if let Some(found) = nat64::find(&self.context, &self.flows, now, packet, other.found) {
                *other = Other { found, changes_family: true, ..*other };
            }
        }
    }

    /// Every other way, and what becomes of a packet that is stopped.
    fn decide<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        parsed: &Parsed,
        other: &Other,
        early: Option<&Early>,
    ) -> Action {
        let outcome = match parsed {
            Ok(packet) => self.decide_packet(now, received, packet, other, early),
            Err(DropReason::NotIp) => Err(claims::refuse_arp(&mut self.context, now, received)),
            Err(reason) => Err(Stop::from(*reason)),
        };
        match outcome {
            Ok(action) => action,
            Err(stop) => self.context.stop(now, received, parsed.as_ref().ok(), stop),
        }
    }

    fn decide_packet<B: Buffer>(
        &mut self,
        now: Nanos,
        received: &mut Received<B>,
        packet: &Packet,
        &Other { found, changes_family, directed, .. }: &Other,
        early: Option<&Early>,
    ) -> Result<Action, Stop> {
        let Self { context, flows, .. } = self;
        match packet.kind {
            PacketKind::LaterFragment { .. } => {
                related::later_fragment(context, flows, now, received, packet)
            }
            PacketKind::IcmpError => related::icmp_error(context, flows, now, received, packet),
            PacketKind::RouterAdvertisement => Err(DropReason::RouterAdvertisement.into()),
            PacketKind::NeighbourDiscovery => Err(claims::refuse(context, now, received, packet)),
            _ => {
                if let Some(owner) = related::fragment_owner(context, now, packet)? {
                    return Ok(context.hand_to(owner, HandoffCause::Fragment));
                }
                let action = match packet.flow_key() {
                    FlowKey::V4(key) if changes_family => {
                        let key = FlowKey6::mapped(&key);
                        one(context, &mut flows.v6, now, received, packet, key, (found, None, None))
                    }
                    FlowKey::V4(key) => {
                        let known = (found, early, directed);
                        one(context, &mut flows.v4, now, received, packet, key, known)
                    }
                    FlowKey::V6(key) => {
                        let known = (found, early, directed);
                        one(context, &mut flows.v6, now, received, packet, key, known)
                    }
                }?;
                related::remember_fragment(context, now, packet);
                Ok(action)
            }
        }
    }

    /// Whether new flows are to be shed from now on, for the sake of those there are.
    pub fn set_pressed(&mut self, is_pressed: bool) {
        self.is_pressed = is_pressed;
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

    /// The packet that a later fragment is of. Not in [`Action::AwaitFirst`], which would make every
    /// packet's action four times as large.
    #[cold]
    #[must_use]
    pub fn fragment_of<B: Buffer>(fragment: &B) -> Option<FragmentKey> {
        related::fragment_of(&Packet::parse(fragment.bytes(), fragment.len()).ok()?)
    }

    /// Whether a first fragment came since this was last asked.
    pub fn saw_first_fragment(&mut self) -> bool {
        self.context.fragments.take_news()
    }

    /// Whether the first fragment of this packet is known.
    #[must_use]
    pub fn knows_first(&self, key: &FragmentKey, now: Nanos) -> bool {
        self.context.fragments.transport(key, now).is_ok()
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

    /// Whether a flush is under way: it goes on with the worker's ticks, so none should be left out.
    #[must_use]
    pub fn is_flushing(&self) -> bool {
        !self.flushes.is_empty()
    }

    /// Looks at the entries whose turn it is for what has expired or is to be flushed or evicted, and
    /// announces that the worker holds no entry: part of every tick. Once in a tick, not in a burst,
    /// since the announcement waits until all that the worker wrote has left for memory.
    pub fn sweep(&mut self, now: Nanos) {
        self.sweep_entries(now, 0);
    }

    /// The same for the next `entries` of each family at least.
    pub fn sweep_entries(&mut self, now: Nanos, entries: u32) {
        expiry::sweep(&mut self.context, &mut self.flows, &mut self.flushes, now, entries);
        self.flows.quiescence.announce(self.context.worker);
    }

    /// Goes on after a panic: with its flows, the tables in force and the flushes under way, and with
    /// nothing else of what it remembered.
    pub(crate) fn begin_anew(&mut self) {
        self.context.begin_anew(&self.flows);
    }

    /// Its flows, when the worker ends.
    #[must_use]
    pub fn into_flows(self) -> WorkerFlows {
        self.flows
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
    (found, early, directed): (Option<Found>, Option<&Early>, Option<Directed>),
) -> Result<Action, Stop>
where
    K: crate::flows::TableKey<W>,
    B: Buffer,
{
    match found {
        Some(found)
            if known::serves::<K, W>(flows, found, now, packet)
                && !fate::is_chosen_anew::<K, W>(context, flows, found, packet) =>
        {
            known::forward::<K, B, W>(context, flows, now, received, packet, found)
        }
        _ => opening::open(context, flows, now, received, packet, key, (found, early, directed)),
    }
}
