//! The node with the frontend: whose packets go on directly, and how.

use std::net::IpAddr;

use super::tunnel::{self, Outer};
use super::{Direct, Dispatch, option};
use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::choice::Look;
use crate::conntrack::{FlowDirection, Seen};
use crate::context::{Context, Stop};
use crate::event::NeighbourRequest;
use crate::flow_key::FlowKey;
use crate::flows::{Flows, Found, TableKey};
use crate::forwarding::{NextHop, Resolved};
use crate::known;
use crate::lb::Backend;
use crate::mss;
use crate::packet::Packet;
use crate::pipeline::Action;
use crate::port::{Port, PortKind};
use crate::rewrite::{self, Rewrite};
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::Received;

/// The least MTU of an IPv6 link (RFC 8200, 5), in bytes: nobody believes less (RFC 8201, 4).
const IPV6_MTU_LEAST: u16 = 1280;

/// Whether a new flow from `ingress` to `backend`, which is behind `egress`, goes there directly. All
/// others take the way of services without it.
///
/// Not what the backend's node would not believe: it knows a node port by its node's address alone, and
/// takes wrapped packets from a node's address, as Node objects have them, which need not be all.
///
/// Not those of the cluster's own clients: a pod's own node serves them, and a packet with the address of
/// a node or pod would come to the backend's node from outside.
#[must_use]
pub(crate) fn may_dispatch(
    tables: &Tables,
    (ingress, egress): (&Port, &Port),
    key: &FlowKey,
    look: &Look<'_>,
    backend: &Backend,
) -> bool {
    let Some(direct) = &tables.direct else { return false };
    let between_uplinks = ingress.kind == PortKind::Uplink && egress.kind == PortKind::Uplink;
    look.is_direct()
        && between_uplinks
        && matches!(key.protocol(), Protocol::TCP | Protocol::UDP)
        && key.source().is_ipv4() == backend.address.is_ipv4()
        && tables.source_nat.cluster.lookup(key.source()).is_none()
        && (!look.is_node_port() || direct.nodes.contains(&key.destination()))
        && is_reachable(direct, backend.address)
}

/// Whether the form has all that it needs toward `backend`.
fn is_reachable(direct: &Direct, backend: IpAddr) -> bool {
    match direct.dispatch {
        Dispatch::Option => true,
        Dispatch::Ipip => is_known(direct, backend),
        Dispatch::Geneve => is_known(direct, backend) && node_of(direct, backend).is_some(),
    }
}

/// Whether what this node wraps a packet to `like` in bears an address that others know it by.
fn is_known(direct: &Direct, like: IpAddr) -> bool {
    direct.own(like).is_some_and(|own| direct.nodes.contains(&own))
}

fn node_of(direct: &Direct, backend: IpAddr) -> Option<IpAddr> {
    let node = direct.node_of.lookup(backend).copied();
    node.filter(|node| node.is_ipv4() == backend.is_ipv4())
}

/// How one packet goes on.
struct Plan {
    backend: (IpAddr, u16),
    outer: Option<Outer>,
    overhead: u16,
    hop: NextHop,
}

/// Sends a packet of a dispatched flow, or an ICMP error about its replies, to the backend's node.
///
/// # Errors
/// The packet is too long with what is added, or there is no way any more.
#[cold]
pub(crate) fn dispatch<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    (found, hop): (Found, &NextHop),
) -> Result<Action, Stop> {
    let view = known::view::<K, W>(flows, found).ok_or(DropReason::NoFlow)?;
    let reply = view.tuple(FlowDirection::Reply).generic();
    let backend = (reply.source(), reply.source_port());
    let Some(plan) = plan(context, packet, backend, hop)? else {
        // The form is another than when the flow began, or none: its client's next packet begins anew.
        view.end();
        return Err(DropReason::NoFlow.into());
    };
    let Some(destination) = plan.hop.destination else { return Ok(hold(context, &plan.hop)) };
    may_leave(packet, &plan)?;
    if packet.kind != crate::packet::PacketKind::IcmpError {
        known::note::<K, B, W>(context, flows, now, received, packet, found)?;
    }
    send(packet, &plan, destination, received)?;
    context.counters.dispatched.add(1);
    context.note_hit(&flows.table, found.handle);
    Ok(Action::Transmit(plan.hop.port))
}

