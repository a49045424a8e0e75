//! Direct server return, and other nodes than the first.

use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address_map::AddressSet;
use dataplane::direct::{Direct, Dispatch};
use dataplane::identity::Identity;
use dataplane::lb::{Service, ServiceId};
use dataplane::lpm::PrefixTable;

use super::{World, address, prefix};

impl World {
    /// Backends on other nodes answer clients of all services that there are by now; `nodes` are the
    /// cluster's, and what is behind each for Geneve.
    #[must_use]
    pub fn with_direct(mut self, dispatch: Dispatch, nodes: &[(&str, &str)]) -> Self {
        self.change_services(|service| service.direct = true);
        self.services.have_direct = true;
        let (mut known, mut node_of) = (AddressSet::default(), PrefixTable::default());
        for (node, behind) in nodes {
            known.insert(address(node), ());
            node_of.insert(prefix(behind), address(node));
        }
        let (v4, v6) = (self.source_nat.v4, self.source_nat.v6);
        self.direct = Some(Arc::new(Direct { dispatch, nodes: known, v4, v6, node_of }));
        self
    }

    /// No flows are kept of what is dispatched to services that there are by now, which are direct.
    #[must_use]
    pub fn without_flows_at_frontends(mut self) -> Self {
        self.change_services(|service| service.stateless = service.direct);
        self.services.have_stateless = true;
        self
    }

    fn change_services(&mut self, change: impl Fn(&mut Service)) {
        let ids: Vec<ServiceId> = self.services.services.keys().copied().collect();
        for id in ids {
            if let Some(known) = self.services.get(id) {
                let mut service = Service::clone(known);
                change(&mut service);
                self.services.services.insert(id, Arc::new(service));
            }
        }
    }

    /// The same as another node, of these addresses.
    #[must_use]
    pub fn as_node(mut self, own: [&str; 2]) -> Self {
        let before = std::mem::take(&mut self.forwarding.node_addresses);
        before.keys().for_each(|address| _ = self.identities.exact.remove(&address));
        for own in own.map(address) {
            self.forwarding.node_addresses.insert(own, ());
            self.identities.exact.insert(own, Identity::HOST.into());
            match own {
                IpAddr::V4(own) => self.source_nat.v4 = Some(own),
                IpAddr::V6(own) => self.source_nat.v6 = Some(own),
            }
        }
        self
    }
}
