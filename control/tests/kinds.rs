//! Kinds of services, and host ports of pods: where each listens, and who is told of what cannot be.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use control::audit::{Auditor, Moment};
use control::compile::{Compiled, NodeView, compile};
use control::manifests;
use control::model::ObjectName;
use control::store::{Change, ClusterState};
use dataplane::address::Protocol;
use dataplane::lb::{Frontend, FrontendKind};
use dataplane::tables::Tables;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        addresses: [ip("172.16.0.1"), ip("172.16.0.2"), ip("fd16::1")].into(),
        node_port_addresses: [ip("172.16.0.1"), ip("fd16::1")].into(),
        ..NodeView::default()
    }
}

fn state(text: &str) -> ClusterState {
    manifests::parse(Path::new("case.yaml"), text)
        .unwrap_or_else(|errors| panic!("refused: {errors:?}"))
        .state
}

/// Compiled, and found by the audit to be what the objects say.
fn compiled(text: &str) -> Compiled {
    let compiled = compile(&state(text), &node(), &Compiled::default());
    let found = audited(&compiled);
    assert!(found.is_empty(), "{found:?}");
    compiled
}

fn audited(compiled: &Compiled) -> Vec<String> {
    let tables = Tables {
        services: compiled.services.clone(),
        identities: compiled.identities.clone(),
        policy: compiled.policy.clone(),
        ..Tables::default()
    };
    let moment =
        Moment { state: compiled.state(), node: compiled.node(), compiled, tables: &tables };
    Auditor::whole(&moment).differences.iter().map(ToString::to_string).collect()
}

/// Every frontend, with its kind and where it leads.
fn frontends(compiled: &Compiled) -> Vec<String> {
    let mut all: Vec<String> = compiled
        .services
        .frontends
        .iter()
        .map(|(at, (id, kind))| {
            let service = compiled.services.get(*id).expect("a frontend has its service");
            let to: Vec<String> = service
                .cluster
                .backends
                .iter()
                .map(|one| SocketAddr::new(one.address, one.l4_port).to_string())
                .collect();
            let at_text = SocketAddr::new(at.address, at.l4_port);
            format!("{kind:?} {}/{at_text} {}", at.protocol, to.join(" "))
        })
        .collect();
    all.sort();
    all
}

fn warnings(compiled: &Compiled) -> Vec<String> {
    compiled.warnings.iter().map(ToString::to_string).collect()
}

fn pod(name: &str, ports: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop}}, spec: \
         {{nodeName: one, containers: [{{name: c, ports: [{ports}]}}]}}, \
         status: {{podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::1'}}]}}}}\n"
    )
}

#[test]
fn host_port_is_a_frontend_on_every_address_of_the_node_and_of_both_families() {
    let compiled = compiled(&pod("a", "{containerPort: 8080, hostPort: 80}"));
    assert_eq!(
        frontends(&compiled),
        [
            "HostPort tcp/172.16.0.1:80 10.0.0.1:8080",
            "HostPort tcp/172.16.0.2:80 10.0.0.1:8080",
            "HostPort tcp/[fd16::1]:80 [fd00::1]:8080",
        ]
    );
    assert!(compiled.services.node_ports.contains_key(&(Protocol::TCP, 80)));
    assert!(compiled.services.addresses.is_empty(), "the addresses are the node's");
}

#[test]
fn host_ip_is_respected_and_one_that_is_not_the_nodes_is_told() {
    let of = |host_ip: &str| {
        let port =
            format!("{{containerPort: 53, hostPort: 53, protocol: UDP, hostIP: '{host_ip}'}}");
        let compiled = compiled(&pod("a", &port));
        (frontends(&compiled), warnings(&compiled))
    };
    assert_eq!(of("172.16.0.2").0, ["HostPort udp/172.16.0.2:53 10.0.0.1:53"]);
    assert_eq!(of("0.0.0.0").0.len(), 2);
    assert_eq!(of("::").0, ["HostPort udp/[fd16::1]:53 [fd00::1]:53"]);
    for (elsewhere, why) in [("198.51.100.1", "not an address of this node"), ("127.0.0.1", "lo")] {
        let (frontends, told) = of(elsewhere);
        assert!(frontends.is_empty());
        assert!(told[0].starts_with("Pod shop/a") && told[0].contains(why), "{told:?}");
    }
}

