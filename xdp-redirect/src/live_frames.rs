//! A packet source and a counting receiver for measurements, both in the kernel.
//!
//! The source is `BPF_PROG_TEST_RUN` with live frames: the kernel makes frames, `generate` of
//! `live_frames.bpf.c` fills each in and sends it out of an interface; nothing faster is to be had
//! on veth. The receiver counts the frames that arrive translated as they must, checksums
//! included, and drops them. Frames are 60-byte UDP over IPv4.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::Xdp;
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::{Ebpf, Pod};

use crate::error::{Error, io_error};
use crate::loader::interface_index;
use crate::rules::{map_error, typed};
use crate::test_run::TestRun;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/live_frames.bpf.o"));

/// Length of every frame, in bytes.
pub const FRAME_BYTES: usize = 60;
/// Frames the kernel sends between two looks at everything else: a burst.
pub const BURST: u32 = 64;
/// First L4 port of the sources.
pub const FIRST_L4_PORT: u16 = 1024;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Flows, told apart by their source address and port, in an order that visits all evenly;
    /// `None`: every packet begins another flow.
    pub flows: Option<u64>,
    /// First source address; flow `n` is from address `n % 2^source_bits` after it.
    pub first_source: Ipv4Addr,
    /// Source addresses, as a power of two, at most 24.
    pub source_bits: u32,
    /// Destination addresses, the frame's and those that follow it; every flow has one, and all have as
    /// many flows as nearly as can be.
    pub destinations: u32,
    /// The frame, with the (first) destination, its source address and port and both checksums zero.
    pub frame: [u8; FRAME_BYTES],
}

/// What arrives when all goes well.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Destination address and port; of the address, `address_bits` leading bits count.
    pub destination: SocketAddrV4,
    /// At most 32.
    pub address_bits: u8,
    /// Time to live.
    pub ttl: u8,
}

/// Frames that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// As expected.
    pub right: u64,
    /// IPv4, and otherwise.
    pub wrong: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct TrafficEntry {
    flows: u64,
    burst_interval_ns: u64,
    first_source: u32,
    source_bits: u32,
    first_destination: u32,
    destinations: u32,
    ip_sum: u32,
    udp_sum: u32,
    frame: [u8; FRAME_BYTES],
    padding: u32,
}
const _: () = assert!(size_of::<TrafficEntry>() == 104);
// SAFETY: `repr(C)` integers and bytes without padding (2 * 8 + 6 * 4 + 60 + 4): any bytes are a value.
unsafe impl Pod for TrafficEntry {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ProgressEntry {
    packets: u64,
    due_ns: u64,
    waited_ns: u64,
}
const _: () = assert!(size_of::<ProgressEntry>() == 24);
// SAFETY: `repr(C)` integers without padding (3 * 8): any bytes are a value.
unsafe impl Pod for ProgressEntry {}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExpectedEntry {
    destination: u32,
    mask: u32,
    l4_port: u16,
    ttl: u8,
    padding: u8,
}
const _: () = assert!(size_of::<ExpectedEntry>() == 12);
// SAFETY: `repr(C)` integers without padding (4 + 4 + 2 + 1 + 1): any bytes are a value.
unsafe impl Pod for ExpectedEntry {}

#[derive(Clone, Copy)]
#[repr(C)]
struct CountedEntry {
    right: u64,
    wrong: u64,
}
// SAFETY: `repr(C)` integers without padding (8 + 8): any bytes are a value.
unsafe impl Pod for CountedEntry {}

/// The source. Dropping it lets go of the spare interface.
pub struct LiveFrames {
    _keep: XdpLink,
    traffic: Array<MapData, TrafficEntry>,
    sent: TrafficEntry,
    progress: Array<MapData, ProgressEntry>,
    ebpf: Ebpf,
}

/// The receiver on one interface, which it leaves when dropped.
pub struct FrameCounter {
    _link: XdpLink,
    counted: PerCpuArray<MapData, CountedEntry>,
    _ebpf: Ebpf,
}

impl LiveFrames {
    /// Loads the source. `spare` is any interface with native XDP that nothing else needs: a call
    /// takes microseconds while the program is attached somewhere, 20 ms otherwise.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::NoInterface`], [`Error::Attach`].
    pub fn load(spare: &str) -> Result<Self, Error> {
        let mut ebpf = load()?;
        let keep = attach(&mut ebpf, "generate", spare)?;
        let traffic: Array<MapData, TrafficEntry> = typed(&mut ebpf, "traffic")?;
        let sent = traffic.get(&0, 0).map_err(|error| map_error("traffic", &error))?;
        let progress = typed(&mut ebpf, "progress")?;
        Ok(Self { _keep: keep, traffic, sent, progress, ebpf })
    }

