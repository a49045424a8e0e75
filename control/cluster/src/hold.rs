//! Losses that are not believed at once.
//!
//! An API server that was restored from an old copy, or answers before it has read its store, lists
//! a part of what there is. Taking that for the truth would cut off everybody else. So what a list
//! has lost stays until a second list, taken a while later, has lost it as well; unless somebody else
//! claims its address meanwhile, which then is his.
//!
//! Nodes and relays judge by this one piece. A relay must, since what it believes nodes are told as
//! changes of single objects, which they cannot doubt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use control::model::{Endpoint, EndpointSlice, Object, ObjectName, Pod};

use crate::follow::known::{Key, key};

/// Addresses that pods have gained lately, at most; the oldest are forgotten first.
const GAINED_MAX: usize = 16_384;
/// How long a pod's address counts as gained lately.
const GAINED_FOR: Duration = Duration::from_secs(600);

/// Whether so large a loss is held.
pub(crate) fn is_held(lost: usize, of: usize, percent: u32) -> bool {
    lost as u64 * 100 > of as u64 * u64::from(percent)
}

/// An address that was lost, and the pod that had it, where that is known.
pub(crate) type Lost = (IpAddr, Option<Key>);

/// What a list has lost; `T` is an object as whoever holds it keeps it.
#[derive(Debug)]
pub(crate) struct Losses<T> {
    /// Objects that it does not name.
    pub(crate) gone: BTreeSet<Key>,
    /// EndpointSlices that lost endpoints, as it has them.
    pub(crate) shrunk: BTreeMap<Key, T>,
}

impl<T> Default for Losses<T> {
    fn default() -> Self {
        Self { gone: BTreeSet::new(), shrunk: BTreeMap::new() }
    }
}

impl<T> Losses<T> {
    pub(crate) fn len(&self) -> usize {
        self.gone.len() + self.shrunk.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has(&self, key: &str) -> bool {
        self.gone.contains(key) || self.shrunk.contains_key(key)
    }

    /// Takes these out.
    fn split(&mut self, keys: &BTreeSet<Key>) -> Self {
        let mut taken = Self::default();
        for key in keys {
            taken.gone.extend(self.gone.take(key));
            taken.shrunk.extend(self.shrunk.remove_entry(key));
        }
        taken
    }
}

/// What is held of one kind.
#[derive(Debug)]
pub(crate) struct Hold<T> {
    losses: Losses<T>,
    /// By address, the objects that had it, each with the pod that it had it for.
    addresses: HashMap<IpAddr, Vec<(Key, Option<Key>)>>,
}

impl<T> Default for Hold<T> {
    fn default() -> Self {
        Self { losses: Losses::default(), addresses: HashMap::new() }
    }
}

impl<T> Hold<T> {
    /// Another list: gives what both have lost, which is true, if it `is_second`, a while after the
    /// first. `losses` keeps the rest, and nothing is held any more.
    pub(crate) fn agree(&mut self, losses: &mut Losses<T>, is_second: bool) -> Losses<T> {
        let earlier = std::mem::take(self).losses;
        if !is_second {
            return Losses::default();
        }
        let keys = losses.gone.iter().chain(losses.shrunk.keys());
        let both = keys.filter(|key| earlier.has(key)).cloned().collect();
        losses.split(&both)
    }

    /// Holds `losses`. Gives those that are not held, since somebody else claims what was theirs:
    /// `addresses` says what an object had that the list has not, and `is_claimed` whether they are
    /// another pod's.
    pub(crate) fn hold(
        &mut self,
        losses: Losses<T>,
        addresses: impl Fn(&str, Option<&T>) -> Vec<Lost>,
        is_claimed: impl Fn(&Lost) -> bool,
    ) -> Losses<T> {
        let mut claimed = BTreeSet::new();
        self.addresses.clear();
        for key in losses.gone.iter().chain(losses.shrunk.keys()) {
            for lost in addresses(key, losses.shrunk.get(key)) {
                if is_claimed(&lost) {
                    claimed.insert(key.clone());
                }
                let (address, pod) = lost;
                self.addresses.entry(address).or_default().push((key.clone(), pod));
            }
        }
        self.losses = losses;
        self.losses.split(&claimed)
    }

