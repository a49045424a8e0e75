//! Who listens where: of several on one address and port, or with one node port, the first has it: a
//! ClusterIP before a load balancer's address, an external IP, a node port and a pod's host port, and
//! of one kind the first by name. So nobody takes a cluster's name server's address by naming it as
//! an external one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::address::Protocol;
use dataplane::address_map::AddressSet;
use dataplane::lb::{Frontend, FrontendKind, ServiceId, ServiceTable};
use hashbrown::HashMap;

use super::services::Owner;
use super::warnings::Warning;

/// A service port or host port that wants a frontend; the first in this order gets it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    pub(super) kind: FrontendKind,
    pub(super) owner: Owner,
    /// Among its owner's ports.
    pub(super) place: usize,
    pub(super) id: ServiceId,
    pub(super) whose: Whose,
}

/// Who has an address that is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whose {
    /// Services alone: all that is sent to it is led here.
    Services,
    /// This node: the L4 port is led here, and the rest stays the node's.
    Ours,
    /// A node, by its Node object: nothing but what comes here anyway is looked at for the frontend, or
    /// nobody here would reach the node any more.
    Nodes,
}

/// How many listen on an address.
#[derive(Debug, Clone, Copy, Default)]
struct Users {
    /// Whosever it is.
    all: usize,
    /// Where it is services' alone: for their ClusterIP, and for an external address.
    cluster: usize,
    external: usize,
}

impl Users {
    fn of(&mut self, listener: &Listener) -> [&mut usize; 2] {
        let Self { all, cluster, external } = self;
        let is_cluster = listener.kind == FrontendKind::ClusterIp;
        [all, if is_cluster { cluster } else { external }]
    }
}

/// Who wants an L4 port on one of the node's addresses. By its kind too: one that becomes another
/// kind comes before it goes, and must not take away what it has come for.
type NodePort = (FrontendKind, Owner, usize, IpAddr, ServiceId);

fn node_port(listener: &Listener, address: IpAddr) -> NodePort {
    (listener.kind, listener.owner.clone(), listener.place, address, listener.id)
}

/// Everybody who wants a frontend. Nearly always there is one for each.
#[derive(Debug, Clone, Default)]
pub(super) struct Listeners {
    frontends: HashMap<Frontend, Vec<Listener>>,
    /// By protocol and number, on whichever address; in an order that no number given to a service
    /// decides, as those depend on what was there before.
    node_ports: HashMap<(Protocol, u16), BTreeSet<NodePort>>,
    addresses: HashMap<IpAddr, Users>,
}

impl Listeners {
    pub(super) fn add(&mut self, frontend: Frontend, listener: Listener) {
        let Frontend { address, protocol, l4_port } = frontend;
        if listener.whose == Whose::Ours {
            let wanting = self.node_ports.entry((protocol, l4_port)).or_default();
            wanting.insert(node_port(&listener, address));
        }
        let [all, of_kind] = self.addresses.entry(address).or_default().of(&listener);
        *all += 1;
        *of_kind += usize::from(listener.whose == Whose::Services);
        let wanting = self.frontends.entry(frontend).or_default();
        if let Err(place) = wanting.binary_search(&listener) {
            wanting.insert(place, listener);
        }
    }

    pub(super) fn remove(&mut self, frontend: &Frontend, listener: &Listener) {
        let Frontend { address, protocol, l4_port } = *frontend;
        if listener.whose == Whose::Ours
            && let Some(wanting) = self.node_ports.get_mut(&(protocol, l4_port))
        {
            wanting.remove(&node_port(listener, address));
            if wanting.is_empty() {
                self.node_ports.remove(&(protocol, l4_port));
            }
        }
        if let Some(users) = self.addresses.get_mut(&address) {
            let [all, of_kind] = users.of(listener);
            *all -= 1;
            *of_kind -= usize::from(listener.whose == Whose::Services);
            if users.all == 0 {
                self.addresses.remove(&address);
            }
        }
        if let Some(wanting) = self.frontends.get_mut(frontend) {
            wanting.retain(|other| other != listener);
            if wanting.is_empty() {
                self.frontends.remove(frontend);
            }
        }
    }

    /// Whether anybody listens on `address`.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Gives the frontend to whom it is due; gives what those are warned about who do not get it.
    pub(super) fn settle(
        &self,
        frontend: &Frontend,
        table: &mut Arc<ServiceTable>,
    ) -> BTreeSet<Warning> {
        let Frontend { address, protocol, l4_port } = *frontend;
        let wanting = self.frontends.get(frontend).map_or(&[][..], Vec::as_slice);
        let holder = wanting.first().map(|listener| (listener.id, listener.kind));
        if table.frontends.get(frontend).copied() != holder {
            let frontends = &mut Arc::make_mut(table).frontends;
            match holder {
                Some(holder) => frontends.insert(*frontend, holder),
                None => frontends.remove(frontend),
            };
        }
        let at = (protocol, l4_port);
        let first = self.node_ports.get(&at).and_then(|wanting| wanting.first());
        let holder = first.map(|(.., id)| *id);
        if table.node_ports.get(&at).copied() != holder {
            let node_ports = &mut Arc::make_mut(table).node_ports;
            match holder {
                Some(holder) => node_ports.insert(at, holder),
                None => node_ports.remove(&at),
            };
        }
        let Users { cluster, external, .. } =
            self.addresses.get(&address).copied().unwrap_or_default();
        let is_services = cluster + external > 0;
        if table.addresses.contains(&address) != is_services {
            set(&mut Arc::make_mut(table).addresses, address, is_services);
        }
        let is_external = is_services && cluster == 0;
        if table.external.contains(&address) != is_external {
            set(&mut Arc::make_mut(table).external, address, is_external);
        }
        let mut told = BTreeSet::new();
        if let Some((holder, others)) = wanting.split_first() {
            for other in others.iter().filter(|other| other.id != holder.id) {
                let message = format!(
                    "listens on {address} port {l4_port}/{protocol}, where {} listens already; \
                     {} keeps it",
                    holder.owner, holder.owner,
                );
                told.insert(Warning::new(other.owner.to_string(), message));
            }
        }
        told
    }
}

fn set(addresses: &mut AddressSet, address: IpAddr, is_in: bool) {
    if is_in {
        addresses.insert(address, ());
    } else {
        addresses.remove(&address);
    }
}
