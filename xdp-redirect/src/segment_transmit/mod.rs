//! Whole segments into ports whose other end is a local stack: by a packet socket, with a header that says how
//! they would be cut (`PACKET_VNET_HDR`, packet(7); VIRTIO 1.2, 5.1.6). The kernel makes one socket buffer of
//! each, of up to 64 KiB, which the receiver's stack takes as it is; nobody ever cuts it.
//!
//! **Order.** Whatever goes to such a port behind a whole segment of the same flush goes by the packet socket,
//! too; what was put on its AF_XDP ring before has left when the first one is gathered. Both ways end in the
//! same queue of the receiver: the host's end promises segmentation, so the kernel does not look at its GRO for
//! either (`veth_skb_is_eligible_for_gro`).

pub mod counters;
mod gather;
mod sender;

pub use counters::{SegmentCounters, SegmentStatistics};
pub(crate) use gather::Gather;
pub use sender::SegmentSender;
