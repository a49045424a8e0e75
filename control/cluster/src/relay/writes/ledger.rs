//! What deserves an Event, what was written of it, and what may be written when. Pure: time is
//! handed in, and who writes asks for the next thing to write.
//!
//! Every relay keeps it, so that one that comes to lead knows what is wrong; the leader alone
//! writes. As in client-go, the same reason about the same object is one Event within a window,
//! whose series counts, and one object may not have more than so many writes; beyond that all
//! together may not have more than so many, and then wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::bucket::{Bucket, Rate};
use super::event::{Event, Regarding};
use super::reason::Reason;

/// Findings that are kept, at most; more are counted as suppressed until others are settled.
pub const FINDINGS_MAX: usize = 4096;
/// Objects whose writes are counted, at most: as many findings as there may be are about no more.
const OBJECTS_MAX: usize = FINDINGS_MAX;

/// How much is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// About one object.
    pub object: Rate,
    /// About all together.
    pub all: Rate,
    /// The same reason about the same object is the same Event for so long.
    pub window: Duration,
    /// What is still so is said again after so long: API servers forget Events after an hour
    /// (`--event-ttl`).
    pub remind: Duration,
}

impl Default for Rates {
    /// The first as client-go's `EventSourceObjectSpamFilter` has it.
    fn default() -> Self {
        Self {
            object: Rate { burst: 25, every: Duration::from_secs(300) },
            all: Rate { burst: 100, every: Duration::from_secs(1) },
            window: Duration::from_secs(600),
            remind: Duration::from_secs(1800),
        }
    }
}

/// Something that deserves an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::relay) struct Finding {
    pub(in crate::relay) regarding: Regarding,
    pub(in crate::relay) reason: Reason,
    /// What else tells it from others about the same object.
    pub(in crate::relay) about: &'static str,
    pub(in crate::relay) note: String,
    /// Of the object, by which an occurrence is told from the same one seen again.
    pub(in crate::relay) version: u64,
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Events created.
    pub written: u64,
    /// Occurrences that raised the count of an Event there was.
    pub merged: u64,
    /// Events that a leader before had written.
    pub found: u64,
    /// Occurrences for which there was no room, or of an object that had its share of writes.
    pub suppressed: u64,
    /// Writes that failed; most are tried again.
    pub failed: u64,
}

/// An object and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    kind: &'static str,
    namespace: String,
    name: String,
    reason: Reason,
    about: &'static str,
}

impl Key {
    fn object(&self) -> (&'static str, String, String) {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

#[derive(Debug)]
struct Entry {
    event: Event,
    version: u64,
    /// It is still so.
    is_so: bool,
    /// Begin of the window in which the same reason is the same Event.
    since: Instant,
    /// Occurrences that are not in the Event.
    unwritten: u32,
    /// The last one, by the wall clock.
    last: Timestamp,
    /// How often the Event says that it was seen, and when that was written.
    written: Option<(u32, Instant)>,
    is_pending: bool,
    /// A write failed: not before then.
    rests_until: Option<Instant>,
    failures: u32,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) event: Event,
    /// How often it was seen, this write included.
    pub(super) count: u32,
    /// Of these, so many are new.
    taken: u32,
    pub(super) last: Timestamp,
    /// It is there: its series is changed.
    pub(super) is_known: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This is written.
    Write(Box<Write>),
    /// Nothing may be written before so long.
    Wait(Duration),
    /// There is nothing to write.
    Nothing,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Done,
    /// The Event is there already, and says that it was seen so often.
    Found(u32),
    /// The Event is not there any more.
    Forgotten,
    /// It failed, and is tried again after a rest.
    Failed(Duration),
    /// It will never do.
    Refused,
}

/// All findings.
#[derive(Debug)]
pub(in crate::relay) struct Ledger {
    rates: Rates,
    entries: BTreeMap<Key, Entry>,
    /// Entries that are to be written, in order.
    pending: VecDeque<Key>,
    objects: HashMap<(&'static str, String, String), Bucket>,
    all: Bucket,
    leads: bool,
    pub(super) counts: EventCounts,
}

impl Ledger {
    pub(super) fn new(rates: Rates, now: Instant) -> Self {
        Self {
            rates,
            entries: BTreeMap::new(),
            pending: VecDeque::new(),
            objects: HashMap::new(),
            all: Bucket::full(rates.all, now),
            leads: false,
            counts: EventCounts::default(),
        }
    }

