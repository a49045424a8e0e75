//! The way of a packet whose flow is known: the fast path.

use std::sync::atomic::AtomicU64;

use crate::DropReason;
use crate::buffer::Buffer;
use crate::conntrack::details::{Asked, Details, Effect};
use crate::conntrack::{FlowDirection, FlowState, Life, Seen};
use crate::context::{Context, Stop};
use crate::decision::{self, Ended};
use crate::direct::dispatch;
use crate::event::{EventKind, FlowEvent, NeighbourRequest};
use crate::fate::{self, Fate};
use crate::flow::{FlowRoute, FlowView, Origin};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::flows::{Flows, Found, Located, TableKey};
use crate::forwarding::{NextHop, NextHopId, Resolved};
use crate::mss::{self, SegmentLimit};
use crate::nat64;
use crate::packet::{Packet, PacketKind};
use crate::pipeline::Action;
use crate::port::{PortId, PortKind};
use crate::rewrite::{self, Rewrite};
use crate::segments;
use crate::tables::{Tables, Timeouts};
use crate::time::Nanos;
use crate::worker::Received;

/// Whether `packet` belongs to the flow: its deadline is still ahead, and the packet does not begin
/// another connection after it.
#[inline(always)]
pub(crate) fn serves<K: TableKey<W>, const W: usize>(
    flows: &Flows<W>,
    found: Found,
    now: Nanos,
    packet: &Packet,
) -> bool {
    view::<K, W>(flows, found).is_some_and(|view| {
        let life = view.life();
        !life.expired(now) && !life.is_followed_by(packet.tcp_flags)
    })
}

#[inline(always)]
pub(crate) fn view<'a, K: TableKey<W>, const W: usize>(
    flows: &'a Flows<W>,
    found: Found,
) -> Option<FlowView<'a, K>> {
    flows.table.entry(found.handle).map(|entry| FlowView::new(entry.words()))
}

/// The way of a whole packet whose flow is alive, was decided under the tables in force, and for
/// which nothing stands in the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Straight<'t> {
    /// The flow's words.
    words: &'t [AtomicU64],
    found: Found,
    hop: &'t NextHop,
}

/// Finds a packet's straight way. It and [`Straight::forward`] say what [`forward`] says, without
/// results that are built in memory and read back at once: eight such copies cost more than the
/// rest of the fast path. They are two steps, so that a burst's looks at entries and next hops,
/// which depend on each other, overlap from packet to packet.
///
/// # Errors
/// The packet's flow, if it has one, when anything else is to be done: [`forward`] finds out what.
#[inline(always)]
pub(crate) fn straight<'t, K: TableKey<W>, const W: usize>(
    tables: &'t Tables,
    flows: &'t Flows<W>,
    now: Nanos,
    ingress: PortId,
    packet: &Packet,
    (key, located): (&K, &Located),
) -> Result<Straight<'t>, Option<Found>> {
    let hit = located.hit(&flows.table, key).ok_or(None)?;
    let found = Found { handle: hit.handle, direction: hit.matched };
    let view = FlowView::<K>::new(hit.entry.words());
    // What the second line tells takes a look at the packet that this way has no time for.
    if flows.table.has_details() {
        return Err(Some(found));
    }
    let way = free_way(tables, &view, found.direction, now, ingress, packet);
    way.map(|hop| Straight { words: hit.entry.words(), found, hop }).ok_or(Some(found))
}

impl Straight<'_> {
    /// The packet's flow.
    pub(crate) fn found(&self) -> Found {
        self.found
    }

    /// Rewrites the packet, counts it, and answers the port it leaves by; `None` if it cannot be
    /// rewritten.
    #[inline(always)]
    pub(crate) fn forward(
        &self,
        timeouts: &Timeouts,
        now: Nanos,
        packet: &Packet,
        bytes: &mut [u8],
    ) -> Option<PortId> {
        match packet.key() {
            FlowKey::V4(_) => self.forward_as::<FlowKey4>(timeouts, now, packet, bytes),
            FlowKey::V6(_) => self.forward_as::<FlowKey6>(timeouts, now, packet, bytes),
        }
    }

    #[inline(always)]
    fn forward_as<K: crate::flow::FlowFamily>(
        &self,
        timeouts: &Timeouts,
        now: Nanos,
        packet: &Packet,
        bytes: &mut [u8],
    ) -> Option<PortId> {
        let view = FlowView::<K>::new(self.words);
        let direction = self.found.direction;
        let change = Rewrite {
            tuple: view.tuple(direction.reversed()).generic().reversed(),
            source_mac: self.hop.source,
            destination_mac: self.hop.destination?,
            decrement_ttl: !self.hop.to_host,
        };
        rewrite::apply(&change, packet, bytes).ok()?;
        view.advance(direction, Seen::of(packet.tcp_flags), now, timeouts);
        Some(self.hop.port)
    }
}

