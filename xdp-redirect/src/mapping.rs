//! Memory shared with the kernel: mapped files and memory of our own, unmapped when dropped.

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// Pages of a file descriptor: a ring, or a map of the XDP program.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: shared memory that this type reaches through atomics only; whoever takes an address of
// it has to answer for that. Unmapping may happen in any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` at `offset`, readable and writable.
    pub(crate) fn new(fd: RawFd, offset: libc::off_t, bytes: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice; a descriptor that is
        // not open is refused.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// Memory of our own, all of it there at once; on huge pages or not at all when `huge`.
    pub(crate) fn anonymous(bytes: usize, huge: bool) -> io::Result<Self> {
        let kind = if huge { libc::MAP_HUGETLB } else { 0 };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | kind,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// Where it lies: valid as long as `self`, for as many bytes as were mapped.
    pub(crate) fn addresses(&self) -> (usize, usize) {
        let start = self.start.as_ptr().expose_provenance();
        (start, start + self.bytes)
    }

    /// The start of `bytes` bytes at `offset_bytes`, for whoever answers for who else has them.
    /// Panics beyond the end: offsets come from constants.
    #[inline]
    pub(crate) fn part(&self, offset_bytes: usize, bytes: usize) -> NonNull<u8> {
        let is_within = offset_bytes.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(is_within, "{offset_bytes} + {bytes} of {}", self.bytes);
        // SAFETY: within the mapping by the assert.
        unsafe { self.start.add(offset_bytes) }
    }

    /// The word at a multiple of 8 bytes. Panics beyond the end: offsets come from constants.
    #[inline]
    pub(crate) fn word(&self, offset_bytes: usize) -> &AtomicU64 {
        assert!(offset_bytes.is_multiple_of(8) && offset_bytes + 8 <= self.bytes);
        // SAFETY: within the mapping and aligned by the assert, since a mapping starts at a page;
        // reached through atomics here, and as whole words or single bytes by the kernel.
        unsafe { &*self.start.as_ptr().add(offset_bytes).cast::<AtomicU64>() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
