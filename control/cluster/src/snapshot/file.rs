//! The snapshot's file: a header with version and checksum, then every object.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::model::Kind;
use sha2::{Digest, Sha256};

use crate::compact::{Damaged, Reader, put_count};
use crate::follow::known::Known;

/// First bytes of every snapshot.
const MAGIC: [u8; 8] = *b"xskiffCS";
/// Changes whenever the model's fields do, or anything else of the layout.
pub const VERSION: u32 = 7;
/// Magic, version, time of writing, length of what follows the header.
const HEADER: usize = 8 + 4 + 8 + 8;
const DIGEST: usize = 32;
/// Largest snapshot that is read, in bytes: eight times that of a cluster of 5,000 nodes.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// A snapshot cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There is none.
    #[error("there is no snapshot")]
    Absent,
    /// The system refuses.
    #[error("{}: {message}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// It is somebody else's, or somebody else may write to it.
    #[error(
        "{}: owner {owner}, mode {mode:o}: it must be a plain file or directory of this process's \
         own user that nobody else may write to; remove it",
        path.display()
    )]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// It is no snapshot, or of another version.
    #[error("{}: {message}; it is written anew once API servers answer", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Writing failed otherwise.
    #[error("{0}")]
    Write(String),
}

/// A snapshot whose checksum is right.
#[derive(Debug)]
pub struct Snapshot {
    /// When it was written.
    pub written: SystemTime,
    file: Vec<u8>,
}

/// What clocks of one machine differ by before and after a start, at most, where none was wrong.
const CLOCKS_APART: Duration = Duration::from_secs(5);

impl Snapshot {
    /// How far it is dated ahead of the wall clock: that was wrong when it was written, or is now.
    #[must_use]
    pub fn ahead(&self) -> Option<Duration> {
        let ahead = self.written.duration_since(SystemTime::now()).ok();
        ahead.filter(|ahead| *ahead > CLOCKS_APART)
    }

    /// All objects as [`crate::compact`] has them, kind by kind, and within a kind in the order of
    /// [`Known`]'s keys. Nothing comes after one that is [`Damaged`], which is a defect of whoever
    /// wrote it.
    #[must_use]
    pub fn objects(&self) -> Objects<'_> {
        let rest = self.file.get(HEADER + DIGEST..).unwrap_or_default();
        Objects { rest, kinds: 0, left: 0 }
    }
}

/// The objects of a snapshot that are still to come.
#[derive(Debug, Clone)]
pub struct Objects<'a> {
    rest: &'a [u8],
    /// Kinds that were begun, of [`Kind::ALL`].
    kinds: usize,
    /// Objects of the last of them.
    left: usize,
}

impl<'a> Objects<'a> {
    fn take(&mut self) -> Result<Option<(Kind, &'a [u8])>, Damaged> {
        let mut from = Reader::of(self.rest);
        while self.left == 0 {
            if self.kinds == Kind::ALL.len() {
                return if from.rest.is_empty() { Ok(None) } else { Err(Damaged) };
            }
            let place = from.bytes(1)?.first().map(|place| usize::from(*place));
            if place != Some(self.kinds) {
                return Err(Damaged);
            }
            (self.kinds, self.left) = (self.kinds + 1, from.count()?);
        }
        self.left -= 1;
        let length = from.count()?;
        let bytes = from.bytes(length)?;
        self.rest = from.rest;
        let kind = self.kinds.checked_sub(1).and_then(|place| Kind::ALL.get(place));
        Ok(Some((*kind.ok_or(Damaged)?, bytes)))
    }
}

impl<'a> Iterator for Objects<'a> {
    type Item = Result<(Kind, &'a [u8]), Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.take().transpose();
        if !matches!(next, Some(Ok(_))) {
            *self = Self { rest: &[], kinds: Kind::ALL.len(), left: 0 };
        }
        next
    }
}

/// The file's place.
#[must_use]
pub fn path(directory: &Path) -> PathBuf {
    directory.join("cluster.snapshot")
}

fn refuse(path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    move |error| SnapshotError::Io { path: path.to_owned(), message: error.to_string() }
}

/// Of a count at most.
const COUNT_BYTES: usize = 5;

/// A file that has no checksum yet: of a large cluster that takes longer than to put it together, which
/// alone needs whoever knows the objects.
pub(crate) struct Draft(Vec<u8>);

