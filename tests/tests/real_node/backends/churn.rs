//! Connections while backends come and go, one every 100 ms: none to a living backend breaks, and none
//! goes on whose backend is gone, by what clients saw of each.
//!
//! `XSKIFF_BACKENDS_CONNECTIONS` (500; 10,000) are held over `XSKIFF_BACKENDS_COUNT` (30; 100) backends for
//! `XSKIFF_BACKENDS_SECONDS` (10; 60); `XSKIFF_BACKENDS_SEED` chooses who comes and goes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use xskiff::demo::scene::to;
use xskiff::lab::agent::report::Connection;
use xskiff::lab::{Agent, Namespace};
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::root_or_skip;

use super::{ADDRESS, Backends, HTTP, State};
use crate::churn::address;
use crate::clients::Client;
use crate::world::{PATIENCE, number_from};

/// Between two changes.
const EVERY: Duration = Duration::from_millis(100);
/// Changes between the begin of a backend's end and its end, and before its address has another pod.
const ENDING: usize = 10;
const AWAY: usize = 10;
/// One connection in so many asks all the time; the others at last.
const ACTIVE_SHARE: u64 = 10;
/// Connections of one client process.
const CONNECTIONS_EACH: u64 = 2500;

fn wall_ms() -> u64 {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    u64::try_from(elapsed.as_millis()).expect("not so late")
}

/// When backends went, by their addresses.
type Gone = BTreeMap<IpAddr, Vec<u64>>;

/// Whether the connection's backend went while it was there.
fn had_to_break(gone: &Gone, one: &Connection) -> bool {
    let of = one.server.and_then(|server| gone.get(&server));
    of.is_some_and(|times| times.iter().any(|at| (one.opened_ms..=one.until_ms).contains(at)))
}

/// Lets one come or go every 100 ms. How many came and went, and when those were gone.
fn change(backends: &mut Backends, seed: u64, seconds: u64) -> (usize, Gone) {
    let count = backends.states.len();
    let (mut random, mut gone, mut changes) = (Random::new(seed), Gone::new(), 0);
    // What is due at which turn.
    let (mut ending, mut away) = (BTreeMap::new(), BTreeMap::new());
    let began = Instant::now();
    for turn in 0.. {
        let due = EVERY * u32::try_from(turn).expect("few");
        if due.as_secs() >= seconds {
            break;
        }
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if let Some(number) = ending.remove(&turn) {
            backends.set(&[(number, State::Absent)]);
            gone.entry(address(number)).or_default().push(wall_ms());
            backends.go(number);
            away.insert(number, turn + AWAY);
        }
        let could_come: Vec<usize> =
            away.iter().filter(|(_, until)| **until <= turn).map(|(number, _)| *number).collect();
        let ready = backends.count_of(State::Ready);
        let comes = !could_come.is_empty() && (random.one_in(2) || 2 * ready <= count);
        if comes {
            let number = could_come[random.below(could_come.len())];
            away.remove(&number);
            backends.come(number);
            backends.set(&[(number, State::Ready)]);
            changes += 1;
        } else if 2 * ready > count {
            let ready: Vec<usize> =
                (0..count).filter(|number| backends.state(*number) == State::Ready).collect();
            let number = ready[random.below(ready.len())];
            backends.set(&[(number, State::Ending)]);
            ending.insert(turn + ENDING, number);
            changes += 1;
        }
    }
    (changes, gone)
}

#[test]
fn no_connection_to_a_living_backend_breaks_while_others_come_and_go() {
    if !root_or_skip("backends that come and go") {
        return;
    }
    let connections = number_from("XSKIFF_BACKENDS_CONNECTIONS", 500);
    let count = usize::try_from(number_from("XSKIFF_BACKENDS_COUNT", 30)).expect("few");
    let seconds = number_from("XSKIFF_BACKENDS_SECONDS", 10);
    let seed = number_from("XSKIFF_BACKENDS_SEED", 20_262);
    println!("seed {seed}");
    let mut backends = Backends::start("backends", count);
    for number in 0..count {
        backends.come(number);
    }
    let all: Vec<(usize, State)> = (0..count).map(|number| (number, State::Ready)).collect();
    backends.set(&all);
    // All pods of a namespace have one server, which tells by which address it was asked.
    let serve = |pods: &Namespace| {
        pods.agent(&["serve", "--http=[::]:8080", "--name=web"]).expect("a server")
    };
    let servers: Vec<Agent> = backends.churn.pods.iter().map(serve).collect();
    servers.iter().for_each(|server| server.wait_ready(PATIENCE).expect("it listens"));
    let patience = PATIENCE + Duration::from_millis(connections);
    let clients: Vec<Client> = (0..connections)
        .step_by(usize::try_from(CONNECTIONS_EACH).expect("small"))
        .map(|first| {
            let held = CONNECTIONS_EACH.min(connections - first);
            let of = (held, held.div_ceil(ACTIVE_SHARE));
            let more = ["--again", "--interval-ms=500"];
            let client = Client::begin(backends.client(), &to(ADDRESS, HTTP), of, &more);
            client.wait_open(patience);
            client
        })
        .collect();

    let (changes, gone) = change(&mut backends, seed, seconds);
    // Until everybody has those for gone who went last. Nobody may be asked before the end: what a client
    // tells of its connections would be passed over.
    std::thread::sleep(EVERY * 10);
    let (mut broke, mut answers, mut requests) = (Vec::new(), Vec::new(), 0);
    for client in clients {
        let (last, ended, whole) = client.end_told(patience);
        assert_eq!(last.refused, 0, "a new connection was refused: {last:?}");
        requests += last.requests;
        broke.extend(ended);
        answers.extend(whole);
    }
    let went: usize = gone.values().map(Vec::len).sum();
    println!(
        "seed {seed}: {changes} of {count} backends came or began to end in {seconds} s, {went} went; \
         of {connections} connections {} answer, {} broke as their backends went; {requests} requests",
        answers.len(),
        broke.len()
    );
    let wrong: Vec<&Connection> = broke.iter().filter(|one| !had_to_break(&gone, one)).collect();
    assert!(wrong.is_empty(), "{} broke whose backend lives: {wrong:?}", wrong.len());
    let left: Vec<&Connection> = answers.iter().filter(|one| had_to_break(&gone, one)).collect();
    assert!(left.is_empty(), "{} answer whose backend is gone: {left:?}", left.len());
    let idle = broke.iter().filter(|one| one.server.is_some()).count();
    assert!(idle > 0 && went > 0, "nothing was shown");
    backends.world().assert_kernel_forwarded_nothing();
}
