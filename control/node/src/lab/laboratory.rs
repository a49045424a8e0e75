//! The laboratory as a whole: who may have one, how its parts are named, where its files are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{LabError, Namespace, command, registry};

/// Longest label of a laboratory or name of a namespace, in bytes.
const NAME_LENGTH_MAX: usize = 40;

/// Stands for the maker in names of what is kept.
const KEPT: &str = "kept";

/// A set of namespaces made by one process, with a directory for their logs.
///
/// Dropping it removes its directory; its namespaces and processes are removed by their own drops.
#[derive(Debug)]
pub struct Laboratory {
    prefix: String,
    program: PathBuf,
    directory: PathBuf,
    kept: bool,
}

impl Laboratory {
    /// Prepares a laboratory named by `label`, whose agents are run by `program`: an `xskiff`
    /// binary. Removes first what killed runs left behind.
    ///
    /// # Errors
    /// Not root, `iproute2` missing, or the directory for logs cannot be made.
    pub fn new(label: &str, program: &Path) -> Result<Self, LabError> {
        Self::named(&format!("{}", std::process::id()), label, program)
    }

    /// As [`Laboratory::new`], but under names without a maker, so that no later run takes what
    /// is kept for a leftover. There is one of a label.
    ///
    /// # Errors
    /// As [`Laboratory::new`], and [`LabError::AlreadyKept`].
    pub fn kept(label: &str, program: &Path) -> Result<Self, LabError> {
        let directory =
            registry::base_directory().join(format!("{}{KEPT}.{label}", registry::PREFIX));
        if directory.exists() {
            return Err(LabError::AlreadyKept { directory });
        }
        Self::named(KEPT, label, program)
    }

    /// Removes what a laboratory of that label kept: processes, namespaces, files.
    ///
    /// # Errors
    /// A bad label, or not root.
    pub fn remove_kept(label: &str) -> Result<(), LabError> {
        check(label)?;
        registry::remove_all_of(&format!("{}{KEPT}.{label}", registry::PREFIX));
        Ok(())
    }

    fn named(maker: &str, label: &str, program: &Path) -> Result<Self, LabError> {
        check(label)?;
        command::run("ip", &["-Version"])?;
        registry::sweep_leftovers();
        let prefix = format!("{}{maker}.{label}", registry::PREFIX);
        let directory = registry::base_directory().join(&prefix);
        registry::add_directory(&directory)?;
        registry::mount_bpf_filesystem(&directory)?;
        Ok(Self { prefix, program: program.to_owned(), directory, kept: false })
    }

    /// Makes a namespace with its loopback up and neither redirects nor duplicate address
    /// detection, so that addresses are usable at once.
    ///
    /// # Errors
    /// A bad name, a name that is taken, or a kernel without network namespaces.
    pub fn namespace(&self, name: &str) -> Result<Namespace, LabError> {
        check_name("namespace", name, NAME_LENGTH_MAX)?;
        Namespace::new(format!("{}-{name}", self.prefix), name, self)
    }

    /// The `xskiff` binary that agents run.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A directory for logs and sockets, readable by root only, removed with the laboratory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves the directory, and the files in it, behind.
    pub fn keep(&mut self) {
        self.kept = true;
        registry::release_directory(&self.directory);
    }
}

impl Drop for Laboratory {
    fn drop(&mut self) {
        if !self.kept {
            registry::remove_directory(&self.directory);
        }
    }
}

fn check(label: &str) -> Result<(), LabError> {
    check_name("laboratory", label, NAME_LENGTH_MAX)?;
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

/// Refuses names that would be read as an option, a path or two words.
pub(super) fn check_name(
    object: &'static str,
    name: &str,
    length_max: usize,
) -> Result<(), LabError> {
    let fits = !name.is_empty() && name.len() <= length_max && !name.starts_with('-');
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits && plain {
        return Ok(());
    }
    Err(LabError::BadName { object, name: name.to_owned(), length_max })
}

/// Asks `done` every 10 ms until it says so or `timeout` has passed; gives the time it took.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> Option<Duration> {
    let start = Instant::now();
    loop {
        if done() {
            return Some(start.elapsed());
        }
        if start.elapsed() >= timeout {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_would_be_options_paths_or_two_words_are_refused() {
        for bad in ["", "-n", "../x", "a b", "a.b", &"x".repeat(16)] {
            assert!(check_name("interface", bad, 15).is_err(), "{bad:?} was accepted");
        }
        check_name("interface", "web-1", 15).unwrap();
    }
}
