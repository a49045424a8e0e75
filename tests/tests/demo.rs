//! The demo as a stranger runs it: it must come out as expected, and leave nothing behind.

use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

/// One demo at a time: it measures time-outs, and two of them would share two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the demo promises of itself.
const TIME_MAX: Duration = Duration::from_secs(120);

fn demo(arguments: &[&str]) -> Child {
    Command::new(path())
        .args(["demo", "--json"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Namespaces, directories and processes of the demo with that process id.
fn left_of(demo: u32) -> Vec<String> {
    let prefix = format!("xskiff-lab.{demo}.");
    let directories = ["/run/netns".into(), xskiff::lab::base_directory()];
    let entries = directories.iter().filter_map(|path| std::fs::read_dir(path).ok()).flatten();
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut left: Vec<_> = names.filter(|name| name.starts_with(&prefix)).collect();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&prefix) {
            left.push(command);
        }
    }
    left
}

#[test]
fn the_demo_sees_what_it_expects_within_two_minutes_and_leaves_nothing() {
    if !root_or_skip("the demo") {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let begin = Instant::now();
    let demo = demo(&["--upload-mib", "32"]);
    let id = demo.id();
    let output = demo.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(begin.elapsed() < TIME_MAX);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["ok"], &summary["differing"]), (&Value::Bool(true), &Value::from(0)));
    assert!(summary["expectations"].as_array().unwrap().len() > 30, "{said}");
    assert_eq!(left_of(id), Vec::<String>::new());
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    if !root_or_skip("the interrupted demo") {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut demo = demo(&[]);
    let id = demo.id();
    let running = || left_of(id).iter().any(|left| left.contains(" run --config"));
    assert!(wait_until(Duration::from_secs(20), running).is_some(), "no node was started");
    let interrupt = Command::new("kill").args(["-INT", &id.to_string()]).status();
    assert!(interrupt.unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(128 + 2));
    // A command that ran at this moment has not been waited for, and ends by itself.
    let is_clean = wait_until(Duration::from_secs(5), || left_of(id).is_empty());
    assert!(is_clean.is_some(), "{:?}", left_of(id));
}
