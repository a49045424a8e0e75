use std::sync::Arc;
use std::time::Duration;

use control::store::ClusterState;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;
use crate::client::{Access, Servers};
use crate::decode::decode;

/// A follower's whole, and the node that takes what it sends.
struct World {
    whole: Whole,
    node: feed::Receiver,
    state: ClusterState,
    frontends: Frontends,
}

fn world() -> World {
    let second = Duration::from_secs(1);
    let access = Access::in_a_test([], second, (second, second));
    let (sender, node) = feed::feed();
    let frontends = Frontends::default();
    let reporter = Reporter::new(Arc::new(Servers::new(access, frontends.clone())));
    let whole = Whole::new(sender, reporter, frontends.clone(), 30);
    World { whole, node, state: ClusterState::default(), frontends }
}

impl World {
    /// What the node was sent; gives how many changes.
    fn sent(&mut self) -> usize {
        self.whole.flush();
        let changes = self.node.take();
        changes.map(|change| self.state.apply(change)).count()
    }

    fn take(&mut self, kind: Kind, object: &Value) {
        let text = RawValue::from_string(object.to_string()).unwrap();
        self.whole.take(kind, decode(kind, &text));
    }

    /// A complete list, a while after another; gives whether its losses are held.
    fn list(&mut self, kind: Kind, objects: &[Value]) -> bool {
        self.list_at(kind, objects, true)
    }

    fn list_at(&mut self, kind: Kind, objects: &[Value], is_second: bool) -> bool {
        self.whole.begin_list(kind);
        objects.iter().for_each(|object| self.take(kind, object));
        let held = self.whole.end_list(kind, is_second);
        self.sent();
        held
    }

    fn has(&self, pod: &str) -> bool {
        self.state.pods.contains_key(&ObjectName::new("shop", pod))
    }

    fn refused(&self) -> Vec<ObjectError> {
        self.whole.reporter.status().refused
    }
}

fn pod(number: usize) -> Value {
    pod_at(&format!("p{number}"), &address(number))
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", number / 200, number % 200 + 1)
}

fn pod_at(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": []},
           "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn pods(range: std::ops::Range<usize>) -> Vec<Value> {
    range.map(pod).collect()
}

fn slice(name: &str, numbers: std::ops::Range<usize>) -> Value {
    let endpoints: Vec<Value> = numbers.map(|n| json!({"addresses": [address(n)]})).collect();
    json!({"metadata": {"name": name, "namespace": "shop"}, "addressType": "IPv4",
           "ports": [], "endpoints": endpoints})
}

/// The same, of pods by their names.
fn slice_of_pods(name: &str, numbers: std::ops::Range<usize>) -> Value {
    let mut slice = slice(name, numbers.clone());
    for (place, number) in numbers.enumerate() {
        slice["endpoints"][place]["targetRef"] =
            json!({"kind": "Pod", "namespace": "shop", "name": format!("p{number}")});
    }
    slice
}

fn policy(rule: &Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "shop"},
           "spec": {"podSelector": {}, "ingress": [rule]}})
}

#[test]
fn a_list_sends_differences_alone_and_removes_at_its_end() {
    let mut world = world();
    assert!(!world.list(Kind::Pod, &pods(0..5)));
    assert_eq!(world.state.pods.len(), 5);
    world.whole.begin_list(Kind::Pod);
    world.take(Kind::Pod, &pod(0));
    world.take(Kind::Pod, &pod_at("p1", "10.9.0.1"));
    world.take(Kind::Pod, &pod(7));
    (3..5).for_each(|number| world.take(Kind::Pod, &pod(number)));
    assert_eq!(world.sent(), 2, "what is as it was is not sent");
    assert_eq!(world.state.pods.len(), 6, "nothing goes before the list is complete");
    world.whole.end_list(Kind::Pod, false);
    assert_eq!(world.sent(), 1);
    assert!(world.has("p0") && world.has("p1") && world.has("p7") && !world.has("p2"));
}

#[test]
fn a_list_that_does_not_end_removes_nothing() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..5));
    world.whole.begin_list(Kind::Pod);
    world.take(Kind::Pod, &pod(0));
    world.whole.abort_list(Kind::Pod);
    assert_eq!((world.sent(), world.state.pods.len()), (0, 5));
    world.list(Kind::Pod, &pods(0..4));
    assert_eq!(world.state.pods.len(), 4);
}

