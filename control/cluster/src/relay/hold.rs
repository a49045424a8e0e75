//! What the relay holds, and whose address ends that: of all kinds, since a pod that comes ends what
//! is held of an EndpointSlice.
//!
//! Everything that is served of a kind comes by here, so that what is said of an object counts for
//! more than what a list did not say of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use control::model::{Kind, Object};
use serde_json::value::RawValue;

use super::standing::Standing;
use crate::decode::{Decoded, decode};
use crate::follow::known::Key;
use crate::hold::{Gained, Hold, Losses, is_held, is_live, lost_addresses, lost_endpoints};
use crate::resource::index;
use crate::serve::{Encoded, Replaced, Store, Stored};

/// A larger part of what there was, in percent, is not believed at once.
const HELD_PERCENT: u32 = 30;

/// What is held of all kinds, in front of what is served.
#[derive(Debug)]
pub(super) struct Holds {
    store: Arc<Store>,
    standing: Arc<Standing>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kinds: [Hold<Encoded>; Kind::ALL.len()],
    gained: Gained,
}

/// What became of a whole list.
#[derive(Debug)]
pub(super) struct Taken {
    /// What changed.
    pub(super) replaced: Replaced,
    /// The list, but for what is held of it.
    pub(super) list: Vec<Encoded>,
    /// How many objects are served though the list has them not, or not so.
    pub(super) held: usize,
}

/// An object as nodes will read it.
fn read(kind: Kind, text: &[u8]) -> Option<Object> {
    let text = serde_json::from_slice::<&RawValue>(text).ok()?;
    match decode(kind, text) {
        Decoded::Good(object) => Some(object),
        _ => None,
    }
}

/// The addresses that a pod has for itself alone.
fn own_addresses(text: &[u8]) -> Vec<IpAddr> {
    match read(Kind::Pod, text) {
        Some(Object::Pod(pod)) if is_live(&pod) => pod.addresses.to_vec(),
        _ => Vec::new(),
    }
}

/// Those of them that it did not have before.
fn gained(before: Option<&Stored>, after: &Encoded) -> Vec<IpAddr> {
    let mut gained = own_addresses(&after.fields);
    if !gained.is_empty()
        && let Some(before) = before
    {
        let had = own_addresses(&before.object());
        gained.retain(|address| !had.contains(address));
    }
    gained
}

