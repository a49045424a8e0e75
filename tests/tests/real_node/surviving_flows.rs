//! Established connections through a service outlive the node process, whether it ends in order or
//! is killed: the next one goes on with its flows.

use std::time::Duration;

use control::admin::status::FlowTableStatus;
use xskiff::demo::scene::{BALANCER, HTTP, to};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, resets};
use crate::world::{PATIENCE, Shape, World};

/// Connections of each family; one in ten asks all the time, the others are idle.
const CONNECTIONS: u64 = 100;
const ACTIVE: u64 = 10;
/// How long there is no node process.
const GONE: Duration = Duration::from_secs(1);

fn tables(world: &World) -> Vec<FlowTableStatus> {
    world.status().flow_tables
}

#[test]
fn established_connections_survive_a_restart_and_a_kill_without_one_reset() {
    if !root_or_skip("restarts") {
        return;
    }
    let mut world = World::start(Shape { label: "restarts", mtu: 1500, xdp_mode: "native" });
    if tables(&world).iter().any(|table| table.file.is_none()) {
        return eprintln!("skipped: no tmpfs for flow tables: {:?}", tables(&world));
    }
    assert!(tables(&world).iter().all(|table| table.outcome == "new"), "{:?}", tables(&world));
    let clients = BALANCER.map(|service| {
        Client::start(&world.scene.client, &to(service, HTTP[0]), CONNECTIONS, ACTIVE)
    });
    let resets_before = resets(&world);
    // A process that ended in order, one that was killed, and one that took over a rebuilt table.
    for (kill, outcome) in [(false, "taken-over"), (true, "rebuilt"), (false, "taken-over")] {
        let before = clients.each_ref().map(Client::requests);
        let generation = world.status().generation;
        world = world.again(kill, GONE);
        for table in tables(&world) {
            assert_eq!((&*table.outcome, table.lost, table.reason), (outcome, 0, None));
            assert!(table.flows >= CONNECTIONS, "{} has {} flows", table.table, table.flows);
        }
        assert!(world.status().generation > generation, "cached ways are judged anew");
        for (client, before) in clients.iter().zip(before) {
            client.wait_for_answers(before, 5);
        }
    }
    assert_eq!(resets(&world), resets_before, "resets");
    for client in clients {
        client.end_whole(PATIENCE);
    }
    world.assert_kernel_forwarded_nothing();
}
