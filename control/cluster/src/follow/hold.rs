//! Losses that are not believed at once.
//!
//! An API server that was restored from an old copy, or answers before it has read its store, lists
//! a part of what there is. Taking that for the truth would cut off everybody else. So what a list
//! has lost stays in force until a second list, taken a while later, has lost it as well; unless
//! somebody else claims its address meanwhile, which then is his.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::model::{EndpointSlice, Object, Pod};

use super::known::Key;

/// Losses that are always believed: fewer than these.
pub(super) const HELD_MIN: usize = 10;
/// Addresses that pods have gained lately, at most; the oldest are forgotten first.
const GAINED_MAX: usize = 16_384;
/// How long a pod's address counts as gained lately.
const GAINED_FOR: Duration = Duration::from_secs(600);

/// Whether so large a loss is held.
pub(super) fn is_held(lost: usize, of: usize, percent: u32) -> bool {
    lost >= HELD_MIN && lost as u64 * 100 > of as u64 * u64::from(percent)
}

/// What a list has lost.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Objects that it does not name.
    pub(super) gone: BTreeSet<Key>,
    /// EndpointSlices that lost endpoints, as it has them.
    pub(super) shrunk: BTreeMap<Key, Object>,
}

impl Losses {
    pub(super) fn len(&self) -> usize {
        self.gone.len() + self.shrunk.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What both have lost; `self` keeps the rest.
    pub(super) fn split_agreed(&mut self, earlier: &Self) -> Self {
        let (agreed, gone) =
            std::mem::take(&mut self.gone).into_iter().partition(|key| earlier.has(key));
        let (agreed_shrunk, shrunk) =
            std::mem::take(&mut self.shrunk).into_iter().partition(|(key, _)| earlier.has(key));
        (self.gone, self.shrunk) = (gone, shrunk);
        Self { gone: agreed, shrunk: agreed_shrunk }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.gone.contains(key) || self.shrunk.contains_key(key)
    }

    /// Takes one out: something newer is known of it.
    pub(super) fn forget(&mut self, key: &str) {
        self.gone.remove(key);
        self.shrunk.remove(key);
    }

    /// Takes these out.
    pub(super) fn split(&mut self, keys: &BTreeSet<Key>) -> Self {
        let mut taken = Self::default();
        for key in keys {
            taken.gone.extend(self.gone.take(key));
            taken.shrunk.extend(self.shrunk.remove_entry(key));
        }
        taken
    }
}

/// Losses that are held.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) losses: Losses,
    /// Whose which address was.
    addresses: HashMap<IpAddr, Vec<Key>>,
}

impl Held {
    /// Holds `losses`; `before` gives the objects as they are in force.
    pub(super) fn new(losses: Losses, before: impl Fn(&str) -> Option<Object>) -> Self {
        let mut addresses: HashMap<IpAddr, Vec<Key>> = HashMap::new();
        for key in losses.gone.iter().chain(losses.shrunk.keys()) {
            // What a slice keeps may well be a new pod's.
            let left = losses.shrunk.get(key).map(addresses_of).unwrap_or_default();
            let lost = |address: &IpAddr| !left.contains(address);
            for address in before(key).iter().flat_map(addresses_of).filter(lost) {
                addresses.entry(address).or_default().push(key.clone());
            }
        }
        Self { losses, addresses }
    }

    /// Losses that are not held any more, since somebody else claims their address.
    pub(super) fn claimed(&mut self, address: IpAddr) -> Losses {
        let keys = self.addresses.remove(&address).unwrap_or_default();
        self.losses.split(&keys.into_iter().collect())
    }

    /// The addresses of what is held.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.keys().copied().collect()
    }
}

fn addresses_of(object: &Object) -> Vec<IpAddr> {
    match object {
        Object::Pod(pod) if !pod.host_network => pod.addresses.to_vec(),
        Object::EndpointSlice(slice) => slice.endpoints.iter().map(|own| own.address).collect(),
        _ => Vec::new(),
    }
}

/// Whether a pod's addresses are its own, and nobody else's.
pub(crate) fn is_live(pod: &Pod) -> bool {
    !pod.host_network && !pod.is_completed() && !pod.terminating
}

/// Endpoints of `before` whose addresses `after` does not have.
pub(super) fn lost_endpoints(before: &EndpointSlice, after: &EndpointSlice) -> usize {
    let left: BTreeSet<IpAddr> = after.endpoints.iter().map(|own| own.address).collect();
    before.endpoints.iter().filter(|own| !left.contains(&own.address)).count()
}

/// Addresses that pods have gained lately.
#[derive(Debug, Default)]
pub(super) struct Gained {
    addresses: HashMap<IpAddr, Instant>,
    order: std::collections::VecDeque<(Instant, IpAddr)>,
}

impl Gained {
    pub(super) fn note(&mut self, address: IpAddr, now: Instant) {
        let is_old = |at: Instant| now.duration_since(at) > GAINED_FOR;
        while self.order.len() >= GAINED_MAX
            || self.order.front().is_some_and(|(at, _)| is_old(*at))
        {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            if self.addresses.get(&oldest) == Some(&at) {
                self.addresses.remove(&oldest);
            }
        }
        self.addresses.insert(address, now);
        self.order.push_back((now, address));
    }

    pub(super) fn has(&self, address: IpAddr, now: Instant) -> bool {
        let at = self.addresses.get(&address);
        at.is_some_and(|at| now.duration_since(*at) <= GAINED_FOR)
    }
}
