//! Who claims an address: pods by their status, the node's own endpoints, and nodes. The greatest
//! claim wins, and of equal ones the first by name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::lpm::Prefix;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use super::warnings::Warning;
use crate::model::{ObjectName, Pod};

/// A pod's claim to an address; the greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// Its pod is ending, so the address may be another's already.
    Ending,
    /// A live pod's status says so.
    Live,
    /// It is a local endpoint's.
    Endpoint,
}

impl Claim {
    /// What a pod claims its addresses by; `None` when they are not its own.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        match pod {
            pod if pod.host_network || pod.is_completed() => None,
            pod if pod.terminating => Some(Self::Ending),
            _ => Some(Self::Live),
        }
    }
}

/// Claimants of one address: pods by name, then endpoints by name. Nearly always there is one.
#[derive(Debug, Clone)]
enum Claimants {
    One(ObjectName, Claim),
    Many(Box<[(ObjectName, Claim)]>),
}

impl Claimants {
    fn all(&self) -> impl Iterator<Item = (&ObjectName, Claim)> {
        let (one, many) = match self {
            Self::One(name, claim) => (Some((name, *claim)), &[][..]),
            Self::Many(many) => (None, &**many),
        };
        one.into_iter().chain(many.iter().map(|(name, claim)| (name, *claim)))
    }

    fn of(mut all: Vec<(ObjectName, Claim)>) -> Option<Self> {
        match (all.len(), all.pop()) {
            (1, Some((name, claim))) => Some(Self::One(name, claim)),
            (_, Some(last)) => {
                all.push(last);
                Some(Self::Many(all.into()))
            }
            (_, None) => None,
        }
    }
}

/// Every claim of pods and endpoints, by address.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    by_address: HashMap<IpAddr, Claimants>,
    /// Those with more than one claim: in a large cluster few, where looking for any takes long.
    contested: HashSet<IpAddr>,
}

impl Claims {
    pub(super) fn add(&mut self, address: IpAddr, name: &ObjectName, claim: Claim) {
        let known = match self.by_address.entry(address) {
            Entry::Vacant(entry) => {
                entry.insert(Claimants::One(name.clone(), claim));
                return;
            }
            Entry::Occupied(known) => known.into_mut(),
        };
        let mut all: Vec<_> = known.all().map(|(name, claim)| (name.clone(), claim)).collect();
        all.push((name.clone(), claim));
        all.sort_by(|one, other| order(one).cmp(&order(other)));
        all.dedup();
        self.put(address, all);
    }

    pub(super) fn remove(&mut self, address: IpAddr, name: &ObjectName, claim: Claim) {
        let Some(known) = self.by_address.get(&address) else { return };
        let others = known.all().filter(|(own, of)| *own != name || *of != claim);
        let others = others.map(|(name, claim)| (name.clone(), claim)).collect();
        self.put(address, others);
    }

    /// Adds the claims of a pod to its addresses, if they are its own.
    pub(super) fn add_pod(&mut self, pod: &Pod) {
        let Some(claim) = Claim::of(pod) else { return };
        pod.addresses.iter().for_each(|address| self.add(*address, &pod.name, claim));
    }

    /// Takes them away again.
    pub(super) fn remove_pod(&mut self, pod: &Pod) {
        let Some(claim) = Claim::of(pod) else { return };
        pod.addresses.iter().for_each(|address| self.remove(*address, &pod.name, claim));
    }

    fn put(&mut self, address: IpAddr, all: Vec<(ObjectName, Claim)>) {
        if all.len() > 1 {
            self.contested.insert(address);
        } else {
            self.contested.remove(&address);
        }
        match Claimants::of(all) {
            Some(claimants) => self.by_address.insert(address, claimants),
            None => self.by_address.remove(&address),
        };
    }

    /// Who has `address`, and what those are warned about who do not get it.
    pub(super) fn holder(
        &self,
        address: IpAddr,
        warnings: &mut BTreeSet<Warning>,
    ) -> Option<&ObjectName> {
        let mut claims = self.by_address.get(&address)?.all();
        let (mut holder, mut held) = claims.next()?;
        for (name, claim) in claims {
            if holder != name && held == claim {
                let message = format!("claims {address}, which {holder} has; {holder} keeps it");
                warnings.insert(Warning::new(format!("Pod {name}"), message));
            }
            if held < claim {
                (holder, held) = (name, claim);
            }
        }
        Some(holder)
    }

    /// Whether a local endpoint has `address`.
    pub(super) fn is_endpoints(&self, address: IpAddr) -> bool {
        let mut claims = self.by_address.get(&address).into_iter().flat_map(Claimants::all);
        claims.any(|(_, claim)| claim == Claim::Endpoint)
    }

    /// Whether `address` is claimed more than once: where it is not, whoever claims it has it.
    pub(super) fn is_contested(&self, address: IpAddr) -> bool {
        self.contested.contains(&address)
    }

    /// Addresses that somebody claims, in no particular order.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// Whether `addresses`, which ascend, have all of them.
    pub(super) fn are_all_in(&self, addresses: &[IpAddr]) -> bool {
        addresses.len() >= self.by_address.len()
            && self.by_address.keys().all(|address| addresses.binary_search(address).is_ok())
    }

    /// Those within `range`, in no particular order.
    pub(super) fn within(&self, range: Prefix) -> impl Iterator<Item = IpAddr> {
        self.addresses().filter(move |address| range.contains(*address))
    }
}

fn order((name, claim): &(ObjectName, Claim)) -> (bool, &ObjectName, Claim) {
    (*claim == Claim::Endpoint, name, *claim)
}

/// Which nodes have an address.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeAddresses {
    by_address: HashMap<IpAddr, BTreeSet<String>>,
}

impl NodeAddresses {
    pub(super) fn add(&mut self, address: IpAddr, node: &str) {
        self.by_address.entry(address).or_default().insert(node.to_owned());
    }

    pub(super) fn remove(&mut self, address: IpAddr, node: &str) {
        if let Some(nodes) = self.by_address.get_mut(&address) {
            nodes.remove(node);
            if nodes.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// The node that has `address`: of several, the last by name.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&str> {
        self.by_address.get(&address)?.last().map(String::as_str)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }
}
