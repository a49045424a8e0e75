//! What can go wrong while a laboratory is built or used.

use std::path::PathBuf;
use std::time::Duration;

/// A failed step of the laboratory: what was tried, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces and links belong to root.
    #[error("network namespaces need root: run this again with sudo")]
    NotRoot,
    /// A program of the system is missing.
    #[error("`{program}` is not installed: apt-get install {package}")]
    NotInstalled {
        /// The program that was to run.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    CommandFailed {
        /// The command line, for people.
        command: String,
        /// Exit status, for people.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A file, a pipe or a process could not be used.
    #[error("cannot {what} {object}: {source}")]
    Io {
        /// The verb.
        what: &'static str,
        /// The file, program or process.
        object: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A child did not say what was awaited.
    #[error("{name} did not report {awaited} within {timeout:?}; the end of its log {log}: {tail}", log = log.display())]
    NoReport {
        /// The child's name.
        name: String,
        /// What was awaited.
        awaited: &'static str,
        /// How long it was awaited.
        timeout: Duration,
        /// Where its log is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A child ended without saying what was awaited.
    #[error("{name} ended without reporting {awaited}")]
    Ended {
        /// The child's name.
        name: String,
        /// What was awaited.
        awaited: &'static str,
    },
    /// A name that a namespace, an interface or a file cannot have.
    #[error(
        "`{name}` is no name for a {object}: use 1 to {length_max} letters, digits and hyphens"
    )]
    BadName {
        /// What was to be named.
        object: &'static str,
        /// The refused name.
        name: String,
        /// The longest allowed, in bytes.
        length_max: usize,
    },
    /// A kept laboratory is there already.
    #[error("what an earlier run kept is still there, {directory}: remove it first (xskiff demo --remove)", directory = directory.display())]
    AlreadyKept {
        /// Its directory.
        directory: PathBuf,
    },
    /// A signal arrived: everything is being removed, nothing new is made.
    #[error("interrupted: the laboratory is being removed")]
    Closing,
}

impl LabError {
    /// Turns the kernel's answer into an error that names the verb and its object.
    pub(super) fn io(
        what: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let object = object.into();
        move |source| Self::Io { what, object, source }
    }
}
