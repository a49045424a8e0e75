//! NetworkPolicy, feature by feature: policies, packets, and the verdict written by hand. Every
//! case is judged by the compiled tables and by a naive reading of the same objects.

mod common;

use std::net::IpAddr;
use std::path::Path;

use common::{Cluster, Packet};
use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::{EGRESS_BANDWIDTH, ObjectName, PodBandwidth};
use dataplane::address::Protocol;
use dataplane::identity::Identity;
use dataplane::policy::{Direction, Query};

/// `one` is this node; `bank/far` is elsewhere, `bank/agent` on this node's own network.
const WORLD: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: bank, labels: {team: b, audited: ''}}}
---
{apiVersion: v1, kind: Node, metadata: {name: one}, status: {addresses: [
  {type: InternalIP, address: 172.16.0.1}, {type: Hostname, address: one}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: two}, status: {addresses: [
  {type: InternalIP, address: 172.16.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web, tier: front}},
 spec: {nodeName: one, containers: [{name: c, ports: [
   {name: http, containerPort: 8080}, {name: dns, containerPort: 5353, protocol: UDP}]}]},
 status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db, tier: back}},
 spec: {nodeName: one, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]},
 status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bare, namespace: shop},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: app, namespace: bank, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.1.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: bank, labels: {app: db}},
 spec: {nodeName: two, containers: [{name: c, ports: [{name: http, containerPort: 7070}]}]},
 status: {podIPs: [{ip: 10.0.2.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: bank, labels: {app: web}},
 spec: {nodeName: one, hostNetwork: true, containers: [{name: c}]},
 status: {podIPs: [{ip: 172.16.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: shop, labels: {app: web}},
 spec: {nodeName: one, containers: [{name: c}]},
 status: {phase: Succeeded, podIPs: [{ip: 10.0.0.9}]}}
";

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        addresses: ["172.16.0.1".parse().expect("an address")].into(),
        ..NodeView::default()
    }
}

fn cluster(policies: &[&str]) -> Cluster {
    let mut text = WORLD.to_owned();
    for (index, spec) in policies.iter().enumerate() {
        text += &format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p{index}, namespace: shop}}\nspec: {spec}\n"
        );
    }
    let read = manifests::parse(Path::new("case.yaml"), &text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"));
    Cluster { state: read.state, node: node() }
}

fn address(cluster: &Cluster, text: &str, ipv4: bool) -> IpAddr {
    if let Ok(address) = text.parse() {
        return address;
    }
    let pod = &cluster.state.pods[&text.parse::<ObjectName>().expect("namespace/pod or address")];
    let of_family = |address: &&IpAddr| address.is_ipv4() == ipv4;
    *pod.addresses.iter().find(of_family).expect("an address of the family")
}

/// `shop/web > shop/db tcp/5432`, with `>6` for IPv6.
fn packet(cluster: &Cluster, line: &str) -> Packet {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [from, arrow, to, service] = words[..] else { panic!("not a packet: {line}") };
    let ipv4 = arrow == ">";
    let (protocol, l4_port) = service.split_once('/').expect("protocol/port");
    let protocol = match protocol {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "sctp" => Protocol::SCTP,
        "icmp" => Protocol::ICMP,
        other => panic!("{other} is no protocol"),
    };
    Packet {
        from: address(cluster, from, ipv4),
        to: address(cluster, to, ipv4),
        protocol,
        l4_port: l4_port.parse().expect("a port"),
    }
}

/// Checks that exactly the packets of `allowed` may pass.
fn check(policies: &[&str], allowed: &[&str], denied: &[&str]) {
    let cluster = cluster(policies);
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    for (lines, wanted) in [(allowed, true), (denied, false)] {
        for line in lines {
            let packet = packet(&cluster, line);
            cluster.check_explanation(&compiled, &packet);
            let got = cluster.allows(&compiled, &packet);
            assert_eq!(got, wanted, "{line} under {policies:?}");
        }
    }
}

#[test]
fn without_policy_everything_passes() {
    check(&[], &["shop/web > shop/db tcp/1", "192.0.2.1 > shop/web udp/53"], &[]);
}

