//! What relays write to the API server: the Lease by which they agree on a leader, and the leader's
//! Events about objects that nodes cannot use as they are. Nothing else of xskiff writes anything.
//!
//! Nothing here holds up what is served: a server that refuses writes, or does not answer, is
//! counted, told once for each change, and asked again later.
//!
//! Reading order: [`election`] (who leads), [`lease`] (its record, on servers), [`reason`] (what
//! deserves an Event), [`ledger`] (which Events, and when) with [`bucket`], [`event`] (one of them),
//! [`writer`] (writing them), [`standing`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

mod bucket;
mod election;
mod event;
mod lease;
pub(super) mod ledger;
pub mod reason;
pub(super) mod standing;
mod writer;

pub use bucket::Rate;
pub use election::{ElectionTimes, LeaseName};
pub use event::CONTROLLER;
pub(super) use event::Regarding;
pub(super) use lease::Candidate;
pub use ledger::{EventCounts, FINDINGS_MAX, Rates};
pub(super) use ledger::{Finding, Ledger};
pub use standing::Writes;
pub(super) use writer::Writer;

/// A resource that is written, with the verbs that it takes: the roles in `deploy/` go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The API group.
    pub group: &'static str,
    /// As paths and roles spell it.
    pub plural: &'static str,
    /// Kubernetes API, authorization verbs.
    pub verbs: &'static [&'static str],
    /// In the Lease's own namespace alone, or wherever objects are.
    pub everywhere: bool,
}

/// Everything that is written.
pub const WRITTEN: [Written; 2] = [
    Written {
        group: "coordination.k8s.io",
        plural: "leases",
        verbs: &["create", "get", "update"],
        everywhere: false,
    },
    Written {
        group: "events.k8s.io",
        plural: "events",
        verbs: &["create", "patch"],
        everywhere: true,
    },
];

/// How a relay takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSettings {
    /// Who it is: no other process's name, at any time.
    pub identity: String,
    /// The Lease.
    pub lease: LeaseName,
    /// When a leader is one.
    pub times: ElectionTimes,
    /// How many Events there may be.
    pub rates: Rates,
}

/// The ledger as followers and the writer share it.
#[derive(Debug, Clone)]
pub(super) struct Findings(Arc<Mutex<Ledger>>);

impl Findings {
    pub(super) fn new(rates: Rates) -> Self {
        Self(Arc::new(Mutex::new(Ledger::new(rates, Instant::now()))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, finding: Finding) {
        self.lock().note(finding, Instant::now(), Timestamp::now());
    }
}

/// As the API server wants times: six digits behind the second, no more and no fewer.
fn time(at: Timestamp) -> Value {
    json!(MicroTime(at))
}
