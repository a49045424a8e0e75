//! A look at a memory file that another process has: how long it is, and what stands in its first page,
//! copied. Neither the file nor its lock is touched, so that its holder goes on.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;

use crate::memory_file::{FileError, HEADER_BYTES, empty, failed, open_own};

/// What was seen: as many bytes as the file has, of which those behind its first page read as zero.
#[derive(Debug)]
pub struct Peeked {
    start: NonNull<u8>,
    bytes: usize,
}

impl Peeked {
    /// Of the file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// As [`crate::memory_file::MemoryFile::open`], but that whoever holds it is no matter.
    pub fn at(path: &Path) -> Result<Option<Self>, FileError> {
        let Some((file, bytes)) = open_own(path)? else { return Ok(None) };
        if bytes == 0 {
            return Err(empty(path));
        }
        let mut peeked = Self::zeroes(bytes).map_err(failed(path, "map memory as long"))?;
        let copied = file.read_exact_at(peeked.header_mut(), 0);
        copied.map_err(failed(path, "read its first page"))?;
        Ok(Some(peeked))
    }

    /// Memory that is not there but for its first page: nothing is asked of the system for the rest.
    fn zeroes(bytes: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choosing touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::other("mmap returned a null address"))?;
        let peeked = Self { start, bytes };
        let written = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the first page of a mapping made here, to which no reference is there.
        let status =
            unsafe { libc::mprotect(start.as_ptr().cast(), bytes.min(HEADER_BYTES), written) };
        if status == 0 { Ok(peeked) } else { Err(io::Error::last_os_error()) }
    }

    fn header_mut(&mut self) -> &mut [u8] {
        // SAFETY: a mapping of this length, of which so much may be written, borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes.min(HEADER_BYTES)) }
    }

    /// What was seen.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a mapping of this length, all of which may be read, unmapped only by our drop.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Peeked {
    fn drop(&mut self) {
        // SAFETY: a mapping of this length made here, to which no reference is left.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::memory_file::MemoryFile;

    #[test]
    fn a_file_that_another_has_is_seen_and_stays_its() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(Peeked::at(&path).unwrap().is_none());
        let (bytes, needed) = (1 << 40, 0..3 * HEADER_BYTES);
        let file = MemoryFile::create(&path, bytes, std::slice::from_ref(&needed)).unwrap();
        let (memory, mut held) = file.into_parts();
        held.publish().unwrap();
        memory[5] = 7;
        memory[2 * HEADER_BYTES] = 8;
        let peeked = Peeked::at(&path).unwrap().expect("a file");
        assert_eq!((peeked.bytes().len(), peeked.bytes()[5]), (memory.len(), 7));
        // Behind the first page nothing was looked at.
        assert_eq!(peeked.bytes()[2 * HEADER_BYTES], 0);
        drop(peeked);
        assert!(matches!(MemoryFile::open(&path), Err(FileError::InUse { .. })));
    }

    #[test]
    fn a_file_that_others_may_have_written_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, [1; 100]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Peeked::at(&path).unwrap_err().to_string();
        assert!(error.contains("mode 644"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        // Shorter than a page.
        assert_eq!(Peeked::at(&path).unwrap().expect("a file").bytes(), [1; 100]);
        std::fs::write(&path, "").unwrap();
        assert!(Peeked::at(&path).unwrap_err().to_string().contains("is empty"));
    }
}
