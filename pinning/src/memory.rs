//! Zeroed memory for large tables, on huge pages where there are any.
//!
//! A table of 10 million flows takes 780 MB: on 4 KiB pages every lookup also misses the TLB. Pages
//! reserved by the operator (`vm.nr_hugepages`) come first, then memory the kernel is advised to
//! back by transparent huge pages, in both cases of 2 MiB.
//!
//! Memory lives until the process ends, by intent: flow tables are read by every worker and by the
//! control thread, and none of them may outlive its memory.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

/// Size of a huge page, in bytes: x86-64's and, with 4 KiB base pages, AArch64's.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Alignment of a mapping, in bytes; a cache line, which every kind of page keeps.
pub const ALIGNMENT_BYTES: usize = 64;

/// What backs a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// Huge pages the operator reserved.
    ReservedHuge,
    /// Ordinary memory that the kernel was advised to back by huge pages, as it finds them.
    TransparentHuge,
    /// Base pages: transparent huge pages are switched off.
    Base,
}

impl fmt::Display for PageKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ReservedHuge => "reserved huge pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Base => "base pages",
        })
    }
}

/// Whether pages are there before the first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefault {
    /// All pages are present on return, near the calling thread's NUMA node. Start takes longer,
    /// and a machine that is short of memory says so now.
    Now,
    /// Pages come at first use. Reserved huge pages are prefaulted all the same: a cgroup limit
    /// would otherwise kill the process at first use.
    OnUse,
}

/// Memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Zero bytes, or more than the address space.
    #[error("a mapping of {bytes} bytes is not possible")]
    Size {
        /// What was asked for.
        bytes: usize,
    },
    /// The kernel refused.
    #[error(
        "cannot map {bytes} bytes of memory: {source}; make the table smaller, or raise the \
         memory limit of the cgroup or container"
    )]
    Refused {
        /// What was asked for, rounded up to huge pages.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Zeroed memory that lives as long as the process, exclusively the holder's.
#[derive(Debug)]
pub struct MappedMemory {
    start: NonNull<u8>,
    bytes: usize,
    pages: PageKind,
}

// SAFETY: the mapping is private anonymous memory that is never unmapped and that nobody else
// points to; holding it on another thread is holding a `&'static mut [u8]` there.
unsafe impl Send for MappedMemory {}

impl MappedMemory {
    /// What backs it.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Its length in bytes: what was asked for, rounded up to whole words of 8.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes, all zero, aligned to [`ALIGNMENT_BYTES`].
    #[must_use]
    pub fn into_bytes(self) -> &'static mut [u8] {
        // SAFETY: `start` is not null and points to `bytes` bytes of one mapping, readable,
        // writable, zeroed by the kernel, at most `isize::MAX` long (checked in `map_words`), never
        // unmapped; `self` was the only handle and is consumed.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The memory as words that threads share, all zero, aligned to [`ALIGNMENT_BYTES`].
    #[must_use]
    pub fn into_words(self) -> &'static [AtomicU64] {
        let words = self.bytes / size_of::<AtomicU64>();
        // SAFETY: as in `into_bytes`; besides, the start is page aligned, so aligned for
        // `AtomicU64`, `words` of them fit into `bytes`, and zero is a valid value.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast::<AtomicU64>(), words) }
    }
}

/// Maps `bytes` of zeroed memory, rounded up to whole words of 8 bytes, for the life of the
/// process. The kernel sees whole huge pages.
///
/// # Errors
/// [`MemoryError`] when the kernel refuses, or, with [`Prefault::Now`], has not that much.
pub fn map_words(bytes: usize, prefault: Prefault) -> Result<MappedMemory, MemoryError> {
    let mapped = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES);
    let Some(mapped) = mapped.filter(|mapped| (1..=isize::MAX as usize / 2).contains(mapped))
    else {
        return Err(MemoryError::Size { bytes });
    };
    let bytes = bytes.next_multiple_of(size_of::<u64>());
    if let Some(start) = map_reserved_huge(mapped) {
        return Ok(MappedMemory { start, bytes, pages: PageKind::ReservedHuge });
    }
    let refused = |source| MemoryError::Refused { bytes: mapped, source };
    let start = map_aligned(mapped).map_err(refused)?;
    let pages = if advise_huge(start, mapped) && transparent_huge_pages_enabled(Path::new("/")) {
        PageKind::TransparentHuge
    } else {
        PageKind::Base
    };
    if prefault == Prefault::Now
        && let Err(source) = populate(start, mapped)
    {
        unmap(start, mapped);
        return Err(refused(source));
    }
    Ok(MappedMemory { start, bytes, pages })
}

/// Address range for `bytes`, aligned for huge pages and advised to have them, of which no page is
/// there; for the life of the process.
pub(crate) fn reserve(bytes: usize) -> Result<&'static mut [u8], MemoryError> {
    let mapped = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES);
    let Some(mapped) = mapped.filter(|mapped| (1..=isize::MAX as usize / 2).contains(mapped))
    else {
        return Err(MemoryError::Size { bytes });
    };
    let start =
        map_aligned(mapped).map_err(|source| MemoryError::Refused { bytes: mapped, source })?;
    advise_huge(start, mapped);
    let memory = MappedMemory { start, bytes: mapped, pages: PageKind::TransparentHuge };
    Ok(memory.into_bytes())
}

