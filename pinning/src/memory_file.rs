//! Memory that outlives its process: a file on tmpfs or hugetlbfs, shared by nobody but the process
//! after this one.
//!
//! What it promises:
//! - One living process has it: an open-file-description lock (fcntl(2), F_OFD_SETLK) is held for as
//!   long as the file is mapped, and goes with the process, however that ends.
//! - It is root's alone (mode 0600, owner checked, no symbolic link followed), in a directory that is
//!   root's alone as well.
//! - What its user needs of it is allocated before it has its name, so that no access ever meets a
//!   full file system (SIGBUS): it is made under another name, filled by its user, and then renamed,
//!   so that whoever finds it finds it whole. It may be longer than that, for what its user may need
//!   later and takes before ([`Growing`]).
//!
//! What stands in it is its user's.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use crate::growing::{Growing, base_page_bytes};
use crate::memory::HUGE_PAGE_BYTES;
use crate::own_directory::{NotOwn, OwnDirectory, own_user};

/// A file cannot be used as memory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The directory is not the process's own.
    #[error("{path}: {detail}; make it root's alone: `chown root {path} && chmod 700 {path}`")]
    Directory {
        /// The directory.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// The directory is on a disk or on another file system.
    #[error(
        "{path} is not on tmpfs or hugetlbfs: mount one there, or choose a directory that is \
         (/dev/shm is on most systems)"
    )]
    NotMemory {
        /// The directory.
        path: String,
    },
    /// Somebody else may have written it, or can.
    #[error("{path} {detail}, so it is not trusted: remove it (`rm {path}`)")]
    Foreign {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A living process holds it.
    #[error("{path} is in use by a living process: stop that, or choose another directory")]
    InUse {
        /// The file.
        path: String,
    },
    /// The file system, the huge page pool, or the cgroup has not that much.
    #[error(
        "{path}: there is no room for {bytes} bytes ({source}): make the table smaller, remount \
         with a larger size (or reserve more huge pages), or raise the memory limit of the container"
    )]
    NoRoom {
        /// The file.
        path: String,
        /// What was asked for.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

pub(crate) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
    let path = path.display().to_string();
    move |source| FileError::Io { path, action, source }
}

/// Makes `directory` if it is not there, and checks that it is the process's own and in memory. Answers the
/// mode that it had, where an empty one was closed to others ([`OwnDirectory`]).
///
/// # Errors
/// [`FileError::Directory`], [`FileError::NotMemory`] or [`FileError::Io`].
pub fn prepare_directory(directory: &Path) -> Result<Option<u32>, FileError> {
    let path = directory.display().to_string();
    let OwnDirectory { file, closed } =
        OwnDirectory::take(directory, &[]).map_err(|error| match error {
            NotOwn::Unfit(detail) => FileError::Directory { path: path.clone(), detail },
            NotOwn::Io { action, source } => failed(directory, action)(source),
        })?;
    let system = file_system(&file).map_err(failed(directory, "ask its file system"))?;
    if system.is_in_memory() { Ok(closed) } else { Err(FileError::NotMemory { path }) }
}

/// Whether what lies at `path` is on tmpfs or hugetlbfs; `false` also when nothing is there.
#[must_use]
pub fn is_in_memory(path: &Path) -> bool {
    let system = File::open(path).and_then(|file| file_system(&file));
    system.is_ok_and(|system| system.is_in_memory())
}

/// The file system that a file is on.
struct FileSystem {
    kind: libc::c_long,
    block_bytes: usize,
    /// What is left of a tmpfs that has a size.
    free_bytes: Option<u64>,
}

impl FileSystem {
    fn is_in_memory(&self) -> bool {
        [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&self.kind)
    }
}

fn file_system(file: &File) -> io::Result<FileSystem> {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: an open descriptor, and room for the answer, which zero bytes are a valid value of.
    let (status, answer) = unsafe {
        let status = libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr());
        (status, answer.assume_init())
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = answer.f_type as libc::c_long;
    let block_bytes = usize::try_from(answer.f_bsize).unwrap_or(4096).max(4096);
    let sized = kind == libc::TMPFS_MAGIC && answer.f_blocks > 0;
    let free_bytes = sized.then(|| answer.f_bavail.saturating_mul(block_bytes as u64));
    Ok(FileSystem { kind, block_bytes, free_bytes })
}

