//! Writes Events, as long as this relay leads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Findings;
use super::event::{Event, count_of};
use super::ledger::{Next, Outcome, Write};
use super::standing::Writes;
use crate::client::server::backoff;
use crate::client::{Ask, ClientError, Servers};

/// How often it is looked whether there is anything to write.
const LOOK: Duration = Duration::from_millis(250);
/// How often what is still so, and what is over, is looked for.
const LOOK_OVER: Duration = Duration::from_secs(60);
/// Before a write that failed is tried again: at first, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// The one that writes.
pub(in crate::relay) struct Writer {
    pub(in crate::relay) servers: Arc<Servers>,
    pub(in crate::relay) findings: Findings,
    pub(in crate::relay) identity: String,
    /// Until when this relay leads.
    pub(in crate::relay) leads: watch::Receiver<Option<Instant>>,
    pub(in crate::relay) writes: Arc<Writes>,
}

impl Writer {
    /// Writes until dropped.
    pub(in crate::relay) async fn run(mut self) {
        loop {
            if self.until().is_none() && self.leads.changed().await.is_err() {
                return;
            }
            let Some(until) = self.until() else { continue };
            self.findings.lock().lead();
            self.lead(until).await;
            self.findings.lock().rest();
        }
    }

    /// Until when this relay leads, if it does.
    fn until(&self) -> Option<Instant> {
        (*self.leads.borrow()).filter(|until| *until > Instant::now())
    }

    /// Writes until the lead ends.
    async fn lead(&mut self, mut until: Instant) {
        let mut look_over = Instant::now() + LOOK_OVER;
        loop {
            let now = Instant::now();
            if now >= look_over {
                self.findings.lock().look_over(now);
                look_over = now + LOOK_OVER;
            }
            let next = self.findings.lock().next(now);
            match next {
                Next::Write(write) => self.write(&write, until).await,
                Next::Wait(pause) => self.pause(pause.min(LOOK)).await,
                Next::Nothing => self.pause(LOOK).await,
            }
            match self.until() {
                Some(later) => until = later,
                None => return,
            }
        }
    }

    /// Waits for so long, or until it is said whether this relay still leads.
    async fn pause(&mut self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.leads.changed()).await;
    }

    /// Writes, and takes no longer than the lead lasts: what is under way then is given up.
    async fn write(&self, write: &Write, until: Instant) {
        let outcome = match timeout_at(until, self.ask(write)).await {
            Ok(Ok(outcome)) => {
                self.writes.events_went_well();
                outcome
            }
            Ok(Err(error)) => {
                self.writes.event_failed(&error.to_string());
                self.judge(write, &error)
            }
            Err(_) => {
                self.writes.event_failed("the lead ended before the answer came");
                Outcome::Failed(REST.0)
            }
        };
        self.findings.lock().wrote(write, outcome, Instant::now());
    }

    async fn ask(&self, write: &Write) -> Result<Outcome, ClientError> {
        let event = &write.event;
        if write.is_known {
            let patch = Event::patch(write.count, write.last);
            return match self.servers.call(&Ask::merge(&event.path(), &patch)).await {
                Ok(_) => Ok(Outcome::Done),
                Err(ClientError::Http { status: 404, .. }) => Ok(Outcome::Forgotten),
                Err(error) => Err(error),
            };
        }
        let object = event.object(&self.identity, write.count, write.last);
        match self.servers.call(&Ask::create(&event.collection(), &object)).await {
            Ok(_) => Ok(Outcome::Done),
            // A leader before wrote it, or we did and the answer was lost. A patch that changes
            // nothing tells what it says, without a right to read Events.
            Err(ClientError::Http { status: 409, .. }) => {
                let nothing = serde_json::json!({});
                let found = self.servers.call(&Ask::merge(&event.path(), &nothing)).await?;
                Ok(Outcome::Found(count_of(&found)))
            }
            Err(error) => Err(error),
        }
    }

    fn judge(&self, write: &Write, error: &ClientError) -> Outcome {
        match error {
            // Rights may be given later, and a namespace that ends takes no Events.
            ClientError::Http { status: 401 | 403 | 404 | 429, .. } => self.rest(write),
            ClientError::Http { status: 400..=499, .. } => Outcome::Refused,
            _ => self.rest(write),
        }
    }

    fn rest(&self, write: &Write) -> Outcome {
        let failures = self.findings.lock().failures(&write.key);
        Outcome::Failed(backoff(REST, failures.saturating_add(1)))
    }
}
