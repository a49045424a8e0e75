//! What the plugin says, to the letter, in every version of the specification.

use serde_json::{Value, json};
use xskiff::demo::scene::WEB_1;
use xskiff_tests::xskiff_binary::root_or_skip;

use crate::cluster::{Cluster, Primary};
use crate::driver::Network;

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn versions_status_and_garbage_are_answered_to_the_letter() {
    if !root_or_skip("golden answers") {
        return;
    }
    let mut cluster = Cluster::build("golden");
    let network = |cluster: &Cluster, more: Value| cluster.network(Primary::Ptp, "1.1.0", more);
    let versions = network(&cluster, json!({})).ours(&cluster.node, "VERSION", None, json!({}));
    assert_eq!(
        versions.expect("versions"),
        r#"{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
    );

    // No node: pods that are there may be cut off, unless they are to be admitted.
    let waits = network(&cluster, json!({}));
    let socket = cluster.files.socket.display().to_string();
    let refusal = waits.ours(&cluster.node, "STATUS", None, json!({})).unwrap_err();
    let golden = json!({
        "cniVersion": "1.1.0",
        "code": 51,
        "msg": "the node process cannot serve pods now",
        "details": format!(
            "no node process answers at {socket}: No such file or directory (os error 2)"
        ),
    });
    assert_eq!(serde_json::from_str::<Value>(&refusal.text).expect("JSON"), golden);
    let garbage = json!({ "cni.dev/valid-attachments": [] });
    let refusal = waits.ours(&cluster.node, "GC", None, garbage.clone()).unwrap_err();
    assert_eq!(refusal.code, 11, "{refusal:?}");
    let admits = network(&cluster, json!({ "nodeAbsent": "admit" }));
    assert_eq!(admits.ours(&cluster.node, "STATUS", None, json!({})).expect("it admits"), "");

    cluster.begin();
    cluster.wait_well();
    assert_eq!(waits.ours(&cluster.node, "STATUS", None, json!({})).expect("all is well"), "");
    assert_eq!(waits.ours(&cluster.node, "GC", None, garbage).expect("nothing to do"), "");
    let refusal = waits.ours(&cluster.node, "GC", None, json!({})).unwrap_err();
    assert!(refusal.code == 7 && refusal.text.contains("valid-attachments"), "{refusal:?}");

    // An uplink is down: traffic of pods does not pass.
    cluster.node.ip("link set uplink down").expect("ip");
    let limited = || waits.ours(&cluster.node, "STATUS", None, json!({}));
    let failing = || limited().is_err_and(|refusal| refusal.code == 51);
    assert!(
        xskiff::lab::wait_until(crate::cluster::PATIENCE, failing).is_some(),
        "{:?}",
        limited()
    );
    for older in &VERSIONS[..4] {
        let older = Network { version: older, ..waits.clone() };
        let refusal = older.ours(&cluster.node, "STATUS", None, json!({})).unwrap_err();
        assert_eq!(refusal.code, 1, "{refusal:?}");
    }
}

/// A result with keys that nobody knows yet, numbers beyond 64 bits, and an order of its own.
const RESULT: &str = r#"{ "zebra": [1.50, 123456789012345678901234567890, null], "ips":
  [{"version":"4","address":"10.244.0.11/24","future":{}},{"version":"6","address":"fd00:10:244::11/64"}],
  "interfaces": [], "cniVersion": "VERSION", "dns": {} }"#;

#[test]
fn the_result_goes_on_to_the_byte_in_every_version() {
    if !root_or_skip("every version") {
        return;
    }
    let cluster = Cluster::start("versions");
    let network = cluster.network(Primary::Ptp, "0.3.1", json!({}));
    let container = cluster.container(WEB_1, "one");
    let others = network.without_ours();
    others.add(&cluster.node, &container).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    for version in VERSIONS {
        let result = RESULT.replace("VERSION", version);
        let ours = network.plugins.last().expect("ours");
        let input = Network { version, ..network.clone() }.input(ours, &container, None);
        let input = input.to_string();
        let open = input.strip_suffix('}').expect("an object");
        let call = crate::driver::Call {
            host: &cluster.node,
            verb: "ADD",
            program: xskiff_tests::xskiff_binary::plugin(),
            variables: crate::driver::variables(&container),
            input: format!("{open},\"prevResult\":{result}}}"),
        };
        let said = call.answer().unwrap_or_else(|refusal| panic!("{version}: {refusal:?}"));
        assert_eq!(said, result);
        assert_eq!(cluster.endpoints().len(), 1);
    }
    network.delete(&cluster.node, &container, None).expect("gone");
    assert!(cluster.endpoints().is_empty());
}
