//! Tells the program which commit it is built from, for the header of its reports; and builds the
//! peer that is written in C, where DPDK's library is installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// rte_hash beside this project's table: a program of its own.
const PEER: &str = "src/table/rte_hash_peer.c";

fn main() {
    // Grows with every commit, on any branch.
    println!("cargo::rerun-if-changed=../.git/logs/HEAD");
    let described = output_of(Command::new("git").args(["describe", "--always", "--dirty"]));
    let commit = described.unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=XSKIFF_COMMIT={commit}");

    println!("cargo::rerun-if-changed={PEER}");
    watch_pkg_config();
    let peer = pkg_config("--cflags").zip(pkg_config("--libs"));
    let peer = peer.map(|(flags, libraries)| build_peer(&flags, &libraries));
    let path = peer.map(|path| path.display().to_string()).unwrap_or_default();
    println!("cargo::rustc-env=XSKIFF_RTE_HASH_PEER={path}");
}

fn output_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn pkg_config(what: &str) -> Option<String> {
    output_of(Command::new("pkg-config").args([what, "libdpdk"]))
}

/// A library that is installed or removed later changes one of pkg-config's folders.
fn watch_pkg_config() {
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    let query = ["--variable", "pc_path", "pkg-config"];
    let folders = output_of(Command::new("pkg-config").args(query)).unwrap_or_default();
    for folder in folders.split(':').filter(|folder| Path::new(folder).is_dir()) {
        println!("cargo::rerun-if-changed={folder}");
    }
}

/// Optimised and for this machine's processor whatever the profile: DPDK's inline functions are part
/// of the peer, and its library chooses its instructions at run time as ours does.
fn build_peer(flags: &str, libraries: &str) -> PathBuf {
    let program = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("rte_hash_peer");
    let status = cc::Build::new()
        .get_compiler()
        .to_command()
        .args(flags.split_whitespace())
        .args(["-O3", "-march=native", "-g", "-Wall", "-Wextra", "-pthread", PEER, "-o"])
        .arg(&program)
        .args(libraries.split_whitespace())
        .status();
    match status {
        Ok(status) if status.success() => program,
        Ok(status) => panic!("{PEER}: the compiler ends with {status}"),
        Err(error) => panic!("{PEER}: the compiler cannot be started: {error}"),
    }
}
