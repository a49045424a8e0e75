//! The pod's end of a link is set up as the ways out of its port need it, and set up anew by a process that
//! has other ways than the one before.

use control::admin::EndpointInfo;
use nix::sys::signal::Signal;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BUYER, CLUSTER_IP, PODS, PodPlan, STRANGER, WEB_1};
use xskiff::demo::traffic::upload;
use xskiff::lab::{Process, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, Stage, World};

const CHECKSUMS: &str = "tx-checksumming";
const SEGMENTATION: &str = "tcp-segmentation-offload";
const DATAGRAMS: &str = "tx-udp-segmentation";
const RECEIVE: &str = "generic-receive-offload";

/// Whether an offload is on at the pod's end.
fn is_on(world: &World, plan: PodPlan, offload: &str) -> bool {
    let text = world.scene.pod(plan).run("ethtool", &["-k", "eth0"]).expect("ethtool");
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let (_, state) = lines.find(|(name, _)| *name == offload).expect("the offload is there");
    state.starts_with("on")
}

fn assert_ends(world: &World, wanted: &[(&str, bool)]) {
    for plan in PODS {
        for (offload, on) in wanted {
            assert_eq!(is_on(world, plan, offload), *on, "{offload} of {}", plan.name);
        }
    }
}

/// The next process, once it serves all pods.
fn next(world: &World) -> Process {
    let process = world.start_again();
    let serves_all = || {
        let pods = world.status().ports.into_iter().filter(|port| port.kind == "pod");
        pods.count() == PODS.len()
    };
    assert!(wait_until(PATIENCE, serves_all).is_some(), "{}", process.log_tail());
    process
}

#[test]
fn a_process_with_other_ways_than_the_one_before_sets_the_pods_ends_up_for_its_own() {
    if !root_or_skip("offloads of pods' ends") {
        return;
    }
    let shape = Shape { label: "pod-ends", mtu: 1500, xdp_mode: "auto" };
    let world = World::start_edited(shape, |text| text + "\nsegments: cut\ntransmit: auto\n");
    assert_ends(&world, &[(CHECKSUMS, false), (SEGMENTATION, false), (RECEIVE, true)]);

    // Whole segments: what the process before turned off for its own sake is on again.
    world.rewrite_configuration("segments: cut\ntransmit: auto", "segments: whole");
    world.kill();
    let second = next(&world);
    let whole = [(CHECKSUMS, true), (SEGMENTATION, true), (DATAGRAMS, false), (RECEIVE, false)];
    assert_ends(&world, &whole);
    assert_eq!(world.port(WEB_1.name).transmit, "whole-segments, af-xdp");

    // And back: what pods leave to others no more, their own stacks do, though the program that the
    // process before left attached hides none of their offloads.
    world.rewrite_configuration("segments: whole", "segments: cut\ntransmit: auto");
    world.end_process(Some(second), Signal::SIGKILL);
    let third = next(&world);
    assert_ends(&world, &[(CHECKSUMS, false), (SEGMENTATION, false), (RECEIVE, true)]);
    for address in [CLUSTER_IP[0], CLUSTER_IP[1]] {
        let seen = upload(world.scene.pod(BUYER), address, 8 << 20).expect("asked");
        assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}");
    }
    assert_eq!(world.dropped("uncuttable"), 0);

    // And all is as it was when nobody serves them.
    third.signal(Signal::SIGTERM).expect("told");
    third.wait(PATIENCE).expect("ended");
    assert_ends(&world, &[(CHECKSUMS, true), (SEGMENTATION, true), (RECEIVE, false)]);
}

#[test]
fn a_packet_that_the_pods_end_does_not_take_is_answered_and_not_lost() {
    if !root_or_skip("an MTU of the pod's end alone") {
        return;
    }
    let shape = Shape { label: "pod-mtu", mtu: 1500, xdp_mode: "native" };
    let stage = Stage::build(shape, |text| text);
    // As the tuning plugin sets it: at that end alone.
    stage.scene.pod(BUYER).ip("link set eth0 mtu 1400").expect("an MTU");
    stage.scene.pod(WEB_1).ip("link set eth0 mtu 1600").expect("an MTU");
    let world = stage.begin();
    let list: Vec<EndpointInfo> =
        serde_json::from_str(&world.ask(&["endpoint", "list"])).expect("endpoints");
    let mtu = |plan: PodPlan| {
        let mut found = list.iter().filter(|one| one.interface == plan.name);
        found.next().expect("it is there").mtu
    };
    assert_eq!((mtu(BUYER), mtu(STRANGER)), (1400, 1500));
    // What a pod sends above what the node's end takes is lost: nobody but the list tells.
    let larger = list.iter().filter_map(|one| Some((one.interface.as_str(), one.pod_mtu?)));
    assert_eq!(larger.collect::<Vec<_>>(), [(WEB_1.name, 1600)]);
    let ping = |bytes: &str| {
        let words = ["-c1", "-W2", "-M", "do", "-s", bytes, BUYER.addresses[0]];
        // That it fails is as well as that it says why.
        let command = format!("ping {} 2>&1 || true", words.join(" "));
        world.scene.pod(STRANGER).run("sh", &["-c", &command]).expect("asked")
    };
    let told = ping("1420");
    assert!(told.contains("mtu = 1400") || told.contains("mtu=1400"), "{told}");
    assert!(world.dropped("too-big") > 0);
    assert!(ping("1372").contains("1 received"), "what fits arrives");
}
