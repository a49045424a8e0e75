//! Which backend a new flow to a service gets, and which flows keep theirs.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::DropReason;
use crate::affinity;
use crate::decision::{Findings, NewPacket};
use crate::flow_key::{FlowKey, mix};
use crate::lb::{Backend, BackendSet, Choice, FrontendKind, Service, ServiceId, TrafficPolicy};
use crate::port::{Port, PortId, PortKind};
use crate::tables::Tables;
use crate::worker::BURST;

/// Whether `key` addresses a service that is served by the other family.
pub(crate) fn changes_family(tables: &Tables, key: &FlowKey) -> bool {
    tables.services.change_family
        && service_of(tables, key).is_some_and(|service| service.changes_family)
}

/// The service that `key` addresses.
pub(crate) fn service_of<'a>(tables: &'a Tables, key: &FlowKey) -> Option<&'a Service> {
    let services = &tables.services;
    services.get(services.frontend(key)?.0).map(|service| &**service)
}

/// Whether no flow is kept of what is addressed so and goes to another node ([`crate::direct::stateless`]).
pub(crate) fn is_stateless(tables: &Tables, key: &FlowKey) -> bool {
    let services = &tables.services;
    services.have_stateless
        && services.frontend(key).is_some_and(|(id, kind)| {
            kind.is_external() && services.get(id).is_some_and(|service| service.stateless)
        })
}

/// What tables say of the service that a packet addresses, found step by step. Where there are tens of
/// thousands of services each step waits for memory, so that those of a burst's packets are made side by
/// side ([`look_ahead`]).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look<'t> {
    /// With how it was addressed. Node ports are frontends like all others, on those of the node's
    /// addresses that the configuration lets serve them.
    frontend: Option<(ServiceId, FrontendKind)>,
    service: Option<&'t Service>,
    set: Option<&'t BackendSet>,
    /// Of [`BackendSet::backends`].
    place: Option<usize>,
    backend: Option<Backend>,
}

impl<'t> Look<'t> {
    #[inline(always)]
    fn begin(tables: &Tables, packet: &NewPacket) -> Self {
        let frontend = tables.services.frontend(&packet.key);
        Self { frontend, service: None, set: None, place: None, backend: None }
    }

    #[inline(always)]
    fn at_service(&mut self, tables: &'t Tables) {
        let service = |(id, _)| tables.services.get(id).map(|service| &**service);
        self.service = self.frontend.and_then(service);
    }

    #[inline(always)]
    fn in_set(&mut self, from_outside: bool) {
        let (Some(service), Some((_, kind))) = (self.service, self.frontend) else { return };
        self.set = Some(backend_set(service, kind, from_outside));
    }

    #[inline(always)]
    fn by_hash(&mut self, tables: &Tables, packet: &NewPacket) {
        let (Some(service), Some(set)) = (self.service, self.set) else { return };
        let hash = hash_for(service, &packet.key, packet.moment);
        self.place = match tables.connections.as_deref() {
            Some(connections) if counts(service) => connections.place(set, hash),
            _ => set.place(hash),
        };
    }

    #[inline(always)]
    fn take_backend(&mut self) {
        let place = self.place.zip(self.set);
        self.backend = place.and_then(|(place, set)| set.backends.get(place)).copied();
    }

    /// Where the packet with this key goes, as far as services decide it.
    #[inline(always)]
    pub(crate) fn destination(&self, key: &FlowKey) -> IpAddr {
        self.backend.map_or_else(|| key.destination(), |backend| backend.address)
    }

    /// Whether clients from outside are answered by the backend's node ([`crate::direct`]).
    pub(crate) fn is_direct(&self) -> bool {
        self.service.is_some_and(|service| service.direct)
            && self.frontend.is_some_and(|(_, kind)| kind.is_external())
    }

    /// Whether a node port was addressed.
    pub(crate) fn is_node_port(&self) -> bool {
        self.frontend.is_some_and(|(_, kind)| kind == FrontendKind::NodePort)
    }

    /// All that can be found out about one packet.
    pub(crate) fn at(tables: &'t Tables, port: &Port, packet: &NewPacket) -> Self {
        let mut look = Self::begin(tables, packet);
        look.at_service(tables);
        look.in_set(port.kind == PortKind::Uplink);
        look.by_hash(tables, packet);
        look.take_backend();
        look
    }
}

