//! NetworkPolicies of which not everything is understood allow less than they say, never more.

use control::model::read::{Closed, ReadError, UnknownFields, network_policy_closed, object};
use control::model::{Kind, Object, PolicyRule};
use serde_json::{Value, json};

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

fn closed(spec: Value) -> Closed {
    network_policy_closed(&policy(spec)).unwrap()
}

fn web() -> Value {
    json!({"matchLabels": {"app": "web"}})
}

#[test]
fn a_policy_that_is_understood_is_read_alike_on_both_ways() {
    let spec = json!({
        "podSelector": web(),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}, {}],
    });
    let Object::NetworkPolicy(strict) =
        object(Kind::NetworkPolicy, policy(spec.clone()), UnknownFields::Refuse).unwrap()
    else {
        panic!("another kind");
    };
    let Closed { policy, unknown, invalid } = closed(spec);
    assert_eq!((policy, unknown, invalid), (*strict, vec![], vec![]));
}

#[test]
fn a_rule_with_an_unknown_field_allows_nothing_and_the_others_keep_their_places() {
    let spec = json!({"podSelector": web(), "ingress": [
        {"from": [{"serviceSelector": {}}]},
        {"ports": [{"port": 80}], "schedule": "nights"},
        {"kind": "new"},
        {"ports": [{"port": 443}]},
    ]});
    let closed = closed(spec);
    let rules = closed.policy.ingress.unwrap();
    let nothing = PolicyRule::nothing();
    assert_eq!(rules[..3], [nothing.clone(), nothing.clone(), nothing]);
    assert_eq!((rules.len(), rules[3].ports.len()), (4, 1));
    assert_eq!(closed.policy.egress, None, "a direction that is not isolated stays free");
    assert_eq!(closed.policy.subject.to_string(), "app=web");
    let fields = [
        "spec.ingress[0].from[0].serviceSelector",
        "spec.ingress[1].schedule",
        "spec.ingress[2].kind",
    ];
    assert_eq!(closed.unknown, fields);
    assert!(closed.invalid.is_empty(), "{:?}", closed.invalid);
}

#[test]
fn an_unknown_field_elsewhere_isolates_the_subject_in_both_directions() {
    let closed = closed(json!({"podSelector": web(), "priority": 7, "ingress": [{}]}));
    assert_eq!(closed.policy.subject.to_string(), "app=web");
    assert_eq!(closed.policy.ingress, Some(vec![]));
    assert_eq!(closed.policy.egress, Some(vec![]));
    assert_eq!(closed.unknown, ["spec.priority"]);
}

#[test]
fn a_subject_that_is_not_understood_is_the_whole_namespace_and_may_do_nothing() {
    for selector in [
        json!({"matchFields": {"a": "b"}}),
        json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
        json!({"matchExpressions": [{"key": "a", "operator": "Exists", "fold": true}]}),
        json!([1]),
    ] {
        let closed = closed(json!({"podSelector": selector, "ingress": [{}]}));
        assert!(closed.policy.subject.is_empty(), "{selector}");
        assert_eq!(closed.policy.ingress, Some(vec![]), "{selector}");
        assert_eq!(closed.policy.egress, None, "{selector}");
        assert_eq!(closed.unknown.len() + closed.invalid.len(), 1, "{closed:?}");
    }
}

#[test]
fn values_that_cannot_be_read_close_their_rule_alone_and_are_named() {
    for (rule, field) in [
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (json!({"ports": [{"port": 70000}]}), "spec.ingress[0].ports[0].port"),
        (json!({"ports": [{"protocol": "QUIC"}]}), "spec.ingress[0].ports[0].protocol"),
        (json!({"ports": [{"port": {}}]}), "spec.ingress[0].ports[0].port"),
        (json!({"from": [{}]}), "spec.ingress[0].from[0]"),
        (json!(7), "spec.ingress[0]"),
    ] {
        let closed = closed(json!({"podSelector": {}, "ingress": [rule, {}]}));
        let rules = closed.policy.ingress.unwrap();
        assert_eq!(rules[0], PolicyRule::nothing(), "{rule}");
        assert!(rules[1].peers.is_empty(), "the second rule allows all");
        assert!(closed.invalid[0].starts_with(field), "{:?}", closed.invalid);
    }
}

#[test]
fn a_specification_that_is_none_isolates_the_namespace_in_both_directions() {
    for spec in [json!(null), json!("x"), json!({"policyTypes": ["Sideways"], "egress": [{}]})] {
        let closed = closed(spec.clone());
        assert!(closed.policy.subject.is_empty());
        assert_eq!(closed.policy.ingress, Some(vec![]), "{spec}");
        assert_eq!(closed.policy.egress, Some(vec![]), "{spec}");
        assert_eq!(closed.invalid.len(), 1, "{spec}");
    }
    let nameless = json!({"metadata": {"namespace": "shop"}, "spec": {}});
    assert!(network_policy_closed(&nameless).is_err());
}

#[test]
fn newer_servers_fields_of_other_kinds_are_passed_by_and_in_a_folder_refused() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "newer": 1},
        "spec": {"containers": [], "newer": {}}, "status": {"podIPs": [{"ip": "10.1.0.5"}]}});
    let passed = object(Kind::Pod, pod.clone(), UnknownFields::PassBy).unwrap();
    assert_eq!(passed.to_string(), "Pod shop/a");
    let refused = object(Kind::Pod, pod, UnknownFields::Refuse).unwrap_err();
    assert_eq!(refused, ReadError::Unknown(vec!["metadata.newer".into(), "spec.newer".into()]));
}
