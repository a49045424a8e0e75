//! The time between one node process and the next: the XDP program stays and drops what is ours, so
//! that no pod escapes policy into a kernel that would forward; and `xskiff detach`, which ends it.

use std::time::Duration;

use nix::sys::signal::Signal;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, HTTP, PODS, STRANGER, WEB_1};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::{ForwardCounters, wait_until};
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::{PATIENCE, Shape, World};

/// Ports: all pods, the uplink, the host port.
pub const INTERFACES: usize = PODS.len() + 2;

fn start(label: &'static str, on_exit: &str) -> World {
    start_with(label, &format!("stall: {{on_exit: {on_exit}}}"))
}

/// A node whose kernel would forward between pods, if it were asked, with more of a configuration.
pub fn start_with(label: &'static str, more: &str) -> World {
    let section = format!("\n{more}\n");
    let shape = Shape { label, mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| text + &section);
    let node = &world.scene.node;
    node.set(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")]).expect("set");
    for pod in PODS {
        let [v4, _] = pod.addresses;
        node.ip(&format!("route replace {v4}/32 dev {}", pod.name))
            .expect("a route of the kernel's");
    }
    world
}

/// Whether a pod reaches one that policy keeps it from, and the outside.
pub fn escapes(world: &World) -> bool {
    let [web, _] = WEB_1.addresses;
    let reaches = |pod, address: &str| {
        world.scene.pod(pod).run("ping", &["-c", "1", "-W", "1", "-n", address]).is_ok()
    };
    reaches(STRANGER, web) || reaches(BUYER, web)
}

pub fn assert_serves(world: &World) {
    let client = &world.scene.client;
    let asked = http(client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT)).expect("asked");
    assert_eq!(asked.outcome, Outcome::Ok, "{asked:?}, {:#?}", world.status());
    let refused = forbidden(world.scene.pod(STRANGER), BALANCER, HTTP[0]).expect("asked");
    assert_eq!(refused.outcome, Outcome::Ok, "policy holds: {refused:?}");
}

/// XDP programs of ours in the node's namespace, as `ip` shows them, but for the one that sends live
/// frames, whose device is the process's own.
pub fn programs(world: &World) -> Vec<String> {
    let links = world.scene.node.run("ip", &["-j", "-d", "link"]).expect("links");
    let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
    let on = |link: &serde_json::Value| {
        let is_own = link["ifname"].as_str()?.starts_with("xskiff-live");
        (!is_own).then_some(link["xdp"]["prog"]["id"].as_u64()?.to_string())
    };
    links.as_array().expect("links").iter().filter_map(on).collect()
}

fn detach(world: &World) -> Result<serde_json::Value, String> {
    let configuration = world.files.configuration.to_string_lossy();
    let words = ["--json", "detach", "--config", &*configuration];
    let said = world.scene.node.run(&path().to_string_lossy(), &words);
    said.map(|json| serde_json::from_str(&json).expect("JSON")).map_err(|error| error.to_string())
}

#[test]
fn between_two_processes_what_is_ours_is_dropped_and_policy_holds() {
    if !root_or_skip("left attached") {
        return;
    }
    let world = start("left", "drop");
    assert_serves(&world);
    let first = programs(&world);
    assert_eq!(first.len(), INTERFACES, "{first:?}");
    let refused = detach(&world).expect_err("a node runs");
    assert!(refused.contains("process"), "{refused}");

    world.kill();
    assert_eq!(programs(&world), first, "after SIGKILL");
    assert!(!escapes(&world), "after SIGKILL");
    let second = world.start_again();
    let is_whole = || programs(&world).len() == INTERFACES && programs(&world) != first;
    assert!(wait_until(PATIENCE, is_whole).is_some(), "{:?}", programs(&world));
    assert_serves(&world);

    second.signal(Signal::SIGTERM).expect("told");
    assert_eq!(second.wait(PATIENCE).expect("ended").code(), Some(0));
    assert_eq!(programs(&world).len(), INTERFACES, "in order, and told to leave it");
    assert!(!escapes(&world), "in order, and told to leave it");
    let third = world.start_again();
    let serves = || programs(&world).len() == INTERFACES;
    assert!(wait_until(PATIENCE, serves).is_some(), "{:?}", programs(&world));
    assert_serves(&world);
    // All this time the kernel has forwarded nothing of ours.
    let forwarded = world.scene.node.forward_counters().expect("counters");
    assert_eq!(forwarded, ForwardCounters { ipv4: 0, ipv6: 0 });

    third.signal(Signal::SIGKILL).expect("killed");
    third.wait(PATIENCE).expect("ended");
    let detached = detach(&world).expect("nothing runs");
    assert_eq!(detached["interfaces"], INTERFACES);
    assert_eq!(detached["endpoints"], PODS.len());
    assert!(programs(&world).is_empty(), "{:?}", programs(&world));
    assert!(world.scene.node.ip("link show xskiff-host").is_err(), "the host port is left");
    assert!(escapes(&world), "this test could not see traffic escape");
    let again = detach(&world).expect("nothing is left");
    assert_eq!((&again["interfaces"], &again["endpoints"]), (&0.into(), &0.into()));
}

#[test]
fn a_process_that_ends_in_order_leaves_nothing_attached_unless_it_is_told_to() {
    if !root_or_skip("left attached") {
        return;
    }
    let world = start("order", "drop");
    world.change_configuration("on_exit: drop", "on_exit: detach");
    world.node.signal(Signal::SIGTERM).expect("told");
    let is_gone = || programs(&world).is_empty();
    assert!(wait_until(PATIENCE, is_gone).is_some(), "{:?}", programs(&world));
    std::thread::sleep(Duration::from_millis(100));
    assert!(escapes(&world), "the kernel forwards what it can");
}

/// It must not let through what the one before would not have.
#[test]
fn a_start_that_fails_leaves_what_the_process_before_has_left() {
    if !root_or_skip("left attached") {
        return;
    }
    let world = start("failing", "drop");
    world.kill();
    let left = programs(&world);
    let file = &world.files.configuration;
    let good = std::fs::read_to_string(file).expect("the configuration");
    let bad = good.replace("interface: uplink\n", "interface: uplink9\n");
    std::fs::write(file, bad).expect("written");
    let program = path().to_string_lossy();
    let [configuration, manifests] =
        [file, &world.files.manifests].map(|path| path.to_string_lossy().into_owned());
    let words = ["run", "--config", &*configuration, "--manifests", &*manifests];
    let refused = world.scene.node.run(&program, &words).expect_err("no such uplink");
    assert!(refused.to_string().contains("uplink9"), "{refused}");
    assert!(programs(&world).iter().all(|id| left.contains(id)), "{:?}", programs(&world));
    assert!(!escapes(&world));
    std::fs::write(file, good).expect("written");
    let _again = world.start_again();
    let is_whole = || programs(&world).len() == INTERFACES;
    assert!(wait_until(PATIENCE, is_whole).is_some(), "{:?}", programs(&world));
    assert_serves(&world);
}
