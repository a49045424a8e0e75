//! Limits the kernel sets this process (`getrlimit(2)`): checked, and raised where it may.

use std::fmt;
use std::io;

/// A limited resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Bytes of memory that may be locked. Packet memory (UMEM) is accounted here, for processes
    /// without `CAP_IPC_LOCK`.
    LockedMemory,
    /// File descriptors, one more than the largest. Every AF_XDP socket is one.
    OpenFiles,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::LockedMemory => libc::RLIMIT_MEMLOCK,
            Self::OpenFiles => libc::RLIMIT_NOFILE,
        }
    }

    /// How an operator raises it.
    fn remedy(self) -> &'static str {
        match self {
            Self::LockedMemory => {
                "`ulimit -l`, LimitMEMLOCK= in a systemd unit, or the capability CAP_IPC_LOCK"
            }
            Self::OpenFiles => "`ulimit -n`, or LimitNOFILE= in a systemd unit",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::LockedMemory => "bytes of locked memory (RLIMIT_MEMLOCK)",
            Self::OpenFiles => "open files (RLIMIT_NOFILE)",
        })
    }
}

/// A limit as it stands; `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far this process may raise it without privilege.
    pub hard: u64,
}

/// A limit could not be read, or not raised far enough.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The kernel did not tell.
    #[error("cannot read the limit of {resource}: {source}")]
    Unreadable {
        /// Which.
        resource: Resource,
        /// The kernel's answer.
        source: io::Error,
    },
    /// More is needed than may be had.
    #[error("{needed} {resource} are needed, {hard} are allowed ({source}); raise it by {}", resource.remedy())]
    TooLow {
        /// Which.
        resource: Resource,
        /// What was asked for.
        needed: u64,
        /// The hard limit.
        hard: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The limit as it stands.
///
/// # Errors
/// The kernel did not tell; not seen in practice.
pub fn read(resource: Resource) -> Result<Limit, LimitError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is exclusively ours, of the type getrlimit(2) writes, and lives across the
    // call.
    let status = unsafe { libc::getrlimit(resource.number(), &raw mut limit) };
    if status != 0 {
        return Err(LimitError::Unreadable { resource, source: io::Error::last_os_error() });
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Makes sure that at least `needed` is allowed: nothing is changed when it is, else the soft limit
/// is raised, and the hard one too where this process has `CAP_SYS_RESOURCE`. Returns the limit
/// then in force.
///
/// # Errors
/// [`LimitError::TooLow`] says what is allowed and how to raise it.
pub fn ensure(resource: Resource, needed: u64) -> Result<Limit, LimitError> {
    let before = read(resource)?;
    if before.soft >= needed {
        return Ok(before);
    }
    let wanted = libc::rlimit { rlim_cur: needed, rlim_max: before.hard.max(needed) };
    // SAFETY: `wanted` is of the type setrlimit(2) reads and lives across the call.
    let status = unsafe { libc::setrlimit(resource.number(), &raw const wanted) };
    if status != 0 {
        let source = io::Error::last_os_error();
        return Err(LimitError::TooLow { resource, needed, hard: before.hard, source });
    }
    read(resource)
}

#[cfg(test)]
mod tests {
    use super::{LimitError, Resource, ensure, read};

    #[test]
    fn limit_that_suffices_is_left_alone() {
        for resource in [Resource::LockedMemory, Resource::OpenFiles] {
            let before = read(resource).expect("a limit");
            assert_eq!(ensure(resource, before.soft).expect("enough"), before);
        }
    }

    #[test]
    fn soft_limit_is_raised_up_to_the_hard_one() {
        let before = read(Resource::OpenFiles).expect("a limit");
        let after = ensure(Resource::OpenFiles, before.hard).expect("to be raised");
        assert_eq!((after.soft, after.hard), (before.hard, before.hard));
    }

    #[test]
    fn impossible_limit_names_the_resource_and_the_way_out() {
        // The kernel caps open files at fs.nr_open for everybody.
        let error = ensure(Resource::OpenFiles, u64::MAX - 1).expect_err("beyond fs.nr_open");
        assert!(matches!(error, LimitError::TooLow { .. }));
        let text = error.to_string();
        assert!(text.contains("open files") && text.contains("ulimit -n"), "{text}");
    }
}