#[test]
fn default_deny_of_ingress_leaves_egress_other_namespaces_and_the_own_node_alone() {
    check(
        &["{podSelector: {}}"],
        &[
            "shop/web > bank/app tcp/80",
            "shop/web > 192.0.2.1 tcp/443",
            "172.16.0.1 > shop/web tcp/8080",
            "172.16.0.1 > shop/bare icmp/0",
            "192.0.2.1 > bank/app tcp/80",
        ],
        &[
            "shop/web > shop/db tcp/80",
            "bank/app > shop/web tcp/8080",
            "192.0.2.1 > shop/web tcp/8080",
            "172.16.0.2 > shop/web tcp/8080",
            "shop/web >6 shop/db tcp/80",
            "shop/web > shop/db icmp/0",
        ],
    );
}

#[test]
fn default_deny_of_egress_needs_policy_types() {
    check(
        &["{podSelector: {}, policyTypes: [Egress]}"],
        &["bank/app > shop/web tcp/8080", "192.0.2.1 > shop/web tcp/8080"],
        &["shop/web > shop/db tcp/80", "shop/web > 192.0.2.1 udp/53", "shop/web > bank/far tcp/1"],
    );
}

#[test]
fn without_policy_types_egress_is_isolated_exactly_when_there_is_an_egress_rule() {
    let rule = "{podSelector: {matchLabels: {app: web}}, egress: [{ports: [{port: 443}]}]}";
    check(
        &[rule],
        &["shop/web > 192.0.2.1 tcp/443", "shop/db > 192.0.2.1 tcp/80"],
        // It isolates ingress too, and has no rule for it.
        &["shop/web > 192.0.2.1 tcp/80", "shop/db > shop/web tcp/443"],
    );
    let empty = "{podSelector: {matchLabels: {app: web}}, egress: []}";
    check(&[empty], &["shop/web > 192.0.2.1 tcp/80"], &["shop/db > shop/web tcp/443"]);
}

#[test]
fn rules_of_a_direction_that_policy_types_leaves_out_do_nothing() {
    check(
        &["{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: [{}]}"],
        &["192.0.2.1 > shop/web tcp/1", "shop/web > 192.0.2.1 tcp/1"],
        &[],
    );
}

#[test]
fn empty_rule_allows_everything_and_empty_lists_in_it_do_too() {
    for rule in ["{}", "{from: [], ports: []}", "{from: null}"] {
        check(
            &[&format!("{{podSelector: {{}}, ingress: [{rule}]}}")],
            &[
                "192.0.2.1 > shop/web sctp/7",
                "shop/web >6 shop/db udp/1",
                "shop/db > shop/web icmp/0",
            ],
            &[],
        );
    }
}

#[test]
fn pod_selector_looks_into_the_policys_own_namespace_only() {
    check(
        &["{podSelector: {matchLabels: {app: db}},
            ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"],
        &["shop/web > shop/db tcp/80", "shop/web >6 shop/db udp/80", "bank/app > shop/web tcp/1"],
        &["bank/app > shop/db tcp/80", "shop/bare > shop/db tcp/80", "192.0.2.1 > shop/db tcp/80"],
    );
}

#[test]
fn namespace_selector_alone_takes_every_pod_of_the_namespaces() {
    check(
        &["{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}"],
        &["bank/app > shop/web tcp/1", "bank/far > shop/web tcp/1"],
        &["shop/db > shop/web tcp/1", "192.0.2.1 > shop/web tcp/1"],
    );
}

#[test]
fn empty_namespace_selector_takes_all_pods_but_nobody_else() {
    check(
        &["{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"],
        &["bank/app > shop/web tcp/1", "shop/bare > shop/web tcp/1"],
        &["192.0.2.1 > shop/web tcp/1", "172.16.0.2 > shop/web tcp/1"],
    );
}

#[test]
fn both_selectors_in_one_peer_must_match_and_in_two_peers_either_may() {
    let both =
        "{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: db}}}";
    check(
        &[&format!("{{podSelector: {{}}, ingress: [{{from: [{both}]}}]}}")],
        &["bank/far > shop/web tcp/1"],
        &["bank/app > shop/web tcp/1", "shop/db > shop/web tcp/1"],
    );
    check(
        &["{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}},
                                               {podSelector: {matchLabels: {app: db}}}]}]}"],
        &["bank/far > shop/web tcp/1", "bank/app > shop/web tcp/1", "shop/db > shop/web tcp/1"],
        &["shop/bare > shop/web tcp/1"],
    );
}

