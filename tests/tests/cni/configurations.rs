//! The plugin's place in a runtime's configuration: by command, and kept by the node.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, plugin, root_or_skip};

use crate::cluster::{Cluster, PATIENCE};

const LIST: &str = "{\n  \"name\": \"cbr0\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    \
                    {\"type\": \"flannel\"},\n    {\"type\": \"portmap\"}\n  ]\n}\n";

struct Runtime {
    directory: tempfile::TempDir,
}

impl Runtime {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("net.d")).expect("made");
        Self { directory }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, text: &str) {
        std::fs::write(self.at("net.d/10-flannel.conflist"), text).expect("written");
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.at("net.d/10-flannel.conflist")).expect("read")
    }

    fn command(&self, words: &[&str]) -> Output {
        Command::new(path())
            .args(["--json", "cni"])
            .args(words)
            .args([
                Path::new("--conf-dir"),
                &self.at("net.d"),
                Path::new("--bin-dir"),
                &self.at("bin"),
            ])
            .output()
            .expect("it runs")
    }

    fn done(&self, words: &[&str]) -> Value {
        let output = self.command(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

#[test]
fn installing_is_done_once_told_and_undone_to_the_byte() {
    let runtime = Runtime::new();
    runtime.write(LIST);
    let plugin = plugin().to_string_lossy();
    assert_eq!(runtime.done(&["status"])["chained"], false);
    let install = ["install", "--plugin", &*plugin, "--node-absent", "fail"];
    let first = runtime.done(&install);
    assert_eq!((&first["file_changed"], &first["plugin_changed"]), (&true.into(), &true.into()));
    let chained = runtime.read();
    assert!(chained.contains("\"nodeAbsent\":\"fail\"") && chained.contains("xskiff-cni"));
    let second = runtime.done(&install);
    assert_eq!(
        (&second["file_changed"], &second["plugin_changed"]),
        (&false.into(), &false.into())
    );
    assert_eq!(runtime.read(), chained);
    let status = runtime.done(&["status"]);
    assert_eq!((&status["chained"], &status["plugin_is_there"]), (&true.into(), &true.into()));
    // What was copied is the plugin.
    let versions = Command::new(runtime.at("bin/xskiff-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it runs");
    assert!(String::from_utf8_lossy(&versions.stdout).contains("\"1.1.0\""));
    let undone = runtime.done(&["uninstall"]);
    assert_eq!(undone["files_changed"].as_array().map(Vec::len), Some(1));
    assert_eq!(runtime.read(), LIST);
    assert!(runtime.at("bin/xskiff-cni").exists(), "pods that are there still need it");
    assert_eq!(runtime.done(&["uninstall", "--remove-plugin"])["plugin_removed"], true);
}

#[test]
fn what_is_no_json_is_left_alone_and_named_with_its_place() {
    let runtime = Runtime::new();
    let broken = LIST.replace("\"cniVersion\"", "cniVersion");
    runtime.write(&broken);
    let plugin = plugin().to_string_lossy();
    let refused = runtime.command(&["install", "--plugin", &*plugin]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("10-flannel.conflist") && said.contains("line 3"), "{said}");
    assert_eq!(runtime.read(), broken);
    let names = std::fs::read_dir(runtime.at("net.d")).expect("a directory").count();
    assert_eq!(names, 1);
    let missing = runtime.command(&["install", "--plugin", "/nonexistent/plugin"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--plugin"));
}

/// As Flannel does whenever it starts: its own text, written over ours.
#[test]
fn a_node_puts_the_plugin_back_within_5_seconds_and_counts_it() {
    if !root_or_skip("a kept chain") {
        return;
    }
    let runtime = Runtime::new();
    runtime.write(LIST);
    std::fs::create_dir(runtime.at("bin")).expect("made");
    std::fs::copy(plugin(), runtime.at("bin/xskiff-cni")).expect("copied");
    let mut cluster = Cluster::build("kept");
    cluster.edit_configuration(&format!(
        "\ncni:\n  keep_chained: true\n  conf_dir: {}\n  bin_dir: {}\n",
        runtime.at("net.d").display(),
        runtime.at("bin").display()
    ));
    cluster.begin();
    let is_chained = || runtime.read().contains("xskiff-cni");
    assert!(wait_until(PATIENCE, is_chained).is_some());
    let socket = cluster.files.socket.display().to_string();
    assert!(runtime.read().contains(&socket), "the plugin is told of the node's own socket");
    for round in 1..=3 {
        std::thread::sleep(Duration::from_secs(1));
        let edited = LIST.replace("portmap", &format!("portmap{round}"));
        let began = Instant::now();
        runtime.write(&edited);
        let back = || is_chained() && runtime.read().contains(&format!("portmap{round}"));
        assert!(wait_until(PATIENCE, back).is_some(), "{}", runtime.read());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let counted = || cluster.status().cni.chain.is_some_and(|chain| chain.rechains == round);
        assert!(wait_until(PATIENCE, counted).is_some(), "{:?}", cluster.status().cni);
    }
    // What is broken stays as it is, and the node says so.
    runtime.write("{");
    let named = |cluster: &Cluster| {
        let errors = cluster.status().errors;
        errors.iter().any(|error| error.message.contains("10-flannel.conflist"))
    };
    assert!(wait_until(PATIENCE, || named(&cluster)).is_some(), "{:?}", cluster.status().cni);
    assert_eq!(runtime.read(), "{");
    runtime.write(LIST);
    assert!(wait_until(PATIENCE, || is_chained() && !named(&cluster)).is_some());
}