/// The next hop of a packet for whose flow nothing has changed.
#[inline(always)]
fn free_way<'t, K: crate::flow::FlowFamily>(
    tables: &'t Tables,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
    now: Nanos,
    ingress: PortId,
    packet: &Packet,
) -> Option<&'t NextHop> {
    let is_current = view.is_current(tables) && !view.life().expired(now);
    // A SYN-ACK may have to be changed. An echo request goes one way only, which is looked at where it
    // costs others nothing.
    let is_special = matches!(
        packet.kind,
        PacketKind::FirstFragment { .. } | PacketKind::Sctp | PacketKind::IcmpQuery { .. }
    ) || packet.tcp_flags & Seen::SYN != 0
        || packet.is_long;
    if !is_current || is_special {
        return None;
    }
    let route = view.route();
    let back = tables.forwarding.next_hop(route.hop_of(direction.reversed()))?;
    let hop = tables.forwarding.next_hop(route.hop_of(direction))?;
    let may_leave = (hop.to_host || packet.ttl > 1)
        && packet.ip_len <= usize::from(hop.mtu)
        && !is_several(packet, view.life());
    (back.port == ingress && may_leave).then_some(hop)
}

/// Forwards `packet` along its flow.
#[inline(always)]
pub(crate) fn forward<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    found: Found,
) -> Result<Action, Stop> {
    let view = view::<K, W>(flows, found).ok_or(DropReason::NoFlow)?;
    let goes = packet.goes(found.direction) || may_ask_back(&context.tables, &view);
    if !view.life().admits(found.direction, packet.tcp_flags) || !goes {
        return Err(DropReason::InvalidState.into());
    }
    let target = view.tuple(found.direction.reversed()).generic().reversed();
    let hop = match way(context, now, received.port, &view, found.direction)? {
        Way::Hop(hop) => hop,
        Way::Hold(request) => return Ok(context.hold(request)),
        Way::BetweenFamilies(hop) => {
            return nat64::forward::<K, B, W>(context, flows, now, received, packet, (found, &hop));
        }
        Way::Dispatched(hop) => {
            let at = (found, &hop);
            return dispatch::dispatch::<K, B, W>(context, flows, now, received, packet, at);
        }
    };
    let Some(destination) = hop.destination else {
        return Ok(context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour }));
    };
    let is_cut = is_cut(packet, packet.ip_len > usize::from(hop.mtu), view.life());
    may_leave(packet, &hop, is_cut)?;
    note::<K, B, W>(context, flows, now, received, packet, found)?;
    let change = Rewrite {
        tuple: target,
        source_mac: hop.source,
        destination_mac: destination,
        decrement_ttl: !hop.to_host,
    };
    rewrite::apply(&change, packet, received.buffer.bytes_mut())?;
    if packet.tcp_flags & Seen::SYN != 0 && view.life().answers_directly() {
        clamp(context, packet, &hop, received);
    }
    if is_cut {
        segments::plan(&mut received.buffer, hop.mtu, view.life().segment_limit())?;
    }
    context.note_hit(&flows.table, found.handle);
    Ok(Action::Transmit(hop.port))
}

/// Whether the other side of a query may ask as well: those who ping each other with one identifier share
/// a flow, of which policy has judged one direction. A translated one has no other.
#[cold]
fn may_ask_back<K: crate::flow::FlowFamily>(tables: &Tables, view: &FlowView<'_, K>) -> bool {
    let [own, reply] = [FlowDirection::Original, FlowDirection::Reply]
        .map(|direction| view.tuple(direction).generic());
    let to = (reply.destination(), reply.destination_port());
    own.reversed() == reply && decision::rejudge(tables, &reply, to).is_ok()
}

/// What the backend takes, made to fit what the client's packets become on their way to it. Their link is
/// taken to be like this node's own to the client.
#[cold]
fn clamp<B: Buffer>(context: &Context, packet: &Packet, hop: &NextHop, received: &mut Received<B>) {
    if let Some(direct) = context.tables.direct.as_deref().filter(|_| !hop.to_host) {
        let overhead = direct.dispatch.overhead(matches!(packet.key(), FlowKey::V4(_)));
        let most = mss::fitting(packet, hop.mtu, overhead);
        mss::clamp(packet, received.buffer.bytes_mut(), most);
    }
}

