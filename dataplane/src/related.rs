//! Packets that belong to a flow without carrying its tuple: later fragments and ICMP errors.

use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::conntrack::FlowDirection;
use crate::conntrack::details::Details;
use crate::context::{Context, Stop};
use crate::decision::check_source;
use crate::direct::{dispatch, stateless};
use crate::event::NeighbourRequest;
use crate::flow::FlowView;
use crate::flow_key::{FlowKey, FlowKey6};
use crate::flows::{Flows, Found, TableKey, WorkerFlows};
use crate::fragment::{FragmentKey, Transport};
use crate::handoff::HandoffCause;
use crate::known::{self, Way};
use crate::nat::{Mapping, endpoint};
use crate::nat64;
use crate::packet::{Packet, PacketKind, quoted};
use crate::path_mtu::TooBig;
use crate::pipeline::Action;
use crate::port::PortKind;
use crate::rewrite::{self, Rewrite};
use crate::time::Nanos;
use crate::worker::Received;

/// For a first fragment: the worker where all fragments of its packet meet, when that is another
/// one. `None` for everything else.
///
/// # Errors
/// [`DropReason::FragmentOverlap`], before the fragment changes anything.
pub(crate) fn fragment_owner(
    context: &Context,
    now: Nanos,
    packet: &Packet,
) -> Result<Option<usize>, DropReason> {
    let PacketKind::FirstFragment { identification } = packet.kind else { return Ok(None) };
    let tuple = packet.flow_key();
    let key = fragment_key(&tuple, identification);
    let owner = meeting_place(context, &key);
    if owner != context.worker {
        return Ok(Some(owner));
    }
    context.fragments.check_first(&key, transport_of(&tuple), now).map(|()| None)
}

/// Remembers the transport of a first fragment that goes on. Those that are refused take no room.
pub(crate) fn remember_fragment(context: &mut Context, now: Nanos, packet: &Packet) {
    if let PacketKind::FirstFragment { identification } = packet.kind {
        let key = packet.flow_key();
        context.fragments.remember(fragment_key(&key, identification), transport_of(&key), now);
    }
}

fn transport_of(key: &FlowKey) -> Transport {
    Transport { protocol: key.protocol(), l4_ports: (key.source_port(), key.destination_port()) }
}

fn fragment_key(key: &FlowKey, identification: u32) -> FragmentKey {
    FragmentKey {
        source: key.source(),
        destination: key.destination(),
        protocol: if key.source().is_ipv4() { key.protocol() } else { Protocol(0) },
        identification,
    }
}

fn meeting_place(context: &Context, key: &FragmentKey) -> usize {
    // A first fragment is not handed on from where its later ones look for it, and only its
    // source's home can map it.
    if context.tables.source_nat.mapping == Mapping::EndpointIndependent {
        return endpoint::home_of(context, key.source);
    }
    let (source, destination) = (low_bits(key.source), low_bits(key.destination));
    let hash = context.hasher.hash(&[source ^ u64::from(key.identification), destination]);
    context.owner_of(hash)
}

fn low_bits(address: std::net::IpAddr) -> u64 {
    match address {
        std::net::IpAddr::V4(v4) => u64::from(v4.to_bits()),
        std::net::IpAddr::V6(v6) => {
            let [.., a, b, c, d, e, f, g, h] = v6.octets();
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        }
    }
}

/// The packet that a later fragment is of.
pub(crate) fn fragment_of(packet: &Packet) -> Option<FragmentKey> {
    let PacketKind::LaterFragment { identification } = packet.kind else { return None };
    Some(fragment_key(&packet.flow_key(), identification))
}

/// A fragment without L4 header follows its first.
#[cold]
pub(crate) fn later_fragment<B: Buffer>(
    context: &mut Context,
    flows: &WorkerFlows,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
) -> Result<Action, Stop> {
    let fragment = fragment_of(packet).ok_or(DropReason::Malformed)?;
    let addresses = packet.flow_key();
    let owner = meeting_place(context, &fragment);
    if owner != context.worker {
        return Ok(context.hand_to(owner, HandoffCause::Fragment));
    }
    let Ok(transport) = context.fragments.transport(&fragment, now) else {
        // Nobody waits at another's expense.
        let port = context.tables.port(received.port).ok_or(DropReason::UnknownPort)?;
        check_source(&context.tables, port, addresses.source())?;
        return Ok(Action::AwaitFirst);
    };
    let (source, destination) = transport.l4_ports;
    let whole = addresses.with_protocol(transport.protocol).with_l4_ports(source, destination);
    let outcome = match whole {
        FlowKey::V4(key) => match follow(context, &flows.v4, now, received, packet, key) {
            Err(Stop { reason: DropReason::FragmentUnknown, .. }) if context.may_change_family => {
                let key = FlowKey6::mapped(&key);
                follow(context, &flows.v6, now, received, packet, key)
            }
            outcome => outcome,
        },
        FlowKey::V6(key) => follow(context, &flows.v6, now, received, packet, key),
    };
    match outcome {
        Err(Stop { reason: DropReason::FragmentUnknown, .. }) => {
            match stateless::pass(context, received, packet, &whole, None)? {
                Some(action) => Ok(action),
                None => foreign(context, received, packet, DropReason::FragmentUnknown),
            }
        }
        outcome => outcome,
    }
}

fn follow<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    key: K,
) -> Result<Action, Stop> {
    let hit = flows.table.lookup(key.hash(&context.hasher), &key);
    let hit = hit.ok_or(DropReason::FragmentUnknown)?;
    let found = Found { handle: hit.handle, direction: hit.matched };
    if !known::serves::<K, W>(flows, found, now, packet) {
        return Err(DropReason::FragmentUnknown.into());
    }
    known::forward::<K, B, W>(context, flows, now, received, packet, found)
}

