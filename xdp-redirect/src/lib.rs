//! AF_XDP sockets, packet memory and the XDP program that feeds them: the only crate that touches
//! any of the three.
//!
//! Reading order: `redirect.bpf.c` decides per frame whether it is ours; [`loader`] puts it on
//! interfaces and [`pins`] keeps it there, [`rules`] tells it what is ours, [`heartbeat`] which workers live, [`counters`]
//! what it did. [`umem`] is a region of packet memory, [`regions`] are all of
//! them, [`frame`] is one packet in one, [`pool`] a worker's share of free memory. [`ring`] speaks to the kernel, [`socket`] is one (interface, queue), and
//! [`ports`] is all of a worker's sockets, as the dataplane's driver wants them; [`ready`] tells it
//! which of hundreds to look at, [`hand_over`] is how sockets and memory outlive a process, and [`live_transmit`] is a second way out, for many packets at once,
//! [`segment_transmit`] a third one, for whole segments of TCP.
//! [`forward`] forwards between two ports with nothing in between: the bare speed of the rest.
//! [`live_frames`] makes and counts packets for measurements, and [`loaded`] looks for what was left.
//!
//! Kernels from 6.1 on work; frames above one page (jumbo) need 6.6.

mod anchor;
mod attachment;
mod bind;
mod bpf_link;
mod cast;
pub mod counters;
mod depot;
pub mod error;
pub mod ethtool;
pub mod forward;
pub mod frame;
pub mod hand_over;
pub mod heartbeat;
pub mod leftover;
pub mod limits;
pub mod live_frames;
pub mod live_transmit;
pub mod loaded;
pub mod loader;
mod mapping;
mod netlink;
mod open;
pub mod pins;
pub mod pool;
mod pools;
pub mod ports;
pub mod ready;
pub mod regions;
pub mod ring;
mod ring_map;
mod rings;
pub mod rules;
pub mod segment_transmit;
pub mod socket;
pub mod statistics;
mod test_run;
mod transfer;
mod turns;
pub mod umem;
mod umem_config;

pub use error::Error;
pub use frame::Frame;
pub use live_transmit::LiveTransmit;
pub use loader::Redirect;
pub use ports::WorkerPorts;
pub use regions::Regions;
pub use segment_transmit::SegmentSender;
pub use socket::Socket;
pub use umem::Umem;
