//! What becomes of flows as backends come and go, as the compiler tells it: which pod an address is, whom
//! UDP is left at, how much each backend gets, and who is remembered for how long.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use control::compile::{Affected, Compiled, NodeView, compile};
use control::manifests;
use dataplane::address::Protocol;
use dataplane::identity::PodTag;
use dataplane::lb::{Affinity, Choice, Frontend, Service};
use dataplane::time::Seconds;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn compiled_after(objects: &[String], before: &Compiled) -> Compiled {
    let text = objects.join("---\n");
    let loaded = manifests::parse(Path::new("case.yaml"), &text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"));
    let node = NodeView { name: "one".into(), ..NodeView::default() };
    compile(&loaded.state, &node, before)
}

fn compiled(objects: &[String]) -> Compiled {
    compiled_after(objects, &Compiled::default())
}

fn pod(name: &str, address: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{more}}}\n\
         spec: {{nodeName: two, containers: [{{name: c}}]}}\nstatus: {{podIP: {address}}}\n"
    )
}

fn service(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop{metadata}}}\n\
         spec: {{clusterIP: 10.96.0.1, {spec}ports: [{{name: t, port: 80}}, \
         {{name: u, port: 80, protocol: UDP}}]}}\n"
    )
}

fn slice(endpoints: &[(&str, &str)]) -> String {
    let one = |(address, conditions): &(&str, &str)| {
        format!("{{addresses: [{address}], conditions: {{{conditions}}}}}")
    };
    let all: Vec<String> = endpoints.iter().map(one).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: t, port: 8080}}, {{name: u, port: 8080, protocol: UDP}}]\n\
         endpoints: [{}]\n",
        all.join(", ")
    )
}

fn web(compiled: &Compiled, protocol: Protocol) -> Arc<Service> {
    let frontend = Frontend { address: ip("10.96.0.1"), protocol, l4_port: 80 };
    let (id, _) = compiled.services.frontends.get(&frontend).expect("it listens");
    Arc::clone(compiled.services.get(*id).expect("a frontend has its service"))
}

fn tag(compiled: &Compiled, address: &str) -> PodTag {
    compiled.identities.holder(ip(address)).pod
}

/// Flows that went past it are judged again, of UDP alone.
#[test]
fn an_address_is_affected_when_udp_begins_to_be_served_there() {
    let own = Affected::Addresses([ip("10.96.0.1")].into());
    let empty = compiled(&[service("", "")]);
    assert_eq!(empty.affected, own);
    let served = compiled_after(&[service("", ""), slice(&[("10.1.0.5", READY)])], &empty);
    assert_eq!(served.affected, own);
    let same = compiled_after(&[service("", ""), slice(&[("10.1.0.5", READY)])], &served);
    assert_eq!(same.affected, Affected::Nothing);
    let external = service("", "externalIPs: [198.51.100.7], ");
    let more = compiled_after(&[external.clone(), slice(&[("10.1.0.5", READY)])], &served);
    assert_eq!(more.affected, Affected::Addresses([ip("198.51.100.7")].into()));
    let of_tcp = service("", "").replace(", {name: u, port: 80, protocol: UDP}", "");
    assert!(!of_tcp.contains("UDP"));
    assert_eq!(compiled(&[of_tcp]).affected, Affected::Nothing);
}

const READY: &str = "ready: true";
const ENDING: &str = "ready: false, serving: true, terminating: true";

