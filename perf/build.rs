//! Tells the program which commit it is built from, for the header of its reports.

use std::process::Command;

fn main() {
    // Grows with every commit, on any branch.
    println!("cargo::rerun-if-changed=../.git/logs/HEAD");
    let described = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let commit = described
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=XSKIFF_COMMIT={}", commit.trim());
}