/// The same for a burst's packets, with the port that each came by: step by step for all of them, so
/// that the processor waits for many lines of memory at once.
pub(crate) fn look_ahead<'t>(
    tables: &'t Tables,
    packets: &[(PortId, NewPacket)],
) -> ArrayVec<Look<'t>, BURST> {
    let begun = packets.iter().take(BURST).map(|(_, packet)| Look::begin(tables, packet));
    let mut looks: ArrayVec<Look<'t>, BURST> = begun.collect();
    if looks.iter().all(|look| look.frontend.is_none()) {
        return looks;
    }
    looks.iter_mut().for_each(|look| look.at_service(tables));
    for (look, (ingress, _)) in looks.iter_mut().zip(packets) {
        look.in_set(tables.port(*ingress).is_some_and(|port| port.kind == PortKind::Uplink));
    }
    looks.iter_mut().zip(packets).for_each(|(look, (_, packet))| look.by_hash(tables, packet));
    looks.iter_mut().for_each(Look::take_backend);
    looks
}

/// The backend of a packet that addresses a service; `None` for any other.
///
/// # Errors
/// No such service, or no such port of it, its source ranges exclude the client, or no backend is usable.
pub(crate) fn choose_backend(
    tables: &Tables,
    from: PortKind,
    packet: &NewPacket,
    look: &Look<'_>,
    findings: &mut Findings,
) -> Result<Option<Backend>, DropReason> {
    let key = &packet.key;
    let Some((id, kind)) = look.frontend else {
        return tables.unserved(from, key.destination()).map_or(Ok(None), Err);
    };
    let service = look.service.ok_or(DropReason::NoBackend)?;
    findings.service = Some(id);
    // Of clients in the cluster too, as kube-proxy has it: only the policy does not concern them.
    if kind == FrontendKind::LoadBalancer && !admitted(service, key.source()) {
        return Err(DropReason::SourceRange);
    }
    let again = packet.remembered.and_then(|backend| look.set?.find(backend)).copied();
    let backend = again.or(look.backend);
    findings.backend = backend;
    findings.counts = counts(service);
    match backend {
        Some(backend) => Ok(Some(backend)),
        None if service.cluster.backends.is_empty() => Err(DropReason::NoBackend),
        None => Err(DropReason::NoLocalBackend),
    }
}

/// What the choice goes by: the same on every node for a tuple, or for a client where its connections
/// belong together, but where chance has a part in it. `moment` is what differs from packet to packet of one tuple.
#[inline(always)]
#[must_use]
pub fn hash_for(service: &Service, key: &FlowKey, moment: u64) -> u64 {
    match service.affinity {
        None if service.choice == Choice::Maglev => key.stable_hash(),
        None => mix(key.stable_hash() ^ moment),
        Some(_) => affinity::hash_of(key.source()),
    }
}

/// Whether the service's flows are counted among their backends' connections.
#[inline(always)]
fn counts(service: &Service) -> bool {
    service.choice == Choice::LeastConnections && service.affinity.is_none()
}

pub(crate) fn admitted(service: &Service, client: IpAddr) -> bool {
    service.source_ranges.is_empty()
        || service.source_ranges.iter().any(|range| range.contains(client))
}

/// The policy for a client: those inside the cluster ignore the external one, also when they use an
/// external address (Kubernetes, "Virtual IPs and Service Proxies").
#[must_use]
pub fn traffic_policy(service: &Service, kind: FrontendKind, from_outside: bool) -> TrafficPolicy {
    match kind {
        FrontendKind::ClusterIp => service.internal_policy,
        _ if from_outside => service.external_policy,
        _ => TrafficPolicy::Cluster,
    }
}

#[inline(always)]
fn backend_set(service: &Service, kind: FrontendKind, from_outside: bool) -> &BackendSet {
    match traffic_policy(service, kind, from_outside) {
        TrafficPolicy::Cluster => &service.cluster,
        TrafficPolicy::Local => &service.local,
    }
}

/// Whether the backend of a known flow is to be chosen anew: it is no longer one that serves, of a
/// service that is still there. A service that is gone leaves its flows to their end.
pub(crate) fn is_let_go(tables: &Tables, original: &FlowKey, backend: (IpAddr, u16)) -> bool {
    service_of(tables, original).is_some_and(|service| !service.serves_by(backend))
}

/// Whether a flow of no service's, which `answers` answers, addresses a service that has backends by now.
pub(crate) fn is_passed_by(tables: &Tables, original: &FlowKey, answers: (IpAddr, u16)) -> bool {
    let is_untranslated = answers == (original.destination(), original.destination_port());
    is_untranslated
        && service_of(tables, original)
            .is_some_and(|service| service.has_backends() && !service.serves_by(answers))
}
