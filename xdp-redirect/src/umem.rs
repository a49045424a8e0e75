//! Packet memory: one region of equal chunks, shared by every socket and worker of a mode.
//!
//! Each chunk has one holder at any time, written down in a table: free, held as (part of) a
//! [`Frame`](crate::Frame), or with a socket's rings. So no frame can be submitted twice, the
//! kernel cannot hand us a frame it does not have, everything a closed socket had is found again,
//! and a leak shows as frames held while nothing is under way ([`Umem::census`]).
//!
//! The kernel makes every socket of a region inherit the mode of its first, and lets no more join
//! once the first one's interface is gone. In copy mode the first is therefore bound to a tap
//! device of our own, which lives as long as the region and vanishes with the process; in
//! zero-copy mode it is the first NIC's.

use std::error::Error as _;
use std::fs::OpenOptions;
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig as XskUmemConfig};

use crate::cast::index;
use crate::error::Error;
use crate::frame::{Frame, HEADROOM_BYTES};
use crate::pool::{BATCH, Batch};
use crate::statistics::Census;

/// Memory of a huge page.
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Chunk sizes that AF_XDP takes without unaligned mode: from 2048 to a page.
const CHUNK_BYTES: [u32; 2] = [2048, 4096];
/// Frames at most: 16 GiB of the larger chunks.
pub const FRAMES_MAX: u32 = 1 << 22;
/// Sockets that one region can serve.
pub const SOCKETS_MAX: usize = 4096;

/// Holder of a chunk: nobody.
const FREE: u16 = 0;
/// Holder of a chunk: a [`Frame`].
const HELD: u16 = 1;
/// Holder of a chunk: the socket with this number less this base.
const SOCKET_BASE: u16 = 2;

/// How packets move between the region and the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CopyMode {
    /// Zero-copy if the first interface bound can, otherwise copy.
    #[default]
    Auto,
    /// The kernel copies: any interface.
    Copy,
    /// The device reads and writes the region: every interface must be able to.
    ZeroCopy,
}

/// Whether to use huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// When there are enough (`vm.nr_hugepages`).
    #[default]
    WhenAvailable,
    /// Never.
    Never,
}

/// What a region is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UmemConfig {
    /// Number of chunks, at most [`FRAMES_MAX`]. Each socket's fill level and packets under way
    /// take from it. The kernel keeps 128 bytes per frame and socket beside.
    pub frames: u32,
    /// Bytes of a chunk: 2048 or 4096. A packet's first chunk carries that less 256.
    pub chunk_bytes: u32,
    /// Entries of every socket's fill ring, a power of two; how many a socket keeps filled is
    /// its own setting.
    pub fill_ring: u32,
    /// Entries of every socket's completion ring, a power of two, at least the transmit ring's.
    pub completion_ring: u32,
    /// Copy or zero-copy.
    pub copy_mode: CopyMode,
    /// Take frames of several chunks (jumbo); kernel 6.6.
    pub multi_buffer: bool,
    /// Huge pages or not.
    pub huge_pages: HugePages,
}

impl Default for UmemConfig {
    fn default() -> Self {
        Self {
            frames: 16_384,
            chunk_bytes: 2048,
            fill_ring: 2048,
            completion_ring: 2048,
            copy_mode: CopyMode::Auto,
            multi_buffer: false,
            huge_pages: HugePages::WhenAvailable,
        }
    }
}

/// What the first socket of the region was bound to, if one was.
pub(crate) enum Anchor {
    /// None yet.
    None,
    /// A tap device of our own, with the socket bound to it.
    Tap { _socket: crate::bind::Rings, _device: OwnedFd },
    /// The first NIC, in zero-copy mode.
    FirstSocket,
}

/// Packet memory. Cloning shares it.
#[derive(Clone)]
pub struct Umem {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// Unmapped on drop only when every chunk is free: a frame may outlive the region's owner.
    xsk: ManuallyDrop<xsk_rs::Umem>,
    base: NonNull<u8>,
    config: UmemConfig,
    huge_pages: bool,
    holders: Box<[AtomicU16]>,
    depot: ArrayQueue<Batch>,
    /// Chunks given back that do not fill a batch yet, fewer than [`BATCH`].
    remainder: Mutex<Vec<u32>>,
    sockets: Mutex<SocketNumbers>,
    sockets_bound: AtomicU32,
    sockets_most: AtomicU32,
    /// Batches out of the depot at most.
    batches_out_most: AtomicUsize,
    anchor: ManuallyDrop<Mutex<Anchor>>,
}

// SAFETY: `base` is the start of a mapping that lives as long as `xsk`; bytes in it are reached
// only through a `Frame`, of which there is one per chunk at most (`holders`). Everything else is
// `Send` and `Sync` by itself.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

