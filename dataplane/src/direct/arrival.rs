//! The node with the backend: what another node has chosen a backend for becomes again what the client
//! sent, if it may.
//!
//! A packet in another must come from a node's address. One with an option bears its client's address, so
//! that nobody can tell by it who put the option there; therefore, and for the other forms as well, what
//! it says must be true by this node's own tables: the frontend is one of a service with direct return,
//! the backend is one of that service's, and the service admits the client. What is left to a stranger is to
//! choose among the backends of a service that he may reach anyway.

use std::net::IpAddr;

use super::tunnel::{self, Inner};
use super::{Direct, Directed, Dispatch, option};
use crate::DropReason;
use crate::address::Protocol;
use crate::buffer::Buffer;
use crate::choice;
use crate::conntrack::FlowDirection;
use crate::context::Context;
use crate::decision::check_source;
use crate::flow_key::FlowKey;
use crate::flows::{Flows, Found, TableKey, WorkerFlows};
use crate::forwarding::Resolved;
use crate::handoff::HandoffCause;
use crate::known;
use crate::lb::{Frontend, FrontendKind, Service, ServiceId};
use crate::packet::{Packet, PacketKind};
use crate::port::PortKind;
use crate::related;
use crate::rewrite::{self, Rewrite};
use crate::tables::Tables;
use crate::time::Nanos;
use crate::worker::Received;

/// A packet from the node with the frontend.
pub(crate) enum Arrival {
    /// Another worker's: it goes there as it came, since that worker must know the backend too.
    Elsewhere(usize, HandoffCause),
    /// In its buffer is what the client sent.
    Here(Arrived),
}

/// What the client sent.
pub(crate) struct Arrived {
    pub(crate) packet: Packet,
    /// Its flow, if it has one that lives.
    pub(crate) found: Option<Found>,
    pub(crate) directed: Directed,
}

/// What the packet says, before anything is changed.
struct Told {
    /// What the client sent.
    packet: Packet,
    backend: IpAddr,
    l4_port: Option<u16>,
    wrapping: Option<Inner>,
}

/// Takes a packet in that another node has chosen the backend of; `None` where it is none.
///
/// # Errors
/// It is malformed, comes from nobody who may send it, or says what is not so.
#[cold]
pub(crate) fn arrive<B: Buffer>(
    context: &Context,
    flows: &WorkerFlows,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
) -> Result<Option<Arrival>, DropReason> {
    let tables = &*context.tables;
    let Some(direct) = tables.direct.as_deref() else { return Ok(None) };
    let port = tables.port(received.port).ok_or(DropReason::UnknownPort)?;
    if port.kind != PortKind::Uplink {
        return Ok(None);
    }
    let told = match read(direct, packet, received) {
        // Between nodes there may be tunnels of others, which carry anything: these are the host's.
        Err(_) if direct.dispatch == Dispatch::Ipip && is_to_node(tables, packet) => {
            return Ok(None);
        }
        told => told?,
    };
    let Some(told) = told else { return Ok(None) };
    let is_at_node = tables.forwarding.node_addresses.contains(&told.backend);
    if !is_at_node && !tables.forwarding.endpoints.contains_key(&told.backend) {
        return match told.wrapping {
            // Addressed to somebody else.
            Some(_) if told.backend == packet.flow_key().destination() => Ok(None),
            _ => Err(DropReason::DirectFrontend),
        };
    }
    if let Some(inner) = &told.wrapping {
        check_source(tables, port, inner.wrapped_by)?;
        if !direct.nodes.contains(&inner.wrapped_by) {
            return Err(DropReason::DirectForeign);
        }
    }
    let mut directed = Directed { backend: None, service: None };
    let (mut found, mut worker, mut cause) = (None, context.worker, HandoffCause::Miss);
    if told.packet.kind.has_tuple() {
        (found, worker, cause) = locate_any(context, flows, now, &told);
        if found.is_none() {
            let (service, backend) = match claimed(tables, direct, &told) {
                // A tunnel of others between nodes goes on to the host, which it is for.
                Err(DropReason::DirectFrontend) if told.wrapping.is_some() && is_at_node => {
                    return Ok(None);
                }
                claimed => claimed?,
            };
            directed = Directed { backend: Some(backend), service: Some(service) };
        }
        if let Some(owner) = related::fragment_owner(context, now, &told.packet)? {
            (worker, cause) = (owner, HandoffCause::Fragment);
        } else if matches!(told.packet.kind, PacketKind::FirstFragment { .. }) {
            worker = context.worker;
        }
    } else if is_at_node && told.wrapping.is_some() {
        // Fragments and errors of others' tunnels, likewise.
        let to = told.packet.flow_key().destination();
        if !tables.services.addresses.contains(&to) && !direct.nodes.contains(&to) {
            return Ok(None);
        }
    }
    if worker != context.worker {
        return Ok(Some(Arrival::Elsewhere(worker, cause)));
    }
    restore(tables, packet, &told, received)?;
    context.counters.directed.add(1);
    Ok(Some(Arrival::Here(Arrived { packet: told.packet, found, directed })))
}

