//! Services as load balancers, the cluster and people ask a real node for them: health checks, kube-proxy's
//! probes, host ports, and what `xskiff service` tells.

use std::net::IpAddr;

use serde_json::Value;
use xskiff::demo::scene::{BALANCER, CLIENT, CLUSTER_IP, HTTP, NODE, WEB_1, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World};

const HEALTH_PORT: u16 = 31_999;

/// A local load balancer with a health check, and a pod with a host port that is web-1's own.
const LOCAL: &str = "
apiVersion: v1
kind: Service
metadata: {name: local, namespace: shop}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.81, 'fd00:10:96::81']
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  ports: [{name: http, port: 8081, nodePort: 30081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local, namespace: shop, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.11], nodeName: demo-node}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-ipv6, namespace: shop, labels: {kubernetes.io/service-name: local}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ['fd00:10:244::11'], nodeName: demo-node}]
";
/// Its cluster addresses.
const LOCAL_IP: [&str; 2] = ["10.96.0.81", "fd00:10:96::81"];

/// Status and body of what curl gets from outside.
fn get(world: &World, address: &str, l4_port: u16, path: &str) -> Option<(u16, Value)> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("http://{host}:{l4_port}{path}");
    let words = ["-sS", "--max-time", "2", "-w", "\n%{http_code}", &url];
    let text = world.scene.client.run("curl", &words).ok()?;
    let (body, code) = text.trim_end().rsplit_once('\n')?;
    Some((code.parse().ok()?, serde_json::from_str(body).unwrap_or_default()))
}

fn wait_for(world: &World, l4_port: u16, path: &str, wanted: u16) {
    let comes = || get(world, NODE[0], l4_port, path).is_some_and(|(code, _)| code == wanted);
    assert!(wait_until(PATIENCE, comes).is_some(), "{l4_port}{path} is not {wanted}");
}

#[test]
fn health_checks_probes_host_ports_and_what_is_told_of_services() {
    if !root_or_skip("services of a real node") {
        return;
    }
    // All of the uplink's traffic comes to the pipeline, and nobody may reach any pod of the market.
    let world =
        World::start_edited(Shape { label: "services", mtu: 1500, xdp_mode: "native" }, |text| {
            text.replace("  - interface: uplink\n", "  - interface: uplink\n    everything: true\n")
        });
    world.add_manifests("local.yaml", LOCAL);
    health_checks(&world);
    hairpin(&world);
    host_ports(&world);
    told(&world);
    traced(&world);
    world.assert_kernel_forwarded_nothing();
}

fn health_checks(world: &World) {
    wait_for(world, HEALTH_PORT, "/", 200);
    for address in NODE {
        let (code, body) = get(world, address, HEALTH_PORT, "/").expect("an answer");
        assert_eq!((code, &body["localEndpoints"]), (200, &Value::from(1)), "{address}");
        assert_eq!(body["service"]["name"], "local");
    }
    // Its only endpoint moves away, and comes back.
    world.add_manifests("local.yaml", &LOCAL.replace("nodeName: demo-node", "nodeName: other"));
    wait_for(world, HEALTH_PORT, "/", 503);
    world.add_manifests("local.yaml", LOCAL);
    wait_for(world, HEALTH_PORT, "/", 200);
    for path in ["/healthz", "/livez"] {
        assert_eq!(get(world, NODE[1], 10_256, path).expect("an answer").0, 200, "{path}");
    }
    let file = world.files.manifests.join("node.yaml");
    let node = std::fs::read_to_string(&file).expect("the node's manifest");
    let taint = "spec:\n  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]\n";
    world.add_manifests("node.yaml", &node.replacen("spec:\n", taint, 1));
    wait_for(world, 10_256, "/healthz", 503);
    assert_eq!(get(world, NODE[0], 10_256, "/livez").expect("an answer").0, 200);
    world.add_manifests("node.yaml", &node);
    wait_for(world, 10_256, "/healthz", 200);
}