#[derive(Default)]
struct SocketNumbers {
    next: u16,
    unused: Vec<u16>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Umem {
    /// Maps the region and registers it with the kernel.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes that cannot work, [`Error::Memory`] when the kernel refuses.
    pub fn new(config: UmemConfig) -> Result<Self, Error> {
        let frames = check(&config)?;
        raise_memory_lock_limit();
        let layout = xsk_config(&config)?;
        let bytes = u64::from(config.frames) * u64::from(config.chunk_bytes);
        let whole_pages = bytes.is_multiple_of(HUGE_PAGE_BYTES);
        let wanted = config.huge_pages == HugePages::WhenAvailable && whole_pages;
        let huge = wanted.then(|| xsk_rs::Umem::new(layout, frames, true).ok()).flatten();
        let huge_pages = huge.is_some();
        let (xsk, mut descriptors) = match huge {
            Some(made) => made,
            None => xsk_rs::Umem::new(layout, frames, false).map_err(|error| Error::Memory {
                bytes,
                source: error
                    .source()
                    .map_or_else(|| io::Error::other(error.to_string()), crate::error::io_error),
            })?,
        };
        let Some(first) = descriptors.first_mut() else {
            return Err(Error::Memory { bytes, source: io::Error::other("no frames") });
        };
        let offset = first.addr();
        // SAFETY: the descriptor is of this region, and nothing else uses the region yet.
        let data = unsafe { xsk.data_mut(first) }.as_mut().as_mut_ptr();
        // The whole mapping is meant, not the part of the frame the slice shows.
        let base = std::ptr::with_exposed_provenance_mut::<u8>(data.expose_provenance() - offset);
        let Some(base) = NonNull::new(base) else {
            return Err(Error::Memory { bytes, source: io::Error::other("mapped at null") });
        };
        let shared = Shared {
            xsk: ManuallyDrop::new(xsk),
            base,
            config,
            huge_pages,
            holders: (0..config.frames).map(|_| AtomicU16::new(FREE)).collect(),
            depot: ArrayQueue::new(index(config.frames) / BATCH + 1),
            remainder: Mutex::new(Vec::with_capacity(2 * BATCH)),
            sockets: Mutex::default(),
            sockets_bound: AtomicU32::new(0),
            sockets_most: AtomicU32::new(0),
            batches_out_most: AtomicUsize::new(0),
            anchor: ManuallyDrop::new(Mutex::new(Anchor::None)),
        };
        let umem = Self { shared: Arc::new(shared) };
        umem.give_back((0..config.frames).rev());
        Ok(umem)
    }

    /// What was asked for.
    #[must_use]
    pub fn config(&self) -> &UmemConfig {
        &self.shared.config
    }

    /// Whether the region lies on huge pages.
    #[must_use]
    pub fn has_huge_pages(&self) -> bool {
        self.shared.huge_pages
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
        u32::try_from(batches * BATCH).unwrap_or(u32::MAX).min(self.shared.config.frames)
    }

    /// Sockets bound to the region now and at most so far, of [`SOCKETS_MAX`].
    #[must_use]
    pub fn sockets(&self) -> (u32, u32) {
        let load = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        (load(&self.shared.sockets_bound), load(&self.shared.sockets_most))
    }

    pub(crate) fn xsk(&self) -> &xsk_rs::Umem {
        &self.shared.xsk
    }

    pub(crate) fn anchor(&self) -> MutexGuard<'_, Anchor> {
        lock(&self.shared.anchor)
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
            if remainder.len() >= BATCH {
                let batch: Batch = remainder.drain(..BATCH).collect();
                // There is a place for every full batch of the region.
                if let Err(batch) = self.shared.depot.push(batch) {
                    remainder.extend(batch);
                }
            }
        }
    }

    /// A full batch for a pool to take, if there is one.
    #[inline]
    pub(crate) fn take_batch(&self) -> Option<Batch> {
        let batch = self.shared.depot.pop()?;
        let out =
            (index(self.shared.config.frames) / BATCH).saturating_sub(self.shared.depot.len());
        if out > self.shared.batches_out_most.load(Ordering::Relaxed) {
            self.shared.batches_out_most.fetch_max(out, Ordering::Relaxed);
        }
        Some(batch)
    }

    /// A full batch that a pool has too much; given back when there is no place for it.
    #[inline]
    pub(crate) fn put_batch(&self, batch: Batch) -> Option<Batch> {
        self.shared.depot.push(batch).err()
    }

    /// Frames for each socket when all share a quarter of the region.
    pub(crate) fn share(&self) -> u32 {
        let sockets = self.shared.sockets_bound.load(Ordering::Relaxed).max(1);
        (self.shared.config.frames / 4 / sockets).max(1)
    }

    /// Whether a quarter of the region lies in the depot.
    #[inline]
    pub(crate) fn has_plenty(&self) -> bool {
        self.shared.depot.len() * BATCH >= index(self.shared.config.frames) / 4
    }

    /// Whether less than an eighth does.
    #[inline]
    pub(crate) fn is_short(&self) -> bool {
        self.shared.depot.len() * BATCH < index(self.shared.config.frames) / 8
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
        holder.store(HELD, Ordering::Relaxed);
        let start = self.chunk(chunk);
        prefetch_headers(start, offset);
        // SAFETY: the chunk lies within the region and was the socket's until this moment, so no
        // other frame has it and the kernel is done with it; offset and length were just checked.
        Some(unsafe { Frame::new(start, offset, length, chunk_bytes) })
    }

    /// Makes a free chunk an empty frame.
    pub(crate) fn hold(&self, chunk: u32) -> Frame {
        self.shared.holders[index(chunk)].store(HELD, Ordering::Relaxed);
        let chunk_bytes = self.shared.config.chunk_bytes;
        // SAFETY: the caller owned the free chunk, so no frame has it and the kernel does not.
        unsafe { Frame::new(self.chunk(chunk), HEADROOM_BYTES, 0, chunk_bytes) }
    }

    /// The chunk of a frame of this region; `None` for another region's.
    #[inline]
    pub(crate) fn chunk_of(&self, start: NonNull<u8>) -> Option<u32> {
        let distance = start.addr().get().checked_sub(self.shared.base.addr().get())?;
        let chunk = u32::try_from(distance >> self.chunk_bits()).ok()?;
        (chunk < self.shared.config.frames).then_some(chunk)
    }

    /// Writes down that a chunk of a consumed frame is free, or with a socket.
    #[inline]
    pub(crate) fn pass_on(&self, chunk: u32, number: Option<u16>) {
        self.shared.holders[index(chunk)].store(number.unwrap_or(FREE), Ordering::Relaxed);
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
    fn chunk(&self, chunk: u32) -> NonNull<u8> {
        assert!(chunk < self.shared.config.frames);
        // SAFETY: within the mapping by the assert.
        unsafe { self.shared.base.add(index(chunk) * index(self.shared.config.chunk_bytes)) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let held = self.holders.iter().filter(|holder| holder.load(Ordering::Relaxed) != FREE);
        let held = held.count();
        // SAFETY: dropped once, here; the anchor's rings go before the region they refer to.
        unsafe { ManuallyDrop::drop(&mut self.anchor) };
        if held == 0 {
            // SAFETY: dropped once, here; no frame is left that could reach the memory, and no
            // socket, since each keeps the region alive.
            unsafe { ManuallyDrop::drop(&mut self.xsk) };
        } else {
            tracing::warn!(held, "packet memory stays mapped: frames of it are still held");
        }
    }
}

impl std::fmt::Debug for Umem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("Umem");
        text.field("config", &self.shared.config).field("census", &self.census()).finish()
    }
}

