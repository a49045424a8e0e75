//! One kind: listed, then watched, for ever.
//!
//! kube's own `watcher` is not used, for what it hides. Its bookmarks are swallowed, so that
//! silence cannot be told from quiet; a line of its stream has no bound, and an object's size is not
//! seen; one object that cannot be read fails the list that names it; its watches end after one
//! fixed time below 295 s, for all nodes alike; and a server without streamed lists is an error to
//! it for ever.

use std::rc::Rc;
use std::time::Duration;

use control::admin::status::ObjectError;
use control::model::{Kind, ObjectName};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Shared;
use super::lines::Lines;
use super::standing::unix_ms_now;
use crate::client::ClientError;
use crate::client::server::{backoff, jittered};
use crate::decode::{Metadata, decode, metadata, name};
use crate::resource::Resource;

/// Objects of a page of a list.
const PAGE: usize = 500;
/// Longest page: as many objects of the largest that etcd takes would have more, and are not met.
const PAGE_BYTES_MAX: usize = 256 << 20;
/// Marks the end of a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// A watch that ended sooner, without an event, was none.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// One event of a watch.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// One page of a list.
#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    rest: Option<String>,
}

/// What an API server says on refusal.
#[derive(Deserialize)]
struct Status {
    code: Option<u16>,
    message: Option<String>,
}

/// Follows one kind.
pub(super) struct Follower {
    shared: Rc<Shared>,
    kind: Kind,
    /// Where to go on watching; `None`: a list is needed.
    version: Option<String>,
    /// Failures since a server last said something of it.
    failures: u32,
    /// Not before then, lists are asked for as streams.
    streams_from: Instant,
    /// A second list is due then, since losses of the first are held.
    held_until: Option<Instant>,
    /// A list was complete before.
    was_listed: bool,
}

/// How one turn ended well.
enum Ended {
    /// There is more to be asked for.
    Next,
    /// The server ended the watch before its time.
    Early,
}

impl Follower {
    pub(super) fn new(shared: Rc<Shared>, kind: Kind) -> Self {
        Self {
            shared,
            kind,
            version: None,
            failures: 0,
            streams_from: Instant::now(),
            held_until: None,
            was_listed: false,
        }
    }

