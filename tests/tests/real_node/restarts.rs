//! What a node process finds of the one before: its pods, by what that one wrote down.

use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, HTTP, PODS, STRANGER};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::{PATIENCE, Shape, World};

/// Names and addresses of the endpoints.
fn endpoints(world: &World) -> Vec<String> {
    let list = world.ask_json(&["endpoint", "list"]);
    let rows = list.as_array().expect("rows").iter();
    rows.map(|row| format!("{} {}", row["name"], row["addresses"])).collect()
}

fn await_endpoints(world: &World, wanted: &[String]) {
    let there = || endpoints(world) == wanted;
    let seen = wait_until(PATIENCE, there);
    assert!(seen.is_some(), "{:?}, {:#?}", endpoints(world), world.status());
}

fn assert_serves(world: &World) {
    let client = &world.scene.client;
    let asked = http(client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT)).expect("asked");
    assert_eq!(asked.outcome, Outcome::Ok, "{asked:?}, {:#?}", world.status());
}

/// Pods were forgotten at every restart, and reached past services and policy, if at all, until
/// somebody added them again.
#[test]
fn pods_are_served_again_by_the_next_process_however_the_last_one_ended() {
    if !root_or_skip("restarts") {
        return;
    }
    let world = World::start(Shape { label: "again", mtu: 1500, xdp_mode: "native" });
    let mut all = endpoints(&world);
    assert_eq!(all.len(), PODS.len());
    let record = world.files.socket.with_file_name("endpoints.json");
    assert_eq!(std::fs::metadata(&record).expect("a record").mode() & 0o777, 0o600);

    world.kill();
    let second = world.start_again();
    await_endpoints(&world, &all);
    assert_serves(&world);
    let refused = forbidden(world.scene.pod(STRANGER), BALANCER, HTTP[0]).expect("asked");
    assert_eq!(refused.outcome, Outcome::Ok, "policy holds: {refused:?}");

    second.signal(Signal::SIGTERM).expect("told");
    assert_eq!(second.wait(PATIENCE).expect("ended").code(), Some(0));
    let third = world.start_again();
    await_endpoints(&world, &all);
    assert_serves(&world);

    // One that was removed stays away, and so does one whose interface is another's by now.
    world.ask(&["endpoint", "remove", "market/buyer"]);
    third.signal(Signal::SIGKILL).expect("killed");
    third.wait(PATIENCE).expect("ended");
    world.scene.node.ip("link del stranger").expect("ip");
    world.scene.node.ip("link add stranger type veth peer name other").expect("ip");
    let _fourth = world.start_again();
    all.retain(|endpoint| endpoint.contains("shop/"));
    await_endpoints(&world, &all);
    assert_serves(&world);
}

/// Source validation at the node's end, and offloads at the pod's.
fn settings_of_buyer(world: &World) -> (String, Vec<String>) {
    let file = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", BUYER.name);
    let validation = world.scene.node.run("cat", &[&file]).expect("a setting");
    let features = world.scene.pod(BUYER).run("ethtool", &["-k", "eth0"]).expect("ethtool");
    let wanted = ["tx-checksumming: ", "tcp-segmentation-offload: "];
    let lines = features.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    (validation.trim().to_owned(), lines.map(|line| line.trim().to_owned()).collect())
}

fn add_buyer(world: &World) {
    let netns = format!("/run/netns/{}", world.scene.pod(BUYER).system_name());
    let [v4, v6] = BUYER.addresses;
    let (program, socket) = (path().to_string_lossy(), world.files.socket.to_string_lossy());
    let words = ["--socket", &*socket, "endpoint", "add", "market/buyer"];
    let more = ["--interface", BUYER.name, "--address", v4, "--address", v6, "--netns", &netns];
    let words = [&words[..], &more[..]].concat();
    // Its sockets of before are closed within a second.
    let added = || world.scene.node.run(&program, &words).is_ok();
    assert!(wait_until(PATIENCE, added).is_some(), "{:#?}", world.status());
}

/// After SIGKILL the old values were forgotten, and offloads were never given back.
#[test]
fn what_was_changed_for_a_pod_is_given_back_by_whichever_process_ends_serving_it() {
    if !root_or_skip("settings of pods") {
        return;
    }
    let world = World::start(Shape { label: "back", mtu: 1500, xdp_mode: "native" });
    world.ask(&["endpoint", "remove", "market/buyer"]);
    let strict = format!("net/ipv4/conf/{}/rp_filter", BUYER.name);
    world.scene.node.set(&[(&strict, "1")]).expect("set");
    let before = settings_of_buyer(&world);
    assert_eq!(before.1, ["tx-checksumming: on", "tcp-segmentation-offload: on"]);
    let during = ["tx-checksumming: off", "tcp-segmentation-offload: off"];
    let changed = ("2".to_owned(), during.map(str::to_owned).to_vec());

    add_buyer(&world);
    let all = endpoints(&world);
    assert_eq!(settings_of_buyer(&world), changed);
    world.kill();
    let second = world.start_again();
    await_endpoints(&world, &all);
    assert_eq!(settings_of_buyer(&world), changed);
    world.ask(&["endpoint", "remove", "market/buyer"]);
    assert_eq!(settings_of_buyer(&world), before, "by another process than changed it");

    add_buyer(&world);
    assert_eq!(settings_of_buyer(&world), changed);
    second.signal(Signal::SIGTERM).expect("told");
    assert_eq!(second.wait(PATIENCE).expect("ended").code(), Some(0));
    assert_eq!(settings_of_buyer(&world), before, "by one that ends");
}
