//! Calls about one container that overlap: what is left is what one after the other would have left.
//!
//! `XSKIFF_CNI_SEED` (chosen and told otherwise) is the seed of who begins first and by how much,
//! `XSKIFF_CNI_ROUNDS` (40) the number of rounds.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use xskiff::lab::wait_until;
use xskiff_tests::random::Random;
use xskiff_tests::xskiff_binary::{number_from, root_or_skip};

use crate::cluster::{Cluster, PATIENCE};
use crate::driver::{Call, Container, Network, Refusal};
use crate::life::attached;

/// By how much one begins before the other at most: longer than a call takes.
const APART_US_MAX: usize = 12_000;

struct Overlap {
    cluster: Cluster,
    network: Network,
    container: Container,
    result: Value,
    random: Random,
    seed: u64,
    rounds: usize,
}

type Answers = [Result<String, Refusal>; 2];

impl Overlap {
    fn begin(label: &str) -> Self {
        let (cluster, network, container, result) = attached(label);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let seed = number_from("XSKIFF_CNI_SEED", u64::from(now.subsec_micros()));
        let rounds = usize::try_from(number_from("XSKIFF_CNI_ROUNDS", 40)).expect("few");
        println!("XSKIFF_CNI_SEED={seed} XSKIFF_CNI_ROUNDS={rounds}");
        let random = Random::new(seed);
        Self { cluster, network, container, result, random, seed, rounds }
    }

    fn prepared<'a>(&'a self, verb: &'a str) -> Call<'a> {
        let more = json!({ "prevResult": self.result });
        self.network.our_call(&self.cluster.node, verb, Some(&self.container), more)
    }

    fn call(&self, verb: &str) -> Result<String, Refusal> {
        self.prepared(verb).answer()
    }

    /// Both verbs, one of them a little later.
    fn both(&mut self, verbs: [&str; 2]) -> Answers {
        let later = self.random.below(2);
        let apart = Duration::from_micros(self.random.below(APART_US_MAX) as u64);
        let [first, second] = verbs.map(|verb| self.prepared(verb));
        std::thread::scope(|scope| {
            let begin = |place: usize, call: Call<'_>| {
                if place == later {
                    std::thread::sleep(apart);
                }
                call.answer()
            };
            let calls = [(0, first), (1, second)]
                .map(|(place, call)| scope.spawn(move || begin(place, call)));
            calls.map(|call| call.join().expect("a call"))
        })
    }

    fn end(self) {
        let Self { cluster, network, container, result, .. } = self;
        network.delete(&cluster.node, &container, Some(&result)).expect("gone");
        assert!(wait_until(PATIENCE, || !cluster.state().contains("veth")).is_some());
        assert_eq!((cluster.endpoints().len(), cluster.leased()), (0, 0));
        cluster.wait_well();
    }
}

#[test]
fn two_adds_for_one_container_at_once_are_one_pod() {
    if !root_or_skip("two ADDs at once") {
        return;
    }
    let mut overlap = Overlap::begin("two-adds");
    let with = overlap.cluster.served();
    for round in 0..overlap.rounds / 2 {
        overlap.call("DEL").expect("gone");
        for answer in overlap.both(["ADD", "ADD"]) {
            let said = answer.unwrap_or_else(|refusal| panic!("round {round}: {refusal:?}"));
            let said: Value = serde_json::from_str(&said).expect("a result");
            assert_eq!(said, overlap.result, "round {round}");
        }
        overlap.call("CHECK").unwrap_or_else(|refusal| panic!("round {round}: {refusal:?}"));
        overlap.cluster.settle();
        assert_eq!((overlap.cluster.endpoints().len(), overlap.cluster.served()), (1, with));
        for answer in overlap.both(["DEL", "DEL"]) {
            assert_eq!(answer.expect("gone"), "", "round {round}");
        }
        overlap.cluster.settle();
        let without = (with.0 - 1, with.1 - 1);
        assert_eq!((overlap.cluster.endpoints().len(), overlap.cluster.served()), (0, without));
    }
    overlap.end();
}

#[test]
fn an_add_and_a_del_of_one_container_at_once_end_as_one_after_the_other() {
    if !root_or_skip("ADD against DEL") {
        return;
    }
    let mut overlap = Overlap::begin("add-del");
    let with = overlap.cluster.served();
    let without = (with.0 - 1, with.1 - 1);
    let (mut stayed, mut refused) = (0, 0);
    for round in 0..overlap.rounds {
        // It may be there already, or not.
        let was_there = overlap.random.one_in(2);
        overlap.call(if was_there { "ADD" } else { "DEL" }).expect("as it is to begin");
        let [added, deleted] = overlap.both(["ADD", "DEL"]);
        let told = format!("seed {}, round {round}: {added:?}", overlap.seed);
        assert_eq!(deleted.expect("DEL ends in no error"), "", "{told}");
        overlap.cluster.settle();
        let is_there = overlap.cluster.endpoints().len() == 1;
        stayed += usize::from(is_there);
        match added {
            Ok(said) => {
                let said: Value = serde_json::from_str(&said).expect("a result");
                assert_eq!(said, overlap.result, "{told}");
            }
            // It was taken away before it was there: as if it had come first.
            Err(refusal) => {
                assert!(!is_there && refusal.text.contains("removed"), "{told}");
                refused += 1;
            }
        }
        // Whatever stands stands whole.
        assert_eq!(overlap.cluster.served(), if is_there { with } else { without }, "{told}");
        assert_eq!(overlap.call("CHECK").is_ok(), is_there, "{told}");
    }
    println!("{} rounds: it stayed {stayed} times, ADD was refused {refused}", overlap.rounds);
    overlap.call("ADD").expect("and it can be added");
    assert_eq!(overlap.cluster.served(), with);
    overlap.end();
}
