//! One server: its connections, and how it fared lately.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, Uri, header};
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::Instant;

use super::access::Access;
use super::connection;
use super::error::{ClientError, chain};
use crate::kept::{EVERYTHING, KEPT};

/// One server.
pub struct Server {
    /// Where it is.
    pub uri: Uri,
    /// Whether it is a relay.
    pub is_relay: bool,
    /// Bytes of answers.
    pub received: AtomicU64,
    /// Requests sent.
    pub requests: AtomicU64,
    /// Times it failed.
    pub failures: AtomicU64,
    /// How much of objects it passes on, as it told last.
    kept: AtomicU32,
    access: Arc<Access>,
    /// Absent until it is asked, and again once it failed: files are then read anew, and names
    /// resolved.
    client: tokio::sync::Mutex<Option<Client>>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Not asked before then, unless no other is better.
    rests_until: Option<Instant>,
    /// Failures in a row.
    in_a_row: u32,
    last_error: Option<String>,
}

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    method: Method,
    path: String,
    /// Its type, and itself.
    body: Option<(&'static str, Bytes)>,
}

impl Ask {
    /// Reads what is at `path`, query included.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: None }
    }

    /// Creates `object` in the collection at `path`.
    #[must_use]
    pub fn create(path: &str, object: &Value) -> Self {
        Self::with(Method::POST, path, "application/json", object)
    }

    /// Puts `object` in the place of the one at `path`, if that is still as `object` says
    /// (`metadata.resourceVersion`).
    #[must_use]
    pub fn replace(path: &str, object: &Value) -> Self {
        Self::with(Method::PUT, path, "application/json", object)
    }

    /// Changes the fields of the object at `path` that `patch` has (RFC 7396).
    #[must_use]
    pub fn merge(path: &str, patch: &Value) -> Self {
        Self::with(Method::PATCH, path, "application/merge-patch+json", patch)
    }

    fn with(method: Method, path: &str, content_type: &'static str, object: &Value) -> Self {
        let body = Some((content_type, object.to_string().into()));
        Self { method, path: path.to_owned(), body }
    }

    fn request(&self) -> Result<Request<Body>, http::Error> {
        let request = Request::builder().method(&self.method).uri(&self.path);
        match &self.body {
            None => request.body(Body::empty()),
            Some((content_type, body)) => {
                let request = request.header(header::CONTENT_TYPE, *content_type);
                request.body(Body::from(body.clone()))
            }
        }
    }
}

/// So long, from half of it to the whole: servers that many wait for are not asked by all at once.
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The pause after so many failures in a row, from 1 on.
pub(crate) fn backoff((first, most): (Duration, Duration), in_a_row: u32) -> Duration {
    let doubled = first.saturating_mul(1 << in_a_row.saturating_sub(1).min(16));
    jittered(doubled.min(most))
}

impl Server {
    pub(super) fn new(uri: Uri, is_relay: bool, access: Arc<Access>) -> Self {
        Self {
            uri,
            is_relay,
            received: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            kept: AtomicU32::new(EVERYTHING),
            access,
            client: tokio::sync::Mutex::default(),
            health: Mutex::default(),
        }
    }

    /// `https://10.0.0.1:6443`.
    #[must_use]
    pub fn name(&self) -> String {
        self.uri.to_string().trim_end_matches('/').to_owned()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it may be asked again; `None`: now.
    #[must_use]
    pub fn rests_until(&self) -> Option<Instant> {
        self.health().rests_until.filter(|until| *until > Instant::now())
    }

    /// Why it failed last, until it answers.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.health().last_error.clone()
    }

    /// Notes how much of objects it passes on, and gives it back.
    pub(super) fn note_kept(&self, kept: u32) -> u32 {
        if self.kept.swap(kept, Ordering::Relaxed) != kept && kept < KEPT {
            let relay = self.name();
            tracing::warn!(
                relay,
                "it is of an earlier version, and leaves out some of what this node reads: upgrade relays \
                 before nodes"
            );
        }
        kept
    }

    /// Whether it leaves out some of what this version reads.
    #[must_use]
    pub fn is_of_earlier_version(&self) -> bool {
        self.kept.load(Ordering::Relaxed) < KEPT
    }

    pub(super) fn answered(&self) {
        *self.health() = Health::default();
    }

    /// It rests, longer with each failure. Requests that fail together are one failure. When to come back
    /// (`Retry-After`) it tells everybody alike, so that the rest comes on top: all at once is what made
    /// it say so.
    pub(crate) fn failed(&self, error: &ClientError, retry_after: Option<Duration>) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut health = self.health();
        health.last_error = Some(error.to_string());
        let now = Instant::now();
        if health.rests_until.is_some_and(|until| until > now) {
            return;
        }
        health.in_a_row = health.in_a_row.saturating_add(1);
        let rest = backoff(self.access.rest, health.in_a_row);
        let asked = retry_after.unwrap_or_default().min(self.access.rest.1);
        health.rests_until = Some(now + asked + rest);
    }

    /// Reads the files that it is asked by.
    pub(super) async fn check(&self) -> Result<(), ClientError> {
        self.client().await.map(drop)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`ClientError`], any answer is none.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response<Body>, ClientError> {
        let answer = self.try_once(ask).await?;
        if answer.status() != http::StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        // The token was rotated, and the one that was read is no longer good.
        self.forget_client().await;
        self.try_once(ask).await
    }

    async fn try_once(&self, ask: &Ask) -> Result<Response<Body>, ClientError> {
        let request = ask.request().map_err(|error| ClientError::Garbage {
            server: self.name(),
            message: format!("{:?} is no path: {error}", ask.path),
        })?;
        let client = self.client().await?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let after = self.access.request_timeout;
        let outcome = tokio::time::timeout(after, client.send(request)).await;
        let error = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => {
                ClientError::Connection { server: self.name(), message: chain(&error) }
            }
            Err(_) => ClientError::Timeout { server: self.name(), after },
        };
        self.forget_client().await;
        Err(error)
    }

    async fn client(&self) -> Result<Client, ClientError> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref() {
            return Ok(client.clone());
        }
        let refuse = |message| ClientError::Credentials { server: self.name(), message };
        let config = self.access.config(&self.uri).await.map_err(refuse)?;
        let made = connection::client(&config, self.access.connect_timeout).map_err(refuse)?;
        *client = Some(made.clone());
        Ok(made)
    }

    /// The next request reads all files anew and makes a connection of its own.
    pub(super) async fn forget_client(&self) {
        *self.client.lock().await = None;
    }
}

#[cfg(test)]
mod tests;
