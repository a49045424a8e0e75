//! The folder itself: which files count, how large they may be, and whether anything changed.
//!
//! Changes are found by looking (names, sizes, times, inode numbers), not by notification: a
//! ConfigMap volume swaps a symbolic link two levels up, which inotify on the folder does not see.

use std::fs;
use std::path::{Path, PathBuf};

use crate::text_file::{Stamp, TextFileError};

/// Files in a folder, at most.
pub const FILES_MAX: usize = 10_000;
/// Bytes of a file, at most.
pub const FILE_BYTES_MAX: u64 = 256 << 20;

/// The folder or a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// The folder cannot be listed.
    #[error("{}: {message}; check that it exists and that root may read it", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A file in it cannot be read.
    #[error(transparent)]
    File(#[from] TextFileError),
    /// Too many files.
    #[error("{} holds more than {FILES_MAX} manifests: put several objects into one file", path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
    },
    /// It was written to while it was read, every time.
    #[error("{} changes all the time: write elsewhere, then rename into it", path.display())]
    Changing {
        /// The folder.
        path: PathBuf,
    },
}

impl FolderError {
    /// What it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::TooManyFiles { path } | Self::Changing { path } => path,
            Self::File(error) => error.path(),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |error| FolderError::Io { path, message: error.to_string() }
}

/// The manifests of a folder, by name. Hidden files are none: `..data` of a ConfigMap volume shows
/// every file a second time.
///
/// # Errors
/// [`FolderError::Io`], [`FolderError::TooManyFiles`].
fn files(directory: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        let path = entry.map_err(io_error(directory))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_manifest = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|own| extension == *own));
        if !is_manifest || name.is_none_or(|name| name.starts_with('.')) {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(FolderError::TooManyFiles { path: directory.to_owned() });
        }
        files.push(path);
    }
    files.sort_unstable();
    Ok(files)
}

/// What a folder looks like from outside: equal when nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Stamp)>);

impl Fingerprint {
    /// Looks at a folder.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn of(directory: &Path) -> Result<Self, FolderError> {
        let looks = files(directory)?.into_iter().map(|file| {
            let stamp = Stamp::of(&file)?;
            Ok((file, stamp))
        });
        looks.collect::<Result<_, _>>().map(Self)
    }

    /// The files that were seen, by name.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(file, _)| file.as_path())
    }
}
