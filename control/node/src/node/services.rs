//! What clients ask of services: which there are, what is behind one, and which backend a packet would
//! get.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use control::admin::reply::{BackendInfo, FrontendInfo, Peer, ServiceInfo, TraceStage};
use control::admin::service::{ServiceDetail, ServiceTraceQuestion, ServiceTraceReport};
use control::admin::{AdminError, parse_protocol};
use control::compile::inventory::policy_name;
use dataplane::DropReason;
use dataplane::affinity;
use dataplane::choice::{hash_for, traffic_policy};
use dataplane::decision::{self, Decision, NewPacket};
use dataplane::direct::Role;
use dataplane::flow_key::FlowKey;
use dataplane::lb::{Choice, FrontendKind, Service, ServiceId, TrafficPolicy};
use dataplane::port::{PortId, PortKind};

use super::Node;
use super::requests::parse_name;
use crate::health_checks::Subject;
use crate::workers::monotonic_now;

/// What a trace speaks from that is told no port.
const ANY_PORT: u16 = 40_000;

impl Node {
    /// Service ports in force, by name.
    pub(super) fn services(&self) -> Vec<ServiceInfo> {
        let table = &self.publisher.tables().services;
        let mut listed: BTreeMap<ServiceId, ServiceInfo> =
            table.services.iter().map(|(id, service)| (*id, self.service_info(service))).collect();
        for (id, frontends) in self.frontends(|_| true) {
            if let Some(info) = listed.get_mut(&id) {
                info.frontends = frontends;
            }
        }
        let mut list: Vec<ServiceInfo> =
            listed.into_values().filter(|info| !info.frontends.is_empty()).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Where the services that are meant listen. Node ports and host ports, which may be on many
    /// addresses, are told once for all.
    fn frontends(
        &self,
        is_meant: impl Fn(ServiceId) -> bool,
    ) -> BTreeMap<ServiceId, Vec<FrontendInfo>> {
        let mut by_service: BTreeMap<ServiceId, Vec<FrontendInfo>> = BTreeMap::new();
        for (at, (id, kind)) in self.publisher.tables().services.frontends.iter() {
            if !is_meant(*id) {
                continue;
            }
            let is_nodes = matches!(kind, FrontendKind::NodePort | FrontendKind::HostPort);
            let info = FrontendInfo {
                kind: frontend_label(*kind).into(),
                address: (!is_nodes).then_some(at.address),
                protocol: at.protocol.to_string(),
                l4_port: at.l4_port,
            };
            by_service.entry(*id).or_default().push(info);
        }
        for frontends in by_service.values_mut() {
            frontends.sort_by(|a, b| {
                (&a.kind, a.address, a.l4_port).cmp(&(&b.kind, b.address, b.l4_port))
            });
            frontends.dedup();
        }
        by_service
    }

    /// One service and all that is behind it.
    pub(super) fn service_show(&self, name: &str) -> Result<ServiceDetail, AdminError> {
        let parsed = parse_name(name)?;
        let found = self.publisher.compiled().service_detail(&parsed);
        let (mut detail, numbers) = found.ok_or_else(|| AdminError::NotFound {
            what: "service".into(),
            name: name.into(),
            list_command: "xskiff service list".into(),
        })?;
        let mut frontends = self.frontends(|id| numbers.contains(&Some(id)));
        let connections = self.connections_of(&numbers);
        for (port, number) in detail.ports.iter_mut().zip(&numbers) {
            let Some(id) = number else { continue };
            if let Some(service) = self.publisher.tables().services.get(*id) {
                port.choice = choice_label(service).into();
                port.way_back = self.way_back(service);
            }
            port.frontends = frontends.remove(id).unwrap_or_default();
            for backend in &mut port.backends {
                let at = (*id, backend.address, backend.l4_port);
                let (flows, bytes) = connections.get(&at).copied().unwrap_or_default();
                (backend.connections, backend.bytes) = (flows, bytes);
            }
        }
        let subject = Subject::Service(parsed).to_string();
        if let Some(check) = &mut detail.health_check {
            let mut errors = self.errors.entries().into_iter();
            check.failure = errors.find(|one| one.object == subject).map(|one| one.message);
        }
        Ok(detail)
    }

    /// A service without its frontends.
    fn service_info(&self, service: &Service) -> ServiceInfo {
        let backends = service.cluster.backends.iter().map(|backend| BackendInfo {
            address: backend.address,
            l4_port: backend.l4_port,
            local: backend.local,
            weight: backend.weight,
        });
        ServiceInfo {
            name: service.name.to_string(),
            frontends: Vec::new(),
            backends: backends.collect(),
            choice: choice_label(service).into(),
            way_back: self.way_back(service),
        }
    }

    /// How clients from outside are answered by backends on other nodes.
    fn way_back(&self, service: &Service) -> String {
        let form = self.publisher.tables().direct.as_ref().map(|direct| direct.dispatch.label());
        match form.filter(|_| service.direct) {
            None => "snat".into(),
            Some(form) if service.stateless => format!("direct ({form}), stateless"),
            Some(form) => format!("direct ({form})"),
        }
    }

    /// Flows of these services by backend, with bytes where they are counted.
    fn connections_of(
        &self,
        services: &[Option<ServiceId>],
    ) -> HashMap<(ServiceId, IpAddr, u16), (u64, Option<u64>)> {
        let mut found: HashMap<_, (u64, Option<u64>)> = HashMap::new();
        self.workers.flows().for_each(monotonic_now(), |flow| {
            let Some(id) = flow.origin.service.filter(|id| services.contains(&Some(*id))) else {
                return;
            };
            let at = (id, flow.reply.source(), flow.reply.source_port());
            let of = found.entry(at).or_default();
            of.0 += 1;
            if let Some((there, back)) = flow.bytes {
                of.1 = Some(of.1.unwrap_or(0) + there + back);
            }
        });
        found
    }

    /// Which backend a packet would get.
    pub(super) fn service_trace(
        &self,
        question: &ServiceTraceQuestion,
    ) -> Result<ServiceTraceReport, AdminError> {
        let ServiceTraceQuestion { from, source_port, to, l4_port, protocol } = question;
        let protocol = parse_protocol(protocol)?;
        let source_port = source_port.unwrap_or(ANY_PORT);
        let key = FlowKey::new(protocol, (*from, source_port), (*to, *l4_port));
        let key = key.ok_or_else(|| {
            AdminError::invalid("from", "it is of another family than the service's address")
        })?;
        let mut report = ServiceTraceReport::default();
        let (ingress, whose) = self.ingress_of(*from)?;
        report.stages.push(stage("client", format!("{from} port {source_port}, {whose}")));
        let tables = self.publisher.tables();
        let remembered =
            affinity::remembered_in(self.workers.flows(), tables, &key, monotonic_now());
        self.describe_choice(&key, ingress, &mut report);
        if let Some((address, l4_port)) = remembered {
            let backend = Peer { address, l4_port };
            let finding = format!("{backend} is what the client had lately, if it is usable");
            report.stages.push(stage("affinity", finding));
        }
        let new = NewPacket {
            key,
            tcp_flags: if protocol == dataplane::address::Protocol::TCP { 2 } else { 0 },
            may_begin: true,
            hairpin: None,
            directed: None,
            remembered,
            moment: 0,
            may_be_lost_reply: false,
        };
        let decided = decision::decide(tables, ingress, &new);
        let findings = match &decided {
            Ok(Decision::Admit(admission)) => Some(admission.findings),
            Ok(Decision::Foreign(_) | Decision::Unresolved(..)) => None,
            Err(refusal) => Some(refusal.findings),
        };
        let backend = findings.and_then(|findings| findings.backend);
        report.backend = backend.map(|one| Peer { address: one.address, l4_port: one.l4_port });
        report.outcome = match decided {
            Ok(Decision::Admit(admission)) => match &report.backend {
                Some(backend) if admission.role == Some(Role::Dispatches) => {
                    let id = admission.findings.service;
                    let service = id.and_then(|id| self.publisher.tables().services.get(id));
                    let is_stateless = service.is_some_and(|service| service.stateless);
                    let kept = if is_stateless { "; no flow is kept here" } else { "" };
                    format!(
                        "to {backend}, whose node answers the client (direct server return){kept}"
                    )
                }
                Some(backend) => format!("to {backend}"),
                None => "no service's: forwarded as it is".into(),
            },
            Ok(Decision::Foreign(_)) => "no service's: the node's own".into(),
            Ok(Decision::Unresolved(_, address)) => format!("waits for neighbour {address}"),
            Err(refusal) => {
                let reason: DropReason = refusal.reason;
                format!("drop: {reason} ({})", reason.explanation().trim())
            }
        };
        Ok(report)
    }

    /// By which port packets from `address` come, and whose it is.
    fn ingress_of(&self, address: IpAddr) -> Result<(PortId, String), AdminError> {
        let tables = self.publisher.tables();
        let own = self.endpoints.iter().find(|one| one.spec.addresses.contains(&address));
        if let Some(endpoint) = own {
            return Ok((endpoint.port, format!("pod {}", endpoint.spec.name)));
        }
        let is_node = tables.forwarding.node_addresses.contains(&address);
        let wanted = if is_node { PortKind::Host } else { PortKind::Uplink };
        let mut ports = tables.ports.iter().zip(0u16..);
        let found = ports.find(|(port, _)| port.as_ref().is_some_and(|port| port.kind == wanted));
        let whose = if is_node { "this node itself" } else { "from outside" };
        let (_, place) = found.ok_or_else(|| AdminError::Failed {
            detail: format!("nothing can come {whose}: there is no port for it"),
        })?;
        Ok((PortId(place), whose.to_owned()))
    }

    /// Frontend, policy, set and slot.
    fn describe_choice(&self, key: &FlowKey, ingress: PortId, report: &mut ServiceTraceReport) {
        let tables = self.publisher.tables();
        let services = &tables.services;
        let from = tables.port(ingress).map_or(PortKind::Uplink, |port| port.kind);
        let Some((id, kind)) = services.frontend(key) else {
            let none = match tables.unserved(from, key.destination()) {
                Some(DropReason::NoServicePort) => "none on this port of a service's address",
                Some(_) => "none: the address is in a range of services, and no service's",
                None => "none: the address is no service's",
            };
            report.stages.push(stage("frontend", none.into()));
            return;
        };
        let Some(service) = services.get(id) else { return };
        let frontend = format!("{} of {}", frontend_label(kind), service.name);
        report.stages.push(stage("frontend", frontend));
        let from_outside = from == PortKind::Uplink;
        let policy = traffic_policy(service, kind, from_outside);
        let by = match kind {
            FrontendKind::ClusterIp => "internalTrafficPolicy",
            _ if from_outside => "externalTrafficPolicy",
            _ => "a client in the cluster, whom externalTrafficPolicy does not concern",
        };
        report.stages.push(stage("policy", format!("{}: {by}", policy_name(policy))));
        let (set, which) = match policy {
            TrafficPolicy::Cluster => (&service.cluster, "of the cluster"),
            TrafficPolicy::Local => (&service.local, "of this node"),
        };
        let count = set.backends.len();
        report.stages.push(stage("backends", format!("{count} {which}")));
        let Some(slot) = set.slot(hash_for(service, key, 0)) else { return };
        let by = match (service.affinity, service.choice) {
            (Some(_), _) => "by the client's address; the backend that it had lately comes first",
            (None, Choice::Maglev) => "by the connection's hash",
            (None, Choice::Random) => "by chance: the next may get another",
            (None, Choice::LeastConnections) => {
                "or another that chance draws, if that has fewer connections for its weight"
            }
        };
        let slots = set.maglev.len();
        report.stages.push(stage("slot", format!("{slot} of {slots}, {by}")));
    }
}

fn stage(stage: &str, finding: String) -> TraceStage {
    TraceStage { stage: stage.into(), finding }
}

pub(super) fn frontend_label(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster-ip",
        FrontendKind::ExternalIp => "external-ip",
        FrontendKind::LoadBalancer => "load-balancer",
        FrontendKind::NodePort => "node-port",
        FrontendKind::HostPort => "host-port",
    }
}

/// How the backend of a new connection is chosen, in one word.
fn choice_label(service: &Service) -> &'static str {
    match (service.affinity, service.choice) {
        (Some(_), _) => "client-ip",
        (None, Choice::Maglev) => "maglev",
        (None, Choice::Random) => "random",
        (None, Choice::LeastConnections) => "least-connections",
    }
}
