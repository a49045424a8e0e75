//! All backends are replaced one after the other, and then all at the same time, under load: no request
//! over a new connection fails, no download is cut off, no datagram is lost.
//!
//! `XSKIFF_ROLLING_BACKENDS` (3; 20) are replaced `XSKIFF_ROLLING_ROUNDS` (1; 3) times, while
//! `XSKIFF_ROLLING_CLIENTS` (4; 16) make requests and ten times as many UDP flows send.

use std::time::Duration;

use xskiff::demo::scene::to;
use xskiff::lab::Agent;
use xskiff::lab::agent::report::{Echoed, Report};
use xskiff_tests::xskiff_binary::root_or_skip;

use super::{ADDRESS, Backends, ECHO, ECHO_TARGET, HTTP, HTTP_TARGET, State};
use crate::churn::address;
use crate::world::{PATIENCE, number_from};

/// How long a pod goes on to serve once its endpoint ends, as by a `preStop` hook: longer than a download.
const GRACE: Duration = Duration::from_millis(800);
/// Between the write of the slice that says that it serves no longer, and its end.
const SETTLE: Duration = Duration::from_millis(300);
/// Bytes of a download, and a second: half a second each.
const DOWNLOAD: [&str; 2] = ["--download-bytes=500000", "--rate=1000000"];

/// Pods and their servers, which end with them.
struct Rolling {
    backends: Backends,
    servers: Vec<Option<Agent>>,
}

impl Rolling {
    /// New pods, whose servers listen before any endpoint is ready.
    fn come(&mut self, numbers: &[usize]) {
        for number in numbers {
            self.backends.come(*number);
            let own = address(*number);
            let words = [
                "serve".to_owned(),
                format!("--http={own}:{HTTP_TARGET}"),
                format!("--udp={own}:{ECHO_TARGET}"),
                format!("--name=pod-{number}"),
            ];
            let server = self.backends.pod(*number).agent(&words.each_ref().map(String::as_str));
            self.servers[*number] = Some(server.expect("a server"));
        }
        for number in numbers {
            let server = self.servers[*number].as_ref().expect("it came");
            server.wait_ready(PATIENCE).expect("it listens");
        }
    }

    fn set(&mut self, numbers: &[usize], state: State) {
        let changes: Vec<_> = numbers.iter().map(|number| (*number, state)).collect();
        self.backends.set(&changes);
    }

    /// Pods that have ended long enough serve no longer, and then are gone.
    fn go(&mut self, numbers: &[usize]) {
        std::thread::sleep(GRACE);
        self.set(numbers, State::Absent);
        std::thread::sleep(SETTLE);
        for number in numbers {
            let server = self.servers[*number].take().expect("it came");
            server.stop().expect("it ends");
            self.backends.go(*number);
        }
    }

    /// As a Deployment does it: one more comes, and one of the old ones ends.
    fn one_after_the_other(&mut self, old: &[usize], new: &[usize]) {
        for (old, new) in old.iter().zip(new) {
            self.come(&[*new]);
            self.backends.set(&[(*new, State::Ready), (*old, State::Ending)]);
            self.go(&[*old]);
        }
    }

    /// None is ready for a while: those that end serve new connections as well.
    fn all_at_once(&mut self, old: &[usize], new: &[usize]) {
        self.set(old, State::Ending);
        self.come(new);
        std::thread::sleep(GRACE);
        self.set(new, State::Ready);
        self.go(old);
    }
}

/// Clients of the service.
struct Load {
    requests: Vec<Agent>,
    downloads: Vec<Agent>,
    datagrams: Agent,
}

