//! The property: whatever the cluster, the compiled tables let pass what the model lets pass.
//!
//! A case is one packet in one state of one cluster, judged by the model and by the tables. A
//! scenario is a cluster and up to two changes to it, each compiled on top of the state before.
//! `XSKIFF_POLICY_SEED=N` chooses other scenarios, `XSKIFF_POLICY_SCENARIOS=N` more of them.

use std::cell::Cell;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use xskiff_tests::policy_model::{Objects, Packet};

use crate::clusters::{Scenario, packets, scenario};
use crate::nodes::{End, Nodes, state};

/// Scenarios without a wish.
pub const SCENARIOS: u32 = 1_500;
/// Cases that these must come to.
const CASES_MIN: u64 = 100_000;
const SEED: u64 = 20_261_128;

fn wish(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

pub fn seed() -> u64 {
    wish("XSKIFF_POLICY_SEED").unwrap_or(SEED)
}

/// A runner whose scenarios follow from `seed` alone.
pub fn runner(seed: u64, scenarios: u32) -> TestRunner {
    let config = Config {
        cases: scenarios,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// The first packet about which tables and model differ, and what they say; else how many agree.
pub fn difference(objects: &Objects, nodes: &Nodes) -> Result<u64, String> {
    let in_force = nodes.in_force();
    let mut agreed = 0;
    for packet in packets(objects) {
        let meant = objects.judge(&packet);
        let judged = in_force.judge(&packet);
        if judged != meant {
            return Err(told(&packet, &judged, &meant));
        }
        let end = in_force.pass(&packet);
        if end != End::meant(meant) {
            return Err(told(&packet, &end, &meant));
        }
        agreed += 1;
    }
    Ok(agreed)
}

fn told(packet: &Packet, tables: &dyn std::fmt::Debug, model: &dyn std::fmt::Debug) -> String {
    format!("{packet:?}: tables say {tables:?}, objects {model:?}")
}

/// Plays a scenario; the number of cases.
fn play(scenario: &Scenario) -> Result<u64, String> {
    let mut objects = scenario.objects.clone();
    let compiled = |objects: &Objects, previous: Option<&Nodes>| {
        let state = state(objects).map_err(|invalid| format!("refused: {invalid}"))?;
        Ok::<_, String>(Nodes::new(objects, &state, previous))
    };
    let mut nodes = compiled(&objects, None)?;
    let mut cases = difference(&objects, &nodes)?;
    for (number, change) in scenario.changes.iter().enumerate() {
        change.apply(number, &mut objects);
        nodes = compiled(&objects, Some(&nodes))?;
        cases += difference(&objects, &nodes)
            .map_err(|told| format!("after change {number}: {told}\n{objects:?}"))?;
    }
    Ok(cases)
}

#[test]
fn tables_let_pass_what_the_objects_let_pass() {
    let seed = seed();
    let scenarios = wish("XSKIFF_POLICY_SCENARIOS")
        .map_or(SCENARIOS, |wish| u32::try_from(wish).expect("fewer scenarios than 2^32"));
    let (cases, states) = (Cell::new(0), Cell::new(0));
    let outcome = runner(seed, scenarios).run(&scenario(), |scenario| {
        let played = play(&scenario).map_err(TestCaseError::fail)?;
        cases.set(cases.get() + played);
        states.set(states.get() + 1 + scenario.changes.len());
        Ok(())
    });
    let (cases, states) = (cases.get(), states.get());
    println!("XSKIFF_POLICY_SEED={seed}: {cases} cases in {states} states of {scenarios} clusters");
    if let Err(error) = outcome {
        panic!("repeat with XSKIFF_POLICY_SEED={seed}: {error}");
    }
    assert!(scenarios < SCENARIOS || cases >= CASES_MIN, "only {cases} cases");
}
