//! How services' packets come back from backends on other nodes.

use serde::{Deserialize, Serialize};

/// How clients from outside reach backends on other nodes, and are answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadBalancing {
    /// For Services whose annotation `xskiff.io/forwarding-mode` says nothing. The same on every node.
    pub mode: ForwardingMode,
    /// How packets of direct server return reach the backend's node. The same on every node.
    pub dispatch: Dispatch,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardingMode {
    /// The node that was addressed: it translates the client's address, so that replies come back.
    #[default]
    Snat,
    /// The backend's node: it knows the client's address (direct server return).
    Dsr,
}

/// What tells the backend's node which frontend was addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dispatch {
    /// An IPv4 option, or an IPv6 destination option, of each packet.
    #[default]
    Option,
    /// The client's packet itself, in an IP packet to the backend (RFC 2003, RFC 2473).
    Ipip,
    /// The client's packet itself, in a Geneve packet to the backend's node (RFC 8926).
    Geneve,
}
