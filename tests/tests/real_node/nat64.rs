//! Services that the other family serves: real TCP and UDP from IPv4 clients to an IPv6 server, and
//! from IPv6 clients to an IPv4 one.

use std::time::Duration;

use serde_json::Value;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BUYER, CLIENT, NODE, PODS, PodPlan, STRANGER, WEB_1, address, to};
use xskiff::demo::traffic::{self, fetch, next_fetched};
use xskiff::lab::agent::report::{Echoed, Report, Trouble};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, number_from};

/// The other pod that serves.
const WEB_2: PodPlan = PODS[1];
/// Frontends for IPv4 clients, and for IPv6 clients.
const BALANCER: [&str; 2] = ["203.0.113.64", "2001:db8:113::46"];
const CLUSTER_IP: [&str; 2] = ["10.96.0.64", "fd00:10:96::46"];
/// Node ports of HTTP and of the echo, for each.
const NODE_PORTS: [[u16; 2]; 2] = [[30164, 30153], [30464, 30453]];
/// What an IPv4 client reaches, and an IPv6 client: the pod, and as whom it sees the client.
const SERVERS: [(&str, &str); 2] = [(WEB_1.name, NODE[1]), (WEB_2.name, NODE[0])];
const BACKENDS: [&str; 2] = [WEB_1.addresses[1], WEB_2.addresses[0]];

fn start(label: &'static str, mtu: u16) -> World {
    let world = World::start(Shape { label, mtu, xdp_mode: "native" });
    world.add_manifests("nat64.yaml", include_str!("nat64.yaml"));
    let client = &world.scene.client;
    let answers = || {
        BALANCER.iter().all(|host| {
            let answers = fetch(client, &to(host, 80), 1, &["--timeout-ms=1000"]).expect("asked");
            answers[0].ok
        })
    };
    assert!(wait_until(PATIENCE, answers).is_some(), "{:#?}", world.status());
    world
}

/// TCP and UDP of one family's client, which must reach the other family's pod.
fn ask(world: &World, from: &Namespace, family: usize, host: &str, l4_ports: [u16; 2]) {
    let answers = fetch(from, &to(host, l4_ports[0]), 20, &[]).expect("asked");
    let (server, seen_as) = SERVERS[family];
    for answer in answers {
        assert!(answer.ok, "{host}: {answer:?}, {:#?}", world.status());
        assert_eq!(answer.server.as_deref(), Some(server), "{host}");
        assert_eq!(answer.client, Some(address(seen_as)), "{host}");
    }
    let words = ["udp", &to(host, l4_ports[1]), "--count=20", "--new-socket-each"];
    let agent = from.agent(&words).expect("an agent");
    let echoed = agent.expect("echoes", PATIENCE, |report| match report {
        Report::Echoed(echoed) => Some(echoed),
        _ => None,
    });
    let Echoed { received, wrong, .. } = echoed.expect("echoes");
    assert_eq!((received, wrong), (20, 0), "{host}: {:#?}", world.status());
}

/// Every byte is checked, at both ends and both ways.
fn transfer(world: &World, family: usize, mib: u64) {
    let bytes = mib << 20;
    let hashes = ["upload", "download"].map(|option| {
        let size = format!("--{option}-bytes={bytes}");
        let words = ["fetch", &to(BALANCER[family], 80), &size, "--timeout-ms=10000"];
        let agent = world.scene.client.agent(&words).expect("a client");
        let fetched = next_fetched(&agent, PATIENCE + Duration::from_secs(mib));
        let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
        assert!(fetched.ok && fetched.bytes == bytes, "{option}: {fetched:?}");
        println!("{option} of {mib} MiB over {}: {} ms", BALANCER[family], fetched.took_ms);
        fetched.sha256.expect("a hash")
    });
    assert_eq!(hashes[0], hashes[1], "the bytes sent and those that came back");
}

