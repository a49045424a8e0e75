//! Containers come twice, overlap, come all at once, and are forgotten.

use std::path::Path;

use control::admin::status::LimitInfo;
use serde_json::{Value, json};
use xskiff::demo::scene::{PODS, WEB_1};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, PATIENCE, Primary};
use crate::driver::{Container, Network, PLUGINS};

const WEB: &str = "shop/web-1";

/// A node, and a pod that a chain has added.
pub fn attached(label: &str) -> (Cluster, Network, Container, Value) {
    let cluster = Cluster::start(label);
    let network = cluster.network(Primary::Ptp, "1.1.0", json!({}));
    // Debian's plugins speak no 1.1.0: the first ones are called in 1.0.0, ours in either.
    let network = Network { version: "1.0.0", ..network };
    let container = cluster.container(WEB_1, "one");
    let result =
        network.add(&cluster.node, &container).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    (cluster, network, container, result)
}

#[test]
fn every_verb_may_be_repeated() {
    if !root_or_skip("repeated verbs") {
        return;
    }
    let (cluster, network, container, result) = attached("repeated");
    let previous = json!({ "prevResult": result });
    for _ in 0..3 {
        let said = network.ours(&cluster.node, "ADD", Some(&container), previous.clone());
        let said: Value = serde_json::from_str(&said.expect("the same again")).expect("JSON");
        assert_eq!(said, result);
        let checked = network.ours(&cluster.node, "CHECK", Some(&container), previous.clone());
        assert_eq!(checked.expect("it is there"), "");
    }
    assert_eq!(cluster.endpoints().len(), 1);
    // The whole chain once more: the first plugin refuses a container that has an interface.
    let refusal = network.add(&cluster.node, &container).unwrap_err();
    assert!(refusal.plugin.ends_with("ptp"), "{refusal:?}");
    assert_eq!(cluster.container_of(WEB).as_deref(), Some("one"));
    // Ours alone, while the link still stands.
    network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
    assert!(cluster.endpoints().is_empty() && cluster.state().contains("veth"));
    for _ in 0..3 {
        network.delete(&cluster.node, &container, Some(&result)).expect("gone");
        assert!(cluster.endpoints().is_empty());
    }
    let refusal = network.ours(&cluster.node, "CHECK", Some(&container), previous).unwrap_err();
    assert_eq!(refusal.code, 4, "its interface is gone: {refusal:?}");
}

/// What the kubelet has read of the annotations, as a runtime without bursts hands it on.
#[test]
fn limits_that_the_runtime_tells_are_in_force_and_outlive_the_node() {
    if !root_or_skip("limits") {
        return;
    }
    let (mut cluster, network, container, result) = attached("limits");
    assert!(cluster.endpoints()[0].limits.is_empty());
    let told = json!({ "bandwidth": {
        "ingressRate": 10_000_000, "ingressBurst": u32::MAX,
        "egressRate": 20_000_000, "egressBurst": 80_000,
    } });
    let more = json!({ "prevResult": result, "runtimeConfig": told });
    network.ours(&cluster.node, "ADD", Some(&container), more.clone()).expect("limited");
    let in_force = |cluster: &Cluster| {
        let of =
            |limit: &LimitInfo| (limit.direction.clone(), limit.bits_per_second, limit.burst_bits);
        cluster.endpoints()[0].limits.iter().map(of).collect::<Vec<_>>()
    };
    let wanted =
        [("ingress".to_owned(), 10_000_000, None), ("egress".to_owned(), 20_000_000, Some(80_000))];
    assert_eq!(in_force(&cluster), wanted);
    network.ours(&cluster.node, "CHECK", Some(&container), more).expect("as it was added");
    cluster.end(true);
    cluster.begin();
    assert_eq!(in_force(&cluster), wanted, "the next process has them, too");
    let more =
        json!({ "prevResult": result, "runtimeConfig": { "bandwidth": { "egressRate": 5_000 } } });
    let refusal = network.ours(&cluster.node, "CHECK", Some(&container), more.clone()).unwrap_err();
    assert!(refusal.text.contains("bandwidth"), "{refusal:?}");
    network.ours(&cluster.node, "ADD", Some(&container), more).expect("others");
    assert_eq!(in_force(&cluster), [("egress".to_owned(), 5_000, None)]);
}

/// Its sockets were closed up to two seconds later, and until then nothing could be bound to the
/// interface: the kernel said EINVAL.
#[test]
fn a_pod_that_comes_back_on_the_same_interface_is_served_at_once() {
    if !root_or_skip("the same interface again") {
        return;
    }
    let (cluster, network, container, result) = attached("again");
    let previous = json!({ "prevResult": result });
    let pod = result["ips"][0]["address"].as_str().expect("an address");
    let pod = pod.split('/').next().expect("an address").parse().expect("an address");
    for round in 0..20 {
        network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
        let added = network.ours(&cluster.node, "ADD", Some(&container), previous.clone());
        added.unwrap_or_else(|refusal| panic!("round {round}: {refusal:?}"));
    }
    let ping = cluster.node.ping(pod, 3).expect("ping");
    assert_eq!(ping.received, 3, "the pod answers its node");
    network.delete(&cluster.node, &container, Some(&result)).expect("gone");
}

