//! Which rules are told to have been looked at, and why each did or did not match.

use std::path::Path;

use control::compile::{Compiled, Examined, NodeView, Reading, RuleName, compile};
use control::manifests;
use dataplane::address::Protocol;
use dataplane::policy::{Direction, Query};

const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: b}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]},
 status: {podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app, namespace: bank, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.1.1}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b-web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {}}]
    ports: [{port: http}]
  - from: [{namespaceSelector: {matchLabels: {team: b}}}, {ipBlock: {cidr: 192.0.2.0/24}}]
    ports: [{port: 8000, endPort: 8100}, {port: 53, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: others, namespace: bank}
spec: {podSelector: {}, egress: [{}], policyTypes: [Egress]}
";

fn ask(direction: Direction, from: &str, to: &str, l4_port: u16) -> Vec<Examined> {
    let state = manifests::parse(Path::new("case.yaml"), OBJECTS).expect("good").state;
    let node = NodeView { name: "one".into(), ..NodeView::default() };
    let compiled = compile(&state, &node, &Compiled::default());
    let identity = |text: &str| compiled.identities.lookup(text.parse().expect("an address"));
    let (subject, peer) = match direction {
        Direction::Ingress => (to, from),
        Direction::Egress => (from, to),
    };
    let (subject, peer) = (identity(subject), identity(peer));
    let query = Query { subject, peer, protocol: Protocol::TCP, l4_port };
    compiled.examine(&state, direction, &query)
}

/// Policy, rule, peer, protocol and port, one line each.
fn told(examined: &[Examined]) -> Vec<String> {
    let word = |matches| if matches { "yes" } else { "no" };
    let line = |one: &Examined| {
        let index = one.index.map_or_else(|| "-".to_owned(), |index| index.to_string());
        let parts = [&one.peer, &one.protocol, &one.port];
        let parts = parts.map(|part| format!("{} {}", word(part.matches), part.why));
        format!("{} {index}: {}", one.policy, parts.join(" | "))
    };
    examined.iter().map(line).collect()
}

#[test]
fn every_rule_of_every_policy_that_selects_the_pod_is_told_in_order() {
    assert_eq!(
        told(&ask(Direction::Ingress, "10.0.1.1", "10.0.0.1", 8080)),
        [
            "shop/a-deny -: no the policy has no rule: it isolates only | no - | no -",
            "shop/b-web 0: no pods (all) of namespace shop | yes tcp | yes tcp \"http\" (8080 there)",
            "shop/b-web 1: yes pods (all) of namespaces team=b | yes tcp or udp | yes tcp 8000 to 8100",
        ]
    );
}

#[test]
fn a_port_or_peer_outside_is_told_with_all_that_would_have_matched() {
    assert_eq!(
        told(&ask(Direction::Ingress, "198.51.100.7", "10.0.0.1", 443))[1..],
        [
            "shop/b-web 0: no pods (all) of namespace shop | yes tcp | no tcp \"http\" (8080 there)",
            "shop/b-web 1: no pods (all) of namespaces team=b or 192.0.2.0/24 | yes tcp or udp | no \
             tcp 8000 to 8100 or udp 53",
        ]
    );
}

#[test]
fn a_rule_without_peers_and_ports_matches_everybody_on_every_port() {
    let examined = ask(Direction::Egress, "10.0.1.1", "10.0.0.1", 1);
    assert_eq!(
        told(&examined),
        ["bank/others 0: yes everybody | yes every protocol | yes every port"]
    );
}

#[test]
fn nothing_is_told_where_no_policy_selects_the_pod() {
    assert_eq!(ask(Direction::Egress, "10.0.0.1", "10.0.1.1", 1), []);
    assert_eq!(ask(Direction::Ingress, "10.0.0.1", "203.0.113.1", 1), []);
}

#[test]
fn rules_are_read_without_tables_and_those_under_audit_apart() {
    let to_web = |from, l4_port| ask(Direction::Ingress, from, "10.0.0.1", l4_port);
    let read = |examined: &[Examined]| Reading::of(examined, Direction::Ingress);
    let rule = RuleName::Rule {
        policy: "shop/b-web".parse().expect("a name"),
        direction: Direction::Ingress,
        index: 1,
    };
    let allowed = read(&to_web("10.0.1.1", 8080));
    assert_eq!(allowed, Reading { allowed: true, rule, would_allow: None });
    let denied = read(&to_web("10.0.1.1", 443));
    assert_eq!((denied.allowed, denied.rule), (false, RuleName::DefaultDeny));
    assert_eq!(read(&[]).rule, RuleName::NotIsolated);

    let mut examined = to_web("10.0.1.1", 443);
    examined.iter_mut().for_each(|one| one.audited = true);
    let watched = read(&examined);
    assert_eq!((watched.allowed, watched.would_allow), (true, Some(false)));
    assert_eq!(watched.rule, RuleName::NotIsolated);
    // One under audit that allows what the enforced ones do not.
    let mut examined = to_web("10.0.1.1", 8080);
    examined.iter_mut().filter(|one| one.policy.to_string() == "shop/b-web").for_each(|one| {
        one.audited = true;
    });
    let narrow = read(&examined);
    assert_eq!((narrow.allowed, narrow.would_allow), (false, Some(true)));
}
