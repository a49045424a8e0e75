//! Translated connections outlive a node process that stops for three seconds.
//! `XSKIFF_HELD_CONNECTIONS` is their number.

use std::time::Duration;

use nix::sys::signal::Signal;
use xskiff::demo::scene::{BALANCER, FAMILIES, HTTP, to};
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets};
use crate::world::{PATIENCE, Shape, World, number_from, tcp_counters};

/// Connections of one client process: so many are asked at once in the end, within its time.
const CONNECTIONS_PER_CLIENT: u64 = 500;

/// One in so many goes on asking while the node stands still; the others are idle.
const ACTIVE_SHARE: u64 = 10;

/// How long the node process stands still.
const STOPPED: Duration = Duration::from_secs(3);

/// Starts a client that holds `held`, by IPv4 if `number` is even.
fn start(world: &World, number: usize, held: u64) -> Client {
    let target = to(BALANCER[number % FAMILIES.len()], HTTP[0]);
    Client::start(&world.scene.client, &target, held, held.div_ceil(ACTIVE_SHARE))
}

/// Segments that the clients' stack sent again: each tells that its answer did not come in time.
fn retransmissions(world: &World) -> i64 {
    tcp_counters(&world.scene.client)["RetransSegs"]
}

/// Whether the kernel has stopped every thread of the process.
fn is_stopped(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.into_iter().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn translated_connections_survive_a_node_stopped_for_three_seconds_without_one_reset() {
    if !root_or_skip("held connections") {
        return;
    }
    let wanted = number_from("XSKIFF_HELD_CONNECTIONS", 1000);
    let world = World::start(Shape { label: "held", mtu: 1500, xdp_mode: "native" });
    let sizes = (0..wanted).step_by(usize::try_from(CONNECTIONS_PER_CLIENT).expect("small"));
    let sizes = sizes.map(|first| CONNECTIONS_PER_CLIENT.min(wanted - first));
    let clients: Vec<Client> =
        sizes.enumerate().map(|(number, held)| start(&world, number, held)).collect();
    let count = world.ask_json(&["ct", "count", "--proto", "tcp", "--service", "shop/web"]);
    assert!(count.as_u64().is_some_and(|count| count >= wanted), "{count} translated");
    let before = world.status();
    let (resets_before, repeated_before) = (resets(&world), retransmissions(&world));
    let active_in_all: u64 = clients.iter().map(Client::active).sum();

    world.node.signal(Signal::SIGSTOP).expect("stopped");
    assert!(wait_until(PATIENCE, || is_stopped(before.pid)).is_some());
    std::thread::sleep(STOPPED);
    assert!(is_stopped(before.pid));
    let meanwhile: Vec<u64> = clients.iter().map(Client::requests_told).collect();
    world.node.signal(Signal::SIGCONT).expect("going on");

    for (client, meanwhile) in clients.iter().zip(meanwhile) {
        client.wait_for_answers(meanwhile, 1);
    }
    // What came meanwhile waited in a ring or was dropped, which TCP mends; it was not passed to a
    // kernel that knows nothing of these connections.
    let after = world.status();
    assert_eq!(after.pid, before.pid, "the same process");
    assert_eq!(after.xdp.passed_on_stall, 0, "{:?}", after.xdp);
    let repeated = retransmissions(&world) - repeated_before;
    assert!(
        repeated >= i64::try_from(active_in_all).expect("small"),
        "only {repeated} segments were sent again"
    );
    assert_eq!(resets(&world), resets_before, "resets in the clients', pods' and node's stacks");

    let ends = clients.into_iter().map(|client| client.end_whole(PATIENCE).answered_last);
    let answered: u64 = ends.sum();
    assert_eq!(answered, wanted);
    world.assert_kernel_forwarded_nothing();
    println!(
        "{answered} of {wanted} connections answer after {STOPPED:?}; no reset, {repeated} \
         segments sent again"
    );
}
