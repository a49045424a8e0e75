//! Which relay leads: a Lease that its holder renews, as client-go's `leaderelection` has it (the
//! same record, the same order of steps). Pure: what the server said and the time are handed in.
//!
//! No other's clock is trusted. Whoever waits counts from when it saw the record change, by its own
//! monotonic clock; the times in the record are for people. A leader counts from before it asked for
//! the renewal that succeeded, and stops a good while before anybody may take its place, so that two
//! never lead at once as long as clocks run about equally fast.
//!
//! Crates that do this were looked at. kube-leader-election 0.44 and kube-lease-manager 0.13 both
//! compare the holder's wall clock with ours, and the former writes without a resourceVersion; both
//! take one client of one server.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

/// When a leader is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElectionTimes {
    /// A record that has not changed for so long is nobody's; whole seconds, as the record has them.
    pub lease: Duration,
    /// A leader that has not renewed for so long leads no more; shorter than `lease`.
    pub renew: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl ElectionTimes {
    /// As Kubernetes' own controllers have them (client-go's recommended defaults).
    pub const RECOMMENDED: Self = Self {
        lease: Duration::from_secs(15),
        renew: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };
}

// A leader stops before another may begin, and has tried more than once until then.
const _: () = {
    let ElectionTimes { lease, renew, retry } = ElectionTimes::RECOMMENDED;
    assert!(renew.as_secs() < lease.as_secs() && 2 * retry.as_secs() < renew.as_secs());
};

impl Default for ElectionTimes {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}

/// Where the Lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// There is none: this one is created.
    Create(Lease),
    /// This one is put in its place, by its resourceVersion.
    Replace(Lease),
    /// Another leads. It may be taken from it then, unless it changes.
    Wait(Instant),
}

/// The record as it was seen, and since when.
#[derive(Debug)]
struct Observed {
    spec: LeaseSpec,
    since: Instant,
}

/// One relay's part in it.
#[derive(Debug)]
pub(super) struct Election {
    name: LeaseName,
    identity: String,
    times: ElectionTimes,
    observed: Option<Observed>,
    /// Ours, as it was last written.
    held: Option<Lease>,
    leads_until: Option<Instant>,
}

impl Election {
    pub(super) fn new(name: LeaseName, identity: String, times: ElectionTimes) -> Self {
        Self { name, identity, times, observed: None, held: None, leads_until: None }
    }

    /// Until when it leads, if it does.
    pub(super) fn leads_until(&self, now: Instant) -> Option<Instant> {
        self.leads_until.filter(|until| *until > now)
    }

    /// Who leads, as far as is known.
    pub(super) fn leader(&self) -> Option<&str> {
        let holder = self.observed.as_ref()?.spec.holder_identity.as_deref();
        holder.filter(|holder| !holder.is_empty())
    }

    /// How often the leader changed.
    pub(super) fn transitions(&self) -> i32 {
        self.observed.as_ref().and_then(|own| own.spec.lease_transitions).unwrap_or_default()
    }

    /// What can be done without asking for the record: it is ours.
    pub(super) fn renew(&self, now: Instant, wall: Timestamp) -> Option<Step> {
        self.leads_until(now)?;
        Some(Step::Replace(self.taken_from(self.held.as_ref()?, wall)))
    }

    /// What is to be done about the record that was found.
    pub(super) fn step(&mut self, found: Option<Lease>, now: Instant, wall: Timestamp) -> Step {
        let Some(found) = found else {
            let metadata = ObjectMeta {
                name: Some(self.name.name.clone()),
                namespace: Some(self.name.namespace.clone()),
                ..ObjectMeta::default()
            };
            let spec = self.spec(wall, wall, 0);
            return Step::Create(Lease { metadata, spec: Some(spec) });
        };
        self.observe(&found, now);
        if !self.is_ours(&found)
            && let Some(until) = self.is_others_until().filter(|until| *until > now)
        {
            return Step::Wait(until);
        }
        Step::Replace(self.taken_from(&found, wall))
    }

