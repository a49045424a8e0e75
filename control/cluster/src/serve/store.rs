//! Objects by kind, and the last changes of each kind.
//!
//! A change is announced to all who wait by a turn; they come and read. A resourceVersion is
//! either numbered here, one counter for all kinds as the API server has it, or handed in with the
//! object, when another server's objects are passed on. In that case everything that is sent keeps
//! to one rule, so that a client may go on at either server: an event carries a resourceVersion only
//! when all changes up to it have been sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use control::model::Kind;
use serde_json::Value;
use tokio::sync::watch;

use super::object::{Encoded, EventType, InvalidValue, Stored, key};
use crate::resource::{Resource, index};

mod lists;

/// How much of the past each kind keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Changes of one kind.
    pub events: usize,
    /// Bytes of these changes' objects, before and after.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    /// A few minutes of a busy cluster.
    fn default() -> Self {
        Self { events: 16_384, bytes: 64 << 20 }
    }
}

/// What the store holds of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Changes in the history.
    pub history: usize,
    /// The latest resourceVersion.
    pub version: u64,
    /// Changes since the start.
    pub changes: u64,
    /// Changes of nothing but the resourceVersion, which were not announced.
    pub unannounced: u64,
    /// Times the history was given up.
    pub resets: u64,
}

/// What a whole list changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Objects that were not there.
    pub added: usize,
    /// Objects that differ.
    pub modified: usize,
    /// Objects that are no longer there.
    pub deleted: usize,
    /// The list was older than what was there: every watcher has to begin anew.
    pub reset: bool,
}

/// One change.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) kind: EventType,
    pub(super) object: Arc<Stored>,
    pub(super) previous: Option<Arc<Stored>>,
    /// Whoever has seen everything up to here has seen this change: `version`, unless it was found
    /// by comparing lists. Then it happened at some time between, nobody knows when.
    known_at: u64,
}

impl Event {
    /// Whether a client that has seen everything up to `version` has seen this.
    pub(super) fn is_seen_at(&self, version: u64) -> bool {
        version >= self.known_at
    }
}

/// A moment of a kind: all changes before `turn` are part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) version: u64,
    pub(super) turn: u64,
}

/// The history no longer has what was asked for; the oldest resourceVersion it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone(pub(super) u64);

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Stored>>,
    history: VecDeque<Event>,
    history_bytes: usize,
    /// The turn of the oldest change in the history.
    first_turn: u64,
    /// Watches from here on can be served.
    oldest: u64,
    filled: bool,
    /// The server whose objects these would be does not have the kind.
    absent: bool,
    /// Something is kept that the last list did not have: see [`lists`].
    is_doubted: bool,
    counts: StoreCounts,
}

#[derive(Debug)]
struct Shelf {
    state: RwLock<State>,
    turn: watch::Sender<u64>,
}

/// All kinds.
#[derive(Debug)]
pub struct Store {
    shelves: [Shelf; 6],
    counter: Option<AtomicU64>,
    limits: HistoryLimits,
}

impl Store {
    fn new(limits: HistoryLimits, counter: Option<AtomicU64>) -> Self {
        let filled = counter.is_some();
        let shelf = || Shelf {
            state: RwLock::new(State { filled, ..State::default() }),
            turn: watch::channel(0).0,
        };
        Self { shelves: std::array::from_fn(|_| shelf()), counter, limits }
    }

    /// An empty cluster that numbers its changes itself.
    #[must_use]
    pub fn numbering(limits: HistoryLimits) -> Self {
        Self::new(limits, Some(AtomicU64::new(1)))
    }

    /// Nothing yet, of a cluster whose changes another server numbers.
    #[must_use]
    pub fn following(limits: HistoryLimits) -> Self {
        Self::new(limits, None)
    }

    fn shelf(&self, kind: Kind) -> &Shelf {
        &self.shelves[index(kind)]
    }

