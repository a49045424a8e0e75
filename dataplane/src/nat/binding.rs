//! Binding a flow to an L4 port of the translated source, and giving it back.

use std::net::IpAddr;

use flow_table::{Handle, Hasher, Table};

use super::endpoint;
use super::ports::{NatPorts, PortUse, Wanted};
use crate::DropReason;
use crate::address::Protocol;
use crate::affinity::is_affinity;
use crate::conntrack::{FlowDirection, FlowState, Life};
use crate::context::Context;
use crate::eviction::age_seconds;
use crate::flow::{FlowFamily, FlowView};
use crate::flow_key::FlowKey;
use crate::flows::{Flows, TableKey};
use crate::nat64;
use crate::tables::Timeouts;
use crate::time::Nanos;

/// Whole seconds after its last FIN or RST before a connection's port may go to another.
const GRACE_SECONDS: u32 = 2;

/// The reply tuple of a flow that goes on as `translated`, but from `address` and a port of it
/// under which no other flow's replies come. The flow that had the port, if any, was over, and is
/// removed. For protocols without ports, and SCTP, whose source ports are never rewritten, there is one reply
/// tuple, free or not.
///
/// # Errors
/// [`DropReason::NatPortsExhausted`], or [`DropReason::NoNatAddress`] when the tuple is not of this
/// table's family.
pub(crate) fn bind<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    translated: &FlowKey,
    address: IpAddr,
    keeps_parity: bool,
) -> Result<K, DropReason> {
    let reply_to = |l4_port: u16| -> Option<K> {
        K::from_generic(&translated.with_source(address, l4_port).reversed())
    };
    let any = reply_to(0).ok_or(DropReason::NoNatAddress)?;
    if !is_told_apart_by_port(translated.protocol()) {
        return reply_to(translated.source_port()).ok_or(DropReason::NoNatAddress);
    }
    let Context { hasher, nat, tables, flow_tables, may_change_family, .. } = context;
    let use_of = |reply: K| {
        // What came from the other side has no port of ours to give, nor has what lies in the other
        // table.
        match flows.table.lookup(reply.hash(hasher), &reply) {
            Some(hit) if hit.matched == FlowDirection::Reply => {
                let life = FlowView::<K>::new(hit.entry.words()).life();
                use_by(hit.handle, life, now, &tables.timeouts)
            }
            Some(_) => PortUse::Taken,
            None if *may_change_family && nat64::has(flow_tables, hasher, &reply, now) => {
                PortUse::Taken
            }
            None => PortUse::Free,
        }
    };
    let wanted = Wanted {
        destination: any.hash(hasher),
        seed: K::from_generic(translated).map_or(0, |key| key.hash(hasher)),
        own: translated.source_port(),
        keeps_parity,
    };
    let choice =
        nat.choose(&wanted, now, |l4_port| reply_to(l4_port).map_or(PortUse::Taken, use_of))?;
    if let Some(over) = choice.instead_of {
        if !remove::<K, W>(context, flows, over) {
            return Err(DropReason::NatPortsExhausted);
        }
        let counters = &context.counters;
        let ended = if choice.evicts { &counters.flows_evicted } else { &counters.flows_expired };
        ended.add(1);
        if choice.evicts {
            counters.evicted_closing.add(1);
        }
        context.nat.take(wanted.destination, choice.l4_port);
    }
    reply_to(choice.l4_port).ok_or(DropReason::NoNatAddress)
}

fn is_told_apart_by_port(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6)
}

/// Whether nobody went on after the last FIN or RST, for [`GRACE_SECONDS`] by now. A reset may be forged:
/// a connection on which somebody spoke after it may stand, and each side has that long to do so. So long
/// the last acknowledgement may be under way as well.
pub(crate) fn is_silent(life: Life, now: Nanos, timeouts: &Timeouts) -> bool {
    life.after_reset() == 0 && age_seconds(life, now, timeouts) >= GRACE_SECONDS
}

fn use_by(handle: Handle, life: Life, now: Nanos, timeouts: &Timeouts) -> PortUse {
    match life.state() {
        _ if life.expired(now) => PortUse::Expired(handle),
        FlowState::TimeWait | FlowState::Closed if is_silent(life, now, timeouts) => {
            PortUse::Closed(handle)
        }
        _ => PortUse::Taken,
    }
}

/// Removes a flow that is over, with all it holds; `false` when it is another worker's.
pub(crate) fn remove<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    handle: Handle,
) -> bool {
    let Some(entry) = flows.table.entry(handle) else { return false };
    let view = FlowView::<K>::new(entry.words());
    let (tuples, counted) = (tuples(&view), view.life().counted());
    let reply = view.tuple(FlowDirection::Reply);
    if !flows.remove::<K>(&context.hasher, handle) {
        return false;
    }
    if let Some(connections) = context.tables.connections.as_deref() {
        connections.give_back(context.worker, counted, &reply);
    }
    release::<K, W>(&mut context.nat, &flows.table, &context.hasher, tuples);
    true
}

/// The tuples of both directions.
pub(crate) fn tuples<K: FlowFamily>(flow: &FlowView<'_, K>) -> (FlowKey, FlowKey) {
    let of = |direction| flow.tuple(direction).generic();
    (of(FlowDirection::Original), of(FlowDirection::Reply))
}

/// Gives back what a flow of these tuples held, whose entry is going.
pub(crate) fn release<K: TableKey<W>, const W: usize>(
    nat: &mut NatPorts,
    table: &Table<W>,
    hasher: &Hasher,
    (original, reply): (FlowKey, FlowKey),
) {
    let own = (original.source(), original.source_port());
    if own == (reply.destination(), reply.destination_port()) || is_affinity(&original) {
        return;
    }
    let outgoing = reply.reversed();
    let any = outgoing.with_source(outgoing.source(), 0);
    if let Some(any) = K::from_generic(&any.reversed()) {
        nat.release(any.hash(hasher), outgoing.source_port());
    }
    if nat.has_mappings && !endpoint::is_mapping(&original) {
        endpoint::let_go::<K, W>(table, hasher, &original, &outgoing);
    }
}