#[test]
fn host_ports_are_of_pods_here_that_run_on_a_network_of_their_own() {
    let port = "{containerPort: 8080, hostPort: 80, protocol: SCTP}";
    assert_eq!(frontends(&compiled(&pod("a", port))).len(), 3);
    for (from, to) in [
        ("nodeName: one", "nodeName: two"),
        ("nodeName: one", "hostNetwork: true, nodeName: one"),
        ("status: {", "status: {phase: Succeeded, "),
        ("hostPort: 80", "hostPort: 0"),
    ] {
        let text = pod("a", port);
        assert!(text.contains(from));
        assert!(frontends(&compiled(&text.replace(from, to))).is_empty(), "{to}");
    }
}

#[test]
fn of_two_host_ports_the_first_pod_by_name_has_it_and_a_service_comes_before_both() {
    let port = "{containerPort: 8080, hostPort: 30080}";
    let two = pod("b", port).replace("10.0.0.1", "10.0.0.2").replace("fd00::1", "fd00::2")
        + &pod("a", port);
    let compiled_two = compiled(&two);
    let of_a = |one: &String| one.ends_with("0.0.1:8080") || one.ends_with("::1]:8080");
    assert!(frontends(&compiled_two).iter().all(of_a));
    let told = warnings(&compiled_two);
    assert!(
        told[0].starts_with("Pod shop/b") && told[0].contains("Pod shop/a keeps it"),
        "{told:?}"
    );
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: \
                   {type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}}\n";
    let all = compiled(&(two + service));
    let at = |address: &str| {
        let at = Frontend { address: ip(address), protocol: Protocol::TCP, l4_port: 30080 };
        all.services.frontends.get(&at).map(|(_, kind)| *kind)
    };
    assert_eq!(at("172.16.0.1"), Some(FrontendKind::NodePort));
    assert_eq!(at("172.16.0.2"), Some(FrontendKind::HostPort), "no node port is served there");
}

/// A pod comes, changes, moves and goes; the node's addresses change.
#[test]
fn host_ports_are_followed_live() {
    let mut compiled = Compiled::default();
    let set = |compiled: &mut Compiled, text: &str, node: &NodeView| {
        for change in compiled.state().changes_to(&state(text)) {
            compiled.take(change);
        }
        compiled.compile(node);
        assert_eq!(audited(compiled), Vec::<String>::new());
        frontends(compiled)
    };
    let one = pod("a", "{containerPort: 8080, hostPort: 80}");
    assert_eq!(set(&mut compiled, &one, &node()).len(), 3);
    let other = one.replace("hostPort: 80", "hostPort: 81");
    assert!(set(&mut compiled, &other, &node()).iter().all(|one| one.contains(":81 ")));
    let fewer = NodeView { addresses: [ip("172.16.0.9")].into(), ..node() };
    assert_eq!(set(&mut compiled, &other, &fewer), ["HostPort tcp/172.16.0.9:81 10.0.0.1:8080"]);
    let unbound = other.replace("nodeName: one, ", "");
    assert!(set(&mut compiled, &unbound, &fewer).is_empty());
    let mut here = fewer.clone();
    here.endpoints.insert(ObjectName::new("shop", "a"), [ip("10.0.0.1")].into());
    assert_eq!(set(&mut compiled, &unbound, &here).len(), 1, "its endpoint is here");
    assert!(set(&mut compiled, &unbound, &fewer).is_empty());
    assert_eq!(set(&mut compiled, &other, &fewer).len(), 1);
    let empty = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
    assert!(set(&mut compiled, empty, &fewer).is_empty());
    assert!(compiled.services.services.is_empty() && compiled.services.node_ports.is_empty());
}

/// A slip in one list took all of the service's addresses out of force.
#[test]
fn an_address_that_is_listed_twice_counts_once_and_is_named() {
    let text = "---\n{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: \
                {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80}], \
                externalIPs: [198.51.100.1, 198.51.100.2, 198.51.100.1]}, \
                status: {loadBalancer: {ingress: [{ip: 192.0.2.80}, {ip: 192.0.2.80}]}}}\n";
    let compiled = compiled(text);
    assert_eq!(
        frontends(&compiled),
        [
            "ClusterIp tcp/10.96.0.1:80 ",
            "ExternalIp tcp/198.51.100.1:80 ",
            "ExternalIp tcp/198.51.100.2:80 ",
            "LoadBalancer tcp/192.0.2.80:80 ",
        ]
    );
    let told = warnings(&compiled);
    for wanted in [
        "Service shop/web: spec.externalIPs has 198.51.100.1 twice; it counts once",
        "Service shop/web: status.loadBalancer.ingress has 192.0.2.80 twice; it counts once",
    ] {
        assert!(told.contains(&wanted.to_owned()), "{told:#?}");
    }
}

