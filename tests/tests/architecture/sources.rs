//! What may stand in which source file.

use std::fs;
use std::path::Path;

use crate::rust_source::{code_only, lines_with_word, without_tests};
use crate::workspace::{assert_none, files, list, metadata, root, shown, text};

/// Folders in which `unsafe` may stand; the compiler's lints see to it that each block says why.
const MAY_BE_UNSAFE: &[&str] = &["dataplane/flow-table", "xdp-redirect", "pinning"];

/// Lines a source file may have.
const FILE_LINES_MAX: usize = 600;

/// What the core may not call: it sees bytes, tables and a time argument.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "print",
    "println",
    "eprintln",
];

/// Who may ask what time it is by the wall clock, which jumps: they write it down for people. Whatever waits,
/// expires or is paced goes by the monotonic clock.
const WALL_CLOCK: &[&str] = &[
    "control/cluster/src/follow/standing.rs",
    "control/cluster/src/snapshot/file.rs",
    "control/cluster/src/snapshot/mod.rs",
    "control/cni/src/log.rs",
    "control/node/src/cli/show/reconciles.rs",
    "control/node/src/health_checks.rs",
    "control/node/src/lab/agent/hold.rs",
    "control/node/src/node/clock.rs",
    "control/node/src/node/error_log.rs",
    "control/node/src/node/manifests.rs",
    "control/node/src/node/mod.rs",
    "control/node/src/node/reconciles.rs",
];

fn may_be_unsafe(path: &Path) -> bool {
    MAY_BE_UNSAFE.iter().any(|folder| path.starts_with(root().join(folder)))
}

/// Whether the file is a module of tests, or in a folder of them.
fn is_of_tests(path: &Path) -> bool {
    let is_named_so = path.file_stem().is_some_and(|stem| {
        let stem = stem.to_string_lossy();
        stem == "tests" || stem.ends_with("_tests")
    });
    is_named_so || path.components().any(|part| part.as_os_str() == "tests")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", shown(path)))
}

#[test]
fn unsafe_stands_only_in_the_flow_table_the_sockets_and_pinning() {
    let mut offenders = Vec::new();
    for path in files(&root(), &[".rs"]).iter().filter(|path| !may_be_unsafe(path)) {
        let lines = lines_with_word(&code_only(&read(path)), "unsafe");
        offenders.extend(lines.iter().map(|line| format!("{}:{line}", shown(path))));
    }
    assert_none(&offenders, "unsafe outside of the crates that may have it");
}

#[test]
fn every_other_crate_root_forbids_unsafe_code() {
    let metadata = metadata(&["--no-deps"]);
    let mut offenders = Vec::new();
    for package in list(&metadata, "packages") {
        for target in list(package, "targets") {
            let root = Path::new(text(target, "src_path"));
            let kinds = list(target, "kind");
            let is_root = kinds.iter().any(|kind| kind == "lib" || kind == "bin");
            if !is_root || may_be_unsafe(root) {
                continue;
            }
            if !code_only(&read(root)).contains("#![forbid(unsafe_code)]") {
                offenders.push(shown(root));
            }
        }
    }
    assert_none(&offenders, "crate roots without #![forbid(unsafe_code)]");
}

#[test]
fn no_source_file_outgrows_a_reader() {
    let mut offenders = Vec::new();
    for path in files(&root(), &[".rs", ".c", ".h", ".sh"]) {
        let lines = read(&path).lines().count();
        if lines > FILE_LINES_MAX {
            offenders.push(format!("{}: {lines} lines", shown(&path)));
        }
    }
    assert_none(&offenders, &format!("files of more than {FILE_LINES_MAX} lines"));
}

#[test]
fn the_core_reads_no_clock_and_does_no_io() {
    let mut offenders = Vec::new();
    let sources = files(&root().join("dataplane/src"), &[".rs"]);
    assert!(!sources.is_empty(), "dataplane/src has no sources");
    for path in sources.into_iter().filter(|path| !is_of_tests(path)) {
        let code = code_only(&read(&path));
        for word in IMPURE {
            let lines = lines_with_word(without_tests(&code), word);
            offenders.extend(lines.iter().map(|line| format!("{}:{line}: {word}", shown(&path))));
        }
    }
    assert_none(&offenders, "impure calls in the core");
}

#[test]
fn nothing_but_what_people_read_goes_by_a_clock_that_jumps() {
    let mut offenders = Vec::new();
    let mut readers = Vec::new();
    let sources = files(&root().join("control"), &[".rs"]);
    for path in sources.into_iter().filter(|path| !is_of_tests(path)) {
        let code = code_only(&read(&path));
        let lines = lines_with_word(without_tests(&code), "SystemTime");
        if lines.is_empty() {
            continue;
        }
        let shown = shown(&path);
        if WALL_CLOCK.contains(&&*shown) {
            readers.push(shown);
        } else {
            offenders.extend(lines.iter().map(|line| format!("{shown}:{line}")));
        }
    }
    assert_none(&offenders, "readers of the wall clock");
    readers.sort();
    assert_eq!(readers, WALL_CLOCK, "who reads it no more has no need to be named");
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_undone() {
    let mut offenders = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let source = read(&path);
        let code = code_only(&source);
        let ignored = code.lines().zip(1..).filter(|(line, _)| line.contains("#[ignore"));
        offenders.extend(ignored.map(|(_, line)| format!("{}:{line}: ignored", shown(&path))));
        for word in ["todo!", "unimplemented!"] {
            let lines = lines_with_word(&code, word.trim_end_matches('!'));
            let calls = lines.iter().filter(|line| {
                code.lines().nth(**line - 1).is_some_and(|text| text.contains(word))
            });
            offenders.extend(calls.map(|line| format!("{}:{line}: {word}", shown(&path))));
        }
        let marks = lines_with_word(&source, concat!("FIX", "ME"));
        offenders.extend(marks.iter().map(|line| format!("{}:{line}: mark", shown(&path))));
    }
    assert_none(&offenders, "ignored tests and unfinished code");
}