#[test]
fn pod_is_gone_once_it_is_deleted_or_has_ended_or_another_has_its_address() {
    let uid = |uid: &str| format!(", uid: {uid}");
    let first = [pod("a", "10.1.0.5", &uid("u-1")), pod("b", "10.1.0.6", &uid("u-2"))];
    let before = compiled(&first);
    let own = tag(&before, "10.1.0.5");
    assert!(own != PodTag::Unknown && own != tag(&before, "10.1.0.6"));
    let is_gone = |objects: &[String]| {
        let after = compiled_after(objects, &before);
        let concerned = after.affected.contains(ip("10.1.0.5"));
        assert!(!after.affected.contains(ip("10.1.0.6")), "another pod's flows");
        let gone = after.identities.is_gone(ip("10.1.0.5"), own);
        assert!(concerned || !gone, "its flows must be judged again");
        gone
    };
    let other = first[1].clone();
    assert!(!is_gone(&[first[0].clone(), other.clone()]), "nothing happened");
    assert!(is_gone(std::slice::from_ref(&other)), "deleted");
    for (phase, gone) in
        [("Running", false), ("Unknown", false), ("Succeeded", true), ("Failed", true)]
    {
        let ended = first[0].replace("status: {", &format!("status: {{phase: {phase}, "));
        assert_eq!(is_gone(&[ended, other.clone()]), gone, "{phase}");
    }
    let ending = first[0].replace("uid:", "deletionTimestamp: '2026-01-01T00:00:00Z', uid:");
    assert!(!is_gone(&[ending, other.clone()]), "it only ends");
    let heir = pod("c", "10.1.0.5", &uid("u-3"));
    assert!(is_gone(&[heir, other.clone()]), "reassigned");
    let again = first[0].replace("u-1", "u-4");
    assert!(is_gone(&[again, other.clone()]), "another pod of the same name");
    let relabelled = first[0].replace("namespace:", "labels: {x: y}, namespace:");
    assert!(!is_gone(&[relabelled, other]), "another label is no other pod");
    // What was never told of cannot be missed, and what is no pod's neither.
    assert!(!Compiled::default().identities.is_gone(ip("10.1.0.5"), own));
    assert!(!before.identities.is_gone(ip("192.0.2.1"), PodTag::Unknown));
}

#[test]
fn udp_alone_is_let_go_from_what_serves_no_longer() {
    let [a, b] = ["10.1.0.5", "10.1.0.6"];
    let with = |endpoints: &[(&str, &str)]| [service("", ""), slice(endpoints)];
    let before = compiled(&with(&[(a, READY), (b, READY)]));
    let after = |endpoints: &[(&str, &str)]| compiled_after(&with(endpoints), &before);
    let of_a = Affected::Addresses([ip(a)].into());

    let ending = after(&[(a, ENDING), (b, READY)]);
    assert_eq!(ending.affected, Affected::Nothing, "it serves on");
    let udp = web(&ending, Protocol::UDP);
    assert!(udp.serves_by((ip(a), 8080)) && udp.cluster.find((ip(a), 8080)).is_none());
    assert_eq!(after(&[(b, READY)]).affected, of_a);
    assert_eq!(after(&[(a, "ready: false, serving: false"), (b, READY)]).affected, of_a);
    assert_eq!(after(&[]).affected, Affected::Addresses([ip(a), ip(b)].into()));
    assert_eq!(after(&[(a, READY), (b, READY), ("10.1.0.7", READY)]).affected, Affected::Nothing);

    let tcp = service("", "").replace(", {name: u, port: 80, protocol: UDP}", "");
    let before = compiled(&[tcp.clone(), slice(&[(a, READY)])]);
    let after = compiled_after(&[tcp, slice(&[])], &before);
    assert_eq!(after.affected, Affected::Nothing, "TCP stays where it is");
    let gone = compiled_after(&[slice(&[])], &compiled(&with(&[(a, READY)])));
    assert_eq!(gone.affected, Affected::Nothing, "a service that is gone leaves its flows");
}

fn shares(service: &Service) -> Vec<usize> {
    let mut shares = vec![0; service.cluster.backends.len()];
    service.cluster.maglev.iter().for_each(|slot| shares[usize::from(*slot)] += 1);
    shares
}

