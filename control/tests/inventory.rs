//! What people are told of identities and policies.

use std::fmt::Write as _;
use std::path::Path;

use control::admin::policy::{IdentityInfo, PolicyDetail, PolicyListing};
use control::compile::inventory::Problems;
use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::ObjectName;
use dataplane::identity::Identity;

const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: b}}}
---
{apiVersion: v1, kind: Node, metadata: {name: one},
 status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: two},
 status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]},
 status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web, v: '2'}},
 spec: {nodeName: two, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]},
 status: {podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web}},
 spec: {nodeName: two, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]},
 status: {podIPs: [{ip: 10.0.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app, namespace: bank},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.1.1}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: b}}}, {ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: http}, {port: 53, protocol: UDP}]
  - ports: [{port: misspelt}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: watched, namespace: bank, annotations: {xskiff.io/policy-mode: audit}}
spec: {podSelector: {}, policyTypes: [Egress]}
";

fn compiled_of(objects: &str) -> Compiled {
    let state = manifests::parse(Path::new("case.yaml"), objects).expect("good").state;
    let node = NodeView {
        name: "one".into(),
        addresses: ["192.0.2.1".parse().expect("an address")].into(),
        ..NodeView::default()
    };
    compile(&state, &node, &Compiled::default())
}

fn identity_at(compiled: &Compiled, address: &str) -> IdentityInfo {
    let identity = compiled.identities.lookup(address.parse().expect("an address"));
    compiled.describe_identity(identity, 10).expect("it is in force")
}

fn selectors(info: &IdentityInfo) -> Vec<(&str, Vec<String>)> {
    let of = |one: &control::admin::policy::SelectorInfo| {
        one.used_by.first.iter().map(ToString::to_string).collect()
    };
    info.selectors.first.iter().map(|one| (one.selector.as_str(), of(one))).collect()
}

#[test]
fn an_identity_is_told_with_its_selectors_their_policies_and_who_has_it() {
    let compiled = compiled_of(OBJECTS);
    let web = identity_at(&compiled, "10.0.0.1");
    assert_eq!((web.kind.as_str(), web.reserved), ("pod", false));
    // Labels that no policy asks for make no difference; another number behind a name does.
    assert_eq!((web.addresses, web.addresses_here), (3, 2));
    let examples: Vec<String> = web.examples.first.iter().map(ToString::to_string).collect();
    assert_eq!(
        examples,
        ["10.0.0.1 (shop/web-0)", "10.0.0.2 (shop/web-1)", "fd00::1 (shop/web-0)"]
    );
    let of_shop = "pods app=web of namespace shop";
    assert_eq!(selectors(&web), [(of_shop, vec!["shop/web spec.podSelector".to_owned()])]);
    assert_eq!(web.named_ports.first, ["http 8080/tcp"]);
    assert_eq!(web.isolated_ingress.first, ["shop/web"]);
    assert!(web.isolated_egress.is_empty());
    assert_eq!(identity_at(&compiled, "10.0.0.3").named_ports.first, ["http 80/tcp"]);

    let bank = identity_at(&compiled, "10.0.1.1");
    assert_eq!(bank.isolated_egress.first, ["bank/watched (under audit)"]);
    assert_eq!(
        selectors(&bank),
        [
            ("pods (all) of namespace bank", vec!["bank/watched spec.podSelector".to_owned()]),
            ("pods (all) of namespaces team=b", vec!["shop/web spec.ingress[0].from".to_owned()]),
        ]
    );
}

#[test]
fn nodes_ranges_and_the_world_have_identities_too() {
    let compiled = compiled_of(OBJECTS);
    let host = identity_at(&compiled, "192.0.2.1");
    assert_eq!((host.kind.as_str(), host.number, host.reserved), ("host", 1, true));
    assert_eq!(host.examples.first[0].to_string(), "192.0.2.1 (node one)");
    assert_eq!(
        identity_at(&compiled, "192.0.2.2").examples.first[0].to_string(),
        "192.0.2.2 (node two)"
    );
    let block = identity_at(&compiled, "198.51.100.9");
    assert_eq!((block.kind.as_str(), block.addresses), ("world", 0));
    assert_eq!(block.ranges.first, ["198.51.100.0/24"]);
    assert_eq!(identity_at(&compiled, "203.0.113.1").number, Identity::WORLD.0);
    assert_eq!(compiled.describe_identity(Identity(255), 1), None);
    assert_eq!(compiled.describe_identity(Identity(9999), 1), None);
}

