//! As many connections as a busy node has, a tenth of them TCP and the rest UDP, most of them idle,
//! while the flow table grows four times, is resized, and the process is started again twice: none
//! breaks. `XSKIFF_ENDURANCE_FLOWS` is their number, `XSKIFF_ENDURANCE_SEED` chooses the busy ones.

use std::time::{Duration, Instant};

use control::admin::status::FlowTableFill;
use xskiff::demo::scene::{BALANCER, ECHO, HTTP, PODS, to};
use xskiff::lab::Agent;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::clients::{Client, Datagrams, resets};
use crate::world::{PATIENCE, Shape, World, number_from};

/// Addresses that the client takes for its own, beside the one of its link.
const OWN: &str = "100.64.0.0/16";
/// Those of [`OWN`] that UDP flows come from.
const DATAGRAM_SOURCES: &str = "100.64.0.0/18";
/// TCP connections of one client process, from an address of [`OWN`], and of one server: an address
/// has ephemeral ports for 28,000, and a process may be held to 20,000 files.
const CONNECTIONS_EACH: u64 = 15_000;
/// One UDP flow in so many is busy all the time.
const BUSY_PART: u64 = 500;
/// The table begins with one entry for so many flows, and so has to double five times.
const GROWTH: u64 = 20;
/// How long there is no node process.
const GONE: Duration = Duration::from_millis(300);

/// Servers beside those of the scene, so that there are enough for so many connections.
fn more_servers(world: &World, connections: u64) -> Vec<Agent> {
    let each = connections.div_ceil(CONNECTIONS_EACH);
    let http = format!("--http=[::]:{}", HTTP[2]);
    let pods = PODS.into_iter().filter(|plan| plan.serves);
    let hosts = pods.flat_map(|plan| (1..each).map(move |_| world.scene.pod(plan)));
    hosts
        .map(|host| {
            let agent = host.agent(&["serve", &http, "--shared", "--name=more"]).expect("a server");
            agent.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
            agent
        })
        .collect()
}

fn fill(world: &World) -> FlowTableFill {
    let mut tables = world.status().flow_tables.into_iter();
    tables.find(|table| table.table == "flows_ipv4").expect("the IPv4 table").fill
}

fn resize(world: &World, flows: u64) {
    let socket = world.files.socket.to_string_lossy();
    let words = ["--socket", &*socket, "ct", "resize", "--v4", &flows.to_string()];
    let answer = world.scene.node.run(&path().to_string_lossy(), &words);
    answer.unwrap_or_else(|error| panic!("{error}"));
    let capacity = fill(world).capacity;
    assert!((flows..flows + flows / 8 + 1024).contains(&capacity), "{capacity}, not {flows}");
}

/// Nothing was refused, evicted, or ended by a reset.
fn assert_nothing_lost(world: &World, resets_before: i64, flows: u64) {
    let (status, fill) = (world.status(), fill(world));
    let full = status.drops.iter().find(|drop| drop.reason == "table-full").expect("a reason");
    let evicted: u64 = status.workers.iter().map(|worker| worker.flows_evicted).sum();
    assert_eq!((full.packets, evicted, fill.inserts_refused_full), (0, 0, 0), "{fill:?}");
    assert!(fill.used >= flows, "{fill:?} of {flows}");
    assert_eq!(resets(world), resets_before);
}

#[test]
fn no_connection_breaks_while_tables_grow_and_are_resized_and_the_process_starts_again() {
    if !root_or_skip("endurance") {
        return;
    }
    let flows = number_from("XSKIFF_ENDURANCE_FLOWS", 6000);
    let seed = number_from("XSKIFF_ENDURANCE_SEED", 20_260);
    let connections = flows / 10;
    let datagrams = flows - connections;
    // On a slow machine, with debugging code.
    let patience = PATIENCE + Duration::from_millis(flows / 2);
    let mut world =
        World::start_edited(Shape { label: "endure", mtu: 1500, xdp_mode: "native" }, |text| {
            let (first, most) = (flows / GROWTH, flows * 3);
            text.replace(
                "ipv4_flows_max: 65536",
                &format!("ipv4_flows: {first}\n  ipv4_flows_max: {most}"),
            ) + "timeouts: {udp_seconds: 7200, udp_stream_seconds: 7200}\n"
        });
    let client = &world.scene.client;
    client.ip(&format!("route add local {OWN} dev lo")).expect("own addresses");
    let resets_before = resets(&world);
    let began = Instant::now();

    // Requests at most some thousands a second.
    let pause = format!("--interval-ms={}", 200 + flows / 500);
    let _servers = more_servers(&world, connections);
    let mut clients = Vec::new();
    for (number, first) in (0..connections).step_by(CONNECTIONS_EACH as usize).enumerate() {
        let from = format!("--from=100.64.64.{}", number + 1);
        let held = CONNECTIONS_EACH.min(connections - first);
        let (host, target) = (&world.scene.client, to(BALANCER[0], HTTP[0]));
        let client = Client::begin(host, &target, (held, held.div_ceil(10)), &[&from, &pause]);
        client.wait_open(patience);
        clients.push(client);
    }
    println!("{connections} TCP connections are open after {:.1?}", began.elapsed());
    let (ends, active) =
        ((&*to(BALANCER[0], ECHO), DATAGRAM_SOURCES), datagrams.div_ceil(BUSY_PART));
    let busy = Datagrams::begin(&world.scene.client, ends, (datagrams, active), seed);
    busy.wait_open(patience);
    let grown = fill(&world);
    assert!(grown.grown >= 4, "{grown:?}");
    assert_nothing_lost(&world, resets_before, flows);
    println!("{flows} flows, seed {seed}: open after {:.1?}, {grown:?}", began.elapsed());

    let go_on = || {
        busy.goes_on();
        clients.iter().for_each(Client::goes_on);
    };
    for capacity in [flows * 2, flows + flows / 4] {
        resize(&world, capacity);
        go_on();
    }
    assert_nothing_lost(&world, resets_before, flows);

    for (kill, outcome) in [(false, "taken-over"), (true, "rebuilt")] {
        let before = Instant::now();
        world = world.again(kill, GONE);
        let table = world.status().flow_tables.swap_remove(0);
        assert_eq!((&*table.outcome, table.lost, table.reason), (outcome, 0, None));
        assert!(table.flows >= flows, "{} of {flows}", table.flows);
        println!("{outcome}: {} flows, ready after {:.1?}", table.flows, before.elapsed() - GONE);
        go_on();
        assert_nothing_lost(&world, resets_before, flows);
    }

    let echoes = busy.end_whole(patience).echoes;
    let requests: u64 = clients.into_iter().map(|client| client.end_whole(patience).requests).sum();
    assert_nothing_lost(&world, resets_before, flows);
    world.assert_kernel_forwarded_nothing();
    println!(
        "all {connections} TCP connections and {datagrams} UDP flows answer after {:.1?}: {requests} \
         requests, {echoes} echoes, no reset",
        began.elapsed()
    );
}
