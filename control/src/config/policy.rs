//! What policy does beside its rules.

use serde::{Deserialize, Serialize};

/// What policy does beside its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Seconds after a start without flows in which a TCP segment in mid-stream that policy denies
    /// passes as the reply of a lost connection, if the opposite direction may open one; 0: never.
    pub lost_replies_seconds: u32,
    /// What a local endpoint may whose Pod object is not known.
    pub unknown_pods: UnknownPods,
}

impl Default for Policy {
    fn default() -> Self {
        Self { lost_replies_seconds: 300, unknown_pods: UnknownPods::default() }
    }
}

/// What a local endpoint may open, and what may be opened to it, while no Pod object of its name is
/// known, so that no label of it is. Its own node reaches it in any case, and flows that stand go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownPods {
    /// What every pod of its namespace may: all policies there isolate it, and of their rules those
    /// count that are for every pod of it. Never more than policy allows in the end.
    #[default]
    ByNamespace,
    /// Nothing.
    Deny,
    /// Everything.
    Allow,
}

impl UnknownPods {
    /// For people: what is in force of an endpoint whose pod is not known.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Self::ByNamespace => {
                "until it has, it may what policies of its namespace allow every pod of it"
            }
            Self::Deny => "until it has, it may nothing (policy.unknown_pods: deny)",
            Self::Allow => "until it has, it may everything (policy.unknown_pods: allow)",
        }
    }
}
