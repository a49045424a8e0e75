//! Lists: the objects of one moment, piece by piece.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::json;
use tokio::time::Instant;

use super::counts::{Counts, add};
use super::request::{Continue, Match, Query, list_kind};
use super::status::Failure;
use super::store::{Gone, Moment, Store};
use crate::resource::Resource;

/// A list is made in pieces of about so many bytes.
pub(super) const PIECE_BYTES: usize = 64 << 10;
/// Objects looked at in one go: the store is locked meanwhile.
const LOOKED_AT_MAX: usize = 4096;
/// How long a resourceVersion that is not here yet is waited for (as the API server does).
const FRESH_PATIENCE: Duration = Duration::from_secs(3);

/// A list on its way.
pub(super) struct Listing {
    store: Arc<Store>,
    resource: &'static Resource,
    query: Query,
    moment: Moment,
    /// The last key of this page; objects behind it belong to the next.
    last: Option<String>,
    after: Option<String>,
    head: Option<Bytes>,
    first: bool,
    ended: bool,
    deadline: Instant,
    counts: Arc<Counts>,
}

/// Broken off: what was sent is no whole list, and must not look like one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the history has left this list behind")]
    Behind,
    #[error("this list took too long")]
    Late,
}

/// Waits until `version` is here.
pub(super) async fn fresh(
    store: &Store,
    resource: &Resource,
    version: u64,
) -> Result<Moment, Failure> {
    let mut turn = store.subscribe(resource.kind);
    let waited = tokio::time::timeout(FRESH_PATIENCE, async {
        loop {
            turn.mark_unchanged();
            let now = store.now(resource.kind);
            if now.version >= version || turn.changed().await.is_err() {
                return now;
            }
        }
    });
    match waited.await {
        Ok(now) if now.version >= version => Ok(now),
        _ => Err(Failure::too_large(version, store.now(resource.kind).version)),
    }
}

/// The moment that is asked for.
async fn moment(
    store: &Store,
    resource: &Resource,
    query: &Query,
    counts: &Counts,
) -> Result<Moment, Failure> {
    let kind = resource.kind;
    let exact = |version| {
        store.moment(kind, version).map_err(|Gone(oldest)| {
            add(&counts.expired, 1);
            Failure::expired(version, oldest)
        })
    };
    if let Some(go_on) = &query.go_on {
        let Some(version) = go_on.version else { return Ok(store.now(kind)) };
        return exact(version).map_err(|mut failure| {
            failure.message = "The provided continue parameter is too old to display a consistent \
                list result. You can start a new list without the continue parameter, or use the \
                continue token in this response to retrieve the remainder of the results."
                .into();
            let go_on = Continue { version: None, after: go_on.after.clone() };
            failure.go_on = Some(go_on.token());
            failure
        });
    }
    match (query.version, query.matching) {
        (None | Some(0), _) => Ok(store.now(kind)),
        (Some(version), Match::Exact) => {
            fresh(store, resource, version).await?;
            exact(version)
        }
        (Some(version), Match::Unset | Match::NotOlderThan) => {
            fresh(store, resource, version).await
        }
    }
}

impl Listing {
    /// Begins a list.
    ///
    /// # Errors
    /// 410 and 504, when the moment asked for is past or not here yet.
    pub(super) async fn begin(
        store: Arc<Store>,
        resource: &'static Resource,
        query: Query,
        time: Duration,
        counts: Arc<Counts>,
    ) -> Result<Self, Failure> {
        let moment = moment(&store, resource, &query, &counts).await?;
        let after = query.go_on.as_ref().map(|go_on| go_on.after.clone());
        let mut listing = Self {
            store,
            resource,
            query,
            moment,
            last: None,
            after,
            head: None,
            first: true,
            ended: false,
            deadline: Instant::now() + time,
            counts,
        };
        let token = listing.cut().map_err(|Gone(oldest)| {
            add(&listing.counts.expired, 1);
            Failure::expired(moment.version, oldest)
        })?;
        let mut metadata = json!({ "resourceVersion": moment.version.to_string() });
        if let Some(token) = token {
            metadata["continue"] = json!(token);
        }
        let kind = list_kind(resource.kind);
        let api_version = resource.api_version();
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\
             \"metadata\":{metadata},\"items\":["
        );
        listing.head = Some(head.into());
        Ok(listing)
    }

    /// Finds where the page ends, if there is a limit and more than it.
    fn cut(&mut self) -> Result<Option<String>, Gone> {
        let Some(limit) = self.query.limit else { return Ok(None) };
        let (mut number, mut last) = (0, None);
        let scope = &self.query.scope;
        let whole =
            self.store.visit(self.resource.kind, self.moment, self.after.as_deref(), |object| {
                if !scope.holds(object) {
                    return true;
                }
                if number == limit {
                    return false;
                }
                number += 1;
                last = Some(object.key.to_string());
                true
            })?;
        if whole {
            return Ok(None);
        }
        let go_on = Continue {
            version: Some(self.moment.version),
            after: last.clone().unwrap_or_default(),
        };
        self.last = last;
        Ok(Some(go_on.token()))
    }

    /// The next piece.
    pub(super) fn piece(&mut self) -> Option<Result<Bytes, Broken>> {
        if let Some(head) = self.head.take() {
            return Some(Ok(head));
        }
        if self.ended {
            return None;
        }
        let piece = match Instant::now() > self.deadline {
            true => Err(Broken::Late),
            false => self.gather().map_err(|Gone(_)| Broken::Behind),
        };
        match &piece {
            Ok(piece) => add(&self.counts.list_bytes, piece.len() as u64),
            Err(_) => {
                add(&self.counts.lists_broken, 1);
                self.ended = true;
            }
        }
        Some(piece)
    }

    fn gather(&mut self) -> Result<Bytes, Gone> {
        let mut piece = BytesMut::new();
        while piece.is_empty() && !self.ended {
            let (scope, last) = (&self.query.scope, self.last.as_deref());
            let (mut looked_at, mut reached, mut at_end) = (0, None, false);
            let first = &mut self.first;
            let whole = self.store.visit(
                self.resource.kind,
                self.moment,
                self.after.as_deref(),
                |object| {
                    looked_at += 1;
                    reached = Some(std::sync::Arc::clone(&object.key));
                    if scope.holds(object) {
                        if !std::mem::take(first) {
                            piece.put_u8(b',');
                        }
                        object.item_into(&mut piece);
                    }
                    at_end = last == Some(&*object.key);
                    !at_end && looked_at < LOOKED_AT_MAX && piece.len() < PIECE_BYTES
                },
            )?;
            if let Some(reached) = reached {
                self.after = Some(reached.to_string());
            }
            if whole || at_end {
                piece.put_slice(b"]}\n");
                self.ended = true;
            }
        }
        Ok(piece.freeze())
    }
}
