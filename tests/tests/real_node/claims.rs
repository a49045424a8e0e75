//! A pod that speaks from another's address, answers for it, or plays the router: dropped, counted
//! and named, and believed by nobody.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use serde_json::Value;
use xskiff::demo::scene::{BUYER, CLIENT, HTTP, NODE, PodPlan, STRANGER, WEB_1, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::link::{self, End};
use xskiff::lab::wait_until;
use xskiff_tests::link_frames::{
    advertisement, arp_reply, arp_request, router_advertisement, solicitation,
};
use xskiff_tests::packet_builder::udp;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, within};

/// The pod that lies, and the one it lies about.
const LIAR: PodPlan = BUYER;
const VICTIM: PodPlan = WEB_1;

/// Each lie is told so often.
const TIMES: u64 = 3;

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn octets(mac: &str) -> [u8; 6] {
    mac.parse::<dataplane::address::MacAddr>().expect("a link address").0
}

/// The pod's own end of its link.
struct Liar {
    mac: [u8; 6],
    /// The node's end.
    node: [u8; 6],
}

impl Liar {
    fn new(world: &World) -> Self {
        let own = End { namespace: world.scene.pod(LIAR), interface: "eth0" };
        let other = End { namespace: &world.scene.node, interface: LIAR.name };
        let mac = |end| octets(&link::mac(end).expect("a link address"));
        Self { mac: mac(own), node: mac(other) }
    }

    fn send(&self, world: &World, frame: &[u8]) {
        let mut frame = frame.to_vec();
        if frame[..6] == [2, 0, 0, 0, 0, 0xfe] {
            frame[..6].copy_from_slice(&self.node);
            frame[6..12].copy_from_slice(&self.mac);
        }
        within(world.scene.pod(LIAR), || {
            let own: LinkAddr = getifaddrs()
                .expect("interfaces")
                .filter(|interface| interface.interface_name == "eth0")
                .find_map(|interface| interface.address?.as_link_addr().copied())
                .expect("the pod's interface");
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
            for _ in 0..TIMES {
                let sent = sendto(socket.as_raw_fd(), &frame, &own, MsgFlags::empty());
                assert_eq!(sent, Ok(frame.len()));
            }
        });
    }
}

/// The decisions about the liar's frames that were dropped for `reason`.
fn named(world: &World, reason: &str) -> Vec<Value> {
    let lines = world.ask(&["flows", "--verdict", "dropped", "--reason", reason]);
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    records.filter(|record| record["interface"] == LIAR.name).collect()
}

/// The counter of `reason` in `/metrics`, all workers together.
fn metric(world: &World, reason: &str) -> u64 {
    let text = world.metrics();
    let label = format!("reason=\"{reason}\"");
    let lines = text.lines().filter(|line| line.starts_with("xskiff_dropped_packets_total{"));
    let lines = lines.filter(|line| line.contains(&label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Who is where, as every stack but the liar's believes.
fn believed(world: &World) -> String {
    let scene = &world.scene;
    let others = [&scene.node, &scene.client, scene.pod(VICTIM), scene.pod(STRANGER)];
    let tables = others.map(|namespace| {
        ["neigh show nud all", "-6 neigh show nud all", "-6 route show"]
            .map(|what| namespace.ip(what).expect("ip"))
            .concat()
    });
    tables.concat()
}

#[test]
fn a_pod_that_claims_anothers_address_or_routes_is_dropped_counted_named_and_not_believed() {
    if !root_or_skip("a pod's claims") {
        return;
    }
    let world = World::start(Shape { label: "claims", mtu: 1500, xdp_mode: "native" });
    let liar = Liar::new(&world);
    let [victim4, victim6] = VICTIM.addresses;
    let [own4, own6] = LIAR.addresses;
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xbad);
    let (mac, node) = (liar.mac, liar.node);

    // What the pod may say passes, so that silence below is not that of a cut link.
    let passed = world.status().xdp.passed;
    liar.send(&world, &arp_request(mac, v4(own4), v4(NODE[0])));
    liar.send(&world, &advertisement(mac, v6(own6), v6(own6)));
    let heard = || world.status().xdp.passed >= passed + 2 * TIMES;
    assert!(wait_until(PATIENCE, heard).is_some(), "{:?}", world.status().xdp);

    let lies: [(&str, &str, &str, Vec<u8>); 8] = [
        (
            "IPv4",
            "spoofed",
            victim4,
            udp(&format!("{victim4}:7"), &format!("{}:7", STRANGER.addresses[0])).build(),
        ),
        (
            "IPv6",
            "spoofed",
            victim6,
            udp(&format!("[{victim6}]:7"), &format!("[{}]:7", STRANGER.addresses[1])).build(),
        ),
        ("ARP request", "spoofed", victim4, arp_request(mac, v4(victim4), v4(NODE[0]))),
        ("ARP reply", "spoofed", victim4, arp_reply(node, mac, v4(victim4), v4(NODE[0]))),
        ("the client's ARP", "spoofed", CLIENT[0], arp_request(mac, v4(CLIENT[0]), v4(NODE[0]))),
        ("advertisement", "spoofed", victim6, advertisement(mac, local, v6(victim6))),
        ("solicitation", "spoofed", victim6, solicitation(node, mac, v6(victim6), v6(NODE[1]))),
        ("router", "router-advertisement", "fe80::bad", router_advertisement(mac, local)),
    ];
    for (what, reason, claimed, frame) in lies {
        let before = (world.dropped(reason), metric(&world, reason));
        let named_before = named(&world, reason).len();
        liar.send(&world, &frame);
        let counted = || world.dropped(reason) >= before.0 + TIMES;
        assert!(wait_until(PATIENCE, counted).is_some(), "{what}: {:#?}", world.status().drops);
        assert!(metric(&world, reason) >= before.1 + TIMES, "{what}");
        let mut records = Vec::new();
        let told = || {
            records = named(&world, reason).split_off(named_before);
            records.len() as u64 >= TIMES
        };
        assert!(wait_until(PATIENCE, told).is_some(), "{what} is not named");
        let by_address = records.iter().filter(|record| record["source"]["address"] == claimed);
        assert!(by_address.count() as u64 >= TIMES, "{what}: {records:#?}");
    }

    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    let believed = believed(&world);
    for line in believed.lines().filter(|line| line.contains(&mac)) {
        let of_own = line.starts_with(own4) || line.starts_with(own6) || line.starts_with("fe80:");
        assert!(of_own && !line.starts_with("fe80::bad"), "{line}\nin\n{believed}");
    }
    assert!(!believed.contains("fe80::bad"), "{believed}");
    // And the other pod is where it was.
    for own in VICTIM.addresses {
        let answers = fetch(&world.scene.client, &to(own, HTTP[2]), 1, &["--timeout-ms=10000"]);
        let answers = answers.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answers[0].server.as_deref(), Some(VICTIM.name), "{own}: {answers:?}");
    }
}
