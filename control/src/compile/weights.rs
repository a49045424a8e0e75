//! Weights of backends that are pods: an annotation says how many flows one gets beside the others.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Compiled;
use super::claims::{Claim, Claims};
use super::warnings::{Source, Warning};
use crate::model::{Pod, SERVICE_WEIGHT, WEIGHT_DEFAULT};
use crate::store::ClusterState;

/// How many pods there are with a weight of their own: nearly always none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weights {
    weighted: usize,
}

impl Weights {
    /// The weight of a backend at `address`.
    pub(super) fn of(&self, address: IpAddr, claims: &Claims, state: &ClusterState) -> u16 {
        if self.weighted == 0 {
            return WEIGHT_DEFAULT;
        }
        let holder = claims.holder(address, &mut BTreeSet::new());
        let pod = holder.and_then(|name| state.pod(name));
        pod.map_or(WEIGHT_DEFAULT, weight_of)
    }
}

/// Whether it has one of its own, if only one that cannot be read.
pub(super) fn is_weighted(pod: &Pod) -> bool {
    pod.weight != Some(WEIGHT_DEFAULT)
}

fn weight_of(pod: &Pod) -> u16 {
    pod.weight.unwrap_or(WEIGHT_DEFAULT)
}

impl Compiled {
    /// A pod was `before` what it is no more: services that it serves are compiled again if it had a
    /// weight of its own, or has.
    pub(super) fn note_weight(&mut self, before: Option<&Pod>, after: Option<&Pod>) {
        let shares = |pod: Option<&Pod>| {
            pod.map(|pod| (weight_of(pod), Claim::of(pod).is_some(), pod.addresses.clone()))
        };
        let [was, is] = [before, after].map(|pod| pod.is_some_and(is_weighted));
        if !was && !is {
            return;
        }
        let Some(name) = after.or(before).map(|pod| &pod.name) else { return };
        self.weights.weighted += usize::from(is);
        self.weights.weighted -= usize::from(was);
        let mut told = BTreeSet::new();
        if after.is_some_and(|pod| pod.weight.is_none()) {
            let message = format!(
                "annotation {SERVICE_WEIGHT} is no number from 1 to 1000; it counts as \
                 {WEIGHT_DEFAULT}"
            );
            told.insert(Warning::new(format!("Pod {name}"), message));
        }
        if shares(before) != shares(after) {
            let addresses = [before, after].into_iter().flatten().flat_map(|pod| &*pod.addresses);
            let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
            // A look at every endpoint, which pods without a weight cost nobody.
            let slices = self.state.endpoint_slices.values().filter(|slice| {
                slice.endpoints.iter().any(|endpoint| addresses.contains(&endpoint.address))
            });
            let services = slices.filter_map(super::services::service_of);
            self.dirt.services.extend(services);
        }
        self.warnings.set(Source::Weight(name.clone()), told);
    }
}