/// An ICMP error goes to whoever sent the packet it quotes, and is translated inside as well
/// (RFC 5508, REQ-4).
#[cold]
pub(crate) fn icmp_error<B: Buffer>(
    context: &mut Context,
    flows: &WorkerFlows,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
) -> Result<Action, Stop> {
    let port = context.tables.port(received.port).ok_or(DropReason::UnknownPort)?;
    check_source(&context.tables, port, packet.flow_key().source())?;
    let toward = quoted(packet, received.buffer.bytes()).map(|quote| quote.key.reversed());
    let outcome = toward.map_err(Stop::from).and_then(|toward| match toward {
        FlowKey::V4(toward) => match relate(context, &flows.v4, now, received, packet, toward) {
            Err(Stop { reason: DropReason::IcmpUnrelated, .. }) if context.may_change_family => {
                let toward = FlowKey6::mapped(&toward);
                relate(context, &flows.v6, now, received, packet, toward)
            }
            outcome => outcome,
        },
        FlowKey::V6(toward) => relate(context, &flows.v6, now, received, packet, toward),
    });
    match (outcome, toward) {
        (Err(Stop { reason: DropReason::IcmpUnrelated, .. }), toward) => {
            // RFC 5508, REQ-4, as below.
            let to = packet.flow_key().destination();
            if let Some(toward) = toward.ok().filter(|toward| toward.destination() == to)
                && let Some(action) = stateless::pass(context, received, packet, &toward, None)?
            {
                return Ok(action);
            }
            foreign(context, received, packet, DropReason::IcmpUnrelated)
        }
        (outcome, _) => outcome,
    }
}

/// `toward` is the quoted tuple turned round: the one that packets toward the quoted packet's
/// sender carry as they arrive here.
fn relate<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    toward: K,
) -> Result<Action, Stop> {
    let hit = flows.table.lookup(toward.hash(&context.hasher), &toward);
    let hit = hit.ok_or(DropReason::IcmpUnrelated)?;
    let direction = hit.matched;
    let view = FlowView::<K>::new(hit.entry.words());
    let is_mapping = endpoint::is_mapping(&view.tuple(FlowDirection::Original).generic());
    if is_mapping || view.life().expired(now) {
        return Err(DropReason::IcmpUnrelated.into());
    }
    // RFC 5508, REQ-4: what is sent to anybody but the quoted packet's sender is not about it.
    if packet.flow_key().destination() != toward.generic().destination() {
        return Err(DropReason::IcmpUnrelated.into());
    }
    let too_big = TooBig::read(packet, received.buffer.bytes());
    let found = Found { handle: hit.handle, direction: direction.reversed() };
    // A router on the way may report, not only the flow's other end: by any port, unless a pod's
    // is the far end. Between local pods is no router, and a pod is none.
    let hop = match known::way(context, now, received.port, &view, direction)? {
        Way::Hop(hop) => hop,
        Way::Hold(request) => return Ok(context.hold(request)),
        Way::BetweenFamilies(hop) => {
            let sent = view.tuple(direction.reversed()).generic().canonical();
            // The link that the quoted packet left by, or was to leave by.
            let left_by = view.route().hop_of(direction.reversed());
            let left_by = context.tables.forwarding.next_hop(left_by).map(|hop| hop.mtu);
            let ways = nat64::ErrorWays { back: &hop, left_by };
            let action = nat64::forward_error(context, received, packet, &sent, &ways)?;
            note_path::<K, W>(context, flows, found, too_big);
            return Ok(action);
        }
        Way::Dispatched(hop) => {
            let at = (Found { direction, ..found }, &hop);
            return dispatch::dispatch::<K, B, W>(context, flows, now, received, packet, at);
        }
    };
    let Some(destination) = hop.destination else {
        return Ok(context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour }));
    };
    known::may_leave(packet, &hop, false)?;
    // As the quoted packet was when its sender sent it.
    let sent = view.tuple(direction.reversed()).generic();
    let change = Rewrite {
        tuple: sent.reversed(),
        source_mac: hop.source,
        destination_mac: destination,
        decrement_ttl: !hop.to_host,
    };
    rewrite::apply_to_error(&change, &sent, packet, received.buffer.bytes_mut())?;
    note_path::<K, W>(context, flows, found, too_big);
    context.note_hit(&flows.table, hit.handle);
    Ok(Action::Transmit(hop.port))
}

/// Makes the segments of a connection fit what a router says that its path takes, unless what the router
/// quotes is known not to be under way. `found` is the flow in the direction of the quoted packet.
fn note_path<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    found: Found,
    too_big: Option<TooBig>,
) {
    let (Some(too_big), Some(view)) = (too_big, known::view::<K, W>(flows, found)) else { return };
    let details = flows.table.details(found.handle).map(Details::new);
    let may_be_under_way = |details: Details<'_>| {
        details.may_be_under_way(context.run, found.direction, too_big.sequence)
    };
    if details.is_none_or(may_be_under_way) {
        view.note_path_limit(too_big.limit);
    }
}

/// What nobody here knows, addressed to the node itself, was redirected only because the XDP
/// program cannot tell: the host gets it unchanged.
fn foreign<B: Buffer>(
    context: &Context,
    received: &mut Received<B>,
    packet: &Packet,
    reason: DropReason,
) -> Result<Action, Stop> {
    let forwarding = &context.tables.forwarding;
    let to_node = forwarding.node_addresses.contains(&packet.flow_key().destination());
    let from_uplink =
        context.tables.port(received.port).is_some_and(|port| port.kind == PortKind::Uplink);
    match forwarding.host {
        Some(host) if to_node && from_uplink => context.to_host(received.buffer.bytes_mut(), host),
        _ => Err(reason.into()),
    }
}
