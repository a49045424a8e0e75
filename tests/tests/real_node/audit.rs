//! What a node says of its own tables, and policies under audit, on real traffic.

use serde_json::Value;
use xskiff::demo::scene::{CLUSTER_IP, HTTP, STRANGER, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::root_or_skip;

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
