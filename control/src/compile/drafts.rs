//! Services as they are to be, before they are numbered. Drafting looks and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::lb::{Affinity, Choice, Frontend, FrontendKind, Service};
use dataplane::time::Seconds;

use super::NodeView;
use super::endpoints::{Endpoints, Here};
use super::health_checks::HealthCheck;
use super::host_ports;
use super::maglev;
use super::naming::fnv;
use super::services::{DraftedOf, Key, Owner, Services};
use super::stateless;
use super::warnings::Warning;
use crate::model::{
    self, EndpointSlice, FORWARDING_MODE, ForwardingMode, LOAD_BALANCING, STATELESS, ServicePort,
};

/// A service as it is to be, or a pod's host ports; without ports where it is gone, or headless.
pub(super) struct Draft {
    pub(super) owner: Owner,
    pub(super) ports: Vec<PortDraft>,
    /// Whether its backends depend on which zone the node is in.
    pub(super) has_hints: bool,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) told: BTreeSet<Warning>,
}

/// One port of it in one family.
pub(super) struct PortDraft {
    /// Which of the service's ports it is.
    pub(super) place: usize,
    pub(super) key: Key,
    pub(super) frontends: BTreeMap<Frontend, FrontendKind>,
    /// With sets of backends that may be others' as well.
    pub(super) service: Service,
    /// L4 ports of its endpoints in the node's own network.
    pub(super) host_backends: BTreeSet<u16>,
}

/// What services are drafted of.
pub(super) struct Drafting<'a> {
    pub(super) services: &'a Services,
    pub(super) of: DraftedOf<'a>,
}

