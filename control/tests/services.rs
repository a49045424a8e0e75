//! Services and EndpointSlices to frontends and backends, and what a recompilation keeps.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::ObjectName;
use control::store::ClusterState;
use dataplane::address::Protocol;
use dataplane::lb::{Frontend, FrontendKind, Service, TrafficPolicy};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        addresses: [ip("172.16.0.1"), ip("fd16::1")].into(),
        node_port_addresses: [ip("172.16.0.1"), ip("fd16::1")].into(),
        ..NodeView::default()
    }
}

fn state(text: &str) -> ClusterState {
    manifests::parse(Path::new("case.yaml"), text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"))
        .state
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n{spec}\n")
}

fn slice(name: &str, ports: &str, endpoints: &str) -> String {
    let family = if endpoints.contains("::") { "IPv6" } else { "IPv4" };
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: {family}\nports: {ports}\nendpoints: {endpoints}\n"
    )
}

const PLAIN: &str = "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}";

fn compiled(text: &str) -> Compiled {
    compile(&state(text), &node(), &Compiled::default())
}

fn at(compiled: &Compiled, address: &str, l4_port: u16) -> Option<(Arc<Service>, FrontendKind)> {
    let frontend = Frontend { address: ip(address), protocol: Protocol::TCP, l4_port };
    let (id, kind) = compiled.services.frontends.get(&frontend)?;
    Some((Arc::clone(compiled.services.get(*id).expect("a frontend has its service")), *kind))
}

fn shown(set: &dataplane::lb::BackendSet) -> Vec<String> {
    set.backends.iter().map(|b| format!("{}:{}", b.address, b.l4_port)).collect()
}

/// The usable backends of the plain service, in all and on this node.
fn usable(endpoints: &str) -> (Vec<String>, Vec<String>) {
    let text = service(PLAIN) + &slice("s", "[{port: 8080}]", endpoints);
    let (service, _) = at(&compiled(&text), "10.96.0.1", 80).expect("it listens");
    (shown(&service.cluster), shown(&service.local))
}

#[test]
fn endpoint_that_says_nothing_is_ready_and_one_that_is_not_ready_is_left_out() {
    let (all, _) = usable(
        "[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2], conditions: {ready: true}},
          {addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: [10.0.0.4], conditions: {}}]",
    );
    assert_eq!(all, ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:8080"]);
}

#[test]
fn terminating_endpoints_serve_only_while_no_ready_one_is_left() {
    let ending =
        "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}";
    let deaf =
        "{addresses: [10.0.0.2], conditions: {ready: false, serving: false, terminating: true}}";
    let starting = "{addresses: [10.0.0.4], conditions: {ready: false, serving: true}}";
    let (all, _) = usable(&format!("[{ending}, {deaf}, {starting}]"));
    assert_eq!(all, ["10.0.0.1:8080"]);
    let (all, _) = usable(&format!("[{ending}, {deaf}, {{addresses: [10.0.0.3]}}]"));
    assert_eq!(all, ["10.0.0.3:8080"]);
}

#[test]
fn terminating_endpoints_of_this_node_are_judged_apart_from_all_others() {
    let (all, local) = usable(
        "[{addresses: [10.0.0.1], nodeName: one, conditions: {ready: false, serving: true, terminating: true}},
          {addresses: [10.0.0.2], nodeName: two}]",
    );
    assert_eq!((all, local), (vec!["10.0.0.2:8080".into()], vec!["10.0.0.1:8080".to_owned()]));
}

