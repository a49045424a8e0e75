//! What load balancers ask a node of a service under `externalTrafficPolicy: Local`: whether any of its
//! ready endpoints are here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::NodeView;
use super::endpoints::is_local;
use crate::model::{EndpointSlice, Service};

/// A service's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub l4_port: u16,
    /// Its ready endpoints on this node; of two families, those of the one that has more: an endpoint
    /// of both is one.
    pub local_endpoints: u32,
}

impl HealthCheck {
    /// The service's, if it has one.
    pub(super) fn of(
        service: &Service,
        slices: &[&EndpointSlice],
        node: &NodeView,
    ) -> Option<Self> {
        let l4_port = service.health_check_node_port?;
        let mut ready: [BTreeSet<IpAddr>; 2] = Default::default();
        for endpoint in slices.iter().flat_map(|slice| &slice.endpoints) {
            if endpoint.ready && is_local(endpoint, node) {
                ready[usize::from(endpoint.address.is_ipv6())].insert(endpoint.address);
            }
        }
        let local = ready.iter().map(BTreeSet::len).max().unwrap_or(0);
        Some(Self { l4_port, local_endpoints: u32::try_from(local).unwrap_or(u32::MAX) })
    }
}
