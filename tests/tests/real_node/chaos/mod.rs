//! An API server that stalls, lies, breaks off and dies, again and again, under a node with traffic:
//! no connection ends, no verdict is one that policy never gave, and every failure can be found.
//!
//! `XSKIFF_CHAOS_SECONDS` is how long it lasts (600 to be shown), `XSKIFF_CHAOS_SEED` what happens.

mod changes;
mod objects;
mod real;
mod troubles;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::admin::status::Level;
use control::admin::{PolicyQuestion, Reply, Request};
use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, CLUSTER_IP, ECHO, HTTP, NODE, PODS, to};
use xskiff::lab::agent::report::Report;
use xskiff::lab::{Agent, wait_until};
use xskiff_tests::cluster_server::{Setup, Size, Synthetic};
use xskiff_tests::policy_model::Transport;
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::{Client, Datagrams, resets_of};
use crate::followed::{ApiServer, demo_objects, follow_beside};
use crate::relayed::start_relay;
use crate::world::{PATIENCE, Shape, World, number_from};

use changes::Changes;
use objects::Question;
use real::Attempts;
use troubles::{Chaos, Trouble};

/// How the node follows: soon impatient, so that much happens in little time; but what a list has
/// lost is held for longer than any trouble lasts.
const FOLLOWING: &str = "connect_timeout_seconds: 1, request_timeout_seconds: 2, \
    silence_seconds: 3, watch_seconds_min: 5, watch_seconds_max: 8, hold_seconds: 10, \
    snapshot_seconds: 2";
const RELAYS: &str = ", relays: [\"http://127.0.0.1:8444\"]";
const CLUSTER: Size = Size { nodes: 6, namespaces: 4, pods: 90, services: 24, policies: 8 };
/// Addresses that UDP flows come from.
const DATAGRAM_SOURCES: &str = "100.64.0.0/20";
/// Between two changes of the cluster.
const PACE: Duration = Duration::from_millis(150);
/// Longer than an event takes from the server to the tables.
const SETTLE: Duration = Duration::from_millis(400);
/// Questions after each change.
const QUESTIONS: usize = 6;

/// Who goes on meanwhile.
struct Traffic {
    clients: Vec<Client>,
    datagrams: Datagrams,
    /// Opens new connections again and again.
    newcomers: Agent,
}

impl Traffic {
    fn begin(world: &World, seed: u64) -> Self {
        let outside = &world.scene.client;
        outside.ip("route add local 100.64.0.0/16 dev lo").expect("own addresses");
        let clients = vec![
            Client::start(outside, &to(BALANCER[0], HTTP[0]), 200, 20),
            Client::start(outside, &to(BALANCER[1], HTTP[0]), 100, 10),
            Client::start(world.scene.pod(BUYER), &to(CLUSTER_IP[0], HTTP[0]), 100, 10),
        ];
        let ends = (&*to(BALANCER[0], ECHO), DATAGRAM_SOURCES);
        let datagrams = Datagrams::begin(outside, ends, (2000, 20), seed);
        datagrams.wait_open(PATIENCE);
        let target = to(BALANCER[0], HTTP[0]);
        let words = ["probe", &target, "--interval-ms=50", "--timeout-ms=5000"];
        let newcomers = outside.agent(&words).expect("a probe");
        Self { clients, datagrams, newcomers }
    }

    fn goes_on(&self) {
        self.clients.iter().for_each(Client::goes_on);
        self.datagrams.goes_on();
    }

    /// Everything is there and answered, and always was.
    fn end_whole(self) -> String {
        let reports = self.newcomers.stop_within(PATIENCE).expect("its end");
        let last = reports.into_iter().rev().find_map(|stamped| match stamped.report {
            Report::ProbedInAll { attempts, failures, .. } => Some((attempts, failures)),
            _ => None,
        });
        let (attempts, failures) = last.expect("a last report");
        assert_eq!(failures, 0, "of {attempts} new connections");
        let whole = self.clients.into_iter().map(|client| client.end_whole(PATIENCE));
        let requests: u64 = whole.map(|held| held.requests).sum();
        let echoes = self.datagrams.end_whole(PATIENCE).echoes;
        format!("{attempts} new connections, {requests} requests of 400 held, {echoes} echoes")
    }
}