fn is_to_node(tables: &Tables, packet: &Packet) -> bool {
    tables.forwarding.node_addresses.contains(&packet.flow_key().destination())
}

fn read<B: Buffer>(
    direct: &Direct,
    packet: &Packet,
    received: &Received<B>,
) -> Result<Option<Told>, DropReason> {
    let (bytes, len) = (received.buffer.bytes(), received.buffer.len());
    let inner = match direct.dispatch {
        Dispatch::Ipip => tunnel::read_ipip(packet, bytes, len)?,
        Dispatch::Geneve => tunnel::read_geneve(packet, bytes, len)?,
        Dispatch::Option => {
            let Some(frontend) = option::read(packet, bytes) else { return Ok(None) };
            return read_option(packet, frontend).map(Some);
        }
    };
    Ok(inner.map(|inner| Told {
        packet: inner.packet,
        backend: inner.backend,
        l4_port: inner.l4_port,
        wrapping: Some(inner),
    }))
}

fn read_option(packet: &Packet, frontend: (IpAddr, u16)) -> Result<Told, DropReason> {
    let key = packet.flow_key();
    let (backend, l4_port) = (key.destination(), key.destination_port());
    let is_one = matches!(key.protocol(), Protocol::TCP | Protocol::UDP)
        || packet.kind == PacketKind::IcmpError;
    if !is_one || frontend.0.is_ipv4() != backend.is_ipv4() {
        return Err(DropReason::Malformed);
    }
    let has_ports = packet.kind.has_tuple();
    let before = match has_ports {
        true => key.with_destination(frontend.0, frontend.1),
        false => key.with_destination(frontend.0, 0),
    };
    let packet = packet.before_option(before, option::len(backend.is_ipv4()))?;
    Ok(Told { packet, backend, l4_port: has_ports.then_some(l4_port), wrapping: None })
}

/// The service and the backend that the packet is for, if that is so.
fn claimed(
    tables: &Tables,
    direct: &Direct,
    told: &Told,
) -> Result<(ServiceId, (IpAddr, u16)), DropReason> {
    let key = told.packet.flow_key();
    let (id, kind, service) = service_at(tables, direct, &key).ok_or(DropReason::DirectFrontend)?;
    if kind == FrontendKind::LoadBalancer && !choice::admitted(service, key.source()) {
        return Err(DropReason::SourceRange);
    }
    let backend = match told.l4_port {
        Some(l4_port) => Some((told.backend, l4_port)).filter(|at| service.serves_by(*at)),
        None => service.backend_at(told.backend, choice::hash_for(service, &key, 0)),
    };
    backend.map(|backend| (id, backend)).ok_or(DropReason::DirectFrontend)
}