/// Advances the flow of a packet that goes on, and learns what it tells.
///
/// # Errors
/// Its flow's details are against it.
#[inline(always)]
pub(crate) fn note<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &Received<B>,
    packet: &Packet,
    found: Found,
) -> Result<(), DropReason> {
    let view = view::<K, W>(flows, found).ok_or(DropReason::NoFlow)?;
    // On a connection that stands a SYN is forged, or its receiver's to challenge (RFC 9293, 3.10.7.4).
    let offers = packet.tcp_flags & Seen::SYN != 0
        && packet.kind == PacketKind::Tcp
        && view.life().state() < FlowState::Established;
    let effect = match flows.table.details(found.handle) {
        Some(words) => {
            let asked = Asked {
                windows: context.tables.tcp_windows,
                run: context.run,
                counters: &context.counters,
            };
            let at = (view.life().state(), found.direction);
            Details::new(words).pass(&asked, at, packet, received.buffer.bytes())?
        }
        None => Effect::Counts,
    };
    match effect {
        Effect::Counts => {
            view.advance(found.direction, packet.shows(), now, &context.tables.timeouts);
        }
        Effect::PassesOnly => {
            view.count(found.direction);
            return Ok(());
        }
    }
    if offers {
        let offered = SegmentLimit::offered(packet, received.buffer.bytes());
        view.note_segment_limit(offered, packet.tcp_flags);
    }
    Ok(())
}

/// Where a packet of a known flow goes.
pub(crate) enum Way {
    /// There.
    Hop(NextHop),
    /// There, as a packet of the other family.
    BetweenFamilies(NextHop),
    /// There, for the node of its backend.
    Dispatched(NextHop),
    /// It waits for a neighbour.
    Hold(NeighbourRequest),
}

/// The next hop of `direction`, judged anew when the tables changed, after checking that the
/// packet came in where the flow's other end is.
#[inline(always)]
pub(crate) fn way<K: crate::flow::FlowFamily>(
    context: &mut Context,
    now: Nanos,
    ingress: PortId,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
) -> Result<Way, Stop> {
    if !view.is_current(&context.tables) {
        return unlike_way(context, now, ingress, view, direction);
    }
    way_by(&context.tables, ingress, view, direction, view.route())
}

/// The same by a route that holds.
#[inline(always)]
fn way_by<K: crate::flow::FlowFamily>(
    tables: &Tables,
    ingress: PortId,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
    route: FlowRoute,
) -> Result<Way, Stop> {
    check_ingress(tables, ingress, route.hop_of(direction.reversed()))?;
    let id = route.hop_of(direction);
    if id == FlowRoute::UNRESOLVED {
        return resolve_late(tables, view, direction, route);
    }
    Ok(Way::Hop(*tables.forwarding.next_hop(id).ok_or(DropReason::PortGone)?))
}

/// The way of a flow that was decided under other tables, or stands apart.
#[cold]
fn unlike_way<K: crate::flow::FlowFamily>(
    context: &mut Context,
    now: Nanos,
    ingress: PortId,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
) -> Result<Way, Stop> {
    let (mut route, changes_family) = (view.route(), view.changes_family());
    let is_dispatched = view.life().is_dispatched();
    let stands_apart = is_dispatched || changes_family;
    let generation = generation_for(context, stands_apart);
    if route.generation != generation {
        route = if stands_apart && holds_apart(&context.tables, view) {
            FlowRoute { generation, ..route }
        } else {
            rejudge(context, now, ingress, view, (direction, generation))?
        };
        view.set_route(route);
    }
    match way_by(&context.tables, ingress, view, direction, route)? {
        Way::Hop(hop) if changes_family => Ok(Way::BetweenFamilies(hop)),
        Way::Hop(hop) if is_dispatched && direction == FlowDirection::Original => {
            Ok(Way::Dispatched(hop))
        }
        way => Ok(way),
    }
}

/// Whether nothing that concerns a flow that stands apart changed since its decision.
fn holds_apart<K: crate::flow::FlowFamily>(tables: &Tables, view: &FlowView<'_, K>) -> bool {
    let Some(epochs) = &tables.epochs else { return false };
    let decided = FlowRoute::generation_apart(view.route().generation);
    epochs.hold_since(decided, view.ends())
}

/// What the route of a flow says that was decided under the tables in force.
pub(crate) fn generation_for(context: &Context, stands_apart: bool) -> u32 {
    let generation = context.tables.generation;
    if stands_apart { FlowRoute::generation_apart(generation) } else { generation }
}

/// A pod's packets come by its own port, and nobody else's do; the node's own never come from
/// outside. Which uplink the others come by is the network's business.
#[inline(always)]
fn check_ingress(tables: &Tables, ingress: PortId, back: NextHopId) -> Result<(), DropReason> {
    let expected = tables.forwarding.next_hop(back).map(|hop| hop.port);
    if expected == Some(ingress) {
        return Ok(());
    }
    let kind = |port| tables.port(port).map(|port| port.kind);
    match (kind(ingress), expected.and_then(kind)) {
        (Some(PortKind::Pod), _) => Err(DropReason::Spoofed),
        (_, Some(PortKind::Pod)) | (Some(PortKind::Uplink), Some(PortKind::Host)) => {
            Err(DropReason::LocalAddressFromUplink)
        }
        _ => Ok(()),
    }
}

