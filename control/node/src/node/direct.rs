//! What direct server return needs beside services: the cluster's nodes, and this one's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use control::store::ClusterState;
use dataplane::direct::{Direct, Dispatch};
use dataplane::lpm::{Prefix, PrefixTable};

use super::Node;
use crate::netlink::KernelView;

/// What it was made of: the form, changes of Nodes so far, and the uplinks' addresses.
type MadeOf = (Dispatch, u64, (Option<Ipv4Addr>, Option<Ipv6Addr>));

/// The one in force, with what it was made of.
#[derive(Debug, Default)]
pub(super) struct Known(Option<(MadeOf, Arc<Direct>)>);

impl Node {
    /// For tables; `None` while no service in force asks for it.
    pub(super) fn direct(&mut self, view: &KernelView) -> Option<Arc<Direct>> {
        let compiled = self.publisher.compiled();
        if !compiled.services.have_direct {
            return None;
        }
        let (dispatch, own) = (self.settings.dispatch, self.uplink_addresses(view));
        let made_of = (dispatch, compiled.node_changes(), own);
        if let Some((known, direct)) = &self.direct.0
            && *known == made_of
        {
            return Some(Arc::clone(direct));
        }
        let direct = Arc::new(make(self.publisher.cluster(), dispatch, own));
        self.direct = Known(Some((made_of, Arc::clone(&direct))));
        Some(direct)
    }
}

fn make(
    cluster: &ClusterState,
    dispatch: Dispatch,
    (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
) -> Direct {
    let addresses = cluster.nodes.values().flat_map(|node| &node.addresses);
    let nodes = addresses.map(|address| (*address, ())).collect();
    let mut node_of = PrefixTable::default();
    if dispatch == Dispatch::Geneve {
        for node in cluster.nodes.values() {
            let behind = node.pod_cidrs.iter().copied();
            let itself = node.addresses.iter().copied().map(Prefix::host);
            for prefix in behind.chain(itself) {
                let is_alike = |own: &&IpAddr| own.is_ipv4() == prefix.address().is_ipv4();
                if let Some(own) = node.addresses.iter().find(is_alike) {
                    node_of.insert(prefix, *own);
                }
            }
        }
    }
    Direct { dispatch, nodes, v4, v6, node_of }
}

#[cfg(test)]
mod tests {
    use control::model::PolicyMode;

    use super::*;

    #[test]
    fn a_backend_is_behind_the_node_whose_pod_range_it_is_in() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let node = control::model::Node {
            name: "b".into(),
            addresses: vec![address("192.0.2.3"), address("2001:db8::3")],
            pod_cidrs: vec![
                Prefix::new(address("10.244.1.0"), 24).unwrap(),
                Prefix::new(address("fd00:1::"), 64).unwrap(),
            ],
            zone: None,
            is_leaving: false,
            mode: PolicyMode::Enforce,
        };
        let mut cluster = ClusterState::default();
        cluster.nodes.insert("b".into(), node);
        let own = (Some(Ipv4Addr::new(192, 0, 2, 1)), None);
        let direct = make(&cluster, Dispatch::Geneve, own);
        for (backend, behind) in [
            ("10.244.1.7", Some("192.0.2.3")),
            ("fd00:1::7", Some("2001:db8::3")),
            ("192.0.2.3", Some("192.0.2.3")),
            ("10.244.2.7", None),
        ] {
            let found = direct.node_of.lookup(address(backend)).copied();
            assert_eq!(found, behind.map(address), "{backend}");
        }
        assert!(direct.nodes.contains(&address("2001:db8::3")));
        assert!(!direct.nodes.contains(&address("10.244.1.7")));
        let direct = make(&cluster, Dispatch::Ipip, own);
        assert!(direct.node_of.lookup(address("10.244.1.7")).is_none());
    }
}
