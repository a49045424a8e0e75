//! Packet memory: regions of equal chunks. The large one is shared by uplinks, the host port and every
//! worker; pods have small ones ([`crate::regions`]), since the kernel keeps 128 bytes per frame for
//! each socket.
//!
//! Each chunk has one holder at any time, written down in a table: free, held as (part of) a
//! [`Frame`](crate::Frame), or with a socket's rings. So no frame can be submitted twice, the
//! kernel cannot hand us a frame it does not have, everything a closed socket had is found again,
//! and a leak shows as frames held while nothing is under way ([`Umem::census`]).
//!
//! A region of pods is there from the start, and its memory only while a port of it is: workers know
//! every region by its number, and nothing has to be told to them when one comes or goes.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::anchor::Anchor;
use crate::cast::index;
use crate::depot::Depot;
use crate::error::Error;
use crate::frame::{Frame, HEADROOM_BYTES, Home};
use crate::mapping::Mapping;
use crate::open::open_registered;
use crate::statistics::Census;
use crate::umem_config::check;

pub(crate) mod handed;

pub use crate::umem_config::{CopyMode, FRAMES_MAX, HugePages, UmemConfig};

/// Memory of a huge page.
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Sockets that one region can serve.
pub const SOCKETS_MAX: usize = 4096;

/// Holder of a chunk: nobody.
const FREE: u16 = 0;
/// Holder of a chunk: a [`Frame`].
const HELD: u16 = 1;
/// Holder of a chunk: the socket with this number less this base.
pub(crate) const SOCKET_BASE: u16 = 2;

/// Packet memory. Cloning shares it.
#[derive(Clone)]
pub struct Umem {
    shared: Arc<Shared>,
}

/// The memory itself. Unmapped only when every chunk is free: a frame may outlive the region's owner.
struct Memory {
    /// Of the large region, which is registered once for every socket; one of pods is by each port.
    anchor: Option<Mutex<Anchor>>,
    /// Of a region of pods: there while a port is.
    mapped: Mutex<Option<Mapped>>,
}

/// Memory that is there, and the file that it is.
struct Mapped {
    mapping: Mapping,
    file: OwnedFd,
    huge_pages: bool,
}

pub(crate) struct Shared {
    memory: ManuallyDrop<Memory>,
    /// Null while there is no memory, and no frame.
    base: AtomicPtr<u8>,
    home: Home,
    config: UmemConfig,
    holders: Box<[AtomicU16]>,
    depot: Depot,
    /// Chunks given back that do not fill a batch yet, fewer than one has.
    remainder: Mutex<Vec<u32>>,
    sockets: Mutex<SocketNumbers>,
    sockets_bound: AtomicU32,
    sockets_most: AtomicU32,
    /// Batches out of the depot at most.
    batches_out_most: AtomicUsize,
}

// SAFETY: `base` is the start of `memory`; bytes in it are reached only through a `Frame`, of which
// there is one per chunk at most (`holders`), and it is not unmapped while there is one. Everything
// else is `Send` and `Sync` by itself.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