#[test]
fn shares_follow_the_pods_annotation_and_what_is_no_weight_is_told() {
    let weight = |text: &str| format!(", annotations: {{xskiff.io/service-weight: '{text}'}}");
    let endpoints = slice(&[("10.1.0.5", READY), ("10.1.0.6", READY), ("192.0.2.9", READY)]);
    let with = |more: &str| {
        [service("", ""), endpoints.clone(), pod("a", "10.1.0.5", more), pod("b", "10.1.0.6", "")]
    };
    let plain = compiled(&with(""));
    let even = shares(&web(&plain, Protocol::TCP));
    assert!(even.iter().all(|share| share.abs_diff(even[0]) <= 1), "{even:?}");
    let mut before = plain.clone();
    for (text, share) in [("10", 10), ("1000", 1000), ("100", 100), ("1", 1)] {
        let after = compiled_after(&with(&weight(text)), &before);
        let [a, b, c] = shares(&web(&after, Protocol::TCP))[..] else { panic!("three") };
        let slots = (a + b + c) as f64;
        let due = slots * f64::from(share) / (200.0 + f64::from(share));
        assert!((a as f64 - due).abs() <= 3.0 && b.abs_diff(c) <= 1, "{text}: {a} {b} {c}");
        assert!(after.warnings.is_empty(), "{:?}", after.warnings.iter().collect::<Vec<_>>());
        before = after;
    }
    for text in ["0", "1001", "half"] {
        let after = compiled_after(&with(&weight(text)), &before);
        assert_eq!(shares(&web(&after, Protocol::TCP)), even, "{text} counts as 100");
        let told: Vec<String> = after.warnings.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains("Pod shop/a: annotation"), "{told:?}");
        before = after;
    }
    let after = compiled_after(&with(""), &before);
    assert!(after.warnings.is_empty() && shares(&web(&after, Protocol::TCP)) == even);
    let gone = [service("", ""), endpoints.clone(), pod("b", "10.1.0.6", "")];
    let light = compiled(&with(&weight("1")));
    assert_eq!(shares(&web(&compiled_after(&gone, &light), Protocol::TCP)), even);
}

#[test]
fn way_back_is_read_told_and_goes_by_the_configuration_where_nothing_is_said() {
    let endpoints = slice(&[("10.1.0.5", READY)]);
    let of = |annotation: &str, returns_directly: bool| {
        let metadata = match annotation {
            "" => String::new(),
            word => format!(", annotations: {{xskiff.io/forwarding-mode: {word}}}"),
        };
        let text = [service(&metadata, ""), endpoints.clone()].join("---\n");
        let loaded = manifests::parse(Path::new("case.yaml"), &text).expect("valid");
        let node = NodeView { name: "one".into(), returns_directly, ..NodeView::default() };
        (loaded.state, node)
    };
    for (annotation, configured, direct, told) in [
        ("", false, false, false),
        ("", true, true, false),
        ("snat", true, false, false),
        ("dsr", false, true, false),
        ("Dsr", false, false, true),
        ("Dsr", true, true, true),
    ] {
        let (state, node) = of(annotation, configured);
        let compiled = compile(&state, &node, &Compiled::default());
        assert_eq!(web(&compiled, Protocol::TCP).direct, direct, "{annotation:?}");
        assert_eq!(compiled.services.have_direct, direct);
        let about = |warning: &control::compile::Warning| {
            warning.object == "Service shop/web" && warning.message.contains("forwarding-mode")
        };
        assert_eq!(compiled.warnings.iter().any(about), told, "{annotation:?}");
        // The configuration may change while it runs.
        let (_, other) = of(annotation, !configured);
        let changed = compile(&state, &other, &compiled);
        let follows = annotation.is_empty() || told;
        assert_eq!(changed.services.have_direct, if follows { !configured } else { direct });
        let nothing = compile(&Default::default(), &node, &compiled);
        assert!(!nothing.services.have_direct, "it ends with the service");
    }
}

