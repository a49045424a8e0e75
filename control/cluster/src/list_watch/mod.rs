//! One kind: listed, then watched, for ever. Nodes and relays follow servers by this one loop; what
//! becomes of the objects is a [`Sink`]'s, which is where they differ: a node reads them at once, a
//! relay keeps their bytes.
//!
//! Reading order: this file (the loop), [`wire`] (what servers send), [`lines`] (a watch's answer in
//! events).
//!
//! kube's own `watcher` is not used, for what it hides. Its bookmarks are swallowed, so that
//! silence cannot be told from quiet; a line of its stream has no bound, and an object's size is not
//! seen; one object that cannot be read fails the list that names it; its watches end after one
//! fixed time below 295 s, for all nodes alike; and a server without streamed lists is an error to
//! it for ever.

use std::sync::Arc;
use std::time::Duration;

use control::model::Kind;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::client::server::{backoff, jittered};
use crate::client::{ClientError, Servers, Spoilers};
use crate::kept::{EVERYTHING, has_more};
use crate::resource::{GROUPS, Resource};

mod lines;
pub(crate) mod wire;

use lines::Lines;
use wire::{Event, Groups, PAGE, PAGE_BYTES_MAX, Page, Status, escaped, metadata};

/// A watch that ended sooner, without an event, was none.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// Between two lists that are asked for anew since a server has more of it.
const MORE_RETRY: Duration = Duration::from_secs(60);
/// Expiries are apart that lie further from each other than so many of the longest pauses.
const EXPIRIES_APART: u32 = 4;

/// When to lose patience, and when to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// Between two pieces of a list's page.
    pub(crate) answer: Duration,
    /// A watch without a byte for so long is given up.
    pub(crate) silence: Duration,
    /// A watch lasts at least and at most so long.
    pub(crate) watch: (Duration, Duration),
    /// A streamed list may take so long; then lists are asked for in pages.
    pub(crate) list: Duration,
    /// When streamed lists are tried again where they were refused.
    pub(crate) stream_retry: Duration,
    /// When a kind that no server has is asked for again.
    pub(crate) absent_retry: Duration,
    /// The first pause after a failure, and the longest.
    pub(crate) backoff: (Duration, Duration),
    /// Until a second list, when losses of the first are held.
    pub(crate) hold: Duration,
}

/// What becomes of one kind's objects, and who is told how following them stands. A string that is
/// given back says what is wrong with what the server sent: it is garbage then.
pub(crate) trait Sink {
    /// A list or watch is about to be asked for.
    fn asks(&mut self, is_list: bool);
    /// A watch, or a list as a stream, was granted.
    fn granted(&mut self, is_list: bool);
    /// The server has said something of the kind.
    fn alive(&mut self);
    /// A list begins: what it does not name by its end is missing from it.
    fn begin_list(&mut self);
    /// The list that was begun will not end.
    fn abort_list(&mut self);
    /// The list is whole. Gives whether some of what it has lost is held, so that a second one is due.
    fn end_list(&mut self, list: &List<'_>) -> Result<bool, String>;
    /// An object came or changed, or the list that is being read names it.
    fn put(&mut self, object: &RawValue, is_list: bool);
    /// An object went.
    fn gone(&mut self, object: &RawValue, is_list: bool) -> Result<(), String>;
    /// All changes up to `version` were sent.
    fn bookmark(&mut self, version: &str) -> Result<(), String>;
    /// Nothing more is at hand.
    fn flush(&mut self);
    /// A watch was quiet from its beginning to its bound, and is asked for anew.
    fn quiet(&mut self, error: &ClientError);
    /// Following failed; `is_absent`: since no server has the kind.
    fn failed(&mut self, error: &ClientError, is_absent: bool);
    /// Whether nobody takes anything any more.
    fn is_abandoned(&self) -> bool;
}

/// A list that is whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List<'a> {
    /// Its resourceVersion.
    pub(crate) version: &'a str,
    pub(crate) is_streamed: bool,
    /// It was asked for so long after one whose losses are held that it is a second opinion.
    pub(crate) is_second: bool,
}

/// Follows one kind.
pub(crate) struct Follower<S> {
    servers: Arc<Servers>,
    kind: Kind,
    times: Times,
    sink: S,
    /// Servers that are asked last.
    spoilers: Spoilers,
    /// Where to go on watching; `None`: a list is needed.
    version: Option<String>,
    /// How much of objects the last list had, or the one that is read.
    kept: u32,
    /// Not before then, a list is asked for anew because a server has more of it: behind one name, some
    /// relays may be of an earlier version.
    more_from: Instant,
    /// Failures since a server last said something of it.
    failures: u32,
    /// When what was known last expired, and how often it did one soon after the other: a server whose
    /// past is shorter than a list takes says so again and again.
    expired: Option<(Instant, u32)>,
    /// Not before then, lists are asked for as streams.
    streams_from: Instant,
    /// A second list is due then, since losses of the first are held.
    held_until: Option<Instant>,
    /// The list that is read was asked for after that.
    is_second: bool,
    /// The last watch said nothing to its end: perhaps there was nothing to say.
    is_unsure: bool,
}

