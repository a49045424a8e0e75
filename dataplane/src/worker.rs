//! Drives the pipeline over ports (being written).

use arrayvec::ArrayVec;

use crate::port::PortId;

/// Packets a worker handles at once.
pub const BURST: usize = 32;

/// A received packet and where it came in.
#[derive(Debug)]
pub struct Received<B> {
    /// The port it entered by.
    pub port: PortId,
    /// The packet.
    pub buffer: B,
}

/// What one receive call delivers.
pub type RxBurst<B> = ArrayVec<Received<B>, BURST>;