/// What `ct list` shows bears the addresses of the packets.
fn assert_listed(world: &World, family: usize) {
    let listing = world.ask_json(&["ct", "list", "--proto", "tcp", "--address", BALANCER[family]]);
    let entries = listing["entries"].as_array().expect("entries");
    assert!(!entries.is_empty(), "{listing:#}");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    for entry in entries {
        assert_eq!(text(&entry["source"]["address"]).as_deref(), Some(CLIENT[family]));
        assert_eq!(text(&entry["backend"]["address"]).as_deref(), Some(BACKENDS[family]));
        let translated = text(&entry["translated_source"]["address"]);
        assert_eq!(translated.as_deref(), Some(SERVERS[family].1), "{entry:#}");
    }
}

#[test]
fn clients_of_each_family_are_served_by_pods_of_the_other_by_every_kind_of_frontend() {
    if !root_or_skip("nat64") {
        return;
    }
    let world = start("nat64", 1500);
    let buyer = world.scene.pod(BUYER);
    for family in 0..2 {
        ask(&world, &world.scene.client, family, BALANCER[family], [80, 53]);
        ask(&world, &world.scene.client, family, NODE[family], NODE_PORTS[family]);
        ask(&world, buyer, family, CLUSTER_IP[family], [80, 53]);
        transfer(&world, family, number_from("XSKIFF_TRANSFER_MIB", 8));
        assert_listed(&world, family);
    }
    world.assert_kernel_forwarded_nothing();
    for reason in ["malformed", "no-room", "no-counterpart", "nat-clash"] {
        assert_eq!(world.dropped(reason), 0, "{reason}");
    }
}

#[test]
fn jumbo_frames_of_several_buffers_change_family_whole() {
    if !root_or_skip("nat64 with jumbo frames") {
        return;
    }
    let world = start("nat64-9000", 9000);
    (0..2).for_each(|family| transfer(&world, family, number_from("XSKIFF_TRANSFER_MIB", 8)));
    world.assert_kernel_forwarded_nothing();
}

/// The node's address, as which the backend sees everybody, may pass in each of these cases.
#[test]
fn policy_about_the_clients_own_address_holds_between_families() {
    if !root_or_skip("policy between families") {
        return;
    }
    let world = start("nat64-deny", 1500);
    let stranger = world.scene.pod(STRANGER);
    let seen = traffic::forbidden(stranger, CLUSTER_IP, 80).expect("asked");
    assert_eq!(seen.outcome, Outcome::Ok, "{seen:?}, {:#?}", world.status());

    let file = world.files.manifests.join("policy.yaml");
    let text = std::fs::read_to_string(&file).expect("the policy");
    let admits_v4 = "        - ipBlock: {cidr: 192.0.2.0/24}\n";
    assert!(text.contains(admits_v4), "{text}");
    std::fs::write(&file, text.replace(admits_v4, "")).expect("written");
    let client = &world.scene.client;
    let is_denied = || {
        let answers = fetch(client, &to(BALANCER[0], 80), 1, &["--timeout-ms=1200"]);
        answers.expect("asked")[0].error == Some(Trouble::TimedOut)
    };
    assert!(wait_until(PATIENCE, is_denied).is_some(), "{:#?}", world.status());
    assert!(world.dropped("policy-ingress") > 0);
    ask(&world, client, 1, BALANCER[1], [80, 53]);
    let dropped = world.dropped("policy-ingress");
    let agent = client.agent(&["udp", &to(BALANCER[0], 53), "--count=1"]).expect("an agent");
    let is_dropped = || world.dropped("policy-ingress") > dropped;
    assert!(wait_until(PATIENCE, is_dropped).is_some(), "UDP as well: {:#?}", world.status());
    drop(agent);
}

#[test]
fn connections_between_families_outlive_the_process() {
    if !root_or_skip("restarts between families") {
        return;
    }
    let mut world = start("nat64-again", 1500);
    if world.status().flow_tables.iter().any(|table| table.file.is_none()) {
        return eprintln!("skipped: no tmpfs for flow tables");
    }
    let clients =
        BALANCER.map(|service| Client::start(&world.scene.client, &to(service, 80), 20, 10));
    for kill in [false, true] {
        world = world.again(kill, Duration::from_secs(1));
        clients.iter().for_each(Client::goes_on);
    }
    for client in clients {
        client.end_whole(PATIENCE);
    }
    world.assert_kernel_forwarded_nothing();
}
