//! What is kept of flows beside what forwarding needs.

use serde::{Deserialize, Serialize};

/// What becomes of TCP segments outside of their connection's windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpWindows {
    /// Nobody looks.
    #[default]
    Off,
    /// Resets are dropped, others pass and are counted.
    Relaxed,
    /// They are dropped.
    Strict,
}

/// What is kept of flows beside what forwarding needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conntrack {
    /// Whether each flow has a second line of 64 bytes: for its bytes in each direction, TCP windows
    /// and SCTP verification tags.
    pub details: bool,
    /// What becomes of TCP segments outside of their windows. Other than `off` it needs `details`.
    pub tcp_windows: TcpWindows,
}
