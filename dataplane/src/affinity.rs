//! Session affinity (`sessionAffinity: ClientIP`): the connections of one client to a service go to one
//! backend.
//!
//! Without more, a backend is chosen by the hash of the client's address alone, so that it is the same
//! on every node while the service's backends are. Which one it was is remembered, so that it stays the
//! same when others come or go: in an entry of the flow table, as mappings of end points are
//! ([`crate::nat::endpoint`]), so that it outlives growth, resizing, restarts and take-overs as flows
//! do, and every worker can read it. Such an entry has two tuples, of a protocol that no packet has, of
//! which the near ends are the client and the backend. It ends when no connection was opened for the
//! time of the service, counts as a short-lived flow when room is made, and where none is left the
//! choice by the hash remains.
//!
//! All flows of one client to services with affinity are opened by one worker, its home, which alone
//! makes its entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow_table::Table;

use crate::address::Protocol;
use crate::charge::Charge;
use crate::choice;
use crate::conntrack::{FlowDirection, Life};
use crate::context::Context;
use crate::flow::{FlowRoute, FlowView, Origin};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6, halves, low_half, mix};
use crate::flows::{FlowTables, Flows, NewFlow, TableKey, hashes_of};
use crate::identity::PodTag;
use crate::lb::Affinity;
use crate::nat::binding;
use crate::policy::RuleId;
use crate::tables::Tables;
use crate::time::Nanos;

/// Reserved (IANA "Protocol Numbers"). A packet that has it anyhow has no L4 ports, and the tuples
/// here have.
const PROTOCOL: Protocol = Protocol(255);

/// The affinity of the service that `key` addresses, if it has any.
pub(crate) fn of(tables: &Tables, key: &FlowKey) -> Option<Affinity> {
    if !tables.services.have_affinity {
        return None;
    }
    choice::service_of(tables, key)?.affinity
}

/// The hash that a client's backend is chosen by, the same on every node.
pub(crate) fn hash_of(client: IpAddr) -> u64 {
    let (high, low) = match client {
        IpAddr::V4(v4) => (4, u64::from(v4.to_bits())),
        IpAddr::V6(v6) => halves(v6.to_bits()),
    };
    mix(mix(high) ^ low)
}

/// The backend that `client` has had lately.
pub(crate) fn remembered<K: TableKey<W>, const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    now: Nanos,
    affinity: Affinity,
    client: IpAddr,
) -> Option<(IpAddr, u16)> {
    let own = K::from_generic(&inside(affinity, client)?)?;
    let hit = flows.table.lookup(own.hash(&context.hasher), &own)?;
    let view = FlowView::<K>::new(hit.entry.words());
    (!view.life().expired(now)).then(|| backend_of(&view))
}

/// The backend that the client of `key` has had lately from the service that it addresses, for who is no
/// worker: the entry may be another's at any moment, so that it is compared again after it was read.
#[must_use]
pub fn remembered_in(
    flows: &FlowTables,
    tables: &Tables,
    key: &FlowKey,
    now: Nanos,
) -> Option<(IpAddr, u16)> {
    let inside = inside(of(tables, key)?, key.source())?;
    let v4 = look::<FlowKey4, 8>(flows, &flows.v4, &inside, now);
    // Of a service of the other family they lie in the other table.
    v4.or_else(|| look::<FlowKey6, 16>(flows, &flows.v6, &inside, now))
}

fn look<K: TableKey<W>, const W: usize>(
    flows: &FlowTables,
    table: &Table<W>,
    inside: &FlowKey,
    now: Nanos,
) -> Option<(IpAddr, u16)> {
    let own = K::from_generic(inside)?;
    let hit = table.lookup(own.hash(&flows.hasher), &own)?;
    let view = FlowView::<K>::new(hit.entry.words());
    let (backend, stands) = (backend_of(&view), !view.life().expired(now));
    own.matches(hit.entry)?;
    stands.then_some(backend)
}

/// Remembers the backend of a connection that `client` opens, for the service's time from now on.
pub(crate) fn note<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    affinity: Affinity,
    (client, backend): (IpAddr, (IpAddr, u16)),
) {
    let inside = inside(affinity, client);
    let Some(original) = inside.and_then(|inside| K::from_generic(&inside)) else { return };
    let hash = original.hash(&context.hasher);
    let life = Life::standing_for(PROTOCOL, affinity.timeout, now);
    if let Some(hit) = flows.table.lookup(hash, &original) {
        let view = FlowView::<K>::new(hit.entry.words());
        if backend_of(&view) == backend && !view.life().expired(now) {
            view.renew(life);
            return;
        }
        // Of another worker if it was dealt out when the tables were taken over: that one's sweep
        // removes it.
        view.end();
        if !binding::remove::<K, W>(context, flows, hit.handle) {
            context.counters.affinities_refused.add(1);
            return;
        }
    }
    let outside = outside(hash, backend);
    let Some(reply) = outside.and_then(|outside| K::from_generic(&outside)) else { return };
    let entry = NewFlow {
        original,
        reply,
        life,
        route: FlowRoute {
            generation: context.tables.generation,
            hop: FlowRoute::UNRESOLVED,
            reverse_hop: FlowRoute::UNRESOLVED,
        },
        origin: Origin { service: None, rule: RuleId::NOT_ISOLATED },
        charge: Charge::NOBODY,
        pod: PodTag::Unknown,
    };
    let hashes = hashes_of(&context.hasher, &entry.original, &entry.reply);
    match flows.insert(&entry, hashes) {
        Ok(_) => context.counters.affinities_created.add(1),
        Err(_) => context.counters.affinities_refused.add(1),
    }
}

/// Whether an entry with this original tuple is no flow, but a client's affinity.
pub(crate) fn is_affinity(original: &FlowKey) -> bool {
    original.protocol() == PROTOCOL && original.source_port() != 0
}

fn backend_of<K: crate::flow::FlowFamily>(view: &FlowView<'_, K>) -> (IpAddr, u16) {
    let reply = view.tuple(FlowDirection::Reply).generic().canonical();
    (reply.source(), reply.source_port())
}

/// The tuple that stands for `client` and the service: 47 bits of what its name hashes to.
fn inside(affinity: Affinity, client: IpAddr) -> Option<FlowKey> {
    let (upper, lower) = (low_half(affinity.service >> 32), low_half(affinity.service));
    let [a, b, c, d] = upper.to_be_bytes();
    let far = (unlike_any(lower, client), u16::from_be_bytes([c, d]));
    FlowKey::new(PROTOCOL, (client, u16::from_be_bytes([a, b]) | 1), far)
}

/// The tuple that bears the backend, told from others of it by the hash of the first one.
fn outside(hash: u64, backend: (IpAddr, u16)) -> Option<FlowKey> {
    let [a, b, ..] = hash.to_be_bytes();
    let near = (unlike_any(low_half(hash), backend.0), u16::from_be_bytes([a, b]) | 1);
    FlowKey::new(PROTOCOL, backend, near)
}

fn unlike_any(bits: u32, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits.into()).into(),
    }
}