#[test]
fn a_relist_that_loses_a_third_is_held_until_a_second_one_agrees() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert!(!world.list(Kind::Pod, &pods(0..70)), "30 of 100 are not more than 30 %");
    assert_eq!(world.state.pods.len(), 70);
    world.list(Kind::Pod, &pods(0..100));
    assert!(world.list(Kind::Pod, &[pods(0..68), vec![pod(200)]].concat()));
    assert_eq!(world.state.pods.len(), 101, "what came is there, what went is held");
    let status = world.whole.reporter.status();
    assert_eq!((status.kinds[2].held, status.kinds[2].holds), (32, 1));
    // Two of them are back, the others are gone indeed.
    assert!(!world.list(Kind::Pod, &[pods(0..70), vec![pod(200)]].concat()));
    assert_eq!(world.state.pods.len(), 71);
    assert_eq!(world.whole.reporter.status().kinds[2].held, 0);
}

#[test]
fn a_second_list_that_does_not_agree_ends_the_hold_and_loses_nothing() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert!(world.list(Kind::Pod, &pods(0..10)));
    assert!(!world.list(Kind::Pod, &pods(0..100)));
    assert_eq!(world.state.pods.len(), 100);
}

#[test]
fn a_second_list_that_loses_others_holds_those() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert!(world.list(Kind::Pod, &pods(0..50)));
    assert!(world.list(Kind::Pod, &pods(50..100)), "another half is lost");
    assert_eq!(world.state.pods.len(), 100);
    assert!(!world.list(Kind::Pod, &pods(50..100)));
    assert_eq!(world.state.pods.len(), 50);
}

#[test]
fn a_small_cluster_is_doubted_as_a_large_one() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..4));
    assert!(!world.list(Kind::Pod, &pods(0..3)), "one of four is less than 30 %");
    assert!(world.list(Kind::Pod, &[]));
    assert_eq!(world.state.pods.len(), 3);
    assert!(!world.list(Kind::Pod, &[]));
    assert!(world.state.pods.is_empty());
}

/// A node that began from nothing has heard of every pod's address only now, and so of each of an
/// endpoint: its own pod does not take it away.
#[test]
fn an_endpoints_own_pod_ends_no_hold_though_it_was_heard_of_lately() {
    for slice in [slice, slice_of_pods] {
        let mut world = world();
        world.list(Kind::Pod, &pods(0..100));
        world.list(Kind::EndpointSlice, &[slice("a", 0..50), slice("b", 50..100)]);
        assert!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]));
        assert_eq!(world.state.endpoint_slices.len(), 2);
    }
    // Nor one that came later, and of whose address nothing but its name tells that it is its own.
    let mut world = world();
    world.list(Kind::Pod, &pods(0..1));
    world.list(Kind::Pod, &pods(0..100));
    let slices = [slice_of_pods("a", 0..50), slice_of_pods("b", 50..100)];
    world.list(Kind::EndpointSlice, &slices);
    assert!(world.list(Kind::EndpointSlice, &slices[..1]));
    assert_eq!(world.state.endpoint_slices.len(), 2);
    world.take(Kind::Pod, &pod_at("p60", "10.9.9.9"));
    world.take(Kind::Pod, &pod(60));
    world.sent();
    assert_eq!(world.state.endpoint_slices.len(), 2, "it is its own again");
    world.take(Kind::Pod, &pod_at("heir", &address(61)));
    world.sent();
    assert_eq!(world.state.endpoint_slices.len(), 1);
}

#[test]
fn a_removal_that_is_said_is_never_held() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    assert!(world.list(Kind::Pod, &pods(0..10)));
    world.whole.gone(Kind::Pod, &ObjectName::new("shop", "p50"));
    world.sent();
    assert!(!world.has("p50") && world.has("p51"));
}

