//! How packets leave by the interfaces of pods and others.

use serde::{Deserialize, Serialize};

/// How packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transmit {
    /// By AF_XDP alone.
    #[default]
    AfXdp,
    /// As live XDP frames when a worker has 32 and more at once, by AF_XDP otherwise, on veths of one
    /// receive queue whose other end was seen to take them.
    Auto,
    /// The same on veths of any number of queues. Where the other end has several, packets of a flow
    /// may overtake each other when they change their way.
    LiveFrames,
}
