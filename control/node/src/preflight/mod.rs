//! `xskiff preflight INTERFACE...`: whether this machine and these interfaces will do, before a node is
//! started on them.
//!
//! What can be tried without touching the interfaces is tried for real, on links and in network
//! namespaces that are made for it and end with their threads; interfaces themselves are only looked
//! at, unless `--attach` is given. Nothing is left behind.
//!
//! Reading order: [`finding`] (what a check says), [`host`] (the machine), [`interface`] (each one, with
//! [`interface_ways`] out of it), [`trial`] (frames forwarded for real by AF_XDP) and [`ways`] (by the other
//! ways out) on [`trial_network`], and [`bypassed`] (what of the host's rules packets pass by once they are
//! redirected).

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

pub mod bypassed;
pub mod finding;
pub mod host;
pub mod interface;
pub mod interface_ways;
pub mod trial;
pub mod trial_network;
pub mod ways;

use finding::{Finding, Verdict};

/// Of `preflight`.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The interfaces that are to be uplinks.
    #[arg(required = true, value_name = "INTERFACE")]
    pub interfaces: Vec<String>,
    /// Attach to the interfaces as well, and bind a socket to each, passing everything, and send three
    /// frames of no protocol into veths: only this shows what their drivers and other ends can. Some
    /// drivers reset the link when XDP is attached.
    #[arg(long)]
    pub attach: bool,
}

/// Why `preflight` ends with 1.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A check failed.
    #[error("{0} checks failed: a node would not do its work here")]
    Failed(usize),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether no check failed.
    ok: bool,
    /// Every check.
    checks: Vec<Finding>,
}

/// Checks everything, and prints it.
///
/// # Errors
/// [`PreflightError`].
pub fn run(arguments: &Arguments, json: bool) -> Result<(), PreflightError> {
    let checks = check(arguments);
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    let text = if json {
        let report = Report { ok: failed == 0, checks };
        let text = serde_json::to_string_pretty(&report).map_err(io::Error::other)?;
        format!("{text}\n")
    } else {
        finding::table(&checks)
    };
    io::stdout().write_all(text.as_bytes())?;
    if failed == 0 { Ok(()) } else { Err(PreflightError::Failed(failed)) }
}

fn check(arguments: &Arguments) -> Vec<Finding> {
    let mut checks = host::check();
    // The kernel would refuse, and say less clearly why.
    let may_try = checks
        .iter()
        .all(|check| check.check != host::PRIVILEGES || check.verdict != Verdict::Fail);
    let mut queues = 1;
    for name in &arguments.interfaces {
        let seen = interface::check(name, arguments.attach && may_try);
        queues = queues.max(seen.queues);
        checks.extend(seen.findings);
    }
    checks.extend(trial::check(may_try, queues));
    checks.extend(ways::check(may_try));
    checks.extend(bypassed::check(may_try));
    checks
}
