//! Memory of a mapping that is taken piece by piece, each before it is used: a table has address
//! range for all it may become, and memory for what it is.
//!
//! What was taken never causes a page fault that allocates, nor a SIGBUS. What was not taken must not
//! be touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::machine_memory::MachineMemory;
use crate::memory::{HUGE_PAGE_BYTES, MemoryError, reserve};
use crate::memory_file::{FileError, set_lock};

/// The part of the machine's memory that taking more leaves alone: a process that takes the last of
/// it is killed, or another one is.
const SPARED_PART: u64 = 16;

/// See above.
#[derive(Debug)]
pub struct Growing {
    /// A mapping that lives as long as the process, or as whoever holds it.
    start: usize,
    bytes: usize,
    page_bytes: usize,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    /// A file in memory, which is locked.
    File(File, PathBuf),
    /// The process's own memory, of which so many bytes were taken.
    Own(AtomicU64),
}

/// Address range in the process's own memory for so many bytes, none of which is taken.
///
/// # Errors
/// [`MemoryError`], when there is not so much address range.
pub fn map_growing(bytes: usize) -> Result<(&'static mut [u8], Growing), MemoryError> {
    let memory = reserve(bytes)?;
    let start = memory.as_mut_ptr().addr();
    let (bytes, page_bytes) = (memory.len(), base_page_bytes());
    let backing = Backing::Own(AtomicU64::new(0));
    Ok((memory, Growing { start, bytes, page_bytes, backing }))
}

impl Growing {
    /// Of a mapping of `file`.
    pub(crate) fn of_file(
        start: usize,
        bytes: usize,
        page_bytes: usize,
        (file, path): (File, PathBuf),
    ) -> Self {
        Self { start, bytes, page_bytes, backing: Backing::File(file, path) }
    }

    /// Takes these ranges of the mapping, of which parts may be taken already: what stands there
    /// stays, the rest is zero. May take long: a gigabyte is half a second's work.
    ///
    /// # Errors
    /// [`FileError::NoRoom`] when the file system, a cgroup or the machine has not got so much, and
    /// [`FileError::Io`]. Some of it may have been taken then.
    pub fn take(&self, ranges: &[Range<usize>]) -> Result<(), FileError> {
        let pages: Vec<_> = self
            .pages_around(ranges)?
            .into_iter()
            .flat_map(|range| self.not_there(range))
            .collect();
        let asked: usize = pages.iter().map(ExactSizeIterator::len).sum();
        let there = match &self.backing {
            Backing::File(..) => 0,
            Backing::Own(taken) => taken.load(Ordering::Relaxed),
        };
        self.check_room((asked as u64).saturating_sub(there))?;
        for range in &pages {
            // Huge pages come by being touched, where tmpfs has them by advice, and never
            // otherwise; and only what is mapped causes no fault later.
            let populated = self.advise(range, libc::MADV_POPULATE_WRITE);
            match &self.backing {
                Backing::File(file, path) => allocate(file, path, range)?,
                Backing::Own(_) => populated.map_err(|source| self.no_room(asked, source))?,
            }
        }
        if let Backing::Own(taken) = &self.backing {
            taken.fetch_max(asked as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same for whoever asks for all that was ever taken of a file, and perhaps for more: when there
    /// is as much of it, that is what is asked for. To look for holes, or to take what is there once
    /// more, lasts longer than all else of a start.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(crate) fn take_whole(&self, ranges: &[Range<usize>]) -> Result<(), FileError> {
        let bytes: usize = self.pages_around(ranges)?.iter().map(ExactSizeIterator::len).sum();
        if matches!(self.backing, Backing::File(..)) && self.taken_bytes() >= bytes as u64 {
            return Ok(());
        }
        self.take(ranges)
    }

    /// Gives the whole pages within a range back, which nobody uses until it is taken again; then it
    /// is zero.
    ///
    /// # Errors
    /// [`FileError::Io`]; then it stays taken.
    pub fn give_back(&self, range: &Range<usize>) -> Result<(), FileError> {
        let start = range.start.next_multiple_of(self.page_bytes);
        let end = range.end.min(self.bytes) / self.page_bytes * self.page_bytes;
        if start >= end {
            return Ok(());
        }
        let given = match &self.backing {
            Backing::File(file, _) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(file, mode, &(start..end))
            }
            Backing::Own(taken) => {
                let given = self.advise(&(start..end), libc::MADV_DONTNEED);
                let left = |taken: u64| Some(taken.saturating_sub((end - start) as u64));
                let _ = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
                given
            }
        };
        let path = self.name();
        given.map_err(|source| FileError::Io { path, action: "give memory back", source })
    }

    /// Bytes that are taken.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        match &self.backing {
            Backing::File(file, _) => file.metadata().map_or(0, |of| of.blocks() * 512),
            Backing::Own(taken) => taken.load(Ordering::Relaxed),
        }
    }

    /// Lets others have the file, whose mapping is gone.
    pub(crate) fn unlock(&self) {
        if let Backing::File(file, _) = &self.backing {
            // What cannot be unlocked is when its last descriptor is closed.
            let _ = set_lock(file, libc::F_UNLCK);
        }
    }

    fn name(&self) -> String {
        match &self.backing {
            Backing::File(_, path) => path.display().to_string(),
            Backing::Own(_) => "memory of the process".to_owned(),
        }
    }

    fn no_room(&self, bytes: usize, source: io::Error) -> FileError {
        FileError::NoRoom { path: self.name(), bytes, source }
    }

    /// Before any of it is taken from others: a cgroup answers by killing.
    fn check_room(&self, bytes: u64) -> Result<(), FileError> {
        // Reserved huge pages are set apart already; a machine that does not tell is asked directly.
        if bytes == 0 || self.page_bytes > base_page_bytes() {
            return Ok(());
        }
        let Ok(memory) = MachineMemory::read(Path::new("/")) else { return Ok(()) };
        let spared = memory.total_bytes / SPARED_PART;
        let left = memory.available_bytes.saturating_sub(spared);
        if bytes <= left {
            return Ok(());
        }
        let text = format!(
            "{} bytes of memory are available, of which a sixteenth of all, {spared}, is spared",
            memory.available_bytes
        );
        let asked = usize::try_from(bytes).unwrap_or(usize::MAX);
        Err(self.no_room(asked, io::Error::other(text)))
    }

    /// The parts of a range of pages that nobody has taken yet, as far as that can be asked.
    fn not_there(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut holes = Vec::new();
        match &self.backing {
            // Of huge pages there are few, and their file system tells of no holes.
            Backing::File(file, _) if self.page_bytes == base_page_bytes() => {
                let mut at = range.start;
                while let Some(hole) = next_hole(file, &(at..range.end)) {
                    at = hole.end;
                    holes.push(hole);
                }
            }
            Backing::File(..) | Backing::Own(_) => holes.push(range),
        }
        holes
    }

    /// Whole pages that contain ranges, which are in order; each page once.
    fn pages_around(&self, ranges: &[Range<usize>]) -> Result<Vec<Range<usize>>, FileError> {
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        if end > self.bytes {
            let text = format!("the mapping ends after {} bytes", self.bytes);
            return Err(self.no_room(end, io::Error::other(text)));
        }
        let mut pages: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            let start = range.start / self.page_bytes * self.page_bytes;
            let end = range.end.next_multiple_of(self.page_bytes).min(self.bytes).max(start);
            match pages.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => pages.push(start..end),
            }
        }
        Ok(pages)
    }

    fn advise(&self, range: &Range<usize>, advice: libc::c_int) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let start = std::ptr::with_exposed_provenance_mut::<libc::c_void>(self.start + range.start);
        loop {
            // SAFETY: within a mapping that lives at least as long as this. Populating changes no
            // byte, and nobody uses what is given back, as `give_back` demands of its caller.
            if unsafe { libc::madvise(start, range.len(), advice) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(error);
            }
        }
    }
}