#[test]
fn endpoint_without_a_node_is_on_none_although_its_address_is_here() {
    let text = service(PLAIN)
        + &slice("s", "[{port: 8080}]", "[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]");
    let mut node = node();
    node.endpoints.insert(ObjectName::new("shop", "web-0"), [ip("10.0.0.2")].into());
    let compiled = compile(&state(&text), &node, &Compiled::default());
    let (service, _) = at(&compiled, "10.96.0.1", 80).expect("it listens");
    assert_eq!(shown(&service.cluster), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert!(service.local.backends.is_empty(), "as with kube-proxy");
}

/// One of a thousand took all others of its slice out of force, or kept an older slice in force.
#[test]
fn endpoint_that_cannot_be_used_is_left_out_and_named_and_the_others_serve() {
    let endpoints = "[{addresses: [10.0.0.1]}, {addresses: ['fd00::1']}, {addresses: [10.0.0.300]},
                      {addresses: []}, {addresses: [10.0.0.2]}]";
    let slice =
        slice("s", "[{port: 8080}]", endpoints).replace("addressType: IPv6", "addressType: IPv4");
    let compiled = compiled(&(service(PLAIN) + &slice));
    let (web, _) = at(&compiled, "10.96.0.1", 80).expect("it listens");
    assert_eq!(shown(&web.cluster), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let told: Vec<_> = compiled.warnings.iter().map(ToString::to_string).collect();
    let wanted = "EndpointSlice shop/s: endpoints[1].addresses[0]: fd00::1 is not of the slice's \
                  addressType; left out, and 2 more endpoints; the others are used";
    assert!(told.contains(&wanted.to_owned()), "{told:#?}");
}

#[test]
fn target_ports_come_from_the_slice_port_of_the_same_name() {
    let text = service(
        "spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: web}, {name: admin, port: 81}]}",
    ) + &slice(
        "s",
        "[{name: admin, port: 9000}, {name: http, port: 8080}]",
        "[{addresses: [10.0.0.1]}]",
    ) + &slice("t", "[{name: http, port: 8888}]", "[{addresses: [10.0.0.2]}]");
    let compiled = compiled(&text);
    let (http, _) = at(&compiled, "10.96.0.1", 80).expect("it listens");
    let (admin, _) = at(&compiled, "10.96.0.1", 81).expect("it listens");
    assert_eq!(shown(&http.cluster), ["10.0.0.1:8080", "10.0.0.2:8888"]);
    assert_eq!(shown(&admin.cluster), ["10.0.0.1:9000"]);
    assert_eq!(&*admin.name, "shop/web:admin");
}

#[test]
fn slices_overlap_without_doubling_and_backends_are_ordered() {
    let text = service(PLAIN)
        + &slice("a", "[{port: 8080}]", "[{addresses: [10.0.0.9]}, {addresses: [10.0.0.2]}]")
        + &slice("b", "[{port: 8080}]", "[{addresses: [10.0.0.9]}, {addresses: [10.0.0.10]}]");
    let (service, _) = at(&compiled(&text), "10.96.0.1", 80).expect("it listens");
    assert_eq!(shown(&service.cluster), ["10.0.0.2:8080", "10.0.0.9:8080", "10.0.0.10:8080"]);
    assert_eq!(service.cluster.maglev.len(), 509);
}

const EVERYTHING: &str = "
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [198.51.100.7]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.80}, {ip: 'fd92::80'}, {hostname: lb.test},
                                  {ip: 192.0.2.81, ipMode: Proxy}]}}";

#[test]
fn every_kind_of_frontend_listens_in_its_own_family() {
    let text = service(EVERYTHING)
        + &slice("four", "[{port: 8080}]", "[{addresses: [10.0.0.1]}]")
        + &slice("six", "[{port: 8080}]", "[{addresses: ['fd00::1']}]");
    let compiled = compiled(&text);
    for (address, l4_port, kind, backend) in [
        ("10.96.0.1", 80, FrontendKind::ClusterIp, "10.0.0.1:8080"),
        ("fd96::1", 80, FrontendKind::ClusterIp, "fd00::1:8080"),
        ("198.51.100.7", 80, FrontendKind::ExternalIp, "10.0.0.1:8080"),
        ("192.0.2.80", 80, FrontendKind::LoadBalancer, "10.0.0.1:8080"),
        ("fd92::80", 80, FrontendKind::LoadBalancer, "fd00::1:8080"),
        ("172.16.0.1", 30080, FrontendKind::NodePort, "10.0.0.1:8080"),
        ("fd16::1", 30080, FrontendKind::NodePort, "fd00::1:8080"),
    ] {
        let (service, found) = at(&compiled, address, l4_port).expect(address);
        assert_eq!((found, shown(&service.cluster)), (kind, vec![backend.to_owned()]), "{address}");
        assert_eq!(service.external_policy, TrafficPolicy::Local);
        assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
        assert_eq!(service.source_ranges.len(), 1);
    }
    assert_eq!(compiled.services.frontends.len(), 7, "a balancer in proxy mode gets its packets");
    assert_eq!(compiled.services.node_ports.len(), 1);
}

