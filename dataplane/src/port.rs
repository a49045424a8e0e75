//! Ports: the interfaces through which packets enter and leave.

use std::net::IpAddr;

use crate::address::MacAddr;
use crate::buffer::Buffer;

/// Index of a port in [`crate::tables::Tables::ports`]. Stable while the port exists; reused only
/// after every worker has seen it gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// What stands at the other end of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortKind {
    /// A local pod: it speaks from its own addresses only, so that they tell who it is.
    Pod,
    /// The outside: a NIC or a tunnel device of another plugin.
    Uplink,
    /// This node's own stack, behind a veth pair of ours.
    Host,
}

/// How far frames from this port can be trusted to carry finished L4 checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Checksums {
    /// The sender finishes them (a wire, or transmit offload off).
    Complete,
    /// A local stack may have left the pseudo-header sum for a device to finish.
    Unknown,
}

/// One interface of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Kernel name of the interface, for people.
    pub name: Box<str>,
    /// What stands at the other end.
    pub kind: PortKind,
    /// Our side's link address: the source of frames we transmit here.
    pub mac: MacAddr,
    /// Largest IP packet the link takes, in bytes.
    pub mtu: u16,
    /// Whether checksums of received frames are finished.
    pub checksums: Checksums,
    /// Addresses the endpoint may speak from (pods only; empty means none).
    pub addresses: Box<[IpAddr]>,
}

/// A worker's ports, as the pipeline's driver sees them: AF_XDP rings in a node, vectors in tests.
pub trait Ports {
    /// The packet memory that travels.
    type Buffer: Buffer;

    /// Receives up to a burst from the next source that has any; appends to `burst` at most its
    /// remaining capacity. Sources take turns.
    fn receive(&mut self, burst: &mut crate::worker::RxBurst<Self::Buffer>);

    /// Queues `buffer` on `port`'s transmit path.
    ///
    /// # Errors
    /// Gives the buffer back when the path is full or the port is gone.
    fn transmit(
        &mut self,
        port: PortId,
        buffer: Self::Buffer,
    ) -> Result<(), (crate::DropReason, Self::Buffer)>;

    /// Starts transmission of everything queued.
    fn flush(&mut self);

    /// Whether packets are about to be lost since they pile up where they come in, or packet memory
    /// runs short.
    fn is_pressed(&self) -> bool {
        false
    }

    /// Gives memory back.
    fn release(&mut self, buffer: Self::Buffer);
}
