//! The second way out of a port, live XDP frames: chosen where a pod can take them, told with the
//! reason where it cannot, and given up when it loses packets.

use std::net::UdpSocket;

use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, ECHO, HTTP, WEB_1, address};
use xskiff::demo::traffic::http;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, within};

const LIVE: &str = "live-frames";
const DEAF: &str = "af-xdp: the other end has neither GRO on nor an XDP program";
/// Datagrams that come faster than a worker of a development build looks.
const BURST: usize = 400;

fn transmit(world: &World, interface: &str) -> String {
    world.port(interface).transmit
}

fn wait_for(world: &World, interface: &str, wanted: &str) {
    let is_so = || transmit(world, interface) == wanted;
    assert!(wait_until(PATIENCE, is_so).is_some(), "{:#?}", world.port(interface));
}

fn assert_serves(world: &World) {
    let client = &world.scene.client;
    let asked = http(client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT)).expect("asked");
    assert_eq!(asked.outcome, Outcome::Ok, "{asked:?}, {:#?}", world.status());
}

/// Sends bursts to the service until the pod got live frames.
pub fn flood(world: &World) {
    let before = world.port(WEB_1.name).live_packets;
    let is_sent = || {
        within(&world.scene.client, || {
            let bind = || UdpSocket::bind("0.0.0.0:0").expect("bound");
            // Each is another flow, to one of the pods.
            let sockets: [UdpSocket; 8] = std::array::from_fn(|_| bind());
            for socket in sockets.iter().cycle().take(BURST) {
                drop(socket.send_to(&[7; 64], (address(BALANCER[0]), ECHO)));
            }
        });
        world.port(WEB_1.name).live_packets > before
    };
    assert!(wait_until(PATIENCE, is_sent).is_some(), "{:#?}", world.status());
}

#[test]
fn pod_that_takes_live_frames_is_sent_them_until_it_loses_some() {
    if !root_or_skip("the second way out") {
        return;
    }
    let shape = Shape { label: "ways", mtu: 1500, xdp_mode: "native" };
    // Links have a queue for each worker.
    let world = World::start_edited(shape, |text| text + "\ntransmit: live-frames\n");
    // An ADD turns GRO on at the pod's end for it.
    wait_for(&world, WEB_1.name, LIVE);
    wait_for(&world, BUYER.name, LIVE);
    assert_serves(&world);

    let pod = world.scene.pod(WEB_1);
    world.scene.pod(BUYER).features("eth0", "gro off").expect("switched");
    // Both at once are looked at anew.
    world.change_configuration("transmit: live-frames", "transmit: af-xdp");
    wait_for(&world, WEB_1.name, "af-xdp: as configured");
    world.change_configuration("transmit: af-xdp", "transmit: live-frames");
    wait_for(&world, WEB_1.name, LIVE);
    wait_for(&world, BUYER.name, DEAF);
    flood(&world);
    assert_serves(&world);
    assert_eq!(world.port(WEB_1.name).live_vanished_packets, 0);

    pod.features("eth0", "gro off").expect("switched");
    flood(&world);
    wait_for(&world, WEB_1.name, DEAF);
    assert!(world.port(WEB_1.name).live_vanished_packets > 0, "{:#?}", world.port(WEB_1.name));
    assert_serves(&world);
    let metrics = world.metrics();
    let told = format!("xskiff_port_transmits_live_frames{{interface=\"{}\"", WEB_1.name);
    assert!(metrics.contains(&told), "{metrics}");
    world.assert_kernel_forwarded_nothing();
}
