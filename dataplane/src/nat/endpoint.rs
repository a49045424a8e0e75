//! Endpoint-independent mapping (RFC 4787, REQ-1): an end point of a pod has one port toward all
//! destinations of a protocol.
//!
//! A mapping is an entry of the flow table, so that every worker can read it and it lives as long
//! as flows do. It has two tuples like a flow, of which the far end is nobody: the unspecified
//! address, and in place of a port the mapped protocol and what stands for the address that is
//! mapped to, since rules may give an end point several. No packet carries such an address as far
//! as the flow table, so none is ever taken for a part of a mapping. It stands while flows use it,
//! which are counted in the place of a rule, and is never evicted.
//!
//! All flows of one pod to the outside are opened by one worker, its home, which alone makes,
//! counts and removes their mappings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_table::{Hasher, InsertError, Table};

use super::{Mapping, binding};
use crate::DropReason;
use crate::address::Protocol;
use crate::charge::Charge;
use crate::conntrack::{FlowDirection, Life, Seen};
use crate::context::Context;
use crate::flow::{FlowRoute, FlowView, Origin};
use crate::flow_key::FlowKey;
use crate::flows::{Flows, NewFlow, TableKey, hashes_of};
use crate::identity::PodTag;
use crate::policy::RuleId;
use crate::port::{PortId, PortKind};
use crate::tables::Tables;
use crate::time::Nanos;

/// Whether a flow that `key` opens by `ingress` is translated by its end point alone.
pub(crate) fn is_mapped(tables: &Tables, ingress: PortId, key: &FlowKey) -> bool {
    let (nat, services) = (&tables.source_nat, &tables.services);
    let destination = key.destination();
    let is_services = || {
        services.frontend(key).is_some()
            || services.addresses.contains(&destination)
                && !services.external.contains(&destination)
    };
    nat.mapping == Mapping::EndpointIndependent
        && matches!(
            key.protocol(),
            Protocol::TCP | Protocol::UDP | Protocol::ICMP | Protocol::ICMPV6
        )
        && tables.port(ingress).is_some_and(|port| port.kind == PortKind::Pod)
        && (nat.is_translated_to(key)
            || nat.of_pod(key.source(), destination).is_some()
                && !is_services()
                && !tables.forwarding.endpoints.contains_key(&destination)
                && !tables.forwarding.node_addresses.contains(&destination))
}

/// The worker that opens `source`'s flows to the outside, and where fragments from there meet.
pub(crate) fn home_of(context: &Context, source: IpAddr) -> usize {
    context.owner_of(context.hasher.hash(&words(source)))
}

/// Binds a flow that goes on as `translated` to its end point's port of `address`: the reply tuple.
///
/// # Errors
/// As [`binding::bind`], and [`DropReason::TableFull`].
pub(crate) fn bind<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    translated: &FlowKey,
    address: IpAddr,
) -> Result<K, DropReason> {
    let inside = inside(&context.hasher, translated, address).ok_or(DropReason::NoNatAddress)?;
    let l4_port = match use_again::<K, W>(context, flows, now, &inside, address) {
        Some(l4_port) => l4_port,
        None => map::<K, W>(context, flows, now, translated, inside, address)?,
    };
    K::from_generic(&translated.with_source(address, l4_port).reversed())
        .ok_or(DropReason::NoNatAddress)
}

/// The port of a mapping that stands, which has one more user now.
fn use_again<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    inside: &FlowKey,
    address: IpAddr,
) -> Option<u16> {
    let key = K::from_generic(inside)?;
    let hit = flows.table.lookup(key.hash(&context.hasher), &key)?;
    let view = FlowView::<K>::new(hit.entry.words());
    let outside = view.tuple(FlowDirection::Reply).generic();
    // One that lost its last user may not have been swept yet; one of an address that this node
    // has no more leads nowhere.
    if outside.destination() == address && !view.life().expired(now) {
        view.change_rule(|users| users.saturating_add(1));
        return Some(outside.destination_port());
    }
    if binding::remove::<K, W>(context, flows, hit.handle) {
        context.counters.flows_expired.add(1);
    }
    None
}

/// A new mapping's port.
fn map<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    translated: &FlowKey,
    inside: FlowKey,
    address: IpAddr,
) -> Result<u16, DropReason> {
    let is_udp = translated.protocol() == Protocol::UDP;
    let reply = binding::bind::<K, W>(context, flows, now, &inside, address, is_udp)?;
    let mapping = NewFlow {
        original: K::from_generic(&inside).ok_or(DropReason::NoNatAddress)?,
        reply,
        life: standing(),
        route: FlowRoute {
            generation: context.tables.generation,
            hop: FlowRoute::UNRESOLVED,
            reverse_hop: FlowRoute::UNRESOLVED,
        },
        origin: Origin { service: None, rule: RuleId(1) },
        charge: Charge::NOBODY,
        pod: PodTag::Unknown,
    };
    let hashes = hashes_of(&context.hasher, &mapping.original, &mapping.reply);
    match flows.insert(&mapping, hashes) {
        Ok(_) => {
            context.nat.has_mappings = true;
            context.counters.flows_created.add(1);
            Ok(reply.generic().destination_port())
        }
        Err(InsertError::AliasExists(_) | InsertError::Exists(_)) => Err(DropReason::NatClash),
        Err(_) => Err(DropReason::TableFull),
    }
}