#[test]
fn pages_of_identities_name_each_once_and_say_where_to_go_on() {
    let compiled = compiled_of(OBJECTS);
    let whole = compiled.list_identities(1000, None);
    assert_eq!((whole.next, whole.rows.len() as u64), (None, whole.total));
    assert_eq!(whole.total, 6 + compiled.identity_count() as u64);
    let (mut numbers, mut after) = (Vec::new(), None);
    loop {
        let page = compiled.list_identities(2, after);
        assert_eq!(page.total, whole.total);
        numbers.extend(page.rows.iter().map(|row| row.number));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(numbers, whole.rows.iter().map(|row| row.number).collect::<Vec<_>>());
    assert!(numbers.is_sorted() && numbers.starts_with(&[1, 2, 3, 4, 5, 6]));
}

fn listed(compiled: &Compiled) -> PolicyListing {
    compiled.list_policies(None, (10, None), &Problems::new())
}

#[test]
fn a_policy_is_listed_with_whom_it_selects_its_mode_and_what_is_wrong_with_it() {
    let compiled = compiled_of(OBJECTS);
    let listing = listed(&compiled);
    let [watched, web] = &listing.rows[..] else { panic!("{listing:#?}") };
    assert_eq!((web.name.as_str(), web.selector.as_str()), ("shop/web", "app=web"));
    assert_eq!((web.pods_here, web.pods), (1, 3), "an address of the other family is no other pod");
    assert_eq!((web.ingress_rules, web.egress_rules, web.audited), (Some(2), None, false));
    assert_eq!(web.problems.len(), 1);
    assert!(web.problems.first[0].contains("\"misspelt\""), "{:?}", web.problems);
    assert_eq!((watched.ingress_rules, watched.egress_rules), (None, Some(0)));
    assert_eq!(watched.audited_by.as_deref(), Some("NetworkPolicy bank/watched"));
    let of_bank = compiled.list_policies(Some("bank"), (10, None), &Problems::new());
    assert_eq!((of_bank.rows, of_bank.total), (vec![watched.clone()], 1));
}

#[test]
fn what_a_source_refuses_is_told_with_the_policy_or_beside_those_in_force() {
    let compiled = compiled_of(OBJECTS);
    let refused: Problems = [
        (ObjectName::new("shop", "web"), vec!["unknown field spec.ingress[0].when".to_owned()]),
        (ObjectName::new("shop", "odd"), vec!["no name".to_owned()]),
    ]
    .into();
    let listing = compiled.list_policies(Some("shop"), (10, None), &refused);
    assert_eq!(listing.rows[0].problems.first[0], "unknown field spec.ingress[0].when");
    assert_eq!(listing.refused.first[0].policy, "shop/odd");
    assert!(listing.refused.first[0].message.contains("nothing of it is in force"));
    let problems = compiled.policy_problems(None, &refused, 2);
    assert_eq!((problems.first.len(), problems.left_out), (2, 1));
    assert!(compiled.policy_problems(Some("bank"), &refused, 2).is_empty());
}

fn detail(compiled: &Compiled, name: &str, limit: usize) -> PolicyDetail {
    let name = name.parse().expect("a name");
    compiled.policy_detail(&name, limit, &Problems::new()).expect("it is in force")
}

#[test]
fn a_policys_rules_are_told_as_read_with_named_ports_as_numbers() {
    let compiled = compiled_of(OBJECTS);
    let web = detail(&compiled, "shop/web", 10);
    let [first, second] = &web.rules.first[..] else { panic!("{web:#?}") };
    assert_eq!(
        first.peers.joined(" or "),
        "pods (all) of namespaces team=b (1 pod) or 198.51.100.0/24 (0 pods)"
    );
    assert_eq!(first.ports.joined(" or "), "tcp \"http\" (80 or 8080 there) or udp 53");
    assert!(second.peers.is_empty());
    assert_eq!(second.ports.first, ["tcp \"misspelt\" (no such port there)"]);
    let [endpoint] = &web.endpoints.first[..] else { panic!("{web:#?}") };
    assert_eq!(
        (endpoint.name.as_str(), endpoint.ingress, endpoint.egress),
        ("shop/web-0", true, false)
    );
    let cut = detail(&compiled, "shop/web", 1);
    assert_eq!((cut.rules.first.len(), cut.rules.left_out), (1, 1));
    let watched = detail(&compiled, "bank/watched", 10);
    let [endpoint] = &watched.endpoints.first[..] else { panic!("{watched:#?}") };
    assert_eq!(
        (endpoint.name.as_str(), endpoint.ingress, endpoint.egress),
        ("bank/app", false, true)
    );
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("JSON")
}

/// A thousand policies with a long selector each, all of them of one pod.
fn crowded() -> Compiled {
    let mut objects = String::from(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web}}, \
         spec: {nodeName: one, containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.0.1}]}}\n",
    );
    let values: Vec<String> = (0..40).map(|number| format!("value-{number:050}")).collect();
    for number in 0..1000 {
        let values = values.join(", ");
        write!(
            objects,
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
             metadata: {{name: p-{number:04}, namespace: shop}}, spec: {{podSelector: \
             {{matchExpressions: [{{key: k{number}, operator: NotIn, values: [{values}]}}]}}}}}}\n"
        )
        .expect("written");
    }
    compiled_of(&objects)
}

#[test]
fn a_thousand_policies_of_one_pod_leave_answers_short() {
    let compiled = crowded();
    let rows = compiled.list_identities(1000, None);
    let web = rows.rows.last().expect("the pod's");
    assert_eq!(web.selectors.len(), 1000);
    assert!(web.selectors.first.iter().all(|one| one.selector.len() < 500), "cut");
    assert_eq!(web.isolated_ingress.len(), 1000);
    assert!(json(&rows).len() < 10_000, "{} bytes", json(&rows).len());
    let page = compiled.list_policies(None, (100, None), &Problems::new());
    assert_eq!((page.rows.len(), page.total), (100, 1000));
    assert_eq!(page.next.as_deref(), Some("shop/p-0099"));
    assert!(json(&page).len() < 100_000, "{} bytes", json(&page).len());
    let after = page.next.expect("more").parse().expect("a name");
    let last = compiled.list_policies(None, (1000, Some(&after)), &Problems::new());
    assert_eq!((last.rows.len(), last.next), (900, None));
    let whole = compiled.describe_identity(compiled.identities.lookup([10, 0, 0, 1].into()), 1000);
    assert!(json(&whole).len() < 2_000_000, "{} bytes", json(&whole).len());
}
