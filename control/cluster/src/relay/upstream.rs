//! What servers say of one kind becomes what is served: bytes as they are, but for what nodes do not
//! read. A list is taken whole at its end, so that nobody sees a part of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::model::Kind;
use serde_json::value::RawValue;

use super::hold::{Holds, Taken};
use super::judge::Judge;
use super::standing::Standing;
use super::strip::strip;
use crate::client::ClientError;
use crate::list_watch::{self, List, Sink};
use crate::serve::{Encoded, Store};

/// When streamed lists are tried again where they were refused.
const STREAM_RETRY: Duration = Duration::from_secs(1800);
/// A streamed list may take so many times what an answer may take to begin.
const LIST_ANSWERS: u32 = 4;

/// What a server is given, at most, to end a watch whose time is over.
const GRACE: Duration = Duration::from_secs(15);

/// When to lose patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// A watch without a byte for so long is given up and asked for anew; all nodes lag for so long where
    /// a connection is half open. It is asked for a little less, since an empty kind gets no bookmarks, so
    /// that silence alone proves nothing: what goes on beyond its end is gone.
    pub silence: Duration,
    /// The first pause after a failure, and the longest.
    pub backoff: (Duration, Duration),
    /// Until the second list, when the first has lost too much to be believed.
    pub hold: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(75),
            backoff: (Duration::from_millis(500), Duration::from_secs(30)),
            hold: Duration::from_secs(20),
        }
    }
}

impl Times {
    /// For the loop; `answer`: an answer may take so long to begin.
    pub(super) fn of_loop(&self, answer: Duration) -> list_watch::Times {
        let watch = self.silence.saturating_sub(GRACE.min(self.silence / 4));
        list_watch::Times {
            answer,
            silence: self.silence,
            watch: (watch, watch),
            list: answer.saturating_mul(LIST_ANSWERS),
            stream_retry: STREAM_RETRY,
            // For all nodes at once: not as rarely as each of them would ask.
            absent_retry: self.backoff.1,
            backoff: self.backoff,
            hold: self.hold,
        }
    }
}

fn number(version: &str) -> Result<u64, String> {
    version.parse().map_err(|_| format!("{version:?} is no resourceVersion"))
}

/// Takes one kind.
pub(super) struct OfKind {
    kind: Kind,
    store: Arc<Store>,
    standing: Arc<Standing>,
    holds: Arc<Holds>,
    /// Absent where nothing is written.
    judge: Option<Judge>,
    /// What the list that is being read has named.
    listed: BTreeMap<String, Encoded>,
}

impl OfKind {
    pub(super) fn new(
        kind: Kind,
        store: Arc<Store>,
        standing: Arc<Standing>,
        holds: Arc<Holds>,
        judge: Option<Judge>,
    ) -> Self {
        Self { kind, store, standing, holds, judge, listed: BTreeMap::new() }
    }

    /// The object as it is served; absent when it cannot be.
    fn strip(&self, object: &RawValue) -> Option<Encoded> {
        match strip(self.kind, object.get().as_bytes()) {
            Ok(object) => Some(object),
            Err(error) => {
                self.standing.refused(self.kind, &error.to_string());
                if let Some(judge) = &self.judge {
                    judge.unservable(object, error.to_string());
                }
                None
            }
        }
    }
}

impl Sink for OfKind {
    fn asks(&mut self, is_list: bool) {
        if is_list {
            self.standing.listing(self.kind);
        }
    }

    fn granted(&mut self, is_list: bool) {
        if !is_list {
            self.standing.watching(self.kind);
        }
    }

    fn alive(&mut self) {
        self.standing.alive(self.kind);
    }

    fn begin_list(&mut self) {
        self.listed.clear();
    }

    fn abort_list(&mut self) {
        self.listed.clear();
    }

    /// What it has lost beyond belief stays.
    fn end_list(&mut self, list: &List<'_>) -> Result<bool, String> {
        let began = Instant::now();
        let (version, is_streamed) = (number(list.version)?, list.is_streamed);
        let objects: Vec<Encoded> = std::mem::take(&mut self.listed).into_values().collect();
        let Taken { replaced, list, held } =
            self.holds.list(self.kind, objects, version, list.is_second);
        self.standing.listed(self.kind, replaced);
        if let Some(judge) = &mut self.judge {
            judge.listed(&list, held);
        }
        if is_streamed {
            self.standing.watching(self.kind);
        }
        self.standing.applied(self.kind, began);
        Ok(held > 0)
    }

    fn put(&mut self, object: &RawValue, is_list: bool) {
        let began = Instant::now();
        let bytes = object.get().len();
        let object = self.strip(object);
        if is_list {
            self.listed.extend(object.map(|object| (object.key(), object)));
            return;
        }
        self.standing.event(self.kind, bytes);
        if let Some(object) = object {
            let released = self.holds.put(self.kind, &object);
            if let Some(judge) = &mut self.judge {
                for key in &released {
                    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                    judge.went(namespace, name);
                }
                judge.came(&object);
            }
        }
        self.standing.applied(self.kind, began);
    }

    fn gone(&mut self, object: &RawValue, is_list: bool) -> Result<(), String> {
        let began = Instant::now();
        let bytes = object.get().len();
        let object = self.strip(object);
        if is_list {
            if let Some(object) = object {
                self.listed.remove(&object.key());
            }
            return Ok(());
        }
        self.standing.event(self.kind, bytes);
        if let Some(object) = object {
            self.holds.gone(self.kind, &object);
            if let Some(judge) = &mut self.judge {
                judge.went(&object.namespace, &object.name);
            }
        }
        self.standing.applied(self.kind, began);
        Ok(())
    }

    fn bookmark(&mut self, version: &str) -> Result<(), String> {
        self.store.advance(self.kind, number(version)?);
        self.standing.bookmark(self.kind);
        Ok(())
    }

    fn flush(&mut self) {}

    fn quiet(&mut self, error: &ClientError) {
        tracing::debug!(kind = self.kind.name(), %error, "a watch was quiet from its beginning");
    }

    fn failed(&mut self, error: &ClientError, is_absent: bool) {
        if is_absent && self.store.set_absent(self.kind) {
            self.standing.absent(self.kind);
            return;
        }
        self.standing.failed(self.kind, &error.to_string());
    }

    /// The relay ends its tasks itself.
    fn is_abandoned(&self) -> bool {
        false
    }
}
