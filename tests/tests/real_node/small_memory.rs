//! A small tmpfs: what a disk that is full, or that nobody may write to, is to a node.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// One that is mounted; unmounted when dropped.
pub struct SmallMemory {
    place: PathBuf,
    /// Whose mounts it is among, if not this process's own.
    process: Option<u32>,
    /// Where it made a directory for itself.
    _directory: Option<TempDir>,
}

/// Whether a command among the mounts of `process` ends well.
fn run(process: Option<u32>, words: &[&str]) -> bool {
    let enter = process.map(|process| format!("--mount=/proc/{process}/ns/mnt"));
    let enter = enter.iter().flat_map(|mounts| ["nsenter", mounts]);
    let words: Vec<&str> = enter.chain(words.iter().copied()).collect();
    let (program, words) = words.split_first().expect("a command");
    Command::new(program).args(words).status().is_ok_and(|status| status.success())
}

impl SmallMemory {
    fn mount(
        size: &str,
        place: &Path,
        (process, directory): (Option<u32>, Option<TempDir>),
    ) -> Option<Self> {
        let options = format!("size={size},mode=700");
        let shown = place.to_string_lossy();
        let words = ["mount", "-t", "tmpfs", "-o", &*options, "tmpfs", &*shown];
        let memory = Self { place: place.to_owned(), process, _directory: directory };
        run(process, &words).then_some(memory)
    }

    /// One of so many megabytes, in a directory of its own; `None` where there is no tmpfs.
    pub fn of_megabytes(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().to_owned();
        Self::mount(&format!("{megabytes}m"), &place, (None, Some(directory)))
    }

    /// One over the directory at `place`, as `process` sees it, that is full from the start.
    pub fn full_over(place: &Path, process: u32) -> Option<Self> {
        // The least there is: one page.
        let memory = Self::mount("1k", place, (Some(process), None))?;
        let filler = format!("printf x > {}/filler", place.display());
        assert!(run(Some(process), &["sh", "-c", &filler]), "its only page is not to be had");
        Some(memory)
    }

    /// Nobody may write to it from now on.
    pub fn make_read_only(&self) {
        let place = self.place.to_string_lossy();
        assert!(run(self.process, &["mount", "-o", "remount,ro", &place]));
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        run(self.process, &["umount", "--lazy", &self.place.to_string_lossy()]);
    }
}
