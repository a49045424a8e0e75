//! What a region of packet memory is to be.

use crate::cast::index;
use crate::depot::BATCH;
use crate::error::Error;

/// Chunk sizes that AF_XDP takes without unaligned mode: from 2048 to a page.
const CHUNK_BYTES: [u32; 2] = [2048, 4096];
/// Frames at most: 16 GiB of the larger chunks.
pub const FRAMES_MAX: u32 = 1 << 22;
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

pub(crate) fn check(config: &UmemConfig) -> Result<(), Error> {
    let refuse =
        |setting, value: u32, reason| Err(Error::Setting { setting, value: value.into(), reason });
    if !CHUNK_BYTES.contains(&config.chunk_bytes) {
        return refuse("chunk_bytes", config.chunk_bytes, "use 2048 or 4096");
    }
    if config.frames > FRAMES_MAX {
        return refuse("frames", config.frames, "at most 4194304");
    }
    if index(config.frames) < BATCH {
        return refuse("frames", config.frames, "at least 64");
    }
    check_ring("fill_ring", config.fill_ring)?;
    check_ring("completion_ring", config.completion_ring)
}

/// Whether a ring can have so many entries.
pub(crate) fn check_ring(setting: &'static str, entries: u32) -> Result<(), Error> {
    if entries.is_power_of_two() {
        return Ok(());
    }
    Err(Error::Setting { setting, value: entries.into(), reason: "use a power of two" })
}
