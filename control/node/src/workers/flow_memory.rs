//! Where flow tables live, so that the process after this one finds them; and what becomes of those
//! that the process before has left.
//!
//! Each family has a file in a directory in memory ([`pinning::memory_file`]). What is found there
//! is gone on with if it is of this boot and this layout; moved to a new file if it is to be of
//! another size; else replaced by an empty one, and said so. Where no file can be, a table lies in
//! the process's own memory, and its flows end with the process: that is said as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::flow_key::{FlowKey4, FlowKey6};
use dataplane::flows::{Capacities, FlowTables, TableKey, WorkerFlows};
use dataplane::take_over::{Family, Mark, move_flows, take_over};
use flow_table::{Memory, Quiescence, Shape, Table};
use pinning::memory::{Prefault, map_words};
use pinning::memory_file::{FileError, Held, MemoryFile, prepare_directory};

use super::WorkersError;

/// What became of the flows of the process before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There were none, or they could not be taken.
    New,
    /// Gone on with as they were left by a process that ended in order.
    TakenOver,
    /// Found, and the index made anew: the process before was killed, or had other workers.
    Rebuilt,
    /// Moved to a table of another size.
    Moved,
}

impl Outcome {
    /// The word for people and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::TakenOver => "taken-over",
            Self::Rebuilt => "rebuilt",
            Self::Moved => "moved",
        }
    }
}

/// How one family's table began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The table, as `xskiff status` names it.
    pub table: &'static str,
    /// Its file; `None` when it lies in the process's own memory.
    pub file: Option<PathBuf>,
    /// What became of the flows of the process before.
    pub outcome: Outcome,
    /// Flows that it began with.
    pub flows: u64,
    /// Flows of the process before that found no room.
    pub lost: u64,
    /// Why flows were not taken, or why there is no file.
    pub reason: Option<String>,
}

impl Beginning {
    /// Whether every flow of the process before goes on.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.outcome != Outcome::New && self.lost == 0
    }

    fn log(&self) {
        let Self { table, outcome, flows, lost, .. } = self;
        let (file, outcome) = (self.file.as_deref().map(Path::display), outcome.label());
        let file = file.map_or_else(|| "none".to_owned(), |file| file.to_string());
        match &self.reason {
            None if *lost == 0 => tracing::info!(table, outcome, flows, file, "flow table"),
            reason => {
                let reason = reason.as_deref().unwrap_or("no room for some flows");
                tracing::warn!(table, outcome, flows, lost, file, reason, "flow table");
            }
        }
    }
}

/// The flow tables of a node that starts.
pub(super) struct FlowMemory {
    pub tables: FlowTables,
    pub holds: Vec<WorkerFlows>,
    pub beginnings: Vec<Beginning>,
    /// The generation that no entry has yet.
    pub generation: u32,
    /// Kept for as long as the tables are used.
    pub held: Vec<Held>,
}

/// What a start is told.
pub(super) struct Plan<'s> {
    pub directory: &'s Path,
    pub capacities: Capacities,
    pub workers: usize,
    /// For tables that begin anew.
    pub hash_key: [u64; 2],
}

impl FlowMemory {
    /// Makes the tables, with the flows of the process before where that can be.
    pub fn start(plan: &Plan<'_>) -> Result<Self, WorkersError> {
        let boot = boot_id()?;
        let directory = prepare_directory(plan.directory);
        let (v4, v6) = match &directory {
            Ok(()) => (
                Left::find::<8>(plan.directory.join("flows-ipv4"), boot)?,
                Left::find::<16>(plan.directory.join("flows-ipv6"), boot)?,
            ),
            Err(error) => (Left::none(error), Left::none(error)),
        };
        let marks: Vec<Mark> =
            [&v4, &v6].into_iter().filter_map(|left| Some(left.found.as_ref()?.1)).collect();
        let hash_key = marks.first().map_or(plan.hash_key, |mark| mark.hash_key);
        let last = marks.iter().map(|mark| mark.generation).max();
        let generation = last.map_or(0, |last| last.wrapping_add(1));
        let quiescence = Quiescence::new(plan.workers)?;
        let shapes = plan.capacities.shapes(plan.workers);
        let begin = Begin { hash_key, quiescence: &quiescence };
        let mut v4 = begin.table::<FlowKey4, 8>("flows_ipv4", v4, shapes.0)?;
        let mut v6 = begin.table::<FlowKey6, 16>("flows_ipv6", v6, shapes.1)?;
        let (tables, holds) =
            FlowTables::join(v4.family, v6.family, hash_key, Arc::clone(&quiescence));
        tables.mark(&Mark { boot, hash_key, generation });
        // Only now, with all that they must hold.
        for held in v4.held.iter_mut().chain(&mut v6.held) {
            held.publish()?;
        }
        let beginnings = vec![v4.beginning, v6.beginning];
        beginnings.iter().for_each(Beginning::log);
        let held = v4.held.into_iter().chain(v6.held).collect();
        Ok(Self { tables, holds, beginnings, generation, held })
    }
}

/// What the process before has left of one family.
struct Left {
    /// Where it is, or is to be; `None` where no file can be.
    path: Option<PathBuf>,
    /// A table of this boot and layout.
    found: Option<(MemoryFile, Mark)>,
    /// Why there is none, if there should be one.
    reason: Option<String>,
}

impl Left {
    fn none(error: &FileError) -> Self {
        Self { path: None, found: None, reason: Some(error.to_string()) }
    }