/// Of services that want one frontend the first by name had it, whatever it was to each: anybody could
/// take the cluster's name server's address by naming it as an external one.
#[test]
fn nobody_takes_a_cluster_address_by_naming_it_as_an_external_one() {
    let service = |name: &str, namespace: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, \
             spec: {{{spec}, ports: [{{port: 53, protocol: UDP}}]}}"
        )
    };
    let ingress = ", status: {loadBalancer: {ingress: [{ip: 10.96.0.10}, {ip: 198.51.100.1}]}}}\n";
    let dns = service("kube-dns", "kube-system", "clusterIP: 10.96.0.10") + "}\n";
    let external = "clusterIP: 10.96.0.2, externalIPs: [10.96.0.10, 198.51.100.1]";
    let external = service("x", "a", external) + "}\n";
    let balanced = service("y", "b", "type: LoadBalancer, clusterIP: 10.96.0.3") + ingress;
    // A folder with all of them is refused, an API server has them.
    let mut compiled = Compiled::default();
    for text in [external, balanced, dns] {
        let changes = ClusterState::default().changes_to(&state(&text));
        changes.into_iter().for_each(|change| compiled.take(change));
    }
    compiled.compile(&node());
    assert_eq!(audited(&compiled), Vec::<String>::new());
    let holder = |address: &str| {
        let at = Frontend { address: ip(address), protocol: Protocol::UDP, l4_port: 53 };
        let (id, _) = compiled.services.frontends.get(&at).expect("somebody listens there");
        compiled.services.get(*id).expect("a service").name.to_string()
    };
    assert_eq!(holder("10.96.0.10"), "kube-system/kube-dns:53");
    assert_eq!(holder("198.51.100.1"), "b/y:53", "which a load balancer has given");
    let told = warnings(&compiled);
    for (thief, victim, address) in [
        ("a/x", "kube-system/kube-dns", "10.96.0.10"),
        ("b/y", "kube-system/kube-dns", "10.96.0.10"),
        ("a/x", "b/y", "198.51.100.1"),
    ] {
        let wanted = format!(
            "Service {thief}: listens on {address} port 53/udp, where Service {victim} listens already; \
             Service {victim} keeps it"
        );
        assert!(told.contains(&wanted), "{wanted}: {told:#?}");
    }
}

/// A port of the node's own address left the table when its frontend became one of another kind: the one
/// that came took its place before the old one went, which took it away. The XDP program led it here
/// no longer.
#[test]
fn a_frontend_on_the_nodes_own_address_stays_led_here_when_it_becomes_one_of_another_kind() {
    let service = |status: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: \
             {{type: LoadBalancer, clusterIP: 10.96.0.1, externalIPs: [172.16.0.1], \
             ports: [{{port: 443}}]}}, status: {{{status}}}}}\n"
        )
    };
    let (external, balanced) =
        (service(""), service("loadBalancer: {ingress: [{ip: 172.16.0.1}]}"));
    let mut compiled = compiled(&external);
    for (before, after, kind) in [
        (&external, &balanced, FrontendKind::LoadBalancer),
        (&balanced, &external, FrontendKind::ExternalIp),
    ] {
        state(before).changes_to(&state(after)).into_iter().for_each(|one| compiled.take(one));
        compiled.compile(&node());
        let at = Frontend { address: ip("172.16.0.1"), protocol: Protocol::TCP, l4_port: 443 };
        assert_eq!(compiled.services.frontends.get(&at).map(|(_, kind)| *kind), Some(kind));
        assert!(compiled.services.node_ports.contains_key(&(Protocol::TCP, 443)), "{kind:?}");
        assert_eq!(audited(&compiled), Vec::<String>::new());
    }
}

