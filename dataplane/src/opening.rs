//! The way of a packet that belongs to no known flow: decide, bind, insert, then go on as known.

use std::net::IpAddr;

use flow_table::{Handle, InsertError};

use crate::DropReason;
use crate::address::Protocol;
use crate::affinity;
use crate::anticipation::Early;
use crate::buffer::Buffer;
use crate::charge;
use crate::connections::Counted;
use crate::conntrack::{FlowDirection, FlowState, Life, Seen};
use crate::context::{Context, Stop};
use crate::decision::{Admission, Decision, Findings, NewPacket, Refusal, decide};
use crate::direct::{Directed, Role, stateless};
use crate::event::{EventKind, FlowEvent, NeighbourRequest};
use crate::flow::{FlowRoute, Origin};
use crate::flow_key::FlowKey;
use crate::flows::{Flows, Found, NewFlow, TableKey, two_hashes};
use crate::handoff::HandoffCause;
use crate::known;
use crate::nat::{binding, endpoint};
use crate::nat64;
use crate::packet::{Packet, PacketKind};
use crate::pipeline::Action;
use crate::policy::RuleId;
use crate::port::PortId;
use crate::time::Nanos;
use crate::worker::Received;

/// Opens a flow for `packet`, or sends it to the worker that owns the flow.
#[cold]
pub(crate) fn open<K: TableKey<W>, B: Buffer, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    received: &mut Received<B>,
    packet: &Packet,
    key: K,
    (found, early, directed): (Option<Found>, Option<&Early>, Option<Directed>),
) -> Result<Action, Stop> {
    let hash = early.map_or_else(|| key.hash(&context.hasher), |early| early.hash);
    let generic = key.generic();
    // Whichever worker it came to: there is no flow to own.
    if directed.is_none()
        && let Some(action) = stateless::pass(context, received, packet, &generic, early)?
    {
        // What is over here of a time when flows were kept would lead the next packets elsewhere.
        if let Some(over) = found.and_then(|found| known::view::<K, W>(flows, found)) {
            over.end();
        }
        return Ok(action);
    }
    let is_mapped = endpoint::is_mapped(&context.tables, received.port, &generic);
    // Of a packet that another node has chosen for, that one remembers its client.
    let affinity = affinity::of(&context.tables, &generic).filter(|_| directed.is_none());
    let owner = match is_mapped || affinity.is_some() {
        true => endpoint::home_of(context, generic.source()),
        false => context.owner_of(hash),
    };
    // A first fragment stays where its later ones will look for it; what another node has chosen for was
    // handed on before, if it was to be.
    let is_here = owner == context.worker
        || directed.is_some()
        || matches!(packet.kind, PacketKind::FirstFragment { .. });
    // An entry that is over makes room. Where the burst's look found nothing, the insert will find
    // what an earlier packet of the burst has opened.
    let mut over = None;
    if (found.is_some() || early.is_none())
        && let Some(hit) = flows.table.lookup(hash, &key)
    {
        let found = Found { handle: hit.handle, direction: hit.matched };
        let may_travel = directed.is_none();
        match former::<K, W>(context, flows, now, packet, found)? {
            Former::Serves => {
                return known::forward::<K, B, W>(context, flows, now, received, packet, found);
            }
            Former::GivesWay => over = Some(found.handle),
            Former::Removed => {}
            Former::Elsewhere => match holder_elsewhere(context, flows, packet, found) {
                // It was dealt out when the tables were taken over: who has it removes it, and hands
                // the packet back.
                Some(holder) if may_travel => {
                    return Ok(context.hand_to(holder, HandoffCause::Holder));
                }
                _ if is_here => return Err(DropReason::NoFlow.into()),
                _ => {}
            },
        }
    }
    let mut new = NewPacket { directed, ..NewPacket::of(packet, now, &context.tables) };
    if is_mapped && (is_here || over.is_some()) {
        new.hairpin = endpoint::behind::<K, W>(context, flows, now, &generic);
    }
    if !is_here {
        // Its owner cannot remove the entry, so that it is decided here whether it goes.
        if let Some(handle) = over {
            match decide(&context.tables, received.port, &new) {
                Ok(Decision::Unresolved(port, address)) => {
                    return Ok(context.hold(NeighbourRequest { port, address }));
                }
                Ok(_) => give_way::<K, W>(context, flows, handle),
                Err(refusal) => {
                    return Err(refuse(context, now, received.port, &new.key, &refusal));
                }
            }
        }
        let cause = match affinity {
            _ if is_mapped => HandoffCause::Mapping,
            Some(_) => HandoffCause::Affinity,
            None => HandoffCause::Miss,
        };
        return Ok(context.hand_to(owner, cause));
    }
    if let Some(affinity) = affinity {
        let client = generic.source();
        new.remembered = affinity::remembered::<K, W>(context, flows, now, affinity, client);
    }
    // The early decision knew of no mapping, and of no backend that its client has had.
    let early = early.filter(|_| new.hairpin.is_none() && new.remembered.is_none());
    let late;
    let decided = match early {
        Some(early) => &early.decided,
        None => {
            late = decide(&context.tables, received.port, &new);
            &late
        }
    };
    if let (Some(handle), Ok(Decision::Admit(_) | Decision::Foreign(_))) = (over, decided) {
        give_way::<K, W>(context, flows, handle);
    }
    let admission = match decided {
        Ok(Decision::Admit(admission)) => admission,
        Ok(Decision::Foreign(host)) => return context.to_host(received.buffer.bytes_mut(), *host),
        Ok(Decision::Unresolved(port, address)) => {
            return Ok(context.hold(NeighbourRequest { port: *port, address: *address }));
        }
        Err(refusal) => return Err(refuse(context, now, received.port, &new.key, refusal)),
    };
    let hashes = (hash, early.and_then(|early| early.alias));
    let way = (received.port, admission, is_mapped);
    let admitted = admit::<K, W>(context, flows, now, packet, way, hashes);
    let found = match admitted {
        Ok(found) => found,
        Err(Unadmitted::IsKnown) => {
            let hit = flows.table.lookup(hash, &key).ok_or(DropReason::NoFlow)?;
            let found = Found { handle: hit.handle, direction: hit.matched };
            if !known::serves::<K, W>(flows, found, now, packet) {
                return Err(DropReason::NoFlow.into());
            }
            return known::forward::<K, B, W>(context, flows, now, received, packet, found);
        }
        Err(Unadmitted::Refused(reason)) => {
            let refusal = Refusal { reason, findings: admission.findings };
            return Err(refuse(context, now, received.port, &new.key, &refusal));
        }
    };
    let findings = &admission.findings;
    // Its home alone makes a client's entries: a first fragment may be opened elsewhere.
    if let (Some(affinity), Some(backend)) = (affinity, findings.backend)
        && owner == context.worker
    {
        let ends = (generic.source(), (backend.address, backend.l4_port));
        affinity::note::<K, W>(context, flows, now, affinity, ends);
    }
    report(context, now, EventKind::Opened, received.port, &new.key, findings);
    if let Some(direction) = findings.audited {
        context.counters.flows_audited.add(1);
        let kind = EventKind::Audited(direction);
        report(context, now, kind, received.port, &new.key, findings);
    }
    known::forward::<K, B, W>(context, flows, now, received, packet, found)
}

