//! Who addresses are: the table's answers beside the objects'.

use std::net::IpAddr;

use dataplane::identity::{Holder, PodTag};

use super::objects::{self, Owner};
use super::{Audited, Auditor, Moment};
use crate::model::{Pod, WEIGHT_DEFAULT};

impl Auditor {
    /// A pod's addresses. Most have no other claimant, so the pod's own claim is tried first.
    pub(super) fn check_pod(&mut self, moment: &Moment<'_>, pod: &Pod) {
        if !objects::claims(pod) {
            return;
        }
        let weight = objects::weight(pod);
        for address in &pod.addresses {
            if weight != WEIGHT_DEFAULT {
                self.weights.insert(*address, weight);
            }
            let own = Owner::Pod(&pod.name, Some(pod));
            let expected = self.selectors.name(moment, own, *address);
            if self.found_at(moment, *address) == (expected, objects::tag(own)) {
                self.met(moment, *address, own);
            } else {
                self.check_address(moment, *address);
            }
        }
    }

    /// An address, with a look at everything that may claim it.
    pub(super) fn check_address(&mut self, moment: &Moment<'_>, address: IpAddr) {
        let owner = objects::owner(moment, &self.index, address);
        let (found, tag) = self.found_at(moment, address);
        let expected = self.selectors.name(moment, owner, address);
        if found != expected {
            let detail = format!("{address} should be {expected}; it is {found}");
            self.round.note(Audited::Identities, title(owner, address), detail);
            return;
        }
        let wanted = objects::tag(owner);
        if tag != wanted {
            let detail =
                format!("{address} should bear {wanted:?} of its pod's UID; it bears {tag:?}");
            self.round.note(Audited::Identities, title(owner, address), detail);
            return;
        }
        self.met(moment, address, owner);
    }

    /// An address that the table knows by itself: somebody must have it.
    pub(super) fn check_stray(&mut self, moment: &Moment<'_>, address: IpAddr) {
        // Most are pods', and for the others all local endpoints are gone through.
        let is_pods = self.index.pods(moment.state, address).next().is_some();
        if !is_pods && matches!(objects::owner(moment, &self.index, address), Owner::World) {
            let (found, _) = self.found_at(moment, address);
            let detail = format!("nobody has {address} any more; it is {found}");
            self.round.note(Audited::Identities, format!("address {address}"), detail);
        }
    }

    /// Who has `address` by the table, and which pod that is.
    fn found_at(&mut self, moment: &Moment<'_>, address: IpAddr) -> (String, PodTag) {
        self.round.checked += 1;
        let Holder { identity, pod } = moment.tables.identities.holder(address);
        (moment.compiled.identity_name(identity), pod)
    }

    fn met(&mut self, moment: &Moment<'_>, address: IpAddr, owner: Owner<'_>) {
        let identity = moment.tables.identities.lookup(address);
        let key = (identity, address.is_ipv4());
        self.peers.entry(key).or_insert_with(|| (address, owner.into()));
        if let Owner::Pod(name, pod) = owner
            && objects::is_here(moment, name, pod)
        {
            self.subjects.entry(key).or_insert_with(|| (address, owner.into()));
        }
    }
}

fn title(owner: Owner<'_>, address: IpAddr) -> String {
    match owner {
        Owner::Pod(name, _) => format!("Pod {name}"),
        Owner::Host | Owner::RemoteNode | Owner::World => format!("address {address}"),
    }
}