const BALANCED: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  loadBalancerClass: example.com/own
  allocateLoadBalancerNodePorts: false
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  ports: [{name: a, port: 80, protocol: SCTP, targetPort: assoc}, {name: b, port: 81, targetPort: 8081}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.80}, {ip: 192.0.2.81, ipMode: Proxy}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 9000, protocol: SCTP}, {name: b, port: 8081}]
endpoints: [{addresses: [10.0.0.1], nodeName: one}, {addresses: [10.0.0.3], nodeName: one,
             conditions: {ready: false, serving: true, terminating: true}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: t, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 9001, protocol: SCTP}]
endpoints: [{addresses: [10.0.0.2], nodeName: two}]
";

#[test]
fn load_balancer_of_any_class_without_node_ports_listens_where_its_status_says() {
    assert_eq!(
        frontends(&compiled(BALANCED)),
        [
            "ClusterIp sctp/10.96.0.1:80 10.0.0.1:9000 10.0.0.2:9001",
            "ClusterIp tcp/10.96.0.1:81 10.0.0.1:8081",
            "LoadBalancer sctp/192.0.2.80:80 10.0.0.1:9000 10.0.0.2:9001",
            "LoadBalancer tcp/192.0.2.80:81 10.0.0.1:8081",
        ]
    );
}

#[test]
fn health_check_counts_ready_endpoints_of_this_node_and_is_of_local_load_balancers_alone() {
    let of = |text: &str| {
        let compiled = compiled(text);
        let checks = compiled.health_checks().values();
        checks.map(|check| (check.l4_port, check.local_endpoints)).collect::<Vec<_>>()
    };
    assert_eq!(of(BALANCED), [(31000, 1)], "one that ends takes no new connections");
    assert_eq!(of(&BALANCED.replace("nodeName: one", "nodeName: two")), [(31000, 0)]);
    assert!(of(&BALANCED.replace("Policy: Local", "Policy: Cluster")).is_empty());
    let node_port = BALANCED.replace("type: LoadBalancer", "type: NodePort");
    assert!(of(&node_port).is_empty());
}

#[test]
fn service_without_selector_is_served_by_the_slices_that_are_written_for_it() {
    let text = BALANCED.replace("addresses: [10.0.0.2], nodeName: two", "addresses: [203.0.113.9]");
    assert!(frontends(&compiled(&text))[0].contains("203.0.113.9:9001"));
}

#[test]
fn service_of_another_proxy_and_those_without_address_are_left_alone() {
    let label = "namespace: shop, labels: {service.kubernetes.io/service-proxy-name: other}}";
    let others = BALANCED.replacen("namespace: shop}", label, 1);
    assert!(frontends(&compiled(&others)).is_empty());
    for spec in ["clusterIP: None", "type: ExternalName, externalName: example.com"] {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, \
             spec: {{{spec}, ports: [{{port: 80}}]}}}}"
        );
        let compiled = compiled(&text);
        assert!(frontends(&compiled).is_empty() && compiled.warnings.is_empty());
    }
}

/// Traffic to it from outside must be led to the workers, as to a node port.
#[test]
fn external_address_that_is_the_nodes_is_among_the_ports_of_its_addresses() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: \
                {clusterIP: 10.96.0.1, externalIPs: [172.16.0.1], ports: [{port: 8443}]}}";
    let compiled = compiled(text);
    assert!(compiled.services.node_ports.contains_key(&(Protocol::TCP, 8443)));
}

#[test]
fn sctp_is_not_served_by_the_other_family() {
    let text =
        BALANCED.replace("addressType: IPv4", "addressType: IPv6").replace("10.0.0.", "fd00::");
    let all = frontends(&compiled(&text));
    assert!(all.contains(&"ClusterIp sctp/10.96.0.1:80 ".to_owned()), "{all:?}");
    assert!(all.contains(&"ClusterIp tcp/10.96.0.1:81 [fd00::1]:8081".to_owned()), "{all:?}");
}

