//! Where flow tables live, so that the process after this one finds them; and what becomes of those
//! that the process before has left.
//!
//! Each family has a file in a directory in memory ([`pinning::memory_file`]). What is found there
//! is gone on with if it is of this boot and this layout; moved to a new file if it is to be of
//! another size, or was written by an earlier version; else replaced by an empty one, and said so. Where
//! no file can be, a table lies in the process's own memory, and its flows end with the process: that is
//! said as well.
//!
//! A file is as long as its table may ever become, and has memory for what it is and for its next
//! step of growth; [`super::growth`] takes more before the table needs it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::charge::Charges;
use dataplane::flow_key::{FlowKey4, FlowKey6};
use dataplane::flows::{FlowTables, TableKey, WorkerFlows};
use dataplane::take_over::format::Format;
use dataplane::take_over::{Family, Mark, move_flows, take_over};
use flow_table::{Inspected, Memory, Quiescence, Regions, Shape, Table};
use pinning::growing::{Growing, map_growing};
use pinning::memory_file::{FileError, Held, MemoryFile, prepare_directory};

use super::WorkersError;
use super::capacity::{Family as Named, FamilyCapacity, FlowCapacities};

/// How long the process before may take to let go of a file once it has given up its other claims.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// What became of the flows of the process before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There were none, or they could not be taken.
    New,
    /// Gone on with as they were left by a process that ended in order.
    TakenOver,
    /// Found, and the index made anew: the process before was killed, or had other workers.
    Rebuilt,
    /// Moved to a table of another size, or from one that an earlier version of xskiff wrote.
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
    /// What takes memory for the IPv4 table and the IPv6 table, and keeps their files from other
    /// processes.
    pub growing: [Arc<Growing>; 2],
}

/// What a start is told.
pub(super) struct Plan<'s> {
    pub directory: &'s Path,
    pub capacities: FlowCapacities,
    pub workers: usize,
    /// For tables that begin anew.
    pub hash_key: [u64; 2],
}