/// All that is asked: between pods of the node, and between them and others, both ways.
fn questions(cluster: &Synthetic) -> Vec<Question> {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let own = PODS.iter().flat_map(|plan| plan.addresses.map(address));
    let own: Vec<IpAddr> = own.collect();
    let others = [CLIENT, NODE, ["198.51.100.7", "2001:db8:ffff::7"]].into_iter().flatten();
    let elsewhere = (0..4).map(|pod| cluster.pod_address(pod * 7).into());
    let others: Vec<IpAddr> = others.map(address).chain(elsewhere).collect();
    let mut all = Vec::new();
    for one in &own {
        let is_alike = |other: &&IpAddr| *other != one && other.is_ipv4() == one.is_ipv4();
        for other in own.iter().chain(&others).filter(is_alike) {
            for transport in [Transport::Tcp(8080), Transport::Udp(5353), Transport::Tcp(9)] {
                all.push(Question { from: *one, to: *other, transport });
                if !own.contains(other) {
                    all.push(Question { from: *other, to: *one, transport });
                }
            }
        }
    }
    all
}

/// What the node says.
fn verdict(world: &World, question: Question) -> bool {
    let (protocol, l4_port) = match question.transport {
        Transport::Tcp(port) => ("tcp", port),
        Transport::Udp(port) => ("udp", port),
        other => panic!("{other:?} is not asked"),
    };
    let (from, to) = (question.from.to_string(), question.to.to_string());
    let asked = PolicyQuestion { from, to, l4_port, protocol: protocol.into() };
    match world.node.ask(Request::PolicyExplain(asked)).expect("the node answers") {
        Reply::Policy(explained) => explained.allowed,
        other => panic!("{other:?}"),
    }
}

/// Goes on changing the cluster for so long; no verdict may be one that policy never gave.
fn change_and_ask(
    world: &World,
    (changes, server): (&mut Changes, Option<&ApiServer>),
    (questions, random, attempts): (&[Question], &mut Random, &mut Attempts),
    lasting: Duration,
) -> u64 {
    let (until, mut asked) = (Instant::now() + lasting, 0);
    while Instant::now() < until {
        if let Some(server) = server {
            changes.step(server);
        }
        for _ in 0..QUESTIONS {
            let question = *random.pick(questions);
            let allowed = verdict(world, question);
            assert!(changes.history.may_say(question, allowed), "{question:?}: {allowed}");
            asked += 1;
        }
        if random.one_in(3) {
            attempts.meanwhile(world, &changes.history);
        } else {
            std::thread::sleep(PACE);
        }
    }
    asked
}

/// Waits until the node follows every kind, holds no loss, and every verdict is what the model says
/// of the present state; and still after a while in which the last events may arrive.
fn wait_in_step(
    world: &World,
    changes: &mut Changes,
    questions: &[Question],
    attempts: &mut Attempts,
) {
    let model = changes.history.now();
    let wrong = || questions.iter().find(|own| verdict(world, **own) != model(**own));
    let status = || world.status().kubernetes.expect("followed");
    let follows = || status().kinds.iter().all(|kind| kind.in_step && kind.held == 0);
    let is_in_step = wait_until(PATIENCE, || {
        let was_in_step = follows() && wrong().is_none();
        std::thread::sleep(SETTLE);
        was_in_step && follows() && wrong().is_none()
    });
    assert!(is_in_step.is_some(), "{:?} in spite of {:#?}", wrong(), status());
    changes.history.is_in_force();
    attempts.in_step(world, &changes.history);
}

/// Resets of the traffic's ends; the node's own stack refuses connections to a server that is down.
fn own_resets(world: &World) -> i64 {
    resets_of([&world.scene.client].into_iter().chain(&world.scene.pods))
}

/// Failures by reason, as status has them.
fn failures(world: &World) -> BTreeMap<String, u64> {
    let kinds = world.status().kubernetes.expect("followed").kinds;
    let mut all = BTreeMap::new();
    for (reason, count) in kinds.into_iter().flat_map(|kind| kind.failures) {
        *all.entry(reason).or_default() += count;
    }
    all
}

/// The same, as the metrics have them.
fn failures_measured(world: &World) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in world.metrics().lines() {
        let Some(of_kind) = line.strip_prefix("xskiff_kubernetes_failures_total{kind=") else {
            continue;
        };
        let (labels, count) = of_kind.rsplit_once("\"} ").expect("labels and a value");
        let (_, reason) = labels.rsplit_once("reason=\"").expect("a reason");
        *all.entry(reason.to_owned()).or_default() += count.parse::<u64>().expect("a number");
    }
    all
}

/// One way to follow the cluster, and what befalls it.
struct Plan {
    shape: Shape,
    /// Whether it asks a relay, which asks the API server.
    is_relayed: bool,
    /// Reasons of failures that the node must have met.
    reasons: &'static [&'static str],
}

#[test]
fn whatever_befalls_the_api_server_no_connection_ends_and_no_verdict_is_wrong() {
    go_through(&Plan {
        shape: Shape { label: "chaos", mtu: 1500, xdp_mode: "native" },
        is_relayed: false,
        reasons: &["connection", "silent", "expired", "garbage"],
    });
}

#[test]
fn nor_where_a_relay_is_between_and_dies() {
    go_through(&Plan {
        shape: Shape { label: "chaos-relay", mtu: 1500, xdp_mode: "native" },
        is_relayed: true,
        reasons: &["connection"],
    });
}

