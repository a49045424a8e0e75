//! Metrics of the CNI plugin's pods, and of its place in the container runtime's configuration.

use control::admin::Status;

use super::Family;
use super::families::{counter, gauge, one};

pub(super) fn families(status: &Status) -> Vec<Family> {
    let cni = &status.cni;
    let mut families = vec![
        counter(
            "xskiff_cni_endpoints_adopted",
            "Pods that were added while no node process was there, and are served since",
            one(cni.adopted),
        ),
        counter(
            "xskiff_cni_endpoints_outlived",
            "Pods' ports that ended because a newer one took their place",
            one(cni.outlived),
        ),
        counter(
            "xskiff_cni_endpoints_collected",
            "Pods' ports that the container runtime did not know any more",
            one(cni.collected),
        ),
    ];
    let Some(chain) = &cni.chain else { return families };
    families.extend([
        gauge(
            "xskiff_cni_chained",
            "1 while the plugin is in the container runtime's chain and nothing is wrong with it",
            one(u64::from(chain.chained && chain.error.is_none())),
        ),
        counter(
            "xskiff_cni_chain_writes",
            "Times that the plugin was put into the chain",
            one(chain.writes),
        ),
        counter(
            "xskiff_cni_rechains",
            "Of those, times that it had been there before",
            one(chain.rechains),
        ),
        counter(
            "xskiff_cni_chain_failures",
            "Times that it could not be put there",
            one(chain.failures),
        ),
    ]);
    families
}
