//! A node that follows a relay, `xskiff relay` as a process of its own: it goes on by the API server when the
//! relay is killed, and by the relay when the API server is, and no connection notices.

use control::model::Kind;
use nix::sys::signal::Signal;
use serde_json::json;
use xskiff::demo::scene::{BALANCER, HTTP, Scene, to};
use xskiff::lab::{Process, wait_until};
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::clients::{Client, resets_of};
use crate::followed::{ApiServer, follow_beside};
use crate::world::{PATIENCE, Shape, World};

const LISTEN: &str = "127.0.0.1:8444";
const RELAY: &str = "http://127.0.0.1:8444";
const FOLLOWING: &str = "relays: [\"http://127.0.0.1:8444\"], request_timeout_seconds: 2";

/// Starts a relay in the node's namespace, and waits until it knows everything.
pub fn start_relay(scene: &Scene, server: &ApiServer) -> Process {
    let words = [
        "relay",
        "--listen",
        LISTEN,
        "--api-server",
        &*server.url,
        "--read-only",
        "--request-timeout",
        "2",
        "--silence",
        "4",
    ];
    let relay = scene.node.spawn("relay", &path().to_string_lossy(), &words).expect("started");
    let ready = format!("{RELAY}/readyz");
    let is_ready = || scene.node.run("curl", &["-sf", &ready]).is_ok();
    assert!(wait_until(PATIENCE, is_ready).is_some(), "{}", relay.log_tail());
    relay
}

/// Which server answered the node last.
fn answers(world: &World) -> String {
    let followed = world.status().kubernetes.expect("servers are followed");
    followed.server.unwrap_or_default()
}

fn objects(world: &World) -> u64 {
    let followed = world.status().kubernetes.expect("servers are followed");
    followed.kinds.iter().map(|kind| kind.objects).sum()
}

/// Waits until one more object, a Namespace of this name, came by `server`.
fn comes_by(world: &World, api_server: &ApiServer, name: &str, server: &str) {
    let before = objects(world);
    api_server.set(Kind::Namespace, json!({ "metadata": { "name": name } }));
    let is_there = || objects(world) == before + 1 && answers(world).starts_with(server);
    let came = wait_until(PATIENCE * 2, is_there);
    assert!(came.is_some(), "{name} by {server}: {:#?}", world.status().kubernetes);
}

#[test]
fn a_node_goes_on_by_the_api_server_without_its_relay_and_by_the_relay_without_the_api_server() {
    if !root_or_skip("a relay") {
        return;
    }
    let shape = Shape { label: "relayed", mtu: 1500, xdp_mode: "native" };
    let mut relay = None;
    let (world, server) =
        follow_beside(shape, (Setup::default(), FOLLOWING), PATIENCE * 2, |scene, server| {
            relay = Some(start_relay(scene, server));
        });
    let relay = relay.expect("it was started");
    let hosts = || [&world.scene.client].into_iter().chain(&world.scene.pods);
    let clients =
        BALANCER.map(|address| Client::start(&world.scene.client, &to(address, HTTP[0]), 20, 5));
    let resets_before = resets_of(hosts());
    comes_by(&world, &server, "by-relay", RELAY);
    let servers = world.status().kubernetes.expect("servers are followed").servers;
    let asked = |relay: bool| servers.iter().filter(move |own| own.relay == relay);
    assert!(asked(true).all(|relay| relay.requests >= Kind::ALL.len() as u64), "{servers:?}");
    assert!(asked(false).all(|server| server.requests == 0), "{servers:?}");

    let generation = world.status().generation;
    relay.signal(Signal::SIGKILL).expect("killed");
    relay.wait(PATIENCE).expect("gone");
    comes_by(&world, &server, "by-api-server", &server.url);
    clients.iter().for_each(Client::goes_on);

    let relay = start_relay(&world.scene, &server);
    server.kill();
    // What it serves is what it knows, and nothing of it is doubted.
    let is_followed = || {
        let followed = world.status().kubernetes.expect("servers are followed");
        answers(&world).starts_with(RELAY) && followed.kinds.iter().all(|kind| kind.in_step)
    };
    let took_over = wait_until(PATIENCE * 2, is_followed);
    assert!(took_over.is_some(), "{:#?}", world.status().kubernetes);
    clients.iter().for_each(Client::goes_on);
    server.come_back();
    comes_by(&world, &server, "by-relay-again", RELAY);
    let followed = world.status().kubernetes.expect("servers are followed");
    // The API server came back without its past, so that lists were read anew: none lost anything.
    let is_whole = followed.kinds.iter().all(|kind| kind.in_step && kind.holds == 0);
    assert!(is_whole, "{:#?}", followed.kinds);
    assert!(world.status().generation >= generation);
    assert_eq!(world.ask_json(&["audit"])["found"], 0);
    assert_eq!(resets_of(hosts()), resets_before, "resets");
    for client in clients {
        client.end_whole(PATIENCE);
    }
    drop(relay);
}
