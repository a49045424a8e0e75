//! What no honest runtime says: each gets the specification's error, and nothing is left behind.

use serde_json::{Value, json};
use xskiff::demo::scene::{BUYER, WEB_1};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{plugin, root_or_skip};

use crate::cluster::{Cluster, PATIENCE, Primary};
use crate::driver::{Call, variables};

type Variables = Vec<(&'static str, String)>;

#[test]
fn each_bad_input_has_its_code_and_leaves_nothing() {
    if !root_or_skip("bad input") {
        return;
    }
    let cluster = Cluster::start("bad");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let container = cluster.container(WEB_1, "one");
    let others = network.without_ours();
    let result = others.add(&cluster.node, &container).unwrap_or_else(|r| panic!("{r:?}"));
    let ours = network.plugins.last().expect("ours");
    let honest = network.input(ours, &container, Some(&result));

    let try_with = |input: String, change: &dyn Fn(&mut Variables)| {
        let mut variables = variables(&container);
        change(&mut variables);
        let program = plugin();
        let call = Call { host: &cluster.node, verb: "ADD", program, variables, input };
        let refusal = call.answer().expect_err("it must be refused");
        assert!(cluster.endpoints().is_empty(), "{refusal:?}");
        (refusal.code, refusal.text)
    };
    let with_key = |key: &str, value: Value| {
        let mut input = honest.clone();
        input[key] = value;
        try_with(input.to_string(), &|_| {})
    };
    let without = |key: &str| {
        let mut input = honest.clone();
        input.as_object_mut().expect("an object").remove(key);
        try_with(input.to_string(), &|_| {})
    };
    let variable = |name: &'static str, value: &str| {
        let set = |all: &mut Variables| {
            all.retain(|(other, _)| *other != name);
            all.push((name, value.to_owned()));
        };
        try_with(honest.to_string(), &set)
    };
    let cases = [
        ("malformed", try_with("{\"cniVersion\":".into(), &|_| {}), 6, "line 1"),
        ("no object", try_with("[]".into(), &|_| {}), 6, "line 1"),
        ("unknown version", with_key("cniVersion", "0.2.0".into()), 1, "0.2.0"),
        ("newer version", with_key("cniVersion", "1.2.0".into()), 1, "1.2.0"),
        ("no version", without("cniVersion"), 1, "spoken"),
        ("no name", without("name"), 7, "name"),
        ("unknown key", with_key("sockett", "/x".into()), 2, "sockett"),
        ("bad value", with_key("waitSeconds", "long".into()), 7, "waitSeconds"),
        ("no result", without("prevResult"), 7, "prevResult"),
        ("no addresses", with_key("prevResult", json!({ "ips": [] })), 7, "eth0"),
        (
            "bad addresses",
            with_key("prevResult", json!({ "ips": [{ "address": "127.0.0.1/8" }] })),
            7,
            "127.0.0.1",
        ),
        (
            "the node's address",
            with_key("prevResult", json!({ "ips": [{ "address": "192.0.2.1/24" }] })),
            100,
            "192.0.2.1",
        ),
        ("no namespace", variable("CNI_NETNS", ""), 4, "CNI_NETNS"),
        ("vanished namespace", variable("CNI_NETNS", "/run/netns/none"), 4, "/run/netns/none"),
        ("no such interface", variable("CNI_IFNAME", "eth7"), 7, "eth7"),
        ("hostile container", variable("CNI_CONTAINERID", "../../x"), 4, "CNI_CONTAINERID"),
        (
            "hostile pod",
            variable("CNI_ARGS", "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c"),
            4,
            "CNI_ARGS",
        ),
        ("no pod", variable("CNI_ARGS", ""), 4, "K8S_POD_NAMESPACE"),
        (
            "limits that cannot be",
            with_key("runtimeConfig", json!({ "bandwidth": { "ingressRate": 999 } })),
            7,
            "ingress_rate",
        ),
    ];
    for (what, (code, text), wanted, word) in cases {
        assert_eq!(code, wanted, "{what}: {text}");
        assert!(text.contains(word), "{what}: {text}");
    }
    // Where the plugin is told to, it lets a pod run whose limits nobody tells, and says so.
    let mut limited = result.clone();
    let devices = limited["interfaces"].as_array_mut().expect("a list");
    devices.push(json!({ "name": "bwp0a1b2c3d4e5f", "mac": "02:00:00:00:00:09" }));
    let (code, text) = with_key("prevResult", limited.clone());
    assert!(code == 2 && text.contains("bwp0a1b2c3d4e5f"), "{code}: {text}");
    let more = json!({
        "prevResult": limited, "bandwidthLimits": "warn",
        "logFile": cluster.laboratory.directory().join("cni.log"),
    });
    network.ours(&cluster.node, "ADD", Some(&container), more).expect("it runs");
    let log = std::fs::read_to_string(cluster.laboratory.directory().join("cni.log"));
    assert!(log.expect("a log").contains("NOT LIMITED"));

    network.delete(&cluster.node, &container, None).expect("gone");
    assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
    assert_eq!((cluster.leased(), cluster.endpoints().len()), (0, 0));
    cluster.wait_well();
}

/// What never was goes away; so does what is told with nonsense beside its name.
#[test]
fn whatever_goes_away_goes_without_an_error() {
    if !root_or_skip("what never was") {
        return;
    }
    let cluster = Cluster::start("never");
    let network = cluster.network(Primary::Ptp, "0.3.1", json!({}));
    let mut container = cluster.container(BUYER, "never");
    for netns in ["", "/run/netns/none", "/dev/null"] {
        container.netns = netns.into();
        for more in [json!({}), json!({ "sockett": 7 }), json!({ "waitSeconds": [] })] {
            let said = network.ours(&cluster.node, "DEL", Some(&container), more);
            assert_eq!(said.expect("gone"), "");
        }
    }
    cluster.wait_well();
}

/// Devices that are no veth pair are named, and the chain's other plugins undo their work.
#[test]
fn an_interface_that_cannot_be_served_is_named_with_its_kind() {
    if !root_or_skip("layer-3 devices") {
        return;
    }
    let cluster = Cluster::start("devices");
    let network = cluster.network(Primary::Ptp, "1.0.0", json!({}));
    let mut container = cluster.container(WEB_1, "one");
    let pod = cluster.pod(WEB_1);
    pod.ip("link add br0 address 02:00:00:00:00:99 type bridge").expect("a bridge");
    pod.ip("tuntap add dev tun0 mode tun").expect("a tun");
    // A pair whose other end is in a third namespace.
    let third = cluster.laboratory.namespace("third").expect("a namespace");
    let pair = format!("link add veth0 type veth peer name veth0 netns {}", third.system_name());
    pod.ip(&pair).expect("a pair");
    for (interface, words) in [
        ("br0", ["br0", "bridge, not veth"]),
        ("tun0", ["tun0", "layer-3"]),
        ("lo", ["lo", "layer-3"]),
        ("veth0", ["veth0", "not in the host's network namespace"]),
    ] {
        container.interface = interface;
        let previous = json!({ "prevResult": { "ips": [{ "address": "10.244.0.11/24" }] } });
        let refused = network.ours(&cluster.node, "ADD", Some(&container), previous);
        let refusal = refused.expect_err("it must be refused");
        assert_eq!(refusal.code, 102, "{refusal:?}");
        assert!(words.iter().all(|word| refusal.text.contains(word)), "{refusal:?}");
    }
    assert!(cluster.endpoints().is_empty());
}
