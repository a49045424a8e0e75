//! API server and disk gone at once: traffic does not notice, and a process that is started meanwhile
//! goes on with the flow table and the snapshot that there are.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use control::admin::kubernetes::SnapshotStatus;
use control::admin::status::Level;
use control::model::Kind;
use serde_json::json;
use xskiff::demo::expectation::Outcome;
use xskiff::demo::scene::{BALANCER, CLIENT, HTTP, STRANGER, to};
use xskiff::demo::traffic::{forbidden, http};
use xskiff::lab::wait_until;
use xskiff_tests::cluster_server::Setup;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets_of};
use crate::followed::follow;
use crate::small_memory::SmallMemory;
use crate::world::{PATIENCE, Shape, World, number_from};

const SHAPE: Shape = Shape { label: "outage", mtu: 1500, xdp_mode: "native" };
const FOLLOWING: &str = "snapshot_seconds: 1, request_timeout_seconds: 2";

fn snapshot(world: &World) -> SnapshotStatus {
    world.status().kubernetes.expect("an API server is followed").snapshot
}

/// Resets at both ends of connections. (The node's own stack sends some, for the API server that is gone.)
fn resets(world: &World) -> i64 {
    resets_of(std::iter::once(&world.scene.client).chain(&world.scene.pods))
}

/// Connections that are there go on, new ones are served, and policy holds.
fn assert_undisturbed(world: &World, clients: &[Client]) {
    clients.iter().for_each(Client::goes_on);
    let client = &world.scene.client;
    let asked = http(client, BALANCER, HTTP[0], &["web-1", "web-2"], Some(CLIENT)).expect("asked");
    assert_eq!(asked.outcome, Outcome::Ok, "{asked:?}, {:#?}", world.status());
    let refused = forbidden(world.scene.pod(STRANGER), BALANCER, HTTP[0]).expect("asked");
    assert_eq!(refused.outcome, Outcome::Ok, "{refused:?}");
}

#[test]
fn without_api_server_and_disk_traffic_goes_on_and_so_does_the_next_process() {
    if !root_or_skip("an outage of API server and disk") {
        return;
    }
    let (world, server) = follow(SHAPE, (Setup::default(), FOLLOWING), PATIENCE, |_| {});
    assert!(wait_until(PATIENCE, || snapshot(&world).writes > 0).is_some());
    let held = number_from("XSKIFF_HELD_CONNECTIONS", 1000) / 2;
    let clients = BALANCER
        .map(|address| Client::start(&world.scene.client, &to(address, HTTP[0]), held, held / 10));
    let resets_before = resets(&world);

    // Nobody may write there, root neither: a node passes over no modes.
    let state = world.scene.laboratory.directory().join("state");
    let protect = |mode| set_permissions(&state, Permissions::from_mode(mode)).expect("set");
    protect(0o500);
    server.set(Kind::Namespace, json!({ "metadata": { "name": "late" } }));
    assert!(wait_until(PATIENCE, || snapshot(&world).failures > 0).is_some());
    server.kill();
    let is_told = || {
        let status = world.status();
        let missed = status.verdict.summary.contains("cannot be followed");
        status.verdict.level == Level::Degraded && missed
    };
    assert!(wait_until(PATIENCE, is_told).is_some(), "{:#?}", world.status());
    let error = snapshot(&world).last_error.expect("an error");
    assert!(error.contains("cluster.snapshot.new: Permission denied"), "{error}");
    assert_undisturbed(&world, &clients);

    let world = world.end(true).begin_somehow(Instant::now() + PATIENCE * 4);
    let began = snapshot(&world);
    assert!(began.restored > 0 && began.not_restored.is_none(), "{began:?}");
    assert_undisturbed(&world, &clients);

    protect(0o700);
    server.come_back();
    let is_whole = || {
        let followed = world.status().kubernetes.expect("an API server is followed");
        followed.kinds.iter().all(|kind| kind.in_step && kind.lists > 0)
            && followed.snapshot.writes > 0
    };
    assert!(wait_until(PATIENCE * 2, is_whole).is_some(), "{:#?}", world.status());
    assert_undisturbed(&world, &clients);
    assert_eq!(resets(&world), resets_before);
    let answered = clients.into_iter().map(|client| client.end_whole(PATIENCE).answered_last);
    println!("{} connections, none broken, no reset", answered.sum::<u64>());
}

#[test]
fn a_disk_that_is_full_or_read_only_is_named_until_it_can_be_written_to_again() {
    if !root_or_skip("a full disk") {
        return;
    }
    let shape = Shape { label: "full-disk", ..SHAPE };
    let (world, server) = follow(shape, (Setup::default(), FOLLOWING), PATIENCE, |_| {});
    assert!(wait_until(PATIENCE, || snapshot(&world).writes > 0).is_some());
    let clients =
        BALANCER.map(|address| Client::start(&world.scene.client, &to(address, HTTP[0]), 20, 5));
    let state = world.scene.laboratory.directory().join("state");
    let before = snapshot(&world);
    let Some(disk) = SmallMemory::full_over(&state, world.status().pid) else {
        return eprintln!("skipped: no tmpfs");
    };
    let is_refused = |change: &str, why: &str| {
        server.set(Kind::Namespace, json!({ "metadata": { "name": change } }));
        let is_told = || snapshot(&world).last_error.is_some_and(|error| error.contains(why));
        assert!(wait_until(PATIENCE, is_told).is_some(), "{:?}", snapshot(&world));
        let log = std::fs::read_to_string(world.node.process().log()).expect("its log");
        let is_logged = |line: &str| line.contains("ERROR") && line.contains(why);
        assert!(log.lines().any(is_logged), "{why} is not in the log");
        assert_undisturbed(&world, &clients);
    };
    is_refused("first", "No space left on device");
    disk.make_read_only();
    is_refused("second", "Read-only file system");
    let told = snapshot(&world);
    assert!(told.failures >= before.failures + 2 && told.writes == before.writes, "{told:?}");
    // It is tried again and again.
    let metrics = world.metrics();
    let mut lines = metrics.lines();
    let counted = lines.find_map(|line| line.strip_prefix("xskiff_snapshot_failures_total{} "));
    let counted = counted.unwrap_or_else(|| panic!("{metrics}"));
    let counted: u64 = counted.parse().expect("a number");
    assert!(counted >= told.failures, "{counted}, {told:?}");
    drop(disk);
    // What waits to be written is, without another change.
    let is_written = || {
        let now = snapshot(&world);
        now.writes > before.writes && now.last_error.is_none()
    };
    assert!(wait_until(PATIENCE, is_written).is_some(), "{:?}", snapshot(&world));
    for client in clients {
        client.end_whole(PATIENCE);
    }
}
