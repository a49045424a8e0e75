//! The decision about a new flow, as a value: service, backend, policy, way out, translation.
//!
//! Nothing is changed here. The pipeline binds, inserts and applies what this decides; a trace
//! prints it; a flow whose tables changed is decided again.

use std::net::IpAddr;

use crate::DropReason;
use crate::address::Protocol;
use crate::choice::{self, Look};
use crate::conntrack::{FlowDirection, Seen};
use crate::direct::{self, Directed, Role};
use crate::flow_key::FlowKey;
use crate::forwarding::{NextHopId, Resolved};
use crate::identity::{Identity, PodTag};
use crate::lb::{Backend, ServiceId};
use crate::nat::Translation;
use crate::packet::Packet;
use crate::policy::{Direction, Query, RuleId, Verdict};
use crate::port::{Port, PortId, PortKind};
use crate::tables::Tables;
use crate::time::Nanos;

/// A packet that belongs to no known flow.
#[derive(Debug, Clone, Copy)]
pub struct NewPacket {
    /// Its tuple as received.
    pub key: FlowKey,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Whether a packet of this kind may begin a flow (an echo reply may not).
    pub may_begin: bool,
    /// The pod's end point that is mapped to where it goes, if any (RFC 4787, REQ-9).
    pub hairpin: Option<(IpAddr, u16)>,
    /// What another node has chosen for it.
    pub directed: Option<Directed>,
    /// The backend that its client's connections to a service with affinity went to lately.
    pub remembered: Option<(IpAddr, u16)>,
    /// When it came, in nanoseconds: what differs from packet to packet of one tuple.
    pub moment: u64,
    /// Whether it may be the reply of a flow that was lost ([`Tables::lost_replies_until`]).
    pub may_be_lost_reply: bool,
}

impl NewPacket {
    /// What a decision needs of `packet`, which came at `now`.
    #[must_use]
    pub fn of(packet: &Packet, now: Nanos, tables: &Tables) -> Self {
        let new = Self {
            key: packet.flow_key(),
            tcp_flags: packet.tcp_flags,
            may_begin: packet.may_begin_flow(),
            hairpin: None,
            directed: None,
            remembered: None,
            moment: now.0,
            may_be_lost_reply: false,
        };
        let may_be_lost_reply = new.is_mid_stream() && now < tables.lost_replies_until;
        Self { may_be_lost_reply, ..new }
    }

    /// A reset or a SYN-ACK: it answers something, and begins nothing.
    fn is_answer(&self) -> bool {
        let seen = Seen::of(self.tcp_flags);
        seen.has(Seen::RST) || seen.has(Seen::SYN) && seen.has(Seen::ACK)
    }

    /// TCP without SYN: the flow began before our time, or never.
    fn is_mid_stream(&self) -> bool {
        self.key.protocol() == Protocol::TCP && !Seen::of(self.tcp_flags).has(Seen::SYN)
    }
}

/// What was found out on the way to a verdict; complete for an admitted flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    /// The service whose frontend was addressed.
    pub service: Option<ServiceId>,
    /// The chosen backend.
    pub backend: Option<Backend>,
    /// Which pod it is.
    pub pod: PodTag,
    /// Whether the flow is counted among the backend's connections ([`crate::connections`]).
    pub counts: bool,
    /// Who speaks.
    pub source: Identity,
    /// Who is spoken to, after DNAT.
    pub destination: Identity,
    /// The rule that decided.
    pub rule: RuleId,
    /// Where a policy under audit would have refused it.
    pub audited: Option<Direction>,
    /// The place of the rule that chose the translated source, unless it is masqueraded or its own.
    pub snat_rule: Option<u16>,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            service: None,
            backend: None,
            pod: PodTag::Unknown,
            counts: false,
            source: Identity::WORLD,
            destination: Identity::WORLD,
            rule: RuleId::NOT_ISOLATED,
            audited: None,
            snat_rule: None,
        }
    }
}

/// An admitted flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The tuple of the flow's original direction, as received.
    pub original: FlowKey,
    /// The same after DNAT, before SNAT.
    pub translated: FlowKey,
    /// Which direction the packet at hand goes: a reply picked up in mid-stream is one.
    pub direction: FlowDirection,
    /// The address to translate the source to; the L4 port is bound later.
    pub source_nat: Option<IpAddr>,
    /// What it is to this node where its backend's node answers.
    pub role: Option<Role>,
    /// The way onward for the original direction.
    pub hop: NextHopId,
    /// The way back; `None` when it is not resolved yet and the first reply will ask.
    pub reverse_hop: Option<NextHopId>,
    /// For events and explanations.
    pub findings: Findings,
}

