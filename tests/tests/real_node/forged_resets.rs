//! Resets that are sent blindly, at held connections of a node that looks at windows.

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use xskiff::demo::scene::{BALANCER, CLIENT, HTTP, to};
use xskiff_tests::packet_builder::tcp;
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, within};

/// Connections that are held.
const HELD: u64 = 4;
/// Resets for each.
const FORGED: usize = 500;

/// The flows of the held connections, as `xskiff ct list` has them.
fn flows(world: &World) -> Vec<serde_json::Value> {
    let listing = world.ask_json(&["ct", "list", "--proto", "tcp", "--service", "shop/web"]);
    let entries = listing["entries"].as_array().expect("entries").clone();
    entries.into_iter().filter(|entry| entry["source"]["address"] == CLIENT[0]).collect()
}

/// Sends resets with numbers of chance as if they were the client's, from its own host.
fn forge(world: &World, client_ports: &[u64]) {
    let mut random = Random::new(0x5961);
    let frames: Vec<Vec<u8>> = client_ports
        .iter()
        .flat_map(|port| (0..FORGED).map(move |_| port))
        .map(|port| {
            let number = u32::from_be_bytes([0; 4].map(|_: u8| random.byte()));
            let (from, to) = (format!("{}:{port}", CLIENT[0]), format!("{}:80", BALANCER[0]));
            tcp(&from, &to, "R").numbers(number, 0, 0).build()
        })
        .collect();
    within(&world.scene.client, move || {
        let protocol = SockProtocol::Raw;
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), protocol);
        let raw = raw.expect("a raw socket");
        let to = SockaddrIn::from(SocketAddrV4::new(BALANCER[0].parse().expect("IPv4"), 0));
        for frame in frames {
            sendto(raw.as_raw_fd(), &frame[14..], &to, MsgFlags::empty()).expect("sent");
        }
    });
}

#[test]
fn held_connections_survive_resets_that_are_sent_blindly() {
    if !root_or_skip("forged resets") {
        return;
    }
    let shape = Shape { label: "forged", mtu: 1500, xdp_mode: "native" };
    let strict = "conntrack: {details: true, tcp_windows: strict}\n";
    let world = World::start_edited(shape, |text| text + strict);
    let client = Client::start(&world.scene.client, &to(BALANCER[0], HTTP[0]), HELD, 1);
    let ports: Vec<u64> =
        flows(&world).iter().filter_map(|flow| flow["source"]["l4_port"].as_u64()).collect();
    assert_eq!(ports.len() as u64, HELD, "{:?}", flows(&world));

    forge(&world, &ports);

    let sent = (ports.len() * FORGED) as u64;
    let dropped = world.dropped("tcp-out-of-window");
    assert!(dropped > sent * 9 / 10 && dropped <= sent, "{dropped} of {sent} resets were dropped");
    for flow in flows(&world) {
        assert_eq!(flow["state"], "established", "{flow}");
        let counted: Vec<u64> = flow["bytes"]
            .as_array()
            .map(|counts| counts.iter().filter_map(serde_json::Value::as_u64).collect())
            .unwrap_or_default();
        assert!(counted.len() == 2 && counted.iter().all(|bytes| *bytes > 100), "{flow}");
    }
    client.end_whole(PATIENCE);
    world.assert_kernel_forwarded_nothing();
    println!("{dropped} of {sent} forged resets were dropped, {HELD} connections answer");
}
