//! Endpoints whose slices name pods that are not there. They go on being used, as kube-proxy uses them,
//! which asks for no pod; but somebody should know: a slice that was written by hand, or whose controller
//! is gone, leads to an address that is nobody's, or another's one day.
//!
//! Slices and pods are followed apart, so that one often comes a moment before the other; who tells of
//! what is absent waits until a second round has found it so ([`AbsentTargets::still`]).

use std::collections::BTreeMap;

use super::{Auditor, Moment};
use crate::model::{EndpointSlice, ObjectName};

/// Slices that one round names; more are counted.
pub const SLICES_NAMED_MAX: usize = 64;

/// What a round found of such endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AbsentTargets {
    /// By slice: the first pod that is not there, and how many others.
    pub slices: BTreeMap<ObjectName, (ObjectName, usize)>,
    /// How many slices more.
    pub left_out: usize,
}

impl AbsentTargets {
    /// What was found by the round before, too; of a slice, the pod that is named now.
    #[must_use]
    pub fn still(&self, before: &Self) -> Self {
        let known = self.slices.iter().filter(|(slice, _)| before.slices.contains_key(*slice));
        let slices = known.map(|(slice, of)| (slice.clone(), of.clone())).collect();
        Self { slices, left_out: self.left_out.min(before.left_out) }
    }
}

impl Auditor {
    /// Which pods a slice names in vain. As long as no pod at all was told of, as in a folder of manifests
    /// without any, none is missed.
    pub(super) fn check_targets(&mut self, moment: &Moment<'_>, slice: &EndpointSlice) {
        let pods = &moment.state.pods;
        if pods.is_empty() {
            return;
        }
        let named = slice.endpoints.iter().filter_map(|endpoint| endpoint.target.as_deref());
        let mut absent = named
            .map(|pod| ObjectName::new(slice.name.namespace.clone(), pod))
            .filter(|pod| !pods.contains_key(pod));
        let Some(first) = absent.next() else { return };
        let found = &mut self.round.absent_targets;
        if found.slices.len() < SLICES_NAMED_MAX {
            found.slices.insert(slice.name.clone(), (first, absent.count()));
        } else {
            found.left_out += 1;
        }
    }
}
