//! The Lease on servers: asked for, written, given up.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::WriteSettings;
use super::election::{Election, ElectionTimes, LeaseName, Step};
use super::standing::Writes;
use crate::client::server::jittered;
use crate::client::{Ask, ClientError, Servers};

/// A relay that would lead.
pub(in crate::relay) struct Candidate {
    servers: Arc<Servers>,
    collection: String,
    path: String,
    times: ElectionTimes,
    election: Election,
    /// Until when this relay leads.
    leads: watch::Sender<Option<Instant>>,
    writes: Arc<Writes>,
}

impl Candidate {
    pub(in crate::relay) fn new(
        servers: Arc<Servers>,
        settings: &WriteSettings,
        leads: watch::Sender<Option<Instant>>,
        writes: Arc<Writes>,
    ) -> Self {
        let LeaseName { namespace, name } = &settings.lease;
        let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        let path = format!("{collection}/{name}");
        let times = settings.times;
        let election = Election::new(settings.lease.clone(), settings.identity.clone(), times);
        Self { servers, collection, path, times, election, leads, writes }
    }

    /// Takes part until `stop` says so, and then gives up what it holds.
    pub(in crate::relay) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let pause = self.turn().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.changed() => break,
            }
        }
        self.release().await;
    }

    /// One try. Gives how long to wait for the next.
    async fn turn(&mut self) -> Duration {
        // A leader's try ends with its lead, so that nobody takes it for one meanwhile.
        let now = Instant::now();
        let left = self.election.leads_until(now).map(|until| until.duration_since(now));
        let bound = left.unwrap_or(self.times.renew);
        let until = match timeout(bound, self.attempt()).await {
            Ok(Ok(until)) => {
                self.writes.election_went_well();
                until
            }
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(_) => self.fail("no answer in time"),
        };
        self.tell();
        let pause = jittered(self.times.retry);
        // Whoever waits for the record's end is there when it comes, and whoever leads does not
        // sleep through its own.
        let left = until.or(self.election.leads_until(Instant::now()));
        left.map_or(pause, |at| at.saturating_duration_since(Instant::now()).min(pause))
    }

    fn fail(&mut self, error: &str) -> Option<Instant> {
        self.election.failed();
        self.writes.election_failed(error);
        None
    }

    /// Gives until when another leads, if one does.
    async fn attempt(&mut self) -> Result<Option<Instant>, ClientError> {
        let now = Instant::now();
        let step = match self.election.renew(now, Timestamp::now()) {
            Some(step) => step,
            None => {
                let found = self.read().await?;
                self.election.step(found, Instant::now(), Timestamp::now())
            }
        };
        let asked = Instant::now();
        let ask = match &step {
            Step::Wait(until) => {
                self.election.lost();
                return Ok(Some(*until));
            }
            Step::Create(lease) => Ask::create(&self.collection, &json!(lease)),
            Step::Replace(lease) => Ask::replace(&self.path, &json!(lease)),
        };
        match self.servers.call(&ask).await {
            Ok(lease) => {
                self.election.took(self.parse(&lease)?, asked);
                Ok(None)
            }
            // Another was faster, or our own answer was lost: the record says which.
            Err(ClientError::Http { status: 409, .. }) => {
                self.election.failed();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self) -> Result<Option<Lease>, ClientError> {
        match self.servers.call(&Ask::get(&self.path)).await {
            Ok(lease) => Ok(Some(self.parse(&lease)?)),
            Err(ClientError::Http { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(&self, text: &[u8]) -> Result<Lease, ClientError> {
        serde_json::from_slice(text).map_err(|error| ClientError::Garbage {
            server: self.servers.in_use().map_or_else(String::new, |server| server.name()),
            message: format!("this is no Lease: {error}"),
        })
    }

    /// Tells the writer and people who leads.
    fn tell(&self) {
        let until = self.election.leads_until(Instant::now());
        self.leads.send_replace(until);
        let (leader, transitions) = (self.election.leader(), self.election.transitions());
        self.writes.leads(until.is_some(), leader, transitions);
    }

    /// So that another need not wait. What cannot be given up ends by itself.
    async fn release(mut self) {
        let lease = self.election.release(Instant::now(), Timestamp::now());
        self.tell();
        let Some(lease) = lease else { return };
        let ask = Ask::replace(&self.path, &json!(lease));
        match timeout(self.times.retry, self.servers.call(&ask)).await {
            Ok(Ok(_)) => tracing::info!("the lead is given up"),
            Ok(Err(error)) => tracing::warn!(%error, "the lead ends by itself"),
            Err(_) => tracing::warn!("the lead ends by itself: no answer"),
        }
    }
}
