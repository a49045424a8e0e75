//! Tunnel devices of a primary plugin between nodes: one of Ethernet frames is an uplink, so that policy
//! holds for what comes by it; one of the third layer is refused by name.

use std::path::Path;

use control::admin::{EndpointAdd, Request};
use xskiff::cli::client::Client;
use xskiff::demo::scene::{CLIENT, NODE, WEB_1};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, Stage, World};

/// Of the other node, as Flannel gives its tunnel device the first address of its pods' range.
const REMOTE: &str = "10.244.9.1";

/// A world whose client is another node of the cluster, with a VXLAN device at both ends.
fn world(label: &'static str) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    let stage = Stage::build(shape, |text| {
        let uplink = "  - interface: uplink\n";
        assert!(text.contains(uplink), "{text}");
        text.replace(uplink, &format!("  - interface: flannel.1\n{uplink}"))
            .replace("10.244.0.0/24", "10.244.0.0/16")
    });
    let ends = [
        (&stage.scene.client, "eth0", CLIENT[0], NODE[0], format!("{REMOTE}/24")),
        (&stage.scene.node, "uplink", NODE[0], CLIENT[0], "10.244.0.0/32".to_owned()),
    ];
    for (namespace, device, local, remote, address) in ends {
        let tunnel = format!("id 1 dstport 8472 local {local} remote {remote} dev {device}");
        namespace.ip(&format!("link add flannel.1 type vxlan {tunnel}")).expect("a VXLAN device");
        namespace.ip(&format!("address add {address} dev flannel.1")).expect("an address");
        namespace.ip("link set flannel.1 up").expect("up");
    }
    stage.scene.client.features("flannel.1", "tx off").expect("features");
    let [web, _] = WEB_1.addresses;
    let mac = stage.scene.node.run("cat", &["/sys/class/net/flannel.1/address"]).expect("a MAC");
    for words in [
        format!("route add {web}/32 dev flannel.1 src {REMOTE}"),
        format!("neighbour add {web} lladdr {} dev flannel.1", mac.trim()),
    ] {
        stage.scene.client.ip(&words).expect("the other node's way");
    }
    let way = "route add 10.244.9.0/24 dev flannel.1";
    stage.scene.node.ip(way).expect("a route");
    stage.begin()
}

#[test]
fn policy_holds_for_what_comes_by_a_tunnel_of_ethernet_frames() {
    if !root_or_skip("a VXLAN device as an uplink") {
        return;
    }
    let world = world("vxlan");
    let tunnel = world.port("flannel.1");
    // Its driver has no native XDP.
    assert_eq!((tunnel.kind.as_str(), tunnel.xdp_mode.as_str()), ("uplink", "generic"));
    let [web, _] = WEB_1.addresses;
    let answers = || {
        world
            .scene
            .client
            .ping(web.parse().expect("an address"), 1)
            .is_ok_and(|ping| ping.received == 1)
    };
    world.add_manifests("open.yaml", &policy("[{from: [{ipBlock: {cidr: 10.244.9.0/24}}]}]"));
    assert!(wait_until(PATIENCE, answers).is_some(), "allowed by the policy, and by the tunnel");
    assert!(world.port("flannel.1").received_packets > 0, "not by the uplink beside it");
    world.add_manifests("open.yaml", &policy("[]"));
    assert!(wait_until(PATIENCE, || !answers()).is_some(), "denied now");
    assert!(world.dropped("policy-ingress") > 0);
    world.assert_kernel_forwarded_nothing();
}

/// A policy of the demo's pods that isolates the first web server beside those that there are.
fn policy(ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: by-the-tunnel, namespace: {}}}\n\
         spec:\n  podSelector: {{}}\n  policyTypes: [Ingress]\n  ingress: {ingress}\n",
        WEB_1.kubernetes_namespace
    )
}

#[test]
fn devices_of_the_third_layer_are_refused_by_name() {
    if !root_or_skip("layer-3 devices") {
        return;
    }
    assert!(Path::new("/dev/net/tun").exists());
    let world = World::start(Shape { label: "layer3", mtu: 1500, xdp_mode: "native" });
    world.scene.node.ip("tuntap add l3 mode tun").expect("a tun device");
    let endpoint = EndpointAdd {
        name: "shop/tun".into(),
        interface: "l3".into(),
        netns: None,
        addresses: vec!["10.244.0.99".parse().expect("an address")],
        mac: None,
        attachment: None,
        pod_uid: None,
        bandwidth: None,
    };
    let asked = Client::connect(&world.files.socket)
        .and_then(|mut client| client.ask(Request::EndpointAdd(endpoint)));
    let said = asked.expect_err("it is refused").to_string();
    assert!(said.contains("layer-3 device") && said.contains("veth"), "{said}");
    assert_eq!(world.status().arrivals.failed, 1);

    // The pods of the demo are ready; one that no Pod object is of waits, and one whose link is down
    // is degraded. Each says so.
    let state = |name: &str| {
        let list = world.ask_json(&["endpoint", "list"]);
        let mut list = list.as_array().expect("a list").iter();
        let found = list.find(|one| one["name"] == name).expect("it is there");
        found["state"].as_str().expect("a state").to_owned()
    };
    let web = format!("{}/{}", WEB_1.kubernetes_namespace, WEB_1.name);
    assert_eq!(state(&web), "ready");
    world.scene.node.ip(&format!("link set {} down", WEB_1.name)).expect("down");
    assert!(wait_until(PATIENCE, || state(&web) == "degraded").is_some());
    let counted = |state: &str| {
        let states = world.status().arrivals.states;
        states.into_iter().find(|(label, _)| label == state).expect("each is there").1
    };
    assert_eq!((counted("ready"), counted("degraded")), (3, 1));
    world.scene.node.ip(&format!("link set {} up", WEB_1.name)).expect("up");
    assert!(wait_until(PATIENCE, || state(&web) == "ready").is_some());
}