#[test]
fn node_address_that_a_service_uses_stays_the_nodes_for_other_ports() {
    let text =
        service("spec: {clusterIP: 10.96.0.1, externalIPs: [172.16.0.1], ports: [{port: 80}]}");
    let compiled = compiled(&text);
    assert!(at(&compiled, "172.16.0.1", 80).is_some());
    assert!(!compiled.services.addresses.contains(&ip("172.16.0.1")));
    assert!(compiled.services.addresses.contains(&ip("10.96.0.1")));
}

const NODES: &str = "---
{apiVersion: v1, kind: Node, metadata: {name: two},
 status: {addresses: [{type: InternalIP, address: 172.16.0.2}, {type: InternalIP, address: 'fd16::2'}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: three},
 status: {addresses: [{type: InternalIP, address: 172.16.0.3}]}}
";

/// Where a load balancer hands out the nodes' own addresses (k3s does), each node took those of all others
/// for services' as a whole, and dropped what was sent to them on every other port: SSH, the kubelet,
/// the API server.
#[test]
fn another_nodes_address_is_served_on_the_services_port_and_is_the_nodes_on_all_others() {
    let addresses = "172.16.0.1, 172.16.0.2, 172.16.0.3, 'fd16::2', 198.51.100.7";
    let text = service(&format!(
        "spec: {{clusterIPs: [10.96.0.1, 'fd96::1'], externalIPs: [{addresses}], ports: [{{port: 80}}]}}"
    ));
    let mut compiled = compiled(&(text.clone() + NODES));
    let whole = |compiled: &Compiled| {
        let mut all: Vec<String> =
            compiled.services.addresses.keys().map(|own| own.to_string()).collect();
        all.sort();
        all.join(" ")
    };
    let external = |compiled: &Compiled| {
        let mut all: Vec<String> =
            compiled.services.external.keys().map(|own| own.to_string()).collect();
        all.sort();
        all.join(" ")
    };
    for address in ["172.16.0.1", "172.16.0.2", "172.16.0.3", "fd16::2", "198.51.100.7"] {
        assert!(at(&compiled, address, 80).is_some(), "{address}");
    }
    assert_eq!(whole(&compiled), "10.96.0.1 198.51.100.7 fd96::1");
    assert_eq!(external(&compiled), "198.51.100.7");
    assert_eq!(compiled.services.node_ports.len(), 1, "of the node's own address alone");
    let told: Vec<_> = compiled.warnings.iter().map(ToString::to_string).collect();
    let wanted = "Service shop/web: its address 172.16.0.2 is node two's, and 2 more are nodes' as well; \
                  its own ports are served there, and all others stay the node's";
    assert!(told.contains(&wanted.to_owned()), "{told:#?}");

    // Nodes come and go after services.
    let change = |compiled: &mut Compiled, text: &str| {
        let changes = compiled.state().changes_to(&state(text));
        changes.into_iter().for_each(|change| compiled.take(change));
        compiled.compile(&node());
    };
    change(&mut compiled, &text);
    assert_eq!(whole(&compiled), "10.96.0.1 172.16.0.2 172.16.0.3 198.51.100.7 fd16::2 fd96::1");
    assert!(compiled.warnings.iter().all(|one| !one.message.contains("node two")));
    change(&mut compiled, &(text + NODES));
    assert_eq!(whole(&compiled), "10.96.0.1 198.51.100.7 fd96::1");
}

#[test]
fn an_address_that_is_one_services_cluster_address_is_no_external_one_of_anothers() {
    let both = service(PLAIN)
        + "---\n"
        + &service("spec: {clusterIP: 10.96.0.2, externalIPs: [10.96.0.1], ports: [{port: 81}]}")
            .replace("name: web", "name: other");
    assert!(compiled(&both).services.external.is_empty());
}

#[test]
fn headless_services_listen_nowhere_and_node_ports_out_of_range_are_warned_about() {
    let headless = compiled(&service("spec: {clusterIP: None, ports: [{port: 80}]}"));
    assert!(headless.services.frontends.is_empty() && headless.warnings.is_empty());
    let text = service(
        "spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 8080}]}",
    );
    let stray = compiled(&text);
    assert!(at(&stray, "172.16.0.1", 8080).is_none());
    assert!(stray.warnings.iter().any(|warning| warning.to_string().contains("8080")));
}

#[test]
fn nothing_new_shares_every_table_and_a_change_shares_all_the_rest() {
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: p, namespace: shop}\nspec: {podSelector: {}}\n";
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n\
               spec: {containers: [{name: c}]}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n";
    let other =
        service(PLAIN).replace("name: web", "name: other").replace("10.96.0.1", "10.96.0.2");
    let base = service(PLAIN)
        + &slice("s", "[{port: 8080}]", "[{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]")
        + "---\n"
        + &other
        + policy
        + pod;
    let first = compiled(&base);
    let same = compile(&state(&base), &node(), &first);
    assert!(same.decides_like(&first) && Arc::ptr_eq(&same.services, &first.services));

    // Another endpoint: policy and the other service stay what they are, and where they are.
    let more =
        base.replace("{addresses: [10.0.0.2]}", "{addresses: [10.0.0.2]}, {addresses: [10.0.0.3]}");
    let second = compile(&state(&more), &node(), &first);
    assert!(second.decides_like(&first) && !Arc::ptr_eq(&second.services, &first.services));
    let kept = |compiled: &Compiled| at(compiled, "10.96.0.2", 80).expect("it listens").0;
    assert!(Arc::ptr_eq(&kept(&first), &kept(&second)));

    // Another pod like the first: a new address for a known identity, and the same verdicts.
    let more = base.clone() + &pod.replace("name: a", "name: b").replace("10.0.0.1", "10.0.0.5");
    let third = compile(&state(&more), &node(), &first);
    assert!(!Arc::ptr_eq(&third.identities, &first.identities));
    assert!(Arc::ptr_eq(&third.policy, &first.policy));
    assert!(Arc::ptr_eq(&third.services, &first.services));
}

