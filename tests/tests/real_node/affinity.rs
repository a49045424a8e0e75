//! Session affinity from one node process to the next: clients' backends stay what they were over an end in
//! order, a kill and a take-over, and are forgotten when their time is over, which goes on meanwhile.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use xskiff::lab::{Process, wait_until};
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::world::{PATIENCE, Shape, World};

/// Long enough for a restart on a machine that does much else.
const TIMEOUT: Duration = Duration::from_secs(40);
const ADDRESS: &str = "203.0.113.81";
/// Addresses that the client takes for its own. Those of the second half ask once, and then when their
/// time is over.
const CLIENTS: u8 = 16;

/// A service with affinity, whose pods are those of these numbers.
fn service(pods: &[u8]) -> String {
    let seconds = TIMEOUT.as_secs();
    let endpoints: Vec<String> = pods
        .iter()
        .map(|pod| format!("{{addresses: [10.244.0.1{pod}], nodeName: demo-node}}"))
        .collect();
    let endpoints = endpoints.join(", ");
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: sticky, namespace: shop}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.81
  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
status: {{loadBalancer: {{ingress: [{{ip: {ADDRESS}}}]}}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: sticky, namespace: shop, labels: {{kubernetes.io/service-name: sticky}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{endpoints}]
"
    )
}

/// The pod that answers a new connection of this client.
fn asked(world: &World, client: u8) -> Option<String> {
    let (from, url) = (format!("100.64.0.{client}"), format!("http://{ADDRESS}/"));
    let words = ["-sS", "--max-time", "5", "--interface", &from, &url];
    let text = world.scene.client.run("curl", &words).ok()?;
    let answer: Value = serde_json::from_str(&text).ok()?;
    answer["server"].as_str().map(str::to_owned)
}

fn all_at(world: &World, clients: std::ops::Range<u8>) -> BTreeSet<Option<String>> {
    clients.map(|client| asked(world, client)).collect()
}

/// Waits until the node has so many backends of the service.
fn wait_for_backends(world: &World, wanted: usize) {
    let backends = || {
        let shown = world.ask_json(&["service", "show", "shop/sticky"]);
        shown["ports"][0]["backends"].as_array().map_or(0, Vec::len)
    };
    assert!(wait_until(PATIENCE, || backends() == wanted).is_some(), "{} backends", backends());
}

#[test]
fn a_clients_backend_is_kept_from_process_to_process_until_its_time_is_over() {
    if !root_or_skip("session affinity over restarts") {
        return;
    }
    let shape = Shape { label: "affinity", mtu: 1500, xdp_mode: "native" };
    let world = World::start_edited(shape, |text| text + "\nstall: {on_exit: drop}\n");
    if world.status().flow_tables.iter().any(|table| table.file.is_none()) {
        return eprintln!("skipped: no tmpfs for flow tables");
    }
    world.scene.client.ip("route add local 100.64.0.0/24 dev lo").expect("own addresses");
    // Everybody is sent to the only pod; by their addresses alone half would go to the other one later.
    let known = || world.ask(&["service", "list"]).contains("shop/sticky");
    world.add_manifests("sticky.yaml", &service(&[1]));
    assert!(wait_until(PATIENCE, known).is_some());
    wait_for_backends(&world, 1);
    let first = BTreeSet::from([Some("web-1".to_owned())]);
    assert_eq!(all_at(&world, 0..CLIENTS), first);
    let (begun, mut asked_last) = (Instant::now(), Instant::now());
    world.add_manifests("sticky.yaml", &service(&[1, 2]));
    wait_for_backends(&world, 2);
    for client in 0..CLIENTS {
        let from = format!("100.64.0.{client}");
        let words = ["service", "trace", "--from", &from, "--to", ADDRESS, "--port", "80"];
        let traced = world.ask_json(&words);
        let mut stages = traced["stages"].as_array().expect("stages").iter();
        assert!(stages.any(|stage| stage["stage"] == "affinity"), "{traced}");
        assert_eq!(traced["backend"]["address"], "10.244.0.11", "{from} stays there");
    }

    let mut running: Option<Process> = None;
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGKILL), None] {
        running = Some(match signal {
            Some(signal) => {
                world.end_process(running.take(), signal);
                world.start_again()
            }
            None => {
                let before = running.take();
                let next = world.take_over();
                drop(before);
                next
            }
        });
        wait_for_backends(&world, 2);
        let (now, since) = (all_at(&world, 0..CLIENTS / 2), asked_last.elapsed());
        println!("{signal:?}: {now:?} after {since:?}");
        assert!(since >= TIMEOUT || now == first, "{signal:?}: {now:?} after {since:?}");
        asked_last = Instant::now();
    }
    // Whoever was asked again stays, whoever was not is free.
    let left = (TIMEOUT + Duration::from_secs(1)).saturating_sub(begun.elapsed());
    std::thread::sleep(left.saturating_sub(TIMEOUT / 2));
    let (kept, since) = (all_at(&world, 0..CLIENTS / 2), asked_last.elapsed());
    assert!(since >= TIMEOUT || kept == first, "{kept:?} after {since:?}");
    std::thread::sleep((TIMEOUT + Duration::from_secs(1)).saturating_sub(begun.elapsed()));
    let both = BTreeSet::from(["web-1", "web-2"].map(|name| Some(name.to_owned())));
    assert_eq!(all_at(&world, CLIENTS / 2..CLIENTS), both, "their time is over");
    assert!(all_at(&world, 0..CLIENTS / 2) == first || asked_last.elapsed() >= TIMEOUT);
    drop(running);
}
