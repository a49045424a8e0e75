//! Failures that a node is asked to suffer, so that its operators see how it takes them.

use serde::{Deserialize, Serialize};

use super::AdminError;

/// Longest stall that may be asked for, in milliseconds: an hour.
const STALL_LONGEST_MS: u32 = 3_600_000;

/// What is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A worker panics.
    WorkerPanic {
        /// Its number.
        worker: u16,
    },
    /// A worker stands still, whatever it is told.
    WorkerStall {
        /// Its number.
        worker: u16,
        /// For how long, in milliseconds.
        ms: u32,
    },
    /// The control thread panics.
    ControlPanic,
    /// The control thread panics when the next endpoint to be added has come so far.
    AddPanic {
        /// How far.
        step: AddStep,
    },
    /// The control thread stands still.
    ControlStall {
        /// For how long, in milliseconds.
        ms: u32,
    },
    /// Packets leave ports by another way and by their own in turn.
    WayChanges {
        /// How long each, in milliseconds.
        every_ms: u32,
        /// For how long in all, in milliseconds.
        ms: u32,
    },
}

/// Steps of adding an endpoint in which the control thread has something of it in its hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddStep {
    /// Its interface was looked at.
    Looked,
    /// Its sockets are bound.
    Bound,
    /// The program is attached to its interface.
    Attached,
    /// It is an endpoint, and tables are to be made.
    Published,
}

impl Fault {
    pub(super) fn validate(&self) -> Result<(), AdminError> {
        match self {
            Self::WorkerStall { ms, .. }
            | Self::ControlStall { ms }
            | Self::WayChanges { ms, .. }
                if !(1..=STALL_LONGEST_MS).contains(ms) =>
            {
                let detail = format!("choose 1 to {STALL_LONGEST_MS} milliseconds");
                Err(AdminError::invalid("ms", detail))
            }
            Self::WayChanges { every_ms: 0, .. } => {
                Err(AdminError::invalid("every_ms", "choose 1 millisecond and more"))
            }
            _ => Ok(()),
        }
    }
}