#[test]
fn services_keep_their_numbers_while_others_come_and_go() {
    let named = |name: &str, address: &str| {
        format!(
            "---\n{}",
            service(PLAIN)
                .replace("name: web", &format!("name: {name}"))
                .replace("10.96.0.1", address)
        )
    };
    let (b, c, a) = (named("b", "10.96.0.2"), named("c", "10.96.0.3"), named("a", "10.96.0.1"));
    let first = compiled(&(b.clone() + &c));
    let id = |compiled: &Compiled, address: &str| {
        let frontend = Frontend { address: ip(address), protocol: Protocol::TCP, l4_port: 80 };
        compiled.services.frontends.get(&frontend).unwrap().0
    };
    let second = compile(&state(&(c.clone() + &a)), &node(), &first);
    assert_eq!(id(&first, "10.96.0.3"), id(&second, "10.96.0.3"));
    let gone = id(&first, "10.96.0.2");
    assert!(second.services.get(gone).is_none() && id(&second, "10.96.0.1") != gone);
    let third = compile(&state(&(a + &b + &c)), &node(), &second);
    assert_eq!(id(&third, "10.96.0.1"), id(&second, "10.96.0.1"));
    assert_eq!(third.services.services.len(), 3);
}

#[test]
fn l4_ports_of_backends_in_the_nodes_own_network_are_known_by_protocol() {
    let of = |endpoints: &str| {
        let text = service(PLAIN) + &slice("s", "[{port: 6443}]", endpoints);
        compiled(&text).services.host_backends.clone()
    };
    let expected = [(Protocol::TCP, 6443)].into();
    assert_eq!(of("[{addresses: [172.16.0.1]}, {addresses: [10.0.0.2]}]"), expected);
    let ending = "conditions: {ready: false, serving: true, terminating: true}";
    let beside = format!("[{{addresses: [172.16.0.1], {ending}}}, {{addresses: [10.0.0.2]}}]");
    assert_eq!(of(&beside), expected, "clients of the local policy still go there");
    // Connections stay with a backend that gets no new ones.
    for gone in [
        "conditions: {ready: false}",
        "conditions: {ready: false, serving: false}",
        "conditions: {ready: false, serving: false, terminating: true}",
        "hints: {forNodes: [{name: two}]}",
    ] {
        let text = format!(
            "[{{addresses: [172.16.0.1], {gone}}}, {{addresses: [10.0.0.2], hints: {{forNodes: \
             [{{name: one}}]}}}}]"
        );
        assert_eq!(of(&text), expected, "{gone}");
    }
    assert!(of("[{addresses: [10.0.0.2]}]").is_empty());
}

