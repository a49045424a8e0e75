//! What the property must catch: each mutation makes the compiled tables wrong in one way, and some
//! scenario of the property's budget must show it.
//!
//! Nothing of this is in the product. Most mutations change the objects that the compiler is given,
//! so that right code compiles what wrong code would have; the others change what was compiled. The
//! model sees the objects as they are.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;

use dataplane::policy::{Policy, PortRule, VerdictTable};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{TestCaseError, TestError};
use xskiff_tests::policy_model::Objects;

use crate::clusters::{Scenario, scenario};
use crate::nodes::{Node, Nodes, state};
use crate::property::{SCENARIOS, difference, runner, seed};
use crate::spoilt_objects::OBJECTS;

/// A way to be wrong.
pub enum Spoil {
    /// The compiler is given other objects.
    Objects(fn(&mut Objects)),
    /// The compiled verdicts are changed.
    Policy(fn(&mut Policy)),
    /// The second node has something of the first, which was compiled for the state before.
    Stale(fn(&mut Node, &Node)),
}

static COMPILED: [(&str, Spoil); 8] = [
    ("tables of ingress and egress are swapped", Spoil::Policy(swap_directions)),
    ("rules for everybody are lost", Spoil::Policy(lose_any_peer)),
    ("rules for particular peers are lost", Spoil::Policy(lose_peers)),
    ("ports begin one too high", Spoil::Policy(begin_higher)),
    ("every protocol is allowed", Spoil::Policy(allow_every_protocol)),
    ("a subject that nothing is allowed is open", Spoil::Policy(open_the_denied)),
    (
        "identities are those of the state before",
        Spoil::Stale(|node, before| {
            node.compiled.identities = Arc::clone(&before.compiled.identities);
        }),
    ),
    (
        "policy is that of the state before",
        Spoil::Stale(|node, before| node.compiled.policy = Arc::clone(&before.compiled.policy)),
    ),
];

fn each_table(policy: &mut Policy, change: fn(&mut VerdictTable)) {
    for subject in policy.subjects.values_mut() {
        for table in subject.ingress.iter_mut().chain(&mut subject.egress) {
            change(Arc::make_mut(table));
        }
    }
}

fn each_rule(policy: &mut Policy, change: fn(&mut PortRule)) {
    for subject in policy.subjects.values_mut() {
        for table in subject.ingress.iter_mut().chain(&mut subject.egress) {
            let table = Arc::make_mut(table);
            let rows = table.by_peer.values_mut();
            rows.flat_map(Arc::make_mut).for_each(change);
            table.any_peer.iter_mut().for_each(change);
        }
    }
}

fn swap_directions(policy: &mut Policy) {
    for subject in policy.subjects.values_mut() {
        std::mem::swap(&mut subject.ingress, &mut subject.egress);
    }
}

fn lose_any_peer(policy: &mut Policy) {
    each_table(policy, |table| table.any_peer = Box::default());
}

fn lose_peers(policy: &mut Policy) {
    each_table(policy, |table| table.by_peer.clear());
}

fn begin_higher(policy: &mut Policy) {
    const EVERY: RangeInclusive<u16> = 0..=u16::MAX;
    each_rule(policy, |rule| {
        if rule.l4_ports != EVERY {
            rule.l4_ports = rule.l4_ports.start() + 1..=*rule.l4_ports.end();
        }
    });
}

fn allow_every_protocol(policy: &mut Policy) {
    each_rule(policy, |rule| rule.protocol = None);
}

fn open_the_denied(policy: &mut Policy) {
    let allows =
        |table: &Arc<VerdictTable>| !table.any_peer.is_empty() || !table.by_peer.is_empty();
    for subject in policy.subjects.values_mut() {
        subject.ingress = subject.ingress.take().filter(allows);
        subject.egress = subject.egress.take().filter(allows);
    }
}

/// `objects` as the spoilt nodes have them; `None` when the compiler refuses what it is given.
fn spoilt(spoil: &Spoil, objects: &Objects, before: Option<&Nodes>) -> Option<Nodes> {
    let mut given = objects.clone();
    if let Spoil::Objects(change) = spoil {
        change(&mut given);
    }
    let mut nodes = Nodes::new(objects, &state(&given).ok()?, before);
    match spoil {
        Spoil::Objects(_) => {}
        Spoil::Policy(change) => {
            nodes.each().for_each(|node| change(Arc::make_mut(&mut node.compiled.policy)));
        }
        Spoil::Stale(change) => {
            nodes.each().zip(before?.all()).for_each(|(node, before)| change(node, before));
        }
    }
    Some(nodes)
}

/// The first difference that `spoil` makes in a cluster and its changes.
fn caught(spoil: &Spoil, scenario: &Scenario) -> Option<String> {
    let mut objects = scenario.objects.clone();
    let mut before: Option<Nodes> = None;
    for number in 0..=scenario.changes.len() {
        if let Some(change) = number.checked_sub(1).and_then(|last| scenario.changes.get(last)) {
            change.apply(number, &mut objects);
        }
        let spoilt = spoilt(spoil, &objects, before.as_ref());
        let found = spoilt.and_then(|nodes| difference(&objects, &nodes).err());
        if found.is_some() {
            return found;
        }
        let state = state(&objects).expect("what is generated is valid");
        before = Some(Nodes::new(&objects, &state, before.as_ref()));
    }
    None
}

/// How many scenarios it takes, and the difference.
fn first_caught(spoil: &Spoil) -> Option<(u32, String)> {
    let mut runner = runner(seed(), SCENARIOS);
    (1..=SCENARIOS).find_map(|number| {
        let tree = scenario().new_tree(&mut runner).expect("scenarios are never rejected");
        Some((number, caught(spoil, &tree.current())?))
    })
}

#[test]
fn every_mutation_is_caught() {
    let mut report = String::new();
    let mut missed = Vec::new();
    let all = OBJECTS.iter().chain(&COMPILED);
    for (name, spoil) in all {
        match first_caught(spoil) {
            Some((number, told)) => {
                writeln!(report, "{number:>4}  {name}\n      {told}").expect("text");
            }
            None => missed.push(name),
        }
    }
    println!("XSKIFF_POLICY_SEED={}: caught by cluster number\n{report}", seed());
    assert!(missed.is_empty(), "{SCENARIOS} clusters show nothing of: {missed:#?}");
}

#[test]
fn a_difference_shrinks_to_few_objects() {
    let (_, spoil) = OBJECTS.iter().find(|(name, _)| *name == "except is lost").expect("a name");
    let outcome = runner(seed(), SCENARIOS).run(&scenario(), |scenario| {
        caught(spoil, &scenario).map_or(Ok(()), |told| Err(TestCaseError::fail(told)))
    });
    let Err(TestError::Fail(reason, minimal)) = outcome else { panic!("not caught: {outcome:?}") };
    println!("{reason}\n{minimal:?}");
    let objects = &minimal.objects;
    let few = objects.namespaces.is_empty() && objects.pods.len() <= 2;
    assert!(few && objects.policies.len() == 1, "{minimal:?}");
    assert!(minimal.changes.is_empty(), "{:?}", minimal.changes);
}