#[test]
fn a_pod_whose_address_another_claims_is_never_held() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    // Within the list that loses it, and afterwards.
    let listed = [pods(0..10), vec![pod_at("heir", &address(50))]].concat();
    assert!(world.list(Kind::Pod, &listed));
    assert!(!world.has("p50") && world.has("heir") && world.has("p60"));
    world.take(Kind::Pod, &pod_at("late-heir", &address(60)));
    world.sent();
    assert!(!world.has("p60") && world.has("late-heir") && world.has("p61"));
    // Who ends, or is the host's, claims nothing.
    let mut done = pod_at("done", &address(61));
    done["status"]["phase"] = json!("Succeeded");
    world.take(Kind::Pod, &done);
    world.sent();
    assert!(world.has("p61"));
}

#[test]
fn endpoints_that_a_list_lost_are_held_in_slices_that_went_and_that_shrank() {
    let mut world = world();
    let before = [slice("a", 0..50), slice("b", 50..100)];
    world.list(Kind::EndpointSlice, &before);
    let endpoints = |world: &World| -> usize {
        world.state.endpoint_slices.values().map(|own| own.endpoints.len()).sum()
    };
    assert_eq!(endpoints(&world), 100);
    assert!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]), "half of them went");
    assert_eq!(endpoints(&world), 100);
    assert!(!world.list(Kind::EndpointSlice, &before));
    assert!(
        world.list(Kind::EndpointSlice, &[slice("a", 0..0), before[1].clone()]),
        "one is empty"
    );
    assert_eq!(endpoints(&world), 100);
    // A pod that is new has an address of the one that is held.
    world.take(Kind::Pod, &pod_at("heir", &address(7)));
    world.sent();
    assert_eq!(endpoints(&world), 50);
}

#[test]
fn a_new_pod_that_a_slice_keeps_ends_no_hold_of_what_it_lost() {
    let mut world = world();
    world.list(Kind::EndpointSlice, &[slice("a", 0..100)]);
    world.take(Kind::Pod, &pod(7));
    assert!(world.list(Kind::EndpointSlice, &[slice("a", 0..50)]));
    world.take(Kind::Pod, &pod(8));
    world.sent();
    let endpoints =
        |world: &World| world.state.endpoint_slices.values().next().unwrap().endpoints.len();
    assert_eq!(endpoints(&world), 100);
    world.take(Kind::Pod, &pod(60));
    world.sent();
    assert_eq!(endpoints(&world), 50);
}

#[test]
fn a_slice_whose_address_was_claimed_before_its_list_is_not_held() {
    let mut world = world();
    world.list(Kind::EndpointSlice, &[slice("a", 0..50), slice("b", 50..100)]);
    world.take(Kind::Pod, &pod_at("heir", &address(7)));
    assert!(!world.list(Kind::EndpointSlice, &[slice("b", 50..100)]));
    assert_eq!(world.state.endpoint_slices.len(), 1);
}

#[test]
fn what_cannot_be_read_keeps_its_last_good_version_until_it_is_good_or_gone() {
    let mut world = world();
    let others = || pods(10..20);
    world.list(Kind::Pod, &[pods(0..3), others()].concat());
    let mut bad = pod(1);
    bad["status"]["podIPs"][0]["ip"] = json!("nowhere");
    assert!(!world.list(Kind::Pod, &[vec![pod(0), bad.clone()], others()].concat()));
    assert!(world.has("p1") && !world.has("p2"), "others are listed and removed as ever");
    let refused = world.refused();
    assert_eq!((refused.len(), refused[0].object.as_str()), (1, "Pod shop/p1"));
    assert!(refused[0].message.contains("podIPs[0].ip"), "{}", refused[0].message);
    assert!(refused[0].message.contains("last good version"), "{}", refused[0].message);
    world.take(Kind::Pod, &pod(1));
    assert!(world.refused().is_empty());
    world.take(Kind::Pod, &bad);
    assert_eq!(world.refused().len(), 1);
    world.list(Kind::Pod, &[pods(0..1), others()].concat());
    assert!(world.refused().is_empty() && !world.has("p1"));
}