#[test]
fn frontend_without_endpoints_of_its_family_is_served_by_those_of_the_other() {
    let six = slice("six", "[{port: 8080}]", "[{addresses: [\"fd00::9\"]}]");
    let four = slice("four", "[{port: 8080}]", "[{addresses: [10.0.0.9]}]");
    let dual = "spec: {clusterIPs: [10.96.0.1, \"fd96::1\"], ports: [{port: 80}]}";
    for (slices, of_four, of_six) in [
        (six.clone(), (["[fd00::9]:8080"], true), (["[fd00::9]:8080"], false)),
        (four.clone(), (["10.0.0.9:8080"], false), (["10.0.0.9:8080"], true)),
        (six.clone() + &four, (["10.0.0.9:8080"], false), (["[fd00::9]:8080"], false)),
    ] {
        let compiled = compiled(&(service(dual) + &slices));
        for (frontend, (backends, changes_family)) in [("10.96.0.1", of_four), ("fd96::1", of_six)]
        {
            let (service, _) = at(&compiled, frontend, 80).expect("it listens");
            let ends = service.cluster.backends.iter();
            let ends = ends.map(|end| std::net::SocketAddr::new(end.address, end.l4_port));
            assert!(ends.map(|end| end.to_string()).eq(backends), "{frontend}");
            assert_eq!(service.changes_family, changes_family, "{frontend}");
        }
        assert_eq!(compiled.services.change_family, of_four.1 || of_six.1);
        let again = compile(&state(&(service(dual) + &slices)), &node(), &compiled);
        assert!(Arc::ptr_eq(&again.services, &compiled.services));
    }
}

/// A rollout of pods that are not ready yet sends nobody elsewhere.
#[test]
fn endpoints_of_the_own_family_keep_the_other_out_although_none_is_ready() {
    let text = service(PLAIN)
        + &slice(
            "four",
            "[{port: 8080}]",
            "[{addresses: [10.0.0.9], conditions: {ready: false, serving: false}}]",
        )
        + &slice("six", "[{port: 8080}]", "[{addresses: [\"fd00::9\"]}]");
    let (service, _) = at(&compiled(&text), "10.96.0.1", 80).expect("it listens");
    assert!(service.cluster.backends.is_empty() && !service.changes_family);
}

/// Translated to the node's own address, a packet to it would come from it, which no kernel takes.
#[test]
fn node_itself_serves_no_clients_of_the_other_family_and_a_warning_says_so() {
    let only = "[{addresses: [\"fd16::1\"], nodeName: one}]";
    let more = "[{addresses: [\"fd16::1\"], nodeName: one}, {addresses: [\"fd00::9\"]}]";
    for (endpoints, backends) in [(only, &[][..]), (more, &["fd00::9:8080"])] {
        let text = service(PLAIN) + &slice("six", "[{port: 8080}]", endpoints);
        let compiled = compiled(&text);
        let (service, _) = at(&compiled, "10.96.0.1", 80).expect("it listens");
        assert_eq!(shown(&service.cluster), backends);
        let warnings: Vec<_> = compiled.warnings.iter().map(ToString::to_string).collect();
        assert!(warnings.iter().any(|text| text.contains("this node itself")), "{warnings:?}");
    }
}
