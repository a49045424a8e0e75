//! Pods of real chains: reachable, policed, served and checked; and gone without a trace.

use serde_json::json;
use xskiff::demo::expectation::{Outcome, Seen};
use xskiff::demo::scene::{
    BALANCER, BUYER, CLIENT, CLUSTER_IP, HTTP, NODE, PODS, STRANGER, WEB_1, address, to,
};
use xskiff::demo::traffic::{echo, fetch, forbidden, http, ping};
use xskiff::lab::{ForwardCounters, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, PATIENCE, Primary};

/// Pods, the host, services and the outside reach each other in both families, and policy holds.
fn assert_served(cluster: &Cluster) {
    let webs = ["web-1", "web-2"];
    let (buyer, stranger) = (cluster.pod(BUYER), cluster.pod(STRANGER));
    let ok = |what: &str, seen: Seen| {
        assert_eq!(seen.outcome, Outcome::Ok, "{what}: {seen:?}, {:#?}", cluster.status().drops);
    };
    let from_outside = http(&cluster.client, BALANCER, HTTP[0], &webs, Some(CLIENT));
    ok("outside to a service", from_outside.expect("asked"));
    ok("pod to a service", http(buyer, CLUSTER_IP, HTTP[0], &webs, None).expect("asked"));
    ok(
        "pod to pod",
        http(buyer, WEB_1.addresses, HTTP[2], &["web-1"], Some(BUYER.addresses)).expect("asked"),
    );
    ok("datagrams", echo(buyer, CLUSTER_IP, 53).expect("asked"));
    ok("policy", forbidden(stranger, BALANCER, HTTP[0]).expect("asked"));
    ok("policy, pod to pod", forbidden(stranger, WEB_1.addresses, HTTP[2]).expect("asked"));
    ok("pods that nothing isolates", ping(stranger, BUYER.addresses).expect("asked"));
    // A probe of the kubelet's: the node always reaches its own pods.
    ok(
        "host to pod",
        http(&cluster.node, WEB_1.addresses, HTTP[2], &["web-1"], None).expect("asked"),
    );
    ok("pod to host", http(buyer, NODE, HTTP[2], &["node"], None).expect("asked"));
    ok("pod to the outside", http(buyer, CLIENT, HTTP[2], &["client"], Some(NODE)).expect("asked"));
}

fn chain(primary: Primary, label: &str) {
    let mut cluster = Cluster::start(label);
    cluster.wait_well();
    let network = cluster.network(primary, "1.0.0", json!({}));
    // The bridge outlives its pods: it is made by a first one, which goes.
    let first = cluster.container(WEB_1, "first");
    let result = network.add(&cluster.node, &first).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    network.delete(&cluster.node, &first, Some(&result)).expect("gone");
    let gone = || cluster.endpoints().is_empty() && !cluster.state().contains("veth");
    assert!(wait_until(PATIENCE, gone).is_some());
    let before = cluster.state();

    let pods = cluster.add_pods(&network);
    let endpoints = cluster.endpoints();
    assert_eq!(endpoints.len(), PODS.len());
    for endpoint in &endpoints {
        let attachment = endpoint.attachment.as_ref().expect("an attachment");
        assert_eq!((attachment.network.as_str(), attachment.interface.as_str()), ("pods", "eth0"));
        assert!(endpoint.pod_uid.is_some() && endpoint.mac.is_some(), "{endpoint:?}");
        assert!(endpoint.identity.is_some(), "{endpoint:?}");
    }
    for (container, result) in &pods {
        network.check(&cluster.node, container, result).expect("as it was added");
    }
    let forwarded = cluster.node.forward_counters().expect("counters");
    assert_served(&cluster);
    let counters = cluster.node.forward_counters().expect("counters");
    assert_eq!(counters, forwarded, "all of it through AF_XDP");
    assert_eq!(counters, ForwardCounters { ipv4: 0, ipv6: 0 });
    cluster.wait_well();

    for (container, result) in &pods {
        network.delete(&cluster.node, container, Some(result)).expect("gone");
        network.delete(&cluster.node, container, None).expect("gone already");
    }
    assert!(
        wait_until(PATIENCE, || cluster.state() == before).is_some(),
        "{}\n{before}",
        cluster.state()
    );
    assert!(cluster.endpoints().is_empty());
    assert_eq!(cluster.leased(), 0);
    assert!(address(WEB_1.addresses[0]).is_ipv4());
}

#[test]
fn pods_of_ptp_are_served_and_policed_and_go_without_a_trace() {
    if root_or_skip("a chain of ptp") {
        chain(Primary::Ptp, "ptp");
    }
}

#[test]
fn pods_of_a_bridge_are_served_and_policed_and_go_without_a_trace() {
    if root_or_skip("a chain of bridge") {
        chain(Primary::Bridge, "bridge");
    }
}

/// A port mapping is the kernel's work: what it has translated comes to the pod by the host port, and
/// answers go back the same way, or whoever asked would be answered by a stranger.
#[test]
fn a_mapped_port_of_portmap_leads_to_its_pod_from_the_node_and_from_outside() {
    if !root_or_skip("portmap") {
        return;
    }
    let mut cluster = Cluster::start("portmap");
    let network = cluster.network(Primary::Ptp, "0.4.0", json!({}));
    let pods = cluster.add_pods(&network);
    let (container, result) = &pods[0];
    network.delete(&cluster.node, container, Some(result)).expect("gone");
    let mut mapped = cluster.container(WEB_1, "mapped");
    let mapping = json!([
        { "hostPort": 8085, "containerPort": 8080, "protocol": "tcp" },
        { "hostPort": 5355, "containerPort": 5353, "protocol": "udp" },
    ]);
    mapped.runtime.insert("portMappings".into(), mapping);
    let result = network.add(&cluster.node, &mapped).unwrap_or_else(|r| panic!("{r:?}"));
    let ok = |what: &str, seen: Seen| {
        assert_eq!(seen.outcome, Outcome::Ok, "{what}: {seen:?}, {:#?}", cluster.status().drops);
    };
    // A new link in the same namespace: the server listens on every address.
    let webs = ["web-1"];
    ok("the node", http(&cluster.node, NODE, 8085, &webs, None).expect("asked"));
    let outside = &cluster.client;
    ok("outside", http(outside, NODE, 8085, &webs, Some(CLIENT)).expect("asked"));
    ok("datagrams from outside", echo(outside, NODE, 5355).expect("asked"));
    // And the mapping goes with its pod.
    network.delete(&cluster.node, &mapped, Some(&result)).expect("gone");
    for node in NODE {
        let answers = fetch(outside, &to(node, 8085), 1, &["--timeout-ms=1200"]).expect("asked");
        assert!(answers.iter().all(|answer| answer.error.is_some()), "{answers:?}");
    }
    assert_eq!(cluster.endpoints().len(), PODS.len() - 1);
}