/// What to do with a packet of no known flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Open a flow.
    Admit(Admission),
    /// It is the node's own, redirected only because the XDP program could not tell: hand it to
    /// the host unchanged, without a flow.
    Foreign(NextHopId),
    /// Ask for this neighbour and hold the packet.
    Unresolved(PortId, IpAddr),
}

/// A refused packet: the reason, and what was known by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// What was known.
    pub findings: Findings,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self { reason, findings: Findings::default() }
    }
}

/// Decides about `packet`, which came in by `ingress` and matches no flow.
///
/// # Errors
/// The refusal, with the reason to count and what is known for the event.
pub fn decide(tables: &Tables, ingress: PortId, packet: &NewPacket) -> Result<Decision, Refusal> {
    let port = tables.port(ingress).ok_or(DropReason::UnknownPort)?;
    decide_with(tables, ingress, packet, &Look::at(tables, port, packet))
}

/// The same with what was looked up before.
pub(crate) fn decide_with(
    tables: &Tables,
    ingress: PortId,
    packet: &NewPacket,
    look: &Look<'_>,
) -> Result<Decision, Refusal> {
    let port = tables.port(ingress).ok_or(DropReason::UnknownPort)?;
    let key = packet.key;
    check_source(tables, port, key.source())?;

    let mut findings =
        Findings { source: source_identity(tables, port, key.source()), ..Findings::default() };
    let refuse = |reason, findings| Refusal { reason, findings };

    let directed = packet.directed.and_then(|directed| directed.backend);
    let chosen = match packet.hairpin.or(directed) {
        Some((address, l4_port)) => {
            findings.backend = Some(Backend { address, l4_port, local: true, weight: 0 });
            findings.service = packet.directed.and_then(|directed| directed.service);
            findings.backend
        }
        None => choice::choose_backend(tables, port.kind, packet, look, &mut findings)
            .map_err(|reason| refuse(reason, findings))?,
    };
    let is_from_node = port.kind == PortKind::Host;
    // The range is kept from the node's own sockets; its stack would answer with a reset. And an
    // address that only rules translate to is nobody's.
    if chosen.is_none() && !is_from_node && tables.source_nat.is_translated_to(&key) {
        return Err(refuse(DropReason::NoFlow, findings));
    }
    if chosen.is_none() && tables.forwarding.node_addresses.contains(&key.destination()) {
        // What a host backend answers comes by the host port, and must find a flow.
        let at = (key.protocol(), key.destination_port());
        if port.kind == PortKind::Uplink && !tables.host_backends.contains(&at) {
            let host = tables.forwarding.host.ok_or(DropReason::NoRoute)?;
            return Ok(Decision::Foreign(host));
        }
    }
    if !packet.may_begin || packet.is_answer() {
        return Err(refuse(DropReason::NoFlow, findings));
    }

    let translated = match chosen {
        Some(backend) => key.with_destination(backend.address, backend.l4_port),
        None => key,
    };
    let hop = match tables.forwarding.resolve(translated.destination()) {
        Ok(Resolved::NextHop(hop)) => hop,
        Ok(Resolved::Unresolved(to, address)) => {
            if is_transit(tables, port, to, chosen.is_some()) {
                return Err(refuse(DropReason::NoRoute, findings));
            }
            return Ok(Decision::Unresolved(to, address));
        }
        Err(reason) => return Err(refuse(reason, findings)),
    };
    let egress = tables
        .forwarding
        .next_hop(hop)
        .and_then(|hop| Some((hop.port, tables.port(hop.port)?)))
        .ok_or(refuse(DropReason::PortGone, findings))?;
    if is_transit(tables, port, egress.0, chosen.is_some()) {
        return Err(refuse(DropReason::NoRoute, findings));
    }
    let is_dispatched = directed.is_none()
        && chosen.is_some_and(|backend| {
            direct::may_dispatch(tables, (port, egress.1), &key, look, &backend)
        });
    let role = match directed {
        Some(_) => Some(Role::Answers),
        None => is_dispatched.then_some(Role::Dispatches),
    };
    let translation = match is_dispatched {
        true => None,
        false => source_nat(tables, port, egress.1, &translated, packet, chosen.is_some()),
    };
    findings.snat_rule = translation.and_then(|translation| translation.rule);
    let source_nat = match translation {
        Some(Translation { address: None, .. }) => {
            return Err(refuse(DropReason::NoNatAddress, findings));
        }
        translation => translation.and_then(|translation| translation.address),
    };
    // Its binding is lost; a new one would reach the peer as a stranger and earn a reset. A host
    // backend's client may have addressed a service: only its own next packet tells.
    let may_be_translated =
        source_nat.is_some() || is_from_node && egress.1.kind == PortKind::Uplink;
    if packet.is_mid_stream() && may_be_translated {
        return Err(refuse(DropReason::NoFlow, findings));
    }

    let (destination, pod) = destination_holder(tables, egress.1, translated.destination());
    findings.destination = destination;
    if findings.service.is_some() {
        findings.pod = pod;
    }
    let sides = Sides { ingress: (ingress, port), egress };
    let direction = judge(tables, &sides, packet, &translated, chosen.is_some(), &mut findings)
        .map_err(|reason| refuse(reason, findings))?;
    let reverse_hop = reverse_hop(tables, port, key.source());
    Ok(Decision::Admit(match direction {
        FlowDirection::Original => Admission {
            original: key,
            translated,
            direction,
            source_nat,
            role,
            hop,
            reverse_hop,
            findings,
        },
        FlowDirection::Reply => Admission {
            original: key.reversed(),
            translated: key.reversed(),
            direction,
            source_nat: None,
            role: None,
            hop: reverse_hop.ok_or(refuse(DropReason::NoRoute, findings))?,
            reverse_hop: Some(hop),
            findings,
        },
    }))
}