    /// Losses that are not held any more, since the pod `by` claims their address, which another had.
    pub(crate) fn claimed(&mut self, address: IpAddr, by: &str) -> Losses<T> {
        let had = self.addresses.get(&address).into_iter().flatten();
        let others = had.filter(|(_, pod)| pod.as_deref() != Some(by));
        let keys = others.map(|(key, _)| key.clone()).collect();
        self.losses.split(&keys)
    }

    /// Which objects are kept.
    pub(crate) fn keys(&self) -> BTreeSet<String> {
        let keys = self.losses.gone.iter().chain(self.losses.shrunk.keys());
        keys.map(|key| key.to_string()).collect()
    }

    /// Something newer is known of this one.
    pub(crate) fn forget(&mut self, key: &str) {
        self.losses.gone.remove(key);
        self.losses.shrunk.remove(key);
    }

    /// Whether a second list is to be asked for.
    pub(crate) fn is_holding(&self) -> bool {
        !self.losses.is_empty()
    }

    /// How many objects are kept that the last list did not have, or not whole.
    pub(crate) fn len(&self) -> usize {
        self.losses.len()
    }
}

/// Addresses that `before` had and `after` has not: what a slice keeps may well be a new pod's.
pub(crate) fn lost_addresses(before: &Object, after: Option<&Object>) -> Vec<Lost> {
    let left = after.map(addresses_of).unwrap_or_default();
    let mut lost = addresses_of(before);
    lost.retain(|(address, _)| !left.iter().any(|(kept, _)| kept == address));
    lost
}

fn addresses_of(object: &Object) -> Vec<Lost> {
    match object {
        Object::Pod(pod) if !pod.host_network => {
            pod.addresses.iter().map(|address| (*address, Some(key(&pod.name)))).collect()
        }
        Object::EndpointSlice(slice) => {
            let pod = |name: &String| key(&ObjectName::new(&*slice.name.namespace, &**name));
            let lost = |own: &Endpoint| (own.address, own.target.as_ref().map(pod));
            slice.endpoints.iter().map(lost).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a pod's addresses are its own, and nobody else's.
pub(crate) fn is_live(pod: &Pod) -> bool {
    !pod.host_network && !pod.is_completed() && !pod.terminating
}

/// Endpoints of `before` whose addresses `after` does not have.
pub(crate) fn lost_endpoints(before: &EndpointSlice, after: &EndpointSlice) -> usize {
    let left: BTreeSet<IpAddr> = after.endpoints.iter().map(|own| own.address).collect();
    before.endpoints.iter().filter(|own| !left.contains(&own.address)).count()
}

/// Addresses that pods have gained lately, and which pods.
#[derive(Debug, Default)]
pub(crate) struct Gained {
    addresses: HashMap<IpAddr, (Instant, Key)>,
    order: std::collections::VecDeque<(Instant, IpAddr)>,
}

impl Gained {
    pub(crate) fn note(&mut self, address: IpAddr, by: Key, now: Instant) {
        let is_old = |at: Instant| now.duration_since(at) > GAINED_FOR;
        while self.order.len() >= GAINED_MAX
            || self.order.front().is_some_and(|(at, _)| is_old(*at))
        {
            let Some((at, oldest)) = self.order.pop_front() else { break };
            if self.addresses.get(&oldest).is_some_and(|(noted, _)| *noted == at) {
                self.addresses.remove(&oldest);
            }
        }
        self.addresses.insert(address, (now, by));
        self.order.push_back((now, address));
    }

    /// Whether another pod has what was lost.
    pub(crate) fn has(&self, (address, pod): &Lost, now: Instant) -> bool {
        self.addresses.get(address).is_some_and(|(at, by)| {
            now.duration_since(*at) <= GAINED_FOR && pod.as_ref() != Some(by)
        })
    }
}
