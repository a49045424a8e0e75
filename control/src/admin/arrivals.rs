//! How pods come and go: requests that wait, are under way and are done, and how long it took.

use serde::{Deserialize, Serialize};

/// Upper bounds of the classes of a [`Durations`], in microseconds; one more class has what is longer.
pub const DURATION_BOUNDS_US: [u64; 14] = [
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// States of an endpoint: its port is being made; no Pod object of its name is known yet, so that
/// `policy.unknown_pods` decides; all is well; its link is down, or a worker stalls; its
/// port is taken away, and its sockets are not closed yet.
pub const ENDPOINT_STATES: [&str; 5] =
    ["arriving", "waiting-for-identity", "ready", "degraded", "leaving"];

/// How pods' ports come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArrivalsStatus {
    /// Endpoints in each state: [`ENDPOINT_STATES`], in order.
    pub states: Vec<(String, u64)>,
    /// Requests to add an endpoint that wait for others before them.
    pub waiting: u64,
    /// Requests that are being carried out.
    pub under_way: u64,
    /// Most that waited at once since the process began.
    pub waiting_most: u64,
    /// Requests that ended with a port.
    pub added: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Times that no packet memory was left for an endpoint, so that it failed.
    pub without_memory: u64,
    /// Requests that were given up while they waited: whoever asked had gone, or had it removed.
    pub abandoned: u64,
    /// Ports that were answered for before every worker had adopted their tables: one had stalled.
    pub late: u64,
    /// Endpoints removed.
    pub removed: u64,
    /// Endpoints with limits or filters of `tc` that their packets go past.
    pub with_bypassed_rules: u64,
    /// Sockets of removed ports that are not closed yet.
    pub closing_sockets: u64,
    /// The longest time from a port's removal until its interface was free again, in microseconds.
    pub closing_longest_us: u64,
    /// From a request's arrival until it was begun.
    pub waited: Durations,
    /// From there until the port was served and the XDP program attached.
    pub made: Durations,
    /// From there until tables, XDP maps and routes were made, and every worker had adopted them.
    pub adopted: Durations,
}

/// Pods of this node that ran before the node process was installed, so that nobody registered them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunningPodsStatus {
    /// Those that became endpoints since the process began.
    pub adopted: u64,
    /// Those that are being adopted.
    pub under_way: u64,
    /// Those that are not served, and that no policy holds for.
    pub outside: u64,
    /// Some of these.
    pub named: Vec<PodOutside>,
}

/// A Pod of this node that is not served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodOutside {
    /// `namespace/pod`.
    pub pod: String,
    /// Why it is not.
    pub why: String,
}

/// How often something took how long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// How many in each class of [`DURATION_BOUNDS_US`], and how many took longer than all.
    pub counts: Vec<u64>,
    /// All together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub longest_us: u64,
}

impl Durations {
    /// Notes one.
    pub fn note(&mut self, taken: std::time::Duration) {
        let us = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
        self.counts.resize(DURATION_BOUNDS_US.len() + 1, 0);
        let class = DURATION_BOUNDS_US.iter().position(|bound| us <= *bound);
        self.counts[class.unwrap_or(DURATION_BOUNDS_US.len())] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.longest_us = self.longest_us.max(us);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What at least `per_mille` of a thousand took at most, in microseconds: the bound of their class,
    /// or the longest.
    #[must_use]
    pub fn at_most_us(&self, per_mille: u64) -> u64 {
        let wanted = (self.count() * per_mille).div_ceil(1000);
        let mut sum = 0;
        let class = self.counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        let bound = class.and_then(|class| DURATION_BOUNDS_US.get(class).copied());
        bound.unwrap_or(self.longest_us).min(self.longest_us)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_most_took_at_most_is_the_bound_of_its_class() {
        let mut durations = Durations::default();
        assert_eq!(durations.at_most_us(990), 0);
        for _ in 0..99 {
            durations.note(Duration::from_micros(3_000));
        }
        durations.note(Duration::from_secs(60));
        assert_eq!((durations.count(), durations.at_most_us(990)), (100, 5_000));
        assert_eq!(durations.at_most_us(1000), 60_000_000);
        assert_eq!(durations.sum_us, 99 * 3_000 + 60_000_000);
        let mut one = Durations::default();
        one.note(Duration::from_micros(700));
        assert_eq!(one.at_most_us(500), 700, "no more than the longest");
    }
}
