//! What a node says of its own tables, and policies under audit, on real traffic.

use std::collections::BTreeSet;

use serde_json::Value;
use xskiff::demo::scene::{CLUSTER_IP, HTTP, STRANGER, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::bpf_objects;
use crate::world::{PATIENCE, Shape, World};

/// Whether the pod that no rule names is answered.
fn stranger_is_answered(world: &World) -> bool {
    let to = to(CLUSTER_IP[0], HTTP[0]);
    let answers = fetch(world.scene.pod(STRANGER), &to, 1, &["--timeout-ms=1500"]);
    answers.expect("an answer or none").iter().all(|answer| answer.error.is_none())
}

#[test]
fn a_running_node_finds_its_own_tables_as_the_objects_say() {
    if !root_or_skip("the audit of a real node") {
        return;
    }
    let world = World::start(Shape { label: "audit", mtu: 1500, xdp_mode: "native" });
    let report = world.ask_json(&["audit"]);
    assert_eq!(report["found"], 0, "{report}");
    assert!(report["checked"].as_u64() > Some(50), "{report}");
    let audit = world.status().audit;
    assert!(audit.rounds >= 1 && audit.repairs == 0, "{audit:?}");
    assert_eq!(audit.differences.len(), 6);
    assert!(audit.differences.iter().all(|(_, found)| *found == 0), "{audit:?}");
}

/// Keys of a map of the kernel's, as bpftool takes them.
fn keys(world: &World, map: &str) -> BTreeSet<Vec<String>> {
    let told = world.scene.node.run("bpftool", &["-j", "map", "dump", "id", map]).expect("a dump");
    let entries: Vec<Value> = serde_json::from_str(&told).expect("JSON");
    let octets = |entry: &Value| -> Vec<String> {
        let key = entry["key"].as_array().expect("a key").iter();
        key.map(|octet| octet.as_str().expect("an octet").to_owned()).collect()
    };
    entries.iter().map(octets).collect()
}

/// Deletes a key of a map, and has it found by a round that is asked for.
fn take_out(world: &World, map: &str, key: &[String]) {
    let program = xskiff_tests::xskiff_binary::path().to_string_lossy();
    let socket = world.files.socket.to_string_lossy();
    let found = (0..5).find_map(|_| {
        let delete = ["map", "delete", "id", map, "key"].into_iter();
        let words: Vec<&str> = delete.chain(key.iter().map(String::as_str)).collect();
        world.scene.node.run("bpftool", &words).expect("deleted");
        // A round that the node began by itself may find it before.
        world.scene.node.run(&program, &["--socket", &socket, "audit"]).err()
    });
    let said = found.expect("it exits with a failure").to_string();
    assert!(said.contains("1 differences") && said.contains("report what stays"), "{said}");
}

#[test]
fn what_somebody_takes_out_of_the_kernels_table_is_named_counted_and_put_back() {
    if !root_or_skip("the audit of a broken table") {
        return;
    }
    let world = World::start(Shape { label: "broken", mtu: 1500, xdp_mode: "native" });
    let map = bpf_objects::map_of(world.status().pid, "prefixes4").to_string();
    let whole = keys(&world, &map);
    let lost = whole.first().expect("prefixes are there").clone();
    // The second time it is the same difference as the round before has found.
    for _ in 0..2 {
        take_out(&world, &map, &lost);
        let is_whole = || keys(&world, &map) == whole;
        assert!(wait_until(PATIENCE, is_whole).is_some(), "{:?}", keys(&world, &map));
    }
    let status = world.status();
    assert!(status.audit.repairs >= 2, "{:?}", status.audit);
    let of_kernel = status.audit.differences.iter().find(|(audited, _)| audited == "kernel");
    assert!(of_kernel.is_some_and(|(_, found)| *found >= 2), "{:?}", status.audit);
    let maps = status.reconciles.iter().find(|row| row.reconcile == "xdp-maps").expect("a row");
    let error = maps.last_error.as_ref().expect("the last error");
    assert!(maps.failures >= 1 && error.object.contains("XDP rules"), "{maps:?}");
    let metrics = world.metrics();
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("xskiff_audit_differences_total{audited=\"kernel\"} "));
    assert!(counted.is_some_and(|count| count != "0"), "{metrics}");
    let log = std::fs::read_to_string(world.node.process().log()).expect("its log");
    let is_named = |line: &str| line.contains("audit: XDP rules") && line.contains("WARN");
    assert!(log.lines().any(is_named), "{log}");
    assert_eq!(world.ask_json(&["audit"])["found"], 0, "it is mended");
}

#[test]
fn what_a_policy_refuses_passes_while_it_is_under_audit_and_is_named() {
    if !root_or_skip("a policy under audit") {
        return;
    }
    let world = World::start(Shape { label: "mode", mtu: 1500, xdp_mode: "native" });
    let file = world.files.manifests.join("policy.yaml");
    let enforced = std::fs::read_to_string(&file).expect("the demo's policy");
    assert!(!stranger_is_answered(&world));

    let under_audit = enforced.replace(
        "  name: web-customers\n",
        "  name: web-customers\n  annotations: {xskiff.io/policy-mode: audit}\n",
    );
    assert_ne!(under_audit, enforced);
    std::fs::write(&file, &under_audit).expect("written");
    assert!(wait_until(PATIENCE, || stranger_is_answered(&world)).is_some());
    let named = world.ask(&["flows", "--verdict", "audited"]);
    let first: Value = serde_json::from_str(named.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["source_endpoint"], "market/stranger", "{named}");
    let rule = first["rule"].as_str().expect("a rule");
    assert!(rule.contains("would be denied") && rule.contains("shop/web-customers"), "{rule}");
    assert!(world.status().workers.iter().any(|worker| worker.flows_audited > 0));
    assert_eq!(world.ask_json(&["audit"])["found"], 0, "the audit knows of modes");

    std::fs::write(&file, &enforced).expect("written");
    assert!(wait_until(PATIENCE, || !stranger_is_answered(&world)).is_some());
}
