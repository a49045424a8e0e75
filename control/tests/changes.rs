//! What a change of the cluster touches, change by change: addresses that change hands, pods without
//! address, Jobs, labels of pods and namespaces, policies that split identities.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use control::compile::{Affected, Compiled, NodeView};
use control::model::{
    Kind, LabelSelector, Labels, Namespace, NetworkPolicy, Object, ObjectKey, ObjectName, Operator,
    Peer, Pod, PodPhase, PolicyMode, PolicyRule, Requirement, Uid,
};
use control::store::Change;
use dataplane::address::Protocol;
use dataplane::identity::{Identity, IdentityTable};
use dataplane::policy::{Direction, Policy, Query};

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

fn pod(name: &str, label: &str, address: u32) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        uid: Uid::Absent,
        labels: Labels::from([("app", label)]),
        addresses: [ip(address)].into(),
        node: Some("one".into()),
        named_ports: Box::default(),
        host_ports: Box::default(),
        host_network: false,
        phase: PodPhase::Running,
        terminating: false,
        bandwidth: None,
        weight: Some(100),
    }
}

fn app(value: &str) -> LabelSelector {
    let operator = Operator::In([value.to_owned()].into());
    [Requirement { key: "app".into(), operator }].into_iter().collect()
}

/// `subject` of the namespace admits `peer` of it, and nobody else.
fn admits(name: &str, subject: &str, peer: &str) -> NetworkPolicy {
    let peer = Peer::Pods { namespaces: None, pods: app(peer) };
    NetworkPolicy {
        name: ObjectName::new("shop", name),
        subject: app(subject),
        ingress: Some(vec![PolicyRule { peers: vec![peer], ports: Vec::new() }]),
        egress: None,
        mode: PolicyMode::Enforce,
    }
}

fn namespace(name: &str, team: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.into(),
        labels: Labels::from([("team", team)]),
        mode: PolicyMode::Enforce,
    })
}

fn node() -> NodeView {
    NodeView { name: "one".into(), ..NodeView::default() }
}

fn set(compiled: &mut Compiled, objects: impl IntoIterator<Item = Object>) {
    objects.into_iter().for_each(|object| compiled.take(Change::Set(object)));
    compiled.compile(&node());
}

fn goes(compiled: &mut Compiled, kind: Kind, name: &str) {
    compiled.take(Change::Gone(ObjectKey::new(kind, ObjectName::new("shop", name))));
    compiled.compile(&node());
}

/// A web server that admits clients, a client, and a stranger.
fn shop() -> Compiled {
    let mut compiled = Compiled::default();
    let pods = [pod("web", "web", 1), pod("client", "client", 2), pod("stranger", "other", 3)];
    let objects = pods
        .map(Object::from)
        .into_iter()
        .chain([namespace("shop", "a"), Object::from(admits("web", "web", "client"))]);
    set(&mut compiled, objects);
    compiled
}

fn judged((identities, policy): (&IdentityTable, &Policy), from: u32, to: u32) -> bool {
    let query = Query {
        subject: identities.lookup(ip(to)),
        peer: identities.lookup(ip(from)),
        protocol: Protocol::TCP,
        l4_port: 80,
    };
    policy.judge(Direction::Ingress, &query).allowed
}

fn admitted(compiled: &Compiled, from: u32, to: u32) -> bool {
    judged((&compiled.identities, &compiled.policy), from, to)
}

fn affected(addresses: &[u32]) -> Affected {
    Affected::Addresses(addresses.iter().map(|number| ip(*number)).collect())
}

#[test]
fn jobs_with_labels_of_their_own_make_no_identity_and_touch_nothing_but_their_address() {
    let mut compiled = shop();
    let before = compiled.identity_count();
    let policy = Arc::clone(&compiled.policy);
    for number in 0..1000 {
        let mut job = pod(&format!("job-{number}"), "job", 1000 + number);
        job.labels.insert("run", format!("r{number}"));
        set(&mut compiled, [Object::from(job.clone())]);
        assert_eq!(compiled.affected, affected(&[1000 + number]));
        // A Job that has ended has no address any more.
        if number % 2 == 0 {
            job.phase = PodPhase::Succeeded;
            set(&mut compiled, [Object::from(job)]);
            assert_eq!(compiled.identities.lookup(ip(1000 + number)), Identity::WORLD);
        }
    }
    assert_eq!(compiled.identity_count(), before, "they are what the stranger is");
    assert!(Arc::ptr_eq(&compiled.policy, &policy));
    assert_eq!(compiled.identities.exact.len(), 503);
}

#[test]
fn pod_event_in_a_large_cluster_copies_one_shard_of_the_addresses() {
    let mut compiled = shop();
    set(
        &mut compiled,
        (0..20_000).map(|number| Object::from(pod(&format!("p{number}"), "other", 100 + number))),
    );
    let (identities, services) = (Arc::clone(&compiled.identities), Arc::clone(&compiled.services));
    set(&mut compiled, [Object::from(pod("p7", "client", 107))]);
    assert_eq!(compiled.identities.exact.shards_of_its_own(&identities.exact), 1);
    assert!(Arc::ptr_eq(&compiled.services, &services));
    assert!(admitted(&compiled, 107, 1) && !admitted(&compiled, 108, 1));
    // The same again is no change.
    let identities = Arc::clone(&compiled.identities);
    set(&mut compiled, [Object::from(pod("p7", "client", 107))]);
    assert!(Arc::ptr_eq(&compiled.identities, &identities));
    assert_eq!(compiled.affected, Affected::Nothing);
}