#[derive(Default)]
struct SocketNumbers {
    next: u16,
    unused: Vec<u16>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Umem {
    /// Maps the region and registers it with the kernel.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes that cannot work, [`Error::Memory`] when the kernel refuses.
    pub fn new(config: UmemConfig) -> Result<Self, Error> {
        check(&config)?;
        raise_memory_lock_limit();
        let anchor = Some(Mutex::new(Anchor::Unbound(None)));
        let umem = Self::of(anchor, Depot::large(index(config.frames)), config, 0);
        umem.map()?;
        let registered = open_registered(&umem)
            .map_err(|source| Error::Memory { bytes: bytes_of(&config), source })?;
        if let Some(mut anchor) = umem.anchor() {
            *anchor = Anchor::Unbound(Some(registered));
        }
        Ok(umem)
    }

    /// A region of pods, by its number, without memory yet.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes that cannot work.
    pub(crate) fn for_pods(config: UmemConfig, region: u8) -> Result<Self, Error> {
        check(&config)?;
        Ok(Self::of(None, Depot::small(index(config.frames)), config, region))
    }

    fn of(anchor: Option<Mutex<Anchor>>, depot: Depot, config: UmemConfig, region: u8) -> Self {
        let batch = depot.batch();
        let memory = Memory { anchor, mapped: Mutex::new(None) };
        let shared = Shared {
            memory: ManuallyDrop::new(memory),
            base: AtomicPtr::default(),
            home: Home::new(config.chunk_bytes, region),
            config,
            holders: (0..config.frames).map(|_| AtomicU16::new(FREE)).collect(),
            depot,
            remainder: Mutex::new(Vec::with_capacity(2 * batch)),
            sockets: Mutex::default(),
            sockets_bound: AtomicU32::new(0),
            sockets_most: AtomicU32::new(0),
            batches_out_most: AtomicUsize::new(0),
        };
        let umem = Self { shared: Arc::new(shared) };
        umem.give_back((0..config.frames).rev());
        umem
    }

    /// Gives the region its memory, if it has none.
    ///
    /// # Errors
    /// [`Error::Memory`] when the kernel has none.
    pub(crate) fn map(&self) -> Result<(), Error> {
        let mut mapped = lock(&self.shared.memory.mapped);
        if mapped.is_none() {
            let memory = Mapped::new(self.config())?;
            self.shared.base.store(memory.start(), Ordering::Release);
            *mapped = Some(memory);
        }
        Ok(())
    }

    /// Takes the memory of a region of pods away that has no socket, unless a frame of it is under
    /// way still; says whether it has none now.
    pub(crate) fn unmap(&self) -> bool {
        if !self.is_for_pods() {
            return false;
        }
        let mut mapped = lock(&self.shared.memory.mapped);
        // Whoever freed a chunk is done with its bytes: `pass_on` releases what this acquires.
        let is_free = |holder: &AtomicU16| holder.load(Ordering::Acquire) == FREE;
        if mapped.is_some() && self.shared.holders.iter().all(is_free) {
            self.shared.base.store(std::ptr::null_mut(), Ordering::Release);
            *mapped = None;
        }
        mapped.is_none()
    }

    /// Where the memory begins, and its length in bytes; `None` while there is none.
    pub(crate) fn extent(&self) -> Option<(u64, u64)> {
        let base = self.shared.base.load(Ordering::Acquire).addr();
        (base != 0).then(|| Some((u64::try_from(base).ok()?, bytes_of(self.config())))).flatten()
    }

    /// Whether it is a region of pods.
    pub(crate) fn is_for_pods(&self) -> bool {
        self.shared.memory.anchor.is_none()
    }

    /// Its number: 0 for the large one.
    pub(crate) fn region(&self) -> u8 {
        self.shared.home.region()
    }

    /// What was asked for.
    #[must_use]
    pub fn config(&self) -> &UmemConfig {
        &self.shared.config
    }

    /// Whether the region lies on huge pages.
    #[must_use]
    pub fn has_huge_pages(&self) -> bool {
        lock(&self.shared.memory.mapped).as_ref().is_some_and(|mapped| mapped.huge_pages)
    }

    /// Where every frame is. Frames that no packet under way explains are leaked.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census { total: self.shared.config.frames, ..Census::default() };
        for holder in &self.shared.holders {
            match holder.load(Ordering::Relaxed) {
                FREE => census.free += 1,
                HELD => census.held += 1,
                _ => census.in_sockets += 1,
            }
        }
        census
    }

    /// Most frames that were ever out of the region's depot: with sockets, under way, or kept free
    /// by a worker for itself. None of them could serve another worker.
    #[must_use]
    pub fn taken_most(&self) -> u32 {
        let batches = self.shared.batches_out_most.load(Ordering::Relaxed);
        u32::try_from(batches * self.batch()).unwrap_or(u32::MAX).min(self.shared.config.frames)
    }

    /// Sockets bound to the region now and at most so far, of [`SOCKETS_MAX`].
    #[must_use]
    pub fn sockets(&self) -> (u32, u32) {
        let load = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (load(&self.shared.sockets_bound), load(&self.shared.sockets_most))
    }

