//! deploy/systemd/xskiff.service: its settings are known to systemd and go together, and what it allows
//! is what a node process uses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use control::config::Config;
use xskiff::cli::Cli;
use xskiff::privileges::NEEDED;
use xskiff_tests::seccomp_profile::Profile;
use xskiff_tests::xskiff_binary::path;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn unit() -> String {
    std::fs::read_to_string(deploy().join("systemd/xskiff.service")).expect("the unit")
}

/// Values of a setting, in order.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(own, _)| *own == name).map(|(_, value)| value).collect()
}

fn value<'a>(unit: &'a str, name: &str) -> &'a str {
    let [value] = values(unit, name)[..] else { panic!("{name} must be said once") };
    value
}

#[test]
fn the_unit_allows_the_capabilities_that_are_used_and_no_other() {
    let unit = unit();
    let listed: BTreeSet<String> =
        value(&unit, "CapabilityBoundingSet").split(' ').map(str::to_owned).collect();
    assert_eq!(listed, NEEDED.iter().map(|needed| needed.capability.to_string()).collect());
    assert_eq!(value(&unit, "NoNewPrivileges"), "yes");
}

#[test]
fn the_unit_runs_a_node_that_tells_when_it_is_ready_and_is_watched() {
    let unit = unit();
    let words = value(&unit, "ExecStart").split(' ');
    Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((value(&unit, "Type"), value(&unit, "NotifyAccess")), ("notify", "main"));
    assert_eq!(value(&unit, "Restart"), "always");
    // The XDP program drops a stalled worker's share long before the whole node is ended for it, and the
    // node ends by itself before systemd ends it, which says nothing of the worker.
    let seconds: u64 = value(&unit, "WatchdogSec").parse().expect("seconds");
    let stall = Config::default().stall;
    assert!(seconds * 1000 >= 10 * u64::from(stall.after_ms));
    assert!(seconds * 1000 >= u64::from(stall.restart_after_ms) + 5000);
    // Its directories are where a node looks for them unless told otherwise, and outlive it.
    let run = Path::new("/run").join(value(&unit, "RuntimeDirectory"));
    assert_eq!(Config::default().run_directory, run);
    assert_eq!(value(&unit, "RuntimeDirectoryPreserve"), "yes");
}

/// The kubelet of a control plane's node starts the API server that the unit waits for: before the kubelet
/// it would wait for ever, and the kubelet for it.
#[test]
fn nothing_waits_for_the_unit() {
    let unit = unit();
    for name in ["Before", "RequiredBy"] {
        assert!(values(&unit, name).is_empty(), "{name}");
    }
}

/// The plugin could never be put into the chain: the whole file system was read-only.
#[test]
fn the_unit_may_write_to_the_directory_of_the_chain_where_there_is_one() {
    let conf_dir = Config::default().cni.conf_dir;
    let unit = unit();
    let written: Vec<&str> = value(&unit, "ReadWritePaths").split(' ').collect();
    assert_eq!(written, [format!("-{}", conf_dir.display())]);
}

#[test]
fn systemd_takes_the_unit_and_its_filter_holds_all_of_the_profile() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("xskiff.service");
    let text = unit().replace("/usr/local/bin/xskiff", &path().to_string_lossy());
    // Its pages are not installed here.
    let text = text.replace("Documentation=man:xskiff(1)\n", "");
    std::fs::write(&file, text).expect("written");
    let verified = Command::new("systemd-analyze").arg("verify").arg(&file).output().expect("ran");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let own: Vec<&str> = said.lines().filter(|line| line.contains("xskiff")).collect();
    assert!(own.is_empty(), "{own:#?}");

    let unit = unit();
    let mut allowed = BTreeSet::from(["bpf".to_owned(), "setns".to_owned()]);
    let groups = value(&unit, "SystemCallFilter").split(' ').filter(|word| word.starts_with('@'));
    groups.chain(["@default"]).for_each(|group| expand(group, &mut allowed));
    let profile = std::fs::read_to_string(deploy().join("seccomp/xskiff.json")).expect("it");
    let profile = Profile::parse(&profile).unwrap_or_else(|error| panic!("{error:#}"));
    let missing: Vec<&str> = profile.names().filter(|name| !allowed.contains(*name)).collect();
    assert!(missing.is_empty(), "the unit's filter refuses {missing:?}");
}

/// Calls of a group, and of the groups in it.
fn expand(group: &str, calls: &mut BTreeSet<String>) {
    let listed = Command::new("systemd-analyze").args(["syscall-filter", group]).output();
    let listed = String::from_utf8_lossy(&listed.expect("ran").stdout).into_owned();
    for word in listed.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#')) {
        if word.starts_with('@') {
            expand(word, calls);
        } else {
            calls.insert(word.to_owned());
        }
    }
}
