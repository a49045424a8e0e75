//! The states of an endpoint as they come and go, in `endpoint list` and in the metric that counts them.

use std::collections::BTreeMap;

use control::admin::arrivals::ENDPOINT_STATES;
use xskiff::demo::files::MANIFESTS;
use xskiff::demo::scene::{PODS, STRANGER};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::{PATIENCE, Shape, World};

/// The pod that leaves and arrives.
const MOVING: &str = "shop/web-2";
/// How long a worker stands still: less than an ADD waits for sockets that are being closed.
const STALL_MS: &str = "3500";

/// `xskiff_endpoints` by state; every state is there.
fn counted(world: &World) -> BTreeMap<String, u64> {
    let text = world.metrics();
    let lines = text.lines().filter_map(|line| line.strip_prefix("xskiff_endpoints{state=\""));
    let counts: BTreeMap<String, u64> = lines
        .filter_map(|line| line.split_once("\"} "))
        .map(|(state, number)| (state.to_owned(), number.parse().expect("a number")))
        .collect();
    assert_eq!(counts.len(), ENDPOINT_STATES.len(), "{text}");
    counts
}

/// The state of each endpoint that is listed.
fn listed(world: &World) -> Vec<(String, String)> {
    let list = world.ask_json(&["endpoint", "list"]);
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let rows = list.as_array().expect("a list").iter();
    rows.map(|row| (text(&row["name"]), text(&row["state"]))).collect()
}

fn wait_for(world: &World, wanted: &[(&str, u64)]) {
    let is_so = || {
        let counts = counted(world);
        let expected = |state: &str| {
            wanted.iter().find(|(own, _)| *own == state).map_or(0, |(_, number)| *number)
        };
        counts.iter().all(|(state, number)| *number == expected(state))
    };
    let seen = wait_until(PATIENCE, is_so);
    assert!(seen.is_some(), "{wanted:?}: {:?}, {:?}", counted(world), listed(world));
}

#[test]
fn every_state_of_an_endpoint_is_listed_and_counted_while_it_lasts() {
    if !root_or_skip("endpoints' states") {
        return;
    }
    let shape = Shape { label: "states", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| text + "\ndebug: {faults: true}\n");
    let all = PODS.len() as u64;
    wait_for(&world, &[("ready", all)]);

    // Without its Pod object nobody knows who it is.
    let (name, pods) = MANIFESTS.iter().find(|(name, _)| *name == "pods.yaml").expect("pods");
    let is_strangers = |one: &&str| one.contains(&format!("name: {}\n", STRANGER.name));
    let others: Vec<&str> = pods.split("\n---\n").filter(|one| !is_strangers(one)).collect();
    world.add_manifests(name, &others.join("\n---\n"));
    wait_for(&world, &[("ready", all - 1), ("waiting-for-identity", 1)]);
    world.add_manifests(name, pods);
    wait_for(&world, &[("ready", all)]);

    // A worker that stands still degrades all, and gives no socket up meanwhile.
    let netns = format!("/run/netns/{}", world.scene.pod(PODS[1]).system_name());
    let [v4, v6] = PODS[1].addresses;
    let add = ["endpoint", "add", MOVING, "--interface", PODS[1].name, "--netns", &netns];
    let add = [&add[..], &["--address", v4, "--address", v6]].concat();
    world.ask(&["debug", "stall-worker", "0", "--for-ms", STALL_MS]);
    wait_for(&world, &[("degraded", all)]);
    world.ask(&["endpoint", "remove", MOVING]);
    assert!(listed(&world).contains(&(MOVING.into(), "leaving".into())), "{:?}", listed(&world));
    wait_for(&world, &[("degraded", all - 1), ("leaving", 1)]);
    // It waits for the sockets, and is added when they are closed.
    let program = path().to_string_lossy();
    let socket = world.files.socket.to_string_lossy();
    let words = [&["--socket", &*socket], &add[..]].concat();
    let added = world.scene.node.spawn("added", &program, &words).expect("started");
    wait_for(&world, &[("degraded", all - 1), ("leaving", 1), ("arriving", 1)]);
    assert!(added.wait(PATIENCE).expect("its end").success(), "{}", added.log_tail());
    wait_for(&world, &[("ready", all)]);
    assert!(listed(&world).contains(&(MOVING.into(), "ready".into())), "{:?}", listed(&world));
}
