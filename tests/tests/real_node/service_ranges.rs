//! Ranges of services' addresses are led to a real node as a whole: by one route of the host's and one prefix of
//! the XDP program's, which a service that comes leaves alone. What nobody has in them ends here.

use std::collections::BTreeSet;

use xskiff::demo::scene::{BALANCER, BUYER, CLIENT, CLUSTER_IP, HTTP, NODE, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::{Namespace, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::clients::Client;
use crate::world::{PATIENCE, Shape, World};

/// As the demo configures them.
const RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// In them, and no service's.
const NOBODYS: [&str; 2] = ["10.96.0.250", "fd00:10:96::250"];
const WITHIN: &str = "10.96.0.81";
const OUTSIDE: &str = "10.99.0.5";
const HELD: u64 = 10;

/// A service of a pod that the demo has.
fn service(name: &str, cluster_ip: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{clusterIP: \
         {cluster_ip}, ports: [{{name: http, port: 80}}]}}}}\n---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, namespace: shop, \
         labels: {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, \
         ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [10.244.0.11], nodeName: demo-node}}]}}\n"
    )
}

fn is_served(from: &Namespace, address: &str) -> bool {
    let answers = fetch(from, &to(address, HTTP[0]), 1, &["--timeout-ms=1500"]);
    answers.is_ok_and(|all| all.iter().all(|one| one.error.is_none()))
}

/// Where the host's routes of ours lead to, and their table.
fn routes(node: &Namespace) -> (BTreeSet<String>, String) {
    let show = |family: &str| node.ip(&format!("{family} route show table all proto 120"));
    let text = show("-4").expect("routes") + &show("-6").expect("routes");
    let word_after = |line: &str, name: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).map(str::to_owned)
    };
    let table =
        text.lines().find_map(|line| word_after(line, "table")).expect("a table of its own");
    let destinations = text.lines().filter_map(|line| line.split_whitespace().next());
    (destinations.map(str::to_owned).collect(), table)
}

fn wait_for_routes(world: &World, is_so: impl Fn(&BTreeSet<String>) -> bool) {
    let look = || is_so(&routes(&world.scene.node).0);
    assert!(wait_until(PATIENCE, look).is_some(), "{:?}", routes(&world.scene.node));
}

fn has(routes: &BTreeSet<String>, all: &[&str], none: &[&str]) -> bool {
    all.iter().all(|one| routes.contains(*one)) && !none.iter().any(|one| routes.contains(*one))
}

/// Prefixes that the XDP program has, and how often it was told any.
fn told(world: &World) -> ([u64; 2], u64) {
    let status = world.status();
    let used =
        |name: &str| status.tables.iter().find(|table| table.name == name).expect("a row").used;
    let mut reconciles = status.reconciles.iter();
    let runs = reconciles.find(|one| one.reconcile == "xdp-maps").expect("a row").runs;
    (["xdp_prefixes_ipv4", "xdp_prefixes_ipv6"].map(used), runs)
}

#[test]
fn services_in_a_range_are_led_here_by_one_route_and_one_prefix_and_what_nobody_has_ends_here() {
    if !root_or_skip("ranges of services") {
        return;
    }
    let world = World::start(Shape { label: "ranges", mtu: 1500, xdp_mode: "native" });
    for (prefix, gateway) in RANGES.iter().zip(NODE) {
        world.scene.client.ip(&format!("route add {prefix} via {gateway}")).expect("a route");
    }
    wait_for_routes(&world, |routes| {
        has(routes, &RANGES, &CLUSTER_IP) && has(routes, &BALANCER, &[])
    });
    let (prefixes, _) = told(&world);
    // Four pods, a range and a load balancer's address.
    assert_eq!(prefixes, [6, 6]);
    services_come(&world);
    nobodys_end_here(&world);
    let world = left_routes_are_mended(world);
    ranges_change(&world);
    world.assert_kernel_forwarded_nothing();
}

