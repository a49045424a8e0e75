//! Memory per connection: what a process that does nothing else has grown by when the table is full.
//!
//! The process is this program once more, since what other tables have left behind in the heap would
//! be used first. rte_hash says itself what it takes of its heap.

use std::fs;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use super::lineup::{Make, XSKIFF};
use super::population::Population;
use super::samples::Samples;
use super::setting::{Kind, kibibytes, short};

/// Flows inserted between two looks for new ones: few, so that they take no memory to speak of.
const PIECE: usize = 1024;

/// One table to fill; as the hidden option `--memory-of` gives it to the other process.
#[derive(Debug, Clone)]
pub struct Filled {
    /// The subject.
    pub subject: String,
    /// Flows.
    pub flows: usize,
    /// The kind's name.
    pub kind: String,
    /// Whether entries have a second line.
    pub details: bool,
}

impl FromStr for Filled {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let [subject, flows, kind, details] = parts[..] else {
            return Err("give SUBJECT/FLOWS/KIND/DETAILS");
        };
        let flows = flows.parse().map_err(|_| "no number of flows")?;
        let details = details.parse().map_err(|_| "neither true nor false")?;
        Ok(Self { subject: subject.into(), flows, kind: kind.into(), details })
    }
}

/// Adds a figure: the bytes of each flow.
///
/// # Errors
/// The other process fails; it says why.
pub fn measure(
    subject: &'static str,
    (kind, flows): (Kind, usize),
    samples: &mut Samples,
) -> Result<()> {
    let all_details: &[bool] = if subject == XSKIFF { &[false, true] } else { &[false] };
    for &details in all_details {
        let program = std::env::current_exe().context("this program's path")?;
        let table = format!("{subject}/{flows}/{}/{details}", kind.name);
        let output = Command::new(program)
            .args(["table", "--memory-of", &table])
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("start this program once more")?;
        ensure!(output.status.success(), "{table}: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let bytes: f64 = text.trim().parse().with_context(|| format!("{table}: {text}"))?;
        let keys = if kind.two_keys { "two-keys" } else { "one-key" };
        let family = if kind.is_v6 { "/v6" } else { "" };
        let lines = if details { "/details" } else { "" };
        let case = format!("memory/{}/{keys}{family}{lines}", short(flows));
        samples.add(&case, subject, "bytes/connection", bytes / flows as f64);
    }
    Ok(())
}

/// In the other process: fills a table and returns what that took, in bytes.
///
/// # Errors
/// A flow is refused.
pub fn of<const K: usize, const W: usize, const R: usize>(
    name: &'static str,
    make: &Make,
) -> Result<usize> {
    let mut population = Population::new(make.two_keys);
    let before = resident_bytes()?;
    let mut subject = make.subject::<K, W, R>(name)?;
    if let Some(bytes) = subject.memory_bytes() {
        return usize::try_from(bytes).context("more than the address space");
    }
    let flows = make.room.flows;
    for start in (0..flows).step_by(PIECE) {
        let piece = population.newcomers(PIECE.min(flows - start));
        subject.insert(&piece, 1)?;
    }
    Ok(resident_bytes()?.saturating_sub(before))
}

fn resident_bytes() -> Result<usize> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").context("/proc/self/smaps_rollup")?;
    kibibytes(&text, "Rss:").context("/proc/self/smaps_rollup has no Rss")
}
