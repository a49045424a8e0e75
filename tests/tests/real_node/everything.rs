//! An uplink that is taken in whole: the node's own business goes on, by the host port or, where it
//! is the link's, beside the pipeline.

use std::time::Duration;

use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{CLIENT, HTTP, NODE, WEB_1};
use xskiff::demo::traffic::{echo, http, ping};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{Shape, World};

/// Multicast, broadcast and link-local packets for the host ended in the pipeline.
#[test]
fn the_nodes_own_and_the_links_business_goes_on_on_an_uplink_taken_in_whole() {
    if !root_or_skip("an uplink taken in whole") {
        return;
    }
    let shape = Shape { label: "whole", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| {
        let uplink = "  - interface: uplink\n";
        text.replace(uplink, &format!("{uplink}    everything: true\n"))
    });
    let words = ["serve", "--http=[::]:2222", "--udp=[::]:2223", "--name=own"];
    let server = world.scene.node.agent(&words).expect("a server");
    server.wait_ready(Duration::from_secs(10)).expect("it listens");
    let client = &world.scene.client;
    let seen = [
        ("TCP to the node", http(client, NODE, 2222, &["own"], Some(CLIENT))),
        ("UDP to the node", echo(client, NODE, 2223)),
        ("ping of the node", ping(client, NODE)),
        ("a pod", http(client, WEB_1.addresses, HTTP[2], &[WEB_1.name], Some(CLIENT))),
    ];
    for (what, seen) in seen {
        let seen = seen.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(seen.outcome, Outcome::Ok, "{what}: {seen:?}, {:#?}", world.status());
    }
    assert!(world.port("xskiff-port").transmitted_packets > 0, "not by the host port");

    let addresses = world.scene.node.ip("-o -6 address show dev uplink scope link").expect("ip");
    let own = addresses.split_whitespace().find(|word| word.starts_with("fe80:")).expect("one");
    let own = own.split('/').next().expect("an address");
    for target in [own, "ff02::1"] {
        let arguments = ["-n", "-c", "3", "-i", "0.2", "-W", "2", &format!("{target}%eth0")];
        let said = client.run("ping", &arguments).unwrap_or_else(|error| panic!("{error}"));
        assert!(said.contains(&format!("from {own}")), "{target}: {said}");
    }
}
