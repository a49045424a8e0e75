//! Services with all their endpoints, and why each is used or not.

use std::collections::BTreeSet;

use dataplane::lb::{ServiceId, TrafficPolicy};

use super::super::Compiled;
use super::super::endpoints::{Endpoints, Here, Topology, is_ending};
use super::super::services::{Key, Owner};
use super::super::warnings::Source;
use crate::admin::service::{
    BACKENDS_TOLD_MAX, BackendDetail, HealthCheckInfo, ServiceDetail, ServicePortDetail,
};
use crate::model::{Endpoint, EndpointSlice, ObjectName};

/// `Cluster` or `Local`, as Kubernetes spells them.
#[must_use]
pub fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// What an endpoint says of itself, in one word.
fn state_of(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint { ready: true, .. } => "ready",
        endpoint if is_ending(endpoint) => "serving-terminating",
        Endpoint { terminating: true, .. } => "terminating",
        _ => "unready",
    }
}

impl Compiled {
    /// The service with its ports, each with the number that it has in the tables; frontends and
    /// connections are not looked at. `None` where there is no such service.
    #[must_use]
    pub fn service_detail(
        &self,
        name: &ObjectName,
    ) -> Option<(ServiceDetail, Vec<Option<ServiceId>>)> {
        let service = self.state.services.get(name)?;
        let slices: Vec<&EndpointSlice> = self.balanced.slices_of(name, &self.state).collect();
        let owner = Owner::Service(name.clone());
        let check = self.health_checks().get(name);
        let mut detail = ServiceDetail {
            name: name.to_string(),
            internal_policy: policy_name(service.internal_policy).into(),
            external_policy: policy_name(service.external_policy).into(),
            source_ranges: service.source_ranges.iter().map(ToString::to_string).collect(),
            health_check: check.map(|check| HealthCheckInfo {
                l4_port: check.l4_port,
                local_endpoints: check.local_endpoints,
                failure: None,
            }),
            ports: Vec::new(),
            warnings: Vec::new(),
        };
        detail.warnings.extend(
            self.warnings.of(&Source::Frontends(owner.clone())).map(|one| one.message.clone()),
        );
        let mut numbers = Vec::new();
        for port in service.ports.iter().filter(|_| !service.headless) {
            for ipv4 in [true, false] {
                let of_family = service.addresses().any(|address| address.is_ipv4() == ipv4);
                if !of_family {
                    continue;
                }
                let told = &mut BTreeSet::new();
                let endpoints = Endpoints::serving(service, &slices, port, ipv4, &self.node, told);
                let name = match port.name.as_str() {
                    "" => port.l4_port.to_string(),
                    name => name.to_owned(),
                };
                let family = if ipv4 { "IPv4" } else { "IPv6" };
                detail.ports.push(self.port_detail(name, family, &endpoints));
                let key = Key::new(&owner, &port.name, port.protocol, ipv4);
                numbers.push(self.balanced.number_of(&key));
            }
        }
        Some((detail, numbers))
    }

    fn port_detail(
        &self,
        name: String,
        family: &str,
        endpoints: &Endpoints<'_>,
    ) -> ServicePortDetail {
        let (topology, why_not) = endpoints.topology(Here::of(&self.node, &self.state));
        let (cluster, local) = (endpoints.of_cluster(topology), endpoints.of_node());
        let is_in = |set: &[dataplane::lb::Backend], at: &(std::net::IpAddr, u16)| {
            set.iter().any(|one| (one.address, one.l4_port) == *at)
        };
        let any_ready = endpoints.all.values().any(|(endpoint, _)| endpoint.ready);
        let backends =
            endpoints.all.iter().take(BACKENDS_TOLD_MAX).map(|(at, (endpoint, local_to))| {
                let (in_cluster, in_local) = (is_in(&cluster, at), is_in(&local, at));
                let reason = match state_of(endpoint) {
                    "ready" => format!("hints: {topology}"),
                    "serving-terminating" if any_ready => "others are ready".into(),
                    state => format!("it is {state}"),
                };
                BackendDetail {
                    address: at.0,
                    l4_port: at.1,
                    node: endpoint.node.as_deref().map(str::to_owned),
                    local: *local_to,
                    weight: self.weights.of(at.0, &self.claims, &self.state),
                    state: state_of(endpoint).into(),
                    in_cluster,
                    in_local,
                    why_not: (!in_cluster && !in_local).then_some(reason),
                    connections: 0,
                    bytes: None,
                }
            });
        let topology_text = match (topology, why_not) {
            (Topology::Anywhere, Some(why)) => format!("hints are not followed: {why}"),
            (topology, _) => topology.to_string(),
        };
        ServicePortDetail {
            name,
            family: family.into(),
            frontends: Vec::new(),
            topology: topology_text,
            choice: String::new(),
            way_back: String::new(),
            backends: backends.collect(),
            left_out: endpoints.all.len().saturating_sub(BACKENDS_TOLD_MAX) as u64,
        }
    }
}
