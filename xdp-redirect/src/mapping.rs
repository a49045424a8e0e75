//! Memory shared with the kernel: mapped files and memory of our own, unmapped when dropped.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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

    /// Memory of our own, all of it there at once; on huge pages or not at all when `huge`. It is a
    /// file without a name that keeps its size, so that another process can be given it.
    pub(crate) fn memory(bytes: usize, huge: bool) -> io::Result<(Self, OwnedFd)> {
        let kind = if huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | kind;
        // SAFETY: the name is a string that lives through the call; the result is checked.
        let fd = unsafe { libc::memfd_create(c"xskiff-umem".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: no pointers.
        if unsafe { libc::ftruncate(fd, length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // Memory that were cut off would be a SIGBUS for whoever has it mapped.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: no pointers.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mapping = Self::new(fd, 0, bytes)?;
        // Refused where a cgroup's limit on huge pages would be a SIGBUS at first use.
        let start = mapping.start.as_ptr().cast();
        // SAFETY: the whole of the mapping just made; it writes nothing.
        if unsafe { libc::madvise(start, bytes, libc::MADV_POPULATE_WRITE) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((mapping, file))
    }

    /// The same of another process, whose memory is a file of so many bytes that cannot become shorter.
    pub(crate) fn of_memory(file: &OwnedFd, bytes: usize) -> io::Result<Self> {
        let fd = file.as_raw_fd();
        // SAFETY: no pointers.
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if seals < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an all-zero `stat` is a value, and lives through the call.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        if unsafe { libc::fstat(fd, &raw mut stat) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if seals & libc::F_SEAL_SHRINK == 0 || usize::try_from(stat.st_size).ok() != Some(bytes) {
            return Err(io::Error::other("it is not sealed, or not as long as it is said to be"));
        }
        Self::new(fd, 0, bytes)
    }

    /// Where it lies: valid as long as `self`, for as many bytes as were mapped.
    pub(crate) fn addresses(&self) -> (usize, usize) {
        let start = self.start.as_ptr().expose_provenance();
        (start, start + self.bytes)
    }

    /// The start of `bytes` bytes at `offset_bytes`, for whoever answers for who else has them; `None`
    /// beyond the end.
    #[inline]
    pub(crate) fn get(&self, offset_bytes: usize, bytes: usize) -> Option<NonNull<u8>> {
        let is_within = offset_bytes.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        // SAFETY: within the mapping.
        is_within.then(|| unsafe { self.start.add(offset_bytes) })
    }

    /// The same where offsets come from constants: panics beyond the end.
    #[inline]
    pub(crate) fn part(&self, offset_bytes: usize, bytes: usize) -> NonNull<u8> {
        let Some(part) = self.get(offset_bytes, bytes) else {
            panic!("{offset_bytes} + {bytes} of {}", self.bytes)
        };
        part
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