impl FlowMemory {
    /// Makes the tables, with the flows of the process before where that can be.
    pub fn start(plan: &Plan<'_>) -> Result<Self, WorkersError> {
        let boot = boot_id()?;
        let directory = prepare_directory(plan.directory);
        if let Ok(Some(mode)) = directory {
            let (path, mode) = (plan.directory.display(), format!("{mode:o}"));
            tracing::info!(%path, mode, "others could look into it; it is root's alone now");
        }
        let (v4, v6) = match &directory {
            Ok(_) => (
                Left::find::<8>(plan.directory.join(FlowKey4::FILE), boot)?,
                Left::find::<16>(plan.directory.join(FlowKey6::FILE), boot)?,
            ),
            Err(error) => (Left::none(error), Left::none(error)),
        };
        let marks: Vec<Mark> =
            [&v4, &v6].into_iter().filter_map(|left| Some(left.found.as_ref()?.1)).collect();
        let hash_key = marks.first().map_or(plan.hash_key, |mark| mark.hash_key);
        let last = marks.iter().map(|mark| mark.generation).max();
        // Another one than any flow's that was found.
        let latest = marks.iter().map(|mark| mark.process).max().unwrap_or(0);
        let next = Charges::process_after(latest);
        let is_taken = marks.iter().any(|mark| mark.process == next);
        let process = if is_taken { Charges::process_after(next) } else { next };
        let charges = Charges::new(process);
        let generation = last.map_or(0, |last| last.wrapping_add(1));
        let quiescence = Quiescence::new(plan.workers)?;
        let (workers, details) = (plan.workers, plan.capacities.details);
        let begin = Begin { hash_key, quiescence: &quiescence, workers, details };
        let mut v4 = begin.table::<FlowKey4, 8>(v4, &plan.capacities.v4)?;
        let mut v6 = begin.table::<FlowKey6, 16>(v6, &plan.capacities.v6)?;
        let (tables, holds) =
            FlowTables::join(v4.family, v6.family, (hash_key, charges), Arc::clone(&quiescence));
        tables.mark(&Mark { boot, hash_key, generation, process, format: Format::CURRENT });
        // Only now, with all that they must hold.
        for held in v4.held.iter_mut().chain(&mut v6.held) {
            held.publish()?;
        }
        let beginnings = vec![v4.beginning, v6.beginning];
        beginnings.iter().for_each(Beginning::log);
        let growing = [v4.growing, v6.growing];
        Ok(Self { tables, holds, beginnings, generation, growing })
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
        let until = Instant::now() + RELEASED_WITHIN;
        let opened = loop {
            match MemoryFile::open(&path) {
                Err(FileError::InUse { .. }) if Instant::now() < until => std::thread::sleep(LOOK),
                opened => break opened,
            }
        };
        let (found, reason) = match opened {
            Ok(None) => (None, None),
            Ok(Some(file)) => match check::<W>(file.bytes(), boot) {
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
pub(super) fn check<const W: usize>(bytes: &[u8], boot: [u64; 2]) -> Result<Mark, String> {
    let inspected = Table::<W>::inspect(bytes).map_err(|error| error.to_string())?;
    let mark = Mark::of(&inspected.tag)
        .ok_or("its flows are laid out by a version of xskiff that this one cannot read: an empty table begins")?;
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
    growing: Arc<Growing>,
}

/// What is the same for both families.
struct Begin<'q> {
    hash_key: [u64; 2],
    quiescence: &'q Arc<Quiescence>,
    workers: usize,
    details: bool,
}

impl Begin<'_> {
    fn table<K: TableKey<W> + Named, const W: usize>(
        &self,
        left: Left,
        wanted: &FamilyCapacity,
    ) -> Result<Begun<W>, WorkersError> {
        let Left { path, found, mut reason } = left;
        let (mut to_move, mut shape) = (None, self.shape(wanted, wanted.initial));
        if let Some((file, mark)) = found {
            let inspected = Table::<W>::inspect(file.bytes());
            let grown = inspected.as_ref().map_or(0, |inspected| inspected.capacity);
            shape = self.shape(wanted, grown.max(wanted.initial));
            match inspected {
                Ok(inspected)
                    if mark.format == Format::CURRENT
                        && mark.hash_key == self.hash_key
                        && self.fits(&inspected, wanted) =>
                {
                    match self.go_on::<K, W>(file, &inspected, shape) {
                        Ok(begun) => return Ok(begun),
                        Err(error) => reason = Some(error),
                    }
                }
                // Its flows are read, all there has been memory for.
                Ok(inspected) => match file.take(&inspected.regions::<W>(inspected.committed)) {
                    Ok(()) => to_move = Some((file, mark.format)),
                    Err(error) => reason = Some(error.to_string()),
                },
                Err(error) => reason = Some(error.to_string()),
            }
        }
        let (mut family, held, growing) = self.empty(path.as_deref(), shape, &mut reason)?;
        let (mut flows, mut lost, mut outcome) = (0, 0, Outcome::New);
        if let Some((mut file, format)) = to_move {
            let from = (file.bytes_mut(), format);
            match move_flows::<K, W>(from, &mut family.1, self.hash_key) {
                Ok(moved) => ((flows, lost), outcome) = (moved, Outcome::Moved),
                Err(error) => reason = Some(error.to_string()),
            }
        }
        let file = held.as_ref().map(|held| held.path().to_owned());
        let beginning = Beginning { table: K::TABLE, file, outcome, flows, lost, reason };
        Ok(Begun { family, beginning, held, growing })
    }

    /// Whether the table that was found can become as large as is wanted, and has as many lines for
    /// each flow, whatever its owners were.
    fn fits(&self, inspected: &Inspected, wanted: &FamilyCapacity) -> bool {
        inspected.capacity_max >= wanted.max && inspected.details == self.details
    }

    /// A table of so many flows, or as many as it may have, with memory for as many again.
    fn shape(&self, wanted: &FamilyCapacity, flows: usize) -> Shape {
        let capacity = flows.min(wanted.max);
        Shape {
            capacity,
            committed: capacity.saturating_mul(2).min(wanted.max),
            capacity_max: wanted.range,
            owners: self.workers,
            details: self.details,
        }
    }

    /// Goes on with the table in a file, of whatever range that is.
    fn go_on<K: TableKey<W> + Named, const W: usize>(
        &self,
        file: MemoryFile,
        inspected: &Inspected,
        mut shape: Shape,
    ) -> Result<Begun<W>, String> {
        shape.capacity_max = inspected.capacity_max;
        let all = inspected.regions::<W>(inspected.committed.max(shape.committed));
        if let Err(error) = file.take(&all) {
            // What was there is there; it only grows no further for now.
            tracing::warn!(table = K::TABLE, %error, "no memory for growth");
            shape.committed = shape.committed.min(inspected.committed).max(shape.capacity);
            let there = inspected.regions::<W>(inspected.committed.max(shape.committed));
            file.take(&there).map_err(|error| error.to_string())?;
        }
        let (memory, held) = file.into_parts();
        let (family, taken) = take_over::<K, W>(memory, &shape, self.hash_key, self.quiescence)
            .map_err(|error| error.to_string())?;
        let outcome = if taken.rebuilt { Outcome::Rebuilt } else { Outcome::TakenOver };
        let (flows, lost) = (taken.entries, taken.given_up);
        let file = Some(held.path().to_owned());
        let beginning = Beginning { table: K::TABLE, file, outcome, flows, lost, reason: None };
        let growing = Arc::clone(held.growing());
        Ok(Begun { family, beginning, held: Some(held), growing })
    }

    /// An empty table, in a file at `path` if that can be.
    fn empty<const W: usize>(
        &self,
        path: Option<&Path>,
        shape: Shape,
        reason: &mut Option<String>,
    ) -> Result<Empty<W>, WorkersError> {
        let bytes = Table::<W>::memory_bytes(&shape)?;
        let new =
            |memory, shape| Table::new(Memory::Mapped(memory), shape, Arc::clone(self.quiescence));
        let create = |path: &Path, needed: &Regions| MemoryFile::create(path, bytes, needed);
        match path.map(|path| with_room::<W, _>(shape, |needed| create(path, needed))) {
            Some(Ok((file, shape))) => {
                let (memory, held) = file.into_parts();
                let growing = Arc::clone(held.growing());
                return Ok((new(memory, shape)?, Some(held), growing));
            }
            Some(Err(error @ WorkersError::File(FileError::InUse { .. }))) => return Err(error),
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
        let (memory, growing) =
            map_growing(bytes).map_err(|source| WorkersError::Memory { bytes, source })?;
        let ((), shape) = with_room::<W, _>(shape, |needed| growing.take(needed))?;
        Ok((new(memory, shape)?, None, Arc::new(growing)))
    }
}

/// An empty table, what holds its file, and what takes memory for it.
type Empty<const W: usize> = (Family<W>, Option<Held>, Arc<Growing>);

/// Takes memory for a table of this shape, or, if there is no more, for the flows it has at first.
fn with_room<const W: usize, T>(
    mut shape: Shape,
    mut take: impl FnMut(&Regions) -> Result<T, FileError>,
) -> Result<(T, Shape), WorkersError> {
    match take(&Table::<W>::regions(&shape, shape.committed)?) {
        Err(error @ FileError::NoRoom { .. }) if shape.committed > shape.capacity => {
            tracing::warn!(%error, "no memory for growth");
            shape.committed = shape.capacity;
            Ok((take(&Table::<W>::regions(&shape, shape.capacity)?)?, shape))
        }
        taken => Ok((taken?, shape)),
    }
}

/// The kernel's name for this boot (random(4)).
pub(super) fn boot_id() -> Result<[u64; 2], WorkersError> {
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