/// Whether the packet came from outside only to leave again without a service's doing. A node is no
/// router: such a packet was for a pod that is gone, and the gateway would send it back here.
fn is_transit(tables: &Tables, from: &Port, to: PortId, by_service: bool) -> bool {
    let leaves = tables.port(to).is_some_and(|port| port.kind == PortKind::Uplink);
    from.kind == PortKind::Uplink && leaves && !by_service
}

/// Law: a local pod is its port. A pod speaks from its own addresses only, and nobody outside
/// speaks from a local pod's, nor from the node's, which may reach every pod.
///
/// # Errors
/// [`DropReason::Spoofed`] or [`DropReason::LocalAddressFromUplink`].
pub fn check_source(tables: &Tables, port: &Port, source: IpAddr) -> Result<(), DropReason> {
    match port.kind {
        PortKind::Pod if !port.addresses.contains(&source) => Err(DropReason::Spoofed),
        PortKind::Uplink
            if tables.forwarding.endpoints.contains_key(&source)
                || tables.forwarding.node_addresses.contains(&source) =>
        {
            Err(DropReason::LocalAddressFromUplink)
        }
        _ => Ok(()),
    }
}

/// Who speaks from `address` through `port`. By the host port it is the node, if the address is one of its
/// own: what its stack only forwards, from a container's bridge or a tunnel, is not its own. (The kernel
/// takes no forwarded packet in that bears an address of its own.) A pod's address was compared with its
/// port before ([`check_source`]).
fn source_identity(tables: &Tables, port: &Port, address: IpAddr) -> Identity {
    match port.kind {
        PortKind::Host if tables.forwarding.is_own(&address) => Identity::HOST,
        _ => tables.identities.lookup(address),
    }
}

/// Who is spoken to at `address`, behind `port`. Toward the node it is the address that counts, since
/// an `ipBlock` may contain one of its addresses and not another.
fn destination_identity(tables: &Tables, port: &Port, address: IpAddr) -> Identity {
    destination_holder(tables, port, address).0
}

/// The same, and which pod it is.
#[inline(always)]
fn destination_holder(tables: &Tables, port: &Port, address: IpAddr) -> (Identity, PodTag) {
    let holder = tables.identities.holder(address);
    match (port.kind, holder.identity) {
        (PortKind::Host, Identity::WORLD) => (Identity::HOST, holder.pod),
        (_, identity) => (identity, holder.pod),
    }
}

