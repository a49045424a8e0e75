//! A node's life under deploy/seccomp/xskiff.json: a system call that the profile does not name ends
//! the process here, so that it is found before a cluster's runtime refuses it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, CLUSTER_IP, HTTP, WEB_1, to};
use xskiff::demo::traffic::{http, upload};
use xskiff::lab::wait_until;
use xskiff_tests::seccomp_profile::Profile;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::ways_out;
use crate::world::{PATIENCE, Shape, Stage, World};

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/seccomp/xskiff.json");

/// A runtime's configuration, as the primary plugin writes it.
const CONFLIST: &str =
    "{\"name\":\"pods\",\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"ptp\"}]}\n";

fn under(profile: &str) -> [&str; 2] {
    [env!("CARGO_BIN_EXE_under_seccomp"), profile]
}

fn profile() -> Profile {
    let text = std::fs::read_to_string(PROFILE).expect("the profile");
    Profile::parse(&text).unwrap_or_else(|error| panic!("{PROFILE}: {error:#}"))
}

/// What takes over a machine, or leaves what confines the process.
const NEVER: [&str; 22] = [
    "add_key",
    "chroot",
    "delete_module",
    "finit_module",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mknod",
    "mount",
    "move_mount",
    "open_by_handle_at",
    "pivot_root",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "setgid",
    "setuid",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
];

#[test]
fn the_profile_is_of_the_runtimes_format_and_allows_nothing_that_takes_over_a_machine() {
    let profile = profile();
    let names: Vec<&str> = profile.names().collect();
    let each: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(each.len(), names.len(), "a call is named twice");
    for never in NEVER {
        assert!(!each.contains(never), "{never}");
    }
    profile.deadly_filter().unwrap_or_else(|error| panic!("{error:#}"));
}

fn serves(world: &World) {
    let client = &world.scene.client;
    let seen = http(client, WEB_1.addresses, HTTP[2], &[WEB_1.name], Some(CLIENT)).expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}, {:#?}", world.status());
    let buyer = world.scene.pod(BUYER);
    let seen = http(buyer, CLUSTER_IP, HTTP[0], &["web-1", "web-2"], None).expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}, {:#?}", world.status());
}

#[test]
fn a_node_lives_and_ends_under_the_profile() {
    if !root_or_skip("a seccomp profile") {
        return;
    }
    let shape = Shape { label: "seccomp", mtu: 1500, xdp_mode: "native" };
    let runtime = tempfile::tempdir().expect("a runtime's directories");
    let conflist = runtime.path().join("10-pods.conflist");
    std::fs::write(&conflist, CONFLIST).expect("written");
    std::fs::write(runtime.path().join("xskiff-cni"), "").expect("written");
    let directory = runtime.path().display();
    let chain =
        format!("cni: {{keep_chained: true, conf_dir: {directory}, bin_dir: {directory}}}\n");
    let world = Stage::build(shape, |text| text + "timeouts: {udp_seconds: 31}\n" + &chain)
        .begin_behind(&under(PROFILE));
    let status = format!("/proc/{}/status", world.node.process().id());
    let status = std::fs::read_to_string(status).expect("it runs");
    assert!(status.contains("Seccomp:\t2"), "no filter is in force: {status}");
    serves(&world);
    // What clients ask of a node, and what it does by itself.
    world.change_configuration("udp_seconds: 31", "udp_seconds: 32");
    world.add_manifests("late.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: late}}");
    world.ask(&["ct", "resize", "--v4", "200000"]);
    world.ask(&["ct", "flush", "--all"]);
    world.ask(&["flows"]);
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
    let metrics = world.scene.node.run("curl", &["-sS", "http://127.0.0.1:9964/metrics"]);
    assert!(metrics.is_ok_and(|text| text.contains("xskiff_")));
    let name = format!("{}/{}", BUYER.kubernetes_namespace, BUYER.name);
    world.ask(&["endpoint", "remove", &name]);
    let is_chained =
        || std::fs::read_to_string(&conflist).is_ok_and(|text| text.contains("xskiff-cni"));
    assert!(wait_until(PATIENCE, is_chained).is_some(), "{:#?}", world.status().cni);
    // Long enough for everything that comes round by itself.
    let later = world.status().uptime_seconds + 12;
    assert!(wait_until(PATIENCE, || world.status().uptime_seconds >= later).is_some());
    assert_eq!(world.node.end().expect("ended"), Some(0));
}

/// Lives under the profile, hands over to a successor under it, does
/// `work` with each of them, and no process ends by SIGSYS.
fn live_and_hand_over(world: World, work: impl Fn(&World)) {
    let held = Client::start(&world.scene.client, &to(BALANCER[0], HTTP[0]), 50, 10);
    serves(&world);
    work(&world);
    let successor = world.take_over_behind(&under(PROFILE));
    let ended = world.node.process().wait(PATIENCE).expect("the predecessor ends");
    assert_eq!(ended.code(), Some(0), "{}", world.node.process().log_tail());
    held.goes_on();
    serves(&world);
    work(&world);
    held.end_whole(PATIENCE);
    // Twice: the first successor took sockets over, and hands them on.
    let last = world.take_over_behind(&under(PROFILE));
    let ended = successor.wait(PATIENCE).expect("the successor ends in its turn");
    assert_eq!(ended.code(), Some(0), "{}", successor.log_tail());
    serves(&world);
    last.signal(Signal::SIGTERM).expect("told");
    assert_eq!(last.wait(PATIENCE).expect("ended").code(), Some(0), "{}", last.log_tail());
}

#[test]
fn a_node_that_carries_whole_segments_lives_and_hands_over_under_the_profile() {
    if !root_or_skip("whole segments under a seccomp profile") {
        return;
    }
    let shape = Shape { label: "seccomp-whole", mtu: 1500, xdp_mode: "auto" };
    let stage = Stage::build(shape, |text| text + "segments: whole\n");
    live_and_hand_over(stage.begin_behind(&under(PROFILE)), |world| {
        let before = world.status().segments.whole_packets;
        let seen = upload(world.scene.pod(BUYER), CLUSTER_IP[0], 8 << 20).expect("asked");
        assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}");
        assert!(world.status().segments.whole_packets > before, "{:?}", world.status().segments);
    });
}

#[test]
fn a_node_that_sends_live_frames_lives_and_hands_over_under_the_profile() {
    if !root_or_skip("live frames under a seccomp profile") {
        return;
    }
    let shape = Shape { label: "seccomp-live", mtu: 1500, xdp_mode: "native" };
    let stage = Stage::build(shape, |text| text + "transmit: live-frames\n");
    stage.scene.pod(WEB_1).features("eth0", "gro on").expect("switched");
    live_and_hand_over(stage.begin_behind(&under(PROFILE)), ways_out::flood);
}

/// The tests above would see it: with a profile that lacks one call the node does not live.
#[test]
fn a_call_that_the_profile_lacks_ends_the_node() {
    if !root_or_skip("a seccomp profile with a gap") {
        return;
    }
    let bare = crate::bare::Bare::new("gap");
    let text = std::fs::read_to_string(PROFILE).expect("the profile");
    assert!(text.contains("\"fallocate\","), "{text}");
    let gap = bare.directory("gap.json");
    std::fs::write(&gap, text.replace("\"fallocate\",", "")).expect("written");
    let configuration = bare.configuration("up0", &bare.directory("run"), "");
    let process = bare.spawn(&under(&gap), &configuration);
    let ended = process.wait(PATIENCE).expect("it ends");
    assert_eq!(ended.signal(), Some(Signal::SIGSYS as i32), "{}", process.log_tail());
}