fn check(config: &UmemConfig) -> Result<NonZeroU32, Error> {
    let refuse =
        |setting, value: u32, reason| Err(Error::Setting { setting, value: value.into(), reason });
    if !CHUNK_BYTES.contains(&config.chunk_bytes) {
        return refuse("chunk_bytes", config.chunk_bytes, "use 2048 or 4096");
    }
    if config.frames > FRAMES_MAX {
        return refuse("frames", config.frames, "at most 4194304");
    }
    match NonZeroU32::new(config.frames) {
        Some(frames) if index(config.frames) >= BATCH => Ok(frames),
        _ => refuse("frames", config.frames, "at least 64"),
    }
}

fn xsk_config(config: &UmemConfig) -> Result<XskUmemConfig, Error> {
    let refuse =
        |setting, value: u32, reason| Error::Setting { setting, value: value.into(), reason };
    let size = FrameSize::new(config.chunk_bytes)
        .map_err(|_| refuse("chunk_bytes", config.chunk_bytes, "use 2048 or 4096"))?;
    let fill = QueueSize::new(config.fill_ring)
        .map_err(|_| refuse("fill_ring", config.fill_ring, "use a power of two"))?;
    let completion = QueueSize::new(config.completion_ring)
        .map_err(|_| refuse("completion_ring", config.completion_ring, "use a power of two"))?;
    XskUmemConfig::builder()
        .frame_size(size)
        .fill_queue_size(fill)
        .comp_queue_size(completion)
        .build()
        .map_err(|_| refuse("chunk_bytes", config.chunk_bytes, "use 2048 or 4096"))
}

/// Packet memory and, on old kernels, maps count against the limit on locked memory. Without the
/// right to raise it the registration itself will say what is missing.
pub(crate) fn raise_memory_lock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives through the call.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// Makes the tap device that anchors a region; see [`make_tap_named`].
pub(crate) fn make_tap() -> io::Result<(OwnedFd, String)> {
    make_tap_named(b"xskiff-umem%d")
}

/// Makes a tap device that lives as long as the returned descriptor; returns its name, too, with a
/// number for `%d`.
pub(crate) fn make_tap_named(template: &[u8]) -> io::Result<(OwnedFd, String)> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(template) {
        *to = from.cast_signed();
    }
    // IFF_TAP is 2 and IFF_NO_PI 0x1000: they fit.
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or(0);
    // SAFETY: the request lives through the call, which writes the name back.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name =
        request.ifr_name.iter().take_while(|c| **c != 0).map(|c| char::from(c.cast_unsigned()));
    let name = name.collect();
    Ok((device.into(), name))
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
