//! Host ports of this node's pods: frontends on the node's own addresses that lead to one pod, as
//! portmap does it. A service that listens there as well comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::address::Protocol;
use dataplane::lb::{Backend, Frontend, FrontendKind, Service};

use super::NodeView;
use super::drafts::PortDraft;
use super::endpoints::BackendSets;
use super::services::{Key, Owner};
use super::warnings::Warning;
use crate::model::{HostPort, Pod, WEIGHT_DEFAULT};

/// Whether the pod's host ports are served by `node`.
fn is_served_by(pod: &Pod, node: &NodeView) -> bool {
    let is_here = match &pod.node {
        Some(name) => **name == *node.name,
        None => node.endpoints.contains_key(&pod.name),
    };
    is_here && !pod.host_network && !pod.is_completed()
}

/// The pod's host ports as they are to be, if they are served by `node`.
pub(super) fn draft(
    pod: &Pod,
    node: &NodeView,
    sets: &BackendSets,
    told: &mut BTreeSet<Warning>,
) -> Vec<PortDraft> {
    let mut ports = Vec::new();
    if !is_served_by(pod, node) {
        return ports;
    }
    let owner = Owner::Pod(pod.name.clone());
    for (place, port) in pod.host_ports.iter().enumerate() {
        if let Some(why_not) = complaint(port, node) {
            told.insert(Warning::new(owner.to_string(), why_not));
            continue;
        }
        for ipv4 in [true, false] {
            let own = pod.addresses.iter().find(|address| address.is_ipv4() == ipv4);
            let frontends = frontends(port, node, ipv4);
            let (Some(address), false) = (own, frontends.is_empty()) else { continue };
            let backend = Backend {
                address: *address,
                l4_port: port.container_port,
                local: true,
                weight: WEIGHT_DEFAULT,
            };
            let set = sets.known_or_new(vec![backend]);
            let service = Service::of_set(format!("{owner}:{}", port.l4_port), set);
            let key = Key::new(&owner, &place.to_string(), port.protocol, ipv4);
            let host_backends = BTreeSet::new();
            ports.push(PortDraft { place, key, frontends, service, host_backends });
        }
    }
    ports
}

/// Why it cannot be served.
fn complaint(port: &HostPort, node: &NodeView) -> Option<String> {
    let HostPort { address, protocol, l4_port, .. } = port;
    if !matches!(*protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
        return Some(format!("hostPort {l4_port}/{protocol} is left out: no such protocol"));
    }
    let address = address.filter(|address| !address.is_unspecified())?;
    if address.is_loopback() {
        let text = "what goes over lo does not come by here; name an address of the node";
        return Some(format!("hostPort {l4_port} on {address} is not served: {text}"));
    }
    (!node.addresses.contains(&address)).then(|| {
        format!("hostPort {l4_port} is not served: hostIP {address} is not an address of this node")
    })
}

fn frontends(port: &HostPort, node: &NodeView, ipv4: bool) -> BTreeMap<Frontend, FrontendKind> {
    let is_meant = |own: &&IpAddr| {
        own.is_ipv4() == ipv4
            && port.address.is_none_or(|address| match address.is_unspecified() {
                true => address.is_ipv4() == ipv4,
                false => address == **own,
            })
    };
    let own = node.addresses.iter().filter(is_meant);
    own.map(|address| {
        let at = Frontend { address: *address, protocol: port.protocol, l4_port: port.l4_port };
        (at, FrontendKind::HostPort)
    })
    .collect()
}
