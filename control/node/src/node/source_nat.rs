//! Source translation as tables have it: what is configured, held against what the kernel and the
//! cluster say of the addresses.
//!
//! An address that rules no longer translate to stays ours while the process runs, since flows that
//! are open go by it: the XDP program must go on leading their replies here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use control::compile::Compiled;
use dataplane::address_map::AddressSet;
use dataplane::lb::ServiceRanges;
use dataplane::lpm::{Prefix, PrefixTable};
use dataplane::nat::rules::{SNAT_ADDRESSES_MAX, SnatRule};
use dataplane::nat::{SourceNat, Translation};

use super::Node;
use super::reconciles::Reconcile;
use crate::host_port::{GATEWAY_V4, HOST_PROCESS_V6};
use crate::netlink::KernelView;

/// Begins the names of errors about rules.
const OBJECT: &str = "nat.snat ";

/// Addresses that rules translate to, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct RuleAddresses {
    /// Those of now, and of before, as long as there is room.
    known: BTreeSet<IpAddr>,
    /// Errors as noted, by object.
    wrong: BTreeMap<String, String>,
}

impl RuleAddresses {
    /// Addresses that flows may go by.
    pub(super) fn known(&self) -> &BTreeSet<IpAddr> {
        &self.known
    }

    /// Adds those of `configured`. Where there is no room for all, those of before go; answers
    /// whether any did.
    fn extend(&mut self, configured: &BTreeSet<IpAddr>) -> bool {
        self.known.extend(configured);
        let is_full = self.known.len() > SNAT_ADDRESSES_MAX;
        if is_full {
            self.known.clone_from(configured);
        }
        is_full
    }
}

/// Who sees pods' own addresses, kept from one look to the next: most changes of a cluster leave its
/// nodes and the addresses of its services alone.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// What the first tables were made of: configured ranges, changes of nodes, services' addresses and
    /// the external ones among them.
    made_of: Option<([Vec<Prefix>; 2], u64, [AddressSet; 2])>,
    cluster: [PrefixTable<()>; 2],
    /// The node's own addresses and its pods', which the second ones have as well.
    here: BTreeSet<IpAddr>,
    whole: [PrefixTable<()>; 2],
}

impl Inside {
    /// The ranges of each of `configured`, with all of the cluster, `services`' addresses among it, and what
    /// is `here`. Not those addresses that are external: who has one outside sees a pod as anybody does.
    fn tables(
        &mut self,
        configured: [&[Prefix]; 2],
        compiled: &Compiled,
        services: &AddressSet,
        here: BTreeSet<IpAddr>,
    ) -> [PrefixTable<()>; 2] {
        let external = &compiled.services.external;
        let is_known = self.made_of.as_ref().is_some_and(|(ranges, nodes, addresses)| {
            ranges.iter().zip(configured).all(|(own, configured)| own == configured)
                && *nodes == compiled.node_changes()
                && addresses.each_ref() == [services, external]
        });
        if is_known && self.here == here {
            return self.whole.clone();
        }
        if !is_known {
            let of_nodes = compiled.state().nodes.values().flat_map(|node| {
                let addresses = node.addresses.iter().map(|address| Prefix::host(*address));
                node.pod_cidrs.iter().copied().chain(addresses)
            });
            let ranges: PrefixTable<()> = of_nodes
                .chain(services.keys().filter(|own| !external.contains(own)).map(Prefix::host))
                .map(|prefix| (prefix, ()))
                .collect();
            self.cluster = configured.map(|configured| with(&ranges, configured.iter().copied()));
            let ranges = configured.map(<[Prefix]>::to_vec);
            let addresses = [services.clone(), external.clone()];
            self.made_of = Some((ranges, compiled.node_changes(), addresses));
        }
        let hosts = || here.iter().copied().map(Prefix::host);
        self.whole = self.cluster.each_ref().map(|table| with(table, hosts()));
        self.here = here;
        self.whole.clone()
    }
}

/// `table` with more prefixes; it shares what it has in common with it.
fn with(table: &PrefixTable<()>, more: impl Iterator<Item = Prefix>) -> PrefixTable<()> {
    let mut table = table.clone();
    for prefix in more {
        table.insert(prefix, ());
    }
    table
}

