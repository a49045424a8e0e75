//! How election and writing stand, for people.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::standing::{head, shortened};
use super::{EventCounts, Findings};
use crate::resource::WATCHED;

/// How the election stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ElectionStanding {
    /// This relay leads.
    pub leads: bool,
    /// Who leads, as the Lease was last seen; absent: nobody, or nobody knows.
    pub leader: Option<String>,
    /// How often the leader changed, as the Lease says.
    pub transitions: i32,
    /// How often this relay came to lead.
    pub terms: u64,
    /// Tries that failed.
    pub failures: u64,
    /// The last failure, until a try succeeds.
    pub last_error: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    election: ElectionStanding,
    /// The last failure of an Event, until one is written.
    event_error: Option<String>,
}

/// How it stands.
#[derive(Debug)]
pub struct Writes {
    identity: String,
    state: Mutex<State>,
    findings: Findings,
}

impl Writes {
    pub(in crate::relay) fn new(identity: String, findings: Findings) -> Self {
        Self { identity, state: Mutex::default(), findings }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the election stands.
    #[must_use]
    pub fn election(&self) -> ElectionStanding {
        self.lock().election.clone()
    }

    /// What became of Events.
    #[must_use]
    pub fn events(&self) -> EventCounts {
        self.findings.lock().counts
    }

    /// Why the last Event could not be written, until one can.
    #[must_use]
    pub fn event_error(&self) -> Option<String> {
        self.lock().event_error.clone()
    }

    /// Events that are to be written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.findings.lock().waiting()
    }

    pub(super) fn leads(&self, leads: bool, leader: Option<&str>, transitions: i32) {
        let own = &mut self.lock().election;
        if leads != own.leads {
            let identity = &self.identity;
            match leads {
                true => tracing::info!(identity, transitions, "this relay leads: it writes Events"),
                false => tracing::info!(identity, "this relay leads no more"),
            }
            own.terms += u64::from(leads);
        }
        (own.leads, own.transitions) = (leads, transitions);
        own.leader = leader.map(str::to_owned);
    }

    pub(super) fn election_failed(&self, error: &str) {
        let own = &mut self.lock().election;
        own.failures += 1;
        if is_new(&mut own.last_error, error) {
            tracing::warn!(error, "the Lease cannot be had: Events are another's to write");
        }
    }

    pub(super) fn election_went_well(&self) {
        if self.lock().election.last_error.take().is_some() {
            tracing::info!("the Lease can be had again");
        }
    }

    pub(super) fn event_failed(&self, error: &str) {
        if is_new(&mut self.lock().event_error, error) {
            tracing::warn!(error, "an Event is not written; nothing else depends on it");
        }
    }

    pub(super) fn events_went_well(&self) {
        if self.lock().event_error.take().is_some() {
            tracing::info!("Events are written again");
        }
    }

    /// Lines for the probe's page: nothing of it makes a relay less ready.
    pub(in crate::relay) fn lines(&self, text: &mut String) {
        let State { election, event_error } = &*self.lock();
        let leader = election.leader.as_deref().unwrap_or("nobody");
        let _ = match election.leads {
            true => writeln!(text, "leader: this relay, {}", self.identity),
            false => writeln!(text, "leader: {leader}"),
        };
        if let Some(error) = &election.last_error {
            let _ = writeln!(text, "election: {} tries failed: {error}", election.failures);
        }
        let EventCounts { written, merged, found, suppressed, failed } = self.events();
        let _ = writeln!(
            text,
            "events: {written} written, {merged} merged, {found} found, {suppressed} suppressed, \
             {failed} failed, {} waiting",
            self.waiting()
        );
        if let Some(error) = event_error {
            let _ = writeln!(text, "events: the last one failed: {error}");
        }
    }

    /// In the Prometheus text format.
    pub(in crate::relay) fn metrics(&self, text: &mut String) {
        let election = self.election();
        let EventCounts { written, merged, found, suppressed, failed } = self.events();
        let (gauge, counter) = ("gauge", "counter");
        let transitions = u64::try_from(election.transitions).unwrap_or_default();
        for (name, kind, help, value) in [
            ("leader", gauge, "Whether this relay leads.", u64::from(election.leads)),
            ("leader_transitions", gauge, "Changes of the leader, as the Lease says.", transitions),
            ("leader_terms_total", counter, "Times this relay came to lead.", election.terms),
            ("election_failures_total", counter, "Failed tries.", election.failures),
            ("kubernetes_events_written_total", counter, "Events created.", written),
            ("kubernetes_events_merged_total", counter, "Occurrences added to an Event.", merged),
            ("kubernetes_events_found_total", counter, "Events a leader before wrote.", found),
            (
                "kubernetes_events_suppressed_total",
                counter,
                "Occurrences above what may be kept, or written about one object.",
                suppressed,
            ),
            ("kubernetes_events_failed_total", counter, "Writes of Events that failed.", failed),
            ("kubernetes_events_waiting", gauge, "Events to be written.", self.waiting() as u64),
        ] {
            head(text, name, kind, help);
            let _ = writeln!(text, "xskiff_relay_{name} {value}");
        }
        head(text, "objects_unusable", gauge, "Objects that nodes cannot use as they are.");
        for resource in WATCHED {
            let number = self.findings.lock().standing(resource.kind.name());
            let plural = resource.plural;
            let _ =
                writeln!(text, "xskiff_relay_objects_unusable{{resource=\"{plural}\"}} {number}");
        }
    }
}

/// Keeps the error, and gives whether it is another than before.
fn is_new(last: &mut Option<String>, error: &str) -> bool {
    let error = shortened(error);
    last.replace(error.clone()).is_none_or(|before| before != error)
}