/// What an entry is to a packet of its tuple.
enum Former {
    /// Its flow.
    Serves,
    /// A connection that is over, to which this packet is the next one's first; its entry goes once that is
    /// admitted. Whoever forges a reset forges a SYN behind it as easily, and the connection may stand.
    GivesWay,
    /// Its time was over, and it is gone.
    Removed,
    /// The same, or one that is to give way; but the entry is another worker's.
    Elsewhere,
}

/// # Errors
/// [`DropReason::InvalidState`]: the side that was opened to begins another connection while this one may
/// not be over.
fn former<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    packet: &Packet,
    found: Found,
) -> Result<Former, DropReason> {
    if known::serves::<K, W>(flows, found, now, packet) {
        return Ok(Former::Serves);
    }
    let life = known::view::<K, W>(flows, found).map(|view| view.life());
    if let Some(life) = life.filter(|life| !life.expired(now)) {
        if found.direction == FlowDirection::Reply
            && life.state() == FlowState::Closed
            && !binding::is_silent(life, now, &context.tables.timeouts)
        {
            return Err(DropReason::InvalidState);
        }
        return match flows.table.holder(found.handle) == Some(context.worker) {
            true => Ok(Former::GivesWay),
            false => Ok(Former::Elsewhere),
        };
    }
    if binding::remove::<K, W>(context, flows, found.handle) {
        context.counters.flows_expired.add(1);
        return Ok(Former::Removed);
    }
    Ok(Former::Elsewhere)
}

