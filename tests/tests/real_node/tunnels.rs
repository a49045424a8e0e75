//! Tunnel devices of a primary plugin between nodes: one of Ethernet frames is an uplink, so that policy
//! holds for what comes by it, and may come later; one of the third layer is refused by name.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use control::admin::status::Level;
use control::admin::{EndpointAdd, Request};
use xskiff::cli::client::Client;
use xskiff::demo::scene::{CLIENT, NODE, Scene, WEB_1};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::{PATIENCE, Shape, Stage, World};

/// Of the other node, as Flannel gives its tunnel device the first address of its pods' range.
const REMOTE: &str = "10.244.9.1";

/// A stage whose client is another node of the cluster, with its end of a tunnel.
fn stage(label: &'static str, more: &str) -> Stage {
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    let stage = Stage::build(shape, |text| {
        let uplink = "  - interface: uplink\n";
        assert!(text.contains(uplink), "{text}");
        text.replace(uplink, &format!("  - interface: flannel.1\n{more}{uplink}"))
            .replace("10.244.0.0/24", "10.244.0.0/16")
    });
    let client = &stage.scene.client;
    make_device(client, "eth0", [CLIENT[0], NODE[0]], &format!("{REMOTE}/24"));
    client.features("flannel.1", "tx off").expect("features");
    let [web, _] = WEB_1.addresses;
    client.ip(&format!("route add {web}/32 dev flannel.1 src {REMOTE}")).expect("a route");
    stage
}

fn make_device(namespace: &Namespace, device: &str, [local, remote]: [&str; 2], address: &str) {
    let tunnel = format!("id 1 dstport 8472 local {local} remote {remote} dev {device}");
    namespace.ip(&format!("link add flannel.1 type vxlan {tunnel}")).expect("a VXLAN device");
    namespace.ip(&format!("address add {address} dev flannel.1")).expect("an address");
    namespace.ip("link set flannel.1 up").expect("up");
}

/// The node's end, as its primary plugin makes it, and what the other node is told of it.
fn make_nodes_end(scene: &Scene) {
    make_device(&scene.node, "uplink", [NODE[0], CLIENT[0]], "10.244.0.0/32");
    scene.node.ip("route add 10.244.9.0/24 dev flannel.1").expect("a route");
    let mac = scene.node.run("cat", &["/sys/class/net/flannel.1/address"]).expect("a MAC");
    let [web, _] = WEB_1.addresses;
    let neighbour = format!("neighbour replace {web} lladdr {} dev flannel.1", mac.trim());
    scene.client.ip(&neighbour).expect("a neighbour");
}

/// A world whose tunnel was there before the node.
fn world(label: &'static str) -> World {
    let stage = stage(label, "");
    make_nodes_end(&stage.scene);
    stage.begin()
}

/// Whether the pod answers the other node.
fn answers(scene: &Scene) -> bool {
    let [web, _] = WEB_1.addresses;
    scene.client.ping(web.parse().expect("an address"), 1).is_ok_and(|ping| ping.received == 1)
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
    let answers = || answers(&world.scene);
    world.add_manifests("open.yaml", &policy("[{from: [{ipBlock: {cidr: 10.244.9.0/24}}]}]"));
    assert!(wait_until(PATIENCE, answers).is_some(), "allowed by the policy, and by the tunnel");
    assert!(world.port("flannel.1").received_packets > 0, "not by the uplink beside it");
    world.add_manifests("open.yaml", &policy("[]"));
    assert!(wait_until(PATIENCE, || !answers()).is_some(), "denied now");
    assert!(world.dropped("policy-ingress") > 0);
    world.assert_kernel_forwarded_nothing();
}

/// What the node says of its tunnel device.
fn told(world: &World) -> Option<String> {
    let errors = world.status().errors.into_iter();
    let mut about = errors.filter(|error| error.object == "interface flannel.1");
    about.next().map(|error| error.message)
}

#[test]
fn a_tunnel_that_comes_after_the_node_is_taken_and_again_when_it_is_made_anew_under_traffic() {
    if !root_or_skip("a VXLAN device that comes later") {
        return;
    }
    let world = stage("latevxlan", "    optional: true\n").begin_somehow(Instant::now() + PATIENCE);
    let is_port = || world.status().ports.iter().any(|port| port.interface == "flannel.1");
    let is_told = || told(&world).is_some_and(|told| told.contains("not there yet"));
    assert!(wait_until(PATIENCE, is_told).is_some() && !is_port(), "{:?}", world.status().errors);
    assert!(world.status().verdict.level == Level::Degraded);
    let text = world.metrics();
    assert!(text.contains("xskiff_reconcile_failures_total{reconcile=\"interfaces\"} 1"), "{text}");
    world.add_manifests("open.yaml", &policy("[{from: [{ipBlock: {cidr: 10.244.9.0/24}}]}]"));

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The other node never stops asking.
        let (client, [web, _]) = (world.scene.client.system_name(), WEB_1.addresses);
        let asking = scope.spawn(|| {
            let until = Instant::now() + 6 * PATIENCE;
            while !is_over.load(Ordering::Relaxed) && Instant::now() < until {
                let words = ["netns", "exec", client, "ping", "-c", "1", "-W", "1", web];
                Command::new("ip").args(words).output().expect("asked");
            }
        });
        for time in 0..3 {
            make_nodes_end(&world.scene);
            assert!(wait_until(PATIENCE, is_port).is_some(), "{time}: {:?}", told(&world));
            assert!(wait_until(PATIENCE, || answers(&world.scene)).is_some(), "{time}");
            assert_eq!(told(&world), None, "{time}");
            assert!(world.port("flannel.1").received_packets > 0, "not by the uplink beside it");
            if time < 2 {
                world.scene.node.ip("link delete flannel.1").expect("deleted");
                let is_gone = || !is_port() && is_told();
                assert!(wait_until(PATIENCE, is_gone).is_some(), "{:?}", world.status().errors);
                // It may be made anew before anybody has looked.
                make_nodes_end(&world.scene);
                world.scene.node.ip("link delete flannel.1").expect("deleted");
            }
        }
        is_over.store(true, Ordering::Relaxed);
        asking.join().expect("it went on asking");
    });
    world.add_manifests("open.yaml", &policy("[]"));
    assert!(wait_until(PATIENCE, || !answers(&world.scene)).is_some(), "policy holds there");
    assert!(world.dropped("policy-ingress") > 0);
    let is_well = || world.status().verdict.level == Level::Ok;
    assert!(wait_until(PATIENCE, is_well).is_some(), "{:?}", world.status().verdict);
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn an_uplink_that_is_not_there_and_must_be_is_refused_with_the_way_out() {
    if !root_or_skip("a missing uplink") {
        return;
    }
    let stage = stage("novxlan", "");
    let configuration = stage.files.configuration.to_string_lossy().into_owned();
    let manifests = stage.files.manifests.to_string_lossy().into_owned();
    let words = ["run", "--config", &*configuration, "--manifests", &*manifests];
    let program = path().to_string_lossy();
    let refused = stage.scene.node.run(&program, &words).expect_err("it is refused").to_string();
    assert!(refused.contains("flannel.1") && refused.contains("optional: true"), "{refused}");
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