    fn read(&self, kind: Kind) -> RwLockReadGuard<'_, State> {
        self.shelf(kind).state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, kind: Kind) -> RwLockWriteGuard<'_, State> {
        self.shelf(kind).state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, kind: Kind) {
        self.shelf(kind).turn.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Creates or changes an object, and numbers the change.
    ///
    /// # Errors
    /// A value that is no object; a store that does not number.
    pub fn set(&self, kind: Kind, value: Value) -> Result<u64, InvalidValue> {
        let resource = Resource::of(kind);
        let mut state = self.write(kind);
        let Some(counter) = &self.counter else {
            let problem = "its resourceVersion is another server's to give".to_owned();
            return Err(InvalidValue { kind: kind.name(), problem });
        };
        // Taken under the lock: whoever reads the counter under it sees all that is numbered.
        let version = counter.fetch_add(1, Ordering::SeqCst) + 1;
        let encoded = Encoded::from_value(resource, value, version)?;
        state.put(resource, &encoded, version, version, self.limits);
        drop(state);
        self.announce(kind);
        Ok(version)
    }

    /// Deletes an object and numbers the change; `None` when there is none.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Option<u64> {
        let counter = self.counter.as_ref()?;
        let mut state = self.write(kind);
        let key = key(namespace, name);
        state.objects.contains_key(key.as_str()).then_some(())?;
        let version = counter.fetch_add(1, Ordering::SeqCst) + 1;
        state.remove(Resource::of(kind), &key, version, version, self.limits);
        drop(state);
        self.announce(kind);
        Some(version)
    }

    /// Creates or changes an object by another server's number.
    pub fn put(&self, kind: Kind, encoded: &Encoded) {
        let mut state = self.write(kind);
        let (version, known_at) = state.told_at(encoded.version);
        state.put(Resource::of(kind), encoded, version, known_at, self.limits);
        drop(state);
        self.announce(kind);
    }

    /// Deletes an object by another server's number. One that is not there is nobody's loss.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str, version: u64) {
        let mut state = self.write(kind);
        let (version, known_at) = state.told_at(version);
        state.remove(Resource::of(kind), &key(namespace, name), version, known_at, self.limits);
        state.counts.version = version;
        drop(state);
        self.announce(kind);
    }

    /// Notes that all changes up to `version` are here.
    pub fn advance(&self, kind: Kind, version: u64) {
        let mut state = self.write(kind);
        if version > state.counts.version && !state.is_doubted {
            state.counts.version = version;
            drop(state);
            self.announce(kind);
        }
    }

    /// Takes a whole list, and announces what differs. What is in `kept` (`namespace/name`) stays
    /// though it is not listed.
    pub fn replace(
        &self,
        kind: Kind,
        list: &[Encoded],
        version: u64,
        kept: &BTreeSet<String>,
    ) -> Replaced {
        let mut state = self.write(kind);
        let replaced = state.replace(Resource::of(kind), list, version, kept, self.limits);
        drop(state);
        self.announce(kind);
        replaced
    }

    /// Believes what the last list said, of objects that were kept nevertheless: `gone` (by their keys)
    /// go, and `changed` are as it had them.
    pub(crate) fn believe(&self, kind: Kind, gone: &BTreeSet<Box<str>>, changed: &[Encoded]) {
        let mut state = self.write(kind);
        let resource = Resource::of(kind);
        let version = state.counts.version;
        // Of that version there were two: who has seen it may have seen either.
        let known_at = version + 1;
        for key in gone {
            state.remove(resource, key, version, known_at, self.limits);
        }
        for encoded in changed {
            state.put(resource, encoded, version, known_at, self.limits);
        }
        drop(state);
        self.announce(kind);
    }

    /// Gives up the past, as an API server does when it is started again: every watch ends, and
    /// none can begin at a resourceVersion older than the present one.
    pub fn forget_history(&self) {
        for kind in Kind::ALL {
            let mut state = self.write(kind);
            let version = self.version_of(&state);
            state.forget(version);
            state.counts.resets += 1;
            drop(state);
            self.announce(kind);
        }
    }

    /// Notes that the server whose objects are passed on does not have `kind`, which is answered as that
    /// server does, until there is a list of it. Gives whether it is so: what was listed once stays.
    pub(crate) fn set_absent(&self, kind: Kind) -> bool {
        let mut state = self.write(kind);
        state.absent = !state.filled;
        state.absent
    }

    pub(crate) fn is_absent(&self, kind: Kind) -> bool {
        self.read(kind).absent
    }

    /// Whether every kind has been filled once, but for those that there are not.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        let is_known = |state: &State| state.filled || state.absent;
        Kind::ALL.into_iter().all(|kind| is_known(&self.read(kind)))
    }

    /// What it holds of `kind`.
    #[must_use]
    pub fn counts(&self, kind: Kind) -> StoreCounts {
        let state = self.read(kind);
        StoreCounts {
            objects: state.objects.len(),
            history: state.history.len(),
            version: self.version_of(&state),
            ..state.counts
        }
    }

    /// Names (`namespace/name`) and resourceVersions of all objects of `kind`.
    #[must_use]
    pub fn versions(&self, kind: Kind) -> Vec<(String, u64)> {
        let state = self.read(kind);
        state.objects.values().map(|object| (object.key.to_string(), object.version)).collect()
    }

    fn version_of(&self, state: &State) -> u64 {
        match &self.counter {
            Some(counter) => counter.load(Ordering::SeqCst),
            None => state.counts.version,
        }
    }

    /// Is told of every change.
    pub(super) fn subscribe(&self, kind: Kind) -> watch::Receiver<u64> {
        self.shelf(kind).turn.subscribe()
    }

    pub(super) fn now(&self, kind: Kind) -> Moment {
        let state = self.read(kind);
        Moment { version: self.version_of(&state), turn: state.next_turn() }
    }

    /// The moment of `version`, which may lie in the future.
    pub(super) fn moment(&self, kind: Kind, version: u64) -> Result<Moment, Gone> {
        let state = self.read(kind);
        if version < state.oldest {
            return Err(Gone(state.oldest));
        }
        // Not in order where lists were compared: from the first that is not seen, all are sent.
        let unseen = state.history.iter().position(|event| !event.is_seen_at(version));
        let past = unseen.unwrap_or(state.history.len());
        Ok(Moment { version, turn: state.first_turn + past as u64 })
    }

    /// Up to `most` changes from `turn` on, and the moment up to which that leads.
    pub(super) fn events(
        &self,
        kind: Kind,
        turn: u64,
        most: usize,
    ) -> Result<(Vec<Event>, Moment), Gone> {
        let state = self.read(kind);
        let past = turn.checked_sub(state.first_turn).ok_or(Gone(state.oldest))?;
        let past = usize::try_from(past).unwrap_or(usize::MAX).min(state.history.len());
        let events: Vec<Event> = state.history.range(past..).take(most).cloned().collect();
        let reached = state.first_turn + (past + events.len()) as u64;
        let version = match events.last() {
            Some(last) if reached < state.next_turn() => last.version,
            _ => self.version_of(&state),
        };
        Ok((events, Moment { version, turn: reached }))
    }

    /// All objects of `kind`.
    pub(crate) fn all(&self, kind: Kind) -> Vec<Arc<Stored>> {
        self.read(kind).objects.values().cloned().collect()
    }

    /// One object as it is now, by its key.
    pub(crate) fn stored(&self, kind: Kind, key: &str) -> Option<Arc<Stored>> {
        self.read(kind).objects.get(key).cloned()
    }

    /// One object as it is now.
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.stored(kind, &key(namespace, name))
    }

    /// Objects as of `moment`, in order, behind the key `after`, until `take` has enough.
    /// Returns whether that was the end.
    pub(super) fn visit(
        &self,
        kind: Kind,
        moment: Moment,
        after: Option<&str>,
        mut take: impl FnMut(&Arc<Stored>) -> bool,
    ) -> Result<bool, Gone> {
        let state = self.read(kind);
        let undone = state.undone(moment.turn)?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut live = state.objects.range::<str, _>((start, Bound::Unbounded)).peekable();
        let mut undone = undone.range::<str, _>((start, Bound::Unbounded)).peekable();
        loop {
            let object = match (live.peek(), undone.peek()) {
                (None, None) => return Ok(true),
                (Some((key, object)), other)
                    if other.is_none_or(|(other, _)| ***key < ***other) =>
                {
                    let object = *object;
                    live.next();
                    Some(object)
                }
                (key, Some((other, previous))) => {
                    let previous = **previous;
                    if key.is_some_and(|(key, _)| ***key == ***other) {
                        live.next();
                    }
                    undone.next();
                    previous
                }
                (Some(_), None) => return Ok(true),
            };
            if object.is_some_and(|object| !take(object)) {
                return Ok(false);
            }
        }
    }
}

