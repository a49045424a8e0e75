//! Watches: what was there, if asked for, then changes and bookmarks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::counts::{Counts, add, one_less};
use super::list::{PIECE_BYTES, fresh};
use super::object::EventType;
use super::request::Query;
use super::status::Failure;
use super::store::{Event, Gone, Moment, Store};
use crate::resource::Resource;

/// Changes taken from the history in one go.
const EVENTS_MAX: usize = 64;
/// Objects looked at in one go: the store is locked meanwhile.
const LOOKED_AT_MAX: usize = 4096;
/// A watch that is about to end says where to go on so long before (as the API server does).
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// The annotation of the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// How watches are served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Between bookmarks.
    pub(super) bookmarks: Duration,
    /// A watch without `timeoutSeconds` ends after so long.
    pub(super) watch: Duration,
}

/// What is sent next.
#[derive(Debug)]
enum Phase {
    /// What was there at this moment, behind this key.
    Initial { moment: Moment, after: Option<String> },
    /// Changes from this turn on.
    Changes { turn: u64 },
}

/// A place among the watches that are open; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    counts: Arc<Counts>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, counts: Arc<Counts>) -> Self {
        add(&counts.watches, 1);
        add(&counts.watches_begun, 1);
        Self { counts, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        one_less(&self.counts.watches);
    }
}

/// A watch on its way.
#[derive(Debug)]
pub(super) struct Watching {
    store: Arc<Store>,
    resource: &'static Resource,
    query: Query,
    phase: Phase,
    /// The resourceVersion up to which the client has been told everything.
    told: u64,
    /// The resourceVersion that the watch began at: what is not newer is not sent.
    begun: u64,
    turn: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    waiting: VecDeque<Bytes>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    times: Times,
    ended: bool,
    counts: Arc<Counts>,
    _place: Place,
}

impl Watching {
    /// Begins a watch.
    ///
    /// # Errors
    /// 504 for a streaming list that is to be newer than what is here. A resourceVersion that is
    /// too old is said by the watch's first event, as the API server does.
    pub(super) async fn begin(
        store: Arc<Store>,
        resource: &'static Resource,
        query: Query,
        times: Times,
        ending: watch::Receiver<bool>,
        place: Place,
    ) -> Result<Self, Failure> {
        let kind = resource.kind;
        let turn = store.subscribe(kind);
        let counts = Arc::clone(&place.counts);
        let mut refused = None;
        let (phase, begun) = match (query.initial_events, query.version) {
            (Some(true), version) => {
                let moment = fresh(&store, resource, version.unwrap_or(0)).await?;
                (Phase::Initial { moment, after: None }, moment.version)
            }
            (None, None | Some(0)) => {
                let moment = store.now(kind);
                (Phase::Initial { moment, after: None }, moment.version)
            }
            (Some(false), None | Some(0)) => {
                let moment = store.now(kind);
                (Phase::Changes { turn: moment.turn }, moment.version)
            }
            (_, Some(version)) => match store.moment(kind, version) {
                Ok(moment) => (Phase::Changes { turn: moment.turn }, version),
                Err(Gone(oldest)) => {
                    add(&counts.expired, 1);
                    refused = Some(Failure::expired(version, oldest));
                    (Phase::Changes { turn: 0 }, version)
                }
            },
        };
        let now = Instant::now();
        let deadline = now + query.timeout_seconds.map_or(times.watch, Duration::from_secs);
        let mut watching = Self {
            store,
            resource,
            phase,
            told: begun,
            begun,
            turn,
            ending,
            waiting: VecDeque::new(),
            deadline,
            next_bookmark: None,
            times,
            ended: false,
            counts,
            _place: place,
            query,
        };
        watching.plan_bookmark(now);
        if let Some(failure) = refused {
            watching.end_with(&failure);
        }
        Ok(watching)
    }

