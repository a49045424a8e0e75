//! Translated connections outlive a node process that stops for three seconds.
//! `XSKIFF_HELD_CONNECTIONS` is their number.

use std::time::Duration;

use nix::sys::signal::Signal;
use xskiff::demo::scene::{BALANCER, FAMILIES, HTTP, PODS, to};
use xskiff::lab::agent::report::{Held, Report};
use xskiff::lab::{Agent, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World, number_from, tcp_counters};

/// Connections of one client process: so many are asked at once in the end, within its time.
const CONNECTIONS_PER_CLIENT: u64 = 500;

/// One in so many goes on asking while the node stands still; the others are idle.
const ACTIVE_SHARE: u64 = 10;

/// How long the node process stands still.
const STOPPED: Duration = Duration::from_secs(3);

/// A client process that holds connections to the service.
pub struct Client {
    agent: Agent,
    held: u64,
}

impl Client {
    /// Starts one that holds `held`, by IPv4 if `number` is even, and waits until it does.
    pub fn start(world: &World, number: usize, held: u64) -> Self {
        let client = Self::begin(world, BALANCER[number % FAMILIES.len()], held, &[]);
        client.wait_open(PATIENCE);
        client
    }

    /// Starts one that holds `held` to an address of the service.
    pub fn begin(world: &World, service: &str, held: u64, more: &[&str]) -> Self {
        let target = to(service, HTTP[0]);
        let connections = format!("--connections={held}");
        let active = format!("--active={}", held.div_ceil(ACTIVE_SHARE));
        let arguments = [&["hold", &*target, &*connections, &*active], more].concat();
        let agent = world.scene.client.agent(&arguments).expect("a client");
        Self { agent, held }
    }

    pub fn wait_open(&self, patience: Duration) {
        let is_done =
            |now: &Held| now.refused > 0 || now.alive == self.held && now.requests >= self.held;
        let held = self.wait_for("open connections", patience, is_done);
        assert_eq!(held.refused, 0, "{held:?}");
    }

    /// Waits until each of its active connections is answered again, on average.
    pub fn goes_on(&self) {
        let now = self.wait("a report", |_| true).requests;
        let active = self.held.div_ceil(ACTIVE_SHARE);
        self.wait("that it goes on", |held| held.requests >= now + 3 * active);
    }

    /// Connections that ask all the time.
    fn active(&self) -> i64 {
        i64::try_from(self.held.div_ceil(ACTIVE_SHARE)).expect("small")
    }

    fn wait(&self, awaited: &'static str, done: impl Fn(&Held) -> bool) -> Held {
        self.wait_for(awaited, PATIENCE, done)
    }

    fn wait_for(
        &self,
        awaited: &'static str,
        patience: Duration,
        done: impl Fn(&Held) -> bool,
    ) -> Held {
        let report = self.agent.expect(awaited, patience, |report| match report {
            Report::Held(held) => done(&held).then_some(held),
            _ => None,
        });
        report.unwrap_or_else(|error| panic!("{error}"))
    }

    /// How its connections stand after each was asked once more.
    pub fn end(self) -> Held {
        self.end_within(PATIENCE)
    }

    pub fn end_within(self, patience: Duration) -> Held {
        let reports = self.agent.stop_within(patience).unwrap_or_else(|error| panic!("{error}"));
        reports.into_iter().rev().find_map(last_held).expect("a last report")
    }
}

/// Resets that left a stack, or ended a connection in it, in every namespace but the node's.
pub fn resets(world: &World) -> i64 {
    let hosts = [&world.scene.client, world.scene.pod(PODS[0]), world.scene.pod(PODS[1])];
    let counters = hosts.into_iter().chain([&world.scene.node]).map(tcp_counters);
    counters.map(|tcp| tcp["OutRsts"] + tcp["EstabResets"]).sum()
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
        sizes.enumerate().map(|(number, held)| Client::start(&world, number, held)).collect();
    let count = world.ask_json(&["ct", "count", "--proto", "tcp", "--service", "shop/web"]);
    assert!(count.as_u64().is_some_and(|count| count >= wanted), "{count} translated");
    let before = world.status();
    let (resets_before, repeated_before) = (resets(&world), retransmissions(&world));
    let active_in_all: i64 = clients.iter().map(Client::active).sum();

    world.node.signal(Signal::SIGSTOP).expect("stopped");
    assert!(wait_until(PATIENCE, || is_stopped(before.pid)).is_some());
    std::thread::sleep(STOPPED);
    assert!(is_stopped(before.pid));
    let meanwhile: Vec<Held> = clients
        .iter()
        .map(|client| client.agent.reports().filter_map(last_held).last().unwrap_or_default())
        .collect();
    world.node.signal(Signal::SIGCONT).expect("going on");

    for (client, meanwhile) in clients.iter().zip(meanwhile) {
        let active = client.held.div_ceil(ACTIVE_SHARE);
        client.wait("that it goes on", |now| now.requests >= meanwhile.requests + active);
    }
    // What came meanwhile waited in a ring or was dropped, which TCP mends; it was not passed to a
    // kernel that knows nothing of these connections.
    let after = world.status();
    assert_eq!(after.pid, before.pid, "the same process");
    assert_eq!(after.xdp.passed_on_stall, 0, "{:?}", after.xdp);
    let repeated = retransmissions(&world) - repeated_before;
    assert!(repeated >= active_in_all, "only {repeated} segments were sent again");
    assert_eq!(resets(&world), resets_before, "resets in the clients', pods' and node's stacks");

    let mut answered = 0;
    for client in clients {
        let (held, last) = (client.held, client.end());
        assert_eq!((last.resets, last.ended, last.refused), (0, 0, 0), "{last:?}");
        assert_eq!((last.alive, last.answered_last), (held, held), "{last:?}");
        answered += last.answered_last;
    }
    assert_eq!(answered, wanted);
    world.assert_kernel_forwarded_nothing();
    println!(
        "{answered} of {wanted} connections answer after {STOPPED:?}; no reset, {repeated} \
         segments sent again"
    );
}

fn last_held(stamped: xskiff::lab::Stamped) -> Option<Held> {
    match stamped.report {
        Report::Held(held) => Some(held),
        _ => None,
    }
}