/// How one turn ended well.
enum Ended {
    /// There is more to be asked for.
    Next,
    /// The server ended the watch before its time.
    Early,
}

impl<S: Sink> Follower<S> {
    pub(crate) fn new(servers: Arc<Servers>, kind: Kind, times: Times, sink: S) -> Self {
        Self {
            servers,
            kind,
            times,
            sink,
            spoilers: Spoilers::default(),
            version: None,
            kept: EVERYTHING,
            more_from: Instant::now(),
            failures: 0,
            expired: None,
            streams_from: Instant::now(),
            held_until: None,
            is_second: false,
            is_unsure: false,
        }
    }

    /// Lists and watches until nobody takes anything any more.
    pub(crate) async fn follow(mut self) {
        while !self.sink.is_abandoned() {
            let turn = self.turn().await;
            self.sink.flush();
            let pause = match turn {
                Ok(Ended::Next) => continue,
                Ok(Ended::Early) => jittered(self.times.backoff.0),
                Err(error) => {
                    let is_absent = is_unfound(&error) && self.is_absent().await;
                    self.failed(error, is_absent)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One list or one watch.
    async fn turn(&mut self) -> Result<Ended, ClientError> {
        self.is_second = self.held_until.is_some_and(|due| due <= Instant::now());
        if self.is_second {
            self.version = None;
        }
        if self.is_unsure {
            self.assure().await?;
        }
        let version = self.version.clone();
        let is_list = version.is_none();
        self.sink.asks(is_list);
        let may_stream = self.streams_from <= Instant::now();
        let outcome = match version {
            None if may_stream => match self.stream(None).await {
                Err(error) if is_unknown(&error) => {
                    tracing::info!(kind = self.kind.name(), %error, "lists are not streamed here");
                    self.streams_from = Instant::now() + self.times.stream_retry;
                    self.sink.abort_list();
                    self.list().await
                }
                outcome => outcome,
            },
            None => self.list().await,
            version => self.stream(version).await,
        };
        if outcome.is_err() && is_list {
            self.sink.abort_list();
        }
        outcome
    }

    /// Asks how far the server is. One whose store was restored from an older copy is not as far as it
    /// was, and has nothing to say of a watch that begins where it has yet to come (kube-apiserver
    /// leaves out bookmarks, too, that are not newer than where the watch began).
    async fn assure(&mut self) -> Result<(), ClientError> {
        if let Some(held) = self.version.clone() {
            let asked = format!("{}?limit=1", self.path());
            let answer = self.servers.get(&asked, self.times.answer, &self.spoilers).await?;
            let server = answer.server().name();
            let bytes = answer.whole(PAGE_BYTES_MAX).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes)
                .map_err(|error| garbage(&server, format!("this is no list: {error}")))?;
            self.alive();
            went_back(&held, page.metadata.resource_version.as_deref(), &server)?;
        }
        self.is_unsure = false;
        Ok(())
    }

    fn path(&self) -> String {
        Resource::of(self.kind).path()
    }

    /// Says what failed, `is_absent` since no server has the kind; gives how long to wait.
    fn failed(&mut self, error: ClientError, is_absent: bool) -> Duration {
        let is_expired = matches!(error, ClientError::Http { status: 410, .. });
        if is_expired || is_unfound(&error) || is_ahead(&error) {
            (self.version, self.is_unsure) = (None, false);
        }
        self.failures = self.failures.saturating_add(1);
        self.sink.failed(&error, is_absent);
        if is_absent {
            return jittered(self.times.absent_retry);
        }
        self.servers.spoilt(&error, &mut self.spoilers);
        // Nothing is wrong with the server, but all that it told of may come to list at once.
        let in_a_row = if is_expired { self.expiries() } else { self.failures };
        backoff(self.times.backoff, in_a_row).max(self.servers.rest())
    }

    /// Another expiry: how many there were, each soon after the one before.
    fn expiries(&mut self) -> u32 {
        let (now, soon) = (Instant::now(), self.times.backoff.1 * EXPIRIES_APART);
        let before = self.expired.filter(|(at, _)| now.duration_since(*at) < soon);
        let count = before.map_or(1, |(_, count)| count.saturating_add(1));
        self.expired = Some((now, count));
        count
    }

    /// Whether a server that does not find the kind says of its group, too, that it has none. A balancer
    /// before servers that are away finds nothing at all, and a node that believed it would serve without
    /// any policy. Those of the core are never left out.
    async fn is_absent(&self) -> bool {
        let group = Resource::of(self.kind).group;
        if group.is_empty() {
            return false;
        }
        let asked = self.servers.get(GROUPS, self.times.answer, &self.spoilers);
        let Ok(answer) = asked.await else { return false };
        let Ok(bytes) = answer.whole(Groups::BYTES_MAX).await else { return false };
        serde_json::from_slice::<Groups>(&bytes).is_ok_and(|groups| !groups.have(group))
    }

    /// A server said something of the kind.
    fn alive(&mut self) {
        self.failures = 0;
        self.sink.alive();
    }

    /// A list in pages, for servers that stream none.
    async fn list(&mut self) -> Result<Ended, ClientError> {
        self.sink.begin_list();
        self.kept = EVERYTHING;
        let path = self.path();
        let mut rest: Option<String> = None;
        loop {
            let next =
                rest.map_or_else(String::new, |rest| format!("&continue={}", escaped(&rest)));
            let asked = format!("{path}?limit={PAGE}{next}");
            let answer = self.servers.get(&asked, self.times.answer, &self.spoilers).await?;
            let server = answer.server().name();
            self.kept = self.kept.min(answer.kept());
            let bytes = answer.whole(PAGE_BYTES_MAX).await?;
            let page: Page<'_> = serde_json::from_slice(&bytes)
                .map_err(|error| garbage(&server, format!("this is no list: {error}")))?;
            for item in page.items.into_iter().flatten() {
                self.sink.put(item, true);
            }
            self.sink.flush();
            self.alive();
            rest = page.metadata.rest.filter(|rest| !rest.is_empty());
            if rest.is_none() {
                self.listed(page.metadata.resource_version, false, &server)?;
                return Ok(Ended::Next);
            }
            // Others may be in step already.
            tokio::task::yield_now().await;
        }
    }

    /// A list is complete, and `version` is where to go on.
    fn listed(
        &mut self,
        version: Option<String>,
        is_streamed: bool,
        server: &str,
    ) -> Result<(), ClientError> {
        let version = version.filter(|version| !version.is_empty());
        let version =
            version.ok_or_else(|| garbage(server, "a list without resourceVersion".to_owned()))?;
        let list = List { version: &version, is_streamed, is_second: self.is_second };
        let is_held = self.sink.end_list(&list).map_err(|message| garbage(server, message))?;
        // A list before its time decides nothing, and puts nothing off.
        let due = self.held_until.filter(|_| !self.is_second);
        let due = due.unwrap_or_else(|| Instant::now() + jittered(self.times.hold));
        self.held_until = is_held.then_some(due);
        (self.version, self.is_unsure) = (Some(version), false);
        self.spoilers.forgive(server);
        self.alive();
        Ok(())
    }

    /// A watch, from `version` on, or with a list before it.
    async fn stream(&mut self, version: Option<String>) -> Result<Ended, ClientError> {
        let (least, most) = self.times.watch;
        let time = least + most.saturating_sub(least).mul_f64(fastrand::f64());
        let seconds = time.as_secs().max(1);
        let from = match &version {
            Some(version) => format!("resourceVersion={}", escaped(version)),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let path = self.path();
        let query = format!("watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&{from}");
        let began = Instant::now();
        let mut list_until = version.is_none().then(|| began + self.times.list);
        let asked = format!("{path}?{query}");
        let answer = self.servers.get(&asked, self.times.silence, &self.spoilers).await?;
        let may_ask = version.is_some() && self.more_from <= Instant::now();
        if may_ask && has_more(answer.kept(), self.kept) {
            self.more_from = Instant::now() + MORE_RETRY;
            tracing::info!(kind = self.kind.name(), "another server has more of it: listed anew");
            self.version = None;
            return Ok(Ended::Next);
        }
        if version.is_none() {
            self.kept = answer.kept();
        }
        let mut lines = Lines::new(answer);
        // A server that is silent beyond the time that it was given is not quiet, but gone.
        let may_be_quiet = self.times.silence <= Duration::from_secs(seconds);
        match list_until {
            Some(_) => self.sink.begin_list(),
            None => {
                if may_be_quiet {
                    lines.may_be_quiet();
                }
                self.alive();
            }
        }
        self.sink.granted(list_until.is_some());
        let mut events = 0_u64;
        loop {
            let due = list_until.or(self.held_until);
            let line = tokio::select! {
                biased;
                line = lines.next() => match line {
                    // Quiet from its beginning: a kind without objects may get no bookmarks.
                    Err(error @ ClientError::Silent { .. })
                        if may_be_quiet && events == 0 && list_until.is_none() =>
                    {
                        self.is_unsure = true;
                        self.sink.quiet(&error);
                        return Ok(Ended::Next);
                    }
                    line => line?,
                },
                () = until(due) => match list_until {
                    // Asked anew, for a second opinion.
                    None => return Ok(Ended::Next),
                    Some(_) => {
                        let message = "a streamed list does not end".to_owned();
                        return Err(garbage(&lines.server(), message));
                    }
                },
            };
            let Some(line) = line else {
                let lasted = began.elapsed();
                if list_until.is_some() || (events == 0 && lasted < SHORTEST_WATCH) {
                    let message = "the watch ended before it began".to_owned();
                    return Err(ClientError::Connection { server: lines.server(), message });
                }
                let is_early = lasted + Duration::from_secs(1) < Duration::from_secs(seconds);
                self.is_unsure = events == 0 && !is_early;
                return Ok(if is_early { Ended::Early } else { Ended::Next });
            };
            self.alive();
            events += 1;
            self.event(&line, &mut list_until, &lines.server())?;
            if list_until.is_none() && may_be_quiet {
                lines.may_be_quiet();
            }
            if !lines.is_at_hand() {
                self.sink.flush();
            }
        }
    }

    fn event(
        &mut self,
        line: &[u8],
        list_until: &mut Option<Instant>,
        server: &str,
    ) -> Result<(), ClientError> {
        let bad = |message: String| garbage(server, message);
        let event: Event<'_> = serde_json::from_slice(line)
            .map_err(|error| bad(format!("this is no event of a watch: {error}")))?;
        let is_list = list_until.is_some();
        match event.kind {
            "ADDED" | "MODIFIED" => self.sink.put(event.object, is_list),
            "DELETED" => self.sink.gone(event.object, is_list).map_err(bad)?,
            "BOOKMARK" => {
                let metadata = metadata(event.object).unwrap_or_default();
                if is_list && metadata.ends_initial_events() {
                    *list_until = None;
                    return self.listed(metadata.resource_version, true, server);
                }
                if let Some(version) = metadata.resource_version.filter(|_| !is_list) {
                    let held = self.version.as_deref().unwrap_or_default();
                    went_back(held, Some(&version), server)?;
                    self.sink.bookmark(&version).map_err(bad)?;
                    self.version = Some(version);
                }
                return Ok(());
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(event.object.get())
                    .map_err(|error| bad(format!("an error that is none: {error}")))?;
                return Err(ClientError::Http {
                    server: server.to_owned(),
                    status: status.code.unwrap_or(500),
                    message: status.message.unwrap_or_default(),
                });
            }
            other => return Err(bad(format!("{:?} is no type of event", cut(other)))),
        }
        if !is_list {
            let version = metadata(event.object).and_then(|own| own.resource_version);
            self.version = version.or(self.version.take());
        }
        Ok(())
    }
}

fn garbage(server: &str, message: String) -> ClientError {
    ClientError::Garbage { server: server.to_owned(), message }
}

/// Whether the server is past `held`, which it or another has told before. ResourceVersions are compared
/// as decimal numbers (Kubernetes API concepts, "Resource versions"); what is none proves nothing.
///
/// # Errors
/// As a version that has expired (410): a list takes its place, and what is in force stays meanwhile.
fn went_back(held: &str, told: Option<&str>, server: &str) -> Result<(), ClientError> {
    let number = |version: &str| version.parse::<u64>().ok();
    match (number(held), told.and_then(number)) {
        (Some(held), Some(told)) if told < held => Err(ClientError::Http {
            server: server.to_owned(),
            status: 410,
            message: format!(
                "its resourceVersion {told} is older than {held}, which was told before: its store \
                 was restored from an older copy, or it lags behind; all is listed anew"
            ),
        }),
        _ => Ok(()),
    }
}

fn is_unfound(error: &ClientError) -> bool {
    matches!(error, ClientError::Http { status: 404, .. })
}

/// Whether a server has yet to come to the resourceVersion that was asked for (kube-apiserver's
/// `NewTooLargeResourceVersionError`).
fn is_ahead(error: &ClientError) -> bool {
    match error {
        ClientError::Http { status: 504, message, .. } => {
            message.contains("Too large resource version")
        }
        _ => false,
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

#[cfg(test)]
mod tests;