impl Drafting<'_> {
    pub(super) fn draft(&self, owner: &Owner) -> Draft {
        let mut draft = Draft {
            owner: owner.clone(),
            ports: Vec::new(),
            has_hints: false,
            health_check: None,
            told: BTreeSet::new(),
        };
        let name = match owner {
            Owner::Service(name) => name,
            Owner::Pod(name) => {
                if let Some(pod) = self.of.state.pods.get(name) {
                    let sets = self.services.sets();
                    draft.ports = host_ports::draft(pod, self.of.node, sets, &mut draft.told);
                }
                return draft;
            }
        };
        let slices: Vec<&EndpointSlice> = self.services.slices_of(name, self.of.state).collect();
        let service = match self.of.state.services.get(name) {
            Some(service) if !service.headless => service,
            Some(_) => return draft,
            None => {
                draft.told.extend(slices.first().map(|slice| {
                    let more = match slices.len() - 1 {
                        0 => String::new(),
                        more => format!(", and so do {more} more"),
                    };
                    let message = format!("names Service {name}, which is not there{more}");
                    Warning::new(format!("EndpointSlice {}", slice.name), message)
                }));
                return draft;
            }
        };
        let mut endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        draft.has_hints = endpoints.any(|endpoint| endpoint.hints.is_some());
        draft.told.extend(slices.iter().filter_map(|slice| {
            let message = format!("{}; the others are used", slice.left_out.as_deref()?);
            Some(Warning::new(format!("EndpointSlice {}", slice.name), message))
        }));
        draft.health_check = HealthCheck::of(service, &slices, self.of.node);
        warn(service, self.of.node, !slices.is_empty(), &mut draft.told);
        self.warn_of_nodes(service, &mut draft.told);
        let is_stateless = self.is_stateless(service, draft.has_hints, &mut draft.told);
        for (place, port) in service.ports.iter().enumerate() {
            for ipv4 in [true, false] {
                let frontends = frontends(service, port, self.of.node, ipv4);
                if frontends.is_empty() {
                    continue;
                }
                let key = Key::new(owner, &port.name, port.protocol, ipv4);
                let told = &mut draft.told;
                let endpoints =
                    Endpoints::serving(service, &slices, port, ipv4, self.of.node, told);
                let mut drafted = self.of_port(service, port, &endpoints, told);
                drafted.stateless = is_stateless && drafted.stateless;
                let host_backends = endpoints.in_host_network(self.of.node);
                let service = drafted;
                draft.ports.push(PortDraft { place, key, frontends, service, host_backends });
            }
        }
        draft
    }

    /// Names an address of the service's that another node has.
    fn warn_of_nodes(&self, service: &model::Service, warnings: &mut BTreeSet<Warning>) {
        let DraftedOf { node, node_addresses, .. } = self.of;
        let of_another = |address: IpAddr| {
            let holder = node_addresses.holder(address)?;
            let is_another = holder != node.name && !node.addresses.contains(&address);
            is_another.then_some((address, holder))
        };
        let all: BTreeSet<IpAddr> = service.addresses().collect();
        let mut others = all.into_iter().filter_map(of_another);
        let Some((address, holder)) = others.next() else { return };
        let more = match others.count() {
            0 => String::new(),
            more => format!(", and {more} more are nodes' as well"),
        };
        let message = format!(
            "its address {address} is node {holder}'s{more}; its own ports are served there, and all \
             others stay the node's"
        );
        warnings.insert(Warning::new(format!("Service {}", service.name), message));
    }

    /// Whether no flows are to be kept, as far as that is a matter of the service as a whole.
    fn is_stateless(
        &self,
        service: &model::Service,
        has_hints: bool,
        warnings: &mut BTreeSet<Warning>,
    ) -> bool {
        if service.stateless != Some(true) {
            return false;
        }
        let is_direct = service.forwarding.is_direct(self.of.node.returns_directly);
        let against = stateless::against(service, is_direct, has_hints);
        if !against.is_empty() {
            let why = against.join("; ");
            let message =
                format!("annotation {STATELESS} does not hold, and flows are kept: {why}");
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        against.is_empty()
    }

    fn of_port(
        &self,
        service: &model::Service,
        port: &ServicePort,
        endpoints: &Endpoints<'_>,
        warnings: &mut BTreeSet<Warning>,
    ) -> Service {
        let (topology, why_not) = endpoints.topology(Here::of(self.of.node, self.of.state));
        let mut cluster = endpoints.of_cluster(topology);
        let mut local = endpoints.of_node();
        if let Some(why_not) = why_not {
            let message = format!("topology hints of its endpoints are not followed: {why_not}");
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        let count = cluster.len();
        if count > maglev::BACKENDS_MAX {
            cluster.truncate(maglev::BACKENDS_MAX);
            local.truncate(maglev::BACKENDS_MAX);
            let max = maglev::BACKENDS_MAX;
            let message = format!("has {count} endpoints; only the first {max} are used");
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        for backend in cluster.iter_mut().chain(&mut local) {
            let DraftedOf { state, weights, claims, .. } = self.of;
            backend.weight = weights.of(backend.address, claims, state);
        }
        let label = if port.name.is_empty() { port.l4_port.to_string() } else { port.name.clone() };
        let sets = self.services.sets();
        let lingering = endpoints.lingering([&cluster, &local]);
        let name = format!("{}:{label}", service.name);
        let against = stateless::against_port(port.protocol, endpoints.changes_family);
        if let Some(why) = against.filter(|_| service.stateless == Some(true)) {
            let message = format!("annotation {STATELESS} does not hold for port {label}: {why}");
            warnings.insert(Warning::new(format!("Service {}", service.name), message));
        }
        let affinity = service.affinity_seconds.map(|seconds| Affinity {
            service: fnv(format!("{name} {}", port.protocol).as_bytes()),
            timeout: Seconds(seconds),
        });
        Service {
            name: name.into(),
            cluster: sets.known_or_new(cluster),
            local: sets.known_or_new(local),
            lingering,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            // All of them in both families: ranges of one family alone keep the other out.
            source_ranges: service.source_ranges.clone().into(),
            choice: service.choice.unwrap_or_default(),
            affinity,
            changes_family: endpoints.changes_family,
            direct: service.forwarding.is_direct(self.of.node.returns_directly),
            stateless: against.is_none(),
        }
    }
}

fn warn(
    service: &model::Service,
    node: &NodeView,
    has_slices: bool,
    warnings: &mut BTreeSet<Warning>,
) {
    let mut warn = |message: String| {
        warnings.insert(Warning::new(format!("Service {}", service.name), message));
    };
    if service.cluster_ips.is_empty() {
        warn("has no cluster address yet; without an API server, set spec.clusterIP".into());
    }
    if !has_slices {
        warn("has no EndpointSlice labelled kubernetes.io/service-name with its name".into());
    }
    for (field, addresses) in [
        ("spec.clusterIPs", &service.cluster_ips),
        ("spec.externalIPs", &service.external_ips),
        ("status.loadBalancer.ingress", &service.load_balancer_ips),
    ] {
        let mut known = BTreeSet::new();
        if let Some(again) = addresses.iter().find(|address| !known.insert(**address)) {
            warn(format!("{field} has {again} twice; it counts once"));
        }
    }
    let of_node = service.cluster_ips.iter().filter(|own| node.addresses.contains(own));
    for address in of_node {
        warn(format!("its cluster address {address} is this node's own; give it another"));
    }
    if service.choice.is_none() {
        warn(format!(
            "annotation {LOAD_BALANCING} is neither maglev, random nor least-connections; it counts \
             as maglev"
        ));
    }
    if service.forwarding == ForwardingMode::Unreadable {
        let word = if node.returns_directly { "dsr" } else { "snat" };
        warn(format!(
            "annotation {FORWARDING_MODE} is neither snat nor dsr; load_balancing.mode counts: {word}"
        ));
    }
    if service.stateless.is_none() {
        warn(format!("annotation {STATELESS} is neither true nor false; it counts as false"));
    }
    let word = match service.choice {
        Some(Choice::Random) => Some("random"),
        Some(Choice::LeastConnections) => Some("least-connections"),
        Some(Choice::Maglev) | None => None,
    };
    if let Some(word) = word.filter(|_| service.affinity_seconds.is_some()) {
        warn(format!(
            "annotation {LOAD_BALANCING} says {word}, and spec.sessionAffinity ClientIP; a client's \
             address decides"
        ));
    }
    for port in &service.ports {
        if let Some(l4_port) = port.node_port.filter(|port| !node.node_port_range.contains(port)) {
            let range = &node.node_port_range;
            let (first, last) = (range.start(), range.end());
            warn(format!(
                "node port {l4_port} is outside cluster.node_port_range ({first}-{last}), so it \
                 is not served"
            ));
        }
    }
}

/// Where one port listens in one family. A frontend that is listed twice has the later kind: the
/// more particular, which is the one with source ranges.
fn frontends(
    service: &model::Service,
    port: &ServicePort,
    node: &NodeView,
    ipv4: bool,
) -> BTreeMap<Frontend, FrontendKind> {
    let mut frontends = BTreeMap::new();
    let mut listen = |addresses: &mut dyn Iterator<Item = &IpAddr>, l4_port, kind| {
        for address in addresses.filter(|address| address.is_ipv4() == ipv4) {
            let frontend = Frontend { address: *address, protocol: port.protocol, l4_port };
            frontends.insert(frontend, kind);
        }
    };
    listen(&mut service.cluster_ips.iter(), port.l4_port, FrontendKind::ClusterIp);
    listen(&mut service.external_ips.iter(), port.l4_port, FrontendKind::ExternalIp);
    listen(&mut service.load_balancer_ips.iter(), port.l4_port, FrontendKind::LoadBalancer);
    // Node ports belong to the families the service has addresses of.
    let family = service.cluster_ips.iter().any(|address| address.is_ipv4() == ipv4);
    let served = port.node_port.filter(|l4_port| node.node_port_range.contains(l4_port));
    if let Some(l4_port) = served.filter(|_| family || service.cluster_ips.is_empty()) {
        listen(&mut node.node_port_addresses.iter(), l4_port, FrontendKind::NodePort);
    }
    frontends
}
