//! Whether this process may do what a node process does, asked before anything is touched: the
//! kernel's own refusals come late and name no capability.

use super::NodeError;
use crate::privileges;

/// Refuses when a capability is missing without which nothing works; tells what else is.
///
/// # Errors
/// [`NodeError::NotRoot`], [`NodeError::Capability`].
pub(super) fn check() -> Result<(), NodeError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NodeError::NotRoot);
    }
    match privileges::missing() {
        Ok(Some(needed)) => {
            let name = needed.capability.to_string();
            Err(NodeError::Capability { name, why: needed.why })
        }
        Ok(None) => Ok(()),
        // A kernel that says it otherwise refuses by itself what it does not allow.
        Err(error) => {
            tracing::warn!(%error, "capabilities are not known");
            Ok(())
        }
    }
}