/// The service that `key` addresses, by a frontend of this node or by another node's port.
fn service_at<'t>(
    tables: &'t Tables,
    direct: &Direct,
    key: &FlowKey,
) -> Option<(ServiceId, FrontendKind, &'t Service)> {
    let services = &tables.services;
    let at = Frontend {
        address: key.destination(),
        protocol: key.protocol(),
        l4_port: key.destination_port(),
    };
    let (id, kind) = match services.frontends.get(&at) {
        Some(known) => *known,
        // The same port of this node, on whichever of its addresses of that family serves it.
        None if direct.nodes.contains(&at.address) => {
            let own = tables.forwarding.node_addresses.keys();
            let alike = own.filter(|own| own.is_ipv4() == at.address.is_ipv4());
            let known = alike
                .filter_map(|address| services.frontends.get(&Frontend { address, ..at }).copied());
            known.into_iter().find(|(_, kind)| *kind == FrontendKind::NodePort)?
        }
        None => return None,
    };
    let service = services.get(id)?;
    (service.direct && kind.is_external()).then_some((id, kind, &**service))
}

fn locate_any(
    context: &Context,
    flows: &WorkerFlows,
    now: Nanos,
    told: &Told,
) -> (Option<Found>, usize, HandoffCause) {
    match told.packet.flow_key() {
        FlowKey::V4(key) => locate(context, &flows.v4, now, told, key),
        FlowKey::V6(key) => locate(context, &flows.v6, now, told, key),
    }
}

/// The flow of a packet if it lives, and the worker that is to go on with it.
fn locate<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    now: Nanos,
    told: &Told,
    key: K,
) -> (Option<Found>, usize, HandoffCause) {
    let hash = key.hash(&context.hasher);
    let Some(hit) = flows.table.lookup(hash, &key) else {
        return (None, context.owner_of(hash), HandoffCause::Miss);
    };
    let found = Found { handle: hit.handle, direction: hit.matched };
    if let Some(view) = known::view::<K, W>(flows, found)
        && known::serves::<K, W>(flows, found, now, &told.packet)
    {
        let reply = view.tuple(FlowDirection::Reply).generic();
        let is_elsewhere = reply.source() != told.backend
            || told.l4_port.is_some_and(|l4_port| l4_port != reply.source_port());
        // A connection stays where it is, whatever a node that lost it has chosen since. Without
        // connections the last choice counts.
        if !is_elsewhere || key.generic().protocol() != Protocol::UDP {
            return (Some(found), context.worker, HandoffCause::Miss);
        }
        view.end();
    }
    let holder = flows.table.holder(found.handle).filter(|holder| *holder < context.workers);
    (None, holder.unwrap_or(context.worker), HandoffCause::Holder)
}

/// Makes the buffer hold what the client sent. Its link addresses are as if it had come from the
/// client's side, so that what answers it goes there.
fn restore<B: Buffer>(
    tables: &Tables,
    packet: &Packet,
    told: &Told,
    received: &mut Received<B>,
) -> Result<(), DropReason> {
    let buffer = &mut received.buffer;
    match &told.wrapping {
        Some(inner) => tunnel::unwrap(inner, buffer)?,
        None => {
            let bytes = buffer.bytes_mut();
            let mac = |at| crate::wire::array_at(bytes, at).copied().map(crate::address::MacAddr);
            let (Some(destination_mac), Some(source_mac)) = (mac(0), mac(6)) else {
                return Err(DropReason::Truncated);
            };
            let tuple = told.packet.flow_key();
            let change = Rewrite { tuple, source_mac, destination_mac, decrement_ttl: false };
            match packet.kind {
                PacketKind::IcmpError => rewrite::apply_outside(&change, packet, bytes)?,
                _ => rewrite::apply(&change, packet, bytes)?,
            }
            option::remove(tuple.destination().is_ipv4(), buffer)?;
        }
    }
    let client = told.packet.flow_key().source();
    if let Ok(Resolved::NextHop(id)) = tables.forwarding.route(client)
        && let Some(mac) = tables.forwarding.next_hop(id).and_then(|hop| hop.destination)
        && let Some(field) = crate::wire::array_at_mut(buffer.bytes_mut(), 6)
    {
        *field = mac.0;
    }
    Ok(())
}
