//! Who may import whom.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::workspace::{assert_none, files, list, metadata, root, shown, text};

const EVERYTHING_BELOW: &[&str] =
    &["flow-table", "dataplane", "xdp-redirect", "pinning", "control", "cluster", "xskiff"];
/// Beside everything the node is made of, tests see the plugin.
const OF_TESTS: &[&str] = &[
    "flow-table",
    "dataplane",
    "xdp-redirect",
    "pinning",
    "control",
    "cluster",
    "xskiff",
    "xskiff-cni",
];

/// Package, and the packages of ours that it may import, for whatever purpose.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("flow-table", &[]),
    ("dataplane", &["flow-table"]),
    ("xdp-redirect", &["dataplane"]),
    ("control", &["dataplane"]),
    ("cluster", &["dataplane", "control"]),
    // The admin protocol alone, which the next test sees to.
    ("xskiff-cni", &["control"]),
    ("pinning", &[]),
    ("xskiff", &["flow-table", "dataplane", "xdp-redirect", "pinning", "control", "cluster"]),
    ("xskiff-perf", EVERYTHING_BELOW),
    ("xskiff-tests", OF_TESTS),
];

/// Crates that only some packages may import into what they ship, and why.
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("aya", &["xdp-redirect"], "programs are loaded in one place"),
    ("core_affinity", &["pinning"], "threads are pinned in one place"),
    ("tokio", &["cluster", "xskiff", "xskiff-tests"], "async belongs to the control thread"),
    (
        "k8s-openapi",
        &["control", "cluster", "xskiff", "xskiff-tests"],
        "cluster objects end at the compiler",
    ),
    ("kube", &["cluster", "xskiff-tests"], "API servers are spoken to in one place"),
];

/// What the pure core may use: data structures, no I/O, no clock, no threads.
const CORE_MAY_USE: &[&str] =
    &["flow-table", "arrayvec", "crossbeam-queue", "hashbrown", "thiserror"];

/// What takes the place of the standard library's atomics where interleavings are checked.
const CHECKERS: &[&str] = &["loom", "shuttle"];

fn may_import(package: &str) -> Option<&'static [&'static str]> {
    MAY_IMPORT.iter().find(|(name, _)| *name == package).map(|(_, imports)| *imports)
}

/// Why `package` may not import `dependency`, if so.
fn refusal(package: &str, dependency: &str, is_development: bool) -> Option<String> {
    let ours = may_import(dependency).is_some();
    let allowed = may_import(package).unwrap_or_default();
    if ours && !allowed.contains(&dependency) {
        return Some(format!("{package} imports {dependency}; it may import only {allowed:?}"));
    }
    let reserved =
        RESERVED.iter().find(|(name, users, _)| *name == dependency && !users.contains(&package));
    if let Some((_, users, reason)) = reserved.filter(|_| !is_development) {
        return Some(format!("{package} imports {dependency}, kept to {users:?}: {reason}"));
    }
    let core = ["dataplane", "flow-table"].contains(&package) && !is_development;
    if core && !CORE_MAY_USE.contains(&dependency) && !CHECKERS.contains(&dependency) {
        return Some(format!("{package} imports {dependency}; the core is pure: {CORE_MAY_USE:?}"));
    }
    None
}

#[test]
fn packages_import_only_what_the_design_allows() {
    let metadata = metadata(&["--no-deps"]);
    let mut offenders = Vec::new();
    for package in list(&metadata, "packages") {
        let name = text(package, "name");
        if may_import(name).is_none() {
            offenders.push(format!("{name} is not in MAY_IMPORT: say what it may import"));
        }
        for dependency in list(package, "dependencies") {
            let is_development = text(dependency, "kind") == "dev";
            offenders.extend(refusal(name, text(dependency, "name"), is_development));
        }
    }
    assert_none(&offenders, "imports against the rule of the workspace");
}

/// Paths into `control` that are no part of the admin protocol.
fn beyond_the_admin_protocol(source: &str) -> Vec<String> {
    let paths = source.match_indices("control::").filter_map(|(at, path)| {
        let is_word = source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &source[at + path.len()..];
        let named = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest);
        (!is_word && named != "admin").then(|| format!("control::{named}"))
    });
    paths.collect()
}

#[test]
fn the_plugin_knows_the_admin_protocol_and_nothing_else_of_the_node() {
    let mut offenders = Vec::new();
    let sources = files(&root().join("control/cni"), &[".rs"]);
    assert!(sources.len() > 5, "the sources were not found: {sources:?}");
    for path in sources {
        let source = fs::read_to_string(&path).expect("a source");
        for named in beyond_the_admin_protocol(&source) {
            offenders.push(format!("{}: {named}", shown(&path)));
        }
    }
    assert_none(&offenders, "of `control` the plugin may use `control::admin` alone");
    let seen = beyond_the_admin_protocol("use control::config::Config; my_control::x");
    assert_eq!(seen, ["control::config"]);
    assert_eq!(beyond_the_admin_protocol("use control::{admin, store};"), ["control::"]);
}

#[test]
fn every_package_keeps_the_workspace_lints() {
    let metadata = metadata(&["--no-deps"]);
    let without = |package: &&Value| {
        let manifest = fs::read_to_string(Path::new(text(package, "manifest_path")));
        !manifest.expect("a manifest").contains("[lints]\nworkspace = true")
    };
    let packages = list(&metadata, "packages").iter();
    let offenders: Vec<_> =
        packages.filter(without).map(|package| text(package, "name").to_owned()).collect();
    assert_none(&offenders, "packages without `[lints] workspace = true`");
}

#[test]
fn forbidden_edges_are_seen_as_forbidden() {
    for (package, dependency) in [
        ("dataplane", "control"),
        ("control", "xdp-redirect"),
        ("control", "pinning"),
        ("xdp-redirect", "flow-table"),
        ("pinning", "dataplane"),
        ("xskiff", "xskiff-perf"),
        ("xskiff", "xskiff-cni"),
        ("xskiff-cni", "dataplane"),
        ("xskiff-cni", "tokio"),
        ("control", "aya"),
        ("dataplane", "libc"),
    ] {
        assert!(refusal(package, dependency, false).is_some(), "{package} -> {dependency}");
    }
    for (package, dependency) in
        [("dataplane", "flow-table"), ("xskiff", "pinning"), ("xdp-redirect", "aya")]
    {
        assert_eq!(refusal(package, dependency, false), None);
    }
    assert_eq!(refusal("dataplane", "proptest", true), None, "tests of the core may use more");
    assert!(refusal("dataplane", "control", true).is_some(), "but not what lies above it");
}
