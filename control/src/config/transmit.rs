//! How packets leave by the interfaces of pods and others.

use serde::{Deserialize, Serialize};

/// How packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transmit {
    /// By AF_XDP alone.
    AfXdp,
    /// As live XDP frames when a worker has many at once (32, or 64 where the other end is a stack and no
    /// XDP program), by AF_XDP otherwise, on veths of one receive queue whose other end was seen to take
    /// them.
    #[default]
    Auto,
    /// The same on veths of any number of queues. Where the other end has several, packets of a flow
    /// may overtake each other when they change their way.
    LiveFrames,
}

/// What becomes of TCP segments that are longer than their link takes, as a pod's stack makes them for an
/// interface that cuts them (TSO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Segments {
    /// Pods cut them: the offload is turned off at their end.
    #[default]
    Cut,
    /// They are taken whole, and given whole to pods and the host: the XDP program runs in generic mode
    /// there, which leaves the offload on.
    Whole,
}
