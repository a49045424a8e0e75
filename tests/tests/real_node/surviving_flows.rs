//! Established connections through a service outlive the node process, whether it ends in order or
//! is killed: the next one goes on with its flows.

use std::time::Duration;

use control::admin::status::FlowTableStatus;
use xskiff::demo::scene::{BALANCER, FAMILIES, HTTP, to};
use xskiff::lab::Agent;
use xskiff::lab::agent::report::{Held, Report};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, tcp_counters};

/// Connections of each family; one in ten asks all the time, the others are idle.
const CONNECTIONS: u64 = 100;
const ACTIVE: u64 = 10;
/// How long there is no node process.
const GONE: Duration = Duration::from_secs(1);

fn hold(world: &World, family: usize) -> Agent {
    let target = to(BALANCER[family], HTTP[0]);
    let (all, active) = (format!("--connections={CONNECTIONS}"), format!("--active={ACTIVE}"));
    let agent = world.scene.client.agent(&["hold", &target, &all, &active]).expect("a client");
    wait(&agent, "open connections", |now| now.alive == CONNECTIONS && now.requests >= CONNECTIONS);
    agent
}

fn wait(agent: &Agent, awaited: &'static str, done: impl Fn(&Held) -> bool) -> Held {
    let report = agent.expect(awaited, PATIENCE, |report| match report {
        Report::Held(held) => done(&held).then_some(held),
        _ => None,
    });
    report.unwrap_or_else(|error| panic!("{error}"))
}

/// How each connection stands after it was asked once more.
fn end(agent: Agent) -> Held {
    let reports = agent.stop().unwrap_or_else(|error| panic!("{error}"));
    let last = reports.into_iter().rev().find_map(|stamped| match stamped.report {
        Report::Held(held) => Some(held),
        _ => None,
    });
    last.expect("a last report")
}

fn resets(world: &World) -> i64 {
    [&world.scene.client, &world.scene.node]
        .map(tcp_counters)
        .iter()
        .map(|tcp| tcp["OutRsts"] + tcp["EstabResets"])
        .sum()
}

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
    let agents = [0, 1].map(|family| hold(&world, family));
    let resets_before = resets(&world);
    // A process that ended in order, one that was killed, and one that took over a rebuilt table.
    for (kill, outcome) in [(false, "taken-over"), (true, "rebuilt"), (false, "taken-over")] {
        let before = agents.each_ref().map(|agent| wait(agent, "a report", |_| true).requests);
        let generation = world.status().generation;
        world = world.again(kill, GONE);
        for table in tables(&world) {
            assert_eq!((&*table.outcome, table.lost, table.reason), (outcome, 0, None));
            assert!(table.flows >= CONNECTIONS, "{} has {} flows", table.table, table.flows);
        }
        assert!(world.status().generation > generation, "cached ways are judged anew");
        for (agent, before) in agents.iter().zip(before) {
            wait(agent, "that it goes on", |now| now.requests >= before + 5 * ACTIVE);
        }
    }
    assert_eq!(resets(&world), resets_before, "resets in the client's and the node's stacks");
    for (agent, family) in agents.into_iter().zip(FAMILIES) {
        let last = end(agent);
        assert_eq!((last.resets, last.ended, last.refused), (0, 0, 0), "{family}: {last:?}");
        assert_eq!((last.alive, last.answered_last), (CONNECTIONS, CONNECTIONS), "{last:?}");
    }
    world.assert_kernel_forwarded_nothing();
}