/// The same for a packet that no flow is kept of ([`super::stateless`]).
///
/// # Errors
/// As [`dispatch`].
pub(crate) fn without_flow<B: Buffer>(
    context: &mut Context,
    received: &mut Received<B>,
    packet: &Packet,
    backend: (IpAddr, u16),
    hop: &NextHop,
) -> Result<Action, Stop> {
    // It was asked whether the form has what it needs, by the same tables ([`may_dispatch`]).
    let plan = plan(context, packet, backend, hop)?.ok_or(DropReason::NoFlow)?;
    let Some(destination) = plan.hop.destination else { return Ok(hold(context, &plan.hop)) };
    may_leave(packet, &plan)?;
    send(packet, &plan, destination, received)?;
    context.counters.dispatched.add(1);
    context.counters.dispatched_without_flow.add(1);
    Ok(Action::Transmit(plan.hop.port))
}

fn hold(context: &mut Context, hop: &NextHop) -> Action {
    context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour })
}

/// How a packet gets to `backend`, whose next hop is `hop`; `None` where the form lacks something.
fn plan(
    context: &mut Context,
    packet: &Packet,
    backend: (IpAddr, u16),
    hop: &NextHop,
) -> Result<Option<Plan>, Stop> {
    let Context { tables, identification, .. } = context;
    let Some(direct) = tables.direct.as_deref() else { return Ok(None) };
    let is_ipv4 = backend.0.is_ipv4();
    let overhead = direct.dispatch.overhead(is_ipv4);
    let mut plan = Plan { backend, outer: None, overhead, hop: *hop };
    match direct.dispatch {
        Dispatch::Option if option::has_room(packet) => return Ok(Some(plan)),
        Dispatch::Option => return Err(DropReason::NoRoom.into()),
        Dispatch::Ipip | Dispatch::Geneve => {}
    }
    let Some(source) = direct.own(backend.0) else { return Ok(None) };
    let mut destination = backend.0;
    if direct.dispatch == Dispatch::Geneve {
        let Some(node) = node_of(direct, backend.0) else { return Ok(None) };
        plan.hop = match tables.forwarding.resolve(node)? {
            Resolved::NextHop(id) => *tables.forwarding.next_hop(id).ok_or(DropReason::PortGone)?,
            Resolved::Unresolved(port, neighbour) => {
                NextHop { port, neighbour, destination: None, ..*hop }
            }
        };
        destination = node;
    }
    let [.., a, b] = packet.flow_key().stable_hash().to_be_bytes();
    plan.outer = Some(Outer {
        source,
        destination,
        backend: (direct.dispatch == Dispatch::Geneve).then_some(backend),
        identification: identification.another(),
        entropy: u16::from_be_bytes([a, b]) & 0x3fff,
    });
    Ok(Some(plan))
}

/// As [`known::may_leave`], for a packet that becomes longer. The sender is told what its own packets may
/// have.
fn may_leave(packet: &Packet, plan: &Plan) -> Result<(), Stop> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    if packet.ip_len + usize::from(plan.overhead) <= usize::from(plan.hop.mtu) {
        return Ok(());
    }
    let mtu = plan.hop.mtu.saturating_sub(plan.overhead);
    let mtu = match packet.flow_key() {
        FlowKey::V4(_) => mtu,
        FlowKey::V6(_) => mtu.max(IPV6_MTU_LEAST),
    };
    Err(Stop { reason: DropReason::TooBig, mtu, reported: false })
}

fn send<B: Buffer>(
    packet: &Packet,
    plan: &Plan,
    destination_mac: crate::address::MacAddr,
    received: &mut Received<B>,
) -> Result<(), DropReason> {
    let old = packet.flow_key();
    if packet.tcp_flags & Seen::SYN != 0 {
        let most = mss::fitting(packet, plan.hop.mtu, plan.overhead);
        mss::clamp(packet, received.buffer.bytes_mut(), most);
    }
    let (address, l4_port) = plan.backend;
    // Without a wrapping the packet itself is addressed to the backend. Fragments and ICMP errors have
    // no L4 ports.
    let tuple = match (plan.outer, old.destination_port()) {
        (Some(_), _) => old,
        (None, 0) => old.with_destination(address, 0),
        (None, _) => old.with_destination(address, l4_port),
    };
    let change =
        Rewrite { tuple, source_mac: plan.hop.source, destination_mac, decrement_ttl: true };
    if packet.kind == crate::packet::PacketKind::IcmpError {
        rewrite::apply_outside(&change, packet, received.buffer.bytes_mut())?;
    } else {
        rewrite::apply(&change, packet, received.buffer.bytes_mut())?;
    }
    match &plan.outer {
        Some(outer) => tunnel::wrap(outer, packet, &mut received.buffer),
        None => {
            let frontend = (old.destination(), old.destination_port());
            option::insert(packet, frontend, &mut received.buffer)
        }
    }
}
