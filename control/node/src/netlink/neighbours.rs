//! Which neighbours to ask the kernel for, and when. Pure: time and the view are arguments.
//!
//! AF_XDP transmits past the kernel's neighbour code, so the kernel neither resolves nor refreshes
//! what we use. Gateways are kept resolved from the start; on-link destinations when a worker
//! asks. Each is asked for with NTF_USE and NTF_EXT_MANAGED: a kernel that has the latter (5.16)
//! then probes the entry by itself for as long as it exists, an older one ignores it and is asked
//! again whenever the entry goes stale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::view::KernelView;

/// An address on the link of the interface with this index.
pub type NeighbourKey = (u32, IpAddr);

/// On-link destinations tracked because a worker asked, at most.
pub const ASKED_MAX: usize = 4096;
/// Between two requests for the same neighbour, at least: the kernel itself retries an
/// unanswered one for 3 s (`mcast_solicit` times `retrans_time_ms`).
pub const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A neighbour that nobody answers for, and no worker asks for any more, is forgotten after this.
pub const FORGET_FAILED: Duration = Duration::from_secs(60);

/// The neighbours we care for.
#[derive(Debug, Default)]
pub struct Tracker {
    gateways: BTreeSet<NeighbourKey>,
    asked: BTreeMap<NeighbourKey, Instant>,
    requested: BTreeMap<NeighbourKey, Instant>,
}

impl Tracker {
    /// Sets the neighbours to be kept resolved whether or not a packet asks.
    pub fn set_gateways(&mut self, gateways: BTreeSet<NeighbourKey>) {
        self.gateways = gateways;
    }

    /// A worker needs `key`. `false` when as many as allowed are tracked already.
    pub fn ask(&mut self, key: NeighbourKey, now: Instant) -> bool {
        let admitted = self.asked.contains_key(&key) || self.asked.len() < ASKED_MAX;
        if admitted {
            self.asked.insert(key, now);
        }
        admitted
    }

    /// What to ask the kernel for now. Each answer counts as asked.
    pub fn due(&mut self, view: &KernelView, now: Instant) -> Vec<NeighbourKey> {
        let mut due = Vec::new();
        for key in self.gateways.iter().chain(self.asked.keys()) {
            if !view.links.get(&key.0).is_some_and(|link| link.up) {
                continue;
            }
            let wanted = match view.neighbours.get(key) {
                None => true,
                // Asking for a permanent entry would take its permanence away.
                Some(known) if known.kept_fresh && !known.failed => false,
                Some(known) => known.failed || known.stale,
            };
            let recent = self.requested.get(key).is_some_and(|at| now - *at < ASK_AGAIN);
            if wanted && !recent {
                due.push(*key);
            }
        }
        due.sort_unstable();
        due.dedup();
        self.requested.extend(due.iter().map(|key| (*key, now)));
        due
    }

    /// Takes out what is of no use any more; the kernel is to forget those it managed for us.
    pub fn forget(&mut self, view: &KernelView, now: Instant) -> Vec<NeighbourKey> {
        let useless = |key: &NeighbourKey, at: &Instant| {
            let known = view.neighbours.get(key);
            !view.links.contains_key(&key.0)
                || (known.is_none_or(|known| known.failed) && now - *at >= FORGET_FAILED)
        };
        let (gone, kept): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.asked).into_iter().partition(|(key, at)| useless(key, at));
        self.asked = kept;
        let (gateways, asked) = (&self.gateways, &self.asked);
        self.requested.retain(|key, _| gateways.contains(key) || asked.contains_key(key));
        gone.into_keys().filter(|key| !gateways.contains(key)).collect()
    }

    /// Everything we ever asked the kernel for and still track.
    pub fn tracked(&self) -> impl Iterator<Item = NeighbourKey> + '_ {
        self.requested.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Change, Link, Neighbour};
    use super::*;
    use dataplane::address::MacAddr;

    fn key(text: &str) -> NeighbourKey {
        (2, text.parse().unwrap())
    }

    fn view() -> KernelView {
        let mut view = KernelView::default();
        let link = Link {
            name: "eth0".into(),
            alias: None,
            mac: None,
            mtu: 1500,
            up: true,
            receive_queues: 1,
            virtual_kind: None,
        };
        view.apply(Change::Link(2, link));
        view
    }

    fn known(view: &mut KernelView, text: &str, failed: bool, kept_fresh: bool, stale: bool) {
        let mac = (!failed).then_some(MacAddr([2, 0, 0, 0, 0, 1]));
        let neighbour = Neighbour { mac, failed, kept_fresh, stale };
        view.apply(Change::Neighbour(2, text.parse().unwrap(), neighbour));
    }

    #[test]
    fn a_gateway_is_asked_for_before_any_packet_needs_it_and_once_a_second_until_known() {
        let (mut tracker, mut view, start) = (Tracker::default(), view(), Instant::now());
        tracker.set_gateways([key("192.0.2.1")].into());
        assert_eq!(tracker.due(&view, start), [key("192.0.2.1")]);
        assert_eq!(tracker.due(&view, start + ASK_AGAIN / 2), []);
        assert_eq!(tracker.due(&view, start + ASK_AGAIN), [key("192.0.2.1")]);
        known(&mut view, "192.0.2.1", false, true, false);
        assert_eq!(tracker.due(&view, start + 9 * ASK_AGAIN), []);
    }

    #[test]
    fn a_stale_entry_is_refreshed_where_the_kernel_does_not_do_it() {
        let (mut tracker, mut view, start) = (Tracker::default(), view(), Instant::now());
        assert!(tracker.ask(key("192.0.2.9"), start));
        known(&mut view, "192.0.2.9", false, false, true);
        assert_eq!(tracker.due(&view, start), [key("192.0.2.9")]);
    }

    #[test]
    fn a_permanent_entry_is_left_alone() {
        let (mut tracker, mut view, start) = (Tracker::default(), view(), Instant::now());
        tracker.ask(key("192.0.2.9"), start);
        known(&mut view, "192.0.2.9", false, true, false);
        assert_eq!(tracker.due(&view, start), []);
    }

    #[test]
    fn nobody_is_asked_on_a_link_that_is_down() {
        let (mut tracker, mut view, start) = (Tracker::default(), view(), Instant::now());
        view.links.get_mut(&2).unwrap().up = false;
        tracker.ask(key("192.0.2.9"), start);
        assert_eq!(tracker.due(&view, start), []);
    }

    #[test]
    fn who_never_answers_is_forgotten_and_a_scan_cannot_fill_the_tracker_for_good() {
        let (mut tracker, view, start) = (Tracker::default(), view(), Instant::now());
        for number in 0..ASKED_MAX {
            let address = IpAddr::V4(u32::try_from(number).unwrap().into());
            assert!(tracker.ask((2, address), start));
        }
        assert!(!tracker.ask(key("192.0.2.9"), start));
        assert_eq!(tracker.forget(&view, start + FORGET_FAILED).len(), ASKED_MAX);
        assert!(tracker.ask(key("192.0.2.9"), start));
    }
}
