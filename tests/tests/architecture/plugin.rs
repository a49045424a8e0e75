//! What the CNI plugin is made of, and how it is delivered: a runtime starts it anew for every call.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::workspace::{assert_none, root};

/// What the node is made of and the plugin has no use for: an executor and what needs one, TLS and HTTP,
/// a command line and a log with patterns, and BPF.
const NOT_OF_THE_PLUGIN: &[&str] = &[
    "anyhow",
    "aya",
    "clap",
    "hyper",
    "kube",
    "mio",
    "prometheus-client",
    "regex",
    "ring",
    "rtnetlink",
    "rustls",
    "tokio",
    "tracing-subscriber",
];

/// The names of all crates that a package of ours is linked with, as it is built by itself: what others of
/// the workspace want of a crate is not the plugin's.
fn linked(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["tree", "--locked", "--package", package, "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {errors}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn the_plugin_is_linked_with_no_executor_no_tls_and_no_command_line() {
    let of_plugin = linked("xskiff-cni");
    assert!(of_plugin.contains("control") && of_plugin.contains("libc"), "{of_plugin:?}");
    let unwanted = NOT_OF_THE_PLUGIN.iter().filter(|name| of_plugin.contains(**name));
    let unwanted: Vec<_> =
        unwanted.map(|name| format!("xskiff-cni is linked with {name}")).collect();
    assert_none(&unwanted, "the plugin is small because it links nothing that it does not use");
    // The same look sees all of them in the node, or they are no longer called so.
    let of_node = linked("xskiff");
    let gone = NOT_OF_THE_PLUGIN.iter().filter(|name| !of_node.contains(**name));
    assert_none(&gone.map(ToString::to_string).collect::<Vec<_>>(), "no crate of the node");
}

/// The figures in ARCHITECTURE.md are of this profile.
#[test]
fn the_image_has_the_plugin_as_its_profile_makes_it_linked_with_nothing_of_the_host() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("a file of the tree");
    let (manifest, recipe) = (read("Cargo.toml"), read("deploy/container/Containerfile"));
    let profile = manifest.split_once("[profile.plugin]").expect("the plugin's profile").1;
    let profile = profile.split("\n[").next().unwrap_or_default();
    for line in ["inherits = \"release\"", "lto = \"fat\"", "panic = \"abort\"", "strip = true"] {
        assert!(profile.lines().any(|own| own == line), "{line} is not in {profile}");
    }
    let recipe = recipe.replace("\\\n", " ");
    let built = recipe.lines().find(|line| line.contains("-p xskiff-cni")).expect("it is built");
    for words in ["-C target-feature=+crt-static", "--profile plugin", "--target"] {
        assert!(built.contains(words), "{words} is not in {built}");
    }
}
