//! Whether a service can do without flows at the frontends' nodes, where its annotation asks for that.
//!
//! Any node must find the same backend by a packet's tuple alone. What makes nodes choose differently, or
//! makes them remember, is against it; then the service is served as without the annotation, and told.

use dataplane::address::Protocol;
use dataplane::lb::{Choice, TrafficPolicy};

use crate::model;

/// What is against it in all of the service's ports, beside each other; nothing where it can be.
pub(super) fn against(service: &model::Service, is_direct: bool, has_hints: bool) -> Vec<String> {
    let mut against = Vec::new();
    let mut is = |text: &str| against.push(text.to_owned());
    if !is_direct {
        is("clients are answered by the node that they addressed (snat), which must know their \
            connections");
    }
    if service.affinity_seconds.is_some() {
        is("spec.sessionAffinity ClientIP has clients remembered");
    }
    match service.choice {
        Some(Choice::Random) => is("backends are chosen at random"),
        Some(Choice::LeastConnections) => is("backends are chosen by their connections"),
        Some(Choice::Maglev) | None => {}
    }
    if service.external_policy == TrafficPolicy::Local {
        is("spec.externalTrafficPolicy Local leaves each node its own backends");
    }
    if has_hints {
        is(
            "its endpoints have hints (spec.trafficDistribution), by which nodes choose among different ones",
        );
    }
    let is_external = |port: &model::ServicePort| port.node_port.is_some();
    let has_address = !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty();
    if !has_address && !service.ports.iter().any(is_external) {
        is("it has no external address and no node port");
    }
    against
}

/// What is against it in one port and family alone.
pub(super) fn against_port(protocol: Protocol, changes_family: bool) -> Option<&'static str> {
    if protocol == Protocol::SCTP {
        Some("SCTP is translated")
    } else if changes_family {
        Some("its endpoints are of the other family")
    } else {
        None
    }
}