/// A flow from `original`'s source, translated to `outgoing`'s, no longer uses its mapping, if it
/// had one.
pub(super) fn let_go<K: TableKey<W>, const W: usize>(
    table: &Table<W>,
    hasher: &Hasher,
    original: &FlowKey,
    outgoing: &FlowKey,
) {
    let inside = inside(hasher, original, outgoing.source());
    let Some(key) = inside.and_then(|inside| K::from_generic(&inside)) else { return };
    let Some(hit) = table.lookup(key.hash(hasher), &key) else { return };
    let view = FlowView::<K>::new(hit.entry.words());
    let outside = view.tuple(FlowDirection::Reply).generic();
    let own = (outside.destination(), outside.destination_port());
    if own != (outgoing.source(), outgoing.source_port()) {
        return;
    }
    if view.change_rule(|users| users.saturating_sub(1)) == 0 {
        view.end();
    }
}

/// A pod's end point that is mapped to what `key` is addressed to (RFC 4787, REQ-9).
pub(crate) fn behind<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    now: Nanos,
    key: &FlowKey,
) -> Option<(IpAddr, u16)> {
    if !context.tables.source_nat.is_translated_to(key) {
        return None;
    }
    let nobody = nobody(&context.hasher, key.protocol(), key.destination());
    let outside = (key.destination(), key.destination_port());
    let outside = K::from_generic(&FlowKey::new(Protocol::TCP, nobody, outside)?)?;
    let hit = flows.table.lookup(outside.hash(&context.hasher), &outside)?;
    let view = FlowView::<K>::new(hit.entry.words());
    let inside = view.tuple(FlowDirection::Original).generic();
    let stands = hit.matched == FlowDirection::Reply && !view.life().expired(now);
    stands.then(|| (inside.source(), inside.source_port()))
}

/// Whether an entry with this original tuple is a mapping, and no flow.
pub(crate) fn is_mapping(original: &FlowKey) -> bool {
    original.destination().is_unspecified()
}

/// The tuple that stands for the end point `key` comes from, and its being mapped to `address`.
pub(crate) fn inside(hasher: &Hasher, key: &FlowKey, address: IpAddr) -> Option<FlowKey> {
    let source = (key.source(), key.source_port());
    // TCP's keys have ports; a mapping's life is that of an established connection, which nothing
    // evicts.
    FlowKey::new(Protocol::TCP, source, nobody(hasher, key.protocol(), address))
}

/// Protocols that are mapped are below 2^6; above them are ten bits of the address's hash. Of an end
/// point with two addresses that agree in these, one in a thousand, the mapping used last stands:
/// its flows go on, and new ones get new ports.
const PROTOCOL_BITS: u32 = 6;
const _: () =
    assert!(Protocol::ICMPV6.0 < 1 << PROTOCOL_BITS && Protocol::UDP.0 < 1 << PROTOCOL_BITS);

/// The far end of mappings of `protocol` to `address`.
fn nobody(hasher: &Hasher, protocol: Protocol, address: IpAddr) -> (IpAddr, u16) {
    let unspecified = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let [high, low, ..] = hasher.hash(&words(address)).to_be_bytes();
    let of_address = u16::from_be_bytes([high, low]) << PROTOCOL_BITS;
    (unspecified, of_address | u16::from(protocol.0))
}

/// The tuples of a mapping that has the protocol alone for its far end, as those of one that has the address
/// as well; `None` for what is no mapping.
pub(crate) fn with_address_named(
    hasher: &Hasher,
    original: &FlowKey,
    reply: &FlowKey,
) -> Option<(FlowKey, FlowKey)> {
    if !is_mapping(original) {
        return None;
    }
    let protocol = Protocol(u8::try_from(original.destination_port()).ok()?);
    let far_end = nobody(hasher, protocol, reply.destination());
    let inside = (original.source(), original.source_port());
    let outside = (reply.destination(), reply.destination_port());
    let original = FlowKey::new(Protocol::TCP, inside, far_end)?;
    Some((original, FlowKey::new(Protocol::TCP, far_end, outside)?))
}

fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [u64::from(v4.to_bits()), 0],
        IpAddr::V6(v6) => {
            let (high, low) = crate::flow_key::halves(v6.to_bits());
            [high, low]
        }
    }
}

/// An established connection's that never times out.
fn standing() -> Life {
    let seen = Seen::of(Seen::SYN | Seen::ACK).0;
    let [a, b, c, d] = u32::MAX.to_be_bytes();
    Life(u64::from_be_bytes([a, b, c, d, seen, seen, Protocol::TCP.0, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::FlowState;
    use crate::eviction::Pressure;
    use crate::tables::Timeouts;

    #[test]
    fn mapping_stands_under_any_pressure_and_for_any_time() {
        let life = standing();
        assert_eq!(life.state(), FlowState::Established);
        let late = Nanos(u64::from(u32::MAX - 1) * 1_000_000_000);
        assert!(!life.expired(late));
        assert!(!Pressure::Full.evicts(life, late, &Timeouts::default()));
    }
}