/// Whether and to what the source is translated: whenever the reply would otherwise not come back
/// through this pipeline, and for pods that speak to the outside.
fn source_nat(
    tables: &Tables,
    ingress: &Port,
    egress: &Port,
    translated: &FlowKey,
    packet: &NewPacket,
    by_service: bool,
) -> Option<Translation> {
    let nat = &*tables.source_nat;
    let (source, destination) = (translated.source(), translated.destination());
    let changes_family = source.is_ipv4() != destination.is_ipv4();
    let needed = match (ingress.kind, egress.kind) {
        // The client has no address there: the replies come to the node's.
        _ if changes_family => true,
        (PortKind::Pod, PortKind::Uplink) => return nat.of_pod(source, destination),
        (PortKind::Uplink, PortKind::Uplink) => by_service,
        // Without a service it is a host backend that speaks first, whose L4 port is ours anyway; or it
        // is led here because a service has the address on another port, and the kernel would not look
        // for the answer on the uplink.
        (PortKind::Host, PortKind::Uplink) => {
            by_service || tables.services.external.contains(&destination)
        }
        // What the node answers itself goes over lo, where nobody undoes what is done here.
        (PortKind::Host, PortKind::Host) if by_service && tables.forwarding.is_own(&source) => {
            return Some(Translation { address: nat.address_for_own(destination), rule: None });
        }
        // One that addresses another by its mapping is seen by its own (RFC 4787, REQ-9a).
        (PortKind::Pod, PortKind::Pod) if packet.hairpin.is_some() => {
            return Some(nat.of_hairpin(source, packet.key.destination()));
        }
        // A pod that its own service sends back to itself would see its own address as the peer.
        (PortKind::Pod, PortKind::Pod) => by_service && source == destination,
        _ => false,
    };
    needed.then(|| Translation { address: nat.address_for(destination), rule: None })
}

struct Sides<'a> {
    ingress: (PortId, &'a Port),
    egress: (PortId, &'a Port),
}

/// Asks policy; answers which direction of the flow the packet is.
///
/// A TCP segment in mid-stream whose flow is lost may be a reply: for a while after a start without
/// flows it passes as one when the opposite direction would have been allowed to open the flow.
fn judge(
    tables: &Tables,
    sides: &Sides<'_>,
    packet: &NewPacket,
    translated: &FlowKey,
    by_service: bool,
    findings: &mut Findings,
) -> Result<FlowDirection, DropReason> {
    let forward = judge_one_way(
        tables,
        sides.ingress,
        sides.egress,
        (findings.source, findings.destination),
        Asked { key: translated, stands: false },
    );
    let denied = match forward {
        Ok(passage) => {
            (findings.rule, findings.audited) = (passage.rule, passage.audited);
            return Ok(FlowDirection::Original);
        }
        Err(denied) => denied,
    };
    if packet.may_be_lost_reply && !by_service {
        let backward = judge_one_way(
            tables,
            sides.egress,
            sides.ingress,
            (
                source_identity(tables, sides.egress.1, translated.destination()),
                destination_identity(tables, sides.ingress.1, translated.source()),
            ),
            Asked { key: &translated.reversed(), stands: false },
        );
        if let Ok(passage) = backward {
            (findings.rule, findings.audited) = (passage.rule, passage.audited);
            return Ok(FlowDirection::Reply);
        }
    }
    findings.rule = denied.1;
    Err(denied.0)
}

/// What policy lets pass.
struct Passage {
    rule: RuleId,
    audited: Option<Direction>,
}

/// A flow that policy is asked about.
struct Asked<'a> {
    key: &'a FlowKey,
    /// Whether it was admitted before, and goes on until it is known who its ends are.
    stands: bool,
}

/// Egress is judged on the source's node, ingress on the destination's; a pod that reaches itself
/// is never judged.
fn judge_one_way(
    tables: &Tables,
    from: (PortId, &Port),
    to: (PortId, &Port),
    (source, destination): (Identity, Identity),
    flow: Asked<'_>,
) -> Result<Passage, (DropReason, RuleId)> {
    let mut passage = Passage { rule: RuleId::NOT_ISOLATED, audited: None };
    if from.0 == to.0 {
        return Ok(passage);
    }
    let key = flow.key;
    let l4_port = match key.protocol() {
        Protocol::ICMP | Protocol::ICMPV6 => 0,
        _ => key.destination_port(),
    };
    let ask = |direction, subject, peer| -> Verdict {
        let query = Query { subject, peer, protocol: key.protocol(), l4_port };
        let verdict = tables.policy.judge(direction, &query);
        let goes_on = flow.stands && verdict.rule == RuleId::UNKNOWN_POD;
        Verdict { allowed: verdict.allowed || goes_on, ..verdict }
    };
    if from.1.kind == PortKind::Pod {
        let verdict = ask(Direction::Egress, source, destination);
        if !verdict.allowed {
            return Err((DropReason::PolicyEgress, verdict.rule));
        }
        passage.rule = verdict.rule;
        passage.audited = verdict.audited.then_some(Direction::Egress);
    }
    if to.1.kind == PortKind::Pod {
        let verdict = ask(Direction::Ingress, destination, source);
        if !verdict.allowed {
            return Err((DropReason::PolicyIngress, verdict.rule));
        }
        if verdict.rule != RuleId::NOT_ISOLATED {
            passage.rule = verdict.rule;
        }
        if verdict.audited {
            passage.audited = Some(Direction::Ingress);
        }
    }
    Ok(passage)
}

