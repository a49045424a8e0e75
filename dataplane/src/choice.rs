//! Which backend a new flow to a service gets, and which flows keep theirs.

use std::net::IpAddr;

use crate::DropReason;
use crate::affinity;
use crate::decision::{Findings, NewPacket};
use crate::flow_key::{FlowKey, mix};
use crate::lb::{Backend, BackendSet, Choice, FrontendKind, Service, ServiceId, TrafficPolicy};
use crate::port::{Port, PortKind};
use crate::tables::Tables;

/// The service that `key` addresses, if any, with how it was addressed. Node ports are frontends
/// like all others, on those of the node's addresses that the configuration lets serve them.
fn frontend(
    tables: &Tables,
    key: &FlowKey,
) -> Result<Option<(ServiceId, FrontendKind)>, DropReason> {
    let services = &tables.services;
    if let Some(found) = services.frontend(key) {
        return Ok(Some(found));
    }
    if services.addresses.contains(&key.destination()) {
        return Err(DropReason::NoServicePort);
    }
    Ok(None)
}

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

/// The backend of a packet that addresses a service; `None` for any other.
///
/// # Errors
/// No such port of the service, its source ranges exclude the client, or no backend is usable.
pub(crate) fn choose_backend(
    tables: &Tables,
    port: &Port,
    packet: &NewPacket,
    findings: &mut Findings,
) -> Result<Option<Backend>, DropReason> {
    let key = &packet.key;
    let Some((id, kind)) = frontend(tables, key)? else { return Ok(None) };
    let service = tables.services.get(id).ok_or(DropReason::NoBackend)?;
    findings.service = Some(id);
    let from_outside = port.kind == PortKind::Uplink;
    // Of clients in the cluster too, as kube-proxy has it: only the policy does not concern them.
    if kind == FrontendKind::LoadBalancer && !admitted(service, key.source()) {
        return Err(DropReason::SourceRange);
    }
    let set = backend_set(service, kind, from_outside);
    let again = packet.remembered.and_then(|backend| set.find(backend));
    let hash = || hash_for(service, key, packet.moment);
    let backend = again.or_else(|| set.choose(hash())).copied();
    findings.backend = backend;
    match backend {
        Some(backend) => Ok(Some(backend)),
        None if service.cluster.backends.is_empty() => Err(DropReason::NoBackend),
        None => Err(DropReason::NoLocalBackend),
    }
}

/// What the choice goes by: the same on every node for a tuple, or for a client where its connections
/// belong together, but where chance is asked for.
/// `moment` is what differs from packet to packet of one tuple.
#[inline(always)]
#[must_use]
pub fn hash_for(service: &Service, key: &FlowKey, moment: u64) -> u64 {
    match service.affinity {
        None if service.choice == Choice::Maglev => key.stable_hash(),
        None => mix(key.stable_hash() ^ moment),
        Some(_) => affinity::hash_of(key.source()),
    }
}

fn admitted(service: &Service, client: IpAddr) -> bool {
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