    /// Findings that are so.
    pub(super) fn standing(&self, kind: &str) -> usize {
        self.entries.iter().filter(|(key, own)| key.kind == kind && own.is_so).count()
    }

    /// Findings that are to be written.
    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Notes a finding.
    pub(in crate::relay) fn note(&mut self, finding: Finding, now: Instant, wall: Timestamp) {
        let Finding { regarding, reason, about, note, version } = finding;
        // What happens at another relay is that one's to tell.
        if !self.leads && !reason.lasts {
            return;
        }
        let key = Key {
            kind: regarding.kind,
            namespace: regarding.namespace.clone(),
            name: regarding.name.clone(),
            reason,
            about,
        };
        let window = self.rates.window;
        let full = self.entries.len() >= FINDINGS_MAX;
        let is_known = self.entries.get(&key).is_some_and(|entry| {
            let is_same = entry.event.note == note && entry.event.regarding == regarding;
            is_same || now.duration_since(entry.since) < window
        });
        if is_known && let Some(entry) = self.entries.get_mut(&key) {
            if entry.is_so && entry.version == version {
                return;
            }
            (entry.version, entry.is_so, entry.last) = (version, reason.lasts, wall);
            entry.unwritten = entry.unwritten.saturating_add(1);
        } else {
            if full && !self.entries.contains_key(&key) {
                self.counts.suppressed += 1;
                return;
            }
            let entry = Entry {
                event: Event { regarding, reason, note, first: wall },
                version,
                is_so: reason.lasts,
                since: now,
                unwritten: 1,
                last: wall,
                written: None,
                is_pending: false,
                rests_until: None,
                failures: 0,
            };
            if self.entries.insert(key.clone(), entry).is_some_and(|before| before.is_pending) {
                self.pending.retain(|other| *other != key);
            }
        }
        self.ask(key);
    }

    /// Nothing is wrong with an object any more, but for the reasons in `left`.
    pub(in crate::relay) fn settle(
        &mut self,
        kind: &'static str,
        namespace: &str,
        name: &str,
        is_left: impl Fn(Reason) -> bool,
    ) {
        if self.entries.is_empty() {
            return;
        }
        let of_kind =
            |key: &&Key| key.kind == kind && key.namespace == namespace && key.name == name;
        let first = Key {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: Reason { name: "", action: "", type_: "", lasts: false },
            about: "",
        };
        let keys: Vec<Key> = self
            .entries
            .range(first..)
            .map(|(key, _)| key)
            .take_while(of_kind)
            .filter(|key| !is_left(key.reason))
            .cloned()
            .collect();
        for key in keys {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.is_so = false;
            // Nobody was told, and nobody needs to be.
            if entry.written.is_none() {
                self.entries.remove(&key);
            }
        }
    }

    /// Settles what is about objects of `kind` that are no more.
    pub(in crate::relay) fn settle_missing(
        &mut self,
        kind: &'static str,
        is_there: impl Fn(&str, &str) -> bool,
    ) {
        let gone: Vec<(String, String)> = self
            .entries
            .keys()
            .filter(|key| key.kind == kind && !is_there(&key.namespace, &key.name))
            .map(|key| (key.namespace.clone(), key.name.clone()))
            .collect();
        for (namespace, name) in gone {
            self.settle(kind, &namespace, &name, |_| false);
        }
    }

    /// This relay leads from now on: whatever is so is said, unless it was said before.
    pub(super) fn lead(&mut self) {
        self.leads = true;
        let keys: Vec<Key> = self.entries.keys().cloned().collect();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(&key) {
                (entry.written, entry.unwritten, entry.rests_until) = (None, 1, None);
            }
            self.ask(key);
        }
    }

    /// It leads no more: another says what is so.
    pub(super) fn rest(&mut self) {
        self.leads = false;
        self.pending.clear();
        self.entries.retain(|_, entry| {
            entry.is_pending = false;
            entry.is_so
        });
    }

    fn ask(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if self.leads && !entry.is_pending {
            entry.is_pending = true;
            self.pending.push_back(key);
        }
    }

