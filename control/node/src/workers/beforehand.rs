//! What a process tries before it takes over from another one, and can try while that one serves: whether
//! it could go on with the flow tables as they lie there, and whether it may start as many threads.
//!
//! Nothing is locked, written or kept. What it promises holds for the moment: memory may be used up, and a
//! file may be changed, until the process before has let go of it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use dataplane::flow_key::{FlowKey4, FlowKey6};
use pinning::memory_file::{FileError, prepare_directory};
use pinning::peek::Peeked;

use super::capacity::Family;
use super::flow_memory::{boot_id, check};
use super::{Settings, WorkersError};

/// Threads that a node has beside its workers: those that bind and attach, supply flow tables with memory,
/// answer HTTP and health checks, and feed a watchdog.
const OTHER_THREADS: usize = 12;

/// Why a process must not ask the one before for everything: with flow tables that it cannot go on with it
/// would break every connection.
fn unusable(detail: impl ToString) -> WorkersError {
    WorkersError::FlowsBefore { detail: detail.to_string() }
}

/// Tries it. `left` are the files that the process before has its flow tables in, where it has any.
///
/// # Errors
/// [`WorkersError::FlowsBefore`], [`WorkersError::Thread`] or [`WorkersError::BootId`].
pub fn try_out(settings: &Settings, left: &[&Path]) -> Result<(), WorkersError> {
    let directory = &settings.flow_directory;
    let boot = boot_id()?;
    let files = [directory.join(FlowKey4::FILE), directory.join(FlowKey6::FILE)];
    let is_ours = |left: &Path| files.iter().any(|file| real(file) == real(left));
    if let Some(elsewhere) = left.iter().find(|left| !is_ours(left)) {
        return Err(unusable(format!(
            "{} is another file than this process would go on with, in {} (flow_table.directory)",
            elsewhere.display(),
            directory.display()
        )));
    }
    if !left.is_empty() {
        prepare_directory(directory).map_err(unusable)?;
    }
    let [v4, v6] = &files;
    look::<8>(v4, boot)?;
    look::<16>(v6, boot)?;
    try_threads(settings)
}

/// The path without links, as far as there is something.
fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn look<const W: usize>(path: &Path, boot: [u64; 2]) -> Result<(), WorkersError> {
    let seen = |error: FileError| unusable(error);
    match Peeked::at(path).map_err(seen)? {
        Some(peeked) => check::<W>(peeked.bytes(), boot)
            .map(drop)
            .map_err(|reason| unusable(format!("{}: {reason}", path.display()))),
        // The process before has its flows in its own memory, and nobody can go on with them.
        None => Ok(()),
    }
}

/// Starts as many threads as there will be, and ends them.
fn try_threads(settings: &Settings) -> Result<(), WorkersError> {
    let all_started = Mutex::new(());
    std::thread::scope(|scope| {
        // Let go of at the end, however it comes: they wait for that, to be there at once.
        let _held = all_started.lock();
        for worker in 0..settings.cores.len() + OTHER_THREADS {
            let core = settings.cores.get(worker).or(settings.cores.first());
            let thread = std::thread::Builder::new().name("trial".into());
            let started = thread.spawn_scoped(scope, || drop(all_started.lock()));
            started.map_err(|source| WorkersError::Thread {
                worker,
                core: core.copied().unwrap_or(pinning::CpuId(0)),
                source,
            })?;
        }
        Ok(())
    })
}

#[cfg(test)]
#[path = "beforehand_tests.rs"]
mod tests;