#[test]
fn address_that_another_pod_gets_is_the_other_pods_at_once() {
    let mut compiled = shop();
    assert!(admitted(&compiled, 2, 1) && !admitted(&compiled, 3, 1));
    // While the client ends, its address is a stranger's already.
    let mut leaving = pod("client", "client", 2);
    leaving.terminating = true;
    set(&mut compiled, [Object::from(leaving), Object::from(pod("heir", "other", 2))]);
    assert!(!admitted(&compiled, 2, 1));
    assert_eq!(compiled.affected, affected(&[2]));
    // It is gone, and that changes nothing for the heir.
    goes(&mut compiled, Kind::Pod, "client");
    assert!(!admitted(&compiled, 2, 1));
    assert_eq!(compiled.affected, Affected::Nothing);
}

#[test]
fn pod_without_address_or_on_its_nodes_network_is_nobody_of_its_own() {
    let mut compiled = shop();
    let count = compiled.identities.exact.len();
    let mut pending = pod("pending", "client", 0);
    pending.addresses = Box::default();
    let mut agent = pod("agent", "client", 50);
    agent.host_network = true;
    set(&mut compiled, [Object::from(pending.clone()), Object::from(agent)]);
    assert_eq!(
        (compiled.affected.clone(), compiled.identities.exact.len()),
        (Affected::Nothing, count)
    );
    assert!(!admitted(&compiled, 50, 1));
    // Of several addresses each is the pod's.
    pending.addresses = [ip(60), ip(61)].into();
    set(&mut compiled, [Object::from(pending)]);
    assert!(admitted(&compiled, 60, 1) && admitted(&compiled, 61, 1));
    assert_eq!(compiled.affected, affected(&[60, 61]));
}

#[test]
fn labels_of_a_namespace_that_change_touch_its_pods_alone() {
    let mut compiled = shop();
    let mut elsewhere = pod("guest", "guest", 70);
    elsewhere.name = ObjectName::new("guests", "guest");
    let team = Requirement { key: "team".into(), operator: Operator::In(["b".to_owned()].into()) };
    let peer = Peer::Pods {
        namespaces: Some([team].into_iter().collect()),
        pods: LabelSelector::default(),
    };
    let mut policy = admits("guests", "web", "nobody");
    policy.ingress = Some(vec![PolicyRule { peers: vec![peer], ports: Vec::new() }]);
    let objects = [Object::from(elsewhere), namespace("guests", "a"), Object::from(policy)];
    set(&mut compiled, objects);
    assert!(!admitted(&compiled, 70, 1));
    set(&mut compiled, [namespace("guests", "b")]);
    assert!(admitted(&compiled, 70, 1) && !admitted(&compiled, 3, 1));
    assert_eq!(compiled.affected, affected(&[70]));
    set(&mut compiled, [namespace("guests", "c")]);
    assert!(!admitted(&compiled, 70, 1));
}

#[test]
fn new_selector_splits_an_identity_without_a_moment_of_wrong_verdicts() {
    let mut compiled = shop();
    set(
        &mut compiled,
        (0..50).map(|number| {
            let label = if number % 2 == 0 { "vip" } else { "other" };
            Object::from(pod(&format!("p{number}"), label, 100 + number))
        }),
    );
    let shared = compiled.identities.lookup(ip(100));
    assert_eq!(compiled.identities.lookup(ip(101)), shared);
    let before = (Arc::clone(&compiled.identities), Arc::clone(&compiled.policy));
    compiled.take(Change::Set(Object::from(admits("vip", "web", "vip"))));
    // What is published stays whole until both can change at once.
    assert!(Arc::ptr_eq(&compiled.identities, &before.0));
    assert!(Arc::ptr_eq(&compiled.policy, &before.1));
    compiled.compile(&node());
    for number in 100..150 {
        let is_vip = number % 2 == 0;
        assert!(!judged((&before.0, &before.1), number, 1), "{number} was denied");
        assert_eq!(admitted(&compiled, number, 1), is_vip, "{number}");
    }
    // One half has a number that nothing had, and the other keeps the one they shared.
    let numbers: BTreeSet<Identity> =
        (100..150).map(|number| compiled.identities.lookup(ip(number))).collect();
    assert_eq!(numbers.len(), 2);
    assert!(numbers.contains(&shared) && !numbers.contains(&compiled.identities.lookup(ip(2))));
    // Without the policy they are one again, and its number is not given to the next at once.
    let split = compiled.identities.lookup(ip(100));
    goes(&mut compiled, Kind::NetworkPolicy, "vip");
    assert_eq!(compiled.identities.lookup(ip(100)), shared);
    set(&mut compiled, [Object::from(admits("other", "web", "other"))]);
    assert!((100..150).all(|number| compiled.identities.lookup(ip(number)) != split));
}

#[test]
fn pod_far_away_that_nobody_admits_judges_no_flow_again_but_its_own() {
    let mut compiled = shop();
    let mut stranger = pod("far", "far", 90);
    stranger.node = Some("two".into());
    set(&mut compiled, [Object::from(stranger.clone())]);
    assert_eq!(compiled.affected, affected(&[90]));
    // It becomes somebody whom a local pod admits: a new row, and no flow of others is concerned.
    stranger.labels = Labels::from([("app", "client")]);
    set(&mut compiled, [Object::from(stranger)]);
    assert_eq!(compiled.affected, affected(&[90]));
    assert!(admitted(&compiled, 90, 1));
}
