//! Debian's reference `bandwidth` plugin before ours: what it sets in the kernel limits nothing any more,
//! since packets go past it. It is kept by the node where the runtime tells the rates, and named, or
//! refused, where nobody does.

use std::time::Duration;

use serde_json::json;
use xskiff::demo::scene::WEB_1;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, Primary};
use crate::driver::{Container, Network};

/// What goes to the pod alone: for that the plugin makes no device that its result names.
const RATE: u64 = 10_000_000;
/// How often the node looks.
const LOOKED_EVERY: Duration = Duration::from_secs(30);

/// A chain with the plugin before ours; `ours` hears of the rates when it is `capable`.
fn network(cluster: &Cluster, limits: &str, capable: bool) -> Network {
    let mut network = cluster.network(Primary::Ptp, "1.0.0", json!({ "bandwidthLimits": limits }));
    let ours = network.plugins.last_mut().expect("ours");
    if !capable {
        ours["capabilities"] = json!({});
    }
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    network.plugins.insert(network.plugins.len() - 1, bandwidth);
    network
}

fn limited(cluster: &Cluster, id: &str) -> Container {
    let mut container = cluster.container(WEB_1, id);
    let rates = json!({ "ingressRate": RATE, "ingressBurst": RATE });
    container.runtime.insert("bandwidth".into(), rates);
    container
}

/// The number of the metric.
fn bypassing(cluster: &Cluster) -> u64 {
    cluster.status().arrivals.with_bypassed_rules
}

#[test]
fn a_limit_of_the_bandwidth_plugin_is_kept_by_the_node_or_named_or_refused() {
    if !root_or_skip("the bandwidth plugin") {
        return;
    }
    let cluster = Cluster::start("bandwidth");
    cluster.wait_well();

    // Nobody tells the rates: by default the pod is refused, and nothing of it is left.
    let strict = network(&cluster, "refuse", false);
    let refused = limited(&cluster, "refused");
    let refusal = strict.add(&cluster.node, &refused).expect_err("it would not be limited");
    assert_eq!(refusal.code, 2, "{refusal:?}");
    assert!(refusal.text.contains("tbf on veth"), "{refusal:?}");
    strict.delete(&cluster.node, &refused, None).expect("gone");
    assert_eq!((cluster.leased(), cluster.endpoints().len()), (0, 0));

    // Or it runs, and is named.
    let lenient = network(&cluster, "warn", false);
    let named = limited(&cluster, "named");
    let result = lenient.add(&cluster.node, &named);
    let result = result.unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let endpoint = cluster.endpoints().pop().expect("it is served");
    assert!(endpoint.limits.is_empty(), "{endpoint:?}");
    let [bypassed] = &endpoint.bypassed[..] else { panic!("{endpoint:?}") };
    assert!(bypassed.starts_with("tbf on veth") && bypassed.contains("to the pod"), "{bypassed}");
    assert_eq!(bypassing(&cluster), 1);
    lenient.delete(&cluster.node, &named, Some(&result)).expect("gone");

    // The rates are told, and kept here: nothing is lost by going past the plugin's.
    let told = network(&cluster, "refuse", true);
    let kept = limited(&cluster, "kept");
    told.add(&cluster.node, &kept).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let endpoint = cluster.endpoints().pop().expect("it is served");
    let limits: Vec<_> =
        endpoint.limits.iter().map(|one| (&*one.direction, one.bits_per_second)).collect();
    assert_eq!(limits, [("ingress", RATE)]);
    assert_eq!((endpoint.bypassed.len(), bypassing(&cluster)), (0, 0));
}

#[test]
fn filters_and_limits_that_were_set_by_hand_are_named_when_a_pod_is_added() {
    if !root_or_skip("limits by tc") {
        return;
    }
    let cluster = Cluster::start("tc");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let container = cluster.container(WEB_1, "by-hand");
    let added = network.add(&cluster.node, &container);
    let result = added.unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let interface = cluster.endpoints().pop().expect("it is served").interface;
    network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
    let tc = |words: &str| {
        let words = format!("tc {}", words.replace("DEV", &interface));
        cluster.node.run("sh", &["-c", &words]).expect("tc");
    };
    let bypassed = || {
        let previous = json!({ "prevResult": result });
        network.ours(&cluster.node, "ADD", Some(&container), previous).expect("added");
        let found = cluster.endpoints().pop().expect("it is served").bypassed;
        network.ours(&cluster.node, "DEL", Some(&container), json!({})).expect("gone");
        found
    };
    assert!(bypassed().is_empty());
    // What only orders packets, or has no filter, is no limit.
    tc("qdisc add dev DEV root pfifo limit 100");
    tc("qdisc add dev DEV clsact");
    assert!(bypassed().is_empty());
    tc("qdisc replace dev DEV root handle 1: htb");
    tc("filter add dev DEV ingress bpf da bytecode '1,6 0 0 0'");
    let found = bypassed();
    assert!(found.len() == 2 && found[0].starts_with("htb on"), "{found:?}");
    assert!(found[1].starts_with("filters of clsact on"), "{found:?}");
}

/// It was looked for when a pod was added, and never again.
#[test]
fn a_limit_that_is_set_while_a_pod_runs_is_named() {
    if !root_or_skip("a later limit by tc") {
        return;
    }
    let (cluster, ..) = crate::life::attached("tclater");
    let interface = cluster.endpoints().pop().expect("it is served").interface;
    assert_eq!(bypassing(&cluster), 0);
    let words = ["qdisc", "replace", "dev", &interface, "root", "handle", "1:", "htb"];
    cluster.node.run("tc", &words).expect("tc");
    assert!(wait_until(2 * LOOKED_EVERY, || bypassing(&cluster) == 1).is_some());
    let found = cluster.endpoints().pop().expect("it is served").bypassed;
    assert!(found.len() == 1 && found[0].starts_with("htb on"), "{found:?}");
}