#[test]
fn an_invalid_policy_leaves_its_last_good_version_and_a_new_one_is_closed() {
    let mut world = world();
    let in_force = |world: &World| {
        world.state.network_policies.values().next().and_then(|own| own.ingress.clone())
    };
    let bad = policy(&json!({"ports": [{"port": 0}]}));
    world.take(Kind::NetworkPolicy, &bad);
    world.sent();
    assert_eq!(in_force(&world), Some(vec![control::model::PolicyRule::nothing()]));
    assert!(world.refused()[0].message.contains("allows nothing"));
    // Still bad, in another way: what stands in for it follows.
    world.take(
        Kind::NetworkPolicy,
        &json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": 7}),
    );
    world.sent();
    assert_eq!(in_force(&world), Some(vec![]));
    world.take(Kind::NetworkPolicy, &policy(&json!({})));
    world.sent();
    let good = in_force(&world);
    assert!(world.refused().is_empty());
    world.take(Kind::NetworkPolicy, &bad);
    assert_eq!(world.sent(), 0);
    assert_eq!(in_force(&world), good);
    assert!(world.refused()[0].message.contains("last good version"));
}

/// What a snapshot holds of such a policy says nothing of why it is as it is.
#[test]
fn what_stands_in_for_a_policy_that_never_was_good_follows_it_after_a_restart_as_well() {
    let mut world = world();
    let rules = |world: &World| {
        let own = world.state.network_policies.values().next();
        own.and_then(|own| own.ingress.as_ref().map(Vec::len))
    };
    let bad = |rules: &Value| {
        json!({"metadata": {"name": "web", "namespace": "shop"},
               "spec": {"podSelector": {}, "ingress": rules}})
    };
    let (odd, even) = (json!({"ports": [{"port": 0}]}), json!({"ports": [{"port": 80}]}));
    let both = bad(&json!([odd, even]));
    world.take(Kind::NetworkPolicy, &both);
    world.sent();
    assert_eq!(rules(&world), Some(2));
    // As the next process knows it.
    world.whole.own(Kind::NetworkPolicy).refused.clear();
    world.list(Kind::NetworkPolicy, &[both]);
    assert!(world.refused()[0].message.contains("allows nothing"), "{:?}", world.refused());
    world.list(Kind::NetworkPolicy, &[bad(&json!([odd]))]);
    assert_eq!(rules(&world), Some(1), "what allowed something was removed");
    // A list that does not name it is held, and forgets nothing of it.
    assert!(world.list(Kind::NetworkPolicy, &[]));
    world.take(Kind::NetworkPolicy, &bad(&json!([odd, odd, odd])));
    world.sent();
    assert_eq!(rules(&world), Some(3));
}

#[test]
fn a_policy_that_is_too_large_is_closed_and_named_and_one_that_was_good_stays() {
    let mut world = world();
    let rules = |world: &World| {
        let own = world.state.network_policies.values().next().cloned();
        own.map(|own| (own.ingress.clone(), own.egress.clone()))
    };
    let mut large = policy(&json!({}));
    large["metadata"]["annotations"] = json!({"x": "y".repeat(crate::decode::OBJECT_BYTES_MAX)});
    world.take(Kind::NetworkPolicy, &large);
    world.sent();
    assert_eq!(rules(&world), Some((Some(vec![]), Some(vec![]))));
    let refused = world.refused();
    assert_eq!(refused[0].object, "NetworkPolicy shop/web");
    assert!(refused[0].message.contains("bytes"), "{}", refused[0].message);
    assert!(refused[0].message.contains("allows nothing"), "{}", refused[0].message);
    world.take(Kind::NetworkPolicy, &policy(&json!({})));
    world.sent();
    let good = rules(&world);
    assert_eq!(good.as_ref().map(|(_, egress)| egress.is_none()), Some(true));
    world.take(Kind::NetworkPolicy, &large);
    assert_eq!((world.sent(), rules(&world)), (0, good));
    assert!(world.refused()[0].message.contains("last good version"));
}

#[test]
fn a_policy_with_a_field_of_the_future_is_closed_even_where_it_was_good() {
    let mut world = world();
    world.take(Kind::NetworkPolicy, &policy(&json!({})));
    world.take(Kind::NetworkPolicy, &policy(&json!({"schedule": "night"})));
    world.sent();
    let own = world.state.network_policies.values().next().unwrap();
    assert_eq!(own.ingress, Some(vec![control::model::PolicyRule::nothing()]));
    let refused = world.refused();
    assert_eq!(refused[0].object, "NetworkPolicy shop/web");
    assert!(refused[0].message.contains("spec.ingress[0].schedule"), "{}", refused[0].message);
    assert_eq!(world.whole.reporter.status().kinds[5].refusals, 1);
}