/// Reserved huge pages, already present; `None` when there are too few or a cgroup forbids them.
fn map_reserved_huge(bytes: usize) -> Option<NonNull<u8>> {
    // The kernel reserves at mmap time, so too few free pages fail here and not at first use.
    let start = map_anonymous(bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB).ok()?;
    // A hugetlb cgroup limit is not seen by mmap and would be a SIGBUS at first use; populating
    // turns it into an error (madvise(2), MADV_POPULATE_WRITE, Linux 5.14).
    if populate(start, bytes).is_err() {
        unmap(start, bytes);
        return None;
    }
    Some(start)
}

/// Ordinary memory whose start is aligned to a huge page, so that huge pages fit from there on.
fn map_aligned(bytes: usize) -> io::Result<NonNull<u8>> {
    // Much of it may never be used.
    let raw = map_anonymous(bytes + HUGE_PAGE_BYTES, libc::MAP_NORESERVE)?;
    let before = raw.as_ptr().align_offset(HUGE_PAGE_BYTES);
    let after = HUGE_PAGE_BYTES - before;
    // SAFETY: `before` is below HUGE_PAGE_BYTES, so both sums stay within the mapping, whose length
    // is `bytes + HUGE_PAGE_BYTES`, or one past its end.
    let (start, end) = unsafe { (raw.add(before), raw.add(before + bytes)) };
    unmap(raw, before);
    unmap(end, after);
    Ok(start)
}

fn map_anonymous(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choosing touches no existing memory.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned a null address"))
}

/// Gives back `bytes` from `start`, which must be whole pages of a mapping made here that no
/// [`MappedMemory`] covers.
fn unmap(start: NonNull<u8>, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: the callers pass parts of their own fresh mappings to which no reference exists. A
    // failure leaves the pages mapped and unused, which harms nothing.
    let _ = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
}

fn advise_huge(start: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the range is a mapping made here; the advice does not change its contents.
    let status = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    status == 0
}

/// Faults every page in, or says why it cannot be.
fn populate(start: NonNull<u8>, bytes: usize) -> io::Result<()> {
    // SAFETY: the range is a private writable mapping made here; populating writes nothing that is
    // visible, pages stay zero.
    let status = unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether advice is followed: `enabled` reads `always [madvise] never` with the choice in brackets
/// (`Documentation/admin-guide/mm/transhuge.rst`).
fn transparent_huge_pages_enabled(root: &Path) -> bool {
    fs::read_to_string(root.join("sys/kernel/mm/transparent_hugepage/enabled"))
        .is_ok_and(|enabled| !enabled.contains("[never]"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::{
        ALIGNMENT_BYTES, HUGE_PAGE_BYTES, MemoryError, PageKind, Prefault, map_words,
        transparent_huge_pages_enabled,
    };
    use crate::topology::fake::Machine;

    #[test]
    fn memory_is_zeroed_aligned_and_as_long_as_asked() {
        for bytes in [1, 4096, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 9] {
            for prefault in [Prefault::Now, Prefault::OnUse] {
                let memory = map_words(bytes, prefault).expect("memory");
                assert_eq!(memory.len_bytes(), bytes.next_multiple_of(8));
                let all = memory.into_bytes();
                assert!(all.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES));
                assert!(all.iter().all(|byte| *byte == 0));
                all.fill(0xa5);
            }
        }
    }

    #[test]
    fn words_are_shared_between_threads() {
        let words = map_words(1 << 16, Prefault::OnUse).expect("memory").into_words();
        assert_eq!(words.len(), 1 << 13);
        std::thread::scope(|scope| {
            scope.spawn(|| words.iter().for_each(|word| word.store(7, Ordering::Relaxed)));
        });
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 7));
    }

    #[test]
    fn mappings_do_not_overlap() {
        let first = map_words(HUGE_PAGE_BYTES, Prefault::Now).expect("memory").into_bytes();
        let second = map_words(HUGE_PAGE_BYTES, Prefault::Now).expect("memory").into_bytes();
        first.fill(1);
        second.fill(2);
        assert!(first.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for bytes in [0, usize::MAX, isize::MAX as usize] {
            let error = map_words(bytes, Prefault::OnUse).expect_err("no such size");
            assert!(matches!(error, MemoryError::Size { .. }));
        }
        // 4 PiB: more than an address space holds, whatever the machine overcommits.
        let error = map_words(1 << 52, Prefault::OnUse).expect_err("no such memory");
        assert!(matches!(error, MemoryError::Refused { .. }), "{error}");
    }

    #[test]
    fn page_kind_is_one_the_machine_has() {
        let memory = map_words(HUGE_PAGE_BYTES, Prefault::Now).expect("memory");
        let transparent = transparent_huge_pages_enabled(std::path::Path::new("/"));
        assert!(memory.pages() != PageKind::TransparentHuge || transparent);
    }

    #[test]
    fn switched_off_transparent_pages_are_noticed() {
        let machine = Machine::new("0");
        assert!(!transparent_huge_pages_enabled(machine.root()));
        let path = "sys/kernel/mm/transparent_hugepage/enabled";
        machine.write(path, "always madvise [never]\n");
        assert!(!transparent_huge_pages_enabled(machine.root()));
        machine.write(path, "always [madvise] never\n");
        assert!(transparent_huge_pages_enabled(machine.root()));
    }
}
