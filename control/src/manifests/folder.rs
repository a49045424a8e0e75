//! The folder itself: which files count, how large they may be, and whether anything changed.
//!
//! Changes are found by looking (names, sizes, times, inode numbers), not by notification: a
//! ConfigMap volume swaps a symbolic link two levels up, which inotify on the folder does not see.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files in a folder, at most.
pub const FILES_MAX: usize = 10_000;
/// Bytes of a file, at most.
pub const FILE_BYTES_MAX: u64 = 256 << 20;

/// The folder or a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// The operating system refuses.
    #[error("{}: {message}; check that it exists and that root may read it", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Too many files.
    #[error("{} holds more than {FILES_MAX} manifests: put several objects into one file", path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A file is too large.
    #[error("{} has {bytes} bytes, at most {FILE_BYTES_MAX} are read: split it", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

impl FolderError {
    /// What it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::TooManyFiles { path } | Self::TooLarge { path, .. } => {
                path
            }
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
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, FolderError> {
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

/// A file's text.
///
/// # Errors
/// [`FolderError::Io`], also for what is not UTF-8; [`FolderError::TooLarge`].
pub fn text(file: &Path) -> Result<String, FolderError> {
    let bytes = fs::metadata(file).map_err(io_error(file))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(FolderError::TooLarge { path: file.to_owned(), bytes });
    }
    fs::read_to_string(file).map_err(io_error(file))
}

/// What a folder looks like from outside: equal when nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, u64, i64, i64, u64)>);

impl Fingerprint {
    /// Looks at a folder.
    ///
    /// # Errors
    /// [`FolderError::Io`], [`FolderError::TooManyFiles`].
    pub fn of(directory: &Path) -> Result<Self, FolderError> {
        let looks = files(directory)?.into_iter().map(|file| {
            let meta = fs::metadata(&file).map_err(io_error(&file))?;
            Ok((file, meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
        });
        looks.collect::<Result<_, _>>().map(Self)
    }
}