#[test]
fn what_is_known_to_be_wrong_is_bounded_and_the_rest_is_in_force() {
    let mut world = world();
    for number in 0..REFUSED_MAX + 10 {
        let mut bad = pod(number);
        bad["metadata"]["labels"] = json!({"a": "!"});
        world.take(Kind::Pod, &bad);
    }
    world.take(Kind::Pod, &pod_at("good", "10.2.0.1"));
    world.sent();
    assert!(world.has("good"));
    let status = &world.whole.reporter.status().kinds[2];
    assert_eq!((status.refused, status.refusals), (REFUSED_MAX as u64, REFUSED_MAX as u64 + 10));
    assert_eq!(world.refused().len(), ERRORS_MAX);
}

#[test]
fn services_addresses_are_known_as_no_servers() {
    let mut world = world();
    let service = json!({"metadata": {"name": "api", "namespace": "shop"}, "spec": {
        "clusterIPs": ["10.96.0.9"], "externalIPs": ["192.0.2.1"], "ports": [{"port": 443}]}});
    world.take(Kind::Service, &service);
    let is_free = |address: &str| world.frontends.take(address.parse().unwrap());
    assert!(!is_free("10.96.0.9:6443") && !is_free("192.0.2.1:443") && is_free("192.0.2.1:6443"));
    // One that was a server's all along is no longer the Service's; a cluster address stays it.
    world.whole.yield_to_servers();
    assert!(!is_free("10.96.0.9:6443") && is_free("192.0.2.1:443"));
    world.sent();
    let services: Vec<_> = world.state.services.values().collect();
    assert_eq!((services.len(), services[0].external_ips.len()), (1, 0));
    assert_eq!(world.refused().len(), 1);
    world.whole.gone(Kind::Service, &ObjectName::new("shop", "api"));
    assert!(world.frontends.take("10.96.0.9:443".parse().unwrap()));
}

#[test]
fn a_list_that_comes_too_soon_after_one_that_is_held_does_not_agree() {
    let mut world = world();
    world.list(Kind::Pod, &pods(0..100));
    for _ in 0..3 {
        assert!(world.list_at(Kind::Pod, &pods(0..50), false));
        assert_eq!(world.state.pods.len(), 100);
    }
    assert!(!world.list_at(Kind::Pod, &pods(0..100), false), "they are back");
    assert!(world.list_at(Kind::Pod, &pods(0..50), false));
    assert!(!world.list(Kind::Pod, &pods(0..50)));
    assert_eq!(world.state.pods.len(), 50);
}

#[test]
fn lost_policies_are_held_as_pods_are() {
    let mut world = world();
    let named = |name: String| json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"podSelector": {}}});
    let policies: Vec<Value> = (0..20).map(|number| named(format!("deny-{number}"))).collect();
    world.list(Kind::NetworkPolicy, &policies);
    assert!(world.list_at(Kind::NetworkPolicy, &[], false), "all would be open");
    assert_eq!(world.state.network_policies.len(), 20);
    assert!(!world.list(Kind::NetworkPolicy, &[]));
    assert!(world.state.network_policies.is_empty());
}

#[test]
fn a_slice_that_shrinks_and_grows_again_within_a_list_is_what_was_said_last() {
    for last in [slice("a", 0..3), slice("a", 0..2)] {
        let mut world = world();
        world.list(Kind::EndpointSlice, &[slice("a", 0..2)]);
        world.whole.begin_list(Kind::EndpointSlice);
        world.take(Kind::EndpointSlice, &slice("a", 0..1));
        world.take(Kind::EndpointSlice, &last);
        world.whole.end_list(Kind::EndpointSlice, false);
        world.sent();
        let slices: Vec<_> = world.state.endpoint_slices.values().collect();
        let wanted = last["endpoints"].as_array().unwrap().len();
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, wanted));
    }
}
