//! Recent decisions, and the clients that follow new ones.
//!
//! Bounded both ways: the log forgets its oldest, and a client that reads too slowly loses
//! decisions and is told how many. Nothing here ever waits.

use std::collections::{BTreeMap, VecDeque};

use control::admin::policy::DropCause;
use control::admin::{FlowRecord, Reply, StreamItem};
use dataplane::DropReason;
use tokio::sync::mpsc;

use super::connections::lost;
use super::filter::Matcher;
use dataplane::event::{EventKind, FlowEvent};

/// Decisions kept.
pub const FLOWS_KEPT_MAX: usize = 8192;
/// Clients that may follow at once.
pub const FOLLOWERS_MAX: usize = 8;

/// Causes of drops told for one reason.
const CAUSES_TOLD: usize = 10;

/// A decision with the names it had when it was made.
#[derive(Debug, Clone)]
pub struct Logged {
    /// As the worker reported it.
    pub event: FlowEvent,
    /// As people read it.
    pub record: FlowRecord,
}

struct Subscriber {
    matcher: Matcher,
    reply: mpsc::Sender<Reply>,
    lost: u64,
    /// Lost before it came, and told to it.
    told: u64,
    /// Wants to know of flows alone, as they begin, change and end.
    watches: bool,
}

/// The log and its followers.
#[derive(Default)]
pub struct FlowLog {
    kept: VecDeque<Logged>,
    followers: Vec<Subscriber>,
    /// Events that did not come here, since start.
    lost_before: u64,
}

impl FlowLog {
    /// Keeps a decision and shows it to whoever follows.
    pub fn push(&mut self, logged: Logged) {
        for follower in &mut self.followers {
            let is_drop = matches!(logged.event.kind, EventKind::Dropped(_));
            if !(follower.watches && is_drop)
                && follower.matcher.matches_event(&logged.event, logged.record.service.as_deref())
            {
                follower.show(&logged.record);
            }
        }
        if self.kept.len() == FLOWS_KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(logged);
    }

    /// The latest decisions that match, oldest first, `limit` at most.
    #[must_use]
    pub fn recent(&self, matcher: &Matcher, limit: usize) -> Vec<FlowRecord> {
        let matching = |logged: &&Logged| {
            matcher.matches_event(&logged.event, logged.record.service.as_deref())
        };
        let mut found: Vec<FlowRecord> =
            self.kept.iter().rev().filter(matching).take(limit).map(|l| l.record.clone()).collect();
        found.reverse();
        found
    }

    /// Who caused the drops for this reason that are kept, the most frequent first, and at most
    /// [`CAUSES_TOLD`] of them.
    #[must_use]
    pub fn causes(&self, reason: &str) -> Vec<DropCause> {
        let mut causes: BTreeMap<(&str, Option<&str>), u64> = BTreeMap::new();
        for record in self.kept.iter().map(|logged| &logged.record) {
            if record.reason.as_deref() != Some(reason) {
                continue;
            }
            // The pod whose policy it is.
            let endpoint = match reason == DropReason::PolicyEgress.label() {
                true => record.source_endpoint.as_deref(),
                false => record.destination_endpoint.as_deref(),
            };
            let rule = record.rule.as_deref().unwrap_or("a rule that was not reported");
            *causes.entry((rule, endpoint)).or_default() += 1;
        }
        let mut causes: Vec<DropCause> = causes
            .into_iter()
            .map(|((rule, endpoint), decisions)| DropCause {
                rule: rule.to_owned(),
                endpoint: endpoint.map(str::to_owned),
                decisions,
            })
            .collect();
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.decisions));
        causes.truncate(CAUSES_TOLD);
        causes
    }

    /// Decisions that are kept of this verdict and that `policy` is behind.
    #[must_use]
    pub fn decided_by(&self, policy: &str, verdict: &str) -> u64 {
        let records = self.kept.iter().map(|logged| &logged.record);
        let meant = records.filter(|record| {
            record.verdict == verdict && record.policies.iter().any(|name| name == policy)
        });
        meant.count() as u64
    }

    /// Shows new decisions that match to `reply` from now on. `false` when as many as allowed
    /// follow already.
    pub fn follow(&mut self, matcher: Matcher, reply: mpsc::Sender<Reply>) -> bool {
        self.admit(matcher, reply, false)
    }

    /// The same for one who watches flows.
    pub fn watch(&mut self, matcher: Matcher, reply: mpsc::Sender<Reply>) -> bool {
        self.admit(matcher, reply, true)
    }

    fn admit(&mut self, matcher: Matcher, reply: mpsc::Sender<Reply>, watches: bool) -> bool {
        self.forget_gone();
        let admitted = self.followers.len() < FOLLOWERS_MAX;
        if admitted {
            let told = self.lost_before;
            self.followers.push(Subscriber { matcher, reply, lost: 0, told, watches });
        }
        admitted
    }

    /// Whether anybody watches flows.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.followers.iter().any(|follower| follower.watches)
    }

    /// Shows how a flow has changed to those who watch it.
    pub fn show_watched(&mut self, event: &FlowEvent, record: &FlowRecord) {
        for follower in self.followers.iter_mut().filter(|follower| follower.watches) {
            if follower.matcher.matches_event(event, record.service.as_deref()) {
                follower.show(record);
            }
        }
    }

    /// Tells every follower how many it has lost since it was told last, of which `before` were lost
    /// on the way here, by all together and since start.
    pub fn tell_lost(&mut self, before: u64) {
        self.lost_before = before;
        for follower in &mut self.followers {
            let more = (before + follower.lost).saturating_sub(follower.told);
            if more > 0 && follower.reply.try_send(lost(more)).is_ok() {
                follower.told += more;
            }
        }
    }

    /// Forgets followers that hung up.
    pub fn forget_gone(&mut self) {
        self.followers.retain(|follower| !follower.reply.is_closed());
    }

    /// Whether anybody follows.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Clients that follow.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.followers.len()
    }

    /// Decisions kept now.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Tells every follower that there is no more.
    pub fn end(&mut self) {
        for follower in self.followers.drain(..) {
            let _ = follower.reply.try_send(Reply::End { lost: follower.lost });
        }
    }
}

