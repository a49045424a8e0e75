//! TCP segments longer than the MTU: pods keep their segmentation offload, and what they send goes whole to
//! pods and in pieces to the outside. Every byte is checked, and nothing is refused or lost.

use std::time::Duration;

use control::admin::status::{PortStatus, SegmentsStatus};
use xskiff::demo::scene::{BALANCER, BUYER, ECHO, FAMILIES, HTTP, WEB_1, to};
use xskiff::demo::traffic::next_fetched;
use xskiff::lab::link::{self, End};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, number_from};

/// What the other end of one transfer says that it takes, for the first of these tests: less than the MTU.
const SMALL_MSS: u64 = 1000;

fn start(label: &'static str) -> World {
    let shape = Shape { label, mtu: 1500, xdp_mode: "auto" };
    World::start_edited(shape, |text| text + "\nsegments: whole\n")
}

/// Moves so many MiB between a client and the service.
fn transfer(world: &World, from: &str, family: usize, option: &str) {
    let namespace = match from {
        "outside" => &world.scene.client,
        _ => world.scene.pod(BUYER),
    };
    transfer_by(world, (from, namespace), family, option);
}

fn transfer_by(world: &World, (from, namespace): (&str, &Namespace), family: usize, option: &str) {
    let mib = number_from("XSKIFF_TRANSFER_MIB", 16);
    let size = format!("--{option}-bytes={}", mib << 20);
    let target = to(BALANCER[family], HTTP[0]);
    let agent = namespace.agent(&["fetch", &target, &size, "--timeout-ms=10000"]);
    let agent = agent.expect("a client");
    let fetched = next_fetched(&agent, PATIENCE + Duration::from_secs(mib / 2));
    let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
    let what = format!("{} {option} by {from}", FAMILIES[family]);
    assert!(fetched.ok && fetched.bytes == mib << 20, "{what}: {fetched:?}, {:#?}", world.status());
    println!("{what}: {} Mbit/s", (mib << 23) / 1000 / fetched.took_ms.max(1));
}

fn segments(world: &World) -> SegmentsStatus {
    world.status().segments
}

/// Mean length of the frames that left by a port since `before`, in bytes.
fn mean_sent(world: &World, before: &PortStatus) -> u64 {
    let after = world.port(&before.interface);
    let packets = after.transmitted_packets - before.transmitted_packets;
    (after.transmitted_bytes - before.transmitted_bytes) / packets.max(1)
}

fn assert_nothing_refused(world: &World) {
    let status = world.status();
    let segments = &status.segments;
    assert_eq!(segments.refused_header_packets, 0, "{segments:?}");
    assert_eq!(segments.refused_memory_packets, 0, "{segments:?}");
    assert_eq!(segments.abandoned_packets, 0, "{segments:?}");
    let uncuttable = status.drops.iter().find(|drop| drop.reason == "uncuttable");
    assert_eq!(uncuttable.map(|drop| drop.packets), Some(0), "{:?}", status.drops);
}

#[test]
fn segments_go_whole_between_pods_and_in_pieces_outside() {
    if !root_or_skip("whole segments") {
        return;
    }
    let world = start("segments-whole");
    let pod = world.port(WEB_1.name);
    assert_eq!((&*pod.xdp_mode, &*pod.transmit), ("generic", "whole-segments, af-xdp"), "{pod:?}");
    for family in [0, 1] {
        // By the service, so that both directions are translated.
        for option in ["upload", "download"] {
            let (before, buyer) = (segments(&world), world.port(BUYER.name));
            transfer(&world, "a pod", family, option);
            let after = segments(&world);
            let whole = after.whole_packets - before.whole_packets;
            assert!(whole > 100, "{whole} of {after:?}");
            assert_eq!(after.cut_packets, before.cut_packets);
            if option == "download" {
                let mean = mean_sent(&world, &buyer);
                assert!(mean > 3000, "{mean} bytes a packet");
            }
        }
        let (before, uplink) = (segments(&world), world.port("uplink"));
        transfer(&world, "outside", family, "download");
        let after = segments(&world);
        let cut = after.cut_packets - before.cut_packets;
        let pieces = after.cut_pieces - before.cut_pieces;
        assert!(cut > 50 && pieces > 3 * cut, "{after:?}");
        // A pod's segment counts once for the port, however many pieces it leaves in.
        assert!(mean_sent(&world, &uplink) > 3000);
        // What comes from a wire piece by piece is joined for the pod.
        let before = segments(&world);
        transfer(&world, "outside", family, "upload");
        let after = segments(&world);
        let joined = after.joined_packets - before.joined_packets;
        let made = after.joined_segments - before.joined_segments;
        assert!(made > 10 && joined >= 2 * made, "{after:?}");
    }
    assert_nothing_refused(&world);
    world.assert_kernel_forwarded_nothing();
    let metrics = world.metrics();
    assert!(metrics.contains("xskiff_segments_whole_packets_total "), "{metrics}");
}