/// Whether a packet that its link takes is several segments in one all the same, which its receiver, or a
/// link behind, may not take.
#[inline(always)]
fn is_several(packet: &Packet, life: Life) -> bool {
    packet.may_be_whole && life.segment_limit().is_exceeded_by(packet.segment_len())
}

/// Whether a packet is cut where it leaves, by a link that it is too long for or not. One that its stack may
/// have left to be cut is: told that it is too big, the stack makes its segments smaller, and leaves as many
/// of them to be cut the next time.
#[inline(always)]
pub(crate) fn is_cut(packet: &Packet, is_too_long: bool, life: Life) -> bool {
    packet.is_long || packet.may_be_whole && (is_too_long || is_several(packet, life))
}

/// TTL and MTU. Handing a packet to the node's own stack is not forwarding: this node is no hop that
/// counts.
#[inline(always)]
pub(crate) fn may_leave(packet: &Packet, hop: &NextHop, is_cut: bool) -> Result<(), Stop> {
    if !hop.to_host && packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    if packet.ip_len > usize::from(hop.mtu) && !is_cut {
        return Err(Stop { reason: DropReason::TooBig, mtu: hop.mtu, reported: false });
    }
    Ok(())
}

/// The tables changed since the flow's decision: decide again. What is denied now is asked at each
/// packet, until tables allow it again or its time is over.
#[cold]
fn rejudge<K: crate::flow::FlowFamily>(
    context: &mut Context,
    now: Nanos,
    ingress: PortId,
    view: &FlowView<'_, K>,
    (direction, mut generation): (FlowDirection, u32),
) -> Result<FlowRoute, Stop> {
    context.counters.flows_rejudged.add(1);
    let original = view.tuple(FlowDirection::Original).generic();
    let reply = view.tuple(FlowDirection::Reply).generic();
    let backend = (reply.source(), reply.source_port());
    match fate::fate(&context.tables, view) {
        Fate::Stays => {}
        Fate::IsGone => return Err(fate::reset(context, now, ingress, view, direction)),
        // A late answer is still of use; what comes to be answered is decided about anew.
        Fate::IsLetGo => generation = view.route().generation,
    }
    match decision::rejudge(&context.tables, &original, backend) {
        Ok(ways) => {
            let route = FlowRoute {
                generation,
                hop: ways.hop,
                reverse_hop: ways.reverse_hop.unwrap_or(FlowRoute::UNRESOLVED),
            };
            view.set_origin(Origin { rule: ways.rule, ..view.origin() });
            if let Some(direction) = ways.audited {
                context.counters.flows_audited.add(1);
                let mut event = FlowEvent::new(now, EventKind::Audited(direction), ingress);
                event.key = Some(original);
                event.backend = Some(backend);
                event.service = view.origin().service;
                context.reporter.event(event, &context.counters);
            }
            Ok(route)
        }
        Err(Ended { reason, denied: None }) => Err(reason.into()),
        Err(Ended { reason, denied: Some((rule, source, destination)) }) => {
            let mut event = FlowEvent::new(now, EventKind::Closed, ingress);
            event.service = view.origin().service;
            if !view.life().is_denied() {
                view.deny();
                event.key = Some(original.canonical());
                context.reporter.event(event, &context.counters);
            }
            // Here, since nobody further up knows who denied it.
            let event = FlowEvent {
                kind: EventKind::Dropped(reason),
                key: Some(original),
                backend: Some(backend),
                source: Some(source),
                destination: Some(destination),
                rule: Some(rule),
                ..event
            };
            context.reporter.event(event, &context.counters);
            Err(Stop { reason, mtu: 0, reported: true })
        }
    }
}

/// The way back was unknown when the flow was opened: its first reply asks.
#[cold]
fn resolve_late<K: crate::flow::FlowFamily>(
    tables: &Tables,
    view: &FlowView<'_, K>,
    direction: FlowDirection,
    route: FlowRoute,
) -> Result<Way, Stop> {
    let destination = view.tuple(direction.reversed()).generic().source();
    match tables.forwarding.resolve(destination)? {
        Resolved::Unresolved(port, address) => Ok(Way::Hold(NeighbourRequest { port, address })),
        Resolved::NextHop(id) => {
            view.set_route(match direction {
                FlowDirection::Original => FlowRoute { hop: id, ..route },
                FlowDirection::Reply => FlowRoute { reverse_hop: id, ..route },
            });
            Ok(Way::Hop(*tables.forwarding.next_hop(id).ok_or(DropReason::PortGone)?))
        }
    }
}
