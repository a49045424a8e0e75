//! NAT46 and NAT64 for services: a frontend of one family that only backends of the other serve.
//!
//! A flow that changes family is one entry, of the IPv6 table, in whose tuples IPv4 addresses stand
//! as IPv4-mapped ones, which no packet carries as far as that table. IPv6 packets find it there like
//! any other; IPv4 packets, once the IPv4 table does not know them, under their mapped tuple, and only
//! where a service asks for it (`find`). One entry has one life, charge and sweep, and is taken over
//! as it is. Its route bears a generation of its own
//! ([`FlowRoute::generation_apart`](crate::flow::FlowRoute::generation_apart)),
//! so that it never goes the straight way and other flows need not be asked.
//!
//! The client has no address of the backends' family: its source becomes the node's, with a port, and
//! replies come back here. Policy has judged the client's own address by then.
//!
//! Reading order: this file, `header` (RFC 7915, 4.1 and 5.1, and what becomes of fragments and
//! checksums), `error` (4.2, 4.3, 5.2 and 5.3). TCP and UDP alone are translated, since services
//! are; ICMP is where it is an error about them.

mod error;
mod header;

pub use error::{ErrorWays, translate_error};
pub use header::{Translation, plan};

use std::sync::Arc;

use flow_table::{Hasher, Table};

use crate::DropReason;
use crate::buffer::Buffer;
use crate::choice;
use crate::context::{Context, Stop};
use crate::event::NeighbourRequest;
use crate::flow::{FlowFamily, FlowView};
use crate::flow_key::{FlowKey, FlowKey4, FlowKey6};
use crate::flows::{Flows, Found, TableKey, WorkerFlows};
use crate::forwarding::NextHop;
use crate::known;
use crate::packet::Packet;
use crate::pipeline::Action;
use crate::rewrite::Rewrite;
use crate::segments;
use crate::time::Nanos;
use crate::worker::Received;

/// Numbers for IPv4 packets made of IPv6 ones, which have none (RFC 7915, 5.1). Workers count in
/// parts of their own.
#[derive(Debug, Clone, Copy)]
pub struct Identification(u16);

impl Identification {
    /// Those of one worker of so many.
    #[must_use]
    pub fn of_worker(worker: usize, workers: usize) -> Self {
        Self(u16::try_from((worker << 16) / workers.max(1)).unwrap_or(0))
    }

    /// One that was not given lately.
    #[must_use]
    pub fn another(&mut self) -> u16 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// Whether an IPv4 packet belongs to the IPv6 table: then its flow there, if it has one that lives.
/// `known` is its flow in the IPv4 table, which comes first.
pub(crate) fn find(
    context: &Context,
    flows: &WorkerFlows,
    now: Nanos,
    packet: &Packet,
    known: Option<Found>,
) -> Option<Option<Found>> {
    let FlowKey::V4(key) = packet.flow_key() else { return None };
    let is_served = |found| known::serves::<FlowKey4, 8>(&flows.v4, found, now, packet);
    if !packet.kind.has_tuple() || known.is_some_and(is_served) {
        return None;
    }
    let mapped = FlowKey6::mapped(&key);
    let hit = flows.v6.table.lookup(mapped.hash(&context.hasher), &mapped);
    let found = hit.map(|hit| Found { handle: hit.handle, direction: hit.matched });
    let found = found.filter(|found| known::serves::<FlowKey6, 16>(&flows.v6, *found, now, packet));
    let opens = || choice::changes_family(&context.tables, &FlowKey::V4(key));
    (found.is_some() || opens()).then_some(found)
}

/// Whether the other table than the one of `key` has a living flow with the same IPv4 tuple. The L4
/// ports of the node's IPv4 address are given to flows of both.
pub(crate) fn has<K: FlowFamily>(
    tables: &(Arc<Table<8>>, Arc<Table<16>>),
    hasher: &Hasher,
    key: &K,
    now: Nanos,
) -> bool {
    let life = match (key.generic(), key.generic().canonical()) {
        (FlowKey::V4(key), _) => {
            let key = FlowKey6::mapped(&key);
            let hit = tables.1.lookup(key.hash(hasher), &key);
            hit.map(|hit| FlowView::<FlowKey6>::new(hit.entry.words()).life())
        }
        (_, FlowKey::V4(key)) => {
            let hit = tables.0.lookup(key.hash(hasher), &key);
            hit.map(|hit| FlowView::<FlowKey4>::new(hit.entry.words()).life())
        }
        _ => None,
    };
    life.is_some_and(|life| !life.expired(now))
}

/// Forwards a packet along its flow as one of the other family.
#[cold]
pub(crate) fn forward<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    (found, hop): (Found, &NextHop),
) -> Result<Action, Stop> {
    let view = known::view::<K, W>(flows, found).ok_or(DropReason::NoFlow)?;
    let target = view.tuple(found.direction.reversed()).generic().reversed().canonical();
    let Some(destination) = hop.destination else {
        return Ok(context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour }));
    };
    let translation = plan(packet, received.buffer.bytes(), &target)?;
    let is_too_long = translation.ip_len(packet) > usize::from(hop.mtu);
    let is_cut = known::is_cut(packet, is_too_long, view.life());
    may_leave(packet, &translation, hop, is_cut)?;
    known::note::<K, B, W>(context, flows, now, received, packet, found)?;
    let change = Rewrite {
        tuple: target,
        source_mac: hop.source,
        destination_mac: destination,
        decrement_ttl: !hop.to_host,
    };
    translation.apply(&change, packet, &mut received.buffer, context.identification.another())?;
    if is_cut {
        segments::plan(&mut received.buffer, hop.mtu, view.life().segment_limit())?;
    }
    context.counters.between_families.add(1);
    context.note_hit(&flows.table, found.handle);
    Ok(Action::Transmit(hop.port))
}

/// As [`known::may_leave`], for a packet that changes its length. The sender is told what its own
/// packets may have.
fn may_leave(
    packet: &Packet,
    translation: &Translation,
    hop: &NextHop,
    is_cut: bool,
) -> Result<(), Stop> {
    if !hop.to_host && packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    if is_cut || translation.ip_len(packet) <= usize::from(hop.mtu) {
        return Ok(());
    }
    let mtu = translation.mtu_before(hop.mtu);
    Err(Stop { reason: DropReason::TooBig, mtu, reported: false })
}

/// Sends an ICMP error to whoever sent the packet it quotes, `sent` with this tuple, as one of the
/// other family.
#[cold]
pub(crate) fn forward_error<B: Buffer>(
    context: &Context,
    received: &mut Received<B>,
    packet: &Packet,
    sent: &FlowKey,
    ways: &ErrorWays<'_>,
) -> Result<Action, Stop> {
    let hop = ways.back;
    let Some(destination) = hop.destination else {
        return Ok(context.hold(NeighbourRequest { port: hop.port, address: hop.neighbour }));
    };
    if !hop.to_host && packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    let change = Rewrite {
        tuple: sent.reversed(),
        source_mac: hop.source,
        destination_mac: destination,
        decrement_ttl: !hop.to_host,
    };
    // RFC 6791: a router that has no address there speaks as the translator.
    let own = context.own_address_toward(sent.source()).unwrap_or_else(|| sent.destination());
    translate_error(&change, (sent, own), packet, &mut received.buffer, ways)?;
    context.counters.between_families.add(1);
    Ok(Action::Transmit(hop.port))
}
