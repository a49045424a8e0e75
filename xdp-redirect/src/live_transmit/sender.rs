//! A worker's batch of packets in memory shared with the program, and the call that sends it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dataplane::port::PortId;

use crate::cast::index;
use crate::limits::{LIVE_BATCH, LIVE_PACKET_BYTES, WORKERS_MAX};
use crate::mapping::Mapping;
use crate::test_run::TestRun;

/// Frames the kernel sends between two looks at what they cause, such as the receiver's NAPI, which
/// takes as many in one go.
const ROUND: u32 = 64;
/// Packets of a batch.
pub(crate) const BATCH: usize = index(LIVE_BATCH);

/// Packets that are worth a call, which costs as much as ten by AF_XDP.
pub(crate) const PACKETS_MIN: usize = 32;

/// `struct packet` of `live_transmit.bpf.c`, without its bytes.
#[repr(C)]
struct Header {
    length: u32,
    port: u32,
    is_sent: AtomicU32,
    padding: u32,
}
const HEADER_BYTES: usize = size_of::<Header>();
/// `struct packet` and `struct progress`.
pub(crate) const PACKET_BYTES: usize = HEADER_BYTES + index(LIVE_PACKET_BYTES);
pub(crate) const PROGRESS_BYTES: usize = 64;
const _: () = assert!(PACKET_BYTES == 2048 && HEADER_BYTES == 16);

/// What a frame begins as: its length tells the program who calls, its bytes are written over.
static BLANK: [u8; index(LIVE_PACKET_BYTES) + index(WORKERS_MAX)] =
    [0; index(LIVE_PACKET_BYTES) + index(WORKERS_MAX)];
/// Lengths that tell workers apart begin at multiples of this; the kernel wants more than an
/// Ethernet header.
const STEP: u32 = WORKERS_MAX;
const _: () = assert!(STEP >= 14 && STEP.is_power_of_two());

/// One worker's batch. It belongs to one thread at a time.
pub struct LiveSender {
    worker: u32,
    packets: Arc<Mapping>,
    progress: Arc<Mapping>,
    program: Arc<OwnedFd>,
    packets_min: usize,
    filled: u32,
    /// Of the longest packet.
    longest: u32,
}

impl LiveSender {
    pub(super) fn new(
        worker: u32,
        packets: Arc<Mapping>,
        progress: Arc<Mapping>,
        program: Arc<OwnedFd>,
    ) -> Self {
        let packets_min = PACKETS_MIN;
        Self { worker, packets, progress, program, packets_min, filled: 0, longest: 0 }
    }

    /// The same that makes a call for so many packets and more, for measurements of what is worth one.
    #[must_use]
    pub fn with_packets_min(self, packets_min: usize) -> Self {
        Self { packets_min, ..self }
    }

    /// Packets that are worth a call.
    #[inline]
    pub(super) fn packets_min(&self) -> usize {
        self.packets_min
    }

    /// Whether a packet of this length can be sent.
    #[inline]
    pub(crate) fn fits(bytes: usize) -> bool {
        // 14: the kernel keeps no frame shorter than an Ethernet header.
        (14..=index(LIVE_PACKET_BYTES)).contains(&bytes)
    }

    /// Begins a batch.
    pub(crate) fn begin(&mut self) {
        (self.filled, self.longest) = (0, 0);
    }

    /// Puts a packet behind the others; says whether there was room for it.
    #[inline]
    pub(crate) fn put(&mut self, port: PortId, bytes: &[u8]) -> bool {
        if self.filled >= LIVE_BATCH || !Self::fits(bytes.len()) {
            return false;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let place = self.packets.part(self.offset(self.filled), PACKET_BYTES);
        let header = Header { length, port: port.0.into(), is_sent: AtomicU32::new(0), padding: 0 };
        // SAFETY: within the mapping, 2048 bytes long and aligned to as much; the batch is this
        // worker's (`LiveTransmit::sender`), and the program reads it only during `send`, which
        // takes `&mut self`. The bytes fit: their number was just checked.
        unsafe {
            place.cast::<Header>().write(header);
            let to = place.add(HEADER_BYTES).as_ptr();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.filled += 1;
        self.longest = self.longest.max(length);
        true
    }

    /// Sends the batch. Returns how many packets were taken, from the first on, with the kernel's
    /// reason when it is not for all ([`Self::is_sent`] tells of each).
    pub(crate) fn send(&mut self) -> (usize, Option<io::Error>) {
        self.taken().store(0, Ordering::Relaxed);
        let data_size_in = (self.longest.max(STEP) & !(STEP - 1)) + self.worker;
        let run = TestRun {
            prog_fd: self.program.as_raw_fd().cast_unsigned(),
            data_size_in,
            data_in: BLANK.as_ptr().addr() as u64,
            repeat: self.filled,
            batch_size: ROUND.min(self.filled),
            ..TestRun::default()
        };
        // SAFETY: `data_size_in` bytes of a longer array; there is no context.
        let error = unsafe { run.with_live_frames() }.err();
        (index(self.taken().load(Ordering::Relaxed)).min(index(self.filled)), error)
    }

    /// Whether packet `number` of those taken was handed to an interface: there was one.
    #[inline]
    pub(crate) fn is_sent(&self, number: usize) -> bool {
        let number = u32::try_from(number).unwrap_or(u32::MAX).min(LIVE_BATCH - 1);
        let place = self.packets.part(self.offset(number), HEADER_BYTES);
        // SAFETY: within the mapping and aligned; a word that the program writes during `send`
        // alone, in this thread.
        let is_sent = unsafe { &(*place.cast::<Header>().as_ptr()).is_sent };
        is_sent.load(Ordering::Relaxed) != 0
    }

    fn offset(&self, number: u32) -> usize {
        index(self.worker * LIVE_BATCH + number) * PACKET_BYTES
    }

    fn taken(&self) -> &AtomicU32 {
        let place = self.progress.part(index(self.worker) * PROGRESS_BYTES, PROGRESS_BYTES);
        // SAFETY: within the mapping and aligned to a cache line; a word that this worker and the
        // program, which it calls, alone reach.
        unsafe { &*place.cast::<AtomicU32>().as_ptr() }
    }
}
