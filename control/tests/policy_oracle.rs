//! Random clusters and policies: the compiled tables must decide every packet as a naive reading
//! of the objects does, give a reason that holds, and do so whatever was compiled before.

#[path = "common/clusters.rs"]
mod clusters;
mod common;
#[path = "common/histories.rs"]
mod histories;

use std::collections::BTreeSet;
use std::net::IpAddr;

use clusters::{cluster, packets};
use common::Cluster;
use control::compile::{Affected, Compiled, compile};
use control::model::{NetworkPolicy, Pod, PolicyRule};
use dataplane::policy::{Direction, Query};
use histories::check_audit;
use proptest::prelude::*;

/// `after` with the kinds of `before` that stay, so that some changes are small; `said` tells what
/// becomes of the rules of policies that stay.
fn with_much_of(before: &Cluster, mut after: Cluster, stay: [bool; 4], said: [bool; 4]) -> Cluster {
    let [namespaces, pods, policies, most_pods] = stay;
    let state = &before.state;
    if namespaces {
        after.state.namespaces.clone_from(&state.namespaces);
    }
    if policies {
        after.state.network_policies.clone_from(&state.network_policies);
        for policy in after.state.network_policies.values_mut() {
            say_otherwise(policy, said);
        }
    }
    if most_pods {
        // One pod becomes another, or goes.
        let (mut pods, changed) = (state.pods.clone(), after.state.pods.pop_first());
        let gone = pods.pop_first();
        let taken: BTreeSet<IpAddr> = pods.values().flat_map(|pod| pod.addresses.clone()).collect();
        let fits = |pod: &Pod| pod.addresses.iter().all(|own| !taken.contains(own));
        pods.extend(changed.filter(|(_, pod)| gone.is_some() && fits(pod)));
        after.state.pods = pods;
    } else if pods {
        after.state.pods.clone_from(&state.pods);
    }
    after
}

/// Changes that leave the selectors as they are, and so the identities.
fn say_otherwise(policy: &mut NetworkPolicy, [all, one, more, isolate]: [bool; 4]) {
    for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
        if all {
            rule.ports.clear();
        } else if one {
            rule.ports.truncate(1);
        }
    }
    let everybody = PolicyRule { peers: Vec::new(), ports: Vec::new() };
    if more && let Some(rules) = &mut policy.egress {
        rules.push(everybody);
    }
    if isolate {
        policy.ingress.get_or_insert_default();
    }
}

fn is_local(cluster: &Cluster, address: IpAddr) -> bool {
    cluster.pod(address).is_some_and(|pod| cluster.is_local(pod))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn tables_decide_every_packet_as_the_objects_do(before in cluster(), after in cluster()) {
        let first = compile(&before.state, &before.node, &Compiled::default());
        let second = compile(&after.state, &after.node, &first);
        for (cluster, compiled) in [(&before, &first), (&after, &second)] {
            for packet in packets(cluster) {
                cluster.allows(compiled, &packet);
            }
            // One in 13, of every protocol in turn: a text is made for each rule.
            for packet in packets(cluster).into_iter().step_by(13) {
                cluster.check_explanation(compiled, &packet);
            }
        }
        let again = compile(&after.state, &after.node, &second);
        prop_assert!(again.decides_like(&second));
        prop_assert!(std::sync::Arc::ptr_eq(&again.services, &second.services));
    }

    #[test]
    fn flows_between_addresses_that_are_not_affected_are_judged_as_before(
        before in cluster(),
        after in cluster(),
        stay in any::<[bool; 4]>(),
        said in any::<[bool; 4]>(),
    ) {
        let after = with_much_of(&before, after, stay, said);
        let first = compile(&before.state, &before.node, &Compiled::default());
        let second = compile(&after.state, &after.node, &first);
        prop_assert!(first.decides_like(&second) <= (second.affected == Affected::Nothing));
        let both = packets(&before).into_iter().chain(packets(&after));
        for packet in both {
            let ends = [packet.from, packet.to];
            if ends.iter().any(|end| second.affected.contains(*end)) {
                continue;
            }
            for (direction, subject, peer) in [
                (Direction::Egress, packet.from, packet.to),
                (Direction::Ingress, packet.to, packet.from),
            ] {
                // Policy of others is enforced where they are.
                if ![&before, &after].iter().any(|cluster| is_local(cluster, subject)) {
                    continue;
                }
                let [was, is] = [&first, &second].map(|compiled| {
                    let query = Query {
                        subject: compiled.identities.lookup(subject),
                        peer: compiled.identities.lookup(peer),
                        protocol: packet.protocol,
                        l4_port: packet.l4_port,
                    };
                    compiled.policy.judge(direction, &query)
                });
                prop_assert_eq!(was, is, "{:?} {:?} of {:?}", packet, direction, subject);
            }
        }
    }

    #[test]
    fn what_is_compiled_passes_the_audit(before in cluster(), after in cluster()) {
        let first = compile(&before.state, &before.node, &Compiled::default());
        let second = compile(&after.state, &after.node, &first);
        check_audit(&first, &before.node);
        check_audit(&second, &after.node);
    }

    #[test]
    fn numbers_stay_with_what_they_stand_for(before in cluster(), after in cluster()) {
        // The same policies over other pods: an address whose pod stays keeps its identity.
        let first = compile(&before.state, &before.node, &Compiled::default());
        let mut mixed = before.state.clone();
        for (name, pod) in after.state.pods {
            let free = |address| before.pod(address).is_none();
            if !mixed.pods.contains_key(&name) && pod.addresses.iter().all(|own| free(*own)) {
                mixed.pods.insert(name, pod);
            }
        }
        let second = compile(&mixed, &before.node, &first);
        for pod in before.state.pods.values().filter(|pod| !pod.is_completed()) {
            for address in &pod.addresses {
                prop_assert_eq!(
                    first.identities.lookup(*address),
                    second.identities.lookup(*address)
                );
            }
        }
    }
}