#[test]
fn every_namespace_has_its_name_for_a_label() {
    check(
        &["{podSelector: {}, ingress: [{from: [
            {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bank}}}]}]}"],
        &["bank/app > shop/web tcp/1"],
        &["shop/db > shop/web tcp/1"],
    );
}

#[test]
fn match_expressions_compare_values_and_presence() {
    let from = |expression: &str| {
        format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"
        )
    };
    let (web, db, bare) =
        ("shop/web > shop/web tcp/1", "shop/db > shop/web tcp/1", "shop/bare > shop/web tcp/1");
    check(&[&from("{key: app, operator: In, values: [web, db]}")], &[web, db], &[bare]);
    check(&[&from("{key: app, operator: NotIn, values: [db]}")], &[web, bare], &[db]);
    check(&[&from("{key: app, operator: Exists}")], &[web, db], &[bare]);
    check(&[&from("{key: app, operator: DoesNotExist}")], &[bare], &[web, db]);
    let all = "{key: app, operator: Exists}, {key: tier, operator: NotIn, values: [back]}";
    check(&[&from(all)], &[web], &[db, bare]);
}

#[test]
fn ip_block_counts_without_its_exceptions_for_the_world_pods_and_nodes() {
    check(
        &["{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [
            {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}},
            {ipBlock: {cidr: 10.0.2.0/24}}, {ipBlock: {cidr: 172.16.0.2/32}}]}]}"],
        &[
            "shop/web > 192.0.2.1 tcp/1",
            "shop/web > bank/far tcp/1",
            "shop/web > 172.16.0.2 tcp/1",
            "shop/db > 192.0.2.200 tcp/1",
        ],
        &[
            "shop/web > 192.0.2.200 tcp/1",
            "shop/web > 198.51.100.1 tcp/1",
            "shop/web > shop/db tcp/1",
            "shop/web > 172.16.0.1 tcp/1",
        ],
    );
}

#[test]
fn what_one_block_excepts_another_may_allow() {
    check(
        &[
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.0.0/8, except: [192.0.2.0/24]}}]}]}",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.64/26}}], ports: [{port: 80}]}]}",
        ],
        &["192.1.1.1 > shop/web tcp/22", "192.0.2.65 > shop/web tcp/80"],
        &["192.0.2.1 > shop/web tcp/80", "192.0.2.65 > shop/web tcp/22"],
    );
}

#[test]
fn block_of_one_family_says_nothing_about_a_pods_other_address() {
    check(
        &[
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/32}}]}]}",
        ],
        &["shop/web > shop/db tcp/1"],
        &["shop/web >6 shop/db tcp/1"],
    );
    check(
        &[
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}",
        ],
        &["shop/web >6 shop/db tcp/1"],
        &["shop/web > shop/db tcp/1"],
    );
}

#[test]
fn own_node_is_admitted_even_where_a_block_excepts_it_and_is_judged_as_a_destination() {
    check(
        &["{podSelector: {}, policyTypes: [Ingress, Egress],
            ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12, except: [172.16.0.1/32]}}]}],
            egress: [{to: [{ipBlock: {cidr: 172.16.0.0/12}}], ports: [{port: 53, protocol: UDP}]}]}"],
        &[
            "172.16.0.1 > shop/web tcp/8080",
            "172.16.0.2 > shop/web tcp/8080",
            "shop/web > 172.16.0.1 udp/53",
        ],
        &["shop/web > 172.16.0.1 tcp/53", "192.0.2.1 > shop/web tcp/8080"],
    );
}