/// `rules` without the addresses that `other_use` names a use of.
fn usable(rules: &[SnatRule], other_use: &BTreeMap<IpAddr, String>) -> Box<[SnatRule]> {
    let is_free = |to: &IpAddr| !other_use.contains_key(to);
    let usable = |rule: &SnatRule| SnatRule {
        to: rule.to.iter().copied().filter(is_free).collect(),
        ..rule.clone()
    };
    rules.iter().map(usable).collect()
}

impl Node {
    pub(super) fn source_nat(&mut self, view: &KernelView, services: &ServiceRanges) -> SourceNat {
        let configured: BTreeSet<IpAddr> =
            self.settings.snat.rules.iter().flat_map(|rule| &rule.to).copied().collect();
        let other_use = self.other_uses(&configured);
        self.note_rules(view, &configured, &other_use);
        let snat = &self.settings.snat;
        let (v4, v6) = self.uplink_addresses(view);
        let own = self.node_addresses(view);
        let pods = self.endpoints.iter().flat_map(|endpoint| &endpoint.spec.addresses).copied();
        let here: BTreeSet<IpAddr> = own.into_iter().chain(pods).collect();
        let [non_masquerade, cluster] = self.inside.tables(
            [&snat.non_masquerade, &snat.cluster],
            self.publisher.compiled(),
            &services.apart,
            here,
        );
        let known = self.rule_addresses.known.iter().copied();
        SourceNat {
            v4: snat.v4.or(v4),
            v6: snat.v6.or(v6),
            host_v4: self.host.as_ref().map(|_| GATEWAY_V4),
            host_v6: self.host.as_ref().map(|_| HOST_PROCESS_V6),
            l4_ports: snat.l4_ports.clone(),
            mapping: snat.mapping,
            non_masquerade,
            cluster,
            rules: usable(&snat.rules, &other_use),
            addresses: known.filter(|address| !other_use.contains_key(address)).collect(),
        }
    }

