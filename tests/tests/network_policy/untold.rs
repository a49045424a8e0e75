//! Pods whose interfaces are there before anybody has told of them: they do what `policy.unknown_pods`
//! says, until they are told.

use k8s_openapi::api::core::v1::Pod;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use xskiff_tests::policy_model::{Objects, UnknownPods, pod_addresses};

use crate::changes::Change;
use crate::clusters::{Scenario, scenario};
use crate::nodes::{Nodes, state};
use crate::property::{SCENARIOS, difference, runner, seed};

const MEANINGS: [UnknownPods; 3] =
    [UnknownPods::ByNamespace, UnknownPods::Deny, UnknownPods::Allow];

/// Pods that have an address which no other pod has, or had.
fn with_own_address(objects: &Objects) -> Vec<(String, String)> {
    let is_sole = |pod: &&Pod| {
        let addresses = pod_addresses(pod);
        let others = objects.pods.iter().filter(|other| !std::ptr::eq(*other, *pod));
        let mut others = others.flat_map(pod_addresses);
        addresses.iter().any(|own| objects.owner(*own).pod().is_some())
            && !others.any(|other| addresses.contains(&other))
    };
    let name = |pod: &Pod| {
        let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        (namespace, pod.metadata.name.clone().expect("a name"))
    };
    objects.pods.iter().filter(is_sole).map(name).collect()
}

/// Whether it gives no address of a pod to another.
fn is_of_policy(change: &Change) -> bool {
    matches!(
        change,
        Change::NamespaceLabels(..)
            | Change::NamespaceGone(_)
            | Change::PolicyAdded(_)
            | Change::PolicyGone(_)
            | Change::PolicySays(..)
    )
}

struct Play {
    objects: Objects,
    nodes: Option<Nodes>,
    cases: u64,
}

impl Play {
    /// Compiles what is told now on top of what was, and asks about every packet.
    fn go_on(&mut self) -> Result<(), String> {
        let state = state(&self.objects).map_err(|invalid| format!("refused: {invalid}"))?;
        let nodes = Nodes::new(&self.objects, &state, self.nodes.as_ref());
        let told = difference(&self.objects, &nodes);
        self.cases += told.map_err(|told| format!("{told}\n{:?}", self.objects))?;
        self.nodes = Some(nodes);
        Ok(())
    }
}

/// One of them, or all, are untold; policies change; the setting does; they are told.
fn play(scenario: &Scenario, meaning: usize, which: Option<&Index>) -> Result<u64, String> {
    let mut play = Play { objects: scenario.objects.clone(), nodes: None, cases: 0 };
    let mut untold = with_own_address(&play.objects);
    if let Some(which) = which.filter(|_| !untold.is_empty()) {
        untold = vec![untold.swap_remove(which.index(untold.len()))];
    }
    play.objects.untold.clone_from(&untold);
    play.objects.unknown_pods = MEANINGS[meaning];
    play.go_on()?;
    for (number, change) in scenario.changes.iter().filter(|one| is_of_policy(one)).enumerate() {
        change.apply(number, &mut play.objects);
        play.go_on()?;
    }
    play.objects.unknown_pods = MEANINGS[(meaning + 1) % MEANINGS.len()];
    play.go_on()?;
    play.objects.untold.clear();
    play.go_on()?;
    // Forgotten by whoever told of them.
    play.objects.untold = untold;
    play.go_on()?;
    Ok(play.cases)
}

#[test]
fn a_pod_that_nobody_told_of_may_what_is_configured_until_it_is_told() {
    let played =
        (scenario(), 0..MEANINGS.len(), proptest::option::of(proptest::arbitrary::any::<Index>()));
    let outcome = runner(seed(), SCENARIOS / 10).run(&played, |(scenario, meaning, which)| {
        let cases = play(&scenario, meaning, which.as_ref()).map_err(TestCaseError::fail)?;
        // Clusters without pods say nothing.
        proptest::prop_assume!(cases > 0);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("repeat with XSKIFF_POLICY_SEED={}: {error}", seed());
    }
}
