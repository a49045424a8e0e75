//! The configuration file of a running node, edited: what comes into force at once, what waits for
//! a restart, and that the node says which is which.

use control::admin::Status;
use control::config::Config;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

use crate::bare::Bare;
use crate::world::PATIENCE;

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";

fn ask(bare: &Bare, socket: &str, command: &[&str]) -> String {
    let words = [&["--socket", socket], command].concat();
    let answer = bare.node.run(&path().to_string_lossy(), &words);
    answer.unwrap_or_else(|error| panic!("{error}"))
}

fn waiting(bare: &Bare, socket: &str) -> Vec<String> {
    let status: Status =
        serde_json::from_str(&ask(bare, socket, &["--json", "status"])).expect("a status");
    status.waiting_for_restart
}

fn in_force(bare: &Bare, socket: &str) -> Config {
    Config::parse(&ask(bare, socket, &["config", "print"])).expect("what is printed is read")
}

/// `config print` and `config diff` went by the file as last read: after an edit that needs a
/// restart they told of a node that was not running, and nothing said so.
#[test]
fn an_edit_that_needs_a_restart_is_named_and_not_told_as_in_force() {
    if !root_or_skip("an edited configuration") {
        return;
    }
    let bare = Bare::new("edited");
    let (run, socket) = (bare.directory("run"), bare.directory("run/admin.sock"));
    let manifests = bare.directory("manifests");
    std::fs::create_dir(&manifests).expect("a folder");
    std::fs::write(format!("{manifests}/a.yaml"), NAMESPACE).expect("written");
    let file = bare.configuration("up0", &run, "manifests: /nonexistent");
    let process = bare.spawn_with(&[], &file, &["--manifests", &manifests]);
    bare.ready(&process, &socket);
    assert_eq!(
        in_force(&bare, &socket).manifests.expect("a folder").display().to_string(),
        manifests
    );
    assert!(waiting(&bare, &socket).is_empty());

    let edit = "packet_memory: {frame_bytes: 4096}\ntimeouts: {udp_seconds: 77}";
    let file = bare.configuration("up0", &run, edit);
    let named = || waiting(&bare, &socket) == ["packet_memory.frame_bytes"];
    assert!(wait_until(PATIENCE, named).is_some(), "{:?}", waiting(&bare, &socket));
    let shown = in_force(&bare, &socket);
    assert_eq!((shown.packet_memory.frame_bytes, shown.timeouts.udp_seconds), (2048, 77));
    assert_eq!(shown.manifests.expect("a folder").display().to_string(), manifests);
    let diff = ask(&bare, &socket, &["config", "diff", &file]);
    assert!(diff.contains("packet_memory.frame_bytes") && !diff.contains("udp"), "{diff}");
    assert!(!diff.contains("manifests"), "{diff}");
    let told = ask(&bare, &socket, &["status"]);
    assert!(told.contains("waits for restart: packet_memory.frame_bytes\n"), "{told}");

    bare.configuration("up0", &run, "timeouts: {udp_seconds: 78}");
    assert!(wait_until(PATIENCE, || waiting(&bare, &socket).is_empty()).is_some());
    assert_eq!(in_force(&bare, &socket).timeouts.udp_seconds, 78);
}
