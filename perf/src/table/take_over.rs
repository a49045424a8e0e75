//! How long a process takes to go on with the table of the one before: closed in order, or killed.
//!
//! The table lies in a file on tmpfs as the node's does, and every take-over is a process of its own:
//! this program once more. The time is its thread's own, from the opening of the file to the owners'
//! being there. Every flow must be found then.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, ensure};
use flow_table::{Entry, Hasher, Keys, Memory, Quiescence, Shape, Table, TakenOver};
use pinning::memory_file::{Held, MemoryFile, prepare_directory};

use super::flow::Tuple;
use super::lineup::XSKIFF;
use super::measure::PIECE;
use super::population::Population;
use super::samples::Samples;
use super::setting::short;
use super::subject::{FlowTable, Here, Subject, own_time};
use super::xskiff::{HASH_KEY, SPARE, Xskiff};
use crate::interrupt;

/// Where the file is: tmpfs on most systems.
const DIRECTORY: &str = "/dev/shm";

/// What a process does with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Makes it, inserts the flows, and closes the table.
    Fill,
    /// Goes on with a closed table, and leaves it open.
    Clean,
    /// Goes on with one that was left open, and closes it.
    Rebuild,
}

const ACTS: [(Act, &str); 3] =
    [(Act::Fill, "fill"), (Act::Clean, "take-over-clean"), (Act::Rebuild, "take-over-rebuild")];

/// What another process is to do; as the hidden option `--take-over-of` gives it.
#[derive(Debug, Clone)]
pub struct Restart {
    act: Act,
    flows: usize,
    directory: PathBuf,
}

impl FromStr for Restart {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or("give ACT:FLOWS:DIRECTORY");
        let name = next()?;
        let (act, _) = ACTS.into_iter().find(|act| act.1 == name).ok_or("no act")?;
        let flows = next()?.parse().map_err(|_| "no number of flows")?;
        Ok(Self { act, flows, directory: next()?.into() })
    }
}

/// A directory that goes with this, whatever is in it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing is left to do where it cannot be removed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Adds the figures.
///
/// # Errors
/// There is no room on tmpfs, or another process fails; it says why.
pub fn measure(flows: usize, runs: u32, samples: &mut Samples) -> Result<()> {
    let directory = Path::new(DIRECTORY).join(format!("xskiff-perf-{}", std::process::id()));
    prepare_directory(&directory)?;
    let directory = Temporary(directory);
    let program = std::env::current_exe().context("this program's path")?;
    let run = |name: &str| -> Result<f64> {
        let restart = format!("{name}:{flows}:{}", directory.0.display());
        let output = Command::new(&program)
            .args(["table", "--take-over-of", &restart])
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("start this program once more")?;
        interrupt::check()?;
        ensure!(output.status.success(), "{name} of {flows} flows: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim().parse().with_context(|| format!("{name} of {flows} flows: {text}"))
    };
    let [(_, fill), acts @ ..] = ACTS;
    run(fill)?;
    for _ in 0..runs {
        for (_, name) in acts {
            samples.add(&format!("{name}/{}", short(flows)), XSKIFF, "ms", run(name)?);
        }
    }
    Ok(())
}

/// In the other process: the milliseconds that the act took.
///
/// # Errors
/// A flow is lost.
pub fn of<const K: usize, const W: usize>(restart: &Restart) -> Result<f64> {
    let Restart { act, flows, ref directory } = *restart;
    let path = directory.join("flows");
    let shape = Shape::fixed(flows + SPARE, 1);
    let started = own_time()?;
    let (table, held) = match act {
        Act::Fill => fill::<K, W>(&path, &shape, flows)?,
        Act::Clean => take_over::<K, W>(&path, &shape, flows, false)?,
        Act::Rebuild => take_over::<K, W>(&path, &shape, flows, true)?,
    };
    let spent = own_time()?.saturating_sub(started);
    let mut subject = Here::new(XSKIFF, table);
    audit::<K, W>(&mut subject, flows)?;
    ensure!(act == Act::Clean || subject.into_table().close(), "the table cannot be closed");
    drop(held);
    Ok(spent.as_secs_f64() * 1e3)
}

fn fill<const K: usize, const W: usize>(
    path: &Path,
    shape: &Shape,
    flows: usize,
) -> Result<(Xskiff<W>, Held)> {
    let bytes = Table::<W>::memory_bytes(shape)?;
    let (memory, mut held) =
        MemoryFile::create(path, bytes, &Table::<W>::regions(shape, shape.committed)?)?
            .into_parts();
    let quiescence = Quiescence::new(1)?;
    let begun = Table::new(Memory::Mapped(memory), *shape, Arc::clone(&quiescence))?;
    held.publish()?;
    let mut table = Xskiff::of(begun, quiescence, false)?;
    let mut population = Population::new(false);
    for start in (0..flows).step_by(PIECE) {
        let flows = population.newcomers::<K>(PIECE.min(flows - start));
        FlowTable::insert(&mut table, &flows, 1)?;
    }
    Ok((table, held))
}

/// As the node process does it.
fn take_over<const K: usize, const W: usize>(
    path: &Path,
    shape: &Shape,
    flows: usize,
    was_killed: bool,
) -> Result<(Xskiff<W>, Held)> {
    let file = MemoryFile::open(path)?.context("the file has gone")?;
    let inspected = Table::<W>::inspect(file.bytes())?;
    file.take(&inspected.regions::<W>(inspected.committed))?;
    ensure!(inspected.is_clean() != was_killed, "killed: {was_killed}, but {inspected:?}");
    let (memory, held) = file.into_parts();
    let (hasher, quiescence) = (Hasher::new(HASH_KEY), Quiescence::new(1)?);
    let (table, owners, taken) =
        Table::take_over(memory, shape, &quiescence, |entry| keys::<K, W>(&hasher, entry))?;
    let wanted = TakenOver { rebuilt: was_killed, entries: flows as u64, given_up: 0 };
    ensure!(taken == wanted, "{taken:?} instead of {wanted:?}");
    Ok((Xskiff::of((table, owners), quiescence, false)?, held))
}

/// Looks up every flow.
fn audit<const K: usize, const W: usize>(
    subject: &mut Here<Xskiff<W>>,
    flows: usize,
) -> Result<()> {
    let mut population = Population::new(false);
    population.arrive::<K>(flows);
    let mut found = 0;
    for start in (0..flows).step_by(PIECE) {
        let piece = population.piece::<K>(start, PIECE);
        let tally = subject.audit(&piece.keys)?;
        ensure!(tally == piece.expected, "{tally:?} instead of {:?}", piece.expected);
        found += tally.found;
    }
    ensure!(found == flows as u64, "{found} of {flows} flows are found");
    Ok(())
}

fn keys<const K: usize, const W: usize>(
    hasher: &Hasher,
    entry: &Entry<W>,
) -> Option<Keys<Tuple<K>>> {
    let key = Tuple::<K>(std::array::from_fn(|word| entry.words()[word].load(Relaxed)));
    Some(((hasher.hash(&key.0), key), None))
}