/// What a file must have to tell what is in it.
pub(crate) const HEADER_BYTES: usize = 4096;

/// What is known of a file that is held; the lock stays with the mapping.
#[derive(Debug)]
pub struct Held {
    /// Has the file, and with it the lock.
    growing: Arc<Growing>,
    path: PathBuf,
    /// The name it has until it is published.
    temporary: Option<PathBuf>,
}

impl Held {
    /// The name it has, or will have.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What takes more of it, for any thread.
    #[must_use]
    pub fn growing(&self) -> &Arc<Growing> {
        &self.growing
    }

    /// Gives a file that was created its name, in the place of any other of that name.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn publish(&mut self) -> Result<(), FileError> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        std::fs::rename(temporary, &self.path).map_err(failed(&self.path, "rename it"))?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What nobody will finish.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A file, held and mapped.
#[derive(Debug)]
pub struct MemoryFile {
    start: NonNull<u8>,
    bytes: usize,
    held: Option<Held>,
}

// SAFETY: the mapping is the holder's alone in this process (`start` is handed out only for a borrow
// of this, or with it consumed), and the lock keeps other processes that ask for it out.
unsafe impl Send for MemoryFile {}

impl MemoryFile {
    /// The file that another process has left at `path`; `None` when there is none. Only its first
    /// page is sure to be there: whoever knows what else is in it takes that before it is touched.
    ///
    /// # Errors
    /// Any [`FileError`] but those of directories.
    pub fn open(path: &Path) -> Result<Option<Self>, FileError> {
        let Some((file, bytes)) = open_own(path)? else { return Ok(None) };
        lock(&file, path)?;
        if bytes == 0 {
            return Err(empty(path));
        }
        let system = file_system(&file).map_err(failed(path, "ask its file system"))?;
        let mapping = Mapping::of(&file, bytes).map_err(failed(path, "map it"))?;
        let opened = mapping.hold(file, (path.to_owned(), None), system.block_bytes);
        opened.take(slice::from_ref(&(0..bytes.min(HEADER_BYTES))))?;
        Ok(Some(opened))
    }