    /// Of the large region: the first socket.
    pub(crate) fn anchor(&self) -> Option<MutexGuard<'_, Anchor>> {
        self.shared.memory.anchor.as_ref().map(lock)
    }

    /// Frames that move between the depot and a pool at once.
    pub(crate) fn batch(&self) -> usize {
        self.shared.depot.batch()
    }

    /// Frames in the depot.
    pub(crate) fn in_depot(&self) -> u32 {
        u32::try_from(self.shared.depot.frames()).unwrap_or(u32::MAX)
    }

    /// Takes a number for a socket's chunks.
    pub(crate) fn take_socket_number(&self) -> Option<u16> {
        let mut numbers = lock(&self.shared.sockets);
        let number = match numbers.unused.pop() {
            Some(number) => number,
            None => {
                let number = numbers.next;
                (usize::from(number) < SOCKETS_MAX).then(|| numbers.next += 1)?;
                SOCKET_BASE + number
            }
        };
        let others = self.shared.sockets_bound.fetch_add(1, Ordering::Relaxed);
        self.shared.sockets_most.fetch_max(others + 1, Ordering::Relaxed);
        Some(number)
    }

    /// Frees every chunk a closed socket had, and its number.
    pub(crate) fn reclaim(&self, number: u16) {
        let mine =
            |chunk: &u32| self.shared.holders[index(*chunk)].load(Ordering::Relaxed) == number;
        let found: Vec<u32> = (0..self.shared.config.frames).filter(mine).collect();
        for chunk in &found {
            self.shared.holders[index(*chunk)].store(FREE, Ordering::Relaxed);
        }
        self.give_back(found.into_iter());
        lock(&self.shared.sockets).unused.push(number);
        self.shared.sockets_bound.fetch_sub(1, Ordering::Relaxed);
    }

    /// Puts free chunks where every pool can take them. For the control side and a pool's end.
    pub(crate) fn give_back(&self, chunks: impl Iterator<Item = u32>) {
        let mut remainder = lock(&self.shared.remainder);
        for chunk in chunks {
            remainder.push(chunk);
            // There is a place for every full batch of the region.
            if remainder.len() == self.batch() && self.shared.depot.put(&remainder) {
                remainder.clear();
            }
        }
    }

    /// Adds a full batch to what a pool has, if there is one.
    #[inline]
    pub(crate) fn take_batch(&self, free: &mut Vec<u32>) {
        if !self.shared.depot.take(free) {
            return;
        }
        let all = index(self.shared.config.frames) / self.batch();
        let out = all.saturating_sub(self.shared.depot.len());
        if out > self.shared.batches_out_most.load(Ordering::Relaxed) {
            self.shared.batches_out_most.fetch_max(out, Ordering::Relaxed);
        }
    }

    /// A full batch that a pool has too much; false when there is no place for it.
    #[inline]
    pub(crate) fn put_batch(&self, batch: &[u32]) -> bool {
        self.shared.depot.put(batch)
    }

    /// Frames for each socket when all share a quarter of the region; no bound where each was
    /// admitted with what it needs.
    pub(crate) fn share(&self) -> u32 {
        if self.is_for_pods() {
            return u32::MAX;
        }
        let sockets = self.shared.sockets_bound.load(Ordering::Relaxed).max(1);
        (self.shared.config.frames / 4 / sockets).max(1)
    }

    /// Whether a quarter of the region lies in the depot.
    #[inline]
    pub(crate) fn has_plenty(&self) -> bool {
        self.shared.depot.frames() >= index(self.shared.config.frames) / 4
    }

    /// Whether less than an eighth does.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.shared.depot.frames() < index(self.shared.config.frames) / 8
    }

    /// Whether less than a 32nd does.
    #[inline]
    pub(crate) fn is_nearly_used_up(&self) -> bool {
        self.shared.depot.frames() < index(self.shared.config.frames) / 32
    }

    /// Hands a free chunk to a socket's fill ring.
    #[inline]
    pub(crate) fn post(&self, chunk: u32, number: u16) -> u64 {
        self.shared.holders[index(chunk)].store(number, Ordering::Relaxed);
        u64::from(chunk) * u64::from(self.shared.config.chunk_bytes)
    }

    /// Takes a chunk that the kernel completed; `None` when the socket does not have it.
    #[inline]
    pub(crate) fn completed(&self, address: u64, number: u16) -> Option<u32> {
        let (chunk, _) = self.locate(address)?;
        let holder = &self.shared.holders[index(chunk)];
        if holder.load(Ordering::Relaxed) != number {
            return None;
        }
        holder.store(FREE, Ordering::Relaxed);
        Some(chunk)
    }

    /// Takes a chunk that the kernel filled; `None` when the socket does not have it, or the
    /// descriptor does not lie within the chunk.
    #[inline(always)]
    pub(crate) fn received(&self, address: u64, length: u32, number: u16) -> Option<Frame> {
        let (chunk, offset) = self.locate(address)?;
        let holder = &self.shared.holders[index(chunk)];
        if holder.load(Ordering::Relaxed) != number {
            return None;
        }
        let chunk_bytes = self.shared.config.chunk_bytes;
        if offset < HEADROOM_BYTES || length > chunk_bytes - offset {
            return None;
        }
        let start = self.chunk(chunk)?;
        holder.store(HELD, Ordering::Relaxed);
        prefetch_headers(start, offset);
        // SAFETY: the chunk lies within the region and was the socket's until this moment, so no
        // other frame has it and the kernel is done with it; offset and length were just checked.
        Some(unsafe { Frame::new(start, offset, length, self.shared.home) })
    }

    /// Makes a free chunk an empty frame; `None` while the region has no memory.
    pub(crate) fn hold(&self, chunk: u32) -> Option<Frame> {
        let start = self.chunk(chunk)?;
        self.shared.holders[index(chunk)].store(HELD, Ordering::Relaxed);
        // SAFETY: the caller owned the free chunk, so no frame has it and the kernel does not.
        Some(unsafe { Frame::new(start, HEADROOM_BYTES, 0, self.shared.home) })
    }

    /// The chunk of a frame of this region; `None` for another region's.
    #[inline]
    pub(crate) fn chunk_of(&self, start: NonNull<u8>) -> Option<u32> {
        let base = self.shared.base.load(Ordering::Relaxed).addr();
        let distance = start.addr().get().checked_sub(base)?;
        let chunk = u32::try_from(distance >> self.chunk_bits()).ok()?;
        (chunk < self.shared.config.frames).then_some(chunk)
    }

    /// Writes down that a chunk of a consumed frame is free, or with a socket.
    #[inline]
    pub(crate) fn pass_on(&self, chunk: u32, number: Option<u16>) {
        // Released, so that memory whose last frame this was can be taken away (`unmap`).
        self.shared.holders[index(chunk)].store(number.unwrap_or(FREE), Ordering::Release);
    }

    #[inline]
    fn locate(&self, address: u64) -> Option<(u32, u32)> {
        let chunk = u32::try_from(address >> self.chunk_bits()).ok()?;
        let offset = u32::try_from(address & ((1 << self.chunk_bits()) - 1)).ok()?;
        (chunk < self.shared.config.frames).then_some((chunk, offset))
    }

    /// Chunks are powers of two long ([`CHUNK_BYTES`]): a division for each packet would cost as
    /// much as parsing it.
    #[inline(always)]
    fn chunk_bits(&self) -> u32 {
        self.shared.config.chunk_bytes.trailing_zeros()
    }

    #[inline]
    fn chunk(&self, chunk: u32) -> Option<NonNull<u8>> {
        assert!(chunk < self.shared.config.frames);
        let base = NonNull::new(self.shared.base.load(Ordering::Relaxed))?;
        // SAFETY: within the mapping by the assert.
        Some(unsafe { base.add(index(chunk) * index(self.shared.config.chunk_bytes)) })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let held = self.holders.iter().filter(|holder| holder.load(Ordering::Relaxed) != FREE);
        let held = held.count();
        // SAFETY: taken once, here.
        let Memory { anchor, mapped } = unsafe { ManuallyDrop::take(&mut self.memory) };
        // The socket that the memory is registered with goes before it.
        drop(anchor);
        if held > 0 {
            let _stays = ManuallyDrop::new(mapped);
        }
        if held > 0 {
            tracing::warn!(held, "packet memory stays mapped: frames of it are still held");
        }
    }
}