/// Allocates a range of a file: what is there stays, holes become zeros.
fn allocate(file: &File, path: &Path, range: &Range<usize>) -> Result<(), FileError> {
    fallocate(file, 0, range).map_err(|source| {
        let path = path.display().to_string();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT | libc::EFBIG) => {
                FileError::NoRoom { path, bytes: range.len(), source }
            }
            _ => FileError::Io { path, action: "allocate it", source },
        }
    })
}

fn fallocate(file: &File, mode: libc::c_int, range: &Range<usize>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let offset = |bytes: usize| libc::off_t::try_from(bytes).unwrap_or(libc::off_t::MAX);
    let (start, length) = (offset(range.start), offset(range.len()));
    loop {
        // SAFETY: an open descriptor and numbers.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, start, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// The first part of a range of a file for which there is no memory; all of it when the file system
/// does not tell.
fn next_hole(file: &File, range: &Range<usize>) -> Option<Range<usize>> {
    let seek = |from: usize, what| {
        let from = libc::off_t::try_from(from).ok()?;
        // SAFETY: an open descriptor and numbers; nobody reads or writes at its position.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, what) };
        usize::try_from(found).ok()
    };
    if range.is_empty() {
        return None;
    }
    let start = seek(range.start, libc::SEEK_HOLE).unwrap_or(range.start);
    // Behind the last data there is nothing but a hole: that is an error to it.
    let end = seek(start, libc::SEEK_DATA).unwrap_or(range.end).min(range.end);
    (start < end).then_some(start..end)
}

/// What a page has at least.
pub(crate) fn base_page_bytes() -> usize {
    // SAFETY: asks for a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(HUGE_PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_process_is_taken_and_given_back_by_pages() {
        let (memory, growing) = map_growing(1 << 34).expect("address range costs nothing");
        assert_eq!((memory.len(), growing.taken_bytes()), (1 << 34, 0));
        let far = 1 << 33;
        growing.take(&[0..10, far..far + 8192]).expect("two pages and more");
        assert_eq!(growing.taken_bytes(), 3 * 4096);
        memory[far..far + 8192].fill(7);
        growing.take(&[0..10, far..far + 20_000]).expect("more");
        assert!(memory[far..far + 8192].iter().all(|byte| *byte == 7), "what is there stays");
        growing.give_back(&(far + 1..far + 20_000)).expect("given back");
        assert_eq!((memory[far], memory[far + 4095]), (7, 7), "no whole page");
        growing.take(std::slice::from_ref(&(far..far + 8192))).expect("again");
        assert!(memory[far + 4096..far + 8192].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn more_than_the_machine_has_is_refused_before_any_is_taken() {
        let (_, growing) = map_growing(1 << 42).expect("address range costs nothing");
        let error = growing
            .take(std::slice::from_ref(&(0..1 << 42)))
            .expect_err("no such memory")
            .to_string();
        assert!(error.contains("memory of the process: there is no room for"), "{error}");
        assert!(error.contains("is spared"), "{error}");
        assert_eq!(growing.taken_bytes(), 0);
    }
}
