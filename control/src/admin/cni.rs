//! How pods fare that a container runtime attached by the CNI plugin, and the plugin's place in the
//! runtime's configuration.

use serde::{Deserialize, Serialize};

/// How the CNI plugin and its endpoints fared since the process began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniStatus {
    /// Endpoints that had been admitted while no node process was there, and were adopted.
    pub adopted: u64,
    /// Endpoints that ended because a newer one of the same pod, or one in their place, was added.
    pub outlived: u64,
    /// Endpoints that the runtime did not know any more (GC).
    pub collected: u64,
    /// The plugin's place in the runtime's configuration; absent when it is not looked after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainStatus>,
}

/// The plugin's place in the network configuration that the container runtime uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChainStatus {
    /// The directory that is looked at.
    pub directory: String,
    /// The file that the runtime uses: the first one; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Whether the plugin is in its chain.
    pub chained: bool,
    /// Times it was put there.
    pub writes: u64,
    /// Of those, times that it had been there before: something had rewritten the file.
    pub rechains: u64,
    /// Looks that ended in an error.
    pub failures: u64,
    /// Plugins of the chain whose work the packets of pods go past.
    pub cautions: Vec<String>,
    /// Why it cannot be put there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
