//! The cluster as it is in force, and what changes it.
//!
//! Whatever servers say is compared with what is in force, and only differences go to the node. A
//! list that is being read adds and changes at once, and removes at its end, if it is complete. An
//! object that cannot be read leaves its last good version in force; a NetworkPolicy that never had
//! one is in force as far as it was understood, which is closed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use control::admin::status::{ERRORS_MAX, ObjectError};
use control::model::{Kind, Object, ObjectKey, ObjectName, Pod};
use control::store::Change;

use super::known::{Key, Known, Set, key, name};
use super::standing::{OfKind as Standing, Reporter, unix_ms_now};
use crate::client::Frontends;
use crate::compact::{self, Damaged, SharedNames};
use crate::decode::Decoded;
use crate::feed;
use crate::hold::{Gained, Hold, Losses, is_held, is_live, lost_addresses, lost_endpoints};
use crate::resource::index;
use crate::snapshot::file::{Objects, Snapshot};

/// Objects of all kinds, at most: four times what a cluster of 5,000 nodes has.
pub const OBJECTS_MAX: usize = 1_000_000;
/// Objects that are known not to be in force as they are written, at most; more are counted, and
/// not named.
pub const REFUSED_MAX: usize = 4096;

/// Objects of a snapshot that go to the node together: less than 64 KiB of them, for more of which
/// glibc's malloc(3) puts all free memory in order each time.
const RESTORED_AT_ONCE: usize = 256;

/// Objects of each kind.
type Counts = [usize; Kind::ALL.len()];

struct OfKind {
    known: Known,
    refused: BTreeMap<Key, Refusal>,
    /// While a list is read: EndpointSlices that it has with fewer endpoints.
    shrunk: BTreeMap<Key, Object>,
    is_listing: bool,
    /// The list that is read is the first that anything is known of it by.
    is_first: bool,
    hold: Hold<Object>,
}

struct Refusal {
    error: ObjectError,
    /// What is in force in its place is made of it, not a version before it.
    stands_in: bool,
    /// The list that is being read has named it.
    is_listed: bool,
}

/// The cluster as it is in force.
pub struct Whole {
    kinds: [OfKind; Kind::ALL.len()],
    /// What was restored, and is in force, until it is filed under [`OfKind::known`].
    restored: Option<(Snapshot, Counts)>,
    batch: Vec<Change>,
    feed: feed::Sender,
    reporter: Reporter,
    frontends: Frontends,
    gained: Gained,
    hold_percent: u32,
    /// Something changed since a snapshot was made of it.
    is_unsaved: bool,
}

impl Whole {
    pub(super) fn new(
        feed: feed::Sender,
        reporter: Reporter,
        frontends: Frontends,
        hold_percent: u32,
    ) -> Self {
        let kinds = Kind::ALL.map(|kind| OfKind {
            known: Known::new(kind),
            refused: BTreeMap::new(),
            shrunk: BTreeMap::new(),
            is_listing: false,
            is_first: false,
            hold: Hold::default(),
        });
        Self {
            kinds,
            restored: None,
            batch: Vec::new(),
            feed,
            reporter,
            frontends,
            gained: Gained::default(),
            hold_percent,
            is_unsaved: false,
        }
    }

