//! Services and EndpointSlices, from the Kubernetes API's types.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::lb::TrafficPolicy;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::convert::{
    Problem, address, l4_port, namespaced_name, prefixes, problem, protocol, title,
};
use super::{Endpoint, EndpointSlice, Hints, InvalidObject, Service, ServicePort, SlicePort};

/// Endpoints of one slice (discovery.k8s.io/v1).
const ENDPOINTS_MAX: usize = 1000;
/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label of a Service that another proxy serves, whose name it says.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Reads a Service.
///
/// # Errors
/// No port, a port out of range, two ports alike, an address or range that cannot be read, an
/// unknown type or traffic policy.
pub fn service(object: core::Service) -> Result<Service, InvalidObject> {
    let title = title("Service", &object.metadata);
    read_service(object).map_err(|problem| problem.of(title))
}

fn read_service(object: core::Service) -> Result<Service, Problem> {
    let name = namespaced_name(&object.metadata)?;
    let spec = object.spec.ok_or_else(|| problem("spec", "is missing"))?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let known = "use ClusterIP, NodePort, LoadBalancer or ExternalName";
        return Err(problem("spec.type", format!("{kind:?} is no type of service; {known}")));
    }
    let cluster_ips = cluster_ips(&spec)?;
    let labels = object.metadata.labels.as_ref();
    let is_others = labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
    let headless = cluster_ips.is_none() || kind == "ExternalName" || is_others;
    let ports = service_ports(&spec, headless, kind)?;
    let external_ips = spec.external_ips.clone().unwrap_or_default();
    let ingress = object.status.and_then(|status| status.load_balancer?.ingress);
    Ok(Service {
        name,
        cluster_ips: cluster_ips.unwrap_or_default(),
        headless,
        external_ips: addresses("spec.externalIPs", &external_ips)?,
        load_balancer_ips: match kind {
            "LoadBalancer" => load_balancer_ips(&ingress.unwrap_or_default())?,
            _ => Vec::new(),
        },
        ports,
        internal_policy: traffic_policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
        )?,
        external_policy: traffic_policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
        )?,
        source_ranges: prefixes(
            "spec.loadBalancerSourceRanges",
            &spec.load_balancer_source_ranges.clone().unwrap_or_default(),
        )?,
        health_check_node_port: health_check_node_port(&spec, kind)?,
        affinity_seconds: affinity_seconds(&spec)?,
        choice: super::weight::choice(object.metadata.annotations.as_ref()),
        forwarding: super::ForwardingMode::of(object.metadata.annotations.as_ref()),
        stateless: super::forwarding::stateless(object.metadata.annotations.as_ref()),
    })
}

/// `None` when the service is headless.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Option<Vec<IpAddr>>, Problem> {
    let (field, texts) = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(texts), _) if !texts.is_empty() => ("spec.clusterIPs", texts.clone()),
        (_, Some(text)) if !text.is_empty() => ("spec.clusterIP", vec![text.clone()]),
        _ => return Ok(Some(Vec::new())),
    };
    if texts.iter().any(|text| text == "None") {
        return Ok(None);
    }
    addresses(field, &texts).map(Some)
}

/// As they are listed: one that is there twice counts once, which is told when it is compiled.
fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, Problem> {
    let texts = texts.iter().enumerate();
    texts.map(|(index, text)| address(&format!("{field}[{index}]"), text)).collect()
}

fn load_balancer_ips(ingress: &[core::LoadBalancerIngress]) -> Result<Vec<IpAddr>, Problem> {
    let mut list = Vec::new();
    for (index, entry) in ingress.iter().enumerate() {
        // `Proxy`: the balancer wants the packets of pods too, so they must be routed to it.
        if entry.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        if let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) {
            list.push(address(&format!("status.loadBalancer.ingress[{index}].ip"), text)?);
        }
    }
    Ok(list)
}

fn service_ports(
    spec: &core::ServiceSpec,
    headless: bool,
    kind: &str,
) -> Result<Vec<ServicePort>, Problem> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    if listed.is_empty() && !headless {
        return Err(problem("spec.ports", "a service needs at least one port; add one"));
    }
    let mut ports: Vec<ServicePort> = Vec::with_capacity(listed.len());
    for (index, entry) in listed.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let number = l4_port(&format!("{path}.port"), entry.port)?;
        let protocol = protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?;
        let node_port = match entry.node_port {
            None | Some(0) => None,
            Some(number) => Some(l4_port(&format!("{path}.nodePort"), number)?),
        };
        if node_port.is_some() && !matches!(kind, "NodePort" | "LoadBalancer") {
            let text = format!("a service of type {kind} has no node port; remove it");
            return Err(problem(format!("{path}.nodePort"), text));
        }
        let name = entry.name.clone().unwrap_or_default();
        if name.is_empty() && listed.len() > 1 {
            let text = "is missing; a service with several ports must name each";
            return Err(problem(format!("{path}.name"), text));
        }
        for (other_index, other) in ports.iter().enumerate() {
            if other.name == name {
                let text = format!("{name:?} is the name of spec.ports[{other_index}] too");
                return Err(problem(format!("{path}.name"), text));
            }
            if (other.protocol, other.l4_port) == (protocol, number) {
                let text = format!("{number}/{protocol} is spec.ports[{other_index}] already");
                return Err(problem(format!("{path}.port"), text));
            }
        }
        ports.push(ServicePort { name, protocol, l4_port: number, node_port });
    }
    Ok(ports)
}

