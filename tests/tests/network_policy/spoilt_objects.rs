//! Mutations of the objects that a compiler is given: what wrong code would take them for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ContainerPort;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use xskiff_tests::policy_model::{Objects, node_addresses, pod_addresses};

use crate::mutations::Spoil;

/// Every one with its name.
pub static OBJECTS: [(&str, Spoil); 27] = [
    ("In is taken for NotIn", Spoil::Objects(swap_in)),
    ("Exists is taken for DoesNotExist", Spoil::Objects(swap_exists)),
    ("only the first of several values counts", Spoil::Objects(lose_values)),
    ("matchLabels are lost", Spoil::Objects(lose_match_labels)),
    ("matchExpressions are lost", Spoil::Objects(lose_match_expressions)),
    ("except is lost", Spoil::Objects(lose_except)),
    ("ipBlock does not match pods", Spoil::Objects(keep_blocks_off_pods)),
    ("ipBlock does not match nodes", Spoil::Objects(keep_blocks_off_nodes)),
    ("ingress and egress are swapped", Spoil::Objects(swap_directions)),
    ("egress is no type by default", Spoil::Objects(lose_default_egress)),
    ("ingress is no type by default", Spoil::Objects(lose_default_ingress)),
    ("every policy is of both types", Spoil::Objects(take_both_types)),
    ("default deny is lost", Spoil::Objects(lose_default_deny)),
    ("endPort is off by one", Spoil::Objects(end_earlier)),
    ("endPort is lost", Spoil::Objects(lose_end_port)),
    ("a port's name means another pod's number", Spoil::Objects(exchange_containers)),
    ("named ports are TCP", Spoil::Objects(lose_container_protocol)),
    ("protocol is UDP by default", Spoil::Objects(default_to_udp)),
    ("protocol is ignored", Spoil::Objects(ignore_protocol)),
    ("an empty namespaceSelector is taken for an absent one", Spoil::Objects(take_for_absent)),
    ("an absent namespaceSelector is taken for an empty one", Spoil::Objects(take_for_empty)),
    ("a policy's namespace is ignored", Spoil::Objects(ignore_namespace)),
    ("both selectors of a peer are alternatives", Spoil::Objects(split_peers)),
    ("only the first rule counts", Spoil::Objects(lose_later_rules)),
    ("only the first policy of a namespace counts", Spoil::Objects(lose_later_policies)),
    ("a terminating pod is forgotten", Spoil::Objects(forget_terminating)),
    ("a completed pod keeps its address", Spoil::Objects(revive_completed)),
];

fn specs(objects: &mut Objects) -> impl Iterator<Item = &mut NetworkPolicySpec> {
    objects.policies.iter_mut().filter_map(|policy| policy.spec.as_mut())
}

fn each_peers(objects: &mut Objects, change: impl Fn(&mut Vec<NetworkPolicyPeer>)) {
    for spec in specs(objects) {
        let ingress = spec.ingress.iter_mut().flatten().filter_map(|rule| rule.from.as_mut());
        let egress = spec.egress.iter_mut().flatten().filter_map(|rule| rule.to.as_mut());
        ingress.chain(egress).for_each(&change);
    }
}

fn each_ports(objects: &mut Objects, change: impl Fn(&mut Vec<NetworkPolicyPort>)) {
    for spec in specs(objects) {
        let ingress = spec.ingress.iter_mut().flatten().filter_map(|rule| rule.ports.as_mut());
        let egress = spec.egress.iter_mut().flatten().filter_map(|rule| rule.ports.as_mut());
        ingress.chain(egress).for_each(&change);
    }
}

fn each_selector(objects: &mut Objects, change: impl Fn(&mut LabelSelector)) {
    specs(objects).filter_map(|spec| spec.pod_selector.as_mut()).for_each(&change);
    each_peers(objects, |peers| {
        for peer in peers {
            peer.pod_selector.iter_mut().chain(&mut peer.namespace_selector).for_each(&change);
        }
    });
}

fn each_block(objects: &mut Objects, change: impl Fn(&mut IPBlock)) {
    each_peers(objects, |peers| {
        peers.iter_mut().filter_map(|peer| peer.ip_block.as_mut()).for_each(&change);
    });
}

fn exchange_operators(objects: &mut Objects, one: &str, other: &str) {
    each_selector(objects, |selector| {
        for expression in selector.match_expressions.iter_mut().flatten() {
            if expression.operator == one {
                expression.operator = other.to_owned();
            } else if expression.operator == other {
                expression.operator = one.to_owned();
            }
        }
    });
}