impl State {
    fn next_turn(&self) -> u64 {
        self.first_turn + self.history.len() as u64
    }

    /// What the objects that changed since `turn` were then.
    fn undone(&self, turn: u64) -> Result<BTreeMap<&str, Option<&Arc<Stored>>>, Gone> {
        let past = turn.checked_sub(self.first_turn).ok_or(Gone(self.oldest))?;
        let past = usize::try_from(past).unwrap_or(usize::MAX).min(self.history.len());
        // The oldest change of an object is the last to be written here.
        let changes = self.history.range(past..).rev();
        Ok(changes.map(|event| (&*event.object.key, event.previous.as_ref())).collect())
    }

    fn put(
        &mut self,
        resource: &Resource,
        encoded: &Encoded,
        version: u64,
        known_at: u64,
        limits: HistoryLimits,
    ) {
        // Who goes on from an object's version must not miss what that version would promise.
        let earlier = (encoded.version > version).then(|| encoded.with_version(resource, version));
        let encoded = earlier.as_ref().unwrap_or(encoded);
        let key: Arc<str> = encoded.key().into();
        let previous = self.objects.get(&key).cloned();
        self.counts.version = self.counts.version.max(version);
        let kind = if previous.is_some() { EventType::Modified } else { EventType::Added };
        let key = previous.as_ref().map_or(key, |previous| Arc::clone(&previous.key));
        let object = Arc::new(Stored::new(resource, kind, Arc::clone(&key), encoded));
        self.counts.bytes += object.size();
        self.objects.insert(key, Arc::clone(&object));
        let same = previous
            .as_ref()
            .is_some_and(|previous| object.mark.is_some() && object.mark == previous.mark);
        self.counts.bytes -= previous.as_ref().map_or(0, |previous| previous.size());
        if same {
            self.counts.unannounced += 1;
            return;
        }
        self.remember(Event { version, kind, object, previous, known_at }, limits);
    }