/// Only load balancers that ask for local backends alone have to know where these are.
fn health_check_node_port(spec: &core::ServiceSpec, kind: &str) -> Result<Option<u16>, Problem> {
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    match spec.health_check_node_port.filter(|number| *number != 0) {
        Some(number) if kind == "LoadBalancer" && is_local => {
            l4_port("spec.healthCheckNodePort", number).map(Some)
        }
        _ => Ok(None),
    }
}

fn traffic_policy(field: &str, text: Option<&str>) -> Result<TrafficPolicy, Problem> {
    match text {
        None | Some("Cluster" | "") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => {
            Err(problem(field, format!("{other:?} is no traffic policy; use Cluster or Local")))
        }
    }
}

/// The API's default and bounds (`core/v1`, ClientIPConfig).
const AFFINITY_SECONDS_DEFAULT: u32 = 10_800;
const AFFINITY_SECONDS: std::ops::RangeInclusive<u32> = 1..=86_400;

fn affinity_seconds(spec: &core::ServiceSpec) -> Result<Option<u32>, Problem> {
    match spec.session_affinity.as_deref() {
        None | Some("None" | "") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            let text = format!("{other:?} is no session affinity; use None or ClientIP");
            return Err(problem("spec.sessionAffinity", text));
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Ok(Some(AFFINITY_SECONDS_DEFAULT));
    };
    match u32::try_from(seconds).ok().filter(|seconds| AFFINITY_SECONDS.contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => {
            let text = format!("{seconds} is not from 1 to 86400 seconds");
            Err(problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", text))
        }
    }
}

/// Reads an EndpointSlice.
///
/// # Errors
/// An unknown address type, a port out of range, more endpoints than a slice may have. An endpoint that
/// cannot be used is left out by itself ([`EndpointSlice::left_out`]).
pub fn endpoint_slice(object: discovery::EndpointSlice) -> Result<EndpointSlice, InvalidObject> {
    let title = title("EndpointSlice", &object.metadata);
    read_endpoint_slice(object).map_err(|problem| problem.of(title))
}

fn read_endpoint_slice(object: discovery::EndpointSlice) -> Result<EndpointSlice, Problem> {
    let name = namespaced_name(&object.metadata)?;
    let wants_ipv4 = match object.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        "FQDN" => None,
        other => {
            let text = format!("{other:?} is no address type; use IPv4 or IPv6");
            return Err(problem("addressType", text));
        }
    };
    let mut ports = Vec::new();
    for (index, entry) in object.ports.unwrap_or_default().iter().enumerate() {
        let path = format!("ports[{index}]");
        ports.push(SlicePort {
            name: entry.name.clone().unwrap_or_default(),
            protocol: protocol(&format!("{path}.protocol"), entry.protocol.as_deref())?,
            l4_port: match entry.port {
                None => None,
                Some(number) => Some(l4_port(&format!("{path}.port"), number)?),
            },
        });
    }
    let listed = object.endpoints.as_ref().map_or(0, Vec::len);
    if listed > ENDPOINTS_MAX {
        let text = format!("{listed} are more than a slice may have ({ENDPOINTS_MAX}); split it");
        return Err(problem("endpoints", text));
    }
    let (mut endpoints, mut bad) = (Vec::new(), Vec::new());
    if let Some(wants_ipv4) = wants_ipv4 {
        for (index, entry) in object.endpoints.unwrap_or_default().into_iter().enumerate() {
            match read_endpoint(&format!("endpoints[{index}]"), entry, wants_ipv4) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(problem) => bad.push(problem),
            }
        }
    }
    let left_out = bad.first().map(|Problem { field, problem }| match bad.len() - 1 {
        0 => format!("{field}: {problem}; left out"),
        more => format!("{field}: {problem}; left out, and {more} more endpoints"),
    });
    let service = object.metadata.labels.and_then(|mut labels| labels.remove(SERVICE_NAME_LABEL));
    Ok(EndpointSlice { name, service, ports, endpoints, left_out })
}

fn read_endpoint(
    path: &str,
    entry: discovery::Endpoint,
    wants_ipv4: bool,
) -> Result<Endpoint, Problem> {
    let field = format!("{path}.addresses[0]");
    let text = entry.addresses.first().ok_or_else(|| problem(&*field, "is missing"))?;
    let address = address(&field, text)?;
    if address.is_ipv4() != wants_ipv4 {
        let text = format!("{address} is not of the slice's addressType");
        return Err(problem(field, text));
    }
    let conditions = entry.conditions.unwrap_or_default();
    Ok(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: entry.node_name.map(Arc::from),
        hints: entry.hints.map(hints).filter(|hints| *hints != Hints::default()).map(Box::new),
        target: entry.target_ref.and_then(pod_of),
    })
}

/// The pod that is behind an endpoint.
fn pod_of(target: core::ObjectReference) -> Option<String> {
    let is_pod = target.kind.as_deref() == Some("Pod");
    target.name.filter(|name| is_pod && !name.is_empty())
}

fn hints(hints: discovery::EndpointHints) -> Hints {
    let nodes = hints.for_nodes.unwrap_or_default();
    let zones = hints.for_zones.unwrap_or_default();
    Hints {
        nodes: nodes.into_iter().map(|node| node.name.into()).collect(),
        zones: zones.into_iter().map(|zone| zone.name.into()).collect(),
    }
}
