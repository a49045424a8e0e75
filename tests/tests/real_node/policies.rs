//! What a running node says of identities, policies and its own reconciles: the commands as a person
//! types them, against manifests and real traffic.

use serde_json::Value;
use xskiff::demo::scene::{BUYER, CLUSTER_IP, HTTP, STRANGER, WEB_1, to};
use xskiff::demo::traffic::fetch;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::world::{PATIENCE, Shape, World};

/// What `xskiff COMMAND` prints for people.
fn told(world: &World, command: &[&str]) -> String {
    let socket = world.files.socket.to_string_lossy();
    let words = [&["--socket", &*socket], command].concat();
    let program = path().to_string_lossy();
    world.scene.node.run(&program, &words).unwrap_or_else(|error| panic!("{error}"))
}

fn number_at(world: &World, what: &str) -> u64 {
    let found = world.ask_json(&["identity", "get", what]);
    found[0]["identity"]["number"].as_u64().expect("a number")
}

#[test]
fn a_node_says_what_policy_is_in_force_whom_it_concerns_and_what_it_dropped() {
    if !root_or_skip("policies as a node tells them") {
        return;
    }
    let world = World::start(Shape { label: "policies", mtu: 1500, xdp_mode: "native" });
    identities(&world);
    policies(&world);
    explanations(&world);
    explanations_of_several(&world);
    let refused =
        fetch(world.scene.pod(STRANGER), &to(CLUSTER_IP[0], HTTP[0]), 1, &["--timeout-ms=1500"]);
    assert!(refused.expect("asked").iter().all(|answer| answer.error.is_some()));
    drops(&world);
    reconciles(&world);
}

fn identities(world: &World) {
    let listing = world.ask_json(&["identity", "list"]);
    let rows = listing["rows"].as_array().expect("rows");
    assert_eq!(rows[0]["kind"], "host");
    assert_eq!(listing["total"].as_u64(), Some(rows.len() as u64));
    let number = number_at(world, "shop/web-1");
    assert_eq!(number_at(world, WEB_1.addresses[0]), number);
    assert_eq!(number_at(world, &number.to_string()), number);
    let text = told(world, &["identity", "get", "shop/web-1"]);
    assert!(text.contains("used by NetworkPolicy shop/web-customers, spec.podSelector"), "{text}");
    assert!(text.contains("isolated toward itself (ingress) by:\n  shop/web-customers"), "{text}");
    let page = told(world, &["identity", "list", "--limit", "1"]);
    assert!(page.contains("are shown; go on with --after 1\n"), "{page}");
}

fn policies(world: &World) {
    let listing = world.ask_json(&["policy", "list", "--namespace", "shop"]);
    let row = &listing["rows"][0];
    assert_eq!(row["name"], "shop/web-customers", "{listing}");
    assert!(row["pods_here"].as_u64() > Some(0) && row["audited"] == Value::Bool(false), "{row}");
    assert!(told(world, &["policy", "status"]).starts_with("OK: "));
    let text = told(world, &["policy", "status", "shop/web-customers"]);
    assert!(text.starts_with("OK: it isolates ") && text.contains("shop/web-1"), "{text}");
    assert!(text.contains("spec.ingress[0]"), "{text}");

    // A misspelt port name: no pod has it, and the policy says so.
    world.add_manifests(
        "odd.yaml",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {name: odd, namespace: elsewhere}, \
         spec: {podSelector: {}, ingress: [{ports: [{port: htpt}]}]}}\n",
    );
    let is_told = || told(world, &["policy", "status"]).starts_with("DEGRADED: 1 problem");
    assert!(wait_until(PATIENCE, is_told).is_some(), "{}", told(world, &["policy", "status"]));
    let text = told(world, &["policy", "list"]);
    assert!(text.contains("problem: elsewhere/odd: spec.ingress[0]: no pod has"), "{text}");
    std::fs::remove_file(world.files.manifests.join("odd.yaml")).expect("removed");
    let is_gone = || told(world, &["policy", "status"]).starts_with("OK: ");
    assert!(wait_until(PATIENCE, is_gone).is_some());
}

fn explanations(world: &World) {
    let explain = |from: &str, to: &str| {
        let words = ["policy", "explain", "--from", from, "--to", to, "--port", "8080"];
        world.ask_json(&[&words[..], &["--proto", "tcp"]].concat())
    };
    let by_pod = explain("market/stranger", "shop/web-1");
    assert_eq!(by_pod["allowed"], Value::Bool(false), "{by_pod}");
    let identity = |name: &str| format!("identity:{}", number_at(world, name));
    let by_identity = explain(&identity("market/stranger"), &identity("shop/web-1"));
    assert_eq!(by_identity["allowed"], Value::Bool(false), "{by_identity}");
    let by_address = explain(STRANGER.addresses[0], WEB_1.addresses[0]);
    for told in [&by_pod, &by_identity, &by_address] {
        let steps = told["steps"].as_array().expect("steps");
        let [egress, ingress] = &steps[..] else { panic!("{told}") };
        assert_eq!(
            (&egress["direction"], &ingress["direction"]),
            (&"egress".into(), &"ingress".into())
        );
        let examined = ingress["examined"].as_array().expect("rules");
        assert!(!examined.is_empty(), "{told}");
        for rule in examined {
            assert_eq!(rule["policy"], "shop/web-customers");
            assert!(rule["index"].is_u64() && rule["peer"].is_string(), "{rule}");
            assert!(rule["protocol"].is_string() && rule["port"].is_string(), "{rule}");
        }
        assert!(ingress["rule"].as_str().expect("why").contains("shop/web-customers"), "{told}");
    }
}