impl Subscriber {
    fn show(&mut self, record: &FlowRecord) {
        let item = Reply::Item(StreamItem::Flow(Box::new(record.clone())));
        if self.reply.try_send(item).is_err() {
            self.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane::port::PortId;
    use dataplane::time::Nanos;

    use super::*;

    fn logged(number: u64) -> Logged {
        Logged {
            event: FlowEvent::new(Nanos(number), EventKind::Opened, PortId(0)),
            record: FlowRecord {
                time_unix_ms: number,
                verdict: "opened".into(),
                reason: None,
                interface: "veth0".into(),
                protocol: None,
                source: None,
                destination: None,
                backend: None,
                service: None,
                source_endpoint: None,
                destination_endpoint: None,
                rule: None,
                policies: Vec::new(),
                state: None,
            },
        }
    }

    #[test]
    fn the_log_keeps_the_latest_and_gives_them_oldest_first() {
        let mut log = FlowLog::default();
        for number in 0..FLOWS_KEPT_MAX as u64 + 5 {
            log.push(logged(number));
        }
        let recent = log.recent(&Matcher::default(), 3);
        let last = FLOWS_KEPT_MAX as u64 + 4;
        assert_eq!(log.kept(), FLOWS_KEPT_MAX);
        assert_eq!(
            recent.iter().map(|r| r.time_unix_ms).collect::<Vec<_>>(),
            [last - 2, last - 1, last]
        );
    }

    #[test]
    fn drops_are_told_by_who_caused_them_the_most_frequent_first() {
        let mut log = FlowLog::default();
        let drop = |rule: &str, policy: &str| {
            let mut logged = logged(0);
            logged.record.verdict = "dropped".into();
            logged.record.reason = Some("policy-ingress".into());
            logged.record.rule = Some(rule.into());
            logged.record.policies = vec![policy.into()];
            logged.record.destination_endpoint = Some("shop/web".into());
            logged
        };
        for (rule, policy) in [("by a", "shop/a"), ("by b", "shop/b"), ("by b", "shop/b")] {
            log.push(drop(rule, policy));
        }
        log.push(logged(1));
        let causes = log.causes("policy-ingress");
        let told: Vec<_> = causes.iter().map(|one| (one.rule.as_str(), one.decisions)).collect();
        assert_eq!(told, [("by b", 2), ("by a", 1)]);
        assert_eq!(causes[0].endpoint.as_deref(), Some("shop/web"));
        assert_eq!(log.causes("policy-egress"), []);
        assert_eq!(
            (log.decided_by("shop/b", "dropped"), log.decided_by("shop/b", "opened")),
            (2, 0)
        );
    }

    #[test]
    fn a_slow_follower_loses_decisions_and_is_told_how_many_and_nobody_waits() {
        let mut log = FlowLog::default();
        let (reply, mut slow) = mpsc::channel(2);
        assert!(log.follow(Matcher::default(), reply));
        for number in 0..5 {
            log.push(logged(number));
        }
        for _ in 0..2 {
            assert!(matches!(slow.try_recv(), Ok(Reply::Item(_))));
        }
        log.end();
        assert_eq!(slow.try_recv(), Ok(Reply::End { lost: 3 }));
    }

    #[test]
    fn a_follower_that_hung_up_makes_room_for_another() {
        let mut log = FlowLog::default();
        let mut ends = Vec::new();
        for _ in 0..FOLLOWERS_MAX {
            let (reply, end) = mpsc::channel(1);
            assert!(log.follow(Matcher::default(), reply));
            ends.push(end);
        }
        assert!(!log.follow(Matcher::default(), mpsc::channel(1).0));
        ends.pop();
        assert!(log.follow(Matcher::default(), mpsc::channel(1).0));
    }
}
