//! The demo as a stranger runs it: it must come out as expected, and leave nothing behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use xskiff::lab::wait_until;
use xskiff_tests::xskiff_binary::{path, root_or_skip};

/// One demo at a time: it measures time-outs, and two of them would share two cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What the step is called that has a download beside the kernel's.
const COMPARED: &str = "the same by the kernel alone";

/// What the demo promises of itself.
const TIME_MAX: Duration = Duration::from_secs(120);

fn demo(arguments: &[&str]) -> Child {
    command(arguments).spawn().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(path());
    command.args(["demo", "--json"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends it by SIGINT, which it must answer, and looks that nothing is left.
fn interrupt(mut demo: Child) {
    let id = demo.id();
    let interrupt = Command::new("kill").args(["-INT", &id.to_string()]).status();
    assert!(interrupt.unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(128 + 2));
    // A command that ran at this moment has not been waited for, and ends by itself.
    let is_clean = wait_until(Duration::from_secs(5), || left_of(id).is_empty());
    assert!(is_clean.is_some(), "{:?}", left_of(id));
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
    let expectations = summary["expectations"].as_array().unwrap();
    assert!(expectations.len() > 30, "{said}");
    let seen_of = |name: &str| {
        let of_name = |row: &&Value| row["name"].as_str().is_some_and(|own| own.contains(name));
        expectations.iter().find(of_name).and_then(|row| row["seen"].as_str()).unwrap_or_default()
    };
    let compared = seen_of(COMPARED);
    assert_eq!(compared.matches(" of it").count(), 2, "{compared}");
    assert!(compared.contains("nftables DNAT"), "{compared}");
    // The kernel's router is a namespace of its own: in the node's nothing was forwarded.
    assert!(seen_of("the kernel's own forwarding").contains("0 IPv4 and 0 IPv6"), "{said}");
    assert_eq!(left_of(id), Vec::<String>::new());
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    if !root_or_skip("the interrupted demo") {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = demo(&[]);
    let id = demo.id();
    let running = || left_of(id).iter().any(|left| left.contains(" run --config"));
    assert!(wait_until(Duration::from_secs(20), running).is_some(), "no node was started");
    interrupt(demo);
}

#[test]
fn a_demo_that_is_interrupted_while_the_kernel_forwards_leaves_nothing() {
    if !root_or_skip("the interrupted comparison") {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = demo(&["--upload-mib", "32"]);
    let id = demo.id();
    let is_kernels = |left: &String| left.contains("demo-kernel-client") && left.contains("fetch");
    let running = || left_of(id).iter().any(is_kernels);
    assert!(wait_until(Duration::from_secs(60), running).is_some(), "the kernel forwarded nothing");
    interrupt(demo);
}

/// Every program that this machine's commands are looked for among, but `left_out`.
fn programs_without(left_out: &str, directory: &Path) {
    let path = std::env::var_os("PATH").expect("a path");
    let programs = std::env::split_paths(&path).filter_map(|path| std::fs::read_dir(path).ok());
    for program in programs.flatten().flatten().filter(|entry| entry.file_name() != left_out) {
        // The first of a name counts.
        let _ = std::os::unix::fs::symlink(program.path(), directory.join(program.file_name()));
    }
}

#[test]
fn without_nft_the_kernel_routes_alone_and_the_demo_says_so() {
    if !root_or_skip("the demo without nft") {
        return;
    }
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    programs_without("nft", directory.path());
    let mut command = command(&["--upload-mib", "1"]);
    let mut demo = command.env("PATH", directory.path()).spawn().unwrap();
    let said = BufReader::new(demo.stderr.take().unwrap());
    let compared = said.lines().map_while(Result::ok).find(|line| line.contains(COMPARED));
    let compared = compared.expect("a download beside the kernel's");
    assert!(compared.starts_with("ok"), "{compared}");
    assert!(compared.contains("routing alone, since nft is not installed"), "{compared}");
    interrupt(demo);
}