    pub(super) async fn follow(mut self) {
        while !self.shared.whole.borrow().is_abandoned() {
            let turn = self.turn().await;
            self.shared.whole.borrow_mut().flush();
            let pause = match turn {
                Ok(Ended::Next) => continue,
                Ok(Ended::Early) => jittered(self.shared.settings.backoff.0),
                Err(error) => self.failed(error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One list or one watch.
    async fn turn(&mut self) -> Result<Ended, ClientError> {
        if self.held_until.is_some_and(|due| due <= Instant::now()) {
            self.version = None;
        }
        let version = self.version.clone();
        let is_list = version.is_none();
        let may_stream = self.streams_from <= Instant::now();
        let outcome = match version {
            None if may_stream => match self.stream(None).await {
                Err(error) if is_unknown(&error) => {
                    tracing::info!(kind = self.kind.name(), %error, "lists are not streamed here");
                    self.streams_from = Instant::now() + self.shared.settings.stream_retry;
                    self.shared.whole.borrow_mut().abort_list(self.kind);
                    self.list().await
                }
                outcome => outcome,
            },
            None => self.list().await,
            version => self.stream(version).await,
        };
        if outcome.is_err() && is_list {
            self.shared.whole.borrow_mut().abort_list(self.kind);
        }
        outcome
    }

    fn path(&self) -> String {
        Resource::of(self.kind).path()
    }

    /// Says what failed; gives how long to wait.
    fn failed(&mut self, error: ClientError) -> Duration {
        let settings = &self.shared.settings;
        let is_expired = matches!(error, ClientError::Http { status: 410, .. });
        let is_absent = matches!(error, ClientError::Http { status: 404, .. });
        if is_expired || is_absent {
            self.version = None;
        }
        self.failures = self.failures.saturating_add(1);
        self.note(&error);
        if is_absent && self.may_be_absent() {
            self.shared.reporter.kind(self.kind, |own| own.status.absent = true);
            self.shared.reporter.complete(self.kind);
            return jittered(settings.absent_retry);
        }
        // A list takes the place of what expired at once: nothing is wrong with the server.
        if is_expired && self.failures == 1 {
            return Duration::ZERO;
        }
        backoff(settings.backoff, self.failures).max(self.shared.servers.rest())
    }

    /// Whether a server may do without the kind: those of the core are never left out.
    fn may_be_absent(&self) -> bool {
        !Resource::of(self.kind).group.is_empty()
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

    /// A watch that never said anything is counted, and asked for anew.
    fn quiet(&self, error: &ClientError) {
        tracing::debug!(kind = self.kind.name(), %error, "a watch was quiet from its beginning");
        self.count(error.reason());
    }

    fn count(&self, reason: &str) {
        self.shared.reporter.kind(self.kind, |own| {
            let at = ClientError::REASONS.iter().position(|other| *other == reason);
            if let Some(count) = at.and_then(|at| own.failures.get_mut(at)) {
                *count += 1;
            }
        });
    }

    /// A server said something of the kind.
    fn alive(&mut self) {
        self.failures = 0;
        self.shared.reporter.kind(self.kind, |own| {
            own.sign_of_life = Some(std::time::Instant::now());
            own.status.absent = false;
            if let Some(error) = own.status.last_error.take() {
                tracing::info!(kind = own.status.kind, failures = error.count, "followed again");
            }
        });
    }

    /// A list in pages, for servers that stream none.
    async fn list(&mut self) -> Result<Ended, ClientError> {
        self.shared.whole.borrow_mut().begin_list(self.kind);
        let (path, silence) = (self.path(), self.shared.settings.access.request_timeout);
        let mut rest: Option<String> = None;
        loop {
            let next =
                rest.map_or_else(String::new, |rest| format!("&continue={}", escaped(&rest)));
            let answer =
                self.shared.servers.get(&format!("{path}?limit={PAGE}{next}"), silence).await?;
            let server = answer.server().name();
            let bytes = answer.whole(PAGE_BYTES_MAX).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes).map_err(|error| {
                ClientError::Garbage { server, message: format!("this is no list: {error}") }
            })?;
            for item in page.items.into_iter().flatten() {
                let decoded = decode(self.kind, item);
                self.shared.whole.borrow_mut().take(self.kind, decoded);
            }
            self.shared.whole.borrow_mut().flush();
            self.alive();
            rest = page.metadata.rest.filter(|rest| !rest.is_empty());
            if rest.is_none() {
                self.listed(page.metadata.resource_version, false);
                return Ok(Ended::Next);
            }
            // Others may be in step already.
            tokio::task::yield_now().await;
        }
    }

    /// A list is complete, and `version` is where to go on.
    fn listed(&mut self, version: Option<String>, is_streamed: bool) {
        let is_held = self.shared.whole.borrow_mut().end_list(self.kind);
        let due = Instant::now() + jittered(self.shared.settings.hold_after);
        self.held_until = is_held.then_some(due);
        self.version = version;
        let is_relist = std::mem::replace(&mut self.was_listed, true);
        self.shared.reporter.kind(self.kind, |own| {
            own.status.lists += 1;
            own.status.streamed_lists += u64::from(is_streamed);
            own.status.relists += u64::from(is_relist);
            own.status.in_step = true;
        });
        self.alive();
    }

    /// A watch, from `version` on, or with a list before it.
    async fn stream(&mut self, version: Option<String>) -> Result<Ended, ClientError> {
        let settings = &self.shared.settings;
        let (least, most) = settings.watch;
        let time = least + most.saturating_sub(least).mul_f64(fastrand::f64());
        let seconds = time.as_secs().max(1);
        let from = match &version {
            Some(version) => format!("resourceVersion={}", escaped(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let path = self.path();
        let query = format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&{from}");
        let began = Instant::now();
        let mut list_until = version.is_none().then(|| began + settings.list_timeout);
        let answer = self.shared.servers.get(&format!("{path}?{query}"), settings.silence).await?;
        let mut lines = Lines::new(answer);
        match list_until {
            Some(_) => self.shared.whole.borrow_mut().begin_list(self.kind),
            None => {
                lines.may_be_quiet();
                self.alive();
            }
        }
        self.shared.reporter.kind(self.kind, |own| {
            own.status.watches += 1;
            own.status.in_step = list_until.is_none();
        });
        let mut events = 0_u64;
        loop {
            let due = list_until.or(self.held_until);
            let line = tokio::select! {
                biased;
                line = lines.next() => match line {
                    // Quiet from its beginning: a kind without objects may get no bookmarks.
                    Err(error @ ClientError::Silent { .. }) if events == 0 && list_until.is_none() => {
                        self.quiet(&error);
                        return Ok(Ended::Next);
                    }
                    line => line?,
                },
                () = until(due) => match list_until {
                    // Asked anew, for a second opinion.
                    None => return Ok(Ended::Next),
                    Some(_) => return Err(ClientError::Garbage {
                        server: lines.server(),
                        message: "a streamed list does not end".to_owned(),
                    }),
                },
            };
            let Some(line) = line else {
                let lasted = began.elapsed();
                if list_until.is_some() || (events == 0 && lasted < SHORTEST_WATCH) {
                    let message = "the watch ended before it began".to_owned();
                    return Err(ClientError::Connection { server: lines.server(), message });
                }
                let is_early = lasted + Duration::from_secs(1) < Duration::from_secs(seconds);
                return Ok(if is_early { Ended::Early } else { Ended::Next });
            };
            self.alive();
            events += 1;
            self.event(&line, &mut list_until, &lines.server())?;
            if list_until.is_none() {
                lines.may_be_quiet();
            }
            if !lines.is_at_hand() {
                self.shared.whole.borrow_mut().flush();
            }
        }
    }

    fn event(
        &mut self,
        line: &[u8],
        list_until: &mut Option<Instant>,
        server: &str,
    ) -> Result<(), ClientError> {
        let garbage = |message: String| ClientError::Garbage { server: server.to_owned(), message };
        let event: Event<'_> = serde_json::from_slice(line)
            .map_err(|error| garbage(format!("this is no event of a watch: {error}")))?;
        let is_list = list_until.is_some();
        match event.kind {
            "ADDED" | "MODIFIED" => {
                let decoded = decode(self.kind, event.object);
                self.shared.whole.borrow_mut().take(self.kind, decoded);
            }
            "DELETED" => {
                let name: ObjectName = name(self.kind, event.object)
                    .ok_or_else(|| garbage("a removal names no object".to_owned()))?;
                self.shared.whole.borrow_mut().gone(self.kind, &name);
            }
            "BOOKMARK" => {
                let Metadata { resource_version, annotations, .. } =
                    metadata(event.object).unwrap_or_default();
                let ends = annotations.is_some_and(|all| {
                    all.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true")
                });
                if is_list && ends {
                    *list_until = None;
                    self.listed(resource_version, true);
                } else if !is_list && resource_version.is_some() {
                    self.version = resource_version;
                }
                return Ok(());
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(event.object.get())
                    .map_err(|error| garbage(format!("an error that is none: {error}")))?;
                return Err(ClientError::Http {
                    server: server.to_owned(),
                    status: status.code.unwrap_or(500),
                    message: status.message.unwrap_or_default(),
                });
            }
            other => return Err(garbage(format!("{:?} is no type of event", cut(other)))),
        }
        if !is_list {
            let version = metadata(event.object).and_then(|own| own.resource_version);
            self.version = version.or(self.version.take());
            self.shared.reporter.kind(self.kind, |own| own.status.events += 1);
        }
        Ok(())
    }
}

/// Whether a server does not know streamed lists: it refuses the question, or does not end one.
fn is_unknown(error: &ClientError) -> bool {
    match error {
        ClientError::Http { status, .. } => matches!(status, 400 | 405 | 422),
        ClientError::Garbage { .. } => true,
        _ => false,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn cut(text: &str) -> String {
    text.chars().take(32).collect()
}

/// A value of a query.
fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
