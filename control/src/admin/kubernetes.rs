//! How the API servers are followed, as a part of the node's status.

use serde::{Deserialize, Serialize};

use super::status::ObjectError;

/// How the API servers are followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesStatus {
    /// The server that answered last; absent before the first.
    pub server: Option<String>,
    /// All of them, in the order in which they are preferred.
    pub servers: Vec<ServerStatus>,
    /// What is followed, kind by kind.
    pub kinds: Vec<KindStatus>,
    /// Kinds that were not listed whole since the process began.
    pub unlisted: Vec<String>,
    /// What is on disk.
    pub snapshot: SnapshotStatus,
    /// Objects that are not in force as they are written, with the reason; the first
    /// [`super::status::ERRORS_MAX`] of them.
    pub refused: Vec<ObjectError>,
}

/// One server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// `https://10.0.0.1:6443`.
    pub server: String,
    /// Whether it is a relay.
    pub relay: bool,
    /// Whether it rests because it failed.
    pub resting: bool,
    /// Requests sent to it.
    pub requests: u64,
    /// Bytes of its answers.
    pub received_bytes: u64,
    /// Times it failed.
    pub failures: u64,
    /// Whether it is a relay of an earlier version, which leaves out some of what this one reads.
    pub of_earlier_version: bool,
    /// Why, the last time, until it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One kind of objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KindStatus {
    /// `Pod`.
    pub kind: String,
    /// Objects in force.
    pub objects: u64,
    /// Whether a list of this process is complete and what came after it is followed.
    pub in_step: bool,
    /// Whether no server has the kind.
    pub absent: bool,
    /// Lists that were complete, streamed ones among them.
    pub lists: u64,
    /// Of those, ones that came as a stream (`sendInitialEvents`).
    pub streamed_lists: u64,
    /// Of those, ones after the first.
    pub relists: u64,
    /// Watches begun.
    pub watches: u64,
    /// Events of watches: objects that came, changed or went.
    pub events: u64,
    /// Time of all lists and events together, from an object's bytes to its change on the way to the tables.
    pub apply_microseconds: u64,
    /// Time of the longest, a list as a whole.
    pub longest_apply_microseconds: u64,
    /// Failures, by reason.
    pub failures: Vec<(String, u64)>,
    /// Seconds since a server last said anything about it; absent before the first time.
    pub seconds_since_sign_of_life: Option<u64>,
    /// Losses of the last list that are held until a second one agrees.
    pub held: u64,
    /// Lists whose losses were held.
    pub holds: u64,
    /// Objects that are not in force as they are written now.
    pub refused: u64,
    /// Times an object was refused, or taken for less than it says.
    pub refusals: u64,
    /// The last failure, until a server answers again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ObjectError>,
}

/// What of the cluster is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotStatus {
    /// The file; absent when none is kept.
    pub file: Option<String>,
    /// Objects that the process began with.
    pub restored: u64,
    /// Why the one that was found was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_restored: Option<String>,
    /// Times it was written.
    pub writes: u64,
    /// Times it could not be.
    pub failures: u64,
    /// Time of all of those together.
    pub write_microseconds: u64,
    /// Time of the longest.
    pub longest_write_microseconds: u64,
    /// Bytes of the last one.
    pub bytes: u64,
    /// Seconds since it was written, or, until then, since the one that was found was.
    pub age_seconds: Option<u64>,
    /// Why it could not be written, until it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