    fn remove(
        &mut self,
        resource: &Resource,
        key: &str,
        version: u64,
        known_at: u64,
        limits: HistoryLimits,
    ) {
        let Some(previous) = self.objects.remove(key) else { return };
        self.counts.bytes -= previous.size();
        self.counts.version = self.counts.version.max(version);
        let last = previous.with_version(resource, version);
        let key = Arc::clone(&previous.key);
        let object = Arc::new(Stored::new(resource, EventType::Deleted, key, &last));
        let kind = EventType::Deleted;
        let previous = Some(previous);
        self.remember(Event { version, kind, object, previous, known_at }, limits);
    }

    fn remember(&mut self, event: Event, limits: HistoryLimits) {
        self.counts.changes += 1;
        self.history_bytes += event.size();
        self.history.push_back(event);
        while self.history.len() > limits.events || self.history_bytes > limits.bytes {
            let Some(oldest) = self.history.pop_front() else { break };
            self.history_bytes -= oldest.size();
            self.first_turn += 1;
            self.oldest = self.oldest.max(oldest.known_at);
        }
    }

    /// A turn is skipped, so that who waits for the next one is left behind.
    fn forget(&mut self, version: u64) {
        self.first_turn = self.next_turn() + 1;
        self.history.clear();
        self.history_bytes = 0;
        self.oldest = version;
    }
}

impl Event {
    fn size(&self) -> usize {
        self.object.size() + self.previous.as_ref().map_or(0, |previous| previous.size())
    }
}
