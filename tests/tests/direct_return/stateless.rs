//! A service that no flows are kept of, by two nodes that share the way from the client: one is killed, and
//! the other goes on with its connections.
//!
//! `XSKIFF_EDGE_SEED` chooses who dies and when, `XSKIFF_EDGE_CONNECTIONS` (100) how many are open then, of
//! each family.

use std::net::SocketAddr;
use std::time::Duration;

use xskiff::lab::Agent;
use xskiff::lab::agent::report::{Echoed, Held, Report};
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::{number_from, root_or_skip};

use crate::nodes::{A, C, EDGE, Nodes, PATIENCE};

/// UDP flows of each family.
const SOCKETS: u64 = 40;
/// Datagrams of each, and the pause between two.
const DATAGRAMS: u64 = 60;
const PAUSE_MS: u64 = 100;
/// Those of a flow that may be lost while the route still leads to the node that is dead.
const LOST_EACH: u64 = 3;

fn held(report: Report) -> Option<Held> {
    if let Report::Held(held) = report { Some(held) } else { None }
}

fn begin(nodes: &Nodes, connections: u64) -> (Vec<Agent>, Vec<Agent>) {
    let agent = |words: &[&str]| nodes.client.agent(words).expect("a client");
    let mut of = (Vec::new(), Vec::new());
    for address in EDGE {
        let to = |l4_port| {
            let at = SocketAddr::new(address.parse().expect("an address"), l4_port);
            format!("--to={at}")
        };
        let (all, active) =
            (format!("--connections={connections}"), format!("--active={}", connections / 4));
        of.0.push(agent(&["hold", &to(80), &all, &active, "--interval-ms=50"]));
        let [sockets, count, pause] = [
            format!("--sockets={SOCKETS}"),
            format!("--count={DATAGRAMS}"),
            format!("--interval-ms={PAUSE_MS}"),
        ];
        of.1.push(agent(&["udp", &to(53), &sockets, &count, &pause, "--timeout-ms=300"]));
    }
    of
}

fn one_dies(form: &'static str) {
    if !root_or_skip("two stateless frontends") {
        return;
    }
    let (seed, connections) =
        (number_from("XSKIFF_EDGE_SEED", 7), number_from("XSKIFF_EDGE_CONNECTIONS", 100));
    let mut random = Random::new(seed);
    let nodes = Nodes::with_two_frontends(form);
    // By addresses and L4 ports, so that each node has connections of the one client.
    let by_ports = ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"];
    nodes.client.set(&by_ports.map(|name| (name, "1"))).expect("settings");
    nodes.lead_by(&[A, C]);
    let (tcp, udp) = begin(&nodes, connections);
    for client in &tcp {
        let is_open = |report| held(report).filter(|held| held.alive == connections);
        client.expect("all are open", PATIENCE, is_open).expect("they open");
    }
    std::thread::sleep(Duration::from_millis(500 + random.below(1000) as u64));
    let dispatched = |at: usize| nodes.frontends()[at].count(|w| w.dispatched_without_flow);
    let before = [dispatched(0), dispatched(1)];
    assert!(before.iter().all(|count| *count > 100), "both have connections: {before:?}");
    for node in nodes.frontends() {
        assert_eq!(node.count(|worker| worker.flows_created), 0, "no flow is kept");
    }

    let dies = random.below(2);
    nodes.frontends()[dies].kill();
    // As a router does that hears no more of it.
    std::thread::sleep(Duration::from_millis(100));
    nodes.lead_by(&[[C, A][dies]]);

    let mut lost = Vec::new();
    for client in udp {
        let echoed = |report| match report {
            Report::Echoed(echoed) => Some(echoed),
            _ => None,
        };
        let Echoed { sent, received, wrong, .. } =
            client.expect("echoes", PATIENCE, echoed).expect("an end");
        lost.push(sent - received);
        assert_eq!((sent, wrong), (SOCKETS * DATAGRAMS, 0));
    }
    let mut ends = Vec::new();
    for client in tcp {
        let reports = client.stop_within(PATIENCE).expect("it ends");
        let last = reports.into_iter().filter_map(|stamped| held(stamped.report)).next_back();
        ends.push(last.expect("it says"));
    }
    let after = dispatched(1 - dies);
    println!(
        "{form}, seed {seed}: node {} of two died; of {connections} connections of each family {:?} \
         answer, {:?} were reset; {lost:?} of {} datagrams of each lost; the other dispatched {} \
         packets before and {after} at last",
        ["A", "C"][dies],
        ends.iter().map(|held| held.answered_last).collect::<Vec<_>>(),
        ends.iter().map(|held| held.resets).collect::<Vec<_>>(),
        SOCKETS * DATAGRAMS,
        before[1 - dies],
    );
    let is_whole = |held: &Held| {
        (held.answered_last, held.resets, held.ended, held.refused) == (connections, 0, 0, 0)
    };
    assert!(ends.iter().all(is_whole), "{ends:?}\n{}", nodes.say());
    assert!(lost.iter().all(|lost| *lost <= SOCKETS * LOST_EACH), "{lost:?}\n{}", nodes.say());
    assert!(after > before[1 - dies] + 100, "{before:?}, {after}");
    assert_eq!(nodes.frontends()[1 - dies].count(|worker| worker.flows_created), 0);
}

#[test]
fn connections_go_on_by_the_other_node_when_one_dies_by_an_option() {
    one_dies("option");
}

#[test]
fn connections_go_on_by_the_other_node_when_one_dies_by_ip_in_ip() {
    one_dies("ipip");
}

#[test]
fn connections_go_on_by_the_other_node_when_one_dies_by_geneve() {
    one_dies("geneve");
}
