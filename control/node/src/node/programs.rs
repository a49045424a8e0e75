//! The XDP program: loaded, kept attached beyond this process, and taken over from the one before.

use caps::Capability;
use xdp_redirect::loader::TakeOver;
use xdp_redirect::pins::Pins;
use xdp_redirect::{Error, LiveTransmit, Redirect};

use super::{Node, NodeError, Reconcile, Settings};
use crate::live_ways::LiveWays;
use crate::privileges;

/// What failures are told of.
const OBJECT: &str = "XDP programs";

/// Loads the program, and says why it would end with this process, if it would.
pub(super) fn load(settings: &Settings) -> Result<(Redirect, Option<Error>), NodeError> {
    let mut redirect = Redirect::load(settings.umem.multi_buffer)?;
    redirect.set_stall_after(settings.stall_after)?;
    // For mounting it, where nobody has.
    let open = || Pins::open(&settings.bpf_filesystem);
    Ok(match privileges::with(Capability::CAP_SYS_ADMIN, open) {
        Ok(pins) => (redirect.with_pins(pins), None),
        Err(error) => (redirect, Some(error)),
    })
}

/// Loads the program of the second way out, whatever is configured: that can change while capabilities
/// are gone. A kernel that refuses leaves AF_XDP.
pub(super) fn load_live(settings: &Settings) -> LiveWays {
    let workers = u32::try_from(settings.workers.cores.len()).unwrap_or(u32::MAX);
    let loaded = LiveTransmit::load(workers).map_err(|error| error.to_string());
    if let Err(reason) = &loaded {
        tracing::warn!(reason, "live XDP frames cannot be sent: packets leave by AF_XDP");
    }
    LiveWays::new(loaded)
}

impl Node {
    pub(super) fn note_unpinned(&mut self, why: Option<Error>) {
        if let Some(error) = why {
            self.failed(Reconcile::XdpMaps, OBJECT, error);
        }
    }

    /// Puts our program in the place of those that a process before has left; by now it knows what is
    /// ours. Those on interfaces of endpoints that are still awaited wait with them, and all others as long
    /// as it is not known whose they are.
    pub(super) fn take_over_programs(&mut self) {
        let (awaited, is_any_unread) = (&self.awaited, self.unread.is_any);
        let is_spared = |ifindex: u32| {
            is_any_unread || awaited.iter().any(|recorded| recorded.ifindex == ifindex)
        };
        let TakeOver { interfaces, failures } = self.ports.redirect().take_over(is_spared);
        if interfaces > 0 {
            tracing::info!(interfaces, "XDP programs taken over");
        }
        if std::mem::replace(&mut self.programs_left, failures.len()) > 0 && failures.is_empty() {
            self.errors.clear(OBJECT);
        }
        for error in failures {
            self.failed(Reconcile::XdpMaps, OBJECT, error);
        }
    }

    /// Tries again where that failed: meanwhile the old program drops, or none runs.
    pub(super) fn retry_programs(&mut self) {
        if self.programs_left > 0 {
            self.take_over_programs();
        }
    }
}