/// Where any node must find the same backend by a packet alone, what makes that impossible is told by the
/// service's name, and flows are kept.
#[test]
fn flows_are_kept_unless_a_service_says_otherwise_and_nothing_is_against_it() {
    const EXTERNAL: &str = "externalIPs: [203.0.113.1], ";
    let plain = slice(&[("10.1.0.5", READY)]);
    let hinted = plain.replace("conditions", "hints: {forZones: [{name: z}]}, conditions");
    let of = |annotations: &str, spec: &str, endpoints: &str, configured: bool| {
        let metadata = format!(", annotations: {{{annotations}}}");
        let text = [service(&metadata, spec), endpoints.to_owned()].join("---\n");
        let loaded = manifests::parse(Path::new("case.yaml"), &text).expect("valid");
        let node =
            NodeView { name: "one".into(), returns_directly: configured, ..NodeView::default() };
        compile(&loaded.state, &node, &Compiled::default())
    };
    let told = |compiled: &Compiled| -> Vec<String> {
        let about = |one: &&control::compile::Warning| {
            one.object == "Service shop/web" && one.message.contains("xskiff.io/stateless")
        };
        compiled.warnings.iter().filter(about).map(|one| one.message.clone()).collect()
    };
    const DIRECT: &str = "xskiff.io/stateless: 'true', xskiff.io/forwarding-mode: dsr";
    const MARKED: &str = "xskiff.io/stateless: 'true'";
    for (annotations, configured) in [(DIRECT, false), (MARKED, true)] {
        let compiled = of(annotations, EXTERNAL, &plain, configured);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            assert!(web(&compiled, protocol).stateless, "{annotations}");
        }
        assert!(compiled.services.have_stateless && told(&compiled).is_empty());
        let nothing = compile(&Default::default(), &NodeView::default(), &compiled);
        assert!(!nothing.services.have_stateless, "it ends with the service");
    }
    let random = format!("{DIRECT}, xskiff.io/load-balancing: random");
    let least = format!("{DIRECT}, xskiff.io/load-balancing: least-connections");
    let affinity = format!("{EXTERNAL}sessionAffinity: ClientIP, ");
    let local = format!("{EXTERNAL}type: NodePort, externalTrafficPolicy: Local, ");
    for (annotations, spec, endpoints, why) in [
        (MARKED, EXTERNAL, &plain, "snat"),
        (DIRECT, &affinity, &plain, "sessionAffinity"),
        (&random, EXTERNAL, &plain, "at random"),
        (&least, EXTERNAL, &plain, "by their connections"),
        (DIRECT, &local, &plain, "externalTrafficPolicy Local"),
        (DIRECT, EXTERNAL, &hinted, "hints"),
        (DIRECT, "", &plain, "no external address"),
        ("xskiff.io/stateless: 'True'", EXTERNAL, &plain, "neither true nor false"),
    ] {
        let compiled = of(annotations, spec, endpoints, false);
        assert!(!web(&compiled, Protocol::TCP).stateless, "{why}");
        assert!(!compiled.services.have_stateless, "{why}");
        let told = told(&compiled);
        assert!(told.len() == 1 && told[0].contains(why), "{why}: {told:?}");
    }
    let several = told(&of(&random, &affinity, &hinted, false)).join("");
    let all = ["sessionAffinity", "at random", "hints"];
    assert!(all.iter().all(|why| several.contains(why)), "{several}");
    // Not said, or said to be false, nothing is told.
    for annotations in ["xskiff.io/forwarding-mode: dsr", "xskiff.io/stateless: 'false'"] {
        let compiled = of(annotations, &affinity, &hinted, false);
        assert!(!compiled.services.have_stateless && told(&compiled).is_empty());
    }
}