    /// Says again what is still so, and was never said or long ago; forgets what is over.
    pub(super) fn look_over(&mut self, now: Instant) {
        let Rates { window, remind, .. } = self.rates;
        self.entries.retain(|_, entry| {
            entry.is_so || entry.is_pending || now.duration_since(entry.since) < window
        });
        let is_due = |entry: &Entry| {
            let last = entry.written.map(|(_, at)| at);
            entry.is_so && last.is_none_or(|at| now.duration_since(at) >= remind)
        };
        let due = self.entries.iter().filter(|(_, entry)| is_due(entry) && !entry.is_pending);
        let due: Vec<Key> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.unwritten = entry.unwritten.max(1);
            }
            self.ask(key);
        }
    }

    /// What is to be written next.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let mut soonest: Option<Duration> = None;
        for _ in 0..self.pending.len() {
            let Some(key) = self.pending.pop_front() else { break };
            let Some(entry) = self.entries.get(&key).filter(|entry| entry.is_pending) else {
                continue;
            };
            if let Some(until) = entry.rests_until.filter(|until| *until > now) {
                let left = until.duration_since(now);
                soonest = Some(soonest.map_or(left, |other| other.min(left)));
                self.pending.push_back(key);
                continue;
            }
            // In this order: what one object may not have costs the others nothing.
            let may = self.may_write(&key, now);
            if may && let Err(left) = self.all.take(self.rates.all, now) {
                self.give_back(&key);
                self.pending.push_front(key);
                return Next::Wait(left);
            }
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.is_pending = false;
            let taken = std::mem::take(&mut entry.unwritten);
            if !may {
                self.counts.suppressed += u64::from(taken);
                continue;
            }
            let count = entry.written.map_or(0, |(count, _)| count).saturating_add(taken);
            return Next::Write(Box::new(Write {
                key,
                event: entry.event.clone(),
                count,
                taken,
                last: entry.last,
                is_known: entry.written.is_some(),
            }));
        }
        soonest.map_or(Next::Nothing, Next::Wait)
    }

    /// Takes one of the object's writes, if it has one left.
    fn may_write(&mut self, key: &Key, now: Instant) -> bool {
        let rate = self.rates.object;
        let object = key.object();
        if self.objects.len() >= OBJECTS_MAX && !self.objects.contains_key(&object) {
            self.objects.retain(|_, bucket| !bucket.is_refilled(rate, now));
            if self.objects.len() >= OBJECTS_MAX {
                return false;
            }
        }
        let bucket = self.objects.entry(object).or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, now).is_ok()
    }

    fn give_back(&mut self, key: &Key) {
        if let Some(bucket) = self.objects.get_mut(&key.object()) {
            bucket.give_back();
        }
    }

    /// What became of a write.
    pub(super) fn wrote(&mut self, write: &Write, outcome: Outcome, now: Instant) {
        let taken = u64::from(write.taken);
        match outcome {
            Outcome::Done if write.is_known => self.counts.merged += taken,
            Outcome::Done => {
                self.counts.written += 1;
                self.counts.merged += taken.saturating_sub(1);
            }
            Outcome::Found(_) => self.counts.found += 1,
            Outcome::Forgotten => {}
            Outcome::Failed(_) | Outcome::Refused => self.counts.failed += 1,
        }
        let Some(entry) = self.entries.get_mut(&write.key) else { return };
        match outcome {
            Outcome::Done => {
                entry.written = Some((write.count, now));
                entry.failures = 0;
            }
            // The first of what is new is what the leader before has seen.
            Outcome::Found(count) => {
                entry.written = Some((count, now));
                entry.unwritten = entry.unwritten.saturating_add(write.taken.saturating_sub(1));
                entry.failures = 0;
            }
            Outcome::Forgotten => {
                entry.written = None;
                entry.unwritten = entry.unwritten.saturating_add(write.taken);
            }
            Outcome::Failed(rest) => {
                entry.unwritten = entry.unwritten.saturating_add(write.taken);
                entry.failures = entry.failures.saturating_add(1);
                entry.rests_until = Some(now + rest);
            }
            // It rests until it is to be said again anyway.
            Outcome::Refused => entry.written = Some((write.count, now)),
        }
        if entry.unwritten > 0 {
            self.ask(write.key.clone());
        }
    }

    /// How often the write of this finding has failed in a row.
    pub(super) fn failures(&self, key: &Key) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.failures)
    }
}

#[cfg(test)]
mod tests;