#[test]
fn what_cannot_be_is_told_by_object_once_and_the_rest_goes_on() {
    let stray = BALANCED
        .split("---")
        .nth(1)
        .expect("a slice")
        .replace("name: web", "name: gone")
        .replace("name: s,", "name: stray,")
        .replace("service-name: web", "service-name: gone");
    let twice = BALANCED.split("---").nth(2).expect("a slice").replace("name: t,", "name: u,");
    let own = "---\n{apiVersion: v1, kind: Service, metadata: {name: own, namespace: shop}, spec: \
               {clusterIP: 172.16.0.2, ports: [{port: 80}]}}\n";
    let mut all = compiled(&format!("{BALANCED}---{stray}---{twice}{own}"));
    // A folder that says so is refused; an API server may.
    let zweb = "{apiVersion: v1, kind: Service, metadata: {name: zweb, namespace: shop}, spec: \
                {clusterIP: 10.96.0.1, ports: [{port: 81}]}}";
    for change in ClusterState::default().changes_to(&state(zweb)) {
        all.take(change);
    }
    all.compile(&node());
    assert_eq!(audited(&all), Vec::<String>::new());
    let told = warnings(&all).join("\n");
    for wanted in [
        "EndpointSlice shop/stray: names Service shop/gone, which is not there",
        "Service shop/web: endpoint 10.0.0.2 is listed again",
        "Service shop/own: its cluster address 172.16.0.2 is this node's own",
        "Service shop/zweb: listens on 10.96.0.1 port 81/tcp",
    ] {
        assert!(told.contains(wanted), "{wanted} is missing in\n{told}");
    }
    assert!(frontends(&all).iter().any(|one| one.contains("10.0.0.2:9001")));
    // Each is for the log once.
    let (fresh, left_out) = all.take_fresh_warnings();
    assert_eq!((fresh.len(), left_out), (all.warnings.len(), 0));
    let name = ObjectName::new("shop", "web");
    let service = all.state().services[&name].clone();
    let changed = control::model::Service { external_ips: vec![ip("198.51.100.1")], ..service };
    all.take(Change::Set(control::model::Object::from(changed)));
    all.compile(&node());
    assert!(all.take_fresh_warnings().0.is_empty());
}

#[test]
fn slices_and_services_that_cannot_be_read_are_refused_by_object_and_field() {
    let refused = |from: &str, to: &str| {
        assert!(BALANCED.contains(from), "{from}");
        let text = BALANCED.replacen(from, to, 1);
        let errors = manifests::parse(Path::new("case.yaml"), &text).expect_err(to);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (from, to, object, field) in [
        ("port: 9001", "port: 70000", "EndpointSlice shop/t", "ports[0].port"),
        (
            "clusterIP: 10.96.0.1",
            "loadBalancerSourceRanges: [ten], clusterIP: 10.96.0.1",
            "Service shop/web",
            "spec.loadBalancerSourceRanges[0]",
        ),
        ("port: 81,", "port: 0,", "Service shop/web", "spec.ports[1].port"),
    ] {
        let to = to.replace(", clusterIP", "\n  clusterIP");
        let told = refused(from, &to);
        assert!(told.contains(object) && told.contains(field), "{told}");
    }
    // More endpoints than an API server lets be written are refused before they are read.
    let many = vec!["{addresses: [10.0.0.2]}"; 1001].join(", ");
    let told = refused("{addresses: [10.0.0.2], nodeName: two}", &many);
    assert!(told.contains("EndpointSlice shop/t") && told.contains("1001"), "{told}");
}

/// A million endpoints, a thousand to a slice: so many are used as the choice has room for.
#[test]
fn service_of_a_million_endpoints_is_bounded_and_told_and_others_are_served() {
    let cluster = state(BALANCED);
    let mut compiled = Compiled::default();
    for change in ClusterState::default().changes_to(&cluster) {
        compiled.take(change);
    }
    let pattern = cluster.endpoint_slices[&ObjectName::new("shop", "t")].clone();
    for number in 0u32..1000 {
        let endpoints = (0u32..1000).map(|low| control::model::Endpoint {
            address: IpAddr::V4((0x0b00_0000 + number * 1000 + low).into()),
            ..pattern.endpoints[0].clone()
        });
        let slice = control::model::EndpointSlice {
            name: ObjectName::new("shop", format!("many-{number}")),
            endpoints: endpoints.collect(),
            ..pattern.clone()
        };
        compiled.take(Change::Set(control::model::Object::EndpointSlice(slice)));
    }
    compiled.compile(&node());
    let told = warnings(&compiled).join("\n");
    assert!(told.contains("Service shop/web: has 1000002 endpoints; only the first"), "{told}");
    let at = |port, protocol| {
        let at = Frontend { address: ip("10.96.0.1"), protocol, l4_port: port };
        let (id, _) = compiled.services.frontends.get(&at).expect("it listens");
        compiled.services.get(*id).expect("served").cluster.backends.len()
    };
    assert!(at(80, Protocol::SCTP) < 100_000);
    assert_eq!(at(81, Protocol::TCP), 1);
}
