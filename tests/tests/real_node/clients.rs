//! Client processes that hold connections or UDP flows, and what they say of them.

use std::time::Duration;

use xskiff::lab::agent::report::{Connection, FlowsHeld, Held, Report};
use xskiff::lab::{Agent, Namespace};

use crate::world::{PATIENCE, World, tcp_counters};

/// One that holds TCP connections, some of which ask all the time.
pub struct Client {
    agent: Agent,
    held: u64,
    active: u64,
}

impl Client {
    /// Starts one that holds so many to `target`, of which so many are active, and waits until it
    /// does.
    pub fn start(host: &Namespace, target: &str, held: u64, active: u64) -> Self {
        let client = Self::begin(host, target, (held, active), &[]);
        client.wait_open(PATIENCE);
        client
    }

    /// Starts one with further arguments, and waits for nothing.
    pub fn begin(
        host: &Namespace,
        target: &str,
        (held, active): (u64, u64),
        more: &[&str],
    ) -> Self {
        let counts = [format!("--connections={held}"), format!("--active={active}")];
        let words = [&["hold", target, &*counts[0], &*counts[1]], more].concat();
        let agent = host.agent(&words).expect("a client");
        Self { agent, held, active }
    }

    /// Waits until every connection is open, and was answered once.
    pub fn wait_open(&self, patience: Duration) {
        let is_done =
            |now: &Held| now.refused > 0 || now.alive == self.held && now.requests >= self.held;
        let held = self.wait("open connections", patience, is_done);
        assert_eq!(held.refused, 0, "{held:?}");
    }

    /// Connections that ask all the time.
    pub fn active(&self) -> u64 {
        self.active
    }

    /// Requests that were answered, as it says next.
    pub fn requests(&self) -> u64 {
        self.wait("a report", PATIENCE, |_| true).requests
    }

    /// Requests that were answered, as it has said last.
    pub fn requests_told(&self) -> u64 {
        let told = self.agent.reports().filter_map(|stamped| held(stamped.report));
        told.last().map_or(0, |held| held.requests)
    }

    /// Waits until each of its active connections was answered so often since there were `before`
    /// answers, on average.
    pub fn wait_for_answers(&self, before: u64, each: u64) {
        let wanted = before + each * self.active;
        self.wait("that it goes on", PATIENCE, |held| held.requests >= wanted);
    }

    /// Waits until its active connections are answered from now on.
    pub fn goes_on(&self) {
        self.wait_for_answers(self.requests(), 3);
    }

    fn wait(
        &self,
        awaited: &'static str,
        patience: Duration,
        done: impl Fn(&Held) -> bool,
    ) -> Held {
        let report = self.agent.expect(awaited, patience, |report| held(report).filter(&done));
        report.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asks every connection once more: each is there and answered. How they stand.
    pub fn end_whole(self, patience: Duration) -> Held {
        let wanted = self.held;
        let reports = self.agent.stop_within(patience).unwrap_or_else(|error| panic!("{error}"));
        let last = reports.into_iter().rev().find_map(|stamped| held(stamped.report));
        let last = last.expect("a last report");
        assert_eq!((last.resets, last.ended, last.refused), (0, 0, 0), "{last:?}");
        assert_eq!((last.alive, last.answered_last), (wanted, wanted), "{last:?}");
        last
    }

    /// The same of one that opens connections again, which may have broken: how they stand, which
    /// broke, and which are answered. Only what came since the last question is told.
    pub fn end_told(self, patience: Duration) -> (Held, Vec<Connection>, Vec<Connection>) {
        let reports = self.agent.stop_within(patience).unwrap_or_else(|error| panic!("{error}"));
        let (mut last, mut broke, mut answers) = (None, Vec::new(), Vec::new());
        for stamped in reports {
            match stamped.report {
                Report::Broke(one) => broke.push(one),
                Report::Answers(one) => answers.push(one),
                other => last = held(other).or(last),
            }
        }
        (last.expect("a last report"), broke, answers)
    }
}

fn held(report: Report) -> Option<Held> {
    if let Report::Held(held) = report { Some(held) } else { None }
}

/// One that holds UDP flows to an echo.
pub struct Datagrams {
    agent: Agent,
    flows: u64,
    active: u64,
}

impl Datagrams {
    /// Starts one that holds `flows` from `sources`, of which `seed` chooses so many to be active.
    pub fn begin(
        host: &Namespace,
        (target, sources): (&str, &str),
        (flows, active): (u64, u64),
        seed: u64,
    ) -> Self {
        let words = [
            "hold-flows".to_owned(),
            target.to_owned(),
            format!("--sources={sources}"),
            format!("--flows={flows}"),
            format!("--active={active}"),
            format!("--seed={seed}"),
            "--interval-ms=20".to_owned(),
        ];
        let words = words.each_ref().map(String::as_str);
        Self { agent: host.agent(&words).expect("a client"), flows, active }
    }

    /// Waits until every flow was echoed once.
    pub fn wait_open(&self, patience: Duration) {
        self.wait("open UDP flows", patience, |now| now.opened == self.flows);
    }

    /// Waits until its active flows are echoed from now on, on average.
    pub fn goes_on(&self) {
        let before = self.wait("a report", PATIENCE, |_| true).echoes;
        self.wait("that it goes on", PATIENCE, |now| now.echoes > before + self.active);
    }

    fn wait(
        &self,
        awaited: &'static str,
        patience: Duration,
        done: impl Fn(&FlowsHeld) -> bool,
    ) -> FlowsHeld {
        let report = self.agent.expect(awaited, patience, |report| flows(report).filter(&done));
        report.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asks every flow once more: each is echoed. How they stand.
    pub fn end_whole(self, patience: Duration) -> FlowsHeld {
        let wanted = self.flows;
        let reports = self.agent.stop_within(patience).unwrap_or_else(|error| panic!("{error}"));
        let last = reports.into_iter().rev().find_map(|stamped| flows(stamped.report));
        let last = last.expect("a last report");
        assert_eq!((last.answered_last, last.wrong), (wanted, 0), "{last:?}");
        last
    }
}

fn flows(report: Report) -> Option<FlowsHeld> {
    if let Report::FlowsHeld(held) = report { Some(held) } else { None }
}

/// Resets that left a stack, or ended a connection in it: the client's, the pods' and the node's.
pub fn resets(world: &World) -> i64 {
    resets_of([&world.scene.client, &world.scene.node].into_iter().chain(&world.scene.pods))
}

/// The same of these.
pub fn resets_of<'a>(hosts: impl Iterator<Item = &'a Namespace>) -> i64 {
    hosts.map(tcp_counters).map(|tcp| tcp["OutRsts"] + tcp["EstabResets"]).sum()
}