fn go_through(plan: &Plan) {
    if !root_or_skip(plan.shape.label) {
        return;
    }
    let lasting = Duration::from_secs(number_from("XSKIFF_CHAOS_SECONDS", 15));
    let seed = number_from("XSKIFF_CHAOS_SEED", 20_261_129);
    let cluster = Synthetic { size: CLUSTER, detail: Default::default(), seed };
    let mut objects = demo_objects();
    objects.extend(cluster.objects());
    let setup = Setup { seed, ..Setup::default() };
    let more = if plan.is_relayed { RELAYS } else { "" };
    let (mut relay, following) = (None, [FOLLOWING, more].concat());
    let troubles = Trouble::all(plan.is_relayed);
    let (world, server) =
        follow_beside(plan.shape, (setup, &following), PATIENCE, |scene, server| {
            cluster.objects().for_each(|(kind, object)| server.set(kind, object));
            relay = plan.is_relayed.then(|| start_relay(scene, server));
        });
    let mut chaos = Chaos::new(server, relay);
    let mut changes = Changes::new(&objects, cluster, seed);
    let (questions, mut random) = (questions(&cluster), Random::new(seed));
    let mut attempts = Attempts::default();
    wait_in_step(&world, &mut changes, &questions, &mut attempts);
    let resets_before = own_resets(&world);
    let traffic = Traffic::begin(&world, seed);

    let (began, mut asked, mut met) = (Instant::now(), 0, BTreeMap::<Trouble, u64>::new());
    let mut order: Vec<Trouble> = Vec::new();
    while began.elapsed() < lasting || met.len() < troubles.len() {
        // Each in turn, in an order of chance.
        if order.is_empty() {
            order.clone_from(&troubles);
            (1..order.len()).rev().for_each(|last| order.swap(last, random.below(last + 1)));
        }
        let Some(trouble) = order.pop() else { break };
        *met.entry(trouble).or_default() += 1;
        chaos.begin(trouble, &cluster);
        let mut for_long = Duration::from_millis(500 + random.below(4000) as u64);
        if trouble == Trouble::Silence {
            // Longer than the node believes in it, or the relay.
            for_long += Duration::from_secs(4);
        }
        // What an amnesiac forgot is not to be heard of by other ways.
        let server = (trouble != Trouble::Amnesia).then_some(&chaos.server);
        let about = (&*questions, &mut random, &mut attempts);
        asked += change_and_ask(&world, (&mut changes, server), about, for_long);
        // A relay tells what it knows meanwhile.
        let is_missed = trouble == Trouble::Death && !plan.is_relayed;
        if is_missed && for_long > Duration::from_secs(2) {
            // The summary may name a list that is held from before.
            let status = world.status();
            assert_eq!(status.verdict.level, Level::Degraded, "{:?}", status.verdict);
            let kinds = status.kubernetes.expect("followed").kinds;
            assert!(kinds.iter().any(|kind| kind.last_error.is_some()), "{kinds:?}");
        }
        chaos.end(trouble, &mut changes, &world.scene);
        // Now and then trouble meets trouble.
        if random.one_in(3) {
            continue;
        }
        wait_in_step(&world, &mut changes, &questions, &mut attempts);
        asked += questions.len() as u64;
    }
    wait_in_step(&world, &mut changes, &questions, &mut attempts);
    traffic.goes_on();
    let told = traffic.end_whole();
    assert_eq!(own_resets(&world), resets_before);
    world.assert_kernel_forwarded_nothing();
    assert_eq!(world.ask_json(&["audit"])["found"], 0);

    // All is well and followed, so that nothing fails any more.
    let (failures, measured) = (failures(&world), failures_measured(&world));
    assert_eq!(failures, measured, "status and metrics");
    let log = std::fs::read_to_string(world.node.process().log()).expect("its log");
    for reason in plan.reasons {
        assert!(failures.get(*reason).is_some_and(|count| *count > 0), "{reason}: {failures:?}");
    }
    for (reason, count) in failures.iter().filter(|(_, count)| **count > 0) {
        let line = format!("reason=\"{reason}\"");
        assert!(log.contains(&line), "{count} times {line} and no line of log");
    }
    let servers = world.status().kubernetes.expect("followed").servers;
    assert!(servers.iter().all(|server| server.requests > 0), "each is asked: {servers:?}");
    println!(
        "{}: seed {seed}, {:.0} s: {met:?}, {:?}, failures {failures:?}; {told}, no reset; {asked} \
         verdicts; {attempts:?} of real connections; {} lines of log",
        plan.shape.label,
        began.elapsed().as_secs_f64(),
        chaos.server.faults.met(),
        log.lines().count(),
    );
}
