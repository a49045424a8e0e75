//! Files that people write: read whole, within a bound, or refused with the way out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextFileError {
    /// The operating system refuses.
    #[error("{}: {message}; check that it exists and that root may read it", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A directory, a pipe, a device.
    #[error("{} is not a regular file: remove or rename it", path.display())]
    NotRegular {
        /// What it is called.
        path: PathBuf,
    },
    /// It is too large.
    #[error("{} has more than {bytes_max} bytes: split or shorten it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is read at most.
        bytes_max: u64,
    },
    /// It is in another encoding.
    #[error("{} is not UTF-8 from line {line} on: save it as UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where the first wrong byte is, counted from 1.
        line: usize,
    },
}

impl TextFileError {
    /// What could not be read.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::NotRegular { path }
            | Self::TooLarge { path, .. }
            | Self::NotUtf8 { path, .. } => path,
        }
    }
}

/// The text of a regular file, of at most `bytes_max` bytes. Never waits for a writer.
///
/// # Errors
/// [`TextFileError`], naming the file.
pub fn read(file: &Path, bytes_max: u64) -> Result<String, TextFileError> {
    // Opening a pipe would wait.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file);
    let opened = opened.map_err(refuse(file))?;
    let look = opened.metadata().map_err(refuse(file))?;
    if !look.is_file() {
        return Err(TextFileError::NotRegular { path: file.to_owned() });
    }
    if look.len() > bytes_max {
        return Err(TextFileError::TooLarge { path: file.to_owned(), bytes_max });
    }
    text(opened, file, bytes_max)
}

/// The text of what somebody named on the command line, which may be a pipe of their shell.
///
/// # Errors
/// [`TextFileError`], naming it.
pub fn read_named(file: &Path, bytes_max: u64) -> Result<String, TextFileError> {
    text(File::open(file).map_err(refuse(file))?, file, bytes_max)
}

fn refuse(file: &Path) -> impl Fn(io::Error) -> TextFileError {
    move |error| TextFileError::Io { path: file.to_owned(), message: error.to_string() }
}

fn text(opened: File, file: &Path, bytes_max: u64) -> Result<String, TextFileError> {
    let path = || file.to_owned();
    let mut bytes = Vec::new();
    // It may grow while it is read.
    opened.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(refuse(file))?;
    if bytes.len() as u64 > bytes_max {
        return Err(TextFileError::TooLarge { path: path(), bytes_max });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        TextFileError::NotUtf8 { path: path(), line }
    })
}

/// What a file looks like from outside, symbolic links followed: equal when nothing was written to
/// it and no other took its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    bytes: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last change (`st_ctim`): unlike that of the last
    /// modification, tools cannot set it back.
    changed: (i64, i64),
}

impl Stamp {
    /// Looks at a file.
    ///
    /// # Errors
    /// [`TextFileError::Io`].
    pub fn of(file: &Path) -> Result<Self, TextFileError> {
        let look = std::fs::metadata(file).map_err(|error| TextFileError::Io {
            path: file.to_owned(),
            message: error.to_string(),
        })?;
        Ok(Self {
            bytes: look.len(),
            device: look.dev(),
            inode: look.ino(),
            changed: (look.ctime(), look.ctime_nsec()),
        })
    }
}