fn swap_in(objects: &mut Objects) {
    exchange_operators(objects, "In", "NotIn");
}

fn swap_exists(objects: &mut Objects) {
    exchange_operators(objects, "Exists", "DoesNotExist");
}

fn lose_values(objects: &mut Objects) {
    each_selector(objects, |selector| {
        for expression in selector.match_expressions.iter_mut().flatten() {
            expression.values.iter_mut().for_each(|values| values.truncate(1));
        }
    });
}

fn lose_match_labels(objects: &mut Objects) {
    each_selector(objects, |selector| selector.match_labels = None);
}

fn lose_match_expressions(objects: &mut Objects) {
    each_selector(objects, |selector| selector.match_expressions = None);
}

fn lose_except(objects: &mut Objects) {
    each_block(objects, |block| block.except = None);
}

/// Leaves `addresses` out of every block.
fn keep_blocks_off(objects: &mut Objects, addresses: &BTreeSet<IpAddr>) {
    each_block(objects, |block| {
        let (_, length) = block.cidr.split_once('/').expect("a length");
        if ["32", "128"].contains(&length) {
            let only: IpAddr =
                block.cidr.split('/').next().expect("an address").parse().expect("one");
            if addresses.contains(&only) {
                block.cidr = "192.0.2.1/32".to_owned();
            }
            return;
        }
        let hosts = addresses
            .iter()
            .map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }));
        let cidr: ipnet::IpNet = block.cidr.parse().expect("a range");
        let hosts: Vec<String> = hosts
            .filter(|host| cidr.contains(&host.parse::<ipnet::IpNet>().expect("a range")))
            .collect();
        block.except.get_or_insert_default().extend(hosts);
    });
}

fn keep_blocks_off_pods(objects: &mut Objects) {
    let addresses = objects.pods.iter().flat_map(pod_addresses).collect();
    keep_blocks_off(objects, &addresses);
}

fn keep_blocks_off_nodes(objects: &mut Objects) {
    let addresses = objects.nodes.iter().flat_map(node_addresses).collect();
    keep_blocks_off(objects, &addresses);
}

/// Every policy with the types it means.
fn write_types_out(objects: &mut Objects) {
    for spec in specs(objects) {
        let types = spec.policy_types.get_or_insert_default();
        if types.is_empty() {
            types.push("Ingress".to_owned());
            if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
                types.push("Egress".to_owned());
            }
        }
    }
}

fn swap_directions(objects: &mut Objects) {
    use k8s_openapi::api::networking::v1::{NetworkPolicyEgressRule, NetworkPolicyIngressRule};
    write_types_out(objects);
    for spec in specs(objects) {
        for text in spec.policy_types.iter_mut().flatten() {
            *text = if text == "Ingress" { "Egress" } else { "Ingress" }.to_owned();
        }
        let (ingress, egress) = (spec.ingress.take(), spec.egress.take());
        spec.ingress = egress.map(|rules| {
            let rules = rules.into_iter();
            rules
                .map(|rule| NetworkPolicyIngressRule { from: rule.to, ports: rule.ports })
                .collect()
        });
        spec.egress = ingress.map(|rules| {
            let rules = rules.into_iter();
            rules.map(|rule| NetworkPolicyEgressRule { to: rule.from, ports: rule.ports }).collect()
        });
    }
}

/// Policies that leave their types to the defaults, and have egress rules.
fn of_both_by_default(objects: &mut Objects) -> impl Iterator<Item = &mut NetworkPolicySpec> {
    specs(objects).filter(|spec| {
        spec.policy_types.iter().flatten().count() == 0
            && spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())
    })
}

fn lose_default_egress(objects: &mut Objects) {
    for spec in of_both_by_default(objects) {
        spec.policy_types = Some(vec!["Ingress".to_owned()]);
    }
}

fn lose_default_ingress(objects: &mut Objects) {
    for spec in of_both_by_default(objects) {
        spec.policy_types = Some(vec!["Egress".to_owned()]);
    }
}

fn take_both_types(objects: &mut Objects) {
    for spec in specs(objects) {
        spec.policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
    }
}

/// A policy without rules in a direction does not isolate there.
fn lose_default_deny(objects: &mut Objects) {
    write_types_out(objects);
    objects.policies.retain_mut(|policy| {
        let Some(spec) = &mut policy.spec else { return false };
        let has_ingress = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let types = spec.policy_types.get_or_insert_default();
        types.retain(|text| if text == "Ingress" { has_ingress } else { has_egress });
        !types.is_empty()
    });
}