    /// The next line or lines; `None` at the end.
    pub(super) async fn piece(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.waiting.pop_front() {
                add(&self.counts.watch_bytes, piece.len() as u64);
                return Some(piece);
            }
            if self.ended || Instant::now() >= self.deadline || *self.ending.borrow() {
                return None;
            }
            let read = match &self.phase {
                Phase::Initial { .. } => self.read_initial(),
                Phase::Changes { turn } => {
                    let turn = *turn;
                    // Seen before reading: what comes meanwhile wakes again.
                    self.turn.mark_unchanged();
                    self.read_changes(turn)
                }
            };
            match read {
                Err(Gone(oldest)) => {
                    add(&self.counts.watches_behind, 1);
                    self.end_with(&Failure::expired(self.told, oldest));
                }
                Ok(true) => self.wait().await,
                Ok(false) => {}
            }
        }
    }

    fn end_with(&mut self, failure: &Failure) {
        self.waiting.push_back(failure.event());
        self.ended = true;
    }

    /// Takes a piece of what was there. Returns whether there is anything to wait for: never.
    fn read_initial(&mut self) -> Result<bool, Gone> {
        let Phase::Initial { moment, after } = &mut self.phase else { return Ok(false) };
        let moment = *moment;
        let mut piece = BytesMut::new();
        let (mut looked_at, mut reached, mut events) = (0, None, 0);
        let scope = &self.query.scope;
        let whole = self.store.visit(self.resource.kind, moment, after.as_deref(), |object| {
            looked_at += 1;
            reached = Some(Arc::clone(&object.key));
            if scope.holds(object) {
                object.event_into(EventType::Added, &mut piece);
                events += 1;
            }
            looked_at < LOOKED_AT_MAX && piece.len() < PIECE_BYTES
        })?;
        if let Some(reached) = reached {
            *after = Some(reached.to_string());
        }
        add(&self.counts.events, events);
        if !piece.is_empty() {
            self.waiting.push_back(piece.freeze());
        }
        if whole {
            self.phase = Phase::Changes { turn: moment.turn };
            if self.query.initial_events == Some(true) && self.query.bookmarks {
                self.bookmark(true);
            }
        }
        Ok(false)
    }

    /// Takes changes. Returns whether there were none.
    fn read_changes(&mut self, turn: u64) -> Result<bool, Gone> {
        let (events, reached) = self.store.events(self.resource.kind, turn, EVENTS_MAX)?;
        self.phase = Phase::Changes { turn: reached.turn };
        self.told = self.told.max(reached.version);
        for event in &events {
            if !event.is_seen_at(self.begun)
                && let Some(line) = self.line(event)
            {
                add(&self.counts.events, 1);
                self.waiting.push_back(line);
            }
        }
        Ok(events.is_empty())
    }

    /// What the change is to this client, who may see only some objects.
    fn line(&self, event: &Event) -> Option<Bytes> {
        let scope = &self.query.scope;
        if scope.is_everything() {
            return Some(event.object.line());
        }
        let other = |kind: EventType| {
            let mut line = BytesMut::new();
            event.object.event_into(kind, &mut line);
            Some(line.freeze())
        };
        let was = event.previous.as_ref().is_some_and(|previous| scope.holds(previous));
        let is = event.kind != EventType::Deleted && scope.holds(&event.object);
        match (was, is, event.kind) {
            (true, true, _) | (true, false, EventType::Deleted) => Some(event.object.line()),
            (true, false, _) => other(EventType::Deleted),
            (false, true, EventType::Added) => Some(event.object.line()),
            (false, true, _) => other(EventType::Added),
            (false, false, _) => None,
        }
    }

    /// A bookmark at its time, the last one shortly before the end.
    fn plan_bookmark(&mut self, now: Instant) {
        let last = self.deadline.checked_sub(LAST_BOOKMARK).unwrap_or(now);
        let next = (now + self.times.bookmarks).min(last);
        let planned = self.query.bookmarks && next > now;
        self.next_bookmark = planned.then_some(next);
    }

    fn bookmark(&mut self, ends_initial_events: bool) {
        let mut metadata = json!({ "resourceVersion": self.told.to_string() });
        if ends_initial_events {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = json!({
            "kind": self.resource.kind.name(),
            "apiVersion": self.resource.api_version(),
            "metadata": metadata,
        });
        let line = format!("{}\n", json!({ "type": "BOOKMARK", "object": object }));
        add(&self.counts.bookmarks, 1);
        self.waiting.push_back(line.into());
    }

    /// Waits for a change, the time of a bookmark, or the end.
    async fn wait(&mut self) {
        let wake = self.next_bookmark.unwrap_or(self.deadline).min(self.deadline);
        tokio::select! {
            changed = self.turn.changed() => self.ended |= changed.is_err(),
            // Whoever says that watches end may be gone with the server.
            ending = self.ending.changed() => self.ended |= ending.is_err(),
            () = tokio::time::sleep_until(wake) => {
                let now = Instant::now();
                if self.next_bookmark.is_some_and(|due| due <= now) {
                    // A kind that was never filled has nothing to say, nor has one of which the client
                    // knows more than is here, as at the API server.
                    let counts = self.store.counts(self.resource.kind);
                    let is_filled = counts.changes > 0 || counts.objects > 0;
                    if is_filled && counts.version >= self.told {
                        self.bookmark(false);
                    }
                    self.plan_bookmark(now);
                }
            }
        }
    }
}