impl Load {
    fn begin(backends: &Backends, clients: u64) -> Self {
        let client = backends.client();
        // Connections that were closed a moment ago keep no port from new ones.
        client.set(&[("net/ipv4/tcp_tw_reuse", "1")]).expect("set");
        let (http, echo) = (to(ADDRESS, HTTP), to(ADDRESS, ECHO));
        let start = |words: &[&str]| client.agent(words).expect("a client");
        let request = ["probe", &*http, "--interval-ms=5", "--timeout-ms=10000"];
        let download = ["fetch", &*http, DOWNLOAD[0], DOWNLOAD[1], "--count=100000"];
        let sockets = format!("--sockets={}", 10 * clients);
        let datagram = ["udp", &*echo, &*sockets, "--count=1000000", "--interval-ms=20"];
        Self {
            requests: (0..clients).map(|_| start(&request)).collect(),
            downloads: (0..clients).map(|_| start(&download)).collect(),
            datagrams: start(&[&datagram[..], &["--timeout-ms=5000"]].concat()),
        }
    }

    /// What went wrong, and what was done in all.
    fn end(self) -> (Vec<Report>, String) {
        let ended = |agent: Agent| {
            let reports = agent.stop().unwrap_or_else(|error| panic!("{error}"));
            reports.into_iter().map(|stamped| stamped.report)
        };
        let (mut wrong, mut requests, mut downloads, mut longest) = (Vec::new(), 0, 0, 0);
        let mut echoed = Echoed::default();
        for report in self.requests.into_iter().chain(self.downloads).flat_map(ended) {
            match &report {
                Report::ProbedInAll { attempts, failures, longest_gap_ms } => {
                    requests += *attempts;
                    longest = longest.max(*longest_gap_ms);
                    wrong.extend((*failures > 0).then_some(report));
                }
                Report::Fetched(fetched) if fetched.ok => downloads += 1,
                Report::Fetched(_) | Report::Probed { ok: false, .. } => wrong.push(report),
                _ => {}
            }
        }
        for report in ended(self.datagrams) {
            if let Report::Echoed(of) = report {
                echoed = of;
            }
        }
        let is_whole = echoed.sent > 0 && (echoed.received, echoed.wrong) == (echoed.sent, 0);
        wrong.extend((!is_whole).then_some(Report::Echoed(echoed)));
        let done = format!(
            "{requests} requests, at most {longest} ms apart; {downloads} downloads; {} datagrams",
            echoed.sent
        );
        assert!(requests > 0 && downloads > 0, "{done}");
        (wrong, done)
    }
}

#[test]
fn a_rolling_restart_of_all_backends_fails_no_request_and_loses_no_datagram() {
    if !root_or_skip("a rolling restart") {
        return;
    }
    let count = usize::try_from(number_from("XSKIFF_ROLLING_BACKENDS", 3)).expect("few");
    let rounds = number_from("XSKIFF_ROLLING_ROUNDS", 1);
    let clients = number_from("XSKIFF_ROLLING_CLIENTS", 4);
    let backends = Backends::start("rolling", 2 * count);
    let mut rolling = Rolling { backends, servers: (0..2 * count).map(|_| None).collect() };
    let (first, second): (Vec<usize>, Vec<usize>) = (0..2 * count).partition(|one| *one < count);
    rolling.come(&first);
    rolling.set(&first, State::Ready);
    let answers = || {
        let words = ["--timeout-ms=1000"];
        let fetched =
            xskiff::demo::traffic::fetch(rolling.backends.client(), &to(ADDRESS, HTTP), 1, &words);
        fetched.is_ok_and(|all| all.iter().all(|one| one.ok))
    };
    assert!(xskiff::lab::wait_until(PATIENCE, answers).is_some(), "the service answers");

    let load = Load::begin(&rolling.backends, clients);
    std::thread::sleep(GRACE);
    for _ in 0..rounds {
        rolling.one_after_the_other(&first, &second);
        rolling.all_at_once(&second, &first);
    }
    let (wrong, done) = load.end();
    println!("{count} backends replaced {} times: {done}", 2 * rounds);
    assert!(wrong.is_empty(), "{wrong:?}");
    let moved = rolling.backends.world().metrics();
    let lines = moved.lines().filter(|line| line.starts_with("xskiff_flows_chosen_anew_total"));
    let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(numbers.sum::<f64>() > 0.0, "no flow of UDP has moved");
    rolling.backends.world().assert_kernel_forwarded_nothing();
}
