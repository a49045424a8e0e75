//! What the control thread tells a worker, and what comes back.
//!
//! A worker looks into its mailbox between bursts and never waits for it. Whatever holds memory
//! travels back to the control thread to be freed there.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::address::Protocol;
use crate::capture::{CaptureFilter, CaptureRing};
use crate::counters::Level;
use crate::flow_key::FlowKey;
use crate::lb::ServiceId;
use crate::lpm::Prefix;
use crate::tables::Tables;

/// Commands that may wait for a worker.
pub const COMMANDS_MAX: usize = 64;
/// Objects that may wait to be freed by the control thread. When it is full (the control thread
/// is dead), the worker frees the root itself: slower for one burst, never lost.
pub const RETIRED_MAX: usize = 64;

/// One message to a worker.
#[derive(Debug)]
pub enum Command {
    /// Adopt these tables.
    Publish(Arc<Tables>),
    /// End the flows that match.
    Flush(FlushFilter),
    /// Copy matching packets into the ring.
    StartCapture(CaptureFilter, Arc<CaptureRing>),
    /// Stop copying.
    StopCapture,
}

/// Which flows to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlushFilter {
    /// Flows with an address inside; `None`: every flow.
    pub address: Option<Prefix>,
    /// Flows with this L4 port.
    pub l4_port: Option<u16>,
    /// Flows of this protocol.
    pub protocol: Option<Protocol>,
    /// Flows opened through this service.
    pub service: Option<ServiceId>,
    /// The address's pod is gone: TCP connections to it through a service stay until their clients
    /// speak next, and are reset then.
    pub is_pod_gone: bool,
}

impl FlushFilter {
    /// Flows with an address inside.
    #[must_use]
    pub fn of(address: Prefix) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    /// Flows of a pod that is gone and had this address.
    #[must_use]
    pub fn of_gone_pod(address: Prefix) -> Self {
        Self { is_pod_gone: true, ..Self::of(address) }
    }

    /// Whether a flow with these tuples is meant, which was opened through `service`. Every field
    /// that is given must match.
    #[must_use]
    pub fn matches(&self, original: &FlowKey, reply: &FlowKey, service: Option<ServiceId>) -> bool {
        let of_both = [original, reply];
        let has_address = |prefix: Prefix| {
            let mut ends = of_both.iter().flat_map(|key| [key.source(), key.destination()]);
            ends.any(|address| prefix.contains(address))
        };
        let has_port = |l4_port: u16| {
            let mut ends =
                of_both.iter().flat_map(|key| [key.source_port(), key.destination_port()]);
            ends.any(|own| own == l4_port)
        };
        self.protocol.is_none_or(|protocol| original.protocol() == protocol)
            && self.service.is_none_or(|wanted| service == Some(wanted))
            && self.l4_port.is_none_or(has_port)
            && self.address.is_none_or(has_address)
    }
}

/// Something the control thread should free.
#[derive(Debug)]
pub enum Retired {
    /// An old root.
    Tables(Arc<Tables>),
    /// A capture that ended.
    Capture(Arc<CaptureRing>),
}

/// Both ways between the control thread and one worker.
#[derive(Debug)]
pub struct Mailbox {
    /// To the worker.
    pub commands: ArrayQueue<Command>,
    /// From the worker.
    pub retired: ArrayQueue<Retired>,
    /// How full `commands` was at most.
    pub commands_level: Level,
    /// How full `retired` was at most.
    pub retired_level: Level,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            commands: ArrayQueue::new(COMMANDS_MAX),
            retired: ArrayQueue::new(RETIRED_MAX),
            commands_level: Level::default(),
            retired_level: Level::default(),
        }
    }
}

impl Mailbox {
    /// Sends `command`.
    ///
    /// # Errors
    /// Gives it back when the worker has not read the last [`COMMANDS_MAX`] ones: try again later.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.push(command)?;
        self.commands_level.note(self.commands.len() as u64);
        Ok(())
    }

    /// Hands `retired` back. For the worker. When nobody frees any more, it is freed here, once.
    pub fn retire(&self, retired: Retired) {
        drop(self.retired.push(retired));
        self.retired_level.note(self.retired.len() as u64);
    }

    /// Frees what the worker handed back. For the control thread.
    pub fn free_retired(&self) {
        while self.retired.pop().is_some() {}
    }
}