    /// What else known addresses are, where they are anything: then nothing is translated to them.
    fn other_uses(&self, configured: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, String> {
        let state = self.publisher.cluster();
        let services = &self.publisher.compiled().services.addresses;
        let of = |address: &IpAddr| {
            if services.contains(address) {
                return Some("a Service has it: its clients could not be told from replies".into());
            }
            if let Some(pod) = self.endpoints.by_address(*address) {
                return Some(format!("pod {pod} has it"));
            }
            state.nodes.iter().find_map(|(name, node)| {
                let of_pods = node.pod_cidrs.iter().find(|range| range.contains(*address));
                let is_other = *name != self.settings.node_name;
                match of_pods {
                    Some(range) => Some(format!("it is in the pod range {range} of node {name}")),
                    None if is_other && node.addresses.contains(address) => {
                        Some(format!("node {name} has it: replies would go there"))
                    }
                    None => None,
                }
            })
        };
        let known = self.rule_addresses.known.union(configured);
        known.filter_map(|address| Some((*address, of(address)?))).collect()
    }

    /// Names what is wrong with addresses, once, and no longer when it is well.
    fn note_rules(
        &mut self,
        view: &KernelView,
        configured: &BTreeSet<IpAddr>,
        other_use: &BTreeMap<IpAddr, String>,
    ) {
        let mut wrong: BTreeMap<String, String> = BTreeMap::new();
        let own = self.node_addresses(view);
        for address in configured {
            let what = match (other_use.get(address), self.asked_for_on(view, *address)) {
                (Some(other_use), _) => format!("nothing is translated to it: {other_use}"),
                (None, Some(uplink)) if !own.contains(address) => format!(
                    "no interface has it, and neighbours on {uplink} ask for it there: replies come \
                     only once something answers them (`ip address add` on {uplink})"
                ),
                _ => continue,
            };
            wrong.insert(format!("{OBJECT}{address}"), what);
        }
        if self.rule_addresses.extend(configured) {
            let what = format!(
                "more than {SNAT_ADDRESSES_MAX} addresses were translated to since the start: flows \
                 by those that no rule has any more get no replies"
            );
            wrong.insert(format!("{OBJECT}addresses"), what);
        }
        let before = std::mem::replace(&mut self.rule_addresses.wrong, wrong.clone());
        self.failed_anew(Reconcile::SourceNat, &before, &wrong);
    }

    /// The uplink on whose link `address` is, by the prefixes of its own addresses.
    fn asked_for_on<'s>(&'s self, view: &KernelView, address: IpAddr) -> Option<&'s str> {
        let is_on_link = |uplink: &&str| {
            let index = view.link_by_name(uplink).map(|(index, _)| index);
            let mut own = view.addresses.iter().filter(|(on, _)| Some(*on) == index);
            own.any(|(_, own)| {
                let link = Prefix::new(own.address, own.prefix_length);
                link.is_some_and(|link| link.contains(address))
            })
        };
        let mut uplinks = self.settings.uplinks.iter().map(|uplink| uplink.interface.as_str());
        uplinks.find(is_on_link)
    }

    /// As what a pod with these addresses is seen at `to`, which is outside, in words.
    pub(super) fn seen_outside(&self, from: &[IpAddr], to: IpAddr) -> Option<String> {
        let tables = self.publisher.tables();
        let source = from.iter().find(|own| own.is_ipv4() == to.is_ipv4())?;
        Some(match tables.source_nat.of_pod(*source, to) {
            None => format!("seen there as itself, {source}"),
            Some(Translation { address: Some(address), rule: Some(rule) }) => {
                format!("seen there as {address}, by nat.snat[{rule}]")
            }
            Some(Translation { address: Some(address), rule: None }) => {
                format!("seen there as {address}, masqueraded")
            }
            Some(Translation { address: None, rule: Some(rule) }) => {
                format!("not sent: nat.snat[{rule}] has no address that can be used")
            }
            Some(Translation { address: None, rule: None }) => {
                "not sent: the node has no address to masquerade it with".into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use control::model::Object;
    use control::store::Change;

    use super::*;

    #[test]
    fn addresses_of_before_are_kept_until_there_is_no_room() {
        let addresses = |range: std::ops::Range<u8>| -> BTreeSet<IpAddr> {
            range.map(|low| IpAddr::from([192, 0, 2, low])).collect()
        };
        let mut known = RuleAddresses::default();
        assert!(!known.extend(&addresses(0..100)));
        assert!(!known.extend(&addresses(50..250)));
        assert_eq!(known.known().len(), 250);
        let others: BTreeSet<IpAddr> =
            (0..7).map(|low| IpAddr::from([198, 51, 100, low])).collect();
        assert!(known.extend(&others));
        assert_eq!(*known.known(), others);
    }

    #[test]
    fn what_is_inside_is_kept_until_a_node_a_service_or_something_here_changes() {
        let address = |low: u8| IpAddr::from([10, 0, 0, low]);
        let node = |low: u8| {
            let addresses = vec![address(low)];
            let name = format!("node-{low}");
            Change::Set(Object::Node(control::model::Node {
                name,
                addresses,
                pod_cidrs: vec![],
                zone: None,
                is_leaving: false,
                mode: control::model::PolicyMode::Enforce,
            }))
        };
        let (mut compiled, none) = (Compiled::default(), AddressSet::default());
        compiled.take(node(1));
        let (mut inside, range) = (Inside::default(), [Prefix::host(address(9))]);
        let mut seen = |compiled: &Compiled, services: &AddressSet, here: &[u8]| {
            let here = here.iter().map(|low| address(*low)).collect();
            let [one, other] = inside.tables([&range, &[]], compiled, services, here);
            assert_eq!(one.len(), other.len() + 1);
            (0..8).filter(|low| other.lookup(address(*low)).is_some()).collect::<Vec<u8>>()
        };
        assert_eq!(seen(&compiled, &none, &[2]), [1, 2]);
        assert_eq!(seen(&compiled, &none, &[2]), [1, 2]);
        assert_eq!(seen(&compiled, &none, &[3]), [1, 3], "what was here before is not");
        compiled.take(node(4));
        assert_eq!(seen(&compiled, &none, &[3]), [1, 3, 4]);
        assert_eq!(seen(&compiled, &AddressSet::from([address(5)]), &[]), [1, 4, 5]);
    }

    #[test]
    fn address_of_another_use_is_taken_out_of_its_rules_and_nothing_else() {
        let (ours, another): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let rule = |to: &[IpAddr]| SnatRule { to: to.into(), ..SnatRule::default() };
        let other_use = [(another, "a Service has it".to_owned())].into();
        let left = usable(&[rule(&[ours, another]), rule(&[another])], &other_use);
        assert_eq!(*left, [rule(&[ours]), rule(&[])], "what matches is dropped, not masqueraded");
    }
}
