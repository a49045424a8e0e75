//! One kind as a node follows it: what servers say of it is read at once, and told to people.

use std::rc::Rc;
use std::time::{Duration, Instant};

use control::admin::status::ObjectError;
use control::model::{Kind, ObjectName};
use serde_json::value::RawValue;

use super::Shared;
use super::standing::unix_ms_now;
use crate::client::ClientError;
use crate::decode::{decode, name};
use crate::list_watch::{List, Sink};

/// Where one kind's objects go.
pub(super) struct OfKind {
    shared: Rc<Shared>,
    kind: Kind,
    /// A list was complete before.
    was_listed: bool,
    /// What the list that is read has taken so far.
    listing: Duration,
}

impl OfKind {
    pub(super) fn new(shared: Rc<Shared>, kind: Kind) -> Self {
        Self { shared, kind, was_listed: false, listing: Duration::ZERO }
    }

    fn note(&self, error: &ClientError) {
        let (object, message) = (self.kind.name(), error.to_string());
        let reason = error.reason();
        self.count(reason);
        let is_new = self.shared.reporter.kind(self.kind, |own| {
            own.status.in_step = false;
            let same = own.status.last_error.as_mut().filter(|last| last.message == message);
            let time_unix_ms = unix_ms_now();
            match same {
                Some(last) => {
                    (last.count, last.time_unix_ms) = (last.count + 1, time_unix_ms);
                    false
                }
                None => {
                    let object = object.to_owned();
                    let message = message.clone();
                    let error = ObjectError { object, message, time_unix_ms, count: 1 };
                    own.status.last_error = Some(error);
                    true
                }
            }
        });
        if is_new {
            tracing::warn!(
                kind = object,
                reason,
                error = message,
                "following failed: what is in force stays"
            );
        } else {
            tracing::debug!(kind = object, reason, error = message, "following failed again");
        }
    }

    fn count(&self, reason: &str) {
        self.shared.reporter.kind(self.kind, |own| {
            let at = ClientError::REASONS.iter().position(|other| *other == reason);
            if let Some(count) = at.and_then(|at| own.failures.get_mut(at)) {
                *count += 1;
            }
        });
    }

    /// An object was taken over, which took since `began`.
    fn took(&mut self, began: Instant, is_list: bool) {
        if is_list {
            self.listing += began.elapsed();
            return;
        }
        self.shared.reporter.kind(self.kind, |own| own.status.events += 1);
        self.applied(began.elapsed());
    }

    fn applied(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.shared.reporter.kind(self.kind, |own| {
            own.status.apply_microseconds += took;
            own.status.longest_apply_microseconds = own.status.longest_apply_microseconds.max(took);
        });
    }
}

impl Sink for OfKind {
    fn asks(&mut self, _: bool) {}

    fn granted(&mut self, is_list: bool) {
        self.shared.reporter.kind(self.kind, |own| {
            own.status.watches += 1;
            own.status.in_step = !is_list;
        });
    }

    fn alive(&mut self) {
        self.shared.reporter.kind(self.kind, |own| {
            own.sign_of_life = Some(Instant::now());
            own.status.absent = false;
            if let Some(error) = own.status.last_error.take() {
                tracing::info!(kind = own.status.kind, failures = error.count, "followed again");
            }
        });
    }

    fn begin_list(&mut self) {
        self.listing = Duration::ZERO;
        self.shared.whole.borrow_mut().begin_list(self.kind);
    }

    fn abort_list(&mut self) {
        self.shared.whole.borrow_mut().abort_list(self.kind);
    }

    fn end_list(&mut self, list: &List<'_>) -> Result<bool, String> {
        let began = Instant::now();
        let is_held = self.shared.whole.borrow_mut().end_list(self.kind, list.is_second);
        self.applied(self.listing + began.elapsed());
        let is_relist = std::mem::replace(&mut self.was_listed, true);
        self.shared.reporter.kind(self.kind, |own| {
            own.status.lists += 1;
            own.status.streamed_lists += u64::from(list.is_streamed);
            own.status.relists += u64::from(is_relist);
            own.status.in_step = true;
        });
        Ok(is_held)
    }

    fn put(&mut self, object: &RawValue, is_list: bool) {
        let began = Instant::now();
        let decoded = decode(self.kind, object);
        self.shared.whole.borrow_mut().take(self.kind, decoded);
        self.took(began, is_list);
    }

    fn gone(&mut self, object: &RawValue, is_list: bool) -> Result<(), String> {
        let began = Instant::now();
        let name: ObjectName =
            name(self.kind, object).ok_or_else(|| "a removal names no object".to_owned())?;
        self.shared.whole.borrow_mut().gone(self.kind, &name);
        self.took(began, is_list);
        Ok(())
    }

    fn bookmark(&mut self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn flush(&mut self) {
        self.shared.whole.borrow_mut().flush();
    }

    /// A watch that never said anything is counted, and asked for anew.
    fn quiet(&mut self, error: &ClientError) {
        tracing::debug!(kind = self.kind.name(), %error, "a watch was quiet from its beginning");
        self.count(error.reason());
    }

    fn failed(&mut self, error: &ClientError, is_absent: bool) {
        self.note(error);
        if let ClientError::Frontend { .. } = error {
            self.shared.whole.borrow_mut().yield_to_servers();
        }
        if is_absent {
            self.shared.reporter.kind(self.kind, |own| own.status.absent = true);
            self.shared.reporter.complete(self.kind);
        }
    }

    fn is_abandoned(&self) -> bool {
        self.shared.whole.borrow().is_abandoned()
    }
}