#[test]
fn session_affinity_and_the_choice_are_read_and_told() {
    let endpoints = slice(&[("10.1.0.5", READY)]);
    let of = |metadata: &str, spec: &str| compiled(&[service(metadata, spec), endpoints.clone()]);
    let timeout =
        |compiled: &Compiled| web(compiled, Protocol::TCP).affinity.map(|own| own.timeout);
    let plain = of("", "");
    assert_eq!((timeout(&plain), plain.services.have_affinity), (None, false));
    assert_eq!(timeout(&of("", "sessionAffinity: None, ")), None);
    let standard = of("", "sessionAffinity: ClientIP, ");
    assert_eq!(timeout(&standard), Some(Seconds(10_800)));
    assert!(standard.services.have_affinity && standard.warnings.is_empty());
    let config = "sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}, ";
    let short = of("", &format!("sessionAffinity: ClientIP, {config}"));
    assert_eq!(timeout(&short), Some(Seconds(7)));
    assert_eq!(timeout(&of("", config)), None, "the time alone means nothing");
    let [tcp, udp] = [Protocol::TCP, Protocol::UDP].map(|protocol| web(&short, protocol).affinity);
    let service = |affinity: Option<Affinity>| affinity.map(|own| own.service);
    assert_ne!(service(tcp), service(udp), "each port has its own");
    assert_eq!(service(tcp), service(web(&standard, Protocol::TCP).affinity), "and keeps it");
    // It ends with the service.
    assert!(!compiled_after(std::slice::from_ref(&endpoints), &short).services.have_affinity);

    let chosen =
        |text: &str| of(&format!(", annotations: {{xskiff.io/load-balancing: {text}}}"), "");
    assert_eq!(web(&chosen("random"), Protocol::TCP).choice, Choice::Random);
    assert!(!chosen("random").services.have_least_connections);
    let least = chosen("least-connections");
    assert_eq!(web(&least, Protocol::TCP).choice, Choice::LeastConnections);
    assert!(least.services.have_least_connections && least.warnings.is_empty());
    let slip = chosen("roundrobin");
    assert_eq!(web(&slip, Protocol::TCP).choice, Choice::Maglev);
    assert!(slip.warnings.iter().any(|told| told.message.contains("xskiff.io/load-balancing")));
}

#[test]
fn a_time_that_is_none_is_refused_by_name() {
    for (spec, field) in [
        ("sessionAffinity: Cookie, ", "spec.sessionAffinity"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ",
            "timeoutSeconds",
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}, ",
            "timeoutSeconds",
        ),
    ] {
        let refused = manifests::parse(Path::new("case.yaml"), &service("", spec));
        let Err(errors) = refused else { panic!("{spec} is taken") };
        let text = format!("{errors:?}");
        assert!(text.contains(field) && text.contains("shop/web"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each node hears of objects in an order of its own, and of other changes in between.
    #[test]
    fn two_nodes_choose_alike_whatever_order_objects_came_in(
        order in Just((0..24usize).collect::<Vec<_>>()).prop_shuffle(),
        weights in proptest::collection::vec(1u16..=1000, 24),
    ) {
        let address = |n: usize| format!("10.1.0.{}", n + 1);
        let objects = |order: &[usize]| -> Vec<String> {
            let pods = order.iter().map(|n| {
                let more = format!(", annotations: {{xskiff.io/service-weight: '{}'}}", weights[*n]);
                pod(&format!("p{n}"), &address(*n), &more)
            });
            let all: Vec<String> = order.iter().map(|n| address(*n)).collect();
            let endpoints: Vec<(&str, &str)> = all.iter().map(|a| (&**a, READY)).collect();
            pods.chain([slice(&endpoints), service("", "")]).collect()
        };
        let straight: Vec<usize> = (0..24).collect();
        let one = compiled(&objects(&straight));
        let half = compiled(&objects(&order[..12]));
        let other = compiled_after(&objects(&order), &half);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let (one, other) = (web(&one, protocol), web(&other, protocol));
            let at = |service: &Service| -> BTreeMap<usize, (IpAddr, u16)> {
                let backend = |slot: &u16| service.cluster.backends[usize::from(*slot)];
                let slots = service.cluster.maglev.iter().map(backend);
                slots.map(|own| (own.address, own.l4_port)).enumerate().collect()
            };
            prop_assert_eq!(at(&one), at(&other));
        }
    }
}