/// The way back to `source`, which spoke through `port`.
fn reverse_hop(tables: &Tables, port: &Port, source: IpAddr) -> Option<NextHopId> {
    match port.kind {
        PortKind::Host => tables.forwarding.host,
        PortKind::Pod => known_hop(tables.forwarding.resolve(source)),
        // It is no pod's and not the node's ([`check_source`]).
        PortKind::Uplink => known_hop(tables.forwarding.route(source)),
    }
}

fn known_hop(resolved: Result<Resolved, DropReason>) -> Option<NextHopId> {
    match resolved {
        Ok(Resolved::NextHop(hop)) => Some(hop),
        Ok(Resolved::Unresolved(..)) | Err(_) => None,
    }
}

/// The ways of a known flow under new tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    /// Onward, for the original direction.
    pub hop: NextHopId,
    /// Back; `None` while it is not resolved.
    pub reverse_hop: Option<NextHopId>,
    /// The rule that decided.
    pub rule: RuleId,
    /// Where a policy under audit would have refused it.
    pub audited: Option<Direction>,
}

/// Why a known flow goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Newly denied, no route, or an end point that is gone.
    pub reason: DropReason,
    /// Of policy: the rule that decided, and who speaks to whom.
    pub denied: Option<(RuleId, Identity, Identity)>,
}

impl From<DropReason> for Ended {
    fn from(reason: DropReason) -> Self {
        Self { reason, denied: None }
    }
}

/// Judges a known flow again: policy and routes anew, backend and translation as they are. While
/// nobody tells which pod one of its ends is, it goes on: it was admitted when that was known, or
/// by what was in force then, and is judged again once it is known.
///
/// # Errors
/// [`Ended`].
pub fn rejudge(tables: &Tables, original: &FlowKey, backend: (IpAddr, u16)) -> Result<Ways, Ended> {
    let translated = original.with_destination(backend.0, backend.1);
    let (hop, to) = way_to(tables, backend.0)?;
    let (reverse_hop, from) = way_back(tables, original.source())?;
    let hop = hop.ok_or(DropReason::Unresolved)?;
    let identities = (
        source_identity(tables, from.1, original.source()),
        destination_identity(tables, to.1, translated.destination()),
    );
    let flow = Asked { key: &translated, stands: true };
    let Passage { rule, audited } =
        judge_one_way(tables, from, to, identities, flow).map_err(|(reason, rule)| {
            let (source, destination) = identities;
            Ended { reason, denied: Some((rule, source, destination)) }
        })?;
    Ok(Ways { hop, reverse_hop, rule, audited })
}

/// The same as [`way_to`], to one that may be the node by an address that means nothing beyond its link.
fn way_back(
    tables: &Tables,
    source: IpAddr,
) -> Result<(Option<NextHopId>, (PortId, &Port)), DropReason> {
    let forwarding = &tables.forwarding;
    let host = forwarding.host.filter(|_| forwarding.link_addresses.contains(&source));
    let Some(host) = host else { return way_to(tables, source) };
    let port = forwarding.next_hop(host).ok_or(DropReason::PortGone)?.port;
    Ok((Some(host), (port, tables.port(port).ok_or(DropReason::PortGone)?)))
}

/// The next hop to `address`, `None` while its neighbour is unresolved, and the port it leaves by.
fn way_to(
    tables: &Tables,
    address: IpAddr,
) -> Result<(Option<NextHopId>, (PortId, &Port)), DropReason> {
    let (hop, port) = match tables.forwarding.resolve(address)? {
        Resolved::Unresolved(port, _) => (None, port),
        Resolved::NextHop(hop) => {
            let next_hop = tables.forwarding.next_hop(hop).ok_or(DropReason::PortGone)?;
            (Some(hop), next_hop.port)
        }
    };
    Ok((hop, (port, tables.port(port).ok_or(DropReason::PortGone)?)))
}