/// Removes an entry of this worker's for the flow that comes after it.
fn give_way<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    handle: Handle,
) {
    if binding::remove::<K, W>(context, flows, handle) {
        context.counters.flows_expired.add(1);
    }
}

/// The other worker that has the entry of a flow that is over. A first fragment stays where its
/// later ones look for it.
fn holder_elsewhere<const W: usize>(
    context: &Context,
    flows: &Flows<W>,
    packet: &Packet,
    found: Found,
) -> Option<usize> {
    let holder = flows.table.holder(found.handle).filter(|holder| *holder < context.workers)?;
    let may_travel = !matches!(packet.kind, PacketKind::FirstFragment { .. });
    (may_travel && holder != context.worker).then_some(holder)
}

/// Why no flow was inserted.
enum Unadmitted {
    /// There is one with the packet's tuple: an earlier packet of the burst has opened it, or another
    /// worker.
    IsKnown,
    /// For this reason.
    Refused(DropReason),
}

impl From<DropReason> for Unadmitted {
    fn from(reason: DropReason) -> Self {
        Self::Refused(reason)
    }
}

/// Binds a translation where one is needed and inserts the flow. `hashes` are the packet's and,
/// where it is known already, that of replies to what was decided.
fn admit<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    packet: &Packet,
    (ingress, admission, is_mapped): (PortId, &Admission, bool),
    (hash, alias): (u64, Option<u64>),
) -> Result<Found, Unadmitted> {
    let charge = charge::of(&flows.charges, &context.tables, ingress, admission);
    if flows.charges.is_full(charge, context.tables.flows_per_endpoint_max) {
        return Err(DropReason::EndpointFlows.into());
    }
    let original = K::from_generic(&admission.original).ok_or(DropReason::InvalidState)?;
    let reply = match admission.source_nat {
        Some(address) => bind::<K, W>(context, flows, now, admission, address, is_mapped)?,
        None => {
            K::from_generic(&admission.translated.reversed()).ok_or(DropReason::InvalidState)?
        }
    };
    let seen = packet.shows();
    let timeouts = &context.tables.timeouts;
    let life = match admission.direction {
        FlowDirection::Original => Life::opened(original.generic().protocol(), seen, now, timeouts),
        FlowDirection::Reply => {
            let unseen =
                Life::opened(original.generic().protocol(), Seen::default(), now, timeouts);
            unseen.advanced(FlowDirection::Reply, seen, now, timeouts).unwrap_or(unseen)
        }
    };
    let changes_family =
        admission.original.source().is_ipv4() != reply.generic().source().is_ipv4();
    let stands_apart = changes_family || admission.role == Some(Role::Dispatches);
    let counted = match context.tables.connections.as_deref() {
        Some(connections) if admission.findings.counts => connections.mark(),
        _ => Counted::NOT,
    };
    let life = life.with_role(admission.role, now, timeouts).with_counted(counted);
    let mut flow = NewFlow {
        original,
        reply,
        life,
        route: FlowRoute {
            generation: known::generation_for(context, stands_apart),
            hop: admission.hop,
            reverse_hop: admission.reverse_hop.unwrap_or(FlowRoute::UNRESOLVED),
        },
        origin: Origin { service: admission.findings.service, rule: admission.findings.rule },
        charge,
        pod: admission.findings.pod,
    };
    let alias = alias.filter(|_| admission.source_nat.is_none());
    let alias = alias.unwrap_or_else(|| flow.reply.hash(&context.hasher));
    let mut hashes = two_hashes(hash, alias);
    let mut inserted = flows.insert(&flow, hashes);
    if let (Err(InsertError::AliasExists(_)), true) = (&inserted, may_move(admission, packet)) {
        let own = admission.translated.source();
        flow.reply = bind::<K, W>(context, flows, now, admission, own, false)?;
        hashes = two_hashes(hash, flow.reply.hash(&context.hasher));
        inserted = flows.insert(&flow, hashes);
    }
    if inserted.is_err() && admission.source_nat.is_some() {
        let tuples = (admission.original, flow.reply.generic());
        binding::release::<K, W>(&mut context.nat, &flows.table, &context.hasher, tuples);
    }
    match inserted {
        Ok(handle) => {
            if let Some(connections) = context.tables.connections.as_deref() {
                connections.take(context.worker, counted, &flow.reply);
            }
            let counters = &context.counters;
            counters.flows_created.add(1);
            if context.owner_of(hash) != context.worker {
                counters.flows_opened_for_others.add(1);
            }
            if hashes.alias.is_some_and(|alias| context.owner_of(alias) != context.worker) {
                counters.flows_with_alias_elsewhere.add(1);
            }
            match (admission.source_nat, admission.findings.snat_rule) {
                (Some(_), Some(_)) => counters.flows_translated_by_rule.add(1),
                (Some(_), None) => counters.flows_masqueraded.add(1),
                (None, _) => {}
            }
            if admission.direction == FlowDirection::Reply {
                counters.lost_replies.add(1);
            }
            if admission.findings.rule == RuleId::UNKNOWN_POD {
                counters.unknown_pod_flows.add(1);
            }
            Ok(Found { handle, direction: admission.direction })
        }
        Err(InsertError::Exists(_)) => Err(Unadmitted::IsKnown),
        Err(InsertError::AliasExists(_)) => Err(DropReason::NatClash.into()),
        Err(_) => Err(DropReason::TableFull.into()),
    }
}