/// What is asked stands for several addresses, or for one that blocks tell apart from others.
fn explanations_of_several(world: &World) {
    let explain = |from: &str, to: &str, port: &str| {
        let words = ["policy", "explain", "--from", from, "--to", to, "--port", port];
        world.ask_json(&[&words[..], &["--proto", "tcp"]].concat())
    };
    let summary = |told: &Value| told["summary"].as_str().expect("a summary").to_owned();
    let refused = explain("market/stranger", CLUSTER_IP[0], "80");
    assert_eq!(refused["allowed"], Value::Bool(false), "{refused}");
    let text = summary(&refused);
    assert!(text.contains("Service shop/web") && text.contains("2 of 2 asked of 2"), "{text}");
    assert!(text.contains("default deny"), "{text}");
    let bought = explain("market/buyer", CLUSTER_IP[0], "80");
    assert_eq!(bought["allowed"], Value::Bool(true), "{bought}");
    // No service's port: the address is as any other.
    assert!(!summary(&explain("market/buyer", CLUSTER_IP[0], "81")).contains("Service"));

    let policy = |peer: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: out, \
             namespace: market}}, spec: {{podSelector: {{matchLabels: {{role: stranger}}}}, \
             policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {peer}}}}}]}}]}}}}\n"
        )
    };
    world.add_manifests("out.yaml", &policy("192.0.2.0/24"));
    let of_node = |field: &str| explain("market/stranger", "host", "10250")[field].clone();
    let is_told = || summary(&explain("market/stranger", "host", "10250")).contains("1 of 2");
    assert!(wait_until(PATIENCE, is_told).is_some(), "{:?}", of_node("summary"));
    assert_eq!(of_node("allowed"), Value::Bool(false), "its IPv6 address is in no block");
    assert_eq!(explain("market/stranger", "192.0.2.1", "10250")["allowed"], Value::Bool(true));
    // Whatever policy says, a pod always reaches itself.
    let itself = explain("market/stranger", "market/stranger", "80");
    assert!(
        itself["allowed"] == Value::Bool(true) && summary(&itself).contains("to itself"),
        "{itself}"
    );
    assert_eq!(explain("market/stranger", "world", "443")["allowed"], Value::Bool(false));
    // A block of one family: packets of the other are refused, whatever pod they are for.
    let [v4, v6] = BUYER.addresses;
    world.add_manifests("out.yaml", &policy(&format!("{v4}/32")));
    let to_buyer = || explain("market/stranger", "market/buyer", "80");
    let is_told = || summary(&to_buyer()).contains("1 of 2 asked of 2 are refused");
    assert!(wait_until(PATIENCE, is_told).is_some(), "{}", to_buyer());
    let refused = to_buyer();
    let described = refused["to"].as_str().expect("who");
    assert!(refused["allowed"] == Value::Bool(false) && described.contains(v6), "{refused}");
    assert_eq!(explain("market/stranger", v4, "80")["allowed"], Value::Bool(true));
    assert_eq!(explain("market/stranger", v6, "80")["allowed"], Value::Bool(false));
    world.add_manifests("out.yaml", &policy("0.0.0.0/0"));
    let words =
        ["policy", "explain", "--from", "market/stranger", "--to", "world", "--port", "443"];
    let program = path().to_string_lossy().into_owned();
    let socket = world.files.socket.to_string_lossy().into_owned();
    let ask = || world.scene.node.run(&program, &[&["--socket", &*socket], &words[..]].concat());
    let is_refused = || ask().is_err_and(|error| error.to_string().contains("ipBlocks name every"));
    assert!(wait_until(PATIENCE, is_refused).is_some(), "{:?}", ask());
    assert_eq!(explain("market/stranger", "198.51.100.9", "443")["allowed"], Value::Bool(true));
    std::fs::remove_file(world.files.manifests.join("out.yaml")).expect("removed");
    let is_gone = || told(world, &["policy", "list"]).contains("market/out");
    assert!(wait_until(PATIENCE, || !is_gone()).is_some());
}

fn drops(world: &World) {
    let flows = world.ask(&["flows", "--verdict", "dropped", "--endpoint", "market/stranger"]);
    let first: Value = serde_json::from_str(flows.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["policies"], serde_json::json!(["shop/web-customers"]), "{first}");
    assert!(first["rule"].as_str().expect("a rule").contains("default deny"), "{first}");
    let text = told(world, &["drops"]);
    assert!(text.contains("policy-ingress lately"), "{text}");
    assert!(text.contains("isolated by NetworkPolicy shop/web-customers"), "{text}");
    let detail = world.ask_json(&["policy", "status", "shop/web-customers"]);
    assert!(detail["policy"]["denied"].as_u64() > Some(0), "{detail}");
}

fn reconciles(world: &World) {
    let status = world.status();
    for name in ["compile", "identities", "policy", "services", "routes-neighbours", "xdp-maps"] {
        let row = status.reconciles.iter().find(|row| row.reconcile == name).expect(name);
        assert!(row.runs > 0 && row.failures == 0, "{row:?}");
    }
    for row in status.reconciles.iter().filter(|row| row.runs > 0) {
        assert!(row.microseconds.is_some() && row.longest_microseconds.is_some(), "{row:?}");
    }
    let row = |name: &str| status.reconciles.iter().find(|row| row.reconcile == name);
    assert!(row("source-manifests").is_some_and(|row| row.runs >= 2), "{:?}", status.reconciles);
    let text = told(world, &["status"]);
    assert!(text.contains("RECONCILE") && text.contains("xdp-maps"), "{text}");
}
