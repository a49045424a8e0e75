//! Where packets lie.

use serde::{Deserialize, Serialize};

use super::Bind;

/// Packet memory (UMEM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PacketMemory {
    /// Number of frames of uplinks and the host port; 0: twice what these keep with the kernel, from
    /// 4,096 to 16,384. The kernel keeps 128 bytes per frame for each of their sockets beside.
    pub frames: u32,
    /// Number of frames of all pods at most: memory is taken in regions as pods come, and given back
    /// as they go.
    pub pod_frames: u32,
    /// Bytes per frame: 2048 or 4096.
    pub frame_bytes: u32,
    /// Copy or zero-copy.
    pub bind: Bind,
    /// Take packets of several frames (MTU above 1,792); kernel 6.6 or later.
    pub jumbo: bool,
    /// Use huge pages when there are enough.
    pub huge_pages: bool,
}

impl Default for PacketMemory {
    fn default() -> Self {
        Self {
            frames: 0,
            pod_frames: 65_536,
            frame_bytes: 2048,
            bind: Bind::Auto,
            jumbo: true,
            huge_pages: true,
        }
    }
}
