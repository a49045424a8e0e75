//! As many connections as a busy node has, a tenth of them TCP and the rest UDP, most of them idle,
//! while the flow table grows four times, is resized, and the process is started again twice: none
//! breaks. `XSKIFF_ENDURANCE_FLOWS` is their number, `XSKIFF_ENDURANCE_SEED` chooses the busy ones.

use std::time::{Duration, Instant};

use control::admin::status::FlowTableFill;
use xskiff::demo::scene::{BALANCER, ECHO, to};
use xskiff::lab::Agent;
use xskiff::lab::agent::report::{FlowsHeld, Report};
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::held_connections::{Client, resets};
use crate::world::{PATIENCE, Shape, World, number_from};

/// Addresses that the client takes for its own, beside the one of its link.
const OWN: &str = "100.64.0.0/16";
/// Those of [`OWN`] that UDP flows come from.
const DATAGRAM_SOURCES: &str = "100.64.0.0/18";
/// TCP connections from one address of [`OWN`], which has ephemeral ports for 28,000.
const CONNECTIONS_EACH: u64 = 25_000;
/// One UDP flow in so many is busy all the time.
const BUSY_PART: u64 = 500;
/// The table begins with one entry for so many flows, and so has to double five times.
const GROWTH: u64 = 20;
/// How long there is no node process.
const GONE: Duration = Duration::from_millis(300);

/// A client process that holds UDP flows to the service's echo.
struct Datagrams(Agent);

impl Datagrams {
    fn begin(world: &World, flows: u64, seed: u64) -> Self {
        let words = [
            "hold-flows".to_owned(),
            to(BALANCER[0], ECHO),
            format!("--sources={DATAGRAM_SOURCES}"),
            format!("--flows={flows}"),
            format!("--active={}", flows.div_ceil(BUSY_PART)),
            format!("--seed={seed}"),
            "--interval-ms=20".to_owned(),
        ];
        let words = words.each_ref().map(String::as_str);
        Self(world.scene.client.agent(&words).expect("a client"))
    }

    fn wait(
        &self,
        awaited: &'static str,
        patience: Duration,
        done: impl Fn(&FlowsHeld) -> bool,
    ) -> FlowsHeld {
        let report = self.0.expect(awaited, patience, |report| held(report).filter(&done));
        report.unwrap_or_else(|error| panic!("{error}"))
    }

    /// How its flows stand after each was asked once more.
    fn end_within(self, patience: Duration) -> FlowsHeld {
        let reports = self.0.stop_within(patience).unwrap_or_else(|error| panic!("{error}"));
        let mut last = reports.into_iter().rev();
        last.find_map(|stamped| held(stamped.report)).expect("a last report")
    }
}

fn held(report: Report) -> Option<FlowsHeld> {
    if let Report::FlowsHeld(held) = report { Some(held) } else { None }
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
    let mut clients = Vec::new();
    for (number, first) in (0..connections).step_by(CONNECTIONS_EACH as usize).enumerate() {
        let from = format!("--from=100.64.64.{}", number + 1);
        let held = CONNECTIONS_EACH.min(connections - first);
        let client = Client::begin(&world, BALANCER[0], held, &[&from, &pause]);
        client.wait_open(patience);
        clients.push(client);
    }
    println!("{connections} TCP connections are open after {:.1?}", began.elapsed());
    let busy = Datagrams::begin(&world, datagrams, seed);
    busy.wait("open UDP flows", patience, |now| now.opened == datagrams);
    let grown = fill(&world);
    assert!(grown.grown >= 4, "{grown:?}");
    assert_nothing_lost(&world, resets_before, flows);
    println!("{flows} flows, seed {seed}: open after {:.1?}, {grown:?}", began.elapsed());

    let go_on = |clients: &[Client], what: &'static str| {
        let before = busy.wait(what, PATIENCE, |_| true).echoes;
        busy.wait(what, PATIENCE, |now| now.echoes > before + datagrams.div_ceil(BUSY_PART));
        clients.iter().for_each(Client::goes_on);
    };
    for capacity in [flows * 2, flows + flows / 4] {
        resize(&world, capacity);
        go_on(&clients, "echoes after a resize");
    }
    assert_nothing_lost(&world, resets_before, flows);

    for (kill, outcome) in [(false, "taken-over"), (true, "rebuilt")] {
        let before = Instant::now();
        world = world.again(kill, GONE);
        let table = world.status().flow_tables.swap_remove(0);
        assert_eq!((&*table.outcome, table.lost, table.reason), (outcome, 0, None));
        assert!(table.flows >= flows, "{} of {flows}", table.flows);
        println!("{outcome}: {} flows, ready after {:.1?}", table.flows, before.elapsed() - GONE);
        go_on(&clients, "echoes after a restart");
        assert_nothing_lost(&world, resets_before, flows);
    }

    let datagrams_last = busy.end_within(patience);
    let last: Vec<_> = clients.into_iter().map(|client| client.end_within(patience)).collect();
    for held in &last {
        assert_eq!((held.resets, held.ended, held.refused), (0, 0, 0), "{held:?}");
        assert_eq!((held.alive, held.answered_last), (held.wanted, held.wanted), "{held:?}");
    }
    assert_eq!(datagrams_last.answered_last, datagrams, "{datagrams_last:?}");
    assert_eq!(datagrams_last.wrong, 0, "{datagrams_last:?}");
    assert_nothing_lost(&world, resets_before, flows);
    world.assert_kernel_forwarded_nothing();
    let requests: u64 = last.iter().map(|held| held.requests).sum();
    println!(
        "all {connections} TCP connections and {datagrams} UDP flows answer after {:.1?}: {requests} \
         requests, {} echoes, no reset",
        began.elapsed(),
        datagrams_last.echoes
    );
}