    /// A file of at least so many bytes, all zero, which will be at `path` once it is published, and
    /// of which `needed` is there. In huge pages where the file system has them.
    ///
    /// # Errors
    /// Any [`FileError`] but those of directories.
    pub fn create(path: &Path, bytes: usize, needed: &[Range<usize>]) -> Result<Self, FileError> {
        let mut temporary = OsString::from(path);
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // A process that was killed while it made one left it; one that lives holds it.
        if Self::open(&temporary)?.is_some() || temporary.exists() {
            std::fs::remove_file(&temporary).map_err(failed(&temporary, "remove it"))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&temporary)
            .map_err(failed(&temporary, "make it"))?;
        // From here on it is removed if this fails.
        let unfinished = Unfinished(Some(temporary));
        lock(&file, path)?;
        let system = file_system(&file).map_err(failed(path, "ask its file system"))?;
        let whole = bytes.checked_next_multiple_of(system.block_bytes);
        let Some(bytes) = whole.filter(|bytes| (1..=isize::MAX as usize).contains(bytes)) else {
            return Err(no_room(path, bytes)(io::Error::from_raw_os_error(libc::EFBIG)));
        };
        // Before any of it is taken from others.
        let used: usize = needed.iter().map(ExactSizeIterator::len).sum();
        if system.free_bytes.is_some_and(|free| free < used as u64) {
            return Err(no_room(path, used)(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        file.set_len(bytes as u64).map_err(no_room(path, bytes))?;
        let mapping = Mapping::of(&file, bytes).map_err(no_room(path, bytes))?;
        mapping.advise_huge();
        let created = mapping.hold(file, (path.to_owned(), unfinished.keep()), system.block_bytes);
        created.take(needed)?;
        Ok(created)
    }

    /// Takes these parts of it, which are all that was ever taken, and perhaps more.
    ///
    /// # Errors
    /// As [`Growing::take`].
    pub fn take(&self, ranges: &[Range<usize>]) -> Result<(), FileError> {
        match &self.held {
            Some(held) => held.growing.take_whole(ranges),
            None => Ok(()),
        }
    }

    /// What stands in it. What of it is not there must not be read: see [`Self::take`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a mapping of this length, all of it allocated, unmapped only by our drop; nobody
        // writes to it, since writing takes a mutable borrow here and the lock elsewhere.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The same, to be changed.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Its memory, for as long as the process lives, with what holds it against others.
    #[must_use]
    pub fn into_parts(mut self) -> (&'static mut [u8], Held) {
        // What is left is not held, and so not unmapped.
        let held = self.held.take().expect("held");
        // SAFETY: as in `bytes_mut`; the mapping stays, since nothing is left that would unmap it,
        // and nobody else in this process points to it.
        (unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }, held)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        let Some(held) = &self.held else { return };
        // SAFETY: a mapping of this length made here, to which no reference is left.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        // By name: a process that another thread starts has a copy of the descriptor until it
        // executes its program, and closing ours alone would leave the file in use until then.
        held.growing.unlock();
    }
}

/// The file at `path` and its length, if nobody but this process's user can have written it; `None` when
/// there is none.
pub(crate) fn open_own(path: &Path) -> Result<Option<(File, usize)>, FileError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path);
    let foreign = |detail: &str| FileError::Foreign {
        path: path.display().to_string(),
        detail: detail.to_owned(),
    };
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => match error.raw_os_error() {
            Some(libc::ELOOP) => return Err(foreign("is a symbolic link")),
            Some(libc::EISDIR | libc::ENXIO) => return Err(foreign("is no file")),
            _ => return Err(failed(path, "open it")(error)),
        },
    };
    let metadata = file.metadata().map_err(failed(path, "look at it"))?;
    if !metadata.is_file() {
        return Err(foreign("is no file"));
    }
    if metadata.uid() != own_user() {
        return Err(foreign(&format!("belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(foreign(&format!("has mode {mode:o}, which lets others in")));
    }
    if metadata.nlink() != 1 {
        return Err(foreign(&format!("has {} names", metadata.nlink())));
    }
    let bytes = usize::try_from(metadata.size()).unwrap_or(usize::MAX);
    Ok(Some((file, bytes)))
}

pub(crate) fn empty(path: &Path) -> FileError {
    FileError::Foreign { path: path.display().to_string(), detail: "is empty".to_owned() }
}

fn no_room(path: &Path, bytes: usize) -> impl FnOnce(io::Error) -> FileError {
    let path = path.display().to_string();
    move |source| FileError::NoRoom { path, bytes, source }
}

/// Takes the lock of a file for its open description, which dies with the process.
fn lock(file: &File, path: &Path) -> Result<(), FileError> {
    set_lock(file, libc::F_WRLCK).map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => FileError::InUse { path: path.display().to_string() },
        _ => failed(path, "lock it")(error),
    })
}

/// Gives it (`F_WRLCK`) to the open description of a file, or takes it away (`F_UNLCK`), whoever else
/// has descriptors of that.
pub(crate) fn set_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: zero is a valid value of every field: from its start (SEEK_SET 0) to its end.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = kind as libc::c_short;
    // SAFETY: an open descriptor and a request that lives through the call.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A name that goes with a failure.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) -> Option<PathBuf> {
        self.0.take()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(temporary) = &self.0 {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A mapping that nobody holds yet.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn of(file: &File, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // Huge pages would be reserved for all of it, used or not.
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choosing touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::other("mmap returned a null address"))?;
        Ok(Self { start, bytes })
    }

    fn advise_huge(&self) {
        if self.bytes >= HUGE_PAGE_BYTES {
            // SAFETY: advice about a mapping made here, whose bytes do not change by it.
            unsafe {
                libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_HUGEPAGE);
            }
        }
    }

    /// With the file it is of, its name, and the one it has until it is published.
    fn hold(
        self,
        file: File,
        (path, temporary): (PathBuf, Option<PathBuf>),
        block_bytes: usize,
    ) -> MemoryFile {
        let Self { start, bytes } = self;
        // A page of tmpfs, or of hugetlbfs.
        let page_bytes = block_bytes.max(base_page_bytes());
        let address = start.as_ptr().expose_provenance();
        let growing = Growing::of_file(address, bytes, page_bytes, (file, path.clone()));
        let held = Held { growing: Arc::new(growing), path, temporary };
        MemoryFile { start, bytes, held: Some(held) }
    }
}

#[cfg(test)]
#[path = "memory_file_tests.rs"]
mod tests;
