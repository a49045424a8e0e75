//! What was last in force, on disk: a node that starts without an API server serves from it.
//!
//! Reading order: this file (when it is read and written), [`file`] (the file itself).
//!
//! It is written whole beside the one before and takes its place by a rename, so that whatever
//! happens one of them is whole. Nothing is written before every kind was listed: half a cluster
//! would take the place of a whole one.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::follow::standing::Reporter;
use crate::follow::whole::Whole;

pub mod file;

use file::{Draft, SnapshotError};

/// Bytes written a second, on average at most: a large cluster changes all the time.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Reads and writes the snapshot.
pub(crate) struct Keeper {
    place: Option<(PathBuf, Duration)>,
    reporter: Reporter,
    /// When the oldest change that is not written was seen.
    changed: Option<Instant>,
    /// Not before then.
    pause_until: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(place: Option<(PathBuf, Duration)>, reporter: &Reporter) -> Self {
        if let Some((directory, _)) = &place {
            let file = file::path(directory).display().to_string();
            reporter.with(|standing| standing.snapshot.file = Some(file));
        }
        Self { place, reporter: reporter.clone(), changed: None, pause_until: None }
    }

    /// Puts in force what is on disk, if it can be believed.
    pub(crate) fn restore(&self, whole: &mut Whole) {
        let Some((directory, _)) = self.place.as_ref() else { return };
        let began = Instant::now();
        let path = file::path(directory);
        let restored = file::read(directory).and_then(|snapshot| {
            whole.restore(snapshot).map_err(|damaged| SnapshotError::Unusable {
                path: path.clone(),
                message: damaged.to_string(),
            })
        });
        match restored {
            Ok(objects) => {
                tracing::info!(
                    file = %path.display(), objects,
                    milliseconds = began.elapsed().as_millis(),
                    "the cluster as it was last in force is taken over from disk"
                );
            }
            Err(SnapshotError::Absent) => {}
            Err(error) => {
                tracing::error!(%error, "the cluster on disk is not taken over");
                let why = error.to_string();
                self.reporter.with(|standing| standing.snapshot.not_restored = Some(why));
            }
        }
    }

    /// What is to be written now, if it is time.
    pub(crate) fn due(&mut self, whole: &mut Whole) -> Option<Draft> {
        let (_, after) = self.place.as_ref()?;
        if !whole.is_unsaved() || !self.reporter.is_complete() {
            return None;
        }
        let now = Instant::now();
        let changed = *self.changed.get_or_insert(now);
        let is_early = self.pause_until.is_some_and(|until| now < until);
        if is_early || now.duration_since(changed) < *after {
            return None;
        }
        self.changed = None;
        whole.set_saved();
        Some(file::encode(whole.bytes(), SystemTime::now()))
    }

    /// Writes `draft`, beside the thread that follows.
    pub(crate) async fn write(&mut self, draft: Draft, whole: &std::cell::RefCell<Whole>) {
        let Some((directory, after)) = self.place.clone() else { return };
        let count = draft.len() as u64;
        let began = Instant::now();
        let write = move || file::write(&directory, &draft.seal());
        let written = tokio::task::spawn_blocking(write).await;
        let took = began.elapsed();
        let paced = Duration::from_secs(count / BYTES_PER_SECOND);
        self.pause_until = Some(Instant::now() + after.max(paced));
        let written = written.unwrap_or_else(|error| Err(SnapshotError::Write(error.to_string())));
        if written.is_err() {
            whole.borrow_mut().set_unsaved();
        }
        self.note((count, took), written);
    }

    /// Writes what is not written yet, at the end of the process.
    pub(crate) fn finish(&mut self, whole: &mut Whole) {
        let Some((directory, _)) = self.place.clone() else { return };
        if whole.is_unsaved() && self.reporter.is_complete() {
            let bytes = file::encode(whole.bytes(), SystemTime::now()).seal();
            let count = bytes.len() as u64;
            let began = Instant::now();
            let written = file::write(&directory, &bytes);
            self.note((count, began.elapsed()), written);
        }
    }

    fn note(&self, (bytes, took): (u64, Duration), written: Result<(), SnapshotError>) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.reporter.with(|standing| {
            let snapshot = &mut standing.snapshot;
            snapshot.write_microseconds += took;
            snapshot.longest_write_microseconds = snapshot.longest_write_microseconds.max(took);
        });
        self.reporter.with(|standing| match written {
            Ok(()) => {
                let snapshot = &mut standing.snapshot;
                (snapshot.writes, snapshot.bytes) = (snapshot.writes + 1, bytes);
                snapshot.last_error = None;
                standing.snapshot_written = Some(SystemTime::now());
            }
            Err(error) => {
                let snapshot = &mut standing.snapshot;
                snapshot.failures += 1;
                let why = error.to_string();
                if snapshot.last_error.as_ref() != Some(&why) {
                    tracing::error!(
                        error = why,
                        "the cluster is not written to disk: what was written before stays"
                    );
                }
                snapshot.last_error = Some(why);
            }
        });
    }
}

#[cfg(test)]
mod tests;