/// A pod whose service leads back to itself sees the node as its client, and is answered.
fn hairpin(world: &World) {
    for (family, address) in LOCAL_IP.into_iter().enumerate() {
        let answers = fetch(world.scene.pod(WEB_1), &to(address, 8081), 3, &["--timeout-ms=1500"]);
        let node: IpAddr = NODE[family].parse().expect("an address");
        for answer in answers.expect("asked") {
            assert_eq!((answer.error, answer.client), (None, Some(node)), "{address}");
            assert_eq!(answer.server.as_deref(), Some(WEB_1.name), "{address}");
        }
    }
}

/// From outside, with the client's own address; and a pod reaches itself.
fn host_ports(world: &World) {
    let file = world.files.manifests.join("pods.yaml");
    let pods = std::fs::read_to_string(&file).expect("the pods' manifest");
    let port = "{name: http, containerPort: 8080, protocol: TCP}";
    let with_host_port = pods.replacen(port, &port.replace("8080,", "8080, hostPort: 8088,"), 1);
    assert_ne!(pods, with_host_port);
    world.add_manifests("pods.yaml", &with_host_port);
    for (family, address) in NODE.iter().enumerate() {
        let answers = || {
            let answers = fetch(&world.scene.client, &to(address, 8088), 1, &["--timeout-ms=1500"]);
            answers.is_ok_and(|all| all.iter().all(|one| one.error.is_none()))
        };
        assert!(wait_until(PATIENCE, answers).is_some(), "{address}: a host port");
        let flows = world.ask_json(&["ct", "list", "--address", CLIENT[family], "--port", "8088"]);
        let entry = &flows["entries"][0];
        assert_eq!(entry["translated_source"]["address"], CLIENT[family], "{flows}");
        assert_eq!(entry["backend"]["address"], WEB_1.addresses[family], "{flows}");
        let own = fetch(world.scene.pod(WEB_1), &to(address, 8088), 1, &["--timeout-ms=1500"]);
        assert!(own.expect("asked").iter().all(|one| one.error.is_none()), "hairpin {address}");
    }
}

fn told(world: &World) {
    let list = world.ask_json(&["service", "list"]);
    let names: Vec<&str> =
        list.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    assert!(names.contains(&"shop/local:http") && names.contains(&"Pod shop/web-1:8088"), "{list}");
    let shown = world.ask_json(&["service", "show", "shop/local"]);
    assert_eq!(shown["health_check"]["l4_port"], HEALTH_PORT, "{shown}");
    assert!(shown["health_check"].get("failure").is_none(), "{shown}");
    let backend = &shown["ports"][0]["backends"][0];
    assert_eq!(
        (&backend["state"], &backend["in_local"]),
        (&"ready".into(), &true.into()),
        "{shown}"
    );
    let answers = fetch(&world.scene.client, &to(NODE[0], 30_081), 3, &[]).expect("asked");
    assert!(answers.iter().all(|one| one.error.is_none()), "{answers:?}");
    let shown = world.ask_json(&["service", "show", "shop/local"]);
    let connections = shown["ports"][0]["backends"][0]["connections"].as_u64();
    assert!(connections >= Some(1), "{shown}");
    assert_eq!(shown["ports"][0]["backends"][0]["weight"], 100, "{shown}");
    assert!(world.refusal(&["service", "show", "shop/none"]).contains("xskiff service list"));
}

/// What is told is what happens.
fn traced(world: &World) {
    let port = HTTP[0].to_string();
    for (from, address) in [(CLIENT[0], BALANCER[0]), (WEB_1.addresses[1], CLUSTER_IP[1])] {
        let words = ["service", "trace", "--from", from, "--to", address, "--port", &port];
        let traced = world.ask_json(&[&words[..], &["--source-port", "41000"]].concat());
        let backend = traced["backend"]["address"].as_str().expect("a backend");
        assert!(traced["outcome"].as_str().is_some_and(|text| text.contains(backend)), "{traced}");
        let stages: Vec<&str> = traced["stages"]
            .as_array()
            .expect("stages")
            .iter()
            .filter_map(|stage| stage["stage"].as_str())
            .collect();
        assert_eq!(stages, ["client", "frontend", "policy", "backends", "slot"], "{traced}");
    }
    let nothing = ["service", "trace", "--from", CLIENT[0], "--to", CLUSTER_IP[0], "--port", "9"];
    let traced = world.ask_json(&nothing);
    assert!(traced["outcome"].as_str().is_some_and(|text| text.contains("no-service-port")));
}
