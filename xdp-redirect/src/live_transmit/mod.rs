//! The second way out of a port: batches of live XDP frames.
//!
//! Copy-mode AF_XDP makes a socket buffer for every packet it sends into a veth, and that is most of
//! what forwarding costs. `BPF_PROG_TEST_RUN` with live frames makes XDP frames instead, many in one
//! call: `live_transmit.bpf.c` takes the packets out of a mapped array and redirects them.
//!
//! Reading order: this file loads the program and says which port is which interface (control side),
//! [`sender`] is a worker's batch, [`gather`] decides what goes by it, [`counters`] says what became
//! of it, [`delivery`] whether it arrives.
//!
//! Kernels since 5.18 can; a call needs no capability, only the program.

mod counters;
pub mod delivery;
mod gather;
mod sender;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::xdp::DevMap;
use aya::maps::{Map, MapData};
use aya::programs::Xdp;
use aya::programs::xdp::{XdpLink, XdpMode};
use dataplane::port::PortId;

use crate::cast::index;
use crate::error::{Error, io_error};
use crate::limits::{LIVE_BATCH, WORKERS_MAX};
use crate::loader::interface_index;
use crate::mapping::Mapping;
use crate::rules::typed;

pub use counters::{LiveCounters, LiveStatistics};
use delivery::{Delivery, delivery};
pub(crate) use gather::Gather;
pub use sender::LiveSender;
use sender::{PACKET_BYTES, PROGRESS_BYTES};

static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/live_transmit.bpf.o"));
/// It begins as all of ours do, so that it is known when it is left over.
const PROGRAM: &str = "xskiff_live";
/// Workers there can be: one place is the control side's own, for trials.
pub const SENDERS_MAX: u32 = WORKERS_MAX - 1;
/// Frames of a trial.
const TRIAL_FRAMES: u32 = 3;
/// Its frames' type: for local experiments (IEEE 802), which no stack takes.
const TRIAL_ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

/// What became of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The peer takes live frames.
    Arrives,
    /// They are lost without a word: the peer has neither an XDP program nor GRO, or is down.
    Vanishes,
    /// The peer's ring is full, now.
    Refused,
    /// The interface does not say: it is no veth.
    Unknown,
}

/// What takes live frames at the other end of a port: it decides how many are worth a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LivePeer {
    /// An XDP program: 32.
    Program,
    /// A stack with GRO, which has more to do for each: 64.
    Stack,
}

/// The program and its maps, shared by all workers. Senders keep the maps.
pub struct LiveTransmit {
    // Dropped in order: the program leaves the device before that goes.
    _keep: XdpLink,
    _device: OwnedFd,
    devices: DevMap<MapData>,
    packets: Arc<Mapping>,
    progress: Arc<Mapping>,
    program: Arc<OwnedFd>,
    workers: u32,
    _ebpf: Ebpf,
}