fn end_earlier(objects: &mut Objects) {
    each_ports(objects, |ports| {
        for port in ports {
            if let (Some(IntOrString::Int(first)), Some(last)) = (&port.port, &mut port.end_port) {
                *last = (*last - 1).max(*first);
            }
        }
    });
}

fn lose_end_port(objects: &mut Objects) {
    each_ports(objects, |ports| ports.iter_mut().for_each(|port| port.end_port = None));
}

/// Each pod has the containers of the one before it.
fn exchange_containers(objects: &mut Objects) {
    let specs = objects.pods.iter_mut().filter_map(|pod| pod.spec.as_mut());
    let mut specs: Vec<_> = specs.collect();
    for index in 1..specs.len() {
        let (before, after) = specs.split_at_mut(index);
        std::mem::swap(&mut before[index - 1].containers, &mut after[0].containers);
    }
}

fn lose_container_protocol(objects: &mut Objects) {
    let specs = objects.pods.iter_mut().filter_map(|pod| pod.spec.as_mut());
    let containers = specs.flat_map(|spec| {
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
    });
    let ports = containers.flat_map(|container| container.ports.iter_mut().flatten());
    ports.for_each(|port: &mut ContainerPort| port.protocol = None);
}

fn default_to_udp(objects: &mut Objects) {
    each_ports(objects, |ports| {
        for port in ports {
            port.protocol.get_or_insert_with(|| "UDP".to_owned());
        }
    });
}

fn ignore_protocol(objects: &mut Objects) {
    each_ports(objects, |ports| {
        let all = ports.iter().flat_map(|port| {
            ["TCP", "UDP", "SCTP"].map(|protocol| NetworkPolicyPort {
                protocol: Some(protocol.to_owned()),
                ..port.clone()
            })
        });
        *ports = all.collect();
    });
}

fn take_for_absent(objects: &mut Objects) {
    each_peers(objects, |peers| {
        for peer in peers {
            if peer.namespace_selector.as_ref().is_some_and(is_empty) {
                peer.namespace_selector = None;
                peer.pod_selector.get_or_insert_default();
            }
        }
    });
}

fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.iter().flatten().count() == 0
        && selector.match_expressions.iter().flatten().count() == 0
}

fn take_for_empty(objects: &mut Objects) {
    each_peers(objects, |peers| {
        for peer in peers.iter_mut().filter(|peer| peer.ip_block.is_none()) {
            peer.namespace_selector.get_or_insert_default();
        }
    });
}

/// Each policy in every namespace that has pods.
fn ignore_namespace(objects: &mut Objects) {
    let namespaces: BTreeSet<Option<String>> =
        objects.pods.iter().map(|pod| pod.metadata.namespace.clone()).collect();
    let policies = objects.policies.iter().flat_map(|policy| {
        namespaces.iter().map(|namespace| {
            let mut policy = policy.clone();
            policy.metadata.namespace.clone_from(namespace);
            policy
        })
    });
    objects.policies = policies.collect();
}

fn split_peers(objects: &mut Objects) {
    each_peers(objects, |peers| {
        let all = peers.iter().flat_map(|peer| {
            if peer.namespace_selector.is_none() || peer.pod_selector.is_none() {
                return vec![peer.clone()];
            }
            let namespaces = NetworkPolicyPeer { pod_selector: None, ..peer.clone() };
            let pods = NetworkPolicyPeer { namespace_selector: None, ..peer.clone() };
            vec![namespaces, pods]
        });
        *peers = all.collect();
    });
}

fn lose_later_rules(objects: &mut Objects) {
    for spec in specs(objects) {
        spec.ingress.iter_mut().for_each(|rules| rules.truncate(1));
        spec.egress.iter_mut().for_each(|rules| rules.truncate(1));
    }
}

fn lose_later_policies(objects: &mut Objects) {
    let mut seen: BTreeMap<Option<String>, u32> = BTreeMap::new();
    objects.policies.retain(|policy| {
        let count = seen.entry(policy.metadata.namespace.clone()).or_default();
        *count += 1;
        *count == 1
    });
}

fn forget_terminating(objects: &mut Objects) {
    objects.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
}

fn revive_completed(objects: &mut Objects) {
    for status in objects.pods.iter_mut().filter_map(|pod| pod.status.as_mut()) {
        status.phase = Some("Running".to_owned());
    }
}