impl Mapped {
    /// Maps memory for a region, on huge pages if that is wanted and there are enough.
    fn new(config: &UmemConfig) -> Result<Self, Error> {
        let bytes = bytes_of(config);
        let length = index(config.frames) * index(config.chunk_bytes);
        let whole_pages = bytes.is_multiple_of(HUGE_PAGE_BYTES);
        let wanted = config.huge_pages == HugePages::WhenAvailable && whole_pages;
        let huge = wanted.then(|| Mapping::memory(length, true).ok()).flatten();
        let huge_pages = huge.is_some();
        let (mapping, file) = huge
            .map_or_else(|| Mapping::memory(length, false), Ok)
            .map_err(|source| Error::Memory { bytes, source })?;
        Ok(Self { mapping, file, huge_pages })
    }

    fn start(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.mapping.addresses().0)
    }
}

fn bytes_of(config: &UmemConfig) -> u64 {
    u64::from(config.frames) * u64::from(config.chunk_bytes)
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("Umem");
        text.field("config", &self.shared.config).field("census", &self.census()).finish()
    }
}

/// Packet memory and, on old kernels, maps count against the limit on locked memory. Without the
/// right to raise it the registration itself will say what is missing.
pub(crate) fn raise_memory_lock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives through the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// Asks for a packet's headers, for writing: they lie in the cache of the core that received them,
/// and all of a burst's come over together while it is taken in.
#[inline(always)]
fn prefetch_headers(chunk: NonNull<u8>, offset: u32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let headers = chunk.as_ptr().wrapping_add(offset as usize);
        _mm_prefetch::<_MM_HINT_ET0>(headers.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (chunk, offset);
}