impl Holds {
    pub(super) fn new(store: Arc<Store>, standing: Arc<Standing>) -> Self {
        Self { store, standing, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object came or changed. Gives the pods that are gone for it.
    pub(super) fn put(&self, kind: Kind, object: &Encoded) -> Vec<Key> {
        let key = object.key();
        let mut state = self.lock();
        state.kinds[index(kind)].forget(&key);
        let gained = match kind {
            Kind::Pod => gained(self.store.stored(kind, &key).as_deref(), object),
            _ => Vec::new(),
        };
        self.store.put(kind, object);
        let by = Key::from(key);
        let gained = gained.into_iter().map(|address| (address, by.clone()));
        let released = self.gain(&mut state, gained);
        self.tell(&state);
        released
    }

    /// An object went.
    pub(super) fn gone(&self, kind: Kind, object: &Encoded) {
        let mut state = self.lock();
        state.kinds[index(kind)].forget(&object.key());
        self.store.remove(kind, &object.namespace, &object.name, object.version);
        self.tell(&state);
    }

    /// These addresses were gained, each by a pod: what is held of others that had them is believed. Gives
    /// the pods of these.
    fn gain(&self, state: &mut State, gained: impl Iterator<Item = (IpAddr, Key)>) -> Vec<Key> {
        let now = Instant::now();
        let mut pods = Vec::new();
        for (address, by) in gained {
            state.gained.note(address, by.clone(), now);
            for kind in [Kind::Pod, Kind::EndpointSlice] {
                let Losses { gone, shrunk } = state.kinds[index(kind)].claimed(address, &by);
                if gone.is_empty() && shrunk.is_empty() {
                    continue;
                }
                tracing::info!(kind = kind.name(), %address, "a held loss is believed: another pod claims its address");
                let shrunk: Vec<Encoded> = shrunk.into_values().collect();
                self.store.believe(kind, &gone, &shrunk);
                if kind == Kind::Pod {
                    pods.extend(gone);
                }
            }
        }
        pods
    }

    /// A whole list: what it has lost beyond belief stays, until a second opinion.
    pub(super) fn list(
        &self,
        kind: Kind,
        mut list: Vec<Encoded>,
        version: u64,
        is_second: bool,
    ) -> Taken {
        let mut state = self.lock();
        let known: HashMap<Key, Arc<Stored>> =
            self.store.all(kind).into_iter().map(|own| (own.key().into(), own)).collect();
        let mut losses = lost(kind, &known, &list);
        let agreed = state.kinds[index(kind)].agree(&mut losses, is_second);
        let (number, of) = extent(kind, &known, &losses, &agreed);
        if is_held(number, of, HELD_PERCENT) {
            self.hold(&mut state, kind, losses, &known, &list);
        }
        let held = &state.kinds[index(kind)];
        let (kept, held) = (held.keys(), held.len());
        list.retain(|own| !kept.contains(own.key().as_str()));
        let is_first = self.store.counts(kind).version == 0;
        let replaced = self.store.replace(kind, &list, version, &kept);
        if kind == Kind::Pod && !is_first {
            let is_new = |own: &&Encoded| {
                known.get(own.key().as_str()).is_none_or(|known| known.version != own.version)
            };
            let gained = list.iter().filter(is_new).flat_map(|own| {
                let by = Key::from(own.key());
                let addresses = gained(known.get(&by).map(|own| &**own), own);
                addresses.into_iter().map(move |address| (address, by.clone()))
            });
            self.gain(&mut state, gained);
        }
        self.tell(&state);
        if held > 0 {
            tracing::warn!(
                kind = kind.name(),
                held,
                "a list lost much of what there was; a second one decides"
            );
        }
        Taken { replaced, list, held }
    }

    fn hold(
        &self,
        state: &mut State,
        kind: Kind,
        losses: Losses<Encoded>,
        known: &HashMap<Key, Arc<Stored>>,
        list: &[Encoded],
    ) {
        let claimed: HashSet<IpAddr> = match kind {
            Kind::Pod => list.iter().flat_map(|own| own_addresses(&own.fields)).collect(),
            _ => HashSet::new(),
        };
        let now = Instant::now();
        let State { kinds, gained } = state;
        let before = |key: &str| read(kind, &known.get(key)?.object());
        kinds[index(kind)].hold(
            losses,
            |key, after: Option<&Encoded>| {
                let after = after.and_then(|after| read(kind, &after.fields));
                before(key).map_or_else(Vec::new, |own| lost_addresses(&own, after.as_ref()))
            },
            |lost| match kind {
                Kind::Pod => claimed.contains(&lost.0),
                _ => gained.has(lost, now),
            },
        );
    }

    /// How many objects are held, for people.
    fn tell(&self, state: &State) {
        self.standing.held(state.kinds.each_ref().map(Hold::len));
    }
}

/// What `list` has lost of what is known.
fn lost(kind: Kind, known: &HashMap<Key, Arc<Stored>>, list: &[Encoded]) -> Losses<Encoded> {
    let listed: HashMap<String, &Encoded> = list.iter().map(|own| (own.key(), own)).collect();
    let gone = known.keys().filter(|key| !listed.contains_key(&***key)).cloned().collect();
    let mut losses = Losses { gone, shrunk: BTreeMap::new() };
    if kind == Kind::EndpointSlice {
        for (key, before) in known {
            let after = listed.get(&**key).filter(|after| after.version != before.version);
            if let Some(after) = after
                && lost_of_slice(before, Some(after)) > 0
            {
                losses.shrunk.insert(key.clone(), (*after).clone());
            }
        }
    }
    losses
}

/// Endpoints that a slice has lost; all of them, where it is gone. One that cannot be read has lost
/// none: nodes keep what was good of it.
fn lost_of_slice(before: &Stored, after: Option<&Encoded>) -> usize {
    let slice = |text: &[u8]| match read(Kind::EndpointSlice, text) {
        Some(Object::EndpointSlice(slice)) => Some(slice),
        _ => None,
    };
    let Some(before) = slice(&before.object()) else { return 0 };
    match after.map(|after| slice(&after.fields)) {
        None => before.endpoints.len(),
        Some(None) => 0,
        Some(Some(after)) => lost_endpoints(&before, &after),
    }
}

/// How much was lost, of how much: endpoints of slices, and of all else objects. What `agreed` says is
/// past.
fn extent(
    kind: Kind,
    known: &HashMap<Key, Arc<Stored>>,
    losses: &Losses<Encoded>,
    agreed: &Losses<Encoded>,
) -> (usize, usize) {
    if kind != Kind::EndpointSlice || losses.is_empty() {
        return (losses.gone.len(), known.len() - agreed.gone.len());
    }
    let lost = |(key, after): (&Key, Option<&Encoded>)| {
        known.get(key).map_or(0, |before| lost_of_slice(before, after))
    };
    let gone = losses.gone.iter().map(|key| lost((key, None)));
    let shrunk = losses.shrunk.iter().map(|(key, after)| lost((key, Some(after))));
    let number = gone.chain(shrunk).sum();
    let left = known.iter().filter(|(key, _)| !agreed.gone.contains(*key));
    let of = left.map(|(key, before)| {
        lost_of_slice(before, None)
            - agreed.shrunk.get(key).map_or(0, |own| lost_of_slice(before, Some(own)))
    });
    (number, of.sum())
}

#[cfg(test)]
mod tests;
