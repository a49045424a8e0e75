//! A pod whose interface is added before its Pod object exists: what it may is configured, told and
//! counted, what stands goes on, and policy decides once the object has come.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::Value;
use xskiff::demo::files::MANIFESTS;
use xskiff::demo::scene::{CLIENT, HTTP, PODS, PodPlan, STRANGER, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, within};

/// The pod: the second of the web servers, whom policy lets the client reach and the stranger not.
const NEW: PodPlan = PODS[1];
const NAME: &str = "shop/web-2";
/// Where it echoes datagrams.
const ECHO: u16 = 5353;

/// A UDP flow from a namespace to the pod that stays open.
struct Flow(UdpSocket);

impl Flow {
    fn open(from: &Namespace) -> Self {
        let [v4, _] = NEW.addresses;
        let to = SocketAddr::new(v4.parse::<IpAddr>().expect("an address"), ECHO);
        let socket = within(from, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect(to).expect("connected");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time limit");
            socket
        });
        Self(socket)
    }

    /// Whether one of three datagrams is echoed.
    fn answers(&self) -> bool {
        let mut datagram = [0; 16];
        (0..3).any(|_| self.0.send(b"still there?").is_ok() && self.0.recv(&mut datagram).is_ok())
    }
}

/// Whether a request over a new connection is answered.
fn opens(from: &Namespace, host: &str, l4_port: u16) -> bool {
    let asked = fetch(from, &to(host, l4_port), 1, &["--timeout-ms=1000"]).expect("asked");
    asked.iter().all(|answer| answer.error.is_none())
}

fn endpoint(world: &World) -> Value {
    let list = world.ask_json(&["endpoint", "list"]);
    let mut list = list.as_array().expect("a list").iter();
    list.find(|one| one["name"] == NAME).expect("it is there").clone()
}

/// The counter of all workers together in `/metrics`.
fn metric(world: &World, name: &str) -> u64 {
    let text = world.metrics();
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

fn drops(world: &World) -> u64 {
    metric(world, "xskiff_unknown_pod_dropped_packets_total")
}

fn admitted(world: &World) -> u64 {
    metric(world, "xskiff_unknown_pod_flows_total")
}

/// Adds the pod's interface once more, with no Pod object of its name.
fn add_anew(world: &World) {
    let (_, pods) = MANIFESTS.iter().find(|(name, _)| *name == "pods.yaml").expect("pods");
    let others: Vec<&str> = pods
        .split("\n---\n")
        .filter(|one| !one.contains(&format!("name: {}\n", NEW.name)))
        .collect();
    assert_eq!(others.len(), PODS.len() - 1);
    world.ask(&["endpoint", "remove", NAME]);
    std::fs::write(world.files.manifests.join("pods.yaml"), others.join("\n---\n"))
        .expect("written");
    let is_gone = || world.ask(&["identity", "list"]).matches(NAME).count() == 0;
    assert!(wait_until(PATIENCE, is_gone).is_some(), "{}", world.ask(&["identity", "list"]));
    let netns = format!("/run/netns/{}", world.scene.pod(NEW).system_name());
    let [v4, v6] = NEW.addresses;
    let words = ["endpoint", "add", NAME, "--interface", NEW.name, "--netns", &netns];
    world.ask(&[&words[..], &["--address", v4, "--address", v6]].concat());
    let waits = || endpoint(world)["state"] == "waiting-for-identity";
    assert!(wait_until(PATIENCE, waits).is_some(), "{}", endpoint(world));
}

#[test]
fn a_pod_that_comes_before_its_object_does_what_is_configured_until_policy_decides() {
    if !root_or_skip("a pod before its Pod object") {
        return;
    }
    let world = World::start(Shape { label: "unknown", mtu: 1500, xdp_mode: "native" });
    let (outside, stranger) = (&world.scene.client, world.scene.pod(STRANGER));
    let ([v4, v6], [_, _, target]) = (NEW.addresses, HTTP);
    add_anew(&world);

    // By its namespace: a policy there may select it, and no rule is for every pod.
    assert!(!opens(outside, v4, target) && !opens(outside, v6, target) && drops(&world) > 0);
    assert!(opens(&world.scene.node, v4, target), "its own node reaches it");
    let dropped = world.ask(&["flows", "--verdict", "dropped", "--endpoint", NAME]);
    let told = dropped.lines().any(|line| {
        line.contains("policy-ingress") && line.contains("its identity is not known yet")
    });
    assert!(told, "{dropped}");
    let words = ["policy", "explain", "--from", CLIENT[0], "--to", NAME, "--port", "8080"];
    let explained = world.ask(&words);
    assert!(explained.contains("not known yet") && explained.contains("shop/web-customers"));
    let listed = endpoint(&world);
    assert!(listed["state_reason"].as_str().expect("a reason").contains("namespace"), "{listed}");
    assert!(opens(world.scene.pod(NEW), CLIENT[0], target), "no policy is about its egress");
    assert_eq!(admitted(&world), 0);

    // Everything: the stranger, too, whom no rule will name.
    let setting = "policy: {unknown_pods: allow}\n";
    let text = std::fs::read_to_string(&world.files.configuration).expect("the configuration");
    std::fs::write(&world.files.configuration, text + setting).expect("written");
    assert!(wait_until(PATIENCE, || opens(outside, v4, target)).is_some());
    assert!(opens(stranger, v4, target) && admitted(&world) > 0);
    let (allowed, forbidden) = (Flow::open(outside), Flow::open(stranger));
    assert!(allowed.answers() && forbidden.answers());
    assert!(endpoint(&world)["state_reason"].as_str().expect("a reason").contains("everything"));

    // Nothing new: what stands goes on.
    world.change_configuration("unknown_pods: allow", "unknown_pods: deny");
    assert!(wait_until(PATIENCE, || !opens(outside, v4, target)).is_some());
    assert!(!opens(world.scene.pod(NEW), CLIENT[0], target), "neither way");
    assert!(opens(&world.scene.node, v4, target), "its own node reaches it");
    assert!(allowed.answers() && forbidden.answers());

    // It is known: policy decides, about what stands as well.
    let (name, pods) = MANIFESTS.iter().find(|(name, _)| *name == "pods.yaml").expect("pods");
    world.add_manifests(name, pods);
    let is_ready = || endpoint(&world)["state"] == "ready";
    assert!(wait_until(PATIENCE, is_ready).is_some(), "{}", endpoint(&world));
    assert!(opens(outside, v4, target) && !opens(stranger, v4, target));
    assert!(allowed.answers() && !forbidden.answers());
    world.assert_kernel_forwarded_nothing();
}