    /// Says what is sent from here on.
    ///
    /// # Errors
    /// [`Error::Map`], [`Error::OutOfRange`].
    pub fn set_traffic(&mut self, traffic: &Traffic) -> Result<(), Error> {
        if traffic.source_bits > 24 {
            let value = traffic.source_bits.into();
            return Err(Error::OutOfRange { what: "source_bits", value, max: 24 });
        }
        let mut summed = traffic.frame;
        let octets = [summed[30], summed[31], summed[32], summed[33]];
        summed[30..34].fill(0);
        let word = |at: usize| u16::from_ne_bytes([summed[at], summed[at + 1]]);
        let sum = |from: usize, to: usize| -> u32 {
            (from..to).step_by(2).map(|at| u32::from(word(at))).sum()
        };
        let pseudo_header = sum(26, 34) + u32::from(u16::to_be(17 + 26));
        self.sent = TrafficEntry {
            flows: traffic.flows.unwrap_or(0),
            burst_interval_ns: 0,
            first_source: traffic.first_source.to_bits(),
            source_bits: traffic.source_bits,
            first_destination: u32::from_be_bytes(octets),
            destinations: traffic.destinations,
            ip_sum: sum(14, 34),
            udp_sum: pseudo_header + sum(34, FRAME_BYTES),
            frame: traffic.frame,
            padding: 0,
        };
        Ok(())
    }

    /// Sends `packets` packets out of the interface with this index, in bursts of [`BURST`], on
    /// the CPU of the calling thread, whose network namespace the interface is in. The kernel also
    /// does there what the frames' arrival causes. A burst begins every `interval`, or at once when
    /// the last one took longer. Returns how long it waited, in a loop on its CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel (5.18) cannot, [`Error::Map`].
    pub fn send(
        &mut self,
        ifindex: u32,
        packets: u32,
        interval: Duration,
    ) -> Result<Duration, Error> {
        self.sent.burst_interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        self.traffic.set(0, self.sent, 0).map_err(|error| map_error("traffic", &error))?;
        let before = self.waited_ns()?;
        self.run(ifindex, packets)?;
        Ok(Duration::from_nanos(self.waited_ns()?.saturating_sub(before)))
    }

    fn waited_ns(&self) -> Result<u64, Error> {
        let progress = self.progress.get(&0, 0).map_err(|error| map_error("progress", &error))?;
        Ok(progress.waited_ns)
    }

    fn run(&mut self, ifindex: u32, packets: u32) -> Result<(), Error> {
        let fd = program(&mut self.ebpf, "generate")?.fd().map_err(|error| refused(&error))?;
        let context = [0, cast_len(FRAME_BYTES), 0, ifindex, 0, 0u32];
        let frame = [0u8; FRAME_BYTES];
        let run = TestRun {
            prog_fd: fd.as_fd().as_raw_fd().cast_unsigned(),
            data_size_in: cast_len(FRAME_BYTES),
            data_in: frame.as_ptr().addr() as u64,
            repeat: packets,
            ctx_size_in: cast_len(size_of_val(&context)),
            ctx_in: context.as_ptr().addr() as u64,
            batch_size: BURST.min(packets.max(1)),
            ..TestRun::default()
        };
        // SAFETY: the frame and the context live through the call and have the sizes that are passed.
        let sent = unsafe { run.with_live_frames() };
        sent.map_err(|source| Error::Kernel { action: "send live XDP frames".into(), source })
    }
}

impl FrameCounter {
    /// Counts on `interface`, in native mode.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::NoInterface`], [`Error::Attach`], [`Error::Map`].
    pub fn attach(interface: &str, expected: &Expected) -> Result<Self, Error> {
        let mut ebpf = load()?;
        let mask = u32::MAX.checked_shl(32 - u32::from(expected.address_bits.min(32))).unwrap_or(0);
        let entry = ExpectedEntry {
            destination: (expected.destination.ip().to_bits() & mask).to_be(),
            mask: mask.to_be(),
            l4_port: expected.destination.port().to_be(),
            ttl: expected.ttl,
            padding: 0,
        };
        let mut wanted: Array<MapData, ExpectedEntry> = typed(&mut ebpf, "expected")?;
        wanted.set(0, entry, 0).map_err(|error| map_error("expected", &error))?;
        let link = attach(&mut ebpf, "count", interface)?;
        let counted = typed(&mut ebpf, "counted")?;
        Ok(Self { _link: link, counted, _ebpf: ebpf })
    }

    /// Frames so far.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counted(&self) -> Result<Counted, Error> {
        let values = self.counted.get(&0, 0).map_err(|error| map_error("counted", &error))?;
        Ok(values.iter().fold(Counted::default(), |sum, one| Counted {
            right: sum.right + one.right,
            wrong: sum.wrong + one.wrong,
        }))
    }
}

/// Sizes of structures here are below 2^32.
fn cast_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn load() -> Result<Ebpf, Error> {
    crate::umem::raise_memory_lock_limit();
    aya::EbpfLoader::new().load(OBJECT).map_err(|error| refused(&error))
}

fn refused(error: &(dyn std::error::Error + 'static)) -> Error {
    let errno = io_error(error).raw_os_error().unwrap_or(0);
    Error::Load { reason: error.to_string(), errno }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, Error> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| Error::Load { reason: format!("it has no program {name}"), errno: 0 })
}

fn attach(ebpf: &mut Ebpf, name: &str, interface: &str) -> Result<XdpLink, Error> {
    let ifindex = interface_index(interface)?;
    let program = program(ebpf, name)?;
    program.load().map_err(|error| refused(&error))?;
    let cannot = |source| Error::Attach { interface: interface.into(), mode: "native", source };
    let id = program
        .attach_to_if_index(ifindex, XdpMode::Driver)
        .map_err(|error| cannot(io_error(&error)))?;
    program.take_link(id).map_err(|error| cannot(io_error(&error)))
}