#[test]
fn pieces_are_no_larger_than_their_receiver_takes() {
    if !root_or_skip("pieces of segments") {
        return;
    }
    let world = start("segments-small");
    let client = &world.scene.client;
    let way = client.run("ip", &["route", "get", BALANCER[0]]).expect("a route");
    let gateway = way.split_whitespace().skip_while(|word| *word != "via").nth(1);
    let gateway = gateway.unwrap_or_else(|| panic!("{way}"));
    let change = format!("route replace {}/32 via {gateway} advmss {SMALL_MSS}", BALANCER[0]);
    client.ip(&change).expect("changed");
    let received = || {
        let statistics = client.run("cat", &["/sys/class/net/eth0/statistics/rx_bytes"]);
        let packets = client.run("cat", &["/sys/class/net/eth0/statistics/rx_packets"]);
        let number = |text: String| text.trim().parse::<u64>().expect("a number");
        (number(statistics.expect("bytes")), number(packets.expect("packets")))
    };
    let before = (received(), segments(&world));
    transfer(&world, "outside", 0, "download");
    let (after, cut) = (received(), segments(&world));
    assert!(cut.cut_packets > before.1.cut_packets, "{cut:?}");
    let mean = (after.0 - before.0.0) / (after.1 - before.0.1).max(1);
    // The next lower size that a flow remembers is 536.
    assert!(mean > 300 && mean <= SMALL_MSS + 54, "{mean} bytes a packet");
    assert_nothing_refused(&world);
}

/// They were lost there for ever: its errors reached the pod, whose packets became smaller, and its segments
/// were cut as before.
#[test]
fn segments_pass_a_router_whose_next_link_takes_less() {
    if !root_or_skip("segments behind a small link") {
        return;
    }
    let world = start("segments-path");
    let router = &world.scene.client;
    let far = world.scene.laboratory.namespace("far").expect("a namespace");
    let (near, end) =
        (End { namespace: router, interface: "eth1" }, End { namespace: &far, interface: "eth0" });
    link::pair(near, end, 1, 1500).expect("a link");
    // In a range that policy lets ask.
    link::address(near, "100.64.9.1/24").expect("an address");
    link::address(end, "100.64.9.2/24").expect("an address");
    router.set(&[("net/ipv4/ip_forward", "1")]).expect("a router");
    // What the far end takes, and says in its SYN, is more.
    router.ip("link set eth1 mtu 1300").expect("a small link");
    far.ip("route add default via 100.64.9.1").expect("a route");
    far.features("eth0", "tx off").expect("features");
    let before = segments(&world);
    transfer_by(&world, ("behind a small link", &far), 0, "download");
    let after = segments(&world);
    assert!(after.cut_packets > before.cut_packets + 50, "{after:?}");
    assert_nothing_refused(&world);
}

#[test]
fn datagrams_that_their_sender_joined_are_cut_by_it() {
    if !root_or_skip("joined datagrams") {
        return;
    }
    let world = start("segments-udp");
    let pod = world.scene.pod(BUYER);
    let features = pod.run("ethtool", &["-k", "eth0"]).expect("features");
    let line = |name: &str| {
        let found = features.lines().find(|line| line.trim().starts_with(name));
        found.unwrap_or_else(|| panic!("{name}: {features}")).trim().to_owned()
    };
    assert_eq!(line("tcp-segmentation-offload:"), "tcp-segmentation-offload: on");
    assert_eq!(line("tx-udp-segmentation:"), "tx-udp-segmentation: off");
    // Kernels before 6.18 have none.
    let accurate = "tx-tcp-accecn-segmentation:";
    assert!(!features.contains(accurate) || line(accurate).starts_with(&format!("{accurate} off")));
    // SOL_UDP, UDP_SEGMENT (udp(7)).
    let script = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
         s.setsockopt(17, 103, 1000); s.sendto(bytes(5000), ('{}', {ECHO}))",
        BALANCER[0]
    );
    let joined = || pod.run("python3", &["-c", &script]).map(drop).expect("sent");
    let before = world.port(BUYER.name).received_packets;
    joined();
    let five = || world.port(BUYER.name).received_packets >= before + 5;
    assert!(wait_until(PATIENCE, five).is_some(), "{:#?}", world.port(BUYER.name));
    assert_nothing_refused(&world);
    // Whoever turns it on again has them dropped, and told why.
    pod.features("eth0", "tx-udp-segmentation on").expect("switched");
    joined();
    let dropped = || {
        let drops = world.status().drops;
        drops.iter().any(|drop| drop.reason == "uncuttable" && drop.packets > 0)
    };
    assert!(wait_until(PATIENCE, dropped).is_some(), "{:#?}", world.status().drops);
}
