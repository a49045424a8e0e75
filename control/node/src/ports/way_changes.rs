//! Ways out of ports that are changed over and over by order (`xskiff debug change-ways`): that packets of a
//! flow keep their order meanwhile is to be seen at whoever receives them.

use std::time::{Duration, Instant};

use super::PortTable;
use crate::live_ways::Way;
use crate::workers::Workers;

/// Changes that go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct WayChanges {
    every: Duration,
    next: Instant,
    until: Instant,
    /// Ports have the other way for now.
    are_changed: bool,
}

impl PortTable {
    /// Has every port that takes live frames or whole segments lose and get back its way, once in `every`, for
    /// `time`.
    pub fn change_ways(&mut self, every: Duration, time: Duration) {
        let now = Instant::now();
        let are_changed = self.changes.is_some_and(|changes| changes.are_changed);
        self.changes = Some(WayChanges { every, next: now, until: now + time, are_changed });
    }

    /// Makes the change that is due.
    pub(super) fn go_on_changing(&mut self, workers: &Workers) {
        let now = Instant::now();
        let Some(mut changes) = self.changes.filter(|changes| now >= changes.next) else { return };
        let is_over = now >= changes.until;
        let is_told = self.tell_ways(workers, changes.are_changed || is_over);
        // Who does not listen is told again the next time, as long as that may be at the end.
        changes.are_changed ^= is_told;
        changes.next = now + changes.every;
        self.changes = (!is_over || !is_told).then_some(changes);
    }

    /// Tells workers that ports have their own way, or the other one; whether all have heard it.
    fn tell_ways(&self, workers: &Workers, is_own: bool) -> bool {
        let mut is_told = true;
        for port in self.iter() {
            let whole = self.is_given_whole(port);
            let way = self.live.way(port.port);
            for ports in (0..workers.count()).filter_map(|worker| workers.ports(worker)) {
                let ifindex = if is_own { port.attachment.ifindex } else { 0 };
                is_told &= !whole || ports.set_whole(port.port, ifindex).is_ok();
                if let Way::LiveFrames(peer) = way {
                    is_told &= ports.set_live(port.port, is_own.then_some(peer)).is_ok();
                }
            }
        }
        workers.wake();
        is_told
    }
}
