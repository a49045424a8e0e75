//! Large TCP transfers through a service, both ways, in both families: every byte is checked, and
//! nothing but xskiff carries them. `XSKIFF_TRANSFER_MIB` is the size of each.

use std::time::Duration;

use control::admin::status::PortStatus;
use xskiff::demo::scene::{BALANCER, CLIENT, FAMILIES, HTTP, PODS, address, to};
use xskiff::demo::traffic::next_fetched;
use xskiff::lab::agent::report::Fetched;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, number_from};

/// The pods behind the service, which are also their interfaces' names.
const BACKENDS: [&str; 2] = ["web-1", "web-2"];

/// How much a transfer has moved, by the node's own counters.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    packets: u64,
    bytes: u64,
}

impl Moved {
    fn received(port: &PortStatus) -> Self {
        Self { packets: port.received_packets, bytes: port.received_bytes }
    }

    fn transmitted(port: &PortStatus) -> Self {
        Self { packets: port.transmitted_packets, bytes: port.transmitted_bytes }
    }

    fn since(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes }
    }

    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// What went in from the side that sends, and out to the one that receives.
fn carried(world: &World, is_upload: bool) -> (Moved, Moved) {
    let uplink = world.port("uplink");
    let pods = BACKENDS.map(|name| world.port(name));
    let sum = |of: fn(&PortStatus) -> Moved| of(&pods[0]).plus(of(&pods[1]));
    if is_upload {
        (Moved::received(&uplink), sum(Moved::transmitted))
    } else {
        (sum(Moved::received), Moved::transmitted(&uplink))
    }
}

/// One transfer; gives what the client saw after the node's counters were compared with it.
fn transfer(world: &World, shape: Shape, family: usize, is_upload: bool, mib: u64) -> Fetched {
    let bytes = mib << 20;
    let option = if is_upload { "upload" } else { "download" };
    let before = carried(world, is_upload);
    let size = format!("--{option}-bytes={bytes}");
    let target = to(BALANCER[family], HTTP[0]);
    let arguments = ["fetch", &target, &size, "--timeout-ms=10000"];
    let agent = world.scene.client.agent(&arguments).expect("a client");
    // At least 2 MiB a second, or it does not work at all.
    let fetched = next_fetched(&agent, PATIENCE + Duration::from_secs(mib / 2));
    let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
    let what = format!("{} {} {option} of {mib} MiB", shape.label, FAMILIES[family]);
    assert!(fetched.ok && fetched.bytes == bytes, "{what}: {fetched:?}, {:#?}", world.status());
    let after = carried(world, is_upload);
    for moved in [after.0.since(before.0), after.1.since(before.1)] {
        assert!(moved.bytes > bytes, "{what}: xskiff carried {moved:?}");
        let (mean, largest) = (moved.bytes / moved.packets, u64::from(shape.mtu) + 14);
        assert!(mean > largest / 2 && mean <= largest, "{what}: {mean} bytes a packet");
    }
    let megabits = bytes * 8 / 1000 / fetched.took_ms.max(1);
    println!("{what}: {} ms, {megabits} Mbit/s", fetched.took_ms);
    fetched
}

/// The connections must be in the node's table, translated to a pod.
fn assert_translated(world: &World, family: usize) {
    let service = address(BALANCER[family]).to_string();
    let listing = world.ask_json(&["ct", "list", "--proto", "tcp", "--address", &service]);
    let entries = listing["entries"].as_array().expect("entries");
    assert!(entries.len() >= 2, "{listing:#}");
    let pods = [PODS[0].addresses[family], PODS[1].addresses[family]];
    for entry in entries {
        assert_eq!(entry["source"]["address"], CLIENT[family], "{entry:#}");
        assert_eq!(entry["destination"]["l4_port"], HTTP[0], "{entry:#}");
        assert_eq!(entry["backend"]["l4_port"], HTTP[2], "{entry:#}");
        let backend = entry["backend"]["address"].as_str().unwrap_or_default();
        assert!(pods.contains(&backend), "{entry:#}");
        assert_eq!(entry["service"], "shop/web:http", "{entry:#}");
    }
}

fn show(shape: Shape) {
    if !root_or_skip(shape.label) {
        return;
    }
    let mib = number_from("XSKIFF_TRANSFER_MIB", 16);
    let world = World::start(shape);
    for port in world.status().ports {
        assert_eq!(port.xdp_mode, shape.xdp_mode, "{}", port.interface);
    }
    for (interface, mtu) in [("uplink", shape.mtu), ("web-1", shape.mtu), ("web-2", shape.mtu)] {
        assert_eq!(world.port(interface).mtu, mtu, "{interface}");
    }
    for (family, client) in CLIENT.into_iter().enumerate() {
        // The server hashes what it received, the client what it sent; and the client checks each
        // byte that it receives against the same seed, so that one hash is that of all four ends.
        let up = transfer(&world, shape, family, true, mib);
        let down = transfer(&world, shape, family, false, mib);
        assert!(up.sha256.is_some());
        assert_eq!(up.sha256, down.sha256, "the bytes sent and those that came back");
        assert_eq!(up.client, Some(address(client)), "the server sees the client itself");
        assert_translated(&world, family);
    }
    world.assert_kernel_forwarded_nothing();
}

#[test]
fn a_transfer_in_native_mode_at_mtu_1500_arrives_whole_both_ways_in_both_families() {
    show(Shape { label: "native-1500", mtu: 1500, xdp_mode: "native" });
}

#[test]
fn a_transfer_in_native_mode_at_mtu_9000_arrives_whole_both_ways_in_both_families() {
    show(Shape { label: "native-9000", mtu: 9000, xdp_mode: "native" });
}

#[test]
fn a_transfer_in_generic_mode_at_mtu_1500_arrives_whole_both_ways_in_both_families() {
    show(Shape { label: "generic-1500", mtu: 1500, xdp_mode: "generic" });
}

#[test]
fn a_transfer_in_generic_mode_at_mtu_9000_arrives_whole_both_ways_in_both_families() {
    show(Shape { label: "generic-9000", mtu: 9000, xdp_mode: "generic" });
}