#[test]
fn ports_are_tcp_unless_they_say_otherwise_and_protocols_are_apart() {
    check(
        &[
            "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {protocol: SCTP}]}]}",
        ],
        &[
            "192.0.2.1 > shop/web tcp/80",
            "192.0.2.1 > shop/web udp/53",
            "192.0.2.1 > shop/web sctp/9",
        ],
        &[
            "192.0.2.1 > shop/web udp/80",
            "192.0.2.1 > shop/web tcp/53",
            "192.0.2.1 > shop/web tcp/81",
            "192.0.2.1 > shop/web icmp/0",
        ],
    );
}

#[test]
fn end_port_closes_a_range_and_belongs_to_it() {
    check(
        &["{podSelector: {}, ingress: [{ports: [{port: 8000, endPort: 8010}]}]}"],
        &["192.0.2.1 > shop/web tcp/8000", "192.0.2.1 > shop/web tcp/8010"],
        &["192.0.2.1 > shop/web tcp/7999", "192.0.2.1 > shop/web tcp/8011"],
    );
}

#[test]
fn named_port_means_what_each_destination_pod_means_by_it() {
    check(
        &["{podSelector: {}, ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]}"],
        &[
            "192.0.2.1 > shop/web tcp/8080",
            "192.0.2.1 > shop/db tcp/9090",
            "192.0.2.1 > shop/web udp/5353",
        ],
        &[
            "192.0.2.1 > shop/web tcp/9090",
            "192.0.2.1 > shop/db tcp/8080",
            "192.0.2.1 > shop/bare tcp/8080",
            // The name is TCP's here.
            "192.0.2.1 > shop/web udp/8080",
        ],
    );
}

#[test]
fn named_port_of_an_egress_rule_is_the_peers() {
    let to_all = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],
                   egress: [{ports: [{port: http}]}]}";
    check(
        &[to_all],
        &["shop/web > shop/db tcp/9090", "shop/web > bank/far tcp/7070"],
        &[
            "shop/web > shop/db tcp/8080",
            "shop/web > 192.0.2.1 tcp/8080",
            "shop/web > shop/bare tcp/9090",
        ],
    );
    let to_bank = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],
                    egress: [{to: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: http}]}]}";
    check(&[to_bank], &["shop/web > bank/far tcp/7070"], &["shop/web > shop/db tcp/9090"]);
}

#[test]
fn policies_add_up_and_never_take_away() {
    check(
        &[
            "{podSelector: {}}",
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}",
            "{podSelector: {matchLabels: {tier: front}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 81}]}]}",
        ],
        &["192.0.2.1 > shop/web tcp/80", "shop/db > shop/web tcp/81"],
        &["192.0.2.1 > shop/web tcp/81", "192.0.2.1 > shop/db tcp/80"],
    );
}

#[test]
fn both_ends_must_allow_a_flow_within_the_node() {
    check(
        &[
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],
              egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
            "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432}]}]}",
        ],
        &["shop/web > shop/db tcp/5432"],
        &["shop/web > shop/db tcp/80", "shop/web > shop/bare tcp/5432"],
    );
}