/// A pod's sandbox was made anew; the removal of the older one must not cut the newer one off.
#[test]
fn an_older_sandbox_of_the_same_pod_leaves_the_newer_one_alone() {
    if !root_or_skip("two sandboxes") {
        return;
    }
    let (cluster, network, older, result) = attached("sandboxes");
    let namespace = cluster.laboratory.namespace("newer").expect("a namespace");
    let newer = Container::of_pod("two", &namespace, WEB);
    let added = network.add(&cluster.node, &newer);
    let newer_result = added.unwrap_or_else(|refusal| panic!("{refusal:?}"));
    assert_eq!(cluster.container_of(WEB).as_deref(), Some("two"));
    assert_eq!(cluster.status().cni.outlived, 1);
    let refusal = network.check(&cluster.node, &older, &result).unwrap_err();
    assert_eq!(refusal.code, 100, "{refusal:?}");
    network.delete(&cluster.node, &older, Some(&result)).expect("gone");
    assert_eq!(cluster.container_of(WEB).as_deref(), Some("two"), "the newer one stays");
    network.check(&cluster.node, &newer, &newer_result).expect("as it was added");
    network.delete(&cluster.node, &newer, Some(&newer_result)).expect("gone");
    assert!(cluster.endpoints().is_empty());
    assert_eq!(cluster.leased(), 0);
}

/// Another interface of the same container is no second pod.
#[test]
fn a_second_interface_of_a_pod_is_refused_by_name() {
    if !root_or_skip("a second interface") {
        return;
    }
    let (cluster, network, mut container, _) = attached("second");
    let pod = cluster.pod(WEB_1);
    let pair = format!("link add second0 type veth peer name net1 netns {}", pod.system_name());
    cluster.node.ip(&pair).expect("a pair");
    cluster.node.ip("link set second0 up").expect("up");
    pod.ip("link set net1 up").expect("up");
    container.interface = "net1";
    let previous = json!({ "prevResult": { "ips": [{ "address": "10.244.0.99/24" }] } });
    let refused = network.ours(&cluster.node, "ADD", Some(&container), previous);
    let refusal = refused.expect_err("one interface of a pod is served");
    assert_eq!(refusal.code, 100, "{refusal:?}");
    assert!(refusal.text.contains(WEB), "{refusal:?}");
    network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
    assert_eq!(cluster.container_of(WEB).as_deref(), Some("one"));
}

/// More at once than the node serves clients: they queue, and none is refused.
#[test]
fn pods_that_come_all_at_once_are_all_served_and_all_go() {
    const PODS_AT_ONCE: usize = 48;
    if !root_or_skip("many pods at once") {
        return;
    }
    let cluster = Cluster::start("many");
    let network = Network { version: "1.0.0", ..cluster.network(Primary::Ptp, "1.0.0", json!({})) };
    let namespaces: Vec<_> = (0..PODS_AT_ONCE)
        .map(|number| cluster.laboratory.namespace(&format!("m{number}")).expect("a namespace"))
        .collect();
    let at_once = |work: &(dyn Fn(usize) + Sync)| {
        std::thread::scope(|scope| {
            for number in 0..PODS_AT_ONCE {
                scope.spawn(move || work(number));
            }
        });
    };
    let container = |number: usize| {
        Container::of_pod(&format!("c{number}"), &namespaces[number], &format!("many/pod-{number}"))
    };
    at_once(&|number| {
        let added = network.add(&cluster.node, &container(number));
        added.unwrap_or_else(|refusal| panic!("{number}: {refusal:?}"));
    });
    assert_eq!(cluster.endpoints().len(), PODS_AT_ONCE);
    assert_eq!(cluster.leased(), 2 * PODS_AT_ONCE);
    at_once(&|number| {
        network.delete(&cluster.node, &container(number), None).expect("gone");
    });
    assert!(cluster.endpoints().is_empty());
    assert_eq!(cluster.leased(), 0);
    assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
}

/// DEL never came: the runtime says which containers there are, and the rest goes.
#[test]
fn what_the_runtime_does_not_know_any_more_is_collected_in_its_own_network_alone() {
    if !root_or_skip("garbage") {
        return;
    }
    let mut cluster = Cluster::start("garbage");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    cluster.add_pods(&network);
    let newest = Network { version: "1.1.0", ..network.clone() };
    let kept = |ids: &[&str]| {
        let list: Vec<Value> =
            ids.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        json!({ "cni.dev/valid-attachments": list })
    };
    let collect = |network: &Network, ids: &[&str]| {
        let said = network.ours(&cluster.node, "GC", None, kept(ids));
        assert_eq!(said.expect("collected"), "");
        cluster.endpoints().len()
    };
    let all = PODS.map(|plan| format!("sandbox-of-{}", plan.name));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(collect(&newest, &all), 4);
    let elsewhere = Network { name: "storage", ..newest.clone() };
    assert_eq!(collect(&elsewhere, &[]), 4, "another network's are not its matter");
    assert_eq!(collect(&newest, &all[1..]), 3);
    assert_eq!(cluster.container_of(WEB), None);
    assert_eq!(collect(&newest, &[]), 0);
    assert_eq!(cluster.status().cni.collected, 4);
    assert!(Path::new(PLUGINS).exists());
}
