//! Under which licences, and from where, our dependencies come.
//!
//! Written out here because the tools for it fetch an advisory database from git, and the tests
//! need no more network than the registry.

use std::process::Command;

use crate::workspace::{assert_none, list, metadata, text};

/// Licences under which code may be built into a binary under Apache-2.0 without further duties
/// than keeping notices. SPDX identifiers.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The only registry.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that must not come in, and why.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "a C library that would have to match the host's; rustls serves"),
    ("serde_yaml", "no longer kept; serde-saphyr serves"),
    ("async-std", "no longer kept; tokio serves"),
];

/// Whether an SPDX expression leaves us a choice of allowed licences only.
///
/// `OR` needs one side, `AND` both, and `AND` binds tighter (SPDX 2.3, annex D). The old form
/// `MIT/Apache-2.0` of crates.io is an `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = either(&words, &mut at);
    allowed && at == words.len()
}

fn either(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = both(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= both(words, at);
    }
    allowed
}

fn both(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = single(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= single(words, at);
    }
    allowed
}

fn single(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let allowed = either(words, at);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return allowed && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return ALLOWED.contains(&format!("{word} WITH {exception}").as_str());
    }
    ALLOWED.contains(word)
}

/// This machine's target triple: packages for other systems are not built and not judged.
fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

#[test]
fn every_dependency_is_licensed_from_the_registry_and_not_banned() {
    let metadata = metadata(&["--filter-platform", &host()]);
    let mut offenders = Vec::new();
    for package in list(&metadata, "packages") {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        let licence = text(package, "license");
        if !is_allowed(licence) {
            offenders.push(format!("{name}: licence `{licence}` is not in ALLOWED"));
        }
        let source = text(package, "source");
        if !source.is_empty() && source != REGISTRY {
            offenders.push(format!("{name}: comes from {source}"));
        }
        let banned = BANNED.iter().find(|(banned, _)| *banned == text(package, "name"));
        offenders.extend(banned.map(|(_, reason)| format!("{name}: {reason}")));
    }
    assert_none(&offenders, "dependencies that may not be used");
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    for allowed in [
        "MIT",
        "MIT/Apache-2.0",
        "LGPL-2.1 OR BSD-2-Clause",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        "GPL-2.0 AND MIT OR ISC",
    ] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in [
        "",
        "EUPL-1.2",
        "MIT AND GPL-2.0",
        "GPL-2.0 AND (MIT OR ISC)",
        "GPL-2.0 WITH Classpath-exception-2.0",
        "(MIT",
        "MIT MIT",
    ] {
        assert!(!is_allowed(refused), "{refused}");
    }
}