impl LiveTransmit {
    /// Loads the program for so many workers, and keeps it in the kernel's dispatcher of XDP
    /// programs by attaching it to a device of its own through which nothing comes: going there
    /// and away would take 20 ms in each call.
    ///
    /// # Errors
    /// [`Error::Load`] without privileges or on a kernel before 5.18, [`Error::Kernel`] without
    /// `/dev/net/tun`, [`Error::Attach`], [`Error::Map`], [`Error::OutOfRange`].
    pub fn load(workers: u32) -> Result<Self, Error> {
        if workers > SENDERS_MAX {
            let value = workers.into();
            return Err(Error::OutOfRange { what: "workers", value, max: SENDERS_MAX.into() });
        }
        crate::umem::raise_memory_lock_limit();
        let (device, name) = crate::anchor::make_tap_named(b"xskiff-live%d").map_err(|source| {
            Error::Kernel { action: "make a device for live frames (/dev/net/tun)".into(), source }
        })?;
        let refuse = |error: &(dyn std::error::Error + 'static)| Error::Load {
            reason: error.to_string(),
            errno: io_error(error).raw_os_error().unwrap_or(0),
        };
        let mut ebpf = aya::EbpfLoader::new()
            .map_max_entries("packets", (workers + 1) * LIVE_BATCH)
            .load(OBJECT)
            .map_err(|error| refuse(&error))?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| Error::Load { reason: "it has no program".into(), errno: 0 })?;
        program.load().map_err(|error| refuse(&error))?;
        let fd = program.fd().map_err(|error| refuse(&error))?.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| refuse(&error))?;
        let cannot =
            |source| Error::Attach { interface: name.clone().into(), mode: "native", source };
        let id = program
            .attach_to_if_index(interface_index(&name)?, XdpMode::Driver)
            .map_err(|error| cannot(io_error(&error)))?;
        let keep = program.take_link(id).map_err(|error| cannot(io_error(&error)))?;
        let packets = map(&mut ebpf, "packets", index((workers + 1) * LIVE_BATCH) * PACKET_BYTES)?;
        let progress = map(&mut ebpf, "progress", index(WORKERS_MAX) * PROGRESS_BYTES)?;
        let devices = typed(&mut ebpf, "devices")?;
        Ok(Self {
            _keep: keep,
            _device: device,
            devices,
            packets,
            progress,
            program: Arc::new(fd),
            workers,
            _ebpf: ebpf,
        })
    }

    /// The batch of worker `worker`, for [`crate::WorkerPorts::with_live_transmit`]. One at a time:
    /// two of one worker would write over each other's packets.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a worker it was not loaded for.
    pub fn sender(&self, worker: u32) -> Result<LiveSender, Error> {
        if worker >= self.workers {
            let max = u64::from(self.workers).saturating_sub(1);
            return Err(Error::OutOfRange { what: "worker", value: worker.into(), max });
        }
        Ok(self.make_sender(worker))
    }

    fn make_sender(&self, worker: u32) -> LiveSender {
        let (packets, progress) = (Arc::clone(&self.packets), Arc::clone(&self.progress));
        LiveSender::new(worker, packets, progress, Arc::clone(&self.program))
    }

    /// Says which interface packets of `port` leave by. To be done before a worker is told to send
    /// them this way.
    ///
    /// # Errors
    /// [`Error::Map`], such as ENODEV when there is no such interface.
    pub fn set_port(&mut self, port: PortId, ifindex: u32) -> Result<(), Error> {
        self.set_device(port, ifindex)
    }

    /// Sends a few frames to the peer of `interface`, which is that of `port`, and looks whether it
    /// takes them. They are of a type that no stack knows, to an address that nobody has. Nobody may
    /// send live frames there meanwhile.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses the call or does not tell.
    pub fn try_port(&mut self, port: PortId, interface: &str) -> Result<Trial, Error> {
        let mut frame = [0; 60];
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&TRIAL_ETHER_TYPE);
        let Some(before) = delivery(interface)? else { return Ok(Trial::Unknown) };
        let mut sender = self.make_sender(self.workers);
        sender.begin();
        for _ in 0..TRIAL_FRAMES {
            sender.put(port, &frame);
        }
        if let (_, Some(source)) = sender.send() {
            return Err(Error::Kernel { action: "send live XDP frames".into(), source });
        }
        let Some(after) = delivery(interface)? else { return Ok(Trial::Unknown) };
        let Delivery { taken, refused } = after.since(&before);
        Ok(match (taken >= TRIAL_FRAMES.into(), refused) {
            (true, _) => Trial::Arrives,
            (false, 0) => Trial::Vanishes,
            (false, _) => Trial::Refused,
        })
    }

    /// Forgets the interface of `port`: what is still sent there this way is given back to the worker.
    ///
    /// # Errors
    /// [`Error::Map`]; that a port has none is no error.
    pub fn clear_port(&mut self, port: PortId) -> Result<(), Error> {
        self.set_device(port, 0)
    }

    /// The kernel takes an interface of 0 for none (`__dev_map_update_elem`).
    fn set_device(&mut self, port: PortId, ifindex: u32) -> Result<(), Error> {
        let set = self.devices.set(port.0.into(), ifindex, None, 0);
        set.map_err(|error| Error::Map { map: "devices", source: io_error(&error) })
    }
}

fn map(ebpf: &mut Ebpf, name: &'static str, bytes: usize) -> Result<Arc<Mapping>, Error> {
    match ebpf.take_map(name) {
        Some(Map::Array(map)) => Mapping::new(map.fd().as_fd().as_raw_fd(), 0, bytes)
            .map(Arc::new)
            .map_err(|source| Error::Map { map: name, source }),
        _ => Err(Error::Load { reason: format!("it has no map {name}"), errno: 0 }),
    }
}
