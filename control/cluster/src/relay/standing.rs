//! How the relay stands: towards the API server, kind by kind, and towards nodes; as pages.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::model::Kind;
use http::StatusCode;

use super::writes::Writes;
use crate::resource::{WATCHED, index};
use crate::serve::{Counts, Page, Pages, Replaced, Store};

/// Longest error that is told.
const ERROR_BYTES_MAX: usize = 512;
const PLAIN: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is being done about a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Doing {
    /// It is listed.
    #[default]
    Listing,
    /// It is watched.
    Watching,
    /// The API server failed, and is asked again soon; what is known is served.
    Away,
    /// The API server does not have the kind, nor has the relay; it is asked for now and then.
    Absent,
}

/// How one kind stands.
#[derive(Debug, Clone, Default)]
pub struct KindStanding {
    /// What is being done.
    pub doing: Doing,
    /// Since when the API server has not answered, if it has not.
    pub away_since: Option<Instant>,
    /// Whole lists.
    pub lists: u64,
    /// Watches begun.
    pub watches: u64,
    /// Events, bookmarks left out.
    pub events: u64,
    /// Bytes of their objects, as the API server sends them.
    pub event_bytes: u64,
    /// Bookmarks.
    pub bookmarks: u64,
    /// Failures.
    pub failures: u64,
    /// Objects that could not be read.
    pub refused: u64,
    /// Objects that are served though the last list did not have them, or had fewer endpoints.
    pub held: usize,
    /// Times that lists made every watcher begin anew.
    pub resets: u64,
    /// What it took to take over lists and events, in all and the longest of them.
    pub applying: (Duration, Duration),
    /// The last failure, or the last object that could not be read, and when that was.
    pub last_error: Option<(String, Instant)>,
    /// The log says that no server has the kind.
    is_told_absent: bool,
}

/// How all kinds stand.
#[derive(Debug, Default)]
pub struct Standing {
    kinds: Mutex<[KindStanding; 6]>,
    ends: AtomicBool,
}

impl Standing {
    fn lock(&self) -> MutexGuard<'_, [KindStanding; 6]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How `kind` stands.
    #[must_use]
    pub fn of(&self, kind: Kind) -> KindStanding {
        self.lock()[index(kind)].clone()
    }

    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    pub(super) fn listing(&self, kind: Kind) {
        self.lock()[index(kind)].doing = Doing::Listing;
    }

    /// A watch was granted: the API server is there, though an empty kind may hear nothing of it.
    pub(super) fn watching(&self, kind: Kind) {
        let own = &mut self.lock()[index(kind)];
        own.watches += 1;
        own.doing = Doing::Watching;
    }

    /// The API server has said something of the kind.
    pub(super) fn alive(&self, kind: Kind) {
        Self::answered(&mut self.lock()[index(kind)], kind);
    }

    fn answered(own: &mut KindStanding, kind: Kind) {
        if let Some(since) = own.away_since.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(kind = kind.name(), seconds, "the API server is back");
        }
    }

    pub(super) fn listed(&self, kind: Kind, replaced: Replaced) {
        let own = &mut self.lock()[index(kind)];
        own.lists += 1;
        own.is_told_absent = false;
        own.resets += u64::from(replaced.reset);
    }

    /// How many objects of each kind are held, in the order of [`Kind::ALL`].
    pub(super) fn held(&self, held: [usize; Kind::ALL.len()]) {
        for (own, held) in self.lock().iter_mut().zip(held) {
            own.held = held;
        }
    }

    pub(super) fn event(&self, kind: Kind, bytes: usize) {
        let own = &mut self.lock()[index(kind)];
        own.events += 1;
        own.event_bytes += bytes as u64;
    }

    /// A list, or an event, that began to be taken over at `began` is in force.
    pub(super) fn applied(&self, kind: Kind, began: Instant) {
        let (took, own) = (began.elapsed(), &mut self.lock()[index(kind)]);
        let (in_all, longest) = own.applying;
        own.applying = (in_all + took, longest.max(took));
    }

    pub(super) fn bookmark(&self, kind: Kind) {
        self.lock()[index(kind)].bookmarks += 1;
    }

    pub(super) fn refused(&self, kind: Kind, error: &str) {
        let own = &mut self.lock()[index(kind)];
        own.refused += 1;
        own.last_error = Some((shortened(error), Instant::now()));
        tracing::warn!(kind = kind.name(), error, "an object cannot be read, and is left out");
    }

    /// The API server answers that it does not have the kind.
    pub(super) fn absent(&self, kind: Kind) {
        let own = &mut self.lock()[index(kind)];
        Self::answered(own, kind);
        if !own.is_told_absent {
            tracing::info!(
                kind = kind.name(),
                "the API server does not have the kind: nor has the relay"
            );
        }
        (own.doing, own.is_told_absent) = (Doing::Absent, true);
    }

    pub(super) fn failed(&self, kind: Kind, error: &str) {
        let own = &mut self.lock()[index(kind)];
        own.failures += 1;
        own.doing = Doing::Away;
        own.last_error = Some((shortened(error), Instant::now()));
        own.away_since.get_or_insert_with(Instant::now);
        tracing::warn!(kind = kind.name(), error, "the API server failed; what is known is served");
    }
}