#[test]
fn host_network_and_completed_pods_are_neither_subjects_nor_peers() {
    check(
        &["{podSelector: {}, policyTypes: [Ingress, Egress],
            ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"],
        // The agent speaks from the node's address, which reaches every pod here.
        &["172.16.0.1 > shop/web tcp/1", "10.0.0.9 > 192.0.2.1 tcp/1"],
        &["10.0.0.9 > shop/db tcp/1", "shop/web > 172.16.0.1 tcp/1"],
    );
}

#[test]
fn endpoint_without_a_pod_object_is_denied_by_policies_that_may_select_it() {
    let mut cluster = cluster(&[
        "{podSelector: {matchLabels: {app: web}}, ingress: [{}]}",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80}]}]}",
    ]);
    let (new, elsewhere): (IpAddr, IpAddr) =
        ("10.0.0.77".parse().unwrap(), "10.0.1.77".parse().unwrap());
    cluster.node.endpoints.insert(ObjectName::new("shop", "new"), [new].into());
    cluster.node.endpoints.insert(ObjectName::new("bank", "new"), [elsewhere].into());
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    let judge = |compiled: &Compiled, subject| {
        let query = Query {
            subject: compiled.identities.lookup(subject),
            peer: Identity::WORLD,
            protocol: Protocol::TCP,
            l4_port: 80,
        };
        compiled.policy.judge(Direction::Ingress, &query).allowed
    };
    assert!(!judge(&compiled, new), "nobody knows which policy selects it");
    assert!(judge(&compiled, elsewhere), "no policy of its namespace could select it");
    assert!(compiled.warnings.iter().any(|warning| warning.object == "Endpoint shop/new"));
    let subject = compiled.identities.lookup(new);
    assert_eq!(compiled.isolating(subject, Direction::Ingress).len(), 2);

    // The Pod object comes, its status still without an address: the endpoint has it.
    let name = ObjectName::new("shop", "new");
    let mut pod = cluster.state.pods[&ObjectName::new("shop", "db")].clone();
    (pod.name, pod.addresses) = (name.clone(), Box::default());
    cluster.state.pods.insert(name, pod);
    let known = compile(&cluster.state, &cluster.node, &compiled);
    assert!(judge(&known, new));
    let db = known.identities.lookup("10.0.0.2".parse().unwrap());
    assert_eq!(known.identities.lookup(new), db, "labels alike, identity alike");
}

#[test]
fn an_unreadable_bandwidth_of_a_pod_here_is_told_until_it_is_mended_and_elsewhere_by_nobody() {
    let mut cluster = cluster(&[]);
    let [here, elsewhere] = ["web", "db"].map(|name| ObjectName::new("shop", name));
    let own = ["10.0.0.1".parse::<IpAddr>().unwrap()].into();
    cluster.node.endpoints = [(here.clone(), own)].into();
    let mut compiled = Compiled::default();
    for (written, told) in [("10Mbit", 1), ("1Pi", 1), ("10M", 0)] {
        let annotations = [(EGRESS_BANDWIDTH.to_owned(), written.to_owned())].into();
        for name in [&here, &elsewhere] {
            let pod = cluster.state.pods.get_mut(name).unwrap();
            pod.bandwidth = PodBandwidth::of(Some(&annotations));
        }
        compiled = compile(&cluster.state, &cluster.node, &compiled);
        let warnings: Vec<_> = compiled.warnings.iter().map(ToString::to_string).collect();
        let about = warnings.iter().filter(|warning| warning.contains(EGRESS_BANDWIDTH));
        let about: Vec<_> = about.collect();
        assert_eq!(about.len(), told, "{warnings:?}");
        assert!(about.iter().all(|one| one.contains("Pod shop/web") && one.contains(written)));
    }
}

#[test]
fn labels_that_no_policy_names_make_no_identity() {
    let mut cluster = cluster(&["{podSelector: {matchLabels: {app: job}}}"]);
    for index in 0..1000u32 {
        let name = ObjectName::new("shop", format!("job-{index}"));
        let mut pod = cluster.state.pods[&ObjectName::new("shop", "bare")].clone();
        pod.labels = [("app", "job".to_owned()), ("run", format!("r{index}"))]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        pod.addresses = [std::net::Ipv4Addr::from(0x0a0a_0000 + index).into()].into();
        pod.name = name.clone();
        cluster.state.pods.insert(name, pod);
    }
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    assert!(compiled.identity_count() <= 2, "{} identities", compiled.identity_count());
}

#[test]
fn default_deny_names_the_policies_that_isolate() {
    let cluster = cluster(&["{podSelector: {}}", "{podSelector: {matchLabels: {app: web}}}"]);
    let compiled = compile(&cluster.state, &cluster.node, &Compiled::default());
    let isolating = |address: &str| {
        let subject = compiled.identities.lookup(address.parse().unwrap());
        compiled
            .isolating(subject, Direction::Ingress)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(isolating("10.0.0.1"), ["shop/p0", "shop/p1"]);
    assert_eq!(isolating("10.0.0.2"), ["shop/p0"]);
}
