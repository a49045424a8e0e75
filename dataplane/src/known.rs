//! The way of a packet whose flow is known: the fast path.

use crate::DropReason;
use crate::buffer::Buffer;
use crate::conntrack::{FlowDirection, Seen, is_first_syn};
use crate::context::{Context, Stop};
use crate::decision;
use crate::event::{EventKind, FlowEvent, NeighbourRequest};
use crate::flow::{FlowRoute, FlowView, Origin};
use crate::flows::{Flows, Found, TableKey};
use crate::forwarding::{NextHop, NextHopId, Resolved};
use crate::packet::{Packet, PacketKind};
use crate::pipeline::Action;
use crate::port::{PortId, PortKind};
use crate::rewrite::{self, Rewrite};
use crate::tables::Tables;
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
fn view<'a, K: TableKey<W>, const W: usize>(
    flows: &'a Flows<W>,
    found: Found,
) -> Option<FlowView<'a, K>> {
    flows.table.entry(found.handle).map(|entry| FlowView::new(entry.words()))
}

/// Forwards a whole `packet` along its flow and answers the port, when the flow is alive, was
/// decided under the tables in force, and nothing stands in the way. Changes nothing otherwise:
/// [`forward`] then finds out what to do.
///
/// It says what [`forward`] says, without results that are built in memory and read back at once:
/// eight such copies cost more than the rest of the fast path.
#[inline(always)]
pub(crate) fn straight<K: TableKey<W>, B: Buffer, const W: usize>(
    tables: &Tables,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    found: Found,
) -> Option<PortId> {
    let view = view::<K, W>(flows, found)?;
    let route = view.route();
    let is_current = route.generation == tables.generation && !view.life().expired(now);
    let is_special =
        matches!(packet.kind, PacketKind::FirstFragment { .. }) || is_first_syn(packet.tcp_flags);
    if !is_current || is_special {
        return None;
    }
    let back = tables.forwarding.next_hop(route.hop_of(found.direction.reversed()))?;
    let hop = tables.forwarding.next_hop(route.hop_of(found.direction))?;
    let destination_mac = hop.destination?;
    let to_host = tables.port(hop.port)?.kind == PortKind::Host;
    let may_leave = (to_host || packet.ttl > 1) && packet.ip_len <= usize::from(hop.mtu);
    if back.port != received.port || !may_leave {
        return None;
    }
    let change = Rewrite {
        tuple: view.tuple(found.direction.reversed()).generic().reversed(),
        source_mac: hop.source,
        destination_mac,
        decrement_ttl: !to_host,
    };
    rewrite::apply(&change, packet, received.buffer.bytes_mut()).ok()?;
    view.advance(found.direction, Seen::of(packet.tcp_flags), now, &tables.timeouts);
    Some(hop.port)
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
    if !view.life().admits(found.direction, packet.tcp_flags) {
        return Err(DropReason::InvalidState.into());
    }
    let target = view.tuple(found.direction.reversed()).generic().reversed();
    let hop = match way(context, now, received.port, &view, found.direction)? {
        Way::Hop(hop) => hop,
        Way::Hold(request) => return Ok(context.hold(request)),
    };
    let Some(destination) = hop.destination else {
        return Ok(context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour }));
    };
    let decrement_ttl = may_leave(&context.tables, packet, &hop)?;
    view.advance(found.direction, Seen::of(packet.tcp_flags), now, &context.tables.timeouts);
    let change = Rewrite {
        tuple: target,
        source_mac: hop.source,
        destination_mac: destination,
        decrement_ttl,
    };
    rewrite::apply(&change, packet, received.buffer.bytes_mut())?;
    Ok(Action::Transmit(hop.port))
}

/// Where a packet of a known flow goes.
pub(crate) enum Way {
    /// There.
    Hop(NextHop),
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
    let mut route = view.route();
    if route.generation != context.tables.generation {
        route = rejudge(context, now, ingress, view)?;
    }
    check_ingress(&context.tables, ingress, route.hop_of(direction.reversed()))?;
    let id = route.hop_of(direction);
    if id == FlowRoute::UNRESOLVED {
        return resolve_late(&context.tables, view, direction, route);
    }
    Ok(Way::Hop(*context.tables.forwarding.next_hop(id).ok_or(DropReason::PortGone)?))
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

/// TTL and MTU; answers whether this node is a hop that counts. Handing a packet to the node's own
/// stack is not forwarding.
#[inline(always)]
pub(crate) fn may_leave(tables: &Tables, packet: &Packet, hop: &NextHop) -> Result<bool, Stop> {
    let to_host = tables.port(hop.port).is_some_and(|port| port.kind == PortKind::Host);
    if !to_host && packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    if packet.ip_len > usize::from(hop.mtu) {
        return Err(Stop { reason: DropReason::TooBig, mtu: hop.mtu, reported: false });
    }
    Ok(!to_host)
}

/// The tables changed since the flow's decision: decide again. What is denied now is asked at each
/// packet, until tables allow it again or its time is over.
#[cold]
fn rejudge<K: crate::flow::FlowFamily>(
    context: &mut Context,
    now: Nanos,
    ingress: PortId,
    view: &FlowView<'_, K>,
) -> Result<FlowRoute, Stop> {
    context.counters.flows_rejudged.add(1);
    let original = view.tuple(FlowDirection::Original).generic();
    let reply = view.tuple(FlowDirection::Reply).generic();
    let backend = (reply.source(), reply.source_port());
    match decision::rejudge(&context.tables, &original, backend) {
        Ok(ways) => {
            let route = FlowRoute {
                generation: context.tables.generation,
                hop: ways.hop,
                reverse_hop: ways.reverse_hop.unwrap_or(FlowRoute::UNRESOLVED),
            };
            view.set_origin(Origin { rule: ways.rule, ..view.origin() });
            view.set_route(route);
            Ok(route)
        }
        Err(reason) => {
            let by_policy = matches!(reason, DropReason::PolicyIngress | DropReason::PolicyEgress);
            if by_policy && !view.life().is_denied() {
                view.deny();
                let mut event = FlowEvent::new(now, EventKind::Closed, ingress);
                event.key = Some(original);
                event.service = view.origin().service;
                context.reporter.event(event, &context.counters);
            }
            Err(reason.into())
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
