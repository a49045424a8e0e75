//! The `xskiff` binary that tests run: built once, so that none meets yesterday's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

static BINARY: OnceLock<PathBuf> = OnceLock::new();
static PLUGIN: OnceLock<PathBuf> = OnceLock::new();

/// Path of the binary; `XSKIFF_BINARY` names another one.
///
/// # Panics
/// It does not build: nothing of a test that needs it could be trusted.
pub fn path() -> &'static Path {
    let given = || std::env::var_os("XSKIFF_BINARY");
    BINARY.get_or_init(|| given().map_or_else(|| build("xskiff"), PathBuf::from))
}

/// Path of the CNI plugin; `XSKIFF_CNI_BINARY` names another one.
///
/// # Panics
/// As [`path`].
pub fn plugin() -> &'static Path {
    let given = || std::env::var_os("XSKIFF_CNI_BINARY");
    PLUGIN.get_or_init(|| given().map_or_else(|| build("xskiff-cni"), PathBuf::from))
}

/// Builds the binary of the package of that name.
fn build(name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        // With the whole workspace's features: its crates are there already, and built with them.
        .args(["build", "--quiet", "--locked", "--workspace", "--bin", name])
        .args(["--message-format", "json"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.output().expect("cargo can be run");
    assert!(output.status.success(), "the {name} binary does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.expect("cargo names the binary it built")
}

/// Whether a test that needs root shall run. Set `XSKIFF_SKIP_ROOT_TESTS=1` to go without.
///
/// # Panics
/// Not root, and not told to skip: a test that silently did nothing would prove nothing.
pub fn root_or_skip(test: &str) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    if uid.and_then(|uid| uid.split_whitespace().nth(1)) == Some("0") {
        return true;
    }
    if std::env::var_os("XSKIFF_SKIP_ROOT_TESTS").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED {test}: not root, and XSKIFF_SKIP_ROOT_TESTS=1");
        return false;
    }
    panic!("{test} makes network namespaces: run it as root, or set XSKIFF_SKIP_ROOT_TESTS=1");
}

/// A number from the environment, for showings larger than the usual run.
#[must_use]
pub fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
    })
}