fn services_come(world: &World) {
    let (routes_before, told_before) = (routes(&world.scene.node), told(world));
    world.add_manifests("within.yaml", &service("within", WITHIN));
    let clients = [world.scene.pod(BUYER), &world.scene.node, &world.scene.client];
    for client in clients {
        assert!(wait_until(PATIENCE, || is_served(client, WITHIN)).is_some());
    }
    assert_eq!((routes(&world.scene.node), told(world)), (routes_before, told_before));

    world.add_manifests("outside.yaml", &service("outside", OUTSIDE));
    wait_for_routes(world, |routes| has(routes, &[OUTSIDE], &[WITHIN]));
    assert!(is_served(&world.scene.node, OUTSIDE));
    assert_eq!(told(world).0, [7, 6]);
}

/// From a pod, from the host and from outside: no answer comes, and nothing goes in circles.
fn nobodys_end_here(world: &World) {
    for client in [world.scene.pod(BUYER), &world.scene.node, &world.scene.client] {
        for address in NOBODYS {
            let before = world.dropped("no-service");
            let pinged = client.run("ping", &["-c", "1", "-W", "1", address]);
            assert!(pinged.is_err(), "{pinged:?}");
            assert_eq!(world.dropped("no-service"), before + 1, "{address}");
            assert!(!is_served(client, address));
            assert!(world.dropped("no-service") >= before + 2, "{address}");
        }
    }
    let words = ["service", "trace", "--from", CLIENT[0], "--to", NOBODYS[0], "--port", "80"];
    let traced = world.ask_json(&words);
    let outcome = traced["outcome"].as_str().expect("words");
    assert!(outcome.contains("no-service "), "{traced}");
    assert!(traced["stages"][1]["finding"].to_string().contains("in a range of services"));
}

/// What a process left that led services here one by one, and what somebody takes away.
fn left_routes_are_mended(world: World) -> World {
    let (_, table) = routes(&world.scene.node);
    let left = format!(
        "route add {} via 169.254.7.1 dev xskiff-host onlink table {table} proto 120",
        CLUSTER_IP[0]
    );
    world.scene.node.ip(&left).expect("a route");
    world.scene.node.ip(&format!("route del {} table {table}", RANGES[0])).expect("gone");
    wait_for_routes(&world, |routes| has(routes, &RANGES, &CLUSTER_IP));
    let stage = world.end(true);
    stage.scene.node.ip(&left).expect("a route");
    let world = stage.begin();
    assert!(has(&routes(&world.scene.node).0, &RANGES, &CLUSTER_IP));
    world
}

/// While connections by services in them go on.
fn ranges_change(world: &World) {
    let hold = |from: &Namespace| Client::start(from, &to(CLUSTER_IP[0], HTTP[0]), HELD, HELD);
    let clients = [world.scene.pod(BUYER), &world.scene.node].map(hold);
    let ranges = |ranges: &str| format!("service_cidrs: [{ranges}]");
    let [of_demo, other] = [ranges("10.96.0.0/16, \"fd00:10:96::/112\""), ranges("10.97.0.0/16")];
    world.rewrite_configuration(&of_demo, &other);
    wait_for_routes(world, |routes| {
        has(routes, &["10.97.0.0/16", WITHIN], &RANGES) && has(routes, &CLUSTER_IP, &[])
    });
    let before = world.dropped("no-service");
    assert!(!is_served(world.scene.pod(BUYER), NOBODYS[0]));
    assert_eq!(world.dropped("no-service"), before, "it is in no range now");

    // A range that another node has an address in would lead the host's packets to that node astray.
    let node = "{apiVersion: v1, kind: Node, metadata: {name: other}, \
                status: {addresses: [{type: InternalIP, address: 10.97.0.7}]}}";
    world.add_manifests("other.yaml", node);
    wait_for_routes(world, |routes| has(routes, &[], &["10.97.0.0/16"]));
    let errors = world.status().errors;
    let error = errors.iter().find(|error| error.object == "cluster.service_cidrs[0]");
    assert!(
        error.is_some_and(|error| error.message.contains("node other has 10.97.0.7")),
        "{errors:?}"
    );
    std::fs::remove_file(world.files.manifests.join("other.yaml")).expect("removed");
    wait_for_routes(world, |routes| has(routes, &["10.97.0.0/16"], &[]));

    world.rewrite_configuration(&other, &of_demo);
    wait_for_routes(world, |routes| has(routes, &RANGES, &CLUSTER_IP));
    assert!(world.status().errors.is_empty(), "{:?}", world.status().errors);
    for client in clients {
        client.goes_on();
        client.end_whole(PATIENCE);
    }
}