    fn observe(&mut self, found: &Lease, now: Instant) {
        let spec = found.spec.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|before| before.spec != spec) {
            self.observed = Some(Observed { spec, since: now });
        }
    }

    fn is_ours(&self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(&self.identity)
    }

    /// When the record that was seen is nobody's any more.
    fn is_others_until(&self) -> Option<Instant> {
        let observed = self.observed.as_ref()?;
        observed.spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
        let seconds = observed.spec.lease_duration_seconds.unwrap_or_default();
        let lease = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        Some(observed.since + lease)
    }

    /// `lease`, as ours from now on.
    fn taken_from(&self, lease: &Lease, wall: Timestamp) -> Lease {
        let before = lease.spec.clone().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or_default();
        let (acquired, transitions) = match self.is_ours(lease) {
            true => (before.acquire_time.map_or(wall, |time| time.0), transitions),
            false => (wall, transitions.saturating_add(1)),
        };
        let spec = self.spec(acquired, wall, transitions);
        Lease { metadata: lease.metadata.clone(), spec: Some(spec) }
    }

    fn spec(&self, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.times.lease.as_secs()).ok(),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(renewed)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// The server took what was asked of it at `asked`: this relay leads from then on.
    pub(super) fn took(&mut self, lease: Lease, asked: Instant) {
        self.observed = lease.spec.clone().map(|spec| Observed { spec, since: asked });
        self.held = Some(lease);
        self.leads_until = Some(asked + self.times.renew);
    }

    /// The server did not take it, or nobody knows: the record is asked for next.
    pub(super) fn failed(&mut self) {
        self.held = None;
    }

    /// Another leads after all.
    pub(super) fn lost(&mut self) {
        (self.held, self.leads_until) = (None, None);
    }

    /// What gives it up, so that another need not wait; `None` if there is nothing to give up.
    pub(super) fn release(&mut self, now: Instant, wall: Timestamp) -> Option<Lease> {
        self.leads_until(now)?;
        let mut lease = self.held.take()?;
        self.leads_until = None;
        let transitions = self.transitions();
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..self.spec(wall, wall, transitions)
        };
        lease.spec = Some(spec);
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: ElectionTimes = ElectionTimes::RECOMMENDED;

    fn election(identity: &str) -> Election {
        let name = LeaseName { namespace: "xskiff".into(), name: "relay".into() };
        Election::new(name, identity.into(), TIMES)
    }

    fn wall() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn holder(lease: &Lease) -> (&str, i32) {
        let spec = lease.spec.as_ref().unwrap();
        (spec.holder_identity.as_deref().unwrap(), spec.lease_transitions.unwrap())
    }

    /// Takes what is free.
    fn take(election: &mut Election, found: Option<Lease>, now: Instant) -> Lease {
        let (Step::Create(lease) | Step::Replace(lease)) = election.step(found, now, wall()) else {
            panic!("it is another's")
        };
        election.took(lease.clone(), now);
        lease
    }

    #[test]
    fn who_waits_counts_from_when_it_saw_the_record_change_whatever_the_record_says() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut first, mut second) = (election("a"), election("b"));
        let mut lease = take(&mut first, None, start);
        assert_eq!(holder(&lease), ("a", 0));
        // Its clock is years behind.
        lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
        assert_eq!(second.step(Some(lease.clone()), at(100), wall()), Step::Wait(at(115)));
        assert_eq!(second.step(Some(lease.clone()), at(114), wall()), Step::Wait(at(115)));
        lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(wall()));
        assert_eq!(second.step(Some(lease.clone()), at(115), wall()), Step::Wait(at(130)));
        let taken = take(&mut second, Some(lease), at(130));
        assert_eq!(holder(&taken), ("b", 1));
        assert_eq!(second.leader(), Some("b"));
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_may_lead() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut first, mut second) = (election("a"), election("b"));
        let lease = take(&mut first, None, start);
        assert_eq!(first.leads_until(at(9)), Some(at(10)));
        assert_eq!(first.leads_until(at(10)), None);
        // Seen at once: nobody can see it sooner.
        assert_eq!(second.step(Some(lease), start, wall()), Step::Wait(at(15)));
        assert!(TIMES.renew < TIMES.lease);
        assert!(first.renew(at(10), wall()).is_none(), "it asks what the record says first");
    }

    #[test]
    fn a_renewal_keeps_what_was_acquired_and_a_release_is_free_at_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut first, mut second) = (election("a"), election("b"));
        take(&mut first, None, start);
        let later = Timestamp::from_second(1_000_002).unwrap();
        let Some(Step::Replace(renewed)) = first.renew(at(2), later) else { panic!() };
        let spec = renewed.spec.clone().unwrap();
        assert_eq!((spec.acquire_time.unwrap().0, spec.renew_time.unwrap().0), (wall(), later));
        first.took(renewed, at(2));
        assert_eq!(first.leads_until(at(3)), Some(at(12)));
        let released = first.release(at(3), later).unwrap();
        assert!(first.leads_until(at(3)).is_none());
        let taken = take(&mut second, Some(released), at(3));
        assert_eq!(holder(&taken), ("b", 1));
    }

    #[test]
    fn what_was_taken_though_the_answer_was_lost_is_found_to_be_ours() {
        let start = Instant::now();
        let mut first = election("a");
        let Step::Create(lease) = first.step(None, start, wall()) else { panic!() };
        first.failed();
        assert!(first.leads_until(start).is_none(), "nobody knows");
        let taken = take(&mut first, Some(lease), start);
        assert_eq!(holder(&taken), ("a", 0), "no transition");
    }
}