impl Draft {
    /// The file.
    pub(crate) fn seal(self) -> Vec<u8> {
        let Self(mut file) = self;
        let digest = digest(&file[..HEADER], &file[HEADER + DIGEST..]);
        file[HEADER..HEADER + DIGEST].copy_from_slice(&digest);
        file
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// All objects as a file.
pub(crate) fn encode<'a>(
    kinds: impl Iterator<Item = (Kind, &'a Known)> + Clone,
    written: SystemTime,
) -> Draft {
    let size = |(_, known): (Kind, &Known)| -> usize {
        known.bytes().map(|bytes| bytes.len() + COUNT_BYTES).sum()
    };
    let all: usize = kinds.clone().map(size).sum();
    let mut file = Vec::with_capacity(HEADER + DIGEST + all + Kind::ALL.len() * (1 + COUNT_BYTES));
    file.resize(HEADER + DIGEST, 0);
    for (place, (_, known)) in kinds.enumerate() {
        file.push(u8::try_from(place).unwrap_or(u8::MAX));
        let objects = known.bytes();
        put_count(objects.len(), &mut file);
        for bytes in objects {
            put_count(bytes.len(), &mut file);
            file.extend_from_slice(bytes);
        }
    }
    let seconds = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let length = (file.len() - HEADER - DIGEST) as u64;
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(seconds.to_le_bytes());
    header.extend(length.to_le_bytes());
    file[..HEADER].copy_from_slice(&header);
    Draft(file)
}

fn digest(header: &[u8], body: &[u8]) -> [u8; DIGEST] {
    let mut digest = Sha256::new();
    digest.update(header);
    digest.update(body);
    digest.finalize().into()
}

/// What a file says.
fn decode(file: Vec<u8>) -> Result<Snapshot, String> {
    let truncated = || "it ends too early".to_owned();
    let (header, rest) = file.split_at_checked(HEADER).ok_or_else(truncated)?;
    let number = |at: std::ops::Range<usize>| {
        let mut word = [0; 8];
        let own = header.get(at).unwrap_or_default();
        word[..own.len()].copy_from_slice(own);
        u64::from_le_bytes(word)
    };
    if header.get(..8) != Some(&MAGIC) {
        return Err("it is no snapshot of a cluster".to_owned());
    }
    if number(8..12) != u64::from(VERSION) {
        return Err(format!("it has version {}, and {VERSION} is read", number(8..12)));
    }
    let (sum, body) = rest.split_at_checked(DIGEST).ok_or_else(truncated)?;
    if (body.len() as u64) < number(20..28) {
        return Err(truncated());
    }
    if body.len() as u64 != number(20..28) || sum != digest(header, body) {
        return Err("it is damaged: its checksum is another".to_owned());
    }
    let written = UNIX_EPOCH.checked_add(Duration::from_secs(number(12..20)));
    Ok(Snapshot { written: written.unwrap_or(UNIX_EPOCH), file })
}

/// Whether nobody but us may have written it.
fn check_owner(path: &Path, look: &std::fs::Metadata, is_kind: bool) -> Result<(), SnapshotError> {
    let own = nix::unistd::geteuid().as_raw();
    if is_kind && look.uid() == own && look.mode() & 0o022 == 0 {
        return Ok(());
    }
    let (owner, mode) = (look.uid(), look.mode());
    Err(SnapshotError::Foreign { path: path.to_owned(), owner, mode })
}

/// Reads the snapshot in `directory`.
///
/// # Errors
/// [`SnapshotError`], naming the file.
pub fn read(directory: &Path) -> Result<Snapshot, SnapshotError> {
    let path = path(directory);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SnapshotError::Absent),
        opened => opened.map_err(refuse(&path))?,
    };
    let around = std::fs::symlink_metadata(directory).map_err(refuse(directory))?;
    check_owner(directory, &around, around.is_dir())?;
    let look = file.metadata().map_err(refuse(&path))?;
    check_owner(&path, &look, look.is_file())?;
    if look.len() > FILE_BYTES_MAX {
        let message = format!("it has more than {FILE_BYTES_MAX} bytes");
        return Err(SnapshotError::Unusable { path, message });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(look.len()).unwrap_or(0));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(refuse(&path))?;
    decode(bytes).map_err(|message| SnapshotError::Unusable { path, message })
}

/// Puts `bytes` in the place of the snapshot in `directory`, which is made if it is not there.
///
/// # Errors
/// [`SnapshotError`]; the one before is then still there.
pub fn write(directory: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(refuse(directory))?;
    let look = std::fs::symlink_metadata(directory).map_err(refuse(directory))?;
    check_owner(directory, &look, look.is_dir())?;
    let (path, new) = (path(directory), directory.join("cluster.snapshot.new"));
    // Left by a process that was killed while it wrote.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refuse(&new)(error)),
        _ => {}
    }
    let written = write_new(&new, bytes).map_err(refuse(&new));
    let placed = written.and_then(|()| std::fs::rename(&new, &path).map_err(refuse(&path)));
    if let Err(error) = placed {
        // It is no use, and takes what a full disk has not.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    let directory_file = File::open(directory).map_err(refuse(directory))?;
    directory_file.sync_all().map_err(refuse(directory))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