    /// Looks at `path`.
    ///
    /// # Errors
    /// A living process has it: two nodes would write to one table.
    fn find<const W: usize>(path: PathBuf, boot: [u64; 2]) -> Result<Self, WorkersError> {
        let (found, reason) = match MemoryFile::open(&path) {
            Ok(None) => (None, None),
            Ok(Some(file)) => match check::<W>(&file, boot) {
                Ok(mark) => (Some((file, mark)), None),
                Err(reason) => (None, Some(format!("{}: {reason}", path.display()))),
            },
            Err(error @ FileError::InUse { .. }) => return Err(error.into()),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Self { path: Some(path), found, reason })
    }
}

/// The mark of the table in a file, or why its flows are not ours to go on with.
fn check<const W: usize>(file: &MemoryFile, boot: [u64; 2]) -> Result<Mark, String> {
    let inspected = Table::<W>::inspect(file.bytes()).map_err(|error| error.to_string())?;
    let mark = Mark::of(&inspected.tag)
        .ok_or("its flows are laid out by another version of xskiff: an empty table begins")?;
    if mark.boot != boot {
        return Err("it is of another boot, whose clock is gone: an empty table begins".into());
    }
    Ok(mark)
}

/// A family's table as it begins.
struct Begun<const W: usize> {
    family: Family<W>,
    beginning: Beginning,
    held: Option<Held>,
}

/// What is the same for both families.
struct Begin<'q> {
    hash_key: [u64; 2],
    quiescence: &'q Arc<Quiescence>,
}

impl Begin<'_> {
    fn table<K: TableKey<W>, const W: usize>(
        &self,
        name: &'static str,
        left: Left,
        shape: Shape,
    ) -> Result<Begun<W>, WorkersError> {
        let Left { path, found, mut reason } = left;
        let mut to_move = None;
        if let Some((file, mark)) = found {
            if mark.hash_key == self.hash_key && has_shape::<W>(&file, shape) {
                let (memory, held) = file.into_parts();
                match take_over::<K, W>(memory, &shape, self.hash_key, self.quiescence) {
                    Ok((family, taken)) => {
                        let outcome =
                            if taken.rebuilt { Outcome::Rebuilt } else { Outcome::TakenOver };
                        let (flows, lost) = (taken.entries, taken.given_up);
                        let file = Some(held.path().to_owned());
                        let beginning =
                            Beginning { table: name, file, outcome, flows, lost, reason };
                        return Ok(Begun { family, beginning, held: Some(held) });
                    }
                    Err(error) => reason = Some(error.to_string()),
                }
            } else {
                to_move = Some(file);
            }
        }
        let (mut family, held) = self.empty(path.as_deref(), shape, &mut reason)?;
        let (mut flows, mut lost, mut outcome) = (0, 0, Outcome::New);
        if let Some(mut file) = to_move {
            match move_flows::<K, W>(file.bytes_mut(), &mut family.1, self.hash_key) {
                Ok(moved) => ((flows, lost), outcome) = (moved, Outcome::Moved),
                Err(error) => reason = Some(error.to_string()),
            }
        }
        let file = held.as_ref().map(|held| held.path().to_owned());
        let beginning = Beginning { table: name, file, outcome, flows, lost, reason };
        Ok(Begun { family, beginning, held })
    }

    /// An empty table, in a file at `path` if that can be.
    fn empty<const W: usize>(
        &self,
        path: Option<&Path>,
        shape: Shape,
        reason: &mut Option<String>,
    ) -> Result<(Family<W>, Option<Held>), WorkersError> {
        let bytes = Table::<W>::memory_bytes(&shape)?;
        let new = |memory| Table::new(Memory::Mapped(memory), shape, Arc::clone(self.quiescence));
        match path.map(|path| MemoryFile::create(path, bytes)) {
            Some(Ok(file)) => {
                let (memory, held) = file.into_parts();
                return Ok((new(memory)?, Some(held)));
            }
            Some(Err(error @ FileError::InUse { .. })) => return Err(error.into()),
            Some(Err(error)) => *reason = Some(error.to_string()),
            None => {}
        }
        // What lies there is not gone on with, and must not be by a later process either.
        if let Some(path) = path
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %path.display(), %error, "an old flow table cannot be removed");
        }
        let mapped = map_words(bytes, Prefault::OnUse)
            .map_err(|source| WorkersError::Memory { bytes, source })?;
        Ok((new(mapped.into_bytes())?, None))
    }
}

/// Whether the table in a file can be used as one of this shape, whatever its owners were.
fn has_shape<const W: usize>(file: &MemoryFile, shape: Shape) -> bool {
    Table::<W>::inspect(file.bytes()).is_ok_and(|inspected| {
        (inspected.capacity_max, inspected.details) == (shape.capacity_max, shape.details)
    })
}

/// The kernel's name for this boot (random(4)).
fn boot_id() -> Result<[u64; 2], WorkersError> {
    let failed = |source| WorkersError::BootId { source };
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(failed)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16)
        .map_err(|_| failed(std::io::Error::from(std::io::ErrorKind::InvalidData)))?;
    let [high, low] = [number >> 64, number & u128::from(u64::MAX)];
    Ok([high, low].map(|half| u64::try_from(half).unwrap_or(u64::MAX)))
}

#[cfg(test)]
#[path = "flow_memory_tests.rs"]
mod tests;
