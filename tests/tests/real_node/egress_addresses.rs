//! Chosen pods leave with an address of their own, by rules that come and go while the node runs.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, HTTP, NODE, STRANGER, address, to};
use xskiff::demo::traffic::{http, ping};
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World, within};

/// One on the uplink, as the kernel's own, and one that is only routed to the node.
const EGRESS: [&str; 2] = ["192.0.2.40", "2001:db8:40::40"];
const HELD: u64 = 10;

fn rules(to: [&str; 2]) -> String {
    let [v4, v6] = STRANGER.addresses;
    let sources = format!("[{v4}/32, \"{v6}/128\"]");
    format!("  snat: [{{sources: {sources}, to: [\"{}\", \"{}\"]}}]\n", to[0], to[1])
}

/// Replaces the rules in force, and waits until the node has read it.
fn change_rules(world: &World, plain: &str, rules: &str) {
    let with = plain.replace("nat:\n", &format!("nat:\n{rules}"));
    std::fs::write(&world.files.configuration, with).expect("written");
    let wanted = rules_of(&world.files.configuration);
    let is_read = || {
        let printed = world.ask_json(&["config", "print"]);
        printed.as_str().map(rules_in) == Some(wanted.clone())
    };
    assert!(wait_until(PATIENCE, is_read).is_some(), "{}", world.ask(&["config", "print"]));
    world.status();
}

fn rules_of(file: &std::path::Path) -> Vec<control::config::Snat> {
    rules_in(&std::fs::read_to_string(file).expect("the configuration"))
}

fn rules_in(text: &str) -> Vec<control::config::Snat> {
    control::config::Config::parse(text).expect("a configuration").nat.snat
}

/// The pod reaches the outside by TCP and ping, and is seen there as `seen_as`.
fn assert_seen(world: &World, pod: &Namespace, seen_as: [&str; 2]) {
    let asked = http(pod, CLIENT, HTTP[2], &["client"], Some(seen_as)).expect("asked");
    assert_eq!(asked.outcome, Outcome::Ok, "{asked:?}, {:#?}", world.status());
    let pinged = ping(pod, CLIENT).expect("asked");
    assert_eq!(pinged.outcome, Outcome::Ok, "{pinged:?}, {:#?}", world.status());
}

/// The outside's "port unreachable" comes back to the socket that it is about.
fn assert_errors_come_back(pod: &Namespace) {
    for outside in CLIENT {
        let to = SocketAddr::new(address(outside), 9);
        let error = within(pod, || {
            let own =
                SocketAddr::new(if to.is_ipv4() { address("0.0.0.0") } else { address("::") }, 0);
            let socket = UdpSocket::bind(own).expect("a socket");
            socket.connect(to).expect("connected");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
            socket.send(b"anybody?").expect("sent");
            socket.recv(&mut [0; 16]).expect_err("nobody is there")
        });
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    }
}

fn hold(pod: &Namespace) -> [Client; 2] {
    CLIENT.map(|outside| Client::start(pod, &to(outside, HTTP[2]), HELD, HELD))
}

fn translated(world: &World) -> u64 {
    world.status().workers.iter().map(|worker| worker.flows_translated_by_rule).sum()
}

#[test]
fn pod_leaves_with_its_egress_address_another_by_masquerade_and_live_changes_break_neither() {
    if !root_or_skip("egress addresses") {
        return;
    }
    let world = World::start(Shape { label: "egress", mtu: 1500, xdp_mode: "native" });
    let (stranger, buyer) = (world.scene.pod(STRANGER), world.scene.pod(BUYER));
    let plain = std::fs::read_to_string(&world.files.configuration).expect("the configuration");
    let mut clients = Vec::from(hold(stranger));
    assert_seen(&world, stranger, NODE);
    assert_eq!(translated(&world), 0);

    world.scene.node.ip(&format!("address add {}/32 dev uplink", EGRESS[0])).expect("an address");
    world.scene.client.ip(&format!("route add 2001:db8:40::/64 via {}", NODE[1])).expect("a route");
    change_rules(&world, &plain, &rules(EGRESS));
    assert_seen(&world, stranger, EGRESS);
    assert_seen(&world, buyer, NODE);
    [stranger, buyer].into_iter().for_each(assert_errors_come_back);
    assert!(translated(&world) > 0);
    clients.extend(hold(stranger));

    let listing = world.ask_json(&["ct", "list", "--proto", "tcp", "--port", "8080"]);
    let sources = |pod: &str| -> Vec<String> {
        let entries = listing["entries"].as_array().expect("entries").iter();
        let own = entries.filter(|entry| entry["source"]["address"] == pod);
        own.map(|entry| entry["translated_source"]["address"].to_string()).collect()
    };
    assert!(sources(STRANGER.addresses[0]).contains(&format!("\"{}\"", EGRESS[0])), "{listing}");
    assert!(sources(BUYER.addresses[0]).contains(&format!("\"{}\"", NODE[0])), "{listing}");
    let words = ["policy", "explain", "--from", "market/stranger", "--to", CLIENT[0]];
    let told = world.ask_json(&[&words[..], &["--port", "8080"]].concat());
    assert_eq!(told["source_nat"], format!("seen there as {}, by nat.snat[0]", EGRESS[0]));
    let status = world.status();
    let row = status.tables.iter().find(|table| table.name == "snat_addresses").expect("a row");
    assert_eq!(row.used, 2);
    assert!(status.errors.is_empty(), "{:?}", status.errors);

    // A service's address is refused as soon as there is one, and the pod is not let out otherwise.
    let candidate = world.files.configuration.with_extension("candidate");
    let of_service = rules([BALANCER[0], EGRESS[1]]);
    std::fs::write(&candidate, plain.replace("nat:\n", &format!("nat:\n{of_service}")))
        .expect("written");
    let diff = world.ask_json(&["config", "diff", &candidate.to_string_lossy()]);
    assert_eq!(diff[0]["setting"], "nat.snat", "{diff}");
    assert!(diff[0]["effect"].to_string().contains("applied at once"), "{diff}");
    change_rules(&world, &plain, &of_service);
    let named = || {
        let errors = world.status().errors;
        errors.iter().any(|error| error.object == format!("nat.snat {}", BALANCER[0]))
    };
    assert!(wait_until(PATIENCE, named).is_some(), "{:?}", world.status().errors);
    let refused = http(stranger, CLIENT, HTTP[2], &["client"], None).expect("asked");
    assert_ne!(refused.outcome, Outcome::Ok, "{refused:?}");
    assert!(world.dropped("no-nat-address") > 0);

    // Without rules; connections by the addresses of before go on.
    change_rules(&world, &plain, "");
    assert!(wait_until(PATIENCE, || world.status().errors.is_empty()).is_some());
    assert_seen(&world, stranger, NODE);
    for client in clients {
        client.goes_on();
        client.end_whole(PATIENCE);
    }
    world.assert_kernel_forwarded_nothing();
}