/// Whether the source's L4 port may be translated although its address is not: a client may use one
/// port toward a backend and toward a service that leads there, and its replies must be told apart.
/// SCTP's source ports are never rewritten. Of a dispatched flow replies never come: its reply tuple is a
/// place for its backend, and what is moved there leaves no packet otherwise.
fn may_move(admission: &Admission, packet: &Packet) -> bool {
    admission.source_nat.is_none()
        && admission.original.protocol() != Protocol::SCTP
        && (admission.role == Some(Role::Dispatches)
            || packet.kind == PacketKind::Udp
            || packet.tcp_flags & Seen::SYN != 0)
}

/// The reply tuple of a flow from `address`: of its end point's port if the flow `is_mapped`,
/// otherwise of one that no other flow toward this destination has.
fn bind<K: TableKey<W>, const W: usize>(
    context: &mut Context,
    flows: &mut Flows<W>,
    now: Nanos,
    admission: &Admission,
    address: IpAddr,
    is_mapped: bool,
) -> Result<K, DropReason> {
    let translated = &admission.translated;
    if !is_mapped {
        let is_udp = translated.protocol() == Protocol::UDP;
        return binding::bind::<K, W>(context, flows, now, translated, address, is_udp);
    }
    let reply = endpoint::bind::<K, W>(context, flows, now, translated, address)?;
    // A mapping's port was not looked up toward this destination.
    if context.may_change_family && nat64::has(&context.flow_tables, &context.hasher, &reply, now) {
        let tuples = (admission.original, reply.generic());
        binding::release::<K, W>(&mut context.nat, &flows.table, &context.hasher, tuples);
        return Err(DropReason::NatClash);
    }
    Ok(reply)
}

fn refuse(
    context: &mut Context,
    now: Nanos,
    port: PortId,
    key: &FlowKey,
    refusal: &Refusal,
) -> Stop {
    if refusal.findings.rule == RuleId::UNKNOWN_POD && refusal.reason.is_by_policy() {
        context.counters.unknown_pod_drops.add(1);
    }
    report(context, now, EventKind::Dropped(refusal.reason), port, key, &refusal.findings);
    Stop { reason: refusal.reason, mtu: 0, reported: true }
}

fn report(
    context: &mut Context,
    now: Nanos,
    kind: EventKind,
    port: PortId,
    key: &FlowKey,
    findings: &Findings,
) {
    let event = FlowEvent {
        time: now,
        kind,
        port,
        key: Some(*key),
        backend: findings.backend.map(|backend| (backend.address, backend.l4_port)),
        service: findings.service,
        source: Some(findings.source),
        destination: Some(findings.destination),
        rule: Some(findings.rule),
    };
    context.reporter.event(event, &context.counters);
}
