//! The host's routes to local pods and services, and what leads replies of its backends back.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use dataplane::address::Protocol;
use dataplane::forwarding::Forwarding;
use dataplane::lb::ServiceRanges;
use dataplane::lpm::Prefix;

use super::Node;
use super::reconciles::Reconcile;
use crate::host_port::{HOST_INTERFACE, HostPortError, HostRoutes, Making};
use crate::netlink::KernelView;

/// The host's routes, while they are being made.
pub(super) struct Leading {
    began: Instant,
    made: Result<Making, HostPortError>,
}

/// What the host's routes were made of: most changes of a cluster leave it alone.
#[derive(Debug)]
pub(super) struct MadeOf {
    forwarding: Arc<Forwarding>,
    sources: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    services: Arc<ServiceRanges>,
    host_backends: Arc<hashbrown::HashSet<(Protocol, u16)>>,
}

impl MadeOf {
    /// Which pods came and went where nothing else differs from `before`. What is a service's address,
    /// too, stays.
    fn pods_since(&self, before: &Self) -> Option<[BTreeSet<Prefix>; 2]> {
        let is_alike = self.sources == before.sources
            && self.services == before.services
            && self.host_backends == before.host_backends
            && self.forwarding.node_addresses == before.forwarding.node_addresses;
        let apart = |one: &Self, other: &Self| {
            let other = &other.forwarding.endpoints;
            let own = one.forwarding.endpoints.keys();
            own.filter(|address| !other.contains_key(address))
                .filter(|address| !self.services.apart.contains(address))
                .map(Prefix::host)
                .collect()
        };
        is_alike.then(|| [apart(self, before), apart(before, self)])
    }
}

impl PartialEq for MadeOf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.forwarding, &other.forwarding)
            && self.sources == other.sources
            && self.services == other.services
            && self.host_backends == other.host_backends
    }
}

impl Node {
    /// Begins to lead host processes to local pods and services, and replies of host backends back.
    pub(super) async fn begin_to_lead_host(&mut self, view: &KernelView) -> Option<Leading> {
        let host = self.host.as_ref()?;
        let tables = self.publisher.tables();
        let (source_v4, source_v6) = self.uplink_addresses(view);
        let made_of = MadeOf {
            forwarding: Arc::clone(&tables.forwarding),
            sources: (source_v4, source_v6),
            services: Arc::clone(&tables.service_ranges),
            host_backends: Arc::clone(&tables.host_backends),
        };
        let before = self.host_routes_of.as_ref();
        if before == Some(&made_of) {
            return None;
        }
        let began = Instant::now();
        let pods = before.and_then(|before| made_of.pods_since(before));
        let is_first = before.is_none();
        self.host_routes_of = Some(made_of);
        if let Some([came, gone]) = pods {
            // Routes to services, of which there may be tens of thousands, are not looked at.
            gone.iter().for_each(|prefix| _ = self.host_routes.destinations.remove(prefix));
            self.host_routes.destinations.extend(&came);
            let backend_l4_ports = self.host_routes.backend_l4_ports.clone();
            let routes = HostRoutes { destinations: came, source_v4, source_v6, backend_l4_ports };
            let before = HostRoutes { destinations: gone, ..routes.clone() };
            return Some(Leading { began, made: Ok(host.pair.begin_change(&before, &routes)) });
        }
        let nodes = &tables.forwarding.node_addresses;
        let ServiceRanges { whole, apart } = &*tables.service_ranges;
        let services = apart.keys().filter(|address| !nodes.contains(address));
        let hosts = tables.forwarding.endpoints.keys().chain(services).map(Prefix::host);
        let routes = HostRoutes {
            destinations: hosts.chain(whole.iter().copied()).collect(),
            source_v4,
            source_v6,
            backend_l4_ports: tables.host_backends.iter().copied().collect(),
        };
        if routes == self.host_routes {
            return None;
        }
        let before = std::mem::replace(&mut self.host_routes, routes);
        let made = match is_first {
            // What a process before has left is there, too.
            true => host.pair.begin_routes(&self.host_routes).await,
            false => Ok(host.pair.begin_change(&before, &self.host_routes)),
        };
        Some(Leading { began, made })
    }

    /// Waits until that is done. What else may have changed routes or rules is found a second later.
    pub(super) async fn end_to_lead_host(&mut self, leading: Option<Leading>) {
        let (Some(host), Some(Leading { began, made })) = (&self.host, leading) else { return };
        let made = match made {
            Ok(making) => host.pair.made(making).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(()) => self.reconciles.ran(Reconcile::HostRoutes, began.elapsed()),
            Err(_) => self.mend_host_routes().await,
        }
    }

    /// Makes the host's routes and rules what they should be, also when something else changed
    /// them.
    pub(super) async fn mend_host_routes(&mut self) {
        let Some(host) = &self.host else { return };
        let object = format!("routes by {HOST_INTERFACE}");
        let began = Instant::now();
        let set = host.pair.set_routes(&self.host_routes).await;
        self.reconciles.ran(Reconcile::HostRoutes, began.elapsed());
        match set {
            Ok(()) => self.errors.clear(&object),
            Err(error) => self.failed(Reconcile::HostRoutes, object, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use dataplane::address_map::AddressSet;

    use super::*;

    #[test]
    fn a_service_within_a_range_leaves_the_hosts_routes_alone() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let forwarding = Arc::new(Forwarding::default());
        let of = |services: &[&str]| {
            let addresses: AddressSet = services.iter().map(|text| address(text)).collect();
            let range = Prefix::new(address("10.96.0.0"), 12).unwrap();
            MadeOf {
                forwarding: Arc::clone(&forwarding),
                sources: (None, None),
                services: Arc::new(ServiceRanges::new([range].into(), &addresses)),
                host_backends: Arc::default(),
            }
        };
        let before = of(&["10.96.0.1", "203.0.113.1"]);
        assert_eq!(before, of(&["10.97.0.1", "203.0.113.1"]));
        let other = of(&["10.96.0.1", "203.0.113.2"]);
        assert_ne!(before, other);
        assert!(other.pods_since(&before).is_none(), "all routes are looked at");
    }
}
