//! What a node process finds of the one before: its pods, by what that one wrote down.

use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, CLIENT, HTTP, PODS, STRANGER};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

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