pub(super) fn shortened(error: &str) -> String {
    error.chars().take(ERROR_BYTES_MAX).map(|own| if own == '\n' { ' ' } else { own }).collect()
}

/// `/metrics`, `/livez` and `/readyz`.
pub(super) fn pages(
    standing: &Arc<Standing>,
    store: &Arc<Store>,
    counts: &Arc<Counts>,
    writes: Option<&Arc<Writes>>,
) -> Pages {
    let (standing, store, counts) = (Arc::clone(standing), Arc::clone(store), Arc::clone(counts));
    let writes = writes.map(Arc::clone);
    Arc::new(move |path| {
        let page = |code, content_type, text| Some(Page { code, content_type, text });
        match path {
            "/livez" => page(StatusCode::OK, PLAIN, "ok\n".to_owned()),
            "/readyz" => {
                let (code, mut text) = readiness(&standing, &store);
                if let Some(writes) = &writes {
                    writes.lines(&mut text);
                }
                page(code, PLAIN, text)
            }
            "/metrics" => {
                let mut text = metrics(&standing, &store, &counts);
                if let Some(writes) = &writes {
                    writes.metrics(&mut text);
                }
                page(StatusCode::OK, METRICS, text)
            }
            _ => None,
        }
    })
}

/// Ready as soon as every kind was listed once, but for those that there are not; an API server that is away is told, and changes
/// nothing.
fn readiness(standing: &Standing, store: &Store) -> (StatusCode, String) {
    if standing.ends.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "ending\n".to_owned());
    }
    let mut text = String::new();
    for resource in WATCHED {
        let own = standing.of(resource.kind);
        if let Some(since) = own.away_since {
            let error = own.last_error.as_ref().map_or("no answer", |(error, _)| error);
            let seconds = since.elapsed().as_secs();
            let _ = writeln!(text, "{}: away for {seconds} s: {error}", resource.plural);
        } else if let Some((error, at)) = &own.last_error {
            let (plural, seconds) = (resource.plural, at.elapsed().as_secs());
            let _ = writeln!(text, "{plural}: the last error, {seconds} s ago: {error}");
        }
        if store.is_absent(resource.kind) {
            let _ = writeln!(text, "{}: the API server does not have the kind", resource.plural);
        }
    }
    match store.is_filled() {
        true => (StatusCode::OK, format!("ok\n{text}")),
        false => {
            let text = format!("the first lists are not complete yet\n{text}");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP xskiff_relay_{name} {help}");
    let _ = writeln!(text, "# TYPE xskiff_relay_{name} {kind}");
}

/// In the Prometheus text format.
fn metrics(standing: &Standing, store: &Store, counts: &Counts) -> String {
    let mut text = String::new();
    let kinds: Vec<_> = WATCHED
        .iter()
        .map(|own| (own.plural, standing.of(own.kind), store.counts(own.kind)))
        .collect();
    let mut by_kind = |name: &str, kind: &str, help: &str, value: &dyn Fn(usize) -> u64| {
        head(&mut text, name, kind, help);
        for (at, (plural, ..)) in kinds.iter().enumerate() {
            let _ = writeln!(text, "xskiff_relay_{name}{{resource=\"{plural}\"}} {}", value(at));
        }
    };
    let (up, stored) = (|at: usize| &kinds[at].1, |at: usize| &kinds[at].2);
    let (gauge, counter) = ("gauge", "counter");
    by_kind("upstream_up", gauge, "Whether the API server answers.", &|at| {
        u64::from(up(at).away_since.is_none())
    });
    by_kind("upstream_away_seconds", gauge, "For how long it has not.", &|at| {
        up(at).away_since.map_or(0, |since| since.elapsed().as_secs())
    });
    by_kind("upstream_absent", gauge, "Whether the API server has no such kind.", &|at| {
        u64::from(store.is_absent(WATCHED[at].kind))
    });
    by_kind("upstream_failures_total", counter, "Failed lists and watches.", &|at| up(at).failures);
    by_kind("upstream_lists_total", counter, "Whole lists.", &|at| up(at).lists);
    by_kind("upstream_watches_total", counter, "Watches begun.", &|at| up(at).watches);
    by_kind("upstream_events_total", counter, "Events received.", &|at| up(at).events);
    by_kind("upstream_event_bytes_total", counter, "Their bytes.", &|at| up(at).event_bytes);
    by_kind("upstream_bookmarks_total", counter, "Bookmarks received.", &|at| up(at).bookmarks);
    by_kind("objects_refused_total", counter, "Objects that cannot be read.", &|at| up(at).refused);
    by_kind(
        "objects_held",
        gauge,
        "Served, though the last list lost them, or endpoints of theirs.",
        &|at| up(at).held as u64,
    );
    by_kind("objects", gauge, "Objects served.", &|at| stored(at).objects as u64);
    by_kind("object_bytes", gauge, "Their bytes.", &|at| stored(at).bytes as u64);
    by_kind("history_events", gauge, "Changes kept.", &|at| stored(at).history as u64);
    by_kind("changes_total", counter, "Changes announced.", &|at| stored(at).changes);
    by_kind("changes_unannounced_total", counter, "Changes of nothing that nodes read.", &|at| {
        stored(at).unannounced
    });
    by_kind("history_resets_total", counter, "Times all had to begin anew.", &|at| {
        stored(at).resets
    });
    by_kind("upstream_apply_microseconds_total", counter, "What lists and events took.", &|at| {
        micros(up(at).applying.0)
    });
    by_kind("upstream_apply_longest_microseconds", gauge, "The longest of them.", &|at| {
        micros(up(at).applying.1)
    });
    by_kind("resource_version", gauge, "The latest resourceVersion.", &|at| stored(at).version);
    for (name, kind, help, value) in [
        ("connections", gauge, "Connections open.", &counts.connections),
        (
            "connections_refused_total",
            counter,
            "Closed for want of room.",
            &counts.connections_refused,
        ),
        ("accept_failures_total", counter, "Connections not accepted.", &counts.accept_failures),
        ("handshake_failures_total", counter, "TLS handshakes failed.", &counts.handshake_failures),
        ("stalled_total", counter, "Closed since the client did not read.", &counts.stalled),
        ("requests_total", counter, "Requests.", &counts.requests),
        ("refusals_total", counter, "Requests refused.", &counts.refusals),
        ("watchers", gauge, "Watches open.", &counts.watches),
        ("watches_total", counter, "Watches begun.", &counts.watches_begun),
        ("watches_refused_total", counter, "Refused for want of room.", &counts.watches_refused),
        ("watches_behind_total", counter, "Ended as too slow.", &counts.watches_behind),
        ("lists_broken_total", counter, "Broken off as too slow.", &counts.lists_broken),
        ("expired_total", counter, "Answered with 410.", &counts.expired),
        ("events_total", counter, "Events sent.", &counts.events),
        ("bookmarks_total", counter, "Bookmarks sent.", &counts.bookmarks),
        ("list_bytes_total", counter, "Bytes of lists sent.", &counts.list_bytes),
        ("watch_bytes_total", counter, "Bytes of watches sent.", &counts.watch_bytes),
    ] {
        head(&mut text, name, kind, help);
        let _ = writeln!(text, "xskiff_relay_{name} {}", Counts::get(value));
    }
    text
}