    /// Whether nobody takes anything any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.feed.is_closed()
    }

    fn len(&self) -> usize {
        self.kinds.iter().map(|own| own.known.len()).sum()
    }

    fn own(&mut self, kind: Kind) -> &mut OfKind {
        &mut self.kinds[index(kind)]
    }

    /// Puts in force what a snapshot holds: of every kind the whole. Gives how many objects that were.
    ///
    /// # Errors
    /// [`Damaged`] for an object that cannot be read: then nothing is whole, and API servers' lists
    /// are waited for, which correct what of it was taken.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) -> Result<u64, Damaged> {
        let mut counts = [0; Kind::ALL.len()];
        let sent = self.send_restored(snapshot.objects(), &mut counts);
        let all = counts.iter().sum::<usize>() as u64;
        if sent.is_ok() {
            // Whoever waits for the whole finds it told.
            let ahead = snapshot.ahead().map(|ahead| {
                let seconds = ahead.as_secs();
                tracing::warn!(seconds, "the snapshot is dated ahead of the clock: one was wrong");
                format!("it is dated {seconds} s ahead of the clock, of which one was wrong")
            });
            self.reporter.with(|standing| {
                standing.snapshot.restored = all;
                standing.snapshot.last_error = ahead;
                standing.snapshot_written = Some(snapshot.written);
            });
            for kind in Kind::ALL {
                let count = counts[index(kind)] as u64;
                self.reporter.kind(kind, |standing: &mut Standing| standing.status.objects = count);
                self.reporter.complete(kind);
            }
        }
        self.restored = Some((snapshot, counts));
        sent.map(|()| all)
    }

    /// Files what a snapshot held, to be compared with what servers say: not before they say anything,
    /// while the node has better to do.
    fn file_restored(&mut self) {
        let Some((snapshot, counts)) = self.restored.take() else { return };
        let mut objects = snapshot.objects().filter_map(Result::ok).peekable();
        for (kind, count) in Kind::ALL.into_iter().zip(counts) {
            let own = std::iter::from_fn(|| objects.next_if(|(of, _)| *of == kind));
            let named = own.filter_map(|(kind, bytes)| {
                let (namespace, name) = compact::name(kind, bytes).ok()?;
                Some((namespace, name, bytes))
            });
            self.kinds[index(kind)].known.restore(named.take(count));
            self.note_counts(kind);
        }
    }

    /// Sends the node what a snapshot holds, so that it takes the first while the next are read.
    fn send_restored(&mut self, objects: Objects<'_>, counts: &mut Counts) -> Result<(), Damaged> {
        let mut names = SharedNames::default();
        for restored in objects {
            let (kind, bytes) = restored?;
            let mut object = names.decode(kind, bytes)?;
            counts[index(kind)] += 1;
            // Said again, and told, once servers name it.
            self.leave_to_servers(&mut object);
            if let Object::Service(service) = &object {
                self.frontends.set(service);
            }
            self.batch.push(Change::Set(object));
            if self.batch.len() >= RESTORED_AT_ONCE {
                self.feed.send_restored(std::mem::take(&mut self.batch));
                self.batch.reserve(RESTORED_AT_ONCE);
            }
        }
        // Whoever waits for the whole finds it sent.
        self.flush();
        Ok(())
    }

    /// A list begins.
    pub(super) fn begin_list(&mut self, kind: Kind) {
        self.file_restored();
        let own = self.own(kind);
        own.known.begin_list();
        own.shrunk.clear();
        own.is_listing = true;
        own.is_first = own.known.len() == 0;
        own.refused.values_mut().for_each(|refusal| refusal.is_listed = false);
    }

    /// A list will not end.
    pub(super) fn abort_list(&mut self, kind: Kind) {
        let own = self.own(kind);
        own.is_listing = false;
        own.shrunk.clear();
    }

    /// An object came or changed, or a list names it.
    pub(super) fn take(&mut self, kind: Kind, decoded: Decoded) {
        match decoded {
            Decoded::Good(mut object) => {
                let key = key(&object.key().name);
                match self.leave_to_servers(&mut object) {
                    None => self.well(kind, &key),
                    Some(why) => self.refuse(kind, Some(key.clone()), why, true),
                }
                self.set(kind, key, object);
            }
            Decoded::Closed { object, why } => {
                let key = key(&object.key().name);
                self.refuse(kind, Some(key.clone()), why, true);
                self.set(kind, key, object);
            }
            Decoded::Unreadable { object, why } => {
                let key = key(&object.key().name);
                let own = self.own(kind);
                let stood_in = own.refused.get(&key).is_some_and(|refusal| refusal.stands_in)
                    // Of the process before, whose snapshot does not tell.
                    || own.known.is(&key, &compact::encode(&object));
                if own.known.contains(&key) && !stood_in {
                    let why = format!("{why}: its last good version stays in force");
                    self.own(kind).known.mark(&key);
                    self.refuse(kind, Some(key), why, false);
                } else {
                    let why = format!("{why}: what is not understood of it allows nothing");
                    self.refuse(kind, Some(key.clone()), why, true);
                    self.set(kind, key, object);
                }
            }
            Decoded::Refused { name, why } => {
                let key = name.as_ref().map(key);
                if let Some(key) = &key {
                    self.own(kind).known.mark(key);
                }
                let is_known = key.as_ref().is_some_and(|key| self.own(kind).known.contains(key));
                let why = match is_known {
                    true => format!("{why}: its last good version stays in force"),
                    false => why,
                };
                self.refuse(kind, key, why, false);
            }
        }
    }

    fn set(&mut self, kind: Kind, key: Key, object: Object) {
        let bytes = compact::encode(&object);
        let is_new = !self.own(kind).known.contains(&key);
        if is_new && self.len() >= OBJECTS_MAX {
            let why = format!("more than {OBJECTS_MAX} objects: it is left out");
            self.refuse(kind, Some(key), why, false);
            return;
        }
        let own = self.own(kind);
        let before = match kind {
            Kind::Pod | Kind::EndpointSlice if !is_new => own.known.get(&key),
            _ => None,
        };
        if own.is_listing
            && let (Object::EndpointSlice(after), Some(Object::EndpointSlice(before))) =
                (&object, &before)
            && lost_endpoints(before, after) > 0
        {
            own.known.mark(&key);
            own.shrunk.insert(key, object);
            return;
        }
        // What a list said of it before is older.
        own.shrunk.remove(&key);
        own.hold.forget(&key);
        if own.known.set(key, bytes) == Set::Same {
            return;
        }
        match (&object, before) {
            (Object::Service(service), _) => self.frontends.set(service),
            (Object::Pod(pod), before) => self.pod_came(pod, before.as_ref()),
            _ => {}
        }
        self.is_unsaved = true;
        self.batch.push(Change::Set(object));
    }

    /// Takes external addresses out of a Service where servers are that we follow. Gives what was wrong.
    fn leave_to_servers(&self, object: &mut Object) -> Option<String> {
        let Object::Service(service) = object else { return None };
        let taken = self.frontends.of_servers(service);
        let first = taken.first()?;
        let is_free = |own: &IpAddr| !taken.iter().any(|address| address.ip() == *own);
        service.external_ips.retain(is_free);
        service.load_balancer_ips.retain(is_free);
        Some(format!(
            "{first} is an address by which this node follows the cluster: the Service is not served \
             there, or an outage could never be ended"
        ))
    }

    /// A server turned out to be where a Service is served: from now on it is not.
    pub(super) fn yield_to_servers(&mut self) {
        self.file_restored();
        let services: Vec<Object> = self.own(Kind::Service).known.objects().collect();
        for mut object in services {
            if let Some(why) = self.leave_to_servers(&mut object) {
                let key = key(&object.key().name);
                self.refuse(Kind::Service, Some(key.clone()), why, true);
                self.set(Kind::Service, key, object);
            }
        }
        self.flush();
    }

    /// What a pod's new address was before is not held any more. Of the first pods that are heard of nobody
    /// knows whether their addresses are new.
    fn pod_came(&mut self, pod: &Pod, before: Option<&Object>) {
        let had = match before {
            Some(Object::Pod(before)) if is_live(before) => &*before.addresses,
            _ => &[],
        };
        if !is_live(pod) || self.own(Kind::Pod).is_first {
            return;
        }
        let (now, by) = (Instant::now(), key(&pod.name));
        for address in pod.addresses.iter().filter(|address| !had.contains(address)) {
            self.gained.note(*address, by.clone(), now);
            self.release(*address, &by);
        }
    }

    fn release(&mut self, address: IpAddr, by: &str) {
        for kind in [Kind::Pod, Kind::EndpointSlice] {
            let released = self.own(kind).hold.claimed(address, by);
            if !released.is_empty() {
                tracing::info!(kind = kind.name(), %address, "a held loss is believed: another pod claims its address");
                self.lose(kind, released);
            }
        }
    }

    /// An object went.
    pub(super) fn gone(&mut self, kind: Kind, name: &ObjectName) {
        self.remove(kind, &key(name));
    }

    fn remove(&mut self, kind: Kind, key: &Key) {
        self.well(kind, key);
        let own = self.own(kind);
        own.shrunk.remove(key);
        own.hold.forget(key);
        if !own.known.remove(key) {
            return;
        }
        if kind == Kind::Service {
            self.frontends.remove(key);
        }
        self.is_unsaved = true;
        self.batch.push(Change::Gone(ObjectKey::new(kind, name(key))));
    }

    /// A list is complete. Gives whether what it has lost is held.
    pub(super) fn end_list(&mut self, kind: Kind, is_second: bool) -> bool {
        let own = self.own(kind);
        (own.is_listing, own.is_first) = (false, false);
        // What is known of those that are missing ends with them.
        own.refused.retain(|key, refusal| refusal.is_listed || own.known.contains(key));
        let mut losses = Losses {
            gone: own.known.missing().into_iter().collect(),
            shrunk: std::mem::take(&mut own.shrunk),
        };
        let held = own.hold.len();
        if held > 0 {
            let agreed = own.hold.agree(&mut losses, is_second);
            let agreed_on = agreed.len();
            if is_second {
                tracing::warn!(
                    kind = kind.name(),
                    held,
                    agreed_on,
                    "a second list says what of the losses is true"
                );
            }
            self.lose(kind, agreed);
        }
        let (lost, of) = self.extent(kind, &losses);
        if is_held(lost, of, self.hold_percent) {
            self.hold(kind, losses, (lost, of));
        } else {
            self.lose(kind, losses);
        }
        // Whoever waits for the whole finds it sent.
        self.flush();
        self.reporter.complete(kind);
        self.note_refusals();
        self.own(kind).hold.is_holding()
    }

    /// How many endpoints of slices, or objects of another kind, were lost, of how many.
    fn extent(&self, kind: Kind, losses: &Losses<Object>) -> (usize, usize) {
        let known = &self.kinds[index(kind)].known;
        match kind {
            _ if losses.is_empty() => (0, 0),
            Kind::EndpointSlice => {
                let slice = |key: &Key| match known.get(key) {
                    Some(Object::EndpointSlice(slice)) => Some(slice),
                    _ => None,
                };
                let gone = losses.gone.iter().filter_map(slice).map(|own| own.endpoints.len());
                let shrunk = losses.shrunk.iter().filter_map(|(key, after)| match after {
                    Object::EndpointSlice(after) => Some(lost_endpoints(&slice(key)?, after)),
                    _ => None,
                });
                let all = known.objects().map(|object| match object {
                    Object::EndpointSlice(slice) => slice.endpoints.len(),
                    _ => 0,
                });
                (gone.sum::<usize>() + shrunk.sum::<usize>(), all.sum())
            }
            _ => (losses.gone.len(), known.len()),
        }
    }

    fn hold(&mut self, kind: Kind, losses: Losses<Object>, (lost, of): (usize, usize)) {
        let claimed: HashSet<IpAddr> = match kind {
            Kind::Pod => {
                let pods = self.kinds[index(kind)].known.objects();
                pods.filter_map(|object| match object {
                    Object::Pod(pod) if is_live(&pod) && !losses.gone.contains(&key(&pod.name)) => {
                        Some(pod.addresses)
                    }
                    _ => None,
                })
                .flatten()
                .collect()
            }
            _ => HashSet::new(),
        };
        let now = Instant::now();
        let OfKind { known, hold, .. } = &mut self.kinds[index(kind)];
        let gained = &self.gained;
        let free = hold.hold(
            losses,
            |key, after| known.get(key).map_or_else(Vec::new, |own| lost_addresses(&own, after)),
            |lost| match kind {
                Kind::Pod => claimed.contains(&lost.0),
                _ => gained.has(lost, now),
            },
        );
        let held = hold.len();
        tracing::warn!(
            kind = kind.name(),
            lost,
            of,
            held,
            "a list lost more than is believed at once: its losses are held until a second agrees"
        );
        self.reporter.kind(kind, |own| own.status.holds += 1);
        self.lose(kind, free);
    }

    fn lose(&mut self, kind: Kind, losses: Losses<Object>) {
        let Losses { gone, shrunk } = losses;
        let keys: BTreeSet<Key> = gone;
        for key in &keys {
            self.remove(kind, key);
        }
        for (key, object) in shrunk {
            self.set(kind, key, object);
        }
    }

    /// Nothing is wrong with an object any more.
    fn well(&mut self, kind: Kind, key: &str) {
        let own = self.own(kind);
        if own.refused.remove(key).is_some() {
            tracing::info!(object = title(kind, Some(key)), "is well again, or gone");
            self.note_refusals();
        }
    }

    fn refuse(&mut self, kind: Kind, key: Option<Key>, why: String, stands_in: bool) {
        let object = title(kind, key.as_deref());
        self.reporter.kind(kind, |own| own.status.refusals += 1);
        let known: usize = self.kinds.iter().map(|own| own.refused.len()).sum();
        let own = self.own(kind);
        let key = key.unwrap_or_default();
        let before = own.refused.get(&key);
        let count = before.map_or(0, |before| before.error.count) + 1;
        let is_told = before.is_some_and(|before| before.error.message == why);
        if !is_told {
            tracing::warn!(object, error = why, "an object is not in force as it is written");
        }
        if before.is_none() && known >= REFUSED_MAX {
            return;
        }
        let error = ObjectError { object, message: why, time_unix_ms: unix_ms_now(), count };
        own.refused.insert(key, Refusal { error, stands_in, is_listed: true });
        self.note_refusals();
    }

    fn note_refusals(&self) {
        // Policies first: what of them is not in force matters most.
        let all = self.kinds.iter().rev().flat_map(|own| own.refused.values());
        let first: Vec<ObjectError> =
            all.take(ERRORS_MAX).map(|refusal| refusal.error.clone()).collect();
        self.reporter.with(|standing| standing.refused = first);
        for kind in Kind::ALL {
            self.note_counts(kind);
        }
    }

    fn note_counts(&self, kind: Kind) {
        let own = &self.kinds[index(kind)];
        let held = own.hold.len() as u64;
        let (objects, refused) = (own.known.len() as u64, own.refused.len() as u64);
        self.reporter.kind(kind, |standing: &mut Standing| {
            let status = &mut standing.status;
            (status.objects, status.refused, status.held) = (objects, refused, held);
        });
    }

    /// Sends the node what changed.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        for kind in Kind::ALL {
            self.note_counts(kind);
        }
        let reporter = self.reporter.clone();
        self.feed.send(self.batch.drain(..), |report| {
            report.kubernetes = Some(reporter);
            report.last_success = Some(Instant::now());
        });
    }

    /// Whether something changed since [`Self::set_saved`].
    pub(crate) fn is_unsaved(&self) -> bool {
        self.is_unsaved
    }

    pub(crate) fn set_saved(&mut self) {
        self.is_unsaved = false;
    }

    pub(crate) fn set_unsaved(&mut self) {
        self.is_unsaved = true;
    }

    /// Everything that is in force, as bytes.
    pub(crate) fn bytes(&mut self) -> impl Iterator<Item = (Kind, &Known)> + Clone {
        self.file_restored();
        Kind::ALL.into_iter().zip(self.kinds.iter().map(|own| &own.known))
    }
}

fn title(kind: Kind, key: Option<&str>) -> String {
    match key {
        Some(key) if !key.is_empty() => format!("{} {key}", kind.name()),
        _ => format!("{} (no name)", kind.name()),
    }
}

#[cfg(test)]
mod tests;
